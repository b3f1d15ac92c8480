"""Malformed input: a clear error that names it, raised by us and not from the depths, and nothing lost."""

import json
import math
import re
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from banel_pyro import FitResult, TargetEntropy
from banel_pyro.checkpoint import BEFORE, NEWEST
from banel_pyro.cli import main
from banel_pyro.folder import RunFolder
from banel_pyro.report import lam_label, write_report
from banel_pyro.schedules import from_config, to_config
from tests.malformed import Case, Odd, all_cases, pair
from tests.test_resume import ROOT

# the same names in every process that runs a part of them
CASES: dict[str, Case] = {re.sub(r" at 0x[0-9a-f]+", "", name): case for name, case in all_cases().items()}
OURS = (str(ROOT / "banel_pyro"), str(ROOT / "models"))


def refused(call: Callable[[], Any], words: str) -> str:
    """What is said: of a kind that is ours, naming the thing, from a file of ours."""
    with pytest.raises((ValueError, TypeError, OSError)) as error, pyro.get_param_store().scope():
        call()
    said = str(error.value)
    check_place(error.value)
    assert re.search(words, said, re.DOTALL), f"{said!r} does not name {words!r}"
    return said


def check_place(error: BaseException, words: str = "") -> None:
    """It was raised in a file of ours."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    assert place.filename.startswith(OURS), f"{error!r} comes from {place.filename}:{place.lineno}"
    assert words in str(error)


@pytest.mark.parametrize("name", CASES)
def test_a_malformed_input_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(*CASES[name])
    assert not any(tmp_path.iterdir()), "nothing is written"


def test_there_are_more_than_200() -> None:
    assert len(CASES) + len(STATES) + len(CONFIGS) + len(HISTORIES) + len(COMMANDS) >= 200


# ---- files of a run -----------------------------------------------------------------------------

OPTIONS: dict[str, Any] = {
    "steps": 4, "lr": 0.1, "seed": 0, "checkpoint_every": 2, "posterior_samples": 10, "progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "run"
    with pyro.get_param_store().scope():
        pair().fit(**OPTIONS, out=folder)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def all_refuse(folder: Path, words: str, *, report: bool = True, resume: bool = True) -> None:
    """Whoever reads a damaged run refuses it, and leaves every file of it as it is."""
    before = contents(folder)
    refused(lambda: FitResult.load(folder, pair()), words)
    if resume:
        refused(lambda: pair().fit(**OPTIONS | {"steps": 6}, out=folder, resume=True), words)
    if report:
        refused(lambda: write_report(folder), words)
    assert contents(folder) == before


MISSING: Any = Odd()
WRONG: dict[str, list[Any]] = {
    "params": [None, [], {"m": 3}, {3: torch.zeros(())}, {}, {"m": torch.zeros(2)}, {"zz": torch.zeros(())},
               {"m": torch.tensor(math.nan)}],
    "constraints": [None, 3], "modules": [None, {"x": 3}, {"x": torch.zeros(1)}], "owners": [None, {"a": 3}],
    "groups": [None, 3, [3], [[3]], [["zz"]]], "kinds": [None, [], [3, 4]], "scheduler": [3],
    "optimizer": [3, {}, {"state": [], "param_groups": []}, {"state": {}, "param_groups": [{"params": ["m"]}]}],
    "rng": [None, {}, {"torch": torch.zeros(3), "cuda": [], "numpy": [], "random": []}],
    "step": [None, -1, 1.5, "4", True], "seconds": [None, "x", math.nan, -1.0],
    "history": [None, 3, [3], [{"step": "x"}]], "meter": [3, torch.zeros(2, 2)], "metered": [None, -1, 1.5],
    "recorded": [None, [], [3, True], [["a"], 3]], "lam": [None, "x", [0.1]],
    "next_lam": ["x"], "capture": [3, {}], "last_terms": [3, {}, {"kl": 1.0}], "stopped": [3],
    "format": [None, "3", 2, 99],
}  # fmt: skip
STATES = [(key, value) for key, values in WRONG.items() for value in (MISSING, *values)]


@pytest.mark.parametrize(("key", "value"), STATES, ids=lambda item: re.sub(r" at 0x[0-9a-f]+", "", f"{item!r}")[:40])
def test_a_malformed_state_is_refused(key: str, value: Any, run: Path) -> None:
    (run / BEFORE).unlink()
    state = torch.load(run / NEWEST, weights_only=True)
    state.pop(key) if value is MISSING else state.update({key: value})
    torch.save(state, run / NEWEST)
    names = "m|parameters|zz" if key in ("params", "groups", "modules") else key
    all_refuse(run, names, report=False)


ROLLBACK: dict[str, Any] = {"step": 3, "why": "step 3: it is not finite", "back_to": 2, "lr": 0.1, "lam": 0.1}
WRONG_ROLLBACKS: dict[str, list[Any]] = {
    "rollbacks": [None, 3, [3], [{}], [ROLLBACK | {"lam": "x"}], [ROLLBACK | {"step": -1}], [ROLLBACK | {"more": 1}]],
    "slowed": [None, 0.5, [], [0.5], ["x", 1.0], [0.0, 1.0], [1.0, 2.0], [math.nan, 1.0]],
    "lam_bounds": [3, [], [0.1], ["x", 0.5], [0.5, 0.1], [0.0, 1.0], [math.nan, 0.5]],
    "kept": [None, 3, {}, [3], [{}], [{"kept": []}]],
}  # fmt: skip
ROLLBACKS = [(key, value) for key, values in WRONG_ROLLBACKS.items() for value in values]


@pytest.mark.parametrize(("key", "value"), ROLLBACKS, ids=lambda item: f"{item!r}"[:40])
def test_a_state_with_malformed_rollbacks_is_refused(key: str, value: Any, run: Path) -> None:
    """Which a state need not have."""
    test_a_malformed_state_is_refused(key, value, run)


def test_a_malformed_state_that_is_kept_is_refused(run: Path) -> None:
    (run / BEFORE).unlink()
    state = torch.load(run / NEWEST, weights_only=True)
    good = {key: value for key, value in state.items() if key != "format"}
    torch.save(state | {"rollbacks": [ROLLBACK], "kept": [good, good]}, run / NEWEST)
    assert len(RunFolder(run).read_state()["kept"]) == 2
    torch.save(state | {"kept": [good, good | {"seconds": -1.0}]}, run / NEWEST)
    all_refuse(run, "kept state 1, .*seconds=-1.0: expected seconds", report=False)


def test_an_optimiser_of_another_shape_is_refused(run: Path) -> None:
    """A resumed run reads it; a result that is loaded does not."""
    (run / BEFORE).unlink()
    state = torch.load(run / NEWEST, weights_only=True)
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(7)
    torch.save(state, run / NEWEST)
    before = contents(run)
    words = r"optim: the state of the Adam .*'exp_avg' has shape \(7,\), its parameter \(\)"
    refused(lambda: pair().fit(**OPTIONS | {"steps": 6}, out=run, resume=True), words)
    assert contents(run) == before


WRONG_CONFIG: dict[str, list[Any]] = {
    "format": [None, "3", 3.0, True, 99], "seed": [None, -1, 2**32, 1.5, "0", True], "steps": [None, 0, "4", 4.0],
    "name": [None, 3, ["six"]], "data": [None, 3, ""], "lam": [None, 0.3, [], {}, {"class": "Linear"}, {"class": "x"}],
    "dtype": ["float16", 3], "default_dtype": ["bfloat16", 3, True], "batch_size": [0, -1, "x", 1.5],
    "per": [None, "x"], "num_data": [None, -1, "6"], "data_plate": [3], "posterior_samples": [None, -1, "x"],
    "optim": [None, 3],
    "lr": ["x", -1, True], "versions": [None, [], "2.13"], "objective": [None, 3], "log_every": [0, "x"],
}  # fmt: skip
CONFIGS = [(key, value) for key, values in WRONG_CONFIG.items() for value in (MISSING, *values)]


@pytest.mark.parametrize(("key", "value"), CONFIGS, ids=lambda item: re.sub(r" at 0x[0-9a-f]+", "", f"{item!r}")[:40])
def test_a_malformed_configuration_is_refused(key: str, value: Any, run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config.pop(key) if value is MISSING else config.update({key: value})
    (run / "config.json").write_text(json.dumps(config))
    before = contents(run)
    readers: list[Callable[[], Any]] = [lambda: write_report(run)]
    if key != "lam":  # which says nothing of how a run is loaded
        readers.append(lambda: FitResult.load(run, pair()))
    if key == "data" and value == "":
        readers = readers[1:]
    for read in readers:
        refused(read, "data" if key == "data" else key)
    assert contents(run) == before


HISTORIES = {
    "words": b"step,elbo\n1,many\n", "no step": b"elbo\n1\n", "rows of other lengths": b"step,elbo\n1\n2,3,4,5\n",
    "binary": bytes(range(128, 256)), "an open quote": b'step,"elbo\n1,2\n', "empty steps": b"step,elbo\n,1\n",
    "zeros": bytes(100), "HTML": b"<html><body>not found</body></html>",
}  # fmt: skip


@pytest.mark.parametrize("name", HISTORIES)
def test_a_malformed_history_is_refused(name: str, run: Path) -> None:
    (run / "history.csv").write_bytes(HISTORIES[name])
    before = contents(run)
    for read in (RunFolder(run).read_history, lambda: write_report(run)):
        refused(read, "history.csv'.*damaged")
    assert contents(run) == before


# ---- the command line ---------------------------------------------------------------------------

PAIR = "tests.malformed:pair"
COMMANDS = [
    ["fit"], ["fit", "nowhere"], ["fit", "nowhere:x"], ["fit", "tests.malformed:zz"], ["fit", "tests.malformed:N"],
    ["fit", "tests.malformed:rows"], ["fit", "tests.malformed:draws"], ["fit", "tests.malformed:spread"], ["zz"],
    ["--zz"], ["fit", PAIR, "--zz"], ["report"], ["report", "nowhere"], ["report", "."], ["report", "config.json"],
    *(["fit", PAIR, option, value] for option, values in {
        "--lam": ["x", "", ",", "0,0", "nan", "inf", "1.0", "z", "z=", "=0.3", "zz=0.3", "a=x", "0,1.5", "0.1+0.2"],
        "--steps": ["0", "-1", "x", "1.5"], "--epochs": ["0", "x"], "--batch-size": ["0", "-3", "x", "7"],
        "--lr": ["0", "-1", "x", "nan"], "--seed": ["-1", "x", "4294967296"], "--threads": ["0", "x"],
        "--dtype": ["float16", "x"], "--capture": ["maybe"], "--draws": ["1", "-1", "x"], "--alpha": ["-1", "nan", "x"],
        "--devices": ["x", "0"], "--precision": ["x"], "--accelerator": ["x"], "--strategy": ["x"],
        "--num-nodes": ["0"],
    }.items() for value in values),
    ["fit", PAIR, "--steps", "3", "--epochs", "3"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_malformed_command_ends_with_2_and_one_line(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended, pyro.get_param_store().scope():
        main(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert len(said) > 20
    assert "--debug" not in said, "it is no error that we did not think of"
    assert not any(tmp_path.iterdir())


# ---- by chance ----------------------------------------------------------------------------------

NUMBERS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
VALUES = st.recursive(
    NUMBERS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["class", "a", "over"]), inner, max_size=3)
    ),
    max_leaves=6,
)  # fmt: skip
CLASSES = st.sampled_from(
    ["Constant", "Linear", "Cosine", "Exponential", "Cyclical", "Piecewise", "Join", "Warmup", "x"]
)
FIELDS = st.sampled_from(
    ["value", "start", "stop", "over", "unit", "lam0", "decay", "every", "lam_min", "period", "boundaries", "values",
     "schedules", "then", "ramp_fraction"]
)  # fmt: skip


@given(st.fixed_dictionaries({"class": CLASSES | VALUES}), st.dictionaries(FIELDS, VALUES, max_size=5))
@settings(max_examples=200, deadline=None, derandomize=True)
@example({"class": "Linear"}, {"start": 0, "stop": 1, "over": 10**400})
@example({"class": "Piecewise"}, {"boundaries": [10**400], "values": [0, 1]})
@example({"class": "Constant"}, {"value": 10**400})
def test_any_configuration_of_a_schedule_is_read_or_refused(kind: dict[str, Any], fields: dict[str, Any]) -> None:
    try:
        schedule = from_config(kind | fields)
    except (ValueError, TypeError) as error:
        check_place(error)
    else:
        assert from_config(to_config(schedule)) == schedule


@given(data=st.data())
@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_part_of_a_state_may_be_anything(made: Path, tmp_path: Path, data: st.DataObject) -> None:
    state = torch.load(made / NEWEST, weights_only=True)
    key = data.draw(st.sampled_from(sorted(state)))
    state[key] = data.draw(VALUES.filter(lambda value: not isinstance(value, int) or abs(value) < 2**62))
    torch.save(state, tmp_path / NEWEST)
    try:
        found = RunFolder(tmp_path).read_state()
    except ValueError as error:
        check_place(error, NEWEST)
    else:
        assert found.keys() == state.keys()


def test_a_run_with_a_target_has_a_report(tmp_path: Path) -> None:
    """What its configuration says of λ is no schedule."""
    target = TargetEntropy(0.5, per="total")
    with pyro.get_param_store().scope():
        pair().fit(**OPTIONS, lam=target, out=tmp_path)
    assert lam_label(target.config()) == "λ for entropy 0.5 in all"
    assert "λ for entropy" in (tmp_path / "report.html").read_text("utf-8").replace("\u00a0", " ")
