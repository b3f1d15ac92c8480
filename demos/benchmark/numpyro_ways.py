"""NumPyro's ways to train: float32 on the CPU, its own Adam, batches picked and bits drawn in the jitted step.

XLA takes as many threads as the process may run on when it starts; `start` has it start on the given number of CPUs.
(Of jax 0.10 neither `--xla_cpu_multi_thread_eigen=false` nor `intra_op_parallelism_threads=1` in XLA_FLAGS changes it.)
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import torch
from jax import Array, lax
from numpyro.infer import SVI

from banel_pyro import Pair
from demos.benchmark.numpyro_models import elbo, model_and_guide
from demos.benchmark.problems import Problem
from demos.benchmark.timing import Watch

Rows = tuple[Array, ...]


def start(threads: int) -> None:
    """Start XLA with this many threads; the first call in a process decides."""
    cpus = os.sched_getaffinity(0)
    if threads < len(cpus):
        os.sched_setaffinity(0, set(sorted(cpus)[:threads]))  # new threads inherit it, and their number follows it
    try:
        jax.config.update("jax_platforms", "cpu")
        # else another thread computes while this one prepares the next step
        jax.config.update("jax_cpu_enable_async_dispatch", threads > 1)
        jax.jit(lambda x: x @ x)(jnp.ones((256, 256))).block_until_ready()
    finally:
        for task in Path("/proc/self/task").iterdir():  # as many threads as before, on any CPU
            os.sched_setaffinity(int(task.name), cpus)


@dataclass
class Trainee:
    """What a run needs: the SVI, its state, and how the batch of a step is made.

    Args:
        problem: The problem.
        pair: Its pair, for the initial parameters.
        seed: Of the run.
        steps: Of the run.
    """

    problem: Problem
    pair: Pair
    seed: int
    steps: int

    def __post_init__(self) -> None:
        problem = self.problem
        model, guide = model_and_guide(problem, self.pair)
        self.svi = SVI(model, guide, numpyro.optim.Adam(problem.lr), elbo(problem))
        self.rows = tuple(jnp.asarray(row.numpy()) for row in problem.rows)
        self.key, key = jax.random.split(jax.random.key(self.seed))
        self.order = None
        if problem.batch_size is not None:
            self.order = jnp.asarray(torch.stack(list(problem.order(self.seed, self.steps))).numpy())
        first = self.batch(self.rows, self.order, 0)
        self.state = self.svi.init(key, *first)

    def batch(self, rows: Rows, order: Array | None, step: Any) -> Rows:
        """The rows of a step, bits drawn anew if the problem has them."""
        if order is not None:
            rows = tuple(row[order[step]] for row in rows)
        if self.problem.transform is None:
            return rows
        return tuple(jax.random.bernoulli(jax.random.fold_in(self.key, step), row).astype(row.dtype) for row in rows)

    def update(self, rows: Rows, order: Array | None, state: Any, step: Any) -> tuple[Any, Array]:
        """A step."""
        found: tuple[Any, Array] = self.svi.update(state, *self.batch(rows, order, step))
        return found

    def run(self, rows: Rows, order: Array | None, state: Any, first: Any, *, steps: int) -> tuple[Any, Array]:
        """Many steps: `svi.run` where they have the same data, else the same with a batch for each."""
        if order is None and self.problem.transform is None:
            found = self.svi.run(self.key, steps, *rows, progress_bar=False, init_state=state)
            return found.state, found.losses
        step: Callable[[Any, Array], tuple[Any, Array]] = partial(self.update, rows, order)
        return lax.scan(step, state, first + jnp.arange(steps))

    def per_datum(self, losses: Array) -> list[float]:
        """Losses in nats per datum."""
        size = self.problem.batch_size or len(self.rows[0])
        return [float(loss) / (len(self.rows[0]) if self.problem.scaled else size) for loss in losses]


def by_update(problem: Problem, pair: Pair, seed: int, watch: Watch) -> list[float]:
    """A jitted call for each step."""
    steps, losses = watch.lengths.long, []
    trainee = Trainee(problem, pair, seed, steps)
    update, state = jax.jit(trainee.update), trainee.state
    for step in range(steps):
        state, loss = update(trainee.rows, trainee.order, state, step)
        losses.append(loss)
        if step + 1 in (watch.lengths.short, steps):
            jax.block_until_ready(state)
        watch(step + 1)
    return trainee.per_datum(jax.device_get(losses))


def by_run(problem: Problem, pair: Pair, seed: int, watch: Watch) -> list[float]:
    """Two jitted calls, compiled beforehand: up to where the clock is looked at, and the rest."""
    short, steps = watch.lengths.short, watch.lengths.long
    trainee = Trainee(problem, pair, seed, steps)
    fixed, state, losses = (trainee.rows, trainee.order), trainee.state, []
    runs = [
        jax.jit(partial(trainee.run, steps=length)).lower(*fixed, state, first).compile()
        for first, length in ((0, short), (short, steps - short))
    ]
    for run, first, done in zip(runs, (0, short), (short, steps), strict=True):
        state, found = jax.block_until_ready(run(*fixed, state, first))
        losses.append(found)
        watch(done)
    return trainee.per_datum(jnp.concatenate(losses).tolist())
