"""A guide's draws against those of a reference that is taken for the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
import xarray as xr
from numpy.typing import NDArray

from banel_pyro.diagnostics.spread import labelled
from banel_pyro.inference_data import ArviZ, group, group_names

__all__ = ["COVERAGES", "compare"]

Array: TypeAlias = NDArray[np.floating[Any]]

COVERAGES = (50, 80, 95)
"""Central intervals whose coverage is looked at, in per cent."""


def compare(idata: ArviZ, reference: ArviZ, *, var_names: Sequence[str] | None = None) -> pd.DataFrame:
    r"""How far a guide's posterior is from a reference, for each latent number.

    With mean m and standard deviation s, of the guide (q), the reference (r) and the prior (p):

    .. math::
        \text{mean\_error} = \frac{m_q - m_r}{s_r}, \qquad
        \text{sd\_ratio} = \frac{s_q}{s_r}, \qquad
        \text{z\_score} = \frac{m_q - m_r}{s_q}, \qquad
        \text{contraction} = 1 - \frac{s_q^2}{s_p^2}

    At the optimum of a penalised fit, ``sd_ratio`` is sqrt(1 − λ) times what it is at λ = 0 if the posterior is normal.

    Args:
        idata: draws of the guide, from :func:`~banel_pyro.to_arviz`.
        reference: what is taken for the truth, such as :func:`nuts_reference` or :func:`posteriordb_draws`; any ArviZ
            object whose posterior has some of the same latents. Dims may have other names and coordinates.
        var_names: latents or deterministic values to compare; by default all of the reference.

    Returns:
        A row per latent number, labelled as by :func:`~banel_pyro.spread`, with ``mean_error`` and ``sd_ratio`` and
        their standard errors ``mean_error_stderr`` and ``sd_ratio_stderr`` (Monte Carlo, of both sets of draws; of the
        reference by its effective sample size); ``coverage_50``, ``coverage_80``, ``coverage_95``, the share of the
        reference's draws inside the guide's central intervals; ``wasserstein``, the distance W₁ of the two in
        reference sds; ``z_score``; ``contraction`` (NaN without a prior group; a prior without a variance, such as a
        half-Cauchy, gives a number near 1 that says nothing); and ``non_normal``, W₁ of the reference and the
        normal distribution of its mean and sd, in its sds: small where the rule for λ above applies.

    Raises:
        ValueError: if a latent of the reference is missing among the draws, or has another shape; it lists both.

    Example:
        >>> import numpy as np, xarray as xr
        >>> from banel_pyro.inference_data import from_datasets
        >>> draws = np.linspace(-1, 1, 400).reshape(1, 400)
        >>> made = [from_datasets({"posterior": xr.Dataset({"mu": (("chain", "draw"), x)})}, {})
        ...         for x in (draws, 2 * draws)]
        >>> compare(*made)["sd_ratio"].to_dict()
        {'mu': 0.5}
    """
    ours, theirs = group(idata, "posterior"), group(reference, "posterior")
    prior = group(idata, "prior") if "prior" in group_names(idata) else xr.Dataset()
    rows: dict[str, dict[str, float]] = {}
    for name in _checked_names(ours, theirs, var_names):
        guide = ours[name]
        columns = _columns(
            _flat(guide, f"'{name}' of the draws"),
            _flat(theirs[name], f"'{name}' of the reference"),
            _flat(prior[name], f"'{name}' of the prior") if name in prior else None,
        )
        dims, shape = guide.dims[2:], guide.shape[2:]
        coords = {dim: guide[dim] for dim in dims}
        table = xr.Dataset({c: (dims, values.reshape(shape)) for c, values in columns.items()}, coords=coords)
        rows |= dict(labelled(name, table))
    return pd.DataFrame.from_dict(rows, orient="index")


def _flat(draws: xr.DataArray, what: str) -> Array:
    """Draws (chain, draw, number)."""
    sizes = draws.sizes
    if not {"chain", "draw"} <= sizes.keys() or draws.dtype.kind not in "biuf" or sizes["chain"] * sizes["draw"] < 4:
        raise ValueError(
            f"{what} is {draws.dtype} of {dict(sizes)}: expected numbers with dims chain and draw, at least 4 draws."
        )
    values = draws.transpose("chain", "draw", ...).to_numpy().astype(float)
    if wrong := int((~np.isfinite(values)).sum()):
        raise ValueError(f"{what}: {wrong} of {values.size} draws are NaN or infinite: expected finite numbers.")
    return values.reshape(*values.shape[:2], -1)


def _checked_names(ours: xr.Dataset, theirs: xr.Dataset, var_names: Sequence[str] | None) -> list[str]:
    shapes = [{str(n): _shape(v) for n, v in data.data_vars.items()} for data in (ours, theirs)]
    if isinstance(var_names, str) or (var_names is not None and not len(var_names)):
        both = [name for name in shapes[1] if name in shapes[0]]
        raise ValueError(f"var_names={var_names!r}: expected a list of some of {both}. Leave it out for all of them.")
    names = [*(shapes[1] if var_names is None else var_names)]
    wrong = [name for name in names if name not in shapes[1] or shapes[0].get(name) != shapes[1][name]]
    if wrong:
        raise ValueError(
            f"{wrong} differ in name or shape: the draws have {_listed(shapes[0])}, the reference has "
            f"{_listed(shapes[1])}. Rename the latents, or choose with var_names= what both have."
        )
    return names


def _shape(draws: xr.DataArray) -> tuple[int, ...]:
    return tuple(n for dim, n in draws.sizes.items() if dim not in ("chain", "draw"))


def _listed(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "nothing"


def _columns(q: Array, r: Array, p: Array | None) -> dict[str, Array]:
    """The columns of the table, each (number), from draws (chain, draw, number)."""
    from scipy.stats import wasserstein_distance  # type: ignore[import-untyped]  # heavy; arviz-stats has it too

    flat, ref = q.reshape(-1, q.shape[-1]), r.reshape(-1, r.shape[-1])
    sd_q, sd_r, shift = flat.std(0, ddof=1), ref.std(0, ddof=1), flat.mean(0) - ref.mean(0)
    sd_p = np.full_like(sd_q, math.nan) if p is None else p.reshape(-1, p.shape[-1]).std(0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):  # a point mass has no sd
        found = {
            "mean_error": shift / sd_r,
            "mean_error_stderr": np.hypot(sd_q / math.sqrt(len(flat)), sd_r / np.sqrt(_ess(r, "mean"))) / sd_r,
            "sd_ratio": sd_q / sd_r,
            "sd_ratio_stderr": sd_q / sd_r * np.hypot(_sd_error(flat, len(flat)), _sd_error(ref, _ess(r, "sd"))),
        }
        found |= {f"coverage_{c}": _coverage(flat, ref, c / 100) for c in COVERAGES}
        pairs = zip(flat.T, ref.T, strict=True)
        found["wasserstein"] = np.array([wasserstein_distance(a, b) for a, b in pairs]) / sd_r
        found |= {"z_score": shift / sd_q, "contraction": 1 - (sd_q / sd_p) ** 2}
        found["non_normal"] = _distance_from_normal((ref - ref.mean(0)) / sd_r)
    return found


def _ess(draws: Array, method: str) -> Array:
    """Effective sample sizes (number) of chains (chain, draw, number), by the autocorrelation of their draws."""
    import arviz_stats  # heavy; of both lines of ArviZ

    chains = xr.DataArray(draws, dims=("chain", "draw", "number"))
    found: Array = arviz_stats.ess(chains, method=method).to_numpy()  # type: ignore[attr-defined]
    return found


def _sd_error(draws: Array, size: float | Array) -> Array:
    """Standard error of an sd, relative to it, from the kurtosis of draws (draw, number)."""
    standard = (draws - draws.mean(0)) / draws.std(0)
    error: Array = np.sqrt(((standard**4).mean(0) - 1) / 4 / size)
    return error


def _coverage(guide: Array, reference: Array, probability: float) -> Array:
    """Share of reference draws (draw, number) inside the central intervals of the guide's."""
    low, high = np.quantile(guide, [(1 - probability) / 2, (1 + probability) / 2], axis=0)
    inside: Array = ((low <= reference) & (reference <= high)).mean(axis=0)
    return inside


def _distance_from_normal(standard: Array) -> Array:
    """W₁ of standardised draws (draw, number) and the standard normal distribution, by quantiles."""
    levels = (torch.arange(len(standard), dtype=torch.float64) + 0.5) / len(standard)
    distance: Array = np.abs(np.sort(standard, axis=0) - torch.special.ndtri(levels).numpy()[:, None]).mean(axis=0)
    return distance
