"""A run folder: resumed runs and loaded results equal the uninterrupted run, bit for bit; writes are all or nothing."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal, AutoNormalMessenger
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.optim import lr_scheduler

from banel_pyro import FitResult, Pair, Split, fit
from banel_pyro.checkpoint import BEFORE, has_checkpoint
from banel_pyro.run import RunFolder

ROOT = Path(__file__).parents[1]
N = 7
STOP = 8
OPTIONS: dict[str, Any] = {
    "steps": 14, "batch_size": 3, "lr": 0.05, "log_every": 2, "checkpoint_every": 5, "posterior_samples": 0,
    "progress": False,
}  # fmt: skip


class Stop(Exception):
    """What interrupts a run."""


def rows() -> Tensor:
    return torch.linspace(-1.0, 2.0, N)


def model(x: Tensor) -> None:
    a = pyro.sample("a", dist.HalfNormal(1.0))
    with pyro.plate("data", N):
        z = pyro.sample("z", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


# Pairs: each factory returns new networks at every call


def functions() -> Pair:
    def guide(x: Tensor) -> None:
        m, s = pyro.param("m", torch.tensor(0.1)), pyro.param("s", torch.tensor(0.5), constraint=constraints.positive)
        a = pyro.sample("a", dist.LogNormal(m, s))
        with pyro.plate("data", N):
            own = pyro.param("own", torch.zeros(N), event_dim=0)
            pyro.sample("z", dist.Normal(a + own, s))

    return Pair(model, guide, data=rows)


class Decoder(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.decode = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 4))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decode(z)).to_event(1), obs=x)


class Encoder(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.2), nn.Linear(5, 4))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, raw = self.encode(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, nn.functional.softplus(raw) + 1e-3).to_event(1))


def binarised(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (torch.bernoulli(batch[0]),)


def vae() -> Pair:
    """Minibatches of which the last is smaller, a transform that draws, dropout and running statistics."""
    grey = torch.linspace(0.0, 1.0, 4 * 8).reshape(8, 4)
    split = Split(grey, held_out=(grey > 0.5).to(grey.dtype), transform=binarised)
    return Pair(Decoder(), Encoder(), data=lambda: split)


def closures() -> Pair:
    """Running statistics in a network that only a closure holds."""
    net = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))

    def local(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            loc, raw = net(x[:, None]).unbind(-1)
            pyro.sample("z", dist.Normal(loc, nn.functional.softplus(raw) + 1e-3))

    return Pair(local, guide, data=lambda: torch.linspace(-1.0, 2.0, 8))


def autonormal() -> Pair:
    return Pair(model, AutoNormal(model), data=rows)


def messenger() -> Pair:
    return Pair(model, AutoNormalMessenger(model), data=rows)


def late(start: int) -> Pair:
    """A parameter with a random start that first appears at a later step; two more calls come before the first step."""
    calls = {"steps": -1}

    def guide(x: Tensor) -> None:
        m = pyro.param("m", torch.tensor(0.1))
        if CLOCK[0] >= start:
            m = m + pyro.param("late", lambda: torch.rand(()) + 0.1, constraint=constraints.positive)
        a = pyro.sample("a", dist.LogNormal(m, 0.3))
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal(a, 0.5))

    calls["steps"] += 1
    return Pair(model, guide, data=rows)


CLOCK = [-1]
"""The step of the run, set by its schedule."""


def late_before_checkpoint() -> Pair:
    return late(3)


def late_after_checkpoint() -> Pair:
    return late(6)


def late_after_stop() -> Pair:
    return late(11)


class LateModule(PyroModule):
    """Makes a parameter of its own at a later step."""

    def __init__(self, start: int) -> None:
        super().__init__()
        self.start = start
        self.m = PyroParam(torch.tensor(0.1))

    def forward(self, x: Tensor) -> None:
        if CLOCK[0] >= self.start and not hasattr(self, "late"):
            self.late = PyroParam(torch.tensor(0.3), constraint=constraints.positive)
        a = pyro.sample("a", dist.LogNormal(self.m + (self.late if CLOCK[0] >= self.start else 0.0), 0.3))
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal(a, 0.5))


def late_module_before_checkpoint() -> Pair:
    return Pair(model, LateModule(3), data=rows)


def late_module_after_checkpoint() -> Pair:
    return Pair(model, LateModule(6), data=rows)


FACTORIES: dict[str, Callable[[], Pair]] = {
    factory.__name__: factory
    for factory in (
        functions, vae, closures, autonormal, messenger, late_before_checkpoint, late_after_checkpoint, late_after_stop,
        late_module_before_checkpoint, late_module_after_checkpoint,
    )
}  # fmt: skip
OPTIMISERS: dict[str, Any] = {
    "adam": {},
    "momentum": {"optim": torch.optim.SGD, "lr": 0.01},
    "factory": {"optim": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9), "lr": None},
    "adagrad": {"optim": torch.optim.Adagrad},
    "cosine": {"lr_scheduler": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=14)},
    "warm": {
        "lr_scheduler": lambda optimizer: lr_scheduler.SequentialLR(
            optimizer, [lr_scheduler.LinearLR(optimizer), lr_scheduler.MultiStepLR(optimizer, [3, 6])], [4]
        )
    },
    "accumulated": {"accumulate": 2},
    "single": {"dtype": torch.float32},
}


def schedule(stop: int | None) -> Callable[..., float]:
    """λ from the step and the last terms; raises at ``stop``."""

    def lam(step: int, last_terms: Any) -> float:
        CLOCK[0] = step
        if step == stop:
            raise Stop
        return 0.1 if last_terms is None else 0.1 + 0.01 * abs(last_terms.kl) / (1 + abs(last_terms.kl))

    return lam


def train(
    name: str, folder: Path | None, *, stop: int | None = None, optimiser: str = "adam", **options: Any
) -> FitResult:
    """Train a fresh pair, with the clock that the late ones read set back."""
    CLOCK[0] = -1
    torch.manual_seed(11)  # of the networks
    options = OPTIONS | OPTIMISERS[optimiser] | {"seed": 5, "lam": schedule(stop), "out": folder} | options
    return FACTORIES[name]().fit(**options)


def outcome(result: FitResult) -> dict[str, np.ndarray]:
    """Everything that a run ends with, as arrays: parameters, buffers, history without times, draws."""
    store = pyro.get_param_store()
    found = {f"param {name}": p.detach().numpy() for name, p in store._params.items()}
    for part in (result.model, result.guide):
        if isinstance(part, nn.Module):
            found |= {f"{type(part).__name__} {name}": value.numpy() for name, value in part.state_dict().items()}
    found |= {f"history {name}": column.to_numpy() for name, column in result.history.items() if name != "seconds"}
    idata = result.posterior(num_samples=3, groups=("posterior", "posterior_predictive"))
    for group in ("posterior", "posterior_predictive"):
        found |= {f"{group} {name}": array.to_numpy() for name, array in idata[group].data_vars.items()}
    return {name: array.copy() for name, array in found.items()}


def differing(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> list[str]:
    """Names of what is not equal bit for bit."""
    return [
        n for n in one | other if n not in one or n not in other or not np.array_equal(one[n], other[n], equal_nan=True)
    ]


SCRIPT = """
import sys, numpy, pyro, torch
sys.path.insert(0, {root!r})
torch.set_num_threads({threads})  # sums are split among them
from pathlib import Path
from tests.test_resume import FACTORIES, FitResult, outcome, train
for name, optimiser, folder in {runs!r}:
    with pyro.get_param_store().scope():
        numpy.savez(folder + "/resumed.npz", **outcome(train(name, Path(folder), optimiser=optimiser, resume=True)))
    with pyro.get_param_store().scope():
        torch.manual_seed(99)
        numpy.savez(folder + "/loaded.npz", **outcome(FitResult.load(folder, FACTORIES[name]())))
"""
CASES = [(name, "adam") for name in FACTORIES] + [("functions", o) for o in OPTIMISERS if o != "adam"]
CASES += [("late_after_stop", "warm"), ("late_module_after_checkpoint", "cosine"), ("vae", "single")]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Runs that were stopped between checkpoints, resumed and loaded in a new process."""
    folders = {}
    for name, optimiser in CASES:
        folder = tmp_path_factory.mktemp(f"{name}-{optimiser}") / "run"
        with pyro.get_param_store().scope(), pytest.raises(Stop):
            train(name, folder, stop=STOP, optimiser=optimiser)
        folders[name, optimiser] = folder
    runs = [(name, optimiser, str(folder)) for (name, optimiser), folder in folders.items()]
    script = SCRIPT.format(root=str(ROOT), runs=runs, threads=torch.get_num_threads())
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return folders


@pytest.mark.parametrize(("name", "optimiser"), CASES)
def test_a_run_resumed_in_a_new_process_equals_the_uninterrupted_one(
    name: str, optimiser: str, interrupted: dict[tuple[str, str], Path]
) -> None:
    expected = outcome(train(name, None, optimiser=optimiser))
    resumed = dict(np.load(interrupted[name, optimiser] / "resumed.npz"))
    assert differing(expected, resumed) == []


@pytest.mark.parametrize("name", FACTORIES)
def test_a_run_loaded_in_a_new_process_draws_the_same(name: str, interrupted: dict[tuple[str, str], Path]) -> None:
    loaded = dict(np.load(interrupted[name, "adam"] / "loaded.npz"))
    resumed = dict(np.load(interrupted[name, "adam"] / "resumed.npz"))
    if name.startswith("late"):  # before its first step such a guide has not made its parameter
        resumed = {n: a for n, a in resumed.items() if not n.startswith(("posterior", "LateModule"))}
        loaded = {n: a for n, a in loaded.items() if not n.startswith(("posterior", "LateModule"))}
    assert differing(resumed, loaded) == []


@pytest.mark.parametrize(("name", "optimiser"), CASES)
@pytest.mark.parametrize("stop", [STOP, 2])
def test_a_run_resumed_in_the_same_process_equals_the_uninterrupted_one(
    name: str, optimiser: str, stop: int, tmp_path: Path
) -> None:
    """With the params of the stopped run still there, where Pyro's naming allows it: those of modules are refused."""
    with pyro.get_param_store().scope():
        expected = outcome(train(name, None, optimiser=optimiser))
    modules = "module" in name or name in ("vae", "closures", "autonormal", "messenger")
    with pyro.get_param_store().scope():
        with pytest.raises(Stop):
            train(name, tmp_path / "run", stop=stop, optimiser=optimiser)
        if modules:
            pyro.clear_param_store()
        resumed = outcome(train(name, tmp_path / "run", optimiser=optimiser, resume=True))
    assert differing(expected, resumed) == []


def test_a_run_may_stop_and_go_on_many_times(tmp_path: Path) -> None:
    with pyro.get_param_store().scope():
        expected = outcome(train("vae", None))
    for stop in (3, 7, 9, 13):
        with pyro.get_param_store().scope(), pytest.raises(Stop):
            train("vae", tmp_path / "run", stop=stop, resume=True)
    with pyro.get_param_store().scope():
        assert differing(expected, outcome(train("vae", tmp_path / "run", resume=True))) == []


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    with pyro.get_param_store().scope():
        expected = outcome(train("vae", tmp_path / "run"))
    files = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir() if file.name != "config.json"}
    with pyro.get_param_store().scope():
        assert differing(expected, outcome(train("vae", tmp_path / "run", resume=True))) == []
    assert {name: (tmp_path / "run" / name).read_bytes() for name in files} == files


def test_a_longer_run_goes_on_from_a_finished_one(tmp_path: Path) -> None:
    with pyro.get_param_store().scope():
        expected = outcome(train("autonormal", None, steps=24))
    with pyro.get_param_store().scope():
        train("autonormal", tmp_path / "run")
    with pyro.get_param_store().scope():
        longer = train("autonormal", tmp_path / "run", resume=True, steps=24)
        assert differing(expected, outcome(longer)) == []
    assert longer.config["steps"] == 24
    with (
        pytest.raises(ValueError, match=r"steps=14, but the run .* has already done 24"),
        pyro.get_param_store().scope(),
    ):
        train("autonormal", tmp_path / "run", resume=True)


def test_other_log_points_after_resuming_average_what_they_cover(tmp_path: Path) -> None:
    with pyro.get_param_store().scope():
        every = train("functions", None, log_every=1, lam=0.1).history["elbo"].to_numpy()
    with pyro.get_param_store().scope():
        train("functions", tmp_path / "run", steps=5, log_every=3, lam=0.1)
        history = train("functions", tmp_path / "run", resume=True, log_every=4, lam=0.1).history
    assert history["step"].tolist() == [3, 5, 8, 12, 14]
    parts = np.split(every, [3, 5, 8, 12])
    np.testing.assert_allclose(history["elbo"], [part.mean() for part in parts], rtol=1e-5)


def test_without_a_seed_a_resumed_run_takes_its_own(tmp_path: Path) -> None:
    with pyro.get_param_store().scope(), pytest.raises(Stop):
        train("functions", tmp_path / "run", stop=STOP, seed=None)
    with pyro.get_param_store().scope():
        resumed = train("functions", tmp_path / "run", seed=None, resume=True)
        found = outcome(resumed)
    with pyro.get_param_store().scope():
        assert differing(found, outcome(train("functions", None, seed=resumed.config["seed"]))) == []


def test_resuming_starts_a_run_where_there_is_none(tmp_path: Path) -> None:
    assert train("functions", tmp_path / "a" / "run", resume=True).history["step"].iloc[-1] == 14


def test_params_of_others_survive_a_resumed_run(tmp_path: Path) -> None:
    with pyro.get_param_store().scope(), pytest.raises(Stop):
        train("functions", tmp_path / "run", stop=STOP)
    pyro.param("of_others", torch.tensor(3.0), constraint=constraints.positive)
    train("functions", tmp_path / "run", resume=True)
    assert pyro.param("of_others").item() == pytest.approx(3.0)
    saved = RunFolder(tmp_path / "run").read_state()
    assert "of_others" not in saved["params"]


# Loading


def loaded(tmp_path: Path, factory: Callable[[], Pair], load: Callable[[], Pair] | None = None) -> FitResult:
    with pyro.get_param_store().scope():
        CLOCK[0] = -1
        factory().fit(**OPTIONS, seed=0, out=tmp_path / "run")
    with pyro.get_param_store().scope():
        return FitResult.load(tmp_path / "run", (load or factory)())


def test_a_loaded_result_has_config_and_history(tmp_path: Path) -> None:
    result = loaded(tmp_path, autonormal)
    written = pd.read_csv(tmp_path / "run" / "history.csv")
    pd.testing.assert_frame_equal(result.history, written, check_dtype=False)
    assert result.config == json.loads((tmp_path / "run" / "config.json").read_text())
    assert result.config["seed"] == 0
    assert len(result.config["data"]) == 64
    assert result.config["versions"]["torch"] == torch.__version__
    assert result.folder == tmp_path / "run"


def wider() -> Pair:
    pair = vae()
    pair.model.decode[2] = nn.Linear(5, 4, bias=False)
    return pair


def narrower() -> Pair:
    def guide(x: Tensor) -> None:
        pyro.param("own", torch.zeros(1))
        functions().guide(x)

    return Pair(model, guide, data=rows)


def other_data() -> Pair:
    return Pair(model, AutoNormal(model), data=lambda: rows() + 1)


@pytest.mark.parametrize(
    ("factory", "load", "words"),
    [
        (vae, wider, r"state is of another pair: module tensors saved but not in the pair \['0.decode.2.bias'\]"),
        (autonormal, messenger, r"state is of another pair: parameters saved .*AutoNormal.*Use the pair that wrote it"),
        (functions, narrower, r"state is of another pair: 'own' has shape \(7,\) in it and \(1,\) here"),
        (autonormal, lambda: Pair(model, functions().guide, data=rows), "state is of another pair"),
        (autonormal, other_data, r"trained on other data than those of the pair \(7 rows.*here 7 rows"),
    ],
)
def test_a_state_of_another_pair_is_refused(
    tmp_path: Path, factory: Callable[[], Pair], load: Callable[[], Pair], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        loaded(tmp_path, factory, load)


def test_a_state_with_a_constraint_of_the_users_own_says_so(tmp_path: Path) -> None:
    class Mine(constraints.Constraint):
        pass

    torch.distributions.transform_to.register(Mine, lambda constraint: torch.distributions.ExpTransform())

    def make(start: int) -> Pair:
        def guide(x: Tensor) -> None:
            s = pyro.param("s", torch.tensor(0.5), constraint=Mine()) if CLOCK[0] >= start else 0.5
            a = pyro.sample("a", dist.LogNormal(pyro.param("m", torch.tensor(0.0)), s))
            with pyro.plate("data", N):
                pyro.sample("z", dist.Normal(a, 0.5))

        return Pair(model, guide, data=rows)

    options = OPTIONS | {"seed": 0, "out": tmp_path / "fine"}
    with pyro.get_param_store().scope():
        make(-1).fit(**options)
    with pyro.get_param_store().scope():
        FitResult.load(tmp_path / "fine", make(-1))
    CLOCK[0] = -1
    with pyro.get_param_store().scope():
        make(3).fit(**options | {"out": tmp_path / "late", "lam": schedule(None)})
    CLOCK[0] = -1
    words = "parameter 's' first appears at a later step"
    with pyro.get_param_store().scope(), pytest.raises(ValueError, match=words):
        FitResult.load(tmp_path / "late", make(3))


def test_a_joint_autoguide_is_loaded(tmp_path: Path) -> None:
    def factory() -> Pair:
        return Pair(model, AutoMultivariateNormal(model), data=rows)

    with pyro.get_param_store().scope():
        first = outcome(factory().fit(steps=4, seed=0, out=tmp_path / "run", posterior_samples=0, progress=False))
    with pyro.get_param_store().scope():
        again = outcome(FitResult.load(tmp_path / "run", factory()))
    first = {name: value for name, value in first.items() if not name.startswith("history")}
    assert differing(first, {n: v for n, v in again.items() if not n.startswith("history")}) == []


def shared(x: Tensor) -> None:
    a, b = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in "ab")
    with pyro.plate("data", N):
        pyro.sample("x", dist.Normal(a + b * x, 1.0), obs=x)


def test_a_weight_under_two_names_is_resumed(tmp_path: Path) -> None:
    """A flow of Pyro's holds its first weight a second time."""

    def run(steps: int, **options: Any) -> FitResult:
        with pyro.get_param_store().scope():
            torch.manual_seed(0)
            pair = Pair(shared, AutoIAFNormal(shared, num_transforms=2), data=rows)
            return pair.fit(steps=steps, lr=0.05, seed=0, posterior_samples=0, progress=False, **options)

    whole = run(12, out=tmp_path / "whole")
    run(7, out=tmp_path / "run")
    again = run(12, out=tmp_path / "run", resume=True)
    pairs = zip(whole.guide.parameters(), again.guide.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert whole.history["elbo"].iloc[-1] == again.history["elbo"].iloc[-1]
    first, second = (RunFolder(tmp_path / name).read_state() for name in ("whole", "run"))
    assert first["groups"] == second["groups"]
    assert all(torch.equal(value, second["params"][name]) for name, value in first["params"].items())


# The folder


def refused(folder: Path, words: str, name: str = "functions", **options: Any) -> None:
    before = sorted(folder.rglob("*")), {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    with pyro.get_param_store().scope(), pytest.raises(ValueError, match=words):
        train(name, folder, **options)
    assert (sorted(folder.rglob("*")), {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "already holds a run: choose another folder, or pass resume=True"),
        ({"resume": True, "seed": 6}, "holds another run .seed: 5 there, 6 here.*Choose another folder"),
        ({"resume": True, "batch_size": 2}, "holds another run .batch_size: 3 there, 2 here"),
        ({"resume": True, "lam": 0.7}, "holds another run .lam"),
        ({"resume": True, "optimiser": "momentum"}, "holds another run .*optim: 'torch.optim.adam.Adam' there"),
        ({"resume": True, "name": "vae"}, "holds another run .*data: "),
        ({"resume": True, "name": "messenger"}, "state is of another pair"),
    ],
)
def test_a_folder_with_another_run_is_refused_and_left_alone(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    train("functions", tmp_path / "run")
    refused(tmp_path / "run", words, **options)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    refused(tmp_path, "exists and is no run folder: choose a new or an empty folder")
    refused(tmp_path / "notes.txt", "exists and is no run folder")


def test_what_a_cut_off_write_leaves_does_not_block_a_run(tmp_path: Path) -> None:
    (tmp_path / ".config.json.partial").write_text("{")
    assert train("functions", tmp_path).history["step"].iloc[-1] == 14


def test_a_refused_run_leaves_nothing_that_blocks_a_retry(tmp_path: Path) -> None:
    for options in ({"lam": {"nowhere": 0.3}}, {"lam": 1.0}, {"batch_size": 50}, {"lr": -1.0}):
        with pyro.get_param_store().scope(), pytest.raises(ValueError, match=r"expected|unknown|minimum|more than"):
            train("functions", tmp_path / "run", **options)
        assert not (tmp_path / "run").exists()
    train("functions", tmp_path / "run")


def test_an_error_says_at_which_step(tmp_path: Path) -> None:
    with pytest.raises(Stop) as stopped:
        train("functions", tmp_path / "run", stop=3)
    assert stopped.value.__notes__ == ["This happened in fit, at step 3."]


def test_a_folder_without_a_state_holds_nothing_to_lose(tmp_path: Path) -> None:
    """As if the machine had stopped between the first two writes."""
    with pytest.raises(Stop):
        train("functions", tmp_path / "run", stop=1)
    (tmp_path / "run" / "state.pt").unlink()
    assert not has_checkpoint(tmp_path / "run")
    with pyro.get_param_store().scope():
        resumed = outcome(train("functions", tmp_path / "run", resume=True))
    with pyro.get_param_store().scope():
        assert differing(resumed, outcome(train("functions", None))) == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", b"{", "config.json' is not JSON .*damaged"),
        ("config.json", b'{"format": 99, "versions": {"banel_pyro": "9.9"}}', "run of format 99.*reads format 3.*9.9"),
        ("state.pt", b"nonsense", "state.pt' cannot be read as a state .*damaged"),
    ],
)
def test_a_damaged_or_newer_folder_is_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    train("functions", tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(content)
    (tmp_path / "run" / BEFORE).unlink()
    with pytest.raises(ValueError, match=words):
        FitResult.load(tmp_path / "run", functions())
    refused(tmp_path / "run", words, resume=True)


def test_a_state_of_another_format_or_that_is_code_is_refused(tmp_path: Path) -> None:
    train("functions", tmp_path / "run")
    state = RunFolder(tmp_path / "run").read_state()
    torch.save(state | {"format": 99}, tmp_path / "run" / "state.pt")
    with pytest.raises(ValueError, match="state of format 99, this version reads format 3"):
        FitResult.load(tmp_path / "run", functions())
    torch.save(state | {"code": print}, tmp_path / "run" / "state.pt")
    (tmp_path / "run" / BEFORE).unlink()
    with pytest.raises(ValueError, match="UnpicklingError"):
        FitResult.load(tmp_path / "run", functions())


@pytest.mark.parametrize("missing", ["config.json", "state.pt"])
def test_a_folder_without_a_run_cannot_be_loaded(tmp_path: Path, missing: str) -> None:
    train("functions", tmp_path / "run")
    (tmp_path / "run" / missing).unlink()
    (tmp_path / "run" / BEFORE).unlink()
    with pytest.raises(ValueError, match=rf"has no {missing}"):
        FitResult.load(tmp_path / "run", functions())


def test_a_failing_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full at the second checkpoint, in the middle of a file."""
    save, saved = torch.save, []

    def failing(state: Any, file: Any) -> None:
        saved.append(state["step"])
        if len(saved) == 2:
            Path(file).write_bytes(b"half")
            raise OSError("no space left")
        save(state, file)

    monkeypatch.setattr(torch, "save", failing)
    with pyro.get_param_store().scope(), pytest.raises(OSError, match="no space"):
        train("functions", tmp_path / "run")
    assert saved == [0, 5, 5]  # the last one elsewhere
    assert RunFolder(tmp_path / "run").read_state()["step"] == 0
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["config.json", "history.csv", "state.pt"]
    monkeypatch.undo()
    with pyro.get_param_store().scope():
        resumed = outcome(train("functions", tmp_path / "run", resume=True))
    with pyro.get_param_store().scope():
        assert differing(resumed, outcome(train("functions", None))) == []


def test_the_creation_date_stays_with_the_run(tmp_path: Path) -> None:
    with pyro.get_param_store().scope(), pytest.raises(Stop):
        train("functions", tmp_path / "run", stop=STOP)
    file = tmp_path / "run" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"created": "2020-01-01"}))
    with pyro.get_param_store().scope():
        train("functions", tmp_path / "run", resume=True)
    assert json.loads(file.read_text())["created"] == "2020-01-01"


def test_a_fit_result_of_other_rows(tmp_path: Path) -> None:
    amortised = vae().fit(steps=2, seed=0, progress=False)
    assert amortised.posterior(torch.ones(3, 4), num_samples=2)["posterior"]["z"].shape == (1, 2, 3, 2)
    guided = fit(model, AutoNormal(model), rows(), steps=2, batch_size=3, seed=0, progress=False)
    assert guided.posterior(rows()[:2], num_samples=2)["posterior"]["z"].shape == (1, 2, 2)
    with pytest.raises(ValueError, match=r"data: the guide has \[.*AutoNormal.*\] for each row of the training data"):
        guided.posterior(rows() + 1, num_samples=2)
    with pytest.raises(ValueError, match=r"data has 2 tensors with rows of .* training data have 1 tensor"):
        guided.posterior((rows(), rows()), num_samples=2)
