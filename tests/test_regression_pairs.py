"""Three regressions against exact answers: quadrature, exact ELBO and Gaussian posteriors, posteriordb's draws."""

import math
import os
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor
from torch.nn.functional import logsigmoid

from banel_pyro import BaNEL_ELBO, fit
from banel_pyro.diagnostics import posteriordb_draws
from banel_pyro.inference_data import group
from banel_pyro.plates import DataPlate
from models import data, kidiq, logistic, radon
from tests.importance import evidence_error, mean_error, weighted_draws

pytestmark = pytest.mark.usefixtures("float64")


def decay(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """A learning rate that falls, so that a short fit ends close to the optimum."""
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.994)


# Logistic regression with a single column: the posterior by quadrature


def one_column() -> tuple[Tensor, Tensor]:
    """One measurement, the mean texture, and the answers."""
    x, y = data.breast_cancer().train
    return x[:, 1:2], y


def test_the_logistic_posterior_agrees_with_quadrature() -> None:
    x, y = one_column()
    side = torch.linspace(-2, 2, 161)
    intercept, weight = torch.meshgrid(side, side, indexing="ij")
    log_p = dist.Normal(0.0, 1.0).log_prob(intercept) + dist.Normal(0.0, 1.0).log_prob(weight)
    for column, answer in zip(x[:, 0], y, strict=True):
        log_p += logsigmoid((2 * answer - 1) * (intercept + weight * column))
    log_evidence = log_p.logsumexp((0, 1)) + 2 * math.log(side[1] - side[0])
    p = log_p.flatten().softmax(0)
    exact = torch.stack([p @ intercept.flatten(), p @ weight.flatten()])
    squares = torch.stack([p @ intercept.flatten() ** 2, p @ weight.flatten() ** 2])
    sd = (squares - exact**2).sqrt()

    guide = AutoMultivariateNormal(logistic.model)
    fit(logistic.model, guide, (x, y), steps=400, lr=0.03, lr_scheduler=decay, seed=0, progress=False)
    weighted = weighted_draws(logistic.model, guide, x, y, draws=500)
    values = torch.stack([weighted.values["intercept"], weighted.values["weights"][:, 0]], dim=1)
    assert abs(evidence_error(weighted.log_w, log_evidence)) < 4
    assert mean_error(weighted, values, exact).abs().max() < 4
    assert ((values.mean(0) - exact) / sd).abs().max() < 0.2  # the guide itself: the posterior is nearly normal
    assert (values.std(0) / sd - 1).abs().max() < 0.1
    assert abs(weighted.log_w.mean() - log_evidence) < 0.1  # the ELBO reaches the evidence, in nats


# Logistic regression with all columns: the ELBO of a normal guide by quadrature over x · w


def exact_elbo(x: Tensor, y: Tensor, loc: Tensor, tril: Tensor) -> Tensor:
    """ELBO in nats of Normal(loc, tril trilᵀ) over (intercept, weights); logits are normal, one at a time."""
    nodes, weights = (torch.tensor(each) for each in np.polynomial.hermite_e.hermegauss(40))
    x = torch.cat([torch.ones(len(x), 1), x], dim=1)
    mean, sd = x @ loc, (x @ tril).norm(dim=1)
    logits = mean[:, None] + sd[:, None] * nodes
    expected = (logsigmoid((2 * y - 1)[:, None] * logits) * weights).sum() / math.sqrt(2 * math.pi)
    q = dist.MultivariateNormal(loc, scale_tril=tril)
    prior = dist.MultivariateNormal(torch.zeros_like(loc), scale_tril=torch.eye(len(loc)))
    return expected - torch.distributions.kl_divergence(q, prior)


@pytest.mark.parametrize(("batch", "draws"), [(40, 200), (400, 50)])
def test_the_logistic_gradient_is_that_of_the_exact_elbo(batch: int, draws: int) -> None:
    x, y = data.breast_cancer().train
    guide = AutoMultivariateNormal(logistic.model)
    guide(x, y)
    parameters = list(guide.parameters())
    for parameter in parameters:
        parameter.data += 0.2 * torch.randn_like(parameter)
    tril = guide.scale[:, None] * guide.scale_tril
    exact = torch.autograd.grad(-exact_elbo(x, y, guide.loc, tril), parameters)
    gradients, plate = [], DataPlate("data", len(x), scaled=True)
    for _ in range(draws):
        rows = torch.randperm(len(x))[:batch]
        with plate.rows(rows):
            loss = BaNEL_ELBO().differentiable_loss(logistic.model, guide, x[rows], y[rows])
        gradients.append(torch.autograd.grad(loss, parameters))
    for name, mine, expected in zip(dict(guide.named_parameters()), zip(*gradients, strict=True), exact, strict=True):
        mine = torch.stack(mine)
        used = mine.std(0) > 0  # the upper triangle is no parameter
        z = (mine.mean(0) - expected)[used] / (mine.std(0)[used] / draws**0.5)
        assert z.abs().max() < 5, name
        assert abs(z.square().mean() - 1) < 6 * (2 / used.sum()) ** 0.5, name
        assert (expected[~used] == 0).all(), name


# Radon, given its two scales: the posterior of the other latents is normal

COUNTY_SD, NOISE_SD = 0.2, 0.75
LATENTS = {"intercept": 1, "floor": 1, "uranium": 1, "county": radon.NUM_COUNTIES}


@pytest.fixture
def houses() -> tuple[Tensor, ...]:
    """The training houses."""
    if not os.environ.get("BANEL_DATA"):
        pytest.skip("BANEL_DATA is not set")
    return data.radon().train


def given_scales() -> Any:
    """The model with its two scales known."""
    return poutine.condition(radon.model, {"county_sd": torch.tensor(COUNTY_SD), "noise_sd": torch.tensor(NOISE_SD)})


def design(houses: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The matrix that turns latents into expected log radon, and the latents' prior standard deviations."""
    county, floor, uranium, _ = houses
    counties = COUNTY_SD * torch.nn.functional.one_hot(county, radon.NUM_COUNTIES)
    matrix = torch.cat([torch.ones(len(county), 1), floor[:, None], uranium[:, None], counties], dim=1)
    return matrix, torch.cat([torch.full((3,), 2.0), torch.ones(radon.NUM_COUNTIES)])


def exact_posterior(houses: tuple[Tensor, ...]) -> dist.MultivariateNormal:
    """The posterior by least squares."""
    matrix, prior_sd = design(houses)
    precision = torch.diag(prior_sd**-2) + matrix.T @ matrix / NOISE_SD**2
    return dist.MultivariateNormal(
        torch.linalg.solve(precision, matrix.T @ houses[-1]) / NOISE_SD**2, precision_matrix=precision
    )


def exact_evidence(houses: tuple[Tensor, ...]) -> float:
    """The evidence in nats, from the marginal of the data alone."""
    matrix, prior_sd = design(houses)
    covariance = (matrix * prior_sd**2) @ matrix.T + NOISE_SD**2 * torch.eye(len(matrix))
    return float(dist.MultivariateNormal(torch.zeros(len(matrix)), covariance).log_prob(houses[-1]))


def test_the_exact_radon_posterior_is_that_of_the_model(houses: tuple[Tensor, ...]) -> None:
    """log p(y, z) - log p(z | y) is the evidence, whatever z."""
    posterior, evidence = exact_posterior(houses), exact_evidence(houses)
    for z in posterior.sample((5,)):
        parts = dict(zip(LATENTS, z.split(list(LATENTS.values())), strict=True))
        at = {name: value if name == "county" else value[0] for name, value in parts.items()}
        trace = poutine.trace(poutine.condition(given_scales(), at)).get_trace(*houses)
        of_scales = sum(dist.HalfNormal(1.0).log_prob(torch.tensor(sd)) for sd in (COUNTY_SD, NOISE_SD))
        log_p = trace.log_prob_sum() - of_scales
        assert log_p - posterior.log_prob(z) == pytest.approx(evidence, rel=1e-10)


def test_a_radon_fit_in_minibatches_ends_at_the_best_product_of_normals(houses: tuple[Tensor, ...]) -> None:
    posterior, model = exact_posterior(houses), given_scales()
    guide = AutoNormal(model)
    options = {"batch_size": 200, "data_plate": "data", "seed": 0, "progress": False}
    fit(model, guide, houses, steps=600, lr=0.05, lr_scheduler=decay, **options)
    mean, sd = (
        torch.cat([getattr(part, name).detach().reshape(-1) for name in LATENTS]) for part in (guide.locs, guide.scales)
    )
    precision = posterior.precision_matrix
    best_sd = precision.diagonal() ** -0.5
    gap = mean - posterior.mean
    lost = gap @ precision @ gap / 2 + ((sd / best_sd) ** 2 / 2 - (sd / best_sd).log() - 0.5).sum()
    assert lost < 2.0  # nats of the ELBO, of more than a thousand to begin with
    assert (sd / best_sd - 1).abs().mean() < 0.05


# The scores of children: least squares, and posteriordb's draws


@pytest.fixture
def children() -> tuple[Tensor, Tensor]:
    if not os.environ.get("BANEL_DATA"):
        pytest.skip("BANEL_DATA is not set")
    return data.kidiq()


def least_squares(mother: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients (3,), and the inverse of X'X (3, 3)."""
    design = torch.cat([torch.ones_like(mother[:, :1]), mother], dim=1)
    inverse = torch.linalg.inv(design.T @ design)
    return inverse @ design.T @ score, inverse


def log_joint(model: Any, mother: Tensor, score: Tensor, **latents: Tensor) -> Tensor:
    return poutine.trace(poutine.condition(model, latents)).get_trace(mother, score).log_prob_sum()


def test_both_models_of_scores_are_the_regression(children: tuple[Tensor, Tensor]) -> None:
    """Where a coefficient moves, both log densities change by what the sum of squares says; priors are flat."""
    mother, score = children
    units = torch.tensor([1.0, *kidiq.UNITS])
    design = torch.cat([torch.ones_like(mother[:, :1]), mother], dim=1)
    changes = []
    for coef in (torch.zeros(3), torch.tensor([1.0, 2.0, 8.0])):
        slopes = coef[1:] / units[1:]
        beta = torch.cat([kidiq.USUAL_SCORE + coef[:1] - slopes @ torch.tensor(kidiq.USUAL_MOTHER), slopes])
        exact = -0.5 * ((score - design @ beta) ** 2).sum() / 18.0**2
        raw = log_joint(kidiq.raw_model, mother, score, beta=beta, sigma=torch.tensor(18.0))
        centred = log_joint(kidiq.model, mother, score, coef=coef, noise=torch.tensor(18.0 / kidiq.USUAL_NOISE))
        changes.append(torch.stack([exact, raw, centred]))
    exact, raw, centred = changes[1] - changes[0]
    assert exact > 50  # nats
    assert raw == pytest.approx(float(exact), abs=0.01)
    assert centred == pytest.approx(float(exact), abs=0.01)


def test_scores_have_posteriordbs_posterior(children: tuple[Tensor, Tensor]) -> None:
    """With flat priors coefficients have the mean of least squares, and E[sigma^2] times the inverse of X'X."""
    draws = group(posteriordb_draws("kidiq-kidscore_momhsiq"), "posterior")
    beta, sigma = (draws[name].to_numpy().reshape(10_000, -1) for name in ("beta", "sigma"))
    mean, inverse = least_squares(*children)
    exact = np.sqrt((sigma**2).mean() * inverse.diagonal().numpy())
    assert np.abs((beta.mean(0) - mean.numpy()) / exact).max() < 4 / 100
    assert np.abs(beta.std(0) / exact - 1).max() < 4 / math.sqrt(2 * 10_000)


def test_independent_guides_of_raw_columns_reach_a_seventh_of_the_sds(
    children: tuple[Tensor, Tensor],
) -> None:
    _, inverse = least_squares(*children)
    ratio = (torch.linalg.inv(inverse).diagonal() * inverse.diagonal()).rsqrt()
    assert ratio.tolist() == pytest.approx([0.15, 0.44, 0.14], abs=0.01)
