r"""Tests of the ranks of true values among posterior draws: uniform, symmetric, or those of a tempered posterior.

With L draws of the guide, the rank of the true value is 0 to L. Where the guide is the posterior, ranks are uniform
(Cook, Gelman, Rubin 2006; Talts et al. 2018, arXiv 1804.06788).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from banel_pyro.checks import integer

__all__ = ["EcdfBand", "Significance", "ecdf_band", "symmetry", "tempered_ranks", "uniformity"]

Array = NDArray[np.float64]

MOST_BINS = 20
LEAST_EXPECTED = 5  # in a bin, below which the chi-square law is a poor approximation


class Significance(NamedTuple):
    """A test.

    Attributes:
        statistic: its statistic.
        p_value: probability of at least this statistic if the hypothesis holds.
    """

    statistic: float
    p_value: float


class EcdfBand(NamedTuple):
    """An empirical distribution function with the band that a uniform one stays in as a whole.

    Attributes:
        x: where it is evaluated.
        ecdf: the share of values up to there.
        low: lower end of the band.
        high: upper end.
    """

    x: Array
    ecdf: Array
    low: Array
    high: Array

    @property
    def inside(self) -> bool:
        """Whether the function stays in the band."""
        return bool(((self.low <= self.ecdf) & (self.ecdf <= self.high)).all())


def uniformity(ranks: ArrayLike, num_draws: int, *, probabilities: ArrayLike | None = None) -> Significance:
    r"""The chi-square test that ranks follow a law, by default that all are as likely.

    :math:`\chi^2 = \sum_b (n_b - M p_b)^2 / (M p_b)` over bins of neighbouring ranks, with M ranks, on one degree of
    freedom less than there are bins: at most 20, of about equal probability, with 5 expected in each.

    Args:
        ranks: whole numbers from 0 to ``num_draws``, one for each simulation.
        num_draws: L, draws that a true value was ranked among.
        probabilities: (L + 1) of the ranks 0 to L, such as :func:`tempered_ranks`.

    Raises:
        ValueError: for fewer than 10 ranks, ranks out of range, or probabilities that are none.

    Example:
        >>> uniformity([0, 1, 2, 3] * 25, 3).statistic
        0.0
    """
    found = _checked_ranks(ranks, num_draws)
    p = np.full(num_draws + 1, 1 / (num_draws + 1)) if probabilities is None else np.asarray(probabilities, dtype=float)
    if p.shape != (num_draws + 1,) or not (p >= 0).all() or abs(p.sum() - 1) > 1e-6:
        raise ValueError(
            f"probabilities have the shape {p.shape} and the sum {p.sum():g}: expected {num_draws + 1} of them, one "
            "for each rank from 0, with sum 1."
        )
    bins = max(2, min(MOST_BINS, len(found) // LEAST_EXPECTED))
    owner = np.minimum((np.cumsum(p) - p / 2) * bins, bins - 1).astype(int)
    expected = len(found) * np.bincount(owner, p, minlength=bins)
    counts = np.bincount(owner[found], minlength=bins)
    used = expected > 0
    if counts[~used].any():
        return Significance(math.inf, 0.0)
    statistic = float((np.square(counts - expected)[used] / expected[used]).sum())
    half = torch.tensor([(int(used.sum()) - 1) / 2, statistic / 2], dtype=torch.float64)
    return Significance(statistic, float(torch.special.gammaincc(half[0], half[1])))


def symmetry(values: ArrayLike) -> Significance:
    r"""The Kolmogorov-Smirnov test that values are distributed symmetrically around 1/2.

    The statistic is :math:`\sup_x |F(x) - G(x)|`, where F is the distribution function of the M values p and G that of
    1 − p (VSBC: Yao, Vehtari, Simpson, Gelman 2018, arXiv 1802.02538). A sample and its mirror image are not
    independent, and the usual tables for two samples reject too often: about 11 % of the time at 5 %. Under symmetry
    the signs of p − 1/2 are coins, and M times the statistic is the furthest that a walk of M coins gets from 0 (Butler
    1969): the p-value is the exact one of that, where no two values are equally far from 1/2, and too large otherwise.

    Args:
        values: numbers from 0 to 1, one for each simulation.

    Raises:
        ValueError: for fewer than 10 values, or some out of range.

    Example:
        >>> symmetry([0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6, 0.45, 0.55]).statistic
        0.0
    """
    p = np.asarray(values, dtype=float)
    if p.ndim != 1 or len(p) < 10 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"values have the shape {p.shape}: expected at least 10 numbers from 0 to 1, in one axis.")
    far = np.abs(p - 0.5).round(12)
    order = np.argsort(-far, kind="stable")
    walk = np.cumsum(np.sign(p - 0.5)[order] * (far[order] > 0))
    ends = np.append(np.diff(far[order]) != 0, True)  # values that are equally far from 1/2 count together
    furthest = int(np.abs(walk[ends]).max())
    return Significance(furthest / len(p), _walk_reaches(furthest, int((far > 0).sum())))


def _walk_reaches(level: int, steps: int) -> float:
    """Probability that a walk of fair steps ±1 gets as far from 0 as ``level``."""
    if level == 0:
        return 1.0
    inside = np.zeros(2 * level + 1)
    inside[level] = 1.0
    # what arrives at an end is not carried on
    for _ in range(steps):
        inside[1:-1] = 0.5 * (inside[:-2] + inside[2:])
    return float(1 - inside.sum())


def tempered_ranks(num_draws: int, lam: float) -> Array:
    r"""Probability of each rank where the posterior is Gaussian, and so is the guide, but for a variance T times that.

    With :math:`T = 1 - \lambda`, the true value lies at the quantile :math:`u = \Phi(Z / \sqrt{T})` of the guide, where
    Z is standard normal, and its rank among L draws has :math:`P(r) = E_Z[\operatorname{Bin}(r; L, u)]`.
    For λ > 0 ranks pile up at both ends. By quadrature, to nine digits for λ up to 0.999.

    Args:
        num_draws: L.
        lam: λ, below 1.

    Returns:
        An array (L + 1).

    Raises:
        ValueError: for λ of 1 or more.

    Example:
        >>> tempered_ranks(3, 0.0).round(6).tolist()
        [0.25, 0.25, 0.25, 0.25]
    """
    integer("num_draws", num_draws)
    if not lam < 1:
        raise ValueError(f"lam={lam!r}: expected a number below 1; from 1 on the guide is a point.")
    z = torch.linspace(-9.0, 9.0, 18_001, dtype=torch.float64)
    below, above = (torch.special.log_ndtr(sign * z / math.sqrt(1 - lam)) for sign in (1.0, -1.0))
    r = torch.arange(num_draws + 1, dtype=torch.float64)[:, None]
    log_ways = math.lgamma(num_draws + 1) - torch.lgamma(r + 1) - torch.lgamma(num_draws - r + 1)
    log_terms = log_ways + r * below + (num_draws - r) * above - 0.5 * z**2
    weights = log_terms.exp() * (z[1] - z[0]) / math.sqrt(2 * math.pi)
    return np.asarray(weights.sum(-1).numpy())


def ecdf_band(values: ArrayLike, *, prob: float = 0.95, num_trials: int = 1000) -> EcdfBand:
    """The distribution function of values with a simultaneous band for uniform ones, both from ArviZ.

    The band is simulated, under a seed of its own (Säilynoja, Bürkner, Vehtari 2022, arXiv 2103.10522).

    Args:
        values: numbers from 0 to 1, one for each simulation.
        prob: probability that a uniform sample stays in the band.
        num_trials: simulated samples.

    Raises:
        ValueError: for fewer than 10 values, or a probability outside (0, 1).
    """
    p = np.asarray(values, dtype=float)
    if p.ndim != 1 or len(p) < 10:
        raise ValueError(f"values have the shape {p.shape}: expected at least 10 numbers, in one axis.")
    if not 0 < prob < 1:
        raise ValueError(f"prob={prob!r}: expected a probability between 0 and 1, such as 0.95.")
    x, low, high = _band(len(p), prob, integer("num_trials", num_trials))
    return EcdfBand(x, np.searchsorted(np.sort(p), x, side="right") / len(p), low, high)


@lru_cache(maxsize=16)
def _band(size: int, prob: float, num_trials: int) -> tuple[Array, Array, Array]:
    """Where the band is evaluated, and its ends: they depend on the number of values only."""
    from arviz_stats.ecdf_utils import ecdf_pit  # heavy; the same in both lines of ArviZ

    x, _, low, high = ecdf_pit(np.zeros(size), prob, num_trials)
    return np.asarray(x), np.asarray(low), np.asarray(high)


def _checked_ranks(ranks: ArrayLike, num_draws: int) -> NDArray[np.int64]:
    integer("num_draws", num_draws)
    found = np.asarray(ranks)
    if found.ndim != 1 or len(found) < 10 or found.dtype.kind not in "iu":
        raise ValueError(
            f"ranks are {found.dtype} of shape {found.shape}: expected at least 10 whole numbers, in one axis."
        )
    if found.min() < 0 or found.max() > num_draws:
        raise ValueError(
            f"ranks go from {found.min()} to {found.max()}: expected 0 to {num_draws}, the number of draws."
        )
    return found.astype(np.int64)
