"""Single calls of several ways in turn: their times, and how much more than a base they may take."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from demos.benchmark.cells import spread, table
from demos.benchmark.timing import Time, ratios

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


def comparison_text(comparison: Comparison) -> str:
    """Subjects below each other, ways beside each other; then what is above its bar."""
    ways = list(next(iter(comparison.results.values())))
    head = [f"{way} (bar {comparison.bars[way]:.2f})" if way in comparison.bars else way for way in ways]
    rows = []
    for name, runs in comparison.results.items():
        lines = {
            comparison.unit: [spread([comparison.scale * time.wall for time in found]) for found in runs.values()],
            f"÷ {comparison.base}": [spread(ratios(runs, way, comparison.base)) for way in ways],
            "by CPU time": [spread(ratios(runs, way, comparison.base, "cpu")) for way in ways],
        }
        rows += [[name if i == 0 else "", label, *cells] for i, (label, cells) in enumerate(lines.items())]
    over = [
        f"{name}: '{way}' takes {ratio:.2f} of the CPU time of '{comparison.base}', above its bar "
        f"{comparison.bars[way]:.2f}."
        for (name, way), ratio in comparison.over().items()
    ]
    said = "\n".join(over or ["By CPU time, every ratio is within its bar."])
    return f"{table(['', '', *head], rows)}\n\n{said}"


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
