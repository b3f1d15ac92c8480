"""The command line: the runs and the page that it makes, and how it refuses what it cannot do."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
import torch

from banel_pyro.cli import main

PAIRS = '''
"""Pairs for the command line, most of them wrong in one way."""

import os
import signal

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from banel_pyro import Pair
from models.data import data_folder

N = 20
X = torch.linspace(-1.0, 1.0, N)


def model(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def local_model(x):
    with pyro.plate("data", N):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def pair(data=X, model=model, guide=AutoNormal, name="fine"):
    return Pair(model, guide(model), data=lambda: data, name=name)


def fine():
    return pair()


def nan_data():
    return pair(torch.where(X > 0.9, torch.nan, X))


def empty_data():
    return pair(X[:0])


def lengths_differ():
    return pair((X, X[1:]), lambda x, y: model(x))


def integer_images():
    def network(x):
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(x @ weight, 1.0), obs=torch.zeros(len(x)))

    return pair(torch.ones(N, 4, dtype=torch.uint8), network)


def not_a_pair():
    return model


constant = 3


def with_argument(data):
    return pair(data)


def joint_guide():
    return pair(model=local_model, guide=AutoMultivariateNormal)


def no_plate():
    def vectorised(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(mu, 1.0).expand([len(x)]).to_event(1), obs=x)

    return pair(model=vectorised)


def own_rows():
    def subsampled(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N, subsample=torch.arange(5)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x[:5])

    return pair(model=subsampled)


def other_sites():
    def guide(x):
        pyro.sample("nu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    return pair(guide=lambda _: guide)


def other_shapes():
    def guide(x):
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.zeros(3)), 1.0).to_event(1))

    return pair(guide=lambda _: guide)


def missing_data():
    return Pair(model, AutoNormal(model), data=lambda: data_folder("no-such-set"))


def wider():
    """As fine, under the same name and on the same data, but with other parameters."""
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", N):
            pyro.sample("x", dist.Normal(mu.sum(), 1.0), obs=x)

    return pair(model=model)


def pressed():
    """Ctrl-C at a time when the steps of a run have begun."""
    calls = []

    def interrupting(x):
        calls.append(1)
        if len(calls) == 40:
            os.kill(os.getpid(), signal.SIGINT)
        model(x)

    return pair(model=interrupting)


def interrupted():
    def model(x):
        raise KeyboardInterrupt

    return pair(model=model)


def broken():
    def model(x):
        undefined_name

    return pair(model=model)
'''


@dataclass
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str


def banel(*arguments: str) -> Outcome:
    """Run a command in this process."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        main(arguments)
    return Outcome(int(end.value.code or 0), out.getvalue(), err.getvalue())


def refused(*arguments: str) -> str:
    """The one line with which a command ends that cannot be done."""
    found = banel(*arguments)
    assert found.code == 2, found
    assert re.fullmatch("error: .+\n", found.err), found.err
    assert not found.out
    return found.err


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with `pairs.py` in it, which the command line puts on the path."""
    (tmp_path / "pairs.py").write_text(PAIRS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("pairs", None)


# What it does


def test_fit_makes_a_folder_for_each_lam_and_a_page(folder: Path) -> None:
    found = banel("fit", "pairs:fine", "--lam", "0,0.4,mu=0.2", "--steps", "20", "--draws", "10", "--out", "runs")
    assert (found.code, found.err) == (0, "")
    for name, value in (("lam=0", 0.0), ("lam=0.4", 0.4), ("lam=mu=0.2", {"mu": 0.2})):
        run = folder / "runs" / name
        assert {file.name for file in run.iterdir()} == {
            "config.json", "history.csv", "state.pt", "state.before.pt", "posterior.nc", "report.html"
        }  # fmt: skip
        assert json.loads((run / "config.json").read_text())["lam"]["value"] == value
    assert (folder / "runs" / "report.html").read_text().startswith("<!DOCTYPE html>")
    for expected in (
        "λ = 0.4 − λ = 0",
        "λ of mu = 0.2",
        "ELBO",
        "IWAE",
        "20 training rows",
        "never compared",
        "runs/report.html",
    ):
        assert expected in re.sub(r"\s+", " ", found.out), expected


def test_runs_of_one_command_start_from_the_same_weights_and_leave_no_parameters(folder: Path) -> None:
    banel("fit", "models.vae:digits", "--lam", "0,0.4", "--steps", "1", "--draws", "2", "--out", "runs")
    first, second = (pd.read_csv(folder / "runs" / name / "history.csv").iloc[0] for name in ("lam=0", "lam=0.4"))
    assert first["elbo"] == second["elbo"]
    assert first["loss"] != second["loss"]


def test_report_makes_the_same_page_from_the_files_alone(folder: Path) -> None:
    fitted = banel("fit", "pairs:fine", "--lam", "0,0.4", "--steps", "20", "--draws", "10", "--out", "runs")
    page = folder / "runs" / "report.html"
    before = page.read_bytes()
    page.unlink()
    (folder / "pairs.py").unlink()
    found = banel("report", "runs")
    assert (found.code, found.out) == (0, fitted.out)
    assert page.read_bytes() == before
    assert banel("report", "runs/lam=0").code == 0


def test_resume_goes_on_to_where_an_uninterrupted_run_ends(folder: Path) -> None:
    options = ("--lam", "0,0.4", "--draws", "10")
    banel("fit", "pairs:fine", *options, "--steps", "20", "--out", "whole")
    banel("fit", "pairs:fine", *options, "--steps", "10", "--out", "parts")
    assert banel("fit", "pairs:fine", *options, "--steps", "20", "--out", "parts", "--resume").code == 0
    whole, parts = (
        torch.load(folder / name / "lam=0.4" / "state.pt", weights_only=True) for name in ("whole", "parts")
    )
    assert whole["step"] == parts["step"] == 20
    assert all(torch.equal(whole["params"][name], parts["params"][name]) for name in whole["params"])


def test_resume_of_runs_that_ended_trains_nothing(folder: Path) -> None:
    command = ("fit", "pairs:fine", "--lam", "0", "--steps", "20", "--draws", "10", "--out", "runs")
    first = banel(*command)
    state = folder / "runs" / "lam=0" / "state.pt"
    before = state.stat().st_mtime_ns
    assert banel(*command, "--resume").out == first.out
    assert state.stat().st_mtime_ns == before


def test_the_page_holds_the_command_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["fit", "pairs:fine", "--lam", "0", "--steps", "5", "--draws", "5", "--out", "runs"]
    monkeypatch.setattr(sys, "argv", ["banel", *command])
    banel(*command)
    monkeypatch.setattr(sys, "argv", ["banel", *command, "--resume"])
    banel(*command, "--resume")
    assert (folder / "runs" / "report.html").read_text().count(f"banel {' '.join(command)}") == 1


def test_help_and_version() -> None:
    assert re.fullmatch(r"banel \d+\.\d+\.\d+\n", banel("--version").out)
    assert banel("--help").out == banel().out
    for option in (
        "--lam",
        "--steps",
        "--epochs",
        "--batch-size",
        "--lr",
        "--seed",
        "--out",
        "--resume",
        "--draws",
        "--quiet",
    ):
        assert option in banel("fit", "--help").out


def test_a_process_outside_a_checkout_says_in_one_line_what_a_pair_is(folder: Path) -> None:
    """As a user's shell runs it: standard error has one line, and no warning of another library."""
    code = "from banel_pyro.cli import main; main()"
    command = [sys.executable, "-W", "error", "-c", code, "fit", "nowhere.at_all:pair"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (2, "")
    assert re.fullmatch(r"error: pair 'nowhere.at_all:pair': no module .* A pair is a function .*\n", run.stderr)


# What it refuses


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["pairs:fine", "--lam", "0,tau=0.4"], r"lam .*\['tau'\].*\['mu'\]"),
        (["pairs:fine", "--lam", "0,1"], r"lam=1.* site 'mu'.*lam < 1"),
        (["pairs:nan_data"], r"data has NaN or inf in 1 of 20 rows.*row 19.*Drop"),
        (["pairs:empty_data"], r"data has no rows.*\(0,\).*at least one"),
        (["pairs:fine", "--batch-size", "21"], r"batch_size=21.*20 rows.*at most 20"),
        (["pairs:lengths_differ"], r"lengths \[20, 19\].*common leading axis"),
        (["pairs:integer_images"], r"uint8.*float"),
        (["pairs"], r"pair 'pairs': expected module:attribute, such as models.vae:digits"),
        (["nowhere:pair"], r"pair 'nowhere:pair': no module 'nowhere' in .*A pair is a function"),
        (["pairs:nothing"], r"module 'pairs' has no attribute 'nothing'"),
        (["pairs:constant"], r"pair 'pairs:constant' is a int: expected a function"),
        (["pairs:not_a_pair"], r"pair 'pairs:not_a_pair' returned a function: expected a banel_pyro.Pair"),
        (["pairs:with_argument"], r"pair 'pairs:with_argument' cannot be called without arguments"),
        (["pairs:missing_data"], r"'no-such-set'.*BANEL_DATA"),
        (["pairs:joint_guide", "--batch-size", "5"], r"AutoMultivariateNormal.*AutoNormal"),
        (["pairs:no_plate", "--batch-size", "5"], r"minibatches of 5 of 20 rows need a plate.*plate\('data', 20\)"),
        (["pairs:own_rows", "--batch-size", "5"], r"plate 'data' has a subsample= of its own.*plate\('data', 20\)"),
        (["pairs:other_sites"], r"(?=.*'mu')(?=.*'nu')"),
        (["pairs:other_shapes"], r"shape at site 'mu': \(\) in the model, \(3,\) in the guide"),
        (["pairs:fine", "--lam", "0,a lot"], r"--lam='0,a lot': cannot read 'a lot'.*0,0.4"),
        (["pairs:fine", "--lam", "0.4,0,0.40"], r"0.4 is there twice"),
        (["pairs:fine", "--lam", "nan"], r"nan.*finite"),
        (["pairs:fine", "--batch-size", "some"], r"--batch-size='some': expected a number of rows, or all"),
        (["pairs:fine", "--draws", "1"], r"--draws=1: expected at least 2"),
        (["pairs:fine", "--epochs", "1", "--steps", "1"], r"epochs=1, steps=1.*exactly one"),
        (["pairs:fine", "--lr", "-1"], r"lr=-1.0.*positive"),
        (["pairs:fine", "--steps", "many"], r"--steps"),
        (["pairs:fine", "--colour", "red"], r"--colour"),
        (["pairs:broken"], r"NameError: .*undefined_name.*--debug shows where"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_input_ends_with_one_line(arguments: list[str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BANEL_DATA", raising=False)
    assert re.search(expected, refused("fit", *arguments, "--out", "runs"))


def test_nothing_is_trained_when_the_last_lam_is_wrong(folder: Path) -> None:
    refused("fit", "pairs:fine", "--lam", "0,1.5", "--out", "runs")
    assert not (folder / "runs").exists()


def test_a_folder_that_holds_something_else_is_refused(folder: Path) -> None:
    command = ("fit", "pairs:fine", "--lam", "0", "--steps", "5", "--draws", "5", "--out", "runs")
    assert banel(*command).code == 0
    assert re.search(r"already holds lam=0: .*--resume", refused(*command))
    assert re.search(r"another run \(seed: 0 there, 1 here\)", refused(*command, "--seed", "1", "--resume"))
    assert re.search(r"is itself a run", refused(*command[:-1], "runs/lam=0"))
    assert re.search(r"is a file", refused(*command[:-1], "pairs.py"))
    assert re.search(r"holds other files", refused(*command[:-1], "."))


def test_the_state_of_another_pair_or_version_is_refused(folder: Path) -> None:
    command = ("fit", "pairs:fine", "--lam", "0", "--steps", "5", "--draws", "5", "--out", "runs")
    banel(*command)
    other = [word.replace("pairs:fine", "pairs:wider") for word in command]
    assert re.search(r"another pair|shape", refused(*other, "--resume"))
    file = folder / "runs" / "lam=0" / "state.pt"
    state = torch.load(file, weights_only=True)
    torch.save({**state, "format": 99}, file)
    assert re.search(r"state of format 99, this version reads format 3", refused(*command, "--resume"))
    file.write_bytes(b"no state")
    (file.parent / "state.before.pt").unlink()
    assert re.search(r"state.pt' cannot be read as a state", refused(*command, "--resume"))
    config = folder / "runs" / "lam=0" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"format": 99}))
    assert re.search(r"run of format 99", refused(*command, "--resume"))
    assert re.search(r"run of format 99", refused("report", "runs"))


def test_report_refuses_what_is_no_run(folder: Path) -> None:
    (folder / "empty").mkdir()
    assert re.search(r"'nowhere' is no folder", refused("report", "nowhere"))
    assert re.search(r"'empty' holds no run: expected config.json", refused("report", "empty"))


def test_an_error_in_training_says_where_the_results_are(folder: Path) -> None:
    """With lr = 1e6 the second run ends in numbers that are not finite, after the first has ended well."""
    options = ("fit", "pairs:fine", "--steps", "200", "--draws", "5", "--out", "runs")
    assert banel(*options, "--lam", "0").code == 0
    line = refused(*options, "--lam", "0.4", "--lr", "1e6")
    assert re.search(r"step \d+: .*not finite.* Results so far are in runs: lam=0 ended, `banel report runs`", line)
    assert banel("report", "runs").code == 0


def test_interrupting_is_no_error() -> None:
    found = banel("fit", "pairs:interrupted", "--out", "runs")
    assert (found.code, found.err) == (130, "stopped. The same command with --resume goes on.\n")


def test_ctrl_c_ends_the_step_and_the_command_can_go_on(folder: Path) -> None:
    command = ("fit", "pairs:pressed", "--lam", "0,0.4", "--steps", "100", "--draws", "5", "--out", "runs")
    found = banel(*command)
    assert found.code == 130
    assert found.err.endswith("stopped. The same command with --resume goes on.\n")
    assert (folder / "runs" / "lam=0" / "state.pt").exists()
    assert not (folder / "runs" / "lam=0.4").exists()


def test_a_run_in_float64(folder: Path) -> None:
    options = ("--steps", "5", "--draws", "5", "--out", "runs", "--dtype", "float64")
    assert banel("fit", "pairs:fine", *options).code == 0
    assert json.loads((folder / "runs" / "lam=0" / "config.json").read_text())["dtype"] == "float64"
    assert "dtype='double': expected" in refused("fit", "pairs:fine", "--dtype", "double")


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(NameError):
        main(["fit", "pairs:broken", "--out", "runs", "--debug"])


def test_steps_are_captured_on_request(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("banel_pyro.capture.graphs.has_compiler", lambda: False)
    options = ("--steps", "30", "--draws", "5", "--quiet")
    for capture in ("yes", "no"):
        assert banel("fit", "pairs:fine", *options, "--capture", capture, "--out", capture).code == 0
    states = [torch.load(folder / name / "lam=0" / "state.pt", weights_only=True) for name in ("yes", "no")]
    assert states[0]["capture"]["on"]
    assert states[1]["capture"] is None
    for name, value in states[0]["params"].items():
        torch.testing.assert_close(value, states[1]["params"][name])
    assert "--capture='maybe': expected auto, yes or no" in refused("fit", "pairs:fine", "--capture", "maybe")
