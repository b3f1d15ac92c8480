r"""Closed forms of the Rényi entropy, family by family, in nats.

For an exponential family :math:`q(x) = \exp(\eta \cdot t(x) - F(\eta))` *of constant base measure*,
:math:`q^\alpha` is up to a constant the member with parameters :math:`\alpha\eta`, so that

.. math::
    H_\alpha = \frac{F(\alpha\eta) - \alpha F(\eta)}{1 - \alpha}
             = F(\eta) - \frac{F(\alpha\eta) - F(\eta)}{\alpha - 1}.

The functions below write the second form. Its quotient is a *slope* of F, taken term by term (``log``,
``lgamma``) without cancellation; at α = 1 it is :math:`\eta \cdot \nabla F(\eta)`, and H is Shannon's.
The parameters are ours. Those of torch leave a base measure that is not constant in Beta, Dirichlet,
LogNormal and Poisson, where the rule then gives wrong numbers.

=======================  =======================================  ===========================================
family                   t(x) and η                               F(η)
=======================  =======================================  ===========================================
Normal, HalfNormal,      −x² and 1/2σ², location 0                log σ (half log det), F(αη) = F(η) − k/2 log α
MultivariateNormal
Laplace, Exponential     −\|x\| and 1/b, location 0               log b, F(αη) = F(η) − log α
Uniform                  none                                     log(high − low), F(αη) = F(η)
LogNormal                log x, log² x and μ/σ² − 1, −1/2σ²       −(η₁ + 1)²/4η₂ − log(−η₂/π)/2
Gamma, Chi2              log x, −x and a − 1, b                   log Γ(a) − a log b
InverseGamma             −log x, −1/x and a + 1, b                log Γ(a) − a log b
Beta, Dirichlet          log xᵢ and aᵢ − 1                        Σ log Γ(aᵢ) − log Γ(Σ aᵢ)
StudentT, Cauchy,        −log(1 + x²/νσ²) and (ν + 1)/2,          log σ + log(νπ)/2 + log Γ(ν/2)
HalfCauchy               ν and σ fixed                            − log Γ((ν + 1)/2)
Geometric                x and log(1 − p)                         −log p
=======================  =======================================  ===========================================

Categorical, OneHotCategorical and Bernoulli need no rule: they are summed over their support, as are Poisson
and Binomial, whose base measure is not constant (see ``lattice``).

References: Nielsen and Nock 2011 (arXiv 1105.3259) for the rule; Gil, Alajaji and Linder 2013 (Information
Sciences 249) for the integrals, which they need for Rényi *divergences*, another thing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributions as td
from torch import Tensor

__all__ = ["DIVERGING", "FAMILIES", "FINITE", "LOCATION_SCALE", "expm1_slope", "log1p_slope"]

NEAR_ONE = 0.1
"""Within this distance of α = 1 no difference of two nearly equal numbers is taken."""

BLOCKS = 128
"""Blocks of integers in a sum over a lattice, more for α < 0.2; with at most as many integers it is exact."""

TAIL = 40.0
"""What a sum over a lattice leaves out is about e^-TAIL of the whole."""

_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(6)
GAUSS = [(float(1 + x) / 2, float(w) / 2) for x, w in zip(_POINTS, _WEIGHTS, strict=True)]
"""Gauss-Legendre points and weights on [0, 1]."""


# ---- slopes: (f(x + d h) - f(x)) / d with their limits at d = α - 1 = 0 ------------------------------------------


def expm1_slope(x: Tensor, d: float) -> Tensor:
    """:math:`(e^{dx} - 1)/d`, at d = 0 x."""
    return torch.expm1(d * x) / d if d else x


def log1p_slope(x: Tensor, d: float) -> Tensor:
    r""":math:`\log(1 + dx)/d`, at d = 0 x."""
    return torch.log1p(d * x) / d if d else x


def log_slope(alpha: float) -> float:
    r""":math:`\log\alpha/(\alpha - 1)`, at α = 1 one."""
    d = alpha - 1
    if d == 0:
        return 1.0
    return (math.log1p(d) if abs(d) < 0.5 else math.log(alpha)) / d


def lgamma_slope(x: Tensor, h: Tensor, d: float) -> Tensor:
    """(lgamma(x + d h) - lgamma(x))/d for positive x and x + d h; at d = 0 h digamma(x)."""
    # lgamma(x) = lgamma(x + 1) - log(x) takes the pole at 0 out: near d = 0 the rest is a smooth mean of digamma
    if abs(d) > NEAR_ONE:
        rest = (torch.lgamma(x + 1 + d * h) - torch.lgamma(x + 1)) / d
    else:
        rest = h * sum((w * torch.digamma(x + 1 + t * d * h) for t, w in GAUSS), torch.zeros_like(x))
    return rest - log1p_slope(h / x, d)


def double(x: Tensor) -> Tensor:
    """In float64, where the device has it: lgamma of large shapes leaves few digits of float32."""
    return x.float() if x.device.type == "mps" else x.double()


def diverging(where: Tensor, entropy: Tensor, d: float) -> Tensor:
    r"""The entropy, but ±inf where :math:`\int q^\alpha` is infinite: -inf for α > 1, +inf for α < 1."""
    return torch.where(where, math.copysign(math.inf, -d), entropy)


# ---- continuous families -----------------------------------------------------------------------------------------


def power(p: float) -> Callable[[Any, float], Tensor]:
    r"""Densities :math:`\propto \exp(-|x/\sigma|^p)` in k dimensions: Shannon's entropy and a constant."""

    def of(fn: Any, alpha: float) -> Tensor:
        entropy: Tensor = fn.entropy() + fn.event_shape.numel() / p * (log_slope(alpha) - 1)
        return entropy

    return of


def log_normal(fn: Any, alpha: float) -> Tensor:
    """That of log x, the location, and a term that grows with the variance for α < 1."""
    normal = fn.scale.log() + (math.log(2 * math.pi) + log_slope(alpha)) / 2
    entropy: Tensor = normal + fn.loc + (1 - alpha) / (2 * alpha) * fn.scale**2
    return entropy


def gamma(concentration: Tensor, shift: float, log_scale: Tensor, alpha: float) -> Tensor:
    """Gamma with shift -1, InverseGamma with shift 1; infinite where a + (α - 1)(a + shift) <= 0."""
    d, a = alpha - 1, double(concentration)
    h = a + shift
    infinite = a + d * h <= 0
    h = torch.where(infinite, 0.0, h)
    entropy = torch.lgamma(a) - lgamma_slope(a, h, d) + (a + d * h) * log_slope(alpha) + double(log_scale)
    return diverging(infinite, entropy, d).to(concentration.dtype)


def dirichlet(concentration: Tensor, alpha: float) -> Tensor:
    """Concentrations on the last axis; infinite where one has α(a - 1) + 1 <= 0."""
    d, a = alpha - 1, double(concentration)
    infinite = a + d * (a - 1) <= 0
    h = torch.where(infinite, 0.0, a - 1)
    each = torch.lgamma(a) - lgamma_slope(a, h, d)
    whole = torch.lgamma(a.sum(-1)) - lgamma_slope(a.sum(-1), h.sum(-1), d)
    return diverging(infinite.any(-1), each.sum(-1) - whole, d).to(concentration.dtype)


def student_t(df: Tensor, scale: Tensor, alpha: float) -> Tensor:
    """Infinite for α <= 1/(1 + df)."""
    d, half = alpha - 1, double(df) / 2
    infinite = half + d * (half + 0.5) <= 0
    h = torch.where(infinite, 0.0, half + 0.5)
    entropy = (math.log(math.pi) + torch.log(2 * half)) / 2 + double(scale).log()
    entropy = entropy + torch.lgamma(half) - lgamma_slope(half, h, d)
    entropy = entropy - torch.lgamma(half + 0.5) + lgamma_slope(half + 0.5, h, d)
    return diverging(infinite, entropy, d).to(scale.dtype)


# ---- discrete families -------------------------------------------------------------------------------------------


def sum_over(log_p: Tensor, alpha: float, *, dim: int, weight: Tensor | None = None, p: Tensor | None = None) -> Tensor:
    r""":math:`(1-\alpha)^{-1} \log \sum_i w_i p_i^\alpha` from log p, -inf allowed; gradients are finite there.

    ``p`` may be given where it is known already.
    """
    d = alpha - 1
    if alpha == 0:
        return (log_p > -math.inf).sum(dim).to(log_p.dtype).log()
    if alpha > 1e16:  # the min-entropy, to the last digit
        return -(log_p if weight is None else torch.where(weight > 0, log_p, -math.inf)).amax(dim)
    if abs(d) > NEAR_ONE:
        terms = alpha * log_p if weight is None else alpha * log_p + weight.log()
        return torch.logsumexp(terms, dim) / -d
    p = log_p.exp() if p is None else p
    if d <= 0:  # the floor keeps 0 * inf out and changes nothing that a float can hold
        log_p = log_p.clamp(min=math.log(torch.finfo(log_p.dtype).tiny))
    terms = (torch.expm1(d * log_p) if d else log_p) * p  # p (p^d - 1) has no cancellation
    total = (terms if weight is None else terms * weight).sum(dim)
    return -torch.log1p(total) / d if d else -total


def floored_log(p: Tensor) -> Tensor:
    """Log p, and the log of the smallest float where p = 0, with gradient 0."""
    return p.clamp(min=torch.finfo(p.dtype).tiny).log()


def safe_log(p: Tensor) -> Tensor:
    """Log p, with gradient 0 where p = 0."""
    return torch.nn.functional.threshold(floored_log(p), math.log(torch.finfo(p.dtype).tiny), -math.inf)


def given_by_probs(fn: Any) -> bool:
    """Whether the distribution holds exact probabilities: torch's logits of these end at log(eps)."""
    return "probs" in fn.__dict__ and fn.__dict__.get("_param", fn.probs) is fn.probs


def categorical(fn: Any, alpha: float) -> Tensor:
    """The sum over categories, from exact probabilities where the distribution was given them."""
    fn = getattr(fn, "_categorical", fn)  # OneHotCategorical is a Categorical with another event
    if not given_by_probs(fn):
        log_p = fn.logits
    else:  # from 0.5 on, the smallest float to the power alpha adds nothing to a sum that is at least 1/sqrt(n)
        log_p = floored_log(fn.probs) if 0.5 <= alpha <= 1e16 else safe_log(fn.probs)
    return sum_over(log_p, alpha, dim=-1, p=fn.probs if abs(alpha - 1) <= NEAR_ONE else None)


def log_pair(fn: Any, *, wide: bool) -> tuple[Tensor, Tensor]:
    """Log p and log(1 - p), in float64 if ``wide``."""
    by_probs = given_by_probs(fn)
    p = fn.probs if by_probs else fn.logits
    p = double(p) if wide else p
    if not by_probs:
        return torch.nn.functional.logsigmoid(p), torch.nn.functional.logsigmoid(-p)
    return safe_log(p), torch.where(p < 1, torch.log1p(-torch.where(p < 1, p, 0.0)), -math.inf)


def bernoulli(fn: Any, alpha: float) -> Tensor:
    """The sum over both values."""
    return sum_over(torch.stack(log_pair(fn, wide=False)), alpha, dim=0)


def geometric(fn: Any, alpha: float) -> Tensor:
    r"""The geometric series: :math:`H_\alpha = [\alpha \log p - \log(1 - (1-p)^\alpha)] / (1 - \alpha)`."""
    d = alpha - 1
    log_p, log_q = log_pair(fn, wide=True)
    drop = expm1_slope(log_q.clamp(min=math.log(torch.finfo(log_q.dtype).tiny)), d)
    entropy = log1p_slope(-(log_q - log_p).exp() * drop, d) - log_p
    return entropy.to((fn.probs if given_by_probs(fn) else fn.logits).dtype)


@torch.no_grad()
def lattice(mean: Tensor, variance: Tensor, last: Tensor | float, alpha: float) -> tuple[Tensor, Tensor]:
    r"""Points k and weights w, on a new first axis, with :math:`\sum_k q(k)^\alpha \approx \sum_j w_j q(k_j)^\alpha`.

    For Poisson and Binomial q on 0, 1, ..., last, of which :math:`q(k) / \max q` falls at distance u from the mean
    like :math:`\exp(-u^2/2(v + u/3))` or faster (Bernstein). The window leaves out about e^-TAIL of the sum. Its
    integers are cut into BLOCKS blocks. In a block of m the sum is that of three points, which is exact for m <= 3
    and for polynomials of degree 5: the Gauss rule of the discrete uniform distribution.
    """
    linear = TAIL / (3 * alpha)
    reach = 2 + linear + torch.sqrt(linear**2 + 2 * variance * TAIL / alpha)
    first = (mean - reach).clamp(min=0).floor()
    count = (mean + reach).ceil().clamp(max=last) - first + 1
    blocks = max(BLOCKS, math.ceil(min(0.2 / alpha, 32) * BLOCKS))
    step = torch.arange(blocks + 1, dtype=mean.dtype, device=mean.device).reshape(-1, *[1] * mean.dim())
    edges = first + torch.floor(step * count / blocks)
    m = edges[1:] - edges[:-1]  # 0 and 1 are blocks too
    middle = edges[:-1] + (m - 1) / 2
    side = 5 / 6 * m * (m**2 - 1) / (3 * m**2 - 7)
    offset = ((3 * m**2 - 7) / 20).clamp(min=0).sqrt()
    weight = torch.cat([(m - 2 * side).clamp(min=0), side, side])
    return torch.cat([middle, middle - offset, middle + offset]).clamp(min=0).clamp(max=last), weight


def poisson(fn: Any, alpha: float) -> Tensor:
    """Relative error below 1e-8 for α >= 0.02 and rates from 1e-4 to 1e6, as measured against long sums."""
    rate = double(fn.rate).clamp(min=torch.finfo(torch.float32).tiny)
    k, weight = lattice(rate, rate, math.inf, alpha)
    log_p = k * rate.log() - rate - torch.lgamma(k + 1)
    return sum_over(log_p, alpha, dim=0, weight=weight).to(fn.rate.dtype)


def binomial(fn: Any, alpha: float) -> Tensor:
    """As :func:`poisson`, on a support that is finite, so that α = 0 and ∞ are fine."""
    # k log p with k = 0 and p = 0 is 0, which a floor gives and -inf would not
    log_p, log_q = (x.clamp(min=-1e5) for x in log_pair(fn, wide=True))
    n, p, q = double(fn.total_count), log_p.exp(), log_q.exp()
    if alpha == 0:
        return torch.where((p > 0) & (q > 0), n.log1p(), 0.0).to(fn.total_count.dtype)
    k, weight = lattice(n * p, n * p * q, n, alpha)
    log_pmf = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1) + k * log_p + (n - k) * log_q
    return sum_over(log_pmf, alpha, dim=0, weight=weight).to(fn.total_count.dtype)


FINITE = (td.Bernoulli, td.Binomial, td.Categorical, td.OneHotCategorical)
"""Families of finite support, for which α = 0 and α = ∞ have a meaning."""

DIVERGING = (td.Gamma, td.InverseGamma, td.Beta, td.Dirichlet, td.StudentT, td.Cauchy, td.HalfCauchy)
"""Families whose Rényi entropy is infinite at some orders for some parameters."""

LOCATION_SCALE = (
    *(td.Normal, td.HalfNormal, td.MultivariateNormal, td.LowRankMultivariateNormal),
    *(td.Laplace, td.Exponential, td.Uniform, td.Cauchy, td.HalfCauchy),
)
"""Families of a location and a scale, where the order changes the entropy by a constant."""

FAMILIES: dict[type, Callable[[Any, float], Tensor]] = {
    td.Normal: power(2),
    td.HalfNormal: power(2),
    td.MultivariateNormal: power(2),
    td.LowRankMultivariateNormal: power(2),
    td.Laplace: power(1),
    td.Exponential: power(1),
    td.Uniform: power(math.inf),
    td.LogNormal: log_normal,
    td.Gamma: lambda fn, alpha: gamma(fn.concentration, -1.0, -fn.rate.log(), alpha),
    td.InverseGamma: lambda fn, alpha: gamma(fn.concentration, 1.0, fn.rate.log(), alpha),
    td.Beta: lambda fn, alpha: dirichlet(torch.stack([fn.concentration1, fn.concentration0], -1), alpha),
    td.Dirichlet: lambda fn, alpha: dirichlet(fn.concentration, alpha),
    td.StudentT: lambda fn, alpha: student_t(fn.df, fn.scale, alpha),
    td.Cauchy: lambda fn, alpha: student_t(torch.ones_like(fn.scale), fn.scale, alpha),
    td.HalfCauchy: lambda fn, alpha: student_t(torch.ones_like(fn.scale), fn.scale, alpha) - math.log(2),
    td.Bernoulli: bernoulli,
    td.Categorical: categorical,
    td.OneHotCategorical: categorical,
    td.Geometric: geometric,
    td.Poisson: poisson,
    td.Binomial: binomial,
}
"""From a class of torch, and by inheritance of Pyro, to its Rényi entropy as a function of (fn, alpha)."""
