"""``fit`` with captured steps: the numbers of the eager run, resumed bit for bit, and eager where that is right."""

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, AutoNormalMessenger
from pyro.nn import PyroModule
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor, nn
from torch.optim import lr_scheduler

from banel_pyro import (
    BaNEL_ELBO,
    BaNEL_TraceEnum_ELBO,
    BaNEL_TraceGraph_ELBO,
    CaptureError,
    FitResult,
    Linear,
    NonFiniteError,
    Split,
    fit,
)
from banel_pyro.capture import graphs
from banel_pyro.training import captured as captured_module
from banel_pyro.training.captured import CapturedSteps

N = 20
OPTIONS: dict[str, Any] = {
    "steps": 60, "lr": 0.02, "log_every": 5, "seed": 3, "posterior_samples": 0, "progress": False, "collapse": None,
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs run operation by operation, but in the tests that are marked."""
    if "compiles" not in request.keywords:
        monkeypatch.setattr(graphs, "has_compiler", lambda: False)
        monkeypatch.setattr(graphs, "_said", {""})


def rows() -> Tensor:
    return torch.linspace(-1.0, 2.5, N)


def model(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    with pyro.plate("data", N):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def local(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    with pyro.plate("data", N):
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def flags(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        flag = pyro.sample("flag", dist.Bernoulli(torch.full((len(x),), 0.3)))
        pyro.sample("x", dist.Normal(flag, 1.0), obs=x)


def flags_guide(x: Tensor) -> None:
    w = pyro.param("w", lambda: torch.zeros(2))
    with pyro.plate("data", len(x)):
        infer = {"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.9}}
        pyro.sample("flag", dist.Bernoulli(logits=w[0] + w[1] * x), infer=infer)


def mixture(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    means = pyro.sample("means", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
    with pyro.plate("data", N):
        k = pyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(means[k], 1.0), obs=x)


class Noisy(PyroModule):
    """An encoder with batch normalisation and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, raw = self.net(x[:, None]).unbind(-1)
            pyro.sample("z", dist.Normal(loc, nn.functional.softplus(raw) + 0.01))


class Convolved(PyroModule):
    """An encoder of rows as pictures: convolutions, batch normalisation, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3), nn.ReLU(),
            nn.ConvTranspose2d(3, 2, 4, stride=2), nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(2),
        )  # fmt: skip
        self.net(torch.zeros(2, 1, 6, 6))

    def forward(self, x: Tensor) -> None:
        pictures = torch.sin(x[:, None] * torch.arange(36.0)).reshape(-1, 1, 6, 6)
        with pyro.plate("data", len(x)):
            loc, raw = self.net(pictures).unbind(-1)
            pyro.sample("z", dist.Normal(loc, nn.functional.softplus(raw) + 0.01))


def standard(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def cosine(optimizer: Any) -> Any:
    return lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)


def one_cycle(optimizer: Any) -> Any:
    return lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=60)


def cycle_and_rest(optimizer: Any) -> Any:
    cycle = lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=40)
    return lr_scheduler.SequentialLR(optimizer, [cycle, lr_scheduler.ConstantLR(optimizer)], milestones=[40])


Options = dict[str, Any]
PAIRS: dict[str, Callable[[], tuple[Any, Any, Options]]] = {
    "plain": lambda: (model, AutoNormal(model), {}),
    "minibatches": lambda: (model, AutoNormal(model), {"batch_size": 8}),
    "local latents": lambda: (local, AutoNormal(local), {"batch_size": 8}),
    "accumulated": lambda: (model, AutoNormal(model), {"batch_size": 4, "accumulate": 2}),
    "messenger": lambda: (local, AutoNormalMessenger(local), {"batch_size": 8}),
    "joint": lambda: (model, AutoMultivariateNormal(model), {"lam": 0.3}),
    "schedule": lambda: (model, AutoNormal(model), {"lam": Linear(0.0, 0.6, over=40)}),
    "λ of a site": lambda: (local, AutoNormal(local), {"lam": lambda time, terms: {"mean": 0.01 * time}}),
    "λ from the terms": lambda: (
        model, AutoNormal(model), {"lam": lambda time, terms: 0.1 if terms is None else 0.1 * float(terms.entropy) % 1},
    ),
    "clipped": lambda: (model, AutoNormal(model), {"clip_norm": 0.5}),
    "particles": lambda: (model, AutoNormal(model), {"objective": BaNEL_ELBO(num_particles=3)}),
    "vectorised": lambda: (
        model, AutoNormal(model), {"objective": BaNEL_ELBO(0.2, num_particles=3, vectorize_particles=True)},
    ),
    "networks": lambda: (standard, Noisy(), {"batch_size": 8, "objective": BaNEL_ELBO(0.2, kl="closed_form")}),
    "convolutions": lambda: (standard, Convolved(), {"batch_size": 8}),
    "score function": lambda: (flags, flags_guide, {"batch_size": 8}),
    "baseline": lambda: (flags, flags_guide, {"batch_size": 8, "objective": BaNEL_TraceGraph_ELBO(0.1)}),
    "summed out": lambda: (
        mixture, AutoNormal(pyro.poutine.block(mixture, hide=["k"])), {"objective": BaNEL_TraceEnum_ELBO(0.1)},
    ),
    "enumerated": lambda: (
        flags, pyro.infer.config_enumerate(flags_guide, "parallel"), {"objective": BaNEL_TraceEnum_ELBO(0.1)},
    ),
    "Rényi": lambda: (flags, flags_guide, {"objective": BaNEL_ELBO(-0.3, alpha=2.0)}),
    "SGD": lambda: (model, AutoNormal(model), {"optim": torch.optim.SGD, "lr": 1e-4}),
    "ClippedAdam": lambda: (
        model, AutoNormal(model), {"optim": lambda p: ClippedAdam(p, lr=0.02, lrd=0.99), "lr": None},
    ),
    "RMSprop, outside": lambda: (model, AutoNormal(model), {"optim": torch.optim.RMSprop}),
    "cosine": lambda: (model, AutoNormal(model), {"lr_scheduler": cosine}),
    "one cycle": lambda: (model, AutoNormal(model), {"lr_scheduler": one_cycle}),
    "float64": lambda: (model, AutoNormal(model), {"dtype": torch.float64}),
    "several a call": lambda: (model, AutoNormal(model), {"batch_size": 4, "lr_scheduler": cosine}),
    "λ of more sites": lambda: (
        local, AutoNormal(local), {"lam": lambda time, terms: {"mean": 0.3} if time < 30 else {"mean": 0.3, "z": 0.2}},
    ),
    "λ, then λ of sites": lambda: (
        local, AutoNormal(local), {"lam": lambda time, terms: 0.2 if time < 30 else {"mean": 0.3}},
    ),
    "one cycle, then constant": lambda: (model, AutoNormal(model), {"lr_scheduler": cycle_and_rest}),
}  # fmt: skip


def train(name: str, **options: Any) -> FitResult:
    pyro.clear_param_store()
    torch.manual_seed(0)
    pair, guide, own = PAIRS[name]()
    if name == "several a call" and options.get("capture"):
        options["steps_per_call"] = 3
    data = rows().double() if "dtype" in own else rows()
    return fit(pair, guide, data, **OPTIONS | own | options)


def same_numbers(one: FitResult, other: FitResult, rel: float = 1e-4) -> None:
    columns = [c for c in one.history.columns if c != "seconds"]
    assert list(other.history.columns) == list(one.history.columns)
    pd.testing.assert_frame_equal(one.history[columns], other.history[columns], rtol=rel, atol=1e-4)


@pytest.mark.parametrize("name", PAIRS)
def test_a_captured_run_has_the_numbers_of_the_eager_one(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(captured_module, "USES", 10)
    with caplog.at_level(logging.INFO, "banel_pyro"):
        captured = train(name, capture=True)
    rows = PAIRS[name]()[2].get("batch_size")
    sizes = {None: {"all"}, 4: {"8", "4"} if name == "accumulated" else {"4"}, 8: {"8", "4"}}[rows]
    told = {r.message.split()[4] for r in caplog.records if r.message.startswith("captured a step of")}
    assert told == sizes
    same_numbers(captured, train(name, capture=False))


@pytest.mark.compiles
@pytest.mark.parametrize("name", ["networks", "convolutions", "summed out", "several a call"])
def test_a_compiled_run_has_the_numbers_of_the_eager_one(name: str, caplog: pytest.LogCaptureFixture) -> None:
    captured = train(name, capture=True)
    assert not [r for r in caplog.records if r.name == "banel_pyro"]
    same_numbers(captured, train(name, capture=False))


# ---- resuming ---------------------------------------------------------------------------------------------------


class Stop(Exception):
    """What interrupts a run."""


def stop_at(time: int) -> Callable[[Any], None]:
    def stop(event: Any) -> None:
        if event.step == time:
            raise Stop

    stop.events = ("step",)  # type: ignore[attr-defined]
    return stop


def resumed(name: str, folder: Path, **options: Any) -> FitResult:
    """A run that stopped at step 33, after its checkpoint at step 24, and went on."""
    options |= {"out": folder, "checkpoint_every": 24}
    with pytest.raises(Stop):
        train(name, callbacks=[stop_at(33)], **options)
    return train(name, resume=True, **options)


def assert_same_bits(one: FitResult, other: FitResult) -> None:
    columns = [c for c in one.history.columns if c != "seconds"]
    pd.testing.assert_frame_equal(one.history[columns], other.history[columns], check_exact=True)


@pytest.mark.parametrize("name", ["minibatches", "networks", "ClippedAdam", "cosine", "baseline", "RMSprop, outside"])
def test_a_resumed_captured_run_is_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    whole = train(name, capture=True)
    weights = {n: p.detach().clone() for n, p in pyro.get_param_store()._params.items()}
    assert_same_bits(resumed(name, tmp_path / "run", capture=True), whole)
    for n, p in pyro.get_param_store()._params.items():
        assert bool((p == weights[n]).all()), n


@pytest.mark.compiles
def test_a_resumed_compiled_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = train("minibatches", capture=True)
    assert_same_bits(resumed("minibatches", tmp_path / "run", capture=True), whole)
    assert_same_bits(train("minibatches", capture=True), whole)


def test_a_decision_by_the_clock_is_kept_when_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured_module, "WORTH_IT", 0.0)
    whole = train("minibatches", capture="auto")
    options = {"out": tmp_path / "run", "checkpoint_every": 24, "capture": "auto"}
    with pytest.raises(Stop):
        train("minibatches", callbacks=[stop_at(33)], **options)
    monkeypatch.setattr(captured_module, "WORTH_IT", 1e9)  # it would decide otherwise now
    assert_same_bits(train("minibatches", resume=True, **options), whole)


def test_a_run_may_go_on_with_the_other_kind_of_step(tmp_path: Path) -> None:
    options = {"out": tmp_path / "run", "checkpoint_every": 24}
    with pytest.raises(Stop):
        train("minibatches", callbacks=[stop_at(33)], capture=True, **options)
    same_numbers(train("minibatches", capture=False, resume=True, **options), train("minibatches", capture=False))


# ---- when ---------------------------------------------------------------------------------------------------------


def steps_captured(monkeypatch: pytest.MonkeyPatch, name: str = "plain", **options: Any) -> int:
    """How many steps of a run were captured ones."""
    found = 0
    original = CapturedSteps._gather

    def gather(self: Any, most: int) -> Any:
        nonlocal found
        steps = original(self, most)
        found += len(steps)
        return steps

    monkeypatch.setattr(CapturedSteps, "_gather", gather)
    train(name, **options)
    return found


def test_short_runs_are_eager_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert steps_captured(monkeypatch) == 0


def test_long_runs_are_captured_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured_module, "WORTH_IT", 0.0)
    assert steps_captured(monkeypatch) == 60 - 1 - captured_module.TIMED


def test_all_but_the_first_step_are_captured_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    assert steps_captured(monkeypatch, capture=True) == 59


def test_a_last_batch_that_is_seldom_seen_is_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    # three steps an epoch, of 8, 8 and 4 rows; the last are too few for a graph
    assert steps_captured(monkeypatch, "minibatches", capture=True) == 39


# ---- where it cannot be -------------------------------------------------------------------------------------------


def branching(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    with pyro.plate("data", N):
        pyro.sample("x", dist.Normal(mean, 1.0 if mean > 0 else 2.0), obs=x)


def test_what_cannot_be_captured_is_eager_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(captured_module, "WORTH_IT", 0.0)
    found = fit(branching, AutoNormal(branching), rows(), capture="auto", **OPTIONS)
    pyro.clear_param_store()
    expected = fit(branching, AutoNormal(branching), rows(), capture=False, **OPTIONS)
    assert_same_bits(found, expected)
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert record.message.startswith("training is eager: model, guide or objective ask for the value of a tensor")


def test_what_cannot_be_captured_is_refused_on_request() -> None:
    with pytest.raises(CaptureError, match="ask for the value of a tensor"):
        fit(branching, AutoNormal(branching), rows(), capture=True, **OPTIONS)


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="capture='yes': expected True, False or 'auto'"):
        fit(model, AutoNormal(model), rows(), capture="yes", **OPTIONS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps_per_call=0"):
        fit(model, AutoNormal(model), rows(), steps_per_call=0, **OPTIONS)


def test_a_transform_outside_of_torch_is_made_before_the_graph(caplog: pytest.LogCaptureFixture) -> None:
    def rounded(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (torch.tensor([round(value, 1) for value in batch[0].tolist()]),)

    found = []
    for capture in (True, False):
        pyro.clear_param_store()
        data = Split(rows(), None, rounded)
        found.append(fit(model, AutoNormal(model), data, batch_size=10, capture=capture, **OPTIONS))
    same_numbers(*found)


class Switch:
    """What a model may look at without our seeing it: not reachable as a number or a container."""

    __slots__ = ("on",)

    def __init__(self) -> None:
        self.on = False


def turning() -> tuple[Callable[[Tensor], None], Switch]:
    switch = Switch()

    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
        with pyro.plate("data", N):
            pyro.sample("x", dist.Normal(mean, 2.0 if switch.on else 1.0), obs=x)

    return model, switch


@pytest.mark.parametrize("capture", [True, "auto"])
def test_a_model_that_becomes_another_one_is_noticed(
    capture: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The run goes back to where graph and model agreed, and on with eager steps."""
    monkeypatch.setattr(captured_module, "LOOK_AGAIN", 5)
    monkeypatch.setattr(captured_module, "WORTH_IT", 0.0)
    changing, switch = turning()

    def lam(time: int, terms: Any) -> float:  # something that the loop calls at every step
        switch.on = switch.on or time >= 30
        return 0.0

    guide = AutoNormal(changing)
    if capture is True:
        with pytest.raises(CaptureError, match="differs from the eager one"):
            fit(changing, guide, rows(), lam=lam, capture=True, **OPTIONS)
        return
    found = fit(changing, guide, rows(), lam=lam, capture="auto", **OPTIONS)
    assert [r for r in caplog.records if "training is eager: the captured step differs" in r.message]
    assert found.history["step"].tolist() == list(range(5, 61, 5))
    # at the end the wider likelihood is trained on: its constant shows
    assert found.history["elbo"].iloc[-1] < -1.6


def test_a_failed_capture_leaves_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook that asks for a value runs in the middle of the backward pass."""
    monkeypatch.setattr(captured_module, "WORTH_IT", 0.0)
    found = []
    for capture in ("auto", False):
        pyro.clear_param_store()
        torch.manual_seed(0)
        guide = Noisy()
        guide.net[0].weight.register_hook(lambda g: g * min(1.0, 1 / float(g.norm())))
        found.append(fit(standard, guide, rows(), capture=capture, **OPTIONS))
    assert_same_bits(*found)


def test_parameters_of_some_batches_alone_are_trained_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured_module, "WORTH_IT", 0.0)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", lambda: torch.tensor(0.0))
        if len(x) == 3:
            loc = loc + pyro.param("more", lambda: torch.tensor(0.1))
        pyro.sample("mean", dist.Normal(loc, 1.0))

    found = []
    for capture in ("auto", False):
        pyro.clear_param_store()
        found.append(fit(model, guide, rows(), batch_size=3, capture=capture, **OPTIONS))
    assert_same_bits(*found)


def test_a_transform_before_the_graph_draws_what_it_draws_in_eager_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (torch.tensor(batch[0].tolist()) + 0.1 * torch.randn(len(batch[0])),)

    monkeypatch.setattr(captured_module, "LOOK_AGAIN", 10)
    found = []
    for capture in (True, False):
        pyro.clear_param_store()
        options = {"steps_per_call": 3} if capture else {}
        data = Split(rows(), None, noisy)
        found.append(fit(model, AutoNormal(model), data, batch_size=5, capture=capture, **OPTIONS | options))
    same_numbers(*found)


def test_a_second_size_that_cannot_be_captured_leaves_the_optimiser_where_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Adam has to hear of the captured steps before it makes eager ones."""
    monkeypatch.setattr(captured_module, "WORTH_IT", 0.0)
    monkeypatch.setattr(captured_module, "USES", 1)
    monkeypatch.setattr(captured_module, "TIMED", 1)

    def picky(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
        scale = float(mean * 0.0 + 1.0) if len(x) == 2 else 1.0
        with pyro.plate("data", N):
            pyro.sample("x", dist.Normal(mean, scale), obs=x)

    found = []
    for capture in ("auto", False):
        pyro.clear_param_store()
        options = OPTIONS | {"log_every": 20}
        found.append(fit(picky, AutoNormal(model), rows(), batch_size=3, capture=capture, **options))
    same_numbers(*found)


@pytest.mark.parametrize("hide", ["closure", "handler", "underscore", "function"])
def test_a_slow_counter_is_noticed_wherever_it_is(hide: str) -> None:
    class Slow(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self._t = 0

        def forward(self, x: Tensor) -> None:
            self._t += 1
            run(x, self._t)

    counts = {"t": 0}

    def run(x: Tensor, t: int) -> None:
        with pyro.poutine.scale(scale=1.0 + t / 1e5):
            model(x)

    def counting(x: Tensor) -> None:
        counts["t"] += 1
        run(x, counts["t"])

    def own(x: Tensor) -> None:
        own.t = getattr(own, "t", 0) + 1  # type: ignore[attr-defined]
        run(x, own.t)  # type: ignore[attr-defined]

    kinds = {
        "closure": counting,
        "handler": pyro.poutine.block(counting, hide=[]),
        "underscore": Slow(),
        "function": own,
    }
    with pytest.raises(CaptureError, match="a step changes"):
        fit(kinds[hide], AutoNormal(model), rows(), capture=True, **OPTIONS)


def test_a_number_that_a_callback_changes_is_noticed_at_the_end() -> None:
    strength = {"scale": 1.0}

    def scaled(x: Tensor) -> None:
        with pyro.poutine.scale(scale=strength["scale"]):
            model(x)

    def change(event: Any) -> None:
        strength["scale"] = 2.0 if event.step > 40 else 1.0

    change.events = ("log",)  # type: ignore[attr-defined]
    with pytest.raises(CaptureError, match=r"strength\['scale'\] \(1.0 to 2.0\)"):
        fit(scaled, AutoNormal(scaled), rows(), capture=True, callbacks=[change], **OPTIONS)


# ---- numbers that are not finite ------------------------------------------------------------------------------------


def test_a_step_that_is_not_finite_is_named_and_leaves_the_parameters_before_it() -> None:
    def breaking(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
        with pyro.plate("data", N):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
        # the ninth batch of an epoch has the largest row alone
        pyro.factor("breaks", torch.where(x.max() > 2.4, torch.log(-x.max()), x.max() * 0))

    errors, parameters = [], []
    for capture in (False, True):
        pyro.clear_param_store()
        with pytest.raises(NonFiniteError) as caught:
            fit(breaking, AutoNormal(breaking), rows(), batch_size=1, capture=capture, **OPTIONS | {"log_every": 20})
        errors.append((caught.value.step, caught.value.where))
        parameters.append({n: p.detach().clone() for n, p in pyro.get_param_store()._params.items()})
    assert errors[0] == errors[1]
    assert errors[1][1] == "model site 'breaks'"
    assert errors[1][0] > 0
    for n, p in parameters[0].items():
        torch.testing.assert_close(p, parameters[1][n])


def test_what_a_captured_run_leaves_is_as_plain_as_any(tmp_path: Path) -> None:
    """No tensor of the trace stays behind in objective, plate or optimiser."""
    objective = BaNEL_ELBO()
    result = fit(
        model, AutoNormal(model), rows(), objective=objective, lam=Linear(0.0, 0.3, over=30), capture=True, **OPTIONS
    )
    assert objective.lam == 0.0
    assert isinstance(result.history["lam"].iloc[-1], float)
    assert result.plate._index is None or isinstance(result.plate._index, Tensor)
    pickle.dumps(result.history)
    assert len(result.posterior(num_samples=5).posterior["mean"].values.ravel()) == 5
