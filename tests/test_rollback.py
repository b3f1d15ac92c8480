"""Numerical faults: named with step, site and rows; rolled back from, counted, and resumed bit for bit."""

import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta
from torch import Tensor
from torch.optim import lr_scheduler

from banel_pyro import (
    BaNEL_ELBO,
    CollapseError,
    Event,
    ExplosionDetector,
    ExplosionError,
    FitResult,
    Linear,
    NonFiniteError,
    Pair,
    Rollback,
    TargetEntropy,
    fit,
)
from banel_pyro.batches import epoch_order
from banel_pyro.pair import load_pair
from banel_pyro.run import RunFolder
from banel_pyro.training import loop as loop_module
from banel_pyro.training.rollback import Rollbacks
from models import eight_schools

pytestmark = pytest.mark.usefixtures("float64")

N = 8
POISON = 5
"""The row whose likelihood breaks down."""
BATCH = 2


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Good states every 4 steps, so that short runs have several."""
    monkeypatch.setattr(loop_module, "GOOD_EVERY", 4)


# ---- which rows --------------------------------------------------------------------------------------------------


def rows() -> Tensor:
    return torch.linspace(-1.0, 1.0, N)


def model(x: Tensor, *, shift: Callable[[Tensor], Tensor] = torch.zeros_like) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N):
        z = pyro.sample("z", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(z + shift(x), 1.0, validate_args=False), obs=x)


def guide(x: Tensor) -> None:
    m, s = pyro.param("m", torch.tensor(0.1)), pyro.param("s", torch.tensor(0.5), constraint=constraints.positive)
    a = pyro.sample("a", dist.Normal(m, s))
    with pyro.plate("data", N):
        pyro.sample("z", dist.Normal(a, s))


def poisoned(*bad: int) -> Callable[[Tensor], None]:
    """A model that breaks down at some rows, in training and not in the checks before it."""
    values = rows()[list(bad)]

    def shift(x: Tensor) -> Tensor:
        is_bad = (x[:, None] == values).any(1) & torch.is_grad_enabled() & torch.tensor(TRAINING[0])
        return torch.where(is_bad, torch.nan, 0.0)

    return lambda x: model(x, shift=shift)


TRAINING = [False]


def clock(step: int, last_terms: Any) -> float:
    """λ by the step, which also says that training has begun."""
    TRAINING[0] = step > 0
    return 0.2


@pytest.fixture(autouse=True)
def not_training() -> Iterator[None]:
    TRAINING[0] = False
    yield
    TRAINING[0] = False


def train(pair: tuple[Any, Any], **options: Any) -> FitResult:
    usual: dict[str, Any] = {
        "steps": 20, "batch_size": BATCH, "lr": 0.05, "lam": clock, "seed": 0, "log_every": 2, "posterior_samples": 0,
        "progress": False,
    }  # fmt: skip
    return fit(*pair, rows(), **usual | options)


def first_step_with(row: int, batch: int = BATCH) -> int:
    """By the order of the rows in an epoch: step 0 does not count, as training has not begun there."""
    per_epoch = N // batch
    return next(
        step for step in range(1, 3 * per_epoch)
        if row in epoch_order(N, 0, step // per_epoch)[step % per_epoch * batch :][:batch]
    )  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"batch_size": 1, "accumulate": 2}], ids=["batch", "accumulated"])
def test_the_error_names_step_site_and_row(options: dict[str, Any]) -> None:
    step = first_step_with(POISON)
    with pytest.raises(NonFiniteError) as stopped:
        train((poisoned(POISON), guide), **options)
    fault = stopped.value
    assert (fault.step, fault.where, fault.bad_rows) == (step, "model site 'x'", (POISON,))
    at = step % (N // BATCH) * BATCH
    assert list(fault.rows) == epoch_order(N, 0, step // (N // BATCH))[at : at + BATCH].tolist()
    assert f"step {step}: model site 'x' is not finite at row {POISON} of the data." in str(fault)


def test_many_rows_are_told_in_few_words() -> None:
    with pytest.raises(NonFiniteError, match=r"at rows 0, 1, 3, 4, 5, … \(6 in all\) of the data") as stopped:
        train((poisoned(0, 1, 3, 4, 5, 7), guide), batch_size=None)
    assert stopped.value.bad_rows == (0, 1, 3, 4, 5, 7)
    assert list(stopped.value.rows) == list(range(N))


def test_where_no_row_stands_out_those_of_the_step_are_named() -> None:
    def bad(x: Tensor) -> None:
        model(x)
        pyro.factor("extra", torch.tensor(math.nan if TRAINING[0] else 0.0))

    with pytest.raises(
        NonFiniteError, match=r"model site 'extra' is not finite in a step of rows \d, \d of"
    ) as stopped:
        train((bad, guide))
    assert stopped.value.bad_rows == ()
    assert len(stopped.value.rows) == BATCH


def test_a_scale_that_has_run_to_zero_is_named() -> None:
    """A scale of e^-800 is 0 in float64."""

    def sharp(x: Tensor) -> None:
        log_s = pyro.param("log_s", torch.tensor(-1.0))
        a = pyro.sample("a", dist.Normal(0.0, (log_s - 800.0 * TRAINING[0]).exp()))
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal(a, 0.5))

    with pytest.raises(NonFiniteError, match=r"step 1: guide site 'a' is not finite.*: its scale has run to 0"):
        train((model, sharp))


def test_lam_of_one_collapses_and_the_site_is_named() -> None:
    """Nothing keeps the scale from 0 there: d loss / d log sd = sd², which never stops."""

    def prior() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def narrow() -> None:
        pyro.sample("z", dist.Normal(0.0, pyro.param("s", torch.tensor(1.0)).exp()))

    objective = BaNEL_ELBO(lam=1.5, allow_unbounded=True)
    with pytest.raises(CollapseError, match="site 'z'") as stopped:
        fit(prior, narrow, steps=400, lr=0.05, objective=objective, seed=0, progress=False)
    assert 0 < stopped.value.since < stopped.value.step


# ---- exploding gradients -----------------------------------------------------------------------------------------

L = 4.0
"""Curvature of the quadratic."""


def bowl() -> None:
    pyro.sample("x", dist.Normal(3.0, 1 / math.sqrt(L)))
    pyro.sample("y", dist.Normal(0.0, 2.0))


def descend(lr: float, **options: Any) -> FitResult:
    """Gradient descent from 0 on L (x - 3)² / 2 + (y/2)² / 2: no noise at all."""
    usual: dict[str, Any] = {"steps": 200, "optim": torch.optim.SGD, "seed": 0, "log_every": 1, "progress": False}
    return fit(bowl, AutoDelta(bowl, init_loc_fn=lambda site: torch.zeros(())), lr=lr, **usual | options)


@pytest.mark.parametrize("log_every", [1, 4])
@pytest.mark.parametrize("lr", [0.6, 0.7])
def test_a_diverging_descent_is_noticed_when_it_should_be(lr: float, log_every: int) -> None:
    """The norm after t steps is 3L r^(t-1) with r = |1 - lr L|: the first log point t of the rule, by hand."""
    detector, rate = ExplosionDetector(), abs(1 - lr * L)
    norms = [3 * L * rate ** (log_every * (k + 1) - 1) for k in range(200)]
    # the first of the last three has to be beyond the median of what came before them
    expected = next(k for k in range(5, 200) if norms[k - 2] > detector.factor * np.median(norms[: k - 2]))
    with pytest.raises(ExplosionError) as stopped:
        descend(lr, log_every=log_every)
    error = stopped.value
    assert error.step == log_every * (expected + 1)
    assert error.since <= error.step / 2
    assert error.parameter == "AutoDelta.x"
    assert error.share > 0.99
    assert "100% of its square is that of parameter 'AutoDelta.x'" in str(error)


def test_with_rollback_it_converges_to_the_exact_optimum() -> None:
    """2/L = 0.5: 0.7 diverges, 0.35 does not."""
    result = descend(0.7, on_fault="rollback")
    x = pyro.get_param_store()["AutoDelta.x"].detach()
    assert float((x - 3.0).abs()) < 1e-12
    (record,) = result.rollbacks
    assert (record.back_to, record.lr) == (0, 0.35)
    assert "the gradient explodes" in record.why
    assert set(result.history["rollbacks"]) == {1.0}
    assert len(result.history) == 200


def test_a_fault_at_the_last_step_is_one_of_the_resumed_run_too(tmp_path: Path) -> None:
    with pytest.raises(ExplosionError) as stopped:
        descend(0.6)
    options = {"steps": stopped.value.step, "out": tmp_path / "run", "posterior_samples": 0}
    for resume in (False, True):
        with pyro.get_param_store().scope(), pytest.raises(ExplosionError, match=f"step {stopped.value.step}:"):
            descend(0.6, resume=resume, **options)


def test_a_burst_after_converging_is_no_explosion() -> None:
    """Adam with a short memory leaves an optimum that it has reached, and comes back."""

    def target() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(3), torch.tensor([1.0, 0.1, 0.01])).to_event(1))

    def point() -> None:
        pyro.sample("z", dist.Delta(pyro.param("m", torch.ones(3)), event_dim=1))

    adam = partial(torch.optim.Adam, lr=0.02, betas=(0.9, 0.99))
    result = fit(target, point, steps=1600, optim=adam, log_every=1, seed=0, progress=False, capture=False)
    norms = result.history["grad_norm"].to_numpy()
    assert norms[1400:].max() > 1e6 * np.median(norms[1300:1400])  # what the median alone would take for one


def test_it_can_be_switched_off() -> None:
    assert descend(0.6, explosion=None, steps=60).history["grad_norm"].iloc[-1] > 1e8


def growing(ratio: float, points: int = 40, lam: Any = 0.0) -> list[dict[str, float]]:
    lams = np.broadcast_to(lam, points)
    norms = [1.0] * (points - 6) + [ratio * 1.5**k for k in range(6)]
    return [{"step": 10.0 * k, "lam": float(lams[k]), "elbo": -norm, "grad_norm": norm} for k, norm in enumerate(norms)]


def test_the_rule_needs_size_growth_and_a_worse_elbo() -> None:
    detector = ExplosionDetector()
    rows = growing(2000.0)
    assert detector.check(rows) is not None
    assert detector.check(growing(100.0)) is None
    assert detector.check([*rows[:-1], rows[-1] | {"grad_norm": 2000.0}]) is None  # no longer growing
    assert detector.check([*rows[:-1], rows[-1] | {"elbo": 0.0}]) is None  # better than before
    assert detector.check([*rows[:-1], rows[-1] | {"grad_norm": math.inf}]) is not None
    assert detector.check(rows[:5]) is None
    # the run began with larger ones, before the window too: what it does after it has converged is harmless
    early = [{"step": -10.0, "lam": 0.0, "elbo": -1.0, "grad_norm": 100000.0}, *growing(2000.0, points=150)]
    assert detector.check(early) is None
    worse = [{"step": -10.0, "lam": 0.0, "elbo": -1000000000.0, "grad_norm": 1.0}, *growing(2000.0, points=150)]
    assert detector.check(worse) is None
    assert detector.check(growing(2000.0, lam=[0.0] * 36 + [0.5] * 4)) is None  # another λ


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"factor": 1.0}, "factor=1.0: expected more than 1"),
        ({"rises": 0}, "rises=0: expected an integer of at least 1"),
        ({"window": 5}, "window=5: expected an integer of at least 6"),
        ({"tolerance": -1.0}, "tolerance=-1.0: expected at least 0"),
    ],
)
def test_wrong_detectors_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ExplosionDetector(**options)


# ---- rolling back ------------------------------------------------------------------------------------------------


def parameters() -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in pyro.get_param_store()._params.items()}


def test_a_fault_that_stays_is_raised_after_so_many(often: None, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(NonFiniteError) as stopped, caplog.at_level(logging.WARNING, "banel_pyro"):
        train((poisoned(POISON), guide), on_fault=Rollback(times=2))
    assert [note for note in stopped.value.__notes__ if "rolled back 2 times" in note]
    told = [record.getMessage() for record in caplog.records]
    step = first_step_with(POISON)
    assert len(told) == 2
    assert f"step {step}: model site 'x' is not finite at row {POISON} of the data. Rollback 1 of 2" in told[0]
    assert "lr 0.025 and lam 0.1" in told[0]
    assert "lr 0.0125 and lam 0.05" in told[1]


FAULTY = {6: 2, 13: 4}
"""Steps that go wrong, and how often: each time in the step, and in the replay that names the site."""
SEEN: list[int] = []


def forgetful(x: Tensor) -> None:
    """A guide that breaks down at some steps of the run, which its λ tells it of, and then no more."""
    at = CLOCK[0]
    wrong = torch.is_grad_enabled() and SEEN.count(at) < FAULTY.get(at, 0) and CALLS[0]
    if wrong:
        SEEN.append(at)
    m, s = pyro.param("m", torch.tensor(0.1)), pyro.param("s", torch.tensor(0.5), constraint=constraints.positive)
    a = pyro.sample("a", dist.Normal(m, s * (math.nan if wrong else 1.0), validate_args=False))
    with pyro.plate("data", N):
        pyro.sample("z", dist.Normal(a, s))


CLOCK, CALLS = [-1], [False]


def counted(step: int, last_terms: Any) -> float:
    CLOCK[0], CALLS[0] = step, True
    return 0.4


def faulty(**options: Any) -> FitResult:
    SEEN.clear()
    CLOCK[0], CALLS[0] = -1, False
    return train((model, forgetful), lam=counted, **{"on_fault": "rollback"} | options)


def test_lr_and_lam_shrink_at_each_and_history_and_result_say_so(often: None, tmp_path: Path) -> None:
    result = faulty(out=tmp_path / "run", log_every=1)
    found = [(r.step, r.back_to, r.lr, r.lam) for r in result.rollbacks]
    assert found == [(6, 4, 0.025, 0.2), (13, 12, 0.0125, 0.1), (13, 8, 0.00625, 0.05)]  # the last goes further back
    assert all("guide site 'a' is not finite" in r.why for r in result.rollbacks)
    history = result.history.set_index("step")
    assert history.index.tolist() == list(range(1, 21))
    assert history["rollbacks"].tolist() == [0.0] * 4 + [1.0] * 4 + [3.0] * 12
    assert history["lam"].tolist() == pytest.approx([0.4] * 4 + [0.2] * 4 + [0.05] * 12)
    assert RunFolder(tmp_path / "run").read_config()["on_fault"] == {
        "times": 3, "lr_factor": 0.5, "lam_factor": 0.5,
    }  # fmt: skip
    with pyro.get_param_store().scope():
        CALLS[0] = False
        loaded = FitResult.load(tmp_path / "run", Pair(model, forgetful, data=rows))
    assert loaded.rollbacks == result.rollbacks


class Stop(Exception):
    """What interrupts a run."""


@pytest.mark.parametrize("stop", [5, 13, 15])
def test_a_run_resumed_before_between_and_after_rollbacks_is_the_whole_one(
    often: None, tmp_path: Path, stop: int
) -> None:
    """Bit for bit, history and parameters: the good states to go back to are part of its checkpoints."""
    options: dict[str, Any] = {
        "checkpoint_every": 3, "lr_scheduler": lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.95)
    }  # fmt: skip

    def interrupt(event: Event) -> None:
        if event.step == stop:
            raise Stop

    with pyro.get_param_store().scope():
        whole = faulty(**options)
        expected = parameters()
    with pyro.get_param_store().scope(), pytest.raises(Stop):
        faulty(out=tmp_path / "run", callbacks=[interrupt], **options)
    seen = [step for step in SEEN if step <= stop]  # a fault comes once in the life of the pair
    SEEN.clear()
    SEEN.extend(seen)
    with pyro.get_param_store().scope():
        CALLS[0] = False
        resumed = train(
            (model, forgetful), lam=counted, on_fault="rollback", out=tmp_path / "run", resume=True, **options
        )
        assert all(torch.equal(parameters()[name], value) for name, value in expected.items())
    assert whole.history.drop(columns="seconds").equals(resumed.history.drop(columns="seconds"))
    assert resumed.rollbacks == whole.rollbacks
    assert len(whole.rollbacks) == 3


def test_a_run_that_was_raised_from_can_be_resumed_with_rollbacks(often: None, tmp_path: Path) -> None:
    with pyro.get_param_store().scope(), pytest.raises(NonFiniteError) as stopped:
        faulty(out=tmp_path / "run", on_fault="raise")
    assert stopped.value.__notes__ == [f"The state after step 6 is saved in {tmp_path / 'run'}; resume=True goes on."]
    SEEN.clear()  # it comes once more
    CALLS[0] = False
    with pyro.get_param_store().scope():
        options: dict[str, Any] = {"lam": counted, "out": tmp_path / "run", "resume": True}
        result = train((model, forgetful), on_fault="rollback", **options)
    assert [(r.step, r.back_to) for r in result.rollbacks] == [(6, 6), (13, 12), (13, 8)]


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: lr_scheduler.ExponentialLR(o, 0.9),
        lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=20, eta_min=0.01),
        lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=40, cycle_momentum=False),
        lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, total_iters=9), lr_scheduler.StepLR(o, 5, 0.5)], [9]
        ),
        lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3, cycle_momentum=False),
    ],
    ids=["exponential", "cosine", "one cycle", "lambda", "sequential", "cyclic"],
)
def test_a_scheduler_goes_on_at_the_factor(often: None, schedule: Any) -> None:
    with pyro.get_param_store().scope():
        straight = train((model, guide), lr_scheduler=schedule, log_every=1).history["lr"].to_numpy()
    found = faulty(lr_scheduler=schedule, log_every=1).history["lr"].to_numpy()
    factor = np.array([1.0] * 4 + [0.5] * 4 + [0.125] * 12)
    np.testing.assert_allclose(found, factor * straight, rtol=1e-12)


def once(**options: Any) -> tuple[FitResult, int]:
    """A run that breaks down the first time that it comes to a row, whatever its λ; and the step of that."""
    met: list[bool] = []

    def shift(x: Tensor) -> Tensor:
        wrong = TRAINING[0] and bool((x == rows()[POISON]).any()) and len(met) < 2  # in the step, and in the replay
        met.extend([True] * wrong)
        return torch.full_like(x, math.nan if wrong else 0.0)

    def begin(event: Event) -> None:
        TRAINING[0] = True

    begin.events = ("log",)  # type: ignore[attr-defined]
    usual: dict[str, Any] = {"on_fault": "rollback", "log_every": 1, "callbacks": [begin]}
    return train((lambda x: model(x, shift=shift), guide), **usual | options), first_step_with(POISON)


@pytest.mark.parametrize(
    "lam", [{"a": 0.4, "z": -0.2}, Linear(0.4, 0.2, over=20), -0.4], ids=["sites", "line", "below"]
)
def test_every_kind_of_lam_shrinks(often: None, lam: Any) -> None:
    with pyro.get_param_store().scope():
        straight = train((model, guide), lam=lam, log_every=1).history
    result, step = once(lam=lam)
    columns = [c for c in straight if c.startswith("lam[") or (c == "lam" and not isinstance(lam, dict))]
    (record,) = result.rollbacks
    assert (record.step, record.back_to) == (step, step // 4 * 4)
    factor = np.where(np.arange(20) < record.back_to, 1.0, 0.5)[:, None]
    np.testing.assert_allclose(result.history[columns], factor * straight[columns].to_numpy(), rtol=1e-12)


def test_a_controller_stays_below_the_lam_of_the_fault(often: None) -> None:
    """The target cannot be reached: λ would go to 0.99, and goes to half of where it was."""
    control = TargetEntropy(-50.0, over=20)
    result, _ = once(lam=control, steps=60)
    (record,) = result.rollbacks
    lams = result.history["lam"]
    assert lams.iloc[record.back_to] == record.lam
    cap = lams.iloc[-1]
    assert 0 < cap <= 0.5
    assert (lams.iloc[-20:] == cap).all()
    assert lams[record.back_to :].max() == cap
    with pyro.get_param_store().scope():
        assert train((model, guide), lam=control, steps=60, log_every=1).history["lam"].iloc[-1] == 0.99


def test_accumulated_steps_roll_back(often: None) -> None:
    result, step = once(batch_size=1, accumulate=2)
    assert [(r.step, r.back_to) for r in result.rollbacks] == [(step, step // 4 * 4)]
    assert f"at row {POISON} of the data" in result.rollbacks[0].why


def test_a_collapse_shrinks_lam_until_there_is_a_minimum() -> None:
    """The centred form has none for λ > 0.2: 0.75 and 0.3 collapse, 0.12 does not."""
    policy = Rollback(lr_factor=1.0, lam_factor=0.4)
    result = eight_schools.centered().fit(
        lam=0.75, lr=0.01, steps=5000, seed=0, on_fault=policy, capture=True, progress=False
    )
    assert [r.lam for r in result.rollbacks] == pytest.approx([0.3, 0.12])
    assert all("collapses at site" in r.why and r.back_to < r.step for r in result.rollbacks)
    assert result.history["lam"].iloc[-1] == pytest.approx(0.12)
    assert result.history["rollbacks"].iloc[-1] == 2
    assert result.history["step"].iloc[-1] == 5000
    log_tau = float(pyro.get_param_store()["AutoNormal.locs.tau"].detach())
    assert log_tau > 0.0  # at λ = 0.3 it goes to -3 and on


def test_good_states_are_kept_the_further_apart_the_older() -> None:
    rollbacks = Rollbacks(Rollback(), lambda step, last_terms: 0.0)
    for step in range(0, 4000, 100):
        rollbacks.keep({"step": step}, 100)
        steps = [state["step"] for state in rollbacks.kept]
        assert len(steps) <= 5
        assert steps == sorted(set(steps))
        assert steps[0] == 0
        assert step < 800 or any(800 <= step - kept < 1600 for kept in steps)
    assert steps == [0, 2400, 3200, 3800, 3900]


def test_a_run_goes_back_to_before_the_trouble_began() -> None:
    rollbacks = Rollbacks(Rollback(), lambda step, last_terms: 0.0)
    rollbacks.kept = [{"step": step} for step in (0, 800, 1100, 1200)]
    for fault, step in (
        (NonFiniteError(1240, "the loss"), 1200),
        (CollapseError(1250, "z", "It fell.", since=1150), 1100),
        (CollapseError(1250, "z", "It fell.", since=350), 0),
        (ExplosionError(1250, "It grew", None, 0.0, since=1050), 800),
    ):
        assert rollbacks._target(fault)["step"] == step


@pytest.mark.parametrize("capture", [False, True])
def test_without_a_fault_the_policy_changes_no_number(often: None, capture: bool) -> None:
    found = {}
    for on_fault in ("raise", "rollback"):
        with pyro.get_param_store().scope():
            options: dict[str, Any] = {"on_fault": on_fault, "capture": capture, "lam": Linear(0.1, 0.4, over=10)}
            history = train((model, guide), **options).history.drop(columns="seconds")
            found[on_fault] = history, parameters()
    assert found["rollback"][0].pop("rollbacks").eq(0).all()
    assert found["raise"][0].equals(found["rollback"][0])
    assert all(torch.equal(value, found["rollback"][1][name]) for name, value in found["raise"][1].items())


def test_captured_steps_roll_back_as_eager_ones_do(often: None) -> None:
    """A descent that diverges, the rows of a batch at a time: to rounding the same, to the optimum."""

    def breaking(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
        with pyro.plate("data", N):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
        pyro.factor("breaks", torch.where(mean.abs() > 1e3, torch.log(-mean.abs()), 0.0 * mean))

    found = []
    for capture in (False, True):
        with pyro.get_param_store().scope():
            options: dict[str, Any] = {"optim": torch.optim.SGD, "lr": 0.5, "lam": 0.0, "steps": 60, "capture": capture}
            result = train((breaking, AutoDelta(breaking)), on_fault=Rollback(5), **options)
            found.append((result, parameters()))
    eager, captured = found
    assert len(eager[0].rollbacks) >= 1
    assert [(r.step, r.back_to, r.lr) for r in eager[0].rollbacks] == [
        (r.step, r.back_to, r.lr) for r in captured[0].rollbacks
    ]
    for name, value in eager[1].items():
        torch.testing.assert_close(value, captured[1][name])


@pytest.mark.parametrize(
    ("on_fault", "error", "words"),
    [
        ("retry", ValueError, "on_fault='retry': expected 'raise', 'rollback', or a Rollback. Write on_fault=Rollback"),
        (None, TypeError, "on_fault=None: expected 'raise'"),
        (3, TypeError, "on_fault=3: expected 'raise'"),
    ],
)
def test_unknown_policies_are_refused(on_fault: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        train((model, guide), on_fault=on_fault)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"times": 0}, ValueError, "times=0: expected an integer of at least 1"),
        ({"times": 1.5}, TypeError, "times=1.5: expected an integer"),
        ({"lr_factor": 0.0}, ValueError, "lr_factor=0.0: expected more than 0 and at most 1"),
        ({"lam_factor": 1.5}, ValueError, "lam_factor=1.5: expected more than 0 and at most 1"),
        ({"lr_factor": math.nan}, ValueError, "lr_factor=nan: expected a finite number"),
        ({"lam_factor": "half"}, TypeError, "lam_factor='half': expected a number"),
    ],
)
def test_wrong_policies_are_refused(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Rollback(**options)


# ---- no false alarm ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["beta_bernoulli:pair", "eight_schools:noncentered", "gaussian_regression:mean_field"])
def test_a_run_in_order_is_left_alone(name: str, seed: int) -> None:
    result = load_pair(f"models.{name}")().fit(
        steps=150, lr=0.05, lam=0.2, seed=seed, log_every=2, on_fault="rollback", progress=False
    )
    assert result.rollbacks == []
    norms = result.history["grad_norm"]
    assert norms.max() < 100 * norms.median()
