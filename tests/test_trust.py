"""Trust: weights and spread of stored draws against the exact ones of normal posteriors, and what each check calls."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoDelta, AutoNormal
from scipy import stats

from banel_pyro import Pair, to_arviz
from banel_pyro.diagnostics import Calibration, importance, trust
from banel_pyro.diagnostics.judge import WIDE, tempered_coverage
from banel_pyro.diagnostics.stored import corrected_spread, discrete_latents, kind_of, stored_weights
from banel_pyro.inference_data import ArviZ, from_datasets, group
from banel_pyro.report import read_comparison, write_report
from banel_pyro.report.page import render

DRAWS = 20_000


def stored(lam: Any, *, draws: int = DRAWS, seed: int = 0, rows: int = 0, shift: float = 0.0) -> ArviZ:
    """Draws of the optimal guide at λ, one or one a row, for a standard normal posterior, or for that of each row."""
    rng, shape = np.random.default_rng(seed), (draws, rows) if rows else (draws,)
    scale = np.sqrt(1 - lam)
    z = shift + scale * rng.standard_normal(shape)
    log_p, log_q = stats.norm.logpdf(z) - 3.0, stats.norm.logpdf(z, shift, scale)
    dims = ("chain", "draw", "data")[: 2 + bool(rows)]
    values = {"log_p": log_p, "log_q": log_q, "log_lik": np.full_like(log_p, -3.0)}
    if rows:
        sums = {name: (dims[:2], value.sum(-1)[None]) for name, value in values.items()}
        values = {f"{name}_datum": value for name, value in values.items()} | {"log_q_z": log_q}
    else:
        sums = {"log_q_z": (dims, log_q[None])}
    sample_stats = xr.Dataset(sums | {name: (dims, value[None]) for name, value in values.items()})
    attrs = {"data_plate": "data" if rows else "", "densities": '{"z": ["z"]}', "point_masses": "[]"}
    return from_datasets({"posterior": xr.Dataset({"z": (dims, z[None])}), "sample_stats": sample_stats}, attrs)


def history(lam: float = 0.0, *, elbo: Any = -4.0, rows: int = 40, **columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"step": np.arange(rows), "lam": lam, "elbo": np.broadcast_to(elbo, rows), **columns})


def verdicts(found: Any) -> dict[str, str]:
    return {check.name: check.verdict for check in found.checks}


@pytest.mark.parametrize("lam", [-1.0, -0.5, 0.1, 0.2, 0.3, 0.4, 0.5])
def test_coverage_follows_the_exact_curve(lam: float) -> None:
    """2 Φ(1.96 √T) − 1 of the posterior is inside 95 % intervals of the guide at λ, and the sds have the ratio √T."""
    table = {}
    for level in (50, 80, 95):
        table[level] = 2 * stats.norm.cdf(stats.norm.ppf(0.5 + level / 200) * math.sqrt(1 - lam)) - 1
    seeds = range(8)
    found = []
    for seed in seeds:
        idata = stored(lam, draws=4000, seed=seed)
        found.append(corrected_spread(idata, stored_weights(idata), largest_k_hat=0.7).loc["z"])
    rows = pd.DataFrame(found)
    for level, exact in table.items():
        column = rows[f"coverage_{level}"]
        # smoothing has a little bias
        assert abs(column.mean() - exact) < 3 * column.std() / math.sqrt(len(seeds)) + 2e-3
    assert rows["ratio"].mean() == pytest.approx(math.sqrt(1 - lam), rel=0.03)
    assert math.isclose(table[95], tempered_coverage(lam))
    if lam < 0.35:  # weights of a heavier tail have no variance, and a standard error that says so late
        assert rows["coverage_95"].std() < 1.5 * rows["coverage_stderr"].mean()


def test_rows_have_weights_of_their_own() -> None:
    idata = stored(0.2, draws=1000, rows=30)
    assert kind_of(idata) == "local"
    weights = stored_weights(idata)
    assert weights.log_w.shape == (1000, 30)
    row = corrected_spread(idata, weights, largest_k_hat=0.7).loc["z"]
    assert row["coverage_95"] == pytest.approx(tempered_coverage(0.2), abs=4 * row["coverage_stderr"] + 2e-3)
    assert row["rows"] == 30
    assert corrected_spread(idata, weights, largest_k_hat=-math.inf).loc["z", "rows"] == 0


@pytest.mark.parametrize("rows", [0, 20])
@pytest.mark.parametrize(
    ("lam", "verdict", "weights", "spread"),
    [
        (0.0, "green", "green", "green"),
        (0.4, "amber", "green", "amber"),  # k̂ passes, and is not what decides
        (0.8, "red", "amber", "amber"),  # not judged
        (-1.0, "amber", "green", "amber"),  # too wide, which k̂ never sees
    ],
)
def test_verdicts_on_a_normal_posterior(lam: float, verdict: str, weights: str, spread: str, rows: int) -> None:
    found = trust(stored(lam, draws=2000, rows=rows), history(lam))
    said = verdicts(found)
    assert (said["importance weights"], said["spread"], found.verdict) == (weights, spread, verdict) or rows
    if rows:  # a standard normal posterior in every row: the data move nothing
        assert (said["importance weights"], said["spread"]) == (weights, spread)
        assert said["latent dimensions"] == ("red" if lam in (0.0, 0.4) else "amber")  # else the KL is not 0
    assert {"training", "gap", "λ"} <= said.keys()


@pytest.mark.parametrize("lam", [0.0, 0.3, -1.0])
def test_gap_is_the_kl_to_the_posterior(lam: float) -> None:
    exact = 0.5 * ((1 - lam) - 1 - math.log(1 - lam))
    gap = {check.name: check for check in trust(stored(lam), history(lam)).checks}["gap"]
    stderr = float(gap.found.split("±")[1].split()[0])
    assert gap.value == pytest.approx(exact, abs=4 * stderr + 0.005)


def test_a_shifted_posterior_is_not_green() -> None:
    assert trust(stored(0.0, shift=1.0, draws=4000), history()).verdict != "green"


def test_training() -> None:
    idata, noise = stored(0.0, draws=1000), 0.01 * np.random.default_rng(0).standard_normal(40)
    rising = np.linspace(-50, -4, 40)
    for elbo, verdict in ((noise, "green"), (noise + np.linspace(0, 4, 40), "amber"), (rising, "red")):
        assert verdicts(trust(idata, history(elbo=elbo)))["training"] == verdict
    past = np.full(40, np.nan)
    past[3::4] = -6.0, -5.0, -4.0, -4.0, -4.0, -5.0, -6.0, -7.0, -8.0, -9.0
    noise = 2 * np.diff(past[3::4]).std() / math.sqrt(3)
    check = trust(idata, history(val_elbo=past)).checks[0]
    assert (check.verdict, check.value) == ("amber", pytest.approx(4.0 - noise))  # of means of three: -4 and -8
    assert "has fallen by" in check.found
    past[3::4] = -4 + 0.5 * np.random.default_rng(1).standard_normal(10)  # noise has a best value too
    assert verdicts(trust(idata, history(val_elbo=past)))["training"] == "green"
    assert (
        verdicts(trust(idata, history(elbo=5.0 * np.random.default_rng(2).standard_normal(40))))["training"] == "amber"
    )
    assert verdicts(trust(idata))["training"] == "amber"
    assert trust(idata, history(rows=5)).checks[0].found == "not judged"


def test_elbo_of_shared_latents_is_counted_in_all() -> None:
    """A rise of 0.1 nats per row is one of 10 nats of the posterior that a hundred rows share."""
    idata = stored(0.0, draws=500)
    elbo = np.repeat([0.0, 0.0, 0.0, 0.1], 10)
    assert verdicts(trust(idata, history(elbo=elbo)))["training"] == "green"
    groups = {name: group(idata, name) for name in ("posterior", "sample_stats")}
    groups["observed_data"] = xr.Dataset({"x": ("data", np.zeros(100))})
    plate = from_datasets(groups, {**idata.attrs, "data_plate": "data"})
    assert trust(plate, history(elbo=elbo)).checks[0].value == pytest.approx(10)


@pytest.mark.parametrize(
    ("columns", "stored_lam", "value"),
    [
        ({"lam": 0.4}, None, 0.4),
        ({"lam": math.nan, "lam[a]": 0.1, "lam[b]": 0.5}, None, 0.5),
        ({"lam": math.nan, "lam[a]": -0.1, "lam[b]": -0.5}, None, -0.5),
        (None, {"class": "Constant", "value": 0.3}, 0.3),
        (None, {"class": "Constant", "value": {"z": 0.2}}, 0.2),
        (None, 0.25, 0.25),
    ],
)
def test_lam_is_found(columns: dict[str, float] | None, stored_lam: Any, value: float) -> None:
    idata = stored(0.0, draws=500)
    if stored_lam is not None:
        idata.attrs["lam"] = json.dumps(stored_lam)
    rows = None if columns is None else history(**columns)
    check = next(check for check in trust(idata, rows).checks if check.name == "λ")
    assert check.value == pytest.approx(tempered_coverage(value))


def test_the_worst_lam_of_several_sites_counts() -> None:
    found = trust(stored(0.0, draws=500), history(**{"lam": math.nan, "lam[z]": 0.05, "lam[w]": -3.0}))
    assert verdicts(found)["λ"] == "amber"


def test_discrete_latents_are_not_judged_by_intervals() -> None:
    """Two values: whatever the guide says of them, 95 % intervals hold both."""

    def target() -> None:
        pyro.sample("z", dist.Bernoulli(0.75))
        pyro.sample("w", dist.Normal(0.0, 1.0))

    def narrow() -> None:
        pyro.sample("z", dist.Bernoulli(0.97))
        pyro.sample("w", dist.Normal(0.0, 1.0))

    idata = to_arviz(target, narrow, num_samples=400, seed=0)
    assert discrete_latents(idata) == ("z",)
    found = trust(idata, history())
    assert verdicts(found)["discrete latents"] == "amber"
    assert corrected_spread(idata, stored_weights(idata), largest_k_hat=math.inf).index.tolist() == ["w"]
    given = importance(target, narrow, num_samples=400, seed=0)
    assert verdicts(trust(idata, history(), importance=given))["discrete latents"] == "amber"
    assert "z" not in trust(idata, history(), importance=given).table().loc["spread", "found"].split()


def test_what_is_computed_from_latents_is_not_judged() -> None:
    def target() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.deterministic("c", torch.tensor(2.0) + 0 * z)

    def guide() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    given = importance(target, guide, num_samples=200, seed=0)
    found = trust(to_arviz(target, guide, num_samples=200, seed=0), history(), importance=given)
    assert found.verdict == "green"


def test_rows_that_are_off_are_not_averaged_away() -> None:
    """Narrow in half of the rows and wide in the others: right on average, and masked rows do not count."""
    mixed = stored(np.repeat([0.7, -0.8], 20), draws=1000, rows=40)
    table = corrected_spread(mixed, stored_weights(mixed), largest_k_hat=2.0)
    assert table.loc["z", "coverage_low"] < tempered_coverage(0.7) + 0.05
    masked = stored(0.0, draws=500, rows=10)
    stats = group(masked, "sample_stats").copy(deep=True)
    for name in ("log_p_datum", "log_q_datum", "log_q_z", "log_lik_datum"):
        stats[name][:, :, 5:] = 0.0
    for name in ("log_p", "log_q", "log_lik"):
        stats[name] = stats[f"{name}_datum"].sum("data")
    some = from_datasets({"posterior": group(masked, "posterior"), "sample_stats": stats}, masked.attrs)
    weights = stored_weights(some)
    assert weights.seen.tolist() == [True] * 5 + [False] * 5
    assert corrected_spread(some, weights, largest_k_hat=0.7).loc["z", "rows"] == 5


def test_lam_unknown_is_not_green() -> None:
    assert verdicts(trust(stored(0.0, draws=500)))["λ"] == "amber"
    assert tempered_coverage(1.5) == 0.0


@pytest.mark.parametrize(
    ("lam", "verdict"), [(0.2, "green"), (0.3, "amber"), (0.6, "red"), (1 - WIDE**2 - 0.1, "amber")]
)
def test_lam_alone(lam: float, verdict: str) -> None:
    assert verdicts(trust(stored(0.0, draws=500), history(lam)))["λ"] == verdict


@pytest.mark.parametrize(("sd", "verdict"), [(1.0, "green"), (1.2, "amber"), (2.0, "red"), (0.7, "amber")])
def test_a_reference_overrules_weights(sd: float, verdict: str) -> None:
    """The reference is wider (or narrower) than a guide that all other checks call green."""
    z = sd * np.random.default_rng(1).standard_normal((4, 1000))
    reference = from_datasets({"posterior": xr.Dataset({"z": (("chain", "draw"), z)})}, {})
    found = trust(stored(0.0, draws=4000), history(), reference=reference)
    assert (verdicts(found)["reference"], found.verdict) == (verdict, verdict)


def model(x: torch.Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 20):
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_mixed_pairs_need_importance() -> None:
    x = torch.linspace(-1, 1, 20)
    guide = AutoNormal(model, init_scale=0.5)
    idata = to_arviz(model, guide, x, num_samples=150, seed=0)
    assert kind_of(idata) == "mixed"
    assert trust(idata).table().loc["importance weights", "found"] == "not judged"
    with pytest.raises(ValueError, match="each shared draw needs several local ones"):
        stored_weights(idata)
    given = trust(idata, importance=importance(model, guide, x, num_samples=120, local_samples=3, seed=0))
    assert given.table().loc["importance weights", "found"] != "not judged"


@pytest.mark.parametrize("lam", [0.0, 0.4])
def test_given_weights_say_what_stored_ones_say(lam: float) -> None:
    def target(x: torch.Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: torch.Tensor) -> None:
        pyro.sample("z", dist.Normal(0.5, math.sqrt((1 - lam) / 2)))

    x = torch.ones(1)
    given = trust(to_arviz(target, guide, x, num_samples=1000, seed=0), importance=importance(target, guide, x, seed=1))
    own = trust(to_arviz(target, guide, x, num_samples=1000, seed=2))
    assert verdicts(given) == verdicts(own)
    value = given.table().loc["spread", "value"]
    assert value == pytest.approx(tempered_coverage(lam), abs=0.04)


def test_points_and_few_draws_and_infinite_weights() -> None:
    def target() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    point = trust(to_arviz(target, AutoDelta(target), num_samples=200, seed=0))
    assert point.table().loc["spread", ["verdict", "found"]].tolist() == ["red", "the posterior of z is a point"]
    few = trust(stored(0.0, draws=50), history())
    assert few.table().loc["importance weights", "meaning"] == "50 draws are too few."
    broken = stored(0.0, draws=500)
    broken["sample_stats"]["log_p"][0, 3] = -math.inf
    assert trust(broken, history()).table().loc["importance weights", "verdict"] == "red"


@pytest.mark.parametrize(("scale", "verdict"), [(1.0, "green"), (0.5, "red")])
def test_calibration_counts(scale: float, verdict: str) -> None:
    said = trust(stored(0.0, draws=1000), history(), calibration=calibration(scale))
    assert verdicts(said)["calibration"] == verdict


def calibration(scale: float) -> Any:
    rng, draws = np.random.default_rng(0), 99
    truth = rng.standard_normal(200)
    ranks = (scale * rng.standard_normal((200, draws)) < truth[:, None]).sum(1)
    return Calibration(xr.Dataset({"z": ("simulation", ranks)}), draws, 0, {}, 1.0)


def test_text_and_json() -> None:
    found = trust(stored(0.4, draws=1000), history(0.4))
    lines = str(found).splitlines()
    assert lines[0] == "can this posterior be trusted? amber"
    assert any(
        line.startswith("amber  λ: λ = 0.4: 95 % intervals of a normal posterior would cover 87 %") for line in lines
    )
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["verdict"] == "amber"
    assert {"name", "verdict", "found", "value", "threshold", "limit", "meaning", "advice"} == data["checks"][0].keys()
    assert all(check.advice for check in found.checks if check.verdict != "green")
    assert not any(check.advice for check in found.checks if check.verdict == "green")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trust") / "run"
    pair = Pair(normal_model, AutoNormal(normal_model), data=lambda: torch.linspace(0, 2, 10), name="normal")
    with pyro.get_param_store().scope():
        pair.fit(lam=0.4, steps=400, lr=0.03, seed=0, out=out, posterior_samples=400, progress=False, capture=False)
    return out


def normal_model(x: torch.Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("data", 10):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def test_the_page_answers(run: Path) -> None:
    page = render(read_comparison(run))
    assert '<h2 id="trust">Can I trust this posterior?</h2>' in page
    assert '<span class="badge amber">amber</span>' in page
    assert "k̂ ≤ 0.6" in page
    assert "<strong>Try:</strong>" in page
    data = json.loads(page.split('id="numbers">')[1].split("</script>")[0])
    assert data["trust"]["λ = 0.4"]["verdict"] == "amber"


def test_rollbacks_are_on_the_page(run: Path) -> None:
    comparison = read_comparison(run)
    (first,) = comparison.runs
    assert "after which the learning rate" not in render(comparison)
    rolled = replace(first, history=first.history.assign(rollbacks=[0.0] * (len(first.history) - 1) + [2.0]))
    assert "2, after which the learning rate and λ were smaller" in render(replace(comparison, runs=(rolled,)))


def test_a_reference_on_the_page(run: Path) -> None:
    """Coverage of the exact posterior by the guide's quantiles, from a reference of independent draws."""
    mean, sd = 10 / 10.01, 10.01**-0.5
    z = mean + sd * np.random.default_rng(0).standard_normal((2, 4000))
    reference = from_datasets({"posterior": xr.Dataset({"mean": (("chain", "draw"), z)})}, {})
    comparison = write_report(run, reference=reference)
    low, high = np.quantile(group(comparison.runs[0].idata, "posterior")["mean"], [0.025, 0.975])
    exact = stats.norm.cdf(high, mean, sd) - stats.norm.cdf(low, mean, sd)
    check = {check.name: check for check in comparison.runs[0].trust.checks}["reference"]
    assert check.value == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 8000))
    assert check.verdict != "green"
    assert "of the reference" in (run / "report.html").read_text()


def test_a_reference_with_other_latents_lists_both(run: Path) -> None:
    reference = from_datasets({"posterior": xr.Dataset({"mu": (("chain", "draw"), np.zeros((1, 10)))})}, {})
    with pytest.raises(ValueError, match=r"the draws have mean \(\), the reference has mu \(\)"):
        write_report(run, reference=reference)
