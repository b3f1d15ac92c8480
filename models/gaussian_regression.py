"""Linear regression with correlated columns, written with autoguides, with its exact answers.

Ten standardised measurements x_n of a patient, the progression y_n of the disease a year later:

    w ~ Normal(0, I),    y_n ~ Normal(x_n · w, 0.7).

The posterior of w is normal with precision Λ = I + XᵀX/0.49 and far from a product, which is where a
full-rank guide and a mean-field guide part.
"""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor

from banel_pyro import Pair
from models import data
from models.normal_normal import temperature

NUM_PATIENTS, NUM_COLUMNS = 442, 10
NOISE_SD = 0.7  # residual standard deviation of least squares on these data: 0.703


def model(x: Tensor, y: Tensor) -> None:
    """Regression weights, and responses given the design.

    Args:
        x: Design (442, 10), or the rows of a minibatch.
        y: Responses (442,), or the same rows.
    """
    weights = pyro.sample("weights", dist.Normal(torch.zeros(NUM_COLUMNS), 1.0).to_event(1))
    with pyro.plate("data", NUM_PATIENTS):
        pyro.sample("y", dist.Normal((x * weights).sum(-1), NOISE_SD), obs=y)


def full_rank() -> Pair:
    """Diabetes regression with a multivariate normal guide, which can be exact."""
    guide = AutoMultivariateNormal(model)
    return Pair(model, guide, data=data.diabetes, data_plate="data", name="regression_full_rank")


def mean_field() -> Pair:
    """Diabetes regression with independent normal guides, which are narrower than the marginals."""
    guide = AutoNormal(model)
    return Pair(model, guide, data=data.diabetes, data_plate="data", name="regression_mean_field")


# Exact answers, in float64.


def log_joint(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """The joint density log p(y, w | x) in nats.

    Args:
        x: Design (N, 10).
        y: Responses (N,).
        w: Weights (..., 10).

    Returns:
        Shape (...).
    """
    x, y, w = x.double(), y.double(), w.double()
    prior = dist.Normal(torch.zeros_like(w), 1.0).log_prob(w).sum(-1)
    return prior + dist.Normal(w @ x.T, NOISE_SD).log_prob(y).sum(-1)


def posterior(x: Tensor, y: Tensor) -> dist.MultivariateNormal:
    """p(w | x, y), normal with precision Λ and mean Λ⁻¹ Xᵀy / 0.49.

    Args:
        x: Design (N, 10).
        y: Responses (N,).
    """
    return tempered_optimum(x, y, lam=0.0)


def tempered_optimum(x: Tensor, y: Tensor, *, lam: float, mean_field: bool = False) -> dist.MultivariateNormal:
    """The guide that minimises -ELBO + lam H(q): the posterior's mean; T = 1 - lam in the spread.

    Args:
        x: Design (N, 10).
        y: Responses (N,).
        lam: Weight of the entropy penalty, below 1.
        mean_field: Among products of normals (variances T/Λ_ii), not among all normals (covariance TΛ⁻¹).

    Raises:
        ValueError: If `lam` is 1 or more.
    """
    precision = _precision(x)
    mean = torch.linalg.solve(precision, x.double().T @ y.double()) / NOISE_SD**2
    if mean_field:
        precision = precision.diagonal().diag()
    return dist.MultivariateNormal(mean, precision_matrix=precision / temperature(lam))


def minimum_loss(x: Tensor, y: Tensor, *, lam: float, mean_field: bool = False) -> Tensor:
    """Smallest value of -ELBO + lam H(q), in nats.

    With m the posterior mean, S the optimal covariance and T = 1 - lam this is
    -log p(y, m | x) - T/2 log det(2πS); for the full-rank guide that is -T log ∫ p(y, w | x)^{1/T} dw.

    Args:
        x: Design (N, 10).
        y: Responses (N,).
        lam: Weight of the entropy penalty, below 1.
        mean_field: Among products of normals, not among all normals.

    Raises:
        ValueError: If `lam` is 1 or more.
    """
    best = tempered_optimum(x, y, lam=lam, mean_field=mean_field)
    half_log_det = torch.linalg.slogdet(2 * math.pi * best.covariance_matrix).logabsdet / 2
    return -log_joint(x, y, best.loc) - temperature(lam) * half_log_det


def log_evidence(x: Tensor, y: Tensor) -> Tensor:
    """The evidence log p(y | x) in nats: the largest ELBO, so minus the smallest full-rank loss at lam = 0.

    Args:
        x: Design (N, 10).
        y: Responses (N,).
    """
    return -minimum_loss(x, y, lam=0.0)


def elbo(x: Tensor, y: Tensor, *, q: dist.MultivariateNormal) -> Tensor:
    """The untempered ELBO in nats: log p(y, loc | x) - tr(ΛS)/2 + H(q); differentiable in loc, S.

    Args:
        x: Design (N, 10).
        y: Responses (N,).
        q: Guide of the weights with mean loc and covariance S; a mean-field guide has a diagonal one.
    """
    expected_curvature = 0.5 * (_precision(x) * q.covariance_matrix).sum()
    return log_joint(x, y, q.loc) - expected_curvature + q.entropy()


def _precision(x: Tensor) -> Tensor:
    """Posterior precision Λ, of shape (10, 10)."""
    x = x.double()
    return torch.eye(x.shape[-1], dtype=x.dtype) + x.T @ x / NOISE_SD**2
