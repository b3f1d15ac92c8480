"""Pictures of calibration; import them from :mod:`banel_pyro.report.plots`, which says how to call them."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from banel_pyro.diagnostics.calibrated import Calibration
from banel_pyro.diagnostics.ranks import ecdf_band, tempered_ranks
from banel_pyro.report.canvas import GREY, Array, by_label, colour, line, own_axes

__all__ = ["plot_rank_ecdf", "plot_ranks"]


def plot_ranks(
    calibrations: Any, latent: str | None = None, *, lam: float | None = None, bins: int = 20, ax: Axes | None = None
) -> Axes:
    """How the ranks of true values are distributed: a histogram for each calibration, flat where guides are posteriors.

    U-shaped where guides are too narrow, a hill where they are too wide, sloping where they lie to one side. The grey
    range holds 99 of 100 bins of a flat histogram (of the first calibration).

    Args:
        calibrations: a :class:`~banel_pyro.diagnostics.calibrated.Calibration`, or some by label.
        latent: such as ``"z[0]"``; needed where there are several.
        lam: draws the law of a Gaussian posterior at this λ as a dashed line.
        bins: at most; fewer where they could not be of equal width.
        ax: axes to draw on.

    Raises:
        TypeError: for something else than calibrations.
        ValueError: for an unknown latent.
    """
    found = {label: _shares(item, latent) for label, item in by_label(calibrations, "calibrations").items()}
    first = next(iter(found.values()))
    with own_axes(ax, found, 2.4) as drawn:
        size, draws = len(first[1]), first[2]
        bins = max(b for b in range(1, bins + 1) if (draws + 1) % b == 0)
        error = 2.576 * ((1 - 1 / bins) / bins / size) ** 0.5
        drawn.axhspan(bins * max(0.0, 1 / bins - error), bins * (1 / bins + error), color=GREY, alpha=0.2, linewidth=0)
        for i, (label, (_, shares, _)) in enumerate(found.items()):
            style: dict[str, Any] = {"color": colour(i), "linestyle": line(i), "linewidth": 1.4, "label": label}
            drawn.hist(shares, bins=[b / bins for b in range(bins + 1)], density=True, histtype="step", **style)
        if lam is not None:
            law = tempered_ranks(draws, lam) * (draws + 1)
            middles = (np.arange(draws + 1) + 0.5) / (draws + 1)
            drawn.plot(middles, law, color="black", linestyle="--", linewidth=1, label=f"Gaussian at λ = {lam:g}")
        drawn.set(xlabel=f"share of the guide below the true {first[0]}", ylabel="density", xlim=(0, 1))
    return drawn


def plot_rank_ecdf(calibrations: Any, latent: str | None = None, *, prob: float = 0.95, ax: Axes | None = None) -> Axes:
    """The distribution function of the ranks, less that of a uniform one, with ArviZ's simultaneous band.

    A line that leaves the band anywhere is not uniform at the level 1 − ``prob``. It is above 0 on the left and below
    on the right where guides are too narrow, the other way round where they are too wide.

    Args:
        calibrations: a :class:`~banel_pyro.diagnostics.calibrated.Calibration`, or some by label.
        latent: such as ``"z[0]"``; needed where there are several.
        prob: that a uniform sample stays in the band as a whole (of the first calibration).
        ax: axes to draw on.

    Raises:
        TypeError: for something else than calibrations.
        ValueError: for an unknown latent, or fewer than 10 simulations.
    """
    found = {label: _shares(item, latent) for label, item in by_label(calibrations, "calibrations").items()}
    bands = {label: ecdf_band(shares, prob=prob) for label, (_, shares, _) in found.items()}
    with own_axes(ax, found, 2.4) as drawn:
        first = next(iter(bands.values()))
        drawn.fill_between(first.x, first.low - first.x, first.high - first.x, color=GREY, alpha=0.2, linewidth=0)
        for i, (label, band) in enumerate(bands.items()):
            style: dict[str, Any] = {"color": colour(i), "linestyle": line(i), "linewidth": 1.4, "label": label}
            drawn.plot(band.x, band.ecdf - band.x, **style)
        name = next(iter(found.values()))[0]
        drawn.set(xlabel=f"share of the guide below the true {name}", ylabel="ECDF − uniform", xlim=(0, 1))
    return drawn


def _shares(item: Any, latent: str | None) -> tuple[str, Array, int]:
    """The name of a latent number, its shares, and L."""
    if not isinstance(item, Calibration):
        raise TypeError(f"calibrations has a {type(item).__name__}: expected what calibrate() returns.")
    shares = item.shares()
    if latent is None and len(shares) > 1:
        raise ValueError(f"latent=None, but there are several: expected one of {list(shares)[:20]}.")
    name = next(iter(shares)) if latent is None else latent
    if name not in shares:
        raise ValueError(f"latent={latent!r}: expected one of {list(shares)[:20]}.")
    return name, shares[name], item.num_draws
