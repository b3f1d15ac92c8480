"""The variational bound, written once: particles, score-function terms, and all of Pyro's entry points.

A new objective subclasses :class:`Objective` and fills one hole, :meth:`Objective.penalty`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from pyro.distributions.util import is_identically_zero
from pyro.infer import Trace_ELBO
from torch import Tensor

from banel_pyro.entropy import EntropyEstimator
from banel_pyro.objectives.bound import Bound, Costs
from banel_pyro.terms import LossTerms, Summand, Weight
from banel_pyro.traces import on_plate, sample_sites

__all__ = ["Objective"]


class Objective(Trace_ELBO):
    r"""A loss of the form :math:`-\text{ELBO} + \text{penalty}`; subclasses write the penalty.

    All entry points of Pyro (``loss``, ``differentiable_loss``, ``loss_and_grads``, an ``ELBOModule``)
    go through :meth:`_particles` and agree. The gradient is pathwise for reparameterised sites; the
    others get a score-function term whose cost is the sum of all summands in their plates.

    Args:
        entropy: ``"auto"`` (closed form where every ingredient has one, else a draw of -log q),
            ``"closed_form"`` or ``"monte_carlo"``.
        kl: ``"monte_carlo"`` or ``"closed_form"`` (where the pair of distributions has one).
        num_particles: draws of the guide per step.
        vectorize_particles: draw them in one pass, inside an outermost plate.
        max_plate_nesting: plates that the model nests at most; needed by Pyro for vectorised particles only.
        retain_graph: passed to ``backward`` in ``loss_and_grads``.

    Raises:
        ValueError, TypeError: for options outside the ones named here.
    """

    def __init__(
        self,
        *,
        entropy: str = "auto",
        kl: str = "monte_carlo",
        num_particles: int = 1,
        vectorize_particles: bool = False,
        max_plate_nesting: float = float("inf"),
        retain_graph: bool | None = None,
    ) -> None:
        _check_option("entropy", entropy, ("auto", "closed_form", "monte_carlo"))
        _check_option("kl", kl, ("monte_carlo", "closed_form"))
        if not isinstance(num_particles, int) or isinstance(num_particles, bool) or num_particles < 1:
            raise ValueError(f"num_particles={num_particles!r}: expected an integer of at least 1.")
        super().__init__(
            num_particles=num_particles,
            vectorize_particles=vectorize_particles,
            max_plate_nesting=max_plate_nesting,
            retain_graph=retain_graph,
        )
        self.entropy, self.kl = entropy, kl

    # ---- the hole to fill -------------------------------------------------------------------

    def penalty(self, bound: Bound) -> list[Summand]:
        """The summands that are added to -ELBO, in nats."""
        raise NotImplementedError

    @property
    def weight(self) -> Weight:
        """The weight of the penalty, as it is reported in ``LossTerms.lam``."""
        raise NotImplementedError

    # ---- Pyro's entry points ----------------------------------------------------------------

    @torch.no_grad()
    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """An estimate of the loss in nats, without gradients (``SVI.evaluate_loss``)."""
        return _warned(float(self.terms(model, guide, *args, **kwargs).loss))

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss in nats as a tensor whose gradient is the gradient estimator."""
        surrogate, terms, _ = self.loss_and_terms(model, guide, *args, **kwargs)
        return torch.as_tensor(terms.loss) + (surrogate - surrogate.detach())

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """An estimate of the loss in nats; adds its gradient to the parameters' ``.grad`` (``SVI.step``)."""
        loss = 0.0
        for bound in self._particles(model, guide, args, kwargs):
            surrogate, value = self._surrogate(bound, _Totals(bound, self.penalty(bound)))
            if surrogate.requires_grad:
                (surrogate / self.num_particles).backward(retain_graph=self.retain_graph)
            loss += value.item() / self.num_particles
        return _warned(loss)

    # ---- the terms --------------------------------------------------------------------------

    def loss_and_terms(
        self, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, LossTerms, dict[str, Tensor]]:
        """What to call ``backward`` on, the terms of the loss, and the entropy of each density of the guide.

        All from one pass through guide and model, as tensors: nothing is synchronised.
        """
        surrogates, terms, entropies = [], [], []
        for bound in self._particles(model, guide, args, kwargs):
            totals = _Totals(bound, self.penalty(bound))
            surrogates.append(self._surrogate(bound, totals)[0])
            with torch.no_grad():  # entropies without a penalty need no graph
                entropies.append({name: _total(found).detach() for name, found in bound.entropy.items()})
                terms.append(self._terms(totals, entropies[-1]))
        sites = {name: sum((e[name] for e in entropies[1:]), entropies[0][name]) for name in entropies[0]}
        loss = sum(surrogates[1:], surrogates[0]) / self.num_particles
        return loss, self._average(terms), {name: value / self.num_particles for name, value in sites.items()}

    @torch.no_grad()
    def terms(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> LossTerms:
        """The terms of the loss as totals in nats (0-dim tensors)."""
        terms = []
        for bound in self._particles(model, guide, args, kwargs):
            entropies = {name: _total(found) for name, found in bound.entropy.items()}
            terms.append(self._terms(_Totals(bound, self.penalty(bound)), entropies))
        return self._average(terms)

    @torch.no_grad()
    def terms_per_datum(self, model: Any, guide: Any, *args: Any, data_plate: str = "data", **kwargs: Any) -> LossTerms:
        """The terms of the loss as vectors over the rows in the data plate, in nats per datum.

        The plate's factor N/B is taken out: a datum counts once. Sites outside the plate belong to no
        datum and are left out, so totals are (N/B) times the sum over rows plus the global terms.

        Args:
            model: the model.
            guide: the guide.
            *args: passed to both.
            data_plate: name of the plate over data points.
            **kwargs: passed to both.

        Raises:
            ValueError: if no site lies in ``data_plate``.
        """
        found = []
        for bound in self._particles(model, guide, args, kwargs):
            entropy = [s for summands in bound.entropy.values() for s in summands]
            parts = [bound.log_likelihood, bound.kl, entropy, self.penalty(bound)]
            size = _plate_size(bound, data_plate)
            rows = [_rows(part, data_plate, size) for part in parts]
            found.append(LossTerms(rows[0], rows[1], rows[2], self.weight, rows[3]))
        return self._average(found)

    @torch.no_grad()
    def site_entropies(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The conditional entropy of each density of the guide, in nats, plates scaled as in Pyro."""
        return self.loss_and_terms(model, guide, *args, **kwargs)[2]

    @torch.no_grad()
    def estimators(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> dict[str, EntropyEstimator]:
        """Which entropy estimator runs at each density of the guide, by name."""
        return next(iter(self._particles(model, guide, args, kwargs))).estimators

    # ---- how it is put together -------------------------------------------------------------

    def _particles(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Iterator[Bound]:
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            yield Bound(model_trace, guide_trace, entropy=self.entropy, kl=self.kl)

    def _surrogate(self, bound: Bound, totals: _Totals) -> tuple[Tensor, Tensor]:
        """What is differentiated, and the loss itself, for one particle (or one plate of particles)."""
        surrogate = totals.surrogate()
        costs = None
        for name, density in bound.densities.items():
            for site in density.sites:
                score = site["score_parts"].score_function
                if not is_identically_zero(score):
                    costs = costs or Costs(totals.loss_summands)
                    surrogate = surrogate + (costs.of(site["cond_indep_stack"], name) * score).sum()
        return torch.as_tensor(surrogate), totals.loss

    def _terms(self, totals: _Totals, entropies: dict[str, Tensor]) -> LossTerms:
        entropy = sum(entropies.values()) if entropies else torch.zeros(())
        return LossTerms(
            totals.log_likelihood.detach(), totals.kl.detach(), entropy, self.weight, totals.penalty.detach()
        )

    def _average(self, terms: list[LossTerms]) -> LossTerms:
        total = sum(terms[1:], terms[0])
        return total if self.num_particles == 1 else total.map(lambda x: x / self.num_particles)


class _Totals:
    """The terms of the loss for one particle, each summed once: for the loss, its gradient and its record."""

    def __init__(self, bound: Bound, penalty: list[Summand]) -> None:
        self._bound, self._penalty = bound, penalty
        self.log_likelihood, self.kl = _total(bound.log_likelihood), _total(bound.kl)
        self.penalty = _total(penalty)

    @property
    def loss_summands(self) -> list[Summand]:
        """All summands of the loss."""
        return [s.weighted(-1.0) for s in self._bound.log_likelihood] + self._bound.kl + self._penalty

    @property
    def loss(self) -> Tensor:
        """-ELBO + penalty, in nats."""
        return (self.kl - self.log_likelihood + self.penalty).detach()

    def surrogate(self) -> Tensor:
        """What the pathwise estimator differentiates: the totals themselves where all summands are pathwise."""
        kl = _surrogate_total(self._bound.kl, self.kl)
        surrogate = kl - self.log_likelihood
        return surrogate + _surrogate_total(self._penalty, self.penalty) if self._penalty else surrogate


def _surrogate_total(summands: list[Summand], total: Tensor) -> Tensor:
    if all(s.surrogate is s.value for s in summands):
        return total
    return _weighted_sum([(s.weight, s.surrogate.sum()) for s in summands if isinstance(s.surrogate, Tensor)])


def _total(summands: list[Summand]) -> Tensor:
    return _weighted_sum([(s.weight, s.value.sum() if s.total is None else s.total) for s in summands])


def _weighted_sum(terms: list[tuple[float | Tensor, Tensor]]) -> Tensor:
    """Sum of weight times tensor, multiplying once for each weight: a small model has many terms of equal weight."""
    sums: dict[float | Tensor, Tensor] = {}
    for weight, tensor in terms:
        sums[weight] = sums[weight] + tensor if weight in sums else tensor
    total = sums.pop(1.0, None)
    minus = sums.pop(-1.0, None)
    if minus is not None:
        total = -minus if total is None else total - minus
    for weight, tensor in sums.items():
        total = tensor * weight if total is None else total + tensor * weight
    return torch.zeros(()) if total is None else total


def _plate_size(bound: Bound, plate: str) -> int:
    frames = [
        frame
        for trace in (bound.model_trace, bound.guide_trace)
        for _, site in sample_sites(trace)
        for frame in site["cond_indep_stack"]
    ]
    for frame in frames:
        if frame.name == plate and frame.vectorized:
            return int(frame.size)
    names = sorted({frame.name for frame in frames})
    raise ValueError(f"data_plate='{plate}': no site lies in a plate of that name. The plates are {names}.")


def _rows(summands: list[Summand], plate: str, size: int) -> Tensor:
    rows = torch.zeros(size)
    for s in summands:
        row = on_plate(s.weighted_value, s.stack, plate)
        rows = rows if row is None else rows + row
    return rows


def _warned(loss: float) -> float:
    if math.isnan(loss):
        warnings.warn("Encountered NaN: loss", stacklevel=3)
    return loss


def _check_option(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, allowed))}.")
