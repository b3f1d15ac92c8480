"""kill -9 at random moments: no answer is lost or asked for twice, and the budget is exact."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from banel_pyro.negative import Ledger
from tests.killing import run_script
from tests.ledger_script import BAD, RETRIES, ROUNDS, SHARED_BUDGET, SHARED_SIZE, SIZE, WORKERS, truth


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def found(root: Path) -> dict[str, list[dict[str, Any]]]:
    """What was in the ledgers after each kill, and in the end."""
    content: dict[str, list[dict[str, Any]]] = run_script("ledger_script", str(root))
    return content


def asked(folder: Path) -> Counter[int]:
    """How often the oracle was asked about each candidate, by its own log."""
    return Counter(map(int, (folder / "log").read_text().split()))


def attempts(folder: Path) -> pd.DataFrame:
    with Ledger.reopen(folder / "ledger.db") as ledger:
        assert ledger.nre == int(ledger.frame()["charged"].sum())
        return ledger.frame()


def check_answers(frame: pd.DataFrame, size: int) -> None:
    """They are right, and each is the last word of its slot."""
    answers = frame[frame["state"] == "answered"]
    values = answers["round"] * size + answers["position"]
    assert list(answers["reward"]) == [truth(value) for value in values]
    last = frame.groupby(["round", "position"])["number"].transform("max")
    assert (answers["number"] == last[answers.index]).all()


def check_log(frame: pd.DataFrame, log: Counter[int], size: int) -> None:
    """The oracle was asked no more often than was charged, and what came back was asked."""
    value = frame["round"] * size + frame["position"]
    charged, back = Counter(value), Counter(value[frame["state"].isin(["answered", "error"])])
    assert log <= charged
    assert back <= log
    assert (frame["state"] == "unknown").sum() == (charged - back).total()


NAMES = ("asked once", "asked again")


@pytest.mark.parametrize("name", [*NAMES, "shared"])
def test_no_answer_is_lost(name: str, found: dict[str, list[dict[str, Any]]]) -> None:
    states = found[name]
    assert len({state["nre"] for state in states}) > len(states) / 3, "the kills are not all at one place"
    for before, after in pairwise(states):
        assert before["answered"].items() <= after["answered"].items()
        assert before["nre"] <= after["nre"]
    for state in states:
        assert len(state["answered"]) >= state["told"], "what the process had been told is there"


@pytest.mark.parametrize("name", NAMES)
def test_no_answer_is_asked_for_twice(name: str, root: Path, found: dict[str, list[dict[str, Any]]]) -> None:
    frame, log = attempts(root / name), asked(root / name)
    check_answers(frame, SIZE)
    check_log(frame, log, SIZE)
    unknown = frame[frame["state"] == "unknown"]
    assert 0 < len(unknown) <= 10 * WORKERS
    assert max(after["unknown"] - before["unknown"] for before, after in pairwise(found[name])) <= WORKERS
    slots = {(r, p) for r in range(ROUNDS) for p in range(SIZE)}
    answered = set(map(tuple, frame.loc[frame["state"] == "answered", ["round", "position"]].to_numpy().tolist()))
    bad = {(r, p) for r, p in slots if (r * SIZE + p) % BAD == 0}
    if name == "asked once":
        assert all(count <= (1 + RETRIES if value % BAD == 0 else 1) for value, count in log.items())
        assert answered == slots - bad - set(zip(unknown["round"], unknown["position"], strict=True))
    else:
        assert answered == slots - bad, "all have their answer"
        errors = frame[frame["state"] == "error"].groupby(["round", "position"]).size()
        assert set(errors) == {1 + RETRIES}


def test_processes_that_are_killed_share_a_budget(root: Path, found: dict[str, list[dict[str, Any]]]) -> None:
    frame, log = attempts(root / "shared"), asked(root / "shared")
    assert [state for state in found["shared"] if state["nre"] > SHARED_BUDGET] == []
    assert len(frame) == SHARED_BUDGET, "all of it was used"
    check_answers(frame, SHARED_SIZE)
    check_log(frame, log, SHARED_SIZE)
    assert log.total() <= SHARED_BUDGET
    assert frame["session"].nunique() > 15


def test_a_run_that_was_killed_outside_a_call_ends_as_the_uninterrupted_one(
    root: Path, found: dict[str, list[dict[str, Any]]]
) -> None:
    """Call for call and row for row, retries and known candidates too, up to the end of the budget."""
    whole, stopped = (attempts(root / name) for name in ("whole", "stopped"))
    assert (len(set(whole["session"])), len(set(stopped["session"]))) == (2, 6)
    rows = [
        frame.drop(columns=["session", "at", "worker", "seconds"]).sort_values(["round", "position", "number"])
        for frame in (whole, stopped)
    ]  # what is known is written down at once where a round goes on, and costs nothing
    pd.testing.assert_frame_equal(*(frame.reset_index(drop=True) for frame in rows), check_exact=True)
    assert (root / "whole" / "log").read_text() == (root / "stopped" / "log").read_text()
    assert whole["charged"].sum() == 55
    assert set(whole["state"]) == {"answered", "error"}
    assert (~whole["sent"]).sum() > 5
