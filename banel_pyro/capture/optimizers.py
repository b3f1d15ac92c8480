"""Updates of optimisers as tensor operations on their own state, so that they can be part of a graph.

Each rule is the update that the optimiser of that name makes, in two parts: the numbers that are the same for all
elements (step sizes, bias corrections), computed by Python in float64 as the optimiser does, and inputs of the graph;
and a function from old values to new ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor

from banel_pyro.capture.flat import CaptureError

__all__ = ["GraphOptimizer", "baked_options", "can_be_inside"]

State: TypeAlias = Mapping[str, Any]
New: TypeAlias = tuple[Tensor, dict[str, Tensor]]


class Rule(NamedTuple):
    """An optimiser's update.

    Args:
        numbers: from the options of a group, its learning rate and the number of the step, from 1, to the numbers.
        update: from parameter, gradient, the optimiser's state of it, options and numbers to the new parameter and
            the new state.
    """

    numbers: Callable[[State, float, int], list[float]]
    update: Callable[[Tensor, Tensor, State, State, Sequence[Tensor]], New]


def _adam_numbers(options: State, lr: float, t: int) -> list[float]:
    beta1, beta2 = options["betas"]
    decay = 1 - lr * options["weight_decay"] if options.get("decoupled_weight_decay") else 1.0
    return [lr / (1 - beta1**t), 1 / math.sqrt(1 - beta2**t), decay]


def _adam(p: Tensor, g: Tensor, state: State, options: State, numbers: Sequence[Tensor]) -> New:
    """Adam and, with decoupled weight decay, AdamW (Kingma and Ba 2014; Loshchilov and Hutter 2017)."""
    (beta1, beta2), (size, correction, decay) = options["betas"], numbers
    g = -g if options["maximize"] else g
    if options["weight_decay"] and options.get("decoupled_weight_decay"):
        p = p * decay
    elif options["weight_decay"]:
        g = g + options["weight_decay"] * p
    new = {
        "exp_avg": state["exp_avg"].lerp(g, 1 - beta1),
        "exp_avg_sq": beta2 * state["exp_avg_sq"] + (1 - beta2) * g * g,
    }
    if options["amsgrad"]:
        new["max_exp_avg_sq"] = torch.maximum(state["max_exp_avg_sq"], new["exp_avg_sq"])
    spread = new.get("max_exp_avg_sq", new["exp_avg_sq"]).sqrt() * correction + options["eps"]
    return p - size * (new["exp_avg"] / spread), new


def _clipped_adam_numbers(options: State, lr: float, t: int) -> list[float]:
    beta1, beta2 = options["betas"]
    return [lr * math.sqrt(1 - beta2**t) / (1 - beta1**t)]


def _clipped_adam(p: Tensor, g: Tensor, state: State, options: State, numbers: Sequence[Tensor]) -> New:
    """Pyro's ClippedAdam: every element of the gradient is clipped."""
    beta1, beta2 = options["betas"]
    g = g.clamp(-options["clip_norm"], options["clip_norm"])
    g = g + options["weight_decay"] * p if options["weight_decay"] else g
    mean = beta1 * state["exp_avg"] + (1 - beta1) * g
    deviation = g - mean if options["centered_variance"] else g
    spread = beta2 * state["exp_avg_sq"] + (1 - beta2) * deviation * deviation
    return p - numbers[0] * (mean / (spread.sqrt() + options["eps"])), {"exp_avg": mean, "exp_avg_sq": spread}


def _sgd_numbers(options: State, lr: float, t: int) -> list[float]:
    return [lr]


def _sgd(p: Tensor, g: Tensor, state: State, options: State, numbers: Sequence[Tensor]) -> New:
    """SGD with momentum, dampening, Nesterov's form and weight decay."""
    momentum, new = options["momentum"], {}
    g = -g if options["maximize"] else g
    g = g + options["weight_decay"] * p if options["weight_decay"] else g
    if momentum:
        new["momentum_buffer"] = momentum * state["momentum_buffer"] + (1 - options["dampening"]) * g
        g = g + momentum * new["momentum_buffer"] if options["nesterov"] else new["momentum_buffer"]
    return p - numbers[0] * g, new


_RULES: dict[type, Rule] = {
    torch.optim.Adam: Rule(_adam_numbers, _adam),
    torch.optim.AdamW: Rule(_adam_numbers, _adam),
    ClippedAdam: Rule(_clipped_adam_numbers, _clipped_adam),
    torch.optim.SGD: Rule(_sgd_numbers, _sgd),
}


def can_be_inside(optimizer: torch.optim.Optimizer) -> bool:
    """Whether there is a rule for an optimiser; of exactly its class, as a subclass may do anything."""
    return type(optimizer) in _RULES and not any(group.get("differentiable") for group in optimizer.param_groups)


class GraphOptimizer:
    """An optimiser as part of a graph, which works on the optimiser's own state.

    Args:
        optimizer: one of those of :func:`can_be_inside`, after at least one step of its own.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer, self._rule = optimizer, _RULES[type(optimizer)]
        self._count = 0

    @property
    def state(self) -> list[Tensor]:
        """The tensors of its state, but for the number of steps."""
        return [
            value
            for state in self._optimizer.state.values()
            for name, value in state.items()
            if isinstance(value, Tensor) and name != "step"
        ]

    def numbers(self, *, ahead: bool = False) -> list[float]:
        """The numbers of the next step.

        Args:
            ahead: whether that step is not made yet, so that nothing moves.
        """
        found: list[float] = []
        for group in self._optimizer.param_groups:
            rate = float(group["lr"]) * group.get("lrd", 1.0)  # which decays at each step
            found += self._rule.numbers(group, rate, self._count + 1)
            if "lrd" in group and not ahead:
                group["lr"] = rate
        self._count += not ahead
        return found

    def update(self, numbers: Sequence[Tensor], finite: Tensor) -> None:
        """One step on the parameters' gradients; where a number was not finite all stays as it is.

        Args:
            numbers: from :meth:`numbers`, 0-dim.
            finite: whether the step is to be made, 0-dim bool.

        Raises:
            CaptureError: if a parameter is used for the first time: the optimiser has no state of it.
        """
        groups = self._optimizer.param_groups
        each = len(numbers) // len(groups)
        for i, group in enumerate(groups):
            own = numbers[i * each : (i + 1) * each]
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group, own, finite)

    def _update(self, parameter: Tensor, group: State, numbers: Sequence[Tensor], finite: Tensor) -> None:
        state, old = self._optimizer.state.get(parameter, {}), parameter.detach()
        own = [number.to(old.dtype) for number in numbers]
        try:
            new, changes = self._rule.update(old, torch.as_tensor(parameter.grad), state, group, own)
        except KeyError as error:
            raise CaptureError(
                f"the optimiser has no {error} of a parameter yet: it is not used in every step. Use capture=False."
            ) from error
        old.copy_(torch.where(finite, new, old))
        for name, value in changes.items():
            state[name].copy_(torch.where(finite, value, state[name]))

    def pull(self) -> None:
        """Take over the number of steps that the optimiser has done.

        Raises:
            CaptureError: if its parameters have done different numbers of steps.
        """
        steps = {int(state["step"]) for state in self._optimizer.state.values() if "step" in state}
        if len(steps) > 1:
            raise CaptureError(
                f"the parameters have done different numbers of steps ({sorted(steps)}): some are not in every step. "
                "Use capture=False."
            )
        self._count = next(iter(steps), 0)

    def push(self, lost: int) -> None:
        """Tell the optimiser how many steps it has done.

        Args:
            lost: of the last steps, how many changed nothing because they were not finite.
        """
        self._count -= lost
        for group in self._optimizer.param_groups:
            if "lrd" in group:
                group["lr"] /= group["lrd"] ** lost
        for state in self._optimizer.state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"].fill_(self._count)
            elif "step" in state:
                state["step"] = self._count


def baked_options(optimizer: torch.optim.Optimizer) -> tuple[Any, ...]:
    """What a graph takes for constant: the options of the groups but for their learning rates."""
    groups = optimizer.param_groups
    return tuple((k, v) for group in groups for k, v in group.items() if k not in ("params", "lr", "initial_lr"))
