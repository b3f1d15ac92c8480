"""Pictures of latent spaces; import them from :mod:`banel_pyro.report.plots`, which says how they are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes

from banel_pyro.batches import transformed
from banel_pyro.diagnostics.latent import kl_per_dimension
from banel_pyro.diagnostics.latent_record import LatentReport
from banel_pyro.inference_data import group
from banel_pyro.report.canvas import (
    COLOURS,
    GREY,
    Array,
    Grid,
    as_array,
    as_images,
    by_label,
    colour,
    image_side,
    line,
    marker,
    own_axes,
    own_grid,
    posterior_of,
    show_image,
)
from banel_pyro.run import FitResult
from banel_pyro.seeding import fork_rng

__all__ = ["plot_kl_per_dimension", "plot_latent_scatter", "plot_latent_traversal", "plot_prior_samples"]

COLUMNS = 8
"""Images of a row."""


def plot_kl_per_dimension(kls: Any, *, ax: Axes | None = None) -> Axes:
    """What each latent dimension tells about a data point: its KL to the prior, the largest first.

    A dimension at 0 is unused: its posterior is the prior. Bars are two standard errors over data points.

    Args:
        kls: a table of :func:`~banel_pyro.diagnostics.latent.kl_per_dimension`, a
            :class:`~banel_pyro.diagnostics.latent_record.LatentReport`, a FitResult (then of its training data), or
            some by label.
        ax: axes to draw on.

    Raises:
        TypeError: for a table without columns ``kl`` and ``stderr``.
    """
    tables = {label: _kl_table(item) for label, item in by_label(kls, "kls").items()}
    longest = max(map(len, tables.values()))
    with own_axes(ax, tables, 2.6) as drawn:
        drawn.axhline(0.0, color=GREY, linewidth=1)
        for i, (label, table) in enumerate(tables.items()):
            style: dict[str, Any] = {
                "color": colour(i),
                "linestyle": line(i),
                "marker": marker(i),
                "markersize": 5,
                "label": label,
            }
            errors = 2 * table["stderr"].fillna(0.0)
            drawn.errorbar(np.arange(1, len(table) + 1), table["kl"], yerr=errors, linewidth=1.2, **style)
        if len(tables) == 1 and longest <= 16:
            names = [str(name) for name in next(iter(tables.values())).index]
            drawn.set_xticks(range(1, longest + 1), names, rotation=0 if longest <= 9 else 45, ha="center")
            drawn.set_xlabel("latent dimension, largest KL first")
        else:
            drawn.locator_params(axis="x", integer=True)
            drawn.set_xlabel("rank of the latent dimension, by KL")
        drawn.set_ylabel("KL to the prior\n(nats per data point)")
    return drawn


def plot_prior_samples(samples: Any, *, observed: Any = None, images: bool | None = None, axes: Any = None) -> Grid:
    """What the model makes of its prior: a grid of images, or a histogram of numbers.

    Args:
        samples: draws of :func:`~banel_pyro.diagnostics.decode.prior_samples`: images (draw, side, side) or
            (draw, pixels), or numbers (draw, ...), or some by label. Images have a row of axes for each label.
        observed: numbers to compare the numbers with.
        images: whether draws are images; by default, if they have the shape of a square one (at least 5 by 5).
        axes: rows of axes; one row of one for numbers.

    Returns:
        The axes, in rows and columns.

    Raises:
        TypeError: for samples that are no numbers.
        ValueError: for images that are none, or axes of another shape.
    """
    found = {label: as_array(item, "samples") for label, item in by_label(samples, "samples").items()}
    if images or (images is None and all(image_side(array.shape[1:]) is not None for array in found.values())):
        return _prior_images({label: as_images(array, "samples") for label, array in found.items()}, axes)
    with own_grid(axes, (1, 1), 2.6) as grid:
        _prior_numbers(grid[0, 0], found, None if observed is None else as_array(observed, "observed").ravel())
        if axes is None and (len(found) > 1 or observed is not None):
            grid[0, 0].figure.legend(loc="outside upper left", ncols=2)
    return grid


def plot_latent_traversal(traversal: xr.DataArray, *, axes: Any = None) -> Grid:
    """What changes in the data along each latent dimension: a row for each, from low to high.

    Args:
        traversal: of :func:`~banel_pyro.diagnostics.decode.latent_traversal`: images with dims
            (latent, sd, pixels...).
        axes: rows of axes.

    Returns:
        The axes, in rows and columns.

    Raises:
        TypeError: for anything else.
        ValueError: if it holds no images.
    """
    if not isinstance(traversal, xr.DataArray) or traversal.dims[:2] != ("latent", "sd"):
        raise TypeError(
            f"traversal is a {type(traversal).__name__}: expected what latent_traversal returns, a DataArray with dims "
            "('latent', 'sd', ...)."
        )
    count, steps = traversal.shape[:2]
    images = as_images(traversal.to_numpy().reshape(count * steps, *traversal.shape[2:]), "traversal")
    with own_grid(axes, (count, steps), 0.35 + 3.6 / max(steps, 4) * count) as grid:
        for ax, image in zip(grid.ravel().tolist(), images, strict=True):
            show_image(ax, image)
        for ax, name in zip(grid[:, 0], traversal["latent"].to_numpy(), strict=True):
            ax.set_ylabel(str(name), rotation=0, ha="right", va="center")
        for ax, sd in zip(grid[-1], traversal["sd"].to_numpy(), strict=True):
            ax.set_xlabel(f"{sd:+g} sd".replace("-", "−") if sd else "mean")
    return grid


def plot_latent_scatter(
    means: Any,
    labels: Any = None,
    *,
    dims: tuple[int, int] | None = None,
    site: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Where the data points lie in two latent dimensions: their posterior means.

    Args:
        means: posterior means (datum, dimension), an ArviZ object, or a FitResult to draw from.
        labels: a class for each data point, (datum,), told apart by colour and marker. None for one class.
        dims: numbers of the two dimensions; by default those along which the means vary most.
        site: the latent of an ArviZ object, needed if more than one is local to data points.
        ax: axes to draw on.

    Raises:
        ValueError: for means of another shape, or labels or dimensions that do not fit them.
    """
    points, name = _means(means, site)
    x, y = _two_dims(points, dims)
    classes = np.zeros(len(points)) if labels is None else np.asarray(labels)
    if classes.shape != (len(points),):
        raise ValueError(f"labels have the shape {classes.shape}: expected ({len(points)},), one for each data point.")
    names = np.unique(classes)
    with own_axes(ax, [], 4.0) as drawn:
        for i, found in enumerate(names):
            here = points[classes == found]
            # after the colours have been used up, markers are hollow, and other ones
            style: dict[str, Any] = {"facecolors": colour(i) if i < len(COLOURS) else "none"}
            style |= {"edgecolors": colour(i), "marker": marker(i), "label": "" if labels is None else str(found)}
            drawn.scatter(here[:, x], here[:, y], s=14, linewidths=0.8, alpha=0.75, **style)
        drawn.set(xlabel=f"posterior mean of {name}[{x}]", ylabel=f"posterior mean of {name}[{y}]")
        drawn.set_aspect("equal", adjustable="datalim")
        if ax is None and labels is not None:
            columns = {"ncols": min(len(names), 5), "columnspacing": 1.2, "handletextpad": 0.2}
            drawn.figure.legend(loc="outside upper left", markerscale=1.6, **columns)
    return drawn


# ---- reading what is drawn -----------------------------------------------------------------------


def _kl_table(item: Any) -> pd.DataFrame:
    table = _kl_of_run(item) if isinstance(item, FitResult) else item
    table = table.table if isinstance(table, LatentReport) else table
    if not isinstance(table, pd.DataFrame) or not {"kl", "stderr"} <= set(table.columns):
        raise TypeError(f"kls has a {type(table).__name__}: expected a table of kl_per_dimension(), or a FitResult.")
    return table.sort_values("kl", ascending=False)


def _kl_of_run(run: FitResult) -> pd.DataFrame:
    with run.scope(), fork_rng(run.config["seed"]):
        rows = transformed(run.rows, run.transform)
        return kl_per_dimension(run.model, run.guide, rows, data_plate=run.plate.name)


def _prior_images(found: Mapping[str, Array], axes: Any) -> Grid:
    longest = max(map(len, found.values()))
    if len(found) > 1:
        shape = (len(found), longest)
    elif axes is not None:
        shape = np.shape(axes) if np.ndim(axes) == 2 and np.size(axes) >= longest else (1, longest)
    else:
        shape = (-(-longest // COLUMNS), min(longest, COLUMNS))
    with own_grid(axes, shape, 0.1 + 3.9 / max(shape[1], 4) * shape[0]) as grid:
        cells = grid if len(found) > 1 else grid.reshape(1, -1)
        for band, (label, images) in zip(cells, found.items(), strict=True):
            for ax, image in zip(band, images, strict=False):
                show_image(ax, image)
            for ax in band[len(images) :]:
                ax.set_axis_off()
            band[0].set_ylabel(label, rotation=0, ha="right", va="center")
    return grid


def _prior_numbers(ax: Axes, found: Mapping[str, Array], observed: Array | None) -> None:
    every = np.concatenate([array.ravel() for array in found.values()])
    low, high = np.quantile(every, [0.01, 0.99])  # a heavy tail would leave one bar
    if observed is not None:
        low, high = min(low, observed.min()), max(high, observed.max())
    bins = np.linspace(low, high, 41).tolist() if high > low else [low - 0.5, low + 0.5]
    for i, (label, array) in enumerate(found.items()):
        style: dict[str, Any] = {"color": colour(i), "linestyle": line(i), "label": label or "prior"}
        ax.hist(array.ravel(), bins=bins, density=True, histtype="step", linewidth=1.5, **style)
    if observed is not None:
        ax.hist(observed, bins=bins, density=True, color="black", alpha=0.3, label="observed")
    ax.set(xlabel="value", ylabel="density")


def _means(means: Any, site: str | None) -> tuple[Array, str]:
    idata = posterior_of(means)
    if idata is None:
        array, name = as_array(means, "means"), site or "z"
    else:
        posterior, plate = group(idata, "posterior"), str(idata.attrs.get("data_plate", ""))
        local = [str(n) for n, values in posterior.data_vars.items() if plate in values.dims and values.ndim == 4]
        if site not in local and (site is not None or len(local) != 1):
            raise ValueError(f"site={site!r}: expected one of {local}, the vectors that are local to data points.")
        name = site or local[0]
        array = posterior[name].mean(["chain", "draw"]).transpose(plate, ...).to_numpy()
    if array.ndim != 2 or array.shape[1] < 2:
        raise ValueError(f"means have the shape {array.shape}: expected (datum, dimension), two dimensions or more.")
    return array, name


def _two_dims(points: Array, dims: tuple[int, int] | None) -> tuple[int, int]:
    if dims is None:
        x, y = sorted(np.argsort(-points.var(axis=0), kind="stable")[:2].tolist())
        return x, y
    if len(dims) != 2 or not all(isinstance(d, int) and 0 <= d < points.shape[1] for d in dims):
        raise ValueError(f"dims={dims!r}: expected the numbers of two dimensions, from 0 to {points.shape[1] - 1}.")
    return dims[0], dims[1]
