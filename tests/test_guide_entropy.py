"""The entropy of a guide against exact answers: closed forms, joint Gaussians, enumeration, quadrature."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import autoguide
from scipy import integrate, stats
from torch import Tensor

from banel_pyro import BaNEL_ELBO, Estimate, guide_entropy
from banel_pyro.terms import VectorEstimate

pytestmark = pytest.mark.usefixtures("float64")

N, B = 12, 3
HALF_LOG_2PI_E = 0.5 * math.log(2 * math.pi * math.e)


def gaussian(covariance: Tensor, alpha: float) -> float:
    """Rényi entropy of a multivariate normal distribution, by its textbook formula."""
    k = len(covariance)
    constant = 1.0 if alpha == 1 else math.log(alpha) / (alpha - 1)
    return 0.5 * float(torch.logdet(covariance)) + 0.5 * k * (math.log(2 * math.pi) + constant)


def close(found: Estimate, exact: float, *, errors: float = 4.0) -> None:
    assert abs(found.value - exact) <= errors * found.stderr + 1e-9, (found, exact)


def exactly(found: Estimate, exact: float) -> None:
    assert found.value == pytest.approx(exact, abs=1e-9)
    assert found.stderr == 0


# Plain guides


def independent() -> None:
    pyro.sample("a", dist.Normal(0.3, 0.5))
    pyro.sample("b", dist.Normal(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0])).to_event(1))
    pyro.sample("c", dist.Gamma(2.0, 3.0))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_independent_sites_add(alpha: float) -> None:
    """In closed form: one draw, no error."""
    gamma = stats.gamma(2.0, scale=1 / 3)
    integral = integrate.quad(lambda x: gamma.pdf(x) ** alpha, 0, np.inf)[0]
    third = gamma.entropy() if alpha == 1 else math.log(integral) / (1 - alpha)
    normal = gaussian(torch.diag(torch.tensor([0.25, 1.0, 4.0, 9.0])), alpha)
    exactly(guide_entropy(independent, alpha=alpha), normal + third)
    apart = guide_entropy(independent, alpha=alpha, per_site=True)
    assert list(apart) == ["a", "b", "c"]
    exactly(apart["c"], third)


def test_by_monte_carlo_it_is_the_same_within_its_error() -> None:
    exact = guide_entropy(independent).value
    for alpha in (1.0, 2.0):
        found = guide_entropy(independent, alpha=alpha, estimator="monte_carlo", num_samples=1500, seed=1)
        assert 0 < found.stderr < 0.2
        close(found, exact if alpha == 1 else guide_entropy(independent, alpha=alpha).value)


A, S = 0.8, 0.6


def chain_covariance() -> Tensor:
    return torch.tensor([[1.0, A], [A, A**2 + S**2]])


def chain() -> None:
    """b depends on a; together they are normal."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.Normal(A * a, S))


@pytest.mark.parametrize("alpha", [0.7, 2.0])
def test_dependent_sites_have_a_joint_renyi_entropy(alpha: float) -> None:
    found = guide_entropy(chain, alpha=alpha, num_samples=1500, seed=0)
    assert found.stderr < 0.1
    close(found, gaussian(chain_covariance(), alpha))


def test_shannon_adds_over_dependent_sites() -> None:
    found = guide_entropy(chain, num_samples=20)
    assert found.value == pytest.approx(gaussian(chain_covariance(), 1.0), abs=1e-9)  # the scale of b is fixed


def test_dependent_discrete_sites_against_enumeration() -> None:
    top = torch.tensor([0.2, 0.5, 0.3])
    below = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5]])

    def guide() -> None:
        a = pyro.sample("a", dist.Categorical(top))
        pyro.sample("b", dist.Categorical(below[a]))

    joint = torch.stack([top[i] * below[i, j] for i, j in product(range(3), range(2))])
    close(guide_entropy(guide, num_samples=1500, seed=2), float(-(joint * joint.log()).sum()))
    for alpha in (0.5, 2.0, 5.0):
        exact = float((joint**alpha).sum().log()) / (1 - alpha)
        close(guide_entropy(guide, alpha=alpha, num_samples=1500, seed=3), exact)


def test_a_mixture_and_a_relaxed_site_by_monte_carlo_and_quadrature() -> None:
    q = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.3, 0.7])), dist.Normal(torch.tensor([-2.0, 1.0]), torch.tensor([0.5, 1.0]))
    )

    def density(x: float) -> float:
        return float(q.log_prob(torch.tensor(x)).exp())

    for alpha in (1.0, 2.0):
        integrand = (lambda x: -density(x) * math.log(density(x))) if alpha == 1 else (lambda x: density(x) ** alpha)  # noqa: B023
        integral = integrate.quad(integrand, -9, 9, limit=200)[0]
        exact = integral if alpha == 1 else math.log(integral) / (1 - alpha)
        close(guide_entropy(lambda: pyro.sample("z", q), alpha=alpha, num_samples=1500, seed=4), exact)
    relaxed = dist.RelaxedBernoulli(torch.tensor(0.7), probs=torch.tensor(0.4))
    found = guide_entropy(lambda: pyro.sample("z", relaxed), num_samples=1500, seed=5)
    exact = integrate.quad(lambda x: -_entropy_term(relaxed, x), 1e-9, 1 - 1e-9, limit=300)[0]
    close(found, exact)


def _entropy_term(q: Any, x: float) -> float:
    log_q = float(q.log_prob(torch.tensor(x)))
    return math.exp(log_q) * log_q


# Plates, masks, scales


def local(x: Tensor, size: int | None = None) -> None:
    with pyro.plate("data", N, subsample_size=size) as rows:
        pyro.sample("z", dist.Normal(0.0, 0.5 + rows.to(torch.get_default_dtype())))


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_a_subsampled_plate_has_the_expectation_of_the_whole(alpha: float) -> None:
    scales = 0.5 + torch.arange(N)
    exact = gaussian(torch.diag(scales**2), alpha)
    exactly(guide_entropy(local, torch.zeros(N), alpha=alpha), exact)
    parts = [
        guide_entropy(local, torch.zeros(N), B, alpha=alpha, num_samples=1, seed=seed).value for seed in range(400)
    ]
    assert abs(np.mean(parts) - exact) < 4 * np.std(parts, ddof=1) / 20


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_draws_of_a_subsampled_plate_count_for_all_rows(alpha: float) -> None:
    def guide() -> None:
        with pyro.plate("data", N, subsample_size=B):
            pyro.sample("z", dist.Normal(0.0, 2.0))

    found = guide_entropy(guide, alpha=alpha, estimator="monte_carlo", num_samples=2000, seed=0)
    close(found, N * gaussian(torch.tensor([[4.0]]), alpha))


def test_masks_count_and_a_scale_of_the_users_own_does_not() -> None:
    def guide() -> None:
        with pyro.plate("data", 4), poutine.mask(mask=torch.tensor([True, False, True, True])):
            pyro.sample("z", dist.Normal(0.0, 2.0))

    one = HALF_LOG_2PI_E + math.log(2.0)
    exactly(guide_entropy(guide), 3 * one)
    exactly(guide_entropy(poutine.scale(guide, 7.0)), 3 * one)
    close(guide_entropy(guide, alpha=2.0, estimator="monte_carlo", seed=0), 3 * gaussian(torch.tensor([[4.0]]), 2.0))
    rows = guide_entropy(guide, per_datum=True)
    np.testing.assert_allclose(rows.value, [one, 0.0, one, one])


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_vectors_over_the_data_plate_add_up(alpha: float) -> None:
    """Unscaled, a row counts once; what is outside the plate is left out."""

    def guide(x: Tensor) -> None:
        pyro.sample("outside", dist.Normal(0.0, 3.0))
        local(x, B)

    rows = guide_entropy(guide, torch.zeros(N), alpha=alpha, per_datum=True, seed=1, num_samples=1)
    assert isinstance(rows, VectorEstimate)
    assert rows.value.shape == (B,)
    scales = rows.value - gaussian(torch.ones(1, 1), alpha)
    assert all(abs(math.exp(s) - 0.5 - round(math.exp(s) - 0.5)) < 1e-9 for s in scales)
    sampled = guide_entropy(guide, torch.zeros(N), alpha=alpha, per_datum=True, estimator="monte_carlo", seed=1)
    assert sampled.stderr.shape == (B,)
    with pytest.raises(ValueError, match="no site in the data plate"):
        guide_entropy(chain, per_datum=True)


# Autoguides, by name


def model() -> None:
    pyro.sample("a", dist.HalfNormal(1.0))
    with pyro.plate("data", 3):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("w", dist.Dirichlet(torch.ones(3)))


LATENTS = 1 + 3 + 3 * 2
BASE = LATENTS * (HALF_LOG_2PI_E + math.log(0.1))
FAMILIES: dict[str, Callable[..., Any]] = {
    "AutoNormal": autoguide.AutoNormal,
    "AutoDiagonalNormal": autoguide.AutoDiagonalNormal,
    "AutoMultivariateNormal": autoguide.AutoMultivariateNormal,
    "AutoStructured": autoguide.AutoStructured,
    "AutoGaussian": autoguide.AutoGaussian,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_an_autoguide_in_both_spaces(name: str) -> None:
    """All of them start as independent normals of sd 0.1 in unconstrained coordinates."""
    guide = FAMILIES[name](model)
    guide()
    found = guide_entropy(guide, space="unconstrained", num_samples=50)
    assert found.value == pytest.approx(BASE, abs=1e-3)  # Pyro's sd of 0.1 is not exact everywhere
    constrained = guide_entropy(guide, num_samples=2000, seed=0)
    close(constrained, BASE + mean_log_jacobian(guide), errors=5)
    two = guide_entropy(guide, alpha=2.0, space="unconstrained", num_samples=1500, seed=0)
    close(two, BASE - LATENTS * 0.5 * (1 - math.log(2)))


def mean_log_jacobian(guide: Any, draws: int = 1000) -> float:
    """E[log|det dz/du|], from the guide's own draws and torch's transforms."""
    found = []
    with torch.no_grad():
        for _ in range(draws):
            values = guide()
            total = values["a"].log()
            transform = torch.distributions.biject_to(dist.Dirichlet(torch.ones(3)).support)
            total = total + transform.log_abs_det_jacobian(transform.inv(values["w"]), values["w"]).sum()
            found.append(float(total))
    return float(np.mean(found))


@pytest.mark.parametrize("name", ["AutoLowRankMultivariateNormal", "AutoIAFNormal", "AutoNormalMessenger"])
@pytest.mark.parametrize("alpha", [1.0, 1.5])
def test_flows_low_rank_and_messengers_against_their_own_densities(name: str, alpha: float) -> None:
    """E[-log q] of the joint log q that the guide's trace has, or its power mean; by far more draws."""
    options = {"hidden_dim": [LATENTS + 2]} if name == "AutoIAFNormal" else {}
    guide = getattr(autoguide, name)(model, **options)
    guide()
    with torch.no_grad():
        log_q = torch.tensor([joint_log_q(guide) for _ in range(1500)])
    exact = -log_q.mean() if alpha == 1 else torch.log(torch.exp((alpha - 1) * log_q).mean()) / (1 - alpha)
    found = guide_entropy(guide, alpha=alpha, num_samples=1000, seed=0, estimator="monte_carlo")
    error = math.hypot(found.stderr, float(log_q.std()) / math.sqrt(len(log_q)))
    assert abs(found.value - float(exact)) < 5 * error


def test_what_a_messenger_guide_observes_is_no_part_of_it() -> None:
    def observed() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.1), obs=torch.tensor(0.3))

    guide = autoguide.AutoNormalMessenger(observed)
    guide()
    close(guide_entropy(guide, seed=0), HALF_LOG_2PI_E + math.log(0.1))


def test_a_change_of_variables_on_the_real_line_is_not_taken_for_none() -> None:
    """z = sinh(u), u normal: H(z) = H(u) + E[log cosh u]."""

    def guide() -> None:
        u = pyro.sample("z_aux", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(torch.sinh(u), log_density=-torch.log(torch.cosh(u))))

    mean = integrate.quad(lambda u: math.log(math.cosh(u)) * stats.norm.pdf(u), -12, 12)[0]
    found = guide_entropy(guide, num_samples=3000, seed=0)
    assert found.stderr > 0
    close(found, HALF_LOG_2PI_E + mean)


def joint_log_q(guide: Any) -> float:
    trace = poutine.trace(guide).get_trace()
    for name, site in list(trace.nodes.items()):
        if site["type"] == "sample" and site["is_observed"] and not site["infer"].get("is_auxiliary"):
            trace.remove_node(name)
    return float(trace.log_prob_sum())


def test_a_point_mass_has_entropy_minus_infinity() -> None:
    guide = autoguide.AutoDelta(model)
    guide()
    for alpha in (0.5, 1.0, 2.0):
        assert guide_entropy(guide, alpha=alpha).value == -math.inf


def test_a_constrained_plain_site_in_unconstrained_coordinates() -> None:
    """Beta(2, 3), in log-odds: by quadrature."""
    beta = stats.beta(2, 3)

    def log_odds(u: float) -> float:
        x = 1 / (1 + math.exp(-u))
        return float(beta.pdf(x)) * x * (1 - x)

    for alpha in (1.0, 2.0):
        term = (lambda u: -log_odds(u) * math.log(log_odds(u))) if alpha == 1 else (lambda u: log_odds(u) ** alpha)  # noqa: B023
        integral = integrate.quad(term, -25, 25, limit=200)[0]
        exact = integral if alpha == 1 else math.log(integral) / (1 - alpha)
        found = guide_entropy(
            lambda: pyro.sample("x", dist.Beta(2.0, 3.0)), space="unconstrained", alpha=alpha, num_samples=1500, seed=6
        )
        close(found, exact)
    exactly(guide_entropy(lambda: pyro.sample("x", dist.Beta(2.0, 3.0))), beta.entropy())


# One piece of code with the objective, generators, refusals


def test_it_is_the_entropy_of_the_objective() -> None:
    def two(x: Tensor) -> None:
        pyro.sample("a", dist.Normal(0.0, 1.0))
        local(x)

    terms = BaNEL_ELBO(lam=0.3).terms(two, two, torch.zeros(N))
    assert guide_entropy(two, torch.zeros(N)).value == pytest.approx(float(terms.entropy), abs=1e-9)


def test_a_seed_leaves_the_callers_generator_alone() -> None:
    before = torch.get_rng_state()
    first = guide_entropy(chain, alpha=2.0, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert guide_entropy(chain, alpha=2.0, seed=3) == first
    assert guide_entropy(chain, alpha=2.0, seed=4) != first
    assert guide_entropy(chain, alpha=2.0) != guide_entropy(chain, alpha=2.0)


def test_it_warns_where_draws_cannot_be_trusted() -> None:
    wide = dist.Normal(torch.zeros(20), 1.0).to_event(1)
    with pytest.warns(UserWarning, match=r"\['z'\] at alpha=0.3 from 200 draws cannot be trusted.*Pareto k up to"):
        guide_entropy(lambda: pyro.sample("z", wide), alpha=0.3, estimator="monte_carlo", num_samples=200, seed=0)


@pytest.mark.parametrize(
    ("guide", "options", "words"),
    [
        (chain, {"alpha": -1.0}, "alpha=-1"),
        (chain, {"alpha": math.nan}, "alpha=nan"),
        (chain, {"alpha": 0.0}, "alpha=0"),
        (chain, {"alpha": math.inf}, "alpha=inf"),
        (chain, {"space": "log"}, r"space='log': expected one of \['constrained', 'unconstrained'\]"),
        (chain, {"estimator": "exact"}, "estimator='exact': expected one of"),
        (chain, {"num_samples": 0}, "num_samples=0: expected an integer of at least 1"),
        (chain, {"alpha": 2.0, "per_site": True}, r"\['a', 'b'\] depend on each other, and Rényi entropies"),
        (chain, {"alpha": 2.0, "estimator": "closed_form"}, "site 'a' has no closed form: it depends on other sites"),
        (lambda: pyro.sample("z", dist.VonMises(0.0, 1.0)), {"estimator": "closed_form"}, "'z' has no closed form"),
        (
            lambda: pyro.sample("z", dist.Beta(2.0, 3.0)),
            {"estimator": "closed_form", "space": "unconstrained"},
            "'z' has no closed form: the Jacobian",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(guide: Callable[[], Any], options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        guide_entropy(guide, **options)


def test_dependence_across_a_subsampled_plate_is_refused() -> None:
    def guide(size: int) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N, subsample_size=size):
            pyro.sample("z", dist.Normal(a, 1.0))

    covariance = torch.cat([torch.ones(1, N), torch.eye(N) + 1.0])
    covariance = torch.cat([torch.ones(N + 1, 1), covariance], dim=1)
    close(guide_entropy(guide, N, alpha=1.3, num_samples=1500, seed=0), gaussian(covariance, 1.3))
    with pytest.raises(
        ValueError, match=r"\['a', 'z'\] depend on each other across the subsampled plate 'data' \(3 of"
    ):
        guide_entropy(guide, B, alpha=1.3)
    assert guide_entropy(guide, B).value == pytest.approx((N + 1) * HALF_LOG_2PI_E)
