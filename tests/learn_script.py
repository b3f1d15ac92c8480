"""What tests/test_negative_learn.py starts: runs of learning from failures that are killed by SIGKILL.

This process imports and learns nothing itself; each that is killed is a fork of it. It ends with a line of JSON: what
was in the ledger after each kill.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from banel_pyro.negative import (
    Distillation,
    Generator,
    HeldOut,
    Learned,
    Ledger,
    ListedSuccesses,
    Oracle,
    RatioFilter,
    Training,
    learn,
    rounds,
)
from tests.killing import in_fork, lines
from tests.negative_cases import QUICK, VALUES, WINS, Table, reward

BUDGET, ROUNDS, KILLS = 150, 3, 10
"""Of the runs that are killed at random moments."""

DRAW = random.Random(5)


class Bell(Generator):
    """A normal distribution: no two of its candidates are equal."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))

    @property
    def event_shape(self) -> torch.Size:
        return torch.Size()

    def sample(self, n: int) -> Tensor:
        return self.loc.detach() + torch.randn(n)

    def log_prob(self, x: Tensor) -> Tensor:
        return -0.5 * (x - self.loc) ** 2


class Logged:
    """An oracle that writes down what it is asked, before it thinks about it."""

    def __init__(self, file: Path, answer: Callable[[Tensor], Tensor], seconds: float) -> None:
        self.log = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.answer, self.seconds = answer, seconds

    def __call__(self, x: Tensor) -> Tensor:
        os.write(self.log, "".join(f"{value}\n" for value in x.tolist()).encode())
        time.sleep(self.seconds)
        return self.answer(x)


def far(x: Tensor) -> Tensor:
    return x > 2.2


def slow(root: Path, *, idempotent: bool) -> None:
    """A run whose oracle takes its time."""
    training = Training(epochs=4, batch_size=32, lr=0.05)
    learn(
        Bell(), Oracle(Logged(root / "log", far, 0.004), idempotent=idempotent, backoff=0.0), budget=BUDGET,
        out=root / "run", rounds=ROUNDS, factor=2.0, candidates=300, filter=RatioFilter(training),
        distillation=Distillation(draws=200, training=training), seed=0, resume=True, progress=False,
    )  # fmt: skip


def exact(root: Path, stop: int | None) -> None:
    """A run on a table, killed at a checkpoint: the one of that number is not written, or is the last that is."""
    write, seen = rounds.write_checkpoint, 0

    def counted(*args: Any) -> None:
        nonlocal seen
        seen += 1
        if stop == -seen:
            os.kill(os.getpid(), signal.SIGKILL)
        write(*args)
        if stop == seen:
            os.kill(os.getpid(), signal.SIGKILL)

    rounds.write_checkpoint = counted
    learn(
        Table(), Oracle(Logged(root / "log", reward, 0.0), batch_size=16), budget=100, out=root / "run", rounds=3,
        factor=2.0, candidates=300, filter=RatioFilter(QUICK, data="all"), held_out=HeldOut(), known="free",
        distillation=Distillation(draws=300, training=QUICK), success_rate=ListedSuccesses(WINS), seed=7, resume=True,
        progress=False,
    )  # fmt: skip


def kill(process: int, log: Path) -> bool:
    """Kill a process a moment after some calls of the oracle, or after some time; whether it still lived."""
    calls, seconds = (DRAW.randrange(1, 25), 60.0) if DRAW.random() < 0.7 else (BUDGET, DRAW.uniform(0.02, 0.3))
    until, then = lines(log) + calls, time.monotonic() + seconds
    while lines(log) < until and time.monotonic() < then:
        if os.waitpid(process, os.WNOHANG)[0]:
            return False
        time.sleep(0.001)
    time.sleep(DRAW.uniform(0.0, 0.006))
    os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) < 0


def look(root: Path) -> dict[str, Any]:
    """What is in the ledger now."""
    if not (root / "run" / "ledger.db").exists():
        return {"nre": 0, "answered": {}}
    with Ledger.reopen(root / "run" / "ledger.db") as ledger:
        frame = ledger.frame()
        rows = frame[frame["state"] == "answered"]
        return {"nre": ledger.nre, "answered": {f"{r.round} {r.hash}": int(r.reward) for r in rows.itertuples()}}


def at_any_time(root: Path, *, idempotent: bool) -> list[dict[str, Any]]:
    """A run that is killed until it has died often enough, and then ends."""
    root.mkdir()
    found: list[dict[str, Any]] = []
    while len(found) < KILLS and kill(in_fork(partial(slow, root, idempotent=idempotent)), root / "log"):
        found.append(look(root))
    finish(in_fork(partial(slow, root, idempotent=idempotent)))
    return [*found, look(root)]


def finish(process: int) -> None:
    if os.waitpid(process, 0)[1]:
        raise RuntimeError("a process failed")


def main(root: Path) -> None:
    found: dict[str, Any] = {}
    QUICK(Table(), VALUES, seed=0)  # what training imports takes seconds: no fork imports it again
    for idempotent, name in ((False, "asked once"), (True, "asked again")):
        found[name] = at_any_time(root / name, idempotent=idempotent)
    for name, stops in (("whole", []), ("stopped", [1, -2, 2, -3, 4, -1, 1, 3, -2])):
        (root / name).mkdir()
        for stop in stops:
            code = os.waitstatus_to_exitcode(os.waitpid(in_fork(partial(exact, root / name, stop)), 0)[1])
            if code != -signal.SIGKILL:
                raise RuntimeError(f"a run was to be killed at checkpoint {stop}, and ended with {code}")
        finish(in_fork(partial(exact, root / name, None)))
    for name in ("whole", "stopped"):
        Learned.load(root / name / "run", Table())
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
