"""`to_arviz`: shapes, names, densities and draws against exact answers, whole or in chunks of rows."""

import json
import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal, AutoNormalMessenger
from pyro.infer.autoguide.initialization import init_to_median
from torch import Tensor

from banel_pyro import BaNEL_ELBO, fit, to_arviz
from banel_pyro.inference_data import GROUPS, group, group_names
from banel_pyro.seeding import draw_seed
from banel_pyro.streams import SiteStreams
from models import eight_schools

pytestmark = pytest.mark.usefixtures("float64")

N, BATCH = 50, 16  # chunks of 32 and 18 rows: whole blocks of 16, and none smaller than one left over
X = tuple(round(2 * math.sin(1.7 * row), 3) for row in range(N))
LOG_2PI = math.log(2 * math.pi)


def rows() -> Tensor:
    return torch.tensor(X)


def model(x: Tensor) -> None:
    """A global scalar, a global vector, a local scalar and a local vector, with values computed from them."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
    pyro.deterministic("twice", 2 * a)
    with pyro.plate("data", N):
        z = pyro.sample("z", dist.Normal(a, 1.0))
        v = pyro.sample("v", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.deterministic("shifted", z + 1, event_dim=0)
        pyro.deterministic("plain", z + 2)
        pyro.deterministic("rows", v * 3)
        pyro.sample("x", dist.Normal(z + v.sum(-1) + w[..., 0], 0.5), obs=x)


def guide(x: Tensor) -> None:
    s = pyro.param("s", torch.tensor(0.6), constraint=constraints.positive)
    a = pyro.sample("a", dist.Normal(0.2, s))
    pyro.sample("w", dist.Dirichlet(torch.tensor([2.0, 1.0, 3.0])))
    with pyro.plate("data", N):
        pyro.sample("z", dist.Normal(0.5 * a + 0.3 * x, 0.8))
        pyro.sample("v", dist.Normal(0.1 * x[..., None].expand(len(x), 2), 0.4).to_event(1))


def draws(idata: az.InferenceData, name: str, group: str = "posterior") -> Tensor:
    return torch.from_numpy(idata[group][name].to_numpy())[0]


def full(**options: Any) -> az.InferenceData:
    return to_arviz(model, guide, rows(), **{"num_samples": 30, "groups": GROUPS, "seed": 0} | options)


# Shapes and names


def test_plates_and_events_are_named_dims() -> None:
    idata = full()
    assert set(idata.groups()) == set(GROUPS) - {"constant_data"}  # x is what is observed
    latent = {
        "a": {}, "w": {"w_dim_0": 3}, "twice": {}, "z": {"data": N}, "v": {"data": N, "v_dim_0": 2},
        "shifted": {"data": N}, "plain": {"data": N}, "rows": {"data": N, "rows_dim_0": 2},
    }  # fmt: skip
    shapes = {
        "posterior": latent,
        "prior": latent,
        "posterior_predictive": {"x": {"data": N}},
        "prior_predictive": {"x": {"data": N}},
        "log_likelihood": {"x": {"data": N}},
        "sample_stats": {
            **{name: {} for name in ("log_p", "log_q", "log_lik", "log_q_a", "log_q_w")},
            **{f"{name}_datum": {"data": N} for name in ("log_p", "log_q", "log_lik")},
            **{name: {"data": N} for name in ("log_q_z", "log_q_v")},
        },
    }
    for where, expected in shapes.items():
        lead = {"chain": 1, "draw": 30}
        assert {str(n): dict(v.sizes) for n, v in idata[where].data_vars.items()} == {
            name: lead | dims for name, dims in expected.items()
        }
    assert dict(idata["observed_data"]["x"].sizes) == {"data": N}
    np.testing.assert_array_equal(idata["observed_data"]["x"], X)
    np.testing.assert_array_equal(idata["posterior"].coords["data"], range(N))


def test_deterministic_values_are_those_of_their_draw() -> None:
    idata = full()
    z = draws(idata, "z")
    for name, expected in {
        "twice": 2 * draws(idata, "a"),
        "shifted": z + 1,
        "plain": z + 2,
        "rows": 3 * draws(idata, "v"),
    }.items():
        torch.testing.assert_close(draws(idata, name), expected)


def test_two_plates_and_batch_axes() -> None:
    def crossed(x: Tensor) -> None:
        with pyro.plate("columns", 3, dim=-1):
            c = pyro.sample("c", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N, dim=-2):
            r = pyro.sample("r", dist.Normal(0.0, 1.0))
            with pyro.plate("columns_again", 3, dim=-1):
                m = pyro.sample("m", dist.Normal(r + c, 1.0))
                pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    x = torch.randn(N, 3)
    for batch_size in (None, BATCH):
        with pyro.get_param_store().scope():
            auto = AutoNormal(crossed)
            idata = to_arviz(crossed, auto, x, num_samples=4, groups=GROUPS, data_plate="data", batch_size=batch_size)
        sizes = {str(n): dict(v.sizes) for n, v in idata["posterior"].data_vars.items()}
        lead = {"chain": 1, "draw": 4}
        assert sizes == {
            "c": lead | {"columns": 3},
            "r": lead | {"data": N},
            "m": lead | {"data": N, "columns_again": 3},
        }
        np.testing.assert_array_equal(idata["observed_data"]["x"], x)


def test_coordinates() -> None:
    names = [f"row {row}" for row in range(N)]
    idata = full(coords={"data": names, "w_dim_0": [10, 20, 30]})
    assert idata["posterior"]["z"].coords["data"].to_numpy().tolist() == names
    assert idata["observed_data"]["x"].coords["data"].to_numpy().tolist() == names
    assert idata["posterior"]["w"].coords["w_dim_0"].to_numpy().tolist() == [10, 20, 30]


def test_names_of_event_dims() -> None:
    """In all groups; log_likelihood has the leading ones, as event axes are summed there."""

    def grid(x: Tensor) -> None:
        pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2), obs=x)

    named = {"dims": {"x": ("row", "column")}, "coords": {"row": ["top", "bottom"], "column": [7, 8, 9]}}
    idata = to_arviz(grid, AutoNormal(grid), torch.zeros(4, 2, 3), num_samples=2, groups=GROUPS, **named)
    assert idata["log_likelihood"]["x"].dims == ("chain", "draw", "data")
    assert idata["observed_data"]["x"].dims == ("data", "row", "column")
    for name in ("posterior_predictive", "prior_predictive"):
        assert idata[name]["x"].dims == ("chain", "draw", "data", "row", "column")
        assert idata[name].coords["row"].to_numpy().tolist() == ["top", "bottom"]
    again = full(dims={"w": "latent", "v": ["side"]}, coords={"latent": list("abc"), "side": ["left", "right"]})
    for name in ("posterior", "prior"):
        assert again[name]["w"].coords["latent"].to_numpy().tolist() == list("abc")
        assert again[name]["v"].dims == ("chain", "draw", "data", "side")
    few = full(groups=(), dims={"x": []}, coords={"data": range(N)})  # of a group that is not asked for
    assert "x" not in few["posterior"]


def test_constant_data_are_what_is_passed_and_not_observed() -> None:
    data = eight_schools.noncentered().data()
    auto = AutoNormal(eight_schools.noncentered_model)
    groups = ("observed_data", "constant_data")
    idata = to_arviz(eight_schools.noncentered_model, auto, *data, num_samples=2, groups=groups)
    (observed,), (constant,) = idata["observed_data"].data_vars.values(), idata["constant_data"].data_vars.values()
    assert observed.dims == constant.dims == ("schools",)
    np.testing.assert_array_equal(observed, data[0])
    np.testing.assert_array_equal(constant, data[1])
    assert "constant_data" not in group_names(full())


def test_prior_predictive_has_the_exact_moments() -> None:
    """x = z + v1 + v2 + w1 + noise with a under z: variance 2 + 2 + 1/18 + 1/4, mean 1/3."""
    draws = 600
    x = group(full(num_samples=draws, groups=("prior_predictive",)), "prior_predictive")["x"].to_numpy()[0, :, 0]
    variance = 4 + 1 / 18 + 1 / 4
    assert x.mean() == pytest.approx(1 / 3, abs=5 * (variance / draws) ** 0.5)
    assert x.var() == pytest.approx(variance, rel=5 * (2 / draws) ** 0.5)


def test_integer_and_boolean_latents_keep_their_type() -> None:
    def discrete() -> None:
        pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.8])))

    idata = to_arviz(discrete, discrete, num_samples=50)
    assert idata["posterior"]["k"].dtype.kind == "i"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"coords": {"data": [1, 2]}}, r"coords\['data'\] has 2 entries, but the dim has 50"),
        ({"coords": {"school": [1]}}, r"coords\['school'\]: no such dim, expected some of \['data'"),
        (
            {"dims": {"v": ["side", "other"]}},
            r"dims\['v'\]=.* has 2 names.*'v' has 1 axes \(of lengths \[2\]",
        ),
        ({"dims": {"v": ["side"]}, "coords": {"side": [1]}}, r"coords\['side'\] has 1 entries, but the dim has 2"),
        ({"dims": {"v": ["side"], "w": ["side"]}}, r"dim 'side' has length 3 and, at site 'v', 2: expected one length"),
        ({"dims": {"v": ["draw"]}}, r"dims\['v'\]=\['draw'\]: expected names that differ"),
        ({"dims": {"u": ["side"]}}, r"dims\['u'\]: no such variable, expected some of \['a',"),
        ({"groups": ("posterior", "warmup")}, r"unknown \['warmup'\], expected a list of some of"),
        ({"groups": "posterior"}, "groups='posterior': unknown"),
        ({"num_samples": 1}, "num_samples=1: expected an integer of at least 2"),
        ({"num_samples": 2.5}, "num_samples=2.5: expected an integer"),
        ({"batch_size": 0}, "batch_size=0: expected an integer of at least 1"),
        ({"data_plate": "rows"}, r"data_plate='rows': the model has no plate of that name, only \['data'\]"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        full(**options)


def test_chunks_without_a_data_plate_are_refused() -> None:
    def bare(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(a, 1.0).expand(x.shape).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"minibatches of 2 of 50 rows need a plate"):
        to_arviz(bare, AutoNormal(bare), rows(), batch_size=2)


def test_chunks_of_a_joint_autoguide_with_local_latents_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'_AutoMultivariateNormal_latent' draws jointly.*subsampled plate 'data'"):
        to_arviz(model, AutoMultivariateNormal(model), rows(), num_samples=2, batch_size=BATCH)


@pytest.mark.parametrize("name", ["z_rows", "draw"])
def test_a_site_with_the_name_of_a_dim_is_refused(name: str) -> None:
    def clashing(x: Tensor) -> None:
        pyro.sample(name, dist.Normal(0.0, 1.0))
        with poutine.block(hide=["z_rows"]), pyro.plate("z_rows", N):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=rf"\['{name}'\] are names of sites and of dims.*Rename"):
        to_arviz(clashing, clashing, rows(), num_samples=2, data_plate=None)


def test_sites_that_come_and_go_are_refused() -> None:
    def branching() -> None:
        k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)))
        if k.item():
            pyro.sample("more", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"site 'more' is in \d+ of 40 draws only.*same sites in every draw"):
        to_arviz(branching, branching, num_samples=40)


def test_sites_of_changing_shape_are_refused() -> None:
    def growing() -> None:
        k = pyro.sample("k", dist.Poisson(torch.tensor(3.0)))
        pyro.sample("more", dist.Normal(torch.zeros(int(k) + 1), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"site 'more' has shape \(\d+,\) in one draw and \(\d+,\) in another"):
        to_arviz(growing, growing, num_samples=40)


# Densities


def test_log_p_and_log_q_are_those_of_the_draws() -> None:
    """By hand, from the draws alone."""
    for batch_size in (None, BATCH):
        idata = full(batch_size=batch_size)
        a, w, z, v, x = *(draws(idata, name) for name in "awzv"), rows()
        likelihood = dist.Normal(z + v.sum(-1) + w[:, :1], 0.5).log_prob(x)
        local_p = dist.Normal(a[:, None], 1.0).log_prob(z) + dist.Normal(0.0, 1.0).log_prob(v).sum(-1) + likelihood
        local_q = {
            "z": dist.Normal(0.5 * a[:, None] + 0.3 * x, 0.8).log_prob(z),
            "v": dist.Normal(0.1 * x[:, None], 0.4).log_prob(v).sum(-1),
        }
        global_q = {
            "a": dist.Normal(0.2, 0.6).log_prob(a),
            "w": dist.Dirichlet(torch.tensor([2.0, 1.0, 3.0])).log_prob(w),
        }
        global_p = dist.Normal(0.0, 1.0).log_prob(a) + dist.Dirichlet(torch.ones(3)).log_prob(w)
        expected = {
            "log_lik_datum": likelihood,
            "log_lik": likelihood.sum(-1),
            "log_p_datum": local_p,
            "log_p": local_p.sum(-1) + global_p,
            "log_q_datum": local_q["z"] + local_q["v"],
            "log_q": sum(q.sum(-1) for q in local_q.values()) + sum(global_q.values()),
            **{f"log_q_{name}": q for name, q in (local_q | global_q).items()},
        }
        assert set(expected) == set(map(str, idata["sample_stats"].data_vars))
        for name, value in expected.items():
            torch.testing.assert_close(draws(idata, name, "sample_stats"), torch.as_tensor(value))
        torch.testing.assert_close(draws(idata, "x", "log_likelihood"), likelihood)


def messenger(model: Callable[..., Any]) -> AutoNormalMessenger:
    return AutoNormalMessenger(model, init_loc_fn=init_to_median)


@pytest.mark.parametrize("auto", [AutoNormal, AutoMultivariateNormal, messenger])
def test_log_weights_are_the_elbo(auto: Any) -> None:
    """Minus the mean of log p - log q is the loss at lam = 0, draw by draw under one stream of random numbers."""
    chosen = auto(eight_schools.noncentered_model)
    data = eight_schools.noncentered().data()
    chosen(*data)
    idata = to_arviz(eight_schools.noncentered_model, chosen, *data, num_samples=20, seed=3)
    log_w = draws(idata, "log_p", "sample_stats") - draws(idata, "log_q", "sample_stats")
    torch.manual_seed(3)
    with SiteStreams(draw_seed()):
        losses = [BaNEL_ELBO().loss(eight_schools.noncentered_model, chosen, *data) for _ in range(20)]
    torch.testing.assert_close(-log_w, torch.tensor(losses))
    parts = [name for name in idata["sample_stats"] if name.startswith("log_q_") and not name.endswith("_datum")]
    total = sum(
        idata["sample_stats"][n].sum([d for d in idata["sample_stats"][n].dims if d == "schools"]) for n in parts
    )
    np.testing.assert_allclose(total, idata["sample_stats"]["log_q"])


def test_scales_do_not_count_and_masks_do() -> None:
    mask = torch.arange(N) % 3 != 1

    def inner(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N), poutine.mask(mask=mask[: len(x)]):
            pyro.sample("x", dist.Normal(a, 1.0), obs=x)

    scaled = poutine.scale(inner, 7.0)
    auto = AutoNormal(inner)
    idata = to_arviz(scaled, poutine.scale(auto, 3.0), rows(), groups=("log_likelihood", "prior"), num_samples=10)
    a = draws(idata, "a")
    log_x = dist.Normal(a[:, None], 1.0).log_prob(rows()) * mask
    torch.testing.assert_close(draws(idata, "x", "log_likelihood"), log_x)
    log_p = dist.Normal(0.0, 1.0).log_prob(a) + log_x.sum(-1)
    torch.testing.assert_close(draws(idata, "log_p", "sample_stats"), log_p)
    loc, scale = auto.locs.a.detach(), auto.scales.a.detach()
    torch.testing.assert_close(draws(idata, "log_q", "sample_stats"), dist.Normal(loc, scale).log_prob(a))


def test_factors_count_in_the_likelihood_and_are_no_data() -> None:
    def with_factor(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.factor("extra", -a * a)
        with pyro.plate("data", N):
            pyro.sample("x", dist.Normal(a, 1.0), obs=x)

    idata = to_arviz(with_factor, AutoNormal(with_factor), rows(), num_samples=5, groups=GROUPS)
    a = draws(idata, "a")
    expected = dist.Normal(a[:, None], 1.0).log_prob(rows()).sum(-1) - a * a
    torch.testing.assert_close(draws(idata, "log_lik", "sample_stats"), expected)
    for name in ("observed_data", "posterior_predictive", "log_likelihood"):
        assert list(idata[name].data_vars) == ["x"]


def test_densities_of_the_guide_are_listed() -> None:
    listed = json.loads(full().attrs["densities"])
    assert listed == {name: [name] for name in "awzv"}
    joint = to_arviz(model, AutoMultivariateNormal(model), rows(), num_samples=2)
    assert json.loads(joint.attrs["densities"]) == {"_AutoMultivariateNormal_latent": list("awzv")}
    assert joint["sample_stats"]["log_q__AutoMultivariateNormal_latent"].dims == ("chain", "draw")
    assert not [name for name in joint["sample_stats"] if name.endswith("_datum")]
    point = to_arviz(model, AutoDelta(model), rows(), num_samples=2)
    assert json.loads(point.attrs["point_masses"]) == sorted("awzv")
    assert json.loads(joint.attrs["point_masses"]) == []


# Draws


def moments(idata: az.InferenceData, group: str = "posterior") -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and standard error of each number, and of its square."""
    found = {}
    for name in idata[group].data_vars:
        x = draws(idata, str(name), group)
        both = torch.stack([x, x * x], -1)
        found[str(name)] = (both.mean(0), both.std(0) / len(x) ** 0.5)
    return found


def test_chunked_draws_are_those_of_all_rows_at_once() -> None:
    """Every number, that of a local latent after its own global ones: one seed, whatever the batch."""
    whole, chunked = full(), full(batch_size=BATCH)
    assert set(group_names(whole)) == set(group_names(chunked))
    for name in group_names(whole):
        xr.testing.assert_allclose(group(chunked, name), group(whole, name), rtol=1e-12)
    assert len(np.unique(group(whole, "posterior")["z"])) == 30 * N  # no stream starts over
    assert len(np.unique(group(whole, "prior")["z"])) == 30 * N


def test_global_latents_and_a_plate_over_the_rows_of_a_chunk() -> None:
    """Refused for training, where priors would count too often; here each chunk stands for itself."""

    def pooled(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(a, 1.0), obs=x)

    auto = AutoNormal(pooled)
    idata = to_arviz(pooled, auto, rows(), num_samples=20, batch_size=BATCH)
    a = draws(idata, "a")
    log_p = dist.Normal(0.0, 1.0).log_prob(a) + dist.Normal(a[:, None], 1.0).log_prob(rows()).sum(-1)
    torch.testing.assert_close(draws(idata, "log_p", "sample_stats"), log_p)


def test_other_rows_than_the_plate_was_written_for() -> None:
    """Held-out rows through a model of N rows: the plate is named, and does not scale."""
    few = rows()[:32] + 1
    for batch_size in (None, BATCH):
        idata = to_arviz(model, guide, few, num_samples=4, data_plate="data", batch_size=batch_size, groups=GROUPS)
        w, z, v = (draws(idata, name) for name in "wzv")
        likelihood = dist.Normal(z + v.sum(-1) + w[:, :1], 0.5).log_prob(few)
        torch.testing.assert_close(draws(idata, "x", "log_likelihood"), likelihood)
        torch.testing.assert_close(draws(idata, "log_lik", "sample_stats"), likelihood.sum(-1))


def test_the_prior_group_is_the_prior() -> None:
    idata = full(num_samples=1000, groups=("prior",))
    found = moments(idata, "prior")
    exact = {"a": (0.0, 1.0), "z": (0.0, 2.0), "v": (0.0, 1.0), "w": (1 / 3, 1 / 6), "twice": (0.0, 4.0)}
    for name, (mean, square) in exact.items():
        value, error = found[name]
        assert ((value - torch.tensor([mean, square])).abs() < 5 * error).all(), name


def test_posterior_predictive_is_the_model_at_the_draws() -> None:
    idata = full(num_samples=1000)
    mean = draws(idata, "z") + draws(idata, "v").sum(-1) + draws(idata, "w")[:, :1]
    error = (draws(idata, "x", "posterior_predictive") - mean) / 0.5
    assert error.std() == pytest.approx(1.0, abs=5 / (2 * error.numel()) ** 0.5)
    assert error.mean().abs() < 5 / error.numel() ** 0.5
    assert torch.corrcoef(torch.stack([error.flatten(), mean.flatten()]))[0, 1].abs() < 5 / error.numel() ** 0.5


def test_seeds() -> None:
    def values(**options: Any) -> np.ndarray:
        return full(num_samples=3, groups=("posterior",), **options)["posterior"]["z"].to_numpy()

    torch.manual_seed(8)
    assert np.array_equal(values(seed=4), values(seed=4))
    after = torch.rand(())
    torch.manual_seed(8)
    assert torch.equal(after, torch.rand(()))  # a seed leaves the caller's numbers alone
    torch.manual_seed(8)
    first = values(seed=None)
    assert not np.array_equal(first, values(seed=None))
    torch.manual_seed(8)
    assert np.array_equal(first, values(seed=None))  # without one they are drawn from


def test_memory_is_bounded_by_the_batch() -> None:
    """The model sees 16 rows at a time, and no trace of an earlier chunk is kept."""
    alive: list[weakref.ref[Tensor]] = []
    most, lengths = [0], set()

    def watched(x: Tensor) -> None:
        lengths.add(len(x))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(100), 1.0).to_event(1))
            alive.append(weakref.ref(z))
            most[0] = max(most[0], sum(ref() is not None for ref in alive))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def amortised(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, None].expand(-1, 100), 1.0).to_event(1))

    to_arviz(watched, amortised, torch.randn(64), num_samples=3, batch_size=BATCH, groups=GROUPS)
    assert lengths == {BATCH}
    assert most[0] <= 6


def test_modules_are_in_evaluation_mode_and_left_as_they_were() -> None:
    drop = torch.nn.Dropout(0.9)

    def dropping(x: Tensor) -> None:
        assert not drop.training
        pyro.sample("a", dist.Normal(drop(x).sum(), 1.0))

    to_arviz(dropping, dropping, rows(), num_samples=2, groups=("prior", "posterior_predictive"))
    assert drop.training


def test_nothing_is_left_in_the_param_store_or_the_graph() -> None:
    idata = full(num_samples=2)
    assert list(pyro.get_param_store()) == ["s"]
    assert all(p.grad is None for p in pyro.get_param_store()._params.values())
    assert isinstance(idata, az.InferenceData)


def test_a_model_without_arguments() -> None:
    def closed() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N):
            pyro.sample("x", dist.Normal(a, 1.0), obs=rows())

    idata = to_arviz(closed, AutoNormal(closed), num_samples=3, groups=GROUPS)
    assert dict(idata["log_likelihood"]["x"].sizes) == {"chain": 1, "draw": 3, "data": N}
    assert "log_p_datum" not in idata["sample_stats"]


# ArviZ


def noncentered(tmp_path: Path) -> az.InferenceData:
    result = eight_schools.noncentered().fit(steps=30, lam=0.2, seed=2, progress=False)
    return result.posterior(num_samples=200, groups=GROUPS, coords={"schools": list("ABCDEFGH")})


def test_netcdf_keeps_everything(tmp_path: Path) -> None:
    idata = noncentered(tmp_path)
    idata.to_netcdf(str(tmp_path / "posterior.nc"))
    again = az.from_netcdf(str(tmp_path / "posterior.nc"))
    assert again.groups() == idata.groups()
    for name in idata.groups():
        assert again[name].equals(idata[name])
        assert dict(again[name].attrs) == dict(idata[name].attrs)
    attrs = dict(again.attrs)
    assert attrs == dict(idata.attrs)
    assert json.loads(attrs["lam"]) == {"class": "Constant", "value": 0.2}
    assert attrs["objective"] == "BaNEL_ELBO(entropy='auto', kl='monte_carlo', allow_unbounded=False)"
    assert attrs["seed"] == 2
    assert attrs["data_plate"] == "schools"
    assert attrs["torch_version"] == torch.__version__
    assert json.loads(attrs["densities"]) == {name: [name] for name in ("mu", "tau", "theta_trans")}


def test_attributes_of_any_kind_can_be_saved(tmp_path: Path) -> None:
    idata = full(attrs={"lam": {"z": 0.1}, "note": None, "run": 3, "flags": [1, 2]}, seed=7)
    idata.to_netcdf(str(tmp_path / "posterior.nc"))
    attrs = az.from_netcdf(str(tmp_path / "posterior.nc")).attrs
    assert json.loads(attrs["lam"]) == {"z": 0.1}
    assert (attrs["note"], attrs["run"], attrs["flags"], attrs["seed"]) == ("null", 3, "[1, 2]", 7)


@pytest.mark.filterwarnings("ignore::matplotlib.MatplotlibDeprecationWarning")
def test_plots_and_summary_work_and_nothing_asks_for_r_hat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("R-hat and ESS say nothing about independent draws")

    from arviz.stats import diagnostics

    for place, name in ((az, "rhat"), (az, "ess"), (diagnostics, "_rhat"), (diagnostics, "_ess")):
        monkeypatch.setattr(place, name, refuse)
    idata = noncentered(tmp_path)
    summary = az.summary(idata, kind="stats")
    assert list(summary) == ["mean", "sd", "hdi_3%", "hdi_97%"]
    assert {"mu", "tau", "theta[A]", "theta_trans[H]"} <= set(summary.index)
    az.plot_forest(idata, var_names=["theta"], combined=True)
    az.plot_posterior(idata, var_names=["mu", "tau"])
    az.plot_pair(idata, var_names=["mu", "tau"])
    az.plot_ppc(idata, num_pp_samples=10)
    plt.close("all")


def test_loo_uses_the_likelihood_of_each_row(tmp_path: Path) -> None:
    loo = az.loo(noncentered(tmp_path), pointwise=True)
    assert loo.n_data_points == 8


@pytest.mark.parametrize("make", [AutoNormal, AutoNormalMessenger])
def test_a_trained_autoguide_in_chunks(make: Callable[..., Any]) -> None:
    """Parameters of each row stay with their row."""

    def local(x: Tensor) -> None:
        with pyro.plate("data", N):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 10.0))
            pyro.sample("x", dist.Normal(z, 0.1), obs=x)

    auto = make(local)
    result = fit(local, auto, rows(), steps=600, lr=0.05, batch_size=25, seed=0, progress=False)
    for batch_size in (None, BATCH):
        means = draws(result.posterior(num_samples=50, batch_size=batch_size), "z").mean(0)
        torch.testing.assert_close(means, rows(), atol=0.15, rtol=0)


@pytest.mark.parametrize("others", [3, 20])
@pytest.mark.parametrize("batch_size", [None, 16])
def test_a_plate_left_of_the_data_plate_keeps_its_axis(others: int, batch_size: int | None) -> None:
    """Also where both are of one length, so that a transposed array would fit as well."""
    size = 20

    def model(x: torch.Tensor) -> None:
        rows = pyro.plate("data", size, dim=-1)
        with pyro.plate("k", others, dim=-2) as k, rows as data:
            z = pyro.sample("z", dist.Normal(100.0 * k[:, None] + data, 1e-3))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.T.expand(others, len(data)))

    def guide(x: torch.Tensor) -> None:
        with pyro.plate("k", others, dim=-2) as k, pyro.plate("data", size, dim=-1) as data:
            pyro.sample("z", dist.Normal(100.0 * k[:, None] + data, 1e-3))

    groups = ("posterior", "prior", "posterior_predictive", "log_likelihood")
    idata = to_arviz(
        model, guide, torch.zeros(size, 1), num_samples=4, groups=groups, data_plate="data", batch_size=batch_size
    )
    exact = 100 * np.arange(others)[:, None] + np.arange(size)
    for name in ("posterior", "prior"):
        assert idata[name]["z"].dims[2:] == ("k", "data")
        np.testing.assert_allclose(idata[name]["z"].to_numpy(), np.broadcast_to(exact, (1, 4, others, size)), atol=0.02)
    assert np.abs(idata["posterior_predictive"]["x"].to_numpy() - exact).max() < 6
    np.testing.assert_allclose(
        idata["log_likelihood"]["x"].to_numpy()[0, 0], -0.5 * exact**2 - 0.5 * np.log(2 * np.pi), rtol=0.01, atol=0.05
    )
