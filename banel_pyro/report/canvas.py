"""What all pictures share: colours and style, a figure where the caller brings none, legends, and checks of input.

Colours are those of Okabe and Ito, told apart with every kind of colour vision; runs also differ in marker
and line. Importing this imports matplotlib, but not ``pyplot``, and changes no global setting.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from textwrap import fill
from typing import Any, TypeAlias

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from torch import Tensor

from banel_pyro.inference_data import ArviZ
from banel_pyro.run import FitResult

__all__ = ["COLOURS", "GREY", "LINES", "MARKERS", "STYLE", "WIDTH", "Array", "Grid", "add_legend", "as_array"]
__all__ += ["as_images", "by_label", "colour", "handles", "image_side", "is_arviz", "line", "marker", "own_axes"]
__all__ += ["own_grid", "posterior_of", "rows", "show_image"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^DvPX*<>"
LINES = ("-", "--", "-.", ":")
GREY = "#767676"

WIDTH = 4.3
"""Inches: with the fonts of STYLE legible on a phone 390 pixels wide."""

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

# The settings of matplotlib that decide how a picture looks, as opposed to where and how large it is shown.
_LOOK: tuple[str, ...] = ("axes.", "errorbar.", "font.", "grid.", "hist.", "image.", "legend.", "lines.")
_LOOK += ("mathtext.", "patch.", "scatter.", "text.", "xaxis.", "xtick.", "yaxis.", "ytick.")

Array: TypeAlias = NDArray[np.floating[Any]]
Grid: TypeAlias = NDArray[np.object_]
"""Axes in rows and columns."""


@contextmanager
def own_axes(ax: Axes | None, labels: Iterable[str], height: float) -> Iterator[Axes]:
    """The caller's axes as they are, or those of a new figure of ``pyplot``, drawn under STYLE and with a legend.

    Args:
        ax: axes to draw on, or None.
        labels: of the runs; a new figure shows them in a legend, unless they are empty.
        height: of a new figure without its legend, in inches.

    Raises:
        TypeError: if ``ax`` is no axes.
    """
    if ax is not None:
        if not isinstance(ax, Axes):
            raise TypeError(f"ax is a {type(ax).__name__}: expected matplotlib axes, such as those of plt.subplots().")
        yield ax
        return
    with _own_figure(1, 1, height) as (figure, grid):
        yield grid[0, 0]
        add_legend(figure, labels)


@contextmanager
def own_grid(axes: Any, shape: tuple[int, int], height: float) -> Iterator[Grid]:
    """The caller's axes in rows and columns, or those of a new figure of ``pyplot``, drawn under STYLE.

    Args:
        axes: rows of axes, or None.
        shape: rows and columns that are needed.
        height: of a new figure, in inches.

    Raises:
        ValueError: for axes of another shape.
    """
    if axes is not None:
        grid = np.asarray(axes, dtype=object)
        if grid.shape != shape:
            raise ValueError(
                f"axes have the shape {grid.shape}, expected {shape[0]} rows of {shape[1]}: write "
                f"axes=plt.subplots({shape[0]}, {shape[1]}, squeeze=False)[1], or leave axes out."
            )
        yield grid
        return
    with _own_figure(*shape, height) as (_, grid):
        yield grid


@contextmanager
def _own_figure(rows: int, columns: int, height: float) -> Iterator[tuple[Figure, Grid]]:
    import matplotlib.pyplot as plt  # picks a back end: only where the caller wants a figure made

    look = {name: value for name, value in matplotlib.rcParamsDefault.items() if name.startswith(_LOOK)}
    with matplotlib.rc_context({**look, **STYLE}):
        figure, grid = plt.subplots(rows, columns, figsize=(WIDTH, height), layout="constrained", squeeze=False)
        try:
            yield figure, grid
        except BaseException:
            plt.close(figure)
            raise


def add_legend(figure: Figure, labels: Iterable[str]) -> None:
    """Put a legend of the runs above a figure, in as many columns as fit, and make the figure higher by it.

    Args:
        figure: with a constrained layout.
        labels: of the runs, in order; without any text there is no legend.
    """
    found = [handle for handle in handles(labels) if handle.get_label()]
    if not found:
        return
    lines = [str(handle.get_label()).splitlines() for handle in found]
    columns = max(1, min(len(found), 52 // (max(len(text) for parts in lines for text in parts) + 7)))
    figure.legend(handles=found, loc="outside upper left", ncols=columns)
    figure.set_figheight(figure.get_figheight() + 0.12 + 0.19 * math.ceil(sum(map(len, lines)) / columns))


def handles(labels: Iterable[str]) -> list[Line2D]:
    """What a legend shows for each run: its colour, line and marker. A long label gets several lines.

    Args:
        labels: of the runs, in order.
    """
    return [
        Line2D([], [], linestyle=line(i), marker=marker(i), color=colour(i), label=fill(n, 40))
        for i, n in enumerate(labels)
    ]


def colour(run: int) -> str:
    """The colour of a run, by its number."""
    return COLOURS[run % len(COLOURS)]


def marker(run: int) -> str:
    """The marker of a run, by its number."""
    return MARKERS[run % len(MARKERS)]


def line(run: int) -> str:
    """The line style of a run, by its number."""
    return LINES[run % len(LINES)]


def rows(ax: Axes, labels: Sequence[str]) -> Axes:
    """Give axes a labelled row for each item, from top to bottom."""
    ax.set_yticks(range(len(labels)), labels)
    ax.locator_params(axis="x", nbins=6)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    return ax


def show_image(ax: Axes, image: Array) -> None:
    """An image of numbers from 0 (white) to 1 (black)."""
    ax.imshow(image, cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    ax.spines[:].set(visible=True, color="#cfcfcf")


# ---- what is drawn -------------------------------------------------------------------------------


def image_side(shape: Sequence[int]) -> int | None:
    """The side of the square image that a row of this shape is (at least 5 pixels), or None.

    >>> image_side((64,)), image_side((28, 28)), image_side((10,)), image_side(())
    (8, 28, None, None)
    """
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[0] != shape[1]):
        return None
    side = math.isqrt(math.prod(shape))
    return side if side >= 5 and side**2 == math.prod(shape) else None


def is_arviz(data: Any) -> bool:
    """Whether something is an ArviZ object of either line: it has groups. Such an object is a mapping as well."""
    return hasattr(data, "groups") and hasattr(data, "attrs")


def posterior_of(item: Any) -> ArviZ | None:
    """An ArviZ object as it is, draws of a FitResult as one, None for anything else."""
    if isinstance(item, FitResult):
        return item.posterior()
    return item if is_arviz(item) else None


def by_label(data: Any, name: str) -> dict[str, Any]:
    """A mapping of label to object as it is; one object under the empty label.

    Args:
        data: one object or a mapping.
        name: what error messages call it.

    Raises:
        ValueError: for an empty mapping.
    """
    if not isinstance(data, Mapping) or is_arviz(data):
        return {"": data}
    if not data:
        raise ValueError(f"{name} is an empty mapping: expected something to draw for at least one label.")
    return {str(label): item for label, item in data.items()}


def as_array(values: Any, name: str, *, ndim: int | None = None) -> Array:
    """Numbers as a NumPy array of floating-point numbers.

    Args:
        values: a tensor, an array, a series, a list.
        name: what error messages call it.
        ndim: number of axes it must have.

    Raises:
        TypeError: if they are no numbers.
        ValueError: if there are none, some are not finite, or the number of axes is another.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} is a {type(values).__name__}: expected an array of numbers ({error}).") from error
    if array.size == 0 or (ndim is not None and array.ndim != ndim):
        axes = "" if ndim is None else f" with {ndim} {'axis' if ndim == 1 else 'axes'}"
        raise ValueError(f"{name} has the shape {array.shape}: expected numbers{axes}.")
    if wrong := int((~np.isfinite(array)).sum()):
        raise ValueError(f"{name}: {wrong} of {array.size} values are NaN or infinite. Leave them out.")
    return array


def as_images(values: Any, name: str) -> Array:
    """Images (datum, side, side) from such, or from rows of pixels (datum, pixels).

    Args:
        values: the images.
        name: what error messages call it.

    Raises:
        ValueError: if they are no square images of at least 5 by 5 pixels.
    """
    array = as_array(values, name)
    side = image_side(array.shape[1:])
    if side is None:
        raise ValueError(
            f"{name} have the shape {array.shape}: expected square images, (datum, side, side) or (datum, pixels), of "
            "at least 5 by 5 pixels."
        )
    return array.reshape(-1, side, side)
