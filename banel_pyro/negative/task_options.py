"""The options of a task's runs: its own, with those of the command line in their place."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from banel_pyro.checks import instance, integer
from banel_pyro.negative.filters import RatioFilter
from banel_pyro.negative.learn import learn
from banel_pyro.negative.methods import with_method
from banel_pyro.negative.options import describe, plan_of
from banel_pyro.negative.signal import HeldOut
from banel_pyro.negative.state import Plan
from banel_pyro.negative.success import SuccessRates
from banel_pyro.negative.task import Task

__all__ = ["BUDGET", "options_of", "run_config"]

BUDGET = 7500
"""Reward evaluations of each run, unless the task or the command line says otherwise."""


def options_of(task: Task, given: Mapping[str, Any], epochs: int | None, held_out: float | None) -> dict[str, Any]:
    """The options of :func:`~banel_pyro.negative.learn` for a task.

    Args:
        task: the task.
        given: those of the command line by their name, None where it has none.
        epochs: of the failure model, or None.
        held_out: fraction of the failures, or None.

    Raises:
        TypeError, ValueError: for epochs where there is no failure model, or what is out of range.
    """
    options = {"budget": BUDGET, "filter": RatioFilter(), **task.options}
    options |= {name: value for name, value in given.items() if value is not None}
    if given.get("factor") is not None:
        options["log_tau"] = None
    if held_out is not None:
        before = options.get("held_out")
        options["held_out"] = replace(before, fraction=held_out) if isinstance(before, HeldOut) else HeldOut(held_out)
    if epochs is not None:
        options["filter"] = _with_epochs(options["filter"], integer("--epochs", epochs, 0))
    return options


def _with_epochs(filter_: Any, epochs: int) -> Any:
    training = getattr(filter_, "training", None)
    if training is None or not is_dataclass(filter_) or isinstance(filter_, type):
        raise ValueError(
            f"--epochs={epochs}: the filter of this task, {filter_!r}, trains no failure model. Leave --epochs out."
        )
    return replace(filter_, training=replace(training, epochs=epochs))


def run_config(task: Task, options: Mapping[str, Any], method: str) -> dict[str, Any]:
    """What a run of a task records of its options, checked; nothing is asked or written.

    Args:
        task: the task.
        options: of its runs.
        method: one of :data:`~banel_pyro.negative.methods.METHODS`.

    Raises:
        TypeError, ValueError: for bad input.
    """
    own, names = inspect.signature(learn).parameters, [field.name for field in fields(Plan)]
    if unknown := sorted(options.keys() - set(names)):
        raise TypeError(f"task '{task.name}' has the options {unknown}: expected some of {', '.join(names)}.")
    instance("success_rate", task.success_rate, (SuccessRates, type(None)), "ListedSuccesses, DrawnSuccesses or None")
    defaults = {name: own[name].default for name in names}
    return describe(plan_of(**defaults | with_method(options, method) | {"seed": 0}), task.success_rate, task.name)
