"""Taking times in interleaved rounds: a long run less a short one, or single calls; and the arithmetic of both."""

import gc
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyro

from demos.benchmark.problems import Problem
from demos.benchmark.ways import Way

STANDARD_ERRORS = 5.0


@dataclass(frozen=True)
class Lengths:
    """How long the two runs are that are subtracted.

    Args:
        short: Steps of the short run.
        long: Steps of the long run.
        per: Steps of what is timed: 1, or those of an epoch.
    """

    short: int
    long: int
    per: int = 1

    @property
    def log_every(self) -> int:
        """Steps between log points, the same in both runs: what `fit` does in a thousand steps, or in ten epochs."""
        return max(1, self.per // 10 if self.per > 1 else min(10, self.long // 4))


@dataclass(frozen=True)
class Time:
    """What one way took in one round.

    Args:
        wall: Seconds of a call, step or epoch by the clock.
        cpu: The same in seconds of CPU time, over all threads.
    """

    wall: float
    cpu: float


@dataclass(frozen=True)
class Run(Time):
    """A time with what came before and what came out.

    Args:
        start: Seconds before the first step.
        losses: At the end of the long run, in nats per datum, means over the blocks between log points.
    """

    start: float
    losses: list[float]


@dataclass(frozen=True)
class Table:
    """The runs of each way for each problem.

    Args:
        unit: Of the times shown, and of what.
        scale: How many of these units a second has.
        base: The way that the others are compared with.
        alike: Groups of ways that do the same work.
        results: Runs by problem and way.
        starts: Whether to show what comes before the first step.
    """

    unit: str
    scale: float
    base: str
    alike: Sequence[Sequence[str]]
    results: Mapping[str, Mapping[str, list[Run]]]
    starts: bool = False


def measure(problem: Problem, way: Way, seed: int, lengths: Lengths) -> Run:
    """Time one way once."""
    walls, cpus = [], []
    for steps in (lengths.short, lengths.long):
        pyro.set_rng_seed(seed)
        pair = problem.factory()
        with pyro.get_param_store().scope():
            wall, cpu = time.perf_counter(), time.process_time()
            losses = way(problem, pair, seed, steps, lengths.log_every)
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
    wall, cpu = ((long - short) / (lengths.long - lengths.short) for short, long in (walls, cpus))
    every = lengths.log_every
    if len(losses) == lengths.long:  # a loss for each step: average over the blocks that fit averages over
        losses = [statistics.fmean(losses[i : i + every]) for i in range(0, lengths.long, every)]
    start = walls[0] - wall * lengths.short
    return Run(wall * lengths.per, cpu * lengths.per, start, losses[-max(4, len(losses) // 4) :])


def measure_all(
    problem: Problem, ways: Mapping[str, Way], lengths: Lengths, *, repeats: int, seed: int
) -> dict[str, list[Run]]:
    """The runs of every way; a first round, which also warms up the machine, does not count."""
    runs: dict[str, list[Run]] = {way: [] for way in ways}
    for repeat in range(repeats + 1):
        gc.collect()  # leave no rubbish of others to the first way
        for name, way in ways.items():
            run = measure(problem, way, seed + repeat, lengths)
            if repeat > 0:
                runs[name].append(run)
    return runs


def noise_variance(values: Sequence[float]) -> float:
    """Variance around a slow trend, from the differences of neighbours."""
    return statistics.fmean((b - a) ** 2 for a, b in pairwise(values)) / 2


def final_loss(runs: list[Run]) -> tuple[float, float]:
    """Mean of the last losses, and its standard error from the scatter of their blocks around a trend."""
    variances = [noise_variance(run.losses) / len(run.losses) for run in runs]
    return statistics.fmean(statistics.fmean(run.losses) for run in runs), math.sqrt(sum(variances)) / len(runs)


def check_losses(name: str, runs: Mapping[str, list[Run]], alike: Iterable[Sequence[str]]) -> None:
    """Stop if ways to do the same end at different losses."""
    for first, *others in alike:
        for way in others:
            (a, error_a), (b, error_b) = final_loss(runs[way]), final_loss(runs[first])
            if abs(a - b) > STANDARD_ERRORS * math.hypot(error_a, error_b):
                sys.exit(
                    f"{name}: '{way}' ends at a loss of {a:.4f} ± {error_a:.4f}, '{first}' at {b:.4f} ± {error_b:.4f}."
                )


def ratios(runs: Mapping[str, Sequence[Time]], way: str, base: str, clock: str = "wall") -> list[float]:
    """Time of a way over that of another, within each round."""
    return [getattr(a, clock) / getattr(b, clock) for a, b in zip(runs[way], runs[base], strict=True)]


def spread(values: Sequence[float]) -> str:
    """Median, smallest and largest."""
    median, least, most = (
        f"{v:.2f}" if abs(v) < 10 else f"{v:.1f}" for v in (statistics.median(values), min(values), max(values))
    )
    return f"{median} [{least}, {most}]"


def print_table(table: Table) -> None:
    """Problems below each other, ways beside each other."""
    ways = list(next(iter(table.results.values())))
    print(f"{'':33s}" + "".join(f"{way:>21s}" for way in ways))
    for name, runs in table.results.items():
        losses = [final_loss(found) for found in runs.values()]
        lines = {
            table.unit: [spread([table.scale * run.wall for run in found]) for found in runs.values()],
            f"over {table.base}": [spread(ratios(runs, way, table.base)) for way in ways],
            "final loss": [f"{loss:.3f} ± {error:.3f}" for loss, error in losses],
        }
        if table.starts:
            lines["s to start"] = [spread([run.start for run in found]) for found in runs.values()]
        for i, (label, cells) in enumerate(lines.items()):
            print(f"{name if i == 0 else '':15s}{label:18s}" + "".join(f"{cell:>21s}" for cell in cells))


def figures(table: Table) -> dict[str, dict[str, dict[str, Any]]]:
    """Every round of every way, for JSON, by problem and way."""
    unit, _, thing = table.unit.split()
    key = f"{unit}_per_{thing}"

    def of_way(runs: Mapping[str, list[Run]], way: str) -> dict[str, Any]:
        loss, error = final_loss(runs[way])
        return {
            key: [table.scale * run.wall for run in runs[way]],
            f"cpu_{key}": [table.scale * run.cpu for run in runs[way]],
            "over_pyro": ratios(runs, way, table.base),
            "cpu_over_pyro": ratios(runs, way, table.base, "cpu"),
            "s_to_start": [run.start for run in runs[way]],
            "final_loss": loss,
            "final_loss_stderr": error,
        }

    return {name: {way: of_way(runs, way) for way in runs} for name, runs in table.results.items()}


# Single calls.
Call = Callable[[], object]
CallWay = Callable[[], AbstractContextManager[Call]]
"""Prepares a call, which is not timed, and hands it out."""


@dataclass(frozen=True)
class Comparison:
    """The times of each way's calls for each subject, and how much more than the base they may take.

    Args:
        unit: Of the times shown, and of what.
        scale: How many of these units a second has.
        base: The way that the others are compared with.
        bars: Largest ratios asked for; ways without one are shown only.
        results: Times of the rounds by subject and way.
        without_bar: Subjects that are shown only.
    """

    unit: str
    scale: float
    base: str
    bars: Mapping[str, float]
    results: Mapping[str, Mapping[str, list[Time]]]
    without_bar: Sequence[str] = ()

    def over(self, clock: str = "cpu") -> dict[tuple[str, str], float]:
        """The ratios above their bar, medians over rounds, by subject and way."""
        medians = {
            (name, way): statistics.median(ratios(runs, way, self.base, clock))
            for name, runs in self.results.items()
            for way in self.bars
            if name not in self.without_bar
        }
        return {key: ratio for key, ratio in medians.items() if ratio > self.bars[key[1]]}


def compare(ways: Mapping[str, CallWay], *, repeats: int, calls: int) -> dict[str, list[Time]]:
    """Time single calls of all ways in turn; the median over the calls of a round is its time.

    The median leaves out the calls that the machine interrupted. Each turn has an order of its own, since the way
    before leaves caches and free memory to the next. A first round, which warms up the machine, does not count.
    """
    times: dict[str, list[Time]] = {way: [] for way in ways}
    shuffled = random.Random(0)
    for repeat in range(repeats + 1):
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(calls):
            for name in shuffled.sample(list(ways), len(ways)):
                found[name].append(_timed(ways[name]))
        for name, pairs in found.items():
            if repeat > 0:
                times[name].append(Time(*(statistics.median(clock) for clock in zip(*pairs, strict=True))))
    return times


def _timed(way: CallWay) -> tuple[float, float]:
    """Seconds of a call by the clock, and of CPU time."""
    with way() as call:
        cpu, wall = time.process_time(), time.perf_counter()
        call()
        wall = time.perf_counter() - wall
        return wall, time.process_time() - cpu


def print_comparison(table: Comparison) -> None:
    """Subjects below each other, ways beside each other; then what is above its bar."""
    ways = list(next(iter(table.results.values())))
    bars = {way: f"bar {table.bars[way]:.2f}" if way in table.bars else "" for way in ways}
    print(f"{'':47s}" + "".join(f"{way:>23s}" for way in ways))
    print(f"{'':47s}" + "".join(f"{bar:>23s}" for bar in bars.values()))
    for name, runs in table.results.items():
        lines = {
            table.unit: [spread([table.scale * time.wall for time in found]) for found in runs.values()],
            f"over {table.base}": [spread(ratios(runs, way, table.base)) for way in ways],
            "by CPU time": [spread(ratios(runs, way, table.base, "cpu")) for way in ways],
        }
        for i, (label, cells) in enumerate(lines.items()):
            print(f"{name if i == 0 else '':34s}{label:13s}" + "".join(f"{cell:>23s}" for cell in cells))
    print()
    over = table.over()
    for (name, way), ratio in over.items():
        print(
            f"{name}: '{way}' takes {ratio:.2f} of the CPU time of '{table.base}', above its bar {table.bars[way]:.2f}."
        )
    if not over:
        print("By CPU time, every ratio is within its bar.")


def comparison_figures(table: Comparison) -> dict[str, dict[str, dict[str, Any]]]:
    """Every round of every way, for JSON, by subject and way."""
    unit, _, thing = table.unit.replace("µ", "u").split()
    over = table.over()

    def barred(name: str, way: str) -> bool:
        return way in table.bars and name not in table.without_bar

    def of_way(name: str, runs: Mapping[str, list[Time]], way: str) -> dict[str, Any]:
        return {
            f"{unit}_per_{thing}": [table.scale * time.wall for time in runs[way]],
            f"cpu_{unit}_per_{thing}": [table.scale * time.cpu for time in runs[way]],
            f"over_{table.base.lower()}": ratios(runs, way, table.base),
            f"cpu_over_{table.base.lower()}": ratios(runs, way, table.base, "cpu"),
        } | ({"bar": table.bars[way], "within_bar": (name, way) not in over} if barred(name, way) else {})

    return {name: {way: of_way(name, runs, way) for way in runs} for name, runs in table.results.items()}
