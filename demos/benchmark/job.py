"""The whole job: ten epochs of MNIST's VAE in a new process, everything included, and when a held-out ELBO is reached.

The clock stands still while the held-out images are judged, after every epoch.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch

from demos.benchmark.children import in_child
from demos.benchmark.problems import MNIST_PIXELS, Problem, mnist_images, mnist_vae
from demos.benchmark.timing import LOG_EVERY, Lengths, Watch
from demos.benchmark.ways import JOB_WAYS
from models import data

BATCH_SIZE = 128
HELD_OUT = 10_000


@dataclass
class EpochWatch(Watch):
    """A clock that notes the end of every epoch, and stands still while the images held out are judged.

    Args:
        epoch: Steps of an epoch.
        judge: The held-out ELBO.
    """

    epoch: int = 1
    judge: Callable[[], float] = lambda: 0.0
    ends: list[float] = field(default_factory=list)
    elbos: list[float] = field(default_factory=list)
    paused: float = 0.0

    def __call__(self, step: int) -> None:
        """Say that this many steps are done."""
        if step > 0 and step % self.epoch == 0 and step // self.epoch > len(self.ends):
            now = time.perf_counter()
            self.ends.append(now - self.began[0] - self.paused)
            self.elbos.append(self.judge())
            self.paused += time.perf_counter() - now


def log_every(epoch: int) -> int:
    """Steps between log points: an even part of an epoch, as near as can be to what `fit` does on its own."""
    best = max(n for n in range(1, min(epoch, LOG_EVERY) + 1) if epoch % n == 0)
    return best if best >= min(epoch, LOG_EVERY // 4) else epoch


def held_out_images(count: int) -> torch.Tensor:
    """MNIST's test images, or random ones, as bits (count, 784)."""
    try:
        images = data.mnist().held_out[:count]
    except FileNotFoundError:
        images = torch.rand(count, MNIST_PIXELS, generator=torch.Generator().manual_seed(1)) * 0.3
    return torch.bernoulli(images, generator=torch.Generator().manual_seed(0))


def work(way: str, *, rows: int, held_out: int, epochs: int, seed: int, began: float) -> dict[str, Any]:
    """One whole job. All times are in seconds.

    Args:
        way: One of `JOB_WAYS`.
        rows: Training images.
        held_out: Images held out.
        epochs: Passes through the rows.
        seed: Of the run.
        began: When the process was started, by `time.time()`.

    Returns:
        `process`: from its start to the end of training; `job`: the same without imports and reading of the images;
        `ends` of the epochs, as parts of `job`, and the held-out `elbos` there.
    """
    images, _ = mnist_images(rows)
    judged = held_out_images(held_out)
    problem = mnist_vae(images, BATCH_SIZE)
    ready = time.time()
    pyro.set_rng_seed(seed)
    pair = problem.factory()
    epoch = problem.steps_per_epoch
    watch = EpochWatch(
        Lengths(epoch, epochs * epoch, log_every(epoch)), epoch=epoch, judge=_judge(problem, pair, judged)
    )
    JOB_WAYS[way](problem, pair, seed, watch)
    job = time.time() - ready - watch.paused
    return {"process": ready - began + job, "job": job, "ends": watch.ends, "elbos": watch.elbos}


def _judge(problem: Problem, pair: Any, images: torch.Tensor) -> Callable[[], float]:
    """The ELBO of images, in nats per image, always from the same draws."""
    _, loss = problem.by_hand(pair)

    def judge() -> float:
        with torch.no_grad(), torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            return -sum(float(loss(part)) for part in images.split(1000)) / len(images)

    return judge


def job_table(
    *, repeats: int, rows: int, epochs: int, seed: int, threads: int, inline: bool
) -> dict[str, list[dict[str, Any]]]:
    """Every round of every way."""
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in JOB_WAYS}
    for repeat in range(repeats):
        for way, jobs in found.items():
            options = {
                "way": way,
                "rows": rows,
                "held_out": min(HELD_OUT, rows),
                "epochs": epochs,
                "seed": seed + repeat,
            }
            jobs.append(in_child("demos.benchmark.job:work", options, threads=threads, inline=inline))
    return found


def until(job: dict[str, Any], target: float) -> float | None:
    """Seconds from the start of the process to the end of the first epoch at whose end the ELBO is there."""
    for end, elbo in zip(job["ends"], job["elbos"], strict=True):
        if elbo >= target:
            seconds: float = job["process"] - job["job"] + end
            return seconds
    return None
