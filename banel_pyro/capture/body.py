"""A whole training step as a function of tensors: gradients, their norm, a guard against what is not finite, optimiser.

It runs eagerly as it stands, and is what a graph is made from and held against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from banel_pyro.capture.flat import CaptureError
from banel_pyro.capture.optimizers import GraphOptimizer

__all__ = ["Body", "Differentiate", "Guard", "Numbers", "Step", "inputs_of"]

Differentiate: TypeAlias = Callable[..., tuple[Tensor, Sequence[Tensor]]]
"""From arguments to the loss and whatever else is to come out; leaves gradients at the parameters."""


class Step(NamedTuple):
    """What is another one at each step.

    Args:
        tensors: rows, indices and the like.
        numbers: scheduled ones, then the optimiser's.
        scheduled: how many are scheduled.
        kind: whatever else a graph depends on: it has one for each kind.
    """

    tensors: Sequence[Tensor]
    numbers: list[float]
    scheduled: int
    kind: Any = None


class Numbers:
    """The numbers of some steps in one tensor, which is filled anew: to make one costs more than a small step.

    Args:
        example: steps of the same shape.
    """

    def __init__(self, example: Sequence[Step]) -> None:
        self.tensor = torch.zeros(sum(len(step.numbers) for step in example), dtype=torch.float64)
        self._array = self.tensor.numpy()

    def fill(self, numbers: Sequence[float]) -> Tensor:
        """The tensor with these numbers."""
        self._array[:] = numbers
        return self.tensor


def inputs_of(steps: Sequence[Step], device: torch.device, into: Numbers | None = None) -> list[Tensor]:
    """What a function of some steps is called with: all their tensors, then all their numbers in one tensor.

    Args:
        steps: the steps.
        device: where the numbers go.
        into: the tensor that they go into, or None for a new one.
    """
    tensors, numbers = steps[0].tensors, steps[0].numbers
    if len(steps) > 1:
        tensors = [tensor for step in steps for tensor in step.tensors]
        numbers = [number for step in steps for number in step.numbers]
    if not numbers:
        return [*tensors]
    return [*tensors, torch.tensor(numbers, dtype=torch.float64, device=device) if into is None else into.fill(numbers)]


class Guard:
    """Counts steps on the device, and remembers the first that was not finite: it and all after it change nothing.

    Args:
        device: where the parameters are.
    """

    def __init__(self, device: torch.device) -> None:
        self._done = torch.zeros((), dtype=torch.int64, device=device)
        self._bad = torch.full((), -1, dtype=torch.int64, device=device)

    @property
    def bad(self) -> int | None:
        """Which of the steps so far, from 0, was not finite. Waits for the device."""
        found = int(self._bad)
        return None if found < 0 else found

    def pass_step(self, finite: Tensor) -> Tensor:
        """Count a step; whether it is to be made, 0-dim."""
        finite = finite & (self._bad < 0)
        self._bad.copy_(torch.where(finite | (self._bad >= 0), self._bad, self._done))
        self._done.add_(1)
        return finite

    def forget(self) -> None:
        """Begin anew."""
        self._bad.fill_(-1)
        self._done.zero_()


class Body:
    """Some steps as one function of their tensors and numbers.

    Args:
        example: steps of the same shape.
        differentiate: the first half of a step, from its tensors and scheduled numbers.
        optimizer: the optimiser of the second half.
        inside: the same as tensor operations, if it is part of the graph.
        clip_norm: largest norm of the gradient, or None.
        guard: the guard.

    ``trained`` are the parameters that had a gradient in the last run; without ``inside`` their gradients are the last
    ones of what is returned.
    """

    def __init__(
        self,
        example: Sequence[Step],
        differentiate: Differentiate,
        optimizer: torch.optim.Optimizer,
        inside: GraphOptimizer | None,
        clip_norm: float | None,
        guard: Guard,
    ) -> None:
        self._count, self._width, self._scheduled = len(example), len(example[0].tensors), example[0].scheduled
        self._differentiate, self._optimizer, self._inside = differentiate, optimizer, inside
        self._clip_norm, self._guard = clip_norm, guard
        self.trained: list[Tensor] = []

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Make the steps, called with :func:`inputs_of` them."""
        count, width = self._count, self._width
        numbers = inputs[count * width].unbind() if len(inputs) > count * width else ()
        size = len(numbers) // count
        found: list[Tensor] = []
        for i in range(count):
            own = numbers[i * size : (i + 1) * size]
            found = self._one([*inputs[i * width : (i + 1) * width], *own[: self._scheduled]], own[self._scheduled :])
        return found

    def _one(self, inputs: Sequence[Tensor], update: Sequence[Tensor]) -> list[Tensor]:
        """One step: the norm of its gradient, then what ``differentiate`` gave."""
        with torch.enable_grad():
            loss, outputs = self._differentiate(*inputs)
        self.trained = [p for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients: list[Any] = [parameter.grad for parameter in self.trained]
        if not gradients:
            raise CaptureError("no parameter has a gradient: there is nothing to train.")
        with torch.no_grad():
            norm, finite = _clipped_norm(gradients, self._clip_norm)
            finite = self._guard.pass_step(torch.isfinite(loss.detach()) & finite)
            if self._inside is not None:
                self._inside.update(update, finite)
        for parameter in self.trained:
            parameter.grad = None
        return [norm, *outputs, *(gradients if self._inside is None else ())]


def _clipped_norm(gradients: Sequence[Tensor], largest: float | None) -> tuple[Tensor, Tensor]:
    """The norm of all gradients together, which are then scaled down, in place, to at most ``largest``.

    Written out: torch's operations on lists of tensors are calls into Python from compiled code.

    Returns:
        The norm, which may overflow, and whether all gradients are finite.
    """
    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    finite = torch.isfinite(torch.stack([gradient.abs().amax() for gradient in gradients if gradient.numel()])).all()
    if largest is not None:
        for gradient in gradients:
            gradient.mul_(torch.clamp(largest / norm, max=1.0))
    return norm, finite
