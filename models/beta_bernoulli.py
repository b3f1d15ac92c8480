"""Chance of an event seen a few times, written as plain functions, with its exact answers.

How often does a shuttle come back with a damaged O-ring? One probability z, 23 flights x_n:

    z ~ Beta(1, 3),    x_n ~ Bernoulli(z).

With s damaged flights among N the posterior is Beta(a, b), a = 1 + s and b = 3 + N - s: skewed, so
the rule sd_q = sqrt(1 - lam) sd_post, which is for normal targets, does not hold; the mode stays.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from banel_pyro import Pair
from models import data
from models.normal_normal import temperature

PRIOR_A, PRIOR_B = 1.0, 3.0
NUM_FLIGHTS = len(data.DAMAGED_FLIGHTS)


def model(x: Tensor) -> None:
    """Probability of damage, and flights with and without it.

    Args:
        x: All flights (23,), zeros and ones, or the rows of a minibatch.
    """
    risk = pyro.sample("risk", dist.Beta(PRIOR_A, PRIOR_B))
    with pyro.plate("data", NUM_FLIGHTS):
        pyro.sample("x", dist.Bernoulli(risk), obs=x)


def guide(x: Tensor) -> None:
    """A Beta distribution with free mean and concentration, the sum of its shapes; started at the prior.

    The shapes themselves would do, but they have to grow together and an optimiser is slow at that.

    Args:
        x: As in `model`; not used, the probability is one for all rows.
    """
    total = PRIOR_A + PRIOR_B
    mean = pyro.param("risk_mean", torch.tensor(PRIOR_A / total), constraint=constraints.unit_interval)
    concentration = pyro.param("risk_concentration", torch.tensor(total), constraint=constraints.positive)
    pyro.sample("risk", dist.Beta(mean * concentration, (1 - mean) * concentration))


def pair() -> Pair:
    """23 shuttle flights under a Beta prior and a Beta guide, which can be exact."""
    return Pair(model, guide, data=data.shuttle_o_rings, data_plate="data", name="beta_bernoulli")


# Exact answers, in float64.


def log_joint(x: Tensor, z: Tensor) -> Tensor:
    """The joint density log p(x, z) = (a - 1) log z + (b - 1) log(1 - z) - log B(1, 3), in nats.

    Args:
        x: Flights (N,), zeros and ones.
        z: Probabilities, any shape.

    Returns:
        Shape of `z`.
    """
    a, b = _shapes(x)
    z = z.double()
    return torch.xlogy(a - 1, z) + torch.xlogy(b - 1, 1 - z) - _log_beta(*_prior_shapes())


def posterior(x: Tensor) -> dist.Beta:
    """p(z | x) = Beta(a, b).

    Args:
        x: Flights (N,), zeros and ones.
    """
    return tempered_optimum(x, lam=0.0)


def tempered_optimum(x: Tensor, *, lam: float) -> dist.Beta:
    """The guide that minimises -ELBO + lam H(q): Beta((a - 1)/T + 1, (b - 1)/T + 1), T = 1 - lam.

    Args:
        x: Flights (N,), zeros and ones.
        lam: Weight of the entropy penalty, below 1.

    Raises:
        ValueError: If `lam` is 1 or more.
    """
    # a >= 1 and b >= 1 under this prior; a smaller shape would need lam < shape for a finite minimum.
    a, b = _shapes(x)
    return dist.Beta((a - 1) / temperature(lam) + 1, (b - 1) / temperature(lam) + 1)


def minimum_loss(x: Tensor, *, lam: float) -> Tensor:
    """Smallest value of -ELBO + lam H(q), in nats: -T log ∫ p(x, z)^{1/T} dz with T = 1 - lam.

    With a', b' the shapes of the optimum this is log B(1, 3) - T log B(a', b'), where
    log B(a, b) = log Γ(a) + log Γ(b) - log Γ(a + b).

    Args:
        x: Flights (N,), zeros and ones.
        lam: Weight of the entropy penalty, below 1.

    Raises:
        ValueError: If `lam` is 1 or more.
    """
    best = tempered_optimum(x, lam=lam)
    log_beta = _log_beta(best.concentration1, best.concentration0)
    return _log_beta(*_prior_shapes()) - temperature(lam) * log_beta


def log_evidence(x: Tensor) -> Tensor:
    """The evidence log p(x) in nats: the largest ELBO, and so minus the smallest loss at lam = 0.

    Args:
        x: Flights (N,), zeros and ones.
    """
    return -minimum_loss(x, lam=0.0)


def elbo(x: Tensor, *, q: dist.Beta) -> Tensor:
    """The untempered ELBO in nats, differentiable in the shapes a', b' of q.

    E_q[log z] = ψ(a') - ψ(a' + b') and E_q[log(1 - z)] = ψ(b') - ψ(a' + b'), ψ the digamma function.

    Args:
        x: Flights (N,), zeros and ones.
        q: Guide Beta(a', b') of the probability.
    """
    a, b = _shapes(x)
    total = torch.digamma(q.concentration1 + q.concentration0)
    log_z, log_1z = torch.digamma(q.concentration1) - total, torch.digamma(q.concentration0) - total
    return (a - 1) * log_z + (b - 1) * log_1z - _log_beta(*_prior_shapes()) + q.entropy()


def _prior_shapes() -> tuple[Tensor, Tensor]:
    """Shapes of the prior."""
    return torch.tensor(PRIOR_A, dtype=torch.float64), torch.tensor(PRIOR_B, dtype=torch.float64)


def _shapes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Shapes a, b of the posterior."""
    events = x.double().sum()
    return PRIOR_A + events, PRIOR_B + len(x) - events


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    """The logarithm of the Beta function, log B(a, b)."""
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
