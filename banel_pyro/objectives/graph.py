"""Pyro's second form of the bound: a score-function site pays for what depends on it, minus a baseline."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.distributions.util import detach, is_identically_zero
from pyro.infer import TraceGraph_ELBO
from pyro.infer.enum import get_importance_trace
from pyro.infer.tracegraph_elbo import TrackNonReparam, _get_baseline_options
from pyro.infer.util import MultiFrameTensor
from pyro.ops.provenance import detach_provenance, get_provenance
from torch import Tensor

from banel_pyro.objectives.base import Objective
from banel_pyro.objectives.totals import Totals
from banel_pyro.terms import LossTerms, Weight
from banel_pyro.traces import Site, refuse_enumerated

__all__ = ["GraphObjective"]


class GraphTotals(Totals):
    """The gradient of Pyro's ``TraceGraph_ELBO``. Values know the sites that they come from (their provenance)."""

    def score(self) -> Tensor | float:
        """Log q of each score-function site times its cost, the summands that depend on it, minus a baseline."""
        costs: dict[str, MultiFrameTensor] = {}
        for s in self.loss_summands:
            for name in get_provenance(s.value) if s.paid_for else ():
                costs.setdefault(name, MultiFrameTensor()).add((s.stack, detach_provenance(s.weighted_value)))
        total: Tensor | float = 0.0
        for name, downstream in costs.items():
            site = self.bound.guide_trace.nodes[name]
            score = site["score_parts"].score_function
            if is_identically_zero(score):
                continue
            gain = -downstream.sum_to(site["cond_indep_stack"]).detach()
            baseline, loss = baseline_of(site, gain)
            total = total - ((gain - baseline) * score).sum() + loss
        return total

    @property
    def loss(self) -> Tensor:
        """-ELBO + penalty, in nats."""
        return detach_provenance(super().loss)

    def surrogate(self) -> Tensor:
        """What is differentiated."""
        return detach_provenance(super().surrogate())

    def entropies(self) -> dict[str, Tensor]:
        """Shannon's entropy of each density of the guide."""
        return {name: detach_provenance(value) for name, value in super().entropies().items()}

    def terms(self, entropies: dict[str, Tensor], weight: Weight) -> LossTerms:
        """The record of the loss."""
        return super().terms(entropies, weight).map(lambda term: detach_provenance(torch.as_tensor(term)))


def baseline_of(site: Site, gain: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """The baseline of a score-function site, and the loss that trains it.

    Options as in Pyro, in ``infer={"baseline": {...}}``: ``use_decaying_avg_baseline`` with ``baseline_beta``, and
    ``nn_baseline`` with ``nn_baseline_input``, or ``baseline_value``. The decaying average is kept by position in the
    batch, as Pyro keeps it; a smaller last batch uses and moves the first positions, a larger one adds to them.

    Args:
        site: the site of the guide.
        gain: the summands of -loss that depend on the site, in nats, over its plates.

    Raises:
        ValueError: for unknown options, two baselines of the same kind, or a baseline of another shape.
    """
    network, given, average, beta, value = _get_baseline_options(site)
    baseline: Tensor | float = 0.0
    loss: Tensor | float = 0.0
    if network is not None and value is not None:
        raise ValueError(f"site '{site['name']}': give nn_baseline or baseline_value in infer['baseline'], not both.")
    if network is not None or value is not None:
        baseline = torch.as_tensor(network(detach(given)) if network is not None else value)
        if baseline.shape != gain.shape and baseline.shape != (1,) * (baseline.dim() - gain.dim()) + gain.shape:
            raise ValueError(
                f"site '{site['name']}': the baseline has shape {tuple(baseline.shape)}, but what it stands for "
                f"{tuple(gain.shape)}, that of its plates. Return one number for each element of them."
            )
        baseline = baseline.reshape(gain.shape)  # in a batch of one row, gains have lost its axis
    if average:
        baseline = baseline + decaying_average(str(site["name"]), gain, beta)
    if network is not None or value is not None:
        loss = (gain - baseline).square().sum()
    return baseline.detach() if isinstance(baseline, Tensor) else baseline, loss


@torch.no_grad()
def decaying_average(name: str, gain: Tensor, beta: float) -> Tensor:
    """The decaying average of a site's gain up to the last step, which it moves: beta · old + (1 - beta) · gain."""
    store, key = pyro.get_param_store(), f"__baseline_avg_downstream_cost_{name}"  # Pyro's name for it
    stored = pyro.param(key, torch.zeros_like(gain)).detach()
    axes = max(stored.dim(), gain.dim())
    now = gain[(None,) * (axes - gain.dim())]
    stored = stored[(None,) * (axes - stored.dim())]
    if any(old < new for old, new in zip(stored.shape, now.shape, strict=True)):
        grown = stored.mean().expand([max(sizes) for sizes in zip(stored.shape, now.shape, strict=True)]).clone()
        grown[tuple(map(slice, stored.shape))] = stored
        store[key] = stored = grown
    part = stored[tuple(map(slice, now.shape))]
    old = part.clone()
    part.mul_(beta).add_(now, alpha=1 - beta)
    return old.reshape(gain.shape)


class GraphObjective(Objective, TraceGraph_ELBO):
    """An objective in the form of Pyro's ``TraceGraph_ELBO``: for score-function sites, with Pyro's baselines.

    Arguments and hole as for :class:`~banel_pyro.objectives.base.Objective`.

    Raises:
        ValueError: for a guide with sites to be enumerated.
    """

    totals = GraphTotals

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        with TrackNonReparam():
            traces = get_importance_trace("dense", self.max_plate_nesting, model, guide, args, kwargs)
        refuse_enumerated(traces[1])
        return traces  # type: ignore[no-any-return]
