"""Leave-one-out cross-validation: exact answers of a conjugate pair, ArviZ's own, and what is refused."""

import json
import math
import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import arviz as az
import arviz_stats
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule
from torch import Tensor, nn

from banel_pyro import to_arviz
from banel_pyro.diagnostics import loo
from banel_pyro.inference_data import group
from models import normal_normal
from tests.criticism_pairs import (
    NOISE,
    PRIOR,
    ROWS,
    N,
    local_model,
    measurements,
    shared_guide,
    shared_model,
    tempered_guide,
)

pytestmark = pytest.mark.usefixtures("float64")

LOO = import_module("banel_pyro.diagnostics.loo")  # the name is that of the function, too


@cache
def tempered_draws(lam: float, draws: int = 1500, **options: Any) -> Any:
    """Draws of the optimum at a lambda, which no test changes."""
    x = measurements()
    defaults: dict[str, Any] = {"num_samples": draws, "groups": ["log_likelihood"], "seed": 0, "data_plate": "data"}
    return to_arviz(normal_normal.model, tempered_guide(x, lam), x, **defaults | options)


# Leave-one-out


def exact_elpd(x: Tensor) -> np.ndarray:
    """log p(x_i | all others) of the conjugate normal pair."""
    found = []
    for i in range(len(x)):
        others = normal_normal.posterior(torch.cat([x[:i], x[i + 1 :]]))
        found.append(dist.Normal(others.loc, math.hypot(float(others.scale), NOISE)).log_prob(x[i]))
    return torch.stack(found).numpy()


def exact_p_loo(x: Tensor) -> float:
    """What the exact predictive density of the rows given all of them has more than that."""
    all_of_them = normal_normal.posterior(x)
    whole = dist.Normal(all_of_them.loc, math.hypot(float(all_of_them.scale), NOISE)).log_prob(x)
    return float(whole.sum()) - float(exact_elpd(x).sum())


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.5, -0.5])
def test_loo_is_that_of_the_exact_posterior_at_every_lambda(lam: float) -> None:
    found, exact = loo(tempered_draws(lam)), exact_elpd(measurements())
    assert found.mcse < 0.1
    assert abs(found.elpd.value - exact.sum()) < 4 * found.mcse
    scores = (found.per_datum["elpd"] - exact) / found.per_datum["mcse"]
    assert np.abs(scores).max() < 4.5
    assert abs(found.p_loo.value - exact_p_loo(measurements())) < 4 * found.p_loo.stderr < 0.5
    assert found.elpd.stderr == pytest.approx(exact.std(ddof=1) * len(exact) ** 0.5, rel=0.05)
    assert found.passes


def test_loo_without_the_correction_would_be_that_of_the_guide() -> None:
    """So that the test above can fail: a tempered guide without log p - log q is far off in standard errors."""
    idata, exact = tempered_draws(0.5), float(exact_elpd(measurements()).sum())
    naive = az.loo(idata)
    assert abs(naive.elpd_loo - exact) > 5 * loo(idata).mcse


def ratios(lam: float, draws: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Log likelihoods (draw, row) and log p - log q (draw), made without Pyro; the guide is moved by so many sds."""
    x, best = measurements(), normal_normal.tempered_optimum(measurements(), lam=lam)
    q = dist.Normal(best.loc + shift * best.scale, best.scale)
    z = torch.as_tensor(np.random.default_rng(seed).normal(float(q.loc), float(q.scale), draws))
    log_lik = dist.Normal(z[:, None], NOISE).log_prob(x)
    return log_lik.numpy(), (normal_normal.log_joint(x, z) - q.log_prob(z)).numpy()


def test_the_monte_carlo_error_is_that_of_repeats() -> None:
    runs = [LOO._from_ratios(*ratios(0.3, 500, seed), np.arange(29)) for seed in range(24)]
    exact = exact_elpd(measurements())
    for scores in (
        [(run.elpd.value - exact.sum()) / run.mcse for run in runs],
        [(run.p_loo.value - exact_p_loo(measurements())) / run.p_loo.stderr for run in runs],
        [(run.per_datum["elpd"][3] - exact[3]) / run.per_datum["mcse"][3] for run in runs],
    ):
        assert abs(np.mean(scores)) < 4 / math.sqrt(24)
        assert 0.65 < np.std(scores) < 1.45


def test_the_number_of_parameters_is_that_of_the_posterior_under_a_guide_beside_it() -> None:
    """The mean under its own draws, which is what ArviZ subtracts from, is that of the guide."""
    log_lik, log_w = ratios(-0.5, 4000, 0, shift=1.5)
    found = LOO._from_ratios(log_lik, log_w, np.arange(29))
    assert abs(found.p_loo.value - exact_p_loo(measurements())) < 4 * found.p_loo.stderr
    of_the_guide = float((np.logaddexp.reduce(log_lik, axis=0) - math.log(4000)).sum()) - found.elpd.value
    assert abs(of_the_guide - exact_p_loo(measurements())) > 8 * found.p_loo.stderr


def test_loo_is_that_of_arviz_where_both_know_how() -> None:
    """Its own `loo` at an exact guide, whose log p - log q is constant; `loo_approximate_posterior` at any."""
    exact = tempered_draws(0.0, 1000)
    ours, theirs, older = loo(exact), arviz_stats.loo(exact, pointwise=True, reff=1.0), az.loo(exact, reff=1.0)
    assert ours.elpd.value == pytest.approx(theirs.elpd, abs=1e-6) == pytest.approx(older.elpd_loo, abs=1e-3)
    assert ours.p_loo.value == pytest.approx(theirs.p, abs=1e-6) == pytest.approx(older.p_loo, abs=1e-3)
    np.testing.assert_allclose(ours.per_datum["k_hat"], theirs.pareto_k, atol=1e-6)
    idata = tempered_draws(0.4, 1000)
    sample = group(idata, "sample_stats")
    ours, theirs = loo(idata), arviz_stats.loo_approximate_posterior(idata, sample["log_p"], sample["log_q"])
    np.testing.assert_allclose(ours.per_datum["elpd"], theirs.elpd_i, atol=1e-9)
    np.testing.assert_allclose(ours.per_datum["k_hat"], theirs.pareto_k, atol=1e-9)
    n = len(ours.per_datum)
    assert ours.elpd.stderr == pytest.approx(theirs.se * (n / (n - 1)) ** 0.5)


def test_loo_of_arviz_objects_of_either_line_and_of_files_and_of_results(tmp_path: Any) -> None:
    idata = tempered_draws(0.3, 400)
    found = loo(idata)
    tree = xr.DataTree.from_dict({name: group(idata, name) for name in idata.groups()})
    tree.attrs = dict(idata.attrs)
    pd.testing.assert_frame_equal(loo(tree).per_datum, found.per_datum)
    idata.to_netcdf(str(tmp_path / "draws.nc"))
    pd.testing.assert_frame_equal(loo(az.from_netcdf(str(tmp_path / "draws.nc"))).per_datum, found.per_datum)
    pd.testing.assert_frame_equal(
        loo(tempered_draws.__wrapped__(0.3, 400, coords={"data": [f"m{i}" for i in range(29)]})).per_datum,
        found.per_datum,
    )
    result = normal_normal.pair().fit(steps=3, lr=0.1, seed=0, progress=False)
    assert loo(result).draws == 1000
    lines = str(found).splitlines()
    assert lines[0] == "leave-one-out over 29 rows, from 400 draws"
    assert "not to choose λ by" in lines[-1]


def test_models_are_compared_by_arviz() -> None:
    x = measurements()

    def off(x: Tensor) -> None:
        density = pyro.sample("density", dist.Normal(PRIOR[0], PRIOR[1]))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(density, 3 * NOISE), obs=x)

    options: dict[str, Any] = {"num_samples": 400, "groups": ["log_likelihood"], "seed": 0}
    wide = to_arviz(off, tempered_guide(x, 0.0), x, **options)
    found = {"right": loo(tempered_draws(0.0, 400)), "wide": loo(wide)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of pandas, in ArviZ
        table = arviz_stats.compare({name: one.to_arviz() for name, one in found.items()})
    assert list(table.index) == ["right", "wide"]
    assert table.loc["right", "elpd"] == pytest.approx(found["right"].elpd.value, abs=0.1)


def test_rows_with_several_sites_and_masked_rows() -> None:
    """Both sites of a row leave with it, and a row without anything is not counted."""
    x = torch.tensor([0.5, -1.0, 2.0, 1e3])
    seen = torch.tensor([True, True, True, False])

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 4), poutine.mask(mask=seen):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            with pyro.plate("twice", 2):
                pyro.sample("y", dist.Normal(z, 1.0), obs=torch.stack([x, -x]))

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(float(x[:3].sum()) / 10, math.sqrt(0.1)))

    found = loo(to_arviz(model, guide, x, num_samples=1000, groups=["log_likelihood"], data_plate="data", seed=0))
    assert list(found.per_datum.index) == [0, 1, 2]
    for i in range(3):
        mean = (float(x[:3].sum()) - float(x[i])) / 7  # of 6 measurements and the prior
        cov = torch.eye(3) + 1 / 7
        exact = dist.MultivariateNormal(torch.full((3,), mean), cov).log_prob(torch.stack([x[i], x[i], -x[i]]))
        assert abs(found.per_datum["elpd"][i] - float(exact)) < 4.5 * found.per_datum["mcse"][i]


def test_a_row_that_cannot_be_left_out_is_named() -> None:
    x = torch.cat([torch.zeros(9), torch.tensor([12.0])])

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 10):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(x.mean(), 0.1))

    found = loo(to_arviz(model, guide, x, num_samples=300, groups=["log_likelihood"], seed=0))
    assert 9 in found.failing
    assert not found.passes
    assert found.k_hat > found.threshold


# What has no leave-one-out


def with_param(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    scale = pyro.param("scale", torch.ones(()), constraint=dist.constraints.positive)
    with pyro.plate("data", N):
        pyro.sample("x", dist.Normal(z, scale), obs=x)


class Learnt(PyroModule):
    """A parameter of a PyroModule."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = PyroModule[nn.Linear](1, 1)

    def forward(self, x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N):
            pyro.sample("x", dist.Normal(self.layer(z.reshape(1)), 1.0), obs=x)


class Unregistered(nn.Module):
    """A parameter that Pyro never hears of."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def model(self, x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N):
            pyro.sample("x", dist.Normal(z + self.shift, 1.0), obs=x)


def with_factor(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N):
        pyro.factor("more", dist.Normal(z, 1.0).log_prob(x))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def outside(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(1.0))
    with pyro.plate("data", N):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def no_plate(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0).expand([N]).to_event(1), obs=x)


def auxiliary(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
    pyro.sample("z", dist.Normal(a, 0.4))


def other_plate(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N), pyro.plate("some", 6, subsample_size=2):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x.expand(2, N))


def summed(x: Tensor) -> None:
    """A discrete latent of all rows is summed out, so that no row has its own log likelihood."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
    with pyro.plate("data", N):
        pyro.sample("x", dist.Normal(z + k, 1.0), obs=x)


def masked(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N), poutine.mask(mask=torch.tensor(False)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def drawn(model: Any, guide: Any, rows: Tensor = ROWS, **options: Any) -> Any:
    defaults: dict[str, Any] = {"num_samples": 100, "groups": ["log_likelihood"], "seed": 0}
    return to_arviz(model, guide, rows, **defaults | options)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "local": (lambda: drawn(local_model, AutoNormal(local_model)), r"\['z'\] belong to one row of plate 'data'"),
    "joint": (
        lambda: drawn(local_model, AutoMultivariateNormal(local_model)),
        r"\['z'\] belong to one row of plate 'data'",
    ),
    "param": (lambda: drawn(with_param, shared_guide), r"parameters \['scale'\], which have learnt"),
    "module": (lambda: drawn(Learnt(), shared_guide), r"parameters \['layer.bias', 'layer.weight'\]"),
    "unregistered": (lambda: drawn(Unregistered().model, shared_guide), r"parameters \['shift'\]"),
    "point": (lambda: drawn(shared_model, AutoDelta(shared_model)), r"guide sites \['z'\] are point masses"),
    "auxiliary": (lambda: drawn(shared_model, auxiliary), r"guide sites \['a'\] are no latents of the model"),
    "no plate": (lambda: drawn(no_plate, shared_guide), "observes nothing in a plate over data points"),
    "likelihood": (lambda: drawn(shared_model, shared_guide, groups=[]), r"no \['log_likelihood'\]: write groups="),
    "rows": (
        lambda: drawn(shared_model, shared_guide, ROWS[:2], data_plate="data"),
        r"some of the rows of the plates \['data'\]",
    ),
    "other plate": (
        lambda: drawn(other_plate, shared_guide, data_plate="data"),
        r"some of the rows of the plates \['some'\]",
    ),
    "factor": (lambda: drawn(with_factor, shared_guide), "more or less than its rows have together"),
    "outside": (lambda: drawn(outside, shared_guide), "more or less than its rows have together"),
    "summed out": (lambda: drawn(summed, shared_guide), "more or less than its rows have together"),
    "masked": (lambda: drawn(masked, shared_guide), "every row is masked"),
    "draws": (lambda: drawn(shared_model, shared_guide, num_samples=99), "99 draws are too few"),
    "infinite": (
        lambda: drawn(shared_model, shared_guide, torch.tensor([0.0, 1e200, 0.0, 0.0])),
        "log likelihoods are NaN or infinite",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_leave_one_out_is_refused(name: str) -> None:
    make, message = REFUSED[name]
    idata = make()
    with pytest.raises(ValueError, match=message):
        loo(idata)


def test_draws_of_another_origin_are_refused() -> None:
    idata = drawn(shared_model, shared_guide)
    del idata.attrs["model_parameters"]
    with pytest.raises(ValueError, match=r"expected draws from banel_pyro\.to_arviz"):
        loo(idata)
    with pytest.raises(TypeError, match="draws is a list: expected an ArviZ object"):
        loo([1.0])  # type: ignore[arg-type]


def test_frozen_parameters_and_those_of_the_guide_are_no_obstacle() -> None:
    network = nn.Linear(1, 1).requires_grad_(False)

    def frozen(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N):
            pyro.sample("x", dist.Normal(network(z.reshape(1)), 1.0), obs=x)

    for model, own in ((frozen, shared_guide), (shared_model, AutoNormal(shared_model))):
        idata = drawn(model, own)
        assert json.loads(idata.attrs["model_parameters"]) == []
        assert loo(idata).draws == 100


def test_looking_for_parameters_changes_no_draw() -> None:
    with_likelihood, without = drawn(shared_model, shared_guide), drawn(shared_model, shared_guide, groups=[])
    xr.testing.assert_equal(group(with_likelihood, "posterior"), group(without, "posterior"))
