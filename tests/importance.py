"""Importance sampling with a guide, which checks model, guide and posterior against an exact evidence."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor


class Weighted(NamedTuple):
    """Draws of a guide.

    Args:
        log_w: log p(x, z) - log q(z) (draws,), in nats.
        values: Values of the latent sites (draws, *shape).
    """

    log_w: Tensor
    values: dict[str, Tensor]


@torch.no_grad()
def weighted_draws(model: Callable[..., Any], guide: Callable[..., Any], *rows: Tensor, draws: int) -> Weighted:
    """So many draws of the guide with their weights, one at a time and by Pyro alone."""
    log_w, values = [], []
    for _ in range(draws):
        guide_trace = poutine.trace(guide).get_trace(*rows)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*rows)
        log_w.append(model_trace.log_prob_sum() - guide_trace.log_prob_sum())
        values.append({name: model_trace.nodes[name]["value"] for name in model_trace.stochastic_nodes})
    names = [name for name in values[0] if not name.startswith("_")]
    return Weighted(torch.stack(log_w), {name: torch.stack([value[name] for value in values]) for name in names})


def evidence_error(log_w: Tensor, log_evidence: Tensor | float) -> float:
    """Mean of w = p(x, z) / q(z) less p(x), in standard errors: the mean is p(x) whatever the guide."""
    ratio = (log_w - log_evidence).exp()
    return float((ratio.mean() - 1) / (ratio.std() / len(ratio) ** 0.5))


def mean_error(weighted: Weighted, values: Tensor, exact: Tensor) -> Tensor:
    """Self-normalised mean of values (draws, *shape) less the exact one, in standard errors."""
    w = weighted.log_w.softmax(0).reshape(-1, *[1] * (values.dim() - 1))
    mean = (w * values).sum(0)
    stderr = ((w * (values - mean)) ** 2).sum(0).sqrt()
    return (mean - exact) / stderr
