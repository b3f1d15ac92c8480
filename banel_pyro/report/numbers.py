"""The numbers of a report: pure functions of the draws in ``posterior.nc``. Judged untempered, in nats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from banel_pyro.diagnostics.spread import active_units, densities_of, density_entropies
from banel_pyro.diagnostics.stored import is_local, number_of_rows, point_masses
from banel_pyro.evaluate import elbo, elbo_per_datum, iwae, iwae_per_datum, mean_estimate, paired_difference
from banel_pyro.inference_data import ArviZ, group
from banel_pyro.report.bits import BITS, pixels, with_bits
from banel_pyro.terms import Estimate

__all__ = ["ACTIVE_UNITS", "TERMS", "RunNumbers", "difference", "notes", "readable", "run_numbers", "table"]
__all__ += ["text_table", "to_json"]

TERMS = {
    "log_likelihood": "log-likelihood",
    "kl": "KL",
    "entropy": "entropy",
    "elbo": "ELBO",
    "iwae": "IWAE",
}
"""What every run is judged by, and what a reader knows it as. None of them contains λ."""

ACTIVE_UNITS = "active units"

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class RunNumbers:
    """What one run is judged by: untempered, in nats, on the rows that its draws are of.

    Args:
        values: an estimate for each of :data:`TERMS`. Per data point, or totals if the model has no data
            plate. The error is over data points if all latents are local to them, else over draws. Where data
            are images, each of :data:`~banel_pyro.report.bits.BITS` too.
        per_datum: :data:`TERMS` as vectors (datum,) in nats; empty unless all latents are local.
        entropies: entropy of each density of the guide in nats, over all rows; ``-inf`` for a point mass.
        rows: which rows, in words.
        num_rows: how many; None without a data plate.
        draws: draws of the guide.
        active_units: latent dimensions that carry information about the data; None if latents
            are shared between data points.
        latents: all latent dimensions; None likewise.
        point_masses: densities of the guide that are a point.
        pixels: of an image; None where data are none, or the ELBO leaves out a point mass.
    """

    values: Mapping[str, Estimate]
    per_datum: Mapping[str, Array]
    entropies: Mapping[str, Estimate]
    rows: str
    num_rows: int | None
    draws: int
    active_units: int | None = None
    latents: int | None = None
    point_masses: tuple[str, ...] = ()
    pixels: int | None = None

    @property
    def unit(self) -> str:
        """What one number is of."""
        return "nats per data point" if self.num_rows is not None else "nats, total"

    @property
    def error(self) -> str:
        """What the standard errors are over."""
        return "data points" if self.per_datum else "draws"


def run_numbers(idata: ArviZ) -> RunNumbers:
    """The numbers of one run.

    Args:
        idata: from :func:`~banel_pyro.to_arviz`, as a run folder keeps it.
    """
    stats = group(idata, "sample_stats")
    size, points = number_of_rows(idata), point_masses(idata)
    dims = None if points else pixels(idata)
    if is_local(idata):
        per_datum = _per_datum(*_log_densities(stats, "_datum"))
        values = {name: mean_estimate(vector) for name, vector in per_datum.items()}
    else:
        per_datum = {}
        values = {name: _divided(total, size or 1) for name, total in _totals(*_log_densities(stats, "")).items()}
    if points:  # Pyro counts the log q of a point as 0
        values["entropy"] = Estimate(-math.inf, math.nan)
        per_datum = {name: vector for name, vector in per_datum.items() if name != "entropy"}
    active, latents = _active(idata) if per_datum else (None, None)
    draws = int(stats.sizes["chain"] * stats.sizes["draw"])
    rows = str(idata.attrs.get("rows", "all rows"))
    values, entropies = with_bits(values, dims), density_entropies(idata)
    return RunNumbers(values, per_datum, entropies, rows, size, draws, active, latents, points, dims)


def _log_densities(stats: xr.Dataset, suffix: str) -> tuple[Array, Array, Array]:
    """log likelihood, log p and log q with the chains joined: arrays (draw,) or (draw, datum)."""
    found = [stats[f"{name}{suffix}"].to_numpy() for name in ("log_lik", "log_p", "log_q")]
    log_likelihood, log_p, log_q = (array.reshape(-1, *array.shape[2:]) for array in found)
    return log_likelihood, log_p, log_q


def _per_datum(log_likelihood: Array, log_p: Array, log_q: Array) -> dict[str, Array]:
    """The terms as vectors, from arrays (draw, datum)."""
    return {
        "log_likelihood": log_likelihood.mean(axis=0),
        "kl": (log_q - (log_p - log_likelihood)).mean(axis=0),
        "entropy": -log_q.mean(axis=0),
        "elbo": elbo_per_datum(log_p - log_q),
        "iwae": iwae_per_datum(log_p - log_q),
    }


def _totals(log_likelihood: Array, log_p: Array, log_q: Array) -> dict[str, Estimate]:
    """The terms of the whole data set, from arrays (draw,)."""
    return {
        "log_likelihood": mean_estimate(log_likelihood),
        "kl": mean_estimate(log_q - (log_p - log_likelihood)),
        "entropy": mean_estimate(-log_q),
        "elbo": elbo(log_p - log_q),
        "iwae": iwae(log_p - log_q),
    }


def _divided(total: Estimate, size: int) -> Estimate:
    return Estimate(total.value / size, total.stderr / size)


def difference(run: RunNumbers, reference: RunNumbers) -> dict[str, Estimate]:
    """Each term of a run minus that of a reference run on the same rows, in bits per dimension too for images.

    Paired, data point by data point, where both have vectors; else the errors of both add up.
    """
    found = {}
    for name in TERMS:
        if name in run.per_datum and name in reference.per_datum:
            found[name] = paired_difference(run.per_datum[name], reference.per_datum[name])
        else:
            a, b = run.values[name], reference.values[name]
            found[name] = Estimate(a.value - b.value, math.hypot(a.stderr, b.stderr))
    return with_bits(found, run.pixels)


def table(runs: Mapping[str, RunNumbers]) -> pd.DataFrame:
    """The runs side by side: a row per λ, the first one being what the others are compared with.

    Args:
        runs: numbers by label.

    Returns:
        For each of :data:`TERMS` columns ``TERM``, ``TERM_stderr``, ``TERM_difference`` and
        ``TERM_difference_stderr`` (NaN in the first row) in nats, and for images the same of each of
        :data:`~banel_pyro.report.bits.BITS`; ``active_units``, ``latents``, ``draws``.
    """
    reference = next(iter(runs.values()))
    rows = {}
    for label, run in runs.items():
        row: dict[str, float | None] = {}
        change = {} if run is reference else difference(run, reference)
        for name in run.values:
            row |= _columns(name, run.values[name])
            row |= _columns(f"{name}_difference", change.get(name, Estimate(math.nan, math.nan)))
        rows[label] = row | {"active_units": run.active_units, "latents": run.latents, "draws": run.draws}
    return pd.DataFrame.from_dict(rows, orient="index")


def text_table(runs: Mapping[str, RunNumbers]) -> pd.DataFrame:
    """The runs side by side to read: a row per quantity, a column per run, then one per difference.

    Args:
        runs: numbers by label; the others are compared with the first.
    """
    first, *others = runs
    names = TERMS | BITS
    columns = {label: {names[n]: readable(value) for n, value in run.values.items()} for label, run in runs.items()}
    for label in others:
        changes = difference(runs[label], runs[first])
        columns[f"{label} − {first}"] = {names[n]: readable(change, plus=True) for n, change in changes.items()}
    for label, run in runs.items():
        if run.active_units is not None:
            columns[label][ACTIVE_UNITS] = f"{run.active_units} of {run.latents}"
    return pd.DataFrame(columns).fillna("")


def notes(runs: Mapping[str, RunNumbers]) -> list[str]:
    """What a reader of the table has to know, a sentence each: rows, errors, and what is not compared.

    Args:
        runs: numbers by label.
    """
    first, *others = runs.values()
    paired = all(run.per_datum for run in runs.values())
    shared = f" (totals divided by {first.num_rows})" if first.num_rows and not first.per_datum else ""
    unit = f"{first.unit}{shared}, on {first.rows}, from {first.draws} draws"
    found = [f"In {unit}; ± one standard error over {first.error}."]
    if others:
        found.append(
            "Differences are paired, data point by data point, with the standard error of the paired differences."
            if paired
            else "Differences are not paired: data points share latents, so the errors of both runs add up."
        )
    if first.pixels is not None:
        found.append(
            f"Bits per dimension are −ELBO ÷ ({first.pixels} pixels · ln 2), and −IWAE likewise: lower is better. For "
            "binarised images it is the nats that are usually quoted."
        )
    points = sorted({name for run in runs.values() for name in run.point_masses})
    if points:
        found.append(f"The posterior of {', '.join(points)} is a point: KL and ELBO leave out its infinite entropy.")
    found.append(
        "Nothing here contains λ. The penalised loss that training minimises does, so losses of different λ are never "
        "compared or ranked."
    )
    return found


def to_json(runs: Mapping[str, RunNumbers]) -> dict[str, Any]:
    """The numbers of a page as JSON: what :func:`table` shows, with null for what is not finite."""
    rows = table(runs)
    first = next(iter(runs.values()))
    return {
        "unit": first.unit,
        "rows": first.rows,
        "pixels": first.pixels,
        "paired": all(bool(run.per_datum) for run in runs.values()),
        "runs": [
            {"label": label, **{str(k): _finite(v) for k, v in rows.loc[label].items()}}
            for label in map(str, rows.index)
        ],
    }


def readable(estimate: Estimate, *, plus: bool = False) -> str:
    """An estimate to read: its error with two significant digits, a true minus sign, a plus on request.

    >>> readable(Estimate(-23.4567, 0.31)), readable(Estimate(0.0123, 0.0004), plus=True)
    ('−23.46 ± 0.31', '+0.01230 ± 0.00040')
    """
    value, error = estimate.value, estimate.stderr
    if not math.isfinite(value):
        return "−∞" if value < 0 else "∞" if value > 0 else "–"
    digits = 2 if not math.isfinite(error) or error <= 0 else min(6, max(2, 1 - math.floor(math.log10(error))))
    text = f"{value:{'+' if plus else ''}.{digits}f}".replace("-", "−")
    return f"{text} ± {error:.{digits}f}" if math.isfinite(error) else text


def _columns(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_stderr": estimate.stderr}


def _finite(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _active(idata: ArviZ) -> tuple[int, int]:
    """Active and all dimensions of latents that are local to the data plate."""
    plate: str = idata.attrs["data_plate"]
    sites = densities_of(idata)
    posterior = group(idata, "posterior")
    names = [name for members in sites.values() for name in members if name in posterior]
    sizes = [posterior[name].isel({"chain": 0, "draw": 0, plate: 0}).size for name in names]
    return sum(active_units(idata, name, plate) for name in names), sum(sizes)
