"""Calibration by simulation on conjugate pairs: laws of the ranks, and that nothing but the seed decides them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoNormal
from scipy import stats
from torch import Tensor, nn

from banel_pyro import Pair
from banel_pyro.diagnostics.calibration import Calibration, calibrate
from banel_pyro.diagnostics.ranks import ecdf_band, symmetry, tempered_ranks, uniformity
from banel_pyro.training.faults import NonFiniteError
from tests import calibration_pairs as pairs

pytestmark = pytest.mark.usefixtures("float64")

M, L = 250, 19
QUIET: dict[str, Any] = {"seed": 0, "progress": False}


@pytest.fixture(scope="module")
def calibrations() -> dict[str, Calibration]:
    """Guides at their optimum for λ = 0 and 0.5, and one at λ = 0 that lies half a standard deviation too high."""
    fits = {"0": pairs.Exact(), "0.5": pairs.Exact(0.5), "shifted": pairs.Exact(shift=0.25)}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return {
            name: calibrate(pairs.by_hand(), num_simulations=M, num_draws=L, fit=fit, **QUIET)
            for name, fit in fits.items()
        }
    finally:
        torch.set_default_dtype(before)


# ---- the laws ------------------------------------------------------------------------------------


def test_the_posterior_itself_passes_both(calibrations: dict[str, Calibration]) -> None:
    found = calibrations["0"]
    assert found.passes("spread")
    assert found.passes("centre")
    row = found.table().loc["z"]
    assert row["in_band"]
    assert abs(row["width"] - 1) < 3 * row["width_stderr"]
    assert abs(row["centre"]) < 3 * row["centre_stderr"]
    assert found.tempered(0.5)["z"] < 0.01  # and its ranks are not those of λ = 0.5


def test_half_the_variance_passes_vsbc_and_has_the_ranks_of_its_law(calibrations: dict[str, Calibration]) -> None:
    """u = Φ(Z / sqrt(T)), T = 1/2: symmetric, and U-shaped; the law of the next λ on either side is another one."""
    found = calibrations["0.5"]
    assert found.passes("centre")
    assert not found.passes("spread")
    row = found.table().loc["z"]
    assert row["uniform_p"] < 1e-4
    assert not row["in_band"]
    assert found.tempered(0.5)["z"] > 0.01
    assert found.tempered(0.0)["z"] == pytest.approx(row["uniform_p"])
    assert found.tempered(0.9)["z"] < 1e-4
    assert found.tempered(-1.0)["z"] < 1e-4
    assert abs(row["width"] - 6 / math.pi * math.asin(1 / 1.5)) < 3 * row["width_stderr"]
    assert row["sd_ratio"] == pytest.approx(math.sqrt(0.5), abs=0.1)


def test_a_shifted_centre_fails_vsbc(calibrations: dict[str, Calibration]) -> None:
    found = calibrations["shifted"]
    assert not found.passes("centre")
    assert found.table().loc["z", "centre"] < 0  # the guide lies too high


def test_coverage_is_that_of_a_tempered_normal(calibrations: dict[str, Calibration]) -> None:
    """A central interval of probability c reaches to z_c sqrt(T) posterior sds: 2Φ(z_c sqrt(T)) − 1.

    L draws know quantiles to 1/(L + 1): exactly, it is the law of ranks with each spread over its cell.
    """
    for name, lam in (("0", 0.0), ("0.5", 0.5)):
        row = calibrations[name].coverage((0.5, 0.8, 0.95)).loc["z"]
        cells = np.repeat(tempered_ranks(L, lam) / 100, 100)
        u = (np.arange(len(cells)) + 0.5) / len(cells)
        for prob, coarse in ((0.5, 0.01), (0.8, 0.03), (0.95, 0.06)):
            exact = cells[np.abs(u - 0.5) < prob / 2].sum()
            assert abs(row[f"{prob}"] - exact) < 3 * row[f"{prob}_stderr"]
            curve = 2 * stats.norm.cdf(stats.norm.ppf(0.5 + prob / 2) * (1 - lam) ** 0.5) - 1
            assert exact == pytest.approx(curve, abs=coarse)


def test_guides_that_were_really_trained_follow_the_law() -> None:
    """SVI at λ = 0.9, an AutoNormal made afresh for each data set, with a learning rate that falls to 0.002."""
    found = calibrate(
        pairs.automatic, num_simulations=30, num_draws=L, lam=0.9, steps=120, log_every=60, lr=0.1,
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.968), **QUIET,
    )  # fmt: skip
    assert found.passes("centre")
    assert not found.passes("spread")
    assert found.tempered(0.9)["z"] > 0.01


# ---- the tests by themselves ---------------------------------------------------------------------


def test_ranks_of_a_tempered_normal_against_quadrature_and_draws() -> None:
    for lam in (-1.0, 0.0, 0.5, 0.99):
        law = tempered_ranks(L, lam)
        assert law.sum() == pytest.approx(1, abs=1e-9)
        assert law == pytest.approx(law[::-1], abs=1e-12)
    assert tempered_ranks(L, 0.0) == pytest.approx(np.full(L + 1, 1 / (L + 1)), abs=1e-9)
    z = np.random.default_rng(0).normal(size=200_000)
    u = stats.norm.cdf(z / math.sqrt(0.5))
    for r in (0, 7):
        drawn = stats.binom.pmf(r, L, u)
        assert abs(drawn.mean() - tempered_ranks(L, 0.5)[r]) < 4 * drawn.std() / len(z) ** 0.5


@pytest.mark.parametrize("size", [30, 200])
def test_false_alarms_come_as_often_as_they_should(size: int) -> None:
    """At 5 %, over 1000 samples; the two-sample table for a sample and its mirror image is twice as often wrong."""
    rng = np.random.default_rng(1)
    samples = [rng.uniform(size=size) for _ in range(1000)]
    error = 4 * (0.05 * 0.95 / 1000) ** 0.5
    assert abs(np.mean([symmetry(p).p_value < 0.05 for p in samples]) - 0.05) < error + 0.02  # discrete: not above
    assert np.mean([symmetry(p).p_value < 0.05 for p in samples]) < 0.05 + error
    assert np.mean([stats.ks_2samp(p, 1 - p).pvalue < 0.05 for p in samples]) > 0.05 + error
    ranks = [rng.integers(0, L + 1, size) for _ in range(1000)]
    assert abs(np.mean([uniformity(r, L).p_value < 0.05 for r in ranks]) - 0.05) < error
    inside = np.mean([ecdf_band(p).inside for p in samples])
    assert abs(inside - 0.95) < error + 0.02


def test_symmetry_is_the_distance_of_a_sample_and_its_mirror_image() -> None:
    p = np.random.default_rng(2).uniform(size=31) ** 1.3
    assert symmetry(p).statistic == pytest.approx(stats.ks_2samp(p, 1 - p).statistic)
    # ten heads in ten throws, or ten tails
    assert symmetry(np.linspace(0.51, 0.9, 10)) == pytest.approx((1.0, 2 / 1024))
    assert symmetry([0.5] * 12).p_value == 1.0
    assert symmetry([0.4, 0.6] * 10).statistic == 0.0  # equally far: together


def test_chi_square_is_that_of_the_counts() -> None:
    ranks = np.repeat([0, 1, 2, 3], [30, 20, 25, 25])
    expected = stats.chisquare([30, 20, 25, 25])
    assert uniformity(ranks, 3) == pytest.approx((expected.statistic, expected.pvalue))
    law = [0.4, 0.3, 0.2, 0.1]
    assert uniformity(ranks, 3, probabilities=law).p_value < 1e-3
    assert uniformity(ranks, 3, probabilities=[0.5, 0.5, 0.0, 0.0]).p_value == 0.0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: uniformity([1] * 9, 19), "expected at least 10 whole numbers"),
        (lambda: uniformity([0.5] * 20, 19), "ranks are float64"),
        (lambda: uniformity([20] * 20, 19), "ranks go from 20 to 20: expected 0 to 19"),
        (lambda: uniformity([1] * 20, 19, probabilities=[1.0]), r"shape \(1,\) and the sum 1: expected 20"),
        (lambda: symmetry([1.5] * 20), "numbers from 0 to 1"),
        (lambda: tempered_ranks(19, 1.0), "lam=1.0: expected a number below 1"),
        (lambda: ecdf_band([0.5] * 20, prob=95), "prob=95"),
        (lambda: ecdf_band([0.5] * 2), r"shape \(2,\)"),
    ],
)
def test_numbers_that_are_no_ranks_are_refused(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


# ---- seeds, processes, folders -------------------------------------------------------------------

FEW: dict[str, Any] = {"num_simulations": 12, "num_draws": 5, **QUIET}


def test_ranks_do_not_depend_on_processes_threads_or_the_callers_randomness() -> None:
    alone = calibrate(pairs.by_hand, fit=pairs.exact, **FEW)
    state = torch.get_rng_state()
    torch.manual_seed(7)
    seven = torch.get_rng_state()
    shared = calibrate(pairs.by_hand, fit=pairs.exact, workers=2, **FEW)
    assert torch.equal(torch.get_rng_state(), seven)
    torch.set_rng_state(state)
    xr.testing.assert_identical(alone.ranks, shared.ranks)
    more = calibrate(pairs.by_hand, fit=pairs.exact, **FEW | {"num_simulations": 15})
    xr.testing.assert_identical(more.ranks.isel(simulation=slice(12)), alone.ranks)
    other = calibrate(pairs.by_hand, fit=pairs.exact, **FEW | {"seed": 1})
    assert not other.ranks.identical(alone.ranks)


def test_a_run_that_was_killed_goes_on(tmp_path: Path) -> None:
    """After five of twelve, and in the middle of writing the sixth."""
    whole = calibrate(pairs.by_hand, fit=pairs.Exact(), out=tmp_path / "whole", **FEW)

    class Killed(pairs.Exact):
        def __call__(self, pair: Pair) -> None:
            if self.calls == 5:
                raise KeyboardInterrupt
            super().__call__(pair)

    Killed.__qualname__, Killed.__module__ = pairs.Exact.__qualname__, pairs.Exact.__module__
    folder = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        calibrate(pairs.by_hand, fit=Killed(), out=folder, **FEW)
    lines = (folder / "simulations.jsonl").read_bytes()
    assert lines.count(b"\n") == 5
    (folder / "simulations.jsonl").write_bytes(lines + b'{"simulation": 5, "sec')
    again = pairs.Exact()
    resumed = calibrate(pairs.by_hand, fit=again, out=folder, resume=True, **FEW | {"seed": None})
    assert again.calls == 7
    xr.testing.assert_identical(resumed.ranks, whole.ranks)
    more = calibrate(
        pairs.by_hand, fit=(last := pairs.Exact()), out=folder, resume=True, **FEW | {"num_simulations": 14}
    )
    assert last.calls == 2
    assert more.num_simulations == 14


def test_folders_of_others_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    calibrate(pairs.by_hand, fit=pairs.exact, out=folder, **FEW)
    with pytest.raises(ValueError, match="already holds a calibration: choose another folder, or pass resume=True"):
        calibrate(pairs.by_hand, fit=pairs.exact, out=folder, **FEW)
    go_on: dict[str, Any] = {"out": folder, "resume": True, **FEW}
    with pytest.raises(ValueError, match=r"fit: 'tests.calibration_pairs.exact' there, .*Exact' here"):
        calibrate(pairs.by_hand, fit=pairs.Exact(), **go_on)
    with pytest.raises(ValueError, match="num_draws: 5 there, 9 here"):
        calibrate(pairs.by_hand, fit=pairs.exact, **go_on | {"num_draws": 9})
    with pytest.raises(ValueError, match=r"holds another calibration .*guide: 'tests.calibration_pairs.guide' there"):
        calibrate(pairs.automatic, fit=pairs.exact, **go_on)

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 2.0))
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    model.__qualname__, model.__module__ = pairs.model.__qualname__, pairs.model.__module__
    with pytest.raises(ValueError, match=r"first: .*there, .* here"):
        calibrate(Pair(model, pairs.guide, pairs.data, name="three numbers"), fit=pairs.exact, **go_on)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and holds no calibration"):
        calibrate(pairs.by_hand, fit=pairs.exact, out=tmp_path, **FEW)
    lines = (folder / "simulations.jsonl").read_text().splitlines()
    for damage in ("{", "[]", json.dumps(json.loads(lines[1]) | {"ranks": {"z": "much"}}), lines[1].replace("z", "y")):
        (folder / "simulations.jsonl").write_text("\n".join([lines[0], damage, *lines[2:]]) + "\n")
        with pytest.raises(ValueError, match=r"simulations.jsonl', line 2 is no simulation.*Delete the line"):
            calibrate(pairs.by_hand, fit=pairs.exact, **go_on)
    (folder / "calibration.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        calibrate(pairs.by_hand, fit=pairs.exact, **go_on)


def test_fits_that_break_down_are_counted_and_have_no_ranks(tmp_path: Path) -> None:
    class Breaks(pairs.Exact):
        def __call__(self, pair: Pair) -> None:
            super().__call__(pair)
            if self.calls % 4 == 0:
                raise NonFiniteError(3, "the loss")

    found = calibrate(pairs.by_hand, fit=Breaks(), out=tmp_path / "run", **FEW)
    assert sorted(found.failed) == [3, 7, 11]
    assert found.num_simulations == 9
    assert "3 broke down" in str(found)
    again = calibrate(pairs.by_hand, fit=(fit := Breaks()), out=tmp_path / "run", resume=True, **FEW)
    assert (again.failed, fit.calls) == (found.failed, 0)
    with pytest.raises(ValueError, match="at least 10"):
        found.table()


# ---- shapes, amortised guides --------------------------------------------------------------------


def encoder() -> Pair:
    """Local latents, two for each row, and an exact guide that computes them from the row, with a weight to learn."""

    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    class Guide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> None:
            pyro.module("encoder", self.net)
            with pyro.plate("rows", len(x)):
                pyro.sample("z", dist.Normal(self.net(x), 0.5**0.5).to_event(1))

    return Pair(model, Guide(), lambda: torch.randn(4, 2), name="encoder")


def test_an_amortised_guide_is_trained_once(tmp_path: Path) -> None:
    trained = []

    def fit(pair: Pair) -> None:
        trained.append(pair)
        net = pair.guide.net  # type: ignore[attr-defined]
        net.weight.data, net.bias.data = 0.5 * torch.eye(2), torch.zeros(2)

    options: dict[str, Any] = {"num_draws": 9, **QUIET}
    found = calibrate(encoder, fit=fit, amortized=True, num_simulations=60, **options)
    assert len(trained) == 1
    assert found.ranks["z"].dims == ("simulation", "rows", "z_dim_0")
    assert list(found.table().index[:3]) == ["z[0, 0]", "z[0, 1]", "z[1, 0]"]
    assert found.passes("spread")
    assert found.passes("centre")
    wrong = calibrate(encoder, fit=lambda pair: None, amortized=True, num_simulations=60, **options)
    assert not wrong.passes("spread")
    run = calibrate(encoder, amortized=True, num_simulations=10, steps=3, out=tmp_path / "run", **options)
    again = calibrate(
        encoder, amortized=True, num_simulations=12, steps=3, out=tmp_path / "run", resume=True, **options
    )
    assert (tmp_path / "run" / "fit" / "state.pt").exists()
    xr.testing.assert_identical(again.ranks.isel(simulation=slice(10)), run.ranks)


def test_discrete_latents_share_ties() -> None:
    """k in {0, 1} by a fair coin that nothing is learnt about: any rank is as likely."""

    def model(x: Tensor) -> None:
        pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)))
        pyro.sample("x", dist.Normal(torch.zeros(1), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)))

    pair = Pair(model, guide, lambda: torch.zeros(1))
    found = calibrate(pair, fit=lambda pair: None, num_simulations=120, num_draws=9, **QUIET)
    assert found.passes("spread")
    assert len(np.unique(found.ranks["k"])) == 10


def test_arviz_draws_the_ecdf() -> None:
    import arviz_plots

    found = calibrate(pairs.by_hand, fit=pairs.exact, **FEW)
    picture = arviz_plots.plot_ecdf_pit(found.to_arviz(), backend="none")
    assert picture is not None


# ---- what is refused -----------------------------------------------------------------------------


def refused(model: Any, words: str, data: Any = pairs.data, guide: Any = pairs.guide) -> None:
    with pytest.raises(ValueError, match=words):
        calibrate(Pair(model, guide, data), fit=pairs.exact, **FEW)


def test_models_that_cannot_simulate_are_refused_with_the_reason() -> None:
    seen = pairs.data()

    def nothing(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def inside(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(torch.zeros(3), 1.0).to_event(1), obs=seen + 1)

    def factor(x: Tensor) -> None:
        pairs.model(x)
        pyro.factor("extra", torch.tensor(0.3))

    def improper(x: Tensor) -> None:
        z = pyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("x", dist.Normal(z, 1.0).expand([3]).to_event(1), obs=x)

    def transformed(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand([3]).to_event(1), obs=2 * x)

    def empirical(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(x.mean(), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand([3]).to_event(1), obs=x)

    def autoregressive(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        before = torch.cat([torch.zeros(1), x[:-1]])
        pyro.sample("x", dist.Normal(z * before, 1.0).to_event(1), obs=x)

    def masked(x: Tensor) -> None:
        with pyro.poutine.mask(mask=torch.tensor(False)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand([3]).to_event(1), obs=x)

    refused(nothing, "it observes nothing")
    refused(inside, r"site 'y' observes a value that is none of its arguments \['x'\]")
    refused(factor, "site 'extra' is a pyro.factor")
    refused(improper, "site 'z' has an improper prior")
    refused(transformed, "site 'x' observes a value that is none of its arguments")
    refused(empirical, "distribution at site 'z' is not the one that was drawn from")
    refused(autoregressive, "distribution at site 'x' is not the one")
    refused(masked, "site 'z' is a masked latent")
    refused(pyro.poutine.scale(pairs.model, scale=2.0), "site 'z' is scaled by 2")
    refused(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), "it observes nothing", tuple, lambda: pairs.guide(seen))


def test_a_design_stays_and_the_response_is_drawn() -> None:
    designs = []

    def model(x: Tensor, y: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("data", 5):
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    def guide(x: Tensor, y: Tensor) -> None:
        designs.append((x, y))
        precision = 1 + x.square().sum()
        pyro.sample("slope", dist.Normal((x * y).sum() / precision, precision**-0.5))

    x = torch.linspace(-1, 1, 5)
    pair = Pair(model, guide, lambda: (x, torch.zeros(5)))
    found = calibrate(pair, fit=lambda pair: None, num_simulations=60, num_draws=9, **QUIET)
    assert found.passes("spread")
    assert all(torch.equal(seen, x) for seen, _ in designs)
    assert len({tuple(y.tolist()) for _, y in designs}) == 61


def test_pairs_that_are_not_made_afresh_are_refused() -> None:
    pair = pairs.automatic()
    with pytest.raises(ValueError, match=r"the pair has \['AutoNormal'\], which keep what they have learnt"):
        calibrate(pair, steps=5, **FEW)
    with pytest.raises(ValueError, match=r"make\(\) returned a pair with the same \['AutoNormal'\] as before"):
        calibrate(lambda: pair, steps=5, **FEW)

    def learnt(x: Tensor) -> None:
        mean = pyro.param("prior_mean", torch.zeros(()))
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand([3]).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"the model has the parameters \['prior_mean'\], which training would move"):
        calibrate(Pair(learnt, pairs.guide, pairs.data), steps=5, **FEW)
    with pytest.raises(ValueError, match="the guide says the same of any data"):
        calibrate(pairs.by_hand(), fit=pairs.exact, amortized=True, **FEW)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"num_simulations": 5}, ValueError, "num_simulations=5: expected an integer of at least 10"),
        ({"num_draws": 1}, ValueError, "num_draws=1"),
        ({"workers": 0}, ValueError, "workers=0"),
        ({"sites": "z"}, TypeError, "sites='z': expected a list of names"),
        ({"sites": ["y"]}, ValueError, r"unknown \['y'\], expected some of the guide's latents \['z'\]"),
        ({"resume": True}, ValueError, "resume=True, but out=None"),
        ({"validation": None}, TypeError, r"calibrate sets \['validation'\] of each fit itself"),
        ({"steps": 5, "fit": pairs.exact}, TypeError, r"exact trains the guides, so that \['steps'\] would not count"),
        ({"workers": 2, "fit": lambda pair: None}, ValueError, "workers=2: pair or fit cannot be sent"),
        ({"workers": 2, "amortized": True}, ValueError, "workers=2 with amortized=True"),
        ({"fit": 3}, TypeError, "fit=3: expected a callable"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        calibrate(pairs.by_hand, **{**FEW, **options})


def test_a_pair_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match="pair is a int"):
        calibrate(3, **FEW)  # type: ignore[arg-type]
    found = calibrate(lambda: Pair(pairs.model, AutoNormal(pairs.model), pairs.data), steps=2, **FEW)
    with pytest.raises(ValueError, match="what='width'"):
        found.passes("width")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="level=1"):
        found.passes("spread", level=1)
    with pytest.raises(ValueError, match=r"probs has \[95\]"):
        found.coverage([95])


def test_an_error_names_its_simulation() -> None:
    def fit(pair: Pair) -> None:
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck") as error:
        calibrate(pairs.by_hand, fit=fit, **FEW)
    assert error.value.__notes__ == ["This came from simulation 0."]
