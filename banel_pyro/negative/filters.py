"""How a score is learnt from what has failed: the one hole that a new method fills."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from banel_pyro.checks import instance, integer, number
from banel_pyro.negative.generator import Generator
from banel_pyro.negative.score import FailureLikelihood, LikelihoodRatio, RandomScore, Score
from banel_pyro.negative.training import Training
from banel_pyro.training.callbacks import Event

__all__ = ["Evidence", "Filter", "RandomFilter", "RatioFilter"]


@dataclass(frozen=True)
class Evidence:
    r"""What is known when a score is learnt.

    Args:
        generator: :math:`p_\theta`, from which the round's candidates came.
        failures: candidates of this round with r = 0, shape (n, \*event_shape).
        earlier: those of the rounds before.
        successes: candidates of all rounds with r = 1. The filters here leave them alone, as the paper's protocol does.
        previous: the score of the round before, if there is one.
    """

    generator: Generator
    failures: Tensor
    earlier: Tensor
    successes: Tensor
    previous: Score | None = None


class Filter(ABC):
    """How a score is learnt. Subclasses are frozen dataclasses: their fields are what a run records."""

    scores: ClassVar[tuple[type[Score], ...]] = ()
    """Classes of scores that it learns, beyond those of the library: a checkpoint makes them again."""

    @abstractmethod
    def learn(self, evidence: Evidence, *, seed: int) -> Score:
        """A score of candidates, low for what is to be rejected first.

        Args:
            evidence: what is known.
            seed: of all that is drawn.
        """

    def stages(self, evidence: Evidence, epochs: Collection[int], *, seed: int) -> dict[int, Score]:
        """The scores after so many epochs of compute, its own number among them, the default of a choice, first.

        Args:
            evidence: what is known.
            epochs: how many.
            seed: of all that is drawn.

        Raises:
            TypeError: for a filter without epochs.
        """
        raise TypeError(f"{type(self).__name__} has no epochs to choose among. Write HeldOut() without epochs.")

    def parts(self) -> Mapping[str, Generator]:
        """Generators of its scores whose architecture is not the proposing one's, by the name of the part.

        Their parameters do not matter: those of a checkpoint are put into copies.
        """
        return {}

    def describe(self) -> dict[str, Any]:
        """Name and fields, for JSON."""
        return {"filter": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class RatioFilter(Filter):
    r"""The paper's: a failure model :math:`p_\phi` is trained on the failures, and scores are likelihood ratios.

    .. math::
        s(x) = \log p_\theta(x) - \kappa \log p_\phi(x), \qquad
        \phi = \arg\max_\phi \frac1m \sum_{i : r(x_i) = 0} \log p_\phi(x_i)

    The failure model starts as a copy of the generator, so that 0 epochs reject nothing, and each further epoch lets it
    tell more: epochs are the knob of compute. They must end before it has learnt its failures by heart.

    Args:
        training: of the failure model.
        kappa: the exponent κ of :math:`p_\phi`.
        start: ``"generator"``, a copy of it; ``"previous"``, the last round's failure model; or a function that returns
            a fresh one.
        data: failures of this ``"round"``, or of ``"all"`` rounds.
        score: ``"ratio"``, or ``"failures"`` for :math:`-\kappa \log p_\phi(x)` alone, without the generator.

    Raises:
        TypeError, ValueError: for options out of range.

    References:
        Lee, Amos and Fanti, arXiv 2510.09596, 2025. The start, the data and the epochs of the paper's own runs are not
        known to us; what epochs do here, ``python -m demos.negative_epochs`` shows.
    """

    training: Training = field(default_factory=Training)
    kappa: float = 1.0
    start: Literal["generator", "previous"] | Callable[[], Generator] = "generator"
    data: Literal["round", "all"] = "round"
    score: Literal["ratio", "failures"] = "ratio"

    def __post_init__(self) -> None:
        instance("training", self.training, (Training,), "a Training. Write training=Training(epochs=10)")
        if number("kappa", self.kappa) <= 0:
            raise ValueError(f"kappa={self.kappa}: expected a number above 0. Write kappa=1.0, the plain ratio.")
        if not callable(self.start) and self.start not in ("generator", "previous"):
            raise ValueError(f"start={self.start!r}: expected 'generator', 'previous', or a function that returns one.")
        for name, allowed in (("data", ("round", "all")), ("score", ("ratio", "failures"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected {allowed[0]!r} or {allowed[1]!r}.")

    def learn(self, evidence: Evidence, *, seed: int) -> Score:
        """The score under a failure model trained on the failures."""
        model = self._start(evidence)
        self.training(model, self._failures(evidence), seed=seed)
        return self._scored(evidence.generator, model)

    def stages(self, evidence: Evidence, epochs: Collection[int], *, seed: int) -> dict[int, Score]:
        """The scores after so many epochs of one training, bit for bit those of :meth:`learn` with so many."""
        model, wanted = self._start(evidence), {self.training.epochs, *epochs}
        found: dict[int, Score] = {0: self._scored(evidence.generator, model.copy())} if 0 in wanted else {}

        def keep(event: Event) -> None:
            if round(event.epoch) in wanted:
                found[round(event.epoch)] = self._scored(evidence.generator, model.copy())

        keep.events = ("epoch",)  # type: ignore[attr-defined]
        longest = replace(self.training, epochs=max(wanted))
        longest(model, self._failures(evidence), seed=seed, callbacks=[keep])
        return {self.training.epochs: found[self.training.epochs]} | found

    def _failures(self, evidence: Evidence) -> Tensor:
        return evidence.failures if self.data == "round" else torch.cat([evidence.earlier, evidence.failures])

    def _scored(self, generator: Generator, failures: Generator) -> Score:
        """The score that two models make."""
        failures.requires_grad_(False)
        if self.score == "failures":
            return FailureLikelihood(failures, kappa=self.kappa)
        return LikelihoodRatio(generator, failures, kappa=self.kappa)

    def parts(self) -> Mapping[str, Generator]:
        """A fresh failure model, where a function makes it."""
        return {"failures": self.start()} if callable(self.start) else {}

    def _start(self, evidence: Evidence) -> Generator:
        if callable(self.start):
            model = self.start()
        elif self.start == "previous" and isinstance(evidence.previous, LikelihoodRatio | FailureLikelihood):
            model = evidence.previous.failures.copy()
        else:
            model = evidence.generator.copy()
        return model.requires_grad_(True)

    def describe(self) -> dict[str, Any]:
        """Name and fields, for JSON."""
        start = getattr(self.start, "__qualname__", repr(self.start)) if callable(self.start) else self.start
        fields = {"kappa": self.kappa, "start": start, "data": self.data, "score": self.score}
        return {"filter": type(self).__name__, "training": self.training.describe()} | fields


@dataclass(frozen=True)
class RandomFilter(Filter):
    """A filter that knows nothing: a random set of candidates, which says what distillation alone gains."""

    def learn(self, evidence: Evidence, *, seed: int) -> Score:
        """A score that is a hash of the candidate."""
        return RandomScore(integer("seed", seed, 0))
