"""Stopping rules: pure functions of the history of the untempered ELBO, and how often they are wrong."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.typing import NDArray
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from banel_pyro import Cusum, Patience, Plateau, Split, fit
from banel_pyro.training.rules import StoppingRule

RULES: list[StoppingRule] = [Patience(), Plateau(), Cusum()]


def history(elbo: Sequence[float] | NDArray[np.float64], **columns: Any) -> pd.DataFrame:
    """Evaluations at every second log point, and a loss that falls all the time."""
    steps = np.arange(2 * len(elbo))
    values = np.full(len(steps), math.nan)
    values[::2] = elbo
    return pd.DataFrame({"step": steps, "val_elbo": values, "loss": -10.0 * steps, "elbo": steps, **columns})


def stops_at(rule: StoppingRule, elbo: NDArray[np.float64]) -> int | None:
    """The first number of evaluations after which a rule stops."""
    steps = np.arange(len(elbo), dtype=float)
    return next((n for n in range(1, len(elbo) + 1) if rule._judge(steps[:n], elbo[:n])), None)


def test_patience_waits_from_the_best() -> None:
    rule = Patience(evaluations=3)
    assert rule.check(history([-5, -1, -2, -3])) is None
    assert rule.check(history([-5, -1, -2, -3, -1.5])) == "val_elbo is no better than -1 at step 2, for 3 evaluations"
    assert rule.check(history([-5, -1, -2, -3, -0.9])) is None
    assert Patience(evaluations=3, gain=0.2).check(history([-5, -1, -2, -3, -0.9])) is not None
    assert rule.check(history([])) is None


def test_a_plateau_is_a_mean_that_does_not_rise() -> None:
    rule = Plateau(window=2)
    assert rule.check(history([-5, -1, -2])) is None
    assert rule.check(history([-5, -1, -2, -2])) is None
    assert rule.check(history([-5, -1, -2, -4])) == "val_elbo is -3 on average since step 4, after -3 before"
    assert Plateau(window=2, gain=1.5).check(history([-5, -1, -1, -2])) is not None


def test_cusum_adds_up_what_gains_fall_short() -> None:
    """Noise ±1 around 0: S grows by k an evaluation, by hand."""
    noise = np.tile([1.0, -1.0], 15)
    rule = Cusum(slack=0.5, threshold=5.0)
    sd = math.sqrt(2 * 16 / 0.4549 / 6)  # second differences are ±4
    score, first = 0.0, None
    for t, gain in enumerate(np.diff(noise)):
        score = max(0.0, score + 0.5 - gain / sd)
        if first is None and score > 5:
            first = t + 2
    assert stops_at(rule, noise) == first
    found = rule.check(history(noise))
    assert found is not None
    assert f"CUSUM {score:.1f} > 5" in found


def test_cusum_without_noise() -> None:
    assert stops_at(Cusum(), np.arange(60.0)) is None
    assert stops_at(Cusum(), np.zeros(60)) == 12  # more than h/k = 10 increments
    assert stops_at(Cusum(least=30), np.zeros(60)) == 30


def independent(rng: np.random.Generator, trend: NDArray[np.float64]) -> NDArray[np.float64]:
    """Evaluations with noise of their own; an increment has the standard deviation 1."""
    return trend + rng.normal(size=len(trend)) / math.sqrt(2)


def wandering(rng: np.random.Generator, trend: NDArray[np.float64]) -> NDArray[np.float64]:
    """Increments with noise of their own, of standard deviation 1."""
    return trend + np.cumsum(rng.normal(size=len(trend)))


@pytest.mark.parametrize(("noise", "most"), [(independent, 0.01), (wandering, 0.25)])
def test_cusum_seldom_stops_a_run_that_rises_and_soon_one_that_does_not(
    noise: Callable[..., NDArray[np.float64]], most: float
) -> None:
    """A rise of 2k = 1 standard deviation an evaluation, over 100 evaluations; then 100 without any."""
    rng = np.random.default_rng(0)
    rising = [stops_at(Cusum(), noise(rng, np.arange(100.0))) for _ in range(200)]
    alarms = np.mean([found is not None for found in rising])
    assert alarms < most
    if noise is wandering:
        assert alarms > 0.05  # the docstring's 1 in 7
    trend = np.concatenate([np.arange(40.0) * 2, np.full(100, 80.0)])
    delays = [stops_at(Cusum(), noise(rng, trend)) for _ in range(100)]
    after = np.array([found - 40 for found in delays if found is not None and found > 40])
    assert len(after) >= 95
    assert 5 < after.mean() < 20


def test_patience_alone_is_fooled_by_noise_where_cusum_is_not() -> None:
    """A rise of one standard deviation of an increment; both wait for about as long on a plateau."""
    rng = np.random.default_rng(1)
    runs = [independent(rng, 0.6 * np.arange(60.0)) for _ in range(200)]
    hasty = np.mean([stops_at(Patience(evaluations=3), run) is not None for run in runs])
    careful = np.mean([stops_at(Cusum(), run) is not None for run in runs])
    assert careful < hasty


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_only_what_came_since_lam_has_settled_counts(rule: StoppingRule) -> None:
    """The ELBO fell because λ rose: no reason to stop. With λ constant it is one."""
    elbo = np.concatenate([np.full(20, -1.0), [-3.0, -2.9, -2.8]])
    lam = np.where(np.arange(46) < 40, 0.0, 0.5)
    assert rule.check(history(elbo, lam=lam)) is None
    assert rule.check(history(elbo, lam=0.5)) is not None
    assert rule.check(history(elbo, **{"lam[z]": lam, "lam[w]": 0.5})) is None


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_the_loss_has_no_part_in_it(rule: StoppingRule) -> None:
    flat = history(np.zeros(30))
    assert rule.check(flat) == rule.check(flat.assign(loss=0.0, penalty=3.0)) is not None
    assert rule.check(flat.to_dict("records")) == rule.check(flat)
    assert type(rule)(column="elbo").check(flat) is None  # which rises
    with pytest.raises(ValueError, match=r"column='loss': expected 'val_elbo' or 'elbo'\. The loss"):
        type(rule)(column="loss")
    with pytest.raises(ValueError, match=r"no column 'val_elbo': expected held-out rows. Give fit validation="):
        rule.check(flat.drop(columns="val_elbo"))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Patience(evaluations=0), ValueError, "Patience: evaluations=0: expected an integer of at least 1"),
        (lambda: Patience(evaluations=1.5), ValueError, "evaluations=1.5"),
        (lambda: Plateau(gain=-1.0), ValueError, "Plateau: gain=-1.0: expected a finite number of at least 0"),
        (lambda: Cusum(threshold=math.inf), ValueError, "Cusum: threshold=inf"),
        (lambda: Cusum(slack="much"), TypeError, "Cusum: slack='much': expected a number"),  # type: ignore[arg-type]
    ],
)
def test_wrong_numbers_are_refused(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


def test_a_rule_stops_a_run_and_a_resumed_one_where_it_would_have(tmp_path: Any) -> None:
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    data = Split(torch.randn(30) + 4, torch.randn(20) + 4)
    rule = Cusum(threshold=3.0)
    options: dict[str, Any] = {
        "lr": 0.1, "seed": 0, "progress": False, "validate_every": 4, "log_every": 4, "posterior_samples": 0,
        "callbacks": [rule], "checkpoint_every": 4,
    }  # fmt: skip

    def run(steps: int, **more: Any) -> Any:
        with pyro.get_param_store().scope():
            return fit(model, AutoNormal(model), data, steps=steps, **options, **more)

    straight = run(2000)
    assert "val_elbo has gained less" in straight.stopped
    last = int(straight.history["step"].iloc[-1])
    assert last < 2000
    assert rule.check(straight.history) == straight.stopped
    assert rule.check(straight.history.iloc[:-1]) is None
    run(last // 8 * 4, out=tmp_path / "run")
    resumed = run(2000, out=tmp_path / "run", resume=True)
    assert (resumed.stopped, int(resumed.history["step"].iloc[-1])) == (straight.stopped, last)
