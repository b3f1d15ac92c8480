"""The ways to train a problem. Each returns the loss over training, in nats per datum: of a step, or of a log point."""

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO

from banel_pyro import Pair
from banel_pyro.batches import Rows
from demos.benchmark.problems import Problem

LAM = 0.4
Way = Callable[[Problem, Pair, int, int, int], list[float]]
"""From problem, pair, seed, steps and steps between log points (of those that have them) to losses."""


def with_torch(
    problem: Problem, pair: Pair, seed: int, steps: int, log_every: int, *, loader: bool = False
) -> list[float]:
    """A loop as in PyTorch's tutorials."""
    parameters, loss_of = problem.by_hand(pair)
    optimiser = torch.optim.Adam(parameters, lr=problem.lr, fused=True)
    losses = []
    for batch in _batches(problem, seed, steps, loader=loader):
        loss = loss_of(*batch)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.detach() / len(batch[0]))
    return torch.stack(losses).tolist()


def with_svi(
    problem: Problem, pair: Pair, seed: int, steps: int, log_every: int, *, lam: float = 0.0, loader: bool = False
) -> list[float]:
    """A loop as in Pyro's tutorials; at lam > 0 on a guide whose log-density is scaled."""
    guide = pair.guide if lam == 0 else poutine.scale(pair.guide, 1 - lam)
    optimiser = pyro.optim.Adam({"lr": problem.lr, "fused": True})
    svi = SVI(pair.model, guide, optimiser, loss=Trace_ELBO())
    return [svi.step(*batch) / len(batch[0]) for batch in _batches(problem, seed, steps, loader=loader)]


def with_fit(problem: Problem, pair: Pair, seed: int, steps: int, log_every: int, *, lam: float = 0.0) -> list[float]:
    """Our loop."""
    options: dict[str, Any] = {"batch_size": problem.batch_size, "lr": problem.lr, "log_every": log_every}
    result = pair.fit(lam=lam, steps=steps, seed=seed, validation=None, progress=False, **options)
    return result.history["loss"].tolist()


def with_pythae(problem: Problem, pair: Pair, seed: int, steps: int, log_every: int) -> list[float]:
    """pythae's trainer, for whole epochs of a VAE."""
    from demos.benchmark.pythae_trainer import train  # a benchmark extra

    return train(problem, pair, seed, epochs=steps // problem.steps_per_epoch)


def _batches(problem: Problem, seed: int, steps: int, *, loader: bool) -> Iterator[Rows]:
    return problem.loaded(steps) if loader else problem.batches(seed, steps)


STEP_WAYS: dict[str, Way] = {
    "PyTorch": with_torch,
    "Pyro": with_svi,
    "fit": with_fit,
    f"Pyro, {LAM}": partial(with_svi, lam=LAM),
    f"fit, {LAM}": partial(with_fit, lam=LAM),
}
"""The ways of the table of steps: all index rows directly."""

HAS_PYTHAE = find_spec("pythae") is not None
EPOCH_WAYS: dict[str, Way] = {
    "PyTorch, loader": partial(with_torch, loader=True),
    "PyTorch": with_torch,
    "Pyro, loader": partial(with_svi, loader=True),
    "fit": with_fit,
} | ({"pythae": with_pythae} if HAS_PYTHAE else {})
"""The ways of the table of epochs: with a DataLoader or, as `fit` does, by direct indexing; pythae has a DataLoader."""
