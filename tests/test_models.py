"""The pairs of models/: data as documented, fresh pairs, exact answers against quadrature."""

import functools
import json
import math
import os
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.poutine.util import prune_subsample_sites
from scipy import integrate
from sklearn.datasets import load_digits
from torch import Tensor

from banel_pyro import Pair, Split
from models import (
    beta_bernoulli,
    data,
    eight_schools,
    gaussian_regression,
    hierarchical_vae,
    kidiq,
    logistic,
    mixture,
    normal_normal,
    radon,
    vae,
)

FACTORIES = {
    "normal_normal:pair": normal_normal.pair,
    "gaussian_regression:full_rank": gaussian_regression.full_rank,
    "gaussian_regression:mean_field": gaussian_regression.mean_field,
    "beta_bernoulli:pair": beta_bernoulli.pair,
    "eight_schools:noncentered": eight_schools.noncentered,
    "eight_schools:centered": eight_schools.centered,
    "vae:digits": vae.digits,
    "vae:mnist": vae.mnist,
    "vae:static_mnist": vae.static_mnist,
    "hierarchical_vae:digits": hierarchical_vae.digits,
    "hierarchical_vae:mnist": hierarchical_vae.mnist,
    "logistic:pair": logistic.pair,
    "radon:pair": radon.pair,
    "mixture:pair": mixture.pair,
    "kidiq:raw": kidiq.raw,
    "kidiq:mean_field": kidiq.mean_field,
    "kidiq:full_rank": kidiq.full_rank,
    "kidiq:flow": kidiq.flow,
}
LATENTS = {
    "normal_normal:pair": {"density": ()},
    "gaussian_regression:full_rank": {"weights": (10,)},
    "gaussian_regression:mean_field": {"weights": (10,)},
    "beta_bernoulli:pair": {"risk": ()},
    "eight_schools:noncentered": {"mu": (), "tau": (), "theta_trans": (8,)},
    "eight_schools:centered": {"mu": (), "tau": (), "theta": (8,)},
    "vae:digits": {"z": (6, 8)},
    "vae:mnist": {"z": (6, 20)},
    "vae:static_mnist": {"z": (6, 20)},
    "hierarchical_vae:digits": {"z1": (6, 8), "z2": (6, 2)},
    "hierarchical_vae:mnist": {"z1": (6, 20), "z2": (6, 2)},
    "logistic:pair": {"intercept": (), "weights": (30,)},
    "radon:pair": {"intercept": (), "floor": (), "uranium": (), "county_sd": (), "noise_sd": (), "county": (85,)},
    "mixture:pair": {"weights": (3,), "locations": (3,), "scales": (3,)},
    "kidiq:raw": {"beta": (3,), "sigma": ()},
    "kidiq:mean_field": {"coef": (3,), "noise": ()},
    "kidiq:full_rank": {"coef": (3,), "noise": ()},
    "kidiq:flow": {"coef": (3,), "noise": ()},
}
pytestmark = pytest.mark.usefixtures("float64")

LAMS = [-0.5, 0.0, 0.4, 0.9]
# Latent range that holds the posterior, for quadrature over one latent.
ONE_LATENT = {"normal_normal": (normal_normal, 4.5, 6.5), "beta_bernoulli": (beta_bernoulli, 0.0, 1.0)}

each_factory = pytest.mark.parametrize("name", FACTORIES)
each_autoencoder = pytest.mark.parametrize("factory", [vae.digits, hierarchical_vae.digits])
each_lam = pytest.mark.parametrize("lam", LAMS)
one_latent = pytest.mark.parametrize(("pair_file", "low", "high"), ONE_LATENT.values(), ids=ONE_LATENT)


def rows(pair: Pair) -> tuple[Tensor, ...]:
    """Positional arguments of the pair's model and guide; made up where the data are in files."""
    if "mnist" in pair.name:
        return (torch.rand(6, 784, generator=torch.manual_seed(0)).round(),)
    if pair.name == "radon":
        house = torch.arange(radon.NUM_HOUSES)
        return house % radon.NUM_COUNTIES, (house % 5 == 0).double(), (house % 85) / 85.0, (house % 7) / 3.0
    if "kidiq" in pair.name:
        child = torch.arange(kidiq.NUM_CHILDREN)
        return torch.stack([(child % 5 > 0).double(), 70.0 + child % 60], dim=1), 60.0 + child % 50
    loaded = pair.data()
    if isinstance(loaded, Split):  # images are local to a row, the other models have a plate over all of them
        loaded = loaded.held_out[:6] if "digits" in pair.name else loaded.train
    return loaded if isinstance(loaded, tuple) else (loaded,)


def exact_data(pair_file: ModuleType) -> tuple[Tensor, ...]:
    factory = gaussian_regression.full_rank if pair_file is gaussian_regression else pair_file.pair
    return rows(factory())


def quad(density: Callable[[Tensor], Tensor], low: float, high: float) -> float:
    value, _ = integrate.quad(lambda z: float(density(torch.tensor(z))), low, high, epsabs=0, epsrel=1e-11, limit=200)
    return value


# Data


def test_data_are_finite_and_have_the_documented_shapes() -> None:
    split = data.digits()
    sets = {
        "earth_density": [(data.earth_density(), (29,))],
        "shuttle_o_rings": [(data.shuttle_o_rings(), (23,))],
        "diabetes": list(zip(data.diabetes(), [(442, 10), (442,)], strict=True)),
        "eight_schools": list(zip(data.eight_schools(), [(8,), (8,)], strict=True)),
        "digits": [(split.train, (1500, 64)), (split.held_out, (297, 64))],
    }
    for name, tensors in sets.items():
        for tensor, shape in tensors:
            assert tensor.shape == shape, name
            assert tensor.isfinite().all(), name


def test_data_come_in_the_default_dtype() -> None:
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        split = data.digits()
        tensors = [data.earth_density(), data.shuttle_o_rings(), *data.diabetes(), *data.eight_schools()]
        tensors += [split.train, split.held_out]
        assert {tensor.dtype for tensor in tensors} == {dtype}


def test_embedded_numbers_have_their_published_summaries() -> None:
    assert data.earth_density().mean() == pytest.approx(5.448, abs=5e-4)  # Stigler (1977)
    assert data.earth_density().median() == pytest.approx(5.46)
    assert data.shuttle_o_rings().sum() == 7
    x, y = data.diabetes()
    for column in (*x.T, y):
        assert column.mean() == pytest.approx(0, abs=1e-12)
        assert column.std(correction=0) == pytest.approx(1)
    off_diagonal = torch.corrcoef(x.T).fill_diagonal_(0)
    assert 0.89 < off_diagonal.max() < 0.90  # total and low-density cholesterol


def test_eight_schools_are_posteriordbs() -> None:
    if not os.environ.get("BANEL_DATA"):
        pytest.skip("BANEL_DATA is not set")
    with open(data.data_folder("bayes") / "eight_schools.json") as file:
        reference = json.load(file)
    y, sigma = data.eight_schools()
    assert y.tolist() == reference["y"]
    assert sigma.tolist() == reference["sigma"]


def shuffled_digits() -> Tensor:
    """All grey images in the documented order: the first 1,500 to train, the last 297 held out."""
    order = np.random.RandomState(0).permutation(1797)
    return torch.tensor(load_digits().data[order] / 16)


def test_digits_are_split_as_documented() -> None:
    images, split = shuffled_digits(), data.digits()
    assert len(images.unique(dim=0)) == 1797  # so that parts of a permutation share no image
    assert torch.equal(split.train, images[:1500])
    judged = images[1500:]
    assert split.held_out[judged == 0].max() == 0
    assert split.held_out[judged == 1].min() == 1


def test_digits_depend_on_the_seed_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = data.digits(), data.digits(), data.digits(seed=1)
    assert torch.equal(first.train, again.train)
    assert torch.equal(first.held_out, again.held_out)
    assert not torch.equal(first.train, other.train)
    assert not torch.equal(first.held_out, other.held_out)
    assert torch.equal(torch.get_rng_state(), state)


def test_held_out_bits_are_the_same_in_float32_and_float64() -> None:
    double = data.digits().held_out
    torch.set_default_dtype(torch.float32)
    assert torch.equal(data.digits().held_out.double(), double)


@pytest.mark.parametrize("held_out", [-1, 0, 1797])
def test_an_empty_part_of_the_digits_is_refused(held_out: int) -> None:
    with pytest.raises(ValueError, match=f"held_out={held_out}: expected 1 to 1796"):
        data.digits(held_out=held_out)


def test_binarisation_is_seeded_and_leaves_the_grey_values_alone() -> None:
    split = data.digits()
    grey = split.train[:50]
    before = grey.clone()
    draws = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        draws.append(split.transform((grey,))[0])
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(grey, before)
    assert draws[0].dtype == grey.dtype
    assert set(draws[0].unique().tolist()) == {0.0, 1.0}


def test_binarised_pixels_have_their_grey_value_as_mean() -> None:
    split = data.digits()
    torch.manual_seed(0)
    draws = torch.stack([data.binarize((split.train,))[0] for _ in range(10)])
    judged = shuffled_digits()[1500:]
    for bits, grey in ((draws, split.train.expand_as(draws)), (split.held_out, judged)):
        for level in range(17):
            pixels = bits[grey == level / 16]
            stderr = math.sqrt(level / 16 * (1 - level / 16) / len(pixels))
            assert abs(pixels.mean() - level / 16) <= 4.5 * stderr, level


def test_data_folder_says_what_is_missing_and_where_to_put_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    monkeypatch.delenv("BANEL_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="'mnist' is not embedded and BANEL_DATA is not set") as unset:
        data.data_folder("mnist")
    monkeypatch.setenv("BANEL_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="'mnist' is missing: put its files into") as missing:
        data.data_folder("mnist")
    assert os.path.join(tmp_path, "mnist") in str(missing.value)
    assert "\n" not in f"{unset.value}{missing.value}"
    os.mkdir(os.path.join(tmp_path, "mnist"))
    assert data.data_folder("mnist") == tmp_path / "mnist"


# Pairs


@each_factory
def test_model_and_guide_agree_in_sites_and_shapes(name: str) -> None:
    pair = FACTORIES[name]()
    batch = rows(pair)
    guide_trace = poutine.trace(pair.guide).get_trace(*batch)
    model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(*batch)
    latents = prune_subsample_sites(model_trace).stochastic_nodes
    assert set(latents) <= set(guide_trace.nodes)
    latent_shapes = {site: tuple(model_trace.nodes[site]["value"].shape) for site in latents}
    assert latent_shapes == LATENTS[name]
    assert pair.data_plate in model_trace.nodes
    assert model_trace.log_prob_sum().isfinite()
    assert guide_trace.log_prob_sum().isfinite()


@each_factory
def test_vectorised_particles_estimate_the_same_loss(name: str) -> None:
    pair = FACTORIES[name]()
    batch = rows(pair)
    pair.guide(*batch)
    losses = [
        torch.tensor([elbo.loss(pair.model, pair.guide, *batch) for _ in range(10)])
        for elbo in (
            Trace_ELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=1),
            Trace_ELBO(num_particles=5),
        )
    ]
    stderr = math.sqrt(sum(float(loss.var()) / len(loss) for loss in losses))
    assert abs(losses[0].mean() - losses[1].mean()) < 4 * stderr


@each_factory
def test_fresh_pairs_share_no_weights(name: str) -> None:
    first, second = FACTORIES[name](), FACTORIES[name]()
    start = _parameters(second)
    with pyro.get_param_store().scope():
        svi = SVI(first.model, first.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        svi.step(*rows(first))
        moved = {key: value.detach().clone() for key, value in pyro.get_param_store().items()}
    after = _parameters(second)
    assert start.keys() == after.keys() == moved.keys()
    assert len(start) > 0
    assert all(torch.equal(start[key], after[key]) for key in start)
    assert not any(torch.equal(moved[key], after[key]) for key in start)


def _parameters(pair: Pair) -> dict[str, Tensor]:
    """The pair's parameters as a run of its own would see them."""
    with pyro.get_param_store().scope():
        torch.manual_seed(0)  # an autoguide draws its first location when it is first called
        with poutine.block():
            pair.guide(*rows(pair))
            pair.model(*rows(pair))
        return {key: value.detach().clone() for key, value in pyro.get_param_store().items()}


@each_autoencoder
def test_fresh_networks_differ(factory: Callable[[], Pair]) -> None:
    first, second = factory(), factory()
    for one, other in ((first.model, second.model), (first.guide, second.guide)):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            assert a.data_ptr() != b.data_ptr()
            assert not torch.equal(a, b)


@each_autoencoder
def test_decoder_and_encoder_have_names_of_their_own_in_the_param_store(factory: Callable[[], Pair]) -> None:
    pair = factory()
    weights = [*pair.model.parameters(), *pair.guide.parameters()]
    pair.guide(*rows(pair))
    pair.model(*rows(pair))
    assert {id(p) for p in pyro.get_param_store().values()} == {id(p) for p in weights}


def test_the_encoders_standard_deviation_has_a_floor() -> None:
    pair = vae.digits()
    with torch.no_grad():
        pair.guide.encode[-1].bias[8:] = -1e4
    q = poutine.trace(pair.guide).get_trace(*rows(pair)).nodes["z"]["fn"].base_dist
    assert torch.equal(q.scale, torch.full_like(q.scale, vae.MIN_SD))


def test_the_vae_refuses_grey_images() -> None:
    pair = vae.digits()
    with pytest.raises(ValueError, match="Boolean"):
        poutine.trace(pair.model).get_trace(data.digits().train[:3]).log_prob_sum()


def test_centered_and_noncentered_schools_are_one_model() -> None:
    y, sigma = data.eight_schools()
    torch.manual_seed(0)
    mu, tau, theta_trans = torch.randn(()), torch.rand(()) * 3, torch.randn(8)
    at = {"mu": mu, "tau": tau, "theta_trans": theta_trans}
    noncentered = poutine.trace(poutine.condition(eight_schools.noncentered_model, at)).get_trace(y, sigma)
    at["theta"] = noncentered.nodes["theta"]["value"]
    assert torch.equal(at["theta"], mu + tau * theta_trans)
    assert noncentered.nodes["theta"]["fn"].event_dim == 0  # one number a school, not one vector for all
    centered = poutine.trace(poutine.condition(eight_schools.centered_model, at)).get_trace(y, sigma)
    # d theta_trans / d theta = 1 / tau, eight times
    expected = noncentered.log_prob_sum() - 8 * tau.log()
    assert centered.log_prob_sum() == pytest.approx(float(expected), abs=1e-9)


# Exact answers


@pytest.mark.parametrize(
    ("pair_file", "site", "value"),
    [
        (normal_normal, "density", torch.tensor(5.2, dtype=torch.float64)),
        (beta_bernoulli, "risk", torch.tensor(0.27, dtype=torch.float64)),
        (gaussian_regression, "weights", torch.linspace(-0.4, 0.7, 10, dtype=torch.float64)),
    ],
    ids=["normal_normal", "beta_bernoulli", "gaussian_regression"],
)
def test_log_joint_is_the_models(pair_file: ModuleType, site: str, value: Tensor) -> None:
    batch = exact_data(pair_file)
    trace = poutine.trace(poutine.condition(pair_file.model, {site: value})).get_trace(*batch)
    assert pair_file.log_joint(*batch, value) == pytest.approx(float(trace.log_prob_sum()), rel=1e-12)
    several = torch.stack([value, value * 0.9])
    assert torch.allclose(pair_file.log_joint(*batch, several)[0], pair_file.log_joint(*batch, value))


@one_latent
@each_lam
def test_optimum_and_minimum_agree_with_quadrature(pair_file: ModuleType, low: float, high: float, lam: float) -> None:
    (x,) = exact_data(pair_file)
    best, temperature = pair_file.tempered_optimum(x, lam=lam), 1 - lam
    top = float(pair_file.log_joint(x, best.mean))

    def tempered(z: Tensor) -> Tensor:
        return ((pair_file.log_joint(x, z) - top) / temperature).exp()

    integral = quad(tempered, low, high)
    expected = -top - temperature * math.log(integral)
    assert pair_file.minimum_loss(x, lam=lam) == pytest.approx(expected, rel=1e-9)
    mean = quad(lambda z: z * tempered(z), low, high) / integral
    variance = quad(lambda z: (z - mean) ** 2 * tempered(z), low, high) / integral
    assert best.mean == pytest.approx(mean, rel=1e-9)
    assert best.variance == pytest.approx(variance, rel=1e-7)


@one_latent
def test_elbo_agrees_with_quadrature_away_from_the_optimum(pair_file: ModuleType, low: float, high: float) -> None:
    (x,) = exact_data(pair_file)
    q = dist.Normal(5.1, 0.05) if pair_file is normal_normal else dist.Beta(3.0, 8.5)

    def integrand(z: Tensor) -> Tensor:
        log_q = q.log_prob(z)
        return log_q.exp() * (pair_file.log_joint(x, z) - log_q)

    assert pair_file.elbo(x, q=q) == pytest.approx(quad(integrand, low, high), rel=1e-8)


@one_latent
def test_log_evidence_agrees_with_a_known_marginal(pair_file: ModuleType, low: float, high: float) -> None:
    (x,) = exact_data(pair_file)
    if pair_file is normal_normal:
        n, shared = len(x), normal_normal.PRIOR_SD**2
        covariance = normal_normal.NOISE_SD**2 * torch.eye(n) + shared * torch.ones(n, n)
        expected = dist.MultivariateNormal(torch.full((n,), normal_normal.PRIOR_MEAN), covariance).log_prob(x)
    else:
        a, b = torch.tensor(beta_bernoulli.PRIOR_A), torch.tensor(beta_bernoulli.PRIOR_B)
        orders = math.log(math.comb(23, 7))  # the binomial counts the orders, our flights have one
        expected = dist.BetaBinomial(a, b, 23).log_prob(x.sum()) - orders
    assert pair_file.log_evidence(x) == pytest.approx(float(expected), rel=1e-10)


def test_regression_evidence_and_posterior_agree_with_conditioning() -> None:
    x, y = data.diabetes()
    covariance = x @ x.T + gaussian_regression.NOISE_SD**2 * torch.eye(442)
    marginal = dist.MultivariateNormal(torch.zeros(442), covariance)
    assert gaussian_regression.log_evidence(x, y) == pytest.approx(float(marginal.log_prob(y)), rel=1e-10)
    gain = torch.linalg.solve(covariance, x).T
    posterior = gaussian_regression.posterior(x, y)
    assert torch.allclose(posterior.mean, gain @ y, atol=1e-10)
    assert torch.allclose(posterior.covariance_matrix, torch.eye(10) - gain @ x, atol=1e-10)


@each_lam
def test_regression_optima_have_the_stated_covariance(lam: float) -> None:
    x, y = data.diabetes()
    posterior = gaussian_regression.posterior(x, y)
    full = gaussian_regression.tempered_optimum(x, y, lam=lam)
    factors = gaussian_regression.tempered_optimum(x, y, lam=lam, mean_field=True)
    precision = posterior.covariance_matrix.inverse()
    assert torch.allclose(full.covariance_matrix, (1 - lam) * posterior.covariance_matrix)
    assert torch.allclose(factors.covariance_matrix, ((1 - lam) / precision.diagonal()).diag())
    assert torch.allclose(full.mean, posterior.mean)
    assert torch.allclose(factors.mean, posterior.mean)


def test_regression_minimum_is_the_tempered_integral() -> None:
    """-T log E_r[p^{1/T} / r] with r the optimum: every draw must give the same value."""
    x, y = data.diabetes()
    for lam in LAMS:
        best = gaussian_regression.tempered_optimum(x, y, lam=lam)
        w = best.sample((5,))
        log_ratio = gaussian_regression.log_joint(x, y, w) / (1 - lam) - best.log_prob(w)
        expected = gaussian_regression.minimum_loss(x, y, lam=lam).expand(5)
        assert torch.allclose(-(1 - lam) * log_ratio, expected, rtol=1e-9)


def test_regression_elbo_agrees_with_monte_carlo() -> None:
    x, y = data.diabetes()
    torch.manual_seed(0)
    q = dist.MultivariateNormal(torch.full((10,), 0.1), 0.02 * torch.eye(10) + 0.01)
    w = q.sample((20_000,))
    draws = gaussian_regression.log_joint(x, y, w) - q.log_prob(w)
    stderr = float(draws.std()) / math.sqrt(len(draws))
    assert abs(draws.mean() - gaussian_regression.elbo(x, y, q=q)) < 4 * stderr


def _losses(lam: float) -> dict[str, tuple[Callable[[Tensor], Tensor], Tensor, Tensor]]:
    """Exact loss as a function of unconstrained parameters, their best values, the stated minimum."""
    (x,), (flights,), table = (exact_data(f) for f in (normal_normal, beta_bernoulli, gaussian_regression))

    def loss(pair_file: ModuleType, batch: tuple[Tensor, ...], family: Callable, theta: Tensor) -> Tensor:
        q = family(theta)
        return -pair_file.elbo(*batch, q=q) + lam * q.entropy()

    def normal(theta: Tensor) -> dist.Normal:
        return dist.Normal(theta[0], theta[1].exp())

    def beta(theta: Tensor) -> dist.Beta:
        return dist.Beta(*theta.exp())

    def factors(theta: Tensor) -> dist.MultivariateNormal:
        return dist.MultivariateNormal(theta[:10], scale_tril=theta[10:].exp().diag())

    def full_rank(theta: Tensor) -> dist.MultivariateNormal:
        lower = theta[10:].reshape(10, 10)
        scale_tril = lower.tril(-1) + lower.diagonal().exp().diag()
        return dist.MultivariateNormal(theta[:10], scale_tril=scale_tril)

    density = normal_normal.tempered_optimum(x, lam=lam)
    risk = beta_bernoulli.tempered_optimum(flights, lam=lam)
    joint = gaussian_regression.tempered_optimum(*table, lam=lam)
    product = gaussian_regression.tempered_optimum(*table, lam=lam, mean_field=True)
    tril = joint.scale_tril.tril(-1) + joint.scale_tril.diagonal().log().diag()
    return {
        "normal_normal": (
            functools.partial(loss, normal_normal, (x,), normal),
            torch.stack([density.loc, density.scale.log()]),
            normal_normal.minimum_loss(x, lam=lam),
        ),
        "beta_bernoulli": (
            functools.partial(loss, beta_bernoulli, (flights,), beta),
            torch.stack([risk.concentration1, risk.concentration0]).log(),
            beta_bernoulli.minimum_loss(flights, lam=lam),
        ),
        "full_rank": (
            functools.partial(loss, gaussian_regression, table, full_rank),
            torch.cat([joint.loc, tril.flatten()]),
            gaussian_regression.minimum_loss(*table, lam=lam),
        ),
        "mean_field": (
            functools.partial(loss, gaussian_regression, table, factors),
            torch.cat([product.loc, product.scale_tril.diagonal().log()]),
            gaussian_regression.minimum_loss(*table, lam=lam, mean_field=True),
        ),
    }


@each_lam
@pytest.mark.parametrize("name", ["normal_normal", "beta_bernoulli", "full_rank", "mean_field"])
def test_stated_optimum_minimises_the_loss(name: str, lam: float) -> None:
    loss, best, minimum = _losses(lam)[name]
    best.requires_grad_()
    value = loss(best)
    (gradient,) = torch.autograd.grad(value, best)
    assert value.item() == pytest.approx(minimum.item(), rel=1e-10)
    assert gradient.abs().max() < 1e-8
    torch.manual_seed(0)
    for _ in range(10):
        with torch.no_grad():
            assert loss(best + 0.1 * torch.randn_like(best)) > minimum


@pytest.mark.parametrize("name", ["normal_normal", "beta_bernoulli", "full_rank", "mean_field"])
def test_slope_of_the_minimum_is_the_entropy_of_the_optimum(name: str) -> None:
    lam, step = 0.3, 1e-4
    (x,), (flights,), table = (exact_data(f) for f in (normal_normal, beta_bernoulli, gaussian_regression))
    entropy = {
        "normal_normal": normal_normal.tempered_optimum(x, lam=lam),
        "beta_bernoulli": beta_bernoulli.tempered_optimum(flights, lam=lam),
        "full_rank": gaussian_regression.tempered_optimum(*table, lam=lam),
        "mean_field": gaussian_regression.tempered_optimum(*table, lam=lam, mean_field=True),
    }[name].entropy()
    above, below = (_losses(value)[name][2] for value in (lam + step, lam - step))
    assert (above - below) / (2 * step) == pytest.approx(float(entropy), rel=1e-5)


@pytest.mark.parametrize("lam", [1.0, 2.0, math.nan])
@pytest.mark.parametrize("pair_file", [normal_normal, beta_bernoulli, gaussian_regression])
def test_no_exact_answer_from_one_on(pair_file: ModuleType, lam: float) -> None:
    batch = exact_data(pair_file)
    with pytest.raises(ValueError, match=f"lam={lam}: expected lam < 1"):
        pair_file.tempered_optimum(*batch, lam=lam)
    with pytest.raises(ValueError, match=f"lam={lam}: expected lam < 1"):
        pair_file.minimum_loss(*batch, lam=lam)


def test_exact_answers_are_float64_whatever_the_default() -> None:
    precise = [normal_normal.log_evidence(*exact_data(normal_normal))]
    precise += [gaussian_regression.log_evidence(*exact_data(gaussian_regression))]
    torch.set_default_dtype(torch.float32)
    rounded = [normal_normal.log_evidence(data.earth_density())]
    rounded += [gaussian_regression.log_evidence(*data.diabetes())]
    for exact, value in zip(precise, rounded, strict=True):
        assert value.dtype == torch.float64
        assert value == pytest.approx(float(exact), rel=1e-6)
