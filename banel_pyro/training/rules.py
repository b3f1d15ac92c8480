"""When to stop a run for want of progress: rules on the untempered ELBO, pure functions of the history.

Each is a frozen dataclass that ``fit(callbacks=[...])`` takes. The penalised loss is never looked at: it falls
with λ whatever becomes of the fit.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, ClassVar, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from banel_pyro.training.callbacks import Event
from banel_pyro.training.stopping import noise_variance

__all__ = ["Cusum", "Patience", "Plateau", "StoppingRule"]

Array: TypeAlias = NDArray[np.float64]
History: TypeAlias = pd.DataFrame | Sequence[Mapping[str, Any]]

_COLUMNS = ("val_elbo", "elbo")


@dataclass(frozen=True, kw_only=True)
class StoppingRule(ABC):
    """What the rules share: which column they read, and that λ has settled.

    Args:
        column: ``"val_elbo"``, the untempered ELBO of held-out rows; or ``"elbo"``, that of the training rows, where
            nothing is held out: a bound that goes on rising while the decoder overfits.
        tolerance: of λ: only the history since λ came this near to its present value is looked at.
    """

    events: ClassVar[tuple[str, ...]] = ("evaluation",)

    column: str = "val_elbo"
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        if self.column not in _COLUMNS:
            raise ValueError(
                f"{type(self).__name__}: column={self.column!r}: expected 'val_elbo' or 'elbo'. The loss, and what is "
                "in it, changes with lam: nothing is stopped on it."
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "column":
                continue
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"{type(self).__name__}: {field.name}={value!r}: expected a number.")
            least = 1 if field.type == "int" else 0
            if not least <= float(value) < math.inf or (least and not float(value).is_integer()):
                kind = "an integer of at least 1" if least else "a finite number of at least 0"
                raise ValueError(
                    f"{type(self).__name__}: {field.name}={value!r}: expected {kind}. Leave it out for the default."
                )

    def check(self, history: History) -> str | None:
        """Look at the history so far.

        Args:
            history: columns ``step``, ``lam`` or ``lam[site]``, and the one that is read; a row per log point.

        Returns:
            Why the run is to stop, or None.

        Raises:
            ValueError: if the history has no such column.
        """
        table = history if isinstance(history, pd.DataFrame) else pd.DataFrame(list(history))
        if self.column not in table:
            raise ValueError(
                f"{type(self).__name__}: the history has no column '{self.column}': expected held-out rows. Give fit "
                "validation=, or the rule column='elbo'."
            )
        table = _since_lam(table, self.tolerance).dropna(subset=[self.column])
        return self._judge(table["step"].to_numpy(float), table[self.column].to_numpy(float))

    def __call__(self, event: Event) -> str | None:
        """As a callback of :func:`~banel_pyro.fit`, at every evaluation."""
        return self.check(event.result.history)

    @abstractmethod
    def _judge(self, steps: Array, elbo: Array) -> str | None:
        """Why to stop, given the ELBO at each evaluation."""


@dataclass(frozen=True, kw_only=True)
class Patience(StoppingRule):
    """Stops when the best ELBO is ``evaluations`` evaluations old.

    Simple, and fooled by noise: one lucky evaluation early on is hard to beat.

    Args:
        evaluations: to wait for a better one.
        gain: nats (per datum with a data plate) by which it has to be better.
        column: as for :class:`StoppingRule`.
        tolerance: as for :class:`StoppingRule`.

    Example:
        >>> rule = Patience(evaluations=2)
        >>> rule.check([{"step": s, "val_elbo": e} for s, e in enumerate([-3.0, -1.0, -2.0])])
        >>> rule.check([{"step": s, "val_elbo": e} for s, e in enumerate([-3.0, -1.0, -2.0, -1.5])])
        'val_elbo is no better than -1 at step 1, for 2 evaluations'
    """

    evaluations: int = 5
    gain: float = 0.0

    def _judge(self, steps: Array, elbo: Array) -> str | None:
        best = 0
        for i, value in enumerate(elbo):
            if value > elbo[best] + self.gain:
                best = i
        waited = len(elbo) - 1 - best
        if waited < self.evaluations:
            return None
        return f"{self.column} is no better than {elbo[best]:g} at step {steps[best]:g}, for {waited} evaluations"


@dataclass(frozen=True, kw_only=True)
class Plateau(StoppingRule):
    """Stops when the mean of the last ``window`` evaluations is no more than ``gain`` above that of those before.

    Args:
        window: evaluations in each mean.
        gain: nats (per datum with a data plate).
        column: as for :class:`StoppingRule`.
        tolerance: as for :class:`StoppingRule`.
    """

    window: int = 5
    gain: float = 0.0

    def _judge(self, steps: Array, elbo: Array) -> str | None:
        if len(elbo) < 2 * self.window:
            return None
        before, now = elbo[-2 * self.window : -self.window].mean(), elbo[-self.window :].mean()
        if not now - before <= self.gain:
            return None
        return f"{self.column} is {now:g} on average since step {steps[-self.window]:g}, after {before:g} before"


@dataclass(frozen=True, kw_only=True)
class Cusum(StoppingRule):
    r"""Stops when gains have been short of the noise for too long: a one-sided CUSUM (Page 1954).

    With :math:`z_t` the increment of the ELBO over its standard deviation,

    .. math::
        S_t = \max(0, S_{t-1} + k - z_t), \qquad \text{stop when } S_t > h.

    The standard deviation is that of two evaluations around a slow trend, from second differences. An ELBO that has
    stopped rising is stopped after about h/k evaluations; one that gains 2k standard deviations an evaluation goes on:
    at the defaults a run of 100 evaluations is stopped falsely less than 1 time in 100 where their noise is
    independent, about 1 time in 7 where the *increments* are, so that the ELBO itself wanders. A rise slower than k
    standard deviations an evaluation is taken for none: evaluate less often, or take a smaller ``slack``.

    Args:
        slack: k, in standard deviations an evaluation.
        threshold: h.
        least: evaluations before which nothing is said, since the noise is not known.
        column: as for :class:`StoppingRule`.
        tolerance: as for :class:`StoppingRule`.
    """

    slack: float = 0.5
    threshold: float = 5.0
    least: int = 10

    def _judge(self, steps: Array, elbo: Array) -> str | None:
        if len(elbo) < max(self.least, 4):
            return None
        sd = math.sqrt(2 * noise_variance(elbo))
        tiny = 1e-12 * (1 + float(np.abs(elbo).max()))  # an ELBO without noise
        short = np.concatenate([[0.0], np.cumsum(self.slack - np.diff(elbo) / max(sd, tiny))])
        since = len(short) - 1 - int(np.argmin(short[::-1]))  # where S was last 0
        score = float(short[-1] - short[since])
        if not score > self.threshold:
            return None
        return (
            f"{self.column} has gained less than {self.slack:g} of its noise ({sd:.2g}) an evaluation since step "
            f"{steps[since]:g} (CUSUM {score:.1f} > {self.threshold:g})"
        )


def _since_lam(table: pd.DataFrame, tolerance: float) -> pd.DataFrame:
    """The rows since λ came near its present value."""
    names = [name for name in table if name == "lam" or str(name).startswith("lam[")]
    if not names or not len(table):
        return table
    lams = table[names].astype(float).fillna(0.0).to_numpy()
    far = (np.abs(lams - lams[-1]) > tolerance).any(axis=1).nonzero()[0]
    return table.iloc[int(far[-1]) + 1 :] if len(far) else table
