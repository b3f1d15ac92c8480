"""What tests/test_negative_ledger_kill.py starts: processes that ask an oracle and are killed by SIGKILL.

This process imports and asks nothing itself; each that is killed is a fork of it. It ends with a line of JSON: what
was in the ledger after each kill.
"""

import json
import os
import random
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from banel_pyro.negative import Ledger, Oracle
from tests.killing import in_fork, lines

BAD = 13
"""Candidates that are a multiple of it raise."""

ROUNDS, SIZE, WORKERS, RETRIES = 4, 60, 4, 1
SHARED_BUDGET, SHARED_ROUNDS, SHARED_SIZE = 800, 4, 70
"""Of the four processes that share a ledger: what they have is less than half of what they would like."""

DRAW = random.Random(11)


def truth(value: int) -> int:
    return int(value % 3 == 0)


class Logged:
    """An oracle that writes down what it is asked, before it thinks about it."""

    def __init__(self, file: Path, seconds: float) -> None:
        self.log = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.seconds = seconds

    def __call__(self, x: Tensor) -> list[int]:
        os.write(self.log, "".join(f"{value}\n" for value in x.tolist()).encode())
        time.sleep(self.seconds)
        if bad := [value for value in x.tolist() if value % BAD == 0]:
            raise ValueError(f"cannot judge {bad}")
        return [truth(value) for value in x.tolist()]


def candidates(round: int, size: int) -> Tensor:
    """Those of a round: no two of all rounds are equal."""
    return torch.arange(round * size, (round + 1) * size)


def ask(root: Path, *, idempotent: bool) -> None:
    """All rounds, by threads, one candidate a call; after each commit, how many answers the ledger has."""
    told = os.open(root / "told", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with Ledger(root / "ledger.db", task="kill", budget=10_000) as ledger, ThreadPoolExecutor(WORKERS) as threads:
        oracle = Oracle(
            Logged(root / "log", 0.002), executor=threads, retries=RETRIES, backoff=0.001, idempotent=idempotent
        )

        def tell(done: int) -> None:
            counts = ledger.counts()
            os.write(told, f"{counts['successes'] + counts['failures']}\n".encode())

        for round in range(ROUNDS):
            oracle.ask(candidates(round, SIZE), ledger, round=round, progress=tell)


def share(root: Path, worker: int) -> None:
    """The rounds of one of the processes that share a ledger and its budget."""
    with Ledger(root / "ledger.db", task="kill", budget=SHARED_BUDGET) as ledger:
        oracle = Oracle(Logged(root / "log", 0.01), batch_size=1 + worker % 3, retries=RETRIES, backoff=0.001)
        for round in range(worker, 4 * SHARED_ROUNDS, 4):
            oracle.ask(candidates(round, SHARED_SIZE), ledger, round=round)


def alone(root: Path, stop: int | None) -> None:
    """Two rounds in one thread, with equal candidates; killed outside a call, after so many commits."""
    commits = 0

    def tell(done: int) -> None:
        nonlocal commits
        commits += 1
        if commits == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    with Ledger(root / "ledger.db", task="kill", budget=55) as ledger:
        oracle = Oracle(Logged(root / "log", 0.0), batch_size=4, retries=RETRIES, backoff=0.0)
        for round in range(2):
            x = (torch.arange(40) * 7 + 20 * round) % 31
            oracle.ask(x, ledger, round=round, progress=tell)


def kill(process: int, log: Path, calls: int) -> None:
    """Kill a process a moment after the oracle was asked so many times more: 0 is while it opens the ledger."""
    until = lines(log) + calls
    while lines(log) < until:
        if os.waitpid(process, os.WNOHANG)[0]:
            return  # on a very slow machine the others may have spent the budget
        time.sleep(0.0005)
    time.sleep(DRAW.uniform(0.0, 0.006 if calls else 0.03))
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def finish(*processes: int) -> None:
    for process in processes:
        if os.waitpid(process, 0)[1]:
            raise RuntimeError("a process failed")


def look(root: Path) -> dict[str, Any]:
    """What is in the ledger now."""
    if not (root / "ledger.db").exists():
        return {"nre": 0, "answered": {}, "unknown": 0, "told": 0}
    told = (root / "told").read_text().split("\n")[:-1] if (root / "told").exists() else []
    with Ledger.reopen(root / "ledger.db") as ledger:
        frame = ledger.frame()
        rows = frame[frame["state"] == "answered"]
        answered = {f"{r.round} {r.position}": int(r.reward) for r in rows.itertuples()}
        unknown = int((frame["state"] == "unknown").sum())
        return {"nre": ledger.nre, "answered": answered, "unknown": unknown, "told": int(told[-1]) if told else 0}


def threads(root: Path, kills: int, idempotent: bool) -> list[dict[str, Any]]:
    root.mkdir()
    found = []
    for _ in range(kills):
        process = in_fork(lambda: ask(root, idempotent=idempotent))
        kill(process, root / "log", DRAW.randrange(20))
        found.append(look(root))
    finish(in_fork(lambda: ask(root, idempotent=idempotent)))
    return [*found, look(root)]


def processes(root: Path, kills: int) -> list[dict[str, Any]]:
    root.mkdir()
    found = []

    def start(worker: int) -> int:
        return in_fork(lambda: share(root, worker))

    running = {worker: start(worker) for worker in range(4)}
    for _ in range(kills):
        worker = DRAW.randrange(4)
        kill(running[worker], root / "log", DRAW.randrange(8))
        found.append(look(root))
        running[worker] = start(worker)
    finish(*running.values())
    return [*found, look(root)]


def main(root: Path) -> None:
    found: dict[str, Any] = {}
    for idempotent, name in ((False, "asked once"), (True, "asked again")):
        found[name] = threads(root / name, 10, idempotent)
    found["shared"] = processes(root / "shared", 20)
    for name, stops in (("whole", [None]), ("stopped", [3, 5, 4, 9, None])):
        (root / name).mkdir()
        for stop in stops:
            os.waitpid(in_fork(partial(alone, root / name, stop)), 0)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
