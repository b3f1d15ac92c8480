"""The benchmark compares like with like: the losses written by hand are Pyro's, and a penalty costs no second pass."""

import argparse
from collections.abc import Callable

import pytest
import torch
from pyro.infer import Trace_ELBO

from demos import speed
from demos.speed import LAM, PROBLEMS, Problem, Run, check_losses, measure, vae_graphs


@pytest.mark.parametrize("noise", [-1.3, 0.7])
@pytest.mark.parametrize("make", PROBLEMS.values(), ids=PROBLEMS)
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
    problem, seen = PROBLEMS["digits VAE"](), []
    pair = problem.factory()
    split = pair.split()
    keep = type(split)(split.train, None, lambda rows: seen.append(rows[0]) or split.transform(rows))
    monkeypatch.setattr(type(pair), "split", lambda self: keep)
    pair.fit(steps=14, batch_size=problem.batch_size, seed=3, validation=None, progress=False)  # an epoch has 12
    grey = Problem(problem.factory, problem.by_hand, problem.rows, None, problem.batch_size, problem.lr)
    expected = [batch for (batch,) in grey.batches(seed=3, steps=14)]
    assert [len(batch) for batch in expected] == [*[128] * 11, 92, 128, 128]
    for ours, theirs in zip(seen[-14:], expected, strict=True):  # before them fit looks at the data
        assert torch.equal(ours, theirs)


def test_a_penalty_adds_no_second_pass() -> None:
    graphs = vae_graphs()
    plain, penalised = graphs["lam = 0"], graphs[f"lam = {LAM}"]
    assert plain["AddmmBackward0"] == penalised["AddmmBackward0"] == graphs["Pyro"]["AddmmBackward0"] == 4
    assert (penalised - plain).total() <= 10
    assert plain.total() <= graphs["Pyro"].total()


def test_losses_that_differ_are_refused() -> None:
    same = Run(1.0, 1.0, [4.0, 4.1, 3.9, 4.0])
    runs = {way: [same, same] for way in speed.WAYS}
    check_losses("fine", runs)
    runs["PyTorch"] = [Run(1.0, 1.0, [4.5, 4.6, 4.4, 4.5])] * 2
    with pytest.raises(SystemExit, match=r"'PyTorch' ends at a loss of 4\.5"):
        check_losses("not fine", runs)


def test_time_is_of_the_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A way that takes 5 s to start and 2 ms a step takes 2 ms a step."""
    clock = [0.0]

    def way(problem: Problem, pair: object, seed: int, steps: int, log_every: int) -> list[float]:
        clock[0] += 5.0 + 0.002 * steps
        return [1.0] * steps

    monkeypatch.setitem(speed.WAYS, "slow start", way)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock[0])
    run = measure(PROBLEMS["eight schools"](), "slow start", 0, argparse.Namespace(steps=200))
    assert run.wall == pytest.approx(2.0)
    assert len(run.losses) == 25  # the last quarter of a hundred blocks
