"""Checkpoints: whatever happens to one, the run goes on from a state that is whole, to where it would have ended."""

import contextlib
import errno
import logging
import os
import random
import re
import signal
import subprocess
import sys
import time
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch.optim import lr_scheduler

from banel_pyro import FitResult, TargetEntropy
from banel_pyro.checkpoint import BEFORE, NEWEST, read_checkpoint, write_checkpoint
from banel_pyro.folder import FORMAT, RunFolder
from tests.test_resume import ROOT, Stop, differing, functions, outcome, train

STATES: list[dict[str, Any]] = [{"step": step, "weights": torch.full((300,), float(step))} for step in range(3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two checkpoints; the first of three is gone."""
    for state in STATES:
        write_checkpoint(tmp_path, state, FORMAT)
    return tmp_path


def step_of(folder: Path) -> int:
    state = read_checkpoint(folder, FORMAT)
    assert torch.equal(state["weights"], STATES[state["step"]]["weights"]), "what is read is what was written"
    return int(state["step"])


def test_the_last_two_are_kept(folder: Path) -> None:
    assert sorted(file.name for file in folder.iterdir()) == sorted([NEWEST, BEFORE])
    assert step_of(folder) == 2
    (folder / NEWEST).unlink()
    assert step_of(folder) == 1


def test_a_long_run_with_kept_states_is_read(tmp_path: Path) -> None:
    """Their histories share rows: unfolded they have 1.4 million parts, on the disk far fewer."""
    rows = [{f"column {i}": step + i / 7 for i in range(20)} for step in range(5000)]
    kept = [{"history": list(rows)} for _ in range(6)]
    write_checkpoint(tmp_path, {"history": rows, "kept": kept}, FORMAT)
    found = read_checkpoint(tmp_path, FORMAT)
    assert found["history"] == rows
    assert all(old["history"][-1] is found["history"][-1] for old in found["kept"])


@pytest.mark.parametrize("seed", range(40))
def test_a_torn_or_changed_file_is_noticed_and_named(folder: Path, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    """Cut anywhere, or a bit flipped anywhere: it is the state that was written, or the one before it is taken."""
    draw, whole = random.Random(seed), (folder / NEWEST).read_bytes()
    if seed % 2:
        torn = whole[: draw.randrange(len(whole))]
    else:
        at = draw.randrange(len(whole))
        torn = whole[:at] + bytes([whole[at] ^ (1 << draw.randrange(8))]) + whole[at + 1 :]
    (folder / NEWEST).write_bytes(torn)
    found = step_of(folder)
    assert found in (1, 2)
    assert (found == 1) == bool(re.search(r"state.pt' cannot .*damaged. The run goes on from .*step 1", caplog.text))
    assert not (found == 2 and seed % 2), "a file that was cut is not whole"


def test_a_flipped_bit_of_a_number_is_noticed(folder: Path) -> None:
    whole = bytearray((folder / NEWEST).read_bytes())
    at = whole.find(STATES[2]["weights"].numpy().tobytes())
    assert at > 0
    whole[at + 7] ^= 1
    (folder / NEWEST).write_bytes(whole)
    assert step_of(folder) == 1


@pytest.mark.parametrize("renames", [0, 1])
def test_a_damaged_one_does_not_take_the_place_of_a_good_one(
    folder: Path, renames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine stops again, while the next one is written over the damaged one."""
    (folder / NEWEST).write_bytes(b"torn")
    stop_after(renames, monkeypatch)
    with contextlib.suppress(KeyboardInterrupt):
        write_checkpoint(folder, STATES[2], FORMAT)
    assert step_of(folder) == renames + 1


def stop_after(renames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the program at the rename after so many."""
    replace, done = os.replace, []

    def stopping(*names: Any) -> None:
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(names)
        replace(*names)

    monkeypatch.setattr(os, "replace", stopping)


@pytest.mark.parametrize("renames", [0, 1])
def test_a_stop_between_the_renames_loses_nothing(folder: Path, renames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(renames, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(folder, {"step": 0, "weights": STATES[0]["weights"]}, FORMAT)
    assert step_of(folder) == 2


def test_a_run_goes_on_from_the_one_before_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pyro.get_param_store().scope(), pytest.raises(Stop):
        train("functions", tmp_path / "run", stop=12)  # with states of steps 5 and 10
    (tmp_path / "run" / NEWEST).write_bytes(b"torn")
    with pyro.get_param_store().scope(), caplog.at_level(logging.WARNING, "banel_pyro"):
        resumed = outcome(train("functions", tmp_path / "run", resume=True))
    assert "goes on from the state before it, of step 5" in caplog.text
    with pyro.get_param_store().scope():
        assert differing(resumed, outcome(train("functions", None))) == []


def test_a_full_disk_ends_the_run_with_its_state_saved_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, elsewhere = torch.save, tmp_path / "elsewhere"
    elsewhere.mkdir()

    def full(state: Any, file: Any) -> None:
        if state["step"] == 10 and Path(file).is_relative_to(tmp_path / "run"):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, file)

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    with pyro.get_param_store().scope(), pytest.raises(OSError, match=r"after step 10 cannot be .*No space") as said:
        train("functions", tmp_path / "run")
    (place,) = elsewhere.iterdir()
    assert f"go on with out='{place}' and resume=True" in str(said.value)
    with pyro.get_param_store().scope():
        resumed = outcome(train("functions", place, resume=True))
    with pyro.get_param_store().scope():
        assert differing(resumed, outcome(train("functions", None))) == []
    assert read_checkpoint(tmp_path / "run", FORMAT)["step"] == 5, "the folder is as it was"


def test_nowhere_to_save_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(state: Any, file: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pyro.get_param_store().scope(), pytest.raises(OSError, match="nothing could be written elsewhere either"):
        train("functions", tmp_path / "run")


# ---- hostile files ----------------------------------------------------------------------------------------------


class Command:
    """What a pickle would run."""

    def __reduce__(self) -> Any:
        return os.system, ("touch hostile",)


def test_a_pickle_that_would_run_a_command_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": FORMAT, "step": Command()}, tmp_path / NEWEST)
    with pytest.raises(ValueError, match=r"cannot be read as a state .*damaged"):
        read_checkpoint(tmp_path, FORMAT)
    assert not (tmp_path / "hostile").exists()


def test_a_file_that_grows_when_it_is_read_is_refused(folder: Path) -> None:
    """Ten megabytes of zeros in ten kilobytes; torch's own files are stored as they are."""
    (folder / BEFORE).unlink()
    with zipfile.ZipFile(folder / NEWEST) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder / NEWEST, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part if "data/0" not in name else bytes(10**7))
    with pytest.raises(ValueError, match="it is compressed"):
        read_checkpoint(folder, FORMAT)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02.", b"{}", bytes(100)])
def test_what_is_no_state_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NEWEST).write_bytes(content)
    with pytest.raises(ValueError, match=r"state.pt' cannot be read as a state .*damaged"):
        read_checkpoint(tmp_path, FORMAT)


def test_what_is_no_mapping_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / NEWEST)
    with pytest.raises(ValueError, match="it holds a list"):
        read_checkpoint(tmp_path, FORMAT)


QUICK: dict[str, Any] = {
    "steps": 3, "lr": 0.01, "lam": 0.1, "seed": 5, "log_every": 1, "posterior_samples": 0, "progress": False,
}  # fmt: skip
NUMPY: dict[str, dict[str, Any]] = {
    "lr": {"lr": np.logspace(-3, -1, 3)[1]},
    "optimiser": {"optim": partial(torch.optim.SGD, lr=np.float32(0.01), momentum=np.float64(0.5)), "lr": None},
    "scheduler": {"lr_scheduler": lambda o: lr_scheduler.MultiStepLR(o, np.array([2, 4]), gamma=np.float64(0.5))},  # type: ignore[arg-type]
    "lam": {"lam": lambda step, last_terms: np.float64(0.1)},
    "lam of a site": {"lam": lambda step, last_terms: {"a": np.float64(0.1)}},
    "target": {"lam": TargetEntropy(0.5, start=np.float64(0.2), lam_max=np.float64(0.2))},
}


@pytest.mark.parametrize("name", NUMPY)
def test_numbers_of_numpy_are_saved_as_numbers(name: str, tmp_path: Path) -> None:
    """As a state may name no code, it could not be read with them."""
    options = QUICK | NUMPY[name]
    for steps in (3, 6):
        with pyro.get_param_store().scope():
            found = functions().fit(**options | {"steps": steps}, out=tmp_path, resume=steps == 6)
        RunFolder(tmp_path).read_state()
    assert found.history["step"].tolist() == [1, 2, 3, 4, 5, 6]


def test_a_lam_that_is_a_tensor_is_a_number_in_the_history(tmp_path: Path) -> None:
    for lam, column in ((torch.tensor(0.25), "lam"), ({"a": torch.tensor(0.25)}, "lam[a]")):
        with pyro.get_param_store().scope():
            functions().fit(**QUICK | {"lam": lambda step, last_terms, lam=lam: lam}, out=tmp_path / column)
        assert RunFolder(tmp_path / column).read_history()[column].tolist() == [0.25] * 3


# ---- signals ----------------------------------------------------------------------------------------------------

SCRIPT = """
import sys, time
from pathlib import Path
from tests.test_resume import train
train("functions", Path(sys.argv[1]), callbacks=[lambda event: time.sleep(0.1)])
print("not reached")
"""


def test_sigterm_ends_the_step_saves_and_exits(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-c", SCRIPT, str(run)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=-1, stderr=-1, text=True)
    while not (run / NEWEST).exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "not reached" not in out
    assert re.search(r"interrupted after step \d+ of 14: the same call with resume=True goes on", said)
    with pyro.get_param_store().scope():
        assert FitResult.load(run, functions()).stopped == "interrupted"
    with pyro.get_param_store().scope():
        resumed = outcome(train("functions", run, resume=True))
    with pyro.get_param_store().scope():
        assert differing(resumed, outcome(train("functions", None))) == []
