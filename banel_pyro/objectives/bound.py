"""The summands of a variational bound, from one trace of the model and one of the guide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

from pyro.distributions.util import is_identically_zero, scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from banel_pyro.entropy import EntropyEstimator, density_entropy
from banel_pyro.entropy.joint import renyi_summand
from banel_pyro.terms import Summand
from banel_pyro.traces import GuideDensity, check_sites, guide_densities, on_plate, sample_sites

__all__ = ["Bound", "FindParents", "log_prob_summand"]

FindParents: TypeAlias = Callable[[Mapping[str, GuideDensity]], Mapping[str, set[str]]]
"""From the densities of a guide to the densities that each of them depends on."""


class Bound:
    """The summands of the bound for one pair of traces.

    Args:
        model_trace: the model's trace, with log-probabilities.
        guide_trace: the guide's trace, with score parts.
        entropy: ``"auto"``, ``"closed_form"`` or ``"monte_carlo"``.
        kl: ``"monte_carlo"`` or ``"closed_form"``.
        find_parents: finds which densities depend on which; it runs the guide once more.
    """

    def __init__(self, model_trace: Any, guide_trace: Any, *, entropy: str, kl: str, find_parents: FindParents) -> None:
        self.model_trace, self.guide_trace = model_trace, guide_trace
        self._entropy_mode, self._kl_mode, self._find_parents = entropy, kl, find_parents
        check_sites(model_trace, guide_trace)
        self.densities: dict[str, GuideDensity] = guide_densities(model_trace, guide_trace)

    @cached_property
    def log_likelihood(self) -> list[Summand]:
        """log p of what is observed; ``pyro.factor`` statements of the model count here."""
        return [log_prob_summand(site) for _, site in sample_sites(self.model_trace) if site["is_observed"]]

    @cached_property
    def kl(self) -> list[Summand]:
        """log q - log p of the latent sites, or KL(q || p) in closed form where asked for and known."""
        if self._kl_mode == "closed_form":
            self._check_closed_kl()
        summands = []
        for name, site in sample_sites(self.guide_trace):
            closed = self._closed_kl(name) if self._kl_mode == "closed_form" else None
            if closed is not None:
                summands.append(closed)
                continue
            summand = log_prob_summand(site)
            entropy_term = site["score_parts"].entropy_term
            summand.surrogate = 0.0 if is_identically_zero(entropy_term) else entropy_term
            summands.append(summand)
            if name in self.model_trace.nodes:
                summands.append(log_prob_summand(self.model_trace.nodes[name], -1.0))
        return summands

    @cached_property
    def _entropies(self) -> dict[str, tuple[EntropyEstimator, list[Summand]]]:
        return {name: density_entropy(q, self._entropy_mode) for name, q in self.densities.items()}

    @cached_property
    def entropy(self) -> dict[str, list[Summand]]:
        """The conditional entropies of the guide's densities, by name."""
        return {name: summands for name, (_, summands) in self._entropies.items()}

    @property
    def parents(self) -> Mapping[str, set[str]]:
        """The densities that each density depends on."""
        return self._find_parents(self.densities)

    def rows(self, summand: Summand, plate: str) -> Tensor | None:
        """A summand over the rows in a plate, in nats per datum; None outside the plate."""
        return on_plate(summand.weighted_value, summand.stack, plate)

    def renyi(self, names: Sequence[str], alpha: float) -> Summand:
        """The Rényi entropy of the joint density of some densities that depend on no others, of order α ≠ 1."""
        return renyi_summand([self.densities[name] for name in names], alpha, self._entropy_mode)

    @property
    def estimators(self) -> dict[str, EntropyEstimator]:
        """Which entropy estimator ran, by name of the density."""
        return {name: estimator for name, (estimator, _) in self._entropies.items()}

    def _closed_kl(self, name: str) -> Summand | None:
        q, p = self.guide_trace.nodes[name], self.model_trace.nodes[name]
        try:
            kl = kl_divergence(q["fn"], p["fn"])
        except NotImplementedError:
            return None
        kl = scale_and_mask(kl.expand(q["log_prob"].shape), q["scale"], q["mask"])
        return Summand(kl, kl, q["cond_indep_stack"], name)

    def _check_closed_kl(self) -> None:
        model_order = [n for n, _ in sample_sites(self.model_trace) if n in self.guide_trace.nodes]
        guide_order = [n for n, _ in sample_sites(self.guide_trace) if n in self.model_trace.nodes]
        if model_order != guide_order:
            raise ValueError(
                f"kl='closed_form' needs model and guide to draw their sites in the same order, but the model has "
                f"{model_order} and the guide {guide_order}. Reorder the guide, or use kl='monte_carlo'."
            )
        for name, density in self.densities.items():
            if density.deltas or density.is_point or density.site["name"] not in self.model_trace.nodes:
                raise ValueError(
                    f"kl='closed_form' is wrong for guide site '{name}', which is an auxiliary site or a Delta: "
                    "Pyro's KL drops its Jacobian. Use kl='monte_carlo'."
                )


def log_prob_summand(site: Any, weight: float = 1.0) -> Summand:
    """Log density of a site, scaled and masked."""
    value, symbols = site["log_prob"], site["infer"].get("_dim_to_symbol")
    return Summand(value, value, site["cond_indep_stack"], weight=weight, total=site["log_prob_sum"], symbols=symbols)
