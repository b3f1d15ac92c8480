"""The terms of a loss for one particle, each summed once: for the loss, its gradient and its record."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from banel_pyro.objectives.bound import Bound
from banel_pyro.terms import LossTerms, Summand, Weight

__all__ = ["Totals", "surrogate_total", "total", "weighted_sum"]


class Totals:
    """The terms of the loss for one particle (or one plate of particles).

    A form of the bound subclasses it and says how score-function sites pay: :meth:`score`.

    Args:
        bound: the summands of the bound.
        penalty: the summands of the penalty.
    """

    retain_graph = False
    """Whether the graph has to outlive its backward pass, since particles share it."""

    def __init__(self, bound: Bound, penalty: Sequence[Summand]) -> None:
        self.bound, self._penalty = bound, list(penalty)
        self.log_likelihood, self.kl = total(bound.log_likelihood), total(bound.kl)

    @cached_property
    def penalty(self) -> Tensor:
        """The penalty, in nats."""
        return total(self._penalty)

    @property
    def loss_summands(self) -> list[Summand]:
        """All summands of the loss."""
        return [s.weighted(-1.0) for s in self.bound.log_likelihood] + self.bound.kl + self._penalty

    @property
    def loss(self) -> Tensor:
        """-ELBO + penalty, in nats."""
        return (self.kl - self.log_likelihood + self.penalty).detach()

    def surrogate(self) -> Tensor:
        """What is differentiated: the pathwise part, and what score-function sites add."""
        score = self.score()
        return self.pathwise() + score if isinstance(score, Tensor) else self.pathwise()

    def pathwise(self) -> Tensor:
        """What the pathwise estimator differentiates: the totals themselves where all summands are pathwise."""
        kl = surrogate_total(self.bound.kl, self.kl)
        surrogate = kl - self.log_likelihood
        return surrogate + surrogate_total(self._penalty, self.penalty) if self._penalty else surrogate

    def score(self) -> Tensor | float:
        """The score-function terms of the surrogate."""
        raise NotImplementedError

    def entropies(self) -> dict[str, Tensor]:
        """Shannon's entropy of each density of the guide."""
        return {name: total(found).detach() for name, found in self.bound.entropy.items()}

    def terms(self, entropies: dict[str, Tensor], weight: Weight) -> LossTerms:
        """The record of the loss."""
        entropy = sum(entropies.values()) if entropies else torch.zeros(())
        return LossTerms(self.log_likelihood.detach(), self.kl.detach(), entropy, weight, self.penalty.detach())


def surrogate_total(summands: Sequence[Summand], whole: Tensor) -> Tensor:
    """Sum of what is differentiated of some summands, which is ``whole``, their sum, where all are pathwise."""
    if all(s.surrogate is s.value for s in summands):
        return whole
    return weighted_sum([(s.weight, s.surrogate.sum()) for s in summands if isinstance(s.surrogate, Tensor)])


def total(summands: Sequence[Summand]) -> Tensor:
    """Sum of some summands over all their axes, weights multiplied in."""
    return weighted_sum([(s.weight, s.value.sum() if s.total is None else s.total) for s in summands])


def weighted_sum(terms: list[tuple[float | Tensor, Tensor]]) -> Tensor:
    """Sum of weight times tensor, multiplying once for each weight: a small model has many terms of equal weight."""
    sums: dict[float | Tensor, Tensor] = {}
    for weight, tensor in terms:
        sums[weight] = sums[weight] + tensor if weight in sums else tensor
    found = sums.pop(1.0, None)
    minus = sums.pop(-1.0, None)
    if minus is not None:
        found = -minus if found is None else found - minus
    for weight, tensor in sums.items():
        found = tensor * weight if found is None else found + tensor * weight
    return torch.zeros(()) if found is None else found
