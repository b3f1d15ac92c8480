"""``fit``: train a model and a guide with the BaNEL ELBO."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch

from banel_pyro.batches import Rows, Split, as_rows, data_hash, loader_batch_size, num_rows, transformed
from banel_pyro.checks import instance, integer
from banel_pyro.folder import FORMAT, RunFolder, run_seed, versions
from banel_pyro.inference_data import ArviZ, merge
from banel_pyro.objectives import EnumObjective, Objective
from banel_pyro.plates import DataPlate
from banel_pyro.precision import cast_modules, cast_rows, checked_dtype, default_dtype, dtype_name
from banel_pyro.run import FitResult
from banel_pyro.schedules import Schedule, bind
from banel_pyro.seeding import fork_rng
from banel_pyro.terms import Weight
from banel_pyro.training.callbacks import Callback, Callbacks, checked_callbacks
from banel_pyro.training.captured import Capture, CapturedSteps, checked_capture
from banel_pyro.training.control import Controlled, Controller
from banel_pyro.training.drive import train
from banel_pyro.training.explosion import ExplosionDetector
from banel_pyro.training.interrupt import INTERRUPTED
from banel_pyro.training.launch import floating_type, start
from banel_pyro.training.loop import Loop
from banel_pyro.training.optimizers import OptimizerFactory, SchedulerFactory, check_plateau
from banel_pyro.training.options import (
    Plan,
    describe,
    describe_objective,
    extreme_lams,
    name_of,
    objective_and_schedule,
    optimizer,
    positive,
    samples,
    scheduler,
)
from banel_pyro.training.parameters import Parameters
from banel_pyro.training.preflight import Checked, check_held_out, check_lam, preflight
from banel_pyro.training.rollback import Rollback, checked_on_fault
from banel_pyro.training.stopping import CollapseDetector

__all__ = ["fit"]


def fit(
    model: Any,
    guide: Any,
    data: Any = None,
    *,
    objective: Objective | None = None,
    lam: Weight | Schedule | Controller | None = None,
    optim: OptimizerFactory | None = None,
    lr: float | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    accumulate: int = 1,
    lr_scheduler: SchedulerFactory | None = None,
    callbacks: Sequence[Callback] = (),
    dtype: torch.dtype | None = None,
    capture: Capture = "auto",
    steps_per_call: int = 1,
    accelerator: str | None = None,
    devices: int | str | Sequence[int] | None = None,
    strategy: str | None = None,
    precision: str | None = None,
    num_nodes: int | None = None,
    seed: int | None = None,
    validation: Any = None,
    data_plate: str | None = None,
    clip_norm: float | None = None,
    collapse: CollapseDetector | None = CollapseDetector(),  # noqa: B008  # frozen: safe to share
    explosion: ExplosionDetector | None = ExplosionDetector(),  # noqa: B008
    on_fault: Rollback | Literal["raise", "rollback"] = "raise",
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
        objective: a :class:`~banel_pyro.BaNEL_ELBO`, one of its other forms, or an objective of your own; left as it
            was found; ``BaNEL_ELBO()`` by default.
        lam: λ: a number, ``{site: number}``, a schedule ``lam(step, last_terms)``, or what moves λ until a target is
            met, such as :class:`~banel_pyro.TargetEntropy`; 0 by default.
        optim: a ``torch.optim`` class, or a callable from parameters to an optimiser; fused Adam by default.
        lr: learning rate of an optimiser given as a class, 1e-3 by default.
        epochs: passes through the data.
        steps: optimiser steps; give this or ``epochs``.
        batch_size: rows per batch, by default those of a ``DataLoader``, else all; the last batch of an epoch may be
            smaller.
        accumulate: batches per step, for a step that sees more rows than fit into memory.
        lr_scheduler: from the optimiser to a scheduler of ``torch.optim.lr_scheduler``, which moves after every
            step (``ReduceLROnPlateau``: at every evaluation, by the held-out ELBO). Its rate is in the history.
        callbacks: callables that get every :class:`~banel_pyro.Event`; they may look, add numbers to the history,
            and stop the run.
        dtype: floating-point type of data, modules (cast in place) and all that is made in the run.
        capture: whether steps run as one compiled graph, without Pyro: True, False or ``"auto"``, which captures long
            runs that can be. The same draws and the same numbers, to rounding; see :mod:`banel_pyro.capture`.
        steps_per_call: captured steps that one call makes: for models so small that a call is most of a step.
        accelerator: ``"cpu"``, ``"gpu"`` (or ``"cuda"``, ``"mps"``), or ``"auto"``, by default where any of the next
            four is given. Data and parameters go there for the run, and are on the CPU afterwards.
        devices: how many, which ones (``[1, 3]``), or ``"auto"`` for all that there are; each has a process, and a
            step's rows are shared out to them. 1 by default.
        strategy: ``"ddp"`` or ``"auto"``, which come to the same.
        precision: ``"32-true"`` and ``"64-true"`` are ``dtype=`` by Lightning's names; ``"bf16-mixed"`` computes the
            loss in bfloat16 where torch's autocast does, with parameters, gradients and evaluation in float32.
        num_nodes: machines.
        seed: of everything drawn here; by default drawn from torch's generator, which is else left alone.
        validation: held-out rows; their untempered ELBO goes to the history as ``val_elbo``.
        data_plate: name of the plate over data points, found by its size if left out.
        clip_norm: largest norm of the gradient (of the total loss, nats per unit of parameter).
        collapse: stops a guide that narrows without end; None to let it.
        explosion: stops a gradient that grows without end; None to let it.
        on_fault: what happens at NaN or inf, an exploding gradient, a collapse: ``"raise"``, or a
            :class:`~banel_pyro.Rollback` (``"rollback"`` is one with its defaults) to the last good state, and on from
            there with a smaller learning rate and λ, a few times at most.
        log_every: steps between rows of the history, by default a hundredth of the run, at most 100.
        validate_every: steps between evaluations of ``validation``, rounded up to log points, by default a
            tenth of the run.
        out: run folder for config, history, state, posterior and report.
        resume: go on with the run in ``out``; starts it if there is none.
        checkpoint_every: steps between checkpoints, by default a tenth of the run.
        posterior_samples: draws saved in ``out`` (of the held-out rows if there are any); 0 for none.
        progress: show a progress bar.
        name: name of the run in reports.

    Ctrl-C ends the step that is under way: the run is saved, and what there is is returned.

    Returns:
        The trained pair with its history; ``stopped`` says why, if it ended before its last step.

    Raises:
        ValueError, TypeError: for bad input, before anything is trained.
        ModuleNotFoundError: for devices, precision or processes without the extra ``fabric``.
        NonFiniteError: at NaN or inf, with step, site and rows; the parameters are the last good ones.
        ExplosionError: when the gradient explodes, with parameter and figures.
        CaptureError: for ``capture=True``, if the steps cannot be captured.
        CollapseError: when the guide collapses, with site and figures.
        Exception: whatever a callback raises, with its name; the run is saved.
    """
    split = data if isinstance(data, Split) else Split(data)
    objective, schedule = objective_and_schedule(objective, lam)
    factory, options = optimizer(optim, lr)
    callbacks, dtype = checked_callbacks(callbacks), floating_type(precision, checked_dtype(dtype))
    capture, steps_per_call = checked_capture(capture), integer("steps_per_call", steps_per_call)
    clip_norm, posterior_samples = positive("clip_norm", clip_norm), samples("posterior_samples", posterior_samples)
    instance("collapse", collapse, (CollapseDetector, type(None)), "a CollapseDetector, or None for no detector")
    instance("explosion", explosion, (ExplosionDetector, type(None)), "an ExplosionDetector, or None for no detector")
    instance("name", name, (str, type(None)), "a text. Write name='mine', for instance")
    policy = checked_on_fault(on_fault)
    folder = RunFolder.at(out, resume=resume)
    processes = start(
        accelerator=accelerator, devices=devices, strategy=strategy, precision=precision, num_nodes=num_nodes
    )
    seed = processes.on_first(partial(run_seed, seed, folder, resume=resume))
    parameters = Parameters(model, guide, factory, options, scheduler(lr_scheduler))
    with fork_rng(seed), default_dtype(dtype), processes.on_device(parameters):
        cast_modules(dtype, model, guide)
        rows = processes.moved(cast_rows(as_rows(split.train), dtype))
        held_out = as_rows(split.held_out if validation is None else validation, "validation")
        held_out = processes.moved(cast_rows(held_out, dtype))
        batch_size = loader_batch_size(split.train) if batch_size is None else batch_size
        plan = Plan.make(
            rows, epochs=epochs, steps=steps, batch_size=batch_size, accumulate=accumulate, log_every=log_every,
            validate_every=validate_every, checkpoint_every=checkpoint_every,
        )  # fmt: skip
        schedule = bind(schedule, plan.steps_per_epoch)
        processes.check_rows(num_rows(rows), plan.batch_size, plan.batch_size or num_rows(rows))
        with processes.sharing():
            batch = processes.each(plan.batch_size or num_rows(rows))
            checked = preflight(model, guide, split, rows, batch, data_plate, parameters)
        if not checked.sizes:  # no latent, nothing to draw: a maximum-likelihood fit
            posterior_samples = 0
        if isinstance(schedule, Controller):
            schedule = Controlled(schedule, checked.plate, checked.sizes)
        with fork_rng(seed):  # the run's own numbers do not depend on what is checked
            _check(model, guide, objective, extreme_lams(schedule, plan.steps), split, rows, held_out, plan, checked)
        parameters.cast(dtype)
        check_plateau(parameters.scheduler, held_out)
        config = _config(objective, schedule, factory, options, plan, split, rows, checked.plate) | {
            "name": name or "", "seed": seed, "clip_norm": clip_norm, "posterior_samples": posterior_samples,
            "dtype": dtype_name(dtype), "default_dtype": dtype_name(torch.get_default_dtype()),
            "lr_scheduler": lr_scheduler and name_of(lr_scheduler), "capture": capture,
            "steps_per_call": steps_per_call,
        } | ({} if policy is None else {"on_fault": asdict(policy)}) | processes.config  # fmt: skip
        processes.check_alike(config)
        processes.agree(parameters)
        loop = Loop(
            model, guide, objective, schedule, parameters, rows, split.transform, checked.plate, checked.sizes,
            steps=plan.steps, batch_size=plan.batch_size, accumulate=plan.accumulate, seed=seed,
            log_every=plan.log_every, validate_every=plan.validate_every, held_out=held_out, clip_norm=clip_norm,
            collapse=collapse, explosion=explosion, on_fault=policy, processes=processes,
        )  # fmt: skip
        if capture:
            loop.capture = CapturedSteps(capture, loop, steps_per_call=steps_per_call)

        def result() -> FitResult:
            return FitResult(
                model, guide, config, pd.DataFrame(loop.history), checked.plate, rows, held_out,
                folder=None if folder is None else folder.path, transform=split.transform, local=checked.local,
                stopped=loop.stopped, rollbacks=loop.rollbacks.made,
            )  # fmt: skip

        watchers = Callbacks(callbacks, loop, result)
        changed = train(loop, folder, config, plan.checkpoint_every, watchers, resume=resume, progress=progress)
    rows, held_out = processes.moved(rows, home=True), processes.moved(held_out, home=True)
    if folder is not None and posterior_samples and changed and processes.rank == 0 and loop.stopped != INTERRUPTED:
        _finish(result(), folder, posterior_samples)
    return result()


def _check(
    model: Any, guide: Any, objective: Any, lams: list[Any], split: Split, rows: Rows, held_out: Rows, plan: Plan,
    checked: Checked,
) -> None:  # fmt: skip
    """Refuse what objective and held-out rows do not go with."""
    if math.isinf(objective.max_plate_nesting) and (
        objective.vectorize_particles or isinstance(objective, EnumObjective)
    ):
        # Pyro would count them on a batch whose plate is not told its rows; one more is for the particles
        objective.max_plate_nesting = checked.nesting + (objective.vectorize_particles and objective.num_particles > 1)
    first = split.first(rows, plan.batch_size or num_rows(rows))
    check_lam(objective, lams, model, guide, first, checked.plate)
    check_held_out(model, guide, held_out, rows, checked)


def _config(
    objective: Any, schedule: Schedule, factory: Any, options: Mapping[str, Any], plan: Plan, split: Split, rows: Rows,
    plate: DataPlate,
) -> dict[str, Any]:  # fmt: skip
    """What made a run, as JSON."""
    return {
        "format": FORMAT,
        "objective": describe_objective(objective),
        "lam": describe(schedule),
        "optim": name_of(factory),
        "lr": options.get("lr"),
        **asdict(plan),
        "data": data_hash(rows),
        "num_data": num_rows(rows),
        "data_plate": plate.name,
        "per": "datum" if plate.name else "total",
        "transform": None if split.transform is None else name_of(split.transform),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "threads": torch.get_num_threads(),
    }


def _finish(result: FitResult, folder: RunFolder, num_samples: int) -> None:
    from banel_pyro.report import write_run_report  # matplotlib is heavy to import

    folder.write_posterior(report_posterior(result, num_samples))
    write_run_report(folder)


def report_posterior(result: FitResult, num_samples: int, max_rows: int = 500, max_images: int = 12) -> ArviZ:
    """The draws that a run folder keeps, of the rows that its report judges the run by."""
    rows, which = _judged_rows(result, max_rows)
    groups = ("posterior", "sample_stats", "prior", "log_likelihood", "observed_data")
    idata = result.posterior(rows, num_samples=num_samples, groups=groups)
    few = _first(rows, max_images) if result.plate.name else rows
    idata = merge(idata, result.posterior(few, num_samples=num_samples, groups=("posterior_predictive",)))
    idata.attrs["rows"] = which
    return idata


def _judged_rows(result: FitResult, max_rows: int) -> tuple[Rows, str]:
    """Held-out rows, if every latent is local to a row; else the ELBO is a bound for the training rows only."""
    from banel_pyro.diagnostics.stored import is_local

    rows, which = result.held_out, "held-out rows"
    if not rows or not is_local(result.posterior(_first(rows, 2), num_samples=2, groups=())):
        with fork_rng(result.config["seed"]):
            rows, which = transformed(result.rows, result.transform), "training rows"
    if not rows:
        return rows, "the data inside the model"
    size = len(rows[0])
    whole = size <= max_rows or result.plate.name is None
    if whole or not is_local(result.posterior(_first(rows, max_rows), num_samples=2, groups=())):
        return rows, f"all {size} {which}"
    return _first(rows, max_rows), f"the first {max_rows} of {size} {which}"


def _first(rows: Rows, count: int) -> Rows:
    return tuple(row[:count] for row in rows)
