"""The pictures of a sweep: what λ buys, what it costs, whether to believe it, and what it looks like."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from banel_pyro.report import plots
from banel_pyro.report.canvas import GREY, colour, marker
from banel_pyro.report.numbers import TERMS
from banel_pyro.report.pictures import Picture, predictions_picture, svg_of
from banel_pyro.report.recommend import SCORE_NAMES
from banel_pyro.report.sweep_numbers import Group, SweepReport
from banel_pyro.terms import Estimate

__all__ = ["sweep_pictures"]

COVERED = 0.95
"""What intervals of the guide should hold of the posterior."""


def sweep_pictures(report: SweepReport) -> list[Picture]:
    """The pictures of a sweep, without those that its runs do not allow.

    Args:
        report: what the sweep found.
    """
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **plots.STYLE}):
        found = [_frontier(report), _bounds(report), _trust(report), _samples(report)]
        shown = [group.shown for group in report.groups if group.shown is not None]
        found.insert(3, predictions_picture(shown))
    return [picture for picture in found if picture is not None]


def _frontier(report: SweepReport) -> Picture:
    """Reconstruction against rate, and against entropy."""
    figure = Figure((plots.WIDTH, 5.6), layout="constrained")
    for ax, term in zip(figure.subplots(2, 1), ("kl", "entropy"), strict=True):
        points = [(group.value(term), group.value("log_likelihood")) for group in report.groups]
        ax.plot([x.value for x, _ in points], [y.value for _, y in points], color=GREY, linewidth=1, zorder=1)
        for i, (group, (x, y)) in enumerate(zip(report.groups, points, strict=True)):
            ax.errorbar(x.value, y.value, xerr=_two(x), yerr=_two(y), fmt=marker(i), color=colour(i), markersize=6)
            ax.annotate(group.label, (x.value, y.value), xytext=(6, -10), textcoords="offset points", fontsize=8)
        ax.margins(0.12)
        ax.set_ylabel("log-likelihood")
    ax_rate, ax_entropy = figure.axes
    ax_rate.set_xlabel("rate: KL to the prior")
    ax_entropy.set_xlabel("entropy of the posterior")
    each = "; ".join(
        f"{g.label}: {', '.join(f'{TERMS[t]} {g.value(t).value:.2f}' for t in ('log_likelihood', 'kl', 'entropy'))}"
        for g in report.groups
    )
    return Picture(
        "What does λ buy, and at what rate?",
        f"Log-likelihood of the reconstructions against the rate and against the entropy, in {_unit(report)}, with two "
        "standard errors over seeds and data. The ELBO is the log-likelihood minus the rate.",
        f"Two charts with a point for each λ. {each}.",
        svg_of(figure),
    )


def _bounds(report: SweepReport) -> Picture:
    """ELBO and IWAE against λ, and their paired differences from the reference."""
    figure = Figure((plots.WIDTH, 5.4), layout="constrained")
    above, below = figure.subplots(2, 1)
    terms = [*dict.fromkeys(["elbo", "iwae", report.score])]
    for i, term in enumerate(terms):
        name = _name(term)
        _against(above, report.groups, [g.value(term) for g in report.groups], i, name)
        changes = [report.change(g, term) for g in report.groups]
        _against(below, report.groups, [Estimate(0, 0) if math.isnan(c.value) else c for c in changes], i, name)
    below.axhline(0, color=GREY, linewidth=1)
    above.set_ylabel(_unit(report))
    below.set_ylabel(f"minus that at {report.reference.label}")
    below.set_xlabel("λ")
    plots.add_legend(figure, map(_name, terms))
    each = "; ".join(
        f"{g.label}: {', '.join(f'{_name(t)} {g.value(t).value:.2f}' for t in terms)}" for g in report.groups
    )
    return Picture(
        "Which λ explains the data best?",
        f"Above: {', '.join(map(_name, terms))}, without λ in them; higher is better. Below: their paired differences "
        f"from {report.reference.label}. Bars are two standard errors.",
        f"Two charts against λ. {each}.",
        svg_of(figure),
    )


def _trust(report: SweepReport) -> Picture | None:
    """k-hat and coverage against λ, a mark for each seed."""
    titles = {"k_hat": "k-hat of the weights", "coverage": "coverage of 95 % intervals"}
    made = {name: title for name, title in titles.items() if any(g.known(name) for g in report.groups)}
    if not made:
        return None
    lines = {"k_hat": {t for g in report.groups for t in g.known("k_hat_threshold")}, "coverage": {COVERED}}
    figure = Figure((plots.WIDTH, 2.4 * len(made)), layout="constrained")
    for ax, (name, title) in zip(figure.subplots(len(made), 1, squeeze=False)[:, 0], made.items(), strict=True):
        for i, (x, group) in enumerate(zip(_positions(ax, report.groups), report.groups, strict=True)):
            values = group.known(name)
            ax.plot([x] * len(values), values, marker(i), color=colour(i), markersize=5, alpha=0.8)
        for value in lines[name]:
            ax.axhline(value, color=GREY, linewidth=1, linestyle="--")
        ax.set(ylabel=title, xlabel="λ")
    each = "; ".join(
        f"{g.label}: " + ", ".join(f"{title} {value:.2f}" for name, title in made.items() for value in g.known(name))
        for g in report.groups
    )
    return Picture(
        "Where can the posterior be trusted?",
        "A mark for each seed. k-hat says whether importance weights can correct the posterior: below the dashed line "
        "they can. Coverage is what central 95 % intervals hold of the corrected posterior, for the latent that is "
        "covered least: below the line they are too narrow. k-hat alone passes posteriors that are too narrow.",
        f"Charts against λ with a mark for each seed. {each}.",
        svg_of(figure),
    )


def _samples(report: SweepReport) -> Picture | None:
    """What the models make of their priors."""
    found = {
        g.label: next(iter(g.extra.values()))["samples"].to_numpy()
        for g in report.groups
        if g.shown is not None and "samples" in next(iter(g.extra.values()))
    }
    if not found:
        return None
    side = plots.image_side(next(iter(found.values())).shape[1:])
    if side is None:
        figure = Figure((plots.WIDTH, 2.8), layout="constrained")
        plots.plot_prior_samples(found, axes=figure.subplots(1, 1, squeeze=False))
        plots.add_legend(figure, found)
    else:
        found = {label: images[:6] / max(1.0, float(images.max())) for label, images in found.items()}
        figure = Figure((plots.WIDTH, 0.64 * len(found)), layout="constrained")
        plots.plot_images(found, axes=figure.subplots(len(found), 6, squeeze=False))
    return Picture(
        "What does the model expect before it sees anything?",
        "Samples of each model: latents drawn from the prior, decoded. The seed, and so the latents, are the same in "
        "every row.",
        f"Samples of the prior for each λ: {', '.join(found)}.",
        svg_of(figure),
        photo=side is not None,
    )


# ---- how -----------------------------------------------------------------------------------------


def _against(ax: Axes, groups: Sequence[Group], values: Iterable[Estimate], number: int, name: str) -> None:
    """Numbers with two standard errors against λ."""
    found = list(values)
    style: dict[str, Any] = {"color": colour(number), "marker": marker(number), "markersize": 5, "linewidth": 1.3}
    errors = [_two(estimate) for estimate in found]
    where = _positions(ax, groups)
    ax.errorbar(where, [estimate.value for estimate in found], yerr=errors, capsize=2, label=name, **style)


def _positions(ax: Axes, groups: Sequence[Group]) -> list[float]:
    """Where each λ is on the axis: at its value, or where it has none, in order."""
    if all(math.isfinite(group.lam) for group in groups):
        return [group.lam for group in groups]
    places = [float(i) for i in np.arange(len(groups))]
    ax.set_xticks(places, [group.label for group in groups], rotation=30, ha="right")
    return places


def _two(estimate: Estimate) -> float:
    return 2 * estimate.stderr if math.isfinite(estimate.stderr) else 0.0


def _unit(report: SweepReport) -> str:
    return next(iter(report.reference.numbers.values())).unit


def _name(term: str) -> str:
    return TERMS.get(term) or SCORE_NAMES[term]
