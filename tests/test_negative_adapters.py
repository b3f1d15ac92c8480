"""Generators made of models and distributions: the density is one, the samples follow it, and training moves both."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn

from banel_pyro.negative import DistributionGenerator, Generator, PairGenerator, SiteGenerator, check_generator
from banel_pyro.negative.statements import apart
from banel_pyro.negative.training import Training
from models import normal_normal, vae

# ---- what the laws run over ----------------------------------------------------------------------


def normal_model() -> Tensor:
    """Two numbers, their location and scale trained."""
    loc = pyro.param("loc", torch.tensor([0.5, -0.5]))
    scale = pyro.param("scale", lambda: torch.tensor([1.0, 0.5]), constraint=constraints.positive)
    return pyro.sample("x", dist.Normal(loc, scale).to_event(1))


def plate_model() -> None:
    """Two tosses, in a plate of the model's own."""
    probs = pyro.param("p.robs", torch.tensor(0.3), constraint=constraints.unit_interval)
    with pyro.plate("tosses", 2):
        x = pyro.sample("x", dist.Bernoulli(probs))
    pyro.deterministic("heads", x.sum())


class Network(PyroModule):
    """The location by a network of torch's, the scale a PyroParam."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2)
        self.scale = PyroParam(torch.ones(2), constraint=constraints.positive)

    def forward(self) -> None:
        pyro.sample("x", dist.Normal(self.net(torch.ones(3)), self.scale).to_event(1))


class Nested(nn.Module):
    """A module of torch's around a PyroModule."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Network()

    def draw(self) -> None:
        self.inner()


def shifted(loc: Tensor, log_scale: Tensor) -> Any:
    return torch.distributions.Normal(loc, log_scale.exp())


def with_probs(fn: Any) -> Any:
    """A distribution that has worked out its other parameter, and keeps it."""
    assert fn.probs is not None
    return fn


class Case(NamedTuple):
    """A generator, points that its candidates lie at with their weights, and candidates to train on."""

    make: Callable[[], Generator]
    points: Callable[[], tuple[Tensor, float]]
    target: float


def grid(dim: int, low: float = -8.0, high: float = 8.0) -> tuple[Tensor, float]:
    """Points of a grid, and the volume that each stands for."""
    steps = 4001 if dim == 1 else 321
    axis = torch.linspace(low, high, steps)
    step = (high - low) / (steps - 1)
    return (axis if dim == 1 else torch.cartesian_prod(*[axis] * dim)), step**dim


def tosses(dim: int) -> tuple[Tensor, float]:
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * dim) if dim > 1 else torch.tensor([0.0, 1.0]), 1.0


CASES = {
    "site": Case(partial(SiteGenerator, normal_model), partial(grid, 2), 1.5),
    "site in a plate": Case(partial(SiteGenerator, plate_model), partial(tosses, 2), 1.0),
    "PyroModule": Case(lambda: SiteGenerator(Network()), partial(grid, 2), 1.5),
    "bound method": Case(lambda: SiteGenerator(Nested().draw), partial(grid, 2), 1.5),
    "class": Case(lambda: DistributionGenerator(dist.Normal, loc=torch.zeros(2), scale=1.0), partial(grid, 2), 1.5),
    "torch's class": Case(
        lambda: DistributionGenerator(torch.distributions.Bernoulli, probs=torch.tensor(0.4)), partial(tosses, 1), 1.0
    ),
    "simplex": Case(
        lambda: DistributionGenerator(dist.Categorical, probs=torch.tensor([0.5, 0.3, 0.2])),
        lambda: (torch.arange(3), 1.0),
        2,
    ),
    "function": Case(
        lambda: DistributionGenerator(shifted, loc=torch.tensor(0.0), log_scale=torch.tensor(0.2)),
        partial(grid, 1),
        1.5,
    ),
    "instance": Case(lambda: DistributionGenerator(dist.Normal(0.0, 1.0)), partial(grid, 1), 1.5),
    "instance to_event": Case(
        lambda: DistributionGenerator(dist.Gumbel(torch.zeros(2), 0.5 * torch.ones(2)).to_event(1)),
        partial(grid, 2),
        1.5,
    ),
    "instance of logits": Case(
        lambda: DistributionGenerator(with_probs(dist.Bernoulli(logits=torch.tensor([0.3, -1.0])))),
        partial(tosses, 2),
        1.0,
    ),
    "transformed": Case(
        lambda: DistributionGenerator(dist.LogNormal(0.0, 0.4)), partial(grid, 1, low=1e-9, high=16.0), 1.5
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


# ---- laws ----------------------------------------------------------------------------------------


@every_case
def test_density_is_one_and_samples_follow_it(case: Case, float64: torch.dtype) -> None:
    """Moments of draws are those by quadrature or enumeration, in standard errors."""
    generator = check_generator(case.make())
    points, volume = case.points()
    with torch.no_grad():
        weights = volume * generator.log_prob(points).exp()
        assert float(weights.sum()) == pytest.approx(1.0, abs=1e-5)
        x = generator.sample(4000)
        assert x.shape == (4000, *generator.event_shape)
        for feature in (lambda v: v.double(), lambda v: v.double() ** 2, generator.log_prob):
            values, exact = (feature(v).reshape(len(v), -1) for v in (x, points))
            expected = (weights[:, None] * exact).sum(0)
            errors = values.std(0) / math.sqrt(len(x)) + 1e-9
            assert ((values.mean(0) - expected).abs() < 4 * errors).all()


@every_case
def test_training_moves_it_and_not_its_copy(case: Case) -> None:
    generator = case.make()
    x = torch.full((64, *generator.event_shape), case.target)
    x = x.long() if not generator.sample(1).is_floating_point() else x
    twin, before = generator.copy(), generator.log_prob(x).detach()
    assert {id(p) for p in twin.parameters()}.isdisjoint(id(p) for p in generator.parameters())
    history = Training(epochs=30, lr=0.03)(generator, x, seed=0)
    assert history["elbo"].iloc[-1] > history["elbo"].iloc[0]
    assert (generator.log_prob(x).detach() > before + 0.2).all()
    torch.testing.assert_close(twin.log_prob(x).detach(), before)
    assert not pyro.get_param_store().keys()
    other = case.make()
    other.load_state_dict(generator.state_dict())
    torch.testing.assert_close(other.log_prob(x), generator.log_prob(x))


@every_case
def test_it_is_a_site_of_another_model(case: Case) -> None:
    """Also between plates of the same names, whose sites and parameters are another's."""
    generator = case.make()

    def model() -> Tensor:
        pyro.param("loc", torch.tensor(7.0))
        with pyro.plate("tosses", 5):
            return pyro.sample("x", generator.distribution())

    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    assert [name for name, site in trace.nodes.items() if site["type"] in ("sample", "param")] == ["loc", "tosses", "x"]
    assert trace.nodes["x"]["value"].shape == (5, *generator.event_shape)
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], generator.log_prob(trace.nodes["x"]["value"]))
    assert pyro.param("loc").item() == 7.0


def test_a_density_draws_nothing() -> None:
    generator = SiteGenerator(normal_model)
    before = torch.get_rng_state()
    generator.log_prob(torch.zeros(3, 2))
    assert torch.equal(before, torch.get_rng_state())


def test_parameters_start_from_the_store_and_are_apart_from_it() -> None:
    pyro.param("loc", torch.tensor([2.0, 3.0]))
    generator = SiteGenerator(normal_model)
    assert generator.made().base_dist.loc.tolist() == [2.0, 3.0]
    with torch.no_grad():
        pyro.param("loc").add_(1.0)
    assert generator.made().base_dist.loc.tolist() == [2.0, 3.0]


def test_parameters_stay_within_their_constraint(float64: torch.dtype) -> None:
    generator = SiteGenerator(normal_model)
    with torch.no_grad():
        for value in generator.parameters():
            value.sub_(5.0)
    assert (generator.made().base_dist.scale > 0).all()


def test_two_modules_of_one_name_do_not_meet() -> None:
    """PyroModules take what the param store holds under their name: not here."""
    a, b = SiteGenerator(Network()), SiteGenerator(Network())
    x = torch.zeros(2, 2)
    first, second = a.log_prob(x).detach(), b.log_prob(x).detach()
    assert not torch.allclose(first, second)
    torch.testing.assert_close(a.log_prob(x).detach(), first)


def test_what_runs_apart_leaves_the_callers_links() -> None:
    value = pyro.param("a", torch.ones(2))
    with apart():
        assert not pyro.get_param_store().keys()
    assert value.unconstrained() is pyro.param("a").unconstrained()
    with pytest.raises(KeyError), apart():
        raise KeyError
    assert pyro.get_param_store().keys() == {"a"}


def test_what_cannot_be_rebuilt_stays_fixed() -> None:
    generator = DistributionGenerator(dist.Uniform(0.0, 2.0))
    assert generator.log_prob(torch.ones(1)).tolist() == pytest.approx([-math.log(2)])
    with pytest.raises(ValueError, match="has no parameters to train"):
        Training()(generator, torch.ones(3), seed=0)


class Shifted(torch.distributions.Normal):
    """A normal distribution with a parameter that is not among its constraints."""

    def __init__(self, loc: Any, scale: Any, shift: float = 0.0) -> None:
        super().__init__(loc, scale)
        self.shift = shift

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value - self.shift)


def test_what_would_be_rebuilt_as_another_stays_fixed() -> None:
    generator = DistributionGenerator(Shifted(0.0, 1.0, shift=3.0))
    assert not list(generator.parameters())
    assert generator.log_prob(torch.full((1,), 3.0)).tolist() == pytest.approx([-0.5 * math.log(2 * math.pi)])


def test_tensors_that_were_given_are_left_alone() -> None:
    loc = torch.zeros(2)
    Training(epochs=2, lr=0.1)(DistributionGenerator(dist.Normal, loc=loc, scale=1.0), torch.ones(8, 2), seed=0)
    assert loc.tolist() == [0.0, 0.0]


# ---- pairs ---------------------------------------------------------------------------------------

MIX = torch.tensor([[1.0, 0.3], [-0.5, 0.8], [0.2, 0.4]], dtype=torch.float64)
NOISE = 0.7


def linear_model(x: Tensor) -> None:
    """Three numbers, linear in two latents."""
    shift = pyro.param("shift", x.new_zeros(3))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ MIX.to(x).T + shift, NOISE).to_event(1), obs=x)


def linear_guide(x: Tensor) -> None:
    """The exact mean, and scales that are a little too wide."""
    precision = torch.eye(2).to(x) + MIX.to(x).T @ MIX.to(x) / NOISE**2
    scale = pyro.param("scale", 1.2 * precision.inverse().diagonal().sqrt(), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        loc = x @ MIX.to(x) @ precision.inverse() / NOISE**2
        pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def linear(**options: Any) -> PairGenerator:
    return PairGenerator(linear_model, linear_guide, torch.zeros(2, 3), **options)


def exact_log_p(x: Tensor) -> Tensor:
    cov = MIX @ MIX.T + NOISE**2 * torch.eye(3, dtype=torch.float64)
    return dist.MultivariateNormal(torch.zeros(3, dtype=torch.float64), cov).log_prob(x)


def test_evidence_of_a_linear_pair_is_exact_within_its_error(float64: torch.dtype) -> None:
    """exp of the estimate is unbiased, over seeds; its error is that of the spread over them."""
    x = 2 * torch.randn(6, 3)
    found, errors = zip(
        *((g.log_prob(x), g.log_prob_error(x)) for g in (linear(seed=s, draws=200) for s in range(60))), strict=True
    )
    ratios = (torch.stack(found) - exact_log_p(x)).exp()
    assert ((ratios.mean(0) - 1).abs() < 4 * ratios.std(0) / math.sqrt(60)).all()
    assert (torch.stack(found).mean(0) < exact_log_p(x) + 0.02).all()
    spread = torch.stack(found).std(0) / torch.stack(errors).mean(0)
    assert ((spread > 0.6) & (spread < 1.6)).all()


def test_draws_of_a_pair_have_its_covariance(float64: torch.dtype) -> None:
    x = linear().sample(20_000)
    cov = MIX @ MIX.T + NOISE**2 * torch.eye(3)
    errors = ((cov**2 + cov.diagonal()[:, None] * cov.diagonal()) / len(x)).sqrt()
    assert ((x.T.cov() - cov).abs() < 4 * errors).all()
    assert (x.mean(0).abs() < 4 * (cov.diagonal() / len(x)).sqrt()).all()


def test_a_candidate_has_one_number_whatever_it_is_evaluated_with(float64: torch.dtype) -> None:
    generator, x = linear(), torch.randn(9, 3)
    state = torch.get_rng_state()
    whole = generator.log_prob(x)
    torch.testing.assert_close(generator.log_prob(x.flip(0)).flip(0), whole)
    torch.testing.assert_close(generator.log_prob(x[4:5]), whole[4:5])
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.allclose(linear(seed=1).log_prob(x), whole)
    assert generator.log_prob(x[:0]).shape == (0,)


def discrete_model(x: Tensor) -> None:
    """A normal whose location depends on a toss."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(x.new_tensor(0.3)))
        pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)


def discrete_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=x))


def test_latents_without_an_inverse_are_drawn_for_one_candidate_at_a_time(float64: torch.dtype) -> None:
    generator = PairGenerator(discrete_model, discrete_guide, torch.zeros(2), draws=4000)
    x = torch.tensor([-1.0, 0.5, 1.0, 3.0])
    found, errors = generator.log_prob(x), generator.log_prob_error(x)
    parts = torch.stack([dist.Normal(loc, 1.0).log_prob(x) + math.log(p) for loc, p in ((2.0, 0.3), (0.0, 0.7))])
    assert ((found - parts.logsumexp(0)).abs() < 4 * errors).all()
    assert torch.equal(generator.log_prob(x[2:]), found[2:])


def test_pairs_are_trained_by_the_tempered_bound(float64: torch.dtype) -> None:
    """The guide's variance ends at T times the inverse diagonal of the precision; the model moves to the data."""
    generator, lam = linear(), 0.4
    x = generator.sample(512) + 2.0
    twin, before = generator.copy(), generator.log_prob(x)
    Training(epochs=150, lr=0.03, batch_size=512, options={"lam": lam})(generator, x, seed=0)
    precision = torch.eye(2) + MIX.T @ MIX / NOISE**2
    scale = generator.values["scale"].detach()
    torch.testing.assert_close(scale**2, (1 - lam) / precision.diagonal(), rtol=0.15, atol=0)
    assert generator.log_prob(x).mean() > before.mean() + 1
    torch.testing.assert_close(twin.log_prob(x), before)
    assert not pyro.get_param_store().keys()


def test_a_vae_of_digits_runs() -> None:
    pair = vae.digits()
    x = (pair.split().train[:256] > 0.5).float()
    generator = check_generator(PairGenerator(pair.model, pair.guide, x, draws=20))
    twin, before = generator.copy(), generator.log_prob(x)
    Training(epochs=10)(generator, x, seed=0)
    assert (generator.log_prob(x) > before).float().mean() > 0.95
    torch.testing.assert_close(twin.log_prob(x), before)
    assert generator.sample(5).shape == (5, 64)
    assert np.isfinite(generator.log_prob_error(x).numpy()).all()
    assert not pyro.get_param_store().keys()


# ---- what is refused -----------------------------------------------------------------------------


def latent() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0))


def observing() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("good", -(x**2))


def scaled() -> None:
    with poutine.scale(scale=2.0):
        pyro.sample("x", dist.Normal(0.0, 1.0))


def observed() -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(()))


def with_argument(x: Tensor) -> None:
    pyro.sample("x", dist.Normal(x, 1.0))


def uninitialised() -> None:
    pyro.sample("x", dist.Normal(pyro.param("loc"), 1.0))


def subsampled() -> None:
    with pyro.plate("few", 5, subsample_size=2):
        pyro.sample("x", dist.Normal(0.0, 1.0))


def closing() -> Callable[[], Any]:
    net = nn.Linear(1, 1)
    return lambda: pyro.sample("x", dist.Normal(net(torch.ones(1)), 1.0))


class Bayesian(PyroModule):
    """A weight with a prior."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = PyroSample(dist.Normal(0.0, 1.0))

    def forward(self) -> None:
        pyro.sample("x", dist.Normal(self.weight, 1.0))


@pytest.mark.parametrize(
    ("model", "error", "match"),
    [
        (latent, ValueError, r"draws 'z' beside 'x': its density is an integral\. Use PairGenerator"),
        (observing, ValueError, r"observes 'good' beside 'x'"),
        (scaled, ValueError, r"'x' is scaled or masked"),
        (observed, ValueError, r"'x' is observed: a generator draws it\. Leave obs= out"),
        (with_argument, TypeError, r"model takes \(x: .*Tensor'?\)"),
        (uninitialised, ValueError, r"'loc' has no initial value\. Write pyro\.param\('loc', tensor\)"),
        (subsampled, ValueError, r"plate 'few' is subsampled"),
        (closing(), ValueError, r"model uses \['Linear'\], which are not a part of it"),
        (Bayesian(), ValueError, r"draws 'weight' beside 'x'"),
        (lambda: None, ValueError, r"no site 'x', only \[\]"),
        ("x", TypeError, r"model='x': expected a callable"),
    ],
    ids=[
        *("latent", "factor", "scale", "observed", "argument", "uninitialised", "subsample", "closure", "prior"),
        *("nothing", "text"),
    ],
)
def test_a_model_that_is_no_generator_is_refused(model: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        SiteGenerator(model)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: DistributionGenerator(3), TypeError, "family=3: expected a class of distributions"),
        (lambda: DistributionGenerator(dist.Normal(0.0, 1.0), loc=1.0), TypeError, r"\['loc'\] beside a distribution"),
        (lambda: DistributionGenerator(dist.Normal, loc=0.0, scale=-1.0), ValueError, "parameter 'scale' is -1"),
        (
            lambda: DistributionGenerator(lambda loc: loc, loc=0.0),
            TypeError,
            "gave a Parameter: expected a distribution",
        ),
        (
            lambda: DistributionGenerator(dist.Normal(0.0, 1.0)).log_prob(torch.zeros(2, 1)),
            ValueError,
            r"x has shape \(2, 1\): expected \(n\)",
        ),
        (
            lambda: PairGenerator(normal_normal.model, normal_normal.guide, torch.zeros(29)),
            ValueError,
            r"no plate over len\(x\) rows",
        ),
        (lambda: PairGenerator(global_model, global_guide, torch.zeros(4)), ValueError, "outside plate 'data'"),
        (lambda: linear(draws=1), ValueError, "draws=1: expected an integer of at least 2"),
        (lambda: PairGenerator(linear_model, linear_guide, torch.zeros(1, 3)), ValueError, "at least 2 rows"),
        (lambda: PairGenerator(linear_model, linear_guide, [0.0]), TypeError, r"example=\[0.0\]: expected a tensor"),
        (lambda: linear().log_prob(torch.zeros(2, 4)), ValueError, r"x has shape \(2, 4\): expected \(n, 3\)"),
        (lambda: linear(site="y").sample(2), ValueError, "no site 'y'"),
    ],
    ids=[
        *("number", "both", "negative", "no distribution", "shape", "fixed plate", "global", "draws", "example"),
        *("list", "width", "site"),
    ],
)
def test_bad_input_is_refused(make: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()


def global_model(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def global_guide(x: Tensor) -> None:
    pyro.sample("loc", dist.Normal(x.mean(), 1.0))


class Sampler(nn.Module):
    """It can be sampled, and that is all."""

    event_shape = torch.Size()

    def sample(self, n: int) -> Tensor:
        return torch.zeros(n)


def test_a_generator_without_a_density_is_named() -> None:
    with pytest.raises(TypeError, match=r"Sampler without log_prob, model, guide, copy"):
        check_generator(Sampler())
