"""Pairs that tests of model criticism share: measurements with exact guides, and the smallest pair of each kind."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from models import normal_normal

NOISE, PRIOR = normal_normal.NOISE_SD, (normal_normal.PRIOR_MEAN, normal_normal.PRIOR_SD)


def measurements() -> Tensor:
    found = normal_normal.pair().data
    assert found is not None
    return found().double()


def tempered_guide(x: Tensor, lam: float) -> Callable[..., None]:
    """The optimum at a lambda, whatever rows it is then given."""
    best = normal_normal.tempered_optimum(x, lam=lam)

    def guide(x: Tensor) -> None:
        pyro.sample("density", dist.Normal(best.loc, best.scale))

    return guide


N = 4
ROWS = torch.tensor([0.5, -1.0, 2.0, 0.1], dtype=torch.float64)


def shared_model(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def shared_guide(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(0.3, 0.4))


def local_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
