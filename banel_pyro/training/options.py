"""The options of ``fit``, checked before anything runs."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import torch
from pyro.infer import Trace_ELBO

from banel_pyro.batches import Rows, num_rows
from banel_pyro.checks import integer
from banel_pyro.objectives import BaNEL_ELBO, Objective
from banel_pyro.schedules import Schedule, as_schedule, to_config
from banel_pyro.training.control import Controlled
from banel_pyro.training.optimizers import OptimizerFactory, SchedulerFactory

__all__ = [
    "Plan",
    "describe",
    "describe_objective",
    "extreme_lams",
    "name_of",
    "objective_and_schedule",
    "optimizer",
    "positive",
    "scheduler",
]


@dataclass(frozen=True)
class Plan:
    """How many steps, and what happens at which.

    Args:
        steps: steps in all.
        epochs: passes through the data, None if steps were asked for.
        batch_size: rows per batch, None for all.
        accumulate: batches per step.
        steps_per_epoch: steps in an epoch.
        log_every: steps between log points.
        validate_every: steps between held-out evaluations, a multiple of ``log_every``.
        checkpoint_every: steps between checkpoints.
    """

    steps: int
    epochs: int | None
    batch_size: int | None
    accumulate: int
    steps_per_epoch: int
    log_every: int
    validate_every: int
    checkpoint_every: int

    @staticmethod
    def make(
        rows: Rows,
        *,
        epochs: int | None,
        steps: int | None,
        batch_size: int | None,
        accumulate: int,
        log_every: int | None,
        validate_every: int | None,
        checkpoint_every: int | None,
    ) -> Plan:
        """The plan for so many rows.

        Raises:
            ValueError, TypeError: naming the option that is wrong.
        """
        size = num_rows(rows)
        batch_size = None if batch_size is None else integer("batch_size", batch_size)
        if batch_size is not None and batch_size > size:
            raise ValueError(
                f"batch_size={batch_size} is more than the {size} rows of data. Use at most {size}, or None for all "
                "rows."
            )
        accumulate = _accumulate(accumulate, batch_size, size)
        if (epochs is None) == (steps is None):
            raise ValueError(f"epochs={epochs}, steps={steps}: give exactly one of them, such as epochs=20.")
        per_epoch = -(-size // (batch_size * accumulate if batch_size else size)) if size else 1
        total = integer("steps", steps) if steps is not None else integer("epochs", epochs) * per_epoch
        tenth = max(1, total // 10)
        log_every = integer("log_every", max(1, min(100, total // 100)) if log_every is None else log_every)
        validate_every = integer("validate_every", tenth if validate_every is None else validate_every)
        validate_every = -(-validate_every // log_every) * log_every
        checkpoint_every = integer("checkpoint_every", tenth if checkpoint_every is None else checkpoint_every)
        return Plan(total, epochs, batch_size, accumulate, per_epoch, log_every, validate_every, checkpoint_every)


def _accumulate(accumulate: Any, batch_size: int | None, size: int) -> int:
    count = integer("accumulate", accumulate)
    if accumulate > 1 and batch_size is None:
        raise ValueError(
            f"accumulate={accumulate} needs batches: give batch_size=, the rows in memory at a time. A step then sees "
            f"{accumulate} times as many."
        )
    if batch_size is not None and accumulate * batch_size > size and accumulate > 1:
        raise ValueError(
            f"accumulate={accumulate} batches of {batch_size} rows are more than the {size} rows of data. Use at most "
            f"accumulate={size // batch_size}."
        )
    return count


def objective_and_schedule(objective: Any, lam: Any) -> tuple[Any, Schedule]:
    """A copy of the objective that the loop may write λ into, and the schedule of λ.

    Raises:
        TypeError: for an objective of another kind, or a λ that is no number, mapping or schedule.
        ValueError: if λ is set in both places.
    """
    if objective is None:
        objective = BaNEL_ELBO()
    if not isinstance(objective, Objective):
        kind = objective.__name__ if isinstance(objective, type) else type(objective).__name__
        raise TypeError(
            f"objective is a {kind}: expected a banel_pyro objective such as BaNEL_ELBO() (with the brackets). With "
            "lam=0 it is Pyro's Trace_ELBO."
        )
    own = float(objective.lam) if isinstance(objective.lam, torch.Tensor) else objective.lam
    if lam is not None and own != 0:
        raise ValueError(
            f"lam={lam!r} in fit and lam={own!r} in the objective: set it in one place. A schedule goes to fit, and so "
            "does the --lam of the command line: leave it out of the objective."
        )
    return copy.copy(objective), as_schedule(own if lam is None else lam)


def extreme_lams(schedule: Schedule, steps: int) -> list[Any]:
    """The smallest and the largest λ that a schedule takes: whatever is refused is refused for one of them.

    A schedule of the user's own is asked for its first λ only.
    """
    if isinstance(schedule, Controlled):
        return [schedule.controller.lam_min, schedule.controller.lam_max]
    if "callable" in describe(schedule):
        return [schedule(0, None)]
    stride = max(1, steps // 10_000)
    found = [schedule(step, None) for step in {*range(0, steps, stride), steps - 1}]
    numbers = [lam for lam in found if not isinstance(lam, Mapping)]
    mappings = [lam for lam in found if isinstance(lam, Mapping)]
    sites = {site for lam in mappings for site in lam}
    pick = [{s: end(lam.get(s, 0.0) for lam in mappings) for s in sites} for end in (min, max)] if mappings else []
    return [*({min(numbers), max(numbers)} if numbers else ()), *pick]


def optimizer(optim: Any, lr: float | None) -> tuple[OptimizerFactory, dict[str, Any]]:
    """What makes the optimiser from a list of parameters, and its options.

    Raises:
        TypeError: for an optimiser of Pyro's, or anything else that is neither a class nor a factory.
        ValueError: for a learning rate that is not positive, or beside a factory.
    """
    lr = positive("lr", lr)
    is_optimizer = isinstance(optim, type) and issubclass(optim, torch.optim.Optimizer)
    of_pyro = any(str(getattr(o, "__module__", "")).startswith("pyro.optim") for o in (optim, type(optim)))
    wrong_class = (of_pyro or isinstance(optim, type)) and not is_optimizer
    if wrong_class or not (optim is None or callable(optim)):
        kind = name_of(optim)
        raise TypeError(
            f"optim is a {kind}: expected a torch.optim class, such as optim=torch.optim.Adam with lr=, or a callable "
            "from parameters to an optimiser."
        )
    if optim is None:
        return torch.optim.Adam, {"lr": lr or 1e-3, "fused": True}
    if isinstance(optim, type):
        return optim, {"lr": lr or 1e-3}
    if lr is not None:
        raise ValueError(
            f"lr={lr}: the optimiser is a factory, which sets its own. Leave lr out, or pass a torch.optim class."
        )
    return optim, {}


def scheduler(lr_scheduler: Any) -> SchedulerFactory | None:
    """What makes the learning rate's scheduler from the optimiser, or None.

    Raises:
        TypeError: if it cannot be called.
    """
    if lr_scheduler is not None and not callable(lr_scheduler):
        raise TypeError(
            f"lr_scheduler={lr_scheduler!r}: expected a callable from the optimiser to a scheduler. Write "
            "lr_scheduler=lambda optimizer: CosineAnnealingLR(optimizer, T_max=1000)."
        )
    factory: SchedulerFactory | None = lr_scheduler
    return factory


def describe(schedule: Any) -> dict[str, Any]:
    """A schedule or controller as JSON; one of the user's own by its name only."""
    if isinstance(schedule, Controlled):
        return schedule.controller.config()
    try:
        return to_config(schedule)
    except TypeError:
        return {"callable": name_of(schedule)}


def describe_objective(objective: Any) -> str:
    """An objective by its class and the options that differ from Pyro's; without λ, which the schedule says."""
    usual = vars(Trace_ELBO()) | {"alpha": 1.0}
    options = {k: v for k, v in vars(objective).items() if not k.startswith("_") and usual.get(k, ...) != v}
    options.pop("max_plate_nesting", None)
    return f"{type(objective).__name__}({', '.join(f'{k}={_shown(v)}' for k, v in options.items())})"


def _shown(value: Any) -> str:
    """A number or a text as it is, anything else by its name: an address in memory would differ from run to run."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_shown, value))}]"
    return name_of(value)


def name_of(item: Any) -> str:
    """The name of a function or class, with what ``functools.partial`` gives it, or of an object's class."""
    if isinstance(item, partial):
        given = [repr(value) for value in item.args] + [f"{k}={value!r}" for k, value in item.keywords.items()]
        return f"{name_of(item.func)}({', '.join(given)})"
    named = item if hasattr(item, "__qualname__") else type(item)
    return f"{named.__module__}.{named.__qualname__}"


def positive(name: str, value: Any) -> float | None:
    """A positive number, or None.

    Raises:
        TypeError, ValueError: if it is neither.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r}: expected a positive number. Write {name}=0.001, for instance.")
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{name}={value!r}: expected a positive number. Write {name}=0.001, for instance.")
    return float(value)


def samples(name: str, value: Any) -> int:
    """A number of draws: 0, or at least the 2 that a standard deviation needs.

    Raises:
        TypeError, ValueError: if it is neither.
    """
    if integer(name, value, 0) == 1:
        raise ValueError(f"{name}=1: expected 0 for none, or at least 2. Write {name}=500, for instance.")
    return int(value)
