"""Pictures of fits: one function a picture, what is drawn first, axes as a keyword, axes returned.

Every function takes one object or a mapping of label to object, which are told apart by colour, marker and
line. Without ``ax=`` it makes a figure of ``pyplot`` in the style of the reports, with a legend; on axes of
yours it draws in your style and labels what it draws, so that ``ax.legend()`` works. No global setting is
changed, and nothing is shown or saved: that is yours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from banel_pyro.diagnostics.latent_record import LatentReport
from banel_pyro.diagnostics.spread import density_entropies
from banel_pyro.diagnostics.stored import is_local, point_masses
from banel_pyro.inference_data import group
from banel_pyro.report.calibration_plots import plot_rank_ecdf, plot_ranks
from banel_pyro.report.canvas import (
    COLOURS,
    STYLE,
    WIDTH,
    Array,
    Grid,
    add_legend,
    as_array,
    as_images,
    by_label,
    colour,
    handles,
    image_side,
    line,
    marker,
    own_axes,
    own_grid,
    posterior_of,
    rows,
    show_image,
)
from banel_pyro.report.criticism_plots import plot_predictive_check
from banel_pyro.report.latent_plots import (
    plot_kl_per_dimension,
    plot_latent_scatter,
    plot_latent_traversal,
    plot_prior_samples,
)
from banel_pyro.report.reference_plots import NEAR_NORMAL, plot_sd_ratio_against_lam
from banel_pyro.report.spread_plots import MAX_ROWS, plot_spread, plot_spread_against_lam
from banel_pyro.run import FitResult
from banel_pyro.terms import Estimate

__all__ = ["COLOURS", "NEAR_NORMAL", "NINETY", "STYLE", "WIDTH", "add_legend", "handles", "image_side"]
__all__ += ["plot_entropies", "plot_entropy_per_datum", "plot_images", "plot_intervals", "plot_kl_per_dimension"]
__all__ += ["plot_latent_scatter", "plot_latent_traversal", "plot_predictive_check", "plot_prior_samples"]
__all__ += [
    "plot_rank_ecdf",
    "plot_ranks",
    "plot_sd_ratio_against_lam",
    "plot_spread",
    "plot_spread_against_lam",
    "plot_terms",
]

NINETY = (0.05, 0.95)
"""The ends of a 90 % interval, as quantiles."""

_NAMES = {"elbo": "ELBO", "val_elbo": "held-out ELBO", "log_likelihood": "log-likelihood", "kl": "KL", "lam": "λ"}
_NATS = ("elbo", "val_elbo", "log_likelihood", "kl", "entropy", "penalty", "loss")


def plot_terms(histories: Any, column: str = "elbo", *, held_out: str | None = None, ax: Axes | None = None) -> Axes:
    """One term over training, a line for each run. The first steps may lie outside: they would flatten the rest.

    Args:
        histories: a :class:`~banel_pyro.FitResult`, or a history as one has it, or some by label.
        column: of the histories, in nats but for ``lam`` and the like; ``column[site]`` is drawn for every site
            where the column is empty.
        held_out: a second column, such as ``"val_elbo"``, drawn as points where it was evaluated.
        ax: axes to draw on.

    Raises:
        TypeError: for something that has no history.
        ValueError: for a column that a history lacks.
    """
    runs = by_label(histories, "histories")
    tables = {label: _history(run, f"histories[{label!r}]" if label else "histories") for label, run in runs.items()}
    for table in tables.values():
        _check_column(table, column)
    seen = []
    with own_axes(ax, tables, 2.6) as drawn:
        for i, (label, table) in enumerate(tables.items()):
            for name in _columns(table, column):
                values = table[name].replace([-math.inf, math.inf], math.nan)
                drawn.plot(table["step"], values, color=colour(i), linestyle=line(i), linewidth=1.4, label=label)
                seen.append(values.iloc[len(values) // 20 :])
                label = ""  # one entry of the legend for a run
            if held_out is not None and held_out in table:
                points = table[["step", held_out]].dropna()
                drawn.plot(points["step"], points[held_out], marker(i), color=colour(i), markersize=3.5)
                seen.append(points[held_out].iloc[len(points) // 20 :])
        _limits(drawn, np.concatenate(seen) if seen else np.zeros(0))
        drawn.margins(x=0.02)
        marks = f" (marks: {_NAMES.get(held_out, held_out)})" if held_out is not None else ""
        drawn.set(xlabel=f"step{marks}", ylabel=_with_unit(column, list(runs.values())))
    return drawn


def plot_entropy_per_datum(entropies: Any, *, ax: Axes | None = None) -> Axes:
    """How the entropies of the data points' posteriors are distributed: a histogram for each run, a line at its mean.

    Args:
        entropies: an array (datum) of entropies in nats, a
            :class:`~banel_pyro.diagnostics.latent_record.LatentReport`, an ArviZ object or a FitResult to draw from, or
            some by label.
        ax: axes to draw on.

    Raises:
        ValueError: if latents are shared between data points, so that a point has no entropy of its own.
    """
    found = {label: _entropy_of_data(item) for label, item in by_label(entropies, "entropies").items()}
    every = np.concatenate(list(found.values()))
    low, high = float(every.min()), float(every.max())
    bins = np.linspace(low, high, 41).tolist() if high - low > 1e-9 else [low - 0.5, low + 0.5]
    with own_axes(ax, found, 2.6) as drawn:
        for i, (label, values) in enumerate(found.items()):
            drawn.hist(values, bins=bins, color=colour(i), alpha=0.25)
            drawn.hist(values, bins=bins, color=colour(i), histtype="step", linewidth=1.5, linestyle=line(i))
            drawn.axvline(float(values.mean()), color=colour(i), linewidth=1.2, linestyle=line(i), label=label)
        drawn.set_xlabel("entropy of a data point's posterior (nats)")
        drawn.set_ylabel("data points")
    return drawn


def plot_entropies(entropies: Any, *, ax: Axes | None = None) -> Axes:
    """The entropy of each density of the guide: a row per density, a marker per run, two standard errors.

    Args:
        entropies: by density, an :class:`~banel_pyro.Estimate` in nats (``-inf`` is left out), an ArviZ object or
            a FitResult to draw from, or some by label.
        ax: axes to draw on.

    Raises:
        TypeError: for densities without an Estimate.
    """
    one = isinstance(entropies, Mapping) and any(isinstance(value, Estimate) for value in entropies.values())
    runs = {"": entropies} if one else by_label(entropies, "entropies")
    found = {label: _entropies_of(item) for label, item in runs.items()}
    names = list(next(iter(found.values())))
    with own_axes(ax, found, 0.9 + 0.3 * len(names)) as drawn:
        for i, (label, known) in enumerate(found.items()):
            estimates = [known.get(name, Estimate(math.nan, math.nan)) for name in names]
            values = [e.value if math.isfinite(e.value) else math.nan for e in estimates]
            errors = [2 * e.stderr if math.isfinite(e.stderr) else 0.0 for e in estimates]
            style: dict[str, Any] = {
                "fmt": marker(i),
                "color": colour(i),
                "markersize": 6,
                "linewidth": 1.2,
                "label": label,
            }
            drawn.errorbar(values, range(len(names)), xerr=errors, **style)
        drawn.set_xlabel("entropy (nats)")
        return rows(drawn, names)


def plot_images(images: Any, *, axes: Any = None) -> Grid:
    """Images in a grid: a row per kind (originals, then each run's), a column per data point.

    Args:
        images: images (datum, side, side) or (datum, pixels) of numbers from 0 (white) to 1 (black), or some by
            label, as many of each.
        axes: rows of axes.

    Returns:
        The axes, in rows and columns.

    Raises:
        ValueError: for rows that are no square images, or axes of another shape.
    """
    kinds = {label: as_images(item, "images") for label, item in by_label(images, "images").items()}
    counts = {label: len(kind) for label, kind in kinds.items()}
    columns = next(iter(counts.values()))
    if len(set(counts.values())) > 1:
        raise ValueError(f"images have {counts} rows: expected as many of each kind, a column for each data point.")
    with own_grid(axes, (len(kinds), columns), 0.1 + 3.6 / max(columns, 4) * len(kinds)) as grid:
        for cells, (label, kind) in zip(grid, kinds.items(), strict=True):
            for ax, image in zip(cells, kind, strict=True):
                show_image(ax, image)
            cells[0].set_ylabel(fill(label, 12), rotation=0, ha="right", va="center")
    return grid


def plot_intervals(observed: Any, draws: Any, *, ax: Axes | None = None) -> Axes:
    """What was observed against what the posterior predicts: a row per number, a 90 % interval per run.

    Args:
        observed: observed numbers: a series by label, or an array (number).
        draws: draws (draw, number) of the posterior predictive distribution, or some by label.
        ax: axes to draw on.

    Raises:
        ValueError: if draws and observed numbers do not go together, or there are too many.
    """
    seen = observed if isinstance(observed, pd.Series) else pd.Series(as_array(observed, "observed", ndim=1))
    found = {label: as_array(item, "draws", ndim=2) for label, item in by_label(draws, "draws").items()}
    for values in found.values():
        if values.shape[1] != len(seen) or len(seen) > MAX_ROWS:
            raise ValueError(
                f"draws have the shape {values.shape} for {len(seen)} observed numbers: expected (draw, number), and "
                f"at most {MAX_ROWS} numbers, a row for each."
            )
    height = np.arange(len(seen))
    with own_axes(ax, found, 0.9 + 0.3 * len(seen)) as drawn:
        for i, (label, values) in enumerate(found.items()):
            low, high = np.quantile(values, NINETY, axis=0)
            offset = height + 0.3 * ((i + 1) / (len(found) + 1) * 2 - 1)
            drawn.hlines(offset, low, high, color=colour(i), linewidth=min(2.0, 6 / len(found)))
            drawn.plot(values.mean(axis=0), offset, marker(i), color=colour(i), markersize=4, label=label)
        drawn.plot(seen.to_numpy(), height, "|", color="black", markersize=13, markeredgewidth=2.2)
        drawn.set_xlabel("value")
        return rows(drawn, [str(label) for label in seen.index])


# ---- reading what is drawn -----------------------------------------------------------------------


def _history(run: Any, name: str) -> pd.DataFrame:
    table = run.history if isinstance(run, FitResult) else run
    if not isinstance(table, pd.DataFrame) or "step" not in table:
        raise TypeError(f"{name} is a {type(run).__name__}: expected a FitResult, or a history with a column 'step'.")
    return table


def _check_column(table: pd.DataFrame, column: str) -> None:
    if column not in table and not _columns(table, column):
        raise ValueError(f"column='{column}': the history has no such column, only {[str(name) for name in table]}.")


def _columns(history: pd.DataFrame, column: str) -> list[str]:
    if column in history and history[column].notna().any():
        return [column]
    return [str(name) for name in history if str(name).startswith(f"{column}[")]


def _with_unit(column: str, runs: Sequence[Any]) -> str:
    """What the axis of a term says. A history by itself does not tell what its nats are divided by."""
    name = _NAMES.get(column, column)
    if column.partition("[")[0] not in _NATS:
        return name
    per = {run.config["per"] if isinstance(run, FitResult) else "" for run in runs}
    unit = {"datum": "nats per data point", "total": "nats in all"}.get(per.pop(), "nats") if len(per) == 1 else "nats"
    return f"{name} ({unit})"


def _entropy_of_data(item: Any) -> Array:
    if isinstance(item, LatentReport):
        return item.entropies
    idata = posterior_of(item)
    if idata is None:
        return as_array(item, "entropies", ndim=1)
    if not is_local(idata) or point_masses(idata):
        raise ValueError(
            "entropies: some latents are shared between data points, or point masses, so that a data point has no "
            "entropy of its own. Use plot_entropies."
        )
    return np.asarray(-group(idata, "sample_stats")["log_q_datum"].mean(["chain", "draw"]).to_numpy())


def _entropies_of(item: Any) -> dict[str, Estimate]:
    idata = posterior_of(item)
    if idata is not None:
        return density_entropies(idata)
    if not isinstance(item, Mapping) or not all(isinstance(value, Estimate) for value in item.values()):
        raise TypeError(f"entropies are a {type(item).__name__}: expected an Estimate for each density.")
    return dict(item)


def _limits(ax: Axes, values: Array) -> None:
    """Show what comes after the first twentieth of training: the start would flatten everything else."""
    finite = values[np.isfinite(values)]
    if finite.size:
        low, high = float(finite.min()), float(finite.max())
        room = 0.06 * (high - low) or 0.1 * max(abs(high), 0.5)
        ax.set_ylim(low - room, high + room)
