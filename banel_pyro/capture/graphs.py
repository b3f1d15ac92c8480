"""The graph of a step: traced, held against the eager step, compiled."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from banel_pyro.capture.body import Body, Numbers, Step, inputs_of
from banel_pyro.capture.check import check_same
from banel_pyro.capture.compiler import compiled, has_compiler
from banel_pyro.capture.flat import CaptureError, as_found, flat_graph
from banel_pyro.capture.operators import alone
from banel_pyro.capture.products import Products, choose_products, replace_products

__all__ = ["Gather", "Graph", "together"]

_log = logging.getLogger("banel_pyro")

MOST_NODES = 20_000
"""Operations of a graph that is compiled: some minutes of compiling."""
SECONDS_PER_NODE = 0.01
"""Seconds of compiling for an operation, on one core, when nothing is cached."""

Gather: TypeAlias = Callable[[Any], list[Any]]
"""From what this process has to what each of those has that share a step."""

_Found = TypeVar("_Found")


class Graph:
    """A step as a graph for steps of one shape, on the live tensors.

    Args:
        body: the step.
        example: steps of the shape that the graph is for.
        state: the optimiser's state.
        device: where the parameters are.
        gather: tells the processes that share a step of each other.

    Raises:
        CaptureError: if the step cannot be traced.
    """

    def __init__(
        self,
        body: Body,
        example: Sequence[Step],
        state: Sequence[Tensor],
        device: torch.device,
        gather: Gather,
    ) -> None:
        self.body, self._example = body, example
        self._state = [tensor for tensor in state if tensor.is_floating_point()]
        self._device, self._gather = device, gather
        with alone():
            self._flat = together(gather, lambda: flat_graph(body, inputs_of(example, device)))
        self.run: Callable[..., Sequence[Tensor]] = self._flat
        # on the CPU, where a step is over when the call returns, its numbers may lie where those of the last one did
        self._numbers = Numbers(example) if device.type == "cpu" else None

    def __call__(self, steps: Sequence[Step]) -> Sequence[Tensor]:
        """Make the steps. Gradients must be off: the graph holds its own."""
        return self.run(*inputs_of(steps, self._device, self._numbers))

    def check(self, trials: Sequence[Sequence[Step]], seed: int) -> None:
        """Hold the graph against the eager step, from where the live tensors are now. Leaves them as they were.

        At other numbers than those of the trace, and where the optimiser's update is smooth: where a gradient is next
        to 0, the sign of a rounding moves Adam by a whole step, so its state is set to 1.

        Args:
            trials: steps.
            seed: of the draws.

        Raises:
            CaptureError: if they have come apart.
        """
        with as_found(self._state), torch.no_grad():
            for tensor in self._state:
                tensor.fill_(1.0)
            # each step of a call has numbers of its own
            others = [
                [step._replace(numbers=[(0.9 - 0.05 * i) * n for n in step.numbers]) for i, step in enumerate(steps)]
                for steps in trials
            ]
            inputs = [inputs_of(steps, self._device) for steps in others]
            together(self._gather, lambda: check_same(self.body, self.run, self._flat, inputs, seed))

    def compile(self, products: Products, patience: float) -> bool:
        """Compile the graph, if that can be done.

        Args:
            products: which kernels its matrix products take, which is added to.
            patience: seconds that it may take, as far as the graph's size tells.
        """
        why = _first(self._gather(self._refusal(patience)))
        if why is None:
            why = _first(self._gather(_failure(lambda: self._choose(products))))
        if why is None:
            for decided in reversed(self._gather(dict(products))):  # the first process has the last word
                products.update(decided)
            why = _first(self._gather(_failure(lambda: self._compile(products))))
        if why is not None:
            self.run = self._flat
            _say_once(why)
        return why is None

    def _refusal(self, patience: float) -> str | None:
        """Why the graph is not to be compiled, empty if that needs no warning; None if it is."""
        if not has_compiler():
            return (
                "captured steps run operation by operation: there is no C++ compiler, or TORCH_COMPILE_DISABLE is set. "
                "Install g++ or clang."
            )
        size = len(self._flat.module.graph.nodes)
        if size > MOST_NODES or size * SECONDS_PER_NODE > patience:
            _log.info("a graph of %d operations takes too long to compile: it runs operation by operation", size)
            return ""
        return None

    def _choose(self, products: Products) -> None:
        inputs = [*inputs_of(self._example, self._device), *self._flat.held]
        with alone():
            self._chosen = choose_products(self._flat.module, inputs, products)

    def _compile(self, products: Products) -> None:
        replace_products(self._flat.module, self._chosen, products)
        self.run = compiled(self._flat, inputs_of(self._example, self._device))


def _failure(part: Callable[[], None]) -> str | None:
    """What is said of a part of the compiling that failed: a fault of inductor's is no reason to stop."""
    try:
        part()
    except Exception as error:
        line = str(error).strip().partition("\n")[0][:200]
        return f"the captured step does not compile ({type(error).__name__}: {line}): it runs uncompiled."
    return None


def _first(told: Sequence[str | None]) -> str | None:
    return next((text for text in told if text is not None), None)


def together(gather: Gather, part: Callable[[], _Found]) -> _Found:
    """Do a part of what processes that share a step all do: it fails on all if it fails on one.

    Args:
        gather: tells them of each other.
        part: the part.

    Raises:
        CaptureError: what the part raises here, or in words what it raises elsewhere.
    """
    found, error = None, None
    try:
        found = part()
    except CaptureError as raised:
        error = raised
    heard = _first(gather(None if error is None else str(error)))
    if error is not None:
        raise error
    if heard is not None:
        raise CaptureError(f"on another process: {heard}")
    return found  # type: ignore[return-value]


_said: set[str] = {""}


def _say_once(line: str) -> None:
    if line not in _said:
        _said.add(line)
        _log.warning(line)
