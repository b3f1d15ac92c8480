"""Held-out predictive density and untempered ELBO by row, against closed forms; what is refused."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal
from scipy import stats
from torch import Tensor

from banel_pyro import FitResult, Pair, fit
from banel_pyro.diagnostics import compare_held_out, log_predictive
from banel_pyro.evaluate import held_out_elbo
from banel_pyro.plates import DataPlate
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


def outside(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(1.0))
    with pyro.plate("data", N):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def no_plate(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0).expand([N]).to_event(1), obs=x)


# Held-out rows


def result_of(model: Any, guide: Any, rows: Tensor, held_out: Tensor, *, scaled: bool = True) -> FitResult:
    """A run whose guide is known."""
    config = {"seed": 0, "dtype": None, "default_dtype": "float64", "lam": {}, "objective": ""}
    plate = DataPlate("data", len(rows), scaled=scaled)
    return FitResult(model, guide, config, pd.DataFrame(), plate, (rows,), (held_out,))


def split() -> tuple[Tensor, Tensor]:
    x = measurements()
    return x[:20], x[20:]


def cavendish(x: Tensor) -> None:
    density = pyro.sample("density", dist.Normal(*PRIOR))
    with pyro.plate("data", 20):
        pyro.sample("x", dist.Normal(density, NOISE), obs=x)


def run_at(lam: float) -> FitResult:
    train, held_out = split()
    return result_of(cavendish, tempered_guide(train, lam), train, held_out)


def exact_predictive(lam: float) -> np.ndarray:
    """log Normal(x*; m, sigma^2 + T s^2)."""
    train, held_out = split()
    q = normal_normal.tempered_optimum(train, lam=lam)
    return dist.Normal(q.loc, math.hypot(float(q.scale), NOISE)).log_prob(held_out).numpy()


def exact_elbo(lam: float) -> np.ndarray:
    """E log p(x* | z) - KL(q, p) / N by row."""
    train, held_out = split()
    q = normal_normal.tempered_optimum(train, lam=lam)
    expected = dist.Normal(q.loc, NOISE).log_prob(held_out) - q.scale**2 / (2 * NOISE**2)
    return (expected - torch.distributions.kl_divergence(q, dist.Normal(*PRIOR)) / len(train)).numpy()


@pytest.mark.parametrize("lam", [0.0, 0.6, -1.0])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_the_held_out_density_of_a_normal_guide_is_exact(lam: float, batch_size: int | None) -> None:
    found = log_predictive(run_at(lam), num_samples=500, batch_size=batch_size, seed=1)
    exact = exact_predictive(lam)
    assert (found.kind, len(found.by_draw)) == ("global", 500)
    assert 0 < found.mcse < 0.05
    assert abs(found.log_predictive.value - exact.mean()) < 4 * found.mcse
    scores = (found.per_datum["log_predictive"] - exact) / found.per_datum["mcse"]
    assert np.abs(scores).max() < 4.5
    assert found.log_predictive.stderr == pytest.approx(stats.sem(exact), rel=0.15)
    assert found.per_datum["ess"].between(50, 500).all()


def test_its_monte_carlo_errors_are_those_of_repeats() -> None:
    runs = [log_predictive(run_at(-1.0), num_samples=100, seed=seed) for seed in range(20)]
    scores = [(run.log_predictive.value - exact_predictive(-1.0).mean()) / run.mcse for run in runs]
    assert abs(np.mean(scores)) < 4 / math.sqrt(20)
    assert 0.6 < np.std(scores) < 1.5


def test_differences_between_lambdas_are_exact_and_paired() -> None:
    table = compare_held_out({f"{lam}": run_at(lam) for lam in (0.0, 0.6, -1.0)}, num_samples=500, seed=2)
    for lam in (0.6, -1.0):
        row = table.loc[f"{lam}"]
        for name, exact in (("log_predictive", exact_predictive), ("elbo", exact_elbo)):
            difference = exact(lam) - exact(0.0)
            error = row[f"{name}_difference"] - difference.mean()
            assert abs(error) < 4 * row[f"{name}_difference_mcse"]
            assert abs(row[name] - exact(lam).mean()) < 4 * row[f"{name}_mcse"]
            assert row[f"{name}_difference_stderr"] == pytest.approx(stats.sem(difference), rel=0.2, abs=1e-3)
            assert row[f"{name}_difference_stderr"] < 0.5 * row[f"{name}_stderr"]
        # common random numbers: the noise of both runs mostly cancels
        assert row["elbo_difference_mcse"] < 0.8 * math.hypot(row["elbo_mcse"], table.loc["0.0", "elbo_mcse"])
    assert table.loc["0.0", "elbo"] == pytest.approx(table.loc["0.6", "elbo"] - table.loc["0.6", "elbo_difference"])
    assert math.isnan(table.loc["0.0", "log_predictive_difference"])


def test_the_elbo_of_rows_is_the_one_that_training_reports() -> None:
    run = run_at(0.3)
    table = compare_held_out({"a": run, "b": run}, num_samples=500, seed=3)
    reported = [held_out_elbo(run.model, run.guide, run.held_out, run.plate, num_samples=500) for _ in range(2)]
    assert abs(table.loc["a", "elbo"] - np.mean(reported)) < 4 * 1.3 * table.loc["a", "elbo_mcse"]
    assert table.loc["b", "elbo_difference"] == 0
    assert table.loc["b", "log_predictive_difference_mcse"] == 0


def encoder(temperature: float) -> Callable[[Tensor], None]:
    """The optimum of the local pair."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, math.sqrt(temperature / 2)))

    return guide


def test_with_latents_of_rows_it_is_a_reconstruction_score_that_narrow_guides_win() -> None:
    """Normal(x; x / 2, 1 + T / 2) in closed form, whose mean rises as T falls, while the ELBO falls."""
    train, held_out = torch.linspace(-2, 2, 30), torch.linspace(-1.9, 1.7, 40)
    runs = {f"{t}": result_of(local_model, encoder(t), train, held_out, scaled=False) for t in (1.0, 0.1)}
    table = compare_held_out(runs, num_samples=400, seed=0)
    elbo = {}
    for t in (1.0, 0.1):
        exact = dist.Normal(held_out / 2, math.sqrt(1 + t / 2)).log_prob(held_out)
        row = table.loc[f"{t}"]
        assert abs(row["log_predictive"] - float(exact.mean())) < 4 * row["log_predictive_mcse"]
        q = dist.Normal(held_out / 2, math.sqrt(t / 2))
        gap = torch.distributions.kl_divergence(q, dist.Normal(held_out / 2, math.sqrt(0.5)))
        elbo[t] = dist.Normal(0.0, math.sqrt(2.0)).log_prob(held_out) - gap
        assert abs(row["elbo"] - float(elbo[t].mean())) < 4 * row["elbo_mcse"] + 1e-9
    last = table.loc["0.1"]
    assert last["log_predictive_difference"] > 4 * last["log_predictive_difference_mcse"] > 0
    assert last["elbo_difference"] < -4 * last["elbo_difference_mcse"]
    assert log_predictive(runs["0.1"], num_samples=10).kind == "local"


def test_a_mixed_pair_integrates_over_both_kinds_of_latents() -> None:
    def model(x: Tensor) -> None:
        g = pyro.sample("g", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 5):
            z = pyro.sample("z", dist.Normal(g, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        g = pyro.sample("g", dist.Normal(0.3, 0.8))
        with pyro.plate("data", 5):
            pyro.sample("z", dist.Normal((x + g) / 2, 0.7))

    held_out = torch.tensor([0.5, -1.0, 2.0])
    found = log_predictive(result_of(model, guide, torch.zeros(5), held_out), num_samples=1000, seed=0)
    exact = dist.Normal((held_out + 0.3) / 2, math.sqrt(1 + 0.7**2 + 0.4**2)).log_prob(held_out)
    assert found.kind == "mixed"
    assert abs(found.log_predictive.value - float(exact.mean())) < 4 * found.mcse


def test_a_fitted_run_and_a_pair_in_the_param_store() -> None:
    train, held_out = split()
    pair = Pair(cavendish, normal_normal.guide, data=lambda: train, data_plate="data")
    result = fit(cavendish, normal_normal.guide, train, validation=held_out, steps=5, seed=0, progress=False)
    by_run, by_pair = (
        log_predictive(result, num_samples=50, seed=4),
        log_predictive(pair, held_out, num_samples=50, seed=4),
    )
    pd.testing.assert_frame_equal(by_run.per_datum, by_pair.per_datum)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    log_predictive(result, num_samples=50, seed=4)
    assert torch.equal(torch.get_rng_state(), before)


def test_runs_that_would_read_each_others_parameters_are_refused() -> None:
    """Trained in scopes that have ended: AutoNormal would leave its parameters in the store for the next one."""
    train, held_out = split()
    results, scores = {}, {}
    for lam in (0.0, 0.5):
        with pyro.get_param_store().scope():
            result = fit(
                cavendish, AutoNormal(cavendish), train, lam=lam, validation=held_out, steps=30, seed=0, progress=False
            )
            results[f"{lam}"], scores[f"{lam}"] = result, log_predictive(result, num_samples=50, seed=0)
    with pytest.raises(ValueError, match=r"both read the parameter 'AutoNormal\..*' from the current param store"):
        compare_held_out(results, num_samples=50)
    table = compare_held_out(scores)
    assert abs(table.loc["0.5", "elbo_difference"]) > 0
    scores["0.5"] = log_predictive(results["0.5"], num_samples=51, seed=0)
    with pytest.raises(ValueError, match=r"'0\.0' and '0\.5' have 50 and 51 draws"):
        compare_held_out(scores)


def test_the_elbo_of_a_pair_is_unknown_without_the_size_of_its_training_data() -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    found = log_predictive(Pair(model, shared_guide), ROWS, num_samples=10, seed=0)
    assert math.isnan(found.elbo.value)
    assert math.isfinite(log_predictive(Pair(shared_model, shared_guide), ROWS, num_samples=10, seed=0).elbo.value)


def test_what_cannot_be_compared_is_refused() -> None:
    train, held_out = split()
    one, other = run_at(0.0), run_at(0.3)
    for results in ({"a": one}, [one, other], {}):
        with pytest.raises(ValueError, match="expected at least two runs by label"):
            compare_held_out(results)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"results\['b'\] is a Pair: expected a FitResult, or what"):
        compare_held_out({"a": one, "b": Pair(cavendish, normal_normal.guide)})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="are the rows that the run was trained on"):
        compare_held_out({"a": one, "b": other}, train)
    other.held_out = (held_out + 1,)
    with pytest.raises(ValueError, match="runs 'a' and 'b' have other held-out rows"):
        compare_held_out({"a": one, "b": other})
    other.held_out = ()
    with pytest.raises(ValueError, match="nothing was held out of training"):
        log_predictive(other)
    with pytest.raises(ValueError, match="num_samples=1: expected an integer of at least 2"):
        log_predictive(one, num_samples=1)
    with pytest.raises(TypeError, match="pair is a Tensor: expected a FitResult"):
        log_predictive(held_out)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no plate over the 4 held-out rows"):
        log_predictive(Pair(no_plate, shared_guide), ROWS)
    with pytest.raises(ValueError, match="'y' is observed outside plate 'data'"):
        log_predictive(Pair(outside, shared_guide, data_plate="data"), ROWS)
    with pytest.raises(ValueError, match="is a point mass"):
        log_predictive(Pair(shared_model, AutoDelta(shared_model), data_plate="data"), ROWS)


def test_rows_of_which_the_guide_knows_nothing_are_refused() -> None:
    x = torch.linspace(-1, 1, 6)
    result = fit(local_model, AutoNormal(local_model), x, steps=2, seed=0, progress=False)
    with pytest.raises(ValueError, match=r"the guide has .* for each row of the training data"):
        log_predictive(result, x + 1)
