r"""What runs are judged by: the untempered ELBO and the importance-weighted bound, with errors.

All of them are functions of log weights :math:`\log w = \log p(x, z) - \log q(z)`, :math:`z \sim q`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyro import poutine

from banel_pyro.batches import DataPlate, Rows, minibatches, tell_autoguide
from banel_pyro.terms import Estimate
from banel_pyro.traces import check_sites, sample_sites

__all__ = [
    "Traces",
    "elbo",
    "elbo_per_datum",
    "iwae",
    "iwae_per_datum",
    "mean_estimate",
    "paired_difference",
    "trace_draws",
]

Array = NDArray[np.floating[Any]]
Traces = tuple[Any, Any, torch.Tensor]


@torch.no_grad()
def trace_draws(
    model: Any, guide: Any, rows: Rows, plate: DataPlate, *, num_samples: int, batch_size: int | None = None
) -> Iterator[list[Traces]]:
    """Draws of the guide with the model replayed against them, one list of chunks of rows per draw.

    Latents outside the data plate are drawn once per draw and shared by its chunks.

    Args:
        model: the model.
        guide: the guide.
        rows: the data.
        plate: the data plate.
        num_samples: draws.
        batch_size: rows in memory at a time (all by default).

    Yields:
        For each draw a list of (model trace, guide trace, row indices), with log-probabilities computed.
    """
    with tell_autoguide(guide, plate):
        for _ in range(num_samples):
            shared: Any = None
            chunks = []
            for index, batch in minibatches(rows, batch_size):
                drawn = guide if shared is None else poutine.replay(guide, trace=shared)
                with plate.rows(index):
                    model_trace, guide_trace = _replayed(model, drawn, batch)
                shared = shared or _outside(guide_trace, plate.name)
                chunks.append((model_trace, guide_trace, index))
            yield chunks


def _replayed(model: Any, guide: Any, batch: Rows) -> tuple[Any, Any]:
    guide_trace = poutine.trace(guide).get_trace(*batch)
    for name in [
        n for n, site in sample_sites(guide_trace) if site["is_observed"] and not site["infer"].get("is_auxiliary")
    ]:
        guide_trace.remove_node(name)  # a messenger guide also runs the model's observations
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*batch)
    guide_trace, model_trace = (poutine.util.prune_subsample_sites(t) for t in (guide_trace, model_trace))
    model_trace.compute_log_prob()
    guide_trace.compute_log_prob()
    check_sites(model_trace, guide_trace)
    return model_trace, guide_trace


def _outside(trace: Any, plate: str | None) -> Any:
    """The part of a guide's trace that lies outside the data plate."""
    kept = poutine.Trace()
    for name, site in sample_sites(trace):
        if plate not in [frame.name for frame in site["cond_indep_stack"]]:
            kept.add_node(name, **site)
    return kept


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
    top = log_w.max(axis=0)
    return np.asarray(top + np.log(np.exp(log_w - top).mean(axis=0)))


def elbo(log_w: Array) -> Estimate:
    """ELBO of a whole data set from log weights (draw): mean and standard error over draws, in nats."""
    return mean_estimate(log_w)


def iwae(log_w: Array) -> Estimate:
    """Importance-weighted bound of a whole data set from log weights (draw), in nats; error by the delta method."""
    w = np.exp(log_w - log_w.max())
    relative = float(w.std(ddof=1) / w.mean() / math.sqrt(len(w))) if len(w) > 1 else math.nan
    return Estimate(float(iwae_per_datum(log_w[:, None])[0]), relative)


def paired_difference(a: Array, b: Array) -> Estimate:
    """Mean of a - b over the same data points, with the standard error of the paired differences."""
    if a.shape != b.shape:
        raise ValueError(f"paired values have shapes {a.shape} and {b.shape}: expected the same data points in both.")
    return mean_estimate(a - b)


@torch.no_grad()
def held_out_elbo(model: Any, guide: Any, rows: Rows, plate: DataPlate, *, num_samples: int = 1) -> float:
    """Untempered ELBO of rows that were not trained on, in nats per datum."""
    total = 0.0
    for ((model_trace, guide_trace, _),) in trace_draws(model, guide, rows, plate, num_samples=num_samples):
        total += float(model_trace.log_prob_sum() - guide_trace.log_prob_sum())
    return total / num_samples / plate.factor(len(rows[0]))
