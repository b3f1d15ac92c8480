"""A training step, captured: gradients, their norm, the optimiser and the guard against numbers that are not finite."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from banel_pyro.capture.check import check_same
from banel_pyro.capture.compiler import compiled, has_compiler
from banel_pyro.capture.effects import python_state, refuse_changes
from banel_pyro.capture.flat import Body, CaptureError, as_found, flat_graph
from banel_pyro.capture.optimizers import GraphOptimizer, baked_options, can_be_inside
from banel_pyro.capture.products import Products, replace_products

__all__ = ["Captured", "Differentiate", "Step"]

_log = logging.getLogger("banel_pyro")


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


Differentiate: TypeAlias = Callable[..., tuple[Tensor, Sequence[Tensor]]]
"""From arguments to the loss and whatever else is to come out; leaves gradients at the parameters."""


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


class _Graph:
    """One graph, with the eager step that it stands for.

    Args:
        device: where the parameters are.
    """

    def __init__(self, device: torch.device) -> None:
        self.body: Any = None
        self.flat: Any = None
        self.run: Any = None
        self.trained: list[Tensor] = []
        self._device = device

    def inputs(self, steps: Sequence[Step]) -> list[Tensor]:
        """What the graph is called with, all numbers in one tensor."""
        tensors, numbers = steps[0].tensors, steps[0].numbers
        if len(steps) > 1:
            tensors = [tensor for step in steps for tensor in step.tensors]
            numbers = [number for step in steps for number in step.numbers]
        if not numbers:
            return [*tensors]
        return [*tensors, torch.tensor(numbers, dtype=torch.float64, device=self._device)]


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
    ) -> None:
        self._differentiate, self._optimizer = differentiate, optimizer
        self._clip_norm, self._watched = clip_norm, dict(watched or {})
        self._inside = GraphOptimizer(optimizer) if inside and can_be_inside(optimizer) else None
        self._graphs: dict[Any, _Graph] = {}
        self.products: Products = {}
        self._ahead, self._behind = False, True
        self._issued, self._lost = 0, 0
        self._device = optimizer.param_groups[0]["params"][0].device
        self._done = torch.zeros((), dtype=torch.int64, device=self._device)
        self._bad = torch.full((), -1, dtype=torch.int64, device=self._device)
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
        if graph is None:
            graph = self.prepare(steps) if len(self._graphs) < GRAPHS else self._eager_graph(steps)
        self._issued += len(steps)
        with torch.no_grad():
            found = graph.run(*graph.inputs(steps))
        return found if self._inside is not None else self._outside(found, graph)

    def _eager_graph(self, steps: Sequence[Step]) -> _Graph:
        """The eager step in the place of a graph: there are enough of those."""
        graph = _Graph(self._device)
        graph.run = self._body(len(steps), len(steps[0].tensors), steps[0].scheduled, graph)
        return graph

    def _outside(self, found: Sequence[Tensor], graph: _Graph) -> Sequence[Tensor]:
        """The optimiser's step, where it is no part of the graph."""
        split = len(found) - len(graph.trained)
        if int(self._bad) < 0:
            for parameter, gradient in zip(graph.trained, found[split:], strict=True):
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
        found = int(self._bad)
        return None if found < 0 else found

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

    # ---- preparing --------------------------------------------------------------------------

    def prepare(self, steps: Sequence[Step], trials: Sequence[Sequence[Step]] = (), seed: int = 0) -> _Graph:
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
        graph = _Graph(self._device)
        graph.body = self._body(len(steps), len(steps[0].tensors), steps[0].scheduled, graph)
        before = python_state(**self._watched)
        with self._gradients_dropped():
            graph.run = graph.flat = flat_graph(graph.body, graph.inputs(steps))
            refuse_changes(before, python_state(**self._watched))
            trials = trials or [steps, _turned(steps)]
            self._check(graph, trials, seed)
            if self._compile and self._compiled(graph, steps):
                self._check(graph, trials, seed)
        self._graphs[self._key(steps)] = graph
        self._found = before, self._identities()
        return graph

    @contextmanager
    def _gradients_dropped(self) -> Iterator[None]:
        """Leave no gradients of a step that failed half-way: the next one would add to them."""
        try:
            yield
        finally:
            for group in self._optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def _identities(self) -> list[int]:
        """Which tensors the optimiser works on."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        return [id(tensor) for tensor in (*parameters, *(self._inside.state if self._inside else ()))]

    def check_surroundings(self) -> None:
        """Look whether all that a graph takes for constant is as it was when the last one was made.

        Raises:
            CaptureError: if a number, text or container that model and guide can reach has changed, or the tensors of
                parameters or optimiser are others.
        """
        if self._found is None:
            return
        refuse_changes(self._found[0], python_state(**self._watched))
        if self._found[1] != self._identities():
            raise CaptureError(
                "parameters or the optimiser's state are other tensors than those that were captured. Load values in "
                "place, or capture anew."
            )

    def forget(self) -> None:
        """Make steps again after one that was not finite."""
        self.push()
        self._bad.fill_(-1)
        self._done.zero_()
        self._issued, self._lost = 0, 0

    def _compiled(self, graph: _Graph, steps: Sequence[Step]) -> bool:
        """Compile a graph, if that can be done."""
        if not has_compiler():
            _say_once(
                "captured steps run operation by operation: there is no C++ compiler, or TORCH_COMPILE_DISABLE is set. "
                "Install g++ or clang."
            )
            return False
        size = len(graph.flat.module.graph.nodes)
        if size > MOST_NODES or size * SECONDS_PER_NODE > self.patience:
            _log.info("a graph of %d operations takes too long to compile: it runs operation by operation", size)
            return False
        try:
            replace_products(graph.flat.module, [*graph.inputs(steps), *graph.flat.held], self.products)
            graph.run = compiled(graph.flat, graph.inputs(steps))
        except Exception as error:  # a fault of inductor's is no reason to stop: the flat graph is right
            line = str(error).strip().partition("\n")[0][:200]
            _say_once(f"the captured step does not compile ({type(error).__name__}: {line}): it runs uncompiled.")
            return False
        return True

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
                self._check(graph, [steps], seed)

    def _check(self, graph: _Graph, trials: Sequence[Sequence[Step]], seed: int) -> None:
        """At other numbers than those of the trace, and where the optimiser's update is smooth.

        Where a gradient is next to 0, the sign of a rounding moves Adam by a whole step: its state is set to 1.
        """
        state = [t for t in (self._inside.state if self._inside else ()) if t.is_floating_point()]
        with as_found(state), torch.no_grad():
            for tensor in state:
                tensor.fill_(1.0)
            # each step of a call has numbers of its own
            others = [
                [step._replace(numbers=[(0.9 - 0.05 * i) * n for n in step.numbers]) for i, step in enumerate(steps)]
                for steps in trials
            ]
            check_same(graph.body, graph.run, graph.flat, [graph.inputs(steps) for steps in others], seed)

    def _body(self, count: int, width: int, scheduled: int, graph: _Graph) -> Body:
        """The whole of some steps as a function of their tensors and numbers, eager as it stands."""

        def body(*inputs: Tensor) -> list[Tensor]:
            tensors = inputs[: count * width]
            numbers = inputs[count * width].unbind() if len(inputs) > count * width else ()
            size = len(numbers) // count
            found: list[Tensor] = []
            for i in range(count):
                own = numbers[i * size : (i + 1) * size]
                found = self._one([*tensors[i * width : (i + 1) * width], *own[:scheduled]], own[scheduled:], graph)
            return found

        return body

    def _one(self, inputs: Sequence[Tensor], update: Sequence[Tensor], graph: _Graph) -> list[Tensor]:
        with torch.enable_grad():
            loss, outputs = self._differentiate(*inputs)
        parameters = [p for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not parameters:
            raise CaptureError("no parameter has a gradient: there is nothing to train.")
        with torch.no_grad():
            norm, finite = _clipped_norm([p.grad for p in parameters], self._clip_norm)
            finite = torch.isfinite(loss.detach()) & finite & (self._bad < 0)
            self._bad.copy_(torch.where(finite | (self._bad >= 0), self._bad, self._done))
            self._done.add_(1)
            found = [norm, *outputs]
            if self._inside is not None:
                self._inside.update(update, finite)
            else:
                graph.trained = parameters
                found += [p.grad for p in parameters]
        for parameter in parameters:
            parameter.grad = None
        return found

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


MOST_NODES = 20_000
"""Operations of a graph that is compiled: some minutes of compiling."""
SECONDS_PER_NODE = 0.01
"""Seconds of compiling for an operation, on one core, when nothing is cached."""
GRAPHS = 8
"""Graphs that one step may have; for further shapes, or options of the optimiser, the eager step is made."""

_said: set[str] = set()


def _say_once(line: str) -> None:
    if line not in _said:
        _said.add(line)
        _log.warning(line)
