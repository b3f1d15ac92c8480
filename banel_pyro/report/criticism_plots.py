"""Pictures of model criticism; import them from :mod:`banel_pyro.report.plots`, which says how to call them."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from banel_pyro.diagnostics.predictive_check import PredictiveCheck, posterior_predictive_check
from banel_pyro.report.canvas import by_label, colour, is_arviz, marker, own_axes, rows
from banel_pyro.run import FitResult

__all__ = ["plot_predictive_check"]

ENDS = (0.05, 0.25, 0.75, 0.95)
"""The ends of the intervals, as quantiles."""


def plot_predictive_check(checks: Any, *, ax: Axes | None = None) -> Axes:
    """Statistics of replicated data around the observed ones: a row per statistic, intervals per run.

    The line is what was observed. Thick and thin are the central 50 % and 90 % of the replicated data sets, in standard
    deviations of the first run's, the marker is their mean. A run whose thin line does not reach the observed value
    makes data unlike these.

    Args:
        checks: what :func:`~banel_pyro.diagnostics.predictive_check.posterior_predictive_check` returns, an ArviZ
            object or a FitResult to make it from, or some by label, of the same data.
        ax: axes to draw on.

    Raises:
        TypeError: for something else.
        ValueError: for checks of other statistics or data.
    """
    found = {label: _check(item) for label, item in by_label(checks, "checks").items()}
    first = next(iter(found.values()))
    for check in found.values():
        if not check.table["observed"].equals(first.table["observed"]):
            raise ValueError(
                "checks are of other statistics or other data: expected the same observed values in all of them. Make "
                "them from draws for the same rows."
            )
    unit = first.table["sd"].to_numpy()
    unit = np.where(unit > 0, unit, 1.0)  # a statistic that is the same in all data sets
    height = np.arange(len(unit))
    with own_axes(ax, found, 0.9 + 0.36 * len(unit)) as drawn:
        drawn.axvline(0.0, color="black", linewidth=1.2)
        for i, (label, check) in enumerate(found.items()):
            away = (check.replicated.to_numpy() - first.table["observed"].to_numpy()) / unit
            low, near, far, high = np.quantile(away, ENDS, axis=0)
            offset = height + 0.4 * ((i + 1) / (len(found) + 1) * 2 - 1)
            drawn.hlines(offset, low, high, color=colour(i), linewidth=1.2)
            drawn.hlines(offset, near, far, color=colour(i), linewidth=3.6)
            drawn.plot(away.mean(axis=0), offset, marker(i), color=colour(i), markersize=6, label=label)
        drawn.set_xlabel("replicated − observed (sds of the replicated)")
        return rows(drawn, _names(found))


def _check(item: Any) -> PredictiveCheck:
    if isinstance(item, FitResult) or is_arviz(item):
        return posterior_predictive_check(item)
    if not isinstance(item, PredictiveCheck):
        raise TypeError(
            f"checks has a {type(item).__name__}: expected what posterior_predictive_check returns, an ArviZ object or "
            "a FitResult."
        )
    return item


def _names(checks: dict[str, PredictiveCheck]) -> list[str]:
    """Names of statistics, with the p-value where there is one run."""
    (_, first), *others = checks.items()
    p = first.table["p_value"]
    return [str(name) if others else f"{name} (p = {value:.2f})" for name, value in p.items()]
