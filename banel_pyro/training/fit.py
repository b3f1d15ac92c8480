"""``fit``: train a model and a guide with the BaNEL ELBO."""

from __future__ import annotations

import copy
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from banel_pyro.batches import (
    DataPlate,
    Rows,
    Split,
    as_rows,
    data_hash,
    has_local_parameters,
    tell_autoguide,
)
from banel_pyro.evaluate import held_out_elbo
from banel_pyro.objectives.banel import BaNEL_ELBO
from banel_pyro.run import FORMAT, FitResult, RunFolder, versions
from banel_pyro.schedules import Schedule, as_schedule, bind, to_config
from banel_pyro.seeding import fork_rng
from banel_pyro.terms import Weight
from banel_pyro.training.faults import NonFiniteError, first_bad_parameter
from banel_pyro.training.loop import Loop
from banel_pyro.training.parameters import OptimizerFactory, Parameters
from banel_pyro.training.preflight import preflight
from banel_pyro.training.progress import Progress
from banel_pyro.training.stopping import CollapseDetector, CollapseError

__all__ = ["fit"]


def fit(
    model: Any,
    guide: Any,
    data: Any = None,
    *,
    objective: BaNEL_ELBO | None = None,
    lam: Weight | Schedule | None = None,
    optim: OptimizerFactory | None = None,
    lr: float | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    validation: Any = None,
    data_plate: str | None = None,
    clip_norm: float | None = None,
    collapse: CollapseDetector | None = CollapseDetector(),  # noqa: B008  # frozen: safe to share
    log_every: int | None = None,
    validate_every: int | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    posterior_samples: int = 500,
    progress: bool = True,
    name: str | None = None,
) -> FitResult:
    r"""Minimise :math:`-\text{ELBO} + \lambda H(q)` over the parameters of a model and a guide.

    Trains in the current param store, as Pyro's ``SVI`` does, with one optimiser for all parameters.
    The rows of each batch are passed positionally, ``model(*batch)`` and ``guide(*batch)``, and the data
    plate is told which rows they are; a plate ``pyro.plate("data", N)`` over all N rows is scaled by N/B.

    Args:
        model: a Pyro model.
        guide: its guide.
        data: a tensor, a tuple of tensors with a common leading axis, a ``Dataset``, a ``DataLoader`` or a
            :class:`~banel_pyro.Split`; None for a model without arguments.
        objective: a :class:`~banel_pyro.BaNEL_ELBO`, left as it was found; ``BaNEL_ELBO()`` by default.
        lam: λ: a number, ``{site: number}`` or a schedule ``lam(step, last_terms)``; 0 by default.
        optim: a ``torch.optim`` class, or a callable from parameters to an optimiser; fused Adam by default.
        lr: learning rate of an optimiser given as a class, 1e-3 by default.
        epochs: passes through the data.
        steps: optimiser steps; give this or ``epochs``.
        batch_size: rows per step, all by default; the last batch of an epoch may be smaller.
        seed: of everything drawn here; by default drawn from torch's generator, which is else left alone.
        validation: held-out rows; their untempered ELBO goes to the history as ``val_elbo``.
        data_plate: name of the plate over data points, found by its size if left out.
        clip_norm: largest norm of the gradient (of the total loss, nats per unit of parameter).
        collapse: stops a guide that narrows without end; None to let it.
        log_every: steps between rows of the history, by default a hundredth of the run, at most 100.
        validate_every: steps between evaluations of ``validation``, rounded up to log points, by default a
            tenth of the run.
        out: run folder for config, history, state, posterior and report.
        resume: go on with the run in ``out``; starts it if there is none.
        checkpoint_every: steps between checkpoints, by default a tenth of the run.
        posterior_samples: draws saved in ``out`` (of the held-out rows if there are any); 0 for none.
        progress: show a progress bar.
        name: name of the run in reports.

    Returns:
        The trained pair with its history.

    Raises:
        ValueError, TypeError: for bad input, before anything is trained.
        NonFiniteError: at NaN or inf, with step and site; the parameters are the last good ones.
        CollapseError: when the guide collapses, with site and figures.
    """
    split = data if isinstance(data, Split) else Split(data)
    rows, held_out = (
        as_rows(split.train),
        as_rows(validation if validation is not None else split.held_out, "validation"),
    )
    _check_like(held_out, rows)
    plan = _Plan.make(rows, epochs, steps, batch_size, log_every, validate_every, checkpoint_every)
    objective, schedule = _objective_and_schedule(objective, lam)
    schedule = bind(schedule, plan.steps_per_epoch)
    factory, options = _optimizer(optim, lr)
    seed = int(torch.randint(2**31, ())) if seed is None else _integer("seed", seed, 0)
    with fork_rng(seed):
        parameters = Parameters(model, guide, factory, options)
        plate, sizes = preflight(
            model, guide, split.first(rows, plan.batch), len(rows[0]) if rows else 0, data_plate, parameters
        )
        _check_new_rows(model, guide, held_out, plate, parameters)
        loop = Loop(
            model, guide, objective, schedule, parameters, rows, split.transform, plate, sizes,
            steps=plan.steps, batch_size=batch_size, seed=seed, log_every=plan.log_every,
            validate_every=plan.validate_every, held_out=held_out, clip_norm=_positive("clip_norm", clip_norm), collapse=collapse,
        )  # fmt: skip
        config = {
            "format": FORMAT, "name": name or "", "objective": repr(objective), "lam": _describe(schedule), "optim": _name(factory),
            "lr": options.get("lr"), **asdict(plan), "batch_size": batch_size, "seed": seed, "data": data_hash(rows),
            "num_data": len(rows[0]) if rows else 0, "data_plate": plate.name, "per": "datum" if plate.name else "total",
            "clip_norm": clip_norm, "created": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions(),
        }  # fmt: skip
        folder = None if out is None else RunFolder(Path(out))
        state = None if folder is None else folder.open(config, resume=resume)
        if state is not None:
            loop.load(state)
        with tell_autoguide(guide, plate):
            _run(loop, folder, plan.checkpoint_every, progress)
    result = FitResult(model, guide, config, pd.DataFrame(loop.history), plate, rows, held_out, folder and folder.path)
    if folder is not None and posterior_samples:
        _finish(result, folder, posterior_samples)
    return result


def _run(loop: Loop, folder: RunFolder | None, checkpoint_every: int, progress: bool) -> None:
    """Advance to the last step; whatever stops it, what was computed is in the folder."""
    loop.start()
    with Progress(loop.steps, enabled=progress) as bar:
        while loop.step < loop.steps:
            try:
                loop.advance()
            except (NonFiniteError, CollapseError):
                _save(loop, folder)
                raise
            except ValueError:  # Pyro's validation meets NaN parameters before our log point does
                if first_bad_parameter(loop.parameters.names()) is None:
                    raise
                try:
                    loop.locate_fault()
                finally:
                    _save(loop, folder)
            if loop.at_log_point:
                bar.update(loop.step, loop.history[-1])
            if loop.step % checkpoint_every == 0 or loop.step == loop.steps:
                _save(loop, folder)


def _save(loop: Loop, folder: RunFolder | None) -> None:
    if folder is not None:
        folder.write_state(loop.state(), pd.DataFrame(loop.history))


def _finish(result: FitResult, folder: RunFolder, num_samples: int) -> None:
    from banel_pyro.report import write_run_report  # matplotlib is heavy to import

    folder.write_posterior(report_posterior(result, num_samples))
    write_run_report(folder)


def report_posterior(result: FitResult, num_samples: int, max_rows: int = 500, max_images: int = 12) -> Any:
    """The draws that a run folder keeps: of the held-out rows, where the guide can be asked about new rows."""
    rows = result.held_out or result.rows
    rows = tuple(row[:max_rows] for row in rows) if rows is result.held_out else rows
    idata = result.posterior(
        rows,
        num_samples=num_samples,
        groups=("posterior", "sample_stats", "prior", "log_likelihood", "observed_data"),
    )
    if rows and result.plate.name:
        few = tuple(row[:max_images] for row in rows)
        idata.extend(result.posterior(few, num_samples=num_samples, groups=("posterior_predictive",)))
    return idata


@dataclass(frozen=True)
class _Plan:
    """How many steps, and what happens at which."""

    steps: int
    epochs: int | None
    batch: int
    steps_per_epoch: int
    log_every: int
    validate_every: int
    checkpoint_every: int

    @staticmethod
    def make(
        rows: Rows, epochs: int | None, steps: int | None, batch_size: int | None,
        log_every: int | None, validate_every: int | None, checkpoint_every: int | None,
    ) -> _Plan:  # fmt: skip
        size = len(rows[0]) if rows else 0
        if batch_size is not None and _integer("batch_size", batch_size) > size:
            raise ValueError(
                f"batch_size={batch_size} is more than the {size} rows of data. Use at most {size}, or None for all rows."
            )
        if (epochs is None) == (steps is None):
            raise ValueError(f"epochs={epochs}, steps={steps}: give exactly one of them, such as epochs=20.")
        batch = batch_size or size
        per_epoch = -(-size // batch) if size else 1
        total = _integer("steps", steps) if steps is not None else _integer("epochs", epochs) * per_epoch
        tenth = max(1, total // 10)
        log_every = _integer("log_every", max(1, min(100, total // 100)) if log_every is None else log_every)
        validate_every = _integer("validate_every", tenth if validate_every is None else validate_every)
        validate_every = -(-validate_every // log_every) * log_every
        checkpoint_every = _integer("checkpoint_every", tenth if checkpoint_every is None else checkpoint_every)
        return _Plan(total, epochs, batch, per_epoch, log_every, validate_every, checkpoint_every)


def _objective_and_schedule(objective: Any, lam: Any) -> tuple[Any, Schedule]:
    """A copy of the objective that the loop may write λ into, and the schedule of λ."""
    if objective is None:
        objective = BaNEL_ELBO()
    if not isinstance(objective, BaNEL_ELBO):
        raise TypeError(
            f"objective is a {type(objective).__name__}: expected a banel_pyro objective. BaNEL_ELBO(lam=0) is Pyro's Trace_ELBO."
        )
    if lam is not None and objective.lam != 0:
        raise ValueError(f"lam={lam!r} in fit and lam={objective.lam!r} in the objective: set it in one place.")
    return copy.copy(objective), as_schedule(objective.lam if lam is None else lam)


def _optimizer(optim: Any, lr: float | None) -> tuple[OptimizerFactory, dict[str, Any]]:
    if not callable(optim) and optim is not None or type(optim).__module__.startswith("pyro.optim"):
        raise TypeError(f"optim is a {type(optim).__name__}: expected a torch.optim class, such as torch.optim.Adam.")
    _positive("lr", lr)
    if optim is None:
        return torch.optim.Adam, {"lr": lr or 1e-3, "fused": True}
    if isinstance(optim, type):
        return optim, {"lr": lr or 1e-3}
    if lr is not None:
        raise ValueError(
            f"lr={lr}: the optimiser is a factory, which sets its own. Leave lr out, or pass a torch.optim class."
        )
    return optim, {}


def _describe(schedule: Any) -> Any:
    try:
        return to_config(schedule)
    except (TypeError, ValueError):
        return {"callable": _name(schedule)}


def _name(item: Any) -> str:
    return f"{item.__module__}.{item.__qualname__}" if hasattr(item, "__qualname__") else type(item).__qualname__


def _integer(name: str, value: Any, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r}: expected an integer of at least {least}.")
    return value


def _positive(name: str, value: float | None) -> float | None:
    if value is not None and not value > 0:
        raise ValueError(f"{name}={value!r}: expected a positive number.")
    return value


def _check_new_rows(model: Any, guide: Any, held_out: Rows, plate: DataPlate, parameters: Parameters) -> None:
    if not held_out:
        return
    held_out_elbo(model, guide, held_out, plate)
    if has_local_parameters(guide, plate, parameters):
        raise ValueError(
            f"validation: the guide has parameters for each row of plate '{plate.name}', so it says nothing about new rows. Leave "
            "validation out, or use a guide that computes a row's posterior from the row."
        )


def _check_like(held_out: Rows, rows: Rows) -> None:
    shapes = [[tuple(row.shape[1:]) for row in data] for data in (held_out, rows)]
    if held_out and shapes[0] != shapes[1]:
        raise ValueError(f"validation rows have shapes {shapes[0]}, training rows {shapes[1]}: expected the same.")
