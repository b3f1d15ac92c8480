"""Filters: which model is trained on which failures and the score that comes of it; and held-out failures."""

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from banel_pyro.negative import (
    Evidence,
    FailureLikelihood,
    Generator,
    HeldOut,
    LikelihoodRatio,
    RandomFilter,
    RandomScore,
    RatioFilter,
    Region,
    Regions,
    Training,
    held_out_signal,
)
from tests.negative_cases import VALUES, Table

pytestmark = pytest.mark.usefixtures("float64")

LONG = Training(epochs=60, batch_size=64, lr=0.1)


def evidence(**given: Any) -> Evidence:
    torch.manual_seed(3)
    base = Table()
    options: dict[str, Any] = {"generator": base, "failures": base.sample(50), "earlier": base.sample(70),
                               "successes": torch.tensor([3, 3, 38])}  # fmt: skip
    return Evidence(**options | given)


class Spy(Training):
    """Training that remembers what it was given, and trains nothing."""

    seen: ClassVar[list[tuple[Generator, Tensor, Tensor]]] = []

    def __call__(self, generator: Generator, x: Tensor, **options: Any) -> Any:
        self.seen.append((generator, generator.state_dict()["logits"].clone(), x))
        assert all(p.requires_grad for p in generator.parameters())
        with torch.no_grad():
            generator.logits += 1.0 * (VALUES == 5)


@pytest.fixture
def spy() -> Spy:
    Spy.seen.clear()
    return Spy()


@pytest.mark.parametrize("data", ["round", "all"])
def test_the_failures_that_it_is_trained_on(data: Any, spy: Spy) -> None:
    given = evidence()
    RatioFilter(spy, data=data).learn(given, seed=0)
    ((_, _, x),) = spy.seen
    expected = given.failures if data == "round" else torch.cat([given.earlier, given.failures])
    assert torch.equal(x, expected)
    assert not torch.isin(x, given.successes).all()


def test_it_starts_as_a_copy_of_the_generator(spy: Spy) -> None:
    given = evidence()
    before = given.generator.logits.detach().clone()
    score = RatioFilter(spy).learn(given, seed=0)
    ((trained, start, _),) = spy.seen
    assert isinstance(score, LikelihoodRatio)
    assert torch.equal(start, before)
    assert (score.base, score.failures) == (given.generator, trained)
    assert trained is not given.generator
    assert torch.equal(given.generator.logits.detach(), before), "and leaves the generator as it is"
    assert not trained.logits.requires_grad
    assert given.generator.logits.requires_grad


def test_it_starts_from_the_failure_model_before(spy: Spy) -> None:
    how = RatioFilter(spy, start="previous")
    first = how.learn(evidence(), seed=0)
    second = how.learn(evidence(previous=first), seed=0)
    how.learn(evidence(previous=FailureLikelihood(second.failures)), seed=0)
    how.learn(evidence(previous=RandomScore(0)), seed=0)
    starts = [start[5] - Table().logits.detach()[5] for _, start, _ in spy.seen]
    assert starts == pytest.approx([0, 1, 2, 0]), "and from the generator where there is none"
    assert float(first.failures.logits.detach()[5]) == pytest.approx(float(Table().logits.detach()[5]) + 1), (
        "which is left alone"
    )


def test_it_starts_from_what_a_function_returns(spy: Spy) -> None:
    made = [Table(torch.zeros(40)), Table(torch.zeros(40))]
    how = RatioFilter(spy, start=lambda: made.pop())
    score = how.learn(evidence(), seed=0)
    assert spy.seen[0][0] is score.failures
    assert spy.seen[0][1].abs().sum() == 0
    assert how.parts()["failures"] is not score.failures
    assert how.describe()["start"].endswith("<lambda>")
    assert (RatioFilter().parts(), RandomFilter().parts()) == ({}, {})


def test_the_scores(spy: Spy) -> None:
    given = evidence()
    ratio = RatioFilter(spy, kappa=1.5).learn(given, seed=0)
    alone = RatioFilter(spy, kappa=1.5, score="failures").learn(given, seed=0)
    log_p = given.generator.log_prob(VALUES).detach()
    log_phi = ratio.failures.log_prob(VALUES).detach()
    torch.testing.assert_close(ratio(VALUES), log_p - 1.5 * log_phi)
    torch.testing.assert_close(alone(VALUES), -1.5 * log_phi)
    assert isinstance(alone, FailureLikelihood)


def test_maximum_likelihood_rejects_what_failed_most() -> None:
    """Trained to its end the failure model is the table of frequencies, and the ratio that of the two tables."""
    given = evidence(failures=torch.tensor([20] * 60 + [5] * 20 + [30] * 20))
    score = RatioFilter(Training(epochs=300, batch_size=100, lr=0.2)).learn(given, seed=0)
    table = score.failures.log_prob(VALUES).detach().exp()
    assert table[[20, 5, 30]] == pytest.approx(torch.tensor([0.6, 0.2, 0.2]), abs=0.01)
    region = Region(score, 0.0)
    assert VALUES[region.rejects(VALUES)].tolist() == [5, 20, 30]


def test_0_epochs_reject_nothing() -> None:
    score = RatioFilter(Training(epochs=0)).learn(evidence(), seed=0)
    assert score(VALUES).abs().max() == 0
    assert Region.at_quantile(score, Table().sample(200), 4.0).acceptance(VALUES).value == 1


def test_a_seed_decides() -> None:
    how = RatioFilter(Training(epochs=2, batch_size=8, lr=0.1))
    one, same, other = (how.learn(evidence(), seed=seed)(VALUES) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_random_filter_knows_nothing() -> None:
    """Over seeds a success is accepted as often as any candidate, and what was seen does not matter."""
    given = evidence(generator=Table(torch.zeros(2000)))
    x = torch.arange(2000)
    gains = []
    for seed in range(60):
        score = RandomFilter().learn(given, seed=seed)
        assert torch.equal(score(x), RandomFilter().learn(evidence(), seed=seed)(x))
        kept = ~Region.at_quantile(score, x, 4.0).rejects(x)
        assert int(kept.sum()) == 500
        gains.append(float(kept[:50].double().mean()) * 4)
    # the share of 50 of which a quarter is accepted, out of 2000 without replacement, times 4
    expected = 4 * (0.25 * 0.75 / 50 * (2000 - 50) / 1999) ** 0.5
    assert abs(np.mean(gains) - 1) < 4 * expected / 60**0.5
    assert np.std(gains, ddof=1) == pytest.approx(expected, rel=4 / (2 * 59) ** 0.5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kappa": 0}, "^kappa=0"),
        ({"start": "fresh"}, "^start='fresh'"),
        ({"data": "last"}, "^data='last'"),
        ({"score": "both"}, "^score='both'"),
        ({"training": 10}, "^training=10"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        RatioFilter(**options)


# Held-out failures


def rates(region: Region, base: Table, wins: Tensor) -> tuple[float, float, float]:
    """SR, and what is rejected of failures and of successes, by enumeration."""
    p, rejected, won = base.table(), region.rejects(VALUES), torch.isin(VALUES, wins)
    return (
        float(p[won].sum()),
        float(p[~won & rejected].sum() / p[~won].sum()),
        float(p[won & rejected].sum() / p[won].sum()),
    )


def signals(region: Region, base: Table, wins: Tensor, repeats: int) -> Tensor:
    found = []
    for _ in range(repeats):
        drawn = base.sample(800)
        failures = drawn[~torch.isin(drawn, wins)]
        found.append(
            held_out_signal(region, trained=failures[:100], held_out=failures[100:200], fresh=base.sample(200))
        )
    return torch.tensor([[row["signal"], row["signal_stderr"]] for row in found])


def test_the_expectation_of_the_signal() -> None:
    """SR (P(reject | failure) − P(reject | success)), with a success rate that is large; its error is right."""
    base, wins = Table(), torch.arange(12, 24)
    region = Region(RatioFilter(LONG).learn(evidence(failures=torch.arange(24, 40).repeat(4)), seed=0), 0.0)
    success, given_failure, given_success = rates(region, base, wins)
    expected = success * (given_failure - given_success)
    assert expected > 0.1, "there is something to see"
    found = signals(region, base, wins, 200)
    spread = float(found[:, 0].std())
    assert abs(float(found[:, 0].mean()) - expected) < 4 * spread / 200**0.5
    assert float(found[:, 1].mean()) == pytest.approx(spread, rel=4 / (2 * 199) ** 0.5)


def test_the_signal_sees_nothing_where_successes_are_rare() -> None:
    """Fresh draws are failures, but for SR: it cannot be larger than that, however good the region is."""
    base, wins = Table(), torch.tensor([0])
    kept = torch.zeros(40)
    kept[1:] = 5.0  # a failure model that has all failures right: of a success it says less
    region = Region(LikelihoodRatio(base, Table(base.logits.detach() + kept)), -1e-6)
    success, given_failure, given_success = rates(region, base, wins)
    assert (given_failure, given_success) == (1, 0)
    found = signals(region, base, wins, 200)[:, 0]
    assert abs(float(found.mean()) - success) < 4 * float(found.std()) / 200**0.5 + 1e-12
    assert success < 0.01
    assert float(found.abs().max()) < 0.05


def test_learning_by_heart_shows() -> None:
    """A failure model that is trained for too long rejects the failures it has seen, and no others."""
    base = Table(torch.zeros(1000))
    drawn = base.sample(400)
    x = drawn[~torch.isin(drawn, drawn[drawn.flip(0) == drawn])]
    trained, held_out = x[: len(x) // 2], x[len(x) // 2 :]
    how = RatioFilter(Training(epochs=100, batch_size=64, lr=0.2))
    score = how.learn(evidence(generator=base, failures=trained), seed=0)
    found = held_out_signal(Region(score, 0.0), trained=trained, held_out=held_out, fresh=base.sample(1000))
    assert found["rejected_trained"] > 0.99
    assert found["rejected_held_out"] < 0.4
    assert found["signal"] == found["rejected_held_out"] - found["rejected_fresh"]


def test_when_the_signal_stops_a_run() -> None:
    quiet, loud, silent = {"signal": 0.03, "signal_stderr": 0.02}, {"signal": 0.05, "signal_stderr": 0.02}, {}
    nothing = {"signal": 0.0, "signal_stderr": 0.0}
    how = HeldOut(patience=2)
    for rows, expected in (
        ([], False), ([quiet], False), ([quiet, quiet], True), ([loud, quiet], False), ([quiet, quiet, loud], False),
        ([loud, quiet, quiet], True), ([quiet, silent], False), ([nothing, nothing], True),
    ):  # fmt: skip
        assert how.stops(rows) is expected, rows
    assert HeldOut().stops([quiet] * 9) is False
    assert [HeldOut(fraction=0.2).count(n) for n in (0, 1, 2, 10, 11)] == [0, 0, 0, 2, 2]
    assert [HeldOut(fraction=0.9).count(n) for n in (0, 1, 2, 10)] == [0, 0, 1, 9]
    for options in ({"fraction": 0.0}, {"fraction": 1.0}, {"patience": 0}):
        with pytest.raises(ValueError, match=f"^{next(iter(options))}="):
            HeldOut(**options)


def test_a_union_has_no_fewer_rejections() -> None:
    """That of two rounds, each with the base that it was made for."""
    first = Region(RatioFilter(LONG).learn(evidence(failures=torch.tensor([20] * 50)), seed=0), 0.0)
    second = Region(
        RatioFilter(LONG).learn(
            evidence(generator=Table(torch.zeros(40)), failures=torch.tensor([30] * 50), previous=first.score), seed=0
        ),
        0.0,
    )
    assert VALUES[Regions([first, second]).rejects(VALUES)].tolist() == [20, 30]
