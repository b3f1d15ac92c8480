"""`spread`: widths and entropies of a conjugate posterior against their exact values, in standard errors."""

import json
import math
from typing import Any

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from scipy import stats
from torch import Tensor

from banel_pyro import spread, to_arviz
from banel_pyro.diagnostics.spread import active_units, density_entropies

pytestmark = pytest.mark.usefixtures("float64")

N, DRAWS = 3, 2000
X = (0.5, -1.0, 2.0)
SD_A, SD_Z = 0.4, (0.3, 0.6)
HALF_LOG = 0.5 * math.log(2 * math.pi * math.e)


def model(x: Tensor) -> None:
    pyro.sample("a", dist.Normal(0.0, 2.0))
    with pyro.plate("data", N):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.deterministic("sum", z.sum(-1), event_dim=0)
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


def guide(x: Tensor) -> None:
    pyro.sample("a", dist.Normal(1.0, SD_A))
    with pyro.plate("data", N):
        scale = torch.tensor(SD_Z) * torch.arange(1.0, N + 1)[:, None]
        pyro.sample("z", dist.Normal(x[:, None], scale).to_event(1))


@pytest.fixture(scope="module")
def idata() -> az.InferenceData:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return to_arviz(model, guide, torch.tensor(X), num_samples=DRAWS, seed=0)
    finally:
        torch.set_default_dtype(before)


def exact_sd() -> dict[str, float]:
    local = {f"z[{n}, {k}]": SD_Z[k] * (n + 1) for n in range(N) for k in range(2)}
    return {"a": SD_A} | local


def test_sd_hdi_and_iqr_of_normal_latents(idata: az.InferenceData) -> None:
    """HDI width 2 z sd; the ratio of interquartile ranges is that of the sds."""
    table = spread(idata, hdi_prob=0.9)
    exact = exact_sd()
    assert list(table.index) == list(exact)
    z, error = stats.norm.ppf(0.95), 5 / (2 * DRAWS) ** 0.5
    for name, sd in exact.items():
        prior = 2.0 if name == "a" else 1.0
        assert table.loc[name, "sd"] == pytest.approx(sd, rel=error)
        assert table.loc[name, "hdi_width"] == pytest.approx(2 * z * sd, rel=0.14)
        assert table.loc[name, "iqr_ratio"] == pytest.approx(sd / prior, rel=0.17)


def test_entropies_are_the_closed_form_within_their_errors(idata: az.InferenceData) -> None:
    table = spread(idata)
    local = sum(math.log(sd) + HALF_LOG for name, sd in exact_sd().items() if name != "a")
    for row, exact in (("a", math.log(SD_A) + HALF_LOG), ("z[0, 0]", local), ("z[2, 1]", local)):
        assert abs(table.loc[row, "entropy"] - exact) < 5 * table.loc[row, "entropy_stderr"]
    # -log q of a normal is its entropy plus (chi^2_1 - 1) / 2 in each dimension
    assert table.loc["a", "entropy_stderr"] == pytest.approx(math.sqrt(0.5 / DRAWS), rel=0.1)
    assert table.loc["z[1, 0]", "entropy_stderr"] == pytest.approx(math.sqrt(0.5 * 2 * N / DRAWS), rel=0.1)
    assert set(table["density"]) == {"a", "z"}


def test_averages_over_the_data_plate(idata: az.InferenceData) -> None:
    whole, table = spread(idata), spread(idata, over="data")
    assert list(table.index) == ["a", "z[0]", "z[1]"]
    for k in range(2):
        rows = [f"z[{n}, {k}]" for n in range(N)]
        for column in ("sd", "hdi_width", "iqr_ratio"):
            assert table.loc[f"z[{k}]", column] == pytest.approx(whole.loc[rows, column].mean())
    assert table.loc["z[0]", "entropy"] == pytest.approx(whole.loc["z[0, 0]", "entropy"] / N)
    assert table.loc["z[0]", "entropy_stderr"] == pytest.approx(whole.loc["z[0, 0]", "entropy_stderr"] / N)
    both = spread(idata, over=["data", "z_dim_0"], var_names=["z"])
    assert list(both.index) == ["z"]


def test_coordinates_label_the_rows(idata: az.InferenceData) -> None:
    named = to_arviz(model, guide, torch.tensor(X), num_samples=10, seed=0, coords={"data": ["one", "two", "three"]})
    assert "z[two, 1]" in spread(named).index


def test_chosen_variables(idata: az.InferenceData) -> None:
    table = spread(idata, var_names=["sum"])
    assert list(table.index) == ["sum[0]", "sum[1]", "sum[2]"]
    assert table.loc["sum[0]", "sd"] == pytest.approx(math.hypot(*SD_Z), rel=0.09)
    assert table["density"].tolist() == [""] * N
    assert table["entropy"].isna().all()


def test_without_a_prior_there_is_no_ratio() -> None:
    idata = to_arviz(model, guide, torch.tensor(X), num_samples=10, groups=())
    assert spread(idata)["iqr_ratio"].isna().all()


def test_a_joint_density_gives_all_its_latents_one_entropy() -> None:
    auto = AutoMultivariateNormal(model, init_scale=0.2)
    idata = to_arviz(model, auto, torch.tensor(X), num_samples=800, seed=0)
    table = spread(idata)
    assert set(table["density"]) == {"_AutoMultivariateNormal_latent"}
    exact = (1 + 2 * N) * (math.log(0.2) + HALF_LOG)
    assert abs(table["entropy"].iloc[0] - exact) < 5 * table["entropy_stderr"].iloc[0]
    assert table["entropy"].nunique() == 1


def test_entropy_is_that_of_the_models_space() -> None:
    """A positive latent: the log-normal's entropy, which has the mean of the Jacobian in it."""

    def positive() -> None:
        pyro.sample("tau", dist.LogNormal(0.0, 1.0))

    auto = AutoNormal(positive, init_scale=0.3)
    auto()
    loc = float(auto.locs.tau.detach())
    (found,) = density_entropies(to_arviz(positive, auto, num_samples=DRAWS, seed=0)).values()
    assert abs(found.value - (math.log(0.3) + HALF_LOG + loc)) < 5 * found.stderr


def test_a_point_mass_has_entropy_minus_infinity() -> None:
    table = spread(to_arviz(model, AutoDelta(model), torch.tensor(X), num_samples=10))
    assert (table["entropy"] == -math.inf).all()
    assert (table["sd"] < 1e-12).all()


def test_discrete_latents() -> None:
    def coin() -> None:
        pyro.sample("k", dist.Categorical(torch.tensor([0.25, 0.75])))

    table = spread(to_arviz(coin, coin, num_samples=DRAWS, seed=0))
    exact = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert abs(table.loc["k", "entropy"] - exact) < 5 * table.loc["k", "entropy_stderr"]
    assert table.loc["k", "sd"] == pytest.approx(math.sqrt(0.1875), rel=0.07)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"var_names": ["z", "nowhere"]}, r"unknown \['nowhere'\]: the posterior has \['a', 'sum', 'z'\]"),
        ({"over": "rows"}, r"no dims \['rows'\], the posterior has"),
        ({"hdi_prob": 1.0}, "hdi_prob=1.0: expected a probability"),
        ({"hdi_prob": 94}, "hdi_prob=94"),
    ],
)
def test_wrong_arguments_are_refused(idata: az.InferenceData, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        spread(idata, **options)


def test_draws_of_others_are_refused() -> None:
    other = az.from_dict(posterior={"a": np.zeros((1, 5))})
    with pytest.raises(ValueError, match=r"no attribute 'densities'.*to_arviz"):
        spread(other)


def test_active_units_are_those_whose_mean_moves_with_the_data() -> None:
    means = np.zeros((1, 200, 50, 3))
    means[..., 0] = np.linspace(-1, 1, 50)
    means[..., 1] = np.linspace(-0.15, 0.15, 50)
    noise = np.random.default_rng(0).normal(size=means.shape)
    posterior = xr.Dataset({"z": (("chain", "draw", "data", "z_dim_0"), means + noise)})
    idata = az.InferenceData(posterior=posterior, attrs={"densities": json.dumps({"z": ["z"]})})
    # the variance of the mean over data, whose noise of 1/200 does not count: 0.35, 0.0078, 0
    assert active_units(idata, "z", "data") == 1
    assert active_units(idata, "z", "data", threshold=0.005) == 2
    assert active_units(idata, "z", "data", threshold=0.003) == 2
    with pytest.raises(ValueError, match=r"unknown \['y'\]"):
        active_units(idata, "y", "data")
    with pytest.raises(ValueError, match=r"no dims \['rows'\]"):
        active_units(idata, "z", "rows")
