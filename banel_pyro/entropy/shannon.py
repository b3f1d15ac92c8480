r"""Entropies of distributions and of guides, in nats.

The entropy of a guide is :math:`-E_q[\log q]` of its joint density in the constrained space of the
model's sites: the sum over sites of conditional entropies, weighted by the factors of their plates.
Continuous entropy depends on the parametrisation: that of a scale τ is not that of log τ.
"""

from __future__ import annotations

from typing import Any, Literal

import pyro.distributions as dist
from pyro.distributions.util import is_identically_zero, scale_and_mask
from torch import Tensor

from banel_pyro.terms import Summand
from banel_pyro.traces import WRAPPERS, GuideDensity, Site, base_distribution, batch_shape

__all__ = ["EntropyEstimator", "closed_form_entropy", "density_entropy"]

EntropyEstimator = Literal["closed_form", "closed_form+jacobian", "monte_carlo", "point_mass"]


def closed_form_entropy(fn: Any) -> Tensor | None:
    r"""Entropy :math:`-E[\log q]` of a distribution, in nats, or None where no formula is known.

    Args:
        fn: a distribution, possibly expanded, masked or with ``to_event``.

    Returns:
        A tensor that broadcasts to ``fn.batch_shape``. A masked-out element has entropy 0.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> closed_form_entropy(dist.Normal(torch.zeros(2), 1.0).to_event(1))
        tensor(2.8379)
        >>> closed_form_entropy(dist.VonMises(0.0, 1.0)) is None
        True
    """
    if not isinstance(fn, WRAPPERS):  # asked first: it is what most sites are
        if isinstance(fn, (dist.Delta, dist.Unit)):
            return None
        try:
            return fn.entropy()  # type: ignore[no-any-return]
        except NotImplementedError:
            return None
    if isinstance(fn, dist.MaskedDistribution):
        entropy = closed_form_entropy(fn.base_dist)
        # expand first: a mask may be larger than the distribution's parameters
        return None if entropy is None else scale_and_mask(entropy.expand(fn.batch_shape), 1.0, fn._mask)
    if isinstance(fn, dist.ExpandedDistribution):
        entropy = closed_form_entropy(fn.base_dist)
        return None if entropy is None else entropy.expand(fn.batch_shape)
    entropy = closed_form_entropy(fn.base_dist)
    if entropy is None:
        return None
    if entropy.shape != fn.base_dist.batch_shape:
        entropy = entropy.expand(fn.base_dist.batch_shape)
    axes = list(range(-fn.reinterpreted_batch_ndims, 0))
    return entropy.sum(axes) if axes else entropy


def density_entropy(density: GuideDensity, mode: str = "auto") -> tuple[EntropyEstimator, list[Summand]]:
    r"""The entropy of one density of the guide, :math:`E[-\log q(z_s \mid \text{parents})]`, given one draw.

    With a change of variables z = T(u) it is :math:`H(u) + E[\log|\det J_T(u)|]`.

    Args:
        density: a density of the guide, from a trace with its score parts computed.
        mode: ``"auto"`` (closed form where there is one), ``"closed_form"`` or ``"monte_carlo"``.

    Returns:
        Which estimator ran, and the summands in nats, scaled and masked as Pyro scales log q:
        ``"closed_form"``, ``"closed_form+jacobian"`` (closed form for the auxiliary site, the
        change of variables at the draw), ``"monte_carlo"``, or ``"point_mass"``, whose summand is -inf.

    Raises:
        ValueError: if ``mode="closed_form"`` and the density has none.
    """
    if density.is_point:
        minus_inf = density.site["log_prob"].new_full((), float("-inf"))
        return "point_mass", [Summand(minus_inf, 0.0)]
    closed = None if mode == "monte_carlo" else closed_form_entropy(density.site["fn"])
    if mode == "closed_form" and (closed is None or not density.unconstrained):
        _refuse_closed_form(density, has_base=closed is not None)
    if closed is None:
        return "monte_carlo", [_minus_log_q(site) for site in density.sites]
    site = density.site
    shape = batch_shape(site)
    if closed.shape != shape:
        closed = closed.expand(shape)
    closed = scale_and_mask(closed, site["scale"], site["mask"])
    stack, symbols = site["cond_indep_stack"], site["infer"].get("_dim_to_symbol")
    summands = [Summand(closed, closed, stack, density.name, total=closed.sum(), symbols=symbols)]
    summands += [_minus_log_q(delta) for delta in density.deltas]
    return "closed_form" if density.unconstrained else "closed_form+jacobian", summands


def _minus_log_q(site: Site) -> Summand:
    log_prob, _, entropy_term = site["score_parts"]
    # Pyro's entropy_term is log q for a reparameterised site and the number 0 for a score-function one
    surrogate = 0.0 if is_identically_zero(entropy_term) else entropy_term
    symbols = site["infer"].get("_dim_to_symbol")
    return Summand(
        log_prob, surrogate, site["cond_indep_stack"], weight=-1.0, total=site["log_prob_sum"], symbols=symbols
    )


def _refuse_closed_form(density: GuideDensity, *, has_base: bool) -> None:
    why = (
        "the Jacobian of its change of variables has none"
        if has_base
        else f"its distribution {type(base_distribution(density.site['fn'])).__name__} has no formula"
    )
    raise ValueError(
        f"'closed_form' was asked for, but the guide's entropy at site '{density.name}' has no closed form: {why}. Use "
        "'auto' (closed form where there is one) or 'monte_carlo'."
    )
