"""What a model says the data look like: at draws of the guide, or of the prior; of rows whose response is unknown."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from banel_pyro.batches import Rows, as_rows, num_rows
from banel_pyro.draws import Table, is_data
from banel_pyro.evaluate import Arguments, chunks, guide_draws, outside
from banel_pyro.modules import evaluation_mode, reachable_modules
from banel_pyro.plates import DataPlate, one_line, tell_autoguide
from banel_pyro.seeding import draw_seed, kept_rng
from banel_pyro.streams import SiteStreams, rows_at_a_time
from banel_pyro.traces import sample_sites

__all__ = [
    "add_prior",
    "argument_names",
    "as_arguments",
    "known_rows",
    "predict",
    "predicted_sites",
    "predictive_table",
]


def predictive_table(
    model: Any,
    guide: Any,
    rows: Arguments,
    plate: DataPlate,
    *,
    num_samples: int,
    sites: Sequence[str] | None,
    batch_size: int | None,
    dims: Mapping[str, str | Sequence[str]] | None,
) -> Table:
    """Draws of the model's data at draws of the guide.

    Args:
        model: the model.
        guide: the guide.
        rows: the data; None for what is to be drawn.
        plate: the data plate.
        num_samples: draws.
        sites: sites of the model to keep, by default those that the guide does not draw.
        batch_size: rows in memory at a time (all by default).
        dims: by variable, names for its axes that are no plates.

    Raises:
        ValueError: for unknown sites, or if model or guide does not take None.
    """
    size, arguments = num_rows(known_rows(rows)), argument_names(model, len(rows))
    table = Table(num_samples, plate, size, dims)
    step = rows_at_a_time(size, batch_size)
    _check_gaps(model, guide, rows, plate, step)
    with SiteStreams(draw_seed()) as streams, evaluation_mode(model):
        for draw in guide_draws(guide, rows, plate, num_samples=num_samples, batch_size=step):
            with streams.part("predictive"):
                trace = predict(model, draw.batch, draw.trace, plate, draw.rows)
            found = predicted_sites(trace, draw.trace) if sites is None else _chosen(sites, trace)
            table.add_sites("posterior_predictive", draw.number, trace, draw.rows, found)
            if draw.number == 0:
                table.note(trace, arguments)
                table.add_observed(trace, draw.rows)
    table.add_constants(arguments, rows)
    return table


class _Redrawn(UnconditionMessenger):
    """Draws what is observed, but not what ``pyro.deterministic`` computes: Pyro would repeat it over its plates."""

    def _pyro_sample(self, msg: Any) -> None:
        if is_data(msg):
            super()._pyro_sample(msg)


def _redrawn(model: Any) -> Any:
    return _Redrawn()(model)


@torch.no_grad()
def predict(model: Any, batch: Arguments, guide_trace: Any, plate: DataPlate, index: Tensor) -> Any:
    """A trace of the model at a draw of the guide, in which what is observed is drawn as well."""
    with plate.rows(index if batch else None):
        return poutine.trace(_redrawn(poutine.replay(model, trace=guide_trace))).get_trace(*batch)


def predicted_sites(trace: Any, guide_trace: Any) -> set[str]:
    """The sites of an unconditioned model that hold data: those that the guide does not draw."""
    return {
        name
        for name, site in sample_sites(trace)
        if name not in guide_trace.nodes and is_data(site) and not site_is_subsample(site)  # type: ignore[arg-type]
    }


def _chosen(sites: Sequence[str], trace: Any) -> Collection[str]:
    known = [name for name, site in sample_sites(trace) if not site_is_subsample(site)]  # type: ignore[arg-type]
    unknown = [sites] if isinstance(sites, str) else sorted(set(sites) - set(known))
    if unknown or not sites:
        raise ValueError(f"sites={sites!r}: unknown {unknown}, expected a list of some of the model's {known}.")
    return sites


@torch.no_grad()
def add_prior(
    table: Table, model: Any, guide: Any, rows: Rows, plate: DataPlate, batch_size: int | None, groups: Collection[str]
) -> None:
    """Draws of the model alone; latents outside the data plate are shared by the chunks of a draw.

    Args:
        table: gets the draws.
        model: the model.
        guide: the guide.
        rows: the data.
        plate: the data plate.
        batch_size: rows in memory at a time.
        groups: ``prior`` for the latents, ``prior_predictive`` for the data, or both.
    """
    drawn = _redrawn(model) if "prior_predictive" in groups else model
    with tell_autoguide(guide, plate), evaluation_mode(model, guide):
        for draw in range(table.draws):
            shared: Any = None
            for index, batch in chunks(rows, batch_size):
                prior = drawn if shared is None else poutine.replay(drawn, trace=shared)
                with plate.rows(index if batch else None):
                    trace = poutine.trace(prior).get_trace(*batch)
                shared = outside(trace, plate.name) if shared is None else shared
                if "prior" in groups:
                    table.add_latents("prior", draw, trace, index)
                if "prior_predictive" in groups:
                    table.add_sites("prior_predictive", draw, trace, index, _were_observed(trace))


def _were_observed(trace: Any) -> set[str]:
    return {name for name, site in sample_sites(trace) if site["infer"].get("was_observed") and is_data(site)}


# ---- arguments -----------------------------------------------------------------------------------


def as_arguments(data: Any) -> Arguments:
    """As :func:`~banel_pyro.batches.as_rows`, where some of a tuple may be None.

    Raises:
        ValueError: if all are None.
    """
    if not isinstance(data, tuple | list) or not any(item is None for item in data):
        return as_rows(data)
    known = iter(as_rows(tuple(item for item in data if item is not None)))
    rows = tuple(None if item is None else next(known) for item in data)
    if not known_rows(rows):
        raise ValueError("data holds None only: expected a tensor that says how many rows there are. Pass one.")
    return rows


def known_rows(rows: Arguments) -> Rows:
    """The rows that are not None."""
    return tuple(row for row in rows if row is not None)


def _check_gaps(model: Any, guide: Any, rows: Arguments, plate: DataPlate, batch_size: int | None) -> None:
    """Refuse data that are None where model or guide cannot do without, by running both once."""
    gaps = ", ".join(f"data[{i}]" for i, row in enumerate(rows) if row is None)
    if not gaps:
        return
    instead = "pass a tensor of the right shape in its place, such as torch.zeros(...): what is observed is drawn anew"
    if any(isinstance(item, GuideMessenger) for item in (guide, *reachable_modules(guide))):
        raise ValueError(
            f"{gaps} is None, and the guide runs the model itself: it would take what is not observed for a latent. "
            f"Please {instead}."
        )
    try:
        with kept_rng(), evaluation_mode(model):
            draw = next(guide_draws(guide, rows, plate, num_samples=1, batch_size=batch_size))
            predict(model, draw.batch, draw.trace, plate, draw.rows)
    except (TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{gaps} is None, and model or guide fails ({type(error).__name__}: {one_line(error)}). Write the model so "
            f"that it takes None (obs=y, and the number of rows from another argument), or {instead}."
        ) from error


def argument_names(model: Any, count: int) -> list[str]:
    """What a model calls its first positional arguments; ``arg_0`` and so on where it gives them no names."""
    called = inspect.unwrap(model)  # from Pyro's handlers
    try:
        parameters = inspect.signature(called.forward if isinstance(called, nn.Module) else called).parameters.values()
    except (TypeError, ValueError):  # made in C, for instance
        return [f"arg_{i}" for i in range(count)]
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [parameter.name for parameter in parameters if parameter.kind in named][:count]
    return names + [f"arg_{i}" for i in range(len(names), count)]
