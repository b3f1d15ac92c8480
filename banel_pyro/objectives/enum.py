"""Pyro's third form of the bound: discrete sites are summed over, in the guide as in the model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from opt_einsum import shared_intermediates  # type: ignore[import-untyped]
from pyro.distributions.util import is_identically_zero
from pyro.infer import TraceEnum_ELBO
from pyro.infer.traceenum_elbo import _compute_model_factors
from pyro.infer.util import Dice
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.einsum import contract
from torch import Tensor

from banel_pyro.entropy.enumerated import depends_on_values, enumerated_renyi, is_enumerated, marginal, ordinal_of
from banel_pyro.entropy.joint import closed_renyi
from banel_pyro.objectives.base import Objective
from banel_pyro.objectives.bound import Bound, log_prob_summand
from banel_pyro.objectives.totals import Totals, surrogate_total, total, weighted_sum
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

    @cached_property
    def elbo(self) -> list[Summand]:
        """Log p - log q of all sites, with the sum over what the model sums out in the place of its terms."""
        guide = [log_prob_summand(site, -1.0) for _, site in sample_sites(self.guide_trace)]
        trace = self.model_trace
        if not self.sums_out:
            return [log_prob_summand(site) for _, site in sample_sites(trace)] + guide
        _, factors, _, summed, scale = _compute_model_factors(trace, self.guide_trace)
        whole = [s for _, s in sample_sites(trace) if summed.isdisjoint(s["packed"]["log_prob"]._pyro_dims)]
        stacks = [site["cond_indep_stack"] for _, site in sample_sites(trace)]
        frames = {trace.plate_to_symbol[f.name]: f for stack in stacks for f in stack if f.vectorized}
        sums = []
        for ordinal, terms in contract_tensor_tree(factors, summed).items():
            stack = tuple(frames[symbol] for symbol in sorted(ordinal))
            for term in terms:
                symbols = {trace.symbol_to_dim[symbol]: symbol for symbol in term._pyro_dims}
                value = packed.unpack(term, trace.symbol_to_dim)
                sums.append(Summand(value, value, stack, weight=scale, symbols=symbols))
        return [log_prob_summand(site) for site in whole] + sums + guide

    def rows(self, summand: Summand, plate: str) -> Tensor | None:
        """A summand over the rows in a plate, averaged over the values that it depends on."""
        if self.sums_out:
            raise ValueError(
                f"terms_per_datum: the model's latent sites {self.sums_out} are summed out, which leaves no "
                "terms for each datum. Use terms, or put these sites into the guide."
            )
        value = marginal(summand, self.guide_trace) if summand.paid_for else summand.value
        return on_plate(value * summand.weight, summand.stack, plate)

    def renyi(self, names: Sequence[str], alpha: float) -> Summand:
        """The joint Rényi entropy of some densities that depend on no others: a closed form, a sum, or from draws."""
        densities = [self.densities[name] for name in names]
        # each of their values has a run of its own, in all of which a term of no draw would count
        one_by_one = [n for n, site in sample_sites(self.guide_trace) if "_enum_total" in site["infer"]]
        if one_by_one:
            raise ValueError(
                f"alpha={alpha:g}: the values of {one_by_one} are enumerated one by one. Use infer={{'enumerate': "
                "'parallel'}, or alpha=1.0."
            )
        closed = closed_renyi(densities[0], alpha) if len(names) == 1 else None
        many = [density.name for density in densities if density.site["infer"].get("num_samples") is not None]
        if many and closed is None:
            raise ValueError(
                f"alpha={alpha:g}: {many} are drawn several times (num_samples) in one particle, of which no joint "
                "Rényi entropy can be made. Take num_samples off, or use alpha=1.0."
            )
        summed = [density.name for density in densities if is_enumerated(density.site)]
        if not summed:
            return super().renyi(names, alpha)
        if len(summed) < len(names):
            raise ValueError(
                f"alpha={alpha:g}: {list(names)} depend on each other, and only {summed} are summed over. Enumerate "
                "all of them, use BaNEL_ELBO without enumeration, or use alpha=1.0."
            )
        return enumerated_renyi(densities, alpha, self.guide_trace) if closed is None else closed


def expectation(dice: Any, costs: Mapping[frozenset[str], Sequence[Any]]) -> Tensor:
    """The expected sum of some costs, each weighted by the probability of the values that it depends on.

    Pyro's ``Dice.compute_expectation`` with one difference: where a probability is 0 the cost counts 0 by selection,
    and not by a look at the values, which a captured step cannot take.

    Args:
        dice: Pyro's weights of values and draws.
        costs: packed costs in nats, by ordinal (the plates that they lie in).
    """
    found: list[Tensor] = []
    with shared_intermediates():
        for ordinal, terms in costs.items():
            factors = dice._get_log_factors(ordinal)
            scale = math.exp(sum(factor for factor in factors if not isinstance(factor, Tensor)))
            weights: list[Any] = [factor for factor in factors if isinstance(factor, Tensor)]
            for cost in terms:
                dims = cost._pyro_dims
                inputs = ",".join([*(weight._pyro_dims for weight in weights), dims])
                log_p = contract(f"{inputs}->{dims}", *weights, torch.zeros_like(cost), backend=_LOG)
                p = log_p.exp()
                found.append(scale * (p * torch.where(p > 0, cost, torch.zeros_like(cost))).sum())
    return torch.as_tensor(sum(found[1:], found[0]))


_LOG = "pyro.ops.einsum.torch_log"
"""Products of densities, summed, in logarithms."""


class EnumTotals(Totals):
    """The loss of Pyro's ``TraceEnum_ELBO``: each summand times the probability of the values that it depends on."""

    retain_graph = True

    bound: EnumBound

    def __init__(self, bound: EnumBound, penalty: Sequence[Summand]) -> None:
        self.bound, self._penalty = bound, list(penalty)
        # what depends on no draw, or brings a score term of its own, is not multiplied by probabilities
        self._given = [s for s in self._penalty if not s.paid_for]
        self._paid = [s for s in self._penalty if s.paid_for]
        self._expected_loss = self._expected([s.weighted(-1.0) for s in bound.elbo] + self._paid)

    @cached_property
    def penalty(self) -> Tensor:
        """The expected penalty."""
        return self._expected(self._paid) + total(self._given)

    def _expected(self, summands: Sequence[Summand]) -> Tensor:
        """The expectation of some summands; of those that depend on no value or draw it is their sum."""
        groups: dict[tuple[frozenset[str], str], list[tuple[float | Tensor, Tensor]]] = {}
        fixed = []
        for s in summands:
            if self._is_exact and not depends_on_values(s):
                fixed.append(s)
                continue
            value = packed.pack(s.value, s.symbols)
            key = ordinal_of(s.stack, self.bound.guide_trace), value._pyro_dims
            groups.setdefault(key, []).append((s.weight, value))
        if not groups:
            return total(fixed)
        costs: dict[frozenset[str], list[Tensor]] = {}
        for (ordinal, dims), terms in groups.items():  # Pyro multiplies each cost by its probabilities: add them first
            cost: Any = weighted_sum(terms)
            cost._pyro_dims = dims
            costs.setdefault(ordinal, []).append(cost)
        expected = expectation(self._dice, costs)
        return expected + total(fixed) if fixed else expected

    @cached_property
    def _dice(self) -> Any:
        """Pyro's weights of the values and draws."""
        trace = self.bound.guide_trace
        return Dice(trace, {name: ordinal_of(site["cond_indep_stack"], trace) for name, site in sample_sites(trace)})

    @cached_property
    def _is_exact(self) -> bool:
        """Whether every site of the guide is summed over or reparameterised, so that no draw has a score."""
        return all(
            is_enumerated(site)
            or (not site["infer"].get("enumerate") and is_identically_zero(site["score_parts"].score_function))
            for _, site in sample_sites(self.bound.guide_trace)
        )

    @property
    def loss(self) -> Tensor:
        """-ELBO + penalty, in nats."""
        return (self._expected_loss + total(self._given) if self._given else self._expected_loss).detach()

    def surrogate(self) -> Tensor:
        """What is differentiated: the loss, whose score terms Pyro's ``Dice`` brings in."""
        if not self._given:
            return self._expected_loss
        return self._expected_loss + surrogate_total(self._given, total(self._given))

    def entropies(self) -> dict[str, Tensor]:
        """Shannon's entropy of each density of the guide."""
        return {name: self._expected(found).detach() for name, found in self.bound.entropy.items()}

    def terms(self, entropies: dict[str, Tensor], weight: Weight) -> LossTerms:
        """The record of the loss; likelihood and KL are told apart if no site of the model is summed out."""
        entropy = sum(entropies.values()) if entropies else torch.zeros(())
        elbo = self.penalty.detach() - self.loss
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
