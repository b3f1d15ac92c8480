"""KL by latent dimension against closed forms and the objective's own KL, and what a model makes of its latents."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch import Tensor
from torch.distributions import kl_divergence

from banel_pyro import BaNEL_ELBO
from banel_pyro.diagnostics.decode import latent_traversal, prior_samples
from banel_pyro.diagnostics.latent import kl_per_dimension
from models import data, eight_schools, vae

pytestmark = pytest.mark.usefixtures("float64")

N = 6
X = torch.linspace(-1.0, 1.5, N, dtype=torch.float64)[:, None]
SCALE = (1.0, 0.5, 0.2)


def model(x: Tensor) -> None:
    with pyro.plate("data", N):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 2.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).to_event(1), obs=x)


def guide(x: Tensor) -> None:
    with pyro.plate("data", N):
        pyro.sample("z", dist.Normal(x * torch.tensor([0.0, 1.0, 3.0]), torch.tensor(SCALE)).to_event(1))


def kl_of_normals(loc: Tensor, scale: float, prior: float) -> Tensor:
    """KL(N(loc, scale²) || N(0, prior²)), written out."""
    return math.log(prior / scale) + (scale**2 + loc**2) / (2 * prior**2) - 0.5


def exact() -> Tensor:
    """KL of each dimension of each data point, (datum, dimension)."""
    return torch.stack([kl_of_normals(X[:, 0] * k, s, 2.0) for k, s in zip((0.0, 1.0, 3.0), SCALE, strict=True)], -1)


# ---- KL by dimension


def test_kl_is_the_closed_form_and_its_error_is_over_data_points() -> None:
    table = kl_per_dimension(model, guide, X)
    assert list(table.index) == ["z[0]", "z[1]", "z[2]"]
    assert table["kl"].to_list() == pytest.approx(exact().mean(0).tolist())
    assert table["stderr"].to_list() == pytest.approx((exact().std(0) / math.sqrt(N)).tolist(), abs=1e-15)


@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_batches_of_a_plate_over_all_rows_change_nothing(batch_size: int) -> None:
    table = kl_per_dimension(model, guide, X, batch_size=batch_size)
    assert table["kl"].to_list() == pytest.approx(exact().mean(0).tolist())


def test_dimensions_of_the_vae_add_up_to_the_kl_of_the_objective() -> None:
    pair = vae.digits()
    images = data.digits().held_out[:40]
    table = kl_per_dimension(pair.model, pair.guide, images)
    terms = BaNEL_ELBO(kl="closed_form").terms(pair.model, pair.guide, images)
    assert len(table) == 8
    assert table["kl"].sum() == pytest.approx(float(terms.kl) / 40, rel=1e-10)
    assert (table["kl"] > 0).all()


def test_masked_data_points_count_as_nothing() -> None:
    keep = torch.arange(N) < 2
    table = kl_per_dimension(poutine.mask(model, mask=keep), poutine.mask(guide, mask=keep), X)
    assert table["kl"].to_list() == pytest.approx((exact()[:2].sum(0) / N).tolist())


def test_a_scalar_latent_is_one_row() -> None:
    def scalar_model(x: Tensor) -> None:
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal(0.0, 2.0))

    def scalar_guide(x: Tensor) -> None:
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal(x[:, 0], 0.5))

    table = kl_per_dimension(scalar_model, scalar_guide, X)
    assert table["kl"].to_dict() == {"z": pytest.approx(float(exact()[:, 1].mean()))}


def test_an_inner_plate_gives_dimensions_too_and_order_is_that_of_its_axes() -> None:
    means = torch.arange(6.0).reshape(3, 2)

    def inner(loc: Tensor) -> Callable[[Tensor], None]:
        def run(x: Tensor) -> None:
            with pyro.plate("data", N, dim=-1), pyro.plate("groups", 3, dim=-2):
                pyro.sample("z", dist.Normal(loc, 1.0).expand([3, N, 2]).to_event(1))

        return run

    table = kl_per_dimension(inner(torch.zeros(())), inner(means[:, None]), X)
    assert list(table.index) == [f"z[{i}, {j}]" for i in range(3) for j in range(2)]
    assert table["kl"].to_list() == pytest.approx((means.flatten() ** 2 / 2).tolist())


def test_a_latent_below_another_is_averaged_over_its_draws() -> None:
    """KL(N(top, s²) || N(0, 1)) = (s² + top²)/2 - 1/2 - log s, top ~ N(1, 0.5²)."""

    def two(top: Any, low: Callable[[Tensor], Any]) -> Callable[[Tensor], None]:
        def run(x: Tensor) -> None:
            with pyro.plate("data", N):
                low_of = pyro.sample("top", top.expand([N]))
                pyro.sample("low", low(low_of))

        return run

    prior = two(dist.Normal(0.0, 1.0), lambda top: dist.Normal(torch.zeros_like(top), 1.0))
    posterior = two(dist.Normal(1.0, 0.5), lambda top: dist.Normal(top, 0.3))
    draws = 500
    found = kl_per_dimension(prior, posterior, X, site="low", num_samples=draws, seed=0).loc["low", "kl"]
    mean = (0.09 + 1.25) / 2 - 0.5 - math.log(0.3)
    sd = math.sqrt(2 * 0.25**2 + 4 * 0.25) / 2  # of top²/2
    assert abs(found - mean) < 4 * sd / math.sqrt(draws * N)
    with pytest.raises(ValueError, match=r"site=None: the latents inside the data plate are \['top', 'low'\]"):
        kl_per_dimension(prior, posterior, X)

    def upside_down(x: Tensor) -> None:
        with pyro.plate("data", N):
            low = pyro.sample("low", dist.Normal(0.0, 1.0).expand([N]))
            pyro.sample("top", dist.Normal(low, 1.0))

    with pytest.raises(ValueError, match=r"in the order \['low', 'top'\] and the model in the order"):
        kl_per_dimension(prior, upside_down, X, site="low")


def test_autonormal_draws_real_latents_under_another_name() -> None:
    auto = AutoNormal(model, init_scale=0.5)
    table = kl_per_dimension(model, auto, X)
    loc = auto.locs.z.detach()
    assert table["kl"].to_list() == pytest.approx(kl_of_normals(loc, 0.5, 2.0).mean(0).tolist())


def positive(x: Tensor) -> None:
    with pyro.plate("data", N):
        pyro.sample("z", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))


def correlated(x: Tensor) -> None:
    with pyro.plate("data", N):
        pyro.sample("z", dist.MultivariateNormal(torch.zeros(3), torch.eye(3)))


def heavy(x: Tensor) -> None:
    with pyro.plate("data", N):
        pyro.sample("z", dist.StudentT(3.0, torch.zeros(3), 1.0).to_event(1))


def shared(x: Tensor) -> None:
    pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N):
        pyro.sample("x", dist.Normal(torch.zeros(N), 1.0), obs=x[:, 0])


@pytest.mark.parametrize(
    ("pair", "options", "words"),
    [
        ((model, correlated), {}, "site 'z' is a MultivariateNormal in the guide, which does not factorise"),
        ((correlated, guide), {}, "MultivariateNormal in the model"),
        ((model, heavy), {}, "no KL in closed form from StudentT to Normal"),
        ((model, guide), {"site": "y"}, r"site='y': the latents inside the data plate are \['z'\]"),
        ((shared, AutoNormal(shared)), {}, r"site=None: the latents inside the data plate are \[\]"),
        ((model, guide), {"num_samples": 0}, "num_samples=0: expected an integer of at least 1"),
        ((positive, AutoNormal(positive)), {}, "no density of its own in the guide"),
        ((model, AutoDelta(model)), {}, "no density of its own in the guide"),
        ((model, AutoMultivariateNormal(model)), {}, "no density of its own in the guide"),
    ],
)
def test_what_has_no_kl_by_dimension_is_refused(pair: tuple[Any, Any], options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kl_per_dimension(*pair, X, **options)


def test_a_seed_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    kl_per_dimension(model, guide, X, seed=1)
    prior_samples(model, X, num_samples=2, seed=1)
    latent_traversal(model, X, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


# ---- Samples from the prior, and a walk along the latent dimensions


def decoder(x: Tensor) -> None:
    """E[x | z] = (z0, z1, 10 z0 + 1): what each dimension does is plain."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 4.0])).to_event(1))
        mean = torch.stack([z[..., 0], z[..., 1], 10 * z[..., 0] + 1], -1)
        pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)


DATA = torch.zeros(5, 3, dtype=torch.float64)


def test_traversal_is_the_decoder_along_each_dimension_with_the_others_at_the_prior_mean() -> None:
    found = latent_traversal(decoder, DATA)
    assert found.dims == ("latent", "sd", "x_dim_0")
    assert found["latent"].values.tolist() == ["z[0]", "z[1]"]
    assert found["sd"].values.tolist() == [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0]
    assert found.sel(latent="z[0]", sd=2.0).values.tolist() == pytest.approx([3.0, 0.0, 31.0])
    assert found.sel(latent="z[1]", sd=-3.0).values.tolist() == pytest.approx([1.0, -12.0, 11.0])
    assert found.sel(sd=0.0).values.tolist() == [pytest.approx([1.0, 0.0, 11.0])] * 2
    some = latent_traversal(decoder, DATA, dims=[1], sds=[0.5])
    assert some.values.tolist() == [[pytest.approx([1.0, 2.0, 11.0])]]


def test_traversal_of_the_vae_is_its_decoder() -> None:
    pair = vae.digits()
    found = latent_traversal(pair.model, data.digits().held_out, dims=[3], sds=[-2.0])
    z = torch.zeros(8)
    z[3] = -2.0
    assert found.values[0, 0].tolist() == pytest.approx(torch.sigmoid(pair.model.decode(z)).tolist())


def test_other_latents_are_averaged_over() -> None:
    def with_noise(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]))
            w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([len(x)]))
            pyro.sample("x", dist.Normal(z + w, 1.0), obs=x[:, 0])

    found = latent_traversal(with_noise, DATA, site="z", sds=[2.0], num_samples=1000, seed=0)
    assert abs(found.item() - 2.0) < 4 / math.sqrt(1000)
    assert found["latent"].values.tolist() == ["z"]


def test_prior_samples_are_means_or_draws_of_the_observed_site_given_latents_of_the_prior() -> None:
    means = prior_samples(decoder, DATA, num_samples=800, seed=0)
    assert means.dims == ("draw", "x_dim_0")
    z = means.values[:, :2]
    assert means.values[:, 2] == pytest.approx(10 * z[:, 0] + 1)
    assert np.abs(z.mean(0) - [1.0, 0.0]).max() < 4 * 4 / math.sqrt(800)
    assert z.std(0) == pytest.approx([1.0, 4.0], rel=4 / math.sqrt(1600))
    draws = prior_samples(decoder, DATA, num_samples=800, mean=False, seed=0).values
    noise = draws[:, 2] - 10 * draws[:, 0] - 1  # e2 - 10 e0, each e of sd 0.5
    assert noise.std() == pytest.approx(0.5 * math.sqrt(101), rel=4 / math.sqrt(1600))


def test_prior_samples_of_all_rows_share_the_latents_that_rows_share() -> None:
    pair = eight_schools.noncentered()
    one = prior_samples(pair.model, pair.split().train, num_samples=3, mean=False, seed=0)
    every = prior_samples(pair.model, pair.split().train, num_samples=3, mean=False, all_rows=True, seed=0)
    assert (one.shape, every.shape) == ((3,), (3, 8))

    def without_plate(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(mu * torch.ones(5, 3), 1.0).to_event(2), obs=x)

    found = prior_samples(without_plate, DATA, num_samples=3, seed=0)
    assert found.shape == (3, 5, 3)
    assert (found.values == found.values[:, :1, :1]).all()


def dependent(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        top = pyro.sample("top", dist.Normal(torch.zeros(len(x)), 1.0))
        low = pyro.sample("low", dist.Normal(top, 1.0))
        pyro.sample("x", dist.Normal(low, 1.0), obs=x[:, 0])
        pyro.sample("k", dist.Categorical(torch.ones(3)).expand([len(x)]), obs=x[:, 0])


def half(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        tau = pyro.sample("tau", dist.HalfNormal(torch.ones(len(x))))
        pyro.sample("x", dist.Normal(tau, 1.0), obs=x[:, 0])


def cauchy(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        tau = pyro.sample("tau", dist.HalfCauchy(torch.ones(len(x))))
        pyro.sample("x", dist.Normal(tau, 1.0), obs=x[:, 0])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: latent_traversal(decoder, DATA, dims=[2]), r"dims=\[2\]: expected numbers of the 2 dimensions of 'z'"),
        (lambda: latent_traversal(decoder, DATA, dims=[]), r"dims=\[\]"),
        (lambda: latent_traversal(decoder, DATA, site="x"), r"site='x': the latents of the model are \['z'\]"),
        (lambda: latent_traversal(decoder, DATA, observed="y"), r"observed='y': the observed sites are \['x'\]"),
        (lambda: latent_traversal(decoder, DATA, num_samples=0), "num_samples=0"),
        (lambda: latent_traversal(dependent, DATA, site="low", observed="x"), "'low' depends on other latents"),
        (lambda: latent_traversal(half, DATA), "sds has -3, which leads out of the support of 'tau'"),
        (lambda: latent_traversal(cauchy, DATA), "'tau': expected a continuous prior with a finite mean"),
        (lambda: prior_samples(dependent, DATA), r"observed=None: the observed sites are \['x', 'k'\]"),
        (lambda: prior_samples(dependent, DATA, observed="k"), "'k': its Categorical has no mean"),
        (lambda: prior_samples(decoder, DATA, num_samples=0), "num_samples=0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_the_kl_written_out_here_is_torchs() -> None:
    torch_kl = kl_divergence(dist.Normal(1.0, 0.5), dist.Normal(0.0, 2.0))
    assert float(kl_of_normals(torch.tensor(1.0), 0.5, 2.0)) == pytest.approx(float(torch_kl))
