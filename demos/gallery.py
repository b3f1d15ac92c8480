"""Every picture that `banel_pyro.report.plots` makes, once: those of the documentation.

Three small problems, fitted in seconds: an autoencoder of handwritten digits with eight latents, at lam = 0 and
lam = 0.4, for what happens in training and in the latent dimensions; another one with two latents, which can be
looked at; and eight schools, whose few latents are shared, at several lam. For the ranks of a calibration guides
need no fitting: those of a mean of normal data are known.

    python -m demos.gallery --out docs/pictures

Each function takes what is drawn first, one object or a mapping of label to object, and `ax=` if you have axes.
Without them it makes a figure of pyplot, as here.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from banel_pyro import FitResult, Pair, spread, to_arviz
from banel_pyro.diagnostics import (
    calibrate,
    compare,
    kl_per_dimension,
    latent_traversal,
    nuts_reference,
    posterior_predictive_check,
    prior_samples,
)
from banel_pyro.inference_data import group
from banel_pyro.report import plots
from models import data, eight_schools, normal_normal, vae

IMAGES = 8
SCHOOLS = ["mu", "tau", "theta"]
LAMS = (-0.5, 0.0, 0.25, 0.5, 0.75)


# Step 1: the digits, twice. Each fit has parameters of its own.
def digits(lam: float, latents: int, args: argparse.Namespace) -> FitResult:
    """An autoencoder of the digits, trained at one lambda."""
    with pyro.get_param_store().scope():
        pyro.set_rng_seed(args.seed)
        sizes = {"pixels": 64, "hidden": 200, "latents": latents}
        pair = Pair(vae.Decoder(**sizes), vae.Encoder(**sizes), data=data.digits, data_plate="data", name="digits")
        return pair.fit(lam=lam, steps=args.steps, batch_size=128, lr=2e-3, seed=args.seed)


def of_the_digits(results: dict[str, FitResult], args: argparse.Namespace) -> dict[str, Any]:
    """Pictures of training, of each data point's posterior, and of what the latent dimensions carry."""
    held_out: Tensor = next(iter(results.values())).held_out[0]
    posteriors = {label: result.posterior(held_out, num_samples=args.draws // 5) for label, result in results.items()}
    kls = {label: kl_per_dimension(result.model, result.guide, held_out) for label, result in results.items()}
    plain = next(iter(results.values()))
    return {
        "terms": plots.plot_terms(results, "elbo", held_out="val_elbo"),
        "spread": plots.plot_spread(posteriors, over="data"),
        "entropy_per_datum": plots.plot_entropy_per_datum(posteriors),
        "kl_per_dimension": plots.plot_kl_per_dimension(kls),
        "images": plots.plot_images({"held out": held_out[:IMAGES]} | reconstructions(results, held_out, args)),
        "prior_samples": plots.plot_prior_samples(prior_samples(plain.model, held_out, num_samples=24, seed=args.seed)),
        "latent_traversal": plots.plot_latent_traversal(latent_traversal(plain.model, held_out)),
    }


def reconstructions(results: dict[str, FitResult], images: Tensor, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """What each model makes of its posterior of some images: the mean of draws, (datum, pixels)."""
    found = {}
    for label, result in results.items():
        draws = result.posterior(images[:IMAGES], num_samples=args.draws // 5, groups=["posterior_predictive"])
        found[label] = group(draws, "posterior_predictive")["x"].mean(["chain", "draw"]).to_numpy()
    return found


# Step 2: two latents, so that there is a plane to look at, and the digits that the model never saw the names of.
def of_the_plane(args: argparse.Namespace) -> dict[str, Any]:
    """Where the held-out digits lie."""
    result = digits(0.0, 2, args)
    _, labels = data.digits_labels()
    posterior = result.posterior(result.held_out[0], num_samples=args.draws // 10)
    return {"latent_scatter": plots.plot_latent_scatter(posterior, labels)}


# Step 3: a model whose latents are shared between data points.
def of_the_schools(args: argparse.Namespace) -> dict[str, Any]:
    """Spread against lambda, entropies, and what the posterior expects to see."""
    posteriors = {}
    for lam in LAMS:
        with pyro.get_param_store().scope():
            result = eight_schools.noncentered().fit(lam=lam, steps=args.steps, lr=0.02, seed=args.seed)
            groups = ["posterior", "sample_stats", "prior", "posterior_predictive"]
            posteriors[lam] = result.posterior(
                num_samples=args.draws, groups=groups, coords={"schools": list("ABCDEFGH")}
            )
    two = {f"λ = {lam:g}": posteriors[lam] for lam in (0.0, 0.5)}
    draws = {label: group(idata, "posterior_predictive")["y"].to_numpy()[0] for label, idata in two.items()}
    effects = pd.Series(data.SCHOOL_EFFECTS, index=[f"school {name}" for name in "ABCDEFGH"])
    intervals = plots.plot_intervals(effects, draws)
    intervals.set_xlabel("effect of coaching (points of the SAT-V score)")  # a picture is yours to finish
    truth = reference(args)
    comparisons = {lam: compare(idata, truth, var_names=SCHOOLS) for lam, idata in posteriors.items()}
    return {
        "sd_ratio_against_lam": plots.plot_sd_ratio_against_lam(comparisons),
        "spread_against_lam": plots.plot_spread_against_lam({lam: spread(idata) for lam, idata in posteriors.items()}),
        "entropies": plots.plot_entropies(two),
        "intervals": intervals,
    }


def of_calibrations(args: argparse.Namespace) -> dict[str, Any]:
    """Ranks of true values among draws of the guides of data that were drawn with them, at two lambda."""
    options: dict[str, Any] = {"num_simulations": min(args.draws, 400), "num_draws": 19, "progress": False}
    found = {
        f"λ = {lam:g}": calibrate(normal_normal.pair, fit=partial(put_optimum, lam=lam), seed=args.seed, **options)
        for lam in (0.0, 0.75)
    }
    return {"ranks": plots.plot_ranks(found, "density"), "rank_ecdf": plots.plot_rank_ecdf(found, "density")}


def of_the_earth(args: argparse.Namespace) -> dict[str, Any]:
    """Statistics of replicated measurements around those of the measurements, at two lambda."""
    groups, checks = ["posterior_predictive", "observed_data"], {}
    for lam in (0.0, 0.75):
        pair = normal_normal.pair()
        with pyro.get_param_store().scope():
            put_optimum(pair, lam=lam)
            draws = to_arviz(
                pair.model, pair.guide, data.earth_density(), num_samples=args.draws, groups=groups, seed=args.seed
            )
        checks[f"λ = {lam:g}"] = posterior_predictive_check(draws)
    return {"predictive_check": plots.plot_predictive_check(checks)}


def put_optimum(pair: Pair, *, lam: float) -> None:
    """Where training would end, which is known here: hundreds of fits would take minutes."""
    x = pair.data() if pair.data is not None else ()
    exact = normal_normal.tempered_optimum(x[0] if isinstance(x, tuple) else x, lam=lam)
    pyro.param("density_loc", exact.loc.float())
    pyro.param("density_scale", exact.scale.float(), constraint=dist.constraints.positive)


def reference(args: argparse.Namespace) -> Any:
    """What NUTS draws from the posterior of the eight schools."""
    each = max(args.draws // 2, 4)
    return nuts_reference(
        eight_schools.noncentered(),
        num_samples=each,
        warmup_steps=each,
        num_chains=2,
        target_accept=0.9,
        seed=args.seed,
    )


def save(pictures: dict[str, Any], folder: Path) -> None:
    """Write the pictures, sharp enough for a page, and close them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, axes in pictures.items():
        figure = np.ravel(axes)[0].figure
        figure.savefig(folder / f"{name}.png", dpi=160, pil_kwargs={"optimize": True})
        plt.close(figure)
    print(f"Pictures in {folder}: {', '.join(f'{name}.png' for name in pictures)}")


def main(args: argparse.Namespace) -> None:
    """Fit, draw, save."""
    matplotlib.use("Agg")  # files only: no window, with a screen or without
    torch.set_num_threads(1)  # a step is a millisecond: a second thread mostly waits
    results = {f"λ = {lam:g}": digits(lam, 8, args) for lam in (0.0, 0.4)}
    known = of_calibrations(args) | of_the_earth(args)
    save(of_the_digits(results, args) | of_the_plane(args) | of_the_schools(args) | known, args.out)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="optimiser steps of each fit (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=1000, help="draws from the guides at most (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of every fit (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gallery"), help="folder for the pictures (default: %(default)s)"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse())
