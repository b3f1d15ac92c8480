"""Distillation: what the distilled generator is, and that its fidelity is measured right, by enumeration."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from banel_pyro.negative import (
    AcceptanceError,
    Distillation,
    ExplorationPosterior,
    LikelihoodRatio,
    Region,
    Regions,
    Training,
    distil,
    rounds,
)
from tests.negative_cases import VALUES, Table, accepted, run

pytestmark = pytest.mark.usefixtures("float64")

NONE = Training(epochs=0)


def region(base: Table, low: int, high: int) -> Region:
    """It rejects the numbers from low to high."""
    inside = ((low <= VALUES) & (high >= VALUES)).double()
    return Region(LikelihoodRatio(base, Table(base.log_prob(VALUES).detach() + 3 * inside)), 0.0)


def posterior(base: Table, *regions: Region) -> ExplorationPosterior:
    return ExplorationPosterior(base, Regions(regions))


def table_of(found: ExplorationPosterior) -> Tensor:
    """The posterior's probabilities, exactly."""
    p = found.generator.table() * accepted(found.regions)
    return p / p.sum()


def divergence(p: Tensor, q: Tensor) -> float:
    """KL(p ‖ q) in nats, by enumeration."""
    return float(torch.xlogy(p, p / q).sum())


def middle(base: Table) -> Region:
    return region(base, 15, 24)


def test_the_region_is_what_it_is_called() -> None:
    assert VALUES[middle(Table()).rejects(VALUES)].tolist() == list(range(15, 25))


def test_what_is_measured_is_right() -> None:
    """KL, held-out log-likelihood and acceptance of a generator that was not trained: exact in standard errors."""
    found, z, values = posterior(Table(), middle(Table())), [], []
    p, q = table_of(found), Table().table()
    exact = {
        "divergence": divergence(p, q), "held_out": float((p * q.log()).sum()),
        "acceptance": float(q[accepted(found.regions)].sum()),
    }  # fmt: skip
    assert exact["divergence"] == pytest.approx(-math.log(exact["acceptance"]), rel=1e-12)
    other = Table(torch.linspace(-1.0, 1.0, 40))
    for seed in range(30):
        fresh = posterior(Table(), middle(Table()))
        done = distil(fresh, Distillation(draws=300, training=NONE, held_out=0.5), seed=seed)
        z.append([(getattr(done, name).value - value) / getattr(done, name).stderr for name, value in exact.items()
                  if name != "held_out"])  # fmt: skip
        from_other = distil(fresh, Distillation(draws=300, training=NONE, held_out=0.5), start=other, seed=seed)
        values.append((from_other.divergence.value - divergence(p, other.table())) / from_other.divergence.stderr)
    for column in [*torch.tensor(z).T, torch.tensor(values)]:
        assert abs(float(column.mean())) < 4 / 30**0.5
        assert float(column.std()) == pytest.approx(1, rel=0.6)
    assert done.held_out.value == pytest.approx(exact["held_out"], abs=5 * done.held_out.stderr)


def test_enough_draws_and_epochs_make_it_the_posterior() -> None:
    found = posterior(Table(), middle(Table()))
    plan = Distillation(draws=20_000, training=Training(epochs=60, batch_size=2000, lr=0.1), held_out=0.2)
    done = distil(found, plan, seed=0)
    p = table_of(found)
    frequency = (p * (1 - p) / 20_000).sqrt()
    assert ((done.generator.table() - p).abs() < 5 * frequency + 1e-3).all()
    assert divergence(p, done.generator.table()) < 0.005
    assert abs(done.divergence.value) < 4 * done.divergence.stderr + 0.005
    assert done.acceptance.value > 0.99
    assert torch.equal(found.generator.logits, Table().logits), "the posterior's generator is left alone"


def test_learning_by_heart_shows() -> None:
    """What is measured are draws that it was not trained on: of 20 draws a table of 1000 knows 20 numbers."""
    base = Table(torch.zeros(1000))
    plan = Distillation(draws=20, training=Training(epochs=100, batch_size=20, lr=0.2), held_out=0.9)
    done = distil(posterior(base), plan, seed=0)
    assert done.divergence.value == pytest.approx(divergence(base.table(), done.generator.table()), rel=0.3)
    assert done.divergence.value > 2


@pytest.mark.parametrize("start", [None, Table(torch.zeros(40))], ids=["current", "first"])
def test_where_it_starts(start: Table | None) -> None:
    done = distil(posterior(Table(), middle(Table())), Distillation(draws=10, training=NONE), start=start, seed=0)
    expected = Table() if start is None else start
    assert torch.equal(done.generator.logits, expected.logits)
    assert done.generator is not start
    assert not done.generator.logits.requires_grad


@pytest.mark.parametrize("start", ["current", "first"])
def test_learn_starts_from_it(start: Any, tmp_path: Any) -> None:
    starts: list[Any] = []
    true = rounds.distil

    def spy(found: Any, plan: Any, *, start: Any, **options: Any) -> Any:
        starts.append((found.generator if start is None else start).logits.detach().clone())
        return true(found, plan, start=start, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "distil", spy)
        run(
            tmp_path / "run",
            distillation=Distillation(draws=100, training=Training(epochs=1, lr=0.1), start=start),
            budget=60,
        )
    first = Table().logits.detach()
    assert [torch.equal(found, first) for found in starts] == [True, start == "first", start == "first"]


def test_successes_join_the_draws() -> None:
    """A number that is never drawn is learnt from them alone."""
    base = Table()
    plan = Distillation(draws=200, training=Training(epochs=30, batch_size=100, lr=0.2))
    without = distil(posterior(base, middle(base)), plan, seed=0)
    with_them = distil(posterior(base, middle(base)), plan, seed=0, successes=torch.full((100,), 20))
    assert float(without.generator.table()[20]) < 0.02
    assert float(with_them.generator.table()[20]) == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize("keep", [False, True], ids=["absorbed", "kept"])
def test_regions_are_absorbed_or_kept(keep: bool, tmp_path: Any) -> None:
    plan = Distillation(draws=300, training=Training(epochs=4, batch_size=32, lr=0.1), keep_regions=keep)
    found = run(tmp_path / "run", distillation=plan)
    assert len(found.regions) == 3 * keep
    if keep:
        bases = [part.score.base.state_dict()["logits"] for part in found.regions]
        assert torch.equal(bases[0], Table().logits), "each with the generator that it was made for"
        assert not torch.equal(bases[1], bases[0])
        assert not torch.equal(bases[2], bases[1])
        drawn = found.posterior.sample((200,))
        assert not found.regions.rejects(drawn).any()


def test_a_seed_decides_and_leaves_the_rest_alone() -> None:
    plan = Distillation(draws=50, training=Training(epochs=1, lr=0.1))
    before = torch.get_rng_state()
    one, same, other = (distil(posterior(Table(), middle(Table())), plan, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.generator.logits, same.generator.logits)
    assert one.divergence == same.divergence
    assert not torch.equal(one.generator.logits, other.generator.logits)


def test_too_few_are_accepted() -> None:
    found = ExplorationPosterior(Table(), Regions([Region(LikelihoodRatio(Table(), Table()), 1.0)]), max_draws=1000)
    with pytest.raises(AcceptanceError):
        distil(found, Distillation(draws=10), seed=0)


@pytest.mark.parametrize(
    "options",
    [{"draws": 1}, {"held_out": 0.0}, {"held_out": 1.0}, {"start": "zero"}, {"keep_regions": 1}, {"training": None}],
    ids=str,
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{next(iter(options))}="):
        Distillation(**options)


def test_training_says_what_it_cannot_do() -> None:
    frozen = Table().requires_grad_(False)
    with pytest.raises(ValueError, match="has no parameters to train"):
        Training(epochs=1)(frozen, VALUES, seed=0)
    assert Training(epochs=0)(frozen, VALUES, seed=0).empty
    for options in ({"epochs": -1}, {"batch_size": 0}, {"lr": 0.0}, {"lr": math.inf}, {"options": {"seed": 1}}):
        with pytest.raises(ValueError, match=f"^{next(iter(options))}"):
            Training(**options)
