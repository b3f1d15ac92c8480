"""Sweeps: every run once, whatever is killed; the same numbers as without; other pairs and wrong λ refused."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import h5py
import optuna
import pyro
import pytest
import torch

import banel_pyro.report
from banel_pyro.pair import load_pair
from banel_pyro.recipe import lams_of
from banel_pyro.report import sweep_page
from banel_pyro.report.numbers import run_numbers
from banel_pyro.report.sweep_numbers import read_sweep
from banel_pyro.run import FitResult, RunFolder
from banel_pyro.sweep import command as commands
from banel_pyro.sweep import study as studies
from banel_pyro.sweep.extra import read_extra
from banel_pyro.sweep.plan import Sweep
from banel_pyro.sweep.told import Told
from banel_pyro.training.control import TargetEntropy
from tests.test_cli import banel, refused

PAIRS = '''
"""Pairs for sweeps; each one notes in made.txt which process made it."""

import os
import time
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal

from banel_pyro import Pair, Split

N = 20
X = torch.linspace(-1.0, 2.0, N)


def model(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def pair(model=model, data=X, name="mean"):
    with open("made.txt", "a") as file:
        file.write(f"{os.getpid()}\\n")
    return Pair(model, AutoNormal(model), data=lambda: data, data_plate="data", name=name)


def mean():
    return pair()


def moved():
    return pair(data=X + 1.0)


def judged():
    return pair(data=Split(X, torch.linspace(-2.0, 2.0, 7)), name="judged")


def slow():
    def sleeping(x):
        time.sleep(0.01)
        model(x)

    return pair(sleeping)


def pressed():
    """Ctrl-C in the second run, when its steps have begun; once only."""
    calls = []

    def interrupting(x):
        calls.append(1)
        if len(calls) == 40 and os.path.exists("runs/lam=0,seed=0/sweep.nc") and not os.path.exists("once"):
            open("once", "w").close()
            os.kill(os.getpid(), 2)
        model(x)

    return pair(interrupting)


def nan_once():
    """The run, which comes after a rehearsal, meets NaN in a step; once only."""
    calls = []

    def failing(x):
        calls.append(1)
        if len(calls) == 30 and not os.path.exists("once"):
            open("once", "w").close()
            with pyro.poutine.scale(scale=float("inf")):
                return model(x)
        model(x)

    return pair(failing)


def collapsing():
    """Of two λ, which are rehearsed first, the first run ends with an error."""
    def failing(x):
        if len(Path("made.txt").read_text().split()) == 3:
            raise ArithmeticError("on purpose")
        model(x)

    return pair(failing)


def infinite():
    """The run, which comes after a rehearsal, meets NaN in a step; once only."""
    calls = []

    def failing(x):
        calls.append(1)
        if len(calls) >= 30 and not os.path.exists("mended"):
            with pyro.poutine.scale(scale=float("inf")):
                return model(x)
        model(x)

    return pair(failing)
'''

works = import_module("banel_pyro.sweep.work")  # the package has its function of that name
RENDER = sweep_page.render_sweep
FAST = ("--steps", "40", "--draws", "100", "--lr", "0.05", "--capture", "no", "--quiet")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with `swept.py` in it."""
    with prepared(tmp_path, monkeypatch):
        yield tmp_path


@contextmanager
def prepared(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (path / "swept.py").write_text(PAIRS)
    monkeypatch.chdir(path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    # the pages of runs have tests of their own, and that of a sweep one below; drawing takes longer than training
    monkeypatch.setattr(banel_pyro.report, "write_run_report", lambda run: run.write_report(""))
    monkeypatch.setattr(sweep_page, "render_sweep", lambda report: "")
    yield
    sys.modules.pop("swept", None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep of two λ and two seeds that nobody interrupted."""
    path = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as monkeypatch, prepared(path, monkeypatch):
        found = banel(*sweep("--lam", "0,0.5", "--seeds", "0,1"))
    assert (found.code, found.err) == (0, "")
    return path / "runs"


@pytest.fixture
def runs(whole: Path, folder: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(whole, folder / "runs")


def sweep(*arguments: str, pair: str = "mean", out: str = "runs") -> tuple[str, ...]:
    return ("sweep", f"swept:{pair}", *arguments, *FAST, "--out", out)


def files(folder: Path, run: str) -> dict[str, int]:
    """When each file of a run was written."""
    return {file.name: file.stat().st_mtime_ns for file in (folder / run).iterdir()}


def trials(folder: Path) -> list:
    plan = Sweep.read(folder)
    study = studies.open_study(plan, f"sqlite:///{folder / 'study.db'}", plan.pair, resume=True)
    return [trial for trial in study.get_trials() if "seeds" in trial.user_attrs]


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(folder / "state.pt", weights_only=True)["params"])


RUNS = [f"lam={lam},seed={seed}" for lam in ("0", "0.5") for seed in (0, 1)]


def test_a_grid_makes_a_folder_for_each_run(whole: Path) -> None:
    assert sorted(path.parent.name for path in whole.glob("*/sweep.nc")) == sorted(RUNS)
    assert Counter(trial.state.name for trial in trials(whole)) == {"COMPLETE": 4}
    for trial in trials(whole):
        run = f"{trial.user_attrs['name']},seed={trial.user_attrs['seeds'][0]}"
        idata = RunFolder(whole / run).read_posterior()
        assert trial.value == pytest.approx(run_numbers(idata).values["elbo"].value, abs=1e-9)


def test_the_page_is_made_from_the_files_alone(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_page, "render_sweep", RENDER)
    Path("swept.py").unlink()
    found = banel("report", "runs")
    assert (found.code, found.err) == (0, "")
    page = (runs / "report.html").read_text()
    for expected in ("which λ?", "ELBO", "IWAE", "losses of different λ are never", "lam%3D0.5%2Cseed%3D1/report.html"):
        assert expected in page, expected
    assert "report: runs/report.html" in found.out
    numbers = json.loads(page.partition('id="numbers">')[2].partition("</script>")[0])
    assert [run["lam"] for run in numbers["runs"]] == [0.0, 0.5]
    assert "loss" not in json.dumps(numbers)
    assert all("loss" not in cell for cell in read_sweep(runs).text_table())


def test_a_grid_may_grow_and_nothing_is_redone(runs: Path) -> None:
    before = {run: files(runs, run) for run in RUNS}
    found = banel(*sweep("--lam", "0,0.5,-1", "--seeds", "0"), "--resume")
    assert (found.code, found.err) == (0, "")
    assert {run: files(runs, run) for run in RUNS} == before
    assert [group.lam for group in read_sweep(runs).groups] == [-1.0, 0.0, 0.5]
    assert len(trials(runs)) == 6


def test_runs_are_those_of_banel_fit(whole: Path, folder: Path) -> None:
    assert banel("fit", "swept:mean", "--lam", "0.5", "--seed", "1", *FAST, "--out", "fitted").code == 0
    fitted, swept = (parameters(path) for path in (folder / "fitted" / "lam=0.5", whole / "lam=0.5,seed=1"))
    assert all(torch.equal(fitted[name], swept[name]) for name in fitted)


def test_a_worker_that_is_killed_loses_nothing_and_nothing_is_redone(folder: Path, whole: Path) -> None:
    """Kill −9 in the second run; the sweep that goes on has the numbers of one that nobody killed."""
    options = ("--lam", "0,0.5", "--seeds", "0,1")
    command = [sys.executable, "-c", "from banel_pyro.cli import main; main()", *sweep(*options, pair="slow")]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    second, deadline = folder / "runs" / "lam=0.5,seed=0", time.monotonic() + 300
    while not (second / "history.csv").exists() or len((second / "history.csv").read_text().splitlines()) < 4:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (second / "sweep.nc").exists()
    assert [t.state.name for t in trials(folder / "runs")][:2] == ["COMPLETE", "RUNNING"]
    before = files(folder / "runs", RUNS[0])
    resumed = banel(*sweep(*options, pair="slow"), "--resume")
    assert (resumed.code, resumed.err) == (0, "")
    assert files(folder / "runs", RUNS[0]) == before
    for run in RUNS:
        expected, found = parameters(whole / run), parameters(folder / "runs" / run)
        assert all(torch.equal(expected[name], found[name]) for name in expected), run
    assert Counter(t.state.name for t in trials(folder / "runs")) == {"COMPLETE": 4, "FAIL": 1}


def test_two_processes_share_the_runs_and_do_each_once(folder: Path) -> None:
    found = banel(*sweep("--lam", "0,0.5", "--seeds", "0,1", "--workers", "2"))
    assert (found.code, found.err) == (0, "")
    ended = trials(folder / "runs")
    assert Counter(t.state.name for t in ended) == {"COMPLETE": 4}
    assert len({(t.user_attrs["name"], *t.user_attrs["seeds"]) for t in ended}) == 4
    made = Counter(map(int, (folder / "made.txt").read_text().split()))
    made.pop(os.getpid())  # which rehearsed
    assert sum(made.values()) == 4


def test_nobody_takes_a_run_that_another_has_taken(tmp_path: Path) -> None:
    """SQLite as Optuna uses it hands some runs out twice: of thirty to four at a time, several."""
    plan = Sweep("a:b", lams_of(",".join(f"{i / 100}" for i in range(10)), None, 1), (0, 1, 2))
    url = f"sqlite:///{tmp_path / 'study.db'}"
    studies.enqueue(studies.open_study(plan, url, "s", resume=False), plan, tmp_path)
    start = threading.Barrier(4)

    def take() -> list[int]:
        mine, study = [], studies.open_study(plan, url, "s", resume=True)
        start.wait()
        while "seeds" in (trial := study.ask()).user_attrs:
            mine.append(trial.number)
        return mine

    with studies.quiet(), ThreadPoolExecutor(4) as pool:
        taken = [number for worker in [pool.submit(take) for _ in range(4)] for number in worker.result()]
    assert sorted(taken) == list(range(30))


def test_a_run_goes_to_one_process_only_even_if_it_is_in_the_queue_twice(runs: Path) -> None:
    """As when two machines begin a sweep at the same moment."""
    plan = Sweep.read(runs)
    study = studies.open_study(plan, f"sqlite:///{runs / 'study.db'}", plan.pair, resume=True)
    study.enqueue_trial({}, user_attrs=trials(runs)[0].user_attrs)
    before = files(runs, "lam=0,seed=0")
    assert banel(*sweep("--lam", "0", "--seeds", "0"), "--resume").code == 0
    assert files(runs, "lam=0,seed=0") == before
    assert [t.state.name for t in trials(runs)] == ["COMPLETE"] * 4 + ["PRUNED"]


def test_ctrl_c_ends_the_step_and_the_sweep_goes_on(folder: Path) -> None:
    command = sweep("--lam", "0,0.5", "--seeds", "0", pair="pressed")
    found = banel(*command)
    assert (found.code, found.err.splitlines()[-1]) == (130, "stopped. The same command with --resume goes on.")
    assert Counter(t.state.name for t in trials(folder / "runs")) == {"COMPLETE": 1, "FAIL": 1, "WAITING": 1}
    assert banel(*command, "--resume").code == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_that_fails_stops_no_other_and_is_told(folder: Path) -> None:
    found = banel(*sweep("--lam", "0.5,0", "--seeds", "0", pair="collapsing"))
    assert found.code == 2
    assert "1 run failed: λ = 0.5, seed 0: ArithmeticError: on purpose. --resume tries it again." in found.err
    assert [group.lam for group in read_sweep(folder / "runs").groups] == [0.0]


def test_a_search_tries_so_many_lambda_and_is_never_on_the_loss(folder: Path) -> None:
    command = sweep("--trials", "3", "--lam-range=-0.5,0.5", "--seeds", "0", pair="judged")
    found = banel(*command)
    assert (found.code, found.err) == (0, "")
    report = read_sweep(folder / "runs")
    assert len(report.groups) == 3
    assert report.score == "predictive"
    for trial in trials(folder / "runs"):
        group = next(g for g in report.groups if g.name == trial.user_attrs["name"])
        assert trial.value == pytest.approx(group.value("predictive").value, abs=1e-6)
        state = parameters(folder / "runs" / f"{group.name},seed=0")
        loc, scale = state["AutoNormal.locs.mu"], torch.nn.functional.softplus(state["AutoNormal.scales.mu"])
        exact = torch.distributions.Normal(loc, (1.0 + scale**2).sqrt()).log_prob(torch.linspace(-2.0, 2.0, 7)).mean()
        # to first order the error is that of the draws' mean, times the mean slope of log p(x | mu)
        assert trial.value == pytest.approx(float(exact), abs=4 * float(scale * loc) / 10)
    before = [group.lam for group in report.groups]
    assert banel(*command[:2], "--trials", "4", *command[4:], "--resume").code == 0
    assert set(before) < {group.lam for group in read_sweep(folder / "runs").groups}


def test_an_entropy_target_ends_at_the_lambda_of_a_gaussian(folder: Path) -> None:
    """H = log(2πe v (1 − λ))/2 per posterior; in nats per data point it is a twentieth of that."""
    exact = 0.5
    entropy = 0.5 * torch.log(torch.tensor(2 * torch.pi * torch.e * (1 - exact) / 21.0)).item() / 20
    command = ("sweep", "swept:mean", "--target-entropy", f"{entropy:.5f}", "--seeds", "0", "--steps", "1500")
    found = banel(*command, "--lr", "0.005", "--draws", "200", "--capture", "no", "--quiet", "--out", "runs")
    assert (found.code, found.err) == (0, "")
    (group,) = read_sweep(folder / "runs").groups
    assert group.lam == pytest.approx(exact, abs=0.1)
    assert "Entropy target met" in found.out


def test_a_target_is_an_option_of_fit_as_well(folder: Path) -> None:
    found = banel("fit", "swept:mean", "--lam", "0", "--target-entropy", "-0.05", *FAST, "--out", "fitted")
    assert (found.code, found.err) == (0, "")
    config = json.loads((folder / "fitted" / "entropy=-0.05" / "config.json").read_text())
    assert (config["lam"]["class"], config["lam"]["nats"], config["lam"]["per"]) == ("TargetEntropy", -0.05, "datum")
    assert list(lams_of(None, None, 100)) == ["lam=0"]
    assert lams_of(None, -3.0, 5000) == {"entropy=-3": TargetEntropy(-3.0, over=500)}


def test_a_run_that_rolls_back_keeps_lambda_and_the_page_says_so(folder: Path) -> None:
    found = banel(*sweep("--lam", "0.6", "--seeds", "0", "--on-fault", "rollback", pair="nan_once"))
    assert found.code == 0, found.err
    history = RunFolder(folder / "runs" / "lam=0.6,seed=0").read_history()
    assert set(history["lam"]) == {0.6}
    assert history["rollbacks"].max() == 1
    assert "λ = 0.6, seed 0: 1." in found.out
    assert any("λ = 0.6, seed 0: 1." in note for note in read_sweep(folder / "runs").notes())


def test_a_run_whose_folder_is_gone_is_trained_again(runs: Path) -> None:
    before = {run: files(runs, run) for run in RUNS[1:]}
    expected = parameters(runs / RUNS[0])
    shutil.rmtree(runs / RUNS[0])
    command = (*sweep("--lam", "0,0.5", "--seeds", "0,1"), "--resume")
    assert banel(*command).code == 0
    found = parameters(runs / RUNS[0])
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert {run: files(runs, run) for run in RUNS[1:]} == before
    assert [t.state.name for t in trials(runs)] == ["COMPLETE"] * 5
    assert banel(*command).code == 0
    assert len(trials(runs)) == 5


def test_a_run_that_met_a_fault_starts_over(folder: Path, whole: Path) -> None:
    command = sweep("--lam", "0", "--seeds", "0", pair="infinite")
    found = banel(*command)
    assert found.code == 2
    assert "1 run failed: λ = 0, seed 0: NonFiniteError" in found.err
    state = folder / "runs" / "lam=0,seed=0" / "left"
    state.write_text("by the fault")
    (folder / "mended").touch()
    assert banel(*command, "--resume").code == 0
    assert not state.exists()
    expected, mine = (parameters(path / "lam=0,seed=0") for path in (whole, folder / "runs"))
    assert all(torch.equal(expected[name], mine[name]) for name in expected)


@pytest.fixture
def queue(tmp_path: Path) -> optuna.Study:
    """The study of a sweep of one run."""
    plan = Sweep("a:b", {"lam=0": 0.0}, (0,))
    study = studies.open_study(plan, f"sqlite:///{tmp_path / 'study.db'}", "s", resume=False)
    studies.enqueue(study, plan, tmp_path)
    return study


def test_a_run_is_back_in_the_queue_only_when_its_trial_has_ended(
    queue: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a process that takes it at once finds the old trial under way, takes the new one for its double, and the
    run is lost."""
    seen = []

    def put(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        seen.append(study.get_trials()[0].state.name)
        studies.again(study, trial)

    def interrupted(*_: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(works, "again", put)
    monkeypatch.setattr(works._Worker, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        works.work(Sweep("swept:mean", {"lam=0": 0.0}, (0,)), tmp_path, queue)
    assert seen == ["FAIL"]
    assert [trial.state.name for trial in queue.get_trials()] == ["FAIL", "WAITING"]


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_process_that_died_before_its_first_sign_of_life_is_missed(
    queue: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.ask()
    studies.bury(queue)
    assert studies.count(queue) == {"RUNNING": 1}
    monkeypatch.setattr(studies, "GRACE", -1)
    studies.bury(queue)
    assert studies.count(queue) == {"FAIL": 1, "WAITING": 1}


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_run_that_is_given_up_is_told(queue: optuna.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "GRACE", -1)
    said: list[str] = []
    told = Told(queue, Sweep("a:b", {"lam=0": 0.0}, (0,)), said.append)
    for _ in range(studies.TRIES):
        assert not said
        queue.ask()
        studies.bury(queue)
        told()
    told.end()
    assert said == ["λ = 0, seed 0: failed, its process died, at try 4 of 4"]
    assert len(told.failed) == 1


def test_a_score_that_is_no_number_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(works, "judge", lambda folder, sweep: float("nan"))
    found = banel(*sweep("--lam", "0", "--seeds", "0"))
    assert found.code == 2
    assert "1 run failed: λ = 0, seed 0: FloatingPointError: elbo=nan" in found.err


def test_a_sweep_that_was_killed_before_its_study_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class KilledError(BaseException):
        pass

    def killed(*_: object, **options: object) -> None:
        raise KilledError

    command = sweep("--lam", "0", "--seeds", "0")
    with monkeypatch.context() as patch:
        patch.setattr(commands, "open_study", killed)
        with pytest.raises(KilledError):
            commands.sweep("swept:mean", lam="0", seeds="0", steps=40, out=Path("runs"))
    assert [file.name for file in (folder / "runs").iterdir()] == ["sweep.json"]
    assert "go on with --resume" in refused(*command)
    assert Sweep.read(folder / "runs").lams == {"lam=0": 0.0}


def test_a_storage_that_is_refused_leaves_no_sweep() -> None:
    assert "cannot be opened" in refused(*sweep("--lam", "0", "--seeds", "0", "--storage", "nonsense://x"))
    assert not (Path("runs") / "sweep.json").exists()


# What is refused


def test_files_of_others_are_looked_at_first(runs: Path) -> None:
    extra, plan = runs / RUNS[0] / "sweep.nc", runs / "sweep.json"
    content = json.loads(plan.read_text())
    for wrong, expected in (
        (content | {"seeds": "01"}, "seeds='01': expected a list"),
        (content | {"draws": True}, "draws=True"),
        (content | {"lams": {"lam=0": "x"}}, "is damaged"),
        ([], "holds a list"),
    ):
        plan.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=r"sweep\.json.*" + re.escape(expected)):
            Sweep.read(runs)
    moved = shutil.move(plan, runs / "moved.json")
    plan.symlink_to(moved)
    with pytest.raises(ValueError, match=r"sweep\.json' is a link"):
        Sweep.read(runs)
    with h5py.File(extra, "a") as file:
        file["out"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(ValueError, match=r"sweep\.nc' cannot be read .*is a link to"):
        read_extra(extra.parent)
    extra.unlink()
    os.mkfifo(extra)
    with pytest.raises(ValueError, match=r"sweep\.nc' cannot be read .*a pipe"):
        read_extra(extra.parent)


def test_other_pairs_data_and_settings_are_refused(runs: Path) -> None:
    command = sweep("--lam", "0", "--seeds", "0")
    assert "already holds a sweep" in refused(*command)
    other = [word.replace("swept:mean", "swept:moved") for word in command]
    line = refused(*other, "--resume")
    assert "--out=runs holds another sweep (pair: 'swept:mean' there, 'swept:moved' here; data:" in line
    assert "options" in refused(*[word.replace("40", "41") for word in command], "--resume")
    shared = ("--storage", f"sqlite:///{runs / 'study.db'}", "--study", "swept:mean")
    elsewhere = [word.replace("runs", "other") for word in other]
    assert "is there already" in refused(*elsewhere, *shared)
    assert "the study 'swept:mean' holds another sweep" in refused(*elsewhere, *shared, "--resume")
    assert "holds a sweep" in refused("fit", "swept:mean", "--out", "runs")
    config = runs / "lam=0,seed=0" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"data": "0" * 64}))
    assert "is of another pair or other data" in refused("report", "runs")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--lam", "0,1"], "lam=1.0 at the continuous site 'mu'"),
        (["--trials", "3", "--lam-range", "0,1"], "lam=1.0 at the continuous site 'mu'"),
        (["--trials", "3"], "a search needs both"),
        (["--trials", "3", "--lam-range", "0.5,0"], "the smaller λ first"),
        (["--trials", "3", "--lam-range", "a,b"], "--lam-range='a,b': expected two numbers"),
        (["--trials", "3", "--lam", "0", "--lam-range", "0,0.5"], "a grid or a search, not both"),
        (["--seeds", "0,x"], "--seeds='0,x': expected integers"),
        (["--seeds", "0,0"], "each once"),
        (["--objective", "loss"], "objective='loss': expected one of elbo, predictive, iwae"),
        (["--objective", "iwae"], "learns nothing, so that every λ has the same evidence"),
        (["--objective", "predictive"], "it has no held-out rows"),
        (["--target-entropy", "nan"], "nats=nan: expected a finite number"),
        (["--storage", "nonsense://x"], "--storage cannot be opened"),
        (["--draws", "1"], "--draws=1: expected at least 2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_ends_with_one_line_and_nothing_is_trained(arguments: list[str], expected: str) -> None:
    line = refused("sweep", "swept:mean", "--steps", "5", "--quiet", *arguments, "--out", "runs")
    assert expected in line, line
    assert not list(Path("runs").glob("*/config.json"))


def test_without_optuna_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "banel-pyro[sweep]" in refused("sweep", "swept:mean", "--out", "runs")


def test_passwords_are_not_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from banel_pyro.cli_options import remember_command
    from banel_pyro.sweep.command import _without_password

    monkeypatch.setattr(sys, "argv", ["banel", "sweep", "--storage", "postgresql://me:secret@host/db"])
    remember_command(folder, _without_password)
    assert (folder / "command.txt").read_text() == "banel sweep --storage 'postgresql://me:***@host/db'\n"


def test_a_plan_comes_back_from_its_file(folder: Path) -> None:
    lams = lams_of("0,z=0.4+w=0.1", -3.0, 100)
    plan = Sweep("a:b", lams, (0, 2), target=-3.0, options={"steps": 100}, about={"name": "n"})
    plan.write(folder)
    assert Sweep.read(folder) == plan
    with pytest.raises(ValueError, match="expected either a grid"):
        Sweep("a:b", {}, (0,))


def test_the_run_of_a_sweep_loads_as_any_other(whole: Path) -> None:
    with pyro.get_param_store().scope():
        result = FitResult.load(whole / "lam=0.5,seed=0", load_pair("swept:mean")())
    assert result.config["lam"]["value"] == 0.5
