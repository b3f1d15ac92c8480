"""A training step, captured: graphs for the shapes that it meets, and what lies around a call into one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from banel_pyro.capture.body import Body, Differentiate, Guard, Step, inputs_of
from banel_pyro.capture.effects import python_state, refuse_changes
from banel_pyro.capture.flat import CaptureError
from banel_pyro.capture.graphs import Gather, Graph, together
from banel_pyro.capture.optimizers import GraphOptimizer, baked_options, can_be_inside
from banel_pyro.capture.products import Products

__all__ = ["Captured"]

GRAPHS = 8
"""Graphs that one step may have; for further shapes, or options of the optimiser, the eager step is made."""

_NOTHING = nullcontext()


class Captured:
    """A training step as graphs, one for each shape of its arguments, that work on the live tensors.

    A step is: gradients, their norm, the optimiser. A step whose loss or gradient is not finite leaves parameters and
    optimiser as they are, and so do all after it; :attr:`bad` says which it was. ``patience`` is how many seconds a
    graph may take to compile, as far as its size tells; a larger one runs operation by operation.

    Args:
        differentiate: from tensors and scheduled numbers (0-dim float64 tensors) to the loss and what else is to
            come out; leaves gradients at the parameters, as the first half of an eager step does.
        optimizer: the optimiser of the second half, after at least one step of its own.
        clip_norm: largest norm of the gradient, or None.
        compile: whether the graphs are compiled, or run operation by operation.
        inside: whether the optimiser is part of the graph, if there is a rule for it.
        options_change: whether options of the optimiser other than its learning rate may change between steps: each
            set of them has a graph of its own.
        watched: where to look for state outside of tensors, by name: the model, the guide.
        gather: tells processes that share a step of each other; by default there is one.
    """

    def __init__(
        self,
        differentiate: Differentiate,
        optimizer: torch.optim.Optimizer,
        *,
        clip_norm: float | None = None,
        compile: bool = True,
        inside: bool = True,
        options_change: bool = False,
        watched: Mapping[str, Any] | None = None,
        gather: Gather = lambda told: [told],
    ) -> None:
        self._differentiate, self._optimizer = differentiate, optimizer
        self._clip_norm, self._watched, self._gather = clip_norm, dict(watched or {}), gather
        self._inside = GraphOptimizer(optimizer) if inside and can_be_inside(optimizer) else None
        self._graphs: dict[Any, Graph] = {}
        self.products: Products = {}
        self._ahead, self._behind = False, True
        self._issued, self._lost = 0, 0
        self._device = optimizer.param_groups[0]["params"][0].device
        self._guard = Guard(self._device)
        self._compile, self._options_change = compile, options_change and self._inside is not None
        self.patience = math.inf
        self._found: tuple[dict[str, Any], list[int]] | None = None

    # ---- running ----------------------------------------------------------------------------

    def step_of(
        self, tensors: Sequence[Tensor], numbers: Sequence[float], *, kind: Any = None, ahead: bool = False
    ) -> Step:
        """A step with its tensors, its scheduled numbers and those of the optimiser, which moves on.

        Args:
            tensors: rows, indices and the like.
            numbers: scheduled numbers.
            kind: whatever else the graph depends on.
            ahead: whether it is only an example, and nothing moves.

        Raises:
            CaptureError: if the optimiser's parameters have done different numbers of steps.
        """
        self._take_over()
        if self._inside is None:
            return Step(tensors, list(numbers), len(numbers), kind)
        self._ahead = self._ahead or not ahead
        return Step(tensors, [*numbers, *self._inside.numbers(ahead=ahead)], len(numbers), kind)

    def __call__(self, *steps: Step) -> Sequence[Tensor]:
        """Make some steps, in one call where a graph for as many was prepared.

        Args:
            *steps: from :meth:`step_of`; all of them of one shape.

        Returns:
            The norm of the last step's gradient, 0-dim, and what ``differentiate`` gave.

        Raises:
            CaptureError: if there is no graph for their shapes yet, and none can be made.
        """
        graph = self._graphs.get(self._key(steps))
        if graph is None and len(steps) > 1:
            return [self(step) for step in steps][-1]
        if graph is None and len(self._graphs) < GRAPHS:
            graph = self.prepare(steps)
        self._issued += len(steps)
        body = self._body(steps) if graph is None else graph.body  # the eager step: there are enough graphs
        with torch.no_grad() if torch.is_grad_enabled() else _NOTHING:  # to enter costs as much as a small step
            found = body(*inputs_of(steps, self._device)) if graph is None else graph(steps)
        return found if self._inside is not None else self._outside(found, body.trained)

    def _outside(self, found: Sequence[Tensor], trained: Sequence[Tensor]) -> Sequence[Tensor]:
        """The optimiser's step, where it is no part of the graph."""
        split = len(found) - len(trained)
        if self.bad is None:
            for parameter, gradient in zip(trained, found[split:], strict=True):
                parameter.grad = gradient
            self._optimizer.step()
            self._optimizer.zero_grad()
        return found[:split]

    @property
    def is_inside(self) -> bool:
        """Whether the optimiser is part of the graph."""
        return self._inside is not None

    @property
    def bad(self) -> int | None:
        """Which of the steps so far, from 0, was not finite. Waits for the device."""
        return self._guard.bad

    def _take_over(self) -> None:
        """Learn how many steps the optimiser has done, if it made the last one itself."""
        if self._behind and self._inside is not None:
            self._inside.pull()
        self._behind = False

    def push(self) -> None:
        """Tell the optimiser how many steps it has done: before somebody reads or uses it."""
        if self._ahead and self._inside is not None:
            lost, bad = self._lost, self.bad
            self._lost = 0 if bad is None else self._issued - bad
            self._inside.push(lost=self._lost - lost)
        self._ahead = False

    def eager(self) -> None:
        """Note that the next step is made by the optimiser itself."""
        self.push()
        self._behind = True

    def forget(self) -> None:
        """Make steps again after one that was not finite."""
        self.push()
        self._guard.forget()
        self._issued, self._lost = 0, 0

    # ---- preparing --------------------------------------------------------------------------

    def prepare(self, steps: Sequence[Step], trials: Sequence[Sequence[Step]] = (), seed: int = 0) -> Graph:
        """Make and check the graph for steps of these shapes. Leaves all tensors and generators as they were.

        Args:
            steps: example steps.
            trials: examples on which to hold the graph against the eager step; if left out, the steps themselves and
                with their rows turned by one.
            seed: of the draws of the check.

        Raises:
            CaptureError: if the step cannot be captured, or the graph is not the step.
        """
        self._take_over()
        before = python_state(**self._watched)
        with self._gradients_dropped():
            graph = Graph(self._body(steps), steps, self._state, self._device, self._gather)
            together(self._gather, lambda: refuse_changes(before, python_state(**self._watched)))
            trials = trials or [steps, _turned(steps)]
            graph.check(trials, seed)
            if self._compile and graph.compile(self.products, self.patience):
                graph.check(trials, seed)
        self._graphs[self._key(steps)] = graph
        self._found = before, self._identities()
        return graph

    def _body(self, steps: Sequence[Step]) -> Body:
        return Body(steps, self._differentiate, self._optimizer, self._inside, self._clip_norm, self._guard)

    def check(self, steps: Sequence[Step], seed: int) -> None:
        """Hold a graph against the eager step, from where the live tensors are now. Leaves them as they were.

        Args:
            steps: example steps.
            seed: of the draws.

        Raises:
            CaptureError: if they have come apart.
        """
        graph = self._graphs.get(self._key(steps))
        if graph is not None:
            with self._gradients_dropped():
                graph.check([steps], seed)

    def check_surroundings(self) -> None:
        """Look whether all that a graph takes for constant is as it was when the last one was made.

        Raises:
            CaptureError: if a number, text or container that model and guide can reach has changed, or the tensors of
                parameters or optimiser are others.
        """
        together(self._gather, self._look_around)

    def _look_around(self) -> None:
        if self._found is None:
            return
        refuse_changes(self._found[0], python_state(**self._watched))
        if self._found[1] != self._identities():
            raise CaptureError(
                "parameters or the optimiser's state are other tensors than those that were captured. Load values in "
                "place, or capture anew."
            )

    @property
    def _state(self) -> list[Tensor]:
        """The optimiser's state, where it is part of the graph."""
        return [] if self._inside is None else self._inside.state

    def _identities(self) -> list[int]:
        """Which tensors the optimiser works on."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        return [id(tensor) for tensor in (*parameters, *self._state)]

    @contextmanager
    def _gradients_dropped(self) -> Iterator[None]:
        """Leave no gradients of a step that failed half-way: the next one would add to them."""
        try:
            yield
        finally:
            for group in self._optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def _key(self, steps: Sequence[Step]) -> Any:
        first = steps[0]
        layouts = tuple([(tensor.shape, tensor.stride(), tensor.dtype) for tensor in first.tensors])
        return (
            len(steps),
            first.scheduled,
            first.kind,
            layouts,
            baked_options(self._optimizer) if self._options_change else None,
        )


def _turned(steps: Sequence[Step]) -> list[Step]:
    """The same steps with the rows of their tensors turned by one."""
    return [step._replace(tensors=[t.roll(1, 0) if t.dim() else t for t in step.tensors]) for step in steps]
