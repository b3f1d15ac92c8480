"""The entropy-weighted ELBO."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from torch import Tensor

from banel_pyro.objectives.base import Objective
from banel_pyro.objectives.bound import Bound
from banel_pyro.terms import Summand, Weight
from banel_pyro.traces import GuideDensity

__all__ = ["BaNEL_ELBO"]


class BaNEL_ELBO(Objective):
    r"""The evidence lower bound with a λ-weighted guide entropy.

    .. math::
        \text{loss}(\lambda) = -E_q[\log p(x, z) - \log q(z)] + \sum_s \lambda_s H_s(q), \qquad
        H_s(q) = -E_q[\log q(z_s \mid \text{parents})]

    ``lam > 0`` penalises entropy and narrows q, ``lam < 0`` rewards it, ``lam = 0`` is Pyro's
    ``Trace_ELBO``. With T = 1 - λ > 0 the optimum is :math:`q(z) \propto p(x, z)^{1/T}`, where that can be
    normalised. For λ ≥ 1 a continuous site has no optimum: the loss falls without bound as q narrows.

    Args:
        lam: λ in nats per nat: a number, or a mapping ``{site name: number}`` (sites left out: 0). Can be
            changed between steps.
        allow_unbounded: accept λ ≥ 1 on continuous sites, for guides whose scales are bounded below.
        **options: as for :class:`~banel_pyro.objectives.base.Objective`.

    Raises:
        ValueError: at the first call, for unknown site names, λ ≥ 1 on a continuous site, a point
            mass under a penalty, or a joint autoguide with local latents in a subsampled plate.

    Example:
        >>> BaNEL_ELBO(lam=0.2, num_particles=4).lam
        0.2
    """

    def __init__(self, lam: Weight = 0.0, *, allow_unbounded: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.allow_unbounded = allow_unbounded
        self.lam = lam

    @property
    def lam(self) -> Weight:
        """λ: a number, or a mapping from site name to number."""
        return self._lam

    @lam.setter
    def lam(self, lam: Weight) -> None:
        self._lam = check_weight("lam", lam)

    @property
    def weight(self) -> Weight:
        """λ, as reported in ``LossTerms.lam``."""
        return self._lam

    def penalty(self, bound: Bound) -> list[Summand]:
        """λ_s H_s for every density of the guide with λ_s ≠ 0."""
        weights = self._weights(bound)
        if not weights:
            return []
        return [s.weighted(lam) for name, lam in weights.items() for s in bound.entropy[name]]

    def _weights(self, bound: Bound) -> dict[str, float | Tensor]:
        names = bound.densities
        if isinstance(self.lam, Mapping):
            check_names("lam", self.lam, names)
            weights: dict[str, float | Tensor] = {name: lam for name, lam in self.lam.items() if lam != 0}
        elif isinstance(self.lam, Tensor) or self.lam != 0:
            weights = dict.fromkeys(names, self.lam)
        else:
            weights = {}
        for name, lam in weights.items():
            _check_penalty(names[name], lam, self.allow_unbounded)
        return weights


def _check_penalty(density: GuideDensity, lam: float | Tensor, allow_unbounded: bool) -> None:
    if density.is_point:
        raise ValueError(
            f"lam={lam} at site '{density.name}', where the guide is a point mass (Delta): its entropy is -inf. Give "
            "lam as a mapping that leaves this site out, use lam=0, or give the site a guide with a density."
        )
    # a λ that is a tensor is an input of a compiled step, checked by whoever set it
    if not isinstance(lam, Tensor) and lam >= 1 and density.is_continuous and not allow_unbounded:
        raise ValueError(
            f"lam={lam} at the continuous site '{density.name}': for lam >= 1 the loss has no minimum, it falls "
            "without bound as the guide narrows. Use lam < 1; or, if the guide's scale is bounded below, "
            "allow_unbounded=True."
        )


def check_names(argument: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse a mapping over sites that names a site which the guide does not have."""
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"{argument} names unknown sites {unknown}. The guide's densities are {sorted(known)}.")


def check_weight(argument: str, weight: Any) -> Weight:
    """Refuse a λ that is not a finite number, or a mapping from names to finite numbers."""
    if isinstance(weight, Tensor) and weight.dim() == 0:
        return weight
    if isinstance(weight, Mapping):
        return {str(name): _check_number(f"{argument}['{name}']", value) for name, value in weight.items()}
    return _check_number(argument, weight)


def _check_number(argument: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{argument}={value!r}: expected a number, or a mapping {{site name: number}}.")
    if not math.isfinite(value):
        raise ValueError(f"{argument}={value!r}: expected a finite number.")
    return float(value)
