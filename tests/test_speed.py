"""The benchmark compares like with like, and its arithmetic is right; nothing here depends on how fast anything is."""

import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

from banel_pyro import Pair, Split
from demos import speed
from demos.benchmark import entropies, problems, timing
from demos.benchmark.entropies import ENTROPIES, Stepper, families, step_problems, step_ways
from demos.benchmark.problems import Problem, digits_vae, mnist_images, mnist_vae, noncentered_schools, vae_by_hand
from demos.benchmark.timing import (
    Comparison,
    Lengths,
    Run,
    Table,
    Time,
    check_losses,
    compare,
    final_loss,
    measure,
    measure_all,
    ratios,
)
from demos.benchmark.ways import EPOCH_WAYS, HAS_PYTHAE, LAM, STEP_WAYS, Way
from models import data, vae

MAKERS: dict[str, Callable[[], Problem]] = {
    "eight schools": noncentered_schools,
    "digits VAE": digits_vae,
    "MNIST": lambda: mnist_vae(mnist_images(32)[0], 16),
}
WAYS = STEP_WAYS | EPOCH_WAYS


@pytest.fixture(autouse=True)
def no_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random images take its place."""
    monkeypatch.delenv("BANEL_DATA", raising=False)


def small_vae(lr: float) -> Problem:
    """A VAE of 40 images of 12 pixels, 3 steps an epoch."""
    grey = torch.rand(40, 12, generator=torch.Generator().manual_seed(1))
    sizes = {"pixels": 12, "hidden": 6, "latents": 3}

    def factory() -> Pair:
        split = Split(grey, None, data.binarize)
        return Pair(vae.Decoder(**sizes), vae.Encoder(**sizes), data=lambda: split, data_plate="data")

    return Problem(factory, vae_by_hand, (grey,), data.binarize, 16, lr)


# The ways do the same work


@pytest.mark.parametrize("noise", [-1.3, 0.7])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_loss_by_hand_is_pyros(
    make: Callable[[], Problem], noise: float, monkeypatch: pytest.MonkeyPatch, float64: torch.dtype
) -> None:
    """On the same draws, all of them `noise` standard deviations from the guide's location."""
    problem = make()
    pair, batch = problem.factory(), next(problem.batches(seed=0, steps=1))
    _, by_hand = problem.by_hand(pair)
    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", lambda shape, **_: torch.full(shape, noise))
    monkeypatch.setattr(torch, "randn", lambda *shape: torch.full(shape, noise))
    monkeypatch.setattr(torch, "randn_like", lambda like: torch.full_like(like, noise))
    expected = Trace_ELBO().loss(pair.model, pair.guide, *batch)
    assert by_hand(*batch).item() == pytest.approx(expected, rel=1e-8)


def test_batches_are_those_of_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, seen = digits_vae(), []
    pair = problem.factory()
    split = pair.split()
    keep = type(split)(split.train, None, lambda rows: seen.append(rows[0]) or split.transform(rows))
    monkeypatch.setattr(type(pair), "split", lambda self: keep)
    pair.fit(steps=14, batch_size=problem.batch_size, seed=3, validation=None, progress=False)  # an epoch has 12
    expected = [batch for (batch,) in replace(problem, transform=None).batches(seed=3, steps=14)]
    assert [len(batch) for batch in expected] == [*[128] * 11, 92, 128, 128]
    for ours, theirs in zip(seen[-14:], expected, strict=True):  # before them fit looks at the data
        assert torch.equal(ours, theirs)


def test_a_loader_brings_every_row_once_an_epoch() -> None:
    problem = replace(small_vae(lr=1e-3), transform=None)
    batches = [batch for (batch,) in problem.loaded(6)]
    assert [len(batch) for batch in batches] == [16, 16, 8] * 2
    first, second = torch.cat(batches[:3]), torch.cat(batches[3:])
    assert not torch.equal(first, second)
    for epoch in (first, second):
        assert sorted(epoch.tolist()) == sorted(problem.rows[0].tolist())


@pytest.mark.parametrize("name", WAYS)
def test_every_way_takes_as_many_steps_on_the_same_parameters(name: str) -> None:
    """Adam moves a parameter by hardly more than its learning rate in a step, and by that where gradients agree."""
    problem, steps, lr = small_vae(lr=1e-4), 12, 1e-4
    torch.manual_seed(0)
    with pyro.get_param_store().scope():
        pair = problem.factory()
        trained = [*pair.model.parameters(), *pair.guide.parameters()]
        before = [parameter.detach().clone() for parameter in trained]
        losses = WAYS[name](problem, pair, 0, steps, 1)
        moved = [float((new.detach() - old).abs().max()) for new, old in zip(trained, before, strict=True)]
    assert len(losses) == steps == 4 * problem.steps_per_epoch
    assert sum(parameter.numel() for parameter in trained) == 12 * 6 + 6 + 6 * 6 + 6 + 3 * 6 + 6 + 6 * 12 + 12
    assert all(most > lr for most in moved)
    assert 0.8 * steps * lr < max(moved) < 1.1 * steps * lr


@pytest.fixture(scope="module")
def mean_losses() -> dict[str, tuple[float, float]]:
    """Mean loss of each way over 40 epochs that do not move anything to speak of, and its standard error."""
    problem, found = small_vae(lr=1e-9), {}
    for seed, (name, way) in enumerate(WAYS.items()):
        torch.manual_seed(0)
        with pyro.get_param_store().scope():
            pair = problem.factory()
            torch.manual_seed(seed)
            losses = way(problem, pair, seed, 120, 1)
        # nats per image of an epoch of batches of 16, 16 and 8
        epochs = [(2 * losses[i] + 2 * losses[i + 1] + losses[i + 2]) / 5 for i in range(0, 120, 3)]
        found[name] = statistics.fmean(epochs), statistics.stdev(epochs) / 40**0.5
    return found


@pytest.mark.parametrize("name", WAYS)
def test_every_way_has_the_same_loss(name: str, mean_losses: dict[str, tuple[float, float]]) -> None:
    (a, error_a) = mean_losses[name]
    (b, error_b) = mean_losses[f"Pyro, {LAM}" if name.endswith(f", {LAM}") else "PyTorch"]
    assert error_b < 0.05
    assert abs(a - b) <= 5 * (error_a**2 + error_b**2) ** 0.5


def test_lam_lowers_the_weight_of_log_q(mean_losses: dict[str, tuple[float, float]]) -> None:
    """The two groups of ways differ: by lam times the entropy of the guide, here close to 3 * 1.05 nats."""
    assert mean_losses[f"fit, {LAM}"][0] - mean_losses["fit"][0] == pytest.approx(LAM * 3 * 1.05, abs=0.3)


def test_a_penalty_adds_no_second_pass() -> None:
    graphs = speed.vae_graphs()
    plain, penalised = graphs["lam = 0"], graphs[f"lam = {LAM}"]
    assert plain["AddmmBackward0"] == penalised["AddmmBackward0"] == graphs["Pyro"]["AddmmBackward0"] == 4
    assert (penalised - plain).total() <= 10
    assert plain.total() <= graphs["Pyro"].total()


@pytest.mark.parametrize("name", ["Categorical, logits", "Categorical, probs", "MultivariateNormal", "Normal"])
def test_entropies_are_of_the_same_distributions(name: str) -> None:
    """Ours is torch's; Rényi's falls in alpha, is next to it at alpha = 1.01; all have gradients."""
    family = families()[name]
    torch_s, ours, *renyi = (entropy(family.make(family.leaf)).mean() for entropy in ENTROPIES.values())
    assert list(ENTROPIES) == ["torch", "ours", "alpha = 0.5", "alpha = 1.01", "alpha = 2"]
    assert ours.item() == pytest.approx(torch_s.item(), rel=1e-5)
    assert renyi[0] > torch_s > renyi[1] > renyi[2]
    assert renyi[1].item() == pytest.approx(torch_s.item(), rel=0.02)
    for entropy in (torch_s, ours, *renyi):
        (gradient,) = torch.autograd.grad(entropy, family.leaf)
        assert gradient.isfinite().all()
        assert gradient.any()


def test_a_call_takes_the_entropy_of_a_new_distribution() -> None:
    family, seen = families()["Normal"], []
    for backward in (False, True):
        with entropies.entropy_call(family, lambda fn: seen.append(fn) or fn.entropy(), backward=backward) as call:
            (found,) = call() if backward else [call()]
        assert found.shape == family.leaf.shape
    assert torch.equal(found, 1 / family.leaf)  # d/ds log s
    assert seen[0] is not seen[1]


@pytest.mark.parametrize("name", step_problems())
def test_steps_are_of_the_same_loss(name: str) -> None:
    """From the same draws: Pyro's loss is ours at lam = 0, gradients too; the penalties change it, and differ."""
    losses, gradients = {}, {}
    torch.manual_seed(0)
    ways = step_ways(step_problems()[name])
    start = [parameter.detach().clone() for parameter in ways["Pyro"].parameters]
    for way, stepper in ways.items():
        with torch.no_grad():
            for parameter, value in zip(stepper.parameters, start, strict=True):
                parameter.copy_(value)
        torch.manual_seed(1)
        with stepper.ready():
            losses[way] = stepper.elbo.loss_and_grads(stepper.model, stepper.guide, stepper.rows)
        gradients[way] = [parameter.grad.clone() for parameter in stepper.parameters]
    assert losses["lam = 0"] == pytest.approx(losses["Pyro"], rel=1e-5)
    for ours, pyros in zip(gradients["lam = 0"], gradients["Pyro"], strict=True):
        assert torch.allclose(ours, pyros, rtol=1e-3, atol=1e-3 * float(pyros.abs().max()))
    assert len({round(loss, 2) for loss in losses.values()}) == 3


def test_a_step_leaves_no_gradient_and_no_parameter_behind() -> None:
    stepper = step_ways(step_problems()["graph, 8 bits"])["Pyro"]
    with stepper.ready() as step:
        step()
        assert "__baseline_avg_downstream_cost_z" in pyro.get_param_store()
    assert isinstance(stepper, Stepper)
    assert len(stepper.parameters) == 4
    assert not any(parameter.grad.any() for parameter in stepper.parameters)
    assert not list(pyro.get_param_store().keys())


# The arithmetic, on made-up times


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds that only move when a way moves them."""
    now = {"wall": 0.0, "cpu": 0.0}
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(timing.time, "process_time", lambda: now["cpu"])
    return now


def taking(clock: dict[str, float], start: float, step: float) -> Way:
    """A way that takes these seconds by the clock, and twice as long in CPU time."""

    def way(problem: Problem, pair: Any, seed: int, steps: int, log_every: int) -> list[float]:
        clock["wall"] += start + step * steps
        clock["cpu"] += 2 * (start + step * steps)
        return [float(i) for i in range(steps)]

    return way


def test_time_is_of_the_steps_alone(clock: dict[str, float]) -> None:
    run = measure(noncentered_schools(), taking(clock, start=5.0, step=0.002), 0, Lengths(20, 200))
    assert (run.wall, run.cpu, run.start) == pytest.approx((0.002, 0.004, 5.0))
    means = [10 * block + 4.5 for block in range(20)]  # of ten steps each, as fit logs
    assert run.losses == means[-5:]


def test_time_of_an_epoch_is_that_of_its_steps(clock: dict[str, float]) -> None:
    run = measure(noncentered_schools(), taking(clock, start=1.0, step=0.5), 0, Lengths(3, 9, per=3))
    assert (run.wall, run.cpu, run.start) == pytest.approx((1.5, 3.0, 1.0))


def test_rounds_are_interleaved_and_the_first_does_not_count() -> None:
    seen: list[tuple[str, int, int]] = []

    def named(name: str) -> Way:
        def way(problem: Problem, pair: Any, seed: int, steps: int, log_every: int) -> list[float]:
            seen.append((name, seed, steps))
            return [1.0] * steps

        return way

    runs = measure_all(noncentered_schools(), {"a": named("a"), "b": named("b")}, Lengths(1, 4), repeats=2, seed=7)
    assert seen == [(name, seed, steps) for seed in (7, 8, 9) for name in "ab" for steps in (1, 4)]
    assert [len(found) for found in runs.values()] == [2, 2]


def test_ratios_are_taken_within_rounds() -> None:
    """In a second round at half the speed, neither way is faster than the other."""
    runs = {"ours": [Run(1.0, 3.0, 0, []), Run(2.0, 6.0, 0, [])], "base": [Run(2.0, 2.0, 0, []), Run(4.0, 4.0, 0, [])]}
    assert ratios(runs, "ours", "base") == [0.5, 0.5]
    assert ratios(runs, "ours", "base", "cpu") == [1.5, 1.5]


def test_calls_take_turns_and_a_round_is_their_median(clock: dict[str, float]) -> None:
    """Preparing a call does not count, nor does the first round, nor a call that was interrupted."""
    seen: list[str] = []

    def calling(name: str, seconds: float) -> timing.CallWay:
        @contextmanager
        def way() -> Iterator[timing.Call]:
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
    bars = {"slow": 1.2, "fine": 1.2}
    return Comparison("µs a call", 1e6, "torch", bars, {"X": {"torch": base, "slow": slow, "fine": fine}})


def test_what_is_above_its_bar_is_named(compared: Comparison, capsys: pytest.CaptureFixture[str]) -> None:
    assert compared.over() == {("X", "slow"): pytest.approx(1.3)}
    assert compared.over("wall") == {("X", "fine"): pytest.approx(4.0)}
    timing.print_comparison(compared)
    said = capsys.readouterr().out
    assert said.count("bar 1.20") == 3  # twice in the head
    assert "X: 'slow' takes 1.30 of the CPU time of 'torch', above its bar 1.20." in said
    found = timing.comparison_figures(compared)["X"]
    assert [found[way].get("within_bar") for way in ("torch", "slow", "fine")] == [None, False, True]
    assert found["fine"]["over_torch"] == [4.0] * 3
    assert found["fine"]["cpu_us_per_call"] == pytest.approx([1.2e6] * 3)


def test_nothing_above_its_bar_is_said_too(compared: Comparison, capsys: pytest.CaptureFixture[str]) -> None:
    timing.print_comparison(replace(compared, bars={"fine": 1.2}))
    assert "By CPU time, every ratio is within its bar." in capsys.readouterr().out


def test_spread_shows_three_digits() -> None:
    assert timing.spread([3.0, 1.0, 2.0]) == "2.00 [1.00, 3.00]"
    assert timing.spread([120.34, 11.15]) == "65.7 [11.2, 120.3]"


def test_the_error_of_a_loss_leaves_out_a_trend() -> None:
    flat, falling = Run(1, 1, 1, [1.0, 3.0, 1.0, 3.0]), Run(1, 1, 1, [4.0, 3.0, 2.0, 1.0])
    assert final_loss([flat]) == pytest.approx((2.0, (2.0 / 4) ** 0.5))
    assert final_loss([falling]) == pytest.approx((2.5, (0.5 / 4) ** 0.5))
    assert final_loss([flat, falling]) == pytest.approx((2.25, (2.5 / 4) ** 0.5 / 2))


def test_losses_that_differ_are_refused() -> None:
    same = Run(1.0, 1.0, 0.0, [4.0, 4.1, 3.9, 4.0])
    runs = {way: [same, same] for way in "abc"}
    check_losses("fine", runs, [("a", "b", "c")])
    runs["c"] = [Run(1.0, 1.0, 0.0, [4.5, 4.6, 4.4, 4.5])] * 2
    check_losses("fine", runs, [("a", "b"), ("c",)])
    with pytest.raises(SystemExit, match=r"'c' ends at a loss of 4\.5"):
        check_losses("not fine", runs, [("a", "b", "c")])


# What is said


def test_images_are_mnist_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    images, source = mnist_images(300)
    assert source.startswith("random grey images")
    assert images.shape == (300, 784)
    assert 0.18 < (images > 0).float().mean() < 0.22
    there = torch.rand(20, 784)
    monkeypatch.setattr(problems.data, "mnist", lambda: Split(there))
    images, source = mnist_images(10)
    assert source == "MNIST"
    assert torch.equal(images, there[:10])


@pytest.mark.parametrize("installed", [True, False])
def test_output_and_json(
    installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table of epochs in which fit takes 3 s, Pyro 4 s and pythae 5 s, with pythae and without."""
    seconds = {"Pyro, loader": 4.0, "fit": 3.0} | ({"pythae": 5.0} if installed else {})
    runs = {way: [Run(s, s, 0.5, [1.0, 2.0, 1.0, 2.0])] * 3 for way, s in seconds.items()}
    table = Table("s an epoch", 1.0, "Pyro, loader", [tuple(runs)], {"MNIST, 128": runs}, starts=True)
    monkeypatch.setattr(speed, "epochs_table", lambda args, images: table)
    monkeypatch.setattr(speed, "HAS_PYTHAE", installed)
    monkeypatch.setattr(speed, "version", lambda name: "1.0")
    path = tmp_path / "new" / "speed.json"
    speed.main(speed.parse(["--tables", "epochs", "--rows", "256", "--json", str(path)]))
    said = capsys.readouterr().out
    assert "Images: random grey images" in said
    assert "652,824 parameters" in said
    assert "an epoch of 'fit' takes 0.75 of the time of 'Pyro, loader' (0.75 by CPU time)" in said
    assert ("an epoch of 'fit' takes 0.60 of the time of 'pythae'" in said) == installed
    assert ("pip install -e '.[bench]'" in said) != installed
    found = json.loads(path.read_text())
    assert found["epochs"]["MNIST, 128"]["fit"]["s_per_epoch"] == [3.0, 3.0, 3.0]
    assert found["epochs"]["MNIST, 128"]["fit"]["over_pyro"] == [0.75, 0.75, 0.75]
    assert "steps" not in found
    assert found["images"].startswith("random")


def test_bars_in_output_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tables with bars, for real, without the others."""
    path = tmp_path / "speed.json"
    words = ["--tables", "entropies", "forms", "--quick", "--rows", "256", "--json", str(path)]
    speed.main(speed.parse(words))
    said = capsys.readouterr().out
    assert "1 repeats of 2 calls" in said
    assert "final losses" not in said
    found = json.loads(path.read_text())
    assert len(found["entropies"]) == 8
    assert list(found["forms"]) == list(step_problems())
    bars = {way: figures.get("bar") for way, figures in found["forms"]["graph, 8 bits"].items()}
    assert bars == {"Pyro": None, "lam = 0": 1.05, "lam = 0.4": 1.05, "lam = 0.4, alpha = 2": None}
    shown = [figures.get("bar") for figures in found["entropies"]["Normal, forward"].values()]
    barred = [figures.get("bar") for figures in found["entropies"]["Normal, and backward"].values()]
    assert (shown, barred) == ([None] * 5, [None, 1.2, *[1.5] * 3])


def test_pythae_is_a_way_where_it_is_installed() -> None:
    assert ("pythae" in EPOCH_WAYS) == HAS_PYTHAE


@pytest.mark.parametrize(
    ("option", "value"), [("epochs", "1"), ("repeats", "0"), ("steps", "10"), ("rows", "8"), ("calls", "0")]
)
def test_sizes_that_cannot_be_are_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        speed.parse([f"--{option}", value])
    assert f"--{option} {value}: expected" in capsys.readouterr().err
