"""A posterior against a reference: closed forms for normal draws, NUTS on a conjugate pair, posteriordb's draws."""

import json
import logging
import math
import os
import zipfile
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from scipy import stats
from torch import Tensor

from banel_pyro import Pair
from banel_pyro.diagnostics import compare, nuts_reference, posteriordb_draws
from banel_pyro.inference_data import from_datasets, group
from models import eight_schools

pytestmark = pytest.mark.usefixtures("float64")

SCHOOLS = "eight_schools-eight_schools_noncentered"


def drawn(prior: Any = None, **draws: Any) -> Any:
    """Draws (draw, ...) or (chain, draw, ...) by name as an ArviZ object."""
    groups = {"posterior": draws} | ({} if prior is None else {"prior": prior})
    return from_datasets({name: xr.Dataset({v: _array(v, x) for v, x in g.items()}) for name, g in groups.items()}, {})


def _array(name: str, values: Any) -> tuple[tuple[str, ...], Any]:
    values = values if np.ndim(values) > 1 else np.asarray(values)[None]
    return (("chain", "draw", *(f"{name}_axis_{i}" for i in range(values.ndim - 2))), values)


# Closed forms


@pytest.mark.parametrize(("shift", "ratio"), [(0.0, 1.0), (0.0, 0.775), (0.5, 0.8), (-0.3, 1.4)])
def test_normal_draws_against_closed_forms(shift: float, ratio: float) -> None:
    """A guide N(shift, ratio²) of a reference N(0, 1), both times 3 plus 7, under a prior of sd 6: over 12 seeds."""
    tables = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        q, r, p = (7 + 3 * rng.normal(size=(4, 1000)) * s + 3 * m for m, s in ((shift, ratio), (0, 1), (0, 2)))
        tables.append(compare(drawn(mu=q, prior={"mu": p}), drawn(mu=r)).loc["mu"])
    table = pd.DataFrame(tables)
    a = abs(ratio - 1)
    folded = a * math.sqrt(2 / math.pi) * math.exp(-(shift**2) / 2 / a**2) if a else 0.0
    folded += shift * (1 - 2 * stats.norm.cdf(-shift / a)) if a else abs(shift)
    exact = {
        "mean_error": shift,
        "sd_ratio": ratio,
        "z_score": shift / ratio,
        "contraction": 1 - (ratio / 2) ** 2,
        "coverage_50": covered(shift, ratio, 0.50),
        "coverage_80": covered(shift, ratio, 0.80),
        "coverage_95": covered(shift, ratio, 0.95),
    }
    for column, value in exact.items():
        assert abs(table[column].mean() - value) < 4 * stats.sem(table[column]), column
        assert stats.sem(table[column]) < 0.02
    assert table["wasserstein"].mean() == pytest.approx(folded, abs=0.035 if a < 0.1 else 0.02)
    assert table["non_normal"].mean() < 0.03
    for column in ("mean_error", "sd_ratio"):
        assert table[column].std() == pytest.approx(table[f"{column}_stderr"].mean(), rel=0.6)


def covered(shift: float, ratio: float, probability: float) -> float:
    """Probability of a standard normal number inside the central interval of N(shift, ratio²)."""
    half = stats.norm.ppf((1 + probability) / 2) * ratio
    return float(stats.norm.cdf(shift + half) - stats.norm.cdf(shift - half))


def test_lambda_four_tenths_covers_87_per_cent() -> None:
    assert covered(0.0, math.sqrt(0.6), 0.95) == pytest.approx(0.871, abs=5e-4)


def test_errors_of_an_autocorrelated_reference_are_larger() -> None:
    """Chains x' = 0.9 x + noise: 1000 draws are worth 1000 · 0.1 / 1.9."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4, 2000)) * math.sqrt(1 - 0.81)
    chain = np.zeros((4, 2000))
    for i in range(1, 2000):
        chain[:, i] = 0.9 * chain[:, i - 1] + noise[:, i]
    found = compare(drawn(mu=rng.normal(size=20_000)), drawn(mu=chain[:, 1000:])).loc["mu"]
    assert found["mean_error_stderr"] == pytest.approx(math.sqrt(1.9 / 0.1 / 4000), rel=0.25)
    assert abs(found["mean_error"]) < 4 * found["mean_error_stderr"]


def test_a_skewed_reference_is_not_normal() -> None:
    """W₁ of a standardised exponential and the standard normal distribution, by quadrature of their quantiles."""
    rng = np.random.default_rng(0)
    u = (np.arange(100_000) + 0.5) / 100_000
    exact = np.abs(-np.log1p(-u) - 1 - stats.norm.ppf(u)).mean()
    found = compare(drawn(tau=rng.exponential(size=1000)), drawn(tau=rng.exponential(size=20_000) * 5))
    assert found.loc["tau", "non_normal"] == pytest.approx(exact, abs=0.02)
    assert exact > 0.2


def test_point_masses_have_no_width() -> None:
    found = compare(drawn(mu=np.ones(100)), drawn(mu=np.random.default_rng(0).normal(size=100))).loc["mu"]
    assert (found["sd_ratio"], found["coverage_95"], found["z_score"]) == (0, 0, math.inf)
    assert math.isnan(found["contraction"])


# Names and shapes


def test_dims_may_have_other_names_and_elements_keep_their_places() -> None:
    rng = np.random.default_rng(0)
    scale = np.arange(1.0, 7.0).reshape(2, 3)
    ours = drawn(z=rng.normal(size=(1, 3000, 2, 3)) * scale, extra=rng.normal(size=3000))
    theirs = az.from_dict(posterior={"z": rng.normal(size=(4, 1000, 2, 3)) * scale**2}, dims={"z": ["row", "column"]})
    table = compare(ours, theirs)
    assert list(table.index) == [f"z[{i}, {j}]" for i in range(2) for j in range(3)]
    np.testing.assert_allclose(table["sd_ratio"], 1 / scale.ravel(), rtol=0.1)
    assert list(compare(ours, theirs, var_names=["z"]).index) == list(table.index)


@pytest.mark.parametrize(
    ("theirs", "options", "words"),
    [
        ({"nu": 0}, {}, r"\['nu'\] differ.*the draws have mu \(\), z \(3,\), the reference has nu \(\)"),
        ({"z": 2}, {}, r"\['z'\] differ.*z \(3,\), the reference has z \(2,\)"),
        ({"mu": 0, "z": 3}, {"var_names": ["mu", "tau"]}, r"\['tau'\] differ in name or shape"),
        ({"mu": 0}, {"var_names": ["z"]}, r"\['z'\] differ.*the reference has mu \(\)\. Rename"),
        ({"mu": 0}, {"var_names": "mu"}, r"var_names='mu': expected a list of some of \['mu'\]"),
        ({"mu": 0}, {"var_names": []}, r"var_names=\[\]: expected a list of some of \['mu'\]"),
    ],
)
def test_a_reference_of_other_latents_is_refused(theirs: dict[str, int], options: dict[str, Any], words: str) -> None:
    reference = drawn(**{name: np.zeros((1, 9, n)) if n else np.zeros(9) for name, n in theirs.items()})
    with pytest.raises(ValueError, match=words):
        compare(drawn(mu=np.zeros(9), z=np.zeros((1, 9, 3))), reference, **options)


# NUTS

X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)


def model(x: Tensor) -> None:
    g = pyro.sample("g", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Normal(g, 1.0))
        pyro.deterministic("twice", 2 * z, event_dim=0)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    pyro.sample("g", dist.Normal(0.3, 0.8))
    with pyro.plate("data", 3):
        pyro.sample("z", dist.Normal(x / 2, 0.8))


def test_nuts_draws_a_conjugate_posterior(caplog: pytest.LogCaptureFixture) -> None:
    pair = Pair(model, guide, data=lambda: X)
    before = torch.get_rng_state()
    with caplog.at_level(logging.WARNING, "banel_pyro"):
        found = nuts_reference(pair, num_samples=150, warmup_steps=80, num_chains=2, seed=0)
    assert torch.equal(before, torch.get_rng_state())
    draws = group(found, "posterior")
    assert dict(draws["z"].sizes) == {"chain": 2, "draw": 150, "data": 3}
    np.testing.assert_allclose(draws["twice"], 2 * draws["z"])
    assert not np.array_equal(draws["g"][0], draws["g"][1])
    prior = torch.eye(4)
    prior[0, 1:] = prior[1:, 0] = 1.0
    prior[1:, 1:] += 1.0
    gain = prior[:, 1:] @ torch.linalg.inv(prior[1:, 1:] + torch.eye(3))
    mean, sd = gain @ X, (prior - gain @ prior[1:]).diagonal().sqrt()
    rng = np.random.default_rng(0)
    exact = (mean + sd * torch.as_tensor(rng.normal(size=(20_000, 4)))).numpy()
    table = compare(drawn(g=exact[:, 0], z=exact[None, :, 1:]), found, var_names=["g", "z"])
    for column, value in {"mean_error": 0, "sd_ratio": 1}.items():
        assert ((table[column] - value).abs() / table[f"{column}_stderr"]).max() < 4, column
    assert table["mean_error_stderr"].max() < 0.12
    assert found.attrs["sampler"] == "NUTS"
    assert bool(caplog.records) == (found.attrs["max_r_hat"] > 1.01 or found.attrs["divergences"] > 0)


def test_nuts_sums_discrete_latents_out() -> None:
    def mixture(x: Tensor) -> None:
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.3)), infer={"enumerate": "parallel"})
            pyro.deterministic("centre", shift + k)
            pyro.sample("x", dist.Normal(shift + k, 1.0), obs=x)

    found = nuts_reference(
        Pair(mixture, mixture, data=lambda: X), num_samples=20, warmup_steps=20, num_chains=2, seed=0
    )
    assert set(group(found, "posterior").data_vars) == {"shift"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_chains": 1}, "num_chains=1: expected an integer of at least 2"),
        ({"num_samples": 1}, "num_samples=1"),
        ({"target_accept": 1.0}, "target_accept=1.0: expected a probability"),
    ],
)
def test_nuts_refuses_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        nuts_reference(Pair(model, guide, data=lambda: X), **options)


def test_nuts_refuses_a_pair_without_data() -> None:
    with pytest.raises(ValueError, match="has no data"):
        nuts_reference(Pair(model, guide))


# posteriordb


def needs_data() -> None:
    if not os.environ.get("BANEL_DATA"):
        pytest.skip("BANEL_DATA is not set")


def test_the_reference_draws_of_eight_schools() -> None:
    needs_data()
    draws = group(posteriordb_draws(SCHOOLS), "posterior")
    assert {str(n): v.shape for n, v in draws.data_vars.items()} == {
        "theta": (10, 1000, 8), "mu": (10, 1000), "tau": (10, 1000),
    }  # fmt: skip
    assert dict(draws["theta"].sizes)["theta_dim_0"] == 8


def test_the_reference_draws_of_kidiq_are_around_least_squares() -> None:
    """Under flat priors the posterior mean of the coefficients is their least-squares estimate."""
    needs_data()
    raw = json.loads((Path(os.environ["BANEL_DATA"]) / "bayes" / "kidiq.json").read_text())
    columns = np.stack([np.ones(raw["N"]), raw["mom_hs"], raw["mom_iq"]], axis=1)
    exact = np.linalg.lstsq(columns, np.array(raw["kid_score"]), rcond=None)[0]
    beta = group(posteriordb_draws("kidiq-kidscore_momhsiq"), "posterior")["beta"].stack(s=("chain", "draw"))
    assert (np.abs(beta.mean("s") - exact) < 5 * beta.std("s") / math.sqrt(9000)).all()


def test_eight_schools_mean_field_against_the_reference() -> None:
    """The spread shrinks by sqrt(1 - lambda) where the posterior is near normal; narrower intervals cover less."""
    needs_data()
    reference = posteriordb_draws(SCHOOLS)
    tables = {}
    for lam in (0.0, 0.4):
        with pyro.get_param_store().scope():
            result = eight_schools.noncentered().fit(lam=lam, steps=800, lr=0.03, seed=0, progress=False)
            tables[lam] = compare(result.posterior(num_samples=1000), reference)
    plain, narrow = tables[0.0], tables[0.4]
    assert list(plain.index) == [*(f"theta[{i}]" for i in range(8)), "mu", "tau"]
    assert plain["sd_ratio"].between(0.75, 1.4).all()
    assert plain["mean_error"].abs().max() < 0.4
    assert plain.loc["mu", "sd_ratio"] < 1  # it leaves out the correlation with the effects
    assert plain.loc["mu", "non_normal"] < 0.03 < 0.2 < plain.loc["tau", "non_normal"]
    assert narrow.loc["mu", "sd_ratio"] / plain.loc["mu", "sd_ratio"] == pytest.approx(math.sqrt(0.6), abs=0.1)
    assert (narrow["coverage_95"] < plain["coverage_95"]).all()
    assert narrow["coverage_95"].max() < 0.93
    assert plain.loc["mu", "contraction"] == pytest.approx(1 - (3.0 / 5) ** 2, abs=0.1)


def test_without_the_data_one_line_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BANEL_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"need BANEL_DATA, which is not set: put .*\.json\.zip.*") as unset:
        posteriordb_draws(SCHOOLS)
    assert "\n" not in str(unset.value)
    monkeypatch.setenv("BANEL_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"are not in '.*reference_draws', which has \[\]: put"):
        posteriordb_draws(SCHOOLS)
    with pytest.raises(ValueError, match="expected the name of a posterior"):
        posteriordb_draws("../secret")


CHAIN = {"b[1]": [1.0, 2.0], "b[2]": [3.0, 4.0], "c": [5.0, 6.0]}


def written(folder: Path, content: str, inside: str = "made.json") -> Path:
    with zipfile.ZipFile(folder / "made.json.zip", "w") as archive:
        archive.writestr(inside, content)
    return folder


def test_draws_of_ones_own(tmp_path: Path) -> None:
    matrix = {f"m[{i},{j}]": [float(10 * i + j)] * 2 for i in (1, 2) for j in (1, 2, 3)}
    found = group(posteriordb_draws("made", folder=written(tmp_path, json.dumps([CHAIN | matrix] * 3))), "posterior")
    assert found["b"].to_numpy()[1].tolist() == [[1.0, 3.0], [2.0, 4.0]]
    assert found["m"].to_numpy()[2, 0].tolist() == [[11, 12, 13], [21, 22, 23]]


@pytest.mark.parametrize(
    ("content", "inside"),
    [
        ("not json", "made.json"),
        ("[]", "made.json"),
        ("3", "made.json"),
        (json.dumps([CHAIN, {"c": [1.0]}]), "made.json"),
        (json.dumps([{"b[2]": [1.0, 2.0]}]), "made.json"),
        (json.dumps([{"b[1]": [1.0, "x"]}]), "made.json"),
        (json.dumps([{"b[0]": [1.0]}]), "made.json"),
        (json.dumps([CHAIN]), "other.json"),
    ],
)
def test_damaged_draws_are_named(content: str, inside: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"made\.json\.zip' holds no reference draws .*: expected 'made\.json'"):
        posteriordb_draws("made", folder=written(tmp_path, content, inside))


def test_a_file_that_is_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "made.json.zip").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(ValueError, match="holds no reference draws"):
        posteriordb_draws("made", folder=tmp_path)
