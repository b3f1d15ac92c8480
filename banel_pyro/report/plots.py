"""The pictures of a report: one function a picture, on axes that the caller made.

Colours are those of Okabe and Ito, told apart with every kind of colour vision; runs also differ in marker
and line. Importing this imports matplotlib; nothing here touches ``pyplot`` or a global setting.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from banel_pyro.terms import Estimate

__all__ = ["COLOURS", "NINETY", "STYLE", "handles", "image_side", "plot_entropies", "plot_entropy_per_datum"]
__all__ += ["plot_images", "plot_intervals", "plot_spread", "plot_terms"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^DvPX"
LINES = ("-", "--", "-.", ":")
GREY = "#767676"

NINETY = (0.05, 0.95)
"""The ends of a 90 % interval, as quantiles."""

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.7,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "#222222",
    "ytick.labelcolor": "#222222",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "banel_pyro",
}
"""Settings to draw under, ``with matplotlib.rc_context(STYLE)``: legible when 5 inches become a phone's width."""

Array = NDArray[np.floating[Any]]


def plot_terms(ax: Axes, histories: Mapping[str, pd.DataFrame], column: str, *, held_out: str | None = None) -> Axes:
    """One term over training, a line for each run.

    Args:
        ax: axes to draw on.
        histories: a run's history by label.
        column: of the histories; ``column[site]`` is drawn for every site where there is no such column.
        held_out: a second column, drawn as points where it was evaluated.
    """
    seen = []
    for i, history in enumerate(histories.values()):
        colour, line = _colour(i), _line(i)
        for name in _columns(history, column):
            values = history[name].replace([-math.inf, math.inf], math.nan)
            ax.plot(history["step"], values, color=colour, linestyle=line, linewidth=1.4)
            seen.append(values.iloc[len(values) // 20 :])
        if held_out is not None and held_out in history:
            points = history[["step", held_out]].dropna()
            ax.plot(points["step"], points[held_out], _marker(i), color=colour, markersize=3.5)
            seen.append(points[held_out].iloc[len(points) // 20 :])
    _limits(ax, np.concatenate(seen) if seen else np.zeros(0))
    ax.margins(x=0.02)
    return ax


def plot_spread(ax: Axes, widths: Mapping[str, pd.Series]) -> Axes:
    """How wide each latent is, as a share of its prior: a row per latent, a marker per run.

    Args:
        ax: axes to draw on.
        widths: by run, the posterior's interquartile range over the prior's, by latent.
    """
    labels = list(next(iter(widths.values())).index)
    for i, series in enumerate(widths.values()):
        colour, marker = _colour(i), _marker(i)
        ax.plot(series.reindex(labels), range(len(labels)), marker, color=colour, markersize=6, alpha=0.9)
    largest = np.nanmax([0.0, *(float(series.max()) for series in widths.values())])
    if largest > 0.5:  # else the prior is too far away to be shown
        ax.axvline(1.0, color=GREY, linestyle="--", linewidth=1)
    top = max(largest, 1.0) if largest > 0.5 else largest
    ax.set_xlim(0, 1.08 * top or 1.0)
    ax.set_xlabel("width of posterior ÷ width of prior")
    return _rows(ax, labels)


def plot_entropy_per_datum(ax: Axes, entropies: Mapping[str, Array]) -> Axes:
    """How the entropies of the data points' posteriors are distributed: a histogram for each run.

    Args:
        ax: axes to draw on.
        entropies: by run, the entropy of each data point's posterior in nats.
    """
    every = np.concatenate(list(entropies.values()))
    low, high = float(every.min()), float(every.max())
    bins = np.linspace(low, high, 41).tolist() if high - low > 1e-9 else [low - 0.5, low + 0.5]
    for i, (label, values) in enumerate(entropies.items()):
        colour = _colour(i)
        ax.hist(values, bins=bins, color=colour, alpha=0.25)
        ax.hist(values, bins=bins, color=colour, histtype="step", linewidth=1.5, linestyle=_line(i))
        ax.axvline(float(values.mean()), color=colour, linewidth=1.2, linestyle=_line(i), label=label)
    ax.set_xlabel("entropy of a data point's posterior (nats)")
    ax.set_ylabel("data points")
    return ax


def plot_entropies(ax: Axes, entropies: Mapping[str, Mapping[str, Estimate]]) -> Axes:
    """The entropy of each density of the guide: a row per density, a marker per run, two standard errors.

    Args:
        ax: axes to draw on.
        entropies: by run, the entropy of each density in nats; ``-inf`` is left out.
    """
    labels = list(next(iter(entropies.values())))
    for i, found in enumerate(entropies.values()):
        estimates = [found.get(label, Estimate(math.nan, math.nan)) for label in labels]
        values = [e.value if math.isfinite(e.value) else math.nan for e in estimates]
        errors = [2 * e.stderr if math.isfinite(e.stderr) else 0.0 for e in estimates]
        colour, marker = _colour(i), _marker(i)
        ax.errorbar(values, range(len(labels)), xerr=errors, fmt=marker, color=colour, markersize=6, linewidth=1.2)
    ax.set_xlabel("entropy (nats)")
    return _rows(ax, labels)


def plot_images(axes: Sequence[Sequence[Axes]], rows: Mapping[str, Array]) -> Sequence[Sequence[Axes]]:
    """Images in a grid: a row per kind (originals, then each run's), a column per data point.

    Args:
        axes: a grid of axes.
        rows: by label, images (datum, side, side) of numbers from 0 (white) to 1 (black).
    """
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        for ax, image in zip(line, images, strict=True):
            ax.imshow(image, cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set(visible=True, color="#cfcfcf")
        line[0].set_ylabel(fill(label, 12), rotation=0, ha="right", va="center")
    return axes


def plot_intervals(ax: Axes, observed: pd.Series, draws: Mapping[str, Array]) -> Axes:
    """What was observed against what the posterior predicts: a row per number, a 90 % interval per run.

    Args:
        ax: axes to draw on.
        observed: observed numbers by label.
        draws: by run, draws (draw, number) of the posterior predictive distribution.
    """
    height = np.arange(len(observed))
    for i, values in enumerate(draws.values()):
        low, high = np.quantile(values, NINETY, axis=0)
        offset = height + 0.3 * ((i + 1) / (len(draws) + 1) * 2 - 1)
        colour, marker = _colour(i), _marker(i)
        ax.hlines(offset, low, high, color=colour, linewidth=min(2.0, 6 / len(draws)))
        ax.plot(values.mean(axis=0), offset, marker, color=colour, markersize=4)
    ax.plot(observed.to_numpy(), height, "|", color="black", markersize=13, markeredgewidth=2.2)
    ax.set_xlabel("value")
    return _rows(ax, list(observed.index))


def handles(labels: Iterable[str]) -> list[Line2D]:
    """What a legend shows for each run: its colour, line and marker. A long label gets several lines.

    Args:
        labels: of the runs, in order.
    """
    return [
        Line2D([], [], linestyle=_line(i), marker=_marker(i), color=_colour(i), label=fill(n, 40))
        for i, n in enumerate(labels)
    ]


def image_side(shape: Sequence[int]) -> int | None:
    """The side of the square image that a row of this shape is (at least 5 pixels), or None.

    >>> image_side((64,)), image_side((28, 28)), image_side((10,)), image_side(())
    (8, 28, None, None)
    """
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[0] != shape[1]):
        return None
    side = math.isqrt(math.prod(shape))
    return side if side >= 5 and side**2 == math.prod(shape) else None


def _colour(run: int) -> str:
    return COLOURS[run % len(COLOURS)]


def _marker(run: int) -> str:
    return MARKERS[run % len(MARKERS)]


def _line(run: int) -> str:
    return LINES[run % len(LINES)]


def _columns(history: pd.DataFrame, column: str) -> list[str]:
    if column in history and history[column].notna().any():
        return [column]
    return [str(name) for name in history if str(name).startswith(f"{column}[")]


def _limits(ax: Axes, values: Array) -> None:
    """Show what comes after the first twentieth of training: the start would flatten everything else."""
    finite = values[np.isfinite(values)]
    if finite.size:
        low, high = float(finite.min()), float(finite.max())
        room = 0.06 * (high - low) or 0.1 * max(abs(high), 0.5)
        ax.set_ylim(low - room, high + room)


def _rows(ax: Axes, labels: Sequence[str]) -> Axes:
    """A labelled row for each item, from top to bottom."""
    ax.set_yticks(range(len(labels)), labels)
    ax.locator_params(axis="x", nbins=6)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    return ax
