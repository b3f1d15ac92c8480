"""Learning-rate schedulers of torch: moved once a step, refused where they cannot work, recorded."""

from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch.optim import lr_scheduler

from tests.test_callbacks import run

pytestmark = pytest.mark.usefixtures("float64")


def rates(factory: Any, **options: Any) -> list[float]:
    with pyro.get_param_store().scope():
        return run(lr_scheduler=factory, log_every=1, **options).history["lr"].tolist()


def alone(factory: Any, steps: int = 12) -> list[float]:
    """The rates that torch gives the same scheduler in a loop of its own."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.05)
    scheduler, found = factory(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


FACTORIES = {
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=12),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=12, cycle_momentum=False),
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step),
    "steps": lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [3, 7]),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_the_rates_are_those_of_torch(name: str) -> None:
    assert rates(FACTORIES[name]) == alone(FACTORIES[name])


def test_a_constant_scheduler_changes_nothing() -> None:
    with pyro.get_param_store().scope():
        plain = run().history.drop(columns="seconds")
    with pyro.get_param_store().scope():
        constant = run(lr_scheduler=lambda o: lr_scheduler.LambdaLR(o, lambda step: 1.0)).history
    assert constant.drop(columns=["seconds", "lr"]).equals(plain)
    assert "lr" not in plain


def test_a_plateau_is_one_of_the_held_out_elbo() -> None:
    """A scheduler that takes any progress for none lowers the rate at every evaluation but the first."""

    def factory(optimizer: torch.optim.Optimizer) -> lr_scheduler.ReduceLROnPlateau:
        return lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", factor=0.5, patience=0, threshold=1e9, threshold_mode="abs"
        )

    assert rates(factory, validate_every=4) == [0.05] * 8 + [0.025] * 4


class Mine(lr_scheduler.LRScheduler):
    def get_lr(self) -> list[float]:  # type: ignore[override]
        return [0.1 for _ in self.optimizer.param_groups]


@pytest.mark.parametrize(
    ("factory", "error", "words"),
    [
        (lambda o: None, TypeError, "lr_scheduler returned a NoneType: expected a scheduler"),
        (lambda o: Mine(torch.optim.SGD([torch.zeros(1)], lr=0.1)), ValueError, "a scheduler of another optimiser"),
        (lambda o: lr_scheduler.ReduceLROnPlateau(o), ValueError, "mode='min', but it is told the held-out ELBO"),
        (3, TypeError, "lr_scheduler=3: expected a callable"),
        (lr_scheduler.CosineAnnealingLR, TypeError, "T_max"),
    ],
)
def test_what_is_no_scheduler_is_refused(factory: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        run(lr_scheduler=factory)


def test_another_scheduler_cannot_go_on(tmp_path: Path) -> None:
    """The numbers of one mean something else to another."""

    def refused(words: str, first: Any, then: Any) -> None:
        folder = tmp_path / words[:8]
        with pyro.get_param_store().scope():
            run(out=folder, steps=4, lr_scheduler=first)
        with pyro.get_param_store().scope(), pytest.raises(ValueError, match=words):
            run(out=folder, resume=True, lr_scheduler=then)

    step, exponential = partial(lr_scheduler.StepLR, step_size=9), partial(lr_scheduler.ExponentialLR, gamma=0.9)
    refused(r"lr_scheduler: '.*StepLR\(step_size=9\)' there, '.*ExponentialLR\(gamma=0.9\)' here", step, exponential)
    refused("the state was saved by StepLR, here it is ExponentialLR", lambda o: step(o), lambda o: exponential(o))


def test_a_plateau_without_held_out_rows_is_refused() -> None:
    from banel_pyro import fit
    from tests.test_callbacks import make

    pair = make()
    assert pair.data is not None
    with pytest.raises(ValueError, match="ReduceLROnPlateau needs held-out rows"):
        fit(
            pair.model, pair.guide, pair.data().train, steps=2, progress=False,
            lr_scheduler=lambda o: lr_scheduler.ReduceLROnPlateau(o, mode="max"),
        )  # fmt: skip
