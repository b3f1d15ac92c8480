"""The benchmark compares like with like: every way does the same work. Nothing here depends on how fast anything is."""

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import pyro
import pytest
import torch

from banel_pyro import Pair, Split
from banel_pyro.plates import DataPlate, tell_autoguide
from demos.benchmark import by_hand, graphs, pairs, problems
from demos.benchmark.problems import Problem, chain, mnist_images, radon_houses, step_makers
from demos.benchmark.timing import Lengths, Watch, Way
from demos.benchmark.ways import (
    BY_HAND,
    CAPTURED,
    HAS_NUMPYRO,
    HAS_PYTHAE,
    JOB_WAYS,
    LAM,
    PENALISED,
    RUN,
    SVI_WAY,
    UPDATE,
    step_ways,
)
from models import data, vae

MAKERS: dict[str, Callable[[], Problem]] = {
    name: make
    for name, make in step_makers(mnist_images(1024)[0]).items()
    if name not in ("logistic, 10^5 rows", "logistic, 10^6 rows", "MNIST VAE, 1024")
} | {"chain": lambda: chain(7)}
WAYS: dict[str, Way] = dict(step_ways(compiler="eager")) | JOB_WAYS


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random images and made-up houses take the place of the real ones."""
    monkeypatch.delenv("BANEL_DATA", raising=False)


def small_vae(lr: float) -> Problem:
    """A VAE of 48 images of 12 pixels, 3 steps an epoch."""
    grey = torch.rand(48, 12, generator=torch.Generator().manual_seed(1))
    sizes = {"pixels": 12, "hidden": 6, "latents": 3}

    def factory() -> Pair:
        split = Split(grey, None, data.binarize)
        return Pair(vae.Decoder(**sizes), vae.Encoder(**sizes), data=lambda: split, data_plate="data")

    return Problem(factory, by_hand.one_level, (grey,), data.binarize, 16, lr, peer="one_level")


def losses_of(problem: Problem, way: Way, steps: int, *, seed: int = 0) -> list[float]:
    """Train with a log point after every step."""
    torch.manual_seed(0)
    with pyro.get_param_store().scope():
        pair = problem.factory()
        torch.manual_seed(seed)
        return way(problem, pair, seed, Watch(Lengths(1, steps, 1)))


# Problems


@pytest.mark.parametrize("noise", [-1.3, 0.7])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_loss_by_hand_is_pyros(
    make: Callable[[], Problem], noise: float, monkeypatch: pytest.MonkeyPatch, float64: torch.dtype
) -> None:
    """On the same draws, all of them `noise` standard deviations from the guide's location."""
    problem = make()
    pair, index = problem.factory(), next(problem.order(seed=0, steps=1))
    batch = tuple(column.double() if column.is_floating_point() else column for column in next(problem.batches(0, 1)))
    _, loss = problem.by_hand(pair)
    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", lambda shape, **_: torch.full(shape, noise))
    monkeypatch.setattr(torch, "randn", lambda *shape: torch.full(shape, noise))
    monkeypatch.setattr(torch, "randn_like", lambda like: torch.full_like(like, noise))
    plate = DataPlate("data", len(problem.rows[0]), scaled=problem.scaled).rows(index if problem.scaled else None)
    with plate, tell_autoguide(pair.guide, plate):
        expected = problem.elbo().loss(pair.model, pair.guide, *batch)
    assert loss(*batch).item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("told", [False, True])
def test_plain_pyro_draws_its_batch_and_scales_it(told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same rows and the same draws of the guide, its loss is that of a batch told which rows it has."""
    problem = problems.logistic_regression(512)
    model, guide = pairs.plain_logistic(256, told=told)
    rows = torch.arange(0, 512, 2)
    monkeypatch.setattr(torch, "randint", lambda *shape: rows)
    monkeypatch.setattr(torch, "randperm", lambda *shape, **_: torch.cat([rows, rows + 1]))
    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", lambda shape, **_: torch.full(shape, 0.7))
    monkeypatch.setattr(torch, "randn", lambda *shape: torch.full(shape, 0.7))
    _, loss = problem.by_hand(problem.factory())
    expected = loss(*(column[rows] for column in problem.rows)).item()
    assert problem.elbo().loss(model, guide, *problem.rows) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["digits VAE", "logistic, 10^4 rows"])
def test_batches_are_those_of_fit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, seen = MAKERS[name](), []
    pair = problem.factory()
    split = pair.split()
    transform = split.transform or (lambda rows: rows)
    keep = Split(split.train, None, lambda rows: seen.append(rows[0]) or transform(rows))
    monkeypatch.setattr(type(pair), "split", lambda self: keep)
    steps = problem.steps_per_epoch + 3
    pair.fit(steps=steps, batch_size=problem.batch_size, seed=3, validation=None, progress=False)
    expected = [batch[0] for batch in replace(problem, transform=None).batches(seed=3, steps=steps)]
    assert {len(batch) for batch in expected} == {problem.batch_size}
    for ours, theirs in zip(seen[-steps:], expected, strict=True):  # before them fit looks at the data
        assert torch.equal(ours, theirs)


def test_a_loader_brings_every_row_once_an_epoch() -> None:
    problem = replace(small_vae(lr=1e-3), transform=None, batch_size=20)
    batches = [batch for (batch,) in problem.loaded(6)]
    assert [len(batch) for batch in batches] == [20, 20, 8] * 2
    first, second = torch.cat(batches[:3]), torch.cat(batches[3:])
    assert not torch.equal(first, second)
    for epoch in (first, second):
        assert sorted(epoch.tolist()) == sorted(problem.rows[0].tolist())


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


def test_houses_are_radons_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up, source = radon_houses()
    assert source.startswith("made-up houses")
    monkeypatch.setattr(problems.data, "radon", lambda: Split(made_up))
    houses, source = radon_houses()
    assert source == "radon in Minnesota"
    assert houses is made_up
    assert [len(column) for column in houses] == [800] * 4


# Ways


def test_ways_are_those_whose_packages_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ("pythae" in JOB_WAYS) == HAS_PYTHAE
    assert ({UPDATE, RUN} <= set(step_ways())) == HAS_NUMPYRO
    monkeypatch.setattr("demos.benchmark.ways.HAS_NUMPYRO", False)
    assert len(step_ways()) == 7
    assert not {UPDATE, RUN} & set(step_ways())


@pytest.mark.parametrize("name", [name for name in WAYS if name not in (UPDATE, RUN)])
def test_every_way_takes_as_many_steps_on_the_same_parameters(name: str) -> None:
    """Adam moves a parameter by hardly more than its learning rate in a step, and by that where gradients agree."""
    problem, steps, lr = small_vae(lr=1e-4), 12, 1e-4
    with ExitStack() as stack:
        stack.enter_context(pyro.get_param_store().scope())
        pair = problem.factory()
        trained = [*pair.model.parameters(), *pair.guide.parameters()]
        before = [parameter.detach().clone() for parameter in trained]
        watch = Watch(Lengths(4, steps, 1))
        losses = WAYS[name](problem, pair, 0, watch)
        moved = [float((new.detach() - old).abs().max()) for new, old in zip(trained, before, strict=True)]
    assert len(losses) == steps == 4 * problem.steps_per_epoch
    assert sorted(watch.marks) == [4, 12]
    assert sum(parameter.numel() for parameter in trained) == 12 * 6 + 6 + 6 * 6 + 6 + 3 * 6 + 6 + 6 * 12 + 12
    assert all(most > lr for most in moved)
    assert 0.8 * steps * lr < max(moved) < 1.1 * steps * lr


@pytest.fixture(scope="module")
def mean_losses() -> dict[str, tuple[float, float]]:
    """Mean loss of each way over 40 epochs that do not move anything to speak of, and its standard error."""
    problem, found = small_vae(lr=1e-9), {}
    for seed, (name, way) in enumerate(WAYS.items()):
        losses = losses_of(problem, way, 120, seed=seed)
        epochs = [statistics.fmean(losses[i : i + 3]) for i in range(0, 120, 3)]
        found[name] = statistics.fmean(epochs), statistics.stdev(epochs) / 40**0.5
    return found


@pytest.mark.parametrize("name", [name for name in WAYS if name != PENALISED])
def test_every_way_has_the_same_loss(name: str, mean_losses: dict[str, tuple[float, float]]) -> None:
    (a, error_a), (b, error_b) = mean_losses[name], mean_losses[BY_HAND]
    assert error_b < 0.05
    assert abs(a - b) <= 5 * (error_a**2 + error_b**2) ** 0.5


def test_lam_lowers_the_weight_of_log_q(mean_losses: dict[str, tuple[float, float]]) -> None:
    """By lam times the entropy of the guide, here close to 3 * 1.05 nats."""
    assert mean_losses[PENALISED][0] - mean_losses[CAPTURED][0] == pytest.approx(LAM * 3 * 1.05, abs=0.3)


@pytest.mark.parametrize("name", MAKERS)
def test_ways_agree_on_every_problem(name: str) -> None:
    """Mean losses over steps that do not move anything, from draws and batches of each way's own."""
    problem, found = replace(MAKERS[name](), lr=1e-9), {}
    ways = [SVI_WAY, "Pyro, one Adam", BY_HAND, CAPTURED, *([UPDATE] if HAS_NUMPYRO else [])]
    ways += [RUN] if HAS_NUMPYRO and name == "eight schools" else []  # it takes seconds to compile
    for seed, name in enumerate(ways):
        losses = losses_of(problem, WAYS[name], 40, seed=seed)
        found[name] = statistics.fmean(losses), statistics.stdev(losses) / 40**0.5
    (b, error_b) = found[BY_HAND]
    for name, (a, error_a) in found.items():
        assert abs(a - b) <= 5 * (error_a**2 + error_b**2) ** 0.5, name


@pytest.mark.parametrize("name", ["Pyro, one Adam", BY_HAND, CAPTURED])
def test_steps_move_autoguides_alike(name: str) -> None:
    """Twenty steps of eight schools from the same draws: the losses of all are those of Pyro's loop."""
    problem = replace(problems.noncentered_schools(), lr=0.05)
    losses = {way: losses_of(problem, WAYS[way], 200) for way in (SVI_WAY, name)}
    (first, last), (pyro_first, pyro_last) = (
        (statistics.fmean(each[:50]), statistics.fmean(each[-50:])) for each in (losses[name], losses[SVI_WAY])
    )
    assert pyro_last < pyro_first - 1
    assert (first, last) == pytest.approx((pyro_first, pyro_last), abs=0.15)


def test_a_compiled_loss_is_made_anew_for_each_pair() -> None:
    """Each run trains its own networks: `torch.compile` does not keep those of the run before."""
    way = WAYS["PyTorch, compiled"]
    for _ in range(2):
        assert losses_of(small_vae(lr=1e-2), way, 6) == pytest.approx(losses_of(small_vae(lr=1e-2), WAYS[BY_HAND], 6))


def test_a_penalty_adds_no_second_pass() -> None:
    found = graphs.vae_graphs()
    plain, penalised = found["lam = 0"], found[f"lam = {LAM}"]
    assert plain["AddmmBackward0"] == penalised["AddmmBackward0"] == found["Pyro"]["AddmmBackward0"] == 4
    assert (penalised - plain).total() <= 10
    assert plain.total() <= found["Pyro"].total()
    assert "The penalty adds 2 AddBackward0" in graphs.describe(found)
