"""Whether one method succeeds more often than another: a paired comparison of log success rates over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

__all__ = ["LogRatio", "log_ratio"]


@dataclass(frozen=True)
class LogRatio:
    """The differences of log success rates, seed by seed.

    Args:
        pairs: how many seeds both have.
        ahead: at how many of them the first is higher.
        times: how many times as often the first succeeds, in the geometric mean; NaN where a rate is exactly 0.
        low: lower end of its 95 % interval by Student's t; NaN of one pair, or where all differences are one.
        high: upper end.
        t_p: two-sided p-value of the paired t test; NaN as its interval.
        wilcoxon_p: two-sided p-value of Wilcoxon's signed-rank test, which sees ranks only; NaN if no seeds differ.
    """

    pairs: int
    ahead: int
    times: float
    low: float
    high: float
    t_p: float
    wilcoxon_p: float


def log_ratio(first: Sequence[float], second: Sequence[float]) -> LogRatio:
    """Compare log success rates that are paired.

    Args:
        first: in nats, one a seed; −∞ for a rate of exactly 0, which only ranks can compare.
        second: of the same seeds.

    Example:
        >>> found = log_ratio([1.0, 2.0, 4.0], [0.0, 0.0, 0.0])
        >>> found.ahead, round(math.log(found.times), 3), round(found.t_p, 3), found.wilcoxon_p
        (3, 2.333, 0.118, 0.25)
    """
    pairs = list(zip(first, second, strict=True))
    d = np.array([0.0 if a == b else a - b for a, b in pairs])  # −∞ less −∞ is no difference
    n, ahead = len(d), int((d > 0).sum())
    finite = bool(np.isfinite(d).all())
    mean = float(d.mean()) if finite else math.nan
    error = float(d.std(ddof=1)) / math.sqrt(n) if finite and n > 1 else math.nan
    half, t_p = math.nan, math.nan
    if error > 1e-12 * abs(mean):  # else all differences are one, to rounding
        half = float(stats.t.ppf(0.975, n - 1)) * error
        t_p = 2 * float(stats.t.sf(abs(mean) / error, n - 1))
    return LogRatio(n, ahead, _exp(mean), _exp(mean - half), _exp(mean + half), t_p, _signed_ranks(d))


def _signed_ranks(d: np.ndarray) -> float:
    """Wilcoxon's p-value, of differences that may be infinite: those have the highest ranks, all the same."""
    moved = d[d != 0]
    if not len(moved):
        return math.nan
    most = float(np.abs(moved[np.isfinite(moved)]).max(initial=0.0)) + 1.0
    return float(stats.wilcoxon(np.clip(moved, -most, most)).pvalue)


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0)) if not math.isnan(value) else math.nan
