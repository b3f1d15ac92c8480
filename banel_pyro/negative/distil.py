"""Distillation: train a generator on accepted draws, so that the next ones cost no rejections; and how well it went."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from banel_pyro.checks import instance, integer, probability
from banel_pyro.negative.generator import Generator
from banel_pyro.negative.posterior import ExplorationPosterior
from banel_pyro.negative.training import Training, log_probs
from banel_pyro.seeding import fork_rng
from banel_pyro.terms import Estimate

__all__ = ["Distillation", "Distilled", "distil"]


@dataclass(frozen=True)
class Distillation:
    """How an exploration posterior becomes a generator again.

    Args:
        draws: accepted draws that are trained on.
        training: maximum likelihood on them.
        start: ``"current"``, from where the generator stands, or ``"first"``, from the one that ``learn`` was given
            (what the paper calls resetting).
        held_out: the fraction of further accepted draws that only measure.
        keep_regions: go on rejecting by the regions, each with the generator that it was made for; else they are
            absorbed, and what the distilled generator still puts into them comes back.

    Raises:
        TypeError, ValueError: for options out of range.
    """

    draws: int = 4000
    training: Training = field(default_factory=lambda: Training(epochs=2, batch_size=128))
    start: Literal["current", "first"] = "current"
    held_out: float = 0.1
    keep_regions: bool = False

    def __post_init__(self) -> None:
        integer("draws", self.draws, 2)
        probability("held_out", self.held_out)
        instance("training", self.training, (Training,), "a Training. Write training=Training(epochs=2)")
        instance("keep_regions", self.keep_regions, (bool,), "True or False")
        if self.start not in ("current", "first"):
            raise ValueError(f"start={self.start!r}: expected 'current' or 'first'.")

    def describe(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return {"draws": self.draws, "training": self.training.describe(), "start": self.start,
                "held_out": self.held_out, "keep_regions": self.keep_regions}  # fmt: skip


@dataclass(frozen=True)
class Distilled:
    r"""A distilled generator and how faithful it is.

    Args:
        generator: the generator.
        held_out: :math:`E \log p_{\text{new}}(x)` over accepted draws that it was not trained on, in nats.
        divergence: KL(posterior ‖ new) in nats: the same draws, against the posterior's own density
            :math:`\log p_\theta(x) - \log P(\text{accept})`, whose estimate is part of the error.
        acceptance: of draws from the new generator under the old regions: 1 if it has learnt them whole, and
            P(accept) if nothing.
    """

    generator: Generator
    held_out: Estimate
    divergence: Estimate
    acceptance: Estimate


def distil(
    posterior: ExplorationPosterior, plan: Distillation, *, start: Generator | None = None, seed: int,
    successes: Tensor | None = None, measured: int = 1000,
) -> Distilled:  # fmt: skip
    r"""Train a generator on draws from an exploration posterior.

    .. math::
        \theta' = \arg\max_\theta \sum_i \log p_\theta(x_i), \qquad x_i \sim p_\theta(x)\,1[x \notin \tilde R]

    Args:
        posterior: where accepted draws come from.
        plan: how many, and how the generator is trained.
        start: the generator that is copied and trained; by default the posterior's.
        seed: of all that is drawn.
        successes: candidates that join the draws, shape (n, \*event_shape). None by the paper's protocol.
        measured: draws of the new generator that measure ``acceptance``.

    Raises:
        AcceptanceError: if too few draws are accepted.
    """
    held = max(1, round(plan.held_out * plan.draws))
    with fork_rng(seed):
        accepted = posterior.sample((plan.draws + held,))
        draws, unseen = accepted[: plan.draws], accepted[plan.draws :]
        if successes is not None and len(successes):
            draws = torch.cat([draws, successes])
        generator = (posterior.generator if start is None else start).copy().requires_grad_(True)
        plan.training(generator, draws, seed=seed)
        fresh = ExplorationPosterior(generator).sample((integer("measured", measured),))
    new = log_probs(generator, unseen).double()
    accept = posterior.acceptance
    true = log_probs(posterior.generator, unseen).double() - math.log(accept.value)
    divergence = _mean(true - new)
    stderr = math.hypot(divergence.stderr, accept.stderr / accept.value)
    return Distilled(
        generator.requires_grad_(False), _mean(new), Estimate(divergence.value, stderr),
        posterior.regions.acceptance(fresh),
    )  # fmt: skip


def _mean(values: Tensor) -> Estimate:
    spread = float(values.std()) if len(values) > 1 else float("nan")
    return Estimate(float(values.mean()), spread / len(values) ** 0.5)
