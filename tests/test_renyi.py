"""Rényi entropy (law L8): quadrature and sums, Shannon in the limit, order, divergence, gradients, draws."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.autograd import gradcheck
from torch.fx.experimental.proxy_tensor import make_fx

from banel_pyro.entropy import closed_form_entropy, families
from banel_pyro.entropy.renyi import renyi_entropy, renyi_from_log_q

pytestmark = pytest.mark.usefixtures("float64")

ORDERS = [0.3, 0.5, 0.9, 0.999999, 1.0, 1.000001, 1.5, 2.0, 5.0]
NEAR_ONE = [1 + sign * gap for gap in (1e-12, 1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 0.03, 0.0999, 0.1001) for sign in (-1, 1)]


def entropy(fn: Any, alpha: float) -> Tensor:
    found = renyi_entropy(fn, alpha)
    assert found is not None
    return found


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def without_validation() -> Iterator[None]:
    """What is inside a StudentT or a LogNormal validates on its own account."""
    with pyro.settings.context(validate_distributions_torch=False, validate_distributions_pyro=False):
        yield


# ---- exact answers ------------------------------------------------------------------------------------------------


def from_terms(log_q: Tensor, log_measure: Tensor, alpha: float) -> float:
    """H from log q and the log of the measure of each cell; log of the sum of q, 0 but for rounding, is taken away."""
    if alpha == 1:
        return float(-(torch.exp(log_q + log_measure) * log_q.clamp(min=-1e6)).sum())
    one = torch.logsumexp(log_q + log_measure, 0)
    assert abs(one) < 1e-8
    return float(torch.logsumexp(alpha * log_q + log_measure, 0) - one) / (1 - alpha)


def grid(half_width: float, points: int) -> tuple[Tensor, float]:
    t = torch.linspace(-half_width, half_width, points, dtype=torch.float64)
    return t, math.log(2 * half_width / (points - 1))


def on_reals(log_q: Callable[[Tensor], Tensor], alpha: float) -> float:
    """The trapezoid rule in t with x = sinh t: exact to many digits, whatever the tails."""
    t, step = grid(200.0, 100_001)
    return from_terms(log_q(t.sinh()), t.cosh().log() + step, alpha)


def on_positives(log_q: Callable[[Tensor], Tensor], alpha: float) -> float:
    """The same with x = exp t."""
    t, step = grid(400.0, 200_001)
    return from_terms(log_q(t.exp()), t + step, alpha)


def beta_by_quadrature(a: float, b: float, alpha: float) -> float:
    t, step = grid(400.0, 200_001)
    log_x, log_y = torch.nn.functional.logsigmoid(t), torch.nn.functional.logsigmoid(-t)
    log_q = (a - 1) * log_x + (b - 1) * log_y - math.lgamma(a) - math.lgamma(b) + math.lgamma(a + b)
    return from_terms(log_q, log_x + log_y + step, alpha)


def dirichlet_by_quadrature(concentration: tuple[float, float, float], alpha: float) -> float:
    """On the triangle by breaking a stick twice, x = (s, (1 - s) r, (1 - s)(1 - r))."""
    t, step = grid(120.0, 1201)
    log_s, log_r = torch.nn.functional.logsigmoid(t)[:, None], torch.nn.functional.logsigmoid(t)
    log_1s, log_1r = torch.nn.functional.logsigmoid(-t)[:, None], torch.nn.functional.logsigmoid(-t)
    a, b, c = concentration
    log_q = (a - 1) * log_s + (b - 1) * (log_1s + log_r) + (c - 1) * (log_1s + log_1r)
    log_q = log_q + math.lgamma(a + b + c) - math.lgamma(a) - math.lgamma(b) - math.lgamma(c)
    log_measure = log_s + 2 * log_1s + log_r + log_1r + 2 * step
    return from_terms(log_q.reshape(-1), log_measure.reshape(-1), alpha)


def on_plane(log_q: Callable[[Tensor], Tensor], alpha: float) -> float:
    t, step = grid(30.0, 601)
    return from_terms(log_q(torch.cartesian_prod(t, t)), torch.full((), 2 * step), alpha)


def on_integers(log_q: Callable[[Any], Any], last: int, alpha: float) -> float:
    log_q_k = torch.as_tensor(log_q(torch.arange(last + 1).numpy()))
    return from_terms(log_q_k, torch.zeros(()), alpha)


REAL = [
    dist.Normal(f64(0.7), f64(1.6)),
    dist.Normal(f64(-3.0), f64(0.05)),
    dist.StudentT(f64(3.0), f64(0.1), f64(2.0)),
    dist.StudentT(f64(40.0), f64(0.0), f64(0.5)),
]
POSITIVE = [
    dist.LogNormal(f64(0.3), f64(0.8)),
    dist.LogNormal(f64(-1.0), f64(1.5)),
    dist.HalfNormal(f64(2.0)),
    dist.Exponential(f64(2.5)),
    dist.Gamma(f64(2.0), f64(3.0)),
    dist.Gamma(f64(1.0), f64(0.2)),
    dist.Gamma(f64(50.0), f64(7.0)),
    dist.Gamma(f64(0.85), f64(2.0)),
    dist.Chi2(f64(3.0)),
]
# A pole that the largest order integrates needs a > 0.8: the smaller a stand among the divergent ones below.
BETAS = [(2.0, 3.0), (1.0, 1.0), (0.9, 4.0), (30.0, 12.0)]
DIRICHLETS = [(1.0, 2.0, 0.85), (4.0, 3.0, 9.0)]


@pytest.mark.parametrize("alpha", ORDERS)
@pytest.mark.parametrize("fn", REAL, ids=lambda fn: type(fn).__name__)
def test_quadrature_on_the_reals(fn: Any, alpha: float) -> None:
    assert entropy(fn, alpha).item() == pytest.approx(on_reals(fn.log_prob, alpha), rel=1e-8)


@pytest.mark.usefixtures("without_validation")
@pytest.mark.parametrize("alpha", ORDERS)
@pytest.mark.parametrize("fn", POSITIVE, ids=lambda fn: type(fn).__name__)
def test_quadrature_on_the_positive_reals(fn: Any, alpha: float) -> None:
    unchecked = type(fn)(*(getattr(fn, name) for name in fn.arg_constraints))  # far out x is 0 or infinite
    assert entropy(fn, alpha).item() == pytest.approx(on_positives(unchecked.log_prob, alpha), rel=1e-8)


@pytest.mark.usefixtures("without_validation")
@pytest.mark.parametrize("alpha", ORDERS)
def test_quadrature_on_the_positive_reals_of_others(alpha: float) -> None:
    def inverse_gamma(x: Tensor) -> Tensor:
        return 3 * math.log(2) - math.lgamma(3) - 4 * x.log() - 2 / x

    exact = on_positives(inverse_gamma, alpha)
    assert entropy(dist.InverseGamma(f64(3.0), f64(2.0)), alpha).item() == pytest.approx(exact, rel=1e-8)
    half = on_positives(dist.Exponential(2.5).log_prob, alpha)
    assert entropy(dist.Laplace(f64(0.2), f64(0.4)), alpha).item() == pytest.approx(half + math.log(2), rel=1e-8)


@pytest.mark.parametrize("alpha", ORDERS)
def test_quadrature_on_intervals_and_simplices(alpha: float) -> None:
    for a, b in BETAS:
        fn = dist.Beta(f64(a), f64(b))
        assert entropy(fn, alpha).item() == pytest.approx(beta_by_quadrature(a, b, alpha), rel=1e-8, abs=1e-9)
    for concentration in DIRICHLETS:
        exact = dirichlet_by_quadrature(concentration, alpha)
        assert entropy(dist.Dirichlet(f64(*concentration)), alpha).item() == pytest.approx(exact, rel=1e-8)
    assert entropy(dist.Uniform(f64(-1.0), f64(2.5)), alpha).item() == pytest.approx(math.log(3.5))


COVARIANCE = torch.tensor([[2.0, 0.7], [0.7, 0.5]], dtype=torch.float64)
GAUSSIANS = [
    dist.MultivariateNormal(f64(1.0, -2.0), covariance_matrix=COVARIANCE),
    dist.MultivariateNormal(f64(1.0, -2.0), precision_matrix=COVARIANCE),
    dist.MultivariateNormal(f64(1.0, -2.0), scale_tril=COVARIANCE.tril()),
    dist.LowRankMultivariateNormal(f64(1.0, -2.0), f64(1.0, 0.4).reshape(2, 1), f64(0.5, 0.3)),
    dist.Normal(f64(1.0, -2.0), f64(0.8, 2.0)).to_event(1),
]


@pytest.mark.parametrize("alpha", ORDERS)
@pytest.mark.parametrize("fn", GAUSSIANS, ids=lambda fn: type(fn).__name__)
def test_quadrature_on_the_plane(fn: Any, alpha: float) -> None:
    assert entropy(fn, alpha).item() == pytest.approx(on_plane(fn.log_prob, alpha), rel=1e-8)


PMF = f64(0.2, 0.5, 0.3)
FINITE: list[tuple[Any, list[float]]] = [
    (dist.Categorical(PMF), PMF.tolist()),
    (dist.Categorical(logits=PMF.log() + 3.0), PMF.tolist()),
    (dist.OneHotCategorical(PMF), PMF.tolist()),
    (dist.Categorical(f64(0.5, 0.0, 0.5, 0.0)), [0.5, 0.5]),
    (dist.Categorical(f64(1.0, 0.0)), [1.0]),
    (dist.Bernoulli(f64(0.3)), [0.3, 0.7]),
    (dist.Bernoulli(f64(1e-9)), [1e-9, 1 - 1e-9]),
    (dist.Bernoulli(f64(0.0)), [1.0]),
    (dist.Bernoulli(f64(1.0)), [1.0]),
    (dist.Bernoulli(logits=f64(-2.0)), [1 / (1 + math.exp(2)), 1 / (1 + math.exp(-2))]),
    (dist.Binomial(7.0, f64(0.2)), stats.binom.pmf(range(8), 7, 0.2).tolist()),
    (dist.Binomial(7.0, f64(0.0)), [1.0]),
    (dist.Binomial(7.0, f64(1.0)), [1.0]),
    (dist.Binomial(0.0, f64(0.4)), [1.0]),
    (dist.Binomial(7.0, logits=f64(1.2)), stats.binom.pmf(range(8), 7, 1 / (1 + math.exp(-1.2))).tolist()),
]


@pytest.mark.parametrize(("fn", "pmf"), FINITE, ids=lambda value: type(value).__name__)
def test_sums_over_finite_supports(fn: Any, pmf: list[float]) -> None:
    for alpha in ORDERS:
        exact = from_terms(f64(*pmf).log(), torch.zeros(()), alpha)
        assert entropy(fn, alpha).item() == pytest.approx(exact, rel=1e-7, abs=1e-9)
    assert entropy(fn, 0.0).item() == pytest.approx(math.log(len(pmf)), abs=1e-15)
    assert entropy(fn, math.inf).item() == pytest.approx(-math.log(max(pmf)), abs=1e-15)
    assert entropy(fn, 1e20).item() == pytest.approx(-math.log(max(pmf)), abs=1e-15)


COUNTS = [
    *[(dist.Poisson(f64(rate)), stats.poisson(rate), 3000) for rate in (1e-4, 0.3, 1.0, 12.5, 900.0)],
    (dist.Poisson(f64(2e4)), stats.poisson(2e4), 40_000),
    (dist.Poisson(f64(1e6)), stats.poisson(1e6), 1_100_000),
    (dist.Binomial(60.0, f64(0.9)), stats.binom(60, 0.9), 60),
    (dist.Binomial(5000.0, f64(0.3)), stats.binom(5000, 0.3), 5000),
    (dist.Binomial(5000.0, f64(0.9999)), stats.binom(5000, 0.9999), 5000),
    (dist.Binomial(40_000.0, f64(1e-3)), stats.binom(40_000, 1e-3), 40_000),
    (dist.Geometric(f64(0.02)), stats.geom(0.02, -1), 60_000),
    (dist.Geometric(f64(0.99)), stats.geom(0.99, -1), 3000),
    (dist.Geometric(logits=f64(0.5)), stats.geom(1 / (1 + math.exp(-0.5)), -1), 3000),
]


@pytest.mark.parametrize(("fn", "frozen", "last"), COUNTS, ids=lambda value: type(value).__name__)
def test_sums_over_lattices(fn: Any, frozen: Any, last: int) -> None:
    for alpha in [0.05, *ORDERS, 30.0, 1e3, 1e5, 1e9]:
        exact = on_integers(frozen.logpmf, last, alpha)
        assert entropy(fn, alpha).item() == pytest.approx(exact, rel=2e-7, abs=1e-10), alpha


def test_a_lattice_sum_agrees_with_the_gaussian_limit() -> None:
    rate = f64(1e7)
    for alpha in (0.1, 0.5, 2.0, 20.0):
        gaussian = entropy(dist.Normal(rate, rate.sqrt()), alpha)
        assert entropy(dist.Poisson(rate), alpha).item() == pytest.approx(gaussian.item(), abs=1e-6)


@pytest.mark.usefixtures("without_validation")
def test_torch_s_natural_parameters_would_be_wrong() -> None:
    """What the rule gives on torch's own, 1.35, 2.53, -3 and .60, beside the truth."""
    assert entropy(dist.Beta(f64(2.0), f64(3.0)), 2.0).item() == pytest.approx(beta_by_quadrature(2, 3, 2.0))
    assert entropy(dist.Dirichlet(f64(2.0, 3.0, 1.5)), 2.0).item() == pytest.approx(
        dirichlet_by_quadrature((2.0, 3.0, 1.5), 2.0)
    )
    assert entropy(dist.Poisson(f64(3.0)), 2.0).item() == pytest.approx(1.79, abs=0.01)
    assert entropy(dist.LogNormal(f64(0.0), f64(1.0)), 2.0).item() == pytest.approx(
        on_positives(dist.LogNormal(0.0, 1.0).log_prob, 2.0)
    )
    assert entropy(dist.Gamma(f64(0.3), f64(1.0)), 2.0).item() == -math.inf


# ---- through α = 1 ------------------------------------------------------------------------------------------------

EVERY: list[Any] = [*REAL, *POSITIVE, *GAUSSIANS, *(fn for fn, _ in FINITE), *(fn for fn, *_ in COUNTS)]
EVERY += [dist.Beta(f64(a), f64(b)) for a, b in [*BETAS, (0.12, 0.2)]] + [dist.Cauchy(f64(0.0), f64(2.0))]
EVERY += [dist.Dirichlet(f64(*a)) for a in DIRICHLETS] + [
    dist.Gamma(f64(0.12), f64(1.0)),
    dist.Gamma(f64(2e5), f64(3.0)),
]
EVERY += [
    dist.Laplace(f64(0.2), f64(0.4)),
    dist.HalfCauchy(f64(2.0)),
    dist.InverseGamma(f64(0.2), f64(1.0)),
    dist.Uniform(f64(0.0), f64(3.0)),
]


@pytest.mark.parametrize("fn", EVERY, ids=lambda fn: type(fn).__name__)
def test_shannon_is_the_limit_from_both_sides(fn: Any) -> None:
    shannon = closed_form_entropy(fn)
    limit = entropy(fn, 1.0)
    if shannon is not None and "probs" not in fn.__dict__:  # torch clamps probabilities
        torch.testing.assert_close(limit, shannon, rtol=1e-9, atol=1e-12)
    above, below = ((entropy(fn, 1 + sign * 1e-5) - limit) / 1e-5 for sign in (1, -1))
    torch.testing.assert_close(above, -below, rtol=2e-3, atol=1e-6)  # linear, to both sides
    assert bool((above <= 1e-6).all())
    for gap in (1e-7, 1e-9, 1e-12):
        torch.testing.assert_close(
            entropy(fn, 1 + gap), limit + gap * above, rtol=0, atol=2e-9 * (1 + limit.abs().max().item())
        )


@pytest.mark.parametrize("alpha", NEAR_ONE)
def test_no_digits_are_lost_near_one(alpha: float) -> None:
    """Against mpmath with 40 digits, by the rule as it is written in the books."""
    import mpmath as mp

    with mp.workdps(40):
        order = mp.mpf(alpha)

        def by_rule(log_normalizer: Callable[..., Any], *eta: float) -> float:
            whole = log_normalizer(*(order * mp.mpf(x) for x in eta)) - order * log_normalizer(*map(mp.mpf, eta))
            return float(whole / (1 - order))

        def gamma(x: Any, y: Any) -> Any:
            return mp.loggamma(x + 1) - (x + 1) * mp.log(y)

        def beta(x: Any, y: Any) -> Any:
            return mp.loggamma(x + 1) + mp.loggamma(y + 1) - mp.loggamma(x + y + 2)

        def bernoulli(x: Any) -> Any:
            return mp.log1p(mp.exp(x))

        for a in (0.12, 0.5, 1.0, 3.0, 1e4):
            fn: Any = dist.Gamma(f64(a), f64(2.0))
            assert entropy(fn, alpha).item() == pytest.approx(by_rule(gamma, a - 1, 2.0), rel=1e-9), a
            fn = dist.Beta(f64(a), f64(0.4))
            assert entropy(fn, alpha).item() == pytest.approx(by_rule(beta, a - 1, 0.4 - 1), rel=1e-9), a
        for logit in (-30.0, -1.0, 0.0, 5.0):
            fn = dist.Bernoulli(logits=f64(logit))
            assert entropy(fn, alpha).item() == pytest.approx(by_rule(bernoulli, logit), rel=1e-9), logit


@pytest.mark.parametrize("fn", EVERY, ids=lambda fn: type(fn).__name__)
def test_falls_in_alpha(fn: Any) -> None:
    orders = sorted({*ORDERS, *NEAR_ONE, 0.05, 0.1, 0.7, 3.0, 10.0, 100.0})
    values = torch.stack([entropy(fn, alpha) for alpha in orders])
    rises = values[1:] > values[:-1] + 1e-8 * (1 + values[:-1].abs())
    assert not rises.any(), [orders[i] for i in rises.any(-1).nonzero().flatten()] if rises.dim() > 1 else orders


def test_falls_in_alpha_for_random_probabilities() -> None:
    fn = dist.Categorical(logits=3 * torch.randn(200, 6))
    values = torch.stack([entropy(fn, alpha) for alpha in [0.0, *sorted([*ORDERS, *NEAR_ONE]), 50.0, math.inf]])
    assert bool((values.diff(dim=0) <= 1e-12).all())
    assert bool((values >= 0).all())
    assert bool((values <= math.log(6) + 1e-12).all())


# ---- float32, many categories, small probabilities ------------------------------------------------------------------


def converted(fn: Any, dtype: torch.dtype) -> Any:
    names = [name for name in fn.arg_constraints if name in fn.__dict__ or not hasattr(fn, "probs")]
    if hasattr(fn, "probs"):
        given = "probs" if families.given_by_probs(getattr(fn, "_categorical", fn)) else "logits"
        names = [given, *({"total_count"} & set(fn.arg_constraints))]
    if isinstance(fn, dist.MultivariateNormal):
        names = ["loc", "scale_tril"]
    return type(fn)(**{name: getattr(fn, name).to(dtype) for name in names})


SINGLE = [fn for fn in EVERY if not isinstance(fn, torch.distributions.Independent | torch.distributions.Chi2)]


@pytest.mark.parametrize("fn", SINGLE, ids=lambda fn: type(fn).__name__)
def test_float32_keeps_its_digits(fn: Any) -> None:
    single = converted(fn, torch.float32)
    fn = converted(single, torch.float64)
    for alpha in [*ORDERS, *NEAR_ONE, 20.0]:
        exact = entropy(fn, alpha)
        found = entropy(single, alpha)
        assert found.dtype == torch.float32
        torch.testing.assert_close(
            found.double(), exact, rtol=2e-5, atol=2e-6, msg=lambda m, a=alpha: f"alpha={a}: {m}"
        )


@pytest.mark.parametrize("by", ["probs", "logits"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_hundred_thousand_categories(by: str, dtype: torch.dtype) -> None:
    logits = 8 * torch.randn(100_000)
    logits[::2] = -math.inf
    exact_log_p = logits.log_softmax(-1)
    leaf = (logits.softmax(-1) if by == "probs" else logits).to(dtype).requires_grad_()
    for alpha in [*ORDERS, *NEAR_ONE, 0.0, math.inf]:
        found = entropy(dist.Categorical(**{by: leaf}), alpha)
        if alpha in (0.0, math.inf):
            exact = math.log((exact_log_p.to(dtype).exp() > 0).sum()) if by == "probs" and alpha == 0 else None
            exact = exact or (math.log(50_000) if alpha == 0 else -exact_log_p.max().item())
        else:
            exact = from_terms(exact_log_p[1::2], torch.zeros(()), alpha) if abs(alpha - 1) > 1e-3 else None
        if exact is not None:
            tolerance = 1e-9 if dtype == torch.float64 else 3e-5
            assert found.item() == pytest.approx(exact, rel=tolerance, abs=tolerance)
        if alpha:
            (gradient,) = torch.autograd.grad(found, leaf)
            assert bool(gradient.isfinite().all())


def test_no_gradient_is_nan_at_probability_zero_and_one() -> None:
    for alpha in [*ORDERS, *NEAR_ONE, math.inf]:
        for fn in (
            lambda p: dist.Categorical(p),
            lambda p: dist.OneHotCategorical(p),
            lambda p: dist.Bernoulli(p),
            lambda p: dist.Binomial(5.0, p),
            lambda p: dist.Geometric(p.flip(0).clamp(min=0.5)),
            lambda p: dist.Poisson(p),
        ):
            p = f64(0.0, 1.0, 0.0).requires_grad_()
            if math.isinf(alpha) and isinstance(fn(p), dist.Geometric | dist.Poisson):
                continue
            found = entropy(fn(p), alpha)
            (gradient,) = torch.autograd.grad(found.sum(), p)
            assert bool(found.isfinite().all())
            assert bool(gradient.isfinite().all()), (alpha, fn(p))


# ---- where it is infinite -------------------------------------------------------------------------------------------

DIVERGENT: list[tuple[Callable[[Tensor], Any], float, float, float, int]] = [
    # the distribution as a function of a, the order, an a for which it diverges, one for which it does not, the sign
    (lambda a: dist.Gamma(a, 2.0), 2.0, 0.5, 0.51, -1),
    (lambda a: dist.Gamma(a, 2.0), 1.05, 0.04, 0.05, -1),
    (lambda a: dist.Gamma(a, 2.0), 30.0, 0.9, 1.0, -1),
    (lambda a: dist.Beta(a, 3.0), 2.0, 0.3, 0.7, -1),
    (lambda a: dist.Beta(3.0, a), 2.0, 0.3, 0.7, -1),
    (lambda a: dist.Beta(a, a), 2.0, 0.3, 0.7, -1),
    (lambda a: dist.Dirichlet(torch.stack([a, a + 1, 2 * a], -1)), 2.0, 0.2, 0.8, -1),
    (lambda a: dist.InverseGamma(a, 2.0), 0.5, 1.0, 1.01, 1),
    (lambda a: dist.StudentT(a), 0.5, 1.0, 1.01, 1),
    (lambda a: dist.StudentT(a), 0.95, 0.05, 0.06, 1),
]


@pytest.mark.parametrize(("make", "alpha", "divergent", "fine", "sign"), DIVERGENT)
def test_divergent_orders_are_infinite(
    make: Callable[[Tensor], Any], alpha: float, divergent: float, fine: float, sign: int
) -> None:
    a = f64(divergent, fine).requires_grad_()
    found = entropy(make(a), alpha)
    assert found[0].item() == sign * math.inf
    (gradient,) = torch.autograd.grad(found.sum(), a)
    alone = f64(fine).requires_grad_()
    (expected,) = torch.autograd.grad(entropy(make(alone), alpha).sum(), alone)
    torch.testing.assert_close(gradient, torch.cat([f64(0.0), expected]))
    torch.testing.assert_close(found[1:], entropy(make(alone), alpha))
    assert bool(found[1].isfinite())
    assert bool(gradient.isfinite().all())
    assert entropy(make(a).to_event(1), alpha).item() == sign * math.inf
    assert entropy(make(a).mask(torch.tensor([False, True])), alpha)[0].item() == 0.0
    assert bool(entropy(make(a), 1.0).isfinite().all())  # Shannon's never diverges here


def test_cauchy_is_infinite_up_to_one_half() -> None:
    for fn in (dist.Cauchy(f64(0.0), f64(2.0)), dist.HalfCauchy(f64(2.0))):
        assert entropy(fn, 0.5).item() == math.inf
        assert math.isfinite(entropy(fn, 0.51).item())
    assert entropy(dist.Cauchy(f64(0.0), f64(2.0)), 0.8).item() == pytest.approx(
        on_reals(dist.Cauchy(0.0, 2.0).log_prob, 0.8)
    )


@pytest.mark.usefixtures("without_validation")
def test_parameters_that_are_nan_stay_nan() -> None:
    a = f64(math.nan)
    for fn in (
        dist.Gamma(a, 1.0),
        dist.Dirichlet(torch.cat([a, a])),
        dist.StudentT(a),
        dist.Poisson(a),
    ):
        assert bool(entropy(fn, 2.0).isnan().all()), fn


# ---- what kind of thing it is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.999999, 1.0, 2.0, math.inf])
def test_the_order_of_categories_is_of_no_account(alpha: float) -> None:
    logits = torch.randn(50, 7)
    shuffled = logits[:, torch.randperm(7)]
    for family in (dist.Categorical, dist.OneHotCategorical):
        torch.testing.assert_close(
            entropy(family(logits=logits), alpha), entropy(family(logits=shuffled), alpha), rtol=1e-10, atol=1e-12
        )


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_independent_variables_add(alpha: float) -> None:
    p, r = f64(0.2, 0.5, 0.3), f64(0.6, 0.1, 0.3)
    joint = dist.Categorical((p[:, None] * r).reshape(-1))
    alone = entropy(dist.Categorical(p), alpha) + entropy(dist.Categorical(r), alpha)
    torch.testing.assert_close(entropy(joint, alpha), alone)
    torch.testing.assert_close(entropy(dist.Categorical(torch.stack([p, r])).to_event(1), alpha), alone)
    dependent = dist.Categorical(f64(0.4, 0.1, 0.1, 0.4))
    assert entropy(dependent, alpha) < 2 * math.log(2) - 0.1
    diagonal = dist.MultivariateNormal(torch.zeros(3), torch.diag(f64(1.0, 4.0, 9.0)))
    torch.testing.assert_close(
        entropy(diagonal, alpha), entropy(dist.Normal(torch.zeros(3), f64(1.0, 2.0, 3.0)).to_event(1), alpha)
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: dist.Normal(a, b),
        lambda a, b: dist.Laplace(a, b),
        lambda a, b: dist.Uniform(a, a + b),
        lambda a, b: dist.HalfNormal(b),
        lambda a, b: dist.Exponential(b),
        lambda a, b: dist.StudentT(3.0, a, b),
        lambda a, b: dist.MultivariateNormal(a.repeat(3), scale_tril=b * torch.ones(3, 3).tril()),
        lambda a, b: dist.LowRankMultivariateNormal(a.repeat(3), b * torch.ones(3, 1), b**2 * torch.ones(3)),
    ],
)
def test_location_and_scale_differ_from_shannon_by_a_constant(make: Callable[[Tensor, Tensor], Any]) -> None:
    differences, gradients = [], []
    for a, b in ((0.0, 1.0), (-3.0, 0.02), (1e6, 250.0)):
        location, scale = torch.tensor(a, requires_grad=True), torch.tensor(b, requires_grad=True)
        values = [entropy(make(location, scale), alpha) for alpha in (1.0, 0.5, 2.0)]
        differences.append([(value - values[0]).item() for value in values])
        grads = [
            torch.autograd.grad(v.sum(), [location, scale], allow_unused=True, materialize_grads=True) for v in values
        ]
        gradients += [(grad, grads[0]) for grad in grads]
    for difference in differences[1:]:
        assert difference == pytest.approx(differences[0], abs=1e-8)
    for grad, shannon in gradients:
        torch.testing.assert_close(grad, shannon, rtol=1e-9, atol=1e-12)


def test_the_order_changes_the_gradient_of_other_families() -> None:
    logits = f64(0.0, 1.0, 3.0).requires_grad_()
    concentration = f64(2.0, 3.0).requires_grad_()
    for make, leaf in (
        (lambda: dist.Categorical(logits=logits), logits),
        (lambda: dist.Dirichlet(concentration), concentration),
        (lambda: dist.Gamma(concentration, 1.0).to_event(1), concentration),
    ):
        directions = []
        for alpha in (0.5, 1.0, 2.0):
            (gradient,) = torch.autograd.grad(entropy(make(), alpha), leaf)
            directions.append(gradient / gradient.norm())
        assert (directions[0] - directions[1]).norm() > 0.01
        assert (directions[2] - directions[1]).norm() > 0.01


def test_wrappers() -> None:
    scale = f64(0.5, 2.0, 3.0)
    base = dist.Gamma(scale, 1.0)
    each = entropy(base, 2.0)
    mask = torch.tensor([True, False, True])
    torch.testing.assert_close(entropy(base.mask(mask), 2.0), torch.where(mask, each, 0.0))
    torch.testing.assert_close(entropy(base.mask(False), 2.0), torch.zeros(3))
    torch.testing.assert_close(entropy(base.to_event(1).mask(torch.tensor([True, False])), 0.5)[1], f64(0.0)[0])
    torch.testing.assert_close(entropy(base.expand([4, 3]).to_event(1), 0.5), entropy(base, 0.5).sum().expand(4))
    wrapped = dist.ExpandedDistribution(dist.Gamma(2.0, 1.0), torch.Size([3]))
    torch.testing.assert_close(entropy(dist.Independent(wrapped, 1), 0.5), 3 * entropy(dist.Gamma(2.0, 1.0), 0.5))
    torch.testing.assert_close(entropy(dist.Independent(wrapped, 0), 0.5).expand(3), entropy(wrapped, 0.5))
    torch.testing.assert_close(entropy(torch.distributions.Gamma(scale, 1.0), 2.0), each)
    for fn in EVERY:
        assert torch.broadcast_shapes(entropy(fn, 0.7).shape, fn.batch_shape) == fn.batch_shape


@pytest.mark.parametrize(
    "fn",
    [
        dist.Delta(torch.zeros(2)),
        dist.VonMises(0.0, 1.0),
        dist.LKJCholesky(3),
        dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), 1.0)),
        dist.RelaxedOneHotCategorical(torch.tensor(0.5), torch.ones(2)),
        dist.TransformedDistribution(dist.Normal(0.0, 1.0), dist.transforms.AffineTransform(0.0, 2.0)),
        dist.Independent(dist.Delta(torch.zeros(2)), 1),
        dist.VonMises(torch.zeros(2), 1.0).mask(torch.tensor([True, False])),
    ],
    ids=lambda fn: type(fn).__name__,
)
def test_none_where_there_is_no_formula(fn: Any) -> None:
    assert renyi_entropy(fn, 2.0) is None


# ---- gradients, tracing ---------------------------------------------------------------------------------------------

MAKERS: dict[str, tuple[Callable[[Tensor], Any], Tensor]] = {
    "Normal": (lambda p: dist.Normal(p[0], p[1]), f64(0.3, 1.7)),
    "LogNormal": (lambda p: dist.LogNormal(p[0], p[1]), f64(0.3, 1.7)),
    "Laplace": (lambda p: dist.Laplace(p[0], p[1]), f64(0.3, 1.7)),
    "Gamma": (lambda p: dist.Gamma(p[0], p[1]), f64(0.8, 1.7)),
    "InverseGamma": (lambda p: dist.InverseGamma(p[0], p[1]), f64(1.8, 1.7)),
    "Beta": (lambda p: dist.Beta(p[0], p[1]), f64(0.8, 1.7)),
    "Dirichlet": (lambda p: dist.Dirichlet(p), f64(0.8, 1.7, 9.0)),
    "StudentT": (lambda p: dist.StudentT(p[0], p[1], p[2]), f64(2.5, 1.0, 3.0)),
    "Categorical": (lambda p: dist.Categorical(logits=p), f64(0.0, -2.0, 1.0)),
    "CategoricalProbs": (lambda p: dist.Categorical(p), f64(0.2, 0.7, 0.1)),
    "Bernoulli": (lambda p: dist.Bernoulli(p), f64(0.2, 0.7)),
    "BernoulliLogits": (lambda p: dist.Bernoulli(logits=p), f64(0.2, -3.0)),
    "Geometric": (lambda p: dist.Geometric(p), f64(0.2, 0.7)),
    "Poisson": (lambda p: dist.Poisson(p), f64(0.2, 40.0)),
    "Binomial": (lambda p: dist.Binomial(f64(9.0, 500.0), p), f64(0.2, 0.7)),
    "MultivariateNormal": (
        lambda p: dist.MultivariateNormal(torch.zeros(2), torch.diag(p) + 0.1),
        f64(0.5, 2.0),
    ),
    "Masked": (lambda p: dist.Gamma(p, 1.0).mask(p.detach() > 1).to_event(1), f64(0.8, 1.7)),
}


@pytest.mark.parametrize("alpha", [0.5, 0.97, 1.0, 1.000001, 2.0])
@pytest.mark.parametrize("name", MAKERS)
def test_gradients_are_those_of_finite_differences(name: str, alpha: float) -> None:
    make, p = MAKERS[name]
    p = p.clone().requires_grad_()
    assert gradcheck(lambda q: entropy(make(q), alpha), p, rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(entropy(make(p), alpha).sum(), p)
    assert bool(gradient.isfinite().all())


@pytest.mark.usefixtures("without_validation")
@pytest.mark.parametrize("alpha", [0.5, 1.000001, 2.0])
@pytest.mark.parametrize("name", MAKERS)
def test_no_number_is_baked_into_a_trace(name: str, alpha: float) -> None:
    """Value and gradient are traced at one set of parameters and right at another, far away."""
    make, p = MAKERS[name]

    def value_and_gradient(q: Tensor) -> tuple[Tensor, ...]:
        q = q.detach().requires_grad_()
        value = entropy(make(q), alpha).sum()
        return (value, *torch.autograd.grad(value, q))

    other = p * 3 if (p > 1).any() and name != "Binomial" else p * 0.9
    if name == "Masked":
        other = p + 0.01
    graph = make_fx(value_and_gradient, tracing_mode="real")(p)
    torch.testing.assert_close(graph(other), value_and_gradient(other))


# ---- from draws -----------------------------------------------------------------------------------------------------

SAMPLED: list[tuple[Any, list[float]]] = [
    (dist.Normal(f64(1.0, 2.0), f64(0.5, 3.0)).to_event(1), [0.8, 1.0, 2.0, 3.0]),
    (dist.Gamma(f64(2.0)[0], 3.0), [0.8, 1.0, 2.0]),
    (dist.Beta(f64(2.0)[0], 3.0), [0.5, 0.9999999, 1.0, 1.0000001, 2.0, 5.0]),
    (dist.Dirichlet(f64(2.0, 3.0, 4.0)), [0.8, 1.0, 2.0]),
    (dist.Categorical(f64(0.1, 0.6, 0.3)), [0.5, 1.0, 2.0, 5.0]),
    (dist.Poisson(f64(4.0)[0]), [0.8, 1.0, 2.0]),
    (dist.Binomial(20.0, f64(0.3)[0]), [0.8, 1.0, 2.0]),
    (dist.Laplace(f64(0.0)[0], 2.0), [0.8, 1.0, 3.0]),
    (dist.LogNormal(f64(0.0)[0], 0.5), [0.8, 1.0, 2.0]),
]


@pytest.mark.parametrize(("fn", "orders"), SAMPLED, ids=lambda value: type(value).__name__)
def test_draws_agree_with_the_closed_form(fn: Any, orders: list[float]) -> None:
    log_q = fn.log_prob(fn.sample((20_000,)))
    for alpha in orders:
        value, diagnostic = renyi_from_log_q(log_q, alpha)
        error = (value - entropy(fn, alpha)).abs()
        assert error < 4 * diagnostic.stderr + 1e-12, (alpha, value, entropy(fn, alpha), diagnostic)
        assert diagnostic.stderr < 0.05
        assert bool(diagnostic.trusted())


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1 + 1e-9, 0.95, 1.3, 4.0])
def test_the_jackknife_leaves_one_draw_out_at_a_time(alpha: float) -> None:
    log_q = 2 * torch.randn(7, 3)

    def plain(rows: Tensor) -> Tensor:
        if abs(alpha - 1) < 1e-6:
            return -rows.mean(0) - (alpha - 1) / 2 * rows.var(0, correction=0)
        return (torch.logsumexp((alpha - 1) * rows, 0) - math.log(len(rows))) / (1 - alpha)

    without = torch.stack([plain(torch.cat([log_q[:k], log_q[k + 1 :]])) for k in range(7)])
    value, diagnostic = renyi_from_log_q(log_q.T, alpha, dim=1)
    torch.testing.assert_close(value, 7 * plain(log_q) - 6 * without.mean(0))
    torch.testing.assert_close(diagnostic.stderr, (6 / 7 * (without - without.mean(0)).square().sum(0)).sqrt())
    weights = ((alpha - 1) * log_q).exp()
    torch.testing.assert_close(diagnostic.ess, weights.sum(0) ** 2 / (weights**2).sum(0))


@pytest.mark.parametrize("alpha", [0.8, 2.0, 5.0])
def test_the_jackknife_takes_the_bias_of_order_one_over_k_away(alpha: float) -> None:
    fn = dist.Normal(0.0, 1.0)
    log_q = fn.log_prob(fn.sample((10, 100_000)))
    plain = (torch.logsumexp((alpha - 1) * log_q, 0) - math.log(10)) / (1 - alpha)
    value, _ = renyi_from_log_q(log_q, alpha)
    truth = entropy(fn, alpha)
    assert (value.mean() - truth).abs() < 0.35 * (plain.mean() - truth).abs()


def test_the_diagnostic_knows_when_not_to_be_trusted() -> None:
    wide = dist.Normal(torch.zeros(20), 1.0).to_event(1)
    log_q = wide.log_prob(wide.sample((1024,)))
    value, diagnostic = renyi_from_log_q(log_q, 0.3)
    assert not diagnostic.trusted()
    assert diagnostic.ess < 100
    one = dist.Normal(0.0, 1.0)
    value, diagnostic = renyi_from_log_q(one.log_prob(one.sample((1024, 2))), 2.0)
    assert diagnostic.trusted().tolist() == [True, True]
    assert diagnostic.pareto_k().shape == diagnostic.ess.shape == value.shape == (2,)
    # weights w with P(w > t) = t^(-1/k) have shape k: log w is exponential with mean k, and log q = -2 log w
    for k in (0.3, 0.9):
        log_q = -dist.Exponential(1 / (2 * k)).sample((20_000,))
        assert renyi_from_log_q(log_q, 0.5)[1].pareto_k().item() == pytest.approx(k, abs=0.1)


def test_k_hat_where_there_is_no_tail() -> None:
    log_q = torch.randn(100)
    assert renyi_from_log_q(log_q, 1.0)[1].pareto_k().item() == -math.inf
    assert bool(renyi_from_log_q(log_q, 1.0)[1].trusted())
    assert math.isnan(renyi_from_log_q(log_q[:10], 2.0)[1].pareto_k().item())
    assert not renyi_from_log_q(log_q[:10], 2.0)[1].trusted()
    assert not renyi_from_log_q(log_q[:1], 1.0)[1].trusted()


@pytest.mark.parametrize("draws", [10, 500, 777])  # the rounding of log K differs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_are_smooth_through_one(dtype: torch.dtype, draws: int) -> None:
    log_q = (3 * torch.randn(draws) - 40).to(dtype)
    shannon, diagnostic = renyi_from_log_q(log_q, 1.0)
    assert shannon.item() == pytest.approx(-log_q.mean().item())
    assert diagnostic.stderr.item() == pytest.approx(log_q.std().item() / math.sqrt(draws))
    assert diagnostic.ess.item() == pytest.approx(draws)
    for alpha in NEAR_ONE:
        value, _ = renyi_from_log_q(log_q, alpha)
        exact, _ = renyi_from_log_q(log_q.double(), alpha)
        linear = shannon.item() - (alpha - 1) / 2 * log_q.var().item()
        assert value.item() == pytest.approx(exact.item(), rel=1e-6)
        assert value.item() == pytest.approx(linear, abs=2e-5 + 10 * (alpha - 1) ** 2)


@pytest.mark.parametrize("alpha", [0.5, 1 + 1e-6, 2.0])
def test_draws_that_are_not_reparameterised_need_the_score_term(alpha: float) -> None:
    logits = f64(0.0, 1.0, -1.0).requires_grad_()
    (exact,) = torch.autograd.grad(entropy(dist.Categorical(logits=logits), alpha), logits)
    gradients = []
    for _ in range(20):
        fn = dist.Categorical(logits=logits)
        log_q = fn.log_prob(fn.sample((1000, 10)))
        value, diagnostic = renyi_from_log_q(log_q, alpha)
        score = -(diagnostic.log_weights.softmax(0) - 1 / 1000) * log_q / (alpha - 1)
        gradients.append(torch.autograd.grad(value.mean() + score.sum(0).mean(), logits)[0])
    found = torch.stack(gradients)
    assert bool(((found.mean(0) - exact).abs() < 4 * found.std(0) / math.sqrt(20)).all())


def test_draws_of_huge_log_densities_and_their_gradients_stay_finite() -> None:
    log_q = (1e4 * torch.randn(50, 2)).float().requires_grad_()
    for alpha in [*ORDERS, *NEAR_ONE, 50.0]:
        value, diagnostic = renyi_from_log_q(log_q, alpha)
        (gradient,) = torch.autograd.grad(value.sum(), log_q)
        assert bool(value.isfinite().all())
        assert bool(gradient.isfinite().all())
        assert bool(diagnostic.stderr.isfinite().all())
        assert not diagnostic.ess.requires_grad
    log_q = torch.randn(6).requires_grad_()
    for alpha in (0.5, 0.999999, 1.0, 1.02, 2.0):
        assert gradcheck(lambda x, a=alpha: renyi_from_log_q(x, a)[0], log_q)
        graph = make_fx(lambda x: renyi_from_log_q(x, alpha)[0])(log_q.detach())  # noqa: B023
        torch.testing.assert_close(graph(30 * log_q.detach()), renyi_from_log_q(30 * log_q.detach(), alpha)[0])


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [-0.5, -math.inf, math.nan])
def test_orders_below_zero_are_refused(alpha: float) -> None:
    for call in (lambda: renyi_entropy(dist.Normal(0.0, 1.0), alpha), lambda: renyi_from_log_q(torch.zeros(3), alpha)):
        with pytest.raises(ValueError, match=rf"alpha={alpha}.*must be >= 0.*alpha=1\.0 for Shannon"):
            call()


@pytest.mark.parametrize("alpha", [torch.tensor(2.0), "2", None, True, 1j])
def test_orders_that_are_no_numbers_are_refused(alpha: Any) -> None:
    with pytest.raises(TypeError, match=r"alpha=.*expected a number >= 0"):
        renyi_entropy(dist.Normal(0.0, 1.0), alpha)


@pytest.mark.parametrize(("alpha", "name"), [(0, "Hartley"), (math.inf, "min-entropy")])
@pytest.mark.parametrize(
    "fn", [dist.Normal(0.0, 1.0), dist.Poisson(2.0), dist.Uniform(0.0, 1.0), dist.VonMises(0.0, 1.0)]
)
def test_limits_of_infinite_supports_are_refused(fn: Any, alpha: float, name: str) -> None:
    match = rf"alpha={alpha} \({name}.* of {type(fn).__name__}.*finite supports only.*Write a"
    with pytest.raises(ValueError, match=match):
        renyi_entropy(fn.expand([2]).to_event(1).mask(True), alpha)
    with pytest.raises(ValueError, match=rf"alpha={alpha}: draws say nothing.*Write 0 < alpha < inf"):
        renyi_from_log_q(torch.zeros(3), alpha)


def test_one_draw_serves_shannon_only() -> None:
    value, diagnostic = renyi_from_log_q(f64(-2.0), 1.0)
    assert value.item() == 2.0
    assert math.isnan(diagnostic.stderr.item())
    for log_q, alpha, draws in ((torch.zeros(1), 2.0, 1), (torch.zeros(0), 1.0, 0)):
        with pytest.raises(ValueError, match=rf"with {draws} draw\(s\) along axis 0.*at least 2.*num_particles=2"):
            renyi_from_log_q(log_q, alpha)
