"""Conjugate pairs for the tests of calibration: at the top of a module, so that other processes find them.

z ~ Normal(0, 1), x_i ~ Normal(z, 1) for three i: the posterior is Normal(sum x / 4, 1/2).
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from banel_pyro import Pair

N = 3


def model(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("data", N):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(()))
    scale = pyro.param("scale", torch.ones(()), constraint=constraints.positive)
    pyro.sample("z", dist.Normal(loc, scale))


def data() -> Tensor:
    return torch.tensor([0.5, -1.0, 2.0])


def by_hand() -> Pair:
    """A guide whose two parameters are in the param store."""
    return Pair(model, guide, data, name="three numbers")


def automatic() -> Pair:
    return Pair(model, AutoNormal(model, init_scale=0.5), data, name="three numbers, AutoNormal")


class Exact:
    """Sets the guide of :func:`by_hand` to its optimum, Normal(sum x / 4 + shift, (1 - lam) / 4)."""

    def __init__(self, lam: float = 0.0, shift: float = 0.0) -> None:
        self.lam, self.shift, self.calls = lam, shift, 0

    def __call__(self, pair: Pair) -> None:
        self.calls += 1
        x = pair.split().train
        x = x[0] if isinstance(x, tuple) else x
        pyro.param("loc", x.sum() / (N + 1) + self.shift)
        scale = torch.as_tensor(((1 - self.lam) / (N + 1)) ** 0.5)
        pyro.param("scale", scale, constraint=constraints.positive)


def exact(pair: Pair) -> None:
    Exact()(pair)
