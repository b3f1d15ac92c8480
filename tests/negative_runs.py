"""Folders of runs of learning from failures, written by hand: their numbers are known without running anything."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest

from banel_pyro.negative import (
    Distillation,
    DrawnSuccesses,
    Generator,
    ListedSuccesses,
    Oracle,
    RandomFilter,
    RatioFilter,
    Task,
)
from banel_pyro.negative.ledger import Ledger
from banel_pyro.negative.options import CONFIG, LEDGER, ROUNDS
from banel_pyro.negative.task_options import run_config

OPTIONS: dict[str, dict[str, Any]] = {
    "banel": {"filter": RatioFilter(), "distillation": Distillation()},
    "random-filter": {"filter": RandomFilter(), "distillation": Distillation()},
    "random": {"filter": None, "distillation": None},
}
SECONDS = {"propose": 1.0, "ask": 2.0, "oracle": 1.5, "filter": 3.0, "distil": 4.0, "evaluate": 0.5, "checkpoint": 0.25}


def rate(value: float, draws: int = 0) -> dict[str, Any]:
    """A success rate as a record of a round has it."""
    if not draws:
        numbers = {"success_rate": value, "success_low": value, "success_high": value, "evaluated": 0}
        return numbers | {"reachable": 2}
    interval = binomtest(round(value * draws), draws).proportion_ci(0.95, "exact")
    return {"success_rate": value, "success_low": interval.low, "success_high": interval.high, "evaluated": draws}


class _Nothing(Generator):
    event_shape = torch.Size()

    def sample(self, n: int) -> torch.Tensor:
        return torch.zeros(n)

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(x))


def write_run(
    folder: Path, method: str, seed: int, rates: Sequence[float | None], *, draws: int = 0, gains: Sequence[float] = (),
    asked: int = 4, stopped: str = "all rounds are done", name: str = "toy", texts: Sequence[str] = ("failed", "kept"),
    **config: Any,
) -> Path:  # fmt: skip
    """The folder of a run.

    Args:
        folder: around those of the methods.
        method: of the run.
        seed: of the run.
        rates: success rates at the start and after each round; None where a round measured none.
        draws: that they were estimated from, 0 for exact ones.
        gains: of the filter, each round; that of distillation is the rest, and half of the draws are accepted.
        asked: candidates of each round, of which the first of each round succeeds.
        stopped: why it ended.
        name: of the task.
        texts: examples of both kinds.
        config: further options.
    """
    path = folder / method / f"seed-{seed}"
    path.mkdir(parents=True)
    success = (
        None if rates[0] is None else DrawnSuccesses(len, draws=draws) if draws else ListedSuccesses(torch.ones(2))
    )
    options = {**OPTIONS[method], "budget": 100, "rounds": max(1, len(rates) - 1), **config}
    about = run_config(Task(name, _Nothing(), len, success), options, "banel")
    base = {} if rates[0] is None else rate(rates[0], draws)
    about |= {"seed": seed, "versions": {"banel_pyro": "1.0"}, "base_rate": base}
    rows, before = [], rates[0]
    with Ledger(path / LEDGER, task=name, budget=100) as ledger:
        oracle = Oracle(lambda x: x % asked == 0, batch_size=asked)
        for n, after in enumerate(rates[1:]):
            oracle.ask(torch.arange(n * asked, (n + 1) * asked), ledger, round=n)
            row: dict[str, Any] = {"round": n, "proposed": asked, "successes": 1, "nre": ledger.nre}
            row |= {f"seconds_{step}": seconds for step, seconds in SECONDS.items()}
            if method != "random":
                row |= {"acceptance": 0.5, "bound": 2.0, "divergence": 0.1 * n, "acceptance_after": 0.9}
                row |= {"signal": 0.01 * n, "signal_stderr": 0.005}
                row |= {"most_like_failures": [texts[0]] * 3, "least_like_failures": [texts[1]] * 3}
                if gains:
                    row |= {"filter_gain": gains[n]}
                    row |= {} if not before or after is None else {"distillation_gain": after / (before * gains[n])}
            rows.append(row if after is None else row | rate(after, draws))
            before = before if after is None else after
    (path / CONFIG).write_text(json.dumps(about))
    (path / ROUNDS).write_text(json.dumps({"rounds": rows, "stopped": stopped, "best": 0}))
    return path
