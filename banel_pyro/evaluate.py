r"""What runs are judged by: the untempered ELBO and the importance-weighted bound, with errors.

All of them are functions of log weights :math:`\log w = \log p(x, z) - \log q(z)`, :math:`z \sim q`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pyro import poutine

from banel_pyro import summed_out
from banel_pyro.batches import Rows, minibatches
from banel_pyro.modules import evaluation_mode, modules_of
from banel_pyro.plates import DataPlate, tell_autoguide
from banel_pyro.seeding import fork_rng
from banel_pyro.terms import Estimate
from banel_pyro.traces import check_sites, sample_sites, trained_parameters

__all__ = [
    "Arguments",
    "Draw",
    "GuideDraw",
    "chunks",
    "drawn_guide",
    "elbo",
    "elbo_per_datum",
    "guide_draws",
    "held_out_elbo",
    "iwae",
    "iwae_per_datum",
    "learnt_parameters",
    "mean_estimate",
    "outside",
    "paired_difference",
    "replayed_model",
    "trace_draws",
]

Array: TypeAlias = NDArray[np.floating[Any]]

Arguments: TypeAlias = tuple[torch.Tensor | None, ...]
"""Rows as model and guide get them where some may be unknown: None is passed for these."""


class Draw(NamedTuple):
    """One draw of the guide for one chunk of rows.

    Args:
        number: number of the draw.
        chunk: number of the chunk of rows within the draw.
        model_trace: the model replayed against the guide, with log-probabilities.
        guide_trace: the guide, with log-probabilities.
        rows: numbers of the rows.
    """

    number: int
    chunk: int
    model_trace: Any
    guide_trace: Any
    rows: torch.Tensor


class GuideDraw(NamedTuple):
    """One draw of the guide alone, for one chunk of rows.

    Args:
        number: number of the draw.
        chunk: number of the chunk of rows within the draw.
        trace: the guide's trace, without what it observes.
        rows: numbers of the rows.
        batch: the rows.
    """

    number: int
    chunk: int
    trace: Any
    rows: torch.Tensor
    batch: Arguments


def trace_draws(
    model: Any, guide: Any, rows: Rows, plate: DataPlate, *, num_samples: int, batch_size: int | None = None
) -> Iterator[Draw]:
    """Draws of the guide with the model replayed against them, chunk by chunk of rows.

    Latents outside the data plate are drawn once per draw and shared by its chunks. Modules are in
    evaluation mode meanwhile, and nothing is differentiated.

    Args:
        model: the model.
        guide: the guide.
        rows: the data.
        plate: the data plate.
        num_samples: draws.
        batch_size: rows in memory at a time (all by default).

    Yields:
        Every chunk of a draw, then those of the next one.
    """
    with evaluation_mode(model):
        for draw in guide_draws(guide, rows, plate, num_samples=num_samples, batch_size=batch_size):
            with torch.no_grad(), plate.rows(draw.rows if draw.batch else None):
                model_trace, guide_trace = replayed_model(model, draw.trace, draw.batch)
            yield Draw(draw.number, draw.chunk, model_trace, guide_trace, draw.rows)


def guide_draws(
    guide: Any, rows: Arguments, plate: DataPlate, *, num_samples: int, batch_size: int | None = None
) -> Iterator[GuideDraw]:
    """Draws of the guide alone; arguments and order as for :func:`trace_draws`, data that are None stay None."""
    with tell_autoguide(guide, plate), evaluation_mode(guide):
        for number in range(num_samples):
            shared: Any = None
            for chunk, (index, batch) in enumerate(chunks(rows, batch_size)):
                drawn = guide if shared is None else poutine.replay(guide, trace=shared)
                with torch.no_grad(), plate.rows(index if batch else None):
                    trace = drawn_guide(drawn, batch)
                if shared is None:
                    shared = outside(trace, plate.name)
                yield GuideDraw(number, chunk, trace, index, batch)


def chunks(rows: Arguments, batch_size: int | None) -> Iterator[tuple[torch.Tensor, Arguments]]:
    """All rows in order, in chunks of at most ``batch_size``, as (indices, rows); data that are None stay None."""
    for index, batch in minibatches(tuple(row for row in rows if row is not None), batch_size):
        known = iter(batch)
        yield index, tuple(None if row is None else next(known) for row in rows)


def drawn_guide(guide: Any, batch: Arguments) -> Any:
    """A trace of the guide, without what it observes."""
    trace = poutine.trace(guide).get_trace(*batch)
    for name in [n for n, site in sample_sites(trace) if site["is_observed"] and not site["infer"].get("is_auxiliary")]:
        trace.remove_node(name)  # a messenger guide also runs the model's observations
    return trace


def replayed_model(model: Any, guide_trace: Any, batch: Arguments) -> tuple[Any, Any]:
    """The model replayed against a draw of the guide, and that draw, both with log densities."""
    guide_trace = poutine.util.prune_subsample_sites(guide_trace)
    model_trace = summed_out.model_trace(model, guide_trace, batch)
    guide_trace.compute_log_prob()
    check_sites(model_trace, guide_trace)
    return model_trace, guide_trace


def learnt_parameters(model: Any, guide: Any, rows: Rows, plate: DataPlate, batch_size: int | None = None) -> list[str]:
    """The parameters of a model, not of its guide, that its density depends on and that training would move.

    However they are held: it is the gradient that is asked. It draws nothing from your generators.

    Args:
        model: the model.
        guide: the guide.
        rows: the data, of which the first chunk is looked at.
        plate: the data plate.
        batch_size: rows in memory at a time (all by default).

    Returns:
        Their names as Pyro knows them, else those of a module that is or owns the model; empty without any.
    """
    no_memory = torch.autograd.graph.saved_tensors_hooks(lambda tensor: None, lambda nothing: nothing)
    with fork_rng(0), evaluation_mode(model), no_memory:
        draw = next(guide_draws(guide, rows, plate, num_samples=1, batch_size=batch_size))
        with torch.enable_grad(), plate.rows(draw.rows if draw.batch else None):
            trace, _ = replayed_model(model, draw.trace, draw.batch)
            if not torch.as_tensor(trace.log_prob_sum()).requires_grad:
                return []
    owned = [name for top in modules_of(model) for name, value in top.named_parameters() if value.requires_grad]
    return sorted(trained_parameters(trace)) or owned or ["a tensor that requires a gradient"]


def outside(trace: Any, plate: str | None) -> Any:
    """The latents of a trace that lie outside the data plate."""
    kept = poutine.Trace()
    for name, site in sample_sites(trace):
        if not site["is_observed"] and plate not in [frame.name for frame in site["cond_indep_stack"]]:
            kept.add_node(name, **site)
    return poutine.util.prune_subsample_sites(kept)


@torch.no_grad()
def held_out_elbo(model: Any, guide: Any, rows: Rows, plate: DataPlate, *, num_samples: int = 1) -> float:
    """Untempered ELBO of rows that were not trained on, in nats per datum (a total without a data plate)."""
    total = 0.0
    for draw in trace_draws(model, guide, rows, plate, num_samples=num_samples):
        total += float(draw.model_trace.log_prob_sum() - draw.guide_trace.log_prob_sum())
    return total / num_samples / plate.factor(len(rows[0]))


# ---- functions of log weights --------------------------------------------------------------------


def mean_estimate(values: Array) -> Estimate:
    """Mean and its standard error over independent values."""
    values = np.asarray(values, dtype=float)
    spread = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    return Estimate(float(values.mean()), spread / math.sqrt(len(values)))


def elbo_per_datum(log_w: Array) -> Array:
    """Mean log weight over draws: log weights (draw, datum) in nats -> ELBO (datum)."""
    return np.asarray(log_w.mean(axis=0))


def iwae_per_datum(log_w: Array) -> Array:
    r"""Importance-weighted bound :math:`\log \frac1K \sum_k w_k` per datum (Burda et al. 2016, arXiv 1509.00519).

    Args:
        log_w: log weights (draw, datum) in nats.
    """
    return np.asarray(np.logaddexp.reduce(log_w, axis=0) - math.log(len(log_w)))


def elbo(log_w: Array) -> Estimate:
    """ELBO of a whole data set from log weights (draw): mean and standard error over draws, in nats."""
    return mean_estimate(log_w)


def iwae(log_w: Array) -> Estimate:
    """Importance-weighted bound of a whole data set from log weights (draw), in nats; error by the delta method."""
    w = np.exp(log_w - log_w.max())
    relative = float(w.std(ddof=1) / w.mean() / math.sqrt(len(w))) if len(w) > 1 else math.nan
    return Estimate(float(iwae_per_datum(log_w[:, None])[0]), relative)


def paired_difference(a: Array, b: Array) -> Estimate:
    """Mean of a - b over the same data points, with the standard error of the paired differences.

    Raises:
        ValueError: if the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(
            f"paired values have shapes {a.shape} and {b.shape}: expected the same data points in both. Evaluate both "
            "runs on the same rows."
        )
    return mean_estimate(a - b)
