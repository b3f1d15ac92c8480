"""What is made sure of before anything is asked: one process a folder, its own ledger, a generator that learns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from banel_pyro.negative.filters import RatioFilter
from banel_pyro.negative.generator import Generator
from banel_pyro.negative.ledger import Ledger
from banel_pyro.negative.options import LOCK
from banel_pyro.negative.state import Plan, State
from banel_pyro.negative.training import Training
from banel_pyro.seeding import fork_rng

__all__ = ["check_learns", "check_ledger", "locked"]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes of this machine out of a run's folder; on Windows nothing does.

    The lock ends with the process, whatever ends that.

    Raises:
        ValueError: if one is at work there.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        yield
        return
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise ValueError(
                f"out='{folder}' is in use by process {file.read().strip() or 'unknown'}: expected one process at a "
                "time. Wait for it, or choose another folder."
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def check_ledger(ledger: Ledger, state: State) -> None:
    """Refuse a ledger that knows of fewer charges than the run's checkpoint: it is not the run's, or an older copy.

    Raises:
        ValueError: with both figures.
    """
    spent = max([row["nre"] for row in (*state.rows, state.row) if "nre" in row], default=0)
    if ledger.nre < spent:
        raise ValueError(
            f"the ledger '{ledger.path}' has {ledger.nre} charged reward evaluations, and the run had made {spent}: "
            "expected all of them, or the budget would be overrun. Put the run's own ledger back, with its -wal file "
            "if there is one, or choose another folder."
        )


def check_learns(generator: Generator, plan: Plan) -> None:
    """Refuse a generator that a step of training does not move, where the plan trains it or a copy of it.

    Raises:
        ValueError: saying what is missing.
    """
    filter_: Any = plan.filter
    fits = isinstance(filter_, RatioFilter) and isinstance(filter_.start, str) and filter_.training.epochs > 0
    if not fits and (filter_ is None or plan.distillation is None):
        return
    with fork_rng(0):
        tried = generator.copy().requires_grad_(True)
        before = [parameter.detach().clone() for parameter in tried.parameters()]
        Training(epochs=1)(tried, tried.sample(8), seed=0)
    if all(torch.equal(old, new) for old, new in zip(before, tried.parameters(), strict=True)):
        raise ValueError(
            f"a step of training leaves the generator ({type(generator).__name__}) as it was: expected parameters on "
            "which log_prob(x) depends, or model and guide do. Does log_prob detach them, or use tensors that are no "
            "parameters?"
        )
