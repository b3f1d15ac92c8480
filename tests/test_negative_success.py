"""Success rates: exact ones by enumeration, and Clopper and Pearson's interval against its quantiles and coverage."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import beta, binom
from torch import Tensor

from banel_pyro.negative import (
    DrawnSuccesses,
    ExplorationPosterior,
    LikelihoodRatio,
    ListedSuccesses,
    Region,
    Regions,
    SuccessRate,
    Task,
)
from banel_pyro.negative.success import clopper_pearson
from tests.negative_cases import VALUES, WINS, Table, accepted, reward

pytestmark = pytest.mark.usefixtures("float64")


def rejecting(*numbers: int) -> Region:
    """A region of these numbers."""
    inside = torch.isin(VALUES, torch.tensor(numbers)).double()
    base = Table()
    return Region(LikelihoodRatio(base, Table(base.log_prob(VALUES).detach() + 3 * inside)), 0.0)


CENTRE = rejecting(*range(10, 30))
ONE_SUCCESS = rejecting(3, *range(10, 30))


def exact(regions: Regions) -> float:
    p = Table().table() * accepted(regions)
    return float(p[WINS].sum() / p.sum())


def test_a_listed_rate_is_the_sum_over_successes() -> None:
    found = ListedSuccesses(WINS)(Table())
    assert found.value == pytest.approx(float(Table().table()[WINS].sum()), rel=1e-12)
    assert found.low == found.value == found.high
    assert (found.draws, found.reachable) == (0, 2)
    assert float(found.weights.sum()) == pytest.approx(found.value, rel=1e-12)
    assert str(found) == f"{found.value:.3g}"


@pytest.mark.parametrize("regions", [Regions([CENTRE]), Regions([ONE_SUCCESS])], ids=["centre", "one success"])
def test_a_listed_rate_outside_of_regions(regions: Regions) -> None:
    """Exact but for P(accept), whose interval it has."""
    accept, hits = float(Table().table()[accepted(regions)].sum()), 0
    for seed in range(20):
        found = ListedSuccesses(WINS, draws=1000)(Table(), regions, seed=seed)
        stderr = ((1 - accept) / accept / 1000) ** 0.5
        assert abs(exact(regions) / found.value - 1) < 4.5 * stderr
        hits += found.low <= exact(regions) <= found.high
        assert found.reachable == int(accepted(regions)[WINS].sum())
        assert float(found.weights.sum()) == pytest.approx(found.value, rel=1e-12)
        assert found.draws == 1000
    assert hits >= 16
    again = ListedSuccesses(WINS, draws=1000)(Table(), regions, seed=19)
    assert again.value == found.value


def test_no_rate_is_above_1() -> None:
    """Where only successes are left, and few draws say how many those are."""
    regions = Regions([rejecting(*(number for number in range(40) if number not in (3, 38)))])
    for seed in range(5):
        found = ListedSuccesses(WINS, draws=20)(Table(), regions, seed=seed)
        assert 0 < found.low <= found.high <= 1
        assert math.isnan(found.value) or found.low <= found.value <= found.high


def test_all_successes_are_lost() -> None:
    found = ListedSuccesses(WINS)(Table(), Regions([rejecting(3, 38)]))
    assert (found.value, found.low, found.high, found.reachable) == (0, 0, 0, 0)
    assert math.isnan(found.accepted_by(CENTRE))


def test_accepted_given_success() -> None:
    p = Table().table()
    found = ListedSuccesses(torch.tensor([3, 20, 38]))(Table())
    assert found.accepted_by(CENTRE) == pytest.approx(float((p[3] + p[38]) / (p[3] + p[20] + p[38])), rel=1e-12)
    assert found.accepted_by(Regions([CENTRE, rejecting(3)])) == pytest.approx(
        float(p[38] / (p[3] + p[20] + p[38])), rel=1e-12
    )
    within = ListedSuccesses(torch.tensor([3, 20, 38]))(Table(), Regions([CENTRE]))
    assert within.accepted_by(rejecting(3)) == pytest.approx(float(p[38] / (p[3] + p[38])), rel=1e-12)


@pytest.mark.parametrize("confidence", [0.95, 0.8])
@pytest.mark.parametrize("count", [0, 1, 7, 100])
def test_clopper_and_pearson_against_quantiles(count: int, confidence: float) -> None:
    value, low, high = clopper_pearson(count, 100, confidence)
    tail = (1 - confidence) / 2
    assert value == count / 100
    assert low == pytest.approx(0.0 if count == 0 else beta.ppf(tail, count, 101 - count), rel=1e-8)
    assert high == pytest.approx(1.0 if count == 100 else beta.ppf(1 - tail, count + 1, 100 - count), rel=1e-8)


@pytest.mark.parametrize("rate", [0.001, 0.02, 0.3])
def test_the_interval_covers(rate: float) -> None:
    """By the exact binomial sum: at least 95 %, in each tail too."""
    ends = np.array([clopper_pearson(count, 60, 0.95) for count in range(61)])
    weights = binom.pmf(np.arange(61), 60, rate)
    assert weights[ends[:, 1] > rate].sum() <= 0.025
    assert weights[ends[:, 2] < rate].sum() <= 0.025


@pytest.mark.parametrize("regions", [Regions(), Regions([ONE_SUCCESS])], ids=["all", "outside of a region"])
def test_a_drawn_rate(regions: Regions) -> None:
    """Binomial about the exact one, with the candidates that succeeded."""
    values, hits = [], 0
    for seed in range(20):
        found = DrawnSuccesses(reward, draws=500)(Table(), regions, seed=seed)
        values.append(found.value)
        hits += found.low <= exact(regions) <= found.high
        assert torch.isin(found.successes, WINS).all()
        assert len(found.successes) == round(found.value * 500)
        assert float(found.weights.sum()) == pytest.approx(found.value)
        assert (found.draws, found.reachable) == (500, None)
    rate = exact(regions)
    assert abs(np.mean(values) - rate) < 4 * (rate * (1 - rate) / 500 / 20) ** 0.5
    assert hits >= 16
    assert str(found).startswith(f"{found.value:.3g} [")
    if len(regions):
        assert found.accepted_by(regions) == 1
    torch.manual_seed(0)
    before = torch.get_rng_state()
    again = DrawnSuccesses(reward, draws=500)(Table(), regions, seed=19)
    assert (again.value, again.low) == (found.value, found.low)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_success_was_drawn() -> None:
    found = DrawnSuccesses(lambda x: x < 0, draws=100)(Table())
    assert (found.value, found.low) == (0, 0)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 100), rel=1e-8)
    assert math.isnan(found.accepted_by(CENTRE))


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (lambda x: torch.full((len(x),), torch.nan), "reward nan: expected 0 or 1"),
        (lambda x: x, "expected 0 or 1"),
        (lambda x: reward(x)[:, None], "expected 50 rewards"),
        (lambda x: None, "returned None"),
    ],
    ids=["NaN", "other numbers", "column", "nothing"],
)
def test_rewards_that_are_none(fn: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        DrawnSuccesses(fn, draws=50)(Table())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DrawnSuccesses(reward, draws=0), "^draws=0"),
        (lambda: DrawnSuccesses(reward, confidence=1.0), r"^confidence=1\.0"),
        (lambda: DrawnSuccesses(WINS), "^reward=tensor"),
        (lambda: ListedSuccesses(WINS, draws=0), "^draws=0"),
        (lambda: Task("t", Table(), WINS), "^reward=tensor"),
        (lambda: Task(3, Table(), reward), "^name=3"),
        (lambda: Task("t", WINS, reward), "without sample"),
    ],
)
def test_bad_options(make: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        make()


def test_a_task_shows_its_candidates() -> None:
    def show(x: Tensor) -> list[str]:
        return [f"#{int(value)}" for value in x]

    assert Task("t", Table(), reward, show=show).texts(WINS) == ["#3", "#38"]
    assert Task("t", Table(), reward).texts(WINS) == ["3", "38"]


def test_what_is_recorded() -> None:
    assert ListedSuccesses(WINS).describe() == {"success": "exact", "listed": 2}
    assert DrawnSuccesses(reward, draws=9).describe() == {"success": "drawn", "draws": 9, "confidence": 0.95}
    assert isinstance(ListedSuccesses(WINS)(Table()), SuccessRate)


def test_where_no_draw_is_accepted_the_rate_is_not_known() -> None:
    """Only an end of its interval is: what the successes have, over the most that may be accepted."""
    regions = Regions([rejecting(*(number for number in range(40) if number != 38))])
    table = Table()
    with torch.no_grad():
        table.logits[38] = -30.0
    found = ListedSuccesses(WINS, draws=20)(table, regions, seed=0)
    assert math.isnan(found.value)
    assert 0 < found.low < found.high == 1


class Dropped(Table):
    """Another distribution while it is trained."""

    def table(self) -> Tensor:
        return super().table().roll(20) if self.training else super().table()

    def log_prob(self, x: Tensor) -> Tensor:
        return super().log_prob((x - 20) % 40) if self.training else super().log_prob(x)


def test_generators_are_measured_and_drawn_from_in_evaluation_mode() -> None:
    made = Dropped().train()
    assert ListedSuccesses(WINS)(made).value == pytest.approx(ListedSuccesses(WINS)(Table()).value, rel=1e-12)
    posterior = ExplorationPosterior(made)
    x = posterior.sample((2000,))
    assert ((x - 19.5).abs() < 10).double().mean() > 0.7  # the bell stands in the middle
    assert posterior.log_prob(x).equal(Table().log_prob(x))
    assert made.training
