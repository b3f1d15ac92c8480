"""What is checked once, before the first step: plates, sites, shapes, types, λ, and a clean param store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from torch import nn

from banel_pyro.batches import Rows, Split, num_rows
from banel_pyro.checks import check_callable
from banel_pyro.evaluate import held_out_elbo, trace_draws
from banel_pyro.modules import evaluation_mode, modules_of, reachable_modules
from banel_pyro.plates import DataPlate, find_data_plate, local_parameters, one_line, tell_autoguide
from banel_pyro.traces import guide_densities, plate_nesting, sample_sites
from banel_pyro.training.parameters import Parameters

__all__ = ["Checked", "check_held_out", "check_lam", "preflight"]


@dataclass(frozen=True)
class Checked:
    """What the check found out about a pair and its data.

    Args:
        plate: the data plate.
        sizes: how many latent numbers each density of the guide has (plates scaled, per datum).
        local: what the guide has for each row of the training data: it says nothing about new rows.
        nesting: plates that model and guide nest.
    """

    plate: DataPlate
    sizes: Mapping[str, float]
    local: tuple[str, ...]
    nesting: int


def preflight(
    model: Any, guide: Any, split: Split, rows: Rows, batch: int, data_plate: str | None, parameters: Parameters
) -> Checked:
    """Run model and guide on the first batch; create their parameters; refuse what cannot be trained.

    Args:
        model: the model.
        guide: the guide.
        split: says how rows are transformed.
        rows: the training data.
        batch: rows per step.
        data_plate: name of the plate over data points, or None to find it.
        parameters: gets to know the parameters.

    Raises:
        ValueError: naming what is wrong, with its value and what to write instead.
    """
    size = num_rows(rows)
    first = split.first(rows, batch)
    for side, function in (("model", model), ("guide", guide)):
        check_callable(side, function, first)
    with _no_stale_parameters(model, guide), parameters.watch(), _explained(first), evaluation_mode(model, guide):
        plate = find_data_plate(model, first, size, data_plate)
        _check_size(plate, size, batch)
        _check_shapes(model, guide, first, plate)
        local = _check_local(guide, first, plate, size)
        if size and size % batch:
            _check_last_batch(model, guide, split.first(rows, size % batch), plate, batch)
        sizes, nesting = _sizes(model, guide, first, plate)
    return Checked(plate, sizes, local, nesting)


def check_lam(objective: Any, lams: list[Any], model: Any, guide: Any, first: Rows, plate: DataPlate) -> None:
    """Let the objective look at the pair once for each λ: it refuses unknown sites, λ ≥ 1 and point masses."""
    index = torch.arange(len(first[0])) if first else None
    for lam in lams:
        objective.lam = lam
        with plate.rows(index), tell_autoguide(guide, plate), evaluation_mode(model, guide), _explained(first):
            objective.terms(model, guide, *first)


def check_held_out(model: Any, guide: Any, held_out: Rows, rows: Rows, checked: Checked) -> None:
    """Refuse held-out rows that are unlike the training rows, or that the guide says nothing about."""
    if not held_out:
        return
    kinds = [[(tuple(row.shape[1:]), row.dtype) for row in data] for data in (held_out, rows)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"validation rows have shapes and types {kinds[0]}, training rows {kinds[1]}: expected the same. Convert "
            "them."
        )
    if checked.local:
        raise ValueError(
            f"validation: the guide has {list(checked.local)} for each row of plate '{checked.plate.name}', so it says "
            "nothing about new rows. Leave validation out, or use a guide that computes a row's posterior from the "
            "row."
        )
    with _explained(held_out):
        held_out_elbo(model, guide, held_out, checked.plate)


def _sizes(model: Any, guide: Any, first: Rows, plate: DataPlate) -> tuple[dict[str, float], int]:
    draw = next(trace_draws(model, guide, first, plate, num_samples=1))
    model_trace, guide_trace = draw.model_trace, draw.guide_trace
    factor = plate.factor(len(first[0]) if first else 1)
    sizes = {
        name: float(density.site["value"].numel()) * float(density.site["scale"]) / factor
        for name, density in guide_densities(model_trace, guide_trace).items()
    }
    return sizes, plate_nesting(model_trace, guide_trace)


def _check_size(plate: DataPlate, size: int, batch: int) -> None:
    if plate.name is not None and plate.size not in (size, batch):
        raise ValueError(
            f"data_plate='{plate.name}': the plate has {plate.size} rows, but the data have {size}. Write "
            f"pyro.plate('{plate.name}', {size}), or name the plate over data points."
        )


def _check_shapes(model: Any, guide: Any, first: Rows, plate: DataPlate) -> None:
    index = torch.arange(len(first[0])) if first else None
    with plate.rows(index), tell_autoguide(guide, plate):
        guide_trace = poutine.trace(guide).get_trace(*first)
        model_trace = poutine.trace(model).get_trace(*first)
    for name, site in sample_sites(model_trace):
        if site["is_observed"] or name not in guide_trace.nodes or poutine.util.site_is_subsample(site):  # type: ignore[arg-type]
            continue
        prior, drawn = tuple(site["value"].shape), tuple(guide_trace.nodes[name]["value"].shape)
        if prior != drawn:
            raise ValueError(
                f"model and guide disagree in shape at site '{name}': {prior} in the model, {drawn} in the guide. Draw "
                "it with the same batch and event shape in both (plates, .to_event)."
            )
        sizes = [_full_size(s, plate.name) for s in (site, guide_trace.nodes[name])]
        if None not in sizes and sizes[0] != sizes[1]:
            raise ValueError(
                f"plate '{plate.name}' at site '{name}' has {sizes[0]} rows in the model and {sizes[1]} in the guide, "
                f"which Pyro would scale differently. Write pyro.plate('{plate.name}', {plate.size}) in both."
            )


def _full_size(site: Any, plate: str | None) -> int | None:
    return next((frame.full_size or frame.size for frame in site["cond_indep_stack"] if frame.name == plate), None)


def _check_local(guide: Any, first: Rows, plate: DataPlate, size: int) -> tuple[str, ...]:
    if plate.name is None:
        return ()
    index = torch.arange(len(first[0]))
    with plate.rows(index), tell_autoguide(guide, plate), torch.no_grad():
        local = local_parameters(guide, poutine.trace(guide).get_trace(*first), plate)
    if local and not plate.scaled and len(index) < size:
        raise ValueError(
            f"plate '{plate.name}' is written over the {len(index)} rows of the batch, but the guide has {local} for "
            f"each row: different rows would share them. Write pyro.plate('{plate.name}', {size}), the size of all "
            "data."
        )
    return tuple(local)


def _check_last_batch(model: Any, guide: Any, last: Rows, plate: DataPlate, batch: int) -> None:
    """The last batch of an epoch is smaller: a plate over a fixed number of rows does not fit it."""
    try:
        _check_shapes(model, guide, last, plate)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"the last batch of an epoch has {len(last[0])} rows instead of {batch}, and model or guide does not take "
            f"it ({one_line(error)}). Write the plate over all data or over len(x), or choose a batch_size that "
            "divides the data."
        ) from error


@contextmanager
def _explained(rows: Rows) -> Iterator[None]:
    """Turn messages about number types into one about the data."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        kinds = [f"data[{i}] holds {row.dtype}" for i, row in enumerate(rows) if row.dtype != torch.get_default_dtype()]
        types = any(word in str(error) for word in ("dtype", "scalar type", "type Long", "type Byte", "be cast to"))
        support = "to be within the support" in str(error) and any(not row.is_floating_point() for row in rows)
        if kinds and (types or support):
            raise ValueError(
                f"{', '.join(kinds)}, where the model computes with {torch.get_default_dtype()} ({one_line(error)}). "
                "Convert it with x.to(torch.get_default_dtype()); images of integers also want dividing by their "
                "largest value, 255."
            ) from error
        raise


@contextmanager
def _no_stale_parameters(model: Any, guide: Any) -> Iterator[None]:
    """Refuse a param store in which another module's parameters stand under this pair's names."""
    store = pyro.get_param_store()
    modules = reachable_modules(model, guide)
    before = dict(store._params)
    own = {id(p) for m in modules for p in m.parameters()}
    fresh = [m for m in modules if isinstance(m, AutoGuide) and m.prototype_trace is None]
    _refuse_stale([n for n in before if any(n.startswith(f"{m._pyro_name}.") for m in fresh)])
    with poutine.trace(param_only=True) as capture:
        yield
    named = {id(p) for m in modules for p in m.parameters()}
    taken = [n for n, p in before.items() if id(p) in named and id(p) not in own]
    used = {str(site["name"]) for site in capture.trace.nodes.values() if site["type"] == "param"}
    kept = {n: p for n, p in before.items() if n in used and id(p) not in named}
    _refuse_stale(taken + [n for n, p in kept.items() if _belongs_to(n, p, modules_of(model, guide), modules)])


def _belongs_to(name: str, parameter: Any, owners: list[nn.Module], modules: list[nn.Module]) -> bool:
    """True if a stored parameter has the name of a module's own, which then goes untrained."""
    path, leaf = name.replace("$$$", "."), name.partition("$$$")[2]
    own = {n: p for m in owners for n, p in m.named_parameters()}
    closed = {n: p for m in modules for n, p in m.named_parameters() if leaf}
    return path in own or (leaf in closed and closed[leaf].shape == parameter.shape)


def _refuse_stale(names: list[str]) -> None:
    if names:
        raise ValueError(
            f"the param store already holds {sorted(set(names))[:4]} from another module, which Pyro would use in "
            "place of this pair's own. Call pyro.clear_param_store() first, train inside `with "
            "pyro.get_param_store().scope():`, or give the attributes of model and guide different names."
        )
