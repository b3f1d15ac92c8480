"""Taking times of training in interleaved rounds, between two points of one run; and the arithmetic of it."""

import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pyro

from banel_pyro import Pair
from demos.benchmark.problems import Problem

STANDARD_ERRORS = 5.0
LOG_EVERY = 100
"""Steps between the log points of `fit` in a run of 10,000 steps or more."""


@dataclass(frozen=True)
class Lengths:
    """From which step to which one a run is timed.

    Args:
        short: Steps done before: set-up, compilation and the first steps do not count.
        long: Steps in all.
        log_every: Steps between log points; `short` is at one.
    """

    short: int
    long: int
    log_every: int

    @classmethod
    def of(cls, steps: int) -> "Lengths":
        """A run of this many steps, at least 4; all but those up to the first log point count."""
        log_every = max(1, min(LOG_EVERY, steps // 4))
        return cls(log_every, steps, log_every)


@dataclass
class Watch:
    """The clock of one run, which every way shows the steps that it has done.

    Args:
        lengths: When to look at it.
    """

    lengths: Lengths
    began: tuple[float, float] = field(default_factory=lambda: _now())
    marks: dict[int, tuple[float, float]] = field(default_factory=dict)

    def __call__(self, step: int) -> None:
        """Say that this many steps are done."""
        if step in (self.lengths.short, self.lengths.long):
            self.marks[step] = _now()


def _now() -> tuple[float, float]:
    """Wall clock and CPU time, in seconds."""
    return time.perf_counter(), time.process_time()


Way = Callable[[Problem, Pair, int, Watch], list[float]]
"""Trains; from problem, pair, seed and watch to losses in nats per datum: of every step, or of every log point."""


@dataclass(frozen=True)
class Time:
    """What one way took in one round.

    Args:
        wall: Seconds of a call or step by the clock.
        cpu: The same in seconds of CPU time, over all threads.
    """

    wall: float
    cpu: float


@dataclass(frozen=True)
class Run(Time):
    """A time with what came before and what came out.

    Args:
        start: Seconds before the first step: set-up, tracing, compilation.
        losses: At the end of the run, in nats per datum, means over the blocks between log points.
        cold: Seconds before the first step in the round that does not count, with nothing compiled before.
    """

    start: float
    losses: list[float]
    cold: float = math.nan


Results = Mapping[str, Mapping[str, list[Run]]]
"""Runs by problem and way; a way that a problem does not have is not there."""


def measure(problem: Problem, way: Way, seed: int, lengths: Lengths) -> Run:
    """Time one way once."""
    pyro.set_rng_seed(seed)
    pair = problem.factory()
    with pyro.get_param_store().scope():
        watch = Watch(lengths)
        losses = way(problem, pair, seed, watch)
    (wall0, cpu0), (wall1, cpu1) = (watch.marks[step] for step in (lengths.short, lengths.long))
    steps, every = lengths.long - lengths.short, lengths.log_every
    wall, cpu = (wall1 - wall0) / steps, (cpu1 - cpu0) / steps
    if len(losses) == lengths.long:  # a loss for each step: average over the blocks that fit averages over
        losses = [statistics.fmean(losses[i : i + every]) for i in range(0, lengths.long, every)]
    start = wall0 - watch.began[0] - wall * lengths.short
    return Run(wall, cpu, start, losses[-max(4, len(losses) // 4) :])


@dataclass
class Measured:
    """What came out of a table of runs.

    Args:
        results: The runs that count, by problem and way.
        left_out: Why a way is not there, by problem and way.
    """

    results: dict[str, dict[str, list[Run]]] = field(default_factory=dict)
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)

    def fail(self, name: str, way: str, error: Exception) -> None:
        """Leave a way out from now on."""
        self.left_out.setdefault(name, {})[way] = f"{type(error).__name__}: {error}"
        self.results[name].pop(way)


def measure_all(
    problems: Mapping[str, Problem], ways: Mapping[str, Way], steps: int, *, repeats: int, seed: int
) -> Measured:
    """The runs of every way for every problem, in rounds.

    A first round, which also warms up the machine and what compilers keep, does not count. A way that raises is left
    out, with the reason.

    Args:
        problems: The problems by name.
        ways: The ways by name.
        steps: Of a run, times the problem's share.
        repeats: Rounds that count.
        seed: Of the first round.
    """
    found = Measured({name: {way: [] for way in ways} for name in problems})
    for repeat in range(repeats + 1):
        for name, problem in problems.items():
            gc.collect()  # leave no rubbish of others to the first way
            print(f"round {repeat} of {repeats}: {name}", file=sys.stderr)
            lengths = Lengths.of(max(20, round(steps * problem.share)))
            for way in list(found.results[name]):
                try:
                    run = measure(problem, ways[way], seed + repeat, lengths)
                except Exception as error:  # what one way cannot do is no reason to lose the others
                    found.fail(name, way, error)
                else:
                    found.results[name][way].append(run)
    for runs in found.results.values():
        for way, (first, *counted) in runs.items():
            runs[way] = [replace(run, cold=first.start) for run in counted]
    return found


def noise_variance(values: Sequence[float]) -> float:
    """Variance around a slow trend, from the differences of neighbours."""
    return statistics.fmean((b - a) ** 2 for a, b in pairwise(values)) / 2


def final_loss(runs: list[Run]) -> tuple[float, float]:
    """Mean of the last losses, and its standard error.

    The error is the larger one of what the scatter of the blocks around a trend says, and the scatter of the runs.
    """
    means = [statistics.fmean(run.losses) for run in runs]
    within = math.sqrt(sum(noise_variance(run.losses) / len(run.losses) for run in runs)) / len(runs)
    mean = statistics.fmean(means)
    if len(runs) == 1 or not math.isfinite(mean):
        return mean, within
    between = statistics.stdev(means) / math.sqrt(len(runs))
    return mean, max(within, between)


def unlike(name: str, runs: Mapping[str, list[Run]], alike: Iterable[Sequence[str]]) -> list[str]:
    """What is wrong with the losses of ways that do the same: those that end at different ones, as sentences."""
    found = []
    for group in alike:
        first, *others = [way for way in group if way in runs] or [""]
        for way in others:
            (a, error_a), (b, error_b) = final_loss(runs[way]), final_loss(runs[first])
            if not abs(a - b) <= STANDARD_ERRORS * math.hypot(error_a, error_b):
                found.append(
                    f"{name}: '{way}' ends at a loss of {a:.4f} ± {error_a:.4f}, '{first}' at {b:.4f} ± {error_b:.4f}."
                )
    return found


def ratios(runs: Mapping[str, Sequence[Time]], way: str, base: str, clock: str = "wall") -> list[float]:
    """Time of a way over that of another, within each round."""
    return [getattr(a, clock) / getattr(b, clock) for a, b in zip(runs[way], runs[base], strict=True)]


def figures(results: Results, base: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Every round of every way, for JSON, by problem and way."""

    def of_way(runs: Mapping[str, list[Run]], way: str) -> dict[str, Any]:
        loss, error = final_loss(runs[way])
        return {
            "ms_per_step": [1e3 * run.wall for run in runs[way]],
            "cpu_ms_per_step": [1e3 * run.cpu for run in runs[way]],
            "over_pyro": ratios(runs, way, base),
            "cpu_over_pyro": ratios(runs, way, base, "cpu"),
            "s_to_start": [run.start for run in runs[way]],
            "s_to_start_cold": runs[way][0].cold,
            "final_loss": loss,
            "final_loss_stderr": error,
        }

    return {name: {way: of_way(runs, way) for way in runs} for name, runs in results.items()}
