"""From a number to green, amber or red: what each check of a posterior looks at, and where it draws the line."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import pandas as pd
from scipy.special import ndtr, ndtri  # type: ignore[import-untyped]

from banel_pyro.diagnostics.calibrated import Calibration

__all__ = ["Check", "Verdict", "by_active_units", "by_calibration", "by_gap", "by_k_hat", "by_lam", "by_reference"]
__all__ += ["by_spread", "by_training", "not_judged", "tempered_coverage", "worst"]

Verdict: TypeAlias = Literal["green", "amber", "red"]

ORDER: tuple[Verdict, ...] = ("green", "amber", "red")

COVERED, MISSED = 0.90, 0.80
"""Coverage of 95 % intervals that is green, and below which it is red: they miss twice, and four times, too often."""
WIDE = 1.25
"""Sd over the right one above which a posterior is too wide; 95 % intervals then cover 98.6 %."""
SETTLED = 0.25
"""Nats by which the ELBO may still be moving, from one quarter of the run to the next."""
NOISY = 1.0
"""Nats of noise in that above which nobody can tell."""
FEW = 10
"""Simulations below which a calibration says nothing."""
NO_KL = 0.1
"""Nats of KL to the prior below which a row's posterior is its prior."""
GAP = 1.0
"""Nats between ELBO and evidence."""
HEAVY = 1.0
"""k-hat above which weights have no mean: what they correct is not even close."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Args:
        name: what, as a reader knows it.
        verdict: ``"green"``, ``"amber"`` or ``"red"``; amber too where it could not be judged.
        found: what was found, in words, with the number.
        value: the number; NaN where it could not be judged.
        threshold: up to which, or from which, it is green; NaN where there is none.
        limit: the same in words.
        meaning: what that says, in a sentence.
        advice: what to try; empty where the check is green.
    """

    name: str
    verdict: Verdict
    found: str
    value: float
    threshold: float
    limit: str
    meaning: str
    advice: str = ""


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of some verdicts; amber if there are none."""
    return max(verdicts, key=ORDER.index, default="amber")


def not_judged(name: str, why: str, advice: str) -> Check:
    """A check that could not be made: amber, since nobody has looked."""
    return Check(name, "amber", "not judged", math.nan, math.nan, "it can be judged", why, advice)


def _check(
    name: str, verdict: Verdict, found: str, value: float, threshold: float, limit: str, meaning: str, advice: str
) -> Check:
    return Check(name, verdict, found, value, threshold, limit, meaning, "" if verdict == "green" else advice)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def by_training(rise: float, noise: float, fall: float) -> Check:
    """Whether training had come to an end, and had not gone past its best.

    Args:
        rise: of the untempered ELBO from the third quarter of the run to the last, in nats of one posterior.
        noise: standard error of that.
        fall: of the held-out ELBO from its best, beyond its noise, in nats; NaN without held-out rows.
    """
    name, limit = "training", f"the ELBO moves by at most {SETTLED:g} nats, or what noise of {NOISY:g} nat may be"
    if fall > SETTLED:
        return Check(
            name, "amber", f"the held-out ELBO has fallen by {fall:.2f} nats from its best", fall, SETTLED, limit,
            "The fit has become worse on rows that it was not trained on.",
            "Stop earlier (Patience); if the model learns, take a smaller one.",
        )  # fmt: skip
    moved = f"the ELBO has {'risen' if rise >= 0 else 'fallen'} by {abs(rise):.2f} nats in the last quarter"
    settled = abs(rise) <= max(SETTLED, 2 * noise)
    if settled and noise > NOISY:
        return Check(
            name, "amber", f"{moved}, within noise of {noise:.2f}", rise, SETTLED, limit,
            "Its noise is too large to tell whether training has come to an end.",
            "More particles or larger batches, more steps between log points, or a learning rate that falls.",
        )  # fmt: skip
    red = abs(rise) > 10 * max(SETTLED, 2 * noise)
    return _check(
        name, "green" if settled else "red" if red else "amber", moved, rise, SETTLED, limit,
        "Checks of a posterior that is still moving are those of another one.", "Train longer, or with a smaller lr.",
    )  # fmt: skip


def by_k_hat(k_hat: float, threshold: float, rows: str = "") -> Check:
    r"""Whether the posterior is close enough to be corrected by importance weights.

    Args:
        k_hat: :math:`\\hat k`; of rows with weights of their own the value that 90 % of them stay below.
        threshold: for the number of draws.
        rows: ends what is said of it, such as ``" for 90 % of rows"``.
    """
    shown = ("∞" if k_hat > 0 else "none, the largest weights are equal") if math.isinf(k_hat) else ""
    return _check(
        "importance weights", "green" if k_hat <= threshold else "amber" if k_hat <= HEAVY else "red",
        f"k̂ = {shown or format(k_hat, '.2f')}{rows}", k_hat, threshold, f"k̂ ≤ {threshold:.2f}",
        "It judges whether a correction by weights can be trusted, not whether the spread is right.",
        "A richer guide (full rank, a flow), a smaller λ, or more draws.",
    )  # fmt: skip


def by_spread(table: pd.DataFrame, threshold: float, *, passing: float) -> Check:
    r"""Whether intervals of the guide cover what they say, by its corrected draws.

    Args:
        table: from :func:`~banel_pyro.diagnostics.stored.corrected_spread`, or with its columns ``ratio`` and
            ``coverage_95``.
        threshold: of :math:`\\hat k`.
        passing: share of the weights that pass it.
    """
    name = "spread"
    if passing < 0.5:
        return not_judged(
            name, f"Only {_percent(passing)} of the weights pass k̂ ≤ {threshold:.2f}: no corrected spread is known.",
            "Compare with a reference, such as nuts_reference, or calibrate by simulation.",
        )  # fmt: skip
    return _by_coverage(name, table, "ratio", "the corrected posterior")


def by_reference(table: pd.DataFrame) -> Check:
    """The same, by draws of a reference.

    Args:
        table: from :func:`~banel_pyro.diagnostics.compare`.
    """
    return _by_coverage("reference", table, "sd_ratio", "the reference")


def _by_coverage(name: str, table: pd.DataFrame, column: str, of: str) -> Check:
    """A verdict by the narrowest latent; where none is too narrow, by rows that are, and then by the widest."""
    table = table.dropna(subset=["coverage_95", column])
    if table.empty:
        return not_judged(name, "No latent has intervals: all are discrete, or do not vary.", "Compare probabilities.")
    coverage, ratio = table["coverage_95"], table[column]
    least, widest = str(coverage.idxmin()), str(ratio.idxmax())
    value, low = float(coverage[least]), table.get("coverage_low", coverage)
    rule = f"at least {_percent(COVERED)} are covered, and no sd is {WIDE:g} times too large"
    if value >= COVERED > MISSED > low.min():
        return Check(
            name, "amber", f"95 % intervals of {low.idxmin()} cover less than {_percent(low.min())} in a tenth of rows",
            float(low.min()), MISSED, rule, "Right on average, but not for every row.",
            "A richer guide, or a larger encoder; look at the rows with importance().",
        )  # fmt: skip
    if value >= COVERED and ratio[widest] > WIDE:
        return Check(
            name, "amber", f"{widest} is {ratio[widest]:.2f} times as wide as {of}", float(ratio[widest]), WIDE, rule,
            "The posterior is more spread out than it should be: safe, but it says less than the data do.",
            "Is λ below 0? Else train longer.",
        )  # fmt: skip
    return _check(
        name, "green" if value >= COVERED else "amber" if value >= MISSED else "red",
        f"95 % intervals of {least} cover {_percent(value)} of {of} (its sd is {ratio[least]:.2f} of the right one)",
        value, COVERED, rule, "How often the posterior is wrong where it says that it is sure.",
        "A smaller λ, a richer guide, or the corrected draws of importance().",
    )  # fmt: skip


def tempered_coverage(lam: float) -> float:
    r"""Coverage of 95 % intervals of the optimal guide at λ, where the posterior is normal: 2 Φ(1.96 √(1−λ)) − 1.

    Args:
        lam: λ, below 1.

    Example:
        >>> round(tempered_coverage(0.0), 3), round(tempered_coverage(0.4), 3)
        (0.95, 0.871)
    """
    return float(2 * ndtr(ndtri(0.975) * math.sqrt(max(1 - lam, 0.0))) - 1)


def by_lam(lam: float) -> Check:
    """What λ alone does to the spread, whatever else was measured.

    Args:
        lam: of a site at the end of the run.
    """
    value = tempered_coverage(lam)
    wide = lam < 0 and 1 - lam > WIDE**2
    verdict: Verdict = "green" if value >= COVERED and not wide else "amber" if value >= MISSED else "red"
    return _check(
        "λ", verdict, f"λ = {lam:.3g}: 95 % intervals of a normal posterior would cover {_percent(value)}", value,
        COVERED, f"at least {_percent(COVERED)} are covered",
        "λ > 0 makes a posterior overconfident, λ < 0 makes it too wide, by an amount that is known.",
        "λ = 0 where the spread itself is to be believed.",
    )  # fmt: skip


def by_gap(gap: float, stderr: float, of: str) -> Check:
    """How far the ELBO is below the evidence: an estimate, from below, of KL(q, posterior).

    Args:
        gap: in nats.
        stderr: its standard error.
        of: whose posterior, in words.
    """
    error = f" ± {stderr:.2f}" if math.isfinite(stderr) else ""
    return _check(
        "gap", "green" if gap <= GAP else "amber", f"{gap:.2f}{error} nats {of}", gap, GAP,
        f"at most {GAP:g} nat",
        "The distance of the guide to the posterior: what the ELBO lacks of log p(x), if not more.",
        "A richer guide, a smaller λ, or longer training.",
    )  # fmt: skip


def by_active_units(active: int, latents: int, kl: float) -> Check:
    """How many latent dimensions the data move.

    Args:
        active: dimensions whose posterior mean varies over rows.
        latents: all of them.
        kl: of a row's posterior to the prior, in nats, averaged over rows.
    """
    collapsed = not active and kl < NO_KL
    return _check(
        "latent dimensions", "red" if collapsed else "green" if 2 * active >= latents else "amber",
        f"{active} of {latents} carry information about the data, KL {kl:.2f} nats", active, math.ceil(latents / 2),
        "at least half carry information",
        "A dimension whose posterior is the prior says nothing about a row; with none left, it has collapsed.",
        "λ > 0, a schedule that warms the KL up, fewer dimensions, or a weaker decoder.",
    )  # fmt: skip


def by_calibration(calibration: Calibration) -> Check:
    """What simulated data say.

    Args:
        calibration: from :func:`~banel_pyro.diagnostics.calibrate`.
    """
    made, failed = calibration.num_simulations, len(calibration.failed)
    if made < FEW:
        return not_judged("calibration", f"{made} simulations are too few.", f"Run {10 * FEW} or more.")
    coverage = calibration.coverage((0.95,))["0.95"]
    least, passes = str(coverage.idxmin()), calibration.passes("spread")
    value = float(coverage[least])
    fine = passes and value >= COVERED and failed <= made / 10
    broken = f", {failed} fits broke down" if failed else ""
    return _check(
        "calibration", "green" if fine else "amber" if value >= MISSED else "red",
        f"ranks of {made} true values {'are' if passes else 'are not'} uniform; 95 % intervals of {least} cover "
        f"{_percent(value)}{broken}", value, COVERED, f"ranks are uniform, and {_percent(COVERED)} are covered",
        "Whether fits to data simulated from the model itself contain the truth as often as they say.",
        "A smaller λ, a richer guide, longer training, or more simulations.",
    )  # fmt: skip
