"""What is checked once, before the first step: plates, sites, shapes, types, and a clean param store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide

from banel_pyro.batches import DataPlate, Rows, find_data_plate, tell_autoguide
from banel_pyro.evaluate import trace_draws
from banel_pyro.traces import guide_densities, sample_sites
from banel_pyro.training.parameters import Parameters, modules_of

__all__ = ["preflight"]


def preflight(
    model: Any, guide: Any, first: Rows, size: int, data_plate: str | None, parameters: Parameters
) -> tuple[DataPlate, dict[str, float]]:
    """Run model and guide once on the first batch; create their parameters; refuse what cannot be trained.

    Args:
        model: the model.
        guide: the guide.
        first: the first batch of rows.
        size: rows in all.
        data_plate: name of the plate over data points, or None to find it.
        parameters: gets to know the parameters.

    Returns:
        The data plate, and how many latent numbers each density of the guide has (plates scaled, per datum).

    Raises:
        ValueError: naming what is wrong, with its value and what to write instead.
    """
    with _no_stale_parameters(model, guide), parameters.watch(), _explained(first):
        plate = find_data_plate(model, first, size, data_plate)
        _check_shapes(model, guide, first, plate)
        ((model_trace, guide_trace, _),) = next(trace_draws(model, guide, first, plate, num_samples=1))
    sizes = {
        name: float(density.site["value"].numel())
        * float(density.site["scale"])
        / plate.factor(len(first[0]) if first else 1)
        for name, density in guide_densities(model_trace, guide_trace).items()
    }
    return plate, sizes


def _check_shapes(model: Any, guide: Any, first: Rows, plate: DataPlate) -> None:
    index = None if not first else torch.arange(len(first[0]))
    with plate.rows(index), tell_autoguide(guide, plate):
        guide_trace = poutine.trace(guide).get_trace(*first)
        model_trace = poutine.trace(model).get_trace(*first)
    for name, site in sample_sites(model_trace):
        if site["is_observed"] or name not in guide_trace.nodes or poutine.util.site_is_subsample(site):
            continue
        prior, drawn = tuple(site["value"].shape), tuple(guide_trace.nodes[name]["value"].shape)
        if prior != drawn:
            raise ValueError(
                f"model and guide disagree in shape at site '{name}': {prior} in the model, {drawn} in the guide. Draw it "
                "with the same batch and event shape in both (plates, .to_event)."
            )


@contextmanager
def _explained(rows: Rows) -> Iterator[None]:
    """Turn torch's message about mixed dtypes into one about the data."""
    try:
        yield
    except RuntimeError as error:
        whole = [f"data[{i}] ({row.dtype})" for i, row in enumerate(rows) if not row.is_floating_point()]
        if whole and any(word in str(error) for word in ("dtype", "scalar type", "type Long", "type Byte")):
            raise ValueError(
                f"{', '.join(whole)} holds integers where the model computes with floats ({error}). Convert it, for images "
                "x.float() / 255."
            ) from error
        raise


@contextmanager
def _no_stale_parameters(model: Any, guide: Any) -> Iterator[None]:
    """Refuse a param store in which another module's parameters stand under this pair's names."""
    store = pyro.get_param_store()
    modules = modules_of(model, guide)
    before = dict(store._params)
    own = {id(p) for m in modules for p in m.parameters()}
    fresh = [m for m in modules if isinstance(m, AutoGuide) and m.prototype_trace is None]
    stale = [n for n, p in before.items() if any(n.startswith(f"{m._pyro_name}.") for m in fresh)]
    _refuse_stale(stale)
    yield
    named = {id(p) for p in own_parameters(modules)}
    foreign = [n for n, p in before.items() if id(p) in named and id(p) not in own]
    unregistered = [n for n, p in store._params.items() if id(p) not in named and _names_module(n, modules)]
    _refuse_stale(foreign + unregistered)


def own_parameters(modules: list[Any]) -> list[Any]:
    """The parameters of some modules."""
    return [p for m in modules for p in m.parameters()]


def _names_module(name: str, modules: list[Any]) -> bool:
    path = name.replace("$$$", ".")
    return any(path == own for m in modules for own, _ in m.named_parameters())


def _refuse_stale(names: list[str]) -> None:
    if names:
        raise ValueError(
            f"the param store already holds {sorted(set(names))[:4]} from another module, which Pyro would use in place of this "
            "pair's own. Call pyro.clear_param_store() first, train inside `with pyro.get_param_store().scope():`, or give "
            "the attributes of model and guide different names."
        )
