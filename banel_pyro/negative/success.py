"""How often a generator succeeds: exactly, where its successes can be listed, else from draws with an interval."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy.stats import binomtest  # type: ignore[import-untyped]
from torch import Tensor

from banel_pyro.checks import integer, probability
from banel_pyro.negative.generator import Generator
from banel_pyro.negative.posterior import ExplorationPosterior
from banel_pyro.negative.region import Region, Regions
from banel_pyro.negative.training import log_probs
from banel_pyro.seeding import fork_rng

__all__ = ["DrawnSuccesses", "ListedSuccesses", "SuccessRate", "SuccessRates"]


@dataclass(frozen=True)
class SuccessRate:
    r"""The probability that a candidate succeeds.

    Args:
        value: the rate.
        low: lower end of its interval; the rate itself where it is exact.
        high: upper end.
        draws: how many it was estimated from, 0 where it is exact.
        reachable: successes that can still be drawn at all, where they can be listed: a rate of 1 does not say that
            none was lost.
        successes: the candidates that succeeded, shape (k, \*event_shape): all, or those among the draws.
        weights: of each of them, shape (k,); they sum to ``value``.
    """

    value: float
    low: float
    high: float
    draws: int
    reachable: int | None
    successes: Tensor = field(repr=False)
    weights: Tensor = field(repr=False)

    def accepted_by(self, region: Region | Regions) -> float:
        """P(accept | success) under this generator; NaN if no success is known."""
        if not len(self.successes) or not float(self.weights.sum()):
            return math.nan
        kept = (~region.rejects(self.successes)).double()
        return float((self.weights * kept).sum() / self.weights.sum())

    def __str__(self) -> str:
        return f"{self.value:.3g}" if not self.draws else f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


class SuccessRates(ABC):
    """What measures success rates, for reports: nothing is learnt from it, and it costs no reward evaluations."""

    @abstractmethod
    def __call__(self, generator: Generator, regions: Regions = Regions(), *, seed: int = 0) -> SuccessRate:  # noqa: B008
        """The success rate of a generator outside of regions."""

    def describe(self) -> dict[str, Any]:
        """What it does, for JSON."""
        return {"success": type(self).__name__}


class ListedSuccesses(SuccessRates):
    r"""Exact rates, where all successes can be listed: :math:`\sum_{x : r(x) = 1} p_\theta(x)`.

    With regions the sum is over those outside, divided by P(accept), which is estimated from draws.

    Args:
        successes: all of them, each once, shape (k, \*event_shape).
        draws: for P(accept), where there are regions.
    """

    def __init__(self, successes: Tensor, *, draws: int = 10_000) -> None:
        self.successes, self.draws = successes, integer("draws", draws)

    def __call__(self, generator: Generator, regions: Regions = Regions(), *, seed: int = 0) -> SuccessRate:  # noqa: B008
        """The success rate of a generator outside of regions."""
        weights = log_probs(generator, self.successes).double().exp()
        accept = 1.0
        if len(regions):
            with fork_rng(seed):
                accept = regions.acceptance(generator.sample(self.draws)).value
            weights = torch.where(regions.rejects(self.successes), 0.0, weights / max(accept, 1 / self.draws))
        value = float(weights.sum())
        return SuccessRate(value, value, value, 0, int((weights > 0).sum()), self.successes, weights)

    def describe(self) -> dict[str, Any]:
        """What it does, for JSON."""
        return {"success": "exact", "listed": len(self.successes)}


class DrawnSuccesses(SuccessRates):
    r"""Rates from fresh draws, with Clopper and Pearson's interval.

    Args:
        reward: from candidates, shape (n, \*event_shape), to a mask of successes, shape (n,): the oracle's function,
            asked outside of the budget.
        draws: how many.
        confidence: of the interval.

    References:
        Clopper and Pearson, Biometrika 26, 1934.
    """

    def __init__(self, reward: Callable[[Tensor], Any], *, draws: int = 10_000, confidence: float = 0.95) -> None:
        self.reward, self.draws = reward, integer("draws", draws)
        self.confidence = confidence
        probability("confidence", confidence)

    def __call__(self, generator: Generator, regions: Regions = Regions(), *, seed: int = 0) -> SuccessRate:  # noqa: B008
        """The success rate of a generator outside of regions."""
        with fork_rng(seed):
            parts = ExplorationPosterior(generator, regions, max_draws=10_000 * self.draws).sample((self.draws,))
        found = torch.as_tensor(self.reward(parts)).bool()
        successes, count = parts[found], int(found.sum())
        interval = binomtest(count, self.draws).proportion_ci(self.confidence, "exact")
        weights = torch.full((count,), 1 / self.draws, dtype=torch.float64)
        return SuccessRate(
            count / self.draws, float(interval.low), float(interval.high), self.draws, None, successes, weights
        )

    def describe(self) -> dict[str, Any]:
        """What it does, for JSON."""
        return {"success": "drawn", "draws": self.draws, "confidence": self.confidence}
