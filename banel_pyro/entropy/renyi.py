r"""Rényi entropy of distributions, in closed form or from draws, in nats.

.. math:: H_\alpha(q) = \frac{1}{1-\alpha} \log \int q(x)^\alpha \, dx, \qquad H_1(q) = -E_q[\log q].

It falls as α grows: α = 0 counts the support, α = 1 is Shannon's entropy, α = 2 minus the log of the
collision probability, α = ∞ minus the log of the largest probability. It adds over *independent* variables
only. It is not the Rényi *divergence* between two distributions, which some variational bounds are made of.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from banel_pyro.entropy.families import FAMILIES, FINITE, expm1_slope, log1p_slope
from banel_pyro.traces import WRAPPERS

__all__ = ["RenyiDiagnostic", "renyi_entropy", "renyi_from_log_q", "weight_excess"]

MIN_DRAWS = 25
"""Fewest draws to which the tail of a Pareto distribution is fitted."""
TIES = 10
"""How often each of a few values has to come back for their weights to be known."""


def check_order(alpha: float) -> float:
    """The order α as a float.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is negative or NaN.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float, np.number)):
        raise TypeError(
            f"alpha={alpha!r} is a {type(alpha).__name__}: expected a number >= 0, the order of the Rényi entropy. "
            "Write alpha=1.0 for Shannon's entropy, float(x) for a tensor x."
        )
    if not alpha >= 0:
        raise ValueError(
            f"alpha={alpha}: the order of a Rényi entropy must be >= 0. Write alpha=1.0 for Shannon's entropy, "
            "0 < alpha < 1 to weigh rare values more, alpha > 1 to weigh frequent values more."
        )
    return float(alpha)


def renyi_entropy(fn: Any, alpha: float) -> Tensor | None:
    r"""Rényi entropy :math:`H_\alpha(q) = (1-\alpha)^{-1} \log \int q^\alpha` of a distribution, in nats.

    Smooth through α = 1, where it is Shannon's, and differentiable in the parameters of ``fn``; for families with
    a location and a scale it differs from Shannon's by a constant. The families, and the exponential-family rule
    that most of them follow, are listed in :mod:`banel_pyro.entropy.families`.

    Args:
        fn: a distribution, possibly expanded, masked or with ``to_event``.
        alpha: the order α > 0; also 0 (Hartley's entropy, log of the number of possible values) and ``math.inf``
            (min-entropy) for families of finite support.

    Returns:
        A tensor that broadcasts to ``fn.batch_shape``, or None where no formula is known. A masked-out element has
        entropy 0. An element is -inf where α > 1 and :math:`q^\alpha` has no finite integral (Gamma, Beta and
        Dirichlet with a concentration a for which α(a - 1) + 1 <= 0), and +inf where α < 1 (StudentT with
        α <= 1/(1 + ν), InverseGamma with α <= 1/(1 + a)); its gradient is 0 there.

    Raises:
        TypeError: if α is not a number.
        ValueError: if α is negative or NaN, or 0 or ∞ for a family whose support is not finite.

    References:
        Rényi 1961, On measures of entropy and information. Nielsen and Nock 2011, arXiv 1105.3259.

    Example:
        >>> coin = dist.Bernoulli(torch.tensor(0.5))
        >>> [round(renyi_entropy(coin, alpha).item(), 4) for alpha in (0.0, 1.0, math.inf)]
        [0.6931, 0.6931, 0.6931]
        >>> renyi_entropy(dist.Gamma(0.3, 1.0), 2.0)
        tensor(-inf)
    """
    alpha = check_order(alpha)
    if not isinstance(fn, WRAPPERS):
        if (alpha == 0 or math.isinf(alpha)) and not isinstance(fn, FINITE):
            _refuse_limit(fn, alpha)
        kind: Any = type(fn)
        family = _family(kind)
        return None if family is None else family(fn, alpha)
    if isinstance(fn, dist.MaskedDistribution):
        entropy = renyi_entropy(fn.base_dist, alpha)
        # expand first: a mask may be larger than the distribution's parameters
        return None if entropy is None else scale_and_mask(entropy.expand(fn.batch_shape), 1.0, fn._mask)
    if isinstance(fn, dist.ExpandedDistribution):
        entropy = renyi_entropy(fn.base_dist, alpha)
        return None if entropy is None else entropy.expand(fn.batch_shape)
    entropy = renyi_entropy(fn.base_dist, alpha)
    if entropy is None or not fn.reinterpreted_batch_ndims:
        return entropy
    return entropy.expand(fn.base_dist.batch_shape).sum(list(range(-fn.reinterpreted_batch_ndims, 0)))


@cache
def _family(kind: Any) -> Callable[[Any, float], Tensor] | None:
    return next((FAMILIES[base] for base in kind.__mro__ if base in FAMILIES), None)


def _refuse_limit(fn: Any, alpha: float) -> None:
    name, instead = ("Hartley entropy", "alpha=0.1") if alpha == 0 else ("min-entropy", "alpha=100.0")
    families = ", ".join(family.__name__ for family in FINITE)
    raise ValueError(
        f"alpha={alpha:g} ({name}) of {type(fn).__name__}: it is for finite supports only ({families}). "
        f"Write a positive finite order, {instead} say."
    )


# ---- from draws --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RenyiDiagnostic:
    r"""What a Monte-Carlo Rényi entropy is worth.

    Its bias is of order 1/K only where the weights :math:`q(z_k)^{\alpha-1}` have a finite variance.

    Args:
        stderr: jackknife standard error in nats, shape of the value; NaN for one draw.
        ess: effective sample size of the weights, in draws, 1 to K.
        log_weights: :math:`(\alpha - 1) \log q(z_k)`, draws first, detached.
    """

    stderr: Tensor
    ess: Tensor
    log_weights: Tensor = field(repr=False)

    def pareto_k(self) -> Tensor:
        r"""Shape k̂ of the Pareto distribution fitted to the largest weights, shape of the value.

        -inf where all are alike, or a few values come back again and again; NaN for fewer than 25 draws. It leaves the
        device, so it is worked out when asked for only. Reference: Vehtari et al. 2024, arXiv 1507.02646.
        """
        weights = self.log_weights.double().cpu().numpy()
        columns = weights.reshape(len(weights), -1).T
        k_hat = torch.tensor([_pareto_k(column) for column in columns], dtype=torch.float64)
        return k_hat.reshape(self.ess.shape).to(self.ess)

    def trusted(self) -> Tensor:
        """Whether k̂ is below min(1 - 1/log10 K, 0.7), as booleans; False where it cannot be told."""
        draws = len(self.log_weights)
        return self.pareto_k() < min(1 - 1 / math.log10(draws), 0.7) if draws > 1 else self.ess < 0


def _pareto_k(log_weights: np.ndarray[Any, Any]) -> float:
    from arviz_stats.base.array import array_stats  # late: it is slow to import

    if len(log_weights) < MIN_DRAWS or not np.isfinite(log_weights).all():
        return math.nan
    values, inverse, counts = np.unique(log_weights, return_inverse=True, return_counts=True)
    if len(values) == 1:
        return -math.inf
    tail = math.ceil(min(0.2 * len(log_weights), 3 * math.sqrt(len(log_weights))))
    top = counts[::-1][: int(np.searchsorted(np.cumsum(counts[::-1]), tail)) + 1]
    if len(top) <= tail / 5 and top.min() >= TIES:
        return -math.inf  # a handful of values, all of them well known: there is no tail to fit
    # draws that tie, as those of a discrete site do, are spread out down to the next smaller value: the fit needs it
    rank = np.arange(len(log_weights)) - np.repeat(np.cumsum(counts) - counts, counts)
    share = (rank + 1) / np.repeat(counts, counts)
    group = np.sort(inverse)
    spread = values[group] - (1 - share) * (values[group] - values[np.maximum(group - 1, 0)])
    spread[: counts[0]] -= np.arange(counts[0])[::-1] * 1e-9
    return float(array_stats.psislw(-spread)[1])  # it takes minus the log weights


def renyi_from_log_q(log_q: Tensor, alpha: float, dim: int = 0) -> tuple[Tensor, RenyiDiagnostic]:
    r"""Rényi entropy from the log densities of K draws, with a jackknife correction of its bias.

    .. math::
        \hat H_\alpha = \frac{1}{1-\alpha} \log \frac1K \sum_k q(z_k)^{\alpha-1}, \qquad z_k \sim q,

    and :math:`K \hat H_\alpha - (K-1) \frac1K \sum_k \hat H_\alpha^{(-k)}`, which takes its bias of order 1/K away;
    at α = 1 both are the mean of :math:`-\log q`. ``log_q`` is the *joint* density of all that the entropy is
    of: sums of entropies are right for independent variables only.

    The value is differentiable in ``log_q``, which is all for reparameterised draws. For others the gradient of
    :math:`-\sum_k (w_k - 1/K) \log q(z_k)/(\alpha - 1)` comes on top, with the normalised weights
    :math:`w_k \propto q(z_k)^{\alpha-1}` held fixed: ``diagnostic.log_weights.softmax(0)``.

    Args:
        log_q: log densities in nats, K along ``dim``.
        alpha: the order α, 0 < α < ∞.
        dim: axis of the draws.

    Returns:
        The estimate in nats, with the axis of the draws gone, and a :class:`RenyiDiagnostic`. Where
        ``diagnostic.trusted()`` is false, neither the value nor its standard error means much:
        N(0, I) in 20 dimensions at α = 0.3 is 1.4 nats too low with a thousand draws, on average.

    Raises:
        TypeError: if α is not a number.
        ValueError: if α is negative, NaN, 0 or ∞, or if there are too few draws: one draw serves α = 1 only.

    Example:
        >>> z = torch.distributions.Normal(0.0, 1.0)
        >>> value, diagnostic = renyi_from_log_q(z.log_prob(torch.linspace(-2, 2, 100)), 2.0)
        >>> value.shape, diagnostic.stderr.shape
        (torch.Size([]), torch.Size([]))
    """
    alpha = check_order(alpha)
    if alpha == 0 or math.isinf(alpha):
        raise ValueError(
            f"alpha={alpha:g}: draws say nothing about values that they do not hold. Write 0 < alpha < inf, or use the "
            "closed form of a family of finite support."
        )
    log_q = log_q.movedim(dim, 0)
    draws, d = len(log_q), alpha - 1
    if draws < 1 or (draws == 1 and d):
        raise ValueError(
            f"alpha={alpha:g} with {draws} draw(s) along axis {dim} of log_q: expected at least 2. Write "
            "num_particles=2 or more with vectorize_particles=True, or alpha=1.0, which one draw serves."
        )
    eps = torch.finfo(log_q.dtype).eps
    # next to α = 1 this has few digits left, but its error enters the corrected value squared only
    plain = (math.log(draws) - torch.logsumexp(d * log_q, 0)) / d if abs(d) > eps else -log_q.mean(0)
    # leaving draw k out moves the estimate by -log(1 - (K w_k - 1)/(K - 1))/d, w_k the normalised weights
    excess = expm1_slope(log_q + plain, d)
    rest = max(draws - 1, 1)
    most = rest * (1 - 4 * eps)  # one draw has all the weight; rounding has to leave something below 1
    if d > 0:
        excess = excess.clamp(max=most / d)
    elif d < 0:
        excess = excess.clamp(min=most / d)
    moved = log1p_slope(-excess / rest, d).neg()
    value = plain - rest * moved.mean(0)
    return value, _diagnostic(d * log_q.detach(), moved.detach())


def weight_excess(log_weights: Tensor, alpha: float) -> Tensor:
    r""":math:`(K w_k - 1)/(\alpha - 1)` of normalised weights :math:`w_k \propto q(z_k)^{\alpha-1}`, smooth at α = 1.

    Args:
        log_weights: :math:`(\alpha - 1) \log q(z_k)`, draws first, as in a :class:`RenyiDiagnostic`.
        alpha: the order α, not 1.
    """
    d = alpha - 1
    return expm1_slope((log_weights - (log_weights.logsumexp(0) - math.log(len(log_weights)))) / d, d)


def _diagnostic(log_weights: Tensor, moved: Tensor) -> RenyiDiagnostic:
    draws = len(log_weights)
    ess = torch.exp(2 * torch.logsumexp(log_weights, 0) - torch.logsumexp(2 * log_weights, 0))
    stderr = (moved.var(0, correction=0) * (draws - 1)).sqrt() if draws > 1 else torch.full_like(ess, math.nan)
    return RenyiDiagnostic(stderr, ess, log_weights)
