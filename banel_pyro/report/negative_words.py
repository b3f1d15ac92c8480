"""What runs of learning from failures came to, in sentences, and what a reader of their numbers has to know."""

from __future__ import annotations

import math
from statistics import median

from banel_pyro.report.negative_numbers import Method, NegativeReport, times, typical
from banel_pyro.report.negative_runs import NegativeRun

__all__ = ["findings", "notes"]

_EXACT = "Success rates are exact, from the list of all successes."

_KEPT = "Where regions are kept, P(accept) is estimated from draws, and with it the success rates outside of them."

_DRAWN = (
    "Success rates are from fresh draws, outside of the budget, with Clopper and Pearson's {percent:g} % intervals; "
    "that at the start is from the {draws:,} draws of all seeds together. The highest of several rates measured with "
    "error is too high: best so far is no estimate."
)

_PRODUCTS = (
    "∏ filter gain is the product over rounds of P(accept | success) ÷ P(accept), and ∏ distillation gain what "
    "distillation made of it: together they are the gain of a run over its own start."
)

_FEW = "Both rest on the few successes among the draws, and are not known after a round that had none among them."

_NONE = "Where none of n draws succeeded, comparisons take the rate as 1 in n, which is more than it may be."

_PAIRED = (
    "Comparisons are of log success rates at the end, paired by seed: Student's t, and Wilcoxon's signed ranks, both "
    "two-sided. A method that learns nothing enters with the rate of all starts, which is its own at the end. Seeds "
    "without a difference are left out of the ranks; an exact rate of 0 leaves only the ranks."
)


def findings(report: NegativeReport) -> list[str]:
    """What came of it, a sentence for each method.

    Args:
        report: what the runs came to.
    """
    if report.base is None:
        return ["The task measures no success rate, so that only the successes seen while asking can be counted."]
    return [_finding(report, method) for method in report.methods if method.final]


def _finding(report: NegativeReport, method: Method) -> str:
    final, nre = typical(method.final.values(), median), max(run.nre[-1] for run in method.runs)
    seeds = f" (median of {len(method.final)} seeds)" if len(method.final) > 1 else ""
    text = f"{method.name} ends at a success rate of {final}{seeds}, {times(final, report.base)} the {report.base}"
    text += f" at the start, after {nre:,} reward evaluations"
    if (against := report.comparisons.get(method.name)) is not None and not math.isnan(against.times):
        text += f"; {report.methods[0].name} has {against.times:.3g} times its success rate"
        if not math.isnan(against.t_p):
            text += f" (95 % interval {against.low:.3g} to {against.high:.3g}, paired over {against.pairs} seeds)"
    return f"{text}."


def notes(report: NegativeReport) -> list[str]:
    """What a reader of the tables has to know, a sentence each.

    Args:
        report: what the runs came to.
    """
    found = [] if report.base is None else [_EXACT, _PRODUCTS]
    if report.base is not None and report.base.draws:
        found = [_DRAWN.format(draws=report.base.draws, percent=100 * report.confidence), f"{_PRODUCTS} {_FEW}"]
    elif any(map(_keeps_regions, report.runs)):
        found.append(_KEPT)
    if any(rate.unseen for run in report.runs for rate in run.rates):
        found.append(_NONE)
    if report.comparisons:
        found.append(_PAIRED)
    if chosen := [f"{run.name}: {told}" for run in report.runs if (told := _chosen(run))]:
        found.append(f"Chosen by held-out failures, epochs and factor of each round: {'; '.join(chosen)}.")
    budgets = sorted({run.config["budget"] for run in report.runs})
    if len(budgets) > 1:
        found.append(f"The runs have different budgets: {', '.join(f'{b:,}' for b in budgets)}.")
    if unfinished := [f"{run.name} ({len(run.rows)} rounds)" for run in report.runs if not run.stopped]:
        found.append(f"Not at their end, and shown as far as they came: {'; '.join(unfinished)}.")
    if report.waiting:
        found.append(f"Not shown, since no round has ended: {'; '.join(report.waiting)}.")
    return found


def _chosen(run: NegativeRun) -> str:
    """Epochs and factors that were chosen, round by round."""
    rows = [row for row in run.rows if row.get("chosen_factor") is not None]
    return ", ".join(f"{row.get('chosen_epochs')} and {row['chosen_factor']:g}" for row in rows)


def _keeps_regions(run: NegativeRun) -> bool:
    distillation = run.config.get("distillation")
    return run.config.get("filter") is not None and (distillation is None or bool(distillation.get("keep_regions")))
