"""``banel negative``: runs of ``learn`` by name, each once, whatever stops them, and how it refuses bad input."""

import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from banel_pyro.negative import Learned, Ledger, Oracle, RandomFilter, learn
from banel_pyro.negative import command as commands
from banel_pyro.negative.methods import METHODS
from banel_pyro.negative.options import CONFIG, LEDGER, ROUNDS
from banel_pyro.negative.task_options import options_of
from banel_pyro.pair import load_factory
from banel_pyro.reading import read_json
from banel_pyro.report import negative_page
from tests.test_cli import Outcome, banel, refused

TASKS = '''
"""Tasks for the command line: forty values, of which two succeed; every call of an oracle is noted in asked.txt."""

import os
import time
from pathlib import Path

import pyro.distributions as dist
import torch
from torch import nn

from banel_pyro import Pair
from banel_pyro.negative import (
    Distillation, DrawnSuccesses, Generator, HeldOut, ListedSuccesses, RandomFilter, RatioFilter, Task, Training
)

WINS = torch.tensor([3, 38])
ASKED = Path("asked.txt").absolute()  # a call that was given up may end in another folder


class Values(Generator):
    event_shape = torch.Size()

    def __init__(self, size=40):
        super().__init__()
        self.logits = nn.Parameter(-0.5 * torch.linspace(-3, 3, size) ** 2)

    def sample(self, n):
        return dist.Categorical(logits=self.logits).sample((n,))

    def log_prob(self, x):
        return dist.Categorical(logits=self.logits).log_prob(x)


def judge(x):
    with ASKED.open("a") as file:
        file.write(f"{len(x)}\\n")
    return torch.isin(x, WINS)


def task(reward=judge, rates=ListedSuccesses(WINS, draws=500), oracle={"batch_size": 50}, **options):
    training = Training(epochs=3, lr=0.05)
    options = {
        "budget": 60, "rounds": 2, "factor": 2.0, "candidates": 200, "filter": RatioFilter(training=training),
        "distillation": Distillation(draws=200, training=training), "known": "ask", **options
    }
    return Task("forty values", Values(), reward, success_rate=rates, oracle=oracle, options=options)


def plain():
    return task()


def never():
    """None of the draws succeeds, so that gains are not known."""
    return task(lambda x: x < 0, DrawnSuccesses(lambda x: x < 0, draws=50))


def unmeasured():
    return task(rates=None)


def pressed():
    """Ctrl-C in the second round of the second run; once only."""
    def interrupting(x):
        rounds = Path("runs/banel/seed-1/rounds.json")
        if rounds.exists() and "proposed" in rounds.read_text() and not Path("once").exists():
            Path("once").touch()
            os.kill(os.getpid(), 2)
            time.sleep(1)
        return judge(x)

    return task(interrupting)


def collapsing():
    """Regions that are kept, and too few draws to find what they leave."""
    return task(distillation=None, factor=8.0, rounds=3, max_draws=250)


def slow():
    """The first call takes long."""
    def sleeping(x):
        try:
            os.close(os.open("once", os.O_CREAT | os.O_EXCL))
            time.sleep(1.5)
        except FileExistsError:
            pass
        return judge(x)

    return task(sleeping, oracle={"batch_size": 1, "backoff": 0.0})


def untrained():
    return task(filter=RandomFilter())


def mistaken():
    return task(roundz=3)


def noisy():
    return task(held_out=HeldOut(0.1, patience=5))


def choosing():
    return task(held_out=HeldOut(0.2, epochs=(1, 9), factors=(4.0,)))


def pair():
    return Pair(lambda x: None, lambda x: None)


def needs(width):
    return task()
'''


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with `toys.py` in it."""
    with prepared(tmp_path, monkeypatch):
        yield tmp_path


@contextmanager
def prepared(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (path / "toys.py").write_text(TASKS)
    monkeypatch.chdir(path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(negative_page, "render_negative", lambda report: "")  # drawing takes longer than the runs
    yield
    sys.modules.pop("toys", None)


def negative(*arguments: str, task: str = "plain", out: str = "runs") -> Outcome:
    return banel("negative", f"toys:{task}", *arguments, "--out", out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all methods and two seeds that nobody interrupted, and what the command printed."""
    path = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as monkeypatch, prepared(path, monkeypatch):
        found = negative("--methods", "banel,random-filter,random", "--seeds", "0,1")
    assert (found.code, found.err) == (0, "")
    (path / "printed.txt").write_text(found.out)
    return path / "runs"


@pytest.fixture
def runs(whole: Path, folder: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(whole, folder / "runs")


def rounds(path: Path) -> list[dict[str, Any]]:
    """The records of a run, without times."""
    found = read_json(path / ROUNDS)["rounds"]
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in found]


def config(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(path / CONFIG)
    return found


# What it does


def test_a_run_of_each_method_and_seed_has_a_folder_and_a_line(whole: Path) -> None:
    found = sorted(str(path.parent.relative_to(whole)) for path in whole.glob(f"*/*/{CONFIG}"))
    assert found == sorted(f"{method}/seed-{seed}" for method in METHODS for seed in (0, 1))
    printed = (whole.parent / "printed.txt").read_text()
    assert "banel, seed 0: success rate 0.00352 → " in printed
    assert "random, seed 1: success rate 0.00352 → 0.00352, " in printed
    assert "in 60 reward evaluations, all rounds are done; 6 of 6 ended" in printed
    assert "report: runs/report.html" in printed
    assert (whole / "command.txt").read_text().startswith("banel")


def test_methods_differ_in_filter_and_distillation_alone(whole: Path) -> None:
    banel, filtered, random = (config(whole / method / "seed-0") for method in METHODS)
    changed = [{key for key in banel if banel[key] != other[key]} for other in (filtered, random)]
    assert changed == [{"filter"}, {"filter", "distillation"}]
    assert filtered["filter"] == {"filter": "RandomFilter"}
    assert (random["filter"], random["distillation"]) == (None, None)
    for seed in (0, 1):  # the same candidates first, and as many rejected
        first = [rounds(whole / method / f"seed-{seed}")[0] for method in METHODS]
        assert len({(row["nre"], row["successes"]) for row in first}) == 1
        assert [row.get("acceptance") for row in first] == [pytest.approx(0.5, abs=0.1)] * 2 + [None]


def test_runs_are_those_of_learn(whole: Path, folder: Path) -> None:
    task = load_factory("toys:plain", commands.TASK)()
    options = {**task.options, "filter": RandomFilter()}
    made = learn(
        task.generator, Oracle(task.reward, batch_size=50), **options, success_rate=task.success_rate, out="mine",
        seed=1, show=task.texts, progress=False, name=task.name,
    )  # fmt: skip
    assert rounds(folder / "mine") == rounds(whole / "random-filter" / "seed-1")
    loaded = Learned.load(whole / "random-filter" / "seed-1", task.generator)
    assert loaded.generator.logits.equal(made.generator.logits)


def test_options_go_before_those_of_the_task(folder: Path) -> None:
    given = ("--budget", "20", "--rounds", "1", "--factor", "4", "--epochs", "1", "--known", "free", "--use-successes")
    assert negative(*given, "--held-out", "0.3", "--quiet", "--seeds", "7", task="noisy").code == 0
    found = config(folder / "runs" / "banel" / "seed-7")
    names = ("budget", "rounds", "factor", "known", "use_successes", "seed")
    assert [found[name] for name in names] == [20, 1, 4.0, "free", True, 7]
    assert (found["held_out"]["fraction"], found["held_out"]["patience"]) == (0.3, 5)
    assert found["filter"]["training"]["epochs"] == 1
    assert found["distillation"]["training"]["epochs"] == 3
    assert "signal" in rounds(folder / "runs" / "banel" / "seed-7")[0]


def test_only_a_method_with_epochs_chooses_among_them(folder: Path) -> None:
    assert negative("--methods", "banel,random-filter,random", "--quiet", task="choosing").code == 0
    rows = {method: rounds(folder / "runs" / method / "seed-0") for method in METHODS}
    assert [len(row["signals"]) for row in rows["banel"]] == [6, 6]  # three epochs, two factors
    assert not any("signals" in row for row in rows["random-filter"] + rows["random"])
    assert config(folder / "runs" / "random-filter" / "seed-0")["held_out"]["fraction"] == 0.2
    assert "Chosen by held-out failures" in banel("report", "runs").out
    assert negative("--methods", "random", "--seeds", "1", "--resume", "--quiet", task="choosing").code == 0


def test_a_budget_may_be_raised_for_what_is_left(folder: Path) -> None:
    found = negative("--seeds", "0,1", "--quiet", task="pressed")
    assert found.code == 130
    assert negative("--seeds", "0,1", "--budget", "90", "--quiet", "--resume", task="pressed").code == 0
    assert [rounds(folder / "runs" / "banel" / f"seed-{seed}")[-1]["nre"] for seed in (0, 1)] == [60, 60]
    assert negative("--seeds", "2", "--budget", "80", "--resume", "--quiet").code == 0
    assert "The runs have different budgets" in banel("report", "runs").out


def test_a_budget_is_7500_unless_somebody_says_otherwise(folder: Path) -> None:
    task = load_factory("toys:plain", commands.TASK)()
    bare = type(task)(task.name, task.generator, task.reward)
    nothing = dict.fromkeys(("budget", "rounds", "factor", "known", "use_successes"))
    assert options_of(bare, nothing, None, None)["budget"] == 7500
    assert options_of(task, nothing, None, None)["budget"] == 60


def test_quiet_says_nothing_but_the_table(folder: Path) -> None:
    found = negative("--budget", "4", "--rounds", "1", "--methods", "random", "--quiet")
    assert found.err == ""
    assert found.out.startswith("forty values\n")


def test_threads_ask_the_oracle_and_end(folder: Path) -> None:
    given = ("--budget", "12", "--rounds", "1", "--methods", "random", "--workers", "3", "--timeout", "60", "--quiet")
    assert negative(*given).code == 0
    with Ledger.reopen(folder / "runs" / "random" / "seed-0" / LEDGER) as ledger:
        workers = ledger.frame()["worker"]
    assert all("oracle_" in worker for worker in workers)
    for thread in threading.enumerate():
        if thread.name.startswith("oracle"):
            thread.join(10.0)
            assert not thread.is_alive()


def test_a_call_that_is_given_up_is_asked_again_only_if_that_does_no_harm(folder: Path) -> None:
    given = ("--budget", "40", "--methods", "random", "--workers", "2", "--timeout", "0.3", "--quiet")
    assert negative(*given, task="slow", out="once-only").code == 0
    with Ledger.reopen(folder / "once-only" / "random" / "seed-0" / LEDGER) as ledger:
        states = ledger.frame()["state"].value_counts()
        assert (states["lost"], states["answered"]) == (1, 39)
    Path("once").unlink()
    assert negative(*given, "--idempotent", task="slow", out="again").code == 0
    with Ledger.reopen(folder / "again" / "random" / "seed-0" / LEDGER) as ledger:
        frame = ledger.frame()
    (lost,) = frame[frame["state"] == "lost"]["position"]
    tries = frame[(frame["round"] == 0) & (frame["position"] == lost)]
    assert list(tries["state"]) == ["lost", "answered"]
    assert frame["charged"].sum() == len(frame) == 40


def test_gains_that_are_not_known_are_null_in_the_files(folder: Path) -> None:
    assert negative("--quiet", task="never").code == 0
    rows = rounds(folder / "runs" / "banel" / "seed-0")
    assert [row["filter_gain"] for row in rows] == [None, None]
    assert [row["success_rate"] for row in rows] == [0.0, 0.0]


def test_a_task_without_a_success_rate_has_a_line_and_a_table(folder: Path) -> None:
    found = negative("--budget", "4", "--rounds", "1", task="unmeasured")
    assert found.code == 0
    assert "banel, seed 0: 0 successes seen in 4 reward evaluations" in found.out
    assert "measures no success rate" in found.out


def test_a_page_is_made_again_from_the_files_alone(runs: Path) -> None:
    Path("toys.py").unlink()
    (runs / "report.html").unlink()
    found = banel("report", "runs")
    assert (found.code, found.err) == (0, "")
    assert (runs / "report.html").exists()
    assert "report: runs/report.html" in found.out
    assert "random-filter" in found.out
    assert "report: runs/random/seed-1/report.html" in banel("report", "runs/random/seed-1").out


# Stopping and going on


def test_ctrl_c_stops_it_and_resume_goes_on_with_what_is_not_done(folder: Path, whole: Path) -> None:
    found = negative("--seeds", "0,1", "--quiet", task="pressed")
    assert (found.code, found.err.splitlines()[-1]) == (130, "stopped. The same command with --resume goes on.")
    done = folder / "runs" / "banel" / "seed-0" / ROUNDS
    assert read_json(done)["stopped"]
    assert not read_json(folder / "runs" / "banel" / "seed-1" / ROUNDS)["stopped"]
    before = done.read_bytes()
    assert "--resume" in refused("negative", "toys:pressed", "--seeds", "0,1", "--out", "runs")
    assert negative("--seeds", "0,1", "--quiet", "--resume", task="pressed").code == 0
    assert done.read_bytes() == before
    for seed in (0, 1):
        rows = rounds(folder / "runs" / "banel" / f"seed-{seed}")
        assert [row["charged"] for row in rows] == [30, 30]
    assert rounds(done.parent) == rounds(whole / "banel" / "seed-0")


def test_methods_and_seeds_may_grow_and_nothing_is_asked_twice(runs: Path) -> None:
    asked = Path("asked.txt")
    assert negative("--seeds", "0,1", "--resume", "--quiet").code == 0
    assert not asked.exists()
    assert negative("--seeds", "1,2", "--methods", "random", "--resume", "--quiet").code == 0
    assert sum(map(int, asked.read_text().split())) == 60
    assert (runs / "random" / "seed-2" / CONFIG).exists()


def test_a_run_that_accepts_nothing_holds_up_no_other(folder: Path) -> None:
    found = negative("--methods", "banel,random", task="collapsing")
    assert found.code == 2
    assert "random, seed 0: " in found.out
    assert "1 of 2 runs ended early: banel, seed 0: " in found.err
    assert "Not at their end" in found.out


# What it refuses


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--budget", "0"], "budget=0: expected an integer of at least 1"),
        (["--rounds", "0"], "rounds=0: expected an integer of at least 1"),
        (["--budget", "5", "--rounds", "6"], "expected a candidate a round or more"),
        (["--factor", "1"], "factor=1.0"),
        (["--factor", "0.5"], "factor=0.5"),
        (["--epochs", "-1"], "--epochs=-1: expected an integer of at least 0"),
        (["--held-out", "1"], "expected a probability"),
        (["--known", "maybe"], "known='maybe': expected 'free' or 'ask'"),
        (["--methods", "banel,rnd"], "'rnd' is none; expected some of banel, random-filter, random"),
        (["--methods", "banel,banel"], "each method once"),
        (["--seeds", "0,x"], "--seeds='0,x': expected integers"),
        (["--seeds", "-1"], "--seeds='-1': expected integers of 0 or more"),
        (["--seeds", "0,0"], "each seed once"),
        (["--timeout", "0"], "timeout=0.0: expected seconds above 0"),
        (["--workers", "0"], "--workers"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_ends_with_one_line_and_nothing_is_asked(arguments: list[str], expected: str) -> None:
    line = refused("negative", "toys:plain", *arguments, "--out", "runs")
    assert expected in line, line
    assert not Path("asked.txt").exists()
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("negative", "toys:pair"), "task 'toys:pair' returned a Pair: expected a banel_pyro.negative.Task. A Pair is"),
        (("fit", "toys:plain"), "returned a Task: expected a banel_pyro.Pair. A Task is for banel negative."),
        (
            ("negative", "toys"),
            "task 'toys': expected module:attribute, such as models.addition:attack for models/",
        ),
        (("negative", "toys:none"), "task 'toys:none': module 'toys' has no attribute 'none'"),
        (("negative", "nowhere:task"), "A task is a function in a Python file that returns banel_pyro.negative.Task("),
        (("negative", "toys:needs"), "cannot be called without arguments"),
        (("negative", "toys:WINS"), "task 'toys:WINS' is a Tensor: expected a function without arguments"),
        (("negative", "toys:untrained", "--epochs", "3"), "RandomFilter(), trains no failure model"),
        (("negative", "toys:mistaken"), "has the options ['roundz']: expected some of budget, rounds"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_no_task_is_refused(command: tuple[str, ...], expected: str) -> None:
    assert expected in refused(*command, "--out", "runs")
    assert not Path("runs").exists()


def test_a_folder_that_holds_something_else_is_left_alone(runs: Path) -> None:
    command = ("negative", "toys:plain", "--out")
    Path("file").touch()
    assert "is a file" in refused(*command, "file")
    Path("full").mkdir()
    Path("full/notes.txt").touch()
    assert "holds other files and no runs of banel negative" in refused(*command, "full", "--resume")
    assert "already holds runs (banel, seed-0" in refused(*command, "runs")
    assert "is itself a run" in refused(*command, "runs/banel/seed-0", "--resume")
    assert "holds runs of banel negative" in refused("fit", "toys:pair", "--steps", "1", "--out", "runs")
    assert not Path("asked.txt").exists()


def test_a_folder_of_a_command_that_was_killed_at_once_is_gone_on_with(folder: Path) -> None:
    Path("runs").mkdir()
    Path("runs/command.txt").write_text("banel negative toys:plain\n")
    assert negative("--budget", "4", "--rounds", "1", "--methods", "random", "--resume", "--quiet").code == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--factor", "8"], "with factor=2.0, and factor=8.0 was asked for"),
        (["--seeds", "5", "--epochs", "9"], "holds a run with filter="),
        (["--seeds", "5", "--methods", "random", "--rounds", "3"], "with rounds=2, and rounds=3 was asked for"),
        (["--known", "free"], "with known='ask', and known='free' was asked for"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_runs_of_other_options_are_not_put_beside_it(runs: Path, arguments: list[str], expected: str) -> None:
    assert expected in refused("negative", "toys:plain", *arguments, "--out", "runs", "--resume")
    assert not Path("asked.txt").exists()
