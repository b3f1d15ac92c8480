r"""What a sweep keeps of each run beside the run's own files: checks, held-out predictive density, and samples.

With z from a guide of the training data, the predictive density of a row that was not trained on is

    log p(x* | x) ≈ log (1/S) Σ_s p(x* | z_s),    z_s ~ q(z).

It exists for latents that data points share. A latent of the row itself would be drawn from q(z | x*), which has seen
the row: such a number rises as the guide narrows, and is no predictive density.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from pyro import poutine

from banel_pyro.batches import Rows, transformed
from banel_pyro.checkpoint import write_whole
from banel_pyro.diagnostics.decode import prior_samples
from banel_pyro.diagnostics.held_out import log_predictive
from banel_pyro.diagnostics.stored import is_local
from banel_pyro.inference_data import group
from banel_pyro.plates import one_line
from banel_pyro.reading import check_fields
from banel_pyro.report.numbers import run_numbers
from banel_pyro.run import FitResult, RunFolder
from banel_pyro.seeding import fork_rng
from banel_pyro.sweep.checks import checks_of
from banel_pyro.sweep.plan import Sweep
from banel_pyro.terms import Estimate

__all__ = ["FILE", "described", "judge", "read_extra", "score_of", "write_extra"]

FILE = "sweep.nc"
"""The file of a run folder that holds all this; it is the last one that is written."""

SAMPLES = 12
"""Samples of the prior, decoded."""


def described(result: FitResult) -> dict[str, Any]:
    """What a sweep has to know of a pair, from a run of one step.

    Args:
        result: of the run, with its parameters in the param store.

    Returns:
        ``name`` and ``data`` (a hash) of the pair; whether its model ``learns``, has ``held_out`` rows, a
        ``predictive`` density of them, and only latents that are ``local`` to data points; ``dimensions`` of the
        latents per data point.
    """
    rows = transformed(result.rows, result.transform)
    few = tuple(row[:2] for row in rows) if result.plate.name else rows
    idata = result.posterior(few, num_samples=2, groups=())
    local = is_local(idata)
    if not local and result.plate.name:
        idata = result.posterior(num_samples=2, groups=())
    owned = {name for names in json.loads(idata.attrs["densities"]).values() for name in names}
    sizes = [array.isel(chain=0, draw=0).size for n, array in group(idata, "posterior").items() if n in owned]
    count = 1 if not result.plate.name else len(few[0]) if local else len(rows[0])
    predictive = False
    if result.held_out and not local:
        with suppress(ValueError):  # of pairs that have none, such as a guide that is a point
            log_predictive(result, num_samples=2, seed=0)
            predictive = True
    return {
        "name": result.config["name"], "data": result.config["data"], "learns": _learns(result, few),
        "held_out": bool(result.held_out), "predictive": predictive, "local": local, "dimensions": sum(sizes) / count,
    }  # fmt: skip


def _learns(result: FitResult, few: Rows) -> bool:
    """Whether the model has parameters, as a decoder does: then the evidence differs between runs."""
    index = torch.arange(len(few[0])) if few and result.plate.name else None
    with torch.no_grad(), fork_rng(0), result.plate.rows(index):
        trace = poutine.trace(result.model).get_trace(*few)
    return any(node["type"] == "param" for node in trace.nodes.values())


def write_extra(folder: RunFolder, result: FitResult, sweep: Sweep) -> None:
    """Write what a sweep keeps of a run that has ended.

    Args:
        folder: of the run.
        result: of the run, with its parameters in the param store.
        sweep: what it is a run of.
    """
    found: dict[str, Any] = {}
    if sweep.about.get("predictive"):
        rows = log_predictive(result, num_samples=sweep.draws, seed=result.config["seed"]).per_datum
        found["log_predictive"] = xr.DataArray(rows["log_predictive"].to_numpy(), dims=("datum",))
    if sweep.about.get("learns") and (samples := _samples(result)) is not None:
        found["samples"] = samples
    checks = checks_of(folder.read_posterior(), result.history)
    data = xr.Dataset(found, attrs={"checks": json.dumps(checks)})
    write_whole(folder.path / FILE, lambda file: data.to_netcdf(str(file), engine="h5netcdf"))


def _samples(result: FitResult) -> xr.DataArray | None:
    """What the model makes of its prior; None where that cannot be said."""
    seed = result.config["seed"]
    with fork_rng(seed):
        rows = transformed(result.rows, result.transform)
    for mean in (True, False):
        try:
            return prior_samples(
                result.model, rows, num_samples=SAMPLES, mean=mean, data_plate=result.plate.name, seed=seed
            ).rename("samples")
        except ValueError:  # no mean, or several observed sites
            continue
    return None


def read_extra(folder: Path) -> xr.Dataset:
    """What :func:`write_extra` wrote, in memory; empty if it wrote nothing.

    Args:
        folder: of the run.

    Raises:
        ValueError: if the file is damaged, leads out of itself, or claims much more than it holds.
    """
    from banel_pyro.hdf5 import check_hdf5  # h5py is heavy to import

    file = folder / FILE
    try:
        check_hdf5(file)
        with xr.open_dataset(file, engine="h5netcdf") as data:
            found = data.load()
        check_fields("its 'checks'", json.loads(found.attrs.get("checks", "{}")), {}, remedy="")
        return found
    except FileNotFoundError:
        return xr.Dataset()
    except Exception as error:  # HDF5, h5netcdf and xarray raise many kinds for a damaged file
        raise ValueError(
            f"'{file}' cannot be read ({type(error).__name__}: {one_line(error)[:200]}): the file is damaged, or none "
            "of a sweep. Delete it: the same command with --resume makes it anew."
        ) from error


def judge(folder: Path, sweep: Sweep) -> float:
    """The number that a search maximises, of one run: per data point in nats, and never with λ in it.

    Args:
        folder: of the run.
        sweep: says which number.
    """
    if score_of(sweep) == "predictive":
        return float(read_extra(folder)["log_predictive"].mean())
    values = run_numbers(RunFolder(folder).read_posterior()).values
    if sweep.trials and sweep.target is not None:
        return -abs(values["entropy"].value - sweep.target)
    found: Estimate = values[score_of(sweep)]
    return found.value


def score_of(sweep: Sweep) -> str:
    """What λ is chosen by: as asked for, else what suits the pair.

    Args:
        sweep: what is to be done.

    Raises:
        ValueError: for a score that would mislead for this pair.
    """
    about = sweep.about
    predictive = bool(about.get("predictive"))
    if sweep.score == "predictive" and not predictive:
        why = "it has no held-out rows" if not about.get("held_out") else "it has none that can be computed"
        if about.get("local"):
            why = "its latents are local: the guide draws them after a look at the row"
        raise ValueError(f"objective='predictive': {about.get('name')} has no predictive density, {why}. Use elbo.")
    if sweep.score == "iwae" and not about.get("learns"):
        raise ValueError(
            f"objective='iwae': the model of {about.get('name')} learns nothing, so that every λ has the same "
            "evidence, and a noisier estimate of it looks as good as a better one. Use elbo."
        )
    return sweep.score or ("predictive" if predictive else "elbo")
