"""The graphs of a loop's steps, and the eager step that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from banel_pyro.capture.step import Captured
from banel_pyro.schedules import Constant

if TYPE_CHECKING:
    from banel_pyro.capture.body import Step
    from banel_pyro.training.loop import Loop

__all__ = ["LoopGraphs"]

TRIALS = 3
"""Steps, each with draws of its own, on which a new graph is held against the eager step."""


def _moves_momentum(scheduler: Any) -> bool:
    """Whether a scheduler, or one of those that it is made of, moves more than the learning rate."""
    parts = getattr(scheduler, "_schedulers", [])
    return bool(getattr(scheduler, "cycle_momentum", False)) or any(map(_moves_momentum, parts))


class LoopGraphs:
    """The graphs of a loop's steps, and the eager step that they stand for.

    Args:
        loop: the run.
        optimizer: its optimiser.
        transform_inside: whether rows are picked and transformed in the graph, or before it.
    """

    def __init__(self, loop: Loop, optimizer: Any, *, transform_inside: bool) -> None:
        self._loop, self.transform_inside, self.made = loop, transform_inside, set[int]()
        lam = loop.schedule(loop.step, loop.last_terms)
        self._streams = len(loop.processes.streams(loop.noise, loop.step))
        self._sites = list(lam) if isinstance(lam, Mapping) else [""]
        if isinstance(loop.schedule, Constant):
            self._sites = []
        # a scheduler of momentum as well changes what a graph takes for constant
        inside = not _moves_momentum(loop.parameters.scheduler)
        watched = {"model": loop.model, "guide": loop.guide, "transform": loop.transform if transform_inside else None}
        self.captured = Captured(
            self._differentiate, optimizer, clip_norm=loop.clip_norm, inside=inside, watched=watched,
            gather=loop.processes.gathered,
        )  # fmt: skip

    def step(self, index: Tensor | None, lam: Any, *, ahead: bool = False, offset: int = 0) -> Step:
        """A step as tensors and scheduled numbers; one that lies ``ahead``, ``offset`` steps, moves nothing."""
        numbers = [lam.get(site, 0.0) if isinstance(lam, Mapping) else lam for site in self._sites]
        tensors: tuple[Tensor, ...] = () if index is None else (index,)
        tensors += tuple(self._loop.processes.streams(self._loop.noise, self._loop.step + offset))
        if not self.transform_inside:
            tensors += self._loop.picked(index)
        return self.captured.step_of(tensors, numbers, ahead=ahead)

    def _differentiate(self, *inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The first half of an eager step, as a function of tensors."""
        loop, count = self._loop, len(inputs) - len(self._sites)
        tensors, lams = list(inputs[:count]), [lam.to(torch.get_default_dtype()) for lam in inputs[count:]]
        if self._sites:
            loop.objective.lam = lams[0] if self._sites == [""] else dict(zip(self._sites, lams, strict=True))
        index = None if loop.index() is None else tensors.pop(0)
        streams, rows = tensors[: self._streams], tuple(tensors[self._streams :])
        terms, entropies, size = loop.gradients(index, loop.picked(index) if self.transform_inside else rows, streams)
        loop.record(terms, entropies, size)
        return torch.as_tensor(terms.loss).detach(), []

    def takes(self, lam: Any) -> bool:
        """Whether a λ is for the sites that the graphs were made for."""
        if isinstance(lam, Mapping):
            return not self._sites or set(lam) <= set(self._sites)
        return self._sites in ([], [""])

    def prepare(self, rows: int, counts: set[int]) -> None:
        """Make the graphs for the loop's next step, which sees so many rows, and for several such steps in one."""
        try:
            examples = self._examples(TRIALS)
            for count in counts:
                # rows of its own for each step of a call
                trials = [[examples[(i + j) % TRIALS] for j in range(count)] for i in range(TRIALS)]
                self.captured.prepare(trials[0], trials, seed=self._loop.seed)
        finally:
            self._loop.objective.lam = self._loop.lam
            self.captured.eager()
        self.made.add(rows)

    @property
    def has_next(self) -> bool:
        """Whether there is a graph for the loop's next step."""
        index = self._loop.index()
        return (0 if index is None else len(index)) in self.made

    def look_again(self) -> None:
        """Hold the graph for the next step against the eager step, from where the run has got to."""
        step = self._examples(1)[0]
        try:
            self.captured.check([step], seed=self._loop.seed + self._loop.step)
        finally:
            self._loop.objective.lam = self._loop.lam

    def _examples(self, count: int) -> list[Step]:
        """The next step, and others of the same kind: with other rows, where a step does not see all."""
        loop = self._loop
        index, lam = loop.index(), loop.schedule(loop.step, loop.last_terms)
        others = [None] * count if index is None else [(index + i) % len(loop.rows[0]) for i in range(count)]
        return [self.step(rows, lam, ahead=True, offset=i) for i, rows in enumerate(others)]
