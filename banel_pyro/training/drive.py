"""A loop driven to its end: checkpoints, callbacks, signals, and numbers that are not finite."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pandas as pd
import pyro

from banel_pyro.folder import RunFolder
from banel_pyro.plates import tell_autoguide
from banel_pyro.training.callbacks import Callbacks
from banel_pyro.training.faults import NonFiniteError, locate_fault
from banel_pyro.training.interrupt import INTERRUPTED, Interrupt
from banel_pyro.training.loop import Loop
from banel_pyro.training.progress import Progress
from banel_pyro.training.rollback import FAULTS

__all__ = ["train"]

_log = logging.getLogger("banel_pyro")


def train(
    loop: Loop, folder: RunFolder | None, config: dict[str, Any], checkpoint_every: int, callbacks: Callbacks, *,
    resume: bool, progress: bool,
) -> bool:  # fmt: skip
    """Train, or go on with training, in the run folder; False if the very same run had already ended in it."""
    state, finished = loop.processes.on_first(lambda: _found(folder, config, resume=resume))
    # Pyro would read the log-probability of every site on every step to warn of NaN; the loop reads at log points
    unread = pyro.settings.context(validate_poutine=False)
    with loop.parameters.alone(state), tell_autoguide(loop.guide, loop.plate), unread:
        if state is not None:
            loop.rollbacks.kept = state.pop("kept", [])
            loop.load(state)
            if loop.step == loop.steps and loop.history:  # a fault at the last step is one of the resumed run, too
                loop.detect()
        if loop.processes.rank > 0:  # the first one writes and shows
            folder, progress = None, False
        if folder is not None:
            folder.claim(config)
            if finished:
                _tell_of_stop(loop, folder)
        if not finished:
            with loop.processes.together():
                _run(loop, folder, checkpoint_every, callbacks, progress)
    return not finished


def _found(folder: RunFolder | None, config: dict[str, Any], *, resume: bool) -> tuple[dict[str, Any] | None, bool]:
    """The state to go on from, or None, and whether the very same run has ended already."""
    state = None if folder is None else folder.find_state(config, resume=resume)
    return state, folder is not None and state is not None and _has_ended(folder, state, config)


def _tell_of_stop(loop: Loop, folder: RunFolder) -> None:
    if loop.stopped is not None:
        _log.warning(
            "the run in %s was stopped by a callback after step %d (%s) and is left as it is: ask for more steps to "
            "go on", folder.path, loop.step, loop.stopped,
        )  # fmt: skip


def _has_ended(folder: RunFolder, state: Mapping[str, Any], config: dict[str, Any]) -> bool:
    """Whether a run has come to its last step, or to where a callback stopped it, and its files are there."""
    by_callback = state["stopped"] not in (None, INTERRUPTED) and folder.read_config()["steps"] == config["steps"]
    return folder.is_finished(config) and (state["step"] == config["steps"] or by_callback)


def _run(loop: Loop, folder: RunFolder | None, checkpoint_every: int, callbacks: Callbacks, progress: bool) -> None:
    """Advance to the last step. Numbers that are not finite and a collapse stop it, with the state saved."""
    loop.stopped, loop.good = None, loop.state()
    if loop.on_fault is not None and not loop.rollbacks.kept:
        loop.rollbacks.kept = [loop.good]
    with Progress(loop.steps, enabled=progress) as bar, Interrupt() as interrupt:
        if loop.step == 0:  # a run that stops before its first checkpoint starts over from here
            _save(loop, folder)
        while loop.step < loop.steps and loop.stopped is None:
            with _saved(loop, folder):
                most = 1 if callbacks.watch_steps else checkpoint_every - loop.step % checkpoint_every
                before = loop.step
                if not _advance(loop, most, lambda: interrupt.asked):
                    _save(loop, folder)  # what is on the disk may be of the part that is gone
                    continue
                if loop.step <= before:  # back to where a graph was right: these steps come once more
                    continue
                if loop.at_log_point:
                    bar.update(loop.step, loop.history[-1], loop.capture.seconds if loop.capture else 0.0)
                reason = callbacks.after_step()
            loop.stopped = INTERRUPTED if _asked(loop, interrupt) else reason if loop.step < loop.steps else None
            if loop.step % checkpoint_every == 0 or loop.step == loop.steps or loop.stopped:
                _save(loop, folder)
        with _saved(loop, folder, step=-1):
            callbacks.end()
        loop.stopped = INTERRUPTED if any(loop.processes.gathered(interrupt.asked)) else loop.stopped
    if loop.stopped == INTERRUPTED and loop.processes.rank == 0:
        how = "the parameters are those after it" if folder is None else "the same call with resume=True goes on"
        _log.warning("interrupted after step %d of %d: %s", loop.step, loop.steps, how)
    if interrupt.exit_code is not None:  # who asks a program to end waits for that
        sys.exit(interrupt.exit_code)


def _asked(loop: Loop, interrupt: Interrupt) -> bool:
    """Whether Ctrl-C was pressed: more than one process can end the run at a log point only, all at the same step."""
    if loop.processes.count > 1 and not loop.at_log_point:
        return False
    return any(loop.processes.gathered(interrupt.asked))


@contextmanager
def _saved(loop: Loop, folder: RunFolder | None, step: int | None = None) -> Iterator[None]:
    """Save the run when what comes after a step ends it: numbers, a collapse, a callback."""
    step = loop.step if step is None else step
    try:
        yield
    except Exception as error:
        if loop.step != step or isinstance(error, FAULTS):
            _save(loop, folder)
            if folder is not None:
                what = f"The state after step {loop.step}" if isinstance(error, FAULTS) else "The run"
                error.add_note(f"{what} is saved in {folder.path}; resume=True goes on.")
        raise


def _advance(loop: Loop, most: int, stop: Callable[[], bool]) -> bool:
    """One step, or some captured ones; False where a fault has brought the run back to an earlier step instead."""
    try:
        _step(loop, most, stop)
    except FAULTS as fault:
        loop.rollbacks.take(loop, fault)
        return False
    return True


def _step(loop: Loop, most: int, stop: Callable[[], bool]) -> None:
    """One step, or some captured ones; an error that comes from numbers that are not finite says where they arise."""
    step = loop.step
    try:
        loop.advance(most, stop)
    except FAULTS:
        raise
    except Exception as error:
        error.add_note(f"This happened in fit, at step {step}.")
        # Pyro's validation and warnings meet such numbers before our log point does. Of several processes one alone
        # cannot replay a step; they look at every step, and find such numbers before a site does.
        if loop.processes.count == 1 and (isinstance(error, ValueError | Warning) or not loop.is_finite):
            _blame(loop, error, step)
        raise


def _blame(loop: Loop, error: Exception, step: int) -> None:
    try:
        locate_fault(loop, until=step + 1)
    except NonFiniteError as fault:
        raise fault from error
    except Exception:  # the same error once more
        raise error from None


def _save(loop: Loop, folder: RunFolder | None) -> None:
    if folder is not None:
        kept = {"kept": loop.rollbacks.kept} if loop.on_fault is not None else {}
        folder.write_state(loop.state() | kept, pd.DataFrame(loop.history))
