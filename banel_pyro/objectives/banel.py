"""The entropy-weighted ELBO, in the three forms of Pyro's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from banel_pyro.entropy.families import LOCATION_SCALE
from banel_pyro.entropy.joint import components, is_the_site_alone
from banel_pyro.entropy.renyi import check_order
from banel_pyro.objectives.base import Objective
from banel_pyro.objectives.bound import Bound
from banel_pyro.objectives.enum import EnumObjective
from banel_pyro.objectives.graph import GraphObjective
from banel_pyro.objectives.trace import TraceObjective
from banel_pyro.terms import Summand, Weight
from banel_pyro.traces import GuideDensity, base_distribution

__all__ = ["BaNEL_ELBO", "BaNEL_TraceEnum_ELBO", "BaNEL_TraceGraph_ELBO", "EntropyWeighted"]


class EntropyWeighted(Objective):
    r"""A λ-weighted guide entropy on top of a bound: what the three forms share.

    .. math::
        \text{loss}(\lambda) = -E_q[\log p(x, z) - \log q(z)] + \sum_s \lambda_s H_s(q), \qquad
        H_s(q) = -E_q[\log q(z_s \mid \text{parents})]

    With an order α ≠ 1 the entropies are Rényi's, :math:`H_\alpha(q) = (1-\alpha)^{-1} \log \int q^\alpha`. These add
    over independent sites only; of sites that depend on each other the joint one counts, and they must have one λ.

    Arguments as for :class:`BaNEL_ELBO`.

    Raises:
        TypeError: if λ or α is no number.
        ValueError: at the first call, for unknown site names, λ ≥ 1 on a continuous site, a point mass under a
            penalty, or a joint autoguide with local latents in a subsampled plate; for α ≠ 1 also where H is
            infinite, where sites that depend on each other differ in λ or lie across a subsampled plate, where it
            takes vectorised particles and there are fewer than two, and for α > 1 and λ > 0 on continuous sites
            whose guide is no family of a location and a scale.
    """

    def __init__(self, lam: Weight = 0.0, *, alpha: float = 1.0, allow_unbounded: bool = False, **options: Any) -> None:
        super().__init__(lam, **options)
        self.alpha, self.allow_unbounded = check_order(alpha), allow_unbounded

    def penalty(self, bound: Bound) -> list[Summand]:
        """λ_s H_s for every density of the guide with λ_s ≠ 0."""
        weights = self._weights(bound)
        if not weights:
            return []
        if self.alpha == 1:
            return [s.weighted(lam) for name, lam in weights.items() for s in bound.entropy[name]]
        groups = _penalised_groups(weights, bound.parents, self.alpha)
        summands = [bound.renyi(names, self.alpha).weighted(weights[names[0]]) for names in groups]
        for names in groups if not self.allow_unbounded else ():
            _refuse_unbounded([bound.densities[name] for name in names], weights[names[0]], self.alpha)
        return summands

    def _weights(self, bound: Bound) -> dict[str, float | Tensor]:
        names = bound.densities
        if isinstance(self.lam, Mapping):
            _check_names("lam", self.lam, names)
            weights: dict[str, float | Tensor] = {
                name: lam for name, lam in self.lam.items() if isinstance(lam, Tensor) or lam != 0
            }
        elif isinstance(self.lam, Tensor) or self.lam != 0:
            weights = dict.fromkeys(names, self.lam)
        else:
            weights = {}
        for name, lam in weights.items():
            _check_penalty(names[name], lam, self.allow_unbounded)
        return weights


class BaNEL_ELBO(EntropyWeighted, TraceObjective):
    r"""The evidence lower bound with a λ-weighted guide entropy, in the form of Pyro's ``Trace_ELBO``.

    .. math::
        \text{loss}(\lambda) = -E_q[\log p(x, z) - \log q(z)] + \sum_s \lambda_s H_s(q), \qquad
        H_s(q) = -E_q[\log q(z_s \mid \text{parents})]

    ``lam > 0`` penalises entropy and narrows q, ``lam < 0`` rewards it, ``lam = 0`` is Pyro's
    ``Trace_ELBO``. With T = 1 - λ > 0 the optimum is :math:`q(z) \propto p(x, z)^{1/T}`, where that can be
    normalised. For λ ≥ 1 a continuous site has no optimum: the loss falls without bound as q narrows.

    With an order α ≠ 1 the entropy is Rényi's. For a location-scale guide of real sites it differs from Shannon's by a
    constant: another loss, the same gradient. For categorical, Beta, Dirichlet, Gamma and mixture guides it changes
    which part of the distribution is pushed: a small α the rare values, a large α the frequent ones.

    Args:
        lam: λ in nats per nat: a number, or a mapping ``{site name: number}`` (sites left out: 0). Can be
            changed between steps.
        alpha: the order α ≥ 0 of the entropy in the penalty; 1 is Shannon's. 0 and ∞ are for finite supports.
        allow_unbounded: accept λ ≥ 1 on continuous sites, and α > 1 with λ > 0 where the guide is no family of a
            location and a scale: for guides whose scales and shapes are bounded.
        **options: as for :class:`~banel_pyro.objectives.base.Objective`.

    Raises:
        TypeError, ValueError: as :class:`EntropyWeighted` does; for a guide with sites to be enumerated.

    Example:
        >>> BaNEL_ELBO(lam=0.2, num_particles=4).lam
        0.2
    """


class BaNEL_TraceGraph_ELBO(EntropyWeighted, GraphObjective):
    """:class:`BaNEL_ELBO` in the form of Pyro's ``TraceGraph_ELBO``: for score-function sites, with baselines.

    A score-function site pays for the summands that depend on it only, entropies among them, and Pyro's baselines
    (``infer={"baseline": {...}}``) lower the variance of what is left. At λ = 0 it is Pyro's form, to which it adds a
    ``differentiable_loss`` and a decaying average that does not mind a smaller last batch.

    Arguments as for :class:`BaNEL_ELBO`.

    Raises:
        TypeError, ValueError: as :class:`BaNEL_ELBO` does.

    Example:
        >>> BaNEL_TraceGraph_ELBO(lam=-0.5, alpha=2.0).alpha
        2.0
    """


class BaNEL_TraceEnum_ELBO(EntropyWeighted, EnumObjective):
    """:class:`BaNEL_ELBO` in the form of Pyro's ``TraceEnum_ELBO``: for discrete sites that are summed over.

    Sites of the guide that are enumerated (``config_enumerate``) enter exactly, their entropies too. Sites of the model
    that are marked for it and absent from the guide are summed out: ``LossTerms`` then has the ELBO and the guide's
    entropy, and NaN for likelihood and KL. At λ = 0 it is Pyro's form.

    Arguments as for :class:`BaNEL_ELBO`.

    Raises:
        TypeError, ValueError: as :class:`BaNEL_ELBO` does; for α ≠ 1 and dependent sites of which only some are
            enumerated.

    Example:
        >>> BaNEL_TraceEnum_ELBO(lam=0.5, max_plate_nesting=1).lam
        0.5
    """


def _refuse_unbounded(densities: Sequence[GuideDensity], lam: float | Tensor, alpha: float) -> None:
    r"""Refuse a penalty of order α > 1 that falls without bound while the ELBO does not.

    A spike of mass m and width w, as mixtures and flows can make, adds :math:`m^\alpha w^{1-\alpha}` to
    :math:`\int q^\alpha`: the entropy goes like log w whatever m is, and costs the ELBO only m log(1/w). Gamma, Beta
    and Dirichlet have a shape at which :math:`\int q^\alpha` diverges, a log-normal falls with its variance. A family
    of a location and a scale has Shannon's entropy and a constant.
    """
    if isinstance(lam, Tensor) or lam <= 0 or alpha <= 1 or not any(density.is_continuous for density in densities):
        return
    alone = len(densities) == 1 and is_the_site_alone(densities[0])
    if alone and isinstance(base_distribution(densities[0].site["fn"]), LOCATION_SCALE):
        return
    names = [density.name for density in densities]
    raise ValueError(
        f"lam={lam} with alpha={alpha:g} at {names}: this guide can put much density on little mass, and for alpha > 1 "
        "the loss then falls without bound. Use alpha <= 1, or a guide with a location and a scale on a real site; or, "
        "if its scales and shapes are bounded away from there, allow_unbounded=True."
    )


def _penalised_groups(
    weights: Mapping[str, float | Tensor], parents: Mapping[str, set[str]], alpha: float
) -> list[tuple[str, ...]]:
    """The penalised densities in groups that are independent of each other; each has a joint Rényi entropy."""
    for name, lam in weights.items():
        for parent in sorted(parents[name]):
            if parent not in weights or (weights[parent] is not lam and weights[parent] != lam):
                raise ValueError(
                    f"alpha={alpha:g} with lam={lam} at site '{name}' and lam={weights.get(parent, 0.0)} at "
                    f"'{parent}', on which it depends: of dependent sites only the joint Rényi entropy counts, under "
                    f"one lam. Give '{parent}' the same lam, leave '{name}' out, or use alpha=1.0."
                )
    return components({name: parents[name] for name in weights})


def _check_penalty(density: GuideDensity, lam: float | Tensor, allow_unbounded: bool) -> None:
    if density.is_point:
        raise ValueError(
            f"lam={lam} at site '{density.name}', where the guide is a point mass (Delta): its entropy is -inf. Give "
            "lam as a mapping that leaves this site out, use lam=0, or give the site a guide with a density."
        )
    # a λ that is a tensor is an input of a captured step, checked by whoever set it
    if not isinstance(lam, Tensor) and lam >= 1 and density.is_continuous and not allow_unbounded:
        raise ValueError(
            f"lam={lam} at the continuous site '{density.name}': for lam >= 1 the loss has no minimum, it falls "
            "without bound as the guide narrows. Use lam < 1; or, if the guide's scale is bounded below, "
            "allow_unbounded=True."
        )


def _check_names(argument: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse a mapping over sites that names a site which the guide does not have."""
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"{argument} names unknown sites {unknown}. The guide's densities are {sorted(known)}.")
