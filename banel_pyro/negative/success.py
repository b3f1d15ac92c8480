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
from banel_pyro.negative.call import read_rewards
from banel_pyro.negative.generator import Generator
from banel_pyro.negative.posterior import MOST_DRAWS, ExplorationPosterior
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
        draws: how many it, or the acceptance of its regions, was estimated from; 0 where it is exact.
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

    With regions the sum is over those outside, divided by P(accept), which is estimated from draws: the interval is
    then that of Clopper and Pearson for it.

    Args:
        successes: all of them, each once, shape (k, \*event_shape).
        draws: for P(accept), where there are regions.
        confidence: of the interval.
    """

    def __init__(self, successes: Tensor, *, draws: int = 10_000, confidence: float = 0.95) -> None:
        self.successes, self.draws = successes, integer("draws", draws)
        self.confidence = probability("confidence", confidence)

    def __call__(self, generator: Generator, regions: Regions = Regions(), *, seed: int = 0) -> SuccessRate:  # noqa: B008
        """The success rate of a generator outside of regions."""
        weights = log_probs(generator, self.successes).double().exp()
        accept, draws = (1.0, 1.0, 1.0), 0
        if len(regions):
            weights = torch.where(regions.rejects(self.successes), 0.0, weights)
            with fork_rng(seed):
                rejected = regions.rejects(ExplorationPosterior(generator).sample((self.draws,)))
            accept, draws = clopper_pearson(int((~rejected).sum()), self.draws, self.confidence), self.draws
        inside = float(weights.sum())
        # what is accepted are the successes at least, so that no rate is above 1
        value, high, low = (inside / max(accepted, inside) if inside else 0.0 for accepted in accept)
        if not accept[0] and inside:  # no draw was accepted: the rate is anything up to 1
            value = math.nan
        reachable = int((weights > 0).sum())
        return SuccessRate(
            value, low, high, draws, reachable, self.successes, weights * (value / inside if inside else 0)
        )

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

    Raises:
        TypeError, ValueError: for options out of range and, when it is called, rewards other than 0 and 1.

    References:
        Clopper and Pearson, Biometrika 26, 1934.
    """

    def __init__(self, reward: Callable[[Tensor], Any], *, draws: int = 10_000, confidence: float = 0.95) -> None:
        if not callable(reward):
            raise TypeError(f"reward={reward!r}: expected a function from candidates to rewards of 0 or 1.")
        self.reward, self.draws = reward, integer("draws", draws)
        self.confidence = probability("confidence", confidence)

    def __call__(self, generator: Generator, regions: Regions = Regions(), *, seed: int = 0) -> SuccessRate:  # noqa: B008
        """The success rate of a generator outside of regions."""
        with fork_rng(seed):
            parts = ExplorationPosterior(generator, regions, max_draws=max(MOST_DRAWS, 100 * self.draws)).sample(
                (self.draws,)
            )
        rewards = read_rewards(self.reward(parts), self.draws)
        if wrong := [reward for reward in rewards if isinstance(reward, str)]:
            raise ValueError(wrong[0])
        found = torch.tensor(rewards, dtype=torch.bool)
        successes, count = parts[found], int(found.sum())
        weights = torch.full((count,), 1 / self.draws, dtype=torch.float64)
        value, low, high = clopper_pearson(count, self.draws, self.confidence)
        return SuccessRate(value, low, high, self.draws, None, successes, weights)

    def describe(self) -> dict[str, Any]:
        """What it does, for JSON."""
        return {"success": "drawn", "draws": self.draws, "confidence": self.confidence}


def clopper_pearson(count: int, draws: int, confidence: float) -> tuple[float, float, float]:
    """The share of so many draws, and the ends of its interval."""
    interval = binomtest(count, draws).proportion_ci(confidence, "exact")
    return count / draws, float(interval.low), float(interval.high)
