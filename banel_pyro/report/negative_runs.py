"""Runs of learning from failures as their folders tell them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from banel_pyro.negative.ledger import Ledger
from banel_pyro.negative.methods import METHODS
from banel_pyro.negative.options import CONFIG, LEDGER, ROUNDS
from banel_pyro.negative.state import STEPS
from banel_pyro.negative.success import clopper_pearson
from banel_pyro.reading import check_fields, read_json

__all__ = ["NegativeRun", "Rate", "pooled", "read_runs"]


@dataclass(frozen=True)
class Rate:
    """A success rate.

    Args:
        value: the rate.
        low: lower end of its interval (Clopper and Pearson's); the rate itself where it is exact.
        high: upper end.
        draws: how many it, or the acceptance of regions that are kept, was estimated from; 0 where it is exact.
        reachable: successes that can still be drawn, where they are listed.
    """

    value: float
    low: float
    high: float
    draws: int = 0
    reachable: int | None = None

    @property
    def unseen(self) -> bool:
        """Whether none of the draws succeeded, so that it is only known to be small."""
        return self.value == 0 and self.draws > 0 and self.reachable is None

    @property
    def bound(self) -> float:
        """The rate, and 1/n where none of n draws succeeded, which is more than it may be."""
        return 1 / self.draws if self.unseen else self.value

    @property
    def log(self) -> float:
        """The logarithm of ``bound``, −∞ of an exact 0."""
        return math.log(self.bound) if self.bound else -math.inf

    def __str__(self) -> str:
        if self.unseen:
            return f"< 1 in {self.draws:,}"
        return f"{self.value:.3g}"


@dataclass(frozen=True)
class NegativeRun:
    """One run.

    Args:
        method: its name, that of the folder around the run's.
        seed: of all that was drawn.
        config: its options.
        rows: a record for each round that has ended.
        stopped: why there are no further rounds, "" while there may be.
        counts: of the ledger; see :meth:`~banel_pyro.negative.Ledger.counts`.
    """

    method: str
    seed: int
    config: Mapping[str, Any]
    rows: list[dict[str, Any]]
    stopped: str
    counts: Mapping[str, float]

    @property
    def name(self) -> str:
        """What a reader knows it as."""
        return f"{self.method}, seed {self.seed}"

    @cached_property
    def rates(self) -> list[Rate]:
        """The success rate at the start and after each round, empty if it was not measured.

        A round that changed nothing, as all of random sampling, has the rate of the one before.
        """
        base = _rate(self.config["base_rate"])
        if base is None:
            return []
        found = [base]
        for row in self.rows:
            found.append(_rate(row) or found[-1])
        return found

    @property
    def nre(self) -> list[int]:
        """Reward evaluations at the start and after each round."""
        return [0, *(int(row["nre"]) for row in self.rows)]

    @property
    def best(self) -> int:
        """The round after which the success rate was highest, −1 for the start."""
        values = [rate.value for rate in self.rates]
        return values.index(max(values)) - 1

    def column(self, name: str) -> list[float]:
        """A number of every round, NaN where it is not known."""
        return [math.nan if row.get(name) is None else float(row[name]) for row in self.rows]

    def product(self, name: str) -> float:
        """The product of a gain over the rounds that had one; 1 without any, NaN if one of them is not known."""
        step = "divergence" if name == "distillation_gain" else "acceptance"  # distillation may be of successes alone
        rows = [row for row in self.rows if "acceptance" in row or step in row]
        factors = [math.nan if row.get(name) is None else float(row[name]) for row in rows]
        return math.prod(factors)

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time of each step and of checkpoints, in all rounds; ``oracle`` is that of the calls within ``ask``."""
        names = (*STEPS, "checkpoint")
        found = {name: math.fsum(row.get(f"seconds_{name}", 0.0) for row in self.rows) for name in names}
        # of calls at a time the seconds add up to more than the time that passed
        return found | {"oracle": min(math.fsum(row.get("seconds_oracle", 0.0) for row in self.rows), found["ask"])}

    @property
    def overhead(self) -> float:
        """Seconds per candidate that writing down what was asked and answered took."""
        asked = sum(int(row.get("proposed", 0)) for row in self.rows)
        return (self.seconds["ask"] - self.seconds["oracle"]) / asked if asked else math.nan

    @property
    def in_models(self) -> float:
        """The share of the time that the models or the oracle took; the record of answers and checkpoints the rest."""
        spent = math.fsum(seconds for name, seconds in self.seconds.items() if name != "oracle")
        rest = self.seconds["ask"] - self.seconds["oracle"] + self.seconds["checkpoint"]
        return 1 - rest / spent if spent else math.nan


def pooled(rates: list[Rate], confidence: float = 0.95) -> Rate:
    """One rate from several measurements of it: of one generator by different draws.

    Args:
        rates: all exact, then their mean, or all from draws, which are put together.
        confidence: of Clopper and Pearson's interval.
    """
    draws = sum(rate.draws for rate in rates)
    if not draws:
        value = math.fsum(rate.value for rate in rates) / len(rates)
        return Rate(value, value, value, 0, rates[0].reachable)
    count = sum(round(rate.value * rate.draws) for rate in rates)
    return Rate(*clopper_pearson(count, draws, confidence), draws)


def read_runs(folder: Path) -> tuple[list[NegativeRun], list[str]]:
    """The runs in a folder, and the names of those of which nothing is known yet.

    Args:
        folder: the ``--out`` of ``banel negative``, or one run.

    Raises:
        ValueError: if there are none, they are of different tasks, or a file is damaged.
    """
    folders = [folder] if (folder / CONFIG).exists() else [f.parent for f in folder.glob(f"*/seed-*/{CONFIG}")]
    if not folders:
        raise ValueError(f"'{folder}' holds no run of negative evidence: expected {CONFIG} in it, or METHOD/seed-S.")
    begun = [path for path in folders if (path / ROUNDS).exists()]
    runs = sorted((_read(path) for path in begun), key=lambda run: (_order(run.method), run.seed))
    shown = [run for run in runs if run.rows]
    if not shown:
        raise ValueError(f"no round in '{folder}' has ended, so there is nothing to show. Go on with --resume.")
    if len(names := sorted({str(run.config["name"]) for run in shown})) > 1:
        raise ValueError(f"'{folder}' holds runs of different tasks: {', '.join(names)}. Make a report of each.")
    waiting = [run.name for run in runs if not run.rows]
    return shown, waiting + [f"{path.parent.name}, {path.name}" for path in folders if path not in begun]


def _order(method: str) -> tuple[int, str]:
    known = list(METHODS)
    return (known.index(method) if method in known else len(known), method)


def _read(path: Path) -> NegativeRun:
    config, found = read_json(path / CONFIG), read_json(path / ROUNDS)
    is_text, is_map = (lambda v: isinstance(v, str), "a text"), (lambda v: isinstance(v, dict), "a mapping")
    whole = (lambda v: type(v) is int and v >= 0, "an integer of at least 0")
    options = {"name": is_text, "seed": whole, "budget": whole, "base_rate": is_map, "versions": is_map}
    check_fields(f"'{path / CONFIG}'", config, options)
    rows = (lambda v: isinstance(v, list) and all(_is_row(row) for row in v), "a list of rounds, each with its nre")
    check_fields(f"'{path / ROUNDS}'", found, {"rounds": rows, "stopped": is_text})
    with Ledger.reopen(path / LEDGER) as ledger:
        counts = ledger.counts()
    method = path.resolve().parent.name if path.name.startswith("seed-") else path.resolve().name
    return NegativeRun(method, config["seed"], config, found["rounds"], found["stopped"], counts)


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and isinstance(row.get("nre"), int) and isinstance(row.get("successes"), int)


def _rate(numbers: Mapping[str, Any]) -> Rate | None:
    if numbers.get("success_rate") is None:
        return None
    low, high = numbers["success_low"], numbers["success_high"]
    return Rate(numbers["success_rate"], low, high, numbers["evaluated"], numbers.get("reachable"))
