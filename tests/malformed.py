"""Malformed inputs, by where they go: what is called, and what the message has to name."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import xarray as xr
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor, nn

from banel_pyro import BaNEL_ELBO, FitResult, Pair, Split, fit, spread, to_arviz
from banel_pyro.diagnostics import (
    active_units,
    calibrate,
    compare,
    importance,
    k_hat_threshold,
    kl_per_dimension,
    nuts_reference,
)
from banel_pyro.inference_data import from_datasets
from banel_pyro.report import plots
from banel_pyro.schedules import from_config

N = 6
Case = tuple[Callable[[], Any], str]
"""A call, and a regular expression for what it is refused with."""


def rows() -> Tensor:
    return torch.linspace(-1.0, 1.0, N)


def model(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N):
        pyro.sample("x", dist.Normal(a, 1.0), obs=x)


def guide(x: Tensor) -> None:
    pyro.sample("a", dist.Normal(pyro.param("m", torch.tensor(0.1)), 0.5))


def pair() -> Pair:
    return Pair(model, guide, data=rows, name="six")


def trained(**options: Any) -> Any:
    given = {"model": model, "guide": guide, "data": rows(), "steps": 3, "lr": 0.1, "seed": 0, "progress": False}
    given |= options
    return fit(given.pop("model"), given.pop("guide"), given.pop("data"), **given)


class Odd:
    """What nothing expects."""

    def __repr__(self) -> str:
        return "Odd()"


NAN, INF = float("nan"), float("inf")
OPTIONS: dict[str, list[Any]] = {
    "steps": [0, -1, 1.5, "10", True, NAN, Odd()],
    "batch_size": [0, -1, 2.5, "3", 7, True],
    "accumulate": [0, -1, 1.5, "2", 2],
    "lr": [0, -1.0, NAN, INF, "x", True, [0.1]],
    "clip_norm": [0, -1, NAN, INF, "x", True],
    "seed": [-1, 2**32, 1.5, "x", True, NAN],
    "log_every": [0, -1, 2.5, "x"],
    "validate_every": [0, 1.5, "x"],
    "checkpoint_every": [0, -3, "x"],
    "posterior_samples": [1, -1, 1.5, "x", True],
    "dtype": [torch.int32, "float16", float, 3, torch.float16],
    "capture": ["maybe", 2, Odd()],
    "steps_per_call": [0, 1.5, "x"],
    "lam": ["0.3", [0.1], True, NAN, INF, {"zz": 0.1}, {1: 0.1}, {"a": "x"}, {"a": NAN}, 1.0, {"a": 2.0}, Odd(), dist],
    "optim": ["adam", nn.Linear, 3, pyro.optim.Adam],
    "lr_scheduler": ["cosine", 3],
    "callbacks": [3, "stop", [3], [None]],
    "collapse": [True, "yes", 3],
    "explosion": [True, "yes", 3],
    "objective": ["elbo", BaNEL_ELBO, pyro.infer.Trace_ELBO(), 3],
    "data_plate": ["rows", 3],
    "name": [3, ["six"]],
    "out": [3, True],
    "devices": [0, -1, "two", True],
    "precision": ["16-mixed", 3],
    "validation": [torch.zeros(0), torch.tensor([NAN]), torch.zeros(3, 2), "x", torch.zeros(3, dtype=torch.float64)],
    "model": [None, 3, "model"],
    "guide": [None, 3, "guide"],
}

DATA: dict[str, Any] = {
    "NaN": torch.tensor([0.0, NAN] * 3), "infinite": torch.full((N,), INF), "empty": torch.zeros(0), "a number": 3.0,
    "no axis": torch.tensor(1.0), "a text": "x.csv", "objects": np.array([None] * N), "texts": np.array(["a"] * N),
    "dates": np.array(["2020-01-01"] * N, dtype="datetime64"), "records": np.zeros(N, dtype=[("a", "f8")]),
    "lengths": (torch.zeros(6), torch.zeros(5)), "no tensors": (), "a list of numbers": [1.0, 2.0], "a set": {1.0},
    "a mapping": {"x": torch.zeros(N)}, "none inside": (torch.zeros(N), None), "rows of rows": [[1.0]] * N,
    "too many rows": torch.zeros(N + 1), "two columns": (torch.zeros(N), torch.zeros(N)), "odd": Odd(),
    "a generator": (x for x in [1.0]), "a class": Tensor,
    "a split of nothing": Split(torch.zeros(0)), "an empty dataset": torch.utils.data.TensorDataset(torch.zeros(0)),
}  # fmt: skip

LINE = {"class": "Linear", "start": 0.0, "stop": 0.4, "over": 10}
SCHEDULES: list[Any] = [
    None, 3, "Linear", [], [LINE], {}, {"class": None}, {"class": "linear"}, {"class": "os.system"}, {"class": 3},
    {"class": "_Timed"}, {"class": "Linear"}, LINE | {"over": 0}, LINE | {"over": -1}, LINE | {"over": 1.5},
    LINE | {"over": "x"}, LINE | {"over": NAN}, LINE | {"start": NAN}, LINE | {"start": None}, LINE | {"stop": INF},
    LINE | {"unit": "days"}, LINE | {"unit": 3}, LINE | {"more": 1}, LINE | {"start": [0.0]},
    LINE | {"start": {"a": 1}}, LINE | {"start": True}, {"class": "Constant"}, {"class": "Constant", "value": "x"},
    {"class": "Constant", "value": {"z": "x"}}, {"class": "Constant", "value": {"z": NAN}},
    {"class": "Constant", "value": []}, {"class": "Piecewise", "boundaries": 3, "values": [0.1]},
    {"class": "Piecewise", "boundaries": [3, 2], "values": [0.1, 0.2, 0.3]},
    {"class": "Piecewise", "boundaries": [3], "values": [0.1]},
    {"class": "Piecewise", "boundaries": ["3"], "values": [0.1, 0.2]},
    {"class": "Join", "schedules": [LINE, {"class": "x"}], "boundaries": [3]},
    {"class": "Join", "schedules": [LINE, "x"], "boundaries": [3]},
    {"class": "Join", "schedules": LINE, "boundaries": []},
    {"class": "Warmup", "over": 3, "then": None}, {"class": "Warmup", "over": 3, "then": LINE | {"unit": "epochs"}},
    {"class": "Exponential", "lam0": 1.0, "decay": 2.0, "every": 1, "lam_min": 0.0},
    {"class": "Exponential", "lam0": 0.0, "decay": 0.5, "every": 1, "lam_min": 1.0},
    {"class": "Cyclical", "start": 0.0, "stop": 1.0, "period": 8, "ramp_fraction": 0.0},
]  # fmt: skip

# ---- ArviZ objects ------------------------------------------------------------------------------


def draws(values: Any = None, *, dims: Any = ("chain", "draw"), name: str = "a", **attrs: Any) -> Any:
    """An ArviZ object of one variable."""
    array = np.linspace(-1.0, 1.0, 100).reshape(1, 100) if values is None else values
    return from_datasets({"posterior": xr.Dataset({name: (dims, array)})}, attrs)


def real(**attrs: Any) -> Any:
    """Draws that to_arviz made, with other attributes."""
    with pyro.get_param_store().scope():
        found = to_arviz(model, AutoNormal(model), rows(), num_samples=100, seed=0)
    found.attrs.update(attrs)
    return found


OBJECTS: dict[str, Callable[[], Any]] = {
    "None": lambda: None, "a number": lambda: 3, "a text": lambda: "posterior.nc", "odd": Odd,
    "a mapping": lambda: {"posterior": {}}, "an array": lambda: np.zeros(3),
    "a dataset": lambda: xr.Dataset({"a": (("chain", "draw"), np.ones((1, 9)))}),
    "without a posterior": lambda: from_datasets({"prior": xr.Dataset()}, {}),
    "an empty posterior": lambda: from_datasets({"posterior": xr.Dataset()}, {}),
}  # fmt: skip
ATTRS: dict[str, Any] = {"not JSON": "{", "a list": "[]", "a number": 3, "a text": '"a"', "numbers": '{"a": [1]}'}


def arviz_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for name, make in OBJECTS.items():
        words = "idata|posterior|densities|expected"
        cases[f"spread of {name}"] = (lambda make=make: spread(make()), words)
        cases[f"compare {name}"] = (lambda make=make: compare(make(), draws()), words)
        cases[f"compare with {name}"] = (lambda make=make: compare(draws(), make()), words)
        cases[f"plot_spread of {name}"] = (lambda make=make: plots.plot_spread(make()), words)
    for name, value in ATTRS.items():
        cases[f"densities that are {name}"] = (lambda v=value: spread(real(densities=v)), "densities")
        cases[f"point masses that are {name}"] = (lambda v=value: spread(real(point_masses=v)), "point_masses")
    cases.pop("point masses that are a list")  # which is right: there are none
    cases |= {
        "densities of others": (lambda: spread(real(densities='{"b": ["a"]}')), "log_q_b"),
        "unknown variable": (lambda: spread(real(), var_names=["zz"]), "zz"),
        "a name for a list": (lambda: spread(real(), var_names="zz"), "var_names"),
        "unknown dim": (lambda: spread(real(), over="zz"), "zz"),
        "probability 1": (lambda: spread(real(), hdi_prob=1.0), "hdi_prob=1.0"),
        "probability NaN": (lambda: spread(real(), hdi_prob=NAN), "hdi_prob=nan"),
        "probability in words": (lambda: spread(real(), hdi_prob="x"), "hdi_prob='x'"),  # type: ignore[arg-type]
        "units of no latent": (lambda: active_units(real(), "zz", "data"), "zz"),
        "units of no plate": (lambda: active_units(real(), "a", "zz"), "zz"),
        "other names": (lambda: compare(draws(), draws(name="b")), r"\['b'\].*a \(\).*b \(\)"),
        "other shapes": (
            lambda: compare(draws(), draws(np.ones((1, 100, 3)), dims=("chain", "draw", "k"))), r"a \(\).*a \(3,\)",
        ),
        "no chains": (lambda: compare(draws(), draws(np.ones(100), dims=("draw",))), "chain"),
        "no chains of ours": (lambda: compare(draws(np.ones(100), dims=("draw",)), draws()), "chain"),
        "texts": (lambda: compare(draws(), draws(np.array([["x"] * 100]))), "number"),
        "NaN": (lambda: compare(draws(), draws(np.full((1, 100), NAN))), "NaN"),
        "NaN of ours": (lambda: compare(draws(np.full((1, 100), NAN)), draws()), "NaN"),
        "one draw": (lambda: compare(draws(), draws(np.ones((1, 1)))), "draws"),
        "unknown latents to compare": (lambda: compare(draws(), draws(), var_names=["zz"]), "zz"),
        "no latents to compare": (lambda: compare(draws(), draws(), var_names=[]), "var_names"),
        "nothing to draw": (lambda: plots.plot_spread({}), "empty"),
        "no axes": (lambda: plots.plot_spread(real(), ax=3), "ax is a int"),  # type: ignore[arg-type]
        "spreads by name": (lambda: plots.plot_spread_against_lam({"a": real()}), "'a'"),  # type: ignore[dict-item]
        "spreads without 0": (lambda: plots.plot_spread_against_lam({0.3: real()}), "0.3"),
        "spreads of one": (lambda: plots.plot_spread_against_lam(real()), "expected a mapping"),
        "comparisons of one": (lambda: plots.plot_sd_ratio_against_lam(real()), "expected a mapping"),
        "comparisons by name": (lambda: plots.plot_sd_ratio_against_lam({"a": 3}), "'a'"),  # type: ignore[dict-item]
        "comparisons that are none": (lambda: plots.plot_sd_ratio_against_lam({0.0: 3}), "comparisons"),
        "ranks of nothing": (lambda: plots.plot_ranks(3), "expected what calibrate"),
    }  # fmt: skip
    return cases


# ---- the instruments of trust -------------------------------------------------------------------


def prior_of_data(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(x.mean(), 1.0))
    with pyro.plate("data", N):
        pyro.sample("x", dist.Normal(a, 1.0), obs=x)


def nothing_observed(x: Tensor) -> None:
    pyro.sample("a", dist.Normal(0.0, 1.0))


def with_factor(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.factor("f", -((a - x.mean()) ** 2))


def improper(x: Tensor) -> None:
    a = pyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
    with pyro.plate("data", N):
        pyro.sample("x", dist.Normal(a, 1.0), obs=x)


def scaled(x: Tensor) -> None:
    with pyro.poutine.scale(scale=3.0):
        model(x)


def transformed(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N):
        pyro.sample("x", dist.Normal(a, 1.0), obs=x.exp())


def discrete(x: Tensor) -> None:
    k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)))
    with pyro.plate("data", N):
        pyro.sample("x", dist.Normal(k, 1.0), obs=x)


def auxiliary(x: Tensor) -> None:
    u = pyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
    pyro.sample("a", dist.Normal(u, 1.0))


def infinite(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N):
        pyro.sample("x", dist.Normal(a, 1.0), obs=x * INF)


SIMULATING = {"num_simulations": 10, "steps": 1, "seed": 0, "progress": False}


def calibrated(made: Any = pair, **options: Any) -> Any:
    return calibrate(made, **SIMULATING | options)


def weighted(described: Any = model, drawn: Any = guide, data: Any = None, **options: Any) -> Any:
    given = rows() if data is None else data
    return importance(described, drawn, given, **{"num_samples": 100, "seed": 0} | options)


def sampled(made: Any = None, **options: Any) -> Any:
    return nuts_reference(
        pair() if made is None else made, **{"num_samples": 4, "warmup_steps": 2, "seed": 0} | options
    )


def trust_cases() -> dict[str, Case]:
    cannot = {
        prior_of_data: "site 'a'", nothing_observed: "observes nothing", with_factor: "pyro.factor",
        improper: "improper", scaled: "scaled by 3", transformed: "none of its arguments",
    }  # fmt: skip
    cases: dict[str, Case] = {
        f"simulate {m.__name__}": (partial(calibrated, Pair(m, guide, data=rows)), f"cannot simulate.*{words}")
        for m, words in cannot.items()
    }
    wrong: dict[str, tuple[Callable[..., Any], dict[str, list[Any]]]] = {
        "calibrate": (calibrated, {
            "num_simulations": [0, 9, 10.5, "x"], "num_draws": [0, 1, 2.5, "x"], "workers": [0, 1.5, "x"],
            "seed": [-1, "x", 2**32], "sites": ["a", ["zz"], [], 3, [3]], "fit": [3, "x"], "steps": [0, "x"],
            "lam": [1.0, "x", {"zz": 0.1}, NAN], "out": [3], "dtype": [torch.int32], "posterior_samples": [3],
            "resume": [True], "unheard_of": [1],
        }),
        "importance": (weighted, {
            "num_samples": [0, 1, 99, -5, 100.5, "x", True], "local_samples": [0, 1, 1.5],
            "batch_size": [0, -1, "x", 1.5], "data_plate": ["zz", 3], "seed": [-1, "x"],
        }),
        "nuts": (sampled, {
            "num_samples": [0, 3, 4.5, "x"], "warmup_steps": [0, -1, "x"], "num_chains": [0, 1, 1.5, "x"],
            "target_accept": [0.0, 1.0, -1.0, 2.0, NAN, "x"], "seed": [-1, "x"], "data": ["x", torch.zeros(0)],
        }),
    }  # fmt: skip
    for name, (call, options) in wrong.items():
        for option, values in options.items():
            for value in values:
                cases[f"{name} with {option}={value!r}"] = (partial(call, **{option: value}), option)
    return cases | {
        "calibrate nothing": (partial(calibrated, None), "pair is a NoneType"),
        "calibrate what makes no pair": (partial(calibrated, lambda: 3), "Pair"),
        "calibrate a pair without data": (partial(calibrated, Pair(model, guide)), "data"),
        "calibrate modules": (partial(calibrated, Pair(model, AutoNormal(model), data=rows)), "AutoNormal"),
        "weights of a point": (partial(weighted, model, AutoDelta(model)), "point mass"),
        "weights of an auxiliary": (partial(weighted, model, auxiliary), "'u'.*auxiliary"),
        "weights that are infinite": (partial(weighted, infinite, guide), "NaN or infinite|finite"),
        "weights of a guide of another": (partial(weighted, model, discrete), "'k'|'a'"),
        "weights of NaN": (partial(weighted, data=torch.tensor([NAN] * N)), "NaN"),
        "weights of no model": (partial(weighted, None), "model"),
        "weights of no guide": (partial(weighted, model, 3), "guide"),
        "too few for k-hat": (partial(k_hat_threshold, 50), "50 draws"),
        "nuts of nothing": (partial(sampled, 3), "pair is a int"),
        "nuts of no latents": (partial(sampled, Pair(discrete, guide, data=rows)), "continuous"),
        "nuts of a pair without data": (partial(sampled, Pair(model, guide)), "no data"),
        "kl of no site": (partial(kl_per_dimension, model, guide, rows(), site="zz"), "zz"),
        "kl of too few": (partial(kl_per_dimension, model, guide, rows(), num_samples=0), "num_samples=0"),
    }


# ---- the rest -----------------------------------------------------------------------------------


def fit_cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for option, values in OPTIONS.items():
        for value in values:
            cases[f"fit {option}={value!r:.60}"] = (partial(trained, **{option: value}), _named(option))
    for name, data in DATA.items():
        cases[f"fit data: {name}"] = (partial(trained, data=data), "data|rows|tensor")
    return cases | {
        "fit twice as long": (partial(trained, epochs=3), "epochs=3, steps=3"),
        "fit for no time": (partial(trained, steps=None), "steps=None"),
        "fit epochs in words": (partial(trained, steps=None, epochs="3"), "epochs='3'"),
        "resume nothing": (partial(trained, resume=True), "out=None"),
        "λ twice": (partial(trained, lam=0.1, objective=BaNEL_ELBO(0.2)), "one place"),
    }


def _named(option: str) -> str:
    return {"lam": "lam|site", "validation": "validation", "steps_per_call": "steps_per_call"}.get(option, option)


def schedule_cases() -> dict[str, Case]:
    return {f"schedule {i}": (partial(from_config, config), "expected") for i, config in enumerate(SCHEDULES)}


def pair_cases() -> dict[str, Case]:
    """Pairs, and results that were asked for too much."""

    def result() -> FitResult:
        with pyro.get_param_store().scope():
            found: FitResult = trained()
            found.store = pyro.get_param_store().get_state()
        return found

    def ask(**options: Any) -> Callable[[], Any]:
        return lambda: result().posterior(**options)

    bad: Mapping[str, list[Any]] = {
        "num_samples": [0, 1, 1.5, "x"], "groups": ["posterior", ["zz"], [3]], "batch_size": [0, -1, "x"],
        "coords": [3, {"zz": [1]}, {"data": "x"}], "seed": [-1, "x"],
        "data": ["x", torch.zeros(N, 2), torch.zeros(0), torch.full((N,), NAN)],
    }  # fmt: skip
    cases: dict[str, Case] = {
        f"posterior {option}={value!r:.40}": (ask(**{option: value}), option) for option in bad for value in bad[option]
    }
    return cases | {
        "a pair of nothing": (lambda: Pair(None, guide), "model=None"),  # type: ignore[arg-type]
        "a pair without a guide": (lambda: Pair(model, 3), "guide=3"),  # type: ignore[arg-type]
        "a pair of data": (lambda: Pair(model, guide, data=rows()), "data is a Tensor"),  # type: ignore[arg-type]
    }


def all_cases() -> dict[str, Case]:
    return {**fit_cases(), **schedule_cases(), **arviz_cases(), **trust_cases(), **pair_cases()}
