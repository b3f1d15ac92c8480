"""The ways to train a problem. Each returns the loss over training, in nats per datum: of a step, or of a log point."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

import pyro
import torch
from pyro.infer import SVI
from torch import Tensor

from banel_pyro import Event, Pair
from banel_pyro.batches import Rows
from demos.benchmark.by_hand import Loss
from demos.benchmark.problems import Problem
from demos.benchmark.timing import Watch, Way

LAM = 0.4
COMPILER = "inductor"
"""The backend of `torch.compile`."""


def with_torch(
    problem: Problem, pair: Pair, seed: int, watch: Watch, *, loader: bool = False, compiled: str | None = None
) -> list[float]:
    """A loop as in PyTorch's tutorials, the loss by hand; `compiled` by a backend of `torch.compile`."""
    parameters, loss_of = problem.by_hand(pair)
    if compiled is not None:
        loss_of = _compiled(loss_of, problem, compiled)
    optimiser = torch.optim.Adam(parameters, lr=problem.lr, fused=True)
    optimiser.zero_grad()
    losses = []
    for step, batch in _batches(problem, seed, watch, loader=loader):
        loss = loss_of(*batch)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.detach() / problem.data_of(batch))
        watch(step)
    return torch.stack(losses).tolist()


def _compiled(loss_of: Loss, problem: Problem, backend: str) -> Loss:
    """The loss under `torch.compile`, compiled for the problem's batches, without what that changes for others.

    Its first use in a process switches the checks of torch's distributions off for good, with which Pyro's steps, timed
    after it, would be faster than its users have them.
    """
    torch._dynamo.reset()  # it would count this as one more shape of what the last round compiled
    checks = "validate_distributions_torch"
    with pyro.settings.context(**{checks: pyro.settings.get(checks)}), torch.random.fork_rng(devices=()):
        compiled: Loss = torch.compile(loss_of, backend=backend, dynamic=False)
        compiled(*next(problem.batches(0, 1))).backward()
    return compiled


def with_svi(problem: Problem, pair: Pair, seed: int, watch: Watch, *, loader: bool = False) -> list[float]:
    """A loop as in Pyro's tutorials."""
    model, guide, batches = _for_pyro(problem, pair, seed, watch, loader=loader)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": problem.lr, "fused": True}), loss=problem.elbo())
    losses = []
    for step, batch in batches:
        losses.append(svi.step(*batch) / problem.data_of(batch))
        watch(step)
    return losses


def with_module(problem: Problem, pair: Pair, seed: int, watch: Watch) -> list[float]:
    """Pyro's ELBO as a module, and one optimiser for all of its parameters."""
    model, guide, batches = _for_pyro(problem, pair, seed, watch)
    elbo = problem.elbo()(model, guide)
    with torch.random.fork_rng(devices=()):
        elbo(*(problem.rows if problem.plain else next(problem.batches(seed, 1))))  # autoguides make parameters now
    optimiser = torch.optim.Adam(elbo.parameters(), lr=problem.lr, fused=True)
    losses: list[Tensor] = []
    for step, batch in batches:
        loss = elbo(*batch)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.detach() / problem.data_of(batch))
        watch(step)
    return torch.stack(losses).tolist()


def with_fit(problem: Problem, pair: Pair, seed: int, watch: Watch, *, capture: bool, lam: float = 0.0) -> list[float]:
    """Our loop, eager or captured."""

    def look(event: Event) -> None:
        watch(event.step)

    look.events = ("log",)  # type: ignore[attr-defined]
    options: dict[str, Any] = {"batch_size": problem.batch_size, "lr": problem.lr, "lam": lam, "capture": capture}
    options |= {"steps_per_call": problem.per_call}
    lengths = {"steps": watch.lengths.long, "log_every": watch.lengths.log_every}
    result = pair.fit(seed=seed, validation=None, progress=False, callbacks=[look], **lengths, **options)
    return result.history["loss"].tolist()


def with_update(problem: Problem, pair: Pair, seed: int, watch: Watch) -> list[float]:
    """NumPyro, a jitted `svi.update` for each step."""
    from demos.benchmark.numpyro_ways import by_update  # a benchmark extra

    return by_update(problem, pair, seed, watch)


def with_run(problem: Problem, pair: Pair, seed: int, watch: Watch) -> list[float]:
    """NumPyro, all steps in one jitted call."""
    from demos.benchmark.numpyro_ways import by_run  # a benchmark extra

    return by_run(problem, pair, seed, watch)


def with_pythae(problem: Problem, pair: Pair, seed: int, watch: Watch) -> list[float]:
    """pythae's trainer, for whole epochs of a VAE."""
    from demos.benchmark.pythae_trainer import train  # a benchmark extra

    return train(problem, pair, seed, watch)


def _for_pyro(
    problem: Problem, pair: Pair, seed: int, watch: Watch, *, loader: bool = False
) -> tuple[Callable[..., Any], Callable[..., Any], Iterable[tuple[int, Rows]]]:
    """Model, guide, and what they are called with: batches, or all rows if the model itself draws its batch."""
    if problem.plain is None:
        return pair.model, pair.guide, _batches(problem, seed, watch, loader=loader)
    return *problem.plain(), ((step, problem.rows) for step in range(1, watch.lengths.long + 1))


def _batches(problem: Problem, seed: int, watch: Watch, *, loader: bool) -> Iterator[tuple[int, Rows]]:
    steps = watch.lengths.long
    return enumerate(problem.loaded(steps) if loader else problem.batches(seed, steps), start=1)


HAS_PYTHAE = find_spec("pythae") is not None
HAS_NUMPYRO = all(find_spec(name) is not None for name in ("jax", "numpyro", "funsor"))

SVI_WAY, EAGER, CAPTURED = "Pyro SVI", "fit, eager", "fit, captured"
BY_HAND, BY_HAND_COMPILED = "PyTorch", "PyTorch, compiled"
UPDATE, RUN = "NumPyro update", "NumPyro run"
PENALISED = f"fit, captured, {LAM}"


def step_ways(compiler: str = COMPILER) -> Mapping[str, Way]:
    """The ways of the table of steps: all index rows directly."""
    numpyro: dict[str, Way] = {UPDATE: with_update, RUN: with_run} if HAS_NUMPYRO else {}
    return {
        SVI_WAY: with_svi,
        "Pyro, one Adam": with_module,
        BY_HAND: with_torch,
        BY_HAND_COMPILED: partial(with_torch, compiled=compiler),
        **numpyro,
        EAGER: partial(with_fit, capture=False),
        CAPTURED: partial(with_fit, capture=True),
        PENALISED: partial(with_fit, capture=True, lam=LAM),
    }


JOB_WAYS: dict[str, Way] = {
    "Pyro SVI, loader": partial(with_svi, loader=True),
    "PyTorch, loader": partial(with_torch, loader=True),
    BY_HAND: with_torch,
    EAGER: partial(with_fit, capture=False),
    CAPTURED: partial(with_fit, capture=True),
} | ({"pythae": with_pythae} if HAS_PYTHAE else {})
"""The ways of the whole job: with a DataLoader or, as `fit` does, by direct indexing; pythae has a DataLoader."""
