"""Updates of optimisers as tensor operations on their own state, so that they can be part of a graph.

Each rule is the update that the optimiser of that name makes, as a function from old values to new ones. Numbers that
are the same for all elements (step sizes, bias corrections) are computed in float64, as Python computes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor

from banel_pyro.capture.flat import CaptureError

__all__ = ["GraphOptimizer", "baked_options", "can_be_inside", "take_rates"]

State: TypeAlias = Mapping[str, Any]
Rule: TypeAlias = Callable[[Tensor, Tensor, State, State, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]
"""From parameter, gradient, the optimiser's state of it, options, learning rate and step to the new values."""


def _adam(
    p: Tensor, g: Tensor, state: State, options: State, lr: Tensor, t: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Adam and, with decoupled weight decay, AdamW (Kingma and Ba 2014; Loshchilov and Hutter 2017)."""
    (beta1, beta2), decay = options["betas"], options["weight_decay"]
    g = -g if options["maximize"] else g
    if decay and options.get("decoupled_weight_decay"):
        p = p * (1 - lr * decay).to(p.dtype)
    elif decay:
        g = g + decay * p
    new = {
        "exp_avg": state["exp_avg"].lerp(g, 1 - beta1),
        "exp_avg_sq": beta2 * state["exp_avg_sq"] + (1 - beta2) * g * g,
    }
    if options["amsgrad"]:
        new["max_exp_avg_sq"] = torch.maximum(state["max_exp_avg_sq"], new["exp_avg_sq"])
    size, root = lr / (1 - beta1**t), (1 - beta2**t).sqrt()
    spread = new.get("max_exp_avg_sq", new["exp_avg_sq"]).sqrt() / root.to(p.dtype) + options["eps"]
    return p - size.to(p.dtype) * (new["exp_avg"] / spread), new


def _clipped_adam(
    p: Tensor, g: Tensor, state: State, options: State, lr: Tensor, t: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Pyro's ClippedAdam: every element of the gradient is clipped."""
    beta1, beta2 = options["betas"]
    g = g.clamp(-options["clip_norm"], options["clip_norm"])
    g = g + options["weight_decay"] * p if options["weight_decay"] else g
    mean = beta1 * state["exp_avg"] + (1 - beta1) * g
    deviation = g - mean if options["centered_variance"] else g
    spread = beta2 * state["exp_avg_sq"] + (1 - beta2) * deviation * deviation
    size = lr * (1 - beta2**t).sqrt() / (1 - beta1**t)
    return p - size.to(p.dtype) * (mean / (spread.sqrt() + options["eps"])), {"exp_avg": mean, "exp_avg_sq": spread}


def _sgd(p: Tensor, g: Tensor, state: State, options: State, lr: Tensor, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """SGD with momentum, dampening, Nesterov's form and weight decay."""
    momentum, new = options["momentum"], {}
    g = -g if options["maximize"] else g
    g = g + options["weight_decay"] * p if options["weight_decay"] else g
    if momentum:
        new["momentum_buffer"] = momentum * state["momentum_buffer"] + (1 - options["dampening"]) * g
        g = g + momentum * new["momentum_buffer"] if options["nesterov"] else new["momentum_buffer"]
    return p - lr.to(p.dtype) * g, new


_RULES: dict[type, Rule] = {
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
    ClippedAdam: _clipped_adam,
    torch.optim.SGD: _sgd,
}


def can_be_inside(optimizer: torch.optim.Optimizer) -> bool:
    """Whether there is a rule for an optimiser; of exactly its class, as a subclass may do anything."""
    return type(optimizer) in _RULES and not any(group.get("differentiable") for group in optimizer.param_groups)


class GraphOptimizer:
    """An optimiser as part of a graph: learning rates and step are tensors, all else is the optimiser's own.

    Args:
        optimizer: one of those of :func:`can_be_inside`, after at least one step of its own.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer, self._rule = optimizer, _RULES[type(optimizer)]
        device = optimizer.param_groups[0]["params"][0].device
        self._count = torch.zeros((), dtype=torch.float64, device=device)

    @property
    def state(self) -> list[Tensor]:
        """The tensors of its state, but for the number of steps."""
        return [
            value
            for state in self._optimizer.state.values()
            for name, value in state.items()
            if isinstance(value, Tensor) and name != "step"
        ]

    def update(self, rates: Sequence[Tensor], finite: Tensor) -> None:
        """One step on the parameters' gradients; where a number was not finite all stays as it is.

        Args:
            rates: the learning rate of each group, 0-dim float64.
            finite: whether the step is to be made, 0-dim bool.

        Raises:
            CaptureError: if a parameter is used for the first time: the optimiser has no state of it.
        """
        now = self._count + 1
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self._optimizer.state.get(parameter, {})
                try:
                    new, changes = self._rule(parameter.detach(), parameter.grad, state, group, rate, now)
                except KeyError as error:
                    raise CaptureError(
                        f"the optimiser has no {error} of a parameter yet: it is not used in every step. Use "
                        "capture=False."
                    ) from error
                _set_where(finite, parameter.detach(), new)
                for name, value in changes.items():
                    _set_where(finite, state[name], value)
        _set_where(finite, self._count, now)

    def pull(self) -> None:
        """Take over the number of steps that the optimiser has done.

        Raises:
            CaptureError: if its parameters have done different numbers of steps.
        """
        steps = {float(state["step"]) for state in self._optimizer.state.values() if "step" in state}
        if len(steps) > 1:
            raise CaptureError(
                f"the parameters have done different numbers of steps ({sorted(steps)}): some are not in every step. "
                "Use capture=False."
            )
        self._count.fill_(next(iter(steps), 0.0))

    def push(self) -> None:
        """Tell the optimiser how many steps it has done."""
        for state in self._optimizer.state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"].copy_(self._count)
            elif "step" in state:
                state["step"] = int(self._count)


def take_rates(optimizer: torch.optim.Optimizer, *, ahead: bool = False) -> list[float]:
    """The learning rates of the next step, decayed where the optimiser does that itself.

    Args:
        optimizer: the optimiser.
        ahead: whether that step is not made yet, so that nothing moves.
    """
    rates = [float(group["lr"]) * group.get("lrd", 1.0) for group in optimizer.param_groups]
    if not ahead:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            if "lrd" in group:
                group["lr"] = rate
    return rates


def baked_options(optimizer: torch.optim.Optimizer) -> tuple[Any, ...]:
    """What a graph takes for constant: the options of the groups but for their learning rates."""
    groups = optimizer.param_groups
    return tuple((k, v) for group in groups for k, v in group.items() if k not in ("params", "lr", "initial_lr"))


def _set_where(condition: Tensor, old: Tensor, new: Tensor) -> None:
    old.copy_(torch.where(condition, new, old))
