"""The BaNEL ELBO in plain Pyro, with nothing else of this library.

`BaNEL_ELBO` is a Pyro ELBO: it goes wherever `Trace_ELBO` goes. This demo fits one small model in the two ways
that Pyro users write a training loop: with `pyro.infer.SVI`, and with a `torch.nn.Module` made of the loss,
model and guide under a `torch.optim` optimiser. The target is normal, so the right answer is known: the guide
has the mean of the posterior and sqrt(1 - lam) times its standard deviation. This prints how close both come.

    python -m demos.bare_svi --lam 0.4

No picture: both loops end in one printed table.
"""

import argparse
import math

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from banel_pyro import BaNEL_ELBO

PRIOR_SD, NOISE_SD = 2.0, 1.0


# Step 1: a model, here a normal mean with known noise: the posterior has precision 1/2^2 + N.
def model(x: Tensor) -> None:
    """Measurements x of an unknown mean."""
    mean = pyro.sample("mean", dist.Normal(0.0, PRIOR_SD))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, NOISE_SD), obs=x)


def fit_with_svi(x: Tensor, lam: float, steps: int) -> AutoNormal:
    """A Pyro training loop as in its tutorials; only the name of the loss is new."""
    guide = AutoNormal(model)
    optimiser = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.01 ** (1 / steps)})  # to a hundredth, at the end
    loss = BaNEL_ELBO(lam=lam, num_particles=10, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, optimiser, loss=loss)
    for step in range(steps):
        value = svi.step(x)
        if step % (steps // 5) == 0:
            # What is minimised depends on lam; the terms say what it is made of, the untempered ELBO among them.
            terms = loss.terms(model, guide, x)
            print(f"step {step:5d}   loss {value:8.2f}   ELBO {terms.elbo:8.2f}   entropy {terms.entropy:6.2f}")
    return guide


def fit_as_a_module(x: Tensor, lam: float, steps: int) -> AutoNormal:
    """A PyTorch training loop: the loss as a module, whose parameters are those of model and guide."""
    guide = AutoNormal(model)
    guide(x)  # an autoguide makes its parameters at its first call
    loss = BaNEL_ELBO(lam=lam, num_particles=10, vectorize_particles=True, max_plate_nesting=1)(model, guide)
    optimiser = torch.optim.Adam(loss.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, gamma=0.01 ** (1 / steps))
    for _ in range(steps):
        optimiser.zero_grad()
        loss(x).backward()
        optimiser.step()
        schedule.step()
    return guide


def main(args: argparse.Namespace) -> None:
    """Fit twice and compare with the exact answer."""
    pyro.set_rng_seed(args.seed)
    x = 3.0 + NOISE_SD * torch.randn(20)
    precision = 1 / PRIOR_SD**2 + len(x) / NOISE_SD**2
    exact = (x.sum() / NOISE_SD**2 / precision).item(), math.sqrt((1 - args.lam) / precision)

    # Step 2: fit in two ways, each in a parameter store of its own.
    rows = {"exact": exact}
    for name, fit in (("pyro.infer.SVI", fit_with_svi), ("torch.nn.Module", fit_as_a_module)):
        with pyro.get_param_store().scope():
            guide = fit(x, args.lam, args.steps)
            median, upper = guide.quantiles([0.5, 0.841345])["mean"]  # of a normal: the mean, and one sd above it
            rows[name] = median.item(), (upper - median).item()

    # Step 3: the guide against sqrt(1 - lam) times the posterior's standard deviation.
    print(f"\nlam = {args.lam}         mean       sd")
    for name, (mean, sd) in rows.items():
        print(f"{name:16s} {mean:8.4f} {sd:8.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--lam", type=float, default=0.4, help="weight of the entropy penalty, below 1 (default: %(default)s)"
    )
    parser.add_argument(
        "--steps", type=int, default=800, help="optimiser steps of each fit, 5 or more (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of data and fits (default: %(default)s)")
    main(parser.parse_args())
