"""What the log densities that are stored beside draws say: of which rows they are, their weights, and the spread."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from banel_pyro.diagnostics.psis import Array, Smoothed, smooth
from banel_pyro.diagnostics.reference import COVERAGES
from banel_pyro.diagnostics.spread import densities_of, labelled, point_masses_of
from banel_pyro.inference_data import ArviZ, group, group_names

__all__ = ["Weights", "corrected_spread", "discrete_latents", "is_local", "kind_of", "number_of_rows"]
__all__ += ["point_masses", "stored_weights"]


def is_local(idata: ArviZ) -> bool:
    """True if every latent belongs to one data point, so that log p and log q fall apart into data points."""
    stats, plate = group(idata, "sample_stats"), idata.attrs["data_plate"]
    densities = [stats[f"log_q_{name}"] for name in densities_of(idata)]
    if "log_q_datum" not in stats or not all(plate in log_q.dims for log_q in densities):
        return False
    # observations and pyro.factor outside the plate
    return all(
        np.allclose(stats[f"{name}_datum"].sum(plate), stats[name], rtol=1e-4, atol=1e-4)
        for name in ("log_p", "log_lik")
    )


def number_of_rows(idata: ArviZ) -> int | None:
    """Data points that the draws are of; None without a data plate."""
    plate = idata.attrs["data_plate"]
    if plate and idata.attrs.get("num_rows"):
        return int(idata.attrs["num_rows"])
    names = [name for name in ("observed_data", "log_likelihood", "posterior") if name in group_names(idata)]
    sizes = [int(group(idata, name).sizes[plate]) for name in names if plate in group(idata, name).sizes]
    return sizes[0] if sizes else None


def point_masses(idata: ArviZ) -> tuple[str, ...]:
    """Densities of the guide that are a point: their entropy is -inf, whatever Pyro's log q says."""
    return point_masses_of(idata)


def kind_of(idata: ArviZ) -> Literal["global", "local", "mixed"]:
    """Whose weights the stored densities make: those of the data set, of each row, or of both.

    A mixed pair has to draw its local latents several times for each draw of the shared ones; stored draws did not.
    """
    stats, plate = group(idata, "sample_stats"), idata.attrs["data_plate"]
    densities = [stats[f"log_q_{name}"] for name in densities_of(idata)]
    if not any(plate in log_q.dims for log_q in densities):
        return "global"
    return "local" if is_local(idata) else "mixed"


def discrete_latents(idata: ArviZ) -> tuple[str, ...]:
    """Latents with few values, which have no intervals to cover anything: half of the draws or more are repeated."""
    owned = {name for names in densities_of(idata).values() for name in names}
    found = []
    for name, stored in group(idata, "posterior").data_vars.items():
        draws = stored.transpose("chain", "draw", ...).to_numpy()
        first = draws.reshape(draws.shape[0] * draws.shape[1], -1)[:, :1]
        if name in owned and (stored.dtype.kind in "biu" or len(np.unique(first)) <= len(first) / 2):
            found.append(str(name))
    return tuple(found)


class Weights(NamedTuple):
    """Weights of stored draws.

    Args:
        log_w: log p(x, z) - log q(z) in nats: (draw,) of the data set, or (draw, row) where rows have their own.
        smoothed: the same, Pareto-smoothed and normalised.
        plate: name of the dim of rows, or None.
        seen: which rows count (row,): those that are masked in every draw have neither likelihood nor latents.
    """

    log_w: Array
    smoothed: Smoothed
    plate: str | None
    seen: NDArray[np.bool_]

    @property
    def k_hat(self) -> Array:
        r""":math:`\hat k` (), or (row,) of the rows that count."""
        return self.smoothed.k_hat[self.seen] if self.plate else self.smoothed.k_hat


def stored_weights(idata: ArviZ) -> Weights:
    """The smoothed importance weights of stored draws.

    Args:
        idata: from :func:`~banel_pyro.to_arviz`.

    Raises:
        ValueError: for a mixed pair or a point mass, too few draws, or log densities that are not finite.
    """
    kind, stats, points = kind_of(idata), group(idata, "sample_stats"), point_masses(idata)
    if points:
        raise ValueError(f"{list(points)} are points, which have no weights. Take a guide with a density.")
    if kind == "mixed":
        raise ValueError(
            "the draws are of shared latents and of latents of rows: each shared draw needs several local ones. Run "
            "banel_pyro.diagnostics.importance, which draws them."
        )
    suffix = "_datum" if kind == "local" else ""
    log_w = (stats[f"log_p{suffix}"] - stats[f"log_q{suffix}"]).transpose("chain", "draw", ...).to_numpy()
    log_w = log_w.reshape(-1, *log_w.shape[2:]).astype(float)
    seen = (log_w != 0).any(axis=0)
    return Weights(log_w, smooth(log_w), idata.attrs["data_plate"] if kind == "local" else None, np.atleast_1d(seen))


def corrected_spread(idata: ArviZ, weights: Weights, *, largest_k_hat: float) -> pd.DataFrame:
    r"""The spread of a guide beside that of its draws, corrected by their weights.

    .. math::
        \text{ratio} = \frac{s_q}{s_w}, \qquad
        \text{coverage}_c = \sum_s w_s\, \mathbb 1[z_s \in \text{the central interval of } q \text{ with mass } c]

    Args:
        idata: from :func:`~banel_pyro.to_arviz`.
        weights: from :func:`stored_weights`.
        largest_k_hat: where rows have weights of their own, those with a larger :math:`\hat k` are left out.

    Returns:
        A row per latent number with ``ratio``; ``coverage_50``, ``coverage_80``, ``coverage_95``, the share of the
        corrected posterior inside the guide's central intervals; ``coverage_stderr``, of the last one, for intervals
        that are given (those of the draws themselves make it too large); ``coverage_low``, what the last one is in
        the tenth of rows where it is least; and ``rows``. Latents of rows are averaged over the rows (sds as root mean
        squares), of which ``rows`` are left. Latents with few values (:func:`discrete_latents`) are left out.
    """
    sizes = {"draw": -1} if weights.plate is None else {"draw": -1, weights.plate: -1}
    w = xr.DataArray(np.exp(weights.smoothed.log_weights), dims=list(sizes))
    passing = weights.smoothed.k_hat <= largest_k_hat
    kept = xr.DataArray(passing & weights.seen if weights.plate else passing, dims=list(sizes)[1:])
    owned = {name for names in densities_of(idata).values() for name in names} - set(discrete_latents(idata))
    rows: dict[str, dict[str, float]] = {}
    for name, stored in group(idata, "posterior").data_vars.items():
        if name in owned:
            rows |= dict(labelled(str(name), _spread(_joined(stored), w, kept, weights.plate)))
    return pd.DataFrame.from_dict(rows, orient="index")


def _joined(stored: xr.DataArray) -> xr.DataArray:
    """Draws (draw, ...) of all chains."""
    arrays = [stored.isel(chain=i, drop=True).drop_vars("draw", errors="ignore") for i in range(stored.sizes["chain"])]
    return xr.concat(arrays, dim="draw").astype(float)


def _spread(draws: xr.DataArray, w: xr.DataArray, kept: xr.DataArray, plate: str | None) -> xr.Dataset:
    """Ratio and coverage by number of one latent."""
    found = {}
    for level in COVERAGES:
        ends = draws.quantile([0.5 - level / 200, 0.5 + level / 200], dim="draw")
        inside = (draws >= ends.isel(quantile=0, drop=True)) & (draws <= ends.isel(quantile=1, drop=True))
        found[f"coverage_{level}"] = (w * inside).sum("draw")
        found["error"] = (w**2 * (inside - found[f"coverage_{level}"]) ** 2).sum("draw")  # of the last level
    mean = (w * draws).sum("draw")
    found["corrected"] = (w * (draws - mean) ** 2).sum("draw") / (1 - (w**2).sum("draw"))
    found["guide"] = draws.var("draw", ddof=1)
    table, count = xr.Dataset(found), 1
    table["coverage_low"] = table["coverage_95"]
    if plate is not None:
        labels = {plate: table[plate]} if plate in table.coords else {}
        table, count = table.where(kept.assign_coords(labels)), int(kept.sum())
        if count:
            low = table["coverage_95"].quantile(0.1, dim=plate).drop_vars("quantile")
            table = table.assign(coverage_low=low)
        table = table.mean(plate)
    table["ratio"] = (table["guide"] / table["corrected"]) ** 0.5
    table["coverage_stderr"] = (table["error"] / max(count, 1)) ** 0.5
    table["rows"] = xr.zeros_like(table["ratio"]) + count
    return table[["ratio", *(f"coverage_{level}" for level in COVERAGES), "coverage_stderr", "coverage_low", "rows"]]
