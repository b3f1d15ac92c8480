"""Quickstart: what lambda does to a posterior, in a dozen lines of code.

How dense is the Earth? Henry Cavendish measured it 29 times in 1798, in units of the density of water. The
model has two unknowns, the density and the noise of one measurement. We fit it twice with

    loss = -ELBO + lam * H(guide)

once at lam = 0, which is plain variational inference, and once at lam = 0.4, which penalises the entropy of
the guide and so narrows it. For a posterior that is close to normal, every standard deviation shrinks by
about sqrt(1 - 0.4) = 0.77; the locations hardly move, and the ELBO falls by what the narrowing costs.

    python -m demos.quickstart
"""

import argparse
from pathlib import Path

import arviz as az
import pyro
import pyro.distributions as dist
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from banel_pyro import Pair, spread
from models.data import earth_density


# Step 1: a Pyro model. The plate says which axis of the data runs over data points.
def model(x: Tensor) -> None:
    """29 measurements x of one density, with noise of unknown size."""
    density = pyro.sample("density", dist.Normal(5.0, 1.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(density, noise), obs=x)


def main(args: argparse.Namespace) -> None:
    """Fit the pair at two values of lambda and compare the posteriors."""
    posteriors = {}
    for lam in (0.0, 0.4):
        # Step 2: a pair is a model, a guide and the data they are for. Each run has parameters of its own.
        with pyro.get_param_store().scope():
            pair = Pair(model, AutoNormal(model), data=earth_density)
            result = pair.fit(lam=lam, lr=0.02, steps=args.steps, seed=args.seed)
            # Step 3: draws from the guide, as the InferenceData that every function of ArviZ takes.
            posterior = posteriors[f"lam = {lam}"] = result.posterior(num_samples=args.draws)
        # Step 4: how wide is each latent? entropy is in nats; iqr_ratio compares with the prior.
        elbo = result.history["elbo"].tail(20).mean() * len(earth_density())
        print(f"\nlam = {lam}: ELBO {elbo:.2f} nats\n{spread(posterior).round(3)}")

    # Step 5: look at both posteriors.
    axes = az.plot_density(
        list(posteriors.values()),
        data_labels=list(posteriors),
        var_names=["density", "noise"],
        colors=["#0072B2", "#D55E00"],
        shade=0.25,
        figsize=(9, 3.6),
        textsize=11,
    ).ravel()
    axes[0].set(title="Density of the Earth", xlabel="density, in units of water's")
    axes[1].set(title="Noise of one measurement", xlabel="standard deviation, same units")
    axes[0].figure.suptitle("The posterior at two values of lambda (94 % interval, dot: mean)", y=1.03)
    args.out.mkdir(parents=True, exist_ok=True)
    axes[0].figure.savefig(args.out / "quickstart.png", dpi=150, bbox_inches="tight")
    print(f"\nThe picture is in {args.out / 'quickstart.png'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="optimiser steps of each fit (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=1000, help="draws from each guide (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of both fits (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/quickstart"), help="folder for the picture (default: %(default)s)"
    )
    main(parser.parse_args())
