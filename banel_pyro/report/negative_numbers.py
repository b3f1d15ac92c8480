"""The numbers of runs that learn from failures: by method over seeds, and methods against each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from banel_pyro.reading import read_text
from banel_pyro.report import COMMAND
from banel_pyro.report.log_ratio import LogRatio, log_ratio
from banel_pyro.report.negative_runs import NegativeRun, Rate, pooled, read_runs

__all__ = ["Method", "NegativeReport", "read_negative", "times", "typical"]


_FACTORS = ("filter_gain", "distillation_gain", "bound")


@dataclass(frozen=True)
class Method:
    """The runs of one method, by seed.

    Args:
        name: of the method.
        runs: a run for each seed.
    """

    name: str
    runs: tuple[NegativeRun, ...]

    @cached_property
    def final(self) -> dict[int, Rate]:
        """The success rate at the end, by seed; empty where it was not measured."""
        return {run.seed: run.rates[-1] for run in self.runs if run.rates}

    @cached_property
    def best(self) -> dict[int, Rate]:
        """The highest success rate of any round or the start, by seed."""
        return {run.seed: run.rates[run.best + 1] for run in self.runs if run.rates}

    def total(self, count: str) -> int:
        """A count of the ledgers, over seeds: see :meth:`~banel_pyro.negative.Ledger.counts`."""
        return round(sum(run.counts[count] for run in self.runs))

    def products(self, name: str) -> list[float]:
        """The product over rounds of ``filter_gain``, ``distillation_gain`` or ``bound``, for each seed."""
        return [run.product(name) for run in self.runs]

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time of each step, in the mean over seeds."""
        return {s: math.fsum(run.seconds[s] for run in self.runs) / len(self.runs) for s in self.runs[0].seconds}


@dataclass(frozen=True)
class NegativeReport:
    """What some runs came to.

    Args:
        name: of the task.
        methods: those that were run.
        waiting: names of runs of which no round has ended.
        command: the command lines that made them.
    """

    name: str
    methods: tuple[Method, ...]
    waiting: tuple[str, ...] = ()
    command: str | None = None

    @property
    def runs(self) -> list[NegativeRun]:
        """All of them."""
        return [run for method in self.methods for run in method.runs]

    @cached_property
    def base(self) -> Rate | None:
        """The success rate of the generator that all runs began with."""
        # runs with the same seed have measured it by the same draws
        found = list({run.seed: run.rates[0] for run in self.runs if run.rates}.values())
        return pooled(found, self.confidence) if found else None

    @property
    def confidence(self) -> float:
        """Of the intervals of success rates."""
        return float((self.runs[0].config.get("success") or {}).get("confidence", 0.95))

    @cached_property
    def comparisons(self) -> dict[str, LogRatio]:
        """The first method against each other one, over the seeds that both have."""
        first, *others = self.methods
        found = {}
        for other in others:
            if seeds := [seed for seed in first.final if seed in other.final]:
                found[other.name] = log_ratio(*([self._end(m, seed).log for seed in seeds] for m in (first, other)))
        return found

    def _end(self, method: Method, seed: int) -> Rate:
        """The final rate of a run; of one that learns nothing that of all starts, which is known better."""
        learns = any(run.config.get("filter") or run.config.get("use_successes") for run in method.runs)
        return method.final[seed] if learns or self.base is None else self.base

    def text_table(self) -> pd.DataFrame:
        """A column per method to read."""
        return pd.DataFrame({method.name: self._cells(method) for method in self.methods})

    def _cells(self, method: Method) -> dict[str, str]:
        cells = {"seeds": str(len(method.runs))}
        base, final = self.base, method.final
        if base is not None and final:
            best = method.best
            cells |= {"success rate at the start": str(base)}
            for name, rates in (("final", final), ("best so far", best)):
                for pick, how in ((median, "median"), (_mean, "mean")):
                    cells[f"{name} success rate, {how}"] = str(typical(rates.values(), pick))
            cells |= {
                "gain: final median ÷ start": times(typical(final.values(), median), base),
                "gain: final mean ÷ start": times(typical(final.values(), _mean), base),
                "gain: best median ÷ start": times(typical(best.values(), median), base),
            }
        cells |= {
            "∏ filter gain, median": _product(method.products("filter_gain")),
            "∏ distillation gain, median": _product(method.products("distillation_gain")),
            "∏ bound on filter gain, median": _product(method.products("bound")),
            "successes seen": f"{method.total('successes'):,}",
            "reward evaluations (NRE)": f"{method.total('charged'):,}",
            "answered from the ledger": f"{method.total('known'):,}",
            "errors and lost calls": f"{method.total('errors'):,}",
            "unknown after a stop": f"{method.total('unknown'):,}",
            "wall time per run": f"{sum(v for k, v in method.seconds.items() if k != 'oracle'):,.1f} s",
            "of it in the oracle": f"{method.seconds['oracle']:,.1f} s",
            "record per candidate": f"{1000 * _mean([run.overhead for run in method.runs]):.3g} ms",
            "in models or oracle": f"{100 * _mean([run.in_models for run in method.runs]):.1f} %",
        }  # fmt: skip
        return cells

    def seed_table(self) -> pd.DataFrame:
        """A row per run to read."""
        rows = {}
        for run in self.runs:
            rates = run.rates
            best = f"{rates[run.best + 1]} (round {run.best + 1})" if rates and run.best >= 0 else "the start"
            rows[run.name] = {
                "start": str(rates[0]) if rates else "–",
                "final": _interval(rates[-1]) if rates else "–",
                "best so far": best if rates else "–",
                "final ÷ start": times(rates[-1], self.base) if rates else "–",
                "∏ filter gain": _product([run.product("filter_gain")]),
                "∏ distillation gain": _product([run.product("distillation_gain")]),
                "successes seen": f"{run.counts['successes']:,.0f}",
                "NRE": f"{run.nre[-1]:,}",
                "ended": run.stopped or "not yet",
            }
        found = pd.DataFrame.from_dict(rows, orient="index")
        last = [run.rates[-1].reachable if run.rates else None for run in self.runs]
        if any(count is not None for count in last):
            found.insert(4, "successes in reach", ["–" if count is None else str(count) for count in last])
        return found

    def comparison_table(self) -> pd.DataFrame:
        """A row for each method that the first is compared with."""
        rows = {}
        for name, c in self.comparisons.items():
            interval = f" [{c.low:.3g}, {c.high:.3g}]" if math.isfinite(c.low) else ""
            rows[f"{self.methods[0].name} against {name}"] = {
                "times as often": "–" if math.isnan(c.times) else f"{c.times:.3g}{interval}",
                "ahead at": f"{c.ahead} of {c.pairs} seed{'s' * (c.pairs > 1)}",
                "paired t, p": _p(c.t_p), "signed ranks, p": _p(c.wilcoxon_p),
            }  # fmt: skip
        return pd.DataFrame.from_dict(rows, orient="index")

    def to_json(self) -> dict[str, Any]:
        """The numbers of the page as JSON, with null for what is not known."""
        runs = [
            {
                "method": run.method, "seed": run.seed, "nre": run.nre, "stopped": run.stopped,
                "success_rate": [rate.value for rate in run.rates], "success_low": [rate.low for rate in run.rates],
                "success_high": [rate.high for rate in run.rates], "best_round": run.best if run.rates else None,
                **{f"{name}_product": known(run.product(name)) for name in _FACTORS},
                "counts": dict(run.counts), "seconds": run.seconds, "in_models": known(run.in_models),
            }
            for run in self.runs
        ]  # fmt: skip
        comparisons = {name: {k: known(v) for k, v in vars(c).items()} for name, c in self.comparisons.items()}
        base = None if self.base is None else dict(vars(self.base))
        return {"name": self.name, "base": base, "runs": runs, "against": comparisons}


def read_negative(folder: Path) -> NegativeReport:
    """What the runs in a folder came to, from their files.

    Args:
        folder: the ``--out`` of ``banel negative``, or one run.

    Raises:
        ValueError: if it holds none, or a file is damaged.
    """
    runs, waiting = read_runs(folder)
    by_name: dict[str, list[NegativeRun]] = {}
    for run in runs:
        by_name.setdefault(run.method, []).append(run)
    methods = tuple(Method(name, tuple(found)) for name, found in by_name.items())
    command = folder / COMMAND
    text = read_text(command).strip() if command.exists() else None
    return NegativeReport(str(runs[0].config["name"]), methods, tuple(waiting), text)


# ---- texts ---------------------------------------------------------------------------------------


def times(rate: Rate, base: Rate | None) -> str:
    """A rate as a multiple of that at the start. One that no draw showed enters as its bound, marked < or >.

    >>> start = Rate(0.0005, 0.0004, 0.0006, 20000)
    >>> times(Rate(0.05, 0.05, 0.05), start), times(Rate(0.0, 0.0, 0.0004, 10000), start)
    ('100 ×', '< 0.2 ×')
    >>> times(Rate(0.05, 0.05, 0.05), Rate(0.0, 0.0, 0.0002, 20000))
    '> 250 ×'
    """
    top, bottom = rate.bound, None if base is None else base.value or base.high
    if not bottom or base is None or (top > rate.value and not base.value):
        return "–"
    ratio = top / bottom
    return (
        f"{'< ' * (top > rate.value)}{'> ' * (not base.value)}{f'{ratio:,.0f}' if ratio >= 100 else f'{ratio:.3g}'} ×"
    )


def known(value: float) -> float | None:
    """A number for JSON."""
    return value if math.isfinite(value) else None


def typical(rates: Iterable[Rate], pick: Callable[[Sequence[float]], float]) -> Rate:
    """One rate for several.

    Args:
        rates: of several seeds.
        pick: the median or the mean of numbers.
    """
    found = list(rates)
    value = pick([rate.value for rate in found])
    return Rate(value, value, value, min(rate.draws for rate in found), found[0].reachable)


def _interval(rate: Rate) -> str:
    return f"{rate} [{rate.low:.2g}, {rate.high:.2g}]" if rate.draws else str(rate)


def _product(values: Sequence[float]) -> str:
    """The median of what is known, and of how many it is."""
    found = [value for value in values if not math.isnan(value)]
    if not found:
        return "–"
    return f"{median(found):.3g}" + f" ({len(found)} of {len(values)} seeds)" * (len(found) < len(values))


def _p(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2g}"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
