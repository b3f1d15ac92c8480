"""The arithmetic of the benchmark's times, on a clock that only moves when a way moves it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from demos.benchmark import comparison, timing
from demos.benchmark.comparison import Comparison, compare
from demos.benchmark.problems import Problem, noncentered_schools
from demos.benchmark.timing import Lengths, Run, Time, Watch, Way, final_loss, measure, measure_all, ratios, unlike

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
