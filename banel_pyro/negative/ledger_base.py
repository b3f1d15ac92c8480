"""The open file of a ledger: its connection, its transactions, and who asks."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from banel_pyro.negative import ledger_file
from banel_pyro.negative.sessions import is_alive, this_process

__all__ = ["LedgerBase"]


class LedgerBase:
    """What a ledger is made of: one connection that the threads of a process share, under one lock."""

    path: Path

    def _open(self) -> None:
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._sessions: set[int] = set()
        self._connection = ledger_file.open_file(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the sessions that are open here, and close the file."""
        with self._lock:
            try:
                for session in sorted(self._sessions):
                    self.end_session(session)
            finally:
                self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._same_process()
        with self._lock:
            if self._connection.in_transaction:  # a part of the one that is under way
                yield self._connection
                return
            with ledger_file.transaction(self._connection, self.path) as db:
                yield db

    def _read(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        self._same_process()
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def _same_process(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError(
                f"the ledger '{self.path}' was opened in process {self._process} and is used in {os.getpid()}, to "
                "which that one forked: open it anew here."
            )

    # What it holds

    @property
    def task(self) -> str:
        """What the oracle judges."""
        return str(self._read("SELECT task FROM about")[0][0])

    @property
    def budget(self) -> int:
        """Reward evaluations in all."""
        return int(self._read("SELECT budget FROM budgets ORDER BY id DESC LIMIT 1")[0][0])

    @property
    def nre(self) -> int:
        """Reward evaluations that were charged."""
        return int(self._read("SELECT count(*) FROM attempts WHERE charged = 1")[0][0])

    @property
    def left(self) -> int:
        """Reward evaluations that the budget has left."""
        return self.budget - self.nre

    # Sessions: who asks

    def begin_session(self) -> int:
        """The number of a new session of this process. What sessions of dead processes had in flight is unknown now."""
        with self._transaction() as db:
            self._bury()
            host, process, began = this_process()
            cursor = db.execute(
                "INSERT INTO sessions (host, process, began, opened) VALUES (?, ?, ?, ?)",
                (host, process, began, time.time()),
            )
            session = int(cursor.lastrowid or 0)
        self._sessions.add(session)
        return session

    def end_session(self, session: int) -> None:
        """End a session of this process. What it still has in flight is unknown."""
        with self._transaction() as db:
            db.execute("UPDATE sessions SET ended = ? WHERE id = ? AND ended IS NULL", (time.time(), session))
        self._read("PRAGMA wal_checkpoint(PASSIVE)")  # from here on the file is whole without its log
        self._sessions.discard(session)

    def _bury(self) -> None:
        """End the sessions of processes that have died."""
        open_ones = self._read("SELECT id, host, process, began FROM sessions WHERE ended IS NULL")
        dead = [(time.time(), number) for number, *process in open_ones if not is_alive(*process)]
        if dead:
            with self._transaction() as db:
                db.executemany("UPDATE sessions SET ended = ? WHERE id = ? AND ended IS NULL", dead)
