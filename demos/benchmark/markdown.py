"""What is shown: every table as Markdown, for the terminal and for a file."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from demos.benchmark.bars import Bar
from demos.benchmark.cells import MISSING, spread, table
from demos.benchmark.growth import GROWTHS, Growth
from demos.benchmark.job import until
from demos.benchmark.timing import Results, Run, final_loss, ratios


def _grid(results: Results, cell: Callable[[Mapping[str, list[Run]], str], str], label: str) -> str:
    """Problems below each other, ways beside each other."""
    ways = list(dict.fromkeys(way for runs in results.values() for way in runs))
    rows = [[name, *(cell(runs, way) if way in runs else MISSING for way in ways)] for name, runs in results.items()]
    return table([label, *ways], rows)


def steps_text(results: Results, base: str) -> str:
    """The tables of steps: times, ratios, what comes before the first step, and losses."""
    parts = {
        "ms a step": lambda runs, way: spread([1e3 * run.wall for run in runs[way]]),
        f"÷ {base}": lambda runs, way: spread(ratios(runs, way, base)) if base in runs else MISSING,
        "s before the first step, nothing compiled before → later": lambda runs, way: (
            f"{max(0.0, runs[way][0].cold):.2f} → {max(0.0, statistics.median(run.start for run in runs[way])):.2f}"
        ),
        "loss at the end, nats per datum": lambda runs, way: "{:.3f} ± {:.3f}".format(*final_loss(runs[way])),
    }
    tables = [_grid(results, cell, label) for label, cell in parts.items()]
    busy = [run.cpu / run.wall for runs in results.values() for way in runs.values() for run in way]
    if busy:
        tables.append(f"CPU time over all threads ÷ time, of a step of any way in any round: {spread(busy)}.")
    return "\n\n".join(tables)


def products_text(found: Mapping[str, Any]) -> str:
    """How fast the captured step at batch 1024 is, and its matrix products by themselves."""
    if not found:
        return "The matrix products of the captured step at batch 1024 were not measured."
    return (
        f"Matrix products of a step of the MNIST VAE at batch 1024: {found['gflop']:.2f} GFLOP. GFLOP/s of the "
        f"captured step: {spread(found['captured_gflop_per_s'])}; of its products alone, each by the best kernel: "
        f"{spread(found['products_gflop_per_s'])}; of the best product: {spread(found['best_product_gflop_per_s'])}."
    )


def job_text(job: Mapping[str, Sequence[Mapping[str, Any]]], target: float, base: str) -> str:
    """Whole jobs: totals, ratios, when the target is reached, and what there is at the end."""
    rows = []
    for way, jobs in job.items():
        reached = [seconds for one in jobs if (seconds := until(dict(one), target)) is not None]
        over = [one["process"] / other["process"] for one, other in zip(jobs, job[base], strict=True)]
        rows.append(
            [
                way,
                spread([one["process"] for one in jobs]),
                spread(over),
                spread([one["job"] for one in jobs]),
                spread([one["ends"][0] for one in jobs]),
                spread(reached) if len(reached) == len(jobs) else f"{len(reached)} of {len(jobs)} reached it",
                spread([one["elbos"][-1] for one in jobs]),
            ]
        )
    head = ["whole job", "s in all", f"÷ {base}", "s without imports and reading", "s of which: first epoch"]
    return table([*head, f"s until {target:g} nats", "held-out ELBO at the end"], rows)


def growth_text(growth: Growth) -> str:
    """Time of a step, time before the first one, and peak memory, by size."""
    units: dict[str, Callable[[dict[str, Any]], str]] = {
        "ms a step": lambda found: spread(found["ms"]),
        "s before the first step": lambda found: f"{max(0.0, found['start']):.2f}",
        "peak memory, MB (of it before training)": lambda found: f"{found['peak']:.0f} ({found['before']:.0f})",
    }
    tables = []
    for grows, sizes in growth.items():
        for unit, cell in units.items():
            rows = [[f"{size:,}", *(cell(found[way]) for way in GROWTHS[grows])] for size, found in sizes.items()]
            tables.append(table([f"{grows}: {unit}", *GROWTHS[grows]], rows))
    return "\n\n".join(tables)


def bars_text(bars: Sequence[Bar]) -> str:
    """What is asked, what was reached, whether it holds."""
    rows = []
    for bar in bars:
        verdict = {True: "holds", False: "missed", None: "not measured"}[bar.holds]
        reached = spread(bar.rounds) if bar.rounds else MISSING
        rows.append([bar.text, f"{'≥' if bar.at_least else '≤'} {bar.limit:g}", reached, verdict])
    return table(["bars", "asked", "median [least, most]", "verdict"], rows)
