"""What the processes of tests/test_processes.py run: each leaves its numbers in the folder that it is given."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor, nn

from banel_pyro import (
    BaNEL_ELBO,
    BaNEL_TraceEnum_ELBO,
    BaNEL_TraceGraph_ELBO,
    Event,
    FitResult,
    NonFiniteError,
    Pair,
    Rollback,
    Split,
    fit,
)

SIZES = {"shares differ": (7, 4), "a share is empty": (5, 4), "all rows": (7, None), "accumulated": (11, 3)}
"""Rows of data and of a batch: the last of an epoch has 3 rows, 1 row and 7, of 2 processes; 6 and 5 in two batches."""


class Given(dist.Normal):
    """A normal whose noise is given: what two processes draw for a row is what one draws for it."""

    def __init__(self, loc: Tensor, scale: Tensor, noise: Tensor) -> None:
        super().__init__(loc, scale)
        self.noise = noise

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Given":
        return Given(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.noise.expand(batch_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.loc + self.scale * self.noise


def rows(size: int) -> tuple[Tensor, Tensor]:
    """Data, and the noise that each row is given."""
    return torch.linspace(-1.0, 2.0, size), torch.cos(3.0 * torch.arange(size))


def kind(name: str, size: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """A model and a guide with latents in the data plate, outside it, or both; the plate is over N, or len(x)."""
    outer, inner, follows = name in ("global", "mixed"), name != "global", name == "local, len(x)"

    def plate(x: Tensor) -> Any:
        return pyro.plate("data", len(x) if follows else size)

    def model(x: Tensor, noise: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0)) if outer else torch.zeros(())
        with plate(x):
            z = pyro.sample("z", dist.Normal(a, 1.0)) if inner else a
            pyro.sample("x", dist.Normal(z, 0.7), obs=x)

    def guide(x: Tensor, noise: Tensor) -> None:
        s = pyro.param("s", torch.tensor(0.5), constraint=constraints.positive)
        a = pyro.sample("a", Given(pyro.param("m", torch.tensor(0.1)), s, torch.tensor(0.3))) if outer else 0.0
        if inner:
            w = pyro.param("w", torch.tensor(0.2))
            with plate(x):
                pyro.sample("z", Given(a + w * x, s.expand(len(x)), noise))

    return model, guide


def law(name: str, sizes: str, **options: Any) -> dict[str, Any]:
    """History and parameters of a short run; of plain gradient descent, so that they tell its gradients."""
    size, batch = SIZES[sizes]
    times = {"accumulate": 2} if sizes == "accumulated" else {}
    with pyro.get_param_store().scope():
        history = fit(
            *kind(name, size), rows(size), steps=6, batch_size=batch, lam=0.4, optim=torch.optim.SGD, lr=0.01,
            seed=3, log_every=1, progress=False, **times, **options,
        ).history  # fmt: skip
        return {"history": history.drop(columns="seconds").to_dict("list"), "params": params()}


def params() -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in pyro.get_param_store().named_parameters()}


LAWS = [(name, sizes) for name in ("local", "local, len(x)", "global", "mixed") for sizes in SIZES]


def noisy(size: int = 10) -> tuple[Callable[..., None], Callable[..., None], list[tuple[Tensor, Tensor, Tensor]]]:
    """A pair with noise of its own, and what its guide has seen and drawn."""
    drawn = []

    def model(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", size):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(a, 1.0)), 0.7), obs=x)

    def guide(x: Tensor) -> None:
        s = pyro.param("s", torch.tensor(0.5), constraint=constraints.positive)
        with pyro.plate("data", size):
            z = pyro.sample("z", dist.Normal(pyro.param("w", torch.tensor(0.2)) * x, s))
        a = pyro.sample("a", dist.Normal(pyro.param("m", torch.tensor(0.1)), s))
        drawn.append((x.clone(), a.detach().clone(), ((z - pyro.param("w") * x) / s).detach().clone()))

    return model, guide, drawn


def mixture(x: Tensor) -> None:
    """Two kinds of rows around a mean."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 5):
        k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.4)))
        pyro.sample("x", dist.Normal(a + 2.0 * k, 1.0), obs=x)


def scored(x: Tensor, **infer: Any) -> None:
    """Its guide, with a score-function site for each row."""
    pyro.sample("a", dist.Normal(pyro.param("m", torch.tensor(0.1)), 0.5))
    with pyro.plate("data", 5):
        pyro.sample("k", dist.Bernoulli(torch.sigmoid(pyro.param("w", torch.tensor(0.3)) * x)), infer=infer)


def expectation(score: bool, seeds: range, **options: Any) -> Tensor:
    """Terms and gradients of a first step under many seeds, a row for each: loss, entropy, parameters after it."""
    found = []
    for seed in seeds:
        with pyro.get_param_store().scope():
            model, guide = (mixture, scored) if score else noisy(5)[:2]
            row = fit(
                model, guide, rows(5)[0], steps=1, batch_size=3, lam=0.4, optim=torch.optim.SGD, lr=1.0, seed=seed,
                collapse=None, progress=False, **options,
            ).history.iloc[-1]  # fmt: skip
            found.append([row["loss"], row["entropy"], *(float(p) for p in params().values())])
    return torch.tensor(found)


def draws(**options: Any) -> list[Any]:
    """Rows, the latent outside the plate and the noise of the rows, in each step of an epoch and a half."""
    model, guide, drawn = noisy(7)
    split = Split(rows(7)[0], transform=lambda batch: (batch[0] + 0 * torch.rand(len(batch[0])),))
    with pyro.get_param_store().scope():
        fit(model, guide, split, steps=3, batch_size=4, seed=0, progress=False, **options)
    return drawn[-3:]


class Net(nn.Module):
    """Means of rows by a network with dropout and running means."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(int(os.environ.get("LOCAL_RANK", 0)))  # what the first one has counts
        self.layers = nn.Sequential(nn.Linear(1, 3, bias=False), nn.BatchNorm1d(3), nn.Dropout(0.2), nn.Linear(3, 1))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", 10):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 0.7), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("net", self.layers)
        with pyro.plate("data", 10):
            pyro.sample("z", dist.Normal(self.layers(x[:, None])[:, 0] + self.late(), 0.5))

    def late(self) -> Tensor | float:
        """Something that every step adds."""
        return 0.0


class Growing(Net):
    """One that has a parameter more after some steps, which each process starts with a value of its own."""

    steps = 0

    def late(self) -> Tensor | float:
        self.steps += 1
        return pyro.param("late", torch.randn(())) if self.steps > 5 else 0.0


def network(out: Path, steps: int, net: Net | None = None, **options: Any) -> dict[str, Any]:
    """A run with a network, held-out rows and a callback that adds numbers of the process that it is called on."""
    net = Growing() if net is None else net

    def rank(event: Event) -> dict[str, float]:
        return {"rank": float(os.environ.get("LOCAL_RANK", 0))}

    rank.events = ("evaluation",)  # type: ignore[attr-defined]
    with pyro.get_param_store().scope():
        result = fit(
            net.model, net.guide, rows(10)[0], batch_size=5, steps=steps, seed=1, log_every=2, validate_every=4,
            validation=rows(3)[0], callbacks=[rank], checkpoint_every=3, out=out, progress=False, posterior_samples=5,
            **options,
        )  # fmt: skip
        tensors = {name: t.clone() for name, t in (net.state_dict() | params()).items()}
    return {"history": result.history.to_dict("list"), "tensors": tensors}


def forms(**options: Any) -> dict[str, Any]:
    """Parameters and history of pairs in all forms of the bound, with autoguides and particles too."""

    def summed(x: Tensor) -> None:
        scored(x, enumerate="parallel")

    def averaged(x: Tensor) -> None:
        scored(x, baseline={"use_decaying_avg_baseline": True})

    plain = noisy(5)[0]
    pairs: dict[str, Any] = {
        "score": (mixture, scored, BaNEL_ELBO()),
        "graph": (mixture, averaged, BaNEL_TraceGraph_ELBO()),
        "enumerated": (mixture, summed, BaNEL_TraceEnum_ELBO(max_plate_nesting=1)),
        "autoguide": (plain, AutoNormal(plain), BaNEL_ELBO()),
        "particles": (plain, AutoNormal(plain), BaNEL_ELBO(num_particles=4, vectorize_particles=True)),
    }
    found = {}
    for name, (model, guide, objective) in pairs.items():
        with pyro.get_param_store().scope():
            history = fit(
                model, guide, rows(5)[0], objective=objective, lam=0.2, batch_size=3, steps=40, lr=0.02, seed=0,
                progress=False, **options,
            ).history  # fmt: skip
            trained = {n: p for n, p in params().items() if not n.startswith("__")}
            found[name] = {"tensors": trained, "history": history.to_dict("list")}
    return found


def stopped(**options: Any) -> tuple[int, str | None]:
    """How far a run comes that a callback stops, which is called on one process only."""
    model, guide, _ = noisy()

    def stop(event: Event) -> str | None:
        return "enough" if event.step == 3 and int(os.environ.get("LOCAL_RANK", 0)) == 0 else None

    with pyro.get_param_store().scope():
        result = fit(
            model, guide, rows(10)[0], steps=9, log_every=1, callbacks=[stop], seed=0, progress=False, **options
        )
    return len(result.history), result.stopped


def not_finite(**options: Any) -> str:
    """What is said of a row whose likelihood breaks down in the end, which one process has."""
    calls = []

    def model(x: Tensor) -> None:
        calls.append(len(x))
        with pyro.plate("data", 8):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            lost = torch.log(1.9 - x) if len(calls) > 20 else 0.0
            pyro.sample("x", dist.Normal(z + lost, 1.0, validate_args=False), obs=x)

    pair = Pair(model, AutoNormal(model), data=lambda: rows(8)[0])
    with pyro.get_param_store().scope():
        try:
            pair.fit(steps=40, log_every=10, seed=0, progress=False, collapse=None, **options)
        except NonFiniteError as error:
            return str(error)
    return "nothing"


def rolled_back(**options: Any) -> dict[str, Any]:
    """A descent whose rate is too large at first: it breaks down far away, and is rolled back from there."""

    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
        with pyro.plate("data", 8):
            lost = torch.where(mean.abs() > 1e3, torch.log(-mean.abs()), 0.0 * mean)
            pyro.sample("x", dist.Normal(mean + lost, 1.0, validate_args=False), obs=x)

    usual: dict[str, Any] = {"steps": 80, "optim": torch.optim.SGD, "lr": 0.4, "seed": 0, "progress": False}
    with pyro.get_param_store().scope():
        result = fit(model, AutoDelta(model), rows(8)[0], on_fault=Rollback(5), **usual | options)
        return {
            "made": [(record.step, record.back_to, record.lr) for record in result.rollbacks],
            "tensors": params(), "history": result.history.to_dict("list"),
        }  # fmt: skip


def refused(**options: Any) -> list[str]:
    """What is refused on more than one process, and how."""
    follows = kind("local, len(x)", 6)

    def outside(x: Tensor, noise: Tensor) -> None:
        pyro.sample("a", dist.Normal(0.0, 1.0))
        follows[0](x, noise)

    def unplated(x: Tensor, noise: Tensor) -> None:
        pyro.sample("x", dist.Normal(pyro.sample("a", dist.Normal(0.0, 1.0)), 1.0).expand([len(x)]).to_event(1), obs=x)

    rank = int(os.environ.get("LOCAL_RANK", 0))
    tries: list[Callable[[], Any]] = [
        lambda: fit(outside, AutoNormal(outside), rows(6), **options),
        lambda: fit(unplated, AutoNormal(unplated), rows(6), **options),
        lambda: fit(*kind("local", 1), rows(1), **options),
        lambda: fit(*kind("local", 6), rows(6), batch_size=1, **options),
        lambda: fit(*kind("local", 6), (rows(6)[0] + rank, rows(6)[1]), **options),
        lambda: fit(*kind("local", 6), rows(6), **options | {"devices": 3}),
    ]
    return [_said(attempt) for attempt in tries]


def _said(attempt: Callable[[], Any]) -> str:
    with pyro.get_param_store().scope():
        try:
            attempt()
        except (ValueError, RuntimeError, NonFiniteError) as error:
            return str(error)
    return "nothing"


def one_sided(**options: Any) -> list[str]:
    """What is said of a parameter that one process alone comes to use, and of a run after it."""
    model, guide, drawn = noisy()

    def growing(x: Tensor) -> None:
        guide(x)
        if os.environ["LOCAL_RANK"] == "1" and len(drawn) > 12:
            pyro.param("only", torch.zeros(()))

    return [
        _said(lambda: fit(model, growing, rows(10)[0], steps=30, seed=0, progress=False, **options)),
        _said(lambda: fit(model, guide, rows(10)[0], steps=1, seed=0, progress=False, **options)),
    ]


TWO = {"accelerator": "cpu", "devices": 2}


def everything(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"law": {case: law(*case, **TWO, strategy="ddp") for case in LAWS}}
    mine = folder / f"process{os.environ['LOCAL_RANK']}"
    network(mine / "half", 8, **TWO)
    found["resumed"] = network(mine / "half", 11, resume=True, **TWO)
    found["whole"] = network(mine / "whole", 11, **TWO)
    found["draws"] = draws(**TWO)
    found["expectation"] = {score: expectation(score, range(100), **TWO) for score in (False, True)}
    found["forms"] = forms(**TWO)
    found["stopped"] = stopped(**TWO)
    found["not_finite"] = not_finite(**TWO)
    found["rolled_back"] = rolled_back(**TWO)
    found["refused"] = refused(steps=1, progress=False, seed=0, **TWO)
    found["loaded"] = loaded(folder / "process0" / "whole")
    found["one_sided"] = one_sided(**TWO)  # the last: they part
    return found


def loaded(folder: Path) -> float:
    with pyro.get_param_store().scope():
        net = Growing()
        result = FitResult.load(folder, Pair(net.model, net.guide, data=lambda: rows(10)[0]))
        return float(result.history["elbo"].iloc[-1])


def captured(folder: Path) -> dict[str, Any]:
    """The same with captured steps: most of them run operation by operation, some compiled."""
    compiled = TWO | {"capture": True}
    found: dict[str, Any] = {"compiled": law("mixed", "shares differ", **compiled)}  # which starts them
    mine = folder / f"process{os.environ['LOCAL_RANK']}"
    network(mine / "half", 8, Net(), **compiled)
    found["resumed"] = network(mine / "half", 11, Net(), resume=True, **compiled)
    found["whole"] = network(mine / "whole", 11, Net(), **compiled)
    found["eager"] = network(mine / "eager", 11, Net(), **TWO, capture=False)
    with mock.patch("banel_pyro.capture.graphs.has_compiler", return_value=False):
        found["law"] = {case: law(*case, **compiled) for case in LAWS}
        found["several a call"] = law("mixed", "shares differ", **compiled, steps_per_call=2)
        found["forms"] = forms(**compiled)
        found["eager forms"] = forms(**TWO, capture=False)
        found["not_finite"] = not_finite_in_a_graph(**compiled)
        found["refused"] = [asking(capture, **TWO) for capture in (True, "auto")]
    return found


def not_finite_in_a_graph(**options: Any) -> str:
    """What is said of a row whose likelihood breaks down, which one process has, after so many steps."""
    steps = torch.zeros(())

    def model(x: Tensor) -> None:
        steps.add_(1)
        with pyro.plate("data", 8):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            lost = torch.where(steps > 25, torch.log(1.9 - x), 0.0) if os.environ["LOCAL_RANK"] == "1" else 0.0
            pyro.sample("x", dist.Normal(z + lost, 1.0, validate_args=False), obs=x)

    guide = AutoNormal(model)
    return _said(
        lambda: fit(model, guide, rows(8)[0], steps=40, log_every=10, seed=0, progress=False, collapse=None, **options)
    )


def asking(capture: Any, **options: Any) -> str:
    """What becomes of steps that one process alone cannot capture."""
    model, guide, _ = noisy()

    def asks(x: Tensor) -> None:
        model(x)
        if os.environ["LOCAL_RANK"] == "1":
            float(x.sum())

    with mock.patch("banel_pyro.training.captured.WORTH_IT", 0.0):
        return _said(lambda: fit(asks, guide, rows(10)[0], steps=9, seed=0, progress=False, capture=capture, **options))


def failing(folder: Path) -> None:
    """One process fails in a step of its own, and the other must not wait for it."""
    model, guide, drawn = noisy()

    def breaking(x: Tensor) -> None:
        if os.environ["LOCAL_RANK"] == "1" and len(drawn) > 12:
            raise OSError("the disk of process 1 is gone")
        model(x)

    fit(breaking, guide, rows(10)[0], steps=10**6, seed=0, progress=False, **TWO)


def plain(folder: Path) -> dict[str, Any]:
    """A script that leaves it to `fabric run` how it runs, or is run by torchrun."""
    options: dict[str, Any] = {} if "LT_CLI_USED" in os.environ else TWO
    return law("mixed", "shares differ", **options)


def main() -> None:
    torch.set_default_dtype(torch.float64)
    folder = Path(sys.argv[2])
    tasks = {"everything": everything, "captured": captured, "failing": failing, "plain": plain}
    found = tasks[sys.argv[1]](folder)
    torch.save(found, folder / f"found{os.environ.get('LOCAL_RANK', 0)}.pt")


if __name__ == "__main__":
    main()
