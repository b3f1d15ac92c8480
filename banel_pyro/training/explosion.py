"""Gradients that explode: finite still, but far beyond their running level and growing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyro

from banel_pyro.checks import integer, number
from banel_pyro.training.stopping import at_present_lam, columns_of

if TYPE_CHECKING:
    from banel_pyro.training.loop import Loop

__all__ = ["ExplosionDetector", "ExplosionError", "largest_gradient"]


class ExplosionError(ArithmeticError):
    """The gradient explodes: the optimiser's steps lead ever further away.

    Args:
        step: the step at which it was noticed.
        report: the figures, in one sentence.
        parameter: the parameter with the largest share of the squared norm, or None if there is none.
        share: its share, 0 to 1.
        since: the step from which on it went wrong.

    ``summary`` is the message without its advice.
    """

    def __init__(self, step: int, report: str, parameter: str | None, share: float, since: int) -> None:
        self.step, self.parameter, self.share, self.since = step, parameter, share, since
        whose = "" if parameter is None else f"; {share:.0%} of its square is that of parameter '{parameter}'"
        self.summary = f"step {step}: the gradient explodes. {report}{whose}"
        super().__init__(
            f"{self.summary}. Use a smaller lr, or clip_norm=; on_fault='rollback' to go on from an earlier state with "
            "a smaller lr; or explosion=None in fit to go on regardless."
        )


@dataclass(frozen=True)
class ExplosionDetector:
    r"""Tells a gradient that runs away from one that is only large.

    With :math:`g_t` the gradient's norm at log point t (of the total loss, before ``clip_norm``), it fires when

    .. math::
        g_t > g_{t-1} > \dots > g_{t-\text{rises}}, \qquad
        \min(g_t, \dots, g_{t-\text{rises}+1}) > \text{factor} \cdot
        \operatorname{median}(g_{t-\text{window}}, \dots, g_{t-\text{rises}}),

    and the untempered ELBO is lower, and these norms larger, than ever before in the run: once a run has converged a
    median is next to nothing, and harmless bursts of Adam are many times that. The median is over log points whose λ
    is within ``tolerance`` of the present one. Gradient descent on a quadratic of curvature L with a rate above 2/L
    grows by \|1 - lr L\| a step, which it sees; an untroubled run comes nowhere near: the pairs of ``models/`` stay
    below a ratio of 10, and where it rises three times running, their ELBO is not at its worst. Spikes between log
    points are not seen: against those there is ``clip_norm``.

    Args:
        factor: times the median, from which on a norm is far beyond it.
        rises: log points at which the norm has risen, one after the other.
        window: log points that are looked back on.
        tolerance: of λ, within which log points are compared.

    Raises:
        TypeError, ValueError: for a factor of 1 or less, rises below 1, a window of fewer than two rises, or a
            tolerance below 0.

    Example:
        >>> norms = [1.0, 1.0, 1.0, 1e4, 1e5, 1e6]
        >>> rows = [{"step": i, "lam": 0.0, "elbo": -norm, "grad_norm": norm} for i, norm in enumerate(norms)]
        >>> ExplosionDetector().check(rows)[0]
        2
    """

    factor: float = 1000.0
    rises: int = 3
    window: int = 100
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        name = type(self).__name__
        integer(f"{name}: rises", self.rises)
        integer(f"{name}: window", self.window, 2 * self.rises)
        if number(f"{name}: factor", self.factor) <= 1:
            raise ValueError(f"{name}: factor={self.factor!r}: expected more than 1. Leave it out for the default.")
        if number(f"{name}: tolerance", self.tolerance) < 0:
            raise ValueError(f"{name}: tolerance={self.tolerance!r}: expected at least 0. Leave it out.")

    def check(self, history: pd.DataFrame | Sequence[Mapping[str, Any]]) -> tuple[int, str] | None:
        """Look at the history so far.

        Args:
            history: columns ``step``, ``elbo``, ``grad_norm`` and ``lam`` or ``lam[site]``, a row per log point.

        Returns:
            The last step at which the norm was no more than its median, and a sentence with the figures; or None.
        """
        records: Any = history.to_dict("records") if isinstance(history, pd.DataFrame) else history
        rows: Sequence[Mapping[str, Any]] = records[-self.window :]
        if len(rows) < 2 * self.rises or not _rising([row["grad_norm"] for row in rows[-self.rises - 1 :]]):
            return None  # as nearly always, and soon said
        least = min(row["grad_norm"] for row in rows[-self.rises :])
        if least <= max(row["grad_norm"] for row in records[: -self.rises]):
            return None
        if not records[-1]["elbo"] < min(row["elbo"] for row in records[:-1]):
            return None
        columns = at_present_lam(columns_of(rows), self.tolerance)
        norms = columns["grad_norm"]
        if len(norms) < 2 * self.rises:
            return None
        before = norms[: -self.rises]
        median = float(np.median(before))
        if not 0 < self.factor * median < least:
            return None
        since = int(columns["step"][(before <= median).nonzero()[0][-1]])
        return since, (
            f"Its norm, {norms[-1]:.3g}, has risen at {self.rises} log points running, to {norms[-1] / median:.3g} "
            f"times its median over the {len(before)} before, and the untempered ELBO is lower than ever"
        )


def _rising(norms: Sequence[float]) -> bool:
    # a norm may overflow where the gradient does not
    return all(after > before or math.isinf(after) for before, after in pairwise(norms))


def largest_gradient(loop: Loop) -> tuple[str | None, float]:
    """The parameter with the largest share of the gradient's squared norm, and that share.

    Computed anew, on the rows of the loop's next step at the λ of its last. The loop is left as it was.
    """
    before = loop.state()
    with pyro.validation_enabled(False):
        index = loop.index()
        loop.gradients(index, loop.picked(index))
    gradients = {name: p.grad for name, p in loop.parameters.trained().items() if p.grad is not None}
    squares = {name: float(gradient.double().square().sum()) for name, gradient in gradients.items()}
    loop.load(before, rollback=True)
    name = max(squares, key=lambda name: squares[name], default=None)
    total = sum(squares.values())
    return name, 0.0 if name is None or not total > 0 else squares[name] / total
