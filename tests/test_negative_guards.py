"""What learning from failures makes sure of before anything is asked."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from banel_pyro import cli
from banel_pyro.negative import HeldOut, Ledger, Oracle, RandomFilter
from banel_pyro.negative.guards import locked
from banel_pyro.negative.options import read_config
from tests.negative_cases import Table, run

pytestmark = pytest.mark.usefixtures("float64")


class Detached(Table):
    """A generator whose density says nothing of its parameters."""

    def log_prob(self, x: Tensor) -> Tensor:
        return super().log_prob(x).detach() + 0 * self.logits.sum()


def stopping(calls: int) -> Oracle:
    """An oracle that is interrupted at a call."""
    left = [calls]

    def fn(x: Tensor) -> Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return torch.zeros(len(x))

    return Oracle(fn, batch_size=64)


def test_a_run_whose_ledger_is_gone_is_refused(tmp_path: Path) -> None:
    """A new one would know of no charges, and the budget would be overrun."""
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", oracle=stopping(1))
    for file in (tmp_path / "run").glob("ledger.db*"):
        file.unlink()
    with pytest.raises(ValueError, match="0 charged reward evaluations, and the run had made 40"):
        run(tmp_path / "run", resume=True)


def test_a_generator_that_does_not_learn_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    asked: list[Tensor] = []
    oracle = Oracle(lambda x: asked.append(x) or torch.zeros(len(x)), batch_size=64)  # type: ignore[func-returns-value]
    with pytest.raises(ValueError, match="a step of training leaves the generator"):
        run(tmp_path / "run", generator=Detached(), oracle=oracle)
    assert not asked
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"filter": RandomFilter(), "held_out": HeldOut(factors=(2.0,))}, TypeError, "RandomFilter has no stages"),
        ({"held_out": HeldOut(factors=(1.001,))}, ValueError, "factor=1.001: expected at least 100[12]"),
    ],
)
def test_choices_that_cannot_be_made_are_refused(
    options: dict[str, Any], error: type[Exception], match: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=match):
        run(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def hold(folder: Path, ready: Any, done: Any) -> None:
    with locked(folder):
        ready.set()
        done.wait(60)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    run(tmp_path / "run")
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / "run", ready, done))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(ValueError, match=f"in use by process {other.pid}"):
            run(tmp_path / "run", resume=True)
    finally:
        done.set()
        other.join(60)
    assert run(tmp_path / "run", resume=True).stopped


def test_a_run_that_has_ended_goes_on_with_more_rounds_and_budget(tmp_path: Path) -> None:
    first = run(tmp_path / "run")
    more = run(tmp_path / "run", resume=True, budget=200, rounds=5)
    assert (first.rounds["nre"].iloc[-1], more.rounds["nre"].iloc[-1]) == (120, 200)
    assert more.rounds["charged"].tolist() == [40] * 5
    assert more.config["rounds"] == 5


TASK = """
import torch
from banel_pyro.negative import Task
from tests.negative_cases import QUICK, Table
from banel_pyro.negative import Distillation, RatioFilter

def make():
    options = {"filter": RatioFilter(QUICK), "distillation": Distillation(draws=100, training=QUICK), "rounds": 2}
    return Task("t", Table(), lambda x: torch.zeros(len(x)), options={**options, "candidates": 100, "known": "ask"})
"""


def test_resuming_a_command_never_raises_its_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small_task.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for flags in (["--budget", "20"], ["--resume"]):
        with pytest.raises(SystemExit) as end:
            cli.main(["negative", "small_task:make", "--out", "out", "--quiet", *flags])
        assert not end.value.code, capsys.readouterr().err
    assert read_config(tmp_path / "out" / "banel" / "seed-0")["budget"] == 20
    with Ledger.reopen(tmp_path / "out" / "banel" / "seed-0" / "ledger.db") as ledger:
        assert (ledger.nre, ledger.budget) == (20, 20)


def test_charged_counts_retries_too(tmp_path: Path) -> None:
    """Every candidate once more: its first attempt fails."""
    seen: set[int] = set()

    def flaky(x: Tensor) -> Tensor:
        number = int(x[0] * 1e6)
        if number not in seen:
            seen.add(number)
            raise OSError("try again")
        return torch.zeros(len(x))

    class Bell(Table):
        def sample(self, n: int) -> Tensor:
            return torch.rand(n)  # no two candidates are alike

        def log_prob(self, x: Tensor) -> Tensor:
            return self.logits.sum() * x

    rounds = run(
        tmp_path / "run", generator=Bell(), oracle=Oracle(flaky, backoff=0.0, give_up=None), budget=60, rounds=2,
        filter=None, distillation=None,
    ).rounds  # fmt: skip
    assert rounds["proposed"].tolist()[0] == 30
    assert rounds["charged"].tolist() == rounds["nre"].diff().fillna(rounds["nre"].iloc[0]).tolist()
    assert rounds["charged"].iloc[0] > 30
