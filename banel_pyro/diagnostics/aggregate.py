r"""The aggregate posterior of some rows, :math:`q(z) = \frac1N \sum_n q(z \mid x_n)`: its density and what it tells.

The mixture is over all N rows and known in closed form, the row that a draw comes from among them, as Hoffman and
Johnson define it (2016, "ELBO surgery"). Given the rows nothing is biased; what rests on chance are draws z alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["MEASURES", "Conditional", "LogDensities", "decompose", "effective_dimension", "log_aggregate"]

Array: TypeAlias = NDArray[np.floating[Any]]

ELEMENTS = 2**20
"""Numbers of log q that are in memory at a time: those of some points under all rows of a part."""

MEASURES = ("kl", "mutual_information", "marginal_kl", "total_correlation", "dimension_kl")
"""What :func:`decompose` takes the KL apart into."""


@dataclass(frozen=True)
class Conditional:
    """The posteriors of some rows, which factorise over the numbers of z.

    Args:
        rows: how many there are.
        log_prob: log q(z_k | x_n) in nats, (point, row, number), of points (point, number).
    """

    rows: int
    log_prob: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LogDensities:
    r"""Log densities, in nats, at draws :math:`z_{sn}` of the posterior of each row.

    Args:
        own: :math:`\log q(z_k \mid x_n)`, (draw, row, number).
        prior: :math:`\log p(z_k)`, (draw, row, number).
        marginal: :math:`\log q(z_k)` of the aggregate posterior, (draw, row, number).
        joint: :math:`\log q(z)` of the aggregate posterior, (draw, row).
        kl: :math:`\mathrm{KL}(q(z_k \mid x_n) \,\|\, p(z_k))` in closed form, (row, number).
    """

    own: Array
    prior: Array
    marginal: Array
    joint: Array
    kl: Array


@torch.no_grad()
def log_aggregate(conditionals: Sequence[Conditional], points: Tensor) -> tuple[Array, Array]:
    r"""log density of the aggregate posterior: a full mixture over all rows, some points at a time.

    .. math::
        \log q(z) = \log \frac1N \sum_n \prod_k q(z_k \mid x_n), \qquad
        \log q(z_k) = \log \frac1N \sum_n q(z_k \mid x_n)

    The work is points times rows times numbers; rows that are cut into other parts change no more than rounding.

    Args:
        conditionals: the posteriors of all rows, in parts.
        points: z, (point, number).

    Returns:
        log q(z) (point) and log q(z_k) (point, number), in nats.
    """
    count = sum(part.rows for part in conditionals)
    joint = torch.full((len(points),), -math.inf, dtype=torch.float64, device=points.device)
    marginal = torch.full(points.shape, -math.inf, dtype=torch.float64, device=points.device)
    for part in conditionals:
        step = max(1, ELEMENTS // max(1, part.rows * points.shape[1]))
        for start in range(0, len(points), step):
            here = slice(start, start + step)
            log_q = part.log_prob(points[here]).double()
            joint[here] = torch.logaddexp(joint[here], log_q.sum(-1).logsumexp(1))
            marginal[here] = torch.logaddexp(marginal[here], log_q.logsumexp(1))
    return (joint - math.log(count)).cpu().numpy(), (marginal - math.log(count)).cpu().numpy()


def decompose(found: LogDensities) -> tuple[pd.DataFrame, pd.DataFrame]:
    r"""The mean KL of rows to the prior, taken apart in two ways.

    .. math::
        \frac1N \sum_n \mathrm{KL}\big(q(z \mid x_n) \,\|\, p(z)\big) = I_q(x; z) + \mathrm{KL}(q(z) \,\|\, p(z))

    .. math::
        \mathrm{KL}\big(q(z) \,\|\, p(z)\big) = \mathrm{TC}(z) + \sum_k \mathrm{KL}\big(q(z_k) \,\|\, p(z_k)\big)

    with :math:`I_q(x; z) = E[\log q(z \mid x) - \log q(z)]` and
    :math:`\mathrm{TC}(z) = E[\log q(z) - \sum_k \log q(z_k)]` (Hoffman and Johnson 2016; Chen et al. 2018, arXiv
    1802.04942). The mean KL is known in closed form. Its draws, :math:`\log q(z \mid x) - \log p(z)`, less that
    value, are a control variate of all the others, with one regression coefficient, so that both sums hold exactly.

    ``stderr`` is of the finite draws, given the rows. Draws of different rows are independent: what they share, the
    mixture, is no estimate. ``rows_stderr`` is that of rows which are a sample of more. It is by the influence
    function of a row, in which the mixture does not appear to first order: for the mutual information
    :math:`\mathrm{KL}(q(z \mid x_n) \,\|\, q(z)) - I_q`; of a marginal KL near 0 it is cautious, and of a total
    correlation near 0 it means nothing. ``rows_bias`` is the value less what more rows would make of it, to first
    order in 1/N: for the mutual information :math:`-(E[q(z \mid x) / q(z)] - 1) / 2N`. It is itself too small, and
    far too small where rows are told apart by their z, as the ratio cannot exceed N.

    Args:
        found: log densities at two draws or more of two rows or more.

    Returns:
        A row for each of :data:`MEASURES` with ``value``, ``stderr``, ``rows_stderr`` and ``rows_bias`` in nats a row;
        and a row for each number of z with ``mutual_information``, ``mutual_information_stderr`` and ``marginal_kl``.
    """
    gain, gains = found.own.sum(-1) - found.joint, found.own - found.marginal
    noise = found.own - found.prior - found.kl  # of mean 0
    slope = _slope(gain, noise.sum(-1))
    if slope:
        gain, gains = gain - slope * noise.sum(-1), gains - slope * noise
    kl = np.broadcast_to(found.kl, gains.shape)
    draws = (kl.sum(-1), gain, kl.sum(-1) - gain, gains.sum(-1) - gain, (kl - gains).sum(-1))
    biases = _biases(found)
    measures = {
        name: {
            "value": each.mean(),
            "stderr": float(_draws_error(each)),
            "rows_stderr": each.mean(0).std(ddof=1) / math.sqrt(each.shape[1]),
            "rows_bias": bias,
        }
        for name, each, bias in zip(MEASURES, draws, biases, strict=True)
    }
    numbers = {
        "mutual_information": gains.mean((0, 1)),
        "mutual_information_stderr": _draws_error(gains),
        "marginal_kl": found.kl.mean(0) - gains.mean((0, 1)),
    }
    return pd.DataFrame.from_dict(measures, orient="index"), pd.DataFrame(numbers)


def _slope(values: Array, noise: Array) -> float:
    """The coefficient of a control variate (draw, row) of mean 0, by regression within rows."""
    if not (np.isfinite(values).all() and np.isfinite(noise).all()):
        return 0.0  # a KL that is infinite controls nothing
    centred = noise - noise.mean(0)
    size = float((centred**2).sum())
    return float((centred * values).sum()) / size if size > 0 else 0.0


def _draws_error(values: Array) -> Array:
    """Standard error of the mean of draws (draw, row, ...), given the rows; a coefficient was fitted to them."""
    draws, rows = values.shape[:2]
    freedom = rows * (draws - 1) / (rows * (draws - 1) - 1)
    error: Array = np.sqrt(values.var(0, ddof=1).mean(0) * freedom / (draws * rows))
    return error


def _biases(found: LogDensities) -> tuple[float, ...]:
    """By measure: the second derivative of the mixture's entropy is minus the mean ratio of densities."""
    rows = found.joint.shape[1]
    whole = float(np.exp(found.own.sum(-1) - found.joint).mean() - 1) / (2 * rows)
    numbers = float((np.exp(found.own - found.marginal).mean((0, 1)) - 1).sum()) / (2 * rows)
    return 0.0, -whole, whole, whole - numbers, numbers


def effective_dimension(means: Array) -> float:
    r"""How many directions the posterior means of rows take up: the participation ratio of their covariance.

    .. math::
        d = \frac{(\sum_i \lambda_i)^2}{\sum_i \lambda_i^2}

    with eigenvalues :math:`\lambda_i` (Gao et al. 2017, "A theory of multineuronal dimensionality, dynamics and
    measurement", doi 10.1101/214262). It is between 1 and the number of dimensions, and 0 where no mean varies. It
    depends on the units of the dimensions.

    Args:
        means: (row, number).

    Example:
        >>> float(effective_dimension(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])))
        2.0
    """
    covariance = np.cov(means, rowvar=False, ddof=0).reshape(means.shape[1], -1)
    squares = float((covariance**2).sum())  # of the eigenvalues, too
    return float(np.trace(covariance)) ** 2 / squares if squares > 0 else 0.0
