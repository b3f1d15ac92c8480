"""Every demo runs, at a small size: the flags here may only shrink sizes, never leave a step out."""

import json
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from banel_pyro.report import plots
from demos.benchmark.ways import JOB_WAYS, step_ways
from demos.speed import QUICK

DEMO_FOLDER = Path(__file__).parents[1] / "demos"

DEMOS: dict[str, list[str]] = {
    "bandit": ["--steps", "150", "--pulls", "256", "--gradients", "20", "--seeds", "0", "1"],
    "bare_svi": ["--steps", "300"],
    "clustering": [
        *("--steps", "80", "--seeds", "0", "1", "--clusters", "10"),
        *("--alphas", "1", "5", "--lams", "-10"),
    ],
    "eight_schools": ["--steps", "1500", "--draws", "200"],
    "frontier": ["--steps", "60", "--draws", "20", "--lams", "-0.5", "0.4", "--seeds", "0", "1"],
    "gallery": ["--steps", "40", "--draws", "40"],
    "lambda_curve": ["--steps", "800", "--lams", "0.4"],
    "modes": ["--steps", "200", "--lams", "-1", "0.5", "--alphas", "0.5", "2", "--starts", "2"],
    "negative_bins": ["--seeds", "6", "--candidates", "500"],
    "negative_epochs": [
        *("--task", "small_attack", "--epochs", "1", "4", "--seeds", "0", "1"),
        *("--budget", "60", "--rounds", "2", "--draws", "300"),
    ],
    "negative_oracle": ["--budget", "90", "--rounds", "3", "--workers", "1", "--draws", "1000"],
    "negative_speed": ["--repeats", "2", "--sequences", "64", "--candidates", "512"],
    "own_pair": ["--epochs", "20", "--draws", "50"],
    "quickstart": ["--steps", "200", "--draws", "100"],
    "speed": ["--quick"],
    "trust": [
        *("--steps", "200", "--draws", "120", "--lams", "0.4"),
        *("--curve", "0", "0.4", "--curve-steps", "400"),
    ],
    "targets": ["--steps", "100", "--starts", "0"],
    "tokens": [
        *("--steps", "120", "--seeds", "0", "1", "--weights", "1", "--alphas", "0.5"),
        *("--length", "8", "--particles", "32", "--texts", "100"),
    ],
}

PICTURES = {
    "bandit": {"bandit.png"},
    "clustering": {"clustering.png"},
    "eight_schools": {"collapse.png", "forest.png", "pair.png", "posterior.png"},
    "frontier": {"frontier.png"},
    "gallery": {f"{name.removeprefix('plot_')}.png" for name in plots.__all__ if name.startswith("plot_")},
    "lambda_curve": {"lambda_curve.png"},
    "modes": {"modes.png"},
    "negative_bins": {"negative_bins.png"},
    "negative_epochs": {"negative_epochs.png"},
    "negative_oracle": {"negative_oracle.png"},
    "quickstart": {"quickstart.png"},
    "speed": {"speed.png"},
    "tokens": {"tokens.png"},
    "trust": {"coverage.png"},
}


def says_exact(printed: str) -> None:
    """Both ways to use the bare loss end at the exact standard deviation, up to the noise of a short run."""
    rows = [line.split() for line in printed.splitlines() if line.startswith(("exact", "pyro.infer", "torch.nn"))]
    exact, *found = (float(row[-1]) for row in rows)
    assert len(found) == 2
    assert found == pytest.approx([exact, exact], rel=0.15)


def says_collapse(printed: str) -> None:
    """The centred form sets off the alarm, and nobody asks Markov-chain questions of independent draws."""
    assert "stopped with a CollapseError" in printed
    assert "r_hat" not in printed


def points_lie_on_the_curve(printed: str) -> None:
    """Every standard deviation of the fitted Gaussian guides is the exact one within 2 per cent."""
    table = pd.read_csv("runs/lambda_curve/lambda_curve.csv")
    assert len(table) == 1 + 10 + 10
    assert (table["fitted"] / table["exact"]).to_list() == pytest.approx([1.0] * len(table), abs=0.02)


def narrows_along_the_frontier(printed: str) -> None:
    """lambda = 0 was added; the entropy falls with lambda; errors are there; every run can be gone on with."""
    table = pd.read_csv("runs/frontier/frontier.csv")
    assert table["lam"].to_list() == [-0.5, 0.0, 0.4]
    assert table["entropy"].is_monotonic_decreasing
    assert (table["iwae"] > table["elbo"]).all()
    compared = table[table["lam"] != 0]
    assert (compared[["elbo_difference_stderr", "iwae_difference_stderr"]] > 0).all(axis=None)
    seeds = compared[["iwae_difference[0]", "iwae_difference[1]"]]
    assert seeds.mean(axis=1).to_list() == pytest.approx(compared["iwae_difference"].to_list())
    assert len(list(Path("runs/frontier").glob("seed=*/lam=*/state.pt"))) == 6
    assert printed.count("best ") == 2


def modes_survive_where_they_should(printed: str) -> None:
    """Fits are near the optimum where there is one, and the small mode falls with lambda."""
    table = pd.read_csv("runs/modes/modes.csv")
    kinds = table.groupby(["lam", "alpha"])["optimum"].first().to_dict()
    assert kinds.pop((0.5, 2.0)) == "none"
    assert set(kinds.values()) == {"global"}
    known = table[table["optimum"] != "none"]
    for side in ("fitted", "quadrature"):
        assert (known[f"{side}_loss"] - known["optimum_loss"]).dropna().between(0, 0.3).all()
    assert known.groupby(["lam", "alpha"])["optimum_modes"].first().to_list() == [4, 4, 4, 3]
    small = table.groupby("lam")["fitted[8]"].mean()
    assert small.loc[0.0] == pytest.approx(0.05, abs=0.02)
    assert small.is_monotonic_decreasing
    assert "trusted" in printed


def numbers_are_complete(printed: str) -> None:
    """The JSON has the machine and every repeat of every way, none of which failed; the page is what was printed."""
    found = json.loads(Path("runs/speed/speed.json").read_text())
    assert found["machine"]["threads"] == 1
    assert found["steps"].pop("left_out") == {}
    assert list(found["steps"]) == QUICK["problems"]
    for ways in found["steps"].values():
        assert list(ways) == list(step_ways())
        assert all(len(way["ms_per_step"]) == len(way["over_pyro"]) == 1 for way in ways.values())
    assert list(found["job"]) == list(JOB_WAYS)
    assert all(len(jobs) == 1 and len(jobs[0]["ends"]) == 2 for jobs in found["job"].values())
    assert [list(found["growth"][grows]) for grows in ("rows", "sites")] == [["512", "1024"], ["3", "6"]]
    assert len(found["products"]["share"]) == 1
    assert len(found["bars"]) == 16
    assert Path("runs/speed/speed.md").read_text() in printed


def policies_reach_the_optimum(printed: str) -> None:
    """Every policy is near the exact one; bonuses at one price earn the same and buy their own entropy."""
    table = pd.read_csv("runs/bandit/bandit.csv")
    assert len(table) == 2 * 9
    assert table["excess"].between(-1e-9, 0.15).all()  # no policy is below the exact minimum
    assert (table["tv"] < 0.04).all()
    priced = table[(table["comparison"] == "same price") & (table["seed"] == 0)].set_index("alpha")
    assert priced["exact_reward"].to_list() == pytest.approx([priced["exact_reward"][1.0]] * 4, abs=1e-6)
    for alpha in (0.5, 1.0, 2.0, 5.0):
        assert priced[f"exact_H_{alpha:g}"].idxmax() == alpha
    noise = pd.read_csv("runs/bandit/noise.csv")
    assert (noise["graph"] < noise["trace"]).all()
    assert "alpha = 5: several for" in printed


def bonus_keeps_clusters(printed: str) -> None:
    """Shannon's bonus keeps all clusters, plain training loses some, order 5 loses more at this learning rate."""
    table = pd.read_csv("runs/clustering/clustering.csv")
    assert len(table) == 2 * (3 + 1)
    means = table.groupby("label")[["used", "balance", "elbo"]].mean()
    none, shannon, steep = (means.loc[name] for name in ("no bonus", "alpha 1, lam -10", "alpha 5, lam -10"))
    assert shannon["used"] == 10 > none["used"]
    assert shannon["balance"] > 0.99 > none["balance"] > steep["balance"]
    assert none["elbo"] > -35
    assert table.dropna(subset="lam")["bias"].between(-0.05, 0, inclusive="neither").all()


def bonus_cures_repetition(printed: str) -> None:
    """Without a bonus texts repeat themselves and each other; gibberish is what pays for an order below 1."""
    table = pd.read_csv("runs/tokens/tokens.csv")
    means = table.groupby(["name", "loss"])[["repeated", "same", "renyi", "entropy"]].mean()
    for loss in table["loss"].unique():
        none, shannon = means.loc[("none", loss)], means.loc[("Shannon", loss)]
        assert none["repeated"] > 2 * shannon["repeated"]
        assert none["same"] > 0.8
        assert shannon["same"] < 0.1
    text = means.loc[("Rényi 0.5 of text", "exact")]
    assert text["renyi"] > 15
    assert text["entropy"] < 5


def the_cache_pays(printed: str) -> None:
    """Sampling with the cache is faster, and the figures of every round are kept."""
    found = json.loads(Path("runs/negative_speed/speed.json").read_text())
    assert list(found["cache"]) == ["8", "32"]
    assert min(found["cache"]["32"]["ratio"]) > 1
    assert [bar["limit"] for bar in found["bars"]] == [5.0, 1.0]
    assert "uncached ÷ cached" in printed


def no_narrow_guide_is_green(printed: str) -> None:
    """Verdicts agree with the reference, and the corrected coverage with the exact one of the fitted guide."""
    found = pd.read_csv("runs/trust/coverage.csv")
    assert (found["corrected"] - found["of the guide"]).abs().max() < 0.1
    if not os.environ.get("BANEL_DATA"):
        pytest.skip("BANEL_DATA is not set")
    table = pd.read_csv("runs/trust/references.csv")
    assert len(table) == 7
    assert table.loc[table["covers, by NUTS"] < 0.9, "verdict"].isin(["amber", "red"]).all()
    assert "cover less than 90 %: none." in printed


def one_success_is_lost(printed: str) -> None:
    """The one at -2, from the first round on; the success rate rises and no gain passes its bound."""
    table = pd.read_csv("runs/negative_bins/negative_bins.csv")
    assert (table["reachable"] == 2).all()
    assert table["success_rate"].is_monotonic_increasing
    assert table["success_rate"].iloc[-1] > 0.5
    assert (table["gain"] <= table["bound"] * (1 + 1e-6)).all()
    assert "Lost for ever: -2." in printed
    assert pd.read_csv("runs/negative_bins/survivors.csv")["size"].sum() == 6


CHECKS: dict[str, Callable[[str], None]] = {
    "bandit": policies_reach_the_optimum,
    "bare_svi": says_exact,
    "clustering": bonus_keeps_clusters,
    "eight_schools": says_collapse,
    "frontier": narrows_along_the_frontier,
    "lambda_curve": points_lie_on_the_curve,
    "modes": modes_survive_where_they_should,
    "negative_bins": one_success_is_lost,
    "negative_speed": the_cache_pays,
    "speed": numbers_are_complete,
    "tokens": bonus_cures_repetition,
    "trust": no_narrow_guide_is_green,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small demos gain nothing from a second thread, and wait for it where the machine is busy."""
    found = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(found)


@pytest.mark.parametrize("name", DEMOS)
def test_demo_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `python -m demos.NAME FLAGS` in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *DEMOS[name]])
    monkeypatch.delitem(sys.modules, f"demos.{name}", raising=False)
    try:
        runpy.run_module(f"demos.{name}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            pytest.fail(f"demos.{name} ended with {end.code!r}")
    assert {path.name for path in tmp_path.rglob("*.png")} == PICTURES.get(name, set())
    CHECKS.get(name, lambda printed: None)(capsys.readouterr().out)


def test_every_demo_is_listed() -> None:
    """A demo without an entry in DEMOS would run in no test."""
    found = {path.stem for path in DEMO_FOLDER.glob("*.py")} - {"__init__"}
    assert found == set(DEMOS), "DEMOS in tests/test_demos.py must name every file of demos/, and no other"
