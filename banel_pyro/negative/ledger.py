"""What was asked of an oracle, what it cost and what it said: a SQLite file that outlives every crash."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from banel_pyro.checks import instance, integer
from banel_pyro.negative import ledger_file
from banel_pyro.negative.ledger_records import PURPOSES, LedgerRecords, Slot
from banel_pyro.negative.packed import Packed

__all__ = ["PURPOSES", "BudgetError", "Ledger", "Result", "Slot", "refuse_other"]


class BudgetError(RuntimeError):
    """More reward evaluations were asked for than the budget has left. Nothing of the request was charged."""


@dataclass(frozen=True)
class Result:
    """How an attempt ended.

    Args:
        attempt: its number in the ledger.
        state: ``"answered"``, ``"error"``, ``"lost"`` (it may have run) or ``"unsent"`` (it has not).
        reward: 0 or 1 if it was answered.
        seconds: of the oracle's.
        error: in words, if it was not answered.
        worker: machine, process and thread that did it.
    """

    attempt: int
    state: str
    reward: int | None = None
    seconds: float | None = None
    error: str | None = None
    worker: str | None = None


class Ledger(LedgerRecords):
    r"""The record of an oracle's answers, in one SQLite file, and the budget of reward evaluations (NRE).

    An *attempt* is one candidate sent once to the oracle. Its row is on the disk before it is sent, and is the charge:
    NRE is the number of charged rows, retries too, and never exceeds the budget, however many threads and processes
    share the file. The answer is on the disk before it is used. Close the ledger, or use it as a context.

    Args:
        path: of the file. Its folder must exist, on a disk of this machine (the write-ahead log of SQLite works on
            no network drive).
        task: what the oracle judges; a ledger is of one task for good.
        budget: reward evaluations in all. On reopening it may be another one, but not less than was spent; every
            change is kept.

    Raises:
        TypeError, ValueError: for a budget below 1, a ledger of another task, and a file that is damaged or none.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from banel_pyro.negative import Oracle
        >>> x = torch.tensor([[1.0], [3.0], [1.0]])
        >>> with TemporaryDirectory() as folder:
        ...     with Ledger(Path(folder) / "ledger.db", task="above two", budget=9) as ledger:
        ...         answers = Oracle(lambda x: x[:, 0] > 2).ask(x, ledger, round=0)
        ...         answers.rewards, ledger.nre, ledger.candidates(reward=0)
        (tensor([0., 1., 0.], dtype=torch.float64), 2, tensor([[1.], [1.]]))
    """

    def __init__(self, path: str | os.PathLike[str], *, task: str, budget: int) -> None:
        self.path = Path(path)
        instance("task", task, (str,), "a text that names the task, such as task='addition'")
        if not task:
            raise ValueError("task='': expected a text that names the task, such as task='addition'.")
        budget = integer("budget", budget, most=2**62)
        if not os.path.lexists(self.path):
            ledger_file.create(self.path, task, budget)
        self._open()
        try:
            self._agree(task, budget)
        except BaseException:
            self.close()
            raise

    @classmethod
    def reopen(cls, path: str | os.PathLike[str]) -> Self:
        """A ledger that exists, with the task and the budget that it has.

        Raises:
            FileNotFoundError, ValueError: if there is none, or it is damaged.
        """
        found = cls.__new__(cls)
        found.path = Path(path)
        found._open()
        return found

    def _agree(self, task: str, budget: int) -> None:
        if task != self.task:
            raise ValueError(
                f"'{self.path}' is the ledger of the task {self.task!r}, and not of {task!r}: choose another path."
            )
        with self._transaction() as db:
            spent, known = self.nre, self.budget
            if budget < spent:
                raise ValueError(
                    f"budget={budget}: '{self.path}' has {spent} charged reward evaluations of {known}. Write "
                    f"budget={known}, or more to go on."
                )
            if budget != known:
                db.execute("INSERT INTO budgets (budget, at) VALUES (?, ?)", (budget, time.time()))

    # What an oracle writes

    def charge(
        self,
        items: Mapping[int, Packed],
        *,
        round: int,
        session: int,
        purpose: str = "learn",
        known: bool = True,
        partial: bool = False,
    ) -> tuple[dict[int, int], list[int]]:
        """Write down that candidates are about to be sent. This is the charge, of all of them or of none.

        A slot that is answered or in flight is left alone, and one whose candidate is known is answered from it.

        Args:
            items: candidates by their position in the round.
            round: of the candidates.
            session: that sends them.
            purpose: one of :data:`PURPOSES`.
            known: answer candidates from equal ones; otherwise all are sent.
            partial: charge as many as the budget has left, the first ones.

        Returns:
            The attempts of those that are to be sent, by position; the positions for which the budget has none left.

        Raises:
            BudgetError: if the budget has too few left and ``partial`` is False.
            ValueError: if a slot holds another candidate.
        """
        sent: dict[int, int] = {}
        over: list[int] = []
        with self._transaction() as db:
            budget, left = self.budget, self.left
            for position, candidate in items.items():
                slot = (purpose, round, position)
                number = _next_number(db, slot, candidate.hash)
                if number is None or (known and _recall(db, slot, candidate, session, number) is not None):
                    continue
                if purpose == "learn" and len(sent) >= left:
                    over.append(position)
                    continue
                sent[position] = _insert(db, slot, candidate, session, number, None)
            if over and not partial:
                raise BudgetError(
                    f"{len(sent) + len(over)} reward evaluations were asked for, and {left} of {budget} are left in "
                    f"'{self.path}': reopen it with a larger budget=, or ask for fewer."
                )
        return sent, over

    def recall(
        self, items: Mapping[int, Packed], *, round: int, session: int, purpose: str = "learn"
    ) -> dict[int, int]:
        """Answer candidates from equal ones that were answered before, at no cost.

        Args:
            items: candidates by their position in the round.
            round: of the candidates.
            session: that asks.
            purpose: one of :data:`PURPOSES`. What was asked to evaluate answers nothing that is asked to learn.

        Returns:
            The rewards of those that were known, by position.
        """
        found = {}
        with self._transaction() as db:
            for position, candidate in items.items():
                slot = (purpose, round, position)
                number = _next_number(db, slot, candidate.hash)
                reward = None if number is None else _recall(db, slot, candidate, session, number)
                if reward is not None:
                    found[position] = reward
        return found

    def settle(self, results: Iterable[Result]) -> None:
        """Write down how attempts ended. It is on the disk when this returns. The first word on an attempt stands.

        Args:
            results: one for each attempt.
        """
        rows = [(r.state, r.reward, r.seconds, r.error, r.worker, r.attempt) for r in results]
        with self._transaction() as db:
            db.executemany(
                "UPDATE attempts SET state = ?, reward = ?, seconds = ?, error = ?, worker = ? "
                "WHERE id = ? AND state = 'asked'",
                rows,
            )


def refuse_other(round: int, position: int, known: str, hash_: str) -> None:
    """Refuse a candidate where the ledger has another one.

    Raises:
        ValueError: naming the slot, and both by their hash.
    """
    if known != hash_:
        raise ValueError(
            f"round={round}, position {position}: the ledger has another candidate there ({known[:12]}…, and not "
            f"{hash_[:12]}…), so that this is not the run that it began with. Propose with the seed of that run, or "
            "give the next round=."
        )


_SlotKey = tuple[str, int, int]


def _next_number(db: sqlite3.Connection, slot: _SlotKey, hash_: str) -> int | None:
    """The number of a slot's next attempt, or None where it is answered or in flight."""
    rows = db.execute(
        "SELECT a.hash, a.state = 'answered' OR (a.state = 'asked' AND s.ended IS NULL) FROM attempts a "
        "JOIN sessions s ON s.id = a.session WHERE a.purpose = ? AND a.round = ? AND a.position = ?",
        slot,
    ).fetchall()
    if rows:
        refuse_other(*slot[1:], rows[0][0], hash_)
    return None if any(taken for _, taken in rows) else len(rows) + 1


def _recall(db: sqlite3.Connection, slot: _SlotKey, candidate: Packed, session: int, number: int) -> int | None:
    """The reward of an equal candidate, put down for this slot too."""
    found = db.execute(
        "SELECT reward FROM attempts WHERE hash = ? AND state = 'answered' AND (purpose = 'learn' OR ?) "
        "ORDER BY id LIMIT 1",
        (candidate.hash, slot[0] == "evaluate"),
    ).fetchone()
    if found is None:
        return None
    _insert(db, slot, candidate, session, number, found[0])
    return int(found[0])


def _insert(
    db: sqlite3.Connection, slot: _SlotKey, candidate: Packed, session: int, number: int, reward: int | None
) -> int:
    """A new row: sent to the oracle, or with a reward that was known."""
    sent = reward is None
    db.execute(
        "INSERT OR IGNORE INTO candidates VALUES (?, ?, ?, ?)",
        (candidate.hash, candidate.dtype, json.dumps(candidate.shape), candidate.data),
    )
    cursor = db.execute(
        "INSERT INTO attempts (purpose, round, position, hash, number, charged, sent, session, state, reward, at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *slot, candidate.hash, number, sent and slot[0] == "learn", sent, session, "asked" if sent else "answered",
            reward, time.time(),
        ),
    )  # fmt: skip
    return int(cursor.lastrowid or 0)
