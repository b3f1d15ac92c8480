"""The penalty of an order α: H_α of the guide, in closed form and from vectorised particles, against exact answers."""

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import autoguide
from torch import Tensor, nn
from torch.distributions import transform_to

from banel_pyro import BaNEL_ELBO, BaNEL_TraceEnum_ELBO, BaNEL_TraceGraph_ELBO
from banel_pyro.objectives.banel import EntropyWeighted
from banel_pyro.plates import DataPlate
from tests.laws import assert_mean

pytestmark = pytest.mark.usefixtures("float64")

N, B = 6, 2
LOG_2PI = math.log(2 * math.pi)
Slopes = dict[str, Tensor]


def on_grid(log_q: Callable[[Tensor], Tensor], alpha: float, points: Tensor) -> Tensor:
    """H_α by the trapezium rule on equally spaced points, differentiable in what the density is made of."""
    values = log_q(points)
    if alpha == 1:
        return -torch.trapezoid(values.exp() * values, points)
    return torch.trapezoid((alpha * values).exp(), points).log() / (1 - alpha)


def leaves(names: list[str] | None = None) -> Slopes:
    """The unconstrained parameters in the store."""
    return {name: p for name, p in pyro.get_param_store()._params.items() if names is None or name in names}


def slopes(elbo: Any, model: Any, guide: Any, *args: Any, seed: int = 0) -> tuple[float, Slopes]:
    """One estimate of the loss and of its gradient in the unconstrained parameters, under a seed."""
    pyro.set_rng_seed(seed)
    for parameter in leaves().values():
        parameter.grad = None
    loss = elbo.loss_and_grads(model, guide, *args)
    return loss, {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in leaves().items()}


def of_penalty(elbo: Any, model: Any, guide: Any, *args: Any, seed: int = 0) -> tuple[Tensor, Slopes]:
    """Value and gradient of the penalty alone: what is left without the same step at λ = 0."""
    lam = elbo.lam
    penalised = slopes(elbo, model, guide, *args, seed=seed)
    elbo.lam = 0.0
    plain = slopes(elbo, model, guide, *args, seed=seed)
    elbo.lam = lam
    return torch.tensor(penalised[0] - plain[0]), {n: g - plain[1][n] for n, g in penalised[1].items()}


def exact_slopes(exact: Callable[[Slopes], Tensor]) -> tuple[Tensor, Slopes]:
    """Value and gradient of a function of the constrained parameters, in the unconstrained ones."""
    kinds = pyro.get_param_store()._constraints
    free = {name: p.detach().clone().requires_grad_() for name, p in leaves().items()}
    value = exact({name: transform_to(kinds[name])(p) for name, p in free.items()})
    found = torch.autograd.grad(value, list(free.values()), allow_unused=True)
    return value.detach(), {
        n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(free.items(), found, strict=True)
    }


def assert_slopes(found: tuple[Tensor, Slopes], exact: tuple[Tensor, Slopes], tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found[0], exact[0], rtol=tolerance, atol=tolerance)
    for name, slope in exact[1].items():
        torch.testing.assert_close(found[1][name], slope, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: n + m)


def assert_mean_slopes(elbo: Any, model: Any, guide: Any, exact: Callable[[Slopes], Tensor], repeats: int) -> None:
    """Penalty and gradient have the exact mean, within standard errors."""
    poutine.block(guide)()
    value, gradient = exact_slopes(exact)
    found = [of_penalty(elbo, model, guide, seed=seed) for seed in range(repeats)]
    assert_mean([penalty for penalty, _ in found], value)
    for name, slope in gradient.items():
        assert_mean([each[name] for _, each in found], slope)


# ---- independent sites with a closed form ---------------------------------------------------------------------

MASK = torch.tensor([True, False, True, True, False, True])
SCALE = 2.5
ROW = torch.linspace(-1.0, 1.5, N, dtype=torch.float64)


@contextmanager
def local(rows: Tensor, mask: Tensor | None, scale: float) -> Iterator[None]:
    """The scale and the mask of the rows in a batch."""
    with poutine.scale(scale=scale), poutine.mask(mask=torch.tensor(True) if mask is None else mask[rows]):
        yield


def mixed_model(batch: int | None = None, mask: Tensor | None = None, scale: float = 1.0) -> None:
    pyro.sample("n", dist.Normal(0.0, 1.0))
    pyro.sample("g", dist.Gamma(1.0, 1.0))
    with pyro.plate("data", N, subsample_size=batch) as rows, local(rows, mask, scale):
        pyro.sample("b", dist.Beta(2.0, 2.0))
        pyro.sample("c", dist.Categorical(torch.ones(3) / 3))
        pyro.sample("v", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def mixed_guide(batch: int | None = None, mask: Tensor | None = None, scale: float = 1.0) -> None:
    """Positive and real numbers, an interval and three categories; in and out of the plate; other numbers each row."""
    p = pyro.param
    pyro.sample("n", dist.Normal(p("m", torch.tensor(0.2)), p("s", torch.tensor(0.7), constraint=constraints.positive)))
    shape, rate = (p(n, torch.tensor(v), constraint=constraints.positive) for n, v in (("k", 1.7), ("r", 2.0)))
    pyro.sample("g", dist.Gamma(shape, rate))
    with pyro.plate("data", N, subsample_size=batch) as rows, local(rows, mask, scale):
        a = p("a", torch.tensor(1.5), constraint=constraints.positive)
        pyro.sample("b", dist.Beta(a + ROW[rows] ** 2, torch.tensor(1.8)))
        pyro.sample("c", dist.Categorical(logits=p("l", torch.tensor([0.3, -0.5, 0.1])) * ROW[rows, None]))
        width = p("w", torch.tensor([0.4, 1.2]), constraint=constraints.positive)
        pyro.sample("v", dist.Normal(torch.zeros(2), width * (1 + ROW[rows, None] ** 2)).to_event(1))


def rows_of(p: Slopes, alpha: float) -> dict[str, Tensor]:
    """H_α of each local site by row, from the textbooks' integrals."""
    constant = 0.5 if alpha == 1 else math.log(alpha) / (2 * (alpha - 1))
    a, b = p["a"] + ROW**2, torch.tensor(1.8)
    log_p = (p["l"] * ROW[:, None]).log_softmax(-1)
    width = p["w"] * (1 + ROW[:, None] ** 2)
    normal = (width.log() + LOG_2PI / 2 + constant).sum(-1)
    if alpha == 1:
        return {"b": torch.distributions.Beta(a, b).entropy(), "c": -(log_p.exp() * log_p).sum(-1), "v": normal}

    def log_beta(x: Tensor, y: Tensor) -> Tensor:
        return torch.lgamma(x) + torch.lgamma(y) - torch.lgamma(x + y)

    integral = log_beta(alpha * (a - 1) + 1, alpha * (b - 1) + 1) - alpha * log_beta(a, b)
    return {"b": integral / (1 - alpha), "c": (alpha * log_p).logsumexp(-1) / (1 - alpha), "v": normal}


def of_mixed(p: Slopes, alpha: float, factors: Tensor) -> dict[str, Tensor]:
    """H_α of each site, local ones weighted by row."""
    constant = 0.5 if alpha == 1 else math.log(alpha) / (2 * (alpha - 1))
    k, r = p["k"], p["r"]
    order = alpha * (k - 1) + 1
    integral = alpha * (k * r.log() - torch.lgamma(k)) + torch.lgamma(order) - order * (alpha * r).log()
    gamma = torch.distributions.Gamma(k, r).entropy() if alpha == 1 else integral / (1 - alpha)
    local = {name: (factors * rows).sum() for name, rows in rows_of(p, alpha).items()}
    return {"n": p["s"].log() + LOG_2PI / 2 + constant, "g": gamma, **local}


ORDERS = [0.5, 1.0, 2.0]
SETTINGS: dict[str, tuple[dict[str, Any], Tensor]] = {
    "full": ({}, torch.ones(N)),
    "masked": ({"mask": MASK}, MASK.double()),
    "scaled": ({"scale": SCALE}, torch.full((N,), SCALE).double()),
    "masked and scaled": ({"mask": MASK, "scale": SCALE}, SCALE * MASK.double()),
}
LAM: dict[str, Any] = {"number": 0.4, "mapping": {"g": 0.3, "c": -1.5, "b": 0.5}, "reward": -2.0}


def weights(lam: Any) -> dict[str, float]:
    return lam if isinstance(lam, dict) else dict.fromkeys("ngbcv", lam)


@pytest.mark.parametrize("lam", LAM)
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_independent_sites_add_exactly(setting: str, alpha: float, lam: str) -> None:
    """One draw is enough, and nothing of it matters: value and gradient are exact."""
    options, factors = SETTINGS[setting]
    model, guide = (lambda f=f: f(**options) for f in (mixed_model, mixed_guide))
    poutine.block(guide)()
    for elbo in (form(LAM[lam], alpha=alpha, allow_unbounded=True) for form in (BaNEL_ELBO, BaNEL_TraceGraph_ELBO)):
        found = of_penalty(elbo, model, guide)
        exact = exact_slopes(
            lambda p: sum(w * of_mixed(p, alpha, factors)[n] for n, w in weights(LAM[lam]).items())  # type: ignore[misc]
        )
        assert_slopes(found, exact)
        terms = elbo.terms(model, guide)
        torch.testing.assert_close(terms.penalty, exact[0])
        torch.testing.assert_close(terms.loss, terms.penalty - terms.elbo)


@pytest.mark.parametrize("alpha", ORDERS)
def test_batches_have_the_expectation_of_all_rows(alpha: float) -> None:
    """N/B times the entropies of the rows in the batch."""
    guide = lambda: mixed_guide(batch=B)  # noqa: E731
    model = lambda: mixed_model(batch=B)  # noqa: E731
    elbo = BaNEL_ELBO(-1.0, alpha=alpha)
    guide()
    value, gradient = exact_slopes(lambda p: -sum(of_mixed(p, alpha, torch.ones(N)).values()))  # type: ignore[arg-type, return-value]
    if alpha == 1:  # a score-function site pays for the entropies of others, which is noise here
        assert_mean([torch.as_tensor(elbo.terms(model, guide).penalty) for _ in range(100)], value)
        return
    found = [of_penalty(elbo, model, guide, seed=seed) for seed in range(100)]
    assert_mean([penalty for penalty, _ in found], value)
    for name, slope in gradient.items():
        assert_mean([each[name] for _, each in found], slope)


@pytest.mark.parametrize("particles", [{}, {"num_particles": 3}, {"num_particles": 3, "vectorize_particles": True}])
def test_a_closed_form_counts_once_for_any_number_of_particles(particles: dict[str, Any]) -> None:
    elbo = BaNEL_ELBO(0.4, alpha=2.0, max_plate_nesting=1, allow_unbounded=True, **particles)
    mixed_guide()
    exact = exact_slopes(lambda p: 0.4 * sum(of_mixed(p, 2.0, torch.ones(N)).values()))  # type: ignore[arg-type]
    assert_slopes(of_penalty(elbo, mixed_model, mixed_guide), exact)


@pytest.mark.parametrize("batch", [None, B])
def test_rows_have_their_own_penalty(batch: int | None) -> None:
    """In nats per datum: N/B taken out, what lies outside the plate left out."""
    elbo = BaNEL_ELBO({"b": 0.4, "c": -0.2, "g": 0.3}, alpha=2.0, allow_unbounded=True)
    mixed_guide()
    kept = torch.arange(N).flip(0)[: batch or N]
    rows = rows_of({n: pyro.param(n).detach() for n in leaves()}, 2.0)
    with DataPlate("data", N, scaled=True).rows(kept):
        found = torch.as_tensor(elbo.terms_per_datum(mixed_model, mixed_guide, batch).penalty)
    torch.testing.assert_close(found, (0.4 * rows["b"] - 0.2 * rows["c"])[kept])


def test_the_entropy_in_the_record_is_shannon_s_whatever_the_order() -> None:
    mixed_guide()
    found = [
        BaNEL_ELBO(0.4, alpha=alpha, allow_unbounded=True).terms(mixed_model, mixed_guide) for alpha in (0.5, 1.0, 2.0)
    ]
    for terms in found:
        torch.testing.assert_close(terms.entropy, found[1].entropy)
    assert float(found[0].penalty) > float(found[1].penalty) > float(found[2].penalty)


# ---- densities without a closed form, from vectorised particles -----------------------------------------------


def vectorised(
    lam: Any, alpha: float, particles: int, nesting: int = 0, form: Any = BaNEL_ELBO, **options: Any
) -> EntropyWeighted:
    """Orders above 1 are penalised too: nothing is trained here, so nothing can run away."""
    options = {"allow_unbounded": True, "vectorize_particles": True, "max_plate_nesting": nesting} | options
    found: EntropyWeighted = form(lam, alpha=alpha, num_particles=particles, **options)
    return found


def mixture_model() -> None:
    pyro.sample("z", dist.Normal(0.0, 3.0).expand([1]).to_event(1))


SHARES = torch.tensor([0.6, 0.4], dtype=torch.float64)


def mixture_guide() -> None:
    """Two normals, reparameterised. Pyro's gradient in the weights has tails without a mean: these are fixed here."""
    where = pyro.param("where", torch.tensor([[-1.5], [1.0]]))
    width = pyro.param("width", torch.tensor([[0.5], [0.9]]), constraint=constraints.positive)
    pyro.sample("z", dist.MixtureOfDiagNormals(where, width, SHARES.to(where.dtype).log()))


def sampled_mixture_guide() -> None:
    """The same by the score function, its weights among the parameters."""
    where = pyro.param("where", torch.tensor([-1.5, 1.0]))
    width = pyro.param("width", torch.tensor([0.5, 0.9]), constraint=constraints.positive)
    share = dist.Categorical(logits=pyro.param("share", torch.tensor([0.3, -0.2])))
    parts = dist.Normal(where[:, None], width[:, None]).to_event(1)
    pyro.sample("z", dist.MixtureSameFamily(share, parts))


def of_mixture(p: Slopes, alpha: float) -> Tensor:
    where, width = p["where"].flatten(), p["width"].flatten()
    log_share = p["share"].log_softmax(-1) if "share" in p else SHARES.log()

    def log_q(x: Tensor) -> Tensor:
        return (torch.distributions.Normal(where, width).log_prob(x[:, None]) + log_share).logsumexp(-1)

    return on_grid(log_q, alpha, torch.linspace(-25.0, 25.0, 10_001))


@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
@pytest.mark.parametrize(
    ("form", "alpha"),
    [
        (BaNEL_ELBO, 0.8),
        (BaNEL_ELBO, 2.0),
        (BaNEL_ELBO, 4.0),
        (BaNEL_TraceGraph_ELBO, 2.0),
        (BaNEL_TraceEnum_ELBO, 2.0),
    ],
)
@pytest.mark.parametrize("guide", [mixture_guide, sampled_mixture_guide])
def test_a_mixture_against_quadrature(guide: Callable[[], None], form: Any, alpha: float) -> None:
    elbo = vectorised(-0.8, alpha, 300, form=form)
    assert_mean_slopes(elbo, mixture_model, guide, lambda p: -0.8 * of_mixture(p, alpha), 40)


def log_normal_model() -> None:
    pyro.sample("x", dist.LogNormal(0.0, 1.0))


def of_log_normal(loc: Tensor, scale: Tensor, alpha: float) -> Tensor:
    def log_q(u: Tensor) -> Tensor:  # x = e^u; the integral of q(x)^α is that of q(e^u)^α e^u
        return torch.distributions.Normal(loc, scale).log_prob(u) - u

    u = torch.linspace(-20.0, 20.0, 20_001)
    values = log_q(u)
    return torch.trapezoid((alpha * values + u).exp(), u).log() / (1 - alpha)


@pytest.mark.parametrize("alpha", [0.6, 2.0])
def test_an_autonormal_guide_of_a_positive_site_is_one_density(alpha: float) -> None:
    """The auxiliary site and its Delta: neither of them has the entropy, and their sum has not either."""
    guide = autoguide.AutoNormal(log_normal_model, init_scale=0.6)
    guide()
    names = {"AutoNormal.locs.x": "loc", "AutoNormal.scales.x": "scale"}
    assert set(leaves()) == set(names)
    elbo = vectorised(0.7, alpha, 400)
    assert_mean_slopes(
        elbo,
        log_normal_model,
        guide,
        lambda p: 0.7 * of_log_normal(p["AutoNormal.locs.x"], p["AutoNormal.scales.x"], alpha),
        60,
    )


def test_autoguides_of_real_sites_need_one_draw() -> None:
    """There the auxiliary site is the density, and has a closed form: at α = 2 half of 1 - log 2 less a dimension."""

    def model() -> None:
        pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    for kind in ("AutoNormal", "AutoDiagonalNormal", "AutoMultivariateNormal", "AutoLowRankMultivariateNormal"):
        guide = getattr(autoguide, kind)(model)
        guide()
        terms = BaNEL_ELBO(0.5, alpha=2.0).terms(model, guide)
        gap = terms.penalty - 0.5 * terms.entropy
        assert float(gap) == pytest.approx(-0.5 * 7 * (1 - math.log(2)) / 2, abs=1e-9), kind


def test_a_location_scale_guide_has_the_gradient_of_shannon() -> None:
    """Another loss, the same gradient; of other families another one."""

    def model() -> None:
        pyro.sample("a", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))

    guide = autoguide.AutoMultivariateNormal(model)
    guide()
    (loss, plain), (other, renyi) = (slopes(BaNEL_ELBO(0.5, alpha=alpha), model, guide) for alpha in (1.0, 3.0))
    assert loss - other == pytest.approx(0.5 * (1 - math.log(3) / 2), abs=1e-12)
    for name in plain:
        torch.testing.assert_close(plain[name], renyi[name])

    def gamma() -> None:
        pyro.sample("g", dist.Gamma(pyro.param("k", torch.tensor(2.0), constraint=constraints.positive), 1.0))

    pyro.clear_param_store()
    gamma()
    first, second = (
        of_penalty(BaNEL_ELBO(0.5, alpha=alpha, allow_unbounded=True), gamma, gamma)[1]["k"] for alpha in (1.0, 3.0)
    )
    assert abs(first - second) > 0.01


@pytest.mark.parametrize("alpha", [0.7, 2.0])
def test_a_score_function_site_without_a_closed_form(alpha: float) -> None:
    """A negative binomial distribution, by summation; its gradient is the score term's."""

    def model() -> None:
        pyro.sample("n", dist.Poisson(2.0))

    def guide() -> None:
        total = pyro.param("total", torch.tensor(3.0), constraint=constraints.positive)
        pyro.sample("n", dist.NegativeBinomial(total, logits=pyro.param("logit", torch.tensor(-0.4))))

    def exact(p: Slopes) -> Tensor:
        counts = torch.arange(400.0).double()
        log_q = torch.distributions.NegativeBinomial(p["total"], logits=p["logit"]).log_prob(counts)
        return 1.2 * (alpha * log_q).logsumexp(0) / (1 - alpha)

    assert_mean_slopes(vectorised(1.2, alpha, 300), model, guide, exact, 80)


@pytest.mark.parametrize("alpha", [0.6, 2.0])
def test_a_score_function_parent_of_a_reparameterised_child_has_a_joint_entropy(alpha: float) -> None:
    """k ~ Categorical, z | k ~ Normal(m_k, s_k): the integral of q(k, z)^α is a sum of three."""

    def model() -> None:
        pyro.sample("k", dist.Categorical(torch.ones(3) / 3))
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide() -> None:
        k = pyro.sample("k", dist.Categorical(logits=pyro.param("l", torch.tensor([0.3, -0.5, 0.1]))))
        width = pyro.param("w", torch.tensor([0.3, 1.0, 2.0]), constraint=constraints.positive)
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor([-1.0, 0.0, 1.0]))[k], width[k]))

    def exact(p: Slopes) -> Tensor:
        log_integral = (1 - alpha) * p["w"].log() + (1 - alpha) * LOG_2PI / 2 - math.log(alpha) / 2
        return -0.8 * (alpha * p["l"].log_softmax(-1) + log_integral).logsumexp(-1) / (1 - alpha)

    assert_mean_slopes(vectorised(-0.8, alpha, 300), model, guide, exact, 80)


def test_each_row_of_a_plate_has_an_estimate_of_its_own() -> None:
    """Two dependent sites in the plate, batches, a mask: N/B times the sum over the rows of their joint entropies."""
    slope = torch.linspace(0.5, 2.0, N)

    def both(batch: int | None) -> None:
        with pyro.plate("data", N, subsample_size=batch) as rows, poutine.mask(mask=MASK[rows]):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            pyro.sample("b", dist.Normal(slope[rows] * a, slope[rows]))

    exact = 1.5 * MASK * (slope.log() + LOG_2PI + math.log(2.0))  # half the log determinant, and two standard normals
    elbo = vectorised(1.5, 2.0, 200, nesting=1)
    assert_mean([torch.as_tensor(elbo.terms(both, both, B).penalty) for _ in range(150)], exact.sum())
    with DataPlate("data", N, scaled=True).rows(torch.tensor([0, 1])):
        rows = [torch.as_tensor(elbo.terms_per_datum(both, both, B).penalty) for _ in range(40)]
    assert_mean(rows, exact[:B])
    assert float(rows[0][1]) == 0  # masked


# ---- which sites depend on which ------------------------------------------------------------------------------


def family_model() -> None:
    for name in "abcd":
        pyro.sample(name, dist.Normal(0.0, 1.0))


def family_guide() -> None:
    """b depends on a, c on b; d is alone."""
    a = pyro.sample("a", dist.Normal(pyro.param("m", torch.tensor(0.1)), 0.5))
    b = pyro.sample("b", dist.Normal(0.8 * a, 0.6))
    pyro.sample("c", dist.Normal(b.tanh(), 0.7))
    pyro.sample("d", dist.Normal(0.3, 1.4))


def of_normal(variance: float, alpha: float, dims: int = 1) -> float:
    """H_α of a normal distribution in some dimensions, by the determinant of its covariance."""
    return 0.5 * math.log(variance) + dims * (LOG_2PI + math.log(alpha) / (alpha - 1)) / 2


def test_sites_without_a_penalty_need_no_joint_entropy() -> None:
    """A parent alone, and a site that depends on none, have closed forms: one draw."""
    terms = BaNEL_ELBO({"a": 0.3, "d": -0.5}, alpha=2.0).terms(family_model, family_guide)
    assert float(terms.penalty) == pytest.approx(0.3 * of_normal(0.25, 2.0) - 0.5 * of_normal(1.96, 2.0))


def test_ancestors_and_descendants_share_one_joint_entropy() -> None:
    """a and b together, c left out; d has a λ of its own."""
    elbo = vectorised({"a": 0.3, "b": 0.3, "d": -0.5}, 2.0, 200)
    exact = 0.3 * of_normal(0.25 * 0.36, 2.0, dims=2) - 0.5 * of_normal(1.96, 2.0)
    assert_mean([torch.as_tensor(elbo.terms(family_model, family_guide).penalty) for _ in range(60)], exact)


@pytest.mark.parametrize("lam", [{"b": 0.3}, {"a": 0.3, "b": 0.2}, {"a": 0.3, "c": 0.3}])
def test_a_child_without_its_parents_is_refused(lam: dict[str, float]) -> None:
    child = max(lam)
    parent = "a" if child == "b" else "b"
    with pytest.raises(ValueError, match=rf"'{child}' and lam=.* at '{parent}', on which it depends.*Give '{parent}'"):
        vectorised(lam, 2.0, 10).terms(family_model, family_guide)
    BaNEL_ELBO(lam).terms(family_model, family_guide)  # Shannon's conditional entropies add


def test_another_guide_is_looked_at_anew() -> None:
    def apart() -> None:
        for name in "abcd":
            pyro.sample(name, dist.Normal(0.0, 0.5))

    elbo = BaNEL_ELBO(-0.3, alpha=2.0)
    for _ in range(2):
        assert float(elbo.terms(family_model, apart).penalty) == pytest.approx(-4 * 0.3 * of_normal(0.25, 2.0))
        with pytest.raises(ValueError, match=r"\['a', 'b', 'c'\] depend on each other, so that"):
            elbo.terms(family_model, family_guide)


def test_more_sites_of_the_same_guide_are_looked_at_anew() -> None:
    """As where a guide draws a site from some step on."""
    grown = {"on": False}

    def model() -> None:
        pyro.sample("a", dist.Normal(0.0, 1.0))
        if grown["on"]:
            pyro.sample("b", dist.Normal(0.0, 1.0))

    def guide() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 0.5))
        if grown["on"]:
            pyro.sample("b", dist.Normal(a, 0.5))

    elbo = BaNEL_ELBO(-0.3, alpha=2.0)
    elbo.terms(model, guide)
    grown["on"] = True
    with pytest.raises(ValueError, match=r"\['a', 'b'\] depend on each other"):
        elbo.terms(model, guide)


FORMS = {
    "trace": lambda alpha: BaNEL_ELBO({"a": 0.3, "d": 0.2}, alpha=alpha),
    "graph": lambda alpha: BaNEL_TraceGraph_ELBO({"a": 0.3, "d": 0.2}, alpha=alpha),
    "particles": lambda alpha: vectorised(0.3, alpha, 3),
}


@pytest.mark.parametrize("form", FORMS)
def test_looking_for_dependence_takes_nothing_from_the_generators(form: str) -> None:
    """The same draws at α = 1 and 2, and the same state of all generators afterwards."""
    found = []
    for alpha in (1.0, 2.0):
        pyro.set_rng_seed(3)
        elbo = FORMS[form](alpha)
        terms = [elbo.terms(family_model, family_guide) for _ in range(2)]  # the first one looks
        elbo.loss_and_grads(family_model, family_guide)
        state = (torch.rand(()).item(), np.random.rand(), random.random())
        found.append([state, [float(t.elbo) for t in terms], [float(t.kl) for t in terms]])
    assert found[0] == found[1]
    assert set(leaves()) == {"m"}


def test_looking_for_dependence_leaves_running_statistics_alone() -> None:
    """A step moves them once, whatever the order."""
    x = torch.linspace(-1.0, 2.0, 8)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            for name in "ab":
                pyro.sample(name, dist.Normal(torch.zeros(()), 1.0))

    def guide_of(net: nn.Module) -> Callable[[Tensor], None]:
        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                for name, loc in zip("ab", net(x[:, None]).unbind(-1), strict=True):
                    pyro.sample(name, dist.Normal(loc, 1.0))

        return guide

    found = []
    for alpha in (1.0, 2.0):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        BaNEL_ELBO(0.3, alpha=alpha).loss(model, guide_of(net), x)
        found.append({name: buffer.clone() for name, buffer in net.named_buffers()})
        assert all(module.training for module in net.modules())
    for name, buffer in found[0].items():
        assert torch.equal(buffer, found[1][name]), name


# ---- near α = 1 -----------------------------------------------------------------------------------------------


def smooth_guide() -> None:
    """Reparameterised sites only: there the gradient at α = 1 holds no score term."""
    p = pyro.param
    pyro.sample("n", dist.Normal(p("m", torch.tensor(0.2)), p("s", torch.tensor(0.7), constraint=constraints.positive)))
    pyro.sample("g", dist.Gamma(p("k", torch.tensor(1.7), constraint=constraints.positive), 2.0))
    pyro.sample("b", dist.Beta(p("a", torch.tensor(1.5), constraint=constraints.positive), torch.tensor(0.8)))


def smooth_model() -> None:
    pyro.sample("n", dist.Normal(0.0, 1.0))
    pyro.sample("g", dist.Gamma(1.0, 1.0))
    pyro.sample("b", dist.Beta(2.0, 2.0))


def choice_guide() -> None:
    pyro.sample("c", dist.Categorical(logits=pyro.param("l", torch.tensor([0.3, -2.5, 5.1]))))


def choice_model() -> None:
    pyro.sample("c", dist.Categorical(torch.ones(3) / 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [1e-6, -1e-6, 1e-9, -1e-12])
@pytest.mark.parametrize("name", ["closed", "choice", "mixture", "dependent"])
def test_next_to_one_it_is_shannon(name: str, gap: float, dtype: torch.dtype) -> None:
    """Loss and gradient under one seed."""
    torch.set_default_dtype(dtype)  # the fixture puts it back
    pairs = {
        "closed": (smooth_model, smooth_guide),
        "choice": (choice_model, choice_guide),
        "mixture": (mixture_model, mixture_guide),
        "dependent": (family_model, family_guide),
    }
    model, guide = pairs[name]
    guide()
    drawn = name in ("mixture", "dependent")
    make = (
        (lambda a: vectorised(0.7, a, 50, entropy="monte_carlo"))
        if drawn
        else (lambda a: BaNEL_ELBO(0.7, alpha=a, allow_unbounded=True))
    )
    shannon, near = (slopes(make(alpha), model, guide) for alpha in (1.0, 1.0 + gap))
    tolerance = 2e-5 if dtype == torch.float32 else 20 * abs(gap) + 1e-9
    assert near[0] == pytest.approx(shannon[0], rel=tolerance, abs=tolerance)
    for parameter in shannon[1]:
        torch.testing.assert_close(near[1][parameter], shannon[1][parameter], rtol=tolerance, atol=tolerance)
