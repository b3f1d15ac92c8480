"""Your own pair in 30 lines, with the guide written in each of the three ways that Pyro has.

How many soldiers of a Prussian army corps are killed by horse kicks in a year? Ladislaus von Bortkiewicz
counted 200 corps-years: 109 without a death, 65 with one, 22 with two, 3 with three and 1 with four. The model
is one rate and 200 Poisson counts. Steps 1 and 2 below are all that a pair takes: copy them and change the
model. The command line takes the same factories:

    python -m demos.own_pair
    banel fit demos.own_pair:as_functions --lam 0,0.4 --epochs 200 --out runs/horse_kicks

No picture: every guide ends in a row of one printed table.
"""

import argparse
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor

from banel_pyro import Pair

DEATHS = torch.repeat_interleave(torch.arange(5.0), torch.tensor([109, 65, 22, 3, 1]))


# Step 1: the model. Its arguments are the rows of the data. A plate over the size of *all* data lets `fit` train
# on minibatches: it tells the plate which rows are in the batch, and Pyro scales their likelihood.
def model(deaths: Tensor) -> None:
    """Deaths in army corps, with one rate for all."""
    rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
    with pyro.plate("data", len(DEATHS)):
        pyro.sample("deaths", dist.Poisson(rate), obs=deaths)


# Step 2, as functions: a guide with pyro.param, and a factory that puts the pair together.
def guide(deaths: Tensor) -> None:
    """A log-normal rate; the arguments are those of the model."""
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(0.1), constraint=constraints.positive)
    pyro.sample("rate", dist.LogNormal(loc, scale))


def as_functions() -> Pair:
    """Model and guide as functions."""
    return Pair(model, guide, data=lambda: DEATHS, name="horse_kicks")


# Step 2, with an autoguide: Pyro writes the guide.
def as_autoguide() -> Pair:
    """The guide that Pyro writes: a normal distribution of log(rate)."""
    return Pair(model, AutoNormal(model), data=lambda: DEATHS, name="horse_kicks")


# Step 2, as a module: parameters are attributes, and networks could be.
class Guide(PyroModule):
    """A log-normal rate, as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = PyroParam(torch.tensor(0.0))
        self.scale = PyroParam(torch.tensor(0.1), constraint=constraints.positive)

    def forward(self, deaths: Tensor) -> None:
        """Draw the rate; the arguments are those of the model."""
        pyro.sample("rate", dist.LogNormal(self.loc, self.scale))


def as_module() -> Pair:
    """The guide as a PyroModule."""
    return Pair(model, Guide(), data=lambda: DEATHS, name="horse_kicks")


def main(args: argparse.Namespace) -> None:
    """Fit the three pairs and compare them with the exact posterior of the rate."""
    print(f"{'guide':14s} {'lam':>4s} {'mean rate':>10s} {'sd':>7s} {'entropy':>8s} {'ELBO':>9s}")
    # `optim` is a torch.optim class or, as here, any callable from parameters to an optimiser: Adam, with a learning
    # rate that falls to a hundredth in the two steps of every epoch. Leave it out for fused Adam at `lr`.
    optimiser = partial(ClippedAdam, lr=0.03, lrd=0.01 ** (1 / (2 * args.epochs)))
    for factory in (as_functions, as_autoguide, as_module):
        for lam in (0.0, 0.4):
            # Step 3: fit. Each run in a parameter store of its own, so that runs never share weights.
            with pyro.get_param_store().scope():
                pair = factory()
                options = {"batch_size": 100, "optim": optimiser, "seed": args.seed, "progress": False}
                result = pair.fit(lam=lam, epochs=args.epochs, **options)
                rate = result.posterior(num_samples=args.draws).posterior["rate"]
            # The history holds averages since the last log point, in nats per datum.
            last = result.history.tail(20).mean() * len(DEATHS)
            row = f"{float(rate.mean()):10.4f} {float(rate.std()):7.4f} {last['entropy']:8.2f} {last['elbo']:9.2f}"
            print(f"{factory.__name__:14s} {lam:4.1f} {row}")

    # Step 4: here the posterior at lam = 0 is known, Gamma(1 + deaths, 1 + corps-years).
    exact = dist.Gamma(1 + DEATHS.sum(), torch.tensor(1.0 + len(DEATHS)))
    row = f"{float(exact.mean):10.4f} {float(exact.stddev):7.4f} {float(exact.entropy()):8.2f}"
    print(f"{'exact':14s} {0:4.1f} {row}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--epochs", type=int, default=300, help="passes through the data in each fit (default: %(default)s)"
    )
    parser.add_argument("--draws", type=int, default=1000, help="draws from each guide (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of every fit (default: %(default)s)")
    main(parser.parse_args())
