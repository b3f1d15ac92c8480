"""Pyro's third form of the bound: discrete sites are summed over, in the guide as in the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from pyro.infer import TraceEnum_ELBO
from pyro.infer.traceenum_elbo import _compute_dice_elbo, _find_ordinal
from pyro.infer.util import Dice
from pyro.ops import packed
from torch import Tensor

from banel_pyro.entropy.enumerated import enumerated_renyi, is_enumerated, marginal, ordinal_of
from banel_pyro.entropy.joint import closed_renyi
from banel_pyro.objectives.base import Objective
from banel_pyro.objectives.bound import Bound
from banel_pyro.objectives.totals import Totals, surrogate_total, total
from banel_pyro.terms import LossTerms, Summand, Weight
from banel_pyro.traces import on_plate, sample_sites

__all__ = ["EnumObjective"]


class EnumBound(Bound):
    """The summands of the bound for traces with enumerated sites; those of the model's own are left to Pyro."""

    @property
    def sums_out(self) -> list[str]:
        """The latent sites of the model that are summed out, and absent from the guide."""
        guide = self.guide_trace.nodes
        return [n for n, s in sample_sites(self.model_trace) if n not in guide and "_enumerate_dim" in s["infer"]]

    def rows(self, summand: Summand, plate: str) -> Tensor | None:
        """A summand over the rows in a plate, averaged over the values that it depends on."""
        value = marginal(summand, self.guide_trace) if summand.paid_for else summand.value
        return on_plate(value * summand.weight, summand.stack, plate)

    def renyi(self, names: Sequence[str], alpha: float) -> Summand:
        """The joint Rényi entropy of some densities that depend on no others: a closed form, a sum, or from draws."""
        densities = [self.densities[name] for name in names]
        one_by_one = [n for n, site in sample_sites(self.guide_trace) if "_enum_total" in site["infer"]]
        if one_by_one:
            raise ValueError(
                f"alpha={alpha:g}: the values of {one_by_one} are enumerated one by one. Use infer={{'enumerate': "
                "'parallel'}, or alpha=1.0."
            )
        summed = [density.name for density in densities if is_enumerated(density.site)]
        if not summed:
            return super().renyi(names, alpha)
        closed = closed_renyi(densities[0], alpha) if len(names) == 1 else None
        if len(summed) < len(names):
            raise ValueError(
                f"alpha={alpha:g}: {list(names)} depend on each other, and only {summed} are summed over. Enumerate "
                "all of them, use BaNEL_ELBO without enumeration, or use alpha=1.0."
            )
        return enumerated_renyi(densities, alpha, self.guide_trace) if closed is None else closed


class EnumTotals(Totals):
    """The loss of Pyro's ``TraceEnum_ELBO``: each summand times the probability of the values that it depends on."""

    retain_graph = True

    bound: EnumBound

    def __init__(self, bound: EnumBound, penalty: Sequence[Summand]) -> None:
        self.bound, self._penalty = bound, list(penalty)
        self._elbo = torch.as_tensor(_compute_dice_elbo(bound.model_trace, bound.guide_trace))
        # what depends on no draw, or brings a score term of its own, is not multiplied by probabilities
        self._given = [s for s in self._penalty if not s.paid_for]
        self._expected_penalty = self._expected([s for s in self._penalty if s.paid_for])
        self.penalty = self._expected_penalty + total(self._given)

    def _expected(self, summands: Sequence[Summand]) -> Tensor:
        if not summands:
            return torch.zeros(())
        costs: dict[frozenset[str], list[Tensor]] = {}
        for s in summands:
            cost = packed.pack(s.weighted_value, s.symbols)
            costs.setdefault(ordinal_of(s.stack, self.bound.guide_trace), []).append(cost)
        return torch.as_tensor(self._dice.compute_expectation(costs))

    @cached_property
    def _dice(self) -> Any:
        """Pyro's weights of the values and draws."""
        trace = self.bound.guide_trace
        return Dice(trace, {name: _find_ordinal(trace, site) for name, site in sample_sites(trace)})

    @property
    def loss(self) -> Tensor:
        """-ELBO + penalty, in nats."""
        return (self.penalty - self._elbo).detach()

    def surrogate(self) -> Tensor:
        """What is differentiated: the loss, whose score terms Pyro's ``Dice`` brings in."""
        return self._expected_penalty + surrogate_total(self._given, total(self._given)) - self._elbo

    def entropies(self) -> dict[str, Tensor]:
        """Shannon's entropy of each density of the guide."""
        return {name: self._expected(found).detach() for name, found in self.bound.entropy.items()}

    def terms(self, entropies: dict[str, Tensor], weight: Weight) -> LossTerms:
        """The record of the loss; likelihood and KL are told apart if no site of the model is summed out."""
        entropy = sum(entropies.values()) if entropies else torch.zeros(())
        elbo = self._elbo.detach()
        if self.bound.sums_out:
            nan = torch.full_like(elbo, torch.nan)
            return LossTerms(nan, nan, entropy, weight, self.penalty.detach(), elbo)
        log_likelihood = self._expected(self.bound.log_likelihood).detach()
        return LossTerms(log_likelihood, log_likelihood - elbo, entropy, weight, self.penalty.detach())


class EnumObjective(Objective, TraceEnum_ELBO):
    """An objective in the form of Pyro's ``TraceEnum_ELBO``: for discrete sites that are summed over.

    Arguments and hole as for :class:`~banel_pyro.objectives.base.Objective`.

    Raises:
        ValueError: for ``kl="closed_form"``.
    """

    totals = EnumTotals

    def __init__(self, lam: Weight = 0.0, **options: Any) -> None:
        super().__init__(lam, **options)
        if self.kl != "monte_carlo":
            raise ValueError(
                f"kl='{self.kl}': where sites are summed out, log q and log p are taken together. Use "
                "kl='monte_carlo', which is exact for enumerated sites."
            )

    def _particles(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Iterator[EnumBound]:
        find_parents = partial(self._dependencies.of, guide, args, kwargs)
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            yield EnumBound(model_trace, guide_trace, entropy=self.entropy, kl=self.kl, find_parents=find_parents)

    def terms_per_datum(self, model: Any, guide: Any, *args: Any, data_plate: str = "data", **kwargs: Any) -> LossTerms:
        """As :meth:`Objective.terms_per_datum`, where nothing of the model's own is summed out."""
        for bound in self._particles(model, guide, args, kwargs):
            if bound.sums_out:
                raise ValueError(
                    f"terms_per_datum: the model's latent sites {bound.sums_out} are summed out, which leaves no "
                    "terms for each datum. Use terms, or put these sites into the guide."
                )
        return super().terms_per_datum(model, guide, *args, data_plate=data_plate, **kwargs)
