"""The summands of a variational bound, from one trace of the model and one of the guide."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer.util import MultiFrameTensor
from torch import Tensor
from torch.distributions import kl_divergence

from banel_pyro.entropy import EntropyEstimator, density_entropy
from banel_pyro.terms import Summand
from banel_pyro.traces import GuideDensity, Stack, check_sites, guide_densities, sample_sites

__all__ = ["Bound", "Costs"]


class Bound:
    """The summands of the bound for one pair of traces.

    Args:
        model_trace: the model's trace, with log-probabilities.
        guide_trace: the guide's trace, with score parts.
        entropy: ``"auto"``, ``"closed_form"`` or ``"monte_carlo"``.
        kl: ``"monte_carlo"`` or ``"closed_form"``.
    """

    def __init__(self, model_trace: Any, guide_trace: Any, *, entropy: str, kl: str) -> None:
        self.model_trace, self.guide_trace = model_trace, guide_trace
        self._entropy_mode, self._kl_mode = entropy, kl
        check_sites(model_trace, guide_trace)
        self.densities: dict[str, GuideDensity] = guide_densities(model_trace, guide_trace)

    @cached_property
    def log_likelihood(self) -> list[Summand]:
        """log p of what is observed; ``pyro.factor`` statements of the model count here."""
        return [
            Summand(site["log_prob"], site["log_prob"], site["cond_indep_stack"], total=site["log_prob_sum"])
            for _, site in sample_sites(self.model_trace)
            if site["is_observed"]
        ]

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
            log_prob, _, entropy_term = site["score_parts"]
            own = 0.0 if is_identically_zero(entropy_term) else entropy_term
            summands.append(Summand(log_prob, own, site["cond_indep_stack"], total=site["log_prob_sum"]))
            if name in self.model_trace.nodes:
                prior = self.model_trace.nodes[name]
                value, total = prior["log_prob"], prior["log_prob_sum"]
                summands.append(Summand(value, value, prior["cond_indep_stack"], None, -1.0, total))
        return summands

    @cached_property
    def _entropies(self) -> dict[str, tuple[EntropyEstimator, list[Summand]]]:
        return {name: density_entropy(q, self._entropy_mode) for name, q in self.densities.items()}

    @property
    def entropy(self) -> dict[str, list[Summand]]:
        """The conditional entropies of the guide's densities, by name."""
        return {name: summands for name, (_, summands) in self._entropies.items()}

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


class Costs:
    """The downstream cost of a score-function site: every summand of the loss, summed to its plates.

    A summand in closed form has integrated its own density out, so it is no function of that
    density's draw: it stays out of its own cost, which is unbiased with it and less noisy without.

    Args:
        summands: all summands of the loss.
    """

    def __init__(self, summands: list[Summand]) -> None:
        self._all = MultiFrameTensor(*((s.stack, s.weighted_value.detach()) for s in summands))
        self._owned: Mapping[str, list[Summand]] = {
            name: [s for s in summands if s.owner == name] for name in {s.owner for s in summands if s.owner}
        }

    def of(self, stack: Stack, name: str) -> Tensor:
        """The cost of density ``name``, over the plates in ``stack``."""
        cost = self._all.sum_to(stack)
        own = self._owned.get(name, [])
        if own:
            cost = cost - MultiFrameTensor(*((s.stack, s.weighted_value.detach()) for s in own)).sum_to(stack)
        return torch.as_tensor(cost)
