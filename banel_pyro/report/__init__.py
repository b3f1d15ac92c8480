"""The page of a run, or of several runs side by side. It only reads what a run folder holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from banel_pyro.diagnostics.trust import Trust, trust
from banel_pyro.inference_data import ArviZ
from banel_pyro.reading import read_text
from banel_pyro.report.draws import checked_draws
from banel_pyro.report.numbers import RunNumbers, run_numbers
from banel_pyro.run import RunFolder
from banel_pyro.schedules import Constant, from_config
from banel_pyro.training.control import CONTROLLERS, Controller

__all__ = ["COMMAND", "Comparison", "Run", "lam_label", "read_comparison", "write_report", "write_run_report"]

COMMAND = "command.txt"
"""The file beside the run folders that holds the command lines which made them."""


@dataclass(frozen=True)
class Run:
    """A run that has ended, as its folder tells it.

    Args:
        label: what tells it from the other runs, such as ``λ = 0.4``.
        config: its configuration.
        history: a row per log point.
        idata: its draws.
        reference: draws that are taken for the truth, or None.
    """

    label: str
    config: dict[str, Any]
    history: pd.DataFrame
    idata: ArviZ
    reference: ArviZ | None = None

    @cached_property
    def numbers(self) -> RunNumbers:
        """What it is judged by."""
        return run_numbers(self.idata)

    @cached_property
    def trust(self) -> Trust:
        """Whether its posterior can be trusted."""
        return trust(self.idata, self.history, reference=self.reference)


@dataclass(frozen=True)
class Comparison:
    """Runs of one pair on one data set, side by side.

    Args:
        name: name of the pair.
        runs: λ = 0 first, then by λ; the others are compared with the first.
        unfinished: folders of runs that have not ended.
        command: what made them, if a command line did.
    """

    name: str
    runs: tuple[Run, ...]
    unfinished: tuple[str, ...] = ()
    command: str | None = None

    @property
    def numbers(self) -> dict[str, RunNumbers]:
        """What each run is judged by, by label."""
        return {run.label: run.numbers for run in self.runs}


def write_run_report(folder: RunFolder) -> None:
    """Write ``report.html`` into a run folder, from its other files.

    Args:
        folder: holds ``config.json``, ``history.csv`` and ``posterior.nc``.

    Raises:
        ValueError: if one of them is missing or damaged.
    """
    write_report(folder.path)


def write_report(path: Path, *, reference: ArviZ | None = None) -> Comparison:
    """Write ``report.html`` into a run folder, or into a folder of run folders, from the files alone.

    Args:
        path: the folder.
        reference: draws of the same latents that are taken for the truth, such as those of NUTS.

    Returns:
        What the page shows.

    Raises:
        ValueError: if there is no run that has ended, the runs are of different pairs or data, or the reference has
            other latents.
    """
    from banel_pyro.report.page import render  # matplotlib is heavy to import

    comparison = read_comparison(path, reference=reference)
    RunFolder(path).write_report(render(comparison))
    return comparison


def read_comparison(path: Path, *, reference: ArviZ | None = None) -> Comparison:
    """Read the run in a folder, or all runs in the folders inside it.

    Args:
        path: the folder.
        reference: draws that are taken for the truth.

    Raises:
        ValueError: if there is no run that has ended, or the runs are of different pairs or data.
    """
    inside = sorted(file.parent for file in path.glob("*/config.json"))
    folders = [RunFolder(p) for p in ([path] if (path / "config.json").exists() else inside)]
    if not folders:
        raise ValueError(f"'{path}' holds no run: expected config.json in it, or folders that have one.")
    ended = [folder for folder in folders if (folder.path / "posterior.nc").exists()]
    if not ended:
        raise ValueError(f"no run in '{path}' has ended, so there are no draws to show. Go on with --resume.")
    configs = {folder.path.name: folder.read_config() for folder in ended}
    _refuse_different_data(configs)
    labels = _labels(configs)
    order = sorted(ended, key=lambda folder: _order(configs[folder.path.name], folder.path.name))
    runs = tuple(Run(labels[f.path.name], configs[f.path.name], f.read_history(), _draws(f), reference) for f in order)
    command = path / COMMAND
    return Comparison(
        name=runs[0].config["name"] or path.resolve().name,
        runs=runs,
        unfinished=tuple(folder.path.name for folder in folders if folder not in ended),
        command=read_text(command).strip() if command.exists() else None,
    )


def _draws(folder: RunFolder) -> ArviZ:
    return checked_draws(folder.read_posterior(), folder.path / "posterior.nc")


def _refuse_different_data(configs: Mapping[str, dict[str, Any]]) -> None:
    (first, one), *others = configs.items()
    for folder, config in others:
        for key in ("name", "data"):
            if config[key] != one[key]:
                raise ValueError(
                    f"runs '{first}' and '{folder}' differ in {key} ({one[key]!r} and {config[key]!r}): a report "
                    "compares runs of one pair on one data set. Make a report of each run folder."
                )


def _labels(configs: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """A label for each run; where two have the same λ, the folder's name tells them apart."""
    labels = {folder: _label(folder, config["lam"]) for folder, config in configs.items()}
    found = list(labels.values())
    return {f: label if found.count(label) == 1 else f"{label} ({f})" for f, label in labels.items()}


def _label(folder: str, lam: Mapping[str, Any]) -> str:
    try:
        return lam_label(lam)
    except (ValueError, TypeError) as error:
        raise ValueError(f"config.json in '{folder}' has lam={lam!r:.200}, which is none ({error}).") from error


def lam_label(lam: Mapping[str, Any]) -> str:
    """A λ as a reader knows it, such as ``λ = 0.4``.

    Args:
        lam: as the configuration of a run holds it.

    Example:
        >>> from banel_pyro.schedules import to_config
        >>> lam_label(to_config(Constant(-0.5)))
        'λ = −0.5'
    """
    if "callable" in lam:
        return f"λ = {lam['callable'].rpartition('.')[2]}"
    if lam.get("class") in CONTROLLERS:
        return _target_label(Controller.from_config(lam))
    schedule = from_config(lam)
    if not isinstance(schedule, Constant):
        return f"λ = {schedule!r}"
    if isinstance(schedule.value, Mapping):
        return "λ of " + ", ".join(f"{site} = {_number(value)}" for site, value in schedule.value.items())
    return f"λ = {_number(schedule.value)}"


def _target_label(target: Controller) -> str:
    """What moves λ, such as ``λ for entropy −3``."""
    found = {"TargetEntropy": ("entropy", "nats"), "TargetRate": ("rate", "nats"), "TargetSpread": ("width", "ratio")}
    what, attribute = found[type(target).__name__]
    whole = " in all" if target.per == "total" and attribute == "nats" else ""
    return f"λ for {what} {_number(getattr(target, attribute))}{whole}"


def _number(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _order(config: dict[str, Any], folder: str) -> tuple[float, float, str]:
    value = config["lam"].get("value")
    number = float(value) if isinstance(value, int | float) else math.inf
    return (0.0 if number == 0 else 1.0, number, folder)
