"""Pictures of posteriors against a reference; import them from :mod:`banel_pyro.report.plots`."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from banel_pyro.report.canvas import GREY, colour, is_arviz, marker, own_axes

__all__ = ["NEAR_NORMAL", "plot_sd_ratio_against_lam"]

NEAR_NORMAL = 0.1
"""``non_normal`` up to which a latent's posterior counts as near normal: a skewed one is at 0.2 to 0.3."""


def plot_sd_ratio_against_lam(comparisons: Mapping[float, Any], *, ax: Axes | None = None) -> Axes:
    r"""The guide's sd over the reference's, by λ, and what a normal posterior would have done from λ = 0 on.

    At 1 the guide is as wide as the reference. The points are latents with two standard errors, a colour and marker
    for each site. A latent whose reference is near normal (``non_normal`` at most 0.1) has a curve: its ratio at
    λ = 0 times sqrt(1 − λ). What lies off its curve is off for another reason than λ.

    Args:
        comparisons: by λ, with λ = 0 among them, a table of :func:`~banel_pyro.diagnostics.compare`.
        ax: axes to draw on.

    Raises:
        TypeError, ValueError: for other tables, other latents at other λ, or no λ = 0.
    """
    tables = _checked(comparisons)
    lams, plain = sorted(tables), tables[0.0]
    owner = [str(name).partition("[")[0] for name in plain.index]
    curve = np.linspace(min(lams), min(max(lams), 1.0), 200)
    with own_axes(ax, [], 3.0) as drawn:
        drawn.axhline(1.0, color=GREY, linestyle="--", linewidth=1)
        for i, site in enumerate(pd.unique(pd.Index(owner))):
            names = [name for name, of in zip(plain.index, owner, strict=True) if of == site]
            for name in names:
                if plain.loc[name, "non_normal"] <= NEAR_NORMAL:
                    ratios = float(plain.loc[name, "sd_ratio"]) * np.sqrt(1 - curve)
                    drawn.plot(curve, ratios, color=colour(i), linewidth=0.8, alpha=0.6)
            ratio, error = (
                np.array([tables[lam].loc[names, c] for lam in lams]) for c in ("sd_ratio", "sd_ratio_stderr")
            )
            style: dict[str, Any] = {"color": colour(i), "marker": marker(i), "markerfacecolor": "none", "label": site}
            where = np.repeat(lams, len(names))
            drawn.errorbar(where, ratio.ravel(), 2 * error.ravel(), linestyle="", elinewidth=0.8, markersize=6, **style)
        drawn.set(xlabel="λ (0 is plain variational inference)", ylabel="sd ÷ sd of the reference")
        drawn.set_ylim(bottom=0)
        if ax is None:
            drawn.legend()
    return drawn


def _checked(comparisons: Any) -> dict[float, pd.DataFrame]:
    """The tables by λ as a number."""
    if not isinstance(comparisons, Mapping) or is_arviz(comparisons):
        raise TypeError(
            f"comparisons is a {type(comparisons).__name__}: expected a mapping from λ to tables of compare()."
        )
    for lam, table in comparisons.items():
        if not isinstance(lam, Real) or isinstance(lam, bool):
            raise TypeError(f"comparisons has the key {lam!r}: expected numbers, the λ of each fit.")
        if not isinstance(table, pd.DataFrame) or not {"sd_ratio", "sd_ratio_stderr", "non_normal"} <= {*table.columns}:
            raise TypeError(f"comparisons[{lam:g}] is a {type(table).__name__}: expected a table of compare().")
    tables = {float(lam): table for lam, table in comparisons.items()}
    if 0.0 not in tables:
        raise ValueError(f"comparisons has λ = {sorted(tables)}: expected λ = 0 among them, where the curves begin.")
    for lam, table in tables.items():
        if set(table.index) != set(tables[0.0].index):
            raise ValueError(f"comparisons[{lam:g}] has other latents than comparisons[0]: expected fits of one pair.")
    return tables
