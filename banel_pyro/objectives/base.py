"""The variational bound, written once: particles, records, and all of Pyro's entry points.

A form of the bound (``trace.py``, ``graph.py``, ``enum.py``) says how traces are drawn and how gradients are
estimated. A new objective subclasses one of the forms and fills one hole, :meth:`Objective.penalty`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from numbers import Real
from typing import Any, ClassVar

import torch
from pyro.infer import ELBO
from pyro.ops.provenance import detach_provenance
from torch import Tensor

from banel_pyro.entropy import EntropyEstimator
from banel_pyro.entropy.joint import Dependencies
from banel_pyro.objectives.bound import Bound
from banel_pyro.objectives.totals import Totals
from banel_pyro.terms import LossTerms, Summand, Weight
from banel_pyro.traces import sample_sites

__all__ = ["Objective"]


class Objective(ELBO):
    r"""A loss of the form :math:`-\text{ELBO} + \text{penalty}`; subclasses write the penalty.

    All entry points of Pyro (``loss``, ``differentiable_loss``, ``loss_and_grads``, an ``ELBOModule``)
    go through :meth:`_particles` and agree. This class is what the three forms share; an objective is a subclass
    of one of them.

    Args:
        lam: λ, the weight of the penalty, in nats per nat: a number, or a mapping ``{site name: number}`` (sites left
            out: 0). Can be changed between steps.
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

    totals: ClassVar[type[Totals]]
    """Sums the terms of a particle, and estimates their gradient."""

    def __init__(
        self,
        lam: Weight = 0.0,
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
        self.lam = lam
        self.entropy, self.kl = entropy, kl
        self._dependencies = Dependencies()

    # ---- the hole to fill -------------------------------------------------------------------

    def penalty(self, bound: Bound) -> list[Summand]:
        """The summands that are added to -ELBO, in nats, λ multiplied in."""
        raise NotImplementedError

    @property
    def lam(self) -> Weight:
        """λ: a number, or a mapping from site name to number."""
        return self._lam

    @lam.setter
    def lam(self, lam: Weight) -> None:
        self._lam = check_weight("lam", lam)

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
        for totals in self._totals(model, guide, args, kwargs):
            surrogate = totals.surrogate()
            if surrogate.requires_grad:
                surrogate = surrogate if self.num_particles == 1 else surrogate / self.num_particles
                surrogate.backward(retain_graph=totals.retain_graph or self.retain_graph)
            loss += totals.loss.item() / self.num_particles
        return _warned(loss)

    # ---- the terms --------------------------------------------------------------------------

    def loss_and_terms(
        self, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, LossTerms, dict[str, Tensor]]:
        """What to call ``backward`` on, the terms of the loss, and the entropy of each density of the guide.

        All from one pass through guide and model, as tensors: nothing is synchronised.
        """
        surrogates, terms, entropies = [], [], []
        for totals in self._totals(model, guide, args, kwargs):
            surrogates.append(totals.surrogate())
            with torch.no_grad():  # entropies without a penalty need no graph
                entropies.append(totals.entropies())
                terms.append(totals.terms(entropies[-1], self.lam))
        loss = sum(surrogates[1:], surrogates[0])
        loss = loss if self.num_particles == 1 else loss / self.num_particles
        return loss, self._average(terms), self._average_sites(entropies)

    @torch.no_grad()
    def terms(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> LossTerms:
        """The terms of the loss as totals in nats (0-dim tensors)."""
        found = self._totals(model, guide, args, kwargs)
        return self._average([totals.terms(totals.entropies(), self.lam) for totals in found])

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
            rows = [_rows(bound, part, data_plate, size) for part in parts]
            found.append(LossTerms(rows[0], rows[1], rows[2], self.lam, rows[3]))
        return self._average(found)

    @torch.no_grad()
    def site_entropies(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The conditional entropy of each density of the guide, in nats, plates scaled as in Pyro."""
        return self._average_sites([totals.entropies() for totals in self._totals(model, guide, args, kwargs)])

    @torch.no_grad()
    def estimators(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> dict[str, EntropyEstimator]:
        """Which estimator of Shannon's entropy runs at each density of the guide, by name."""
        return next(iter(self._particles(model, guide, args, kwargs))).estimators

    # ---- how it is put together -------------------------------------------------------------

    def _particles(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Iterator[Bound]:
        find_parents = partial(self._dependencies.of, guide, args, kwargs)
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            yield Bound(model_trace, guide_trace, entropy=self.entropy, kl=self.kl, find_parents=find_parents)

    def _totals(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Iterator[Totals]:
        for bound in self._particles(model, guide, args, kwargs):
            yield self.totals(bound, self.penalty(bound))

    def _average(self, terms: list[LossTerms]) -> LossTerms:
        total = sum(terms[1:], terms[0])
        return total if self.num_particles == 1 else total.map(lambda x: x / self.num_particles)

    def _average_sites(self, found: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        sites = {name: sum((e[name] for e in found[1:]), found[0][name]) for name in found[0]}
        return {name: value / self.num_particles for name, value in sites.items()}


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


def _rows(bound: Bound, summands: list[Summand], plate: str, size: int) -> Tensor:
    rows = torch.zeros(size)
    for s in summands:
        row = bound.rows(s, plate)
        rows = rows if row is None else rows + row
    return detach_provenance(rows)


def _warned(loss: float) -> float:
    if math.isnan(loss):
        warnings.warn("Encountered NaN: loss", stacklevel=3)
    return loss


def _check_option(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, allowed))}.")


def check_weight(argument: str, weight: Any) -> Weight:
    """Refuse a λ that is not a finite number, or a mapping from names to finite numbers."""
    if isinstance(weight, Mapping):
        return {str(name): _check_number(f"{argument}['{name}']", value) for name, value in weight.items()}
    return _check_number(argument, weight)


def _check_number(argument: str, value: Any) -> float | Tensor:
    if isinstance(value, Tensor) and value.dim() == 0:
        return value  # an input of a captured step, checked by whoever set it
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{argument}={value!r}: expected a number, or a mapping {{site name: number}}.")
    if not math.isfinite(value):
        raise ValueError(f"{argument}={value!r}: expected a finite number.")
    return float(value)
