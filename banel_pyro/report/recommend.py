"""Which λ to take, and why: a pure function of the numbers of the runs at each λ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from banel_pyro.report.numbers import readable
from banel_pyro.report.pooled import Scores, paired, pooled, pooled_estimates
from banel_pyro.terms import Estimate

__all__ = ["NOTHING", "SCORE_NAMES", "Candidate", "Recommendation", "recommend"]

NOTHING = 0.005
"""Nats: a smaller difference is none to a reader, however small its standard error."""

SCORE_NAMES = {"elbo": "untempered ELBO", "predictive": "held-out predictive density", "iwae": "IWAE"}
"""What λ may be chosen by, in words. The penalised loss is none of them: at every λ it is another function."""


@dataclass(frozen=True)
class Candidate:
    """The runs at one λ.

    Args:
        label: what a reader knows it as, such as ``λ = 0.4``.
        lam: λ, or that at which runs with a target ended; the distance from 0 decides between equals.
        scores: what it is chosen by, by seed; never the penalised loss.
        failed: what its checks have against it, in words; empty if they pass in every run.
        entropy: of the posterior in nats per data point.
    """

    label: str
    lam: float
    scores: Scores
    failed: tuple[str, ...] = ()
    entropy: Estimate | None = None

    @property
    def score(self) -> Estimate:
        """The mean of its scores."""
        return mean_score(self.scores)


@dataclass(frozen=True)
class Recommendation:
    """Which λ to take.

    Args:
        label: of the candidate; None if there is none to take.
        reason: why, in a sentence or two.
        cautions: what a reader has to know besides.
    """

    label: str | None
    reason: str
    cautions: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = f"Take {self.label}." if self.label else "No λ is recommended."
        return " ".join([head, self.reason, *self.cautions])


def mean_score(scores: Scores) -> Estimate:
    """The mean of scores over seeds and rows.

    Args:
        scores: by seed.
    """
    vectors = [score for score in scores.values() if not isinstance(score, Estimate)]
    if vectors:
        return pooled(np.stack(vectors))
    return pooled_estimates([score for score in scores.values() if isinstance(score, Estimate)])


def recommend(
    candidates: Sequence[Candidate],
    *,
    score: str = "elbo",
    target: float | None = None,
    tolerance: float = 0.0,
    shared_by: int = 1,
) -> Recommendation:
    """Choose among the λ whose checks pass: by an entropy that was asked for, else by paired differences of a score.

    Of the λ that cannot be told from the best, within two standard errors of the paired difference or
    :data:`NOTHING` nats, that nearest to λ = 0 is taken, ordinary variational inference; of two as near, the lower
    one: a posterior that is too wide misleads less than one that is too narrow.

    Args:
        candidates: the runs at each λ.
        score: what ``scores`` are, one of :data:`SCORE_NAMES`.
        target: an entropy in nats per data point; the λ that come within ``tolerance`` of it meet it, or within
            two standard errors of their entropy.
        tolerance: in nats per data point.
        shared_by: data points that share a posterior: :data:`NOTHING` is of one posterior, scores are per data point.

    Raises:
        ValueError: without candidates, or for a score that no λ may be chosen by.

    Example:
        >>> import numpy as np
        >>> zero = Candidate("λ = 0", 0.0, {0: np.array([-2.0, -3.0])})
        >>> other = Candidate("λ = 0.4", 0.4, {0: np.array([-1.5, -2.4])})
        >>> recommend([zero, other]).label, recommend([zero, Candidate("λ = 0.4", 0.4, {}, ("k-hat",))]).label
        ('λ = 0.4', 'λ = 0')
    """
    if not candidates:
        raise ValueError("candidates is empty: expected the runs at one λ at least.")
    if score not in SCORE_NAMES:
        raise ValueError(
            f"score={score!r}: expected one of {', '.join(SCORE_NAMES)}. Losses at different λ are never compared."
        )
    passing = [candidate for candidate in candidates if not candidate.failed]
    if not passing:
        against = "; ".join(f"{c.label}: {', '.join(c.failed)}" for c in candidates)
        return Recommendation(None, f"The checks fail at every one ({against}).")
    if target is not None:
        return _by_target(passing, target, tolerance)
    return _by_score(passing, score, NOTHING / shared_by)


def _by_target(passing: Sequence[Candidate], target: float, tolerance: float) -> Recommendation:
    known = [(abs(c.entropy.value - target), c, c.entropy) for c in passing if c.entropy is not None]
    if not known:
        return Recommendation(None, "The entropy of no posterior is known.")
    distance, nearest, entropy = min(known, key=lambda item: item[0])
    found = f"its entropy is {readable(entropy)}, {distance:.3f} nats from the {_number(target)} that were asked for"
    near = max(tolerance, 2 * entropy.stderr) if math.isfinite(entropy.stderr) else tolerance
    if distance > near:
        return Recommendation(
            None,
            f"None meets the entropy target within {near:.3f} nats: nearest is {nearest.label}, {found}.",
        )
    return Recommendation(nearest.label, f"Entropy target met: {found}, per data point.")


def _by_score(passing: Sequence[Candidate], score: str, nothing: float) -> Recommendation:
    name = SCORE_NAMES[score]
    best = max(passing, key=lambda candidate: candidate.score.value)
    behind = {c.label: paired(best.scores, c.scores) for c in passing if c is not best}
    ties = [c for c in passing if c is not best and _is_tie(behind[c.label], nothing)]
    cautions = _cautions(passing, behind)
    if len(passing) == 1:
        return Recommendation(best.label, "It is the only one whose checks pass.", cautions)
    if ties:
        chosen = min([best, *ties], key=lambda c: (abs(c.lam), c.lam))
        same = ", ".join(c.label for c in sorted([best, *ties], key=lambda c: c.lam))
        return Recommendation(
            chosen.label,
            f"{same} cannot be told apart by the {name} (paired differences within two standard errors, or "
            f"{nothing:.2g} nats), and of these it is nearest to λ = 0, ordinary variational inference.",
            cautions,
        )
    label, lead = min(((k, v) for k, v in behind.items() if v is not None), key=lambda item: item[1].value)
    return Recommendation(
        best.label,
        f"Its {name} is the highest of those whose checks pass, by {readable(lead)} nats per data point over the next, "
        f"{label} (paired).",
        cautions,
    )


def _is_tie(lead: Estimate | None, nothing: float) -> bool:
    """Whether a lead is none; an error that is not known makes it none."""
    return lead is None or not lead.value > max(2 * lead.stderr, nothing)


def _cautions(passing: Sequence[Candidate], behind: dict[str, Estimate | None]) -> tuple[str, ...]:
    found = []
    if min(len(candidate.scores) for candidate in passing) < 2:
        found.append("One seed says nothing about another training run: take several.")
    if any(lead is None for lead in behind.values()):
        found.append("Some λ have no seed in common with it and could not be compared.")
    return tuple(found)


def _number(value: float) -> str:
    return f"{value:g}".replace("-", "−")
