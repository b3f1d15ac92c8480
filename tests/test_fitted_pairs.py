"""Every pair with held-out data trains in minibatches, as the command line starts it, and its held-out ELBO rises."""

import os
from dataclasses import replace
from functools import cache

import pyro
import pytest
import torch

from banel_pyro import Pair, Split
from banel_pyro.pair import load_pair
from models import data

# Steps, learning rate, and by how much the ELBO rises, in nats per held-out row.
RUNS = {
    "logistic:pair": (100, 0.02, 0.2),
    "radon:pair": (100, 0.02, 0.1),
    "mixture:pair": (100, 0.02, 0.2),
    "hierarchical_vae:digits": (60, 0.003, 5.0),
    "vae:mnist": (30, 0.003, 50.0),
    "vae:static_mnist": (30, 0.003, 50.0),
    "hierarchical_vae:mnist": (30, 0.003, 50.0),
}


@cache
def few_images(name: str) -> Split:
    """The first 300 images of each part of a large set, in memory once for all tests."""
    split = getattr(data, name)()
    return replace(split, train=split.train[:300].clone(), held_out=split.held_out[:300].clone())


def load(name: str) -> Pair:
    """The pair as the command line has it, on few images."""
    torch.manual_seed(0)
    pair = load_pair(f"models.{name}")()
    if ("mnist" in name or "radon" in name) and not os.environ.get("BANEL_DATA"):
        pytest.skip("BANEL_DATA is not set")
    if "mnist" in name:
        images = few_images("static_mnist" if "static" in name else "mnist")
        return replace(pair, data=lambda: images)
    return pair


@pytest.mark.parametrize("name", RUNS)
def test_held_out_elbo_rises_in_minibatches(name: str) -> None:
    steps, lr, rise = RUNS[name]
    options = {"lr": lr, "batch_size": 40, "seed": 0, "progress": False}
    result = load(name).fit(steps=steps, log_every=1, validate_every=5, **options)
    history = result.history
    assert history["step"].iloc[-1] == steps
    assert torch.tensor(history[["loss", "elbo", "entropy", "val_elbo"]].dropna().to_numpy()).isfinite().all()
    judged = history["val_elbo"].dropna()
    assert judged.iloc[-1] > judged.iloc[0] + rise
    assert result.plate.name == "data"
    assert result.config["num_data"] == len(result.rows[0])


@pytest.mark.parametrize("name", ["logistic:pair", "mixture:pair", "hierarchical_vae:digits"])
def test_a_penalty_narrows_the_posterior_of_every_family(name: str) -> None:
    entropies = []
    for lam in (0.0, 0.9):
        with pyro.get_param_store().scope():
            options = {"lr": 0.02, "batch_size": 40, "seed": 0, "progress": False}
            entropies.append(load(name).fit(steps=50, lam=lam, **options).history["entropy"].iloc[-3:].mean())
    assert entropies[1] < entropies[0] - 0.01
