"""What can watch a run: plain callables that get every event of the loop, and the ones that most people want."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from banel_pyro.modules import reachable_modules
from banel_pyro.precision import default_dtype
from banel_pyro.seeding import kept_rng
from banel_pyro.training.options import name_of

if TYPE_CHECKING:
    from banel_pyro.run import FitResult
    from banel_pyro.training.loop import Loop

__all__ = ["EVENTS", "CSVLogger", "Callback", "Callbacks", "Event", "Metric", "TensorBoard", "checked_callbacks"]

EVENTS = ("step", "log", "evaluation", "epoch", "end")
"""Kinds of events, in the order in which they come where several fall on one step."""

_WITH_ROW = ("log", "evaluation")


@dataclass(frozen=True)
class Event:
    """Something that happened in a run.

    Args:
        kind: ``"step"`` after each optimiser step; ``"log"`` when a row has joined the history;
            ``"evaluation"`` every ``validate_every`` steps, with ``val_elbo`` in the row if there are held-out rows;
            ``"epoch"`` after each pass through the data; ``"end"`` once, when no step follows any more.
        step: steps done.
        epoch: passes through the data done.
        row: the last row of the history, which cannot be changed; empty before the first.
    """

    kind: str
    step: int
    epoch: float
    row: Mapping[str, float]
    _result: Callable[[], FitResult] = field(repr=False)

    @property
    def result(self) -> FitResult:
        """The pair as it is now, with the history so far: ``event.result.posterior(...)`` and so on."""
        return self._result()


Callback: TypeAlias = Callable[[Event], str | Mapping[str, float] | None]
"""Gets every event. Returns None, or why the run is to stop, or numbers to add to the history's last row.

An attribute ``events``, some of :data:`EVENTS`, spares it the others.
"""


class Callbacks:
    """The callbacks of one run, called so that they cannot change its numbers.

    Generators, training modes and gradients are as before when a callback returns; it can still write into
    parameters, which is its own affair.

    Args:
        callbacks: in the order in which they are called.
        loop: the run.
        result: what it has come to so far.
    """

    def __init__(self, callbacks: Sequence[Callback], loop: Loop, result: Callable[[], FitResult]) -> None:
        self._wanted = {kind: [c for c in callbacks if kind in getattr(c, "events", EVENTS)] for kind in EVENTS}
        self._loop, self._result = loop, result

    @property
    def watch_steps(self) -> bool:
        """Whether somebody wants to be told of every step, or of an epoch, which may end at any."""
        return bool(self._wanted["step"] or self._wanted["epoch"])

    def after_step(self) -> str | None:
        """Tell of all that falls on the step just done.

        Returns:
            Why the run is to stop, or None.

        Raises:
            TypeError, ValueError: for what a callback must not return.
            Exception: whatever a callback raises, with a note that names it.
        """
        loop = self._loop
        due = {
            "step": True,
            "log": loop.at_log_point,
            "evaluation": loop.at_log_point and loop.at_evaluation,
            "epoch": loop.step % loop.steps_per_epoch == 0,
        }
        reasons = [reason for kind, is_due in due.items() if is_due for reason in self._tell(kind)]
        return "; ".join(dict.fromkeys(reasons)) or None

    def end(self) -> None:
        """Tell that no step follows any more."""
        self._tell("end")

    def _tell(self, kind: str) -> list[str]:
        """Call those who want such events, on process 0; returns why they want the run to stop."""
        if not self._wanted[kind]:
            return []
        row = self._loop.history[-1] if self._loop.history else {}
        reasons, numbers = self._loop.processes.on_first(lambda: (self._asked(kind, row), row))
        row.update(numbers)
        return reasons

    def _asked(self, kind: str, row: dict[str, float]) -> list[str]:
        """Call those who want such events; adds their numbers to the row, and returns their reasons to stop."""
        loop, reasons = self._loop, []
        event = Event(kind, loop.step, loop.step / loop.steps_per_epoch, MappingProxyType(row), self._result)
        for callback in self._wanted[kind]:
            try:
                with _untouched(loop):
                    found = callback(event)
                _check(found, event)
            except Exception as error:
                error.add_note(f"This came from callback {name_of(callback)}, at '{kind}' after step {event.step}.")
                raise
            if isinstance(found, str):
                reasons.append(found)
            elif found is not None:
                row.update({name: float(value) for name, value in found.items()})
        return reasons


def _untouched(loop: Loop) -> ExitStack:
    """What a callback runs in. Afterwards generators, training modes, dtype and gradients are as they were."""
    stack = ExitStack()
    stack.enter_context(torch.no_grad())
    stack.enter_context(kept_rng())
    stack.enter_context(default_dtype(torch.get_default_dtype()))
    modes = [(part, part.training) for module in reachable_modules(loop.model, loop.guide) for part in module.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in loop.parameters.names().values()]
    stack.callback(_restore, modes, trained)
    return stack


def _restore(modes: list[tuple[nn.Module, bool]], trained: list[tuple[Tensor, bool]]) -> None:
    for part, training in modes:
        part.training = training
    for parameter, requires_grad in trained:
        parameter.grad = None  # there was none after the step
        parameter.requires_grad_(requires_grad)


def _check(found: Any, event: Event) -> None:
    if found is None or (isinstance(found, str) and found):
        return
    if not isinstance(found, Mapping):
        raise TypeError(
            f"the callback returned {found!r}: expected None, a text that says why the run is to stop, or a mapping "
            'from names to numbers. Write return "no progress", for instance.'
        )
    if event.kind not in _WITH_ROW:
        raise ValueError(
            f"the callback returned numbers at a '{event.kind}' event, which has no row of the history: return them "
            f"at {' or '.join(repr(kind) for kind in _WITH_ROW)} events."
        )
    for name, value in found.items():
        if not isinstance(name, str):
            raise TypeError(f"the callback returned a number named {name!r}: expected a text.")
        if not isinstance(value, Real):
            raise TypeError(f"the callback returned {name}={value!r}: expected a number. Write float(...).")
        if name in event.row or name in ("val_elbo", "lr"):
            raise ValueError(f"the callback returned {name!r}, which is a column of ours. Choose another name.")


def checked_callbacks(callbacks: Any) -> tuple[Callback, ...]:
    """The callbacks as a tuple.

    Raises:
        TypeError: if there is one that cannot be called.
        ValueError: if one wants events that do not exist.
    """
    if callable(callbacks) or not isinstance(callbacks, Sequence):
        raise TypeError(f"callbacks={callbacks!r}: expected a list of callables. Write callbacks=[...].")
    for callback in callbacks:
        if not callable(callback):
            raise TypeError(f"callbacks has {callback!r}: expected a callable that takes one Event.")
        unknown = sorted(set(getattr(callback, "events", ())) - set(EVENTS))
        if unknown:
            raise ValueError(f"callback {name_of(callback)} wants events {unknown}: expected some of {list(EVENTS)}.")
    return tuple(callbacks)


# ---- ready ones ----------------------------------------------------------------------------------


class CSVLogger:
    """Writes the history to a CSV file, a row at each log point: for ``tail -f`` and spreadsheets.

    Args:
        path: the file; what it holds is replaced by the history of the run.

    Example:
        >>> logger = CSVLogger("history.csv")  # fit(..., callbacks=[logger])
    """

    events = ("log", "evaluation", "end")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._header: list[str] = []
        self._step = -1

    def __call__(self, event: Event) -> None:
        """Write the new row, or all of them where one has changed or has new columns, and for a run that is new."""
        if event.kind == "log" and 0 <= self._step < event.step and set(event.row) <= set(self._header):
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._header).writerow(dict(event.row))
        else:
            history = event.result.history
            self.path.parent.mkdir(parents=True, exist_ok=True)
            history.to_csv(self.path, index=False)
            self._header = [str(name) for name in history.columns]
        self._step = event.step


class TensorBoard:
    """Writes every number of the history to TensorBoard (the extra ``tensorboard``).

    Args:
        folder: of the event files; a run each: ``TensorBoard("runs/tb/lam=0.4")``.

    Raises:
        ModuleNotFoundError: if tensorboard is not installed.
    """

    events = ("log", "evaluation", "end")

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # heavy
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "TensorBoard needs the package tensorboard: pip install 'banel-pyro[tensorboard]'."
            ) from error
        self._open = SummaryWriter
        self.folder = Path(folder)
        self._writer: Any = None
        self._row: Mapping[str, float] = {}
        self._written: set[str] = set()

    def __call__(self, event: Event) -> None:
        """Write what is new in the last row of the history, and what others have added to the one before."""
        if self._writer is None:  # what a resumed run had written beyond its checkpoint is dropped
            self._writer = self._open(str(self.folder), purge_step=event.step)
        self._write(self._row)
        if event.row.get("step") != self._row.get("step"):
            self._row, self._written = event.row, set()
            self._write(self._row)
        self._writer.flush()
        if event.kind == "end":
            self._writer.close()
            self._writer, self._row = None, {}

    def _write(self, row: Mapping[str, float]) -> None:
        for name in row.keys() - self._written - {"step", "epoch"}:
            if math.isfinite(row[name]):
                self._writer.add_scalar(name, row[name], int(row["step"]))
            self._written.add(name)


class Metric:
    """A number of the pair's own, in the history at every evaluation.

    Args:
        name: its column.
        function: from the run as it is then, a :class:`~banel_pyro.FitResult`, to a number.

    Example:
        >>> metric = Metric("drift", lambda result: float(len(result.history)))
    """

    events = ("evaluation",)

    def __init__(self, name: str, function: Callable[[FitResult], float]) -> None:
        self.name, self.function = name, function

    def __call__(self, event: Event) -> dict[str, float]:
        """The number, for the history."""
        return {self.name: float(self.function(event.result))}
