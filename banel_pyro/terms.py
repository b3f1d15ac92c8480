"""The records that everything else reads: the terms of a loss, and an estimate with its error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Estimate", "LossTerms", "Summand", "VectorEstimate", "Weight"]

Weight: TypeAlias = float | Tensor | Mapping[str, float | Tensor]
"""A λ: one number for every latent site, or a mapping from site name to number (sites left out: 0)."""


@dataclass(frozen=True)
class LossTerms:
    r"""The terms of an entropy-weighted variational loss, in nats.

    .. math::
        \text{elbo} = \text{log\_likelihood} - \text{kl}, \qquad
        \text{loss} = -\text{elbo} + \text{penalty}, \qquad
        \text{penalty} = \sum_s \lambda_s H_s(q)

    The fields are totals, scaled over subsampled plates as in Pyro, or vectors over the data plate
    (one entry per datum, unscaled). A ``loss`` is minimised, an ``elbo`` maximised. Where latent sites of the model
    are summed out, likelihood and KL cannot be told apart: both are NaN, and the ELBO is given whole.

    Args:
        log_likelihood: :math:`E_q[\log p(x|z)]`, ``pyro.factor`` statements of the model included.
        kl: :math:`E_q[\log q(z) - \log p(z)]`.
        entropy: Shannon's entropy :math:`H(q)`, whatever the order of the penalty; ``-inf`` where the guide is a point
            mass.
        lam: the λ that was in force (a number, or a mapping from site name to number).
        penalty: :math:`\sum_s \lambda_s H_s(q)`, with Rényi's entropy where the objective has an order α.
        whole: the ELBO where ``log_likelihood`` and ``kl`` are NaN, else None.

    Example:
        >>> terms = LossTerms(log_likelihood=-3.0, kl=1.0, entropy=2.0, lam=0.5, penalty=1.0)
        >>> terms.elbo, terms.loss
        (-4.0, 5.0)
    """

    log_likelihood: Tensor | float
    kl: Tensor | float
    entropy: Tensor | float
    lam: Weight
    penalty: Tensor | float
    whole: Tensor | float | None = None

    @property
    def elbo(self) -> Tensor | float:
        """The untempered evidence lower bound, in nats: what runs are judged by."""
        return self.log_likelihood - self.kl if self.whole is None else self.whole

    @property
    def loss(self) -> Tensor | float:
        """What is minimised, in nats. Not comparable between different λ."""
        return self.penalty - self.elbo

    def __add__(self, other: LossTerms) -> LossTerms:
        """Sum of two records, term by term (λ of the first)."""
        return LossTerms(
            self.log_likelihood + other.log_likelihood,
            self.kl + other.kl,
            self.entropy + other.entropy,
            self.lam,
            self.penalty + other.penalty,
            None if self.whole is None or other.whole is None else self.whole + other.whole,
        )

    def map(self, fn: Callable[[Tensor | float], Tensor | float]) -> LossTerms:
        """The same record with ``fn`` applied to every term (λ is left as it is)."""
        whole = None if self.whole is None else fn(self.whole)
        return LossTerms(fn(self.log_likelihood), fn(self.kl), fn(self.entropy), self.lam, fn(self.penalty), whole)


@dataclass(frozen=True)
class Estimate:
    """A Monte-Carlo number and its standard error, in the same unit (nats unless said otherwise).

    Example:
        >>> print(Estimate(-1.25, 0.5))
        -1.250 ± 0.500
    """

    value: float
    stderr: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.stderr:.3f}"


@dataclass(frozen=True)
class VectorEstimate:
    """Monte-Carlo numbers over the rows in a plate, each with its standard error, in nats unless said otherwise."""

    value: NDArray[np.floating[Any]]
    stderr: NDArray[np.floating[Any]]


@dataclass(slots=True)
class Summand:
    """One summand of an objective, still batched over its plates: what a loss is put together from.

    Args:
        value: its estimate in nats, with Pyro's batch shape, scale and mask.
        surrogate: what is differentiated by the pathwise estimator (``value`` itself, or the number
            0 where a score-function site's own log q has zero expected gradient).
        stack: the ``cond_indep_stack`` of its site, by which it enters the costs of score-function sites.
        owner: for a term in closed form, the density that it has integrated out. It is no function
            of that density's draw, so it stays out of that density's score cost.
        weight: the number that multiplies value, surrogate and total; not yet multiplied in, which saves
            an operation on every step.
        total: the sum of ``value`` where it is known already, as Pyro knows it for the sites of a trace.
        paid_for: whether it enters the costs of score-function sites. A term that depends on no draw, or brings a
            score term of its own, does not.
        symbols: Pyro's names of the batch axes, where sites are enumerated.
    """

    value: Tensor
    surrogate: Tensor | float
    stack: tuple[Any, ...] = ()
    owner: str | None = None
    weight: float | Tensor = 1.0
    total: Tensor | None = None
    paid_for: bool = True
    symbols: Mapping[int, str] | None = None

    @property
    def weighted_value(self) -> Tensor:
        """The value times the weight."""
        return self.value * self.weight

    def weighted(self, weight: float | Tensor) -> Summand:
        """The same summand times a number."""
        weight = self.weight * weight
        return Summand(
            self.value, self.surrogate, self.stack, self.owner, weight, self.total, self.paid_for, self.symbols
        )
