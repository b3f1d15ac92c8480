"""Pyro's first form of the bound: whatever is not reparameterised pays for all summands in its plates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions.util import is_identically_zero
from pyro.infer import Trace_ELBO
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import MultiFrameTensor
from torch import Tensor

from banel_pyro.objectives.base import Objective
from banel_pyro.objectives.totals import Totals
from banel_pyro.terms import Summand
from banel_pyro.traces import Stack, refuse_enumerated

__all__ = ["TraceObjective"]


class TraceTotals(Totals):
    """The gradient of Pyro's ``Trace_ELBO``."""

    def score(self) -> Tensor | float:
        """Log q of each score-function site times its cost: every summand of the loss, summed to the site's plates."""
        total: Tensor | float = 0.0
        costs = None
        for name, density in self.bound.densities.items():
            for site in density.sites:
                score = site["score_parts"].score_function
                if not is_identically_zero(score):
                    costs = costs or Costs(self.loss_summands)
                    total = total + (costs.of(site["cond_indep_stack"], name) * score).sum()
        return total


class Costs:
    """The downstream cost of a score-function site: every summand of the loss, summed to its plates.

    A summand in closed form has integrated its own density out, so it is no function of that
    density's draw: it stays out of its own cost, which is unbiased with it and less noisy without.

    Args:
        summands: all summands of the loss.
    """

    def __init__(self, summands: list[Summand]) -> None:
        summands = [s for s in summands if s.paid_for]
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


class TraceObjective(Objective, Trace_ELBO):
    """An objective in the form of Pyro's ``Trace_ELBO``: for reparameterised guides, and score-function sites too.

    Arguments and hole as for :class:`~banel_pyro.objectives.base.Objective`.

    Raises:
        ValueError: for a guide with sites to be enumerated.
    """

    totals = TraceTotals

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        traces = get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)
        refuse_enumerated(traces[1])
        return traces  # type: ignore[no-any-return]
