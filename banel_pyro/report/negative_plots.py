"""The pictures of learning from failures: what was gained, by which part, at what price, and what it rests on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from statistics import median
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from banel_pyro.report.canvas import GREY, STYLE, WIDTH, add_legend, colour, line, marker
from banel_pyro.report.negative_numbers import Method, NegativeReport
from banel_pyro.report.negative_runs import NegativeRun, Rate
from banel_pyro.report.pictures import Picture, svg_of

__all__ = ["negative_pictures"]

PARTS = {"propose": "proposing", "oracle": "oracle", "record": "record", "filter": "failure model"}
PARTS |= {"distil": "distilling", "evaluate": "success rates"}
"""Where the time of a run goes: the steps, of which ``ask`` is the oracle and the record of its answers."""


def negative_pictures(report: NegativeReport) -> list[Picture]:
    """The pictures, without those that the runs do not allow.

    Args:
        report: what the runs came to.
    """
    draw: list[Callable[[NegativeReport], Picture | None]] = [_success, _seen, _gains, _divergence, _signal, _time]
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE}):
        found = [picture(report) for picture in draw]
    return [picture for picture in found if picture is not None]


def _success(report: NegativeReport) -> Picture | None:
    """Success rate against NRE: axes for each method, a line for each seed."""
    if report.base is None:
        return None
    shown = [method for method in report.methods if method.final]
    figure = Figure((WIDTH, 0.5 + 1.75 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for i, (ax, method) in enumerate(zip(grid, shown, strict=True)):
        for run in method.runs:
            _curve(ax, run, i)
        ax.axhline(_height(report.base), color=GREY, linewidth=1, linestyle="--")
        ax.set_title(method.name)
        _log_axis(ax, *_span(rate for run in report.runs for rate in run.rates))
        ax.set_ylabel("success rate")
    grid[-1].set_xlabel("reward evaluations (NRE)")
    grid[-1].xaxis.set_major_locator(MaxNLocator(6))
    percent = f"{100 * report.confidence:g} %"
    bands = f"bands are {percent} intervals of Clopper and Pearson" if report.base.draws else "the rates are exact"
    zero = " A triangle is a rate that none of n draws showed, at 1 in n." * any(
        rate.unseen for run in report.runs for rate in run.rates
    )
    each = "; ".join(f"{run.name}: {', '.join(map(str, run.rates))}" for run in report.runs)
    return Picture(
        "How often does it succeed?",
        f"Success rate after each round, a line for each seed; {bands}. Dashed: the generator at the start.{zero}",
        f"Charts of the success rate, on a logarithmic axis, against reward evaluations, one for each method. {each}.",
        svg_of(figure),
    )


def _curve(ax: Axes, run: NegativeRun, number: int) -> None:
    """The success rate of a run against its NRE, with its intervals."""
    style: dict[str, Any] = {"color": colour(number), "linewidth": 1.2, "alpha": 0.85}
    heights = [_height(rate) for rate in run.rates]
    ax.plot(run.nre, heights, marker=marker(number), markersize=3, **style)
    if any(rate.draws for rate in run.rates):
        lows = [max(rate.low, 1e-300) for rate in run.rates]
        ax.fill_between(run.nre, lows, [rate.high for rate in run.rates], color=colour(number), alpha=0.1, linewidth=0)
    none = [(x, y) for x, y, rate in zip(run.nre, heights, run.rates, strict=True) if rate.unseen]
    if none:
        ax.plot(*zip(*none, strict=True), linestyle="", marker="v", markersize=6, markerfacecolor="white", **style)


def _seen(report: NegativeReport) -> Picture:
    """Successes among the candidates that were asked."""
    figure = Figure((WIDTH, 2.3), layout="constrained")
    ax = figure.subplots()
    for i, method in enumerate(report.methods):
        for run in method.runs:
            seen = [0, *accumulate(int(row["successes"]) for row in run.rows)]
            style: dict[str, Any] = {"color": colour(i), "linestyle": line(i), "marker": marker(i), "markersize": 3}
            ax.plot(run.nre, seen, linewidth=1.2, alpha=0.85, **style)
    ax.set(xlabel="reward evaluations (NRE)", ylabel="successes seen", ylim=(0, None))
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    add_legend(figure, [method.name for method in report.methods])
    each = "; ".join(f"{run.name}: {sum(int(row['successes']) for row in run.rows)}" for run in report.runs)
    used = any(run.config.get("use_successes") for run in report.runs)
    return Picture(
        "How many successes were found on the way?",
        "Successes among the candidates that the oracle was asked about, a line for each seed. "
        + ("They were trained on." if used else "They were kept and counted, and not trained on."),
        f"Chart of the successes seen against reward evaluations. At the end, {each}.",
        svg_of(figure),
    )


def _gains(report: NegativeReport) -> Picture | None:
    """Acceptance, filter gain and distillation gain of each round."""
    shown = [method for method in report.methods if _known(method, "acceptance")]
    if not shown:
        return None
    titles = {"acceptance": "P(accept)", "filter_gain": "filter gain", "distillation_gain": "distillation gain"}
    made = {name: title for name, title in titles.items() if any(_known(method, name) for method in shown)}
    figure = Figure((WIDTH, 0.4 + 1.75 * len(made)), layout="constrained")
    grid = figure.subplots(len(made), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (name, title) in zip(grid, made.items(), strict=True):
        for method in shown:
            _per_round(ax, report, method, name)
            if name == "filter_gain":
                _line(ax, method, "bound", {"color": GREY, "linestyle": ":", "linewidth": 1.2})
        ax.set_ylabel(title)
        if name == "acceptance":
            ax.set_ylim(0, 1.05)
        else:
            names = [name, *(["bound"] if name == "filter_gain" else [])]
            _gain_axis(ax, (v for method in shown for run in method.runs for n in names for v in run.column(n)))
    _rounds_axis(grid[-1])
    add_legend(figure, [method.name if method in shown else "" for method in report.methods])
    lost = sum(value == 0 for method in shown for run in method.runs for value in run.column("filter_gain"))
    return Picture(
        "Which part gained it?",
        "Marks are seeds, lines medians. A filter multiplies the success rate by P(accept | success) ÷ P(accept), "
        "which is at most the dotted 1 ÷ P(accept); distillation by the rest. Below the line at 1 it is a loss."
        + f" Not drawn: {lost} gains of 0, where a filter rejected all successes."
        * bool(lost),
        "Charts against the round. " + _medians(shown, made),
        svg_of(figure),
    )


def _divergence(report: NegativeReport) -> Picture | None:
    """How faithful distillation was."""
    shown = [method for method in report.methods if _known(method, "divergence")]
    if not shown:
        return None
    titles = {"divergence": "KL (nats)", "acceptance_after": "accepted after"}
    figure = Figure((WIDTH, 3.8), layout="constrained")
    grid = figure.subplots(2, 1, sharex=True)
    for ax, (name, title) in zip(grid, titles.items(), strict=True):
        for method in shown:
            _per_round(ax, report, method, name)
            if name == "acceptance_after":
                _line(ax, method, "acceptance", {"color": GREY, "linestyle": ":", "linewidth": 1.2})
        ax.set_ylabel(title)
    grid[1].set_ylim(0, 1.05)
    _rounds_axis(grid[1])
    add_legend(figure, [method.name if method in shown else "" for method in report.methods])
    return Picture(
        "Does the generator take over what the filter left?",
        "Above: the divergence of the distilled generator from the exploration posterior, on draws that it was not "
        "trained on; 0 is perfect. Below: which share of its draws the filter accepts, 1 if it has learnt all of it "
        "and the dotted P(accept) if nothing.",
        "Charts against the round. " + _medians(shown, titles),
        svg_of(figure),
    )


def _signal(report: NegativeReport) -> Picture | None:
    """What held-out failures say."""
    shown = [method for method in report.methods if _known(method, "signal")]
    if not shown:
        return None
    figure = Figure((WIDTH, 2.4), layout="constrained")
    ax = figure.subplots()
    ax.axhline(0, color=GREY, linewidth=1)
    for method in shown:
        i = report.methods.index(method)
        for k, run in enumerate(method.runs):
            shift = 0.3 * (i - (len(report.methods) - 1) / 2) + 0.2 * ((k + 0.5) / len(method.runs) - 0.5)
            x = [n + 1 + shift for n in range(len(run.rows))]
            errors = [2 * e for e in run.column("signal_stderr")]
            style: dict[str, Any] = {"color": colour(i), "marker": marker(i), "markersize": 3.5, "linewidth": 0.9}
            ax.errorbar(x, run.column("signal"), yerr=errors, alpha=0.75, linestyle="", **style)
    ax.set_ylabel("signal")
    _rounds_axis(ax)
    add_legend(figure, [method.name if method in shown else "" for method in report.methods])
    return Picture(
        "What do held-out failures say?",
        "The share of held-out failures that a filter rejects, minus that of fresh draws, with two standard errors, "
        "for each seed: above 0 it has learnt more than its failures by heart. Where successes are rare it is near 0.",
        "Chart of the signal against the round. " + _medians(shown, {"signal": "signal"}),
        svg_of(figure),
    )


def _time(report: NegativeReport) -> Picture:
    """Where the time went."""
    figure = Figure((WIDTH, 0.75 + 0.42 * len(report.methods)), layout="constrained")
    ax = figure.subplots()
    texts: list[str] = []
    handles: dict[str, Any] = {}
    for row, method in enumerate(report.methods):
        seconds = method.seconds
        seconds["record"] = seconds["ask"] - seconds["oracle"] + seconds["checkpoint"]
        left = 0.0
        for i, part in enumerate(PARTS):
            bar = ax.barh(row, seconds[part], left=left, height=0.6, color=colour(i), edgecolor="white", linewidth=0.6)
            handles.setdefault(PARTS[part], bar)
            left += seconds[part]
        texts.append(f"{method.name}: {', '.join(f'{name} {seconds[part]:.1f} s' for part, name in PARTS.items())}")
    ax.set_yticks(range(len(report.methods)), [method.name for method in report.methods])
    ax.set_ylim(len(report.methods) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("seconds per run, mean over seeds")
    ax.xaxis.set_major_locator(MaxNLocator(6))
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=3)
    figure.set_figheight(figure.get_figheight() + 0.5)
    return Picture(
        "Where did the time go?",
        "Wall time of the rounds. Oracle is what its calls took, record what it took to write them down, and the "
        "checkpoints; success rates are measured for this page only.",
        f"Bars of seconds for each method. {'; '.join(texts)}.",
        svg_of(figure),
    )


# ---- how -----------------------------------------------------------------------------------------


def _per_round(ax: Axes, report: NegativeReport, method: Method, name: str) -> None:
    """A number of every round: a mark for each seed, a line for their median."""
    number = report.methods.index(method)
    shift = 0.12 * (number - (len(report.methods) - 1) / 2)
    for run in method.runs:
        values = [value if value or "gain" not in name else math.nan for value in run.column(name)]
        x = [n + 1 + shift for n in range(len(values))]
        ax.plot(x, values, linestyle="", marker=marker(number), color=colour(number), markersize=3.5, alpha=0.5)
    _line(ax, method, name, {"color": colour(number), "linestyle": line(number), "linewidth": 1.4})


def _line(ax: Axes, method: Method, name: str, style: dict[str, Any]) -> None:
    """The median over seeds of a number of every round."""
    values = _by_round(method, name)
    ax.plot([n + 1 for n in range(len(values))], values, **style)


def _by_round(method: Method, name: str) -> list[float]:
    columns = [run.column(name) for run in method.runs]
    found = []
    for n in range(max(map(len, columns))):
        values = [column[n] for column in columns if n < len(column) and not math.isnan(column[n])]
        found.append(median(values) if values else math.nan)
    return found


def _known(method: Method, name: str) -> bool:
    return any(not math.isnan(value) for run in method.runs for value in run.column(name))


def _medians(methods: Sequence[Method], names: dict[str, str]) -> str:
    """Medians over seeds in words, round by round."""
    texts = []
    for method in methods:
        for name, title in names.items():
            values = ", ".join("unknown" if math.isnan(v) else f"{v:.3g}" for v in _by_round(method, name))
            texts.append(f"{method.name}, {title}, median by round: {values}")
    return f"{'; '.join(texts)}."


def _height(rate: Rate) -> float:
    """Where a rate is drawn: one of 0 of n draws at 1/n, an exact 0 not at all."""
    return rate.bound or math.nan


def _span(rates: Iterable[Rate]) -> tuple[float, float]:
    """Limits of an axis that hold all rates, and of their intervals what is above a third of the least."""
    heights = [height for rate in rates if not math.isnan(height := _height(rate))]
    return (min(heights) / 3, min(1.3, 3 * max(heights))) if heights else (0.1, 1.0)


def _log_axis(ax: Axes, low: float, high: float) -> None:
    """A logarithmic axis with plain numbers at it, for which matplotlib would take its mathematical fonts."""
    ax.set_yscale("log")
    ax.set_ylim(low, high)
    ax.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if high / low < 200 else (1,)))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.yaxis.set_minor_locator(NullLocator())


def _gain_axis(ax: Axes, values: Iterable[float]) -> None:
    """A logarithmic axis around 1."""
    found = [value for value in values if value > 0]
    ax.axhline(1, color=GREY, linewidth=1)
    _log_axis(ax, min([0.5, *found]) / 1.2, max([2.0, *found]) * 1.2)


def _rounds_axis(ax: Axes) -> None:
    ax.set_xlabel("round")
    ax.xaxis.set_major_locator(MaxNLocator(10, integer=True))
