r"""Pareto-smoothed importance sampling: what the largest weights say about all of them.

Weights :math:`w = p(x, z) / q(z)` of draws of a guide. The largest are replaced by the quantiles of a generalised
Pareto distribution fitted to them; its shape :math:`\hat k` says how heavy their tail is (Vehtari et al. 2024,
arXiv 1507.02646). ArviZ does the fit.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["MIN_DRAWS", "Smoothed", "k_hat_threshold", "resampled", "smooth"]

Array: TypeAlias = NDArray[np.floating[Any]]

MIN_DRAWS = 100
"""Draws below which no tail is fitted: the threshold would be under 0.5, and the tail hold less than 20 of them."""

DEEPEST = 700.0
"""Nats below the largest weight at which others are 0 in double precision."""

EQUAL = 1e-5
"""Log weights that differ by less, in nats, are equal: what is left is rounding, and nothing to correct."""


class Smoothed(NamedTuple):
    r"""Smoothed weights and what they are worth.

    Args:
        log_weights: of each draw (draw, ...), normalised: their exponentials add up to 1 over draws.
        k_hat: shape of the tail (...); minus infinity where all weights, or all in the tail, are equal; infinity where
            a quarter of the tail are ties, as with few values of a discrete latent, or nothing beside the largest
            weight, as for a guide that misses its posterior: there is no shape to fit.
        ess: effective sample size :math:`1 / \sum_s w_s^2` of the smoothed weights (...), in draws.
    """

    log_weights: Array
    k_hat: Array
    ess: Array


def k_hat_threshold(draws: int) -> float:
    r"""The largest :math:`\hat k` up to which so many draws can be corrected: min(1 − 1/log₁₀ S, 0.7).

    Args:
        draws: S.

    Raises:
        ValueError: for too few draws.

    Example:
        >>> k_hat_threshold(100), round(k_hat_threshold(1000), 3), k_hat_threshold(10_000)
        (0.5, 0.667, 0.7)
    """
    if draws < MIN_DRAWS:
        raise ValueError(
            f"{draws} draws are too few for k-hat, whose tail is fitted to a fifth of the draws at most: expected at "
            f"least {MIN_DRAWS}. Write num_samples={MIN_DRAWS}, better 1000."
        )
    return min(1 - 1 / math.log10(draws), 0.7)


def smooth(log_w: Array) -> Smoothed:
    """Smooth log weights over draws.

    Args:
        log_w: log weights (draw, ...) in nats, up to a constant.

    Raises:
        ValueError: for too few draws, or weights that are NaN, infinite or all zero.
    """
    log_w = np.asarray(log_w, dtype=float)
    k_hat_threshold(len(log_w))
    largest = log_w.max(axis=0)
    bad = int(np.isnan(log_w).sum() + np.isposinf(log_w).sum())
    if bad or not np.isfinite(largest).all():
        raise ValueError(
            f"log weights: {bad} are NaN or infinite, {int(np.isneginf(largest).sum())} columns have no weight above "
            "zero: expected log p(x, z) and log q(z) to be finite. Check the supports of guide and model."
        )
    columns = [_smooth_one(column) for column in (log_w - largest).reshape(len(log_w), -1).T]
    weights = np.stack([column[0] for column in columns], axis=1).reshape(log_w.shape)
    k_hat = np.array([column[1] for column in columns]).reshape(log_w.shape[1:])
    return Smoothed(weights, k_hat, np.exp(-np.logaddexp.reduce(2 * weights, axis=0)))


def _smooth_one(log_w: Array) -> tuple[Array, float]:
    """Normalised smoothed weights of one column whose largest log weight is 0, and the shape of its tail."""
    raw = log_w - np.logaddexp.reduce(log_w)
    size = int(min(len(log_w) / 5, 3 * math.sqrt(len(log_w))))
    cutoff, *tail = np.sort(log_w)[-size - 1 :]
    if log_w.min() > -EQUAL or cutoff > -EQUAL:
        return raw, -math.inf
    if tail[size // 4] - cutoff <= 0 or tail[size // 4] < -DEEPEST:
        return raw, math.inf
    from arviz_stats.base.array import array_stats  # heavy; of both lines of ArviZ

    smoothed, k_hat = array_stats.psislw(-log_w)  # which takes log ratios as LOO has them: minus those of weights
    return np.asarray(smoothed), float(k_hat)


def resampled(log_weights: Array) -> NDArray[np.intp]:
    """Numbers of draws, as many as there are, each drawn in proportion to its weight.

    The resampling is systematic, so a draw comes within one of its weight times the number of draws; the order is
    random. It draws from torch's generator.

    Args:
        log_weights: normalised (draw, ...), each column resampled by itself.
    """
    draws = len(log_weights)
    columns = np.exp(log_weights).reshape(draws, -1)
    starts = torch.rand(columns.shape[1], dtype=torch.float64).numpy()
    chosen = np.empty(columns.shape, dtype=np.intp)
    for i, (weights, start) in enumerate(zip(columns.T, starts, strict=True)):
        ends = np.cumsum(weights) / weights.sum()
        found = np.searchsorted(ends, (np.arange(draws) + start) / draws, side="right")
        chosen[:, i] = np.minimum(found, draws - 1)[torch.randperm(draws).numpy()]
    return chosen.reshape(log_weights.shape)
