"""`fit`: seeds, all kinds of pairs and optimisers, the history, and what it leaves alone."""

import functools
import random
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

from banel_pyro import BaNEL_ELBO, Linear, LossTerms, Pair, Split, fit
from banel_pyro.batches import epoch_order
from models import normal_normal

pytestmark = pytest.mark.usefixtures("float64")

N = 6
X = (0.3, -1.2, 2.0, 0.7, -0.4, 1.1)


def rows() -> Tensor:
    return torch.tensor(X)


def model(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N):
        z = pyro.sample("z", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    m, w = pyro.param("m", torch.tensor(0.1)), pyro.param("w", torch.tensor(0.2))
    s = pyro.param("s", torch.tensor(0.5), constraint=constraints.positive)
    a = pyro.sample("a", dist.Normal(m, s))
    with pyro.plate("data", N):
        pyro.sample("z", dist.Normal(a + w * x, s))


def parameters() -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in pyro.get_param_store().named_parameters()}


def run(**options: Any) -> tuple[dict[str, Tensor], Any]:
    """Train the pair above in a param store of its own; parameters and history without times."""
    with pyro.get_param_store().scope():
        options = {"steps": 12, "batch_size": 4, "lr": 0.05, "log_every": 3, "progress": False} | options
        history = fit(model, guide, rows(), **options).history.drop(columns="seconds")
        return parameters(), history


def same(one: tuple[dict[str, Tensor], Any], other: tuple[dict[str, Tensor], Any]) -> bool:
    """Bit for bit."""
    return all(torch.equal(one[0][name], other[0][name]) for name in one[0] | other[0]) and one[1].equals(other[1])


# Seeds


def test_the_same_seed_gives_the_same_numbers() -> None:
    torch.manual_seed(1)
    first = run(seed=3)
    torch.manual_seed(2)
    assert same(first, run(seed=3))
    assert not same(first, run(seed=4))
    assert same(first, run(seed=np.int64(3)))


def test_without_a_seed_runs_follow_torch() -> None:
    torch.manual_seed(5)
    first, after = run(), torch.rand(3)
    torch.manual_seed(5)
    assert same(first, run())
    assert torch.equal(after, torch.rand(3))
    assert not same(first, run())


@pytest.mark.parametrize("seeded", [True, False])
def test_the_callers_generators_are_left_alone(seeded: bool) -> None:
    def draws() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()

    def data() -> Tensor:
        random.random(), np.random.rand()
        return torch.randn(N)

    pyro.set_rng_seed(9)
    if not seeded:
        torch.randint(2**31, ())
    expected = draws()
    pyro.set_rng_seed(9)
    pair = Pair(model, guide, data=data)
    pair.fit(steps=2, seed=0 if seeded else None, validation=rows(), progress=False)
    assert draws() == expected


def test_the_first_bar_of_a_process_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing rich draws from Python's generator, which the model may use as well."""

    def drawing(x: Tensor) -> None:
        with pyro.plate("data", N):
            pyro.sample("x", dist.Normal(pyro.param("m", torch.tensor(0.0)) + random.random(), 1.0), obs=x)

    def elbos(progress: bool) -> list[float]:
        with pyro.get_param_store().scope():
            result = fit(drawing, lambda x: None, rows(), steps=3, seed=0, log_every=1, progress=progress)
        return result.history["elbo"].tolist()

    expected = elbos(False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    assert elbos(True) == expected


def test_random_data_of_a_pair_follow_the_seed() -> None:
    def hashed(seed: int) -> str:
        with pyro.get_param_store().scope():
            return (
                Pair(model, guide, data=lambda: torch.randn(N)).fit(steps=1, seed=seed, progress=False).config["data"]
            )

    assert hashed(0) == hashed(0) != hashed(1)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True, "0"])
def test_a_wrong_seed_is_refused(seed: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"seed={seed!r}: expected an integer.*Write seed="):
        run(seed=seed)


# What is left as found


def test_the_objective_is_left_as_found() -> None:
    objective = BaNEL_ELBO(num_particles=2, vectorize_particles=True)
    before = dict(vars(objective))
    run(objective=objective, lam=Linear(0.0, 0.3, over=5))
    assert vars(objective) == before


def test_lam_of_the_objective_is_used() -> None:
    _, history = run(objective=BaNEL_ELBO(lam=0.3), seed=0)
    assert (history["lam"] == 0.3).all()
    assert same(run(objective=BaNEL_ELBO(lam=0.3), seed=0), run(lam=0.3, seed=0))


@pytest.mark.parametrize("lam", [0.3, {"z": 0.3}])
def test_lam_in_both_places_is_refused(lam: Any) -> None:
    with pytest.raises(ValueError, match=r"lam=0.2 in fit and lam=.*0.3.* in the objective: set it in one place"):
        run(objective=BaNEL_ELBO(lam=lam), lam=0.2)


def test_modules_keep_their_mode() -> None:
    net = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    net[0].eval()

    def amortised(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x[:, None])[:, 0], 1.0))

    fit(local, amortised, rows(), steps=2, validation=rows(), progress=False).posterior(num_samples=2)
    assert [part.training for part in net] == [False, True, True]


# Kinds of pairs


def local(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class Tutorial(nn.Module):
    """The VAE of Pyro's tutorial: bound methods of a plain module, networks registered by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(2, 4), nn.Linear(2, 2)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("obs", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, raw = self.encoder(x).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, raw.exp()).to_event(1))


class Decoder(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.decode = nn.Linear(2, 2)
        self.noise = pyro.nn.PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decode(z), self.noise).to_event(1), obs=x)


class Encoder(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(2, 4)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, raw = self.encode(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


def tutorial() -> tuple[Any, Any, list[nn.Module]]:
    vae = Tutorial()
    return vae.model, vae.guide, [vae]


def pyro_modules() -> tuple[Any, Any, list[nn.Module]]:
    decoder, encoder = Decoder(), Encoder()
    return decoder, encoder, [decoder, encoder]


def closures() -> tuple[Any, Any, list[nn.Module]]:
    encoder, decoder = nn.Linear(2, 4), nn.Linear(2, 2)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, raw = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    return model, guide, [encoder, decoder]


def autoguided() -> tuple[Any, Any, list[nn.Module]]:
    class Regression(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.linear = PyroModule[nn.Linear](2, 1)
            self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))

        def forward(self, x: Tensor) -> None:
            mean = self.linear(x)[:, 0]
            with pyro.plate("data", 6):
                pyro.sample("y", dist.Normal(mean, 1.0), obs=x[:, 0])

    regression = Regression()
    guide = AutoNormal(regression)
    return regression, guide, [regression, guide]


KINDS = [tutorial, pyro_modules, closures, autoguided]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [None, 4])
def test_all_parameters_of_every_kind_of_pair_are_trained(kind: Callable[[], Any], batch_size: int | None) -> None:
    model, guide, modules = kind()
    x = torch.randn(N, 2)
    before = {name: p.detach().clone() for m in modules for name, p in m.named_parameters()}
    fit(model, guide, x, steps=3, batch_size=batch_size, seed=0, lr=0.1, progress=False)
    after = {name: p.detach() for m in modules for name, p in m.named_parameters()}
    assert before or kind is autoguided
    assert not [name for name, p in after.items() if name in before and torch.equal(p, before[name])]
    assert {id(p) for m in modules for p in m.parameters()} == {id(p) for p in pyro.get_param_store()._params.values()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_params_of_another_module_are_refused(kind: Callable[[], Any]) -> None:
    """Pyro would train the old networks, or, with `pyro.module`, nothing at all."""
    x = torch.randn(N, 2)
    for _ in range(2):
        model, guide, _modules = kind()
        before = parameters()
        if not before:
            fit(model, guide, x, steps=2, seed=0, progress=False)
            continue
        with pytest.raises(ValueError, match=r"param store already holds \[.*clear_param_store\(\) first"):
            fit(model, guide, x, steps=2, seed=0, progress=False)
        with pyro.get_param_store().scope():
            fit(model, guide, x, steps=2, seed=0, progress=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_fit_of_the_same_pair_goes_on(kind: Callable[[], Any]) -> None:
    model, guide, _modules = kind()
    x = torch.randn(N, 2)
    steps = [fit(model, guide, x, steps=60, seed=s, lr=0.02, progress=False).history["elbo"] for s in (0, 1)]
    assert steps[1].mean() > steps[0].mean()
    assert abs(steps[1].iloc[:5].mean() - steps[0].iloc[-5:].mean()) < steps[0].iloc[-5:].mean() - steps[0].iloc[0]


def test_a_model_without_arguments() -> None:
    def model() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N):
            pyro.sample("x", dist.Normal(a, 1.0), obs=rows())

    result = fit(model, AutoNormal(model), steps=5, seed=0, progress=False)
    assert result.config["per"] == "total"
    assert result.posterior(num_samples=2)["posterior"]["a"].shape == (1, 2)


def test_totals_without_a_data_plate_and_averages_with_one() -> None:
    def bare(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(a, 1.0).expand([N]).to_event(1), obs=x)

    def plated(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N):
            pyro.sample("x", dist.Normal(a, 1.0), obs=x)

    found = {}
    for one in (bare, plated):
        with pyro.get_param_store().scope():
            found[one.__name__] = fit(one, AutoNormal(one), rows(), steps=1, seed=0, progress=False)
    assert found["bare"].config["per"] == "total"
    assert found["plated"].config["per"] == "datum"
    entropy = {name: result.history["entropy"].iloc[0] for name, result in found.items()}
    assert entropy["bare"] == pytest.approx(N * entropy["plated"], rel=1e-12)
    assert entropy["bare"] == pytest.approx(0.5 * np.log(2 * np.pi * np.e * 0.1**2), rel=1e-6)


# Optimisers


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "RMSprop", "Adagrad", "Adadelta", "Rprop", "NAdam", "ASGD"])
def test_any_class_of_torch_optim(name: str) -> None:
    before = {"m": 0.1, "w": 0.2}
    found, _ = run(optim=getattr(torch.optim, name), lr=0.01, seed=0)
    assert all(float(found[key]) != value for key, value in before.items())


def test_the_default_is_fused_adam_and_lr_is_passed_on() -> None:
    default = run(lr=None, seed=0)
    assert same(default, run(optim=functools.partial(torch.optim.Adam, lr=1e-3, fused=True), lr=None, seed=0))
    assert not same(default, run(lr=0.01, seed=0))


def test_a_factory_sees_all_parameters_at_once() -> None:
    seen: list[int] = []

    def factory(parameters: list[Tensor]) -> torch.optim.Optimizer:
        seen.append(len(parameters))
        return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)

    run(optim=factory, lr=None)
    assert seen == [3]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (
            {"optim": pyro.optim.Adam({"lr": 0.1})},
            TypeError,
            r"optim is a pyro.optim.optim.PyroOptim.*torch.optim.Adam",
        ),
        ({"optim": pyro.optim.Adam, "lr": None}, TypeError, "optim is a pyro.optim.*Adam"),
        ({"optim": "adam"}, TypeError, "optim is a builtins.str.*torch.optim class"),
        ({"optim": dict}, TypeError, "optim is a builtins.dict.*torch.optim class"),
        ({"optim": lambda p: None, "lr": None}, TypeError, "optim returned a NoneType.*lambda params"),
        ({"optim": torch.optim.LBFGS}, TypeError, "optim is LBFGS.*several times a step"),
        ({"optim": lambda p: torch.optim.Adam(p), "lr": 0.1}, ValueError, "lr=0.1: the optimiser is a factory"),
        ({"objective": Trace_ELBO()}, TypeError, r"objective is a Trace_ELBO.*BaNEL_ELBO\(\)"),
        ({"objective": BaNEL_ELBO}, TypeError, "objective is a BaNEL_ELBO"),
        ({"lr": -1.0}, ValueError, "lr=-1.0: expected a positive number"),
        ({"lr": "big"}, TypeError, "lr='big': expected a positive number"),
        ({"clip_norm": 0}, ValueError, "clip_norm=0: expected a positive number"),
        ({"steps": 0}, ValueError, "steps=0: expected an integer of at least 1"),
        ({"steps": 1.5}, TypeError, "steps=1.5: expected an integer"),
        ({"steps": None}, ValueError, "epochs=None, steps=None: give exactly one"),
        ({"epochs": 2}, ValueError, "epochs=2, steps=12: give exactly one"),
        ({"batch_size": 7}, ValueError, "batch_size=7 is more than the 6 rows.*at most 6"),
        ({"batch_size": 0}, ValueError, "batch_size=0: expected an integer of at least 1"),
        ({"log_every": 0}, ValueError, "log_every=0"),
        ({"checkpoint_every": -1}, ValueError, "checkpoint_every=-1"),
        ({"validate_every": 0.5}, TypeError, "validate_every=0.5"),
        ({"lam": "0.4"}, TypeError, "lam='0.4': expected a number"),
        ({"posterior_samples": 1}, ValueError, "posterior_samples=1: expected 0 for none, or at least 2"),
        ({"posterior_samples": -5}, ValueError, "posterior_samples=-5: expected an integer of at least 0"),
        ({"resume": True}, ValueError, "resume=True, but out=None.*Name its folder"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        run(**options)


def test_parameters_that_appear_later_are_trained() -> None:
    calls = [0]

    def late(x: Tensor) -> None:
        calls[0] += 1
        m = pyro.param("m", torch.tensor(0.1))
        if calls[0] > 12:
            m = m + pyro.param("late", torch.tensor(0.0))
        a = pyro.sample("a", dist.Normal(m, 0.5))
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal(a, 0.5))

    fit(model, late, rows(), steps=20, lr=0.1, seed=0, progress=False)
    assert pyro.param("late").item() != 0


# The history


def test_the_columns_of_the_history() -> None:
    _, history = run(lam={"z": 0.3}, validation=torch.zeros(3), validate_every=6, seed=0)
    base = ["step", "epoch", "log_likelihood", "kl", "entropy", "lam", "penalty", "elbo", "loss", "grad_norm"]
    assert list(history) == [*base, "entropy[a]", "entropy[z]", "lam[a]", "lam[z]", "val_elbo"]
    assert history["step"].tolist() == [3, 6, 9, 12]
    assert history["epoch"].tolist() == [1.5, 3, 4.5, 6]
    assert history["lam[z]"].tolist() == [0.3] * 4
    assert history["lam"].isna().all()
    assert history["val_elbo"].isna().tolist() == [True, False, True, False]
    np.testing.assert_allclose(history["elbo"], history["log_likelihood"] - history["kl"], rtol=1e-12)
    np.testing.assert_allclose(history["loss"], history["penalty"] - history["elbo"], rtol=1e-12)
    np.testing.assert_allclose(history["penalty"], 0.3 * history["entropy[z]"], rtol=1e-12)
    np.testing.assert_allclose(history["entropy"], history["entropy[a]"] + history["entropy[z]"], rtol=1e-12)


def test_the_averages_are_those_of_pyro() -> None:
    """Every step again by plain Pyro, from its parameters, rows and random numbers; 3 steps a row, the last 2."""
    x, noted = rows(), []

    def lam(step: int, last_terms: LossTerms | None) -> float:
        if pyro.get_param_store().keys():
            noted.append((step, torch.get_rng_state(), parameters()))
        return 0.0

    result = fit(model, guide, x, steps=8, batch_size=4, lr=0.05, lam=lam, seed=0, log_every=3, progress=False)
    index = torch.arange(N)

    def again_model(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N, subsample=index):
            z = pyro.sample("z", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])

    def again_guide(x: Tensor) -> None:
        p = {name: pyro.param(name) for name in ("m", "w", "s")}
        a = pyro.sample("a", dist.Normal(p["m"], p["s"]))
        with pyro.plate("data", N, subsample=index):
            pyro.sample("z", dist.Normal(a + p["w"] * x[index], p["s"]))

    elbos, norms = [], []
    for step, state, values in noted[-8:]:
        index = epoch_order(N, 0, step // 2)[4 * (step % 2) :][:4]
        for name, value in values.items():
            pyro.get_param_store()._params[name].data.copy_(value)
        torch.set_rng_state(state)
        loss = Trace_ELBO().differentiable_loss(again_model, again_guide, x)
        gradients = torch.autograd.grad(loss, list(pyro.get_param_store()._params.values()))
        elbos.append(-float(loss.detach()) / N)
        norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))
    windows = [elbos[0:3], elbos[3:6], elbos[6:8]]
    np.testing.assert_allclose(result.history["elbo"], [np.mean(w) for w in windows], rtol=1e-10)
    np.testing.assert_allclose(result.history["grad_norm"], [norms[2], norms[5], norms[7]], rtol=1e-10)


def test_a_schedule_gets_the_step_and_the_last_logged_terms() -> None:
    seen: list[tuple[int, Any]] = []

    def lam(step: int, last_terms: LossTerms | None) -> float:
        seen.append((step, last_terms))
        return 0.01 * step

    _, history = run(lam=lam, seed=0)
    steps = seen[-12:]
    assert [step for step, _ in steps] == list(range(12))
    assert [terms is None for _, terms in steps] == [True] * 3 + [False] * 9
    assert steps[5][1].elbo == history["elbo"].iloc[0]
    assert steps[6][1].elbo == history["elbo"].iloc[1]
    np.testing.assert_allclose(history["lam"], [0.02, 0.05, 0.08, 0.11])


def test_a_schedule_in_epochs_counts_batches() -> None:
    _, history = run(lam=Linear(0.0, 0.4, over=2, unit="epochs"), steps=6, log_every=1, seed=0)
    np.testing.assert_allclose(history["lam"], [0.0, 0.1, 0.2, 0.3, 0.4, 0.4])


@pytest.mark.parametrize(("steps", "log_every", "rows"), [(7, None, 7), (1000, None, 100), (7, 10, 1), (7, 3, 3)])
def test_log_points(steps: int, log_every: int | None, rows: int) -> None:
    _, history = run(steps=steps, log_every=log_every, seed=0)
    assert len(history) == rows
    assert history["step"].iloc[-1] == steps


def test_logging_more_often_does_not_change_the_run() -> None:
    assert all(torch.equal(p, run(seed=0, log_every=1)[0][name]) for name, p in run(seed=0, log_every=5)[0].items())


def test_clipping_bounds_the_gradient() -> None:
    """Plain gradient descent moves by lr times the norm."""
    sgd = {"optim": torch.optim.SGD, "lr": 1.0, "steps": 1, "seed": 0, "log_every": 1}
    start = {"m": 0.1, "w": 0.2, "s": float(torch.tensor(0.5).log())}
    for largest in (1e-3, 1e6):
        found, history = run(clip_norm=largest, **sgd)
        moved = torch.tensor([float(found[name]) - value for name, value in start.items()]).norm()
        norm = history["grad_norm"].iloc[0]
        assert 1e-3 < norm < 1e6
        assert float(moved) == pytest.approx(min(norm, largest), rel=1e-9)


# Held-out data


def test_validation_does_not_change_the_run() -> None:
    plain, judged = run(seed=0), run(seed=0, validation=torch.zeros(3), validate_every=3)
    assert "val_elbo" in judged[1]
    assert same(plain, (judged[0], judged[1].drop(columns="val_elbo")))


def test_validation_leaves_running_statistics_alone() -> None:
    def trained(validation: Tensor | None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))

        def amortised(x: Tensor) -> None:
            pyro.module("net", net)
            with pyro.plate("data", len(x)):
                loc, raw = net(x[:, None]).unbind(-1)
                pyro.sample("z", dist.Normal(loc, raw.exp()))

        with pyro.get_param_store().scope():
            fit(local, amortised, rows(), steps=6, seed=0, validation=validation, log_every=1, progress=False)
        return net.state_dict()

    plain, judged = trained(None), trained(rows() + 5)
    assert all(torch.equal(value, judged[name]) for name, value in plain.items())
    assert plain["1.num_batches_tracked"] == 6


@pytest.mark.parametrize("batch_size", [None, 4])
def test_the_held_out_elbo_is_per_datum_and_untempered(batch_size: int | None) -> None:
    """Against the exact ELBO of new rows under the trained guide, for a plate over `len(x)`."""
    held_out = torch.linspace(-2.0, 3.0, 400)

    def amortised(x: Tensor) -> None:
        w = pyro.param("w", torch.tensor(0.4))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(w * x, 0.8))

    split = Split(rows(), held_out)
    result = fit(local, amortised, split, steps=2, batch_size=batch_size, lam=0.5, lr=1e-9, seed=0, progress=False)
    loc, variance = 0.4 * held_out, 0.64
    log_p = -torch.log(torch.tensor(2 * torch.pi)) - (loc**2 + (held_out - loc) ** 2 + 2 * variance) / 2
    exact = log_p.mean() + 0.5 * torch.log(torch.tensor(2 * torch.pi * torch.e * variance))
    draws = (400 * 2) ** 0.5 * variance + (variance * ((2 * loc - held_out) ** 2).sum()) ** 0.5
    assert abs(result.history["val_elbo"].iloc[-1] - float(exact)) < 4 * float(draws) / 400


# The progress bar


def test_progress_shows_the_terms_or_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    run(progress=False)
    assert capsys.readouterr() == ("", "")
    run(progress=True, lam=0.25)
    out, err = capsys.readouterr()
    assert out == ""
    for word in ("ELBO", "KL", "entropy", "lam 0.25", "12/12"):
        assert word in err


def test_progress_names_the_sites_of_a_mapping(capsys: pytest.CaptureFixture[str]) -> None:
    run(progress=True, lam={"z": 0.25})
    assert "lam a=0 z=0.25" in capsys.readouterr().err


def test_progress_in_a_notebook(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One line of the cell's output, updated; nothing on standard error, and no widgets needed."""
    shown: list[str] = []

    class Handle:
        def update(self, content: dict[str, str], *, raw: bool) -> None:
            shown.append(content["text/plain"])

    def display(content: dict[str, str], *, raw: bool, display_id: bool) -> Handle:
        handle = Handle()
        handle.update(content, raw=raw)
        return handle

    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setattr("builtins.get_ipython", lambda: shell, raising=False)
    notebook = types.ModuleType("IPython.display")
    notebook.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", notebook)
    run(progress=True)
    assert capsys.readouterr() == ("", "")
    assert len(shown) == 5
    assert shown[0].startswith("fit ")
    assert "━" * 30 + " 12/12  ELBO" in shown[-1]


# The examples of exact answers


def test_a_fit_finds_the_exact_posterior() -> None:
    pair = normal_normal.pair()
    x = pair.data()
    for steps, lr in ((400, 0.05), (200, 0.01), (400, 0.001)):
        result = pair.fit(steps=steps, lr=lr, seed=0, progress=False)
    exact = normal_normal.posterior(x)
    idata = result.posterior(num_samples=4000)
    draws = torch.from_numpy(idata["posterior"]["density"].to_numpy()).flatten()
    assert abs(draws.mean() - exact.mean) < 5 * exact.stddev / 4000**0.5 + 0.1 * exact.stddev
    assert float(draws.std() / exact.stddev) == pytest.approx(1.0, rel=0.1)


def test_a_late_parameter_moves_in_the_very_step_in_which_it_appears() -> None:
    last_step = False

    def late(x: Tensor) -> None:
        m = pyro.param("m", torch.tensor(0.1))
        m = m + pyro.param("late", torch.tensor(0.5)) if last_step else m
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal(m, 1.0))

    def local(x: Tensor) -> None:
        with pyro.plate("data", N):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def schedule(step: int, terms: LossTerms | None) -> float:
        nonlocal last_step
        last_step = step == 4  # asked before each step: the checks before the first one call the guide as well
        return 0.0

    fit(local, late, rows(), lam=schedule, steps=5, lr=0.01, seed=0, progress=False)
    # the first step of Adam has the length of the learning rate
    assert abs(float(pyro.param("late").detach()) - 0.5) == pytest.approx(0.01, rel=1e-4)
