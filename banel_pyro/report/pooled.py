r"""Numbers of runs at one λ, pooled over their seeds, with errors over seeds and over data.

The same rows judge every seed, so that values :math:`v_{si}` of seed s and row i have errors of three kinds: those of
a seed (another training run), of a row (other data), and of both together,

    v_si = m + a_s + b_i + e_si,    Var(mean) = σ_a²/S + σ_b²/N + σ_e²/(S N).

The mean squares of a two-way layout estimate it without bias: (MS_seeds + MS_rows − MS_rest) / (S N).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from banel_pyro.terms import Estimate

__all__ = ["Scores", "paired", "pooled", "pooled_estimates"]

Array: TypeAlias = NDArray[np.floating[Any]]

Scores: TypeAlias = Mapping[int, "Array | Estimate"]
"""By seed: a vector (datum) in nats, or an estimate with an error of its own where rows share latents."""


def pooled(values: Array) -> Estimate:
    r"""The mean of values of seeds and rows, with an error over both.

    With one seed the error is over rows alone, with one row over seeds alone. Differences of a few seeds are noisy
    themselves: of three, a standard error is known to about half.

    Args:
        values: (seed, datum) in nats.

    Raises:
        ValueError: for another number of axes, or no values.

    Example:
        >>> pooled(np.array([[1.0, 2.0], [3.0, 4.0]]))  # rows differ by 1, seeds by 2, and nothing is left
        Estimate(value=2.5, stderr=1.118033988749895)
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"values have the shape {values.shape}: expected (seed, datum), one of each at least.")
    seeds, rows = values.shape
    mean = float(values.mean())
    of_seeds, of_rows = values.mean(axis=1), values.mean(axis=0)
    seeds_square = rows * float(of_seeds.var(ddof=1)) if seeds > 1 else 0.0
    rows_square = seeds * float(of_rows.var(ddof=1)) if rows > 1 else 0.0
    if seeds == rows == 1:
        return Estimate(mean, math.nan)
    rest = 0.0
    if seeds > 1 and rows > 1:
        left = values - of_seeds[:, None] - of_rows + mean
        rest = float((left**2).sum()) / ((seeds - 1) * (rows - 1))
    # it may come out less than what rows or seeds alone contribute, and then it is an accident
    square = max(seeds_square + rows_square - rest, seeds_square, rows_square)
    return Estimate(mean, math.sqrt(square / (seeds * rows)))


def pooled_estimates(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of one number per seed, with the larger of two errors: that between seeds, and their own.

    Args:
        estimates: one per seed, in nats.
    """
    values = np.array([[estimate.value] for estimate in estimates])
    if not np.isfinite(values).all():  # the entropy of a point
        return Estimate(float(values.mean()), math.nan)
    own = math.sqrt(sum(estimate.stderr**2 for estimate in estimates)) / len(estimates)
    found = pooled(values)
    return Estimate(found.value, own if math.isnan(found.stderr) else max(found.stderr, own))


def paired(scores: Scores, reference: Scores) -> Estimate | None:
    """Mean difference of two λ over the seeds that both have, row by row where rows have scores of their own.

    Args:
        scores: by seed, in nats.
        reference: the same of the λ to compare with.

    Returns:
        The difference in nats, with its error over seeds and rows; None without a common seed.
    """
    seeds = [seed for seed in scores if seed in reference]
    pairs = [(scores[seed], reference[seed]) for seed in seeds]
    if not pairs:
        return None
    vectors = [(a, b) for a, b in pairs if not isinstance(a, Estimate) and not isinstance(b, Estimate)]
    if len(vectors) == len(pairs):
        return pooled(np.stack([a - b for a, b in vectors]))
    both = [(a, b) for a, b in pairs if isinstance(a, Estimate) and isinstance(b, Estimate)]
    return pooled_estimates([Estimate(a.value - b.value, math.hypot(a.stderr, b.stderr)) for a, b in both])
