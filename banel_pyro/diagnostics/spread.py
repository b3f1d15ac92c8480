"""How spread out a posterior is, read from its draws."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from banel_pyro.checks import probability
from banel_pyro.evaluate import mean_estimate
from banel_pyro.inference_data import ArviZ, group, group_names
from banel_pyro.terms import Estimate

__all__ = ["active_units", "densities_of", "density_entropies", "labelled", "point_masses_of", "spread"]
__all__ += ["stacked_labels"]


def spread(
    idata: ArviZ,
    *,
    var_names: Sequence[str] | None = None,
    over: str | Sequence[str] = (),
    hdi_prob: float = 0.94,
) -> pd.DataFrame:
    r"""The spread of each latent number: sd, HDI width, IQR against the prior, and the guide's entropy.

    Args:
        idata: from :func:`~banel_pyro.to_arviz`.
        var_names: latents to show, all by default.
        over: dims to average over, for instance the data plate of an amortised guide: the table then
            gives the mean spread of one datum's posterior, not the spread of all data together.
        hdi_prob: probability of the highest-density interval.

    Returns:
        A row per latent number with ``sd`` and ``hdi_width`` (units of the latent), ``iqr_ratio``
        (interquartile range over that of the prior; NaN without a prior group), and ``density``,
        ``entropy``, ``entropy_stderr``: the density of the guide that the latent belongs to and its
        entropy :math:`-E_q[\log q]` in nats (for one datum if averaged over the plate, else summed),
        minus infinity for a point mass. Continuous entropy depends on the parametrisation: ours is that of the
        model's sites.

    Raises:
        ValueError: for unknown variables or dims, a probability outside (0, 1), or draws of another origin.
    """
    posterior = group(idata, "posterior")
    priors = group(idata, "prior") if "prior" in group_names(idata) else xr.Dataset()
    dims = (over,) if isinstance(over, str) else tuple(over)
    _check(posterior, var_names, dims, hdi_prob)
    entropies = density_entropies(idata, dims)
    owner = {site: density for density, sites in densities_of(idata).items() for site in sites}
    rows: dict[str, dict[str, Any]] = {}
    for name in var_names or [str(n) for n in posterior.data_vars if n in owner]:
        draws = posterior[name]
        prior = priors.get(name)
        table = _spread_of(draws, prior, dims, hdi_prob)
        density = owner.get(name, "")
        entropy = entropies.get(density, Estimate(np.nan, np.nan))
        extra = {"density": density, "entropy": entropy.value, "entropy_stderr": entropy.stderr}
        rows |= {label: {**values, **extra} for label, values in labelled(name, table)}
    return pd.DataFrame.from_dict(rows, orient="index")


def density_entropies(idata: ArviZ, over: Sequence[str] = ()) -> dict[str, Estimate]:
    """Entropy of each density of the guide in nats: -mean of its log q over draws, with standard error.

    That of a point mass is minus infinity.

    Args:
        idata: from :func:`~banel_pyro.to_arviz`.
        over: dims to average over; the other dims are summed.
    """
    points = point_masses_of(idata)
    found = {}
    for density in densities_of(idata):
        if density in points:
            found[density] = Estimate(-np.inf, np.nan)
            continue
        stats = group(idata, "sample_stats")
        if f"log_q_{density}" not in stats:
            raise ValueError(f"sample_stats has no 'log_q_{density}': expected draws from banel_pyro.to_arviz.")
        log_q = stats[f"log_q_{density}"]
        log_q = log_q.mean([d for d in over if d in log_q.dims])
        log_q = log_q.sum([d for d in log_q.dims if d not in ("chain", "draw")])
        found[density] = mean_estimate(-log_q.stack(sample=("chain", "draw")).to_numpy())
    return found


def active_units(idata: ArviZ, name: str, plate: str, *, threshold: float = 0.01) -> int:
    r"""Latent dimensions that carry information about the data.

    Counts dimensions u with :math:`\operatorname{Var}_x(E_q[z_u \mid x])` above ``threshold``
    (Burda et al. 2016, arXiv 1509.00519). What the noise of means over S draws adds to it is taken off:
    :math:`\frac1S E_x[\operatorname{Var}_q(z_u \mid x)]`.

    Args:
        idata: from :func:`~banel_pyro.to_arviz`.
        name: a latent local to ``plate``.
        plate: the data plate.
        threshold: squared units of the latent.

    Raises:
        ValueError: if there is no such latent in such a plate.
    """
    posterior = group(idata, "posterior")
    _check(posterior, [name], (plate,), 0.5)
    draws = posterior[name]
    size = draws.sizes["chain"] * draws.sizes["draw"]
    noise = draws.var(["chain", "draw"]).mean(plate) / max(size - 1, 1)
    return int((draws.mean(["chain", "draw"]).var(plate) - noise > threshold).sum())


def densities_of(idata: ArviZ) -> Mapping[str, list[str]]:
    """The model's sites by density of the guide.

    Args:
        idata: from :func:`~banel_pyro.to_arviz`.

    Raises:
        ValueError: if it says nothing of that.
    """
    if "densities" not in idata.attrs:
        raise ValueError(
            "idata has no attribute 'densities', which says what the guide's densities are: expected draws from "
            "banel_pyro.to_arviz, or a file they were saved to."
        )
    found = _json_of(idata, "densities")
    if not isinstance(found, dict) or not all(map(_are_texts, found.values())):
        raise ValueError(f"idata has densities={found!r}: expected lists of sites by density, as to_arviz writes.")
    return found


def point_masses_of(idata: ArviZ) -> tuple[str, ...]:
    """Densities of the guide that are a point.

    Args:
        idata: from :func:`~banel_pyro.to_arviz`.

    Raises:
        ValueError: if it says nothing of that.
    """
    found = _json_of(idata, "point_masses") if "point_masses" in idata.attrs else []
    if not _are_texts(found):
        raise ValueError(f"idata has point_masses={found!r}: expected a list of names, as to_arviz writes.")
    return tuple(found)


def _json_of(idata: ArviZ, name: str) -> Any:
    try:
        return json.loads(idata.attrs[name])
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"idata has {name}={str(idata.attrs[name])[:80]!r}, which is not JSON: expected what to_arviz writes."
        ) from error


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _spread_of(draws: xr.DataArray, prior: xr.DataArray | None, over: Sequence[str], hdi_prob: float) -> xr.Dataset:
    import arviz_stats  # heavy; of both lines of ArviZ

    sample = ["chain", "draw"]
    ends = arviz_stats.hdi(draws, prob=hdi_prob, dim=sample)  # type: ignore[attr-defined]
    quartiles = draws.quantile([0.25, 0.75], dim=sample)
    table = xr.Dataset(
        {
            "sd": draws.std(sample, ddof=1),
            "hdi_width": ends.sel(ci_bound="upper", drop=True) - ends.sel(ci_bound="lower", drop=True),
            "iqr_ratio": quartiles.diff("quantile").squeeze("quantile", drop=True),
        }
    )
    if prior is None:
        table["iqr_ratio"] = table["iqr_ratio"] * np.nan
    else:
        width = prior.quantile([0.25, 0.75], dim=sample).diff("quantile").squeeze("quantile", drop=True)
        table["iqr_ratio"] = table["iqr_ratio"] / width
    return table.mean([dim for dim in over if dim in draws.dims])


def labelled(name: str, table: xr.Dataset) -> list[tuple[str, dict[str, float]]]:
    """The rows of a table with their labels, such as ``theta[3]``."""
    dims = list(table[next(iter(table.data_vars))].dims)
    flat = table.stack(number=dims) if dims else table.expand_dims("number")
    columns = {str(column): values.to_numpy() for column, values in flat.data_vars.items()}
    names = stacked_labels(name, flat["number"].to_numpy().tolist()) if dims else [name]
    return [(label, {c: float(v[i]) for c, v in columns.items()}) for i, label in enumerate(names)]


def stacked_labels(name: str, coordinates: Sequence[Any]) -> list[str]:
    """Names for the numbers of a variable, such as ``theta[3]``.

    Args:
        name: of the variable.
        coordinates: of each number: a coordinate, or a tuple with one for each dim.
    """
    return [f"{name}[{', '.join(map(str, np.atleast_1d(label).tolist()))}]" for label in coordinates]


def _check(posterior: xr.Dataset, var_names: Sequence[str] | None, over: Sequence[str], hdi_prob: float) -> None:
    if isinstance(var_names, str):
        raise TypeError(f"var_names={var_names!r}: expected a list. Write var_names=[{var_names!r}].")
    unknown = sorted(set(var_names or ()) - {str(n) for n in posterior.data_vars})
    if unknown:
        raise ValueError(f"var_names has unknown {unknown}: the posterior has {sorted(map(str, posterior.data_vars))}.")
    missing = sorted(set(over) - {str(d) for d in posterior.dims})
    if missing:
        raise ValueError(f"over={list(over)}: no dims {missing}, the posterior has {sorted(map(str, posterior.dims))}.")
    probability("hdi_prob", hdi_prob)
