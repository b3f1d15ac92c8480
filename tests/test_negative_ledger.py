"""The ledger: what it counts, what it refuses, and what it makes of files that are damaged."""

import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from banel_pyro.negative import BudgetError, Ledger, Oracle
from banel_pyro.negative.ledger import Result
from banel_pyro.negative.ledger_file import SCHEMA
from banel_pyro.negative.packed import DTYPES, Packed, pack_rows
from banel_pyro.negative.sessions import _began, is_alive, this_process


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger(path, task="toy", budget=10) as ledger:
        yield ledger


def items(n: int, start: int = 0) -> dict[int, Packed]:
    """Candidates that all differ, by position."""
    return dict(enumerate(pack_rows(torch.arange(start, start + n))))


def answer(ledger: Ledger, sent: dict[int, int], reward: Callable[[int], int] = lambda position: 0) -> None:
    ledger.settle(Result(attempt, "answered", reward(position), 0.5) for position, attempt in sent.items())


# The budget


def test_a_budget_is_charged_all_or_nothing(ledger: Ledger) -> None:
    session = ledger.begin_session()
    assert (ledger.task, ledger.budget, ledger.nre, ledger.left) == ("toy", 10, 0, 10)
    sent, over = ledger.charge(items(7), round=0, session=session)
    assert (list(sent), over, ledger.nre, ledger.left) == ([*range(7)], [], 7, 3)
    with pytest.raises(BudgetError, match="4 reward evaluations were asked for, and 3 of 10 are left") as caught:
        ledger.charge(items(4, 50), round=1, session=session)
    assert isinstance(caught.value, RuntimeError)
    assert ledger.nre == 7
    assert ledger.slots(1) == {}
    sent, over = ledger.charge(items(4, 50), round=1, session=session, partial=True)
    assert (list(sent), over, ledger.nre, ledger.left) == ([0, 1, 2], [3], 10, 0)


@pytest.mark.parametrize("budget", [0, -1, True, 1.5, "9", 2**63], ids=str)
def test_a_budget_is_an_integer_above_0(path: Path, budget: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^budget="):
        Ledger(path, task="toy", budget=budget)
    assert not path.exists()


@pytest.mark.parametrize("task", ["", None, 3], ids=str)
def test_a_task_has_a_name(path: Path, task: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^task="):
        Ledger(path, task=task, budget=1)


def test_a_ledger_is_of_one_task(ledger: Ledger, path: Path) -> None:
    with pytest.raises(ValueError, match="task 'toy', and not of 'other'"):
        Ledger(path, task="other", budget=10)


def test_a_budget_may_be_raised_and_not_put_below_what_was_spent(ledger: Ledger, path: Path) -> None:
    ledger.charge(items(7), round=0, session=ledger.begin_session())
    with Ledger(path, task="toy", budget=12) as raised:
        assert (raised.budget, raised.left) == (12, 5)
        assert ledger.budget == 12, "and all who share the file know it"
    with pytest.raises(ValueError, match=r"budget=6: .* has 7 charged reward evaluations of 12"):
        Ledger(path, task="toy", budget=6)
    with Ledger(path, task="toy", budget=7) as lowered:
        assert lowered.left == 0
    with Ledger.reopen(path) as same:
        assert (same.task, same.budget) == ("toy", 7)
        assert same._read("SELECT budget FROM budgets ORDER BY id") == [(10,), (12,), (7,)]


def test_it_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no folder"):
        Ledger(tmp_path / "none" / "ledger.db", task="toy", budget=1)
    with pytest.raises(FileNotFoundError):
        Ledger.reopen(tmp_path / "ledger.db")


def test_many_make_one_ledger(path: Path) -> None:
    """At once: one makes it, the others find it whole, and nothing else is left."""

    def use(number: int) -> int:
        with Ledger(path, task="toy", budget=100) as ledger:
            sent, _ = ledger.charge(items(5), round=number, session=ledger.begin_session(), known=False)
            return len(sent)

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(use, range(16))) == 80
    with Ledger.reopen(path) as ledger:
        assert ledger.nre == 80
        assert len(ledger.unknown()) == 80, "nobody waits for an answer any more"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


# Attempts


def test_what_is_kept_of_an_attempt(ledger: Ledger) -> None:
    session = ledger.begin_session()
    sent, _ = ledger.charge(items(4), round=3, session=session)
    ledger.settle(
        [
            Result(sent[0], "answered", 1, 0.25, None, "here"),
            Result(sent[1], "answered", 0, 0.25, None, "here"),
            Result(sent[2], "error", None, 0.5, "ZeroDivisionError: oh", "there"),
        ]
    )
    frame = ledger.frame()
    assert list(frame["state"]) == ["answered", "answered", "error", "in flight"]
    np.testing.assert_array_equal(frame["reward"], [1.0, 0.0, np.nan, np.nan])
    np.testing.assert_array_equal(frame["seconds"], [0.25, 0.25, 0.5, np.nan])
    assert frame["charged"].all()
    assert frame["sent"].all()
    assert list(frame["position"]) == [0, 1, 2, 3]
    assert set(frame["round"]) == {3}
    assert set(frame["number"]) == {1}
    assert frame["error"][sent[2]] == "ZeroDivisionError: oh"
    assert str(frame["at"].dtype).endswith("UTC]")
    expected = {"asked": 4, "charged": 4, "known": 0, "successes": 1, "failures": 1, "errors": 1, "in_flight": 1}
    assert ledger.counts() == expected | {"unknown": 0, "seconds": 1.0}
    ledger.end_session(session)
    assert ledger.counts() == expected | {"unknown": 1, "in_flight": 0, "seconds": 1.0}
    assert list(ledger.unknown().index) == [sent[3]]
    assert torch.equal(ledger.candidate(ledger.unknown()["hash"].item()), torch.tensor(3))


def test_an_empty_ledger(ledger: Ledger) -> None:
    assert len(ledger.frame()) == 0
    assert len(ledger.unknown()) == 0
    assert len(ledger.candidates()) == 0
    assert set(ledger.counts().values()) == {0}
    with pytest.raises(KeyError, match="no candidate"):
        ledger.candidate("0")


def test_a_slot_that_is_answered_or_in_flight_is_not_charged(ledger: Ledger) -> None:
    first, second = ledger.begin_session(), ledger.begin_session()
    sent, _ = ledger.charge(items(2), round=0, session=first)
    answer(ledger, {0: sent[0]})
    assert ledger.charge(items(2), round=0, session=second, known=False) == ({}, [])
    ledger.end_session(first)
    again, _ = ledger.charge(items(2), round=0, session=second)
    assert list(again) == [1], "what is unknown may be"
    assert ledger.nre == 3


def test_the_first_word_on_an_attempt_stands(ledger: Ledger) -> None:
    sent, _ = ledger.charge(items(1), round=0, session=ledger.begin_session())
    ledger.settle([Result(sent[0], "lost", error="timed out")])
    answer(ledger, sent)
    assert ledger.slots(0)[0].reward is None
    assert ledger.slots(0)[0].lost == 1


def test_a_slot_keeps_its_candidate(ledger: Ledger) -> None:
    session = ledger.begin_session()
    ledger.charge(items(3), round=0, session=session)
    for ask in (ledger.charge, ledger.recall):
        with pytest.raises(ValueError, match=r"round=0, position 2: the ledger has another candidate there"):
            ask({2: items(1, 77)[0]}, round=0, session=session)
    assert ledger.nre == 3


def test_known_candidates_cost_nothing(ledger: Ledger) -> None:
    session = ledger.begin_session()
    answer(ledger, ledger.charge(items(3), round=0, session=session)[0], lambda position: position % 2)
    assert ledger.charge(items(3), round=1, session=session) == ({}, [])
    assert ledger.recall(items(4), round=2, session=session) == {0: 0, 1: 1, 2: 0}
    assert ledger.recall(items(4), round=2, session=session) == {}, "once"
    assert ledger.nre == 3
    assert [ledger.slots(r)[1].reward for r in range(3)] == [1, 1, 1]
    assert [ledger.slots(r)[1].charged for r in range(3)] == [True, False, False]
    counts = ledger.counts()
    assert (counts["asked"], counts["known"], counts["successes"], counts["failures"]) == (3, 6, 3, 6)
    assert list(ledger.charge(items(3), round=4, session=session, known=False)[0]) == [0, 1, 2]


def test_evaluation_costs_nothing_and_tells_nothing(ledger: Ledger) -> None:
    session = ledger.begin_session()
    sent, _ = ledger.charge(items(50), round=0, session=session, purpose="evaluate")
    answer(ledger, sent)
    assert (len(sent), ledger.nre) == (50, 0)
    assert ledger.counts()["asked"] == 0
    assert ledger.counts("evaluate")["asked"] == 50
    assert ledger.recall(items(1), round=0, session=session) == {}
    learnt, _ = ledger.charge(items(1), round=0, session=session)
    answer(ledger, learnt)
    assert ledger.nre == 1
    assert ledger.recall(items(1), round=1, session=session, purpose="evaluate") == {0: 0}
    assert (len(ledger.candidates()), len(ledger.candidates(purpose="evaluate"))) == (1, 51)


# Candidates


def example(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return (torch.arange(6 * int(np.prod(shape))).reshape(6, *shape) % 7).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_candidates_come_back_as_they_were(dtype: torch.dtype, ledger: Ledger) -> None:
    session = ledger.begin_session()
    for round, shape in enumerate([(), (3,), (2, 2)]):
        x = example(dtype, shape)
        rows = dict(enumerate(pack_rows(x)))
        sent, _ = ledger.charge(rows, round=round, session=session, known=False, purpose="evaluate")
        answer(ledger, sent, lambda position: int(position >= 2))
        for reward, expected in ((None, x), (0, x[:2]), (1, x[2:])):
            found = ledger.candidates(round=round, reward=reward, purpose="evaluate")
            assert found.dtype == dtype
            assert torch.equal(found, expected)
    assert ledger.candidates(round=5).shape == (0,)


def test_the_hash_is_of_type_shape_and_bytes() -> None:
    ones = [torch.ones(1, 4), torch.ones(1, 2, 2), torch.ones(1, 4, dtype=torch.float64), torch.zeros(1, 4)]
    assert len({pack_rows(x)[0].hash for x in ones}) == 4
    zeros = [torch.zeros(1, 4, dtype=dtype) for dtype in (torch.float32, torch.int32)]
    assert len({pack_rows(x)[0].data for x in zeros}) == 1
    assert len({pack_rows(x)[0].hash for x in zeros}) == 2
    transposed = torch.arange(6.0).reshape(2, 3).T
    assert pack_rows(transposed)[1].hash == pack_rows(torch.tensor([[1.0, 4.0]]))[0].hash, "and not of the strides"
    assert pack_rows(torch.ones(2, 1, requires_grad=True))[0] == pack_rows(torch.ones(2, 1))[1]


@pytest.mark.parametrize(
    ("x", "words"),
    [
        ([1.0], "x is a list"),
        (torch.tensor(1.0), "x is a scalar"),
        (torch.eye(2).to_sparse(), "torch.sparse_coo"),
        (torch.zeros(2).to(torch.float8_e5m2), "float8_e5m2"),
    ],
    ids=["list", "scalar", "sparse", "type"],
)
def test_what_candidates_cannot_be(x: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        pack_rows(x)


def test_candidates_of_two_shapes_come_a_round_at_a_time(ledger: Ledger) -> None:
    session = ledger.begin_session()
    for round, x in enumerate((torch.zeros(2, 3), torch.zeros(2, 4))):
        answer(ledger, ledger.charge(dict(enumerate(pack_rows(x))), round=round, session=session)[0])
    with pytest.raises(ValueError, match="several kinds"):
        ledger.candidates()
    assert ledger.candidates(round=1).shape == (2, 4)


# Whose they are


def test_what_a_dead_process_had_in_flight_is_unknown(ledger: Ledger) -> None:
    host, number, began = this_process()
    assert is_alive(host, number, began)
    dead = [("elsewhere", number, began), (host, number, "another start"), (host, 2**22 + 1, began)]
    assert not any(is_alive(*process) for process in dead)
    for position, process in enumerate([*dead, (host, number, began)]):
        session = ledger.begin_session()
        ledger._connection.execute("UPDATE sessions SET host=?, process=?, began=? WHERE id=?", (*process, session))
        ledger.charge({position: items(9)[position]}, round=0, session=session)
    assert list(ledger.frame()["state"]) == ["unknown"] * 3 + ["in flight"]


def test_a_process_that_nobody_waited_for_is_dead() -> None:
    host, _, _ = this_process()
    with subprocess.Popen(["sleep", "30"]) as process:
        began = _began(process.pid)
        assert is_alive(host, process.pid, began)
        process.kill()
        until = time.monotonic() + 20
        while is_alive(host, process.pid, began) and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(process.pid, 0)  # its number is taken still
        assert not is_alive(host, process.pid, began)
        assert not is_alive(host, process.pid, _began(process.pid))


def test_a_ledger_does_not_cross_a_fork(ledger: Ledger) -> None:
    ledger._process -= 1
    with pytest.raises(RuntimeError, match="open it anew here"):
        ledger.begin_session()
    ledger._process += 1


# Damaged files


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a ledger as a kill in a session leaves them: all answers are in the write-ahead log."""
    path = tmp_path_factory.mktemp("left") / "ledger.db"

    def copy(done: int) -> None:
        if done == 60:
            for rest in ("", "-wal"):
                shutil.copy(f"{path}{rest}", f"{path}.copy{rest}")

    with Ledger(path, task="toy", budget=100) as ledger:
        Oracle(lambda x: x % 2 == 0, batch_size=10).ask(torch.arange(60), ledger, round=0, progress=copy)
    return path


def copied(left: Path, path: Path, name: str = "ledger.db") -> None:
    """A ledger of 60 answers, or with the name ledger.db.copy what was left of it, put in another place."""
    for rest in ("", "-wal"):
        if (file := left.with_name(name + rest)).exists():
            shutil.copy(file, f"{path}{rest}")


def other_database(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as made:
        made.execute("CREATE TABLE mine (a)")
    made.close()


def sql(statement: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        made = sqlite3.connect(path, isolation_level=None)
        made.execute("PRAGMA ignore_check_constraints = ON")
        made.execute(statement)
        made.close()

    return damage


def linked(path: Path) -> None:
    path.rename(path.with_name("real.db"))
    path.symlink_to("real.db")


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def overwritten(path: Path) -> None:
    """Pages from the second on, where the tables are."""
    data = bytearray(path.read_bytes())
    data[4096 : 4096 * 6] = bytes(4096 * 5)
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda p: p.write_bytes(b""), "no SQLite database"),
    "text": (lambda p: p.write_text("asked,reward\n1,0\n"), "no SQLite database"),
    "garbage": (lambda p: p.write_bytes(np.random.default_rng(0).bytes(20_000)), "no SQLite database"),
    "garbage after the name": (lambda p: p.write_bytes(p.read_bytes()[:16] + b"\7" * 9000), "damaged"),
    "half": (lambda p: os.truncate(p, p.stat().st_size // 2), "damaged"),
    "a header": (lambda p: os.truncate(p, 100), "damaged|something else"),
    "overwritten": (overwritten, "damaged"),
    "other database": (other_database, "something else"),
    "other version": (sql("PRAGMA user_version = 2"), "version 2, expected 1"),
    "other table": (sql("CREATE TABLE more (a)"), "other tables"),
    "trigger": (sql("CREATE TRIGGER t AFTER INSERT ON attempts BEGIN DELETE FROM attempts; END"), "other tables"),
    "no index": (sql("DROP INDEX answers"), "other tables"),
    "no task": (sql("DELETE FROM about"), "no row in about"),
    "no candidate": (sql("DELETE FROM candidates"), "a row of attempts without that of candidates"),
    "reward 2": (sql("UPDATE attempts SET reward = 2 WHERE id = 5"), "CHECK constraint failed in attempts"),
    "link": (linked, "is a link"),
    "pipe": (piped, "a pipe"),
    "folder": (folder, "a folder"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_ledger_is_refused_and_left_alone(kind: str, path: Path, left: Path) -> None:
    copied(left, path)
    damage, words = DAMAGE[kind]
    damage(path)
    before = path.read_bytes() if path.is_file() else None
    for opened in (lambda: Ledger(path, task="toy", budget=100), lambda: Ledger.reopen(path)):
        with pytest.raises(ValueError, match=words) as caught:
            opened()
        assert str(path) in str(caught.value)
    assert (path.read_bytes() if path.is_file() else None) == before


def test_a_candidate_whose_bytes_changed_is_refused(path: Path, left: Path) -> None:
    copied(left, path)
    sql("UPDATE candidates SET data = x'0011223344556677' WHERE rowid = 5")(path)
    with Ledger.reopen(path) as ledger, pytest.raises(ValueError, match="damaged: what it keeps of candidate"):
        ledger.candidates()


def test_a_write_ahead_log_that_was_left_is_recovered(path: Path, left: Path) -> None:
    copied(left, path, "ledger.db.copy")
    with Ledger.reopen(path) as ledger:
        assert ledger.nre == 60
        assert torch.equal(ledger.candidates(reward=0), torch.arange(1, 60, 2))
        assert len(ledger.unknown()) == 0


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.35, 0.62, 0.99])
def test_a_torn_write_ahead_log_is_recovered_up_to_its_last_commit(kept: float, path: Path, left: Path) -> None:
    copied(left, path, "ledger.db.copy")
    log = path.with_name("ledger.db-wal")
    os.truncate(log, int(kept * log.stat().st_size))
    with Ledger(path, task="toy", budget=100) as ledger:
        frame = ledger.frame()
        assert len(frame) == ledger.nre
        assert ledger.nre % 10 == 0
        assert ledger.nre >= 60 * kept - 20, "a transaction is ten rows"
        open_ones = int((frame["state"] != "answered").sum())
        assert open_ones in (0, 10)
        assert torch.equal(ledger.candidates(), torch.arange(len(frame) - open_ones))


def test_after_a_session_the_file_is_whole_without_its_log(path: Path, tmp_path: Path) -> None:
    with Ledger(path, task="toy", budget=100) as ledger:
        Oracle(lambda x: x > 2).ask(torch.arange(5), ledger, round=0)
        shutil.copy(path, tmp_path / "alone.db")
        with Ledger.reopen(tmp_path / "alone.db") as alone:
            assert alone.frame().equals(ledger.frame())


def test_garbage_in_place_of_a_write_ahead_log_is_refused(path: Path, left: Path) -> None:
    """SQLite passes over it without a word."""
    copied(left, path, "ledger.db.copy")
    log = path.with_name("ledger.db-wal")
    log.write_bytes(b"garbage" * 5000)
    with pytest.raises(ValueError, match=r"ledger.db-wal' is no write-ahead log"):
        Ledger.reopen(path)
    log.unlink()
    log.symlink_to("anywhere")
    with pytest.raises(ValueError, match="is a link"):
        Ledger.reopen(path)


def test_the_schema_refuses_what_no_ledger_holds() -> None:
    made = sqlite3.connect(":memory:")
    made.executescript(SCHEMA)
    row = "INSERT INTO attempts (purpose, round, position, hash, number, charged, sent, session, state, at) VALUES "
    for values in ("('x', 0, 0, 'h', 1, 1, 1, 1, 'asked', 0)", "('learn', 0, 0, 'h', 1, 1, 1, 1, 'answered', 0)"):
        with pytest.raises(sqlite3.IntegrityError):
            made.execute(row + values)
    made.close()
