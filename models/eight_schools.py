"""Eight schools, the small hierarchical model that everybody knows, written with autoguides.

Does coaching help in a test? Effects y_j with known standard errors sigma_j in eight schools:

    mu ~ Normal(0, 5),  tau ~ HalfCauchy(5),  theta_j ~ Normal(mu, tau),  y_j ~ Normal(theta_j, sigma_j).

This is posteriordb's parametrisation and its names, so its reference draws can stand beside a fit.
"""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from banel_pyro import Pair
from models import data

NUM_SCHOOLS = len(data.SCHOOL_EFFECTS)


def noncentered_model(y: Tensor, sigma: Tensor) -> None:
    """Effects as theta = mu + tau * theta_trans, theta_trans standard normal: easy for a mean-field guide.

    Args:
        y: Estimated effects (8,).
        sigma: Their standard errors (8,).
    """
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", NUM_SCHOOLS):
        theta_trans = pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * theta_trans, event_dim=0)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def centered_model(y: Tensor, sigma: Tensor) -> None:
    """Effects theta drawn directly around mu: a funnel, narrow where tau is small.

    Args:
        y: Estimated effects (8,).
        sigma: Their standard errors (8,).
    """
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", NUM_SCHOOLS):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def noncentered() -> Pair:
    """Eight schools in the non-centred form with a mean-field guide: safe for every lam < 1."""
    return _pair(noncentered_model, "eight_schools_noncentered")


def centered() -> Pair:
    """Eight schools in the centred form with a mean-field guide: the loss has no minimum for lam > 0.2.

    Along sd(theta) = sd(mu) = tau = e^m, m to minus infinity, the loss is (8 - 10T) m plus a constant,
    T = 1 - lam: the guide falls down the funnel. It is here to show that, and the alarm that it sets off.
    """
    return _pair(centered_model, "eight_schools_centered")


def _pair(model: Callable[[Tensor, Tensor], None], name: str) -> Pair:
    """The model with a fresh AutoNormal guide."""
    return Pair(model, AutoNormal(model), data=data.eight_schools, data_plate="schools", name=name)
