"""Pictures of how wide posteriors are; import them from :mod:`banel_pyro.report.plots`, which says how to call them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from banel_pyro.diagnostics.spread import spread
from banel_pyro.report.canvas import GREY, by_label, colour, is_arviz, marker, own_axes, posterior_of, rows

__all__ = ["MAX_ROWS", "plot_spread", "plot_spread_against_lam"]

MAX_ROWS = 100
"""Rows of a picture at most."""


def plot_spread(widths: Any, *, over: str | Sequence[str] = (), ax: Axes | None = None) -> Axes:
    """How wide each latent is, as a share of its prior: a row per latent, a marker per run.

    At 1 the data taught nothing; near 0 the latent is known almost exactly.

    Args:
        widths: an ArviZ object or a FitResult to draw from (1,000 draws), a table of :func:`~banel_pyro.spread`, a
            series (the posterior's interquartile range over the prior's, by latent), or some by label.
        over: dims of ArviZ objects to average over, such as the data plate of an amortised guide.
        ax: axes to draw on.

    Raises:
        ValueError: for too many latents, or widths without a prior to compare with.
    """
    shares = {label: _share(item, over) for label, item in by_label(widths, "widths").items()}
    latents = list(next(iter(shares.values())).index)
    if len(latents) > MAX_ROWS:
        raise ValueError(
            f"widths have {len(latents)} latents: expected at most {MAX_ROWS}, a row for each. Average over the data "
            "plate with over=, or pick some rows of the table."
        )
    with own_axes(ax, shares, 0.9 + 0.27 * len(latents)) as drawn:
        for i, (label, share) in enumerate(shares.items()):
            style: dict[str, Any] = {"color": colour(i), "markersize": 6, "alpha": 0.9, "label": label}
            drawn.plot(share.reindex(latents), range(len(latents)), marker(i), **style)
        largest = np.nanmax([0.0, *(float(share.max()) for share in shares.values())])
        if largest > 0.5:  # else the prior is too far away to be shown
            drawn.axvline(1.0, color=GREY, linestyle="--", linewidth=1)
        top = max(largest, 1.0) if largest > 0.5 else largest
        drawn.set_xlim(0, 1.08 * top or 1.0)
        drawn.set_xlabel("width of posterior ÷ width of prior")
        return rows(drawn, latents)


def plot_spread_against_lam(
    spreads: Mapping[float, Any], *, over: str | Sequence[str] = (), ax: Axes | None = None
) -> Axes:
    r"""How much narrower each latent becomes with λ, on the curve of a Gaussian posterior, sqrt(1 − λ).

    The points are standard deviations over those at λ = 0, a colour and marker for each site. A posterior that
    is no Gaussian need not follow the curve, nor one whose model is trained along with it.

    Args:
        spreads: by λ, with λ = 0 among them, an ArviZ object, a FitResult to draw from, a table of
            :func:`~banel_pyro.spread`, or a series of standard deviations by latent.
        over: dims of ArviZ objects to average over, such as the data plate of an amortised guide.
        ax: axes to draw on.

    Raises:
        TypeError: for λ that are no numbers.
        ValueError: without λ = 0, for other latents at another λ, or a latent whose spread at λ = 0 is zero.
    """
    sds = _sds(spreads, over)
    lams = sorted(sds)
    relative = pd.DataFrame({lam: sds[lam] / sds[0.0] for lam in lams})
    sites = pd.unique(pd.Index([str(name).partition("[")[0] for name in relative.index]))
    with own_axes(ax, [], 3.0) as drawn:
        curve = np.linspace(min(lams), min(max(lams), 1.0), 200)
        drawn.plot(curve, np.sqrt(1 - curve), color=GREY, linewidth=1.4, label="Gaussian: $\\sqrt{1-λ}$")
        for i, site in enumerate(sites):
            table = relative[[str(name).partition("[")[0] == site for name in relative.index]]
            style: dict[str, Any] = {
                "color": colour(i),
                "marker": marker(i),
                "markerfacecolor": "none",
                "linestyle": "",
            }
            drawn.plot(np.tile(lams, len(table)), table.to_numpy().ravel(), markersize=6, label=site, **style)
        drawn.set(xlabel="λ (0 is plain variational inference)", ylabel="sd ÷ sd at λ = 0")
        drawn.set_ylim(bottom=0)
        if ax is None:
            drawn.legend()
    return drawn


# ---- reading what is drawn -----------------------------------------------------------------------


def _table(item: Any, name: str, over: str | Sequence[str]) -> pd.DataFrame:
    """The table of :func:`~banel_pyro.spread` of an ArviZ object or a FitResult, or such a table itself."""
    idata = posterior_of(item)
    if idata is not None:
        return spread(idata, over=over)
    if not isinstance(item, pd.DataFrame) or not {"sd", "iqr_ratio"} <= set(item.columns):
        raise TypeError(
            f"{name} has a {type(item).__name__}: expected an ArviZ object, a FitResult or a table of spread()."
        )
    return item


def _share(item: Any, over: str | Sequence[str]) -> pd.Series:
    if isinstance(item, pd.Series):
        return item
    share = _table(item, "widths", over)["iqr_ratio"]
    if share.isna().all():
        raise ValueError(
            'widths have no prior to compare with: draw with groups=("posterior", "sample_stats", "prior").'
        )
    return share


def _sds(spreads: Mapping[float, Any], over: str | Sequence[str]) -> dict[float, pd.Series]:
    if not isinstance(spreads, Mapping) or is_arviz(spreads):
        raise TypeError(f"spreads is a {type(spreads).__name__}: expected a mapping from λ to what was fitted with it.")
    wrong = [lam for lam in spreads if not isinstance(lam, Real) or isinstance(lam, bool)]
    if wrong:
        raise TypeError(f"spreads has the keys {wrong}: expected numbers, the λ of each fit.")
    if 0 not in spreads:
        raise ValueError(f"spreads has λ = {sorted(spreads)}: expected λ = 0 among them, to compare with.")
    sds = {
        float(lam): item if isinstance(item, pd.Series) else _table(item, f"spreads[{lam:g}]", over)["sd"]
        for lam, item in spreads.items()
    }
    for lam, values in sds.items():
        if set(values.index) != set(sds[0.0].index):
            raise ValueError(f"spreads[{lam:g}] has other latents than spreads[0]: expected fits of one pair.")
    flat = [str(name) for name, sd in sds[0.0].items() if not sd > 1e-12]
    if flat:
        raise ValueError(f"spreads[0] has no spread at {flat}: leave out point masses.")
    return sds
