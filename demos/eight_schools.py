"""Eight schools: ArviZ on two posteriors, and the trap that a funnel sets for an entropy penalty.

Does coaching help in a test? Eight schools estimated the effect of a course, with standard errors. The model
shares information between them: theta_j = mu + tau * theta_trans_j, where tau is the spread between schools.

1. In the non-centred form, as just written, lam = 0.3 gives a somewhat narrower posterior than lam = 0. This
   shows it with ArviZ's own functions: summary, plot_forest, plot_posterior and plot_pair. The draws of a
   guide are independent, so summary is asked for `kind="stats"`: R-hat and ESS judge Markov chains, and there
   is none here.
2. In the centred form, theta_j ~ Normal(mu, tau), the joint density has a funnel, with a peak that grows
   without bound as tau and the theta's close in on mu together. With a mean-field guide the penalised loss has
   no minimum for lam > 0.2: the guide narrows without end while the untempered ELBO falls. `fit` notices
   that and stops with a CollapseError, which is printed here; a picture shows what it saw.

    python -m demos.eight_schools

If the environment variable BANEL_DATA names a folder with posteriordb's reference draws (bayes/reference_draws,
10 chains of a long NUTS run) they stand beside the two fits in the forest plot.
"""

import argparse
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
from matplotlib.figure import Figure

from banel_pyro import CollapseDetector, CollapseError
from models import data, eight_schools

SCHOOLS = list("ABCDEFGH")
COLOURS = ["#0072B2", "#D55E00", "#000000"]  # of Okabe and Ito, told apart with every kind of colour vision
REFERENCE = Path("reference_draws") / "eight_schools-eight_schools_noncentered.json.zip"


# Step 1: fit the non-centred form at two values of lambda, and draw from both guides.
def fitted(lam: float, args: argparse.Namespace) -> tuple[az.InferenceData, pd.DataFrame]:
    """Draws from a guide trained at one lambda, and the history of the fit."""
    with pyro.get_param_store().scope():
        result = eight_schools.noncentered().fit(lam=lam, steps=args.steps, lr=0.02, seed=args.seed)
        # The plate becomes a dimension of its name, and its rows may have names too.
        return result.posterior(num_samples=args.draws, coords={"schools": SCHOOLS}), result.history


def reference() -> az.InferenceData | None:
    """NUTS draws of posteriordb, or None without them."""
    try:
        file = data.data_folder("bayes") / REFERENCE
        with zipfile.ZipFile(file) as archive:
            chains = json.loads(archive.read(REFERENCE.stem))
    except FileNotFoundError as missing:
        print(f"Going on without the reference draws: {missing}.")
        return None
    theta = np.stack([[chain[f"theta[{j + 1}]"] for j in range(len(SCHOOLS))] for chain in chains])
    draws = {"mu": np.array([c["mu"] for c in chains]), "tau": np.array([c["tau"] for c in chains])}
    draws["theta"] = theta.transpose(0, 2, 1)
    return az.from_dict(posterior=draws, coords={"schools": SCHOOLS}, dims={"theta": ["schools"]})


# Step 2: ArviZ on both posteriors.
def forest(posteriors: dict[str, az.InferenceData]) -> Figure:
    """Intervals of every effect, for each posterior."""
    (axes,) = az.plot_forest(
        list(posteriors.values()),
        model_names=list(posteriors),
        var_names=["mu", "tau", "theta"],
        combined=True,
        hdi_prob=0.9,
        colors=COLOURS[: len(posteriors)],
        figsize=(8, 8),
        textsize=11,
    )
    axes.set_title("Eight schools: median, quartiles and 90 % interval", fontsize=12)
    axes.set_xlabel("points of the SAT-V score")
    return axes.figure


def marginals(posteriors: dict[str, az.InferenceData]) -> Figure:
    """Posterior densities of mu, tau and the effect in school A, a row for each lambda."""
    figure, axes = plt.subplots(2, 3, figsize=(11, 6), sharex="col", layout="constrained")
    for (label, idata), row, colour in zip(posteriors.items(), axes, COLOURS, strict=False):
        az.plot_posterior(
            idata,
            var_names=["mu", "tau", "theta"],
            coords={"schools": ["A"]},
            hdi_prob=0.9,
            ax=row,
            color=colour,
            textsize=11,
        )
        for axis, name in zip(row, ("mu", "tau", "theta in school A"), strict=True):
            axis.set_title(f"{name} at {label}")
            axis.set_xlabel("points of the SAT-V score")
    return figure


def pairs(posteriors: dict[str, az.InferenceData]) -> Figure:
    """Regions of mu, tau and the effect in school A that hold half and 90 % of the draws."""
    axes = None
    for (_, idata), colour in zip(posteriors.items(), COLOURS, strict=False):
        axes = az.plot_pair(
            idata,
            var_names=["mu", "tau", "theta"],
            coords={"schools": ["A"]},
            kind="kde",
            kde_kwargs={
                "hdi_probs": [0.5, 0.9],
                "fill_last": True,  # or plot_kde sets an alpha of its own
                "contour_kwargs": {"colors": colour},
                "contourf_kwargs": {"alpha": 0.0},
            },
            figsize=(8, 7),
            textsize=11,
            ax=axes,
        )
    figure = axes.ravel()[0].figure
    handles = [plt.Line2D([], [], color=colour) for colour, _ in zip(COLOURS, posteriors, strict=False)]
    figure.legend(handles, list(posteriors), loc="upper right", bbox_to_anchor=(0.88, 0.86))
    figure.suptitle("Half and 90 % of the draws lie inside the lines (points of the SAT-V score)", y=0.93)
    return figure


# Step 3: the same penalty on the centred form, where the loss has no minimum.
def centred(lam: float, args: argparse.Namespace, *, guard: CollapseDetector | None) -> pd.DataFrame:
    """The history of a fit of the centred form, with the collapse detector or without."""
    with pyro.get_param_store().scope():
        pair = eight_schools.centered()
        return pair.fit(lam=lam, steps=args.steps, lr=0.02, seed=args.seed, collapse=guard).history


def collapse(histories: dict[str, pd.DataFrame], stopped: int | None) -> Figure:
    """Untempered ELBO and entropy over training, of a guide that settles and of one that collapses."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for (label, found), colour, line in zip(histories.items(), COLOURS, ("-", "--"), strict=False):
        smooth = found.rolling(5, min_periods=1, center=True).mean()
        for axis, column in zip(axes, ("elbo", "entropy"), strict=True):
            # The history is in nats per school, the data plate of this model.
            axis.plot(found["step"], smooth[column] * len(SCHOOLS), color=colour, linestyle=line, label=label)
    for axis, title in zip(axes, ("Untempered ELBO", "Entropy of the guide"), strict=True):
        if stopped is not None:
            axis.axvline(stopped, color="#767676", linestyle=":", label="fit stops here: CollapseError")
        axis.set(title=title, xlabel="step", ylabel="nats, all schools together")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(bottom=max(axes[0].get_ylim()[0], -45.0))
    axes[1].legend(loc="center right", bbox_to_anchor=(1.0, 0.6), edgecolor="white", framealpha=1.0)
    return figure


def main(args: argparse.Namespace) -> None:
    """Two posteriors in ArviZ, and one that does not exist."""
    posteriors, histories = {}, {}
    for lam in (0.0, 0.3):
        posteriors[f"lam = {lam}"], histories[f"non-centred, lam = {lam}"] = fitted(lam, args)
    for label, idata in posteriors.items():
        print(f"\n{label}\n{az.summary(idata, var_names=['mu', 'tau', 'theta'], kind='stats', hdi_prob=0.9)}")
    found = reference()
    with_reference = posteriors | ({} if found is None else {"NUTS": found})
    figures = {"forest": forest(with_reference), "posterior": marginals(posteriors), "pair": pairs(posteriors)}

    stopped = None
    try:
        centred(0.3, args, guard=CollapseDetector())
        print(f"\nNo collapse within {args.steps} steps: try more.")
    except CollapseError as error:
        stopped = error.step
        print(f"\nThe centred form at lam = 0.3 stopped with a CollapseError, as it should:\n{error}")
    del histories["non-centred, lam = 0.0"]
    histories["centred, lam = 0.3, let run on"] = centred(0.3, args, guard=None)
    save(figures | {"collapse": collapse(histories, stopped)}, args.out)


def save(figures: dict[str, Figure], folder: Path) -> None:
    """Write the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=130, bbox_inches="tight")
        plt.close(figure)
    print(f"\nPictures in {folder}: {', '.join(f'{name}.png' for name in figures)}")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000, help="optimiser steps of each fit (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=1000, help="draws from each guide (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of every fit (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/eight_schools"), help="folder for the pictures (default: %(default)s)"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse())
