"""The optimum of the loss is what the mathematics says it is (laws L3, L4), for every objective and pair."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from banel_pyro import BaNEL_ELBO
from models import beta_bernoulli, gaussian_regression, normal_normal
from tests.cases import PAIRS
from tests.laws import assert_mean, gradients

pytestmark = pytest.mark.usefixtures("float64")

EXACT = {
    "normal_normal": (normal_normal, "density"),
    "full_rank": (gaussian_regression, "weights"),
    "beta_bernoulli": (beta_bernoulli, "risk"),
}
LAMBDAS = (-0.5, 0.0, 0.3, 0.6)


def rows(name: str) -> tuple[Tensor, ...]:
    data = PAIRS[name]().data()
    return tuple(row.double() for row in data) if isinstance(data, tuple) else (data.double(),)


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("name", EXACT)
def test_at_the_optimum_every_draw_has_the_minimal_loss(name: str, lam: float) -> None:
    """log p - T log q is constant where q is proportional to p^(1/T): no standard error is needed."""
    module, site = EXACT[name]
    data = rows(name)
    best = module.tempered_optimum(*data, lam=lam)

    def guide(*args: Tensor) -> None:
        pyro.sample(site, best)

    elbo = BaNEL_ELBO(lam=lam, entropy="monte_carlo")
    losses = torch.tensor([elbo.loss(module.model, guide, *data) for _ in range(20)])
    exact = module.minimum_loss(*data, lam=lam)
    torch.testing.assert_close(losses, exact.expand(20), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("lam", LAMBDAS)
def test_mean_field_optimum_has_zero_gradient(lam: float) -> None:
    data = rows("mean_field")
    best = gaussian_regression.tempered_optimum(*data, lam=lam, mean_field=True)
    loc, log_sd = best.mean.clone().requires_grad_(), (best.variance.log() / 2).requires_grad_()

    def guide(*args: Tensor) -> None:
        pyro.sample("weights", dist.Normal(loc, log_sd.exp()).to_event(1))

    class Problem:
        pass

    problem = Problem()
    problem.model = lambda: gaussian_regression.model(*data)  # type: ignore[attr-defined]
    problem.guide = guide  # type: ignore[attr-defined]
    elbo = BaNEL_ELBO(lam=lam)
    found = [gradients(elbo, problem, {"loc": loc, "log_sd": log_sd}) for _ in range(400)]
    assert_mean(torch.tensor([v for v, _ in found]), gaussian_regression.minimum_loss(*data, lam=lam, mean_field=True))
    for i in range(2):
        assert_mean([g[i] for _, g in found], torch.zeros(len(loc)))


@pytest.mark.parametrize(("name", "lam"), [("normal_normal", 0.5), ("mean_field", 0.5), ("beta_bernoulli", -0.5)])
def test_svi_finds_the_optimum(name: str, lam: float) -> None:
    module, site = {"mean_field": (gaussian_regression, "weights"), **EXACT}[name]
    options = {"mean_field": True} if name == "mean_field" else {}
    pair = PAIRS[name]()
    objective = BaNEL_ELBO(num_particles=32, vectorize_particles=True, max_plate_nesting=1)
    for lr, steps in ((0.03, 500), (0.003, 300)):
        result = pair.fit(objective=objective, lam=lam, lr=lr, steps=steps, seed=0, progress=False)
    draws = result.posterior(num_samples=4000, groups=("posterior",))["posterior"][site][0].to_numpy()
    best = module.tempered_optimum(*rows(name), lam=lam, **options)
    sd = best.variance.sqrt()
    # 4000 draws give sds to about 1.1 percent, and the last steps leave a percent or two
    off = (torch.as_tensor(draws.mean(0)) - best.mean).abs() / module.posterior(*rows(name)).variance.sqrt()
    assert float(off.max()) < 0.15
    torch.testing.assert_close(torch.as_tensor(draws.std(0)), sd, rtol=0.06, atol=0.0)


def test_two_sites_with_a_lambda_each() -> None:
    """H_s is conditional in guide order: q(z2|z1) ~ p^(1/T2), q(z1) ~ Z2(z1)^(T2/T1)."""
    log_p = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    t1, t2 = 1 - 0.6, 1 + 0.5
    log_z2 = torch.logsumexp(log_p / t2, 1)
    log_q2 = log_p / t2 - log_z2[:, None]
    log_q1 = torch.log_softmax(log_z2 * t2 / t1, 0)

    def model() -> None:
        z1 = pyro.sample("z1", dist.Categorical(torch.ones(3)))
        z2 = pyro.sample("z2", dist.Categorical(torch.ones(4)))
        pyro.factor("p", log_p[z1, z2] + math.log(12))

    def guide() -> None:
        z1 = pyro.sample("z1", dist.Categorical(logits=log_q1))
        pyro.sample("z2", dist.Categorical(logits=log_q2[z1]))

    elbo = BaNEL_ELBO(lam={"z1": 0.6, "z2": -0.5}, entropy="monte_carlo")
    minimum = -t1 * torch.logsumexp(log_z2 * t2 / t1, 0)
    for _ in range(20):
        assert elbo.loss(model, guide) == pytest.approx(float(minimum), abs=1e-9)
    closed = BaNEL_ELBO(lam={"z1": 0.6, "z2": -0.5}, entropy="closed_form")
    assert_mean(torch.tensor([closed.loss(model, guide) for _ in range(500)]), minimum)
    other_order = -t2 * torch.logsumexp(torch.logsumexp(log_p / t1, 0) * t1 / t2, 0)
    assert abs(float(other_order - minimum)) > 0.01, "the order of the sites matters"


LOG_P = torch.log(torch.tensor([0.1, 0.45, 0.05, 0.4], dtype=torch.float64))


def categorical_model() -> None:
    pyro.sample("z", dist.Categorical(logits=LOG_P))


@pytest.mark.parametrize("lam", [-1.0, 0.0, 0.5])
@pytest.mark.parametrize("entropy", ["closed_form", "monte_carlo"])
def test_discrete_optimum(lam: float, entropy: str) -> None:
    logits = (LOG_P / (1 - lam)).clone().requires_grad_()

    def guide() -> None:
        pyro.sample("z", dist.Categorical(logits=logits))

    elbo = BaNEL_ELBO(lam=lam, entropy=entropy)
    minimum = -(1 - lam) * torch.logsumexp(LOG_P / (1 - lam), 0)
    losses, slopes = [], []
    for _ in range(400):
        logits.grad = None
        losses.append(elbo.loss_and_grads(categorical_model, guide))
        slopes.append(logits.grad.clone())
    assert_mean(torch.tensor(losses), minimum)
    assert_mean(slopes, torch.zeros(4))
    if entropy == "monte_carlo":
        torch.testing.assert_close(torch.tensor(losses), minimum.expand(400))


def test_discrete_above_one_is_the_point_mass_at_the_mode() -> None:
    logits = torch.zeros(4, requires_grad=True)

    def guide() -> None:
        pyro.sample("z", dist.Categorical(logits=logits).expand([1]).to_event(1))

    def model() -> None:
        pyro.sample("z", dist.Categorical(logits=LOG_P).expand([1]).to_event(1))

    elbo = BaNEL_ELBO(lam=2.0, num_particles=16, vectorize_particles=True, max_plate_nesting=0)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        elbo.loss_and_grads(model, guide)
        optimizer.step()
    assert int(logits.argmax()) == int(LOG_P.argmax())
    assert elbo.loss(model, guide) == pytest.approx(-float(LOG_P.max()), abs=0.02)
