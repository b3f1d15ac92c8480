r"""Rényi entropy of densities that depend on each other: which they are, in what plates, and from joint draws.

Rényi's entropy adds over *independent* variables only. Of dependent ones it is that of their joint density, which
takes one number :math:`\log q(z_k)` per draw and element of the plates that all of them share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer.inspect import TrackProvenance
from pyro.ops.provenance import detach_provenance, get_provenance
from torch import Tensor

from banel_pyro.entropy.families import DIVERGING
from banel_pyro.entropy.renyi import renyi_entropy, renyi_from_log_q, weight_excess
from banel_pyro.modules import evaluation_mode
from banel_pyro.seeding import kept_rng
from banel_pyro.terms import Summand
from banel_pyro.traces import GuideDensity, Site, Stack, base_distribution, batch_shape, unscaled_log_prob

__all__ = [
    "Densities",
    "Dependencies",
    "closed_renyi",
    "common_plates",
    "common_scale",
    "components",
    "is_the_site_alone",
    "refuse_infinite",
    "renyi_summand",
    "site_parents",
    "sum_to",
]

Densities: TypeAlias = Mapping[str, GuideDensity]

PARTICLES = "num_particles_vectorized"
"""Name of the plate into which Pyro puts vectorised particles."""


# ---- which densities depend on which -----------------------------------------------------------------------------


class _TrackDraws(TrackProvenance):
    """Pyro's record of where numbers come from, of draws alone: a parameter is nobody's parent."""

    def _pyro_post_param(self, msg: Any) -> None:
        pass


def site_parents(guide: Any, args: Any, kwargs: Any, densities: Densities) -> dict[str, set[str]]:
    """The densities that each density depends on, as Pyro's record of where numbers come from has it.

    It runs the guide once, and leaves the random generator as it was. Dependence through Python alone, a branch on a
    draw, ``.item()`` or writing into a tensor, leaves no record and is not seen.
    """
    with kept_rng(), evaluation_mode(guide), _TrackDraws():
        trace = poutine.trace(guide).get_trace(*args, **kwargs)
        trace.compute_log_prob()
    owner = {str(site["name"]): name for name, density in densities.items() for site in density.sites}
    found: dict[str, set[str]] = {}
    for name, density in densities.items():
        sources = (get_provenance(trace.nodes[site["name"]]["log_prob"]) for site in density.sites)
        found[name] = {owner[site] for source in sources for site in source if site in owner} - {name}
    return found


class Dependencies:
    """Which densities of a guide depend on which: remembered as long as guide, densities and plain arguments stay."""

    def __init__(self) -> None:
        self._seen: tuple[Any, ...] = ()
        self._parents: Mapping[str, set[str]] = {}

    def of(self, guide: Any, args: Any, kwargs: Any, densities: Densities) -> Mapping[str, set[str]]:
        """The parents of each density."""
        if len(densities) < 2:
            return {name: set() for name in densities}
        plain = [x for x in (*args, *kwargs.values()) if isinstance(x, (bool, int, float, str))]
        seen = (guide, tuple(densities), *plain)
        if self._seen != seen:
            self._parents, self._seen = site_parents(guide, args, kwargs, densities), seen
        return self._parents


def components(parents: Mapping[str, set[str]]) -> list[tuple[str, ...]]:
    """The densities in groups, such that no density depends on one of another group."""
    groups: list[set[str]] = []
    for name, above in parents.items():
        touched = [group for group in groups if group & ({name} | above)]
        groups = [group for group in groups if group not in touched]
        groups.append({name}.union(above, *touched))
    return [tuple(name for name in parents if name in group) for group in groups]


# ---- plates ------------------------------------------------------------------------------------------------------


def common_plates(densities: Sequence[GuideDensity], alpha: float) -> Stack:
    """The plates that all sites of dependent densities share.

    Raises:
        ValueError: if they depend on each other across a subsampled plate.
    """
    sites = [site for density in densities for site in density.sites]
    stacks = [{frame.name: frame for frame in site["cond_indep_stack"] if frame.vectorized} for site in sites]
    shared = set.intersection(*(set(stack) for stack in stacks))
    for stack in stacks:
        for name, frame in stack.items():
            if name not in shared and frame.full_size not in (None, frame.size):
                raise ValueError(
                    f"alpha={alpha:g}: {_names(densities)} depend on each other across the subsampled plate '{name}' "
                    f"({frame.size} of {frame.full_size} rows), and the joint density of all rows cannot be had from "
                    "some of them. Pass all rows, make the sites independent, or use alpha=1.0."
                )
    return tuple(frame for name, frame in stacks[0].items() if name in shared)


def common_scale(densities: Sequence[GuideDensity], alpha: float) -> float:
    """The scale of dependent densities, plates and ``poutine.scale`` together.

    Raises:
        ValueError: if they have different ones: a sum of log densities with different weights has no entropy.
    """
    found = [site["scale"] for density in densities for site in density.sites]
    scales = {float(scale) if torch.as_tensor(scale).numel() == 1 else str(scale) for scale in found}
    if len(scales) > 1 or not all(isinstance(scale, float) for scale in scales):
        raise ValueError(
            f"alpha={alpha:g}: {_names(densities)} have different scales {sorted(map(str, scales))}, so that they have "
            "no joint entropy. Put one poutine.scale with one number around all of them, or use alpha=1.0."
        )
    return float(scales.pop())


def sum_to(value: Tensor, plates: Stack) -> Tensor:
    """Sum out every batch axis but those of some plates; axes keep their places."""
    kept = {frame.dim for frame in plates}
    others = [d for d in range(-value.dim(), 0) if d not in kept]
    return value.sum(others, keepdim=True) if others else value


# ---- the entropy -------------------------------------------------------------------------------------------------


def is_the_site_alone(density: GuideDensity) -> bool:
    """Whether the change of variables adds nothing. A linear one does, though all its sites are real numbers."""
    return all(not bool(unscaled_log_prob(delta).any()) for delta in density.deltas)


def closed_renyi(density: GuideDensity, alpha: float) -> Summand | None:
    """Rényi entropy in closed form of a density that depends on no other, in nats, or None.

    Scaled and masked as Pyro scales log q. It depends on no draw, so that no score-function site pays for it.
    """
    site = density.site
    if not is_the_site_alone(density):
        return None
    entropy = renyi_entropy(site["fn"], alpha)
    if entropy is None:
        return None
    scaled = scale_and_mask(entropy.expand(batch_shape(site)), site["scale"], site["mask"])
    return Summand(scaled, scaled, site["cond_indep_stack"], density.name, paid_for=False)


def renyi_summand(densities: Sequence[GuideDensity], alpha: float, mode: str) -> Summand:
    r"""Rényi entropy of densities that depend on no others, as a summand of an objective, in nats.

    In closed form where there is one density and it has one; else from vectorised particles, by
    :func:`~banel_pyro.entropy.renyi.renyi_from_log_q`. Its gradient is then that of the estimate, and for sites that
    are not reparameterised the score term

    .. math::
        \frac{1}{1-\alpha} \sum_k (w_k - \tfrac1K) \nabla \log q(z_k), \qquad w_k \propto q(z_k)^{\alpha-1},

    whose bias is of order 1/K. At α = 1 both are those of Shannon's entropy.

    Args:
        densities: the densities, from a trace with its score parts computed.
        alpha: the order α.
        mode: ``"auto"``, ``"closed_form"`` or ``"monte_carlo"``.

    Raises:
        ValueError: where it is infinite; without a closed form if that is asked for; with fewer than two vectorised
            particles where it needs draws; for dependence across a subsampled plate, and for different scales.
    """
    if len(densities) == 1 and mode != "monte_carlo":
        closed = closed_renyi(densities[0], alpha)
        if closed is not None:
            refuse_infinite(densities[0], closed.value, alpha)
            return closed
    for density in densities:  # what is infinite given its parents is infinite with them
        if isinstance(base_distribution(density.site["fn"]), DIVERGING):
            refuse_infinite(density, torch.as_tensor(renyi_entropy(density.site["fn"], alpha)), alpha)
    if mode == "closed_form":
        raise ValueError(
            f"entropy='closed_form', but the Rényi entropy of {_names(densities)} at alpha={alpha:g} has no closed "
            "form. Use entropy='auto' with num_particles=10 or more and vectorize_particles=True, or alpha=1.0."
        )
    return _from_particles(densities, alpha)


def _from_particles(densities: Sequence[GuideDensity], alpha: float) -> Summand:
    if alpha == 0 or math.isinf(alpha):
        raise ValueError(
            f"alpha={alpha:g} at {_names(densities)}, whose Rényi entropy has to be estimated from draws: these say "
            "nothing about values that they do not hold. Write 0 < alpha < inf, or enumerate the sites."
        )
    plates = common_plates(densities, alpha)
    particles = next((frame for frame in plates if frame.name == PARTICLES), None)
    if particles is None:
        raise ValueError(_needs_particles(densities, alpha))
    sites = [site for density in densities for site in density.sites]
    # nobody pays for this summand, so that no one asks what it comes from
    log_q = detach_provenance(torch.as_tensor(sum(sum_to(unscaled_log_prob(site), plates) for site in sites)))
    value, diagnostic = renyi_from_log_q(log_q, alpha, particles.dim)
    surrogate = value
    scores = [sum_to(score, plates) for score in map(_score_function, sites) if score is not None]
    if scores:
        excess = weight_excess(diagnostic.log_weights, alpha).movedim(0, particles.dim)
        surrogate = value - (excess * torch.as_tensor(sum(scores))).mean(particles.dim)
    scale = common_scale(densities, alpha)
    # one copy a particle: like all summands it is summed over them, and divided by their number
    value, surrogate = (scale * x.unsqueeze(particles.dim).expand(log_q.shape) for x in (value, surrogate))
    return Summand(value, surrogate, plates, paid_for=False)


def _score_function(site: Site) -> Tensor | None:
    score = site["score_parts"].score_function
    return None if is_identically_zero(score) else detach_provenance(score)


def refuse_infinite(density: GuideDensity, value: Tensor, alpha: float) -> None:
    """Refuse an infinite Rényi entropy as a penalty.

    Raises:
        ValueError: naming site, family and α.
    """
    fn = base_distribution(density.site["fn"])
    if isinstance(fn, DIVERGING) and not bool(torch.isfinite(value).all()):
        sign = "-inf" if alpha > 1 else "+inf"
        raise ValueError(
            f"alpha={alpha:g} at site '{density.name}': the Rényi entropy of its {type(fn).__name__} is {sign} for "
            "these parameters, which no penalty can be. Use an alpha nearer to 1 (alpha=1.0 is always finite), or keep "
            "the parameters away from there: q^alpha must have a finite integral."
        )


def _needs_particles(densities: Sequence[GuideDensity], alpha: float) -> str:
    one = len(densities) == 1
    why = f"{_names(densities)} has no closed form" if one else f"{_names(densities)} depend on each other"
    return (
        f"alpha={alpha:g}: {why}, so that a Rényi entropy takes several draws at once. Write num_particles=10 or more "
        "with vectorize_particles=True, leave the site out of a mapping lam={site: number}, or use alpha=1.0."
    )


def _names(densities: Sequence[GuideDensity]) -> str:
    return str([density.name for density in densities]) if len(densities) > 1 else f"'{densities[0].name}'"
