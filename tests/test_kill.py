"""kill -9 at random moments of a run of the digits: the resumed run is the uninterrupted one, bit for bit."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from banel_pyro.checkpoint import BEFORE, NEWEST, read_checkpoint
from banel_pyro.folder import FORMAT
from tests.kill_script import EVERY, PHASES, STEPS, Kill, arguments
from tests.killing import run_script

DRAW = random.Random(20)
ANYWHERE, IN_A_CHECKPOINT, CAPTURED = 18, len(PHASES), 2
"""25 kills in all."""


def at_random(capture: bool = False, **more: Any) -> Kill:
    """After one of the log points, and up to the time of five steps later."""
    return Kill(5 * DRAW.randint(1, (STEPS - 20) // 5), DRAW.uniform(0.0, 0.015), capture=capture, **more)


KILLS: dict[str, Kill] = {f"anywhere {i}": at_random() for i in range(ANYWHERE - 1)}
KILLS["four times"] = Kill(25, 0.004, again=(50, 65, 110))
KILLS |= {phase: Kill(EVERY * DRAW.randint(2, STEPS // EVERY - 1), phase=phase) for phase in PHASES}
COMPILED: dict[str, Kill] = {f"captured {i}": at_random(capture=True) for i in range(CAPTURED)}


def run(root: Path, kills: Mapping[str, Kill]) -> dict[str, Any]:
    """Kill and resume in a process of its own; what was found, by kill."""
    found: dict[str, Any] = run_script("kill_script", *arguments(root, dict(kills)))
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def found(root: Path) -> dict[str, Any]:
    return run(root, KILLS)


def differences(one: Any, other: Any, where: str = "state") -> list[str]:
    """Where two states differ in a bit; the seconds that they took do not count."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = [key for key in one | other if key != "seconds"]
        missing = [f"{where}.{key}" for key in keys if key not in one or key not in other]
        both = [key for key in keys if key in one and key in other]
        return missing + [d for key in both for d in differences(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, list | tuple) and type(one) is type(other):
        if len(one) != len(other):
            return [f"{where}: {len(one)} and {len(other)} items"]
        return [d for i, pair in enumerate(zip(one, other, strict=True)) for d in differences(*pair, f"{where}[{i}]")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and np.array_equal(one.numpy(), other.numpy(), equal_nan=True)
    else:
        same = type(one) is type(other) and (one == other or (one != one and other != other))
    return [] if same else [where]


def check_same(folder: Path, whole: Path) -> None:
    """All that a run ends with: parameters, optimiser, generators, running sums, history, files."""
    states = [read_checkpoint(path, FORMAT) for path in (whole, folder)]
    assert states[0]["step"] == STEPS
    assert {"params", "modules", "optimizer", "rng", "history"} <= states[0].keys()
    assert differences(*states) == []
    expected, history = (pd.read_csv(path / "history.csv").drop(columns="seconds") for path in (whole, folder))
    pd.testing.assert_frame_equal(history, expected, check_exact=True)
    assert sorted(f.name for f in folder.iterdir()) == sorted(f.name for f in whole.iterdir())


def test_there_are_25_kills_and_5_in_a_checkpoint() -> None:
    assert len(KILLS) + len(COMPILED) == 25
    assert sum(kill.phase is not None for kill in KILLS.values()) == 5


@pytest.mark.parametrize("name", KILLS)
def test_a_run_that_was_killed_ends_as_the_uninterrupted_one(name: str, root: Path, found: dict[str, Any]) -> None:
    assert found[name]["step"] in range(0, STEPS, EVERY), "it went on from a state of a checkpoint"
    check_same(root / name, root / "whole")


@pytest.mark.parametrize("phase", PHASES)
def test_a_kill_in_a_checkpoint_leaves_what_it_should(phase: str, found: dict[str, Any]) -> None:
    """That the run was held where the phase says: by the files it left, and the step that it goes on from."""
    files, step = found[phase]["files"], found[phase]["step"]
    partial = phase in ("half of it", "not synced", "between the renames")
    assert (f".{NEWEST}.partial" in files) == partial
    assert (NEWEST in files) == (phase != "between the renames")
    assert BEFORE in files
    assert step == KILLS[phase].step - (EVERY if partial else 0)


def test_the_kills_are_not_all_at_one_place(found: dict[str, Any]) -> None:
    steps = {found[name]["step"] for name in KILLS}
    assert len(steps) >= 6


@pytest.mark.compiles
def test_captured_runs_that_were_killed(tmp_path: Path) -> None:
    run(tmp_path, COMPILED)
    for name in COMPILED:
        check_same(tmp_path / name, tmp_path / "whole, captured")
