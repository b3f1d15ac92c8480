"""The four pictures of the page, each with its question, its caption and its text for those who do not see it."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from banel_pyro.diagnostics.spread import spread
from banel_pyro.inference_data import group, group_names
from banel_pyro.report import plots

if TYPE_CHECKING:
    from banel_pyro.report import Run

__all__ = ["FEW_ROWS", "MAX_LATENTS", "MAX_PREDICTED", "Picture", "pictures", "predictions_picture", "svg_of"]
__all__ += ["training_picture"]

MAX_LATENTS = 40
"""Latents that the spread picture shows at most."""

FEW_ROWS = 50
"""Up to so many data points, each one's latents are shown by themselves; else their average."""

MAX_PREDICTED = 12
"""Data points of which predictions are shown."""


@dataclass(frozen=True)
class Picture:
    """A picture with what a reader needs to understand it.

    Args:
        title: the question that it answers.
        caption: one or two sentences.
        alt: what it shows, for those who do not see it.
        svg: the picture.
        photo: True for images of data, whose black and white are not to be swapped on a dark page.
    """

    title: str
    caption: str
    alt: str
    svg: str
    photo: bool = False


def pictures(runs: Sequence[Run]) -> list[Picture]:
    """The pictures of some runs, without those that their draws do not allow.

    Args:
        runs: of one pair on one data set.
    """
    histories = {run.label: run.history for run in runs}
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **plots.STYLE}):
        drawn = [draw(runs) for draw in (_spread, _entropy, predictions_picture)]
    if all(len(history) for history in histories.values()):  # a run may have been stopped before its first log point
        drawn.insert(0, training_picture(histories, runs[0].config["per"]))
    return [picture for picture in drawn if picture is not None]


def training_picture(histories: Mapping[str, pd.DataFrame], per: str) -> Picture:
    """Terms and λ over training.

    Args:
        histories: a run's history by label; one run needs none, and may have an empty one.
        per: what its nats are of, ``"datum"`` or ``"total"``, as in a run's configuration.
    """
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **plots.STYLE}):
        return _training(histories, per)


def _training(histories: Mapping[str, pd.DataFrame], per: str) -> Picture:
    panels = {"elbo": "ELBO", "log_likelihood": "log-likelihood", "kl": "KL", "entropy": "entropy", "lam": "λ"}
    figure = _figure(histories, 4.9)
    grid = figure.subplot_mosaic([["elbo", "elbo"], ["log_likelihood", "kl"], ["entropy", "lam"]])
    for column, title in panels.items():
        held_out = "val_elbo" if column == "elbo" else None
        plots.plot_terms(histories, column, held_out=held_out, ax=grid[column])
        grid[column].set(title=title, xlabel="", ylabel="")  # the caption has the unit
    for column in ("entropy", "lam"):
        grid[column].set_xlabel("step")
    evaluated = any("val_elbo" in history for history in histories.values())
    unit = "nats per data point" if per == "datum" else "nats in all"
    last = {label: history.iloc[-1] for label, history in histories.items()}
    return Picture(
        "What happened in training?",
        f"A line for each run, in {unit}. The ELBO is the honest score, without λ; higher is better"
        f"{', and dots are held-out data' if evaluated else ''}. The first steps lie outside the charts.",
        f"Line charts over the steps of training: {', '.join(panels.values())}. At the end, "
        + _each(last, lambda row: f"ELBO {row['elbo']:.2f}, entropy {row['entropy']:.2f}"),
        svg_of(figure),
    )


def _spread(runs: Sequence[Run]) -> Picture:
    """How wide the posterior of each latent is."""
    idata, size = runs[0].idata, runs[0].numbers.num_rows or 0
    plate = idata.attrs["data_plate"]
    over = [plate] if size > FEW_ROWS and plate in group(idata, "posterior").dims else []
    widths = {run.label: spread(run.idata, over=over)["iqr_ratio"] for run in runs}
    latents = max(map(len, widths.values()))
    noise = 1.17 * math.sqrt(2 / runs[0].numbers.draws)  # of a ratio of interquartile ranges, for normal draws
    averaged, error = (f", mean of {size} data points", "") if over else ("", f" Errors are about {noise:.0%}.")
    cut = f" Only the first {MAX_LATENTS} of {latents} latents are shown." if latents > MAX_LATENTS else ""
    figure = _figure(widths, 1.1 + 0.27 * min(latents, MAX_LATENTS))
    plots.plot_spread({label: series.iloc[:MAX_LATENTS] for label, series in widths.items()}, ax=figure.subplots())
    return Picture(
        "How wide is the posterior of each latent?",
        f"Width of the middle half of the posterior as a share of the prior's{averaged}. At 1 the data taught nothing; "
        f"near 0 the latent is known almost exactly.{error}{cut}",
        "A row for each latent with a mark for each run. Width of the posterior as a share of the prior's, "
        + _each(widths, lambda series: f"median {series.median():.2f}, from {series.min():.2f} to {series.max():.2f}"),
        svg_of(figure),
    )


def _entropy(runs: Sequence[Run]) -> Picture:
    """Entropy of each data point's posterior, or of each site where latents are shared."""
    if not all("entropy" in run.numbers.per_datum for run in runs):
        return _entropy_of_sites(runs)
    entropies = {run.label: run.numbers.per_datum["entropy"] for run in runs}
    figure = _figure(entropies, 2.8)
    plots.plot_entropy_per_datum(entropies, ax=figure.subplots())
    return Picture(
        "How much is left unknown about each data point?",
        "Entropy of every data point's posterior: one nat less is a volume 2.7 times smaller. It may be negative. "
        "Upright lines are means.",
        "A histogram for each run of the entropy of a data point's posterior in nats, "
        + _each(entropies, lambda found: f"mean {found.mean():.2f}, from {found.min():.2f} to {found.max():.2f}"),
        svg_of(figure),
    )


def _entropy_of_sites(runs: Sequence[Run]) -> Picture:
    entropies = {run.label: run.numbers.entropies for run in runs}
    figure = _figure(entropies, 1.1 + 0.3 * max(map(len, entropies.values())))
    plots.plot_entropies(entropies, ax=figure.subplots())
    return Picture(
        "How much is left unknown?",
        "Entropy of the posterior of each latent site, with two standard errors: one nat less is a volume 2.7 times "
        "smaller. It may be negative.",
        "A row for each latent site with a mark for each run, entropy in nats, "
        + _each(entropies, lambda found: ", ".join(f"{site} {e.value:.2f}" for site, e in found.items())),
        svg_of(figure),
    )


def predictions_picture(runs: Sequence[Run]) -> Picture | None:
    """Originals and reconstructions; for data that are no images, observed numbers against predicted ones."""
    site = _predicted_site(runs)
    if site is None:
        return None
    observed = group(runs[0].idata, "observed_data")[site]
    predicted = {run.label: _draws(group(run.idata, "posterior_predictive")[site]) for run in runs}
    shape = next(iter(predicted.values())).shape[2:]
    side = plots.image_side(shape)
    if side is not None and runs[0].idata.attrs["data_plate"] in observed.dims:
        return _images(observed.to_numpy()[:MAX_PREDICTED], predicted, side)
    return _intervals(observed, predicted)


def _predicted_site(runs: Sequence[Run]) -> str | None:
    """The first observed site that every run has predictions of."""
    if not all({"posterior_predictive", "observed_data"} <= set(group_names(run.idata)) for run in runs):
        return None
    names = map(str, group(runs[0].idata, "observed_data").data_vars)
    return next((n for n in names if all(n in group(run.idata, "posterior_predictive") for run in runs)), None)


def _images(seen: Any, predicted: Mapping[str, Any], side: int) -> Picture:
    """Images in two bands, so that they are not too small on a phone."""
    kinds = {"seen": seen} | {label: draws.mean(axis=0)[: len(seen)] for label, draws in predicted.items()}
    kinds = {label: images.reshape(-1, side, side) for label, images in kinds.items()}
    darkest = max(1.0, *(float(images.max()) for images in kinds.values()))
    columns = min(6, len(seen))
    bands = max(1, len(seen) // columns)
    figure = Figure((plots.WIDTH, 0.62 * bands * len(kinds) + 0.15 * bands), layout="constrained")
    for band, part in enumerate(np.atleast_1d(figure.subfigures(bands, 1, hspace=0.06))):
        here = slice(band * columns, (band + 1) * columns)
        grid = part.subplots(len(kinds), columns, squeeze=False)
        plots.plot_images({label: images[here] / darkest for label, images in kinds.items()}, axes=grid)
    return Picture(
        "What does the posterior remember?",
        "Data points as the guide saw them; below each, what the model makes of its posterior, averaged over draws.",
        f"{bands * columns} images of {side} by {side} pixels, each above its reconstructions: {', '.join(predicted)}.",
        svg_of(figure),
        photo=True,
    )


def _intervals(observed: xr.DataArray, predicted: Mapping[str, Any]) -> Picture:
    values = observed.to_series().iloc[:MAX_PREDICTED] if observed.dims else pd.Series([observed.item()], index=[0])
    values.index = pd.Index([f"{observed.name}[{', '.join(map(str, np.atleast_1d(i)))}]" for i in values.index])
    draws = {label: found.reshape(len(found), -1)[:, : len(values)] for label, found in predicted.items()}
    figure = _figure(predicted, 1.1 + 0.3 * len(values))
    plots.plot_intervals(values, draws, ax=figure.subplots())
    return Picture(
        "What does the posterior expect to see?",
        f"Black: the first {len(values)} observed numbers. Coloured: where a new one would lie with 90 % probability.",
        f"A row for each of {len(values)} observed numbers with its predicted interval. Inside it lie, "
        + _each(draws, lambda found: f"{_inside(values, found)} of {len(values)}"),
        svg_of(figure),
    )


def _inside(values: pd.Series, draws: Any) -> int:
    low, high = np.quantile(draws, plots.NINETY, axis=0)
    return int(((values >= low) & (values <= high)).sum())


def _draws(values: xr.DataArray) -> Any:
    """(chain, draw, ...) as (sample, ...)."""
    array = values.to_numpy()
    return array.reshape(-1, *array.shape[2:])


def _each(items: Mapping[str, Any], told: Callable[[Any], str]) -> str:
    return "; ".join(f"{label}: {told(item)}" if label else told(item) for label, item in items.items()) + "."


def _figure(labels: Iterable[str], height: float) -> Figure:
    """A figure with a legend above it, in as many columns as fit; ``height`` in inches is without the legend."""
    figure = Figure((plots.WIDTH, height), layout="constrained")
    plots.add_legend(figure, labels)
    return figure


def svg_of(figure: Figure) -> str:
    """A figure as text; the same files make the same page.

    Args:
        figure: of matplotlib.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()
