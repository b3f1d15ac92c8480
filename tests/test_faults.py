"""NaN and inf: the run stops, names step and site, and leaves the parameters of the last good step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from banel_pyro import NonFiniteError, fit
from banel_pyro.run import RunFolder

pytestmark = pytest.mark.usefixtures("float64")

N = 4
BAD = 7
"""The step that goes wrong."""
CLOCK = [-1]
"""The step of the run, set by its schedule."""


def clock(step: int, last_terms: Any) -> float:
    CLOCK[0] = step
    return 0.1


def now() -> bool:
    return CLOCK[0] == BAD


def rows() -> Tensor:
    return torch.tensor([0.3, -1.2, 2.0, 0.7])


def model(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N):
        z = pyro.sample("z", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor, *, a_scale: float = 1.0, z_shift: float = 0.0) -> None:
    m = pyro.param("m", torch.tensor(0.1))
    s = pyro.param("s", torch.tensor(0.5), constraint=constraints.positive)
    a = pyro.sample("a", dist.Normal(m, s * a_scale))
    with pyro.plate("data", N):
        pyro.sample("z", dist.Normal(a + z_shift, s))


def guide_scale() -> tuple[Any, Any]:
    return model, lambda x: guide(x, a_scale=float("nan") if now() else 1.0)


def guide_location() -> tuple[Any, Any]:
    return model, lambda x: guide(x, z_shift=float("inf") if now() else 0.0)


def likelihood() -> tuple[Any, Any]:
    def bad(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N):
            z = pyro.sample("z", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(z, torch.log(torch.tensor(-1.0)) if now() else 1.0), obs=x)

    return bad, guide


def factor() -> tuple[Any, Any]:
    def bad(x: Tensor) -> None:
        model(x)
        pyro.factor("extra", torch.tensor(float("-inf") if now() else 0.0))

    return bad, guide


def gradient_only() -> tuple[Any, Any]:
    """The loss is finite, but sqrt has an infinite slope at 0."""

    def bad(x: Tensor) -> None:
        t = pyro.param("t", torch.tensor(0.3))
        slope = torch.sqrt(t * 0.0) if now() else 0.0 * t
        guide(x, z_shift=slope)

    return model, bad


CASES: dict[str, tuple[Callable[[], tuple[Any, Any]], str]] = {
    "guide_scale": (guide_scale, "guide site 'a'"),
    "guide_location": (guide_location, "guide site 'z'"),
    "likelihood": (likelihood, "model site 'x'"),
    "factor": (factor, "model site 'extra'"),
    "gradient_only": (gradient_only, "the gradient of parameter 't'"),
}


def parameters() -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in pyro.get_param_store().named_parameters()}


def train(pair: tuple[Any, Any], **options: Any) -> Any:
    CLOCK[0] = -1
    options = {"steps": 20, "lr": 0.05, "lam": clock, "seed": 0, "log_every": 4, "progress": False} | options
    return fit(*pair, rows(), **options)


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("log_every", [1, 4, 20])
@pytest.mark.parametrize("name", CASES)
def test_a_fault_is_named_and_the_parameters_before_it_kept(
    name: str, log_every: int, validate: bool, tmp_path: Path
) -> None:
    make, where = CASES[name]
    with pyro.get_param_store().scope():
        train(make(), steps=BAD)
        expected = parameters()
    options = {"log_every": log_every, "out": tmp_path / "run", "checkpoint_every": 50, "posterior_samples": 0}
    with pyro.validation_enabled(validate), pytest.raises(NonFiniteError) as stopped:
        train(make(), **options)
    assert (stopped.value.step, stopped.value.where) == (BAD, where)
    assert f"step {BAD}: {where} is not finite" in str(stopped.value)
    found = parameters()
    assert expected.keys() <= found.keys()
    assert all(torch.equal(found[key], value) and torch.isfinite(value).all() for key, value in expected.items())
    saved = RunFolder(tmp_path / "run").read_state()
    assert saved["step"] == BAD
    assert all(torch.equal(saved["params"][key], value) for key, value in expected.items())
    assert all(p.grad is None for p in pyro.get_param_store()._params.values())


@pytest.mark.parametrize("validate", [True, False])
def test_a_learning_rate_that_explodes(validate: bool) -> None:
    """Gradient descent that overflows: the step is the one whose parameters are not finite any more."""
    sgd = {"optim": torch.optim.SGD, "lr": 1e200, "steps": 50, "log_every": 10}
    with pyro.validation_enabled(validate), pytest.raises(NonFiniteError) as stopped:
        train((model, AutoNormal(model)), **sgd)
    assert stopped.value.step < 5
    assert all(torch.isfinite(value).all() for value in parameters().values())


def test_the_state_before_a_fault_can_be_resumed(tmp_path: Path) -> None:
    """Bit for bit, log points too: here the fault does not come back."""
    options = {"out": tmp_path / "run", "posterior_samples": 0, "log_every": 4, "batch_size": 3}
    with pyro.get_param_store().scope():
        expected = train((model, guide), log_every=4, batch_size=3)
        final = parameters()
    with pyro.get_param_store().scope(), pytest.raises(NonFiniteError):
        train(CASES["guide_scale"][0](), **options)
    with pyro.get_param_store().scope():
        resumed = train((model, guide), **options, resume=True)
        assert all(torch.equal(parameters()[name], value) for name, value in final.items())
    assert expected.history.drop(columns="seconds").equals(resumed.history.drop(columns="seconds"))


def test_a_late_parameter_does_not_mislead_the_replay() -> None:
    """It draws its start when it is made: the replay has to make it anew to see the same numbers."""

    def bad(x: Tensor) -> None:
        shift = pyro.param("late", lambda: torch.rand(())) if CLOCK[0] >= 5 else 0.0
        guide(x, z_shift=shift, a_scale=float("nan") if now() else 1.0)

    with pyro.get_param_store().scope():
        train((model, bad), steps=BAD)
        expected = parameters()
    with pytest.raises(NonFiniteError, match=f"step {BAD}: guide site 'a'"):
        train((model, bad), log_every=20)
    assert "late" in expected
    assert all(torch.equal(parameters()[name], value) for name, value in expected.items())


def test_a_fault_of_the_first_step_is_named() -> None:
    def bad(x: Tensor) -> None:
        training = torch.is_grad_enabled() and CLOCK[0] == 0
        guide(x, a_scale=float("nan") if training else 1.0)

    for validate in (True, False):
        with pyro.validation_enabled(validate), pytest.raises(NonFiniteError, match="step 0: guide site 'a'"):
            train((model, bad))


def test_other_errors_are_left_as_they_are() -> None:
    def bad(x: Tensor) -> None:
        if now():
            raise ValueError("the model says no")
        guide(x)

    with pytest.raises(ValueError, match="the model says no") as stopped:
        train((model, bad))
    assert stopped.value.__notes__ == [f"This happened in fit, at step {BAD}."]
    assert pyro.settings.get("validate_infer")
