r"""What a sweep keeps of each run beside the run's own files: checks, held-out predictive density, and samples.

With z from a guide of the training data, the predictive density of a row that was not trained on is

    log p(x* | x) ≈ log (1/S) Σ_s p(x* | z_s),    z_s ~ q(z).

It exists for latents that data points share. A latent of the row itself would be drawn from q(z | x*), which has seen
the row: such a number rises as the guide narrows, and is no predictive density.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from pyro import poutine

from banel_pyro.batches import Rows, transformed
from banel_pyro.checkpoint import write_whole
from banel_pyro.diagnostics.decode import prior_samples
from banel_pyro.diagnostics.stored import is_local
from banel_pyro.evaluate import iwae_per_datum
from banel_pyro.inference_data import ArviZ, group, group_names
from banel_pyro.report.numbers import run_numbers
from banel_pyro.run import FitResult, RunFolder
from banel_pyro.seeding import fork_rng
from banel_pyro.sweep.checks import checks_of
from banel_pyro.sweep.plan import Sweep
from banel_pyro.terms import Estimate

__all__ = ["FILE", "described", "judge", "log_predictive_per_datum", "read_extra", "score_of", "write_extra"]

FILE = "sweep.nc"
"""The file of a run folder that holds all this; it is the last one that is written."""

SAMPLES = 12
"""Samples of the prior, decoded."""


def described(result: FitResult) -> dict[str, Any]:
    """What a sweep has to know of a pair, from a run of one step.

    Args:
        result: of the run, with its parameters in the param store.

    Returns:
        ``name`` and ``data`` (a hash) of the pair; whether its model ``learns``, has ``held_out`` rows, and only
        latents that are ``local`` to data points; ``dimensions`` of the latents per data point.
    """
    rows = transformed(result.rows, result.transform)
    few = tuple(row[:2] for row in rows) if result.plate.name else rows
    idata = result.posterior(few, num_samples=2, groups=())
    local = is_local(idata)
    if not local and result.plate.name:
        idata = result.posterior(num_samples=2, groups=())
    sizes = [array.isel(chain=0, draw=0).size for array in group(idata, "posterior").values()]
    count = 1 if not result.plate.name else len(few[0]) if local else len(rows[0])
    return {
        "name": result.config["name"], "data": result.config["data"], "learns": _learns(result, few),
        "held_out": bool(result.held_out), "local": local, "dimensions": sum(sizes) / count,
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
    if sweep.about.get("held_out") and not sweep.about.get("local"):
        idata = result.posterior(result.held_out, num_samples=sweep.draws, groups=("log_likelihood",))
        found["log_predictive"] = xr.DataArray(log_predictive_per_datum(idata), dims=("datum",))
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
    """
    if not (folder / FILE).exists():
        return xr.Dataset()
    with xr.open_dataset(folder / FILE, engine="h5netcdf") as data:
        return data.load()


def log_predictive_per_datum(idata: ArviZ) -> np.ndarray[Any, np.dtype[np.floating[Any]]]:
    r"""The log predictive density :math:`\log \frac1S \sum_s p(x_i \mid z_s)` of each row.

    Args:
        idata: draws of a guide of other rows, with the group ``log_likelihood`` of these.

    Returns:
        A vector (datum) in nats.

    Raises:
        ValueError: without that group, or without a plate over data points.
    """
    plate = idata.attrs["data_plate"]
    if "log_likelihood" not in group_names(idata) or not plate:
        raise ValueError(
            f"idata has groups {group_names(idata)} and data plate {plate!r}: expected log_likelihood among them, and "
            "a plate. Draw with groups=('log_likelihood',)."
        )
    sites = [site for site in group(idata, "log_likelihood").values() if plate in site.dims]
    over = [[dim for dim in site.dims if dim not in ("chain", "draw", plate)] for site in sites]
    summed = [site.sum(dims).transpose("chain", "draw", plate) for site, dims in zip(sites, over, strict=True)]
    rows = np.sum([site.to_numpy() for site in summed], axis=0)
    return iwae_per_datum(rows.reshape(-1, rows.shape[-1]).astype(float))


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
    predictive = bool(about.get("held_out")) and not about.get("local")
    if sweep.score == "predictive" and not predictive:
        why = "its latents are local: the guide draws them after a look at the row" if about.get("local") else (
            "it has no held-out rows"
        )  # fmt: skip
        raise ValueError(f"objective='predictive': {about.get('name')} has no predictive density, {why}. Use elbo.")
    if sweep.score == "iwae" and not about.get("learns"):
        raise ValueError(
            f"objective='iwae': the model of {about.get('name')} learns nothing, so that every λ has the same "
            "evidence, and a noisier estimate of it looks as good as a better one. Use elbo."
        )
    return sweep.score or ("predictive" if predictive else "elbo")
