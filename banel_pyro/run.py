"""A run and its folder: configuration, history, state, posterior and report."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import arviz as az
import pandas as pd
import torch

from banel_pyro.batches import DataPlate, Rows, as_rows
from banel_pyro.inference_data import posterior_of_rows
from banel_pyro.pair import Pair
from banel_pyro.seeding import fork_rng
from banel_pyro.training.parameters import Parameters, safe_constraints
from banel_pyro.training.preflight import preflight

__all__ = ["FORMAT", "FitResult", "RunFolder", "versions"]

FORMAT = 1
"""Version of the run folder. A folder of another version is refused."""


def versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on."""
    names = ("banel_pyro", "pyro-ppl", "torch", "numpy", "arviz")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


@dataclass(frozen=True)
class RunFolder:
    """A folder with ``config.json, history.csv, state.pt, posterior.nc, report.html``.

    Files are written aside and renamed, so that a stop leaves the old file or the new one.

    Args:
        path: the folder.
    """

    path: Path

    def open(self, config: dict[str, Any], *, resume: bool) -> dict[str, Any] | None:
        """Make the folder, or go on with the run that is in it.

        Returns:
            The saved state to go on from, or None for a new run.

        Raises:
            ValueError: if the folder holds another run, or ``resume`` is False and it holds any.
        """
        file = self.path / "config.json"
        if not file.exists():
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise ValueError(f"out='{self.path}' exists and is no run folder: choose a new or an empty folder.")
            self.path.mkdir(parents=True, exist_ok=True)
            self.write_json("config.json", config)
            return None
        if not resume:
            raise ValueError(
                f"out='{self.path}' already holds a run: choose another folder, or pass resume=True to go on with it."
            )
        _refuse_other_run(self.path, self.read_config(), config)
        state = self.read_state() if (self.path / "state.pt").exists() else None
        self.write_json("config.json", config)
        return state

    def read_config(self) -> dict[str, Any]:
        """The configuration.

        Raises:
            ValueError: if the folder holds no run, or one of another version.
        """
        try:
            config: dict[str, Any] = json.loads((self.path / "config.json").read_text())
        except FileNotFoundError as error:
            raise ValueError(f"'{self.path}' is no run folder: it has no config.json.") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"'{self.path / 'config.json'}' is not JSON ({error}): the file is damaged.") from error
        if config.get("format") != FORMAT:
            raise ValueError(
                f"'{self.path}' is a run of format {config.get('format')!r}, this version reads format {FORMAT}. Use the version "
                f"that wrote it: {config.get('versions', {}).get('banel_pyro', 'unknown')}."
            )
        return config

    def read_state(self) -> dict[str, Any]:
        """The last checkpoint. Loads tensors and numbers only, never code."""
        file = self.path / "state.pt"
        try:
            with torch.serialization.safe_globals(list(safe_constraints())):
                state: dict[str, Any] = torch.load(file, weights_only=True)
        except FileNotFoundError as error:
            raise ValueError(f"'{self.path}' has no state.pt: the run stopped before its first checkpoint.") from error
        except Exception as error:  # torch raises many kinds for a damaged or hostile file
            raise ValueError(
                f"'{file}' cannot be read as a state ({type(error).__name__}): the file is damaged."
            ) from error
        if state.get("format") != FORMAT:
            raise ValueError(
                f"'{file}' is a state of format {state.get('format')!r}, this version reads format {FORMAT}."
            )
        return state

    def write_state(self, state: dict[str, Any], history: pd.DataFrame) -> None:
        """Write a checkpoint and the history up to it."""
        self._replace("state.pt", lambda file: torch.save({"format": FORMAT, **state}, file))
        self._replace("history.csv", lambda file: history.to_csv(file, index=False))

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file."""
        self._replace(name, lambda file: file.write_text(json.dumps(content, indent=2) + "\n"))

    def write_posterior(self, idata: az.InferenceData) -> None:
        """Write the posterior as netCDF."""
        self._replace("posterior.nc", lambda file: idata.to_netcdf(str(file)))

    def read_posterior(self) -> az.InferenceData:
        """The posterior that :meth:`write_posterior` wrote, in memory."""
        file = self.path / "posterior.nc"
        if not file.exists():
            raise ValueError(f"'{self.path}' has no posterior.nc: the run did not end, or posterior_samples was 0.")
        with az.from_netcdf(str(file)) as idata:
            return idata.copy()

    def write_report(self, html: str) -> None:
        """Write the page."""
        self._replace("report.html", lambda file: file.write_text(html, encoding="utf-8"))

    def _replace(self, name: str, write: Callable[[Path], Any]) -> None:
        aside = self.path / f".{name}.partial"
        write(aside)
        os.replace(aside, self.path / name)


_MAY_DIFFER = {
    "steps",
    "epochs",
    "versions",
    "created",
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


@dataclass
class FitResult:
    """A trained pair, with its history and what made it.

    Args:
        model: the model.
        guide: the guide.
        config: options, seed, data hash and versions.
        history: a row per log point: ``log_likelihood, kl, entropy, penalty, elbo, loss`` in nats (per
            datum if ``config["per"] == "datum"``, averages since the last log point), ``lam``,
            ``grad_norm`` of the totals, ``seconds``, ``entropy[site]``, and ``val_elbo`` where it was evaluated.
        plate: the data plate.
        rows: the training data.
        held_out: data that were not trained on, or nothing.
        folder: the run folder, or None.
    """

    model: Any
    guide: Any
    config: dict[str, Any]
    history: pd.DataFrame
    plate: DataPlate
    rows: Rows
    held_out: Rows = ()
    folder: Path | None = None

    def posterior(
        self,
        data: Any = None,
        *,
        num_samples: int = 1000,
        groups: Sequence[str] = ("posterior", "sample_stats", "prior"),
        batch_size: int | None = None,
        coords: Mapping[str, Sequence[Any]] | None = None,
        seed: int | None = None,
    ) -> az.InferenceData:
        """Draws as an ArviZ object; arguments as for :func:`~banel_pyro.to_arviz`.

        Args:
            data: rows to condition on, the training data by default.
            num_samples: draws.
            groups: groups to fill.
            batch_size: rows in memory at a time.
            coords: coordinates of plates.
            seed: seed of the draws, the run's own by default.
        """
        rows = self.rows if data is None else as_rows(data)
        with fork_rng(self.config["seed"] if seed is None else seed):
            return posterior_of_rows(
                self.model,
                self.guide,
                rows,
                self.plate,
                num_samples=num_samples,
                groups=groups,
                batch_size=batch_size,
                coords=coords,
                attrs={
                    "lam": json.dumps(self.config["lam"]),
                    "objective": self.config["objective"],
                    "seed": self.config["seed"],
                },
            )

    @staticmethod
    def load(folder: str | os.PathLike[str], pair: Pair) -> FitResult:
        """A run from its folder, with the parameters put into a fresh pair and the current param store.

        Args:
            folder: the run folder.
            pair: the pair it was trained on; its data say how it is called.

        Raises:
            ValueError: if the folder holds no run, or the state is of another pair or version.
        """
        run = RunFolder(Path(folder))
        config, state = run.read_config(), run.read_state()
        split = pair.split()
        rows = as_rows(split.train)
        parameters = Parameters(pair.model, pair.guide, torch.optim.SGD, {"lr": 0.0})
        size = len(rows[0]) if rows else 0
        with fork_rng(config["seed"]):
            first = split.first(rows, config["batch_size"] or size)
            plate, _ = preflight(pair.model, pair.guide, first, size, config["data_plate"], parameters)
        parameters.load({**state, "optimizer": None})
        history = pd.DataFrame(state["history"])
        return FitResult(pair.model, pair.guide, config, history, plate, rows, as_rows(split.held_out), run.path)
