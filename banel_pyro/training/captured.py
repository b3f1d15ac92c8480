"""The loop's steps as captured graphs: when they pay, for which batches, and what happens where they cannot be."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from banel_pyro.capture.flat import CaptureError
from banel_pyro.seeding import kept_rng
from banel_pyro.training.loop_graphs import LoopGraphs

if TYPE_CHECKING:
    from banel_pyro.capture.body import Step
    from banel_pyro.capture.products import Products
    from banel_pyro.training.loop import Loop

__all__ = ["Capture", "CapturedSteps", "checked_capture"]

_log = logging.getLogger("banel_pyro")

Capture: TypeAlias = bool | Literal["auto"]

WORTH_IT = 20.0
"""Seconds of eager steps ahead from which on ``"auto"`` captures: to make a graph takes three to ten."""
TIMED = 3
"""Eager steps that are timed for that, after a first one."""
USES = 100
"""Steps of a run from which on a batch size other than the usual one has a graph of its own."""
GRAPHS = 4
"""Graphs of different batch sizes; further ones are trained on eagerly."""
LOOK_AGAIN = 128
"""Captured steps after which a graph is held against the eager step once more; then after twice as many, and so on."""


def checked_capture(capture: Any) -> Capture:
    """The option ``capture``.

    Raises:
        ValueError: if it is none of the three.
    """
    if isinstance(capture, bool) or capture == "auto":
        return capture  # type: ignore[no-any-return]
    raise ValueError(f"capture={capture!r}: expected True, False or 'auto' (where it pays). Leave it out for 'auto'.")


class CapturedSteps:
    """The steps of one run, captured as far as they can be.

    The first step is eager: it makes the optimiser's state. ``"auto"`` then times some more, and captures if what is
    left takes long. Decisions are part of the run's state, so that a resumed run makes the same steps.

    Args:
        mode: True, or ``"auto"``.
        loop: the run.
        steps_per_call: steps that one call into a graph makes.

    ``seconds`` is how long it took to make the graphs.
    """

    def __init__(self, mode: Capture, loop: Loop, *, steps_per_call: int = 1) -> None:
        self._mode, self._loop, self._per_call = mode, loop, steps_per_call
        self._on: bool | None = True if mode is True else None
        self._sizes: dict[int, bool] = {}
        self._products: Products = {}
        self._patience = math.inf
        self._transform_inside = True
        self._graphs: LoopGraphs | None = None
        self._clock: list[float] = []
        self.seconds = 0.0
        self._steps, self._looked = 0, 0
        self._verified: dict[str, Any] | None = None

    # ---- the run's state --------------------------------------------------------------------

    @property
    def bad(self) -> bool:
        """Whether a captured step was not finite. Waits for the device."""
        return self._graphs is not None and self._graphs.captured.bad is not None

    def settle(self) -> None:
        """Bring the optimiser's own state up to date, before somebody reads it."""
        if self._graphs is not None:
            self._graphs.captured.push()

    def state(self) -> dict[str, Any]:
        """What was decided: whether steps are captured, for which numbers of rows, which kernels they take."""
        return {
            "on": self._on,
            "sizes": dict(self._sizes),
            "products": dict(self._products),
            "patience": self._patience,
            "transform_inside": self._transform_inside,
            "moved": self._loop.processes.moved_of(self._loop.parameters),
        }

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Take over what was decided; graphs are made anew, as they work on tensors that are no more."""
        self._graphs, self._verified, self._clock = None, None, []
        if state is not None:
            self._on = state["on"] if self._mode == "auto" else True
            self._sizes, self._products = dict(state["sizes"]), dict(state["products"])
            self._transform_inside = state["transform_inside"]
            self._patience = state["patience"] if self._mode == "auto" else math.inf
            self._loop.processes.set_moved(self._loop.parameters, state["moved"])

    # ---- running ----------------------------------------------------------------------------

    def advance(self, most: int, stop: Callable[[], bool]) -> Tensor | None:
        """Make up to ``most`` steps of the loop.

        Args:
            most: steps.
            stop: whether to return before that, asked after each call into a graph.

        Returns:
            The gradient's norm in the last one; None, with nothing done, if the next step is to be eager.

        Raises:
            CaptureError: if a step cannot be captured and ``mode`` is True.
        """
        if not self._is_on():
            return None
        loop, norm, target = self._loop, None, self._loop.step + most
        with torch.no_grad():  # graphs hold their own gradients
            while loop.step < target and (steps := self._gather(min(self._steps_of_a_call, target - loop.step))):
                norm = self._graphs.captured(*steps)[0]  # type: ignore[union-attr]
                self._steps += len(steps)
                loop.parameters.move_rate()
                if stop():
                    break
        if norm is None and self._graphs is not None:
            self._graphs.captured.eager()
        return norm

    @property
    def _steps_of_a_call(self) -> int:
        """One, where Python has something to do between steps: an optimiser's step, a transform that draws."""
        captured: Any = self._graphs and self._graphs.captured
        return self._per_call if captured is not None and captured.is_inside and self._transform_inside else 1

    def _gather(self, most: int) -> list[Step]:
        """The next steps of the loop with one number of rows, if there is a graph for it; the loop moves on."""
        loop, size = self._loop, None
        steps: list[Step] = []
        while len(steps) < min(most, self._steps_of_a_call):  # which making a graph may change
            index = loop.index()
            rows = 0 if index is None else len(index)
            if size not in (None, rows) or not self._has_graph(rows):
                break
            if steps:
                loop.parameters.move_rate()
            lam = loop.schedule(loop.step, loop.last_terms)
            step = self._step_of(index, lam)
            if step is None:
                break
            size, loop.lam = rows, lam
            steps.append(step)
            loop.count()
        return steps

    def _step_of(self, index: Tensor | None, lam: Any) -> Step | None:
        """The next step for the graph; None if it is to be eager."""
        graphs: Any = self._graphs
        if not graphs.takes(lam):
            return None
        try:
            return graphs.step(index, lam)  # type: ignore[no-any-return]
        except CaptureError as error:
            if self._mode is True:
                raise
            self._give_up(error)
            return None

    # ---- deciding ---------------------------------------------------------------------------

    def _is_on(self) -> bool:
        """Whether steps are captured, from the step on at which all is known and made that this takes."""
        loop = self._loop
        if self._on is False or loop.parameters.optimizer is None or not loop.has_recorded:
            return False
        if self._on is None and not self._is_worth_it():
            return False
        if self._graphs is None:
            self._graphs = self._new_graphs()
            self._verified = self._verified or loop.good
        return True

    def _new_graphs(self) -> LoopGraphs:
        loop = self._loop
        graphs = LoopGraphs(loop, loop.parameters.optimizer, transform_inside=self._transform_inside)
        graphs.captured.products, graphs.captured.patience = self._products, self._patience
        return graphs

    def _is_worth_it(self) -> bool:
        """Time eager steps, then decide."""
        self._clock.append(time.perf_counter())
        if len(self._clock) <= TIMED:
            return False
        ahead = min(b - a for a, b in pairwise(self._clock)) * (self._loop.steps - self._loop.step)
        ahead = self._loop.processes.on_first(lambda: ahead)  # one decision for all
        self._on, self._patience = ahead > WORTH_IT, ahead / 2
        return self._on

    def _has_graph(self, rows: int) -> bool:
        """Whether there is a graph for a step of so many rows; it is made if that pays."""
        if self._graphs is None:
            return False
        if rows not in self._sizes:
            graphs = sum(self._sizes.values())
            self._sizes[rows] = not graphs or (graphs < GRAPHS and self._uses(rows) >= USES)
        if self._sizes[rows] and rows not in self._graphs.made:
            self._prepare(rows)
        return self._on is True and self._sizes[rows]

    def _uses(self, rows: int) -> int:
        """Steps of the whole run that see so many rows: those of all epochs but for the last, or the last of each."""
        loop = self._loop
        last = len(loop.rows[0]) - (loop.steps_per_epoch - 1) * (loop.rows_per_step or 0)
        return loop.steps // loop.steps_per_epoch * (1 if rows == last else loop.steps_per_epoch - 1)

    def _prepare(self, rows: int) -> None:
        """Make the graphs for steps of so many rows; what cannot be captured is eager from now on."""
        graphs: Any = self._graphs
        start = time.perf_counter()
        try:
            with kept_rng():  # a transform before the graph draws
                graphs.prepare(rows, {1, self._steps_of_a_call})
            seconds = time.perf_counter() - start
            self.seconds += seconds
            _log.info("captured a step of %s rows in %.1f s", rows or "all", seconds)
        except CaptureError as error:
            if self._transform_inside and self._loop.transform is not None:
                self._transform_inside = False
                self._graphs = self._new_graphs()
                self._prepare(rows)
            elif self._mode is True:
                raise
            else:
                self._give_up(error)

    def _give_up(self, error: CaptureError) -> None:
        self._on, self._graphs = False, None
        if self._loop.processes.rank == 0:
            _log.warning("training is eager: %s", error)

    # ---- looking again ----------------------------------------------------------------------

    def look_again(self) -> None:
        """At log points: hold a graph against the eager step once more, ever more rarely.

        Raises:
            CaptureError: if they have come apart and ``mode`` is True. Otherwise the run goes back to where they
                agreed, and on from there with eager steps.
        """
        done = self._loop.step == self._loop.steps
        new = self._steps - self._looked
        due = new >= LOOK_AGAIN and (done or new >= self._looked)
        kept = self._loop.good is not None and self._loop.good["step"] == self._loop.step
        if self._graphs is None or not (due or kept):
            return
        try:
            self._graphs.captured.check_surroundings()
            if due and self._graphs.has_next:
                self._looked = self._steps
                with kept_rng():
                    self._graphs.look_again()
                self._verified = self._loop.good
        except CaptureError as error:
            if self._mode is True:
                raise
            if self._verified is not None:
                self._loop.load(self._verified, rollback=True)
            self._give_up(error)
