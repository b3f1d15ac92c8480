"""The toy in one dimension: what a round of filtering does to the success rate, exactly, and what it loses."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from banel_pyro.negative import ExplorationPosterior, LikelihoodRatio, RandomScore, Region, Regions
from models.bins import (
    FIRST_FAILURES,
    NUM_BINS,
    SUCCESSES,
    Bins,
    SmoothedHistogram,
    acceptance,
    accepted,
    number,
    position,
    posterior_table,
    prior,
    reachable,
    reward,
    success_rate,
)

pytestmark = pytest.mark.usefixtures("float64")

X = torch.arange(NUM_BINS)
AT = {float(position(bin_)): int(bin_) for bin_ in X}
FIRST = number(torch.tensor(FIRST_FAILURES))


def first_region(log_tau: float = 0.05) -> Region:
    return Region(LikelihoodRatio(prior(), SmoothedHistogram.fitted(FIRST)), log_tau)


def rounds(number_of_rounds: int = 6, batch: int = 10, factor: float = 1.5) -> list[Regions]:
    """The regions after each round: the first on fixed failures, the others on draws of the posterior before."""
    found = [Regions([first_region()])]
    for _ in range(number_of_rounds - 1):
        proposal = ExplorationPosterior(prior(), found[-1])
        drawn = proposal.sample((batch,))
        failures = drawn[reward(drawn) == 0]
        if not len(failures):
            break
        score = LikelihoodRatio(prior(), SmoothedHistogram.fitted(failures))
        found.append(found[-1] | Region.at_quantile(score, proposal.sample((2000,)), factor))
    return found


def law_identity(base: Bins, union: Regions) -> None:
    """SR_new = SR_old P(accept | success) / P(accept), and so the gain is at most 1 / P(accept)."""
    p, kept = base.table().detach().exp(), accepted(union)
    old, new = success_rate(base.table()), success_rate(posterior_table(base, union))
    given_success = float(p[list(SUCCESSES)][kept[list(SUCCESSES)]].sum()) / old
    assert new == pytest.approx(old * given_success / acceptance(base, union), rel=1e-10)
    assert new / old <= 1 / acceptance(base, union) * (1 + 1e-12)


# ---- the pieces ----------------------------------------------------------------------------------


def test_bins_are_those_of_the_illustration() -> None:
    assert (len(AT), position(X)[0], position(X)[-1]) == (31, -3, 3)
    assert number(position(X)).equal(X)
    assert float(prior().table().detach().exp().max()) == pytest.approx(0.08, abs=0.001)
    assert float(prior().table().detach().exp().sum()) == pytest.approx(1)
    assert X[reward(X) == 1].tolist() == list(SUCCESSES)
    assert position(torch.tensor(SUCCESSES)).tolist() == pytest.approx([-2, 2])
    assert success_rate(prior().table()) == pytest.approx(2 * 0.0108, rel=0.01)


def test_the_failure_model_is_the_mean_of_kernels() -> None:
    model = SmoothedHistogram.fitted(FIRST, width=0.4)
    kernels = [torch.exp(-0.5 * ((X - bin_) * 0.2 / 0.4) ** 2) for bin_ in FIRST.tolist()]
    exact = torch.stack([kernel / kernel.sum() for kernel in kernels]).mean(0)
    assert torch.allclose(model.table().exp(), exact, atol=1e-12)


def test_bins_are_drawn_from_their_table() -> None:
    table = torch.zeros(NUM_BINS).masked_fill(X % 2 == 0, -math.inf)
    drawn = Bins(table).sample(3000)
    counts = torch.bincount(drawn, minlength=NUM_BINS).double()
    assert counts[::2].sum() == 0
    assert ((counts[1::2] - 200).abs() < 4 * math.sqrt(200)).all()


# ---- laws ----------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(-5, 5), min_size=NUM_BINS, max_size=NUM_BINS),
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.floats(0.01, 0.6)), max_size=3),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_the_success_rate_identity(log_weights: list[float], random: list[tuple[int, float]]) -> None:
    union = Regions(Region(RandomScore(seed), log_tau) for seed, log_tau in random)
    if not accepted(union).any():
        with pytest.raises(ValueError, match="reject every bin"):
            posterior_table(prior(), union)
        return
    law_identity(Bins(torch.tensor(log_weights, dtype=torch.float64)), union)


def test_without_a_filter_nothing_changes() -> None:
    """f = 1 is no region; a failure model of zero epochs is a copy: acceptance 1, the same success rate."""
    base = prior()
    copied = Region.at_quantile(LikelihoodRatio(base, base.copy()), base.sample(500), 2)
    for union in (Regions(), Regions([copied])):
        assert acceptance(base, union) == pytest.approx(1)
        assert success_rate(posterior_table(base, union)) == pytest.approx(success_rate(base.table()))
        assert reachable(posterior_table(base, union)) == pytest.approx([-2, 2])


# ---- the success that is lost for ever -----------------------------------------------------------


def test_the_first_round_rejects_one_success_and_keeps_the_other() -> None:
    """Failures at -2.2 and -1.8 smear over -2; any threshold between the two ratios does it, a quantile too."""
    score = first_region().score(X).detach()
    low, high = float(score[SUCCESSES[0]]), float(score[SUCCESSES[1]])
    for log_tau in (low + 1e-9, 0.05, high - 1e-9):
        assert accepted(first_region(log_tau))[list(SUCCESSES)].tolist() == [False, True]
    assert accepted(first_region(low))[SUCCESSES[0]], "the inequality is strict"
    for factor in (1.5, 2.0, 16.0):
        region = Region.at_quantile(first_region().score, prior().sample(2000), factor)
        assert accepted(region)[list(SUCCESSES)].tolist() == [False, True]


@pytest.mark.parametrize("seed", range(5))
def test_it_never_comes_back_and_the_success_rate_hides_it(seed: int) -> None:
    torch.manual_seed(seed)
    found = rounds()
    kept = [accepted(union) for union in found]
    assert len(found) > 2
    for before, after in pairwise(kept):
        assert (after <= before).all()
    for union in found:
        law_identity(prior(), union)
        assert not accepted(union)[AT[-2.0]]
    tables = [posterior_table(prior(), union) for union in found]
    assert reachable(tables[0]) == [2.0]
    assert all(reachable(table) in ([], [2.0]) for table in tables)


def test_a_success_rate_of_1_with_a_success_lost() -> None:
    """Down to the bin at 2: the success rate says that all is well, the count of reachable successes does not."""
    only = torch.full((NUM_BINS,), 5.0)
    only[SUCCESSES[1]] = -5.0
    union = Regions([first_region(), Region(LikelihoodRatio(prior(), Bins(prior().table().detach() + only)), 0.0)])
    law_identity(prior(), union)
    table = posterior_table(prior(), union)
    assert success_rate(table) == pytest.approx(1)
    assert reachable(table) == pytest.approx([2.0])
