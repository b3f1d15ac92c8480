"""Importance checks: the exact evidence of conjugate pairs, k-hat of tempered guides, corrected draws, refusals."""

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, init_to_value
from scipy import stats
from torch import Tensor

from banel_pyro.diagnostics import Importance, compare, importance, k_hat_threshold
from banel_pyro.diagnostics.psis import resampled, smooth
from banel_pyro.inference_data import group
from models import normal_normal

pytestmark = pytest.mark.usefixtures("float64")

X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
N = len(X)


# Conjugate pairs, with guides that are a little off


def global_model(x: Tensor) -> None:
    g = pyro.sample("g", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N):
        pyro.sample("x", dist.Normal(g, 1.0), obs=x)


def global_guide(x: Tensor) -> None:
    pyro.sample("g", dist.Normal(0.3, 0.6))


def local_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.deterministic("twice", 2 * z, event_dim=0)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def local_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2 + 0.1, 0.8))


def mixed_model(x: Tensor) -> None:
    g = pyro.sample("g", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N):
        z = pyro.sample("z", dist.Normal(g, 1.0))
        pyro.deterministic("twice", 2 * z, event_dim=0)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    pyro.deterministic("sum", z.sum())


def mixed_guide(x: Tensor) -> None:
    g = pyro.sample("g", dist.Normal(0.3, 0.8))
    with pyro.plate("data", N):
        pyro.sample("z", dist.Normal((x + g) / 2, 0.8))


def normal_evidence(x: Tensor, noise: float, shared: float) -> float:
    """log p(x) of normal x with variance `noise` each, and covariance `shared` between all."""
    cov = noise * torch.eye(len(x)) + shared * torch.ones(len(x), len(x))
    return float(dist.MultivariateNormal(torch.zeros(len(x)), cov).log_prob(x))


PAIRS: dict[str, tuple[Callable[..., Any], Callable[..., Any], float, float, dict[str, Any]]] = {
    "global": (global_model, global_guide, 1.0, 1.0, {"num_samples": 600}),
    "local": (local_model, local_guide, 2.0, 0.0, {"num_samples": 600}),
    "mixed": (mixed_model, mixed_guide, 2.0, 1.0, {"num_samples": 300, "local_samples": 4}),
}


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("kind", PAIRS)
def test_the_evidence_is_exact_within_its_error(kind: str, batch_size: int | None) -> None:
    model, guide, noise, shared, options = PAIRS[kind]
    found = importance(model, guide, X, batch_size=batch_size, seed=1, **options)
    exact = normal_evidence(X, noise, shared)
    assert found.kind == kind
    assert 0 < found.log_evidence.stderr < 0.05
    assert abs(found.log_evidence.value - exact) < 4 * found.log_evidence.stderr
    assert found.elbo.value < exact - 2 * found.elbo.stderr
    assert found.gap.value == pytest.approx(found.log_evidence.value - found.elbo.value)
    assert found.gap.value > 4 * found.gap.stderr
    assert found.passes


@pytest.mark.parametrize("kind", PAIRS)
def test_the_elbo_and_the_gap_are_those_of_the_closed_form(kind: str) -> None:
    """The gap is KL(q, posterior): that of the shared normals, and on average that of the rows' given them."""
    model, guide, noise, shared, options = PAIRS[kind]
    found = importance(model, guide, X, seed=2, draws=False, **options)
    row = dist.Normal(0.0, math.sqrt(0.5))
    if kind == "local":
        exact = sum(kl(dist.Normal(float(x) / 2 + 0.1, 0.8), dist.Normal(float(x) / 2, math.sqrt(0.5))) for x in X)
    else:
        precision = 1 + N / noise
        posterior = dist.Normal(float(X.sum()) / noise / precision, precision**-0.5)
        exact = kl(dist.Normal(0.3, 0.6 if kind == "global" else 0.8), posterior)
        exact += N * kl(dist.Normal(0.0, 0.8), row) if kind == "mixed" else 0.0
    evidence = normal_evidence(X, noise, shared)
    assert abs(found.elbo.value - (evidence - exact)) < 4 * found.elbo.stderr
    assert abs(found.gap.value - exact) < 4 * found.gap.stderr
    assert (found.corrected, found.sds) == (None, None)


def kl(q: dist.Normal, p: dist.Normal) -> float:
    return float(torch.distributions.kl_divergence(q, p))


@pytest.mark.parametrize("kind", ["global", "mixed"])
def test_standard_errors_are_those_of_repeats(kind: str) -> None:
    model, guide, noise, shared, _ = PAIRS[kind]
    runs = [importance(model, guide, X, num_samples=100, local_samples=2, draws=False, seed=seed) for seed in range(12)]
    exact = normal_evidence(X, noise, shared)
    scores = [(run.log_evidence.value - exact) / run.log_evidence.stderr for run in runs]
    assert abs(np.mean(scores)) < 4 / math.sqrt(12)
    assert 0.6 < np.std(scores) < 1.5
    gaps = [run.gap.value for run in runs]
    assert np.std(gaps) == pytest.approx(np.mean([run.gap.stderr for run in runs]), rel=0.5)


def test_local_draws_are_averaged_before_the_logarithm() -> None:
    """A guide that is far too wide for the rows: the mean of their log weights would lie far below."""

    def wide(x: Tensor) -> None:
        g = pyro.sample("g", dist.Normal(0.3, 0.7))
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal((x + g) / 2, 1.2))

    found = importance(mixed_model, wide, X, num_samples=300, local_samples=4, draws=False, seed=0)
    exact = normal_evidence(X, 2.0, 1.0)
    assert abs(found.log_evidence.value - exact) < 4 * found.log_evidence.stderr
    assert exact - found.elbo.value > 12 * found.log_evidence.stderr


def test_every_row_of_a_local_pair_has_its_own_weight() -> None:
    """200 independent rows: their common weight would be that of one draw, each of theirs is that of nearly all."""
    x = torch.linspace(-2, 2, 200)
    found = importance(local_model, local_guide, x, num_samples=300, seed=0)
    exact = dist.Normal(0.0, math.sqrt(2.0)).log_prob(x).numpy()
    table = found.per_datum
    assert table.shape == (200, 8)
    scores = (table["log_evidence"] - exact) / table["stderr"]
    assert abs(scores.mean()) < 0.5
    assert 0.8 < scores.std() < 1.2
    assert abs(found.log_evidence.value - exact.sum()) < 4 * found.log_evidence.stderr
    assert found.log_evidence.stderr == pytest.approx(math.hypot(*table["stderr"]))
    assert found.ess > 150
    product = smooth(np.random.default_rng(0).normal(0, 0.3 * 200**0.5, 300))  # what a common weight comes to
    assert product.ess < 50


# k-hat and the spread


def tempered_log_weights(lam: float, draws: int, columns: int, seed: int = 0) -> np.ndarray:
    """Standard normal over N(0, 1 - lam), at draws of the latter."""
    variance = 1 - lam
    z = np.random.default_rng(seed).normal(0, math.sqrt(variance), (draws, columns))
    return -(z**2) / 2 + z**2 / (2 * variance)


@pytest.mark.parametrize("lam", [0.1, 0.2, 0.3, 0.4, 0.5])
def test_k_hat_of_a_tempered_normal_is_lambda(lam: float) -> None:
    """w = exp(z² λ / 2T), z² / T chi-squared: P(w > t) falls as t^(-1/λ), so the tail has shape λ."""
    found = smooth(tempered_log_weights(lam, 10_000, 20)).k_hat
    error = float(stats.sem(found))
    assert abs(found.mean() - lam) < 0.05 + 2 * error
    assert error < 0.025


@pytest.mark.parametrize("lam", [-0.2, -1.0, -4.0])
def test_k_hat_of_a_wide_normal_passes(lam: float) -> None:
    found = smooth(tempered_log_weights(lam, 1000, 20)).k_hat
    assert found.max() < 0
    assert k_hat_threshold(1000) > 0.6


def tempered(lam: float) -> tuple[Any, Tensor, Any, Any]:
    """The Normal-Normal pair with the optimum at a lambda as its guide, its data and its exact posterior."""
    x = normal_normal.pair().data()
    best = normal_normal.tempered_optimum(x, lam=lam)

    def guide(x: Tensor) -> None:
        pyro.sample("density", dist.Normal(best.loc, best.scale))

    return normal_normal.model, x, guide, normal_normal.posterior(x)


def test_a_guide_that_covers_too_little_passes_and_its_corrected_draws_do_not() -> None:
    """At lambda = 0.4 k-hat passes, 95 % intervals cover 87 %; what is corrected has the exact sd."""
    model, x, guide, posterior = tempered(0.4)
    found = importance(model, guide, x, num_samples=2000, seed=0)
    assert found.passes
    assert 0.2 < found.k_hat < 0.6
    row = found.sds.loc["density"]
    assert row["ratio"] == pytest.approx(math.sqrt(0.6), rel=0.06)
    assert row["psis_sd"] == pytest.approx(float(posterior.scale), rel=0.06)
    assert abs(row["shift"]) < 0.15
    half = stats.norm.ppf(0.975) * row["sd"] / float(posterior.scale)
    assert 2 * stats.norm.cdf(half) - 1 == pytest.approx(0.871, abs=0.02)
    draws = group(found.corrected, "posterior")["density"].to_numpy()
    assert draws.shape == (1, 2000)
    assert draws.std() == pytest.approx(float(posterior.scale), rel=0.08)
    assert abs(found.log_evidence.value - float(normal_normal.log_evidence(x))) < 4 * found.log_evidence.stderr


def test_a_guide_that_is_far_too_narrow_does_not_pass() -> None:
    model, x, guide, _ = tempered(0.9)
    assert not importance(model, guide, x, num_samples=1000, seed=0).passes


def test_the_exact_posterior_has_equal_weights() -> None:
    model, x, guide, _ = tempered(0.0)
    found = importance(model, guide, x, num_samples=100, seed=0)
    assert found.k_hat == -math.inf
    assert found.ess == pytest.approx(100)
    assert found.log_evidence.value == pytest.approx(float(normal_normal.log_evidence(x)), rel=1e-10)
    assert found.sds["ratio"].item() == pytest.approx(1.0)


def test_thresholds() -> None:
    assert k_hat_threshold(1000) == pytest.approx(2 / 3)
    assert k_hat_threshold(2154) < 0.7 == k_hat_threshold(2155)
    with pytest.raises(ValueError, match=r"99 draws are too few for k-hat.*at least 100"):
        k_hat_threshold(99)


# Corrected draws


@pytest.mark.parametrize("kind", ["local", "mixed"])
def test_corrected_draws_of_rows_have_the_exact_moments(kind: str) -> None:
    model, guide, _, shared, _ = PAIRS[kind]
    found = importance(model, guide, X, num_samples=500, local_samples=10, seed=3)
    draws = group(found.corrected, "posterior")
    prior = torch.eye(N) + shared * torch.ones(N, N)
    gain = prior @ torch.linalg.inv(prior + torch.eye(N))
    mean, cov = (gain @ X).numpy(), (prior - gain @ prior).numpy()
    assert dict(draws["z"].sizes) == {"chain": 1, "draw": 500, "data": N}
    for i in range(N):
        sd = math.sqrt(cov[i, i])
        assert found.sds.loc[f"z[{i}]", "psis_sd"] == pytest.approx(sd, rel=0.11)
        assert draws["z"].to_numpy()[0, :, i].mean() == pytest.approx(mean[i], abs=5 * sd / math.sqrt(300))
    np.testing.assert_allclose(draws["twice"], 2 * draws["z"])
    correlation = np.corrcoef(draws["z"].to_numpy()[0].T)[0, 1]
    assert correlation == pytest.approx(cov[0, 1] / cov[0, 0], abs=4 / math.sqrt(400))
    assert set(draws.data_vars) == ({"z", "twice"} if kind == "local" else {"g", "z", "twice"})
    if kind == "mixed":
        assert found.sds.loc["g", "psis_sd"] == pytest.approx((1 + N / 2) ** -0.5, rel=0.11)
        assert list(found.per_datum) == ["k_hat", "ess"]


def test_draws_are_resampled_in_proportion_to_their_weights() -> None:
    weights = np.array([[0.5, 0.1], [0.25, 0.2], [0.25, 0.3], [0.0, 0.4]] * 25) / 25
    with np.errstate(divide="ignore"):
        chosen = resampled(np.log(weights))
    for column in range(2):
        counts = np.bincount(chosen[:, column], minlength=100)
        assert np.abs(counts - 100 * weights[:, column]).max() < 1
    assert not (np.diff(chosen[:, 0]) >= 0).all()


# What the rest of the package handles


def test_a_discrete_site_that_is_summed_out() -> None:
    """A mixture with an unknown shift: log p(x) by quadrature."""

    def model(x: Tensor) -> None:
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.3)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(shift + 2 * k, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("shift", dist.Normal(0.0, 0.9))

    side = torch.linspace(-8, 8, 2001)[:, None]
    normals = [math.log(w) + dist.Normal(side + 2 * k, 1.0).log_prob(X) for k, w in enumerate((0.7, 0.3))]
    log_p = torch.logaddexp(*normals).sum(1) + dist.Normal(0.0, 1.0).log_prob(side[:, 0])
    exact = float(log_p.logsumexp(0)) + math.log(16 / 2000)
    found = importance(model, guide, X, num_samples=300, seed=0)
    assert abs(found.log_evidence.value - exact) < 4 * found.log_evidence.stderr
    assert found.log_evidence.stderr < 0.05
    assert list(found.sds.index) == ["shift"]


def test_masked_rows_do_not_count_and_scales_neither() -> None:
    seen = torch.tensor([True, False, True])
    model = poutine.scale(poutine.mask(local_model, mask=seen), scale=3.0)
    guide = poutine.mask(local_guide, mask=seen)
    found = importance(model, guide, X, num_samples=300, seed=0)
    exact = dist.Normal(0.0, math.sqrt(2.0)).log_prob(X).numpy() * seen.numpy()
    assert found.per_datum.loc[1, "log_evidence"] == pytest.approx(0, abs=1e-12)
    assert found.per_datum.loc[1, "k_hat"] == -math.inf
    assert abs(found.log_evidence.value - exact.sum()) < 4 * found.log_evidence.stderr


def test_a_joint_density_over_rows_has_one_weight() -> None:
    g = torch.tensor(float(X.sum()) / 2 / (1 + N / 2))
    centre = init_to_value(values={"g": g, "z": (X + g) / 2})
    guide = AutoMultivariateNormal(mixed_model, init_loc_fn=centre, init_scale=0.75)
    found = importance(mixed_model, guide, X, num_samples=600, seed=0)
    assert found.kind == "global"
    assert abs(found.log_evidence.value - normal_evidence(X, 2.0, 1.0)) < 4 * found.log_evidence.stderr
    assert found.per_datum.empty
    assert {"g", "z[0]", "sum"} <= set(found.sds.index)
    with pytest.raises(
        ValueError, match=r"fails on 2 of 3 rows \(.*\)\. A guide that draws rows jointly.*leave batch_size out"
    ):
        importance(mixed_model, guide, X, batch_size=2)


def test_a_seed_gives_the_same_numbers_and_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    one, two = (importance(mixed_model, mixed_guide, X, num_samples=100, local_samples=2, seed=5) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert one.log_evidence == two.log_evidence
    assert group(one.corrected, "posterior").equals(group(two.corrected, "posterior"))


def test_the_line_of_arviz_without_its_old_package(monkeypatch: pytest.MonkeyPatch) -> None:
    old = importance(global_model, global_guide, X, num_samples=100, seed=0)
    monkeypatch.setitem(sys.modules, "arviz", None)
    new = importance(global_model, global_guide, X, num_samples=100, seed=0)
    assert isinstance(new.corrected, xr.DataTree)
    assert group(new.corrected, "posterior").equals(group(old.corrected, "posterior"))
    assert compare(new.corrected, old.corrected)["sd_ratio"].to_dict() == {"g": 1.0}


# What has no weights


def auxiliary(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
    pyro.sample("g", dist.Normal(a, 1.0))


def depends_on_rows(x: Tensor) -> None:
    pyro.sample("g", dist.Normal(x.mean(), 1.0))


def mixes_rows(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    pyro.factor("all", -(z.sum() ** 2))


def loops(x: Tensor) -> None:
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))


def subsamples(x: Tensor) -> None:
    pyro.sample("g", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)), pyro.plate("others", 10, subsample_size=4):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(4, len(x)))


def two_plates(x: Tensor) -> None:
    for name in ("one", "two"):
        with pyro.plate(name, len(x)):
            pyro.sample(f"z_{name}", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("model", "guide", "options", "words"),
    [
        (global_model, global_guide, {"num_samples": 50}, "50 draws are too few for k-hat.*at least 100"),
        (mixed_model, mixed_guide, {"local_samples": 1}, "local_samples=1"),
        (global_model, AutoDelta(global_model), {}, "'g' is a point mass"),
        (global_model, auxiliary, {}, "'a' is auxiliary"),
        (global_model, depends_on_rows, {"batch_size": 2}, "outside plate 'data' is .* for some rows and"),
        (mixes_rows, local_guide, {}, "outside plate 'data' is .* for some rows and"),
        (loops, loops, {}, "plate 'data', which is a loop over rows"),
        (subsamples, global_guide, {"data_plate": "data"}, r"'others', which is subsampled \(4 of 10\)"),
        (two_plates, two_plates, {}, "plate 'one' of 3 elements.*data_plate='one'"),
    ],
)
def test_what_has_no_weights_is_refused(model: Any, guide: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        importance(model, guide, X, **{"num_samples": 100} | options)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused(bad: float) -> None:
    log_w = np.zeros((100, 2))
    log_w[3, 1] = bad
    with pytest.raises(ValueError, match="1 are NaN or infinite"):
        smooth(log_w)
    with pytest.raises(ValueError, match="1 columns have no weight above zero"):
        smooth(np.stack([np.zeros(100), np.full(100, -math.inf)], axis=1))


def test_ties_in_the_tail() -> None:
    """Nothing to correct where the largest weights are all equal; no tail to fit where a part of it is."""
    equal, partly = np.zeros(100), np.zeros(100)
    equal[:60] = -3.0
    partly[:95] = -3.0
    found = smooth(np.stack([equal, partly], axis=1))
    assert found.k_hat.tolist() == [-math.inf, math.inf]
    assert np.exp(found.log_weights).sum(0) == pytest.approx(np.ones(2))


def test_a_guide_that_misses_its_posterior_has_no_tail() -> None:
    """All weights but the largest are 0 in double precision: a fit to them would say that all is well."""
    found = smooth(-1000.0 * np.arange(200.0))
    assert found.k_hat == math.inf
    assert found.ess == pytest.approx(1)


def test_a_record_says_what_it_is() -> None:
    found = importance(global_model, global_guide, X, num_samples=100, seed=0)
    assert isinstance(found, Importance)
    assert f"k_hat={found.k_hat}" in repr(found)
