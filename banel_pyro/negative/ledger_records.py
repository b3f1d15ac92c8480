"""What a ledger tells: of a round, of all attempts, and the candidates themselves."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from banel_pyro.negative.ledger_base import LedgerBase
from banel_pyro.negative.packed import Packed, unpack, unpack_rows

__all__ = ["PURPOSES", "LedgerRecords", "Slot"]

PURPOSES = ("learn", "evaluate")
"""What an oracle is asked for: ``"learn"`` is charged, ``"evaluate"`` is listed apart, and teaches nothing."""


@dataclass
class Slot:
    """All that has happened to one candidate of a round.

    Args:
        hash: of the candidate.
        reward: 0 or 1, or None without an answer.
        charged: whether any of its attempts was.
        errors: attempts that ended with an error.
        lost: attempts that timed out, or whose worker died.
        unknown: attempts whose process died before the answer was there.
        in_flight: the session that asks it now.
        error: the last one, in words.
        last: the number of its last attempt in the ledger.
    """

    hash: str
    reward: int | None = None
    charged: bool = False
    errors: int = 0
    lost: int = 0
    unknown: int = 0
    in_flight: int | None = None
    error: str | None = None
    last: int = 0


class LedgerRecords(LedgerBase):
    """The part of a ledger that only reads."""

    def slots(self, round: int, *, purpose: str = "learn") -> dict[int, Slot]:
        """What has happened to the candidates of a round, by their position.

        Args:
            round: of the candidates.
            purpose: one of :data:`PURPOSES`.
        """
        self._bury()
        found: dict[int, Slot] = {}
        for position, hash_, state, reward, charged, error, session, ended, last in self._read(
            "SELECT a.position, a.hash, a.state, a.reward, a.charged, a.error, a.session, s.ended, a.id "
            "FROM attempts a JOIN sessions s ON s.id = a.session WHERE a.purpose = ? AND a.round = ? ORDER BY a.id",
            purpose,
            round,
        ):
            slot = found.setdefault(position, Slot(hash_))
            slot.charged |= bool(charged)
            slot.last = last
            slot.error = error or slot.error
            slot.errors += state == "error"
            slot.lost += state == "lost"
            if state == "answered":
                slot.reward = reward
            elif state == "asked" and ended is None:
                slot.in_flight = session
            elif state == "asked":
                slot.unknown += 1
        return found

    def candidates(self, *, round: int | None = None, reward: int | None = None, purpose: str = "learn") -> Tensor:
        r"""The candidates that were answered, in the order of rounds and positions.

        Args:
            round: only those of this round.
            reward: only those of this reward: 0 the failures, 1 the successes.
            purpose: one of :data:`PURPOSES`.

        Returns:
            A tensor of shape (n, \*event_shape), as they were given.

        Raises:
            ValueError: if what is kept of one is not what was asked, or they differ in type or shape.
        """
        where = "a.state = 'answered' AND a.purpose = ?" + " AND a.round = ?" * (round is not None)
        where += " AND a.reward = ?" * (reward is not None)
        rows = self._read(
            "SELECT c.hash, c.dtype, c.shape, c.data FROM attempts a JOIN candidates c ON c.hash = a.hash "
            f"WHERE {where} ORDER BY a.round, a.position",
            purpose,
            *(value for value in (round, reward) if value is not None),
        )
        if not rows and (one := self._read("SELECT hash, dtype, shape, data FROM candidates LIMIT 1")):
            return unpack(self._packed(*one[0])).unsqueeze(0)[:0]
        return unpack_rows([self._packed(*row) for row in rows])

    def candidate(self, hash_: str) -> Tensor:
        """One candidate, by the hash that :meth:`frame` shows.

        Raises:
            KeyError: if there is none.
        """
        rows = self._read("SELECT hash, dtype, shape, data FROM candidates WHERE hash = ?", hash_)
        if not rows:
            raise KeyError(f"'{self.path}' has no candidate {hash_!r}: take a hash of frame().")
        return unpack(self._packed(*rows[0]))

    def _packed(self, hash_: str, dtype: str, shape: str, data: bytes) -> Packed:
        try:
            found = Packed(dtype, tuple(map(int, json.loads(shape))), data)
        except (TypeError, ValueError) as error:
            raise ValueError(f"'{self.path}' is damaged: candidate {hash_} has the shape {shape!r}.") from error
        if found.hash != hash_:
            raise ValueError(f"'{self.path}' is damaged: what it keeps of candidate {hash_} is another one.")
        return found

    def frame(self) -> pd.DataFrame:
        """All attempts, a row each, and the answers from what was known (``sent`` False).

        ``state`` is answered, error, lost (timed out, or its worker died), unsent, in flight or unknown.
        """
        self._bury()
        columns = (
            "attempt", "purpose", "round", "position", "hash", "number", "charged", "sent", "session", "state", "at",
            "worker", "reward", "seconds", "error",
        )  # fmt: skip
        rows = self._read(
            "SELECT a.id, a.purpose, a.round, a.position, a.hash, a.number, a.charged, a.sent, a.session, "
            "CASE WHEN a.state != 'asked' THEN a.state WHEN s.ended IS NULL THEN 'in flight' ELSE 'unknown' END, "
            "a.at, a.worker, a.reward, a.seconds, a.error FROM attempts a JOIN sessions s ON s.id = a.session "
            "ORDER BY a.id"
        )
        found = pd.DataFrame(rows, columns=list(columns)).set_index("attempt")
        found["at"] = pd.to_datetime(found["at"].astype(float), unit="s", utc=True)
        return found.astype({"charged": bool, "sent": bool, "reward": float, "seconds": float})

    def unknown(self) -> pd.DataFrame:
        """The attempts whose process died before the answer was there: the oracle may have been asked or not."""
        frame = self.frame()
        return frame[frame["state"] == "unknown"]

    def counts(self, purpose: str = "learn") -> dict[str, float]:
        """How many there are of what.

        Args:
            purpose: one of :data:`PURPOSES`.

        Returns:
            Of candidates: ``successes``, ``failures``, and of both those ``known``, which cost nothing. Of attempts:
            ``asked``, ``charged``, ``errors`` (lost and unsent ones too), ``unknown``, ``in_flight``. ``seconds`` of
            the oracle's.
        """
        self._bury()
        (row,) = self._read(
            "SELECT total(sent), total(charged), total(NOT sent), total(reward = 1), total(reward = 0), "
            "total(state IN ('error', 'lost', 'unsent')), total(state = 'asked' AND s.ended IS NOT NULL), "
            "total(state = 'asked' AND s.ended IS NULL), total(seconds) "
            "FROM attempts a JOIN sessions s ON s.id = a.session WHERE purpose = ?",
            purpose,
        )
        names = ("asked", "charged", "known", "successes", "failures", "errors", "unknown", "in_flight")
        return {**dict(zip(names, map(int, row), strict=False)), "seconds": float(row[-1])}
