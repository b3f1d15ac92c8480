"""Pairs that only the benchmark needs: logistic regression of any size, an enumerated mixture, a chain of sites."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoNormal, init_to_value
from torch import Tensor

from banel_pyro import BaNEL_TraceEnum_ELBO, Pair
from models import data

COLUMNS = 20
COMPONENTS = 3
STARTS = (2.0, 4.0, 5.5)
"""Where the components of the mixture start, in centimetres: apart, so that every run finds the same mode."""


# Logistic regression: what depends on the number of rows, and what does not.
def logistic_rows(size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Standard normal measurements (size, 20) and the answers (size,) of known weights, from a fixed seed."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, COLUMNS, generator=generator)
    weights = torch.linspace(-1, 1, COLUMNS)
    return x, (torch.rand(size, generator=generator) < (x @ weights).sigmoid()).to(x.dtype)


def _weights(x: Tensor) -> tuple[Tensor, Tensor]:
    intercept = pyro.sample("intercept", dist.Normal(x.new_zeros(()), 1.0))
    return intercept, pyro.sample("weights", dist.Normal(x.new_zeros(COLUMNS), 1.0).to_event(1))


def _answers(logits: Tensor, y: Tensor) -> None:
    pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


def logistic_pair(rows: tuple[Tensor, Tensor]) -> Pair:
    """The model of a batch, with a plate over all rows, which `fit` tells what rows there are."""
    size = len(rows[0])

    def model(x: Tensor, y: Tensor) -> None:
        intercept, weights = _weights(x)
        with pyro.plate("data", size):
            _answers(intercept + (x * weights).sum(-1), y)

    return Pair(model, AutoNormal(model), data=lambda: rows, data_plate="data", name="logistic regression")


@dataclass(frozen=True)
class PlainLogistic:
    """The model as plain Pyro has it: of all rows, a plate of which draws the rows of a step.

    Args:
        batch_size: Rows of a step.
        told: Whether the plate is given the rows, drawn from torch's generator, and draws none itself.
    """

    batch_size: int
    told: bool = False

    def __call__(self, x: Tensor, y: Tensor) -> None:
        """Sample the weights, observe the answers of a batch."""
        intercept, weights = _weights(x)
        rows: dict[str, Any] = {"subsample_size": self.batch_size}
        if self.told:
            rows = {"subsample": torch.randint(len(x), (self.batch_size,))}
        with pyro.plate("data", len(x), **rows) as index:
            _answers(intercept + (x[index] * weights).sum(-1), y[index])


def plain_logistic(batch_size: int, *, told: bool = False) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Model and guide for `SVI.step(x, y)` on all rows."""
    model = PlainLogistic(batch_size, told)
    return model, AutoNormal(model)


# A mixture whose assignments are a discrete site, to be summed out.
def mixture_model(x: Tensor) -> None:
    """Weights, locations and scales of normal components, and a component for each length.

    Args:
        x: Lengths in centimetres (B,).
    """
    weights = pyro.sample("weights", dist.Dirichlet(2 * x.new_ones(COMPONENTS)))
    locations = pyro.sample("locations", dist.Normal(x.new_full((COMPONENTS,), 4.0), 2.0).to_event(1))
    scales = pyro.sample("scales", dist.LogNormal(x.new_full((COMPONENTS,), -1.0), 0.5).to_event(1))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locations[k], scales[k]), obs=x)


def mixture_pair() -> Pair:
    """The mixture for the petals of iris, under independent normals for what is continuous."""
    dtype = torch.get_default_dtype()
    starts = {
        "weights": torch.full((COMPONENTS,), 1 / COMPONENTS, dtype=dtype),
        "locations": torch.tensor(STARTS, dtype=dtype),
        "scales": torch.full((COMPONENTS,), -1.0, dtype=dtype).exp(),
    }
    model = config_enumerate(mixture_model)
    guide = AutoNormal(poutine.block(model, hide=["k"]), init_loc_fn=init_to_value(values=starts))
    objective = BaNEL_TraceEnum_ELBO(max_plate_nesting=1)
    return Pair(model, guide, data=mixture_rows, data_plate="data", name="mixture", objective=objective)


def mixture_rows() -> tuple[Tensor]:
    """All that is trained on."""
    return (data.iris_petals().train,)


# A chain, of as many sites as one likes.
def chain_model(y: Tensor, *, sites: int) -> None:
    """A random walk z_1, z_2, ..., every step a site of its own, and a noisy look at each.

    Args:
        y: What was seen (sites,).
        sites: Steps of the walk.
    """
    z, walk = y.new_zeros(()), []
    for i in range(sites):
        z = pyro.sample(f"z{i}", dist.Normal(z, 1.0))
        walk.append(z)
    with pyro.plate("data", sites):
        pyro.sample("y", dist.Normal(torch.stack(walk, -1), 1.0), obs=y)


def chain_rows(sites: int, seed: int = 0) -> tuple[Tensor]:
    """A walk of this length, seen with noise."""
    generator = torch.Generator().manual_seed(seed)
    steps, noise = torch.randn(2, sites, generator=generator)
    return (steps.cumsum(0) + noise,)


def chain_pair(rows: tuple[Tensor]) -> Pair:
    """The chain of that length under independent normals."""
    model = partial(chain_model, sites=len(rows[0]))
    return Pair(model, AutoNormal(model), data=lambda: rows, data_plate="data", name="chain")
