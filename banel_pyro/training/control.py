"""Controllers of λ: it moves until a number that the run logs has reached a target.

Raising λ narrows the posterior: the guide's entropy falls, its divergence from the prior grows. At temperature
T = 1 - λ a Gaussian posterior of d dimensions has entropy H(0) + (d/2) log T, so that the step that closes a gap is

    log T  ←  log T + (2/d) (target - H),

of which a controller takes a small part at each log point: dual ascent on the constraint H = target, in the coordinate
in which a Gaussian's entropy is a straight line. T stays positive, so λ never reaches 1, where a continuous site would
collapse: this is the safe way to ask for a sharp posterior.

To add one: a subclass of ``Controller`` with :meth:`~Controller.gap`, a line in ``CONTROLLERS``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from banel_pyro.checks import integer, number
from banel_pyro.plates import DataPlate
from banel_pyro.terms import LossTerms

__all__ = ["CONTROLLERS", "Controlled", "Controller", "TargetEntropy", "TargetRate", "TargetSpread"]

MOST = 1.0
"""Largest gap that is acted on, in nats per latent dimension: T moves by a factor of e² in ``over`` steps at most."""


@dataclass(frozen=True, kw_only=True)
class Controller(ABC):
    """What moves λ, given to ``fit(lam=...)`` in the place of a schedule. It holds no state: a run does.

    λ is moved at log points, where terms are read in any case, and is part of the run's checkpoints.

    Args:
        per: whether ``nats`` are those of a data point, or of all data together.
        over: steps in which a gap is closed, if the posterior follows at once. It should be at least twice as many as
            the optimiser takes to follow λ, or λ swings.
        start: λ at the first step.
        lam_min: smallest λ.
        lam_max: largest λ, less than 1.

    Raises:
        TypeError, ValueError: for arguments that are no numbers, or out of order.
    """

    per: Literal["datum", "total"] = "datum"
    over: int = 500
    start: float = 0.0
    lam_min: float = -4.0
    lam_max: float = 0.99

    def __post_init__(self) -> None:
        kind = type(self).__name__
        if self.per not in ("datum", "total"):
            raise ValueError(f"{kind}: per={self.per!r}: expected 'datum' or 'total'. Write one of the two.")
        integer(f"{kind}: over", self.over)
        for name in ("start", "lam_min", "lam_max"):
            number(f"{kind}: {name}", getattr(self, name))
        if not self.lam_min <= self.start <= self.lam_max < 1:
            raise ValueError(
                f"{kind}: lam_min={self.lam_min}, start={self.start}, lam_max={self.lam_max}: expected them in this "
                "order, and lam_max less than 1, where a continuous site has no optimum."
            )

    @abstractmethod
    def gap(self, terms: LossTerms, dimensions: float) -> float:
        """By how much the entropy is too small, in nats per data point; negative if it is too large.

        Args:
            terms: the last logged ones, per data point.
            dimensions: latent numbers per data point.
        """

    def __call__(self, step: int, last_terms: LossTerms | None = None) -> float:
        """The λ to begin with; in a run :class:`Controlled` says the one of the step."""
        return self.start

    def config(self) -> dict[str, Any]:
        """What JSON can hold of it: the name of its class under "class", and its arguments."""
        return {"class": type(self).__name__} | asdict(self)

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> Controller:
        """The controller that :meth:`config` told of; class names are looked up, nothing is evaluated.

        Raises:
            TypeError, ValueError: for an unknown class, or arguments that it refuses.
        """
        cls = CONTROLLERS.get(str(config.get("class")))
        if cls is None:
            raise ValueError(f"config={config!r}: expected a 'class' that is one of {', '.join(CONTROLLERS)}.")
        return cls(**{name: value for name, value in config.items() if name != "class"})


@dataclass(frozen=True)
class TargetEntropy(Controller):
    """Moves λ until the guide's entropy is ``nats``: of a whole data point, over all its latents.

    Args:
        nats: the entropy to reach (Shannon's, nats). In the constrained space of the model's sites, as in the history.
        per, over, start, lam_min, lam_max: as in :class:`Controller`.

    Example:
        >>> TargetEntropy(-3.0, over=1000)
        TargetEntropy(per='datum', over=1000, start=0.0, lam_min=-4.0, lam_max=0.99, nats=-3.0)
    """

    nats: float

    def __post_init__(self) -> None:
        super().__post_init__()
        number(f"{type(self).__name__}: nats", self.nats)

    def gap(self, terms: LossTerms, dimensions: float) -> float:
        """target - H."""
        return self.nats - float(terms.entropy)


@dataclass(frozen=True)
class TargetRate(Controller):
    """Moves λ until the divergence of the guide from the prior, the rate, is ``nats``.

    Args:
        nats: the KL to reach (nats, more than 0).
        per, over, start, lam_min, lam_max: as in :class:`Controller`.
    """

    nats: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if number(f"{type(self).__name__}: nats", self.nats) <= 0:
            raise ValueError(f"{type(self).__name__}: nats={self.nats}: expected more than 0, as a KL is.")

    def gap(self, terms: LossTerms, dimensions: float) -> float:
        """KL - target: a rate that is too high is an entropy that is too small."""
        return float(terms.kl) - self.nats


@dataclass(frozen=True)
class TargetSpread(Controller):
    """Moves λ until the posterior is ``ratio`` times as wide as that at λ = 0, in the geometric mean of its dimensions.

    The entropy to reach is ``entropy`` + d log ratio. It starts at λ = 1 - ratio², which is where a Gaussian posterior
    has that width, and no other.

    Args:
        ratio: the width, over that at λ = 0 (more than 0).
        entropy: the entropy of the fit at λ = 0 (nats, in the unit ``per``), from its history.
        per, over, lam_min, lam_max: as in :class:`Controller`.
        start: λ at the first step; by default 1 - ratio², within the bounds.
    """

    ratio: float
    entropy: float
    start: float = field(default=math.nan, kw_only=True)

    def __post_init__(self) -> None:
        number(f"{type(self).__name__}: entropy", self.entropy)
        if number(f"{type(self).__name__}: ratio", self.ratio) <= 0:
            raise ValueError(f"{type(self).__name__}: ratio={self.ratio}: expected more than 0, a width.")
        if math.isnan(self.start):
            start = min(max(1.0 - self.ratio**2, self.lam_min), self.lam_max)
            object.__setattr__(self, "start", start)
        super().__post_init__()

    def gap(self, terms: LossTerms, dimensions: float) -> float:
        """entropy + d log ratio - H."""
        return self.entropy + dimensions * math.log(self.ratio) - float(terms.entropy)


CONTROLLERS: dict[str, type[Controller]] = {cls.__name__: cls for cls in (TargetEntropy, TargetRate, TargetSpread)}


class Controlled:
    """A controller at work in one run: the schedule that the loop asks, with a state that goes into its checkpoints.

    Args:
        controller: the controller.
        plate: the data plate.
        sizes: latent numbers of each density, per data point.

    ``bounds`` are those of λ: the controller's own, unless a run went wrong within them.
    """

    def __init__(self, controller: Controller, plate: DataPlate, sizes: Mapping[str, float]) -> None:
        self.controller, self.lam = controller, float(controller.start)
        self.bounds = (controller.lam_min, controller.lam_max)
        self._rows = plate.size if controller.per == "total" and plate.name is not None else 1
        self._dimensions = sum(sizes.values())

    def __call__(self, step: int, last_terms: LossTerms | None = None) -> float:
        """λ, until the next log point."""
        return self.lam

    def observe(self, terms: LossTerms, steps: int) -> None:
        """Move λ at a log point.

        Args:
            terms: the mean of the steps since the last one, per data point.
            steps: how many those were.
        """
        rows, dimensions, control = self._rows, self._dimensions, self.controller
        whole = terms.map(lambda term: rows * term)
        gap = control.gap(whole, rows * dimensions) / (rows * dimensions)
        if not math.isfinite(gap):
            raise ValueError(
                f"lam={control!r}: what it looks at is not known of this pair (entropy {whole.entropy}, KL {whole.kl} "
                "nats). Where sites of the model are summed out, use TargetEntropy."
            )
        log_t = math.log1p(-self.lam) + 2.0 * steps / control.over * min(max(gap, -MOST), MOST)
        # what is clamped is all the state there is: λ leaves a bound with the first gap of the other sign
        self.lam = min(max(-math.expm1(log_t), self.bounds[0]), self.bounds[1])

    def damp(self, factor: float, lam: float) -> None:
        """Move λ nearer to 0, and keep it nearer than it was where a run went wrong.

        Args:
            factor: of λ, and of the λ below, which is then the bound on its side of 0.
            lam: where the run went wrong.
        """
        low, high = self.bounds
        if lam > 0:
            high = max(min(high, factor * lam), low)
        elif lam < 0:
            low = min(max(low, factor * lam), high)
        self.bounds = (low, high)
        self.lam = min(max(factor * self.lam, low), high)
