"""A run folder: configuration, history, state, posterior and report, each file written whole or not at all."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from banel_pyro.checkpoint import has_checkpoint, read_checkpoint, write_checkpoint, write_whole
from banel_pyro.checks import instance, seed_number
from banel_pyro.inference_data import ArviZ, arviz_version, read_netcdf, write_netcdf
from banel_pyro.reading import Field, check_fields, one_of, plain_file, read_json
from banel_pyro.seeding import draw_seed
from banel_pyro.states import check_state

__all__ = ["FORMAT", "RunFolder", "run_seed", "versions"]

FORMAT = 3
"""Version of the run folder. A folder of another version is refused."""

MOST_HISTORY = 2**30
"""Bytes of a history above which it is not read."""


def versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on."""
    names = ("banel_pyro", "pyro-ppl", "torch", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}, **arviz_version()}


@dataclass(frozen=True)
class RunFolder:
    """A folder with ``config.json, history.csv, state.pt, state.before.pt, posterior.nc, report.html``.

    Files are written aside and renamed, so that a stop leaves the old file or the new one.

    Args:
        path: the folder.
    """

    path: Path

    @staticmethod
    def at(out: str | os.PathLike[str] | None, *, resume: bool) -> RunFolder | None:
        """The folder that ``fit`` was asked to write to, or None."""
        if out is None and resume:
            raise ValueError(
                "resume=True, but out=None: there is no run to go on with. Name its folder: out='runs/mine'."
            )
        instance("out", out, (str, os.PathLike, type(None)), "the path of a folder. Write out='runs/mine'")
        return None if out is None else RunFolder(Path(out))

    def find_state(self, config: dict[str, Any], *, resume: bool) -> dict[str, Any] | None:
        """The state to go on from, or None for a new run. Writes nothing.

        Raises:
            ValueError: if the folder holds another run, one that is further on, any run without ``resume``, or other
                files.
        """
        if not (self.path / "config.json").exists():
            if self.path.exists() and (not self.path.is_dir() or any(map(_is_foreign, self.path.iterdir()))):
                raise ValueError(f"out='{self.path}' exists and is no run folder: choose a new or an empty folder.")
            return None
        if not resume:
            raise ValueError(
                f"out='{self.path}' already holds a run: choose another folder, or pass resume=True to go on with it."
            )
        _refuse_other_run(self.path, self.read_config(), config)
        state = self.read_state() if has_checkpoint(self.path) else None
        if state is not None and state["step"] > config["steps"]:
            raise ValueError(
                f"steps={config['steps']}, but the run in out='{self.path}' has already done {state['step']}. Ask for "
                "more, or choose another folder."
            )
        return state

    def claim(self, config: dict[str, Any]) -> None:
        """Write the configuration, with the folder if need be."""
        if (self.path / "config.json").exists():
            config = config | {"created": self.read_config().get("created")}
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_json("config.json", config)

    def is_finished(self, config: dict[str, Any]) -> bool:
        """Whether the posterior and report that a run ends with are there, as ``config`` asks for them."""
        asked = self.read_config().get("posterior_samples") == config["posterior_samples"]
        files = ("posterior.nc", "report.html") if config["posterior_samples"] else ()
        return asked and all((self.path / name).exists() for name in files)

    def read_config(self) -> dict[str, Any]:
        """The configuration.

        Raises:
            ValueError: if the folder holds no run, or one of another version.
        """
        file = self.path / "config.json"
        try:
            config = read_json(file)
        except FileNotFoundError as error:
            raise ValueError(f"'{self.path}' is no run folder: it has no config.json.") from error
        check_fields(f"'{file}'", config, {})
        found = config.get("format")
        if type(found) is not int or found != FORMAT:
            versions = config.get("versions")
            wrote = versions.get("banel_pyro") if isinstance(versions, dict) else None
            raise ValueError(
                f"'{self.path}' is a run of format {found!r}, this version reads format {FORMAT}. Use the version that "
                f"wrote it: {wrote or 'unknown'}."
            )
        check_fields(f"'{file}'", config, _FIELDS)
        return dict(config)

    def read_state(self) -> dict[str, Any]:
        """The last checkpoint that is not damaged. Loads tensors and numbers only, never code.

        Raises:
            ValueError: if there is none, or it is of another version.
        """
        return read_checkpoint(self.path, FORMAT, check_state)

    def write_state(self, state: dict[str, Any], history: pd.DataFrame) -> None:
        """Write a checkpoint, and the history up to it.

        Raises:
            OSError: if that fails, as on a full disk: in words, with the place where the state has been saved instead.
        """
        try:
            self._write_state(state, history)
        except OSError as error:
            place = self._rescued(state, history)
            instead = "nothing could be written elsewhere either: the folder has the state of the checkpoint before"
            if place is not None:
                instead = f"its state is saved in '{place}': make room, and go on with out='{place}' and resume=True"
            raise OSError(
                f"the checkpoint after step {state['step']} cannot be written to '{self.path}' ({error}). The run has "
                f"stopped, and {instead}."
            ) from error

    def _write_state(self, state: dict[str, Any], history: pd.DataFrame) -> None:
        write_checkpoint(self.path, state, FORMAT)
        self._replace("history.csv", lambda file: history.to_csv(file, index=False))

    def _rescued(self, state: dict[str, Any], history: pd.DataFrame) -> Path | None:
        """A run folder with this state where temporary files go; None if it cannot be written there."""
        try:
            place = RunFolder(Path(tempfile.mkdtemp(prefix=f"{self.path.name}-")))
            place.claim(self.read_config())
            place._write_state(state, history)
        except (OSError, ValueError):
            return None
        return place.path

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file."""
        self._replace(name, lambda file: file.write_text(json.dumps(content, indent=2) + "\n"))

    def write_posterior(self, idata: ArviZ) -> None:
        """Write the posterior as netCDF."""
        self._replace("posterior.nc", lambda file: write_netcdf(idata, file))

    def read_posterior(self) -> ArviZ:
        """The posterior that :meth:`write_posterior` wrote, in memory."""
        try:
            return read_netcdf(self.path / "posterior.nc")
        except FileNotFoundError as error:
            raise ValueError(
                f"'{self.path}' has no posterior.nc: the run did not end, or posterior_samples was 0."
            ) from error

    def read_history(self) -> pd.DataFrame:
        """The history that :meth:`write_state` wrote, a row per log point."""
        file = self.path / "history.csv"
        try:
            history = pd.read_csv(plain_file(file, most=MOST_HISTORY))
        except pd.errors.EmptyDataError:  # a run that was stopped before its first log point
            return pd.DataFrame()
        except FileNotFoundError as error:
            raise ValueError(
                f"'{self.path}' has no history.csv: the run stopped before its first checkpoint."
            ) from error
        except (UnicodeDecodeError, pd.errors.ParserError) as error:
            raise ValueError(f"'{file}' is no table of numbers ({error}): the file is damaged.") from error
        texts = [str(name) for name, column in history.items() if not pd.api.types.is_numeric_dtype(column)]
        if texts or "step" not in history or history["step"].isna().any():
            raise ValueError(
                f"'{file}' has columns {list(history)[:20]}, of which {texts[:20]} hold no numbers: expected numbers, "
                "and 'step' among them. The file is damaged."
            )
        return history

    def write_report(self, html: str) -> None:
        """Write the page."""
        self._replace("report.html", lambda file: file.write_text(html, encoding="utf-8"))

    def _replace(self, name: str, write: Callable[[Path], Any]) -> None:
        write_whole(self.path / name, write)


def _is_foreign(file: Path) -> bool:
    """Whether a file is not what a write that was cut short leaves behind."""
    return not (file.name.startswith(".") and file.name.endswith(".partial"))


def run_seed(seed: Any, folder: RunFolder | None, *, resume: bool) -> int:
    """The seed of a run: as asked for, else that of the run to be resumed, else drawn from torch's generator.

    Raises:
        TypeError, ValueError: if it is no seed.
    """
    if seed is not None:
        return seed_number(seed)
    if folder is not None and resume and (folder.path / "config.json").exists():
        return int(folder.read_config()["seed"])
    return draw_seed()


def _is_count(least: int) -> Field:
    return (lambda value: type(value) is int and value >= least), f"a whole number, {least} or more"


def _or_none(field: Field) -> Field:
    return (lambda value: value is None or field[0](value)), f"{field[1]}, or null"


_TEXT: Field = (lambda value: isinstance(value, str)), "a text"
_MAPPING: Field = (lambda value: isinstance(value, dict)), "a mapping"
_SEED: Field = (lambda value: type(value) is int and 0 <= value < 2**32), "a whole number from 0 to 2³² − 1"
_FIELDS: dict[str, Field] = {
    **dict.fromkeys(("name", "data", "objective", "optim"), _TEXT),
    **dict.fromkeys(("lam", "versions"), _MAPPING),
    **dict.fromkeys(("steps", "steps_per_epoch", "log_every", "checkpoint_every"), _is_count(1)),
    **dict.fromkeys(("num_data", "posterior_samples"), _is_count(0)),
    **dict.fromkeys(("dtype", "default_dtype"), one_of(None, "float32", "float64")),
    "batch_size": _or_none(_is_count(1)),
    "data_plate": _or_none(_TEXT),
    "lr": _or_none((lambda value: type(value) in (int, float) and value > 0, "a positive number")),
    "per": one_of("datum", "total"),
    "seed": _SEED,
}
"""Of a configuration, what is read again."""

_MAY_DIFFER = {
    "steps",
    "epochs",
    "versions",
    "created",
    "threads",
    "capture",
    "steps_per_call",
    "on_fault",
    "log_every",
    "validate_every",
    "checkpoint_every",
    "posterior_samples",
}


def _refuse_other_run(path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    keys = sorted((old.keys() | new.keys()) - _MAY_DIFFER)
    different = [
        f"{key}: {old.get(key)!r} there, {new.get(key)!r} here" for key in keys if old.get(key) != new.get(key)
    ]
    if different:
        raise ValueError(f"out='{path}' holds another run ({'; '.join(different)}). Choose another folder.")
