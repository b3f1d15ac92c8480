"""The file of a ledger: made whole or not at all, and looked at before anything in it is believed."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from banel_pyro.reading import plain_file

__all__ = ["create", "open_file", "transaction"]

APPLICATION = 0xBA7E1
"""What SQLite's ``application_id`` says of a ledger."""

VERSION = 1
"""Of the tables, in ``user_version``."""

WAIT = 60.0
"""Seconds to wait for another process that writes."""

SCHEMA = """
CREATE TABLE about (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    task TEXT NOT NULL CHECK (typeof(task) = 'text'),
    created REAL NOT NULL
);
CREATE TABLE budgets (
    id INTEGER PRIMARY KEY,
    budget INTEGER NOT NULL CHECK (typeof(budget) = 'integer' AND budget >= 1),
    at REAL NOT NULL
);
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    host TEXT NOT NULL,
    process INTEGER NOT NULL,
    began TEXT NOT NULL,
    opened REAL NOT NULL,
    ended REAL
);
CREATE TABLE candidates (
    hash TEXT PRIMARY KEY,
    dtype TEXT NOT NULL,
    shape TEXT NOT NULL,
    data BLOB NOT NULL CHECK (typeof(data) = 'blob')
);
CREATE TABLE attempts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    purpose TEXT NOT NULL CHECK (purpose IN ('learn', 'evaluate')),
    round INTEGER NOT NULL CHECK (typeof(round) = 'integer' AND round >= 0),
    position INTEGER NOT NULL CHECK (typeof(position) = 'integer' AND position >= 0),
    hash TEXT NOT NULL REFERENCES candidates (hash),
    number INTEGER NOT NULL CHECK (number >= 1),
    charged INTEGER NOT NULL CHECK (charged IN (0, 1)),
    sent INTEGER NOT NULL CHECK (sent IN (0, 1) AND sent >= charged),
    session INTEGER NOT NULL REFERENCES sessions (id),
    state TEXT NOT NULL CHECK (state IN ('asked', 'answered', 'error', 'lost', 'unsent')),
    at REAL NOT NULL,
    worker TEXT,
    reward INTEGER CHECK (reward IN (0, 1)),
    seconds REAL,
    error TEXT,
    CHECK ((state = 'answered') = (reward IS NOT NULL)),
    UNIQUE (purpose, round, position, number)
);
CREATE UNIQUE INDEX answers ON attempts (purpose, round, position) WHERE state = 'answered';
CREATE INDEX known ON attempts (hash) WHERE state = 'answered';
CREATE INDEX charges ON attempts (charged) WHERE charged = 1;
"""
"""``sent``: to the oracle, or answered from what was known. ``asked`` is without answer so far: in flight while its
session lasts, afterwards unknown. ``lost``: timed out, or its worker died. ``unsent``: the oracle never got it."""


def create(path: Path, task: str, budget: int) -> None:
    """Make a new ledger. Two processes may do so at once: the second finds that of the first.

    Args:
        path: of the file; nothing that is there is touched.
        task: that it is of.
        budget: reward evaluations.

    Raises:
        FileNotFoundError: if its folder does not exist.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"'{path.parent}' is no folder: make it first, or choose another path for the ledger.")
    aside = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}.partial")
    try:
        with closing(sqlite3.connect(aside, isolation_level=None)) as made:
            made.execute("PRAGMA journal_mode = WAL")
            made.execute("PRAGMA synchronous = FULL")
            made.executescript(
                f"BEGIN; {SCHEMA} PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION}; COMMIT;"
            )
            made.execute("INSERT INTO about VALUES (1, ?, ?)", (task, time.time()))
            made.execute("INSERT INTO budgets (budget, at) VALUES (?, ?)", (budget, time.time()))
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        os.link(aside, path)  # the name appears with all that belongs to it, and never takes another file's place
    except FileExistsError:
        pass
    finally:
        for rest in ("", "-wal", "-shm"):
            aside.with_name(aside.name + rest).unlink(missing_ok=True)


def open_file(path: Path) -> sqlite3.Connection:
    """A connection to a ledger that was looked through.

    A write-ahead log that a killed process has left is recovered by SQLite, up to the last whole commit in it.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: if there is none.
        OSError: if it cannot be read or written.
        TimeoutError: if another process has been writing for :data:`WAIT` seconds.
        ValueError: if it is no ledger, of another version, or damaged; nothing in it is changed.
    """
    if _start(path, 16) != b"SQLite format 3\0":
        raise ValueError(f"'{path}' is no SQLite database: {_REFUSED}")
    for rest in ("-wal", "-shm"):
        side = path.with_name(path.name + rest)
        if not os.path.lexists(side):
            continue
        start = _start(side, 4)
        if rest == "-wal" and any(start) and start not in _LOGS:  # SQLite would pass over it, and over what it held
            raise ValueError(f"'{side}' is no write-ahead log of '{path}', whose last answers were in it: {_REFUSED}")
    address = f"file:{quote(str(path.absolute()))}?mode=rw"
    found = sqlite3.connect(address, uri=True, timeout=WAIT, isolation_level=None, check_same_thread=False)
    try:
        _look_through(found, path)
        found.execute("PRAGMA foreign_keys = ON")
        found.execute("PRAGMA synchronous = FULL")
    except sqlite3.DatabaseError as error:
        found.close()
        name = str(getattr(error, "sqlite_errorname", ""))
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise _locked(path) from error
        if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_IOERR")):
            raise OSError(f"'{path}' cannot be opened ({error}): file and folder have to be writable.") from error
        raise ValueError(f"'{path}' is damaged ({error}): {_REFUSED}") from error
    except BaseException:
        found.close()
        raise
    return found


@contextmanager
def transaction(connection: sqlite3.Connection, path: Path) -> Iterator[sqlite3.Connection]:
    """What is read and written in the block, no other process comes between; it is on the disk when the block ends.

    Raises:
        TimeoutError: if another process has been writing for :data:`WAIT` seconds.
    """
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise _locked(path) from error
        raise
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _locked(path: Path) -> TimeoutError:
    return TimeoutError(f"'{path}' has been locked for {WAIT:g} seconds: another process writes to it, or is stopped.")


def _start(file: Path, size: int) -> bytes:
    with plain_file(file).open("rb") as opened:
        return opened.read(size)


_LOGS = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")
"""What SQLite's write-ahead logs begin with."""

_REFUSED = (
    "it was not changed. Take it away if it is none of yours; put back a copy of the ledger if it should be one, or "
    "save what there is with sqlite3's .recover."
)


_TABLES = "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_stat%'"


def _look_through(found: sqlite3.Connection, path: Path) -> None:
    found.execute("PRAGMA trusted_schema = OFF")
    (application,), (version,) = (found.execute(f"PRAGMA {n}").fetchone() for n in ("application_id", "user_version"))
    if application != APPLICATION:
        raise ValueError(f"'{path}' is a database of something else, and no ledger: {_REFUSED}")
    if version != VERSION:
        raise ValueError(
            f"'{path}' is a ledger of version {version}, expected {VERSION}: open it with the version of banel_pyro "
            "that wrote it."
        )
    with closing(sqlite3.connect(":memory:")) as fresh:
        fresh.executescript(SCHEMA)
        expected, tables = (sorted(c.execute(_TABLES), key=str) for c in (fresh, found))
    if tables != expected:
        raise ValueError(f"'{path}' has other tables than a ledger has: {_REFUSED}")
    faults = [row[0] for row in found.execute("PRAGMA integrity_check(3)")]
    faults = [fault for fault in faults if fault != "ok"]
    faults += [f"a row of {row[0]} without that of {row[2]}" for row in found.execute("PRAGMA foreign_key_check")][:3]
    faults += [f"no row in {n}" for n in ("about", "budgets") if found.execute(f"SELECT 1 FROM {n}").fetchone() is None]
    if faults:
        raise ValueError(f"'{path}' is damaged ({'; '.join(faults)}): {_REFUSED}")
    if found.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        found.execute("PRAGMA journal_mode = WAL")
