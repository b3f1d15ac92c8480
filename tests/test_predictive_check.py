"""Posterior predictive checks: p-values in closed form, ties, misfits, pictures and what is refused."""

import math
from functools import cache
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from scipy import stats
from torch import Tensor

from banel_pyro import to_arviz
from banel_pyro.diagnostics import PredictiveCheck, posterior_predictive_check
from banel_pyro.inference_data import group
from banel_pyro.report import plots
from models import normal_normal
from tests.criticism_pairs import NOISE, measurements, tempered_guide

pytestmark = pytest.mark.usefixtures("float64")


DRAWS = 1000

N = 4
ROWS = torch.tensor([0.5, -1.0, 2.0, 0.1], dtype=torch.float64)


def shared_model(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def shared_guide(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(0.3, 0.4))


# Predictive checks


@cache
def checked(lam: float, *, shift: float = 0.0, stretch: float = 1.0) -> PredictiveCheck:
    """The optimum at a lambda for measurements that are moved, or stretched around their mean."""
    rows = moved(shift, stretch)
    options: dict[str, Any] = {"num_samples": DRAWS, "seed": 0, "data_plate": "data"}
    groups = ["posterior_predictive", "observed_data"]
    return posterior_predictive_check(
        to_arviz(normal_normal.model, tempered_guide(rows, lam), rows, groups=groups, **options)
    )


def moved(shift: float = 0.0, stretch: float = 1.0) -> Tensor:
    x = measurements()
    return x.mean() + shift + stretch * (x - x.mean())


@pytest.mark.parametrize("lam", [0.0, 0.8, -3.0])
def test_the_p_value_of_the_mean_is_that_of_the_closed_form(lam: float) -> None:
    """The mean of replicated data is Normal(m, T s^2 + sigma^2 / n)."""
    x = moved(0.3)  # so that the prior pulls the posterior away from the mean of the data
    q = normal_normal.tempered_optimum(x, lam=lam)
    sd = math.hypot(float(q.scale), NOISE / len(x) ** 0.5)
    exact = 1 - stats.norm.cdf((float(x.mean()) - float(q.loc)) / sd)
    row = checked(lam, shift=0.3).table.loc["mean"]
    assert abs(row["p_value"] - exact) < 4 * row["mcse"]
    assert row["mcse"] == pytest.approx((exact * (1 - exact) / DRAWS) ** 0.5, rel=0.1)
    assert row["observed"] == pytest.approx(float(x.mean()))
    assert abs(row["expected"] - float(q.loc)) < 4 * sd / DRAWS**0.5
    assert row["sd"] == pytest.approx(sd, rel=0.1)
    assert exact < 0.49


def test_the_p_value_of_the_sd_is_that_of_chi_squared() -> None:
    x = measurements()
    exact = stats.chi2.sf(float(((x - x.mean()) ** 2).sum()) / NOISE**2, len(x) - 1)
    row = checked(0.0).table.loc["sd"]
    assert abs(row["p_value"] - exact) < 4 * row["mcse"]


def test_a_misfit_is_found_where_the_model_does_not_fit_it_away() -> None:
    assert checked(0.0).extreme() == []
    assert checked(0.0, stretch=4.0).extreme() == ["sd", "min", "max"]


def test_ties_count_half() -> None:
    """A sum of Bernoullis: beta-binomial, with mid-p by enumeration."""
    x = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])

    def model(x: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("data", 6):
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("p", dist.Beta(5.0, 3.0))

    idata = to_arviz(model, guide, x, num_samples=1000, groups=["posterior_predictive", "observed_data"], seed=0)
    row = posterior_predictive_check(idata, {"sum": np.sum}).table.loc["sum"]
    law = stats.betabinom(6, 5, 3)
    exact = law.sf(4) + law.pmf(4) / 2
    assert abs(row["p_value"] - exact) < 4 * row["mcse"]
    assert law.pmf(4) / 2 > 5 * row["mcse"]  # so that ties matter


def test_statistics_of_yours_see_the_data_as_they_were_observed() -> None:
    seen: list[tuple[int, ...]] = []

    def largest_row_mean(values: np.ndarray) -> float:
        seen.append(values.shape)
        return float(values.mean(1).max())

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Normal(z, torch.ones(2)).to_event(1), obs=x)
            pyro.sample("k", dist.Poisson(torch.ones(())), obs=torch.arange(3.0))

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(0.0, 0.5))

    groups = ["posterior_predictive", "observed_data"]
    idata = to_arviz(model, guide, torch.zeros(3, 2), num_samples=20, groups=groups, seed=0)
    found = posterior_predictive_check(idata, ["median", largest_row_mean], var_names=["x"])
    assert list(found.table.index) == ["median", "largest_row_mean"]
    assert set(seen) == {(3, 2)}
    both = posterior_predictive_check(idata, ["max"])
    assert set(both.table.index) == {"x: max", "k: max"}
    assert both.replicated.shape == (20, 2)
    assert "k: max" in str(both)
    tree = xr.DataTree.from_dict({name: group(idata, name) for name in idata.groups()})
    pd.testing.assert_frame_equal(posterior_predictive_check(tree, ["max"]).table, both.table)


def test_a_run_is_checked_by_itself() -> None:
    result = normal_normal.pair().fit(steps=2, seed=0, progress=False)
    assert len(posterior_predictive_check(result).replicated) == 1000


def test_bad_statistics_and_draws_are_refused() -> None:
    groups = ["posterior_predictive", "observed_data"]
    idata = to_arviz(shared_model, shared_guide, ROWS, num_samples=4, groups=groups, seed=0)
    for statistics in ("mean", [], 3):
        with pytest.raises(ValueError, match=r"expected some of \['mean', 'sd'"):
            posterior_predictive_check(idata, statistics)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown 'skew'"):
        posterior_predictive_check(idata, ["skew"])
    with pytest.raises(ValueError, match="two have one name"):
        posterior_predictive_check(idata, [lambda x: 0.0, lambda x: 1.0])
    with pytest.raises(TypeError, match="3 is no function"):
        posterior_predictive_check(idata, {"three": 3})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"'sort' is an array of shape \(4,\)"):
        posterior_predictive_check(idata, [np.sort])
    with pytest.raises(ValueError, match="'log' is nan"):
        posterior_predictive_check(idata, {"log": lambda x: math.nan})
    with pytest.raises(ValueError, match=r"var_names=\['y'\]: expected a list of some of \['x'\]"):
        posterior_predictive_check(idata, var_names=["y"])
    with pytest.raises(ValueError, match=r"no \['observed_data', 'posterior_predictive'\]"):
        posterior_predictive_check(to_arviz(shared_model, shared_guide, ROWS, num_samples=4))
    with pytest.raises(TypeError, match="draws is a list"):
        posterior_predictive_check([1.0])  # type: ignore[arg-type]
    group(idata, "observed_data")["x"][0] = math.nan
    with pytest.raises(ValueError, match="x: 1 of 4 values are NaN or infinite"):
        posterior_predictive_check(idata)
    with pytest.raises(ValueError, match=r"level=2: expected a probability"):
        checked(0.0).extreme(2)


def test_the_picture_shows_intervals_around_what_was_observed() -> None:
    checks = {"λ = 0": checked(0.0), "λ = 0.8": checked(0.8)}
    axes = plots.plot_predictive_check(checks)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["mean", "sd", "min", "max"]
    (thin, _), *_ = [line.get_segments()[:2] for line in axes.collections]
    values = checks["λ = 0"].replicated["mean"]
    row = checks["λ = 0"].table.loc["mean"]
    expected = (np.quantile(values, [0.05, 0.95]) - row["observed"]) / row["sd"]
    assert thin[:, 0] == pytest.approx(expected)
    axes = plots.plot_predictive_check(checks["λ = 0"])
    assert axes.get_yticklabels()[0].get_text() == f"mean (p = {row['p_value']:.2f})"
    plt.close("all")
    with pytest.raises(ValueError, match="checks are of other statistics or other data"):
        plots.plot_predictive_check({"a": checks["λ = 0"], "b": checked(0.0, stretch=4.0)})
    with pytest.raises(TypeError, match="checks has a int"):
        plots.plot_predictive_check(3)
