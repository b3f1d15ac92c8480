"""The entropy of a guide (law L7): closed form = Monte Carlo = quadrature, for every kind of guide."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import autoguide
from torch import Tensor

from banel_pyro import BaNEL_ELBO
from banel_pyro.entropy import closed_form_entropy
from tests.laws import assert_mean

pytestmark = pytest.mark.usefixtures("float64")

NORMAL = (1 + math.log(2 * math.pi)) / 2


# ---- distributions --------------------------------------------------------------------------------------------

KNOWN = [
    dist.Normal(torch.zeros(2), torch.tensor([0.5, 2.0])),
    dist.Normal(torch.zeros(3, 2), 1.5).to_event(1),
    dist.Normal(0.0, 1.0).expand([4]),
    dist.LogNormal(0.3, 0.8),
    dist.Gamma(2.0, 3.0),
    dist.Beta(2.0, 0.7),
    dist.Dirichlet(torch.tensor([1.0, 2.0, 0.5])),
    dist.Exponential(2.0),
    dist.Laplace(0.0, 2.0),
    dist.StudentT(5.0),
    dist.Uniform(torch.tensor(-1.0).double(), 3.0),
    dist.HalfNormal(2.0),
    dist.MultivariateNormal(torch.zeros(2), torch.tensor([[2.0, 0.3], [0.3, 1.0]])),
    dist.LowRankMultivariateNormal(torch.zeros(3), torch.ones(3, 1), torch.ones(3)),
    dist.Bernoulli(0.3),
    dist.Categorical(torch.tensor([0.2, 0.5, 0.3])),
    dist.OneHotCategorical(torch.tensor([0.2, 0.5, 0.3])),
    dist.Geometric(0.3),
    dist.Normal(torch.zeros(3), 1.0).mask(torch.tensor([True, False, True])),
    dist.ExpandedDistribution(dist.Gamma(2.0, 3.0), torch.Size([3])),
    dist.Independent(dist.ExpandedDistribution(dist.Gamma(2.0, 3.0), torch.Size([3])), 1),
]


@pytest.mark.parametrize("fn", KNOWN, ids=lambda fn: type(fn).__name__)
def test_closed_form_is_the_mean_of_minus_log_prob(fn: Any) -> None:
    entropy = closed_form_entropy(fn)
    assert entropy is not None
    assert torch.broadcast_shapes(entropy.shape, fn.batch_shape) == fn.batch_shape
    draws = fn.sample((4000,))
    assert_mean(-fn.log_prob(draws), entropy.expand(fn.batch_shape))


@pytest.mark.parametrize("fn", [dist.VonMises(0.0, 1.0), dist.Delta(torch.zeros(())), dist.LKJCholesky(3)])
def test_unknown_closed_forms_are_none(fn: Any) -> None:
    assert closed_form_entropy(fn) is None


# ---- autoguides, each by name ---------------------------------------------------------------------------------


def model() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    s = pyro.sample("s", dist.HalfNormal(1.0))
    pyro.sample("w", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("J", 5):
        z = pyro.sample("z", dist.Normal(mu, s))
    pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=torch.tensor(1.0))


def real_model() -> None:
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    pyro.sample("nu", dist.Normal(mu.sum(-1), 1.0))


MIXED = "closed_form+jacobian"
MEAN_FIELD = {"mu": "closed_form", "s": MIXED, "w": MIXED, "z": "closed_form"}
SAMPLED = dict.fromkeys(MEAN_FIELD, "monte_carlo")
POINTS = dict.fromkeys(MEAN_FIELD, "point_mass")
CONDITIONALS = {"mu": "normal", "s": "mvn", "w": "normal", "z": "mvn"}

AUTOGUIDES: dict[str, tuple[Callable[[Any], Any], dict[str, str]]] = {
    "AutoNormal": (autoguide.AutoNormal, MEAN_FIELD),
    "AutoDiagonalNormal": (autoguide.AutoDiagonalNormal, {"_AutoDiagonalNormal_latent": MIXED}),
    "AutoMultivariateNormal": (autoguide.AutoMultivariateNormal, {"_AutoMultivariateNormal_latent": MIXED}),
    "AutoLowRankMultivariateNormal": (
        autoguide.AutoLowRankMultivariateNormal,
        {"_AutoLowRankMultivariateNormal_latent": MIXED},
    ),
    "AutoGaussian": (autoguide.AutoGaussian, {"_AutoGaussianDense_latent": MIXED}),
    "AutoIAFNormal": (
        lambda m: autoguide.AutoIAFNormal(m, hidden_dim=[16]),
        {"_AutoIAFNormal_latent": "monte_carlo"},
    ),
    "AutoStructured": (lambda m: autoguide.AutoStructured(m, conditionals=CONDITIONALS), MEAN_FIELD),
    "AutoNormalMessenger": (autoguide.AutoNormalMessenger, SAMPLED),
    "AutoHierarchicalNormalMessenger": (autoguide.AutoHierarchicalNormalMessenger, SAMPLED),
    "AutoRegressiveMessenger": (autoguide.AutoRegressiveMessenger, SAMPLED),
    "AutoDelta": (autoguide.AutoDelta, POINTS),
    "AutoLaplaceApproximation": (
        autoguide.AutoLaplaceApproximation,
        {"_AutoLaplaceApproximation_latent": "point_mass"},
    ),
}


@pytest.mark.parametrize("name", AUTOGUIDES)
def test_every_autoguide_has_its_estimator(name: str) -> None:
    make, expected = AUTOGUIDES[name]
    assert BaNEL_ELBO().estimators(model, make(model)) == expected


def test_no_autoguide_of_pyro_is_left_out() -> None:
    known = set(AUTOGUIDES) | {
        "AutoCallable",  # wraps a hand-written guide
        "AutoContinuous",  # base class
        "AutoDiscreteParallel",  # enumerated: for TraceEnum_ELBO
        "AutoGuide",  # base class
        "AutoGuideList",  # tested below
        "AutoMessenger",  # base class
        "AutoNormalizingFlow",  # what AutoIAFNormal is an instance of
        "AutoRegressiveMessenger",
    }
    assert {name for name in autoguide.__all__ if name.startswith("Auto")} <= known


@pytest.mark.parametrize("name", [n for n, (_, kinds) in AUTOGUIDES.items() if "point_mass" not in kinds.values()])
def test_closed_form_and_monte_carlo_agree(name: str) -> None:
    guide = AUTOGUIDES[name][0](model)
    guide()
    found = {mode: _entropies(BaNEL_ELBO(entropy=mode), model, guide) for mode in ("auto", "monte_carlo")}
    for site, draws in found["monte_carlo"].items():
        assert_mean(draws - found["auto"][site], 0.0)
    # the sum over densities is the entropy of the joint density in the constrained space
    total = torch.stack(list(found["auto"].values())).sum(0)
    assert_mean(total - _minus_log_joint(guide), 0.0)


def _entropies(elbo: BaNEL_ELBO, model: Any, guide: Any, draws: int = 300) -> dict[str, Tensor]:
    rows = [elbo.site_entropies(model, guide) for _ in range(draws)]
    return {site: torch.stack([row[site] for row in rows]) for site in rows[0]}


def _minus_log_joint(guide: Any, draws: int = 300) -> Tensor:
    """-log q by Pyro alone."""
    values = []
    for _ in range(draws):
        if isinstance(guide, autoguide.effect.AutoMessenger):
            guide()
            trace = guide.get_traces()[1]
        else:
            trace = poutine.trace(guide).get_trace()
        values.append(-trace.log_prob_sum().detach())
    return torch.stack(values)


def test_unconstrained_autoguide_is_in_closed_form() -> None:
    guide = autoguide.AutoMultivariateNormal(real_model)
    elbo = BaNEL_ELBO(entropy="closed_form")
    assert elbo.estimators(real_model, guide) == {"_AutoMultivariateNormal_latent": "closed_form"}
    assert float(elbo.terms(real_model, guide).entropy) == pytest.approx(3 * (NORMAL + math.log(0.1)))


# ---- change of variables, against quadrature ------------------------------------------------------------------


@pytest.mark.parametrize(
    "prior",
    [dist.HalfNormal(1.0), dist.Beta(1.0, 1.0), dist.Uniform(-1.0, 3.0), dist.Gamma(1.0, 1.0)],
    ids=lambda prior: type(prior).__name__,
)
def test_constrained_site_against_quadrature(prior: Any) -> None:
    def model() -> None:
        pyro.sample("x", prior)

    guide = autoguide.AutoNormal(model, init_scale=0.7)
    guide()
    with torch.no_grad():
        pyro.get_param_store()._params["AutoNormal.locs.x"].fill_(0.4)
    transform = torch.distributions.biject_to(prior.support)
    u = torch.linspace(0.4 - 7, 0.4 + 7, 20001)
    base = dist.Normal(0.4, 0.7)
    jacobian = transform.log_abs_det_jacobian(u, transform(u))
    exact = torch.trapezoid(base.log_prob(u).exp() * (-base.log_prob(u) + jacobian), u)
    for mode in ("auto", "monte_carlo"):
        assert_mean(_entropies(BaNEL_ELBO(entropy=mode), model, guide, 2000)["x"], exact)
    if isinstance(prior, dist.HalfNormal | dist.Gamma):
        assert float(exact) == pytest.approx(NORMAL + math.log(0.7) + 0.4, abs=1e-6)


# ---- plates, masks, hierarchy ---------------------------------------------------------------------------------


def test_subsampled_masked_and_nested_plates_count_as_pyro_counts_them() -> None:
    sd = torch.linspace(0.5, 1.5, 12)
    mask = torch.arange(12) % 3 != 0

    def both(fn: Callable[[Tensor], Any]) -> None:
        with pyro.plate("rows", 12, subsample_size=4, dim=-1) as rows, poutine.mask(mask=mask[rows]):
            pyro.sample("z", fn(rows))
            with pyro.plate("columns", 3, dim=-2):
                pyro.sample("w", dist.Normal(0.0, 2.0))

    def model() -> None:
        both(lambda rows: dist.Normal(0.0, 1.0).expand([4]))

    def guide() -> None:
        both(lambda rows: dist.Normal(0.0, sd[rows]))

    exact_z = ((NORMAL + sd.log()) * mask).sum()
    exact_w = 3 * (NORMAL + math.log(2.0)) * mask.sum()
    for mode in ("closed_form", "monte_carlo"):
        found = _entropies(BaNEL_ELBO(entropy=mode), model, guide, 2000)
        assert_mean(found["z"], exact_z)
        assert_mean(found["w"], exact_w)


def test_hierarchy_is_the_entropy_of_the_joint() -> None:
    def model() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(a, 1.0))

    def guide() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 0.5))
        pyro.sample("b", dist.Normal(0.7 * a, (0.3 * a).exp()))

    found = _entropies(BaNEL_ELBO(), model, guide, 4000)
    # H(b|a) = E[log sd(a)] + c = c, as E[a] = 0
    assert_mean(found["b"], NORMAL)
    assert_mean(found["a"], NORMAL + math.log(0.5))


# ---- point masses and joint densities -------------------------------------------------------------------------


def test_a_list_of_autoguides_keeps_densities_and_points_apart() -> None:
    guide = autoguide.AutoGuideList(model)
    guide.append(autoguide.AutoDiagonalNormal(poutine.block(model, expose=["mu", "s"])))
    guide.append(autoguide.AutoDelta(poutine.block(model, expose=["w"])))
    guide.append(autoguide.AutoMultivariateNormal(poutine.block(model, expose=["z"])))
    elbo = BaNEL_ELBO()
    expected = {"_AutoGuideList.0_latent": MIXED, "w": "point_mass", "_AutoGuideList.2_latent": "closed_form"}
    assert elbo.estimators(model, guide) == expected
    terms = elbo.terms(model, guide)
    assert float(terms.entropy) == -math.inf
    assert float(terms.penalty) == 0.0
    assert math.isfinite(float(terms.loss))
    with pytest.raises(ValueError, match=r"lam=0.1 at site 'w'.*point mass.*leaves this site out"):
        BaNEL_ELBO(lam=0.1).loss(model, guide)
    left_out = BaNEL_ELBO(lam={"_AutoGuideList.0_latent": 0.1})
    assert math.isfinite(left_out.loss(model, guide))


def test_a_pair_of_auxiliary_and_delta_is_named_by_the_models_site() -> None:
    def model() -> None:
        pyro.sample("x", dist.LogNormal(0.0, 1.0))

    def guide() -> None:
        u = pyro.sample("u", dist.Normal(0.2, 0.5), infer={"is_auxiliary": True})
        pyro.sample("x", dist.Delta(u.exp(), log_density=-u))

    elbo = BaNEL_ELBO(lam={"x": 0.3})
    assert elbo.estimators(model, guide) == {"x": MIXED}
    assert_mean(_entropies(elbo, model, guide, 2000)["x"], dist.LogNormal(0.2, 0.5).entropy())
    with pytest.raises(ValueError, match=r"unknown sites \['u'\].*\['x'\]"):
        BaNEL_ELBO(lam={"u": 0.3}).loss(model, guide)
