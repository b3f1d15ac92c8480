"""The one-dimensional illustration of learning from failures: 31 bins, two of them a success, all exact.

Bins of width 0.2 lie on [-3, 3], the generator is near Normal(0, 1), and the oracle says yes at x = -2 and at x = 2
only. A failure model is a smoothed histogram of ten failures, so that a few lines of enumeration say what each round
does: acceptance, success rate, and which success can still be reached. That is a number of its own: the success rate
can reach 1 with one of the two lost for ever.

A candidate is the number of a bin, 0 to 30; `position` says where it lies.

Lee, Amos and Fanti (2025), arXiv 2510.09596, draw such an illustration; sizes and numbers here are our own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from banel_pyro.negative import (
    Distillation,
    Evidence,
    Filter,
    Generator,
    LikelihoodRatio,
    ListedSuccesses,
    Region,
    Regions,
    Score,
    Task,
    Training,
)

WIDTH, NUM_BINS = 0.2, 31
SUCCESSES = (5, 25)
"""The bins at -2 and 2."""

FIRST_FAILURES = (-2.2, -1.8, -1.0, -0.6, -0.4, -0.2, 0.0, 0.2, 0.6, 1.0)
"""Where ten failures of a first round lie that cost the success at -2: both of its neighbours are among them."""


def position(bins: Tensor) -> Tensor:
    """Where the centres of bins lie: -3 to 3."""
    return (bins - NUM_BINS // 2) * WIDTH


def number(x: Tensor) -> Tensor:
    """The numbers of the bins in which points lie."""
    return (x / WIDTH).round().long() + NUM_BINS // 2


def reward(bins: Tensor) -> Tensor:
    """The oracle: 1 for a success, 0 for a failure."""
    return torch.isin(bins, torch.tensor(SUCCESSES)).long()


class Bins(Generator):
    """A distribution over the bins with a free probability for each.

    Args:
        log_weights: log-probabilities up to a constant, shape (31,); -inf for a bin that is never drawn.
    """

    def __init__(self, log_weights: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(log_weights.clone())

    @property
    def event_shape(self) -> torch.Size:
        """A candidate is one number."""
        return torch.Size()

    def table(self) -> Tensor:
        """Log-probabilities of all bins, shape (31,)."""
        return self.logits.log_softmax(-1)

    def sample(self, n: int) -> Tensor:
        """Numbers of bins, shape (n,)."""
        return torch.multinomial(self.table().detach().exp(), n, replacement=True)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probabilities, shape (n,)."""
        return self.table()[x]


def prior() -> Bins:
    """The generator before any learning: near Normal(0, 1), with 0.08 in its largest bin."""
    return Bins(-0.5 * position(torch.arange(NUM_BINS)).to(torch.get_default_dtype()).square())


class SmoothedHistogram(Bins):
    """A failure model in closed form: the mean of a normal kernel around each failure, cut off at the ends."""

    @classmethod
    def fitted(cls, failures: Tensor, width: float = WIDTH) -> Self:
        """The smoothed histogram of failures.

        Args:
            failures: numbers of bins, shape (m,), with m at least 1.
            width: standard deviation of the kernel, in units of x.
        """
        distance = position(torch.arange(NUM_BINS)) - position(failures).unsqueeze(-1)
        kernels = (-0.5 * (distance.to(torch.get_default_dtype()) / width).square()).log_softmax(-1)
        return cls(kernels.logsumexp(0) - math.log(len(failures)))


@dataclass(frozen=True)
class HistogramFilter(Filter):
    """Likelihood ratios under a smoothed histogram of the round's failures: a filter of one's own, in closed form.

    Args:
        width: standard deviation of the kernel, in units of x.
    """

    width: float = WIDTH

    def learn(self, evidence: Evidence, *, seed: int) -> Score:
        """The score; nothing is drawn."""
        return LikelihoodRatio(evidence.generator, SmoothedHistogram.fitted(evidence.failures, self.width))


def task() -> Task:
    """Six rounds of ten candidates, distilled."""
    return Task(
        name="bins",
        generator=prior(),
        reward=reward,
        success_rate=ListedSuccesses(torch.tensor(SUCCESSES)),
        show=lambda bins: [f"{x:.1f}" for x in position(bins).tolist()],
        options={
            "budget": 60,
            "rounds": 6,
            "filter": HistogramFilter(),
            "factor": 2.0,
            "known": "ask",
            "distillation": Distillation(draws=2000, training=Training(epochs=10, batch_size=200, lr=0.1)),
        },
    )


# ---- exact answers, by enumeration ---------------------------------------------------------------


def accepted(regions: Regions | Region | Callable[[Tensor], Tensor]) -> Tensor:
    """Which bins no region rejects: booleans, shape (31,)."""
    rejects = regions.rejects if isinstance(regions, Regions | Region) else regions
    return ~rejects(torch.arange(NUM_BINS))


def posterior_table(base: Bins, regions: Regions | Region) -> Tensor:
    """Log-probabilities of the exploration posterior, normalised, shape (31,).

    Raises:
        ValueError: if the regions reject every bin.
    """
    kept = accepted(regions)
    if not bool(kept.any()):
        raise ValueError("the regions reject every bin: expected regions that leave some. Lower their thresholds.")
    return base.table().detach().masked_fill(~kept, -math.inf).log_softmax(-1)


def acceptance(base: Bins, regions: Regions | Region) -> float:
    """P(accept) of a draw of the generator."""
    return float(base.table().detach().exp()[accepted(regions)].sum())


def success_rate(log_p: Tensor) -> float:
    """The probability of a success, of log-probabilities that may be unnormalised."""
    return float(log_p.detach().log_softmax(-1)[list(SUCCESSES)].exp().sum())


def reachable(log_p: Tensor) -> list[float]:
    """Where the successes lie that have any probability."""
    return [float(position(torch.tensor(bin_))) for bin_ in SUCCESSES if log_p[bin_] > -math.inf]
