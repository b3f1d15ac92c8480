"""The arithmetic of the benchmark on made-up times, and what is said; nothing here depends on how fast anything is."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch

from demos import speed
from demos.benchmark import comparison, growth, job, markdown, picture, products, timing
from demos.benchmark.bars import Bar, Found, bars
from demos.benchmark.cells import spread, table
from demos.benchmark.children import in_child
from demos.benchmark.comparison import Comparison, compare
from demos.benchmark.entropies import step_problems
from demos.benchmark.problems import Problem, mnist_vae, noncentered_schools
from demos.benchmark.timing import (
    Lengths,
    Run,
    Time,
    Watch,
    Way,
    figures,
    final_loss,
    measure,
    measure_all,
    ratios,
    unlike,
)
from demos.benchmark.ways import BY_HAND, CAPTURED, EAGER, PENALISED, RUN, SVI_WAY, UPDATE


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random images take MNIST's place."""
    monkeypatch.delenv("BANEL_DATA", raising=False)


# Runs


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds that only move when a way moves them."""
    now = {"wall": 0.0, "cpu": 0.0}
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(timing.time, "process_time", lambda: now["cpu"])
    return now


def taking(clock: dict[str, float], start: float, step: float) -> Way:
    """A way that takes these seconds by the clock, and twice as long in CPU time; every start after the first half."""
    starts = iter([start] + [start / 2] * 9)

    def way(problem: Problem, pair: Any, seed: int, watch: Watch) -> list[float]:
        begin, steps = next(starts), watch.lengths.long
        clock.update(wall=clock["wall"] + begin, cpu=clock["cpu"] + 2 * begin)
        for i in range(steps):
            clock.update(wall=clock["wall"] + step, cpu=clock["cpu"] + 2 * step)
            watch(i + 1)
        clock["wall"] += 7.0  # what comes after the last step does not count
        return [float(i) for i in range(steps)]

    return way


def test_time_is_of_the_steps_alone(clock: dict[str, float]) -> None:
    run = measure(noncentered_schools(), taking(clock, start=5.0, step=0.002), 0, Lengths(20, 200, 10))
    assert (run.wall, run.cpu, run.start) == pytest.approx((0.002, 0.004, 5.0))
    means = [10 * block + 4.5 for block in range(20)]  # of ten steps each, as fit logs
    assert run.losses == means[-5:]


@pytest.mark.parametrize(("steps", "log_every"), [(20, 5), (400, 100), (10_000, 100), (4, 1)])
def test_a_run_counts_from_its_first_log_point(steps: int, log_every: int) -> None:
    assert Lengths.of(steps) == Lengths(log_every, steps, log_every)


def test_rounds_are_interleaved_and_the_first_counts_as_cold_only(clock: dict[str, float]) -> None:
    seen: list[tuple[str, int, int]] = []

    def named(name: str) -> Way:
        inner = taking(clock, start=4.0, step=1.0)

        def way(problem: Problem, pair: Any, seed: int, watch: Watch) -> list[float]:
            seen.append((name, seed, watch.lengths.long))
            return inner(problem, pair, seed, watch)

        return way

    problem = noncentered_schools()
    every = {"p": replace(problem, share=1.0), "q": replace(problem, share=2.0)}
    found = measure_all(every, {"a": named("a"), "b": named("b")}, 20, repeats=2, seed=7)
    assert seen == [(way, seed, steps) for seed in (7, 8, 9) for steps in (20, 40) for way in "ab"]
    assert [len(runs) for ways in found.results.values() for runs in ways.values()] == [2] * 4
    assert [run.cold for run in found.results["p"]["a"]] == pytest.approx([4.0, 4.0])
    assert [run.start for run in found.results["p"]["a"]] == pytest.approx([2.0, 2.0])
    assert found.left_out == {}


def test_a_way_that_raises_is_left_out_with_the_reason(clock: dict[str, float]) -> None:
    def broken(problem: Problem, pair: Any, seed: int, watch: Watch) -> list[float]:
        raise ValueError("this cannot be")

    found = measure_all(
        {"p": noncentered_schools()}, {"a": taking(clock, 1.0, 1.0), "b": broken}, 20, repeats=1, seed=0
    )
    assert list(found.results["p"]) == ["a"]
    assert found.left_out == {"p": {"b": "ValueError: this cannot be"}}


def test_ratios_are_taken_within_rounds() -> None:
    """In a second round at half the speed, neither way is faster than the other."""
    runs = {"ours": [Run(1.0, 3.0, 0, []), Run(2.0, 6.0, 0, [])], "base": [Run(2.0, 2.0, 0, []), Run(4.0, 4.0, 0, [])]}
    assert ratios(runs, "ours", "base") == [0.5, 0.5]
    assert ratios(runs, "ours", "base", "cpu") == [1.5, 1.5]


def test_the_error_of_a_loss_leaves_out_a_trend() -> None:
    flat, falling = Run(1, 1, 1, [1.0, 3.0, 1.0, 3.0]), Run(1, 1, 1, [4.0, 3.0, 2.0, 1.0])
    assert final_loss([flat]) == pytest.approx((2.0, (2.0 / 4) ** 0.5))
    assert final_loss([falling]) == pytest.approx((2.5, (0.5 / 4) ** 0.5))
    assert final_loss([flat, falling]) == pytest.approx((2.25, (2.5 / 4) ** 0.5 / 2))


def test_the_error_of_a_loss_has_the_scatter_of_the_runs() -> None:
    low, high = Run(1, 1, 1, [1.0] * 4), Run(1, 1, 1, [3.0] * 4)
    assert final_loss([low, high]) == pytest.approx((2.0, 1.0))


def test_losses_that_differ_are_named() -> None:
    same = Run(1.0, 1.0, 0.0, [4.0, 4.1, 3.9, 4.0])
    runs = {way: [same, same] for way in "abc"}
    assert unlike("fine", runs, [("a", "b", "c", "absent")]) == []
    runs["c"] = [Run(1.0, 1.0, 0.0, [4.5, 4.6, 4.4, 4.5])] * 2
    assert unlike("fine", runs, [("a", "b"), ("c",)]) == []
    (said,) = unlike("not fine", runs, [("a", "b", "c")])
    assert said.startswith("not fine: 'c' ends at a loss of 4.5000 ±")
    runs["c"] = [Run(1.0, 1.0, 0.0, [float("nan")] * 4)] * 2
    assert len(unlike("no number", runs, [("a", "b", "c")])) == 1


# Single calls


def test_calls_take_turns_and_a_round_is_their_median(clock: dict[str, float]) -> None:
    """Preparing a call does not count, nor does the first round, nor a call that was interrupted."""
    seen: list[str] = []

    def calling(name: str, seconds: float) -> comparison.CallWay:
        @contextmanager
        def way() -> Iterator[comparison.Call]:
            clock["wall"] += 100.0
            seen.append(name)
            late = 50.0 if seen.count(name) % 3 == 0 else 0.0
            yield lambda: clock.update(wall=clock["wall"] + seconds + late, cpu=clock["cpu"] + 2 * seconds)

        return way

    times = compare({"a": calling("a", 1.0), "b": calling("b", 3.0)}, repeats=2, calls=3)
    assert times == {"a": [Time(1.0, 2.0)] * 2, "b": [Time(3.0, 6.0)] * 2}
    assert all(set(seen[i : i + 2]) == {"a", "b"} for i in range(0, 18, 2))
    assert seen[::2].count("a") not in (0, 9)  # neither is always the first


@pytest.fixture
def compared() -> Comparison:
    """Two ways over a base, one above its bar by CPU time."""
    base, slow, fine = [Time(1.0, 1.0)] * 3, [Time(1.1, 1.3)] * 3, [Time(4.0, 1.2)] * 3
    ways = {"slow": 1.2, "fine": 1.2}
    return Comparison("µs a call", 1e6, "torch", ways, {"X": {"torch": base, "slow": slow, "fine": fine}})


def test_what_is_above_its_bar_is_named(compared: Comparison) -> None:
    assert compared.over() == {("X", "slow"): pytest.approx(1.3)}
    assert compared.over("wall") == {("X", "fine"): pytest.approx(4.0)}
    said = comparison.comparison_text(compared)
    assert said.count("bar 1.20") == 3  # twice in the head
    assert "X: 'slow' takes 1.30 of the CPU time of 'torch', above its bar 1.20." in said
    found = comparison.comparison_figures(compared)["X"]
    assert [found[way].get("within_bar") for way in ("torch", "slow", "fine")] == [None, False, True]
    assert found["fine"]["over_torch"] == [4.0] * 3
    assert found["fine"]["cpu_us_per_call"] == pytest.approx([1.2e6] * 3)


def test_nothing_above_its_bar_is_said_too(compared: Comparison) -> None:
    assert "every ratio is within its bar." in comparison.comparison_text(replace(compared, bars={"fine": 1.2}))


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
    assert together == pytest.approx(alone)
    assert min(together) > 0


# The whole job, and growth


def test_a_job_stops_the_clock_while_it_judges(clock: dict[str, float]) -> None:
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
    found = {bar.text: bar for bar in bars(Found(steps, jobs, [0.7, 0.9, 0.85]))}
    reached = {text: bar.rounds[0] for text, bar in found.items() if bar.rounds}
    assert reached == {
        "eight schools: Pyro SVI ÷ fit, captured": pytest.approx(40),
        "eight schools: fit, captured ÷ NumPyro run": pytest.approx(1.25),
        "MNIST VAE, 128: fit, captured ÷ PyTorch": pytest.approx(0.375),
        "MNIST VAE, 128: fit, captured ÷ PyTorch, compiled": pytest.approx(0.5),
        "MNIST VAE, 1024: GFLOP/s of the captured step ÷ of its products alone": 0.7,
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
