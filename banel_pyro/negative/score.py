"""What orders candidates for rejection: a number for each in nats, the lower the more it is like the failures."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from banel_pyro.checks import instance, integer, number, seed_number
from banel_pyro.modules import evaluation_mode
from banel_pyro.negative.generator import Generator

__all__ = ["Batch", "FailureLikelihood", "LikelihoodRatio", "RandomScore", "Score", "batches", "evaluate", "scored"]


class Batch:
    r"""Candidates, and the log-densities known of them: a generator that several scores share is asked once.

    Args:
        x: candidates, shape (n, \*event_shape).
        known: log-densities in nats by generator, each of shape (n,).
    """

    def __init__(self, x: Tensor, known: Mapping[nn.Module, Tensor] | None = None) -> None:
        self.x = x
        self.known = dict(known or {})

    def log_prob(self, generator: Generator) -> Tensor:
        """Log-density of the candidates under a generator in nats, shape (n,)."""
        if generator not in self.known:
            self.known[generator] = generator.log_prob(self.x)
        return self.known[generator]

    def take(self, rows: Tensor) -> Batch:
        """Some of the rows, by their numbers or by a mask, with what is known of them."""
        return Batch(self.x[rows], {generator: values[rows] for generator, values in self.known.items()})


class Score(nn.Module, ABC):
    """How unlike the failures a candidate is, in nats: a rejection region takes the lowest scores.

    A new score fills one hole, :meth:`forward`. One with parts that others may share (generators) or with numbers to
    keep gives them as attributes and constructor arguments of the same names, the numbers through :meth:`config`: then
    a region of it can be saved and loaded.
    """

    kind: ClassVar[str] = ""
    """The name of the score in files and reports."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        r"""Scores in nats, shape (n,), of candidates of shape (n, \*event_shape)."""

    def terms(self, batch: Batch) -> tuple[Tensor, ...]:
        """The terms whose sum the score is, each of shape (n,): the largest of them says how it is rounded."""
        return (self(batch.x),)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments that are numbers or texts."""
        return {}

    def parts(self) -> dict[str, Generator]:
        """The constructor's arguments that are generators."""
        return {name: part for name, part in self._modules.items() if isinstance(part, Generator)}


class LikelihoodRatio(Score):
    r"""What the base says of a candidate against what the failure model says of it.

    .. math::
        s(x) = \log p_\theta(x) - \kappa \log p_\varphi(x)

    LOW is like the failures: where the failure model likes a candidate more than the base does, s is negative. What
    the base cannot make (:math:`p_\theta(x) = 0`) scores −∞, what the failure model cannot make +∞.

    A threshold has its meaning for these two densities only. Give ``base.copy()`` where the base is trained later.

    Args:
        base: :math:`p_\theta`, the generator from which candidates are drawn.
        failures: :math:`p_\varphi`, trained on failures.
        kappa: the exponent κ on :math:`p_\varphi`, more than 0. At 1, the plain ratio, a failure model that is still
            a copy of the base filters nothing; at another value it filters by the base's own density.

    Raises:
        TypeError, ValueError: for what is no generator, or κ of 0 or less.

    Reference: Lee, Amos and Fanti (2025), arXiv 2510.09596.
    """

    kind = "likelihood ratio"

    def __init__(self, base: Generator, failures: Generator, kappa: float = 1.0) -> None:
        super().__init__()
        for name, part in (("base", base), ("failures", failures)):
            instance(name, part, (Generator,), "a Generator, such as DistributionGenerator(...)")
        self.base, self.failures, self.kappa = base, failures, _exponent(kappa)

    def forward(self, x: Tensor) -> Tensor:
        """Scores in nats, shape (n,)."""
        return total(self.terms(Batch(x)))

    def terms(self, batch: Batch) -> tuple[Tensor, ...]:
        """The two log-densities, the second with its factor −κ."""
        return batch.log_prob(self.base), -self.kappa * batch.log_prob(self.failures)

    def config(self) -> dict[str, Any]:
        """The exponent."""
        return {"kappa": self.kappa}


class FailureLikelihood(Score):
    r"""What the failure model says of a candidate, whatever the base says: :math:`1/p_\varphi^\kappa` as a score.

    .. math::
        s(x) = -\kappa \log p_\varphi(x)

    No ratio, so that a rare candidate counts for no less than a common one. It is not the published method. A quantile
    of it does not depend on κ, a fixed threshold does.

    Args:
        failures: :math:`p_\varphi`, trained on failures.
        kappa: the exponent κ, more than 0.

    Raises:
        TypeError, ValueError: for what is no generator, or κ of 0 or less.
    """

    kind = "failure likelihood"

    def __init__(self, failures: Generator, kappa: float = 1.0) -> None:
        super().__init__()
        instance("failures", failures, (Generator,), "a Generator, such as DistributionGenerator(...)")
        self.failures, self.kappa = failures, _exponent(kappa)

    def forward(self, x: Tensor) -> Tensor:
        """Scores in nats, shape (n,)."""
        return total(self.terms(Batch(x)))

    def terms(self, batch: Batch) -> tuple[Tensor, ...]:
        """The log-density with its factor −κ."""
        return (-self.kappa * batch.log_prob(self.failures),)

    def config(self) -> dict[str, Any]:
        """The exponent."""
        return {"kappa": self.kappa}


class RandomScore(Score):
    """A number between 0 and 1 for each candidate, uniform and always the same one: a filter that knows nothing.

    It is a hash (BLAKE2b) of the candidate's numbers, so that the lowest are a set of candidates, and a candidate that
    comes twice is treated alike. What such a filter gains, distillation alone gains.

    Args:
        seed: another seed orders the candidates independently.

    Example:
        >>> RandomScore(0)(torch.tensor([3, 4, 3]))
        tensor([0.7362, 0.2814, 0.7362], dtype=torch.float64)
    """

    kind = "random"

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed_number(seed)

    def forward(self, x: Tensor) -> Tensor:
        """Scores without unit, shape (n,), in float64."""
        kind = torch.float64 if x.is_floating_point() else torch.int64  # the same number in any type has one score
        rows = (x.detach().cpu().to(kind) + 0).reshape(len(x), math.prod(x.shape[1:])).numpy()  # + 0: -0.0 is 0.0
        key = self.seed.to_bytes(4, "little")
        hashes = [hashlib.blake2b(row.tobytes(), digest_size=8, key=key).digest() for row in rows]
        whole = torch.tensor([int.from_bytes(found, "little") >> 12 for found in hashes], dtype=torch.float64)
        return ((whole + 0.5) * 2.0**-52).to(x.device)

    def config(self) -> dict[str, Any]:
        """The seed."""
        return {"seed": self.seed}


def total(terms: tuple[Tensor, ...]) -> Tensor:
    """The sum of log-densities with their signs, where −∞ in the first, a candidate that cannot be, decides."""
    first, *others = terms
    return torch.where(first == -math.inf, first, sum(others, first))


def evaluate(score: Score, x: Tensor, *, batch_size: int = 1024) -> Tensor:
    r"""Scores of candidates, without gradient and in evaluation mode, some rows in memory at a time.

    Args:
        score: the score.
        x: candidates, shape (n, \*event_shape).
        batch_size: rows at a time.

    Returns:
        Shape (n,).

    Raises:
        ValueError: if a score is NaN or of another shape.
    """
    return torch.cat([scored(score, batch)[0] for batch in batches(x, batch_size)])


def scored(score: Score, batch: Batch) -> tuple[Tensor, Tensor]:
    """Scores of a batch, and the size of the largest finite term of each, in nats: both of shape (n,)."""
    with torch.no_grad(), evaluation_mode(score):
        terms = score.terms(batch)
    for term in terms:
        if not isinstance(term, Tensor) or term.shape != (len(batch.x),):
            found = tuple(term.shape) if isinstance(term, Tensor) else type(term).__name__
            raise ValueError(
                f"{_name(score)} gave {found} for {len(batch.x)} candidates: expected a number for each, of shape "
                f"({len(batch.x)},). Sum log_prob(x) over the event."
            )
    scores = total(terms)
    wrong = torch.isnan(scores)
    if bool(wrong.any()):
        raise ValueError(
            f"{_name(score)} is NaN for {int(wrong.sum())} of {len(scores)} candidates: expected nats, or infinity. "
            "Look for NaN among the generators' parameters."
        )
    sizes = torch.stack([torch.where(torch.isfinite(term), term.abs(), 0.0) for term in terms]).amax(0)
    return scores, sizes


def batches(x: Tensor, batch_size: int) -> Iterator[Batch]:
    """Candidates, some rows at a time; of none, one empty batch.

    Raises:
        TypeError, ValueError: for a batch size below 1.
    """
    return map(Batch, x.split(integer("batch_size", batch_size)))


def _exponent(kappa: Any) -> float:
    if number("kappa", kappa) <= 0:
        raise ValueError(
            f"kappa={kappa!r}: expected a number above 0, or the failures would count for nothing or be kept. Write "
            "kappa=1.0, the plain ratio."
        )
    return float(kappa)


def _name(score: Score) -> str:
    return f"the score {type(score).__name__}"
