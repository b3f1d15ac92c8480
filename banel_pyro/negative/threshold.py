"""Where a score is cut: a quantile of the candidates' scores, put where rounding moves no candidate across."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from banel_pyro.checks import number
from banel_pyro.terms import Estimate

__all__ = ["Cut", "filter_factor", "fraction", "quantile_cut"]

ULPS = 100
"""Units in the last place by which two evaluations of one candidate may differ.

In batches of other sizes the same candidate goes through sums in another order. Over the terms of a log-density the
last bits that differ add up to some units of its size: 100 of them are 1e-5 of it in float32 and 2e-14 in float64.
"""


@dataclass(frozen=True)
class Cut:
    """A threshold, and what it does to the candidates that it was chosen on.

    Args:
        log_tau: the threshold in nats, −∞ where nothing is rejected.
        factor: the filter factor that was asked for.
        candidates: how many there were.
        acceptance: the fraction of them that is not rejected, 1/factor but for ties.
        ties: the fraction of them whose score is that at the quantile, up to rounding.
    """

    log_tau: float
    factor: float
    candidates: int
    acceptance: float
    ties: float


def filter_factor(factor: Any) -> float:
    """A filter factor: more than 1.

    Raises:
        TypeError, ValueError: if it is none.
    """
    if number("factor", factor) <= 1:
        raise ValueError(
            f"factor={factor!r}: expected more than 1. The fraction 1 - 1/factor is rejected: a factor of 1 would "
            "filter nothing, and one below 1 nothing that there is. Write factor=2, which rejects a half; for no "
            "filter leave the region out."
        )
    return float(factor)


def quantile_cut(scores: Tensor, sizes: Tensor, factor: float, ties: str = "accept") -> Cut:
    r"""The threshold below which the fraction 1 − 1/f of the scores lies.

    Candidates whose scores are equal up to rounding are one group, of which the threshold never takes a part: it lies
    in the middle of the widest gap up to a rounding error beside the quantile, so that scores may differ in the last
    bits when they are evaluated again.

    Args:
        scores: of the candidates in nats, shape (n,), without NaN.
        sizes: of the largest finite term of each score in nats, shape (n,): its rounding error is relative to that,
            and not to the score, in which large terms may cancel.
        factor: the filter factor f, more than 1.
        ties: ``"accept"`` the group at the quantile, so that at least 1/f is accepted, and nothing rejected where the
            group has the lowest score; or ``"reject"`` it, unless nothing has a higher one.

    Raises:
        ValueError: for f of 1 or less, or fewer than f / (f − 1) candidates, of which none would be rejected.
    """
    n, f = len(scores), filter_factor(factor)
    rejected = n - max(1, math.ceil(n / f - 1e-9 * n))  # n/f may lie above a whole number by its rounding
    if n == 0 or rejected == 0:
        raise ValueError(
            f"{n} candidates are too few for factor={factor!r}: 1 - 1/factor of them is less than one. Draw at least "
            f"{math.ceil(f / (f - 1))}; hundreds place the quantile well."
        )
    error = _rounding(scores, sizes)
    ordered = scores.double().sort().values
    if ties == "reject" and ordered[rejected - 1] + error < ordered[-1]:
        at = float(ordered[rejected - 1])
        lowest = _first_above_gap(ordered, rejected - 1, int((ordered <= at + error).sum()))
    else:
        at = float(ordered[rejected])
        lowest = _first_above_gap(ordered, int((ordered < at - error).sum()) - 1, rejected)
    tied = int(((ordered >= at - error) & (ordered <= at + error)).sum()) / n
    log_tau = -math.inf if lowest == 0 else _between(float(ordered[lowest - 1]), float(ordered[lowest]), error)
    return Cut(log_tau, f, n, (n - lowest) / n, tied)


def _first_above_gap(ordered: Tensor, first: int, last: int) -> int:
    """The place above the widest gap between two places; 0 where the first lies before the lowest score."""
    if first < 0:
        return 0
    gaps = ordered[first : last + 1].diff().nan_to_num(nan=0.0, posinf=math.inf)  # between infinities is none
    return first + 1 + int(gaps.argmax())


def _rounding(scores: Tensor, sizes: Tensor) -> float:
    """By how many nats two evaluations of a candidate of typical size may differ."""
    kind = scores.dtype if scores.is_floating_point() else torch.float64
    return ULPS * torch.finfo(kind).eps * max(1.0, float(sizes.double().median()))


def _between(below: float, above: float, error: float) -> float:
    """The middle of a gap; next to its finite end, where the other one is infinite."""
    if math.isinf(above):  # nothing finite is as unlike the failures as what the failure model cannot make
        return below + error if math.isfinite(below) else 0.0
    return (below + above) / 2 if math.isfinite(below) else above - error


def fraction(accepted: int, drawn: int) -> Estimate:
    """A probability from counts, with its binomial standard error.

    Args:
        accepted: how often it came true.
        drawn: of how many times.

    Raises:
        ValueError: of none.
    """
    if not drawn:
        raise ValueError("an acceptance of 0 candidates: expected one or more to estimate it from. Draw some first.")
    mean = accepted / drawn
    return Estimate(mean, math.sqrt(mean * (1 - mean) / drawn))
