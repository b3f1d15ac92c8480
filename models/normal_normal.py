"""Normal mean with known noise, written as plain functions, with its exact answers.

How dense is the Earth? One unknown z, in units of the density of water; 29 measurements x_i:

    z ~ Normal(4.5, 0.3),    x_i ~ Normal(z, 0.22).

The prior is what was known before Cavendish, the 4.5 of the Schiehallien experiment (Hutton, 1778),
with our guess of its error. log p(x, z) is a parabola in z with curvature Λ = 1/0.3² + N/0.22².
"""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from banel_pyro import Pair
from models import data

PRIOR_MEAN, PRIOR_SD = 4.5, 0.3
NOISE_SD = 0.22
NUM_MEASUREMENTS = len(data.CAVENDISH_DENSITIES)


def model(x: Tensor) -> None:
    """Density of the Earth, and measurements of it.

    Args:
        x: All measurements (29,), or the rows of a minibatch.
    """
    density = pyro.sample("density", dist.Normal(PRIOR_MEAN, PRIOR_SD))
    with pyro.plate("data", NUM_MEASUREMENTS):
        pyro.sample("x", dist.Normal(density, NOISE_SD), obs=x)


def guide(x: Tensor) -> None:
    """A normal distribution with free mean and scale, started at the prior.

    Args:
        x: As in `model`; not used, the density is one for all rows.
    """
    loc = pyro.param("density_loc", torch.tensor(PRIOR_MEAN))
    scale = pyro.param("density_scale", torch.tensor(PRIOR_SD), constraint=constraints.positive)
    pyro.sample("density", dist.Normal(loc, scale))


def pair() -> Pair:
    """Cavendish's 29 measurements under a normal model and guide; the guide can be exact."""
    return Pair(model, guide, data=data.earth_density, data_plate="data", name="normal_normal")


# Exact answers, in float64.


def temperature(lam: float) -> float:
    """Temperature T = 1 - lam at which the penalised loss does inference.

    Args:
        lam: Weight of the entropy penalty, below 1.

    Raises:
        ValueError: If `lam` is 1 or more: the loss of a continuous guide has no minimum then.
    """
    if not lam < 1:
        raise ValueError(f"lam={lam}: expected lam < 1; from 1 on the loss of a continuous guide has no minimum")
    return 1 - lam


def log_joint(x: Tensor, z: Tensor) -> Tensor:
    """The joint density log p(x, z) in nats.

    Args:
        x: Measurements (N,).
        z: Densities, any shape.

    Returns:
        Shape of `z`.
    """
    x, z = x.double(), z.double()
    prior = dist.Normal(z.new_tensor(PRIOR_MEAN), PRIOR_SD).log_prob(z)
    return prior + dist.Normal(z.unsqueeze(-1), NOISE_SD).log_prob(x).sum(-1)


def posterior(x: Tensor) -> dist.Normal:
    """p(z | x), the normal distribution with precision Λ and mean (4.5/0.3² + Σ x_i/0.22²) / Λ.

    Args:
        x: Measurements (N,).
    """
    return tempered_optimum(x, lam=0.0)


def tempered_optimum(x: Tensor, *, lam: float) -> dist.Normal:
    """The guide that minimises -ELBO + lam H(q): the posterior's mean, sqrt(1 - lam) times its sd.

    Args:
        x: Measurements (N,).
        lam: Weight of the entropy penalty, below 1.

    Raises:
        ValueError: If `lam` is 1 or more.
    """
    weighted_sum = PRIOR_MEAN / PRIOR_SD**2 + x.double().sum() / NOISE_SD**2
    sd = math.sqrt(temperature(lam) / _precision(x))
    return dist.Normal(weighted_sum / _precision(x), sd)


def minimum_loss(x: Tensor, *, lam: float) -> Tensor:
    """Smallest value of -ELBO + lam H(q), in nats: -T log ∫ p(x, z)^{1/T} dz with T = 1 - lam.

    With m the posterior mean this is -log p(x, m) - T/2 log(2π T/Λ).

    Args:
        x: Measurements (N,).
        lam: Weight of the entropy penalty, below 1.

    Raises:
        ValueError: If `lam` is 1 or more.
    """
    best = tempered_optimum(x, lam=lam)
    return -log_joint(x, best.loc) - temperature(lam) * torch.log(math.sqrt(2 * math.pi) * best.scale)


def log_evidence(x: Tensor) -> Tensor:
    """The evidence log p(x) in nats: the largest ELBO, and so minus the smallest loss at lam = 0.

    Args:
        x: Measurements (N,).
    """
    return -minimum_loss(x, lam=0.0)


def elbo(x: Tensor, *, q: dist.Normal) -> Tensor:
    """The untempered ELBO in nats: log p(x, loc) - Λ/2 scale² + H(q); differentiable in loc, scale.

    Args:
        x: Measurements (N,).
        q: Guide Normal(loc, scale) of the density.
    """
    return log_joint(x, q.loc) - 0.5 * _precision(x) * q.scale**2 + q.entropy()


def _precision(x: Tensor) -> float:
    """Posterior precision Λ."""
    return 1 / PRIOR_SD**2 + len(x) / NOISE_SD**2
