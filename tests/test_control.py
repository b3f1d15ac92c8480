"""Controllers: λ goes where the target is met, stays within its bounds, and is part of what a run goes on with."""

import json
import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from banel_pyro import BaNEL_ELBO, FitResult, LossTerms, TargetEntropy, TargetRate, TargetSpread, fit
from banel_pyro.plates import DataPlate
from banel_pyro.training.control import Controlled, Controller

D, H0 = 3, -1.5
NO_PLATE = DataPlate(None, 1, scaled=False)


def gaussian_terms(lam: float) -> LossTerms:
    """A Gaussian posterior at λ: its entropy, and its divergence from a standard normal prior around the same mean."""
    entropy = H0 + 0.5 * D * math.log(1.0 - lam)
    variance = math.exp(2.0 * entropy / D) / (2.0 * math.pi * math.e)
    return LossTerms(0.0, 0.5 * D * (variance - 1.0 - math.log(variance)), entropy, lam, lam * entropy)


def follow(
    controller: Controller, steps: int, *, log_every: int = 10, lag: float = 100.0
) -> tuple[list[float], list[float]]:
    """λ at log points, and log T of a posterior that follows its optimum with so many steps of lag."""
    control = Controlled(controller, NO_PLATE, {"z": float(D)})
    log_t, found, widths = math.log1p(-control.lam), list[float](), list[float]()
    for _ in range(steps // log_every):
        log_t += (math.log1p(-control.lam) - log_t) * (1.0 - math.exp(-log_every / lag))
        control.observe(gaussian_terms(-math.expm1(log_t)), log_every)
        found.append(control(0, None))
        widths.append(log_t)
    return found, widths


def lam_at(entropy: float) -> float:
    return 1.0 - math.exp(2.0 * (entropy - H0) / D)


@pytest.mark.parametrize("start", [-3.0, 0.0, 0.9])
@pytest.mark.parametrize("gap", [-2.0, 0.7])
def test_the_exact_weight_of_a_gaussian_is_found(gap: float, start: float) -> None:
    found, _ = follow(TargetEntropy(H0 + gap, start=start), 10_000)
    assert found[-1] == pytest.approx(lam_at(H0 + gap), abs=1e-6)


@pytest.mark.parametrize("start", [-3.0, 0.0, 0.9])
def test_the_exact_weight_for_a_rate_is_found(start: float) -> None:
    exact = 0.6
    found, _ = follow(TargetRate(float(gaussian_terms(exact).kl), start=start), 20_000)
    assert found[-1] == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("ratio", [0.3, 0.8, 1.5])
def test_a_spread_starts_where_a_gaussian_has_it_and_stays(ratio: float) -> None:
    controller = TargetSpread(ratio, H0)
    assert controller.start == pytest.approx(1.0 - ratio**2, abs=1e-15)
    assert follow(controller, 1000)[0] == pytest.approx([1.0 - ratio**2] * 100, abs=1e-9)
    assert follow(TargetSpread(ratio, H0, start=0.5), 10_000)[0][-1] == pytest.approx(1.0 - ratio**2, abs=1e-6)


def test_it_does_not_swing_when_it_is_twice_as_slow_as_the_optimiser() -> None:
    """The textbook's second-order system: damping √½ overshoots by 4.3 per cent, in log T."""
    target = -2.0
    _, widths = follow(TargetEntropy(H0 + target, over=200, lam_max=0.999), 4000, log_every=1, lag=100.0)
    goal = 2.0 * target / D
    assert min(widths) / goal - 1.0 == pytest.approx(math.exp(-math.pi), abs=0.005)


def test_what_cannot_be_reached_ends_at_the_bound_and_leaves_it_at_once() -> None:
    control = Controlled(TargetEntropy(-100.0, lam_max=0.9), NO_PLATE, {"z": float(D)})
    for _ in range(1000):
        control.observe(gaussian_terms(control.lam), 10)
    assert control.lam == 0.9
    control.observe(LossTerms(0.0, 0.0, -101.0, control.lam, 0.0), 10)
    assert control.lam < 0.9


@pytest.mark.parametrize("gap", [-1e6, 1e6])
def test_a_step_is_bounded(gap: float) -> None:
    control = Controlled(TargetEntropy(gap, over=100), NO_PLATE, {"z": 1.0})
    control.observe(LossTerms(0.0, 0.0, 0.0, 0.0, 0.0), 10)
    assert math.log1p(-control.lam) == pytest.approx(math.copysign(2 * 10 / 100, gap), abs=1e-12)


def test_totals_are_those_of_all_rows() -> None:
    plate = DataPlate("data", 50, scaled=True)
    controls = [
        Controlled(TargetEntropy(-2.0, per="datum"), plate, {"z": 2.0}),
        Controlled(TargetEntropy(-100.0, per="total"), plate, {"z": 2.0}),
    ]
    for control in controls:
        control.observe(LossTerms(0.0, 0.0, -1.0, 0.0, 0.0), 10)
    assert controls[0].lam == pytest.approx(controls[1].lam, abs=1e-15)
    assert controls[0].lam == pytest.approx(1.0 - math.exp(2 * 10 / 500 * -0.5), abs=1e-12)


# ---- in a run ---------------------------------------------------------------------------------------------------

ROWS = torch.linspace(-1.0, 2.0, 20)
SD = torch.tensor([21.0, 1.0, 1.0]).rsqrt()


def model(x: Tensor) -> None:
    m = pyro.sample("m", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", 20):
        pyro.sample("x", dist.Normal(m[0], 1.0), obs=x)


def guide(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(3))
    scale = pyro.param("scale", torch.full((3,), 0.5), constraint=dist.constraints.positive)
    pyro.sample("m", dist.Normal(loc, scale).to_event(1))


def run(lam: Any, steps: int = 60, **options: Any) -> FitResult:
    pyro.clear_param_store()
    defaults = {"lr": 0.02, "seed": 0, "log_every": 10, "posterior_samples": 0, "progress": False, "capture": False}
    return fit(model, guide, ROWS, lam=lam, steps=steps, **defaults | options)


def decay(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.998)


@pytest.mark.parametrize("start", [-1.0, 0.9])
def test_a_run_ends_at_the_target(start: float, float64: torch.dtype) -> None:
    """λ is where the exact posterior, Gaussian, has this entropy; both to the noise of the last steps."""
    exact = float(SD.log().sum()) + 1.5 * math.log(2 * math.pi * math.e)
    target = exact - 1.5
    control = TargetEntropy(target, per="total", over=300, start=start)
    history = run(control, 2000, objective=BaNEL_ELBO(kl="closed_form"), lr_scheduler=decay).history
    last = history.iloc[-20:].mean()
    assert abs(20 * last["entropy"] - target) / 3 < 0.02
    assert last["lam"] == pytest.approx(1.0 - math.exp(-1.0), abs=0.02)
    assert history["lam"].max() < 1


@pytest.mark.parametrize("capture", [False, True])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, capture: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("banel_pyro.capture.graphs.has_compiler", lambda: False)
    lam, options = TargetEntropy(-0.5, over=50), {"capture": capture, "checkpoint_every": 15}
    whole = run(lam, 60, out=tmp_path / "whole", **options)
    run(lam, 30, out=tmp_path / "parts", **options)
    resumed = run(lam, 60, out=tmp_path / "parts", resume=True, **options)
    assert resumed.history["lam"].to_list() == whole.history["lam"].to_list()
    assert resumed.history["loss"].to_list() == whole.history["loss"].to_list()
    assert whole.history["lam"].nunique() > 3
    assert lam.config() in whole.config.values()


def test_a_captured_run_has_the_weights_of_the_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("banel_pyro.capture.graphs.has_compiler", lambda: False)
    eager, captured = (run(TargetEntropy(-0.5, over=50), capture=capture) for capture in (False, True))
    assert captured.history["lam"].to_list() == pytest.approx(eager.history["lam"].to_list(), rel=1e-4)


def test_a_controller_is_not_changed_by_a_run() -> None:
    lam = TargetEntropy(-0.5, over=50)
    first, second = run(lam), run(lam)
    assert first.history["lam"].to_list() == second.history["lam"].to_list()


@pytest.mark.parametrize("lam", [TargetEntropy(-1.0, over=7), TargetRate(3.0, per="total"), TargetSpread(0.5, 2.0)])
def test_to_json_and_back(lam: Controller) -> None:
    assert Controller.from_config(json.loads(json.dumps(lam.config()))) == lam


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TargetEntropy("small"), "TargetEntropy: nats='small': expected a number"),
        (lambda: TargetEntropy(math.inf), "TargetEntropy: nats=inf: expected a finite number"),
        (lambda: TargetEntropy(0.0, per="row"), "per='row': expected 'datum' or 'total'"),
        (lambda: TargetEntropy(0.0, over=0), "TargetEntropy: over=0: expected an integer of at least 1"),
        (lambda: TargetEntropy(0.0, lam_max=1.0), "lam_max=1.0: expected them in this order, and lam_max less than 1"),
        (lambda: TargetEntropy(0.0, start=-9.0), "start=-9.0"),
        (lambda: TargetRate(0.0), "TargetRate: nats=0.0: expected more than 0"),
        (lambda: TargetSpread(-1.0, 0.0), "TargetSpread: ratio=-1.0: expected more than 0"),
        (lambda: Controller.from_config({"class": "Target"}), "expected a 'class' that is one of TargetEntropy"),
    ],
)
def test_bad_input(make: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        make()


def test_what_is_not_known_is_no_target() -> None:
    control = Controlled(TargetRate(1.0), NO_PLATE, {"z": 1.0})
    with pytest.raises(ValueError, match=r"what it looks at is not known of this pair .* use TargetEntropy"):
        control.observe(LossTerms(math.nan, math.nan, 0.0, 0.0, 0.0, -1.0), 10)
