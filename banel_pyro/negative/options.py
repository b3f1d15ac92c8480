"""The options of a run of learning from failures: checked, written into its folder, and held against a resume."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from banel_pyro.checkpoint import write_whole
from banel_pyro.checks import instance, integer, number
from banel_pyro.folder import versions
from banel_pyro.negative.distil import Distillation
from banel_pyro.negative.filters import Filter
from banel_pyro.negative.signal import HeldOut
from banel_pyro.negative.state import Plan
from banel_pyro.negative.success import SuccessRates
from banel_pyro.negative.threshold import filter_factor
from banel_pyro.reading import Field, check_fields, read_json
from banel_pyro.run import run_seed

__all__ = ["CONFIG", "LEDGER", "LOCK", "MAY_CHANGE", "ROUNDS", "claim", "plan_of", "read_config", "write_json"]

CONFIG, LEDGER, ROUNDS = "negative.json", "ledger.db", "rounds.json"
LOCK = ".lock"
"""Files of a run: its options, the ledger, a record of each round, and one that is locked while it goes on."""

MAY_CHANGE = ("budget", "rounds", "max_draws")
"""Options that may be others when a run is resumed: what it could not go on for the want of."""


def plan_of(**options: Any) -> Plan:
    """The options, checked."""
    for name, least in (("budget", 1), ("rounds", 1), ("candidates", 2), ("max_draws", 1)):
        integer(name, options[name], least)
    if options["rounds"] > options["budget"]:
        raise ValueError(
            f"rounds={options['rounds']}, budget={options['budget']}: expected a candidate a round or more."
        )
    instance("filter", options["filter"], (Filter, type(None)), "a Filter, such as RatioFilter(), or None")
    instance("distillation", options["distillation"], (Distillation, type(None)), "a Distillation, or None")
    instance("held_out", options["held_out"], (HeldOut, type(None)), "a HeldOut, or None")
    instance("use_successes", options["use_successes"], (bool,), "True or False")
    held_out = options["held_out"]
    if options["log_tau"] is None:
        filter_factor(options["factor"])
        factor = min(options["factor"], *(held_out.factors if held_out is not None else ()), math.inf)
        least = math.ceil(factor / (factor - 1))
        if options["filter"] is not None and options["candidates"] < least:
            raise ValueError(
                f"candidates={options['candidates']}, factor={factor}: expected at least {least}, or none "
                "of them is rejected. Hundreds place the quantile well."
            )
    else:
        number("log_tau", options["log_tau"])
        if options["held_out"] is not None and options["held_out"].chooses:
            raise ValueError("log_tau and held_out both decide where to cut: leave one out, or HeldOut's choices.")
    chooses, filter_ = held_out is not None and held_out.chooses, options["filter"]
    if chooses and filter_ is not None and type(filter_).stages is Filter.stages:
        raise TypeError(
            f"held_out chooses, and {type(filter_).__name__} has no stages to choose among: expected a filter that is "
            "trained for epochs, such as RatioFilter(). Leave out HeldOut's epochs and factors."
        )
    for name, allowed in (("known", ("free", "ask")), ("ties", ("accept", "reject"))):
        if options[name] not in allowed:
            raise ValueError(f"{name}={options[name]!r}: expected {allowed[0]!r} or {allowed[1]!r}.")
    return Plan(**options)


def describe(plan: Plan, success_rate: SuccessRates | None, name: str) -> dict[str, Any]:
    """What decides a run's numbers, as JSON."""
    fields = {name: value for name, value in vars(plan).items() if name != "show"}
    fields |= {
        "filter": None if plan.filter is None else plan.filter.describe(),
        "distillation": None if plan.distillation is None else plan.distillation.describe(),
        "held_out": None if plan.held_out is None else vars(plan.held_out),
        "success": None if success_rate is None else success_rate.describe(),
        "name": name,
    }
    return json.loads(json.dumps(fields, default=_in_words))  # type: ignore[no-any-return]


def _in_words(value: Any) -> str:
    """What JSON has no form for, the same in every process: options of ``fit`` may be objects and functions."""
    return str(getattr(value, "__qualname__", None) or repr(value))


def claim(
    folder: Path, plan: Plan, success_rate: SuccessRates | None, seed: int | None, name: str, *, resume: bool
) -> dict[str, Any]:
    """The configuration of a run, new or the one that is resumed; refused where the folder holds something else."""
    wanted = describe(plan, success_rate, name)
    if (folder / CONFIG).exists():
        if not resume:
            raise ValueError(f"out='{folder}' already holds a run: choose another folder, or go on with resume=True.")
        config = read_config(folder)
        wanted["seed"] = config.get("seed") if seed is None else seed
        for key, value in wanted.items():
            if key not in MAY_CHANGE and config.get(key) != value:
                raise ValueError(
                    f"out='{folder}' holds a run with {key}={config.get(key)!r}, and {key}={value!r} was asked for: "
                    "expected the options that it was begun with. Choose another folder for others."
                )
        return config | {key: wanted[key] for key in MAY_CHANGE}
    cut_short = f".{CONFIG}.partial"  # by a kill, before there was a run
    if folder.exists() and (
        not folder.is_dir() or any(file.name not in (cut_short, LOCK) for file in folder.iterdir())
    ):
        raise ValueError(f"out='{folder}' holds other files and no run: choose a new or an empty folder.")
    config = {**wanted, "seed": run_seed(seed, None, resume=False), "versions": versions(), "base_rate": {}}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, config)
    return config


def read_config(folder: Path) -> dict[str, Any]:
    """The options in a run's folder.

    Raises:
        ValueError: if they are damaged.
    """
    config: dict[str, Any] = read_json(folder / CONFIG)
    count: Field = (lambda value: type(value) is int and value > 0, "a whole number, 1 or more")
    check_fields(f"'{folder / CONFIG}'", config, dict.fromkeys(("budget", "max_draws"), count))
    return config


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole; NaN and infinity become null."""
    text = json.dumps(_finite(content), indent=2)
    write_whole(file, lambda path: path.write_text(text, encoding="utf-8"))


def _finite(value: Any) -> Any:
    """The same without NaN and infinity, for which JSON has null only."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
