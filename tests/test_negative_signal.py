"""Choosing epochs and filter factor by failures that were held out."""

from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from banel_pyro.negative import (
    DistributionGenerator,
    Evidence,
    HeldOut,
    LikelihoodRatio,
    ListedSuccesses,
    Oracle,
    RandomFilter,
    RatioFilter,
    Training,
    learn,
)
from banel_pyro.negative.signal import chosen_region
from banel_pyro.seeding import fork_rng

pytestmark = pytest.mark.usefixtures("float64")

FILTER = RatioFilter(Training(epochs=3, batch_size=20, lr=0.05))


def table(probs: Tensor) -> DistributionGenerator:
    return DistributionGenerator(dist.Categorical, logits=probs.log())


def evidence() -> Evidence:
    with fork_rng(0):
        base = table(torch.ones(12) / 12)
        failures = base.sample(60)
    return Evidence(base, failures[failures < 8], failures[:0], failures[:0])


def test_a_stage_is_what_so_many_epochs_learn() -> None:
    """Bit for bit, though one training passes through all of them."""
    stages = FILTER.stages(evidence(), [1, 7, 0], seed=5)
    assert list(stages) == [3, 0, 1, 7]
    for epochs, score in stages.items():
        alone = RatioFilter(Training(epochs=epochs, batch_size=20, lr=0.05)).learn(evidence(), seed=5)
        assert score(torch.arange(12)).equal(alone(torch.arange(12))), epochs
    assert not stages[1](torch.arange(12)).equal(stages[7](torch.arange(12)))
    assert stages[0](torch.arange(12)).abs().max() == 0


def test_a_filter_without_epochs_says_so() -> None:
    with pytest.raises(TypeError, match="RandomFilter has no epochs"):
        RandomFilter().stages(evidence(), [1], seed=0)


def test_the_region_with_the_largest_signal_is_chosen() -> None:
    """Failures are 0 to 3 of 8, all fresh draws alike: rejecting a half at the right score has a signal of a half."""
    base = table(torch.ones(8) / 8)
    right = LikelihoodRatio(base, table(torch.tensor([5.0] * 4 + [1.0] * 4) / 24))
    blind = LikelihoodRatio(base, table(torch.tensor([5.0, 1.0] * 4) / 24))
    held_out, fresh = torch.arange(4).repeat(50), torch.arange(8).repeat(50)
    region, told = chosen_region({1: blind, 9: right}, (1.5, 2.0), default=(1, 1.5), held_out=held_out, fresh=fresh)
    assert (told["chosen_epochs"], told["chosen_factor"]) == (9, 2.0)
    assert region.rejects(torch.arange(8)).tolist() == [True] * 4 + [False] * 4
    signals = {(epochs, factor): (signal, error) for epochs, factor, signal, error in told["signals"]}
    assert signals[9, 2.0] == (0.5, pytest.approx((0.25 / 400) ** 0.5))
    assert signals[1, 2.0][0] == 0.0


def test_without_a_signal_the_default_is_taken() -> None:
    base = table(torch.ones(8) / 8)
    blind = LikelihoodRatio(base, table(torch.tensor([5.0, 1.0] * 4) / 24))
    same = torch.arange(8).repeat(20)
    _, told = chosen_region({3: blind, 9: blind}, (2.0, 4.0), default=(3, 2.0), held_out=same, fresh=same)
    assert (told["chosen_epochs"], told["chosen_factor"]) == (3, 2.0)


def test_learn_chooses_in_every_round(tmp_path: Path) -> None:
    wins = torch.arange(20, 40)  # half of all: failures and fresh draws are easily told apart
    found = learn(
        table(torch.ones(40) / 40), Oracle(lambda x: torch.isin(x, wins), batch_size=100), budget=400, rounds=2,
        filter=RatioFilter(Training(epochs=1, lr=0.1)), factor=1.2, distillation=None, candidates=500, known="ask",
        held_out=HeldOut(epochs=(30,), factors=(2.0,)), success_rate=ListedSuccesses(wins), out=tmp_path / "run",
        seed=0, progress=False,
    )  # fmt: skip
    first = found.rounds.iloc[0]
    best = max(first["signals"], key=lambda row: row[2])
    assert [first["chosen_epochs"], first["chosen_factor"]] == best[:2]
    assert first["chosen_factor"] == 2.0  # 1.2 can only reject a sixth
    assert len(first["signals"]) == 4
    assert first["signal"] == max(signal for _, _, signal, _ in first["signals"])
    assert first["success_rate"] > 0.8


@pytest.mark.parametrize(
    ("options", "match"),
    [({"fraction": 1.0}, "fraction"), ({"epochs": (-1,)}, "epochs"), ({"factors": (1.0,)}, "factor")],
)
def test_bad_options_are_refused(options: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        HeldOut(**options)  # type: ignore[arg-type]


def test_the_largest_of_many_signals_has_to_be_larger() -> None:
    """One of 2.2 errors counts alone, and not as the largest of twelve: those have one above 2 by chance."""
    base = table(torch.ones(8) / 8)
    right = LikelihoodRatio(base, table(torch.tensor([5.0] * 4 + [1.0] * 4) / 24))
    blind = LikelihoodRatio(base, table(torch.tensor([5.0, 1.0] * 4) / 24))
    fresh = torch.arange(8).repeat(500)
    held_out = torch.cat([torch.arange(4).repeat(15), torch.arange(4, 8).repeat(9), torch.tensor([4, 5])])
    one = chosen_region({1: right}, (2.0,), default=(0, 0.0), held_out=held_out, fresh=fresh)[1]
    (_, _, signal, error), *_ = one["signals"]
    assert 2.05 < signal / error < 2.5
    assert one["chosen_epochs"] == 1
    many = {epochs: right if epochs == 1 else blind for epochs in range(1, 13)}
    region, told = chosen_region(many, (2.0,), default=(5, 2.0), held_out=held_out, fresh=fresh)
    assert told["chosen_epochs"] == 5
    assert region.score is blind
    assert told["signal_errors"] == pytest.approx(2.894, abs=0.001)  # the quantile of 1 - 0.02275 / 12
