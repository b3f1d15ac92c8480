"""How a step's time and a process's memory grow with the rows of the data, and with the sites of the model."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from demos.benchmark import pairs
from demos.benchmark.children import in_child, peak_memory
from demos.benchmark.problems import LOGISTIC_BATCH, Problem, chain, logistic_regression
from demos.benchmark.timing import Lengths, Way, measure
from demos.benchmark.ways import CAPTURED, EAGER, SVI_WAY, step_ways

TOLD = "Pyro SVI, subsample="
"""Plain Pyro whose plate is given the rows of the batch, and does not draw them."""

ROWS = (10_000, 100_000, 1_000_000)
SITES = (10, 30, 100, 300, 1000)
GROWTHS: dict[str, tuple[str, ...]] = {"rows": (SVI_WAY, TOLD, EAGER, CAPTURED), "sites": (SVI_WAY, EAGER, CAPTURED)}
"""What grows, and the ways that are measured."""

Growth = Mapping[str, Mapping[int, Mapping[str, dict[str, Any]]]]
"""Figures by what grows, size and way."""


def problem_of(grows: str, size: int, way: str) -> tuple[Problem, Way]:
    """What is trained, and how."""
    if grows == "sites":
        return chain(size), step_ways()[way]
    problem = logistic_regression(size, min(LOGISTIC_BATCH, size))
    if way != TOLD:
        return problem, step_ways()[way]
    return replace(problem, plain=partial(pairs.plain_logistic, LOGISTIC_BATCH, told=True)), step_ways()[SVI_WAY]


def work(grows: str, size: int, way: str, *, steps: int, repeats: int, seed: int, began: float) -> dict[str, Any]:
    """One way for one size: times of a step, time before the first one, and memory.

    Args:
        grows: `rows` or `sites`.
        size: How many.
        way: A way.
        steps: Steps of a run.
        repeats: Runs that count.
        seed: Of the first run.
        began: When the process was started; not needed.

    Returns:
        `ms` a step of each run, `start` of the first run in seconds, `peak` memory in MB, and `before` training.
    """
    problem, train = problem_of(grows, size, way)
    before = peak_memory()
    runs = [measure(problem, train, seed + repeat, Lengths.of(steps)) for repeat in range(repeats + 1)]
    return {
        "ms": [1e3 * run.wall for run in runs[1:]], "start": runs[0].start, "peak": peak_memory(), "before": before,
    }  # fmt: skip


def steps_for(grows: str, size: int, steps: int) -> int:
    """Fewer steps where each takes long."""
    return max(20, math.ceil(steps * min(1.0, 10 / size))) if grows == "sites" else steps


def growth_table(
    sizes: Mapping[str, Iterable[int]], *, steps: int, repeats: int, seed: int, threads: int, inline: bool
) -> Growth:
    """Every size of every way, each in a process of its own."""
    found: dict[str, dict[int, dict[str, dict[str, Any]]]] = {}
    child: Callable[..., dict[str, Any]] = partial(
        in_child, "demos.benchmark.growth:work", threads=threads, inline=inline
    )
    for grows, ways in GROWTHS.items():
        for size in sizes[grows]:
            options = {"grows": grows, "size": size, "repeats": repeats, "seed": seed}
            of_size = found.setdefault(grows, {}).setdefault(size, {})
            for way in ways:
                of_size[way] = child(options | {"way": way, "steps": steps_for(grows, size, steps)})
    return found
