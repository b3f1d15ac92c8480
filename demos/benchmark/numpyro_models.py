"""The problems' models and guides in NumPyro: the same densities, the same parameters, the same initial values."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.infer import TraceEnum_ELBO
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.initialization import init_to_feasible, init_to_value
from torch import nn

from banel_pyro import Pair
from demos.benchmark.pairs import COLUMNS, COMPONENTS, STARTS
from demos.benchmark.problems import Problem
from models import hierarchical_vae, radon, vae

Function = Callable[..., None]
Arrays = Mapping[str, Array]


def model_and_guide(problem: Problem, pair: Pair) -> tuple[Function, Function]:
    """A problem's model and guide, from the initial parameters of a pair."""
    if problem.peer in NETWORKS:
        return NETWORKS[problem.peer](pair)
    model = MODELS[problem.peer](problem)
    if problem.peer != "mixture":
        return model, AutoNormal(model, init_loc_fn=init_to_feasible)
    starts = {
        "weights": jnp.full(COMPONENTS, 1 / COMPONENTS),
        "locations": jnp.array(STARTS),
        "scales": jnp.full(COMPONENTS, math.exp(-1)),
    }
    return model, AutoNormal(handlers.block(model, hide=["k"]), init_loc_fn=init_to_value(values=starts))


def elbo(problem: Problem) -> numpyro.infer.ELBO:
    """The form of the bound that a problem is trained with."""
    return TraceEnum_ELBO(max_plate_nesting=1) if problem.peer == "mixture" else numpyro.infer.Trace_ELBO()


# Models under AutoNormal.
def _schools(problem: Problem) -> Function:
    def model(y: Array, sigma: Array) -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        with numpyro.plate("schools", len(y)):
            theta_trans = numpyro.sample("theta_trans", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(mu + tau * theta_trans, sigma), obs=y)

    return model


def _houses(problem: Problem) -> Function:
    def model(county: Array, floor: Array, uranium: Array, y: Array) -> None:
        intercept, slope_floor, slope_uranium = (
            numpyro.sample(name, dist.Normal(0.0, 2.0)) for name in ("intercept", "floor", "uranium")
        )
        county_sd, noise_sd = (numpyro.sample(name, dist.HalfNormal(1.0)) for name in ("county_sd", "noise_sd"))
        with numpyro.plate("counties", radon.NUM_COUNTIES):
            offset = numpyro.sample("county", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", len(y)):
            at_county = intercept + slope_uranium * uranium + county_sd * offset[county]
            numpyro.sample("y", dist.Normal(at_county + slope_floor * floor, noise_sd), obs=y)

    return model


def _logistic(problem: Problem) -> Function:
    size = len(problem.rows[0])

    def model(x: Array, y: Array) -> None:
        intercept = numpyro.sample("intercept", dist.Normal(0.0, 1.0))
        weights = numpyro.sample("weights", dist.Normal(jnp.zeros(COLUMNS), 1.0).to_event(1))
        with numpyro.plate("data", len(x)), handlers.scale(scale=size / len(x)):
            numpyro.sample("y", dist.Bernoulli(logits=intercept + x @ weights), obs=y)

    return model


def _mixture(problem: Problem) -> Function:
    def model(x: Array) -> None:
        weights = numpyro.sample("weights", dist.Dirichlet(jnp.full(COMPONENTS, 2.0)))
        locations = numpyro.sample("locations", dist.Normal(jnp.full(COMPONENTS, 4.0), 2.0).to_event(1))
        scales = numpyro.sample("scales", dist.LogNormal(jnp.full(COMPONENTS, -1.0), 0.5).to_event(1))
        with numpyro.plate("data", len(x)):
            k = numpyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
            numpyro.sample("x", dist.Normal(locations[k], scales[k]), obs=x)

    return model


def _chain(problem: Problem) -> Function:
    def model(y: Array) -> None:
        z, walk = jnp.zeros(()), []
        for i in range(len(y)):
            z = numpyro.sample(f"z{i}", dist.Normal(z, 1.0))
            walk.append(z)
        with numpyro.plate("data", len(y)):
            numpyro.sample("y", dist.Normal(jnp.stack(walk), 1.0), obs=y)

    return model


MODELS: dict[str, Callable[[Problem], Function]] = {
    "schools": _schools,
    "houses": _houses,
    "logistic": _logistic,
    "mixture": _mixture,
    "chain": _chain,
}


# Networks.
def _weights(module: nn.Module, prefix: str) -> Arrays:
    """The parameters of a network as NumPyro's, from the values that they have."""
    return {
        name: numpyro.param(f"{prefix}.{name}", jnp.asarray(value.detach().numpy(force=True)))
        for name, value in module.named_parameters()
    }


def _apply(arrays: Arrays, name: str, x: Array) -> Array:
    """`Linear`, `Tanh`, `Linear`, as they are in an attribute of this name."""
    hidden = jnp.tanh(x @ arrays[f"{name}.0.weight"].T + arrays[f"{name}.0.bias"])
    return hidden @ arrays[f"{name}.2.weight"].T + arrays[f"{name}.2.bias"]


def _normal(raw: Array, floor: float) -> Any:
    loc, scale = jnp.split(raw, 2, axis=-1)
    return dist.Normal(loc, jax.nn.softplus(scale) + floor).to_event(1)


def _one_level(pair: Pair) -> tuple[Function, Function]:
    def model(x: Array) -> None:
        arrays = _weights(pair.model, "model")
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(pair.model.latents), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=_apply(arrays, "decode", z)).to_event(1), obs=x)

    def guide(x: Array) -> None:
        arrays = _weights(pair.guide, "guide")
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", _normal(_apply(arrays, "encode", x), vae.MIN_SD))

    return model, guide


def _two_levels(pair: Pair) -> tuple[Function, Function]:
    def model(x: Array) -> None:
        arrays = _weights(pair.model, "model")
        with numpyro.plate("data", len(x)):
            z2 = numpyro.sample("z2", dist.Normal(jnp.zeros(pair.model.upper), 1.0).to_event(1))
            z1 = numpyro.sample("z1", dist.Normal(_apply(arrays, "decode_z2", z2), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=_apply(arrays, "decode_z1", z1)).to_event(1), obs=x)

    def guide(x: Array) -> None:
        arrays = _weights(pair.guide, "guide")
        with numpyro.plate("data", len(x)):
            z1 = numpyro.sample("z1", _normal(_apply(arrays, "encode_x", x), hierarchical_vae.MIN_SD))
            numpyro.sample("z2", _normal(_apply(arrays, "encode_z1", z1), hierarchical_vae.MIN_SD))

    return model, guide


NETWORKS: dict[str, Callable[[Pair], tuple[Function, Function]]] = {"one_level": _one_level, "two_levels": _two_levels}
