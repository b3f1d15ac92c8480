"""The bars: what is asked of the figures, what they came to, and whether that holds. A missed one stops nothing."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from demos.benchmark.timing import STANDARD_ERRORS, Results, final_loss, ratios
from demos.benchmark.ways import BY_HAND, BY_HAND_COMPILED, CAPTURED, EAGER, PENALISED, RUN, SVI_WAY, UPDATE

Rounds = Sequence[float]


@dataclass(frozen=True)
class Found:
    """All that bars are about; what was not measured is empty.

    Args:
        steps: The table of steps.
        job: The whole job, rounds by way.
        products: GFLOP/s of the captured step at batch 1024 over those of its products by their best kernels (`share`),
            and over those of the best one of them (`share_of_best`).
    """

    steps: Results
    job: Mapping[str, Sequence[Mapping[str, Any]]]
    products: Mapping[str, Rounds] = field(default_factory=dict)


@dataclass(frozen=True)
class Bar:
    """Something asked.

    Args:
        text: What.
        limit: The bar.
        rounds: The figure in each round; none if it was not measured.
        at_least: Whether the median is to be at least the limit, or at most.
    """

    text: str
    limit: float
    rounds: Rounds
    at_least: bool = False

    @property
    def holds(self) -> bool | None:
        """Whether the median holds; None if it was not measured."""
        if not self.rounds:
            return None
        median = statistics.median(self.rounds)
        return median >= self.limit if self.at_least else median <= self.limit


def bars(found: Found) -> list[Bar]:
    """Every bar."""
    steps, over = found.steps, partial(_over, found.steps)
    hierarchical = [
        Bar(f"{name}: {SVI_WAY} ÷ {CAPTURED}", 20, over(name, SVI_WAY, CAPTURED), at_least=True)
        for name in ("eight schools", "radon")
    ]
    images = [
        Bar(f"digits VAE: {CAPTURED} ÷ {BY_HAND}", 0.6, over("digits VAE", CAPTURED, BY_HAND)),
        Bar(f"MNIST VAE, 128: {CAPTURED} ÷ {BY_HAND}", 0.5, over("MNIST VAE, 128", CAPTURED, BY_HAND)),
        Bar(
            f"MNIST VAE, 128: {CAPTURED} ÷ {BY_HAND_COMPILED}", 0.6, over("MNIST VAE, 128", CAPTURED, BY_HAND_COMPILED)
        ),
        Bar(f"MNIST VAE, 1024: {CAPTURED} ÷ {BY_HAND}", 0.45, over("MNIST VAE, 1024", CAPTURED, BY_HAND)),
    ]
    of = "MNIST VAE, 1024: GFLOP/s of the captured step ÷ of"
    products = [
        Bar(f"{of} {what}", 0.8, found.products.get(key, ()), at_least=True)
        for what, key in (("its products alone", "share"), ("the best one of them", "share_of_best"))
    ]
    numpyro = [
        Bar(f"{name}: {CAPTURED} ÷ the faster NumPyro", 1.0, _over_numpyro(steps, name))
        for name in ("MNIST VAE, 32", "MNIST VAE, 128", "MNIST VAE, 1024")
    ]
    sizes = ("logistic, 10^6 rows", "logistic, 10^4 rows")
    return [
        *hierarchical,
        Bar(f"eight schools: {CAPTURED} ÷ {RUN}", 1.0, over("eight schools", CAPTURED, RUN)),
        *images,
        *products,
        *numpyro,
        Bar(*_worst("{}: lam ≠ 0 ÷ lam = 0, captured (the largest)", 1.05, steps, _penalised)),
        Bar("logistic, captured: a step at 10^6 rows ÷ at 10^4", 1.1, _between(steps, *sizes)),
        Bar("whole job: captured ÷ Pyro's loop with a DataLoader", 0.5, _job(found.job)),
        Bar(
            *_worst(
                "{}: losses, captured and eager, apart in standard errors (the most)", STANDARD_ERRORS, steps, _apart
            )
        ),
    ]


def _over(steps: Results, name: str, way: str, base: str) -> Rounds:
    runs = steps.get(name, {})
    return ratios(runs, way, base) if way in runs and base in runs else ()


def _over_numpyro(steps: Results, name: str) -> Rounds:
    """Over the faster of both in each round."""
    each = [rounds for way in (UPDATE, RUN) if (rounds := _over(steps, name, CAPTURED, way))]
    return [max(ways) for ways in zip(*each, strict=True)]


def _penalised(steps: Results, name: str) -> Rounds:
    return _over(steps, name, PENALISED, CAPTURED)


def _apart(steps: Results, name: str) -> Rounds:
    """How far the final losses of captured and eager are apart, in standard errors of the difference."""
    runs = steps[name]
    if CAPTURED not in runs or EAGER not in runs:
        return ()
    (a, error_a), (b, error_b) = final_loss(runs[CAPTURED]), final_loss(runs[EAGER])
    error = math.hypot(error_a, error_b)
    return [0.0 if a == b else abs(a - b) / error if error > 0 else math.inf]


def _worst(
    text: str, limit: float, steps: Results, figure: Callable[[Results, str], Rounds]
) -> tuple[str, float, Rounds]:
    """The problem whose figure has the largest median."""
    each = {name: rounds for name in steps if (rounds := figure(steps, name))}
    name = max(each, key=lambda name: statistics.median(each[name]), default="every problem")
    return text.format(name), limit, each.get(name, ())


def _between(steps: Results, one: str, other: str) -> Rounds:
    """A captured step of one problem over that of another, within each round."""
    runs = {name: steps.get(name, {}).get(CAPTURED, []) for name in (one, other)}
    return ratios(runs, one, other) if all(runs.values()) else ()


def _job(job: Mapping[str, Sequence[Mapping[str, Any]]]) -> Rounds:
    if not job:
        return ()
    pairs = zip(job[CAPTURED], job["Pyro SVI, loader"], strict=True)
    return [ours["process"] / theirs["process"] for ours, theirs in pairs]
