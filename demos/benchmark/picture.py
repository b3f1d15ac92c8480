"""The picture: a step of every way over one of Pyro's, a line for each problem."""

import statistics
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from demos.benchmark.timing import Results, ratios
from demos.benchmark.ways import BY_HAND, BY_HAND_COMPILED, CAPTURED, EAGER, RUN, SVI_WAY, UPDATE

LOOKS: dict[str, tuple[str, str]] = {
    SVI_WAY: ("s", "#000000"),
    "Pyro, one Adam": ("D", "#7f7f7f"),
    BY_HAND: ("v", "#D55E00"),
    BY_HAND_COMPILED: ("^", "#E69F00"),
    UPDATE: ("P", "#009E73"),
    RUN: ("X", "#56B4E9"),
    EAGER: ("o", "#CC79A7"),
    CAPTURED: ("o", "#0072B2"),
}
"""Marker and colour of the ways that are shown; the colours are told apart by the colour-blind too."""


def draw(results: Results, path: Path, base: str = SVI_WAY) -> None:
    """Write the picture: medians, and a line from the smallest to the largest ratio of a round."""
    names = [name for name, runs in results.items() if base in runs]
    figure = Figure(figsize=(9, 1.7 + 0.45 * len(names)), layout="constrained")
    axes = figure.subplots()
    for way, (marker, colour) in LOOKS.items():
        found = [(y, ratios(results[name], way, base)) for y, name in enumerate(names) if way in results[name]]
        if not found:
            continue
        large = way == CAPTURED
        axes.hlines([y for y, _ in found], *zip(*((min(r), max(r)) for _, r in found), strict=True), color=colour, lw=1)
        medians = [statistics.median(each) for _, each in found]
        axes.scatter(
            medians, [y for y, _ in found], marker=marker, s=70 if large else 36, label=way, zorder=4 if large else 3,
            facecolor="white" if way == EAGER else colour, edgecolor=colour, linewidth=1.2,
        )  # fmt: skip
        if large:
            for (y, _), median in zip(found, medians, strict=True):
                text = f"{median:.3f}" if median < 0.1 else f"{median:.2f}"
                axes.annotate(
                    text, (median, y), (0, 7), textcoords="offset points", ha="center", fontsize=7, color=colour
                )
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.7)
    axes.set_xlabel(f"time of a step ÷ {base} (medians; lines from the smallest to the largest round)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", which="both", color="#e5e5e5", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
