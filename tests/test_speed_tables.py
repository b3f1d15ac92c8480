"""What the benchmark says, of made-up times; its products, whole jobs and growth, run small."""

import json
import os
from pathlib import Path

import pyro
import pytest
import torch

from demos import speed
from demos.benchmark import growth, job, markdown, picture, products, timing
from demos.benchmark.bars import Bar, Found, bars
from demos.benchmark.cells import spread, table
from demos.benchmark.children import in_child
from demos.benchmark.entropies import step_problems
from demos.benchmark.problems import mnist_vae
from demos.benchmark.timing import (
    Lengths,
    Run,
    figures,
)
from demos.benchmark.ways import BY_HAND, CAPTURED, EAGER, PENALISED, RUN, SVI_WAY, UPDATE


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random images take MNIST's place."""
    monkeypatch.delenv("BANEL_DATA", raising=False)


# Products


def test_products_are_those_of_a_step() -> None:
    """Three a layer but two for the first; a multiplication and an addition for each weight and image."""
    pair = mnist_vae(torch.rand(64, 784), 64).factory()
    shapes = products.step_products(pair, 64)
    weights = [784 * 400, 400 * 40, 20 * 400, 400 * 784]
    assert len(shapes) == 11
    assert sum(shape.gflop for shape in shapes) == pytest.approx(2e-9 * 64 * (3 * sum(weights) - weights[0]))


def test_best_rates_are_of_real_products() -> None:
    shape = products.Product(32, 16, 8)
    assert set(products.kernels(shape)) >= {"mm"}
    for kernel in products.kernels(shape).values():
        assert tuple(kernel().shape) == (32, 8)
    together, alone = products.best_rates([shape, shape], repeats=2, seconds=0.0)
    names = ("captured", "products", "best_product")
    said = markdown.products_text({"gflop": 1.0} | {f"{name}_gflop_per_s": together for name in names})
    assert said.count(spread(together)) == 3
    assert "were not measured" in markdown.products_text({})
    assert together == pytest.approx(alone)
    assert min(together) > 0


# The whole job, and growth


def test_a_job_stops_the_clock_while_it_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"wall": 0.0}
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock["wall"])

    def judge() -> float:
        clock["wall"] += 100.0
        return -clock["wall"]

    watch = job.EpochWatch(Lengths(3, 6, 3), epoch=3, judge=judge)
    for step in range(1, 7):
        clock["wall"] += 1.0
        watch(step)
        watch(step)  # twice is once
    assert watch.ends == pytest.approx([3.0, 6.0])
    assert watch.elbos == pytest.approx([-103.0, -206.0])
    assert watch.paused == pytest.approx(200.0)


@pytest.mark.parametrize(("epoch", "expected"), [(469, 67), (8, 8), (100, 100), (200, 100), (211, 211)])
def test_a_job_logs_in_even_parts_of_an_epoch(epoch: int, expected: int) -> None:
    assert job.log_every(epoch) == expected


def test_until_counts_what_comes_before_the_job() -> None:
    found = {"process": 25.0, "job": 20.0, "ends": [8.0, 14.0, 20.0], "elbos": [-120.0, -109.0, -104.0]}
    assert job.until(found, -110.0) == pytest.approx(19.0)
    assert job.until(found, -90.0) is None


def test_memory_is_that_of_a_process_of_its_own() -> None:
    """In a child, with something large in this one: less than there is here."""
    ballast = torch.zeros(100_000_000)
    options = {"grows": "rows", "size": 512, "way": EAGER, "steps": 20, "repeats": 1, "seed": 0}
    found = in_child("demos.benchmark.growth:work", options, threads=1)
    here = growth.work(**options, began=0.0)
    assert ballast.numel()
    assert 100 < found["before"] <= found["peak"] < here["peak"] - 200
    assert len(found["ms"]) == 1
    assert found["ms"][0] > 0


@pytest.mark.parametrize("grows", ["rows", "sites"])
def test_growth_runs_every_way(grows: str) -> None:
    assert growth.steps_for("sites", 1000, 1000) == 20
    assert growth.steps_for("rows", 1_000_000, 1000) == 1000
    size = 512 if grows == "rows" else 3
    found = growth.growth_table(
        {"rows": [], "sites": []} | {grows: [size]}, steps=20, repeats=1, seed=0, threads=1, inline=True
    )
    assert list(found[grows][size]) == list(growth.GROWTHS[grows])
    said = markdown.growth_text(found)
    assert f"{grows}: peak memory, MB" in said


# Bars


def made_up(**ways: float) -> dict[str, list[Run]]:
    """Three rounds of each way, in milliseconds a step."""
    names = {"svi": SVI_WAY, "hand": BY_HAND, "compiled": "PyTorch, compiled", "update": UPDATE, "run": RUN}
    names |= {"eager": EAGER, "captured": CAPTURED, "penalised": PENALISED}
    return {names[way]: [Run(ms / 1e3, ms / 1e3, 0.1, [1.0, 1.1, 0.9, 1.0], 0.2)] * 3 for way, ms in ways.items()}


def test_bars_are_ratios_of_the_right_ways() -> None:
    steps = {
        "eight schools": made_up(svi=2.0, captured=0.05, run=0.04, eager=1.0, penalised=0.05),
        "MNIST VAE, 128": made_up(hand=4.0, compiled=3.0, captured=1.5, update=2.0, run=1.2, penalised=1.6),
        "logistic, 10^6 rows": made_up(captured=0.11),
        "logistic, 10^4 rows": made_up(captured=0.10),
    }
    jobs = {CAPTURED: [{"process": 12.0}] * 2, "Pyro SVI, loader": [{"process": 30.0}] * 2}
    found = {bar.text: bar for bar in bars(Found(steps, jobs, {"share": [0.7, 0.9, 0.85], "share_of_best": [0.6]}))}
    reached = {text: bar.rounds[0] for text, bar in found.items() if bar.rounds}
    assert reached == {
        "eight schools: Pyro SVI ÷ fit, captured": pytest.approx(40),
        "eight schools: fit, captured ÷ NumPyro run": pytest.approx(1.25),
        "MNIST VAE, 128: fit, captured ÷ PyTorch": pytest.approx(0.375),
        "MNIST VAE, 128: fit, captured ÷ PyTorch, compiled": pytest.approx(0.5),
        "MNIST VAE, 1024: GFLOP/s of the captured step ÷ of its products alone": 0.7,
        "MNIST VAE, 1024: GFLOP/s of the captured step ÷ of the best one of them": 0.6,
        "MNIST VAE, 128: fit, captured ÷ the faster NumPyro": pytest.approx(1.25),
        "MNIST VAE, 128: lam ≠ 0 ÷ lam = 0, captured (the largest)": pytest.approx(1.6 / 1.5),
        "logistic, captured: a step at 10^6 rows ÷ at 10^4": pytest.approx(1.1),
        "whole job: captured ÷ Pyro's loop with a DataLoader": pytest.approx(0.4),
        "eight schools: losses, captured and eager, apart in standard errors (the most)": 0.0,
    }
    assert found["eight schools: Pyro SVI ÷ fit, captured"].holds
    assert found["eight schools: fit, captured ÷ NumPyro run"].holds is False
    assert found["MNIST VAE, 1024: GFLOP/s of the captured step ÷ of its products alone"].holds
    assert found["radon: Pyro SVI ÷ fit, captured"].holds is None


def test_bars_without_anything_measured() -> None:
    assert {bar.holds for bar in bars(Found({}, {}))} == {None}
    said = markdown.bars_text([Bar("this ÷ that", 2.0, [3.0, 1.0, 1.5]), Bar("other", 20, (), at_least=True)])
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines()[2:]] == [
        ["this ÷ that", "≤ 2", "1.50 [1.00, 3.00]", "holds"],
        ["other", "≥ 20", "–", "not measured"],
    ]


# What is said


def test_spread_shows_three_digits() -> None:
    assert spread([3.0, 1.0, 2.0]) == "2.00 [1.00, 3.00]"
    assert spread([120.34, 11.15]) == "65.7 [11.2, 120.3]"
    assert spread([0.00817, 0.0, 0.462]) == "0.00817 [0, 0.462]"


def test_a_table_is_padded() -> None:
    assert table(["a", "long"], [["wide", "x"]]) == "| a    | long |\n| ---- | ---- |\n| wide | x    |"


def test_a_way_that_is_not_there_is_a_dash(tmp_path: Path) -> None:
    steps = {"one": made_up(svi=2.0, captured=0.5), "two": made_up(svi=4.0, hand=1.0)}
    said = markdown.steps_text(steps, SVI_WAY)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines() if line.startswith("| two")]
    assert rows[0] == ["two", "4.00 [4.00, 4.00]", "–", "1.00 [1.00, 1.00]"]
    assert rows[1] == ["two", "1.00 [1.00, 1.00]", "–", "0.25 [0.25, 0.25]"]
    assert rows[2] == ["two", "0.20 → 0.10", "–", "0.20 → 0.10"]
    assert figures(steps, SVI_WAY)["one"][CAPTURED]["over_pyro"] == pytest.approx([0.25] * 3)
    assert "÷ time, of a step of any way in any round: 1.00 [1.00, 1.00]." in said
    picture.draw(steps, tmp_path / "new" / "speed.png")
    assert (tmp_path / "new" / "speed.png").stat().st_size > 10_000


@pytest.mark.parametrize("installed", [True, False])
def test_page_and_json(
    installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole job in which fit takes 10 s, Pyro 40 s and pythae 50 s, with pythae and without."""
    seconds = {"Pyro SVI, loader": 40.0, CAPTURED: 10.0} | ({"pythae": 50.0} if installed else {})
    jobs = {
        way: [{"process": s, "job": s - 2, "ends": [1.0, s - 2], "elbos": [-120.0, -105.0]}] * 3
        for way, s in seconds.items()
    }
    monkeypatch.setattr(job, "job_table", lambda **options: jobs)
    monkeypatch.setattr(speed, "HAS_PYTHAE", installed)
    monkeypatch.setattr(speed, "machine", lambda threads: {"cpu": "mine", "threads": threads})
    speed.main(speed.parse(["--tables", "job", "--rows", "1024", "--out", str(tmp_path / "new")]))
    said = capsys.readouterr().out
    assert "Images: random grey images" in said
    assert ("pip install -e '.[bench]'" in said) != installed
    assert said.strip() == (tmp_path / "new" / "speed.md").read_text().strip()
    ours = next(line for line in said.splitlines() if line.startswith(f"| {CAPTURED}"))
    assert [cell.strip() for cell in ours.split("|")[2:-1]] == [
        "10.0 [10.0, 10.0]", "0.25 [0.25, 0.25]", "8.00 [8.00, 8.00]", "1.00 [1.00, 1.00]", "10.0 [10.0, 10.0]",
        "-105.0 [-105.0, -105.0]",
    ]  # fmt: skip
    found = json.loads((tmp_path / "new" / "speed.json").read_text())
    assert found["job"][CAPTURED] == jobs[CAPTURED]
    assert found["machine"]["threads"] == 1
    assert "steps" not in found
    assert {bar["holds"] for bar in found["bars"]} == {True, None}


def test_ways_that_differ_fail_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {way: [Run(1, 1, 0, [loss, loss + 0.1] * 2)] for way, loss in ((SVI_WAY, 1.0), (CAPTURED, 2.0))}
    measured = timing.Measured({"eight schools": runs}, {"eight schools": {RUN: "ValueError: no"}})
    monkeypatch.setattr(speed, "measure_all", lambda *args, **options: measured)
    monkeypatch.setattr(speed, "HAS_NUMPYRO", False)
    words = ["--tables", "steps", "--problems", "eight schools", "--rows", "1024", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="different losses"):
        speed.main(speed.parse(words))
    said = capsys.readouterr().out
    assert "eight schools: 'fit, captured' ends at a loss of 2.05" in said
    assert "Left out: 'NumPyro run' of eight schools (ValueError: no)." in said
    assert "NumPyro is not installed" in said
    assert json.loads((tmp_path / "speed.json").read_text())["steps"]["left_out"] == measured.left_out


def test_terms_in_page_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tables of single calls, for real, without the others."""
    words = ["--tables", "entropies", "forms", "--quick", "--rows", "1024", "--out", str(tmp_path)]
    speed.main(speed.parse(words))
    assert "losses agree" not in capsys.readouterr().out
    found = json.loads((tmp_path / "speed.json").read_text())
    assert len(found["entropies"]) == 8
    assert list(found["forms"]) == list(step_problems())
    asked = {way: figures.get("bar") for way, figures in found["forms"]["graph, 8 bits"].items()}
    assert asked == {"Pyro": None, "lam = 0": 1.05, "lam = 0.4": 1.05, "lam = 0.4, alpha = 2": None}
    shown = [figures.get("bar") for figures in found["entropies"]["Normal, forward"].values()]
    barred = [figures.get("bar") for figures in found["entropies"]["Normal, and backward"].values()]
    assert (shown, barred) == ([None] * 5, [None, 1.2, *[1.5] * 3])


@pytest.mark.parametrize(
    ("option", "value"), [("epochs", "1"), ("repeats", "0"), ("steps", "10"), ("rows", "8"), ("calls", "0")]
)
def test_sizes_that_cannot_be_are_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        speed.parse([f"--{option}", value])
    assert f"--{option} {value}: expected" in capsys.readouterr().err


def test_a_task_leaves_the_caller_alone() -> None:
    """Inline, as the quick run does it: generator and parameters are as before."""
    environment = dict(os.environ)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    options = {"grows": "sites", "size": 3, "way": SVI_WAY, "steps": 20, "repeats": 1, "seed": 0}
    in_child("demos.benchmark.growth:work", options, threads=1, inline=True)
    assert torch.equal(torch.rand(1), expected)
    assert not list(pyro.get_param_store().keys())
    assert dict(os.environ) == environment
