"""The collapse detector: fires on a guide that narrows for ever, and on nothing else."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.typing import NDArray
from pyro.distributions import constraints

from banel_pyro import CollapseDetector, CollapseError, Cosine, Cyclical, Linear, Warmup, fit
from banel_pyro.schedules import Schedule
from models import eight_schools, vae

DETECTOR = CollapseDetector()
POINTS = 100


def history(sd: NDArray[np.float64], *, lam: Any = 0.5, noise: float = 0.01, seed: int = 0) -> pd.DataFrame:
    """A guide N(0, sd^2) in four dimensions on a standard normal posterior: entropy and ELBO in closed form."""
    rng = np.random.default_rng(seed)
    entropy = 4 * (np.log(sd) + 0.5 * math.log(2 * math.pi * math.e))
    elbo = 4 * (np.log(sd) + 0.5 - sd**2 / 2) + rng.normal(0.0, noise, len(sd))
    lams = np.broadcast_to(lam, len(sd))
    step = 10 * np.arange(1, len(sd) + 1)
    return pd.DataFrame({"step": step, "elbo": elbo, "entropy": entropy, "entropy[z]": entropy, "lam": lams})


def approach(start: float, end: float, points: int = POINTS, rate: float = 0.1) -> NDArray[np.float64]:
    """Scales that go from start to end exponentially in log."""
    return np.exp(math.log(end) + (math.log(start) - math.log(end)) * np.exp(-rate * np.arange(points)))


def fires(frame: pd.DataFrame, detector: CollapseDetector = DETECTOR) -> int | None:
    """The log point at which a run with this history would have been stopped."""
    rows = frame.to_dict("records")
    for n in range(1, len(rows) + 1):
        if detector.check(rows[:n], {"z": 4.0}) is not None:
            return n
    return None


# Synthetic histories


@pytest.mark.parametrize("lam", [0.1, 0.3, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("start", [0.05, 1.0, 3.0])
@pytest.mark.parametrize("noise", [0.001, 0.05, 1.0])
def test_silent_when_a_gaussian_guide_finds_its_optimum(lam: float, start: float, noise: float) -> None:
    """It narrows from its start through the posterior, where the ELBO is best, to sqrt(1 - lam)."""
    for seed in range(5):
        sd = approach(start, math.sqrt(1 - lam))
        assert fires(history(sd, lam=lam, noise=noise, seed=seed)) is None


@pytest.mark.parametrize("noise", [0.001, 0.05, 0.3])
@pytest.mark.parametrize("lam", [0.2, 0.5, 0.9, 1.2])
def test_fires_when_the_scale_runs_away(lam: float, noise: float) -> None:
    """Faster for a larger fall: log sd falls by 0.05 at every log point, after 20 points at the posterior."""
    sd = np.concatenate([np.ones(20), np.exp(-0.05 * np.arange(100))])
    point = fires(history(sd, lam=lam, noise=noise))
    assert point is not None
    fallen = -math.log(sd[point - 1])
    bound = -math.log1p(-lam) if lam < 1 else 0.0
    assert bound + DETECTOR.margin < fallen < bound + DETECTOR.margin + 1.0


def test_the_report_names_site_and_figures() -> None:
    frame = history(np.exp(-0.05 * np.arange(60)), lam=0.3, noise=0.001)
    frame["entropy[calm]"] = 1.0
    found = DETECTOR.check(frame, {"calm": 1.0, "z": 4.0})
    assert found is not None
    site, report = found
    assert site == "z"
    # from the mean of the first five points to that of the last five; the excess is that of the five before
    assert "Since step 50 its entropy fell by 2.75 nats per latent dimension, at least 2.14 more" in report
    error = CollapseError(600, site, report)
    assert "step 600: the guide collapses at site 'z'" in str(error)
    for remedy in ("smaller lam", "non-centred", "mapping of lam", "collapse=None"):
        assert remedy in str(error)


@pytest.mark.parametrize("lam", [0.0, -0.5, float("nan")])
def test_silent_without_a_penalty(lam: float) -> None:
    """A guide that narrows at lam <= 0 does so by itself: this is no penalty running away."""
    assert fires(history(np.exp(-0.05 * np.arange(POINTS)), lam=lam)) is None


def test_silent_while_the_elbo_still_rises() -> None:
    """Narrowing is right as long as the untempered ELBO gains by it: here the posterior is narrow."""
    frame = history(approach(50.0, 1.0), lam=0.3)
    assert frame["entropy"].iloc[0] - frame["entropy"].iloc[-1] > 4 * 3
    assert fires(frame) is None


def test_silent_when_the_entropy_has_stopped_falling() -> None:
    """Narrower than a Gaussian would be, but at rest: an optimum of another shape."""
    sd = np.concatenate([np.ones(20), np.full(40, 0.2)])
    frame = history(sd, lam=0.3)
    frame["entropy[z]"] += np.linspace(0.0, 0.05, 60)
    assert DETECTOR.check(frame, {"z": 4.0}) is None


@pytest.mark.parametrize(
    "schedule",
    [
        Linear(0.0, 0.9, over=800),
        Cosine(0.0, 0.9, over=800),
        Warmup(500, 0.9),
        Cyclical(0.0, 0.9, period=250),
        Linear(0.9, 0.0, over=500),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
@pytest.mark.parametrize("points", [100, 1000])
def test_silent_when_a_schedule_moves_lam(schedule: Schedule, points: int) -> None:
    """The guide follows sqrt(1 - lam) at once or slowly: its entropy falls since lam rises."""
    lam = np.array([schedule(step * 1000 // points, None) for step in range(points)])
    for rate in (1.0, 0.2):
        sd = [1.0]
        for value in lam[1:]:
            sd.append(sd[-1] * (math.sqrt(1 - value) / sd[-1]) ** rate)
        assert fires(history(np.array(sd), lam=lam, noise=0.02)) is None


def test_fires_after_a_ramp_too() -> None:
    lam = np.minimum(np.linspace(0.0, 1.0, POINTS), 0.5)
    sd = np.concatenate([np.sqrt(1 - lam[:60]), math.sqrt(0.5) * np.exp(-0.06 * np.arange(40))])
    assert fires(history(sd, lam=lam)) is not None


def test_silent_just_after_lam_has_dropped() -> None:
    """What fell under the larger lam says nothing about the smaller one."""
    sd, lam = approach(1.0, 0.3, points=POINTS, rate=0.05), np.full(POINTS, 0.9)
    lam[-12:] = 0.1
    frame = history(sd, lam=lam, noise=0.001)
    assert DETECTOR.check(frame, {"z": 4.0}) is None
    assert DETECTOR.check(frame.assign(lam=0.1), {"z": 4.0}) is not None


def test_lam_by_site_is_judged_by_site() -> None:
    """One site has no penalty and narrows by itself; the other has one and stays."""
    frame = history(np.exp(-0.05 * np.arange(POINTS)), lam=float("nan"))
    frame["entropy[calm]"] = 1.0
    sizes = {"z": 4.0, "calm": 1.0}
    assert DETECTOR.check(frame.assign(**{"lam[z]": 0.0, "lam[calm]": 0.5}), sizes) is None
    found = DETECTOR.check(frame.assign(**{"lam[z]": 0.5, "lam[calm]": 0.0}), sizes)
    assert found is not None
    assert found[0] == "z"


def test_point_masses_are_no_collapse() -> None:
    frame = history(np.exp(-0.05 * np.arange(POINTS)))
    frame["entropy[z]"] = -math.inf
    assert DETECTOR.check(frame, {"z": 4.0}) is None


def test_the_options_matter() -> None:
    frame = history(np.concatenate([np.ones(20), np.exp(-0.05 * np.arange(80))]), lam=0.3, noise=0.05)
    points = [fires(frame, CollapseDetector(margin=margin)) for margin in (0.1, 0.5, 2.0)]
    assert None not in points
    assert points == sorted(points)
    assert fires(frame, CollapseDetector(margin=50.0)) is None
    assert fires(frame, CollapseDetector(noise=1e6)) is None
    assert fires(frame, CollapseDetector(window=40)) is None


@pytest.mark.parametrize("options", [{"margin": -1.0}, {"window": 0}, {"noise": float("nan")}, {"tolerance": -0.1}])
def test_wrong_options_are_refused(options: dict[str, float]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=rf"CollapseDetector: {name}={value}: expected at least"):
        CollapseDetector(**options)


# Real runs


def test_fires_on_centred_eight_schools() -> None:
    with pytest.raises(CollapseError, match=r"site '(mu|tau|theta)'.*untempered ELBO fell by") as stopped:
        eight_schools.centered().fit(lam=0.3, lr=0.01, steps=5000, seed=0, progress=False)
    assert 1000 < stopped.value.step < 3000


@pytest.mark.parametrize(("lr", "steps", "seed"), [(0.05, 600, 2), (0.1, 300, 3)])
def test_silent_where_a_large_step_size_makes_one_low_window(lr: float, steps: int, seed: int) -> None:
    eight_schools.noncentered().fit(lam=0.3, lr=lr, steps=steps, seed=seed, progress=False)


def test_collapse_can_be_allowed() -> None:
    options: dict[str, Any] = {"lam": 0.5, "lr": 0.02, "steps": 1000, "seed": 0, "progress": False}
    with pyro.get_param_store().scope(), pytest.raises(CollapseError):
        eight_schools.centered().fit(**options)
    assert len(eight_schools.centered().fit(**options, collapse=None).history) == 100


@pytest.mark.parametrize(("lam", "lr"), [(0.8, 0.01), (0.9, 0.05)])
def test_silent_on_a_laplace_posterior(lam: float, lr: float) -> None:
    """It narrows by -log(1 - lam), twice as much as a Gaussian one, from a start that is wider than the posterior."""

    def model() -> None:
        pyro.sample("z", dist.Laplace(torch.zeros(3), 1.0).to_event(1))

    def guide() -> None:
        scale = pyro.param("scale", torch.full((3,), 2.0), constraint=constraints.positive)
        pyro.sample("z", dist.Laplace(torch.zeros(3), scale).to_event(1))

    fit(model, guide, steps=1000, lr=lr, lam=lam, seed=0, progress=False)
    found = pyro.param("scale").detach()
    assert float((found.mean() / (1 - lam)).log().abs()) < 0.25


def test_silent_on_non_centred_eight_schools() -> None:
    result = eight_schools.noncentered().fit(lam=0.3, lr=0.01, steps=2000, seed=0, progress=False)
    assert len(result.history) == 100


@pytest.mark.parametrize("log_every", [None, 3])
def test_silent_on_digits(log_every: int | None) -> None:
    torch.manual_seed(0)
    result = vae.digits().fit(
        lam=0.8, epochs=15, batch_size=128, lr=3e-3, seed=0, validation=None, log_every=log_every, progress=False
    )
    assert result.history["entropy"].iloc[-1] < result.history["entropy"].iloc[0] - 8
