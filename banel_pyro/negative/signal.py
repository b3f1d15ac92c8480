"""What can be known without a success: failures that were held out, against fresh draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scipy.stats import norm  # type: ignore[import-untyped]
from torch import Tensor

from banel_pyro.checks import integer, probability
from banel_pyro.negative.region import Region
from banel_pyro.negative.score import Score
from banel_pyro.negative.threshold import filter_factor

__all__ = ["HeldOut", "chosen_region", "held_out_signal"]


@dataclass(frozen=True)
class HeldOut:
    """Failures that the failure model is not trained on, and what is done with them.

    Args:
        fraction: of the failures of a round.
        patience: stop after so many rounds in a row whose signal is within or below two standard errors; None
            never stops.
        epochs: of the failure model, to choose among in every round by the signal. One training passes through all of
            them.
        factors: filter factors f, to choose among with them. Where no signal is above its error, the epochs
            of the filter and the factor of the run are taken.

    Raises:
        TypeError, ValueError: for options out of range.
    """

    fraction: float = 0.2
    patience: int | None = None
    epochs: tuple[int, ...] = ()
    factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        probability("fraction", self.fraction)
        if self.patience is not None:
            integer("patience", self.patience)
        for count in self.epochs:
            integer("epochs", count, 0)
        for factor in self.factors:
            filter_factor(factor)

    @property
    def chooses(self) -> bool:
        """Whether there is anything to choose among."""
        return bool(self.epochs or self.factors)

    def count(self, failures: int) -> int:
        """How many of so many failures are held out: at least one is left to train on."""
        return max(0, min(round(self.fraction * failures), failures - 1))

    def stops(self, rows: list[dict[str, Any]]) -> bool:
        """Whether rounds in a row have learnt nothing that held-out failures would show."""
        if self.patience is None or len(rows) < self.patience:
            return False
        last = rows[-self.patience :]
        return all(r.get("signal", math.inf) <= r.get("signal_errors", 2.0) * r.get("signal_stderr", 0.0) for r in last)


def held_out_signal(region: Region, *, trained: Tensor, held_out: Tensor, fresh: Tensor) -> dict[str, float]:
    r"""How much more of the failures than of fresh draws a region rejects.

    .. math::
        \text{signal} = P(\text{reject} \mid \text{held-out failure}) - P(\text{reject} \mid \text{fresh draw})

    In expectation it is :math:`SR\,[P(\text{reject}|r = 0) - P(\text{reject}|r = 1)]`, since fresh draws are failures
    but for the success rate SR: where successes are rare, it cannot differ from 0 by more than SR.

    Args:
        region: whose failure model was trained on ``trained``.
        trained: failures, shape (n, \*event_shape).
        held_out: failures that it has not seen.
        fresh: draws that were not asked.

    Returns:
        ``rejected_trained``, ``rejected_held_out``, ``rejected_fresh``, ``signal``, ``signal_stderr`` (binomial).
    """
    rates = {name: 1 - region.acceptance(x).value for name, x in
             (("trained", trained), ("held_out", held_out), ("fresh", fresh))}  # fmt: skip
    variance = sum(rates[n] * (1 - rates[n]) / len(x) for n, x in (("held_out", held_out), ("fresh", fresh)))
    signal = {"signal": rates["held_out"] - rates["fresh"], "signal_stderr": math.sqrt(variance)}
    return {f"rejected_{name}": value for name, value in rates.items()} | signal


def chosen_region(
    scores: Mapping[int, Score], factors: Sequence[float], *, default: tuple[int, float], held_out: Tensor,
    fresh: Tensor, ties: Literal["accept", "reject"] = "accept",
) -> tuple[Region, dict[str, Any]]:  # fmt: skip
    r"""The region with the largest signal, or the default one if no signal is above its error.

    One signal has to be above two standard errors, the largest of k above as many as a k-th of that probability asks
    for (Bonferroni).

    Args:
        scores: by epochs of the failure model.
        factors: filter factors.
        default: the epochs and the factor that are taken without a signal.
        held_out: failures that the scores were not trained on, shape (n, \*event_shape).
        fresh: draws that were not asked; they place the quantiles.
        ties: as in :meth:`Region.at_quantile`.

    Returns:
        The region, with ``chosen_epochs``, ``chosen_factor``, ``signals``, rows of epochs, factor, signal and
        error, and ``signal_errors``, how many errors the largest had to be above.
    """
    found: dict[tuple[int, float], Region] = {}
    rows = []
    for epochs, score in scores.items():
        for factor in factors:
            region = found[epochs, factor] = Region.at_quantile(score, fresh, factor, ties=ties)
            told = held_out_signal(region, trained=held_out, held_out=held_out, fresh=fresh)
            rows.append((epochs, factor, told["signal"], told["signal_stderr"]))
    best = max(rows, key=lambda row: row[2])
    errors = float(norm.isf(norm.sf(2) / len(rows)))  # Bonferroni: the largest of many is large by chance
    choice = (best[0], best[1]) if best[2] > errors * best[3] else default
    record = {"chosen_epochs": choice[0], "chosen_factor": choice[1], "signal_errors": errors}
    return found[choice], record | {"signals": [list(row) for row in rows]}
