"""What an exploration posterior draws and rejects, as what ArviZ works on."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from banel_pyro.checks import seed_number
from banel_pyro.inference_data import ArviZ, from_draws
from banel_pyro.negative.score import batches
from banel_pyro.negative.threshold import fraction
from banel_pyro.seeding import fork_rng

if TYPE_CHECKING:
    from banel_pyro.negative.posterior import ExplorationPosterior

__all__ = ["posterior_to_arviz"]

Named = tuple[tuple[str, ...], Any]


def posterior_to_arviz(posterior: ExplorationPosterior, n: int, *, seed: int | None) -> ArviZ:
    """As :meth:`ExplorationPosterior.to_arviz`."""
    with nullcontext() if seed is None else fork_rng(seed_number(seed)):
        draws = posterior.sample_with_draws(n)
    event = tuple(f"x_dim_{axis}" for axis in range(len(posterior.event_shape)))
    log_prob, scores = _of_draws(posterior, draws.raw)
    accepted = (draws.which < 0).nonzero().squeeze(-1)[:n]
    groups = {
        "posterior": {"x": (event, _array(draws.x))},
        "sample_stats": _stats(log_prob[accepted], scores[accepted]),
        "prior": {"x": (event, _array(draws.raw))},
        "sample_stats_prior": {**_stats(log_prob, scores), "rejected_by": ((), _array(draws.which))},
    }
    return from_draws(groups, _attributes(posterior, draws.which) | ({} if seed is None else {"seed": seed}))


def _of_draws(posterior: ExplorationPosterior, x: Tensor) -> tuple[Tensor, Tensor]:
    """Log-density under the generator, and the score under each region: shapes (n,) and (n, regions)."""
    log_prob, scores = [], []
    with torch.no_grad():
        for batch in batches(x, posterior.batch_size):
            log_prob.append(batch.log_prob(posterior.generator))
            scores.append(posterior.regions.scores_batch(batch))
    return torch.cat(log_prob), torch.cat(scores)


def _stats(log_prob: Tensor, scores: Tensor) -> dict[str, Named]:
    return {"log_prob": ((), _array(log_prob)), "score": (("region",), _array(scores))}


def _attributes(posterior: ExplorationPosterior, which: Tensor) -> dict[str, Any]:
    """What was drawn, and where it went."""
    drawn, accepted = len(which), int((which < 0).sum())
    acceptance = fraction(accepted, drawn)
    return {
        "drawn": drawn,
        "accepted": accepted,
        "acceptance": acceptance.value,
        "acceptance_stderr": acceptance.stderr,
        "rejected": [int((which == place).sum()) for place in range(len(posterior.regions))],
        "log_tau": [str(region.log_tau) for region in posterior.regions],
        "scores": [region.score.kind or type(region.score).__name__ for region in posterior.regions],
    }


def _array(values: Tensor) -> Any:
    return values.detach().cpu().numpy()
