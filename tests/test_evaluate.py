"""What runs are judged by: ELBO and IWAE against the exact evidence, in standard errors."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from banel_pyro import Estimate, to_arviz
from banel_pyro.evaluate import (
    elbo,
    elbo_per_datum,
    held_out_elbo,
    iwae,
    iwae_per_datum,
    mean_estimate,
    paired_difference,
)
from banel_pyro.plates import DataPlate
from models import beta_bernoulli, normal_normal

pytestmark = pytest.mark.usefixtures("float64")


def log_weights(draws: int, seed: int = 0) -> np.ndarray:
    """Of the untrained guide of the Beta-Bernoulli pair, its prior: log w is the log likelihood."""
    pair = beta_bernoulli.pair()
    idata = to_arviz(pair.model, pair.guide, pair.data(), num_samples=draws, groups=(), seed=seed)
    return (idata["sample_stats"]["log_p"] - idata["sample_stats"]["log_q"]).to_numpy()[0]


def test_the_elbo_of_draws_is_the_exact_elbo() -> None:
    x = beta_bernoulli.pair().data()
    exact = float(beta_bernoulli.elbo(x, q=torch.distributions.Beta(torch.tensor(1.0), torch.tensor(3.0))))
    found = elbo(log_weights(1500))
    assert abs(found.value - exact) < 5 * found.stderr
    assert 0 < found.stderr < 1


def test_iwae_reaches_the_exact_evidence_within_its_error() -> None:
    x = beta_bernoulli.pair().data()
    exact = float(beta_bernoulli.log_evidence(x))
    found = iwae(log_weights(1500))
    assert abs(found.value - exact) < 5 * found.stderr
    assert found.value > elbo(log_weights(1500)).value + 1
    runs = [iwae(log_weights(100, seed=seed)) for seed in range(30)]
    assert np.std([run.value for run in runs]) == pytest.approx(np.mean([run.stderr for run in runs]), rel=0.4)


def test_bounds_are_exact_for_the_exact_posterior() -> None:
    """Every weight is the evidence: no error at all."""
    pair = normal_normal.pair()
    x = pair.data()
    posterior = normal_normal.posterior(x)

    def exact_guide(x: torch.Tensor) -> None:
        import pyro

        pyro.sample("density", pyro.distributions.Normal(posterior.loc, posterior.scale))

    idata = to_arviz(pair.model, exact_guide, x, num_samples=50)
    log_w = (idata["sample_stats"]["log_p"] - idata["sample_stats"]["log_q"]).to_numpy()[0]
    for found in (elbo(log_w), iwae(log_w)):
        assert found.value == pytest.approx(float(normal_normal.log_evidence(x)), rel=1e-10)
        assert found.stderr < 1e-9


def test_per_datum_bounds() -> None:
    log_w = np.log(np.array([[0.5, 2.0], [1.5, 2.0]]))
    np.testing.assert_allclose(elbo_per_datum(log_w), [math.log(0.75) / 2, math.log(2.0)])
    np.testing.assert_allclose(iwae_per_datum(log_w), [0.0, math.log(2.0)], atol=1e-15)


def test_iwae_of_extreme_weights() -> None:
    log_w = np.array([[-2000.0, 3000.0, -np.inf], [-2001.0, -3000.0, -np.inf]])
    expected = [-2000 + math.log((1 + math.exp(-1)) / 2), 3000 - math.log(2), -np.inf]
    np.testing.assert_allclose(iwae_per_datum(log_w), expected)


def test_mean_estimate_is_the_mean_and_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 10_000)
    found = mean_estimate(values)
    assert found.value == pytest.approx(values.mean())
    assert found.stderr == pytest.approx(stats.sem(values))
    assert math.isnan(mean_estimate(np.array([1.0])).stderr)


def test_paired_differences_are_of_the_same_data() -> None:
    rng = np.random.default_rng(0)
    shared, gap = rng.normal(0.0, 10.0, 500), rng.normal(0.3, 0.1, 500)
    found = paired_difference(shared + gap, shared)
    assert abs(found.value - 0.3) < 5 * found.stderr
    assert found.stderr == pytest.approx(0.1 / 500**0.5, rel=0.1)
    with pytest.raises(ValueError, match=r"shapes \(3,\) and \(2,\).*same rows"):
        paired_difference(np.zeros(3), np.zeros(2))


@pytest.mark.parametrize("batch", [29, 5])
def test_the_held_out_elbo_of_global_latents(batch: int) -> None:
    """Each held-out row counts once, the global terms 1/N of a row: against the exact expectation."""
    pair = normal_normal.pair()
    x = pair.data()
    plate = DataPlate("data", len(x), scaled=True)
    torch.manual_seed(0)
    found = [held_out_elbo(pair.model, pair.guide, (x[:batch],), plate) for _ in range(400)]
    idata = to_arviz(pair.model, pair.guide, x, num_samples=400, seed=0, groups=("log_likelihood",))
    log_lik = idata["log_likelihood"]["x"].to_numpy()[0][:, :batch].mean(1)
    kl = (idata["sample_stats"]["log_q"] - idata["sample_stats"]["log_p"]).to_numpy()[0]
    kl = (kl + idata["sample_stats"]["log_lik"].to_numpy()[0]) / len(x)
    values = log_lik - kl
    error = math.hypot(float(stats.sem(values)), float(stats.sem(found)))
    assert abs(np.mean(found) - values.mean()) < 5 * error


def test_an_estimate_prints_with_its_error() -> None:
    assert str(Estimate(1.0, 0.25)) == "1.000 ± 0.250"
