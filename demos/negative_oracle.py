"""Your own oracle in 30 lines: a ball has to be thrown over a wall, and hardly any throw does it.

A candidate is a throw: its angle and its speed. The oracle simulates the flight and says whether the ball went over the
wall: about one throw in a thousand does. Steps 1 to 3 below are all that it takes: copy them, and change the function
and the generator. Nothing is learnt from the throws that do it.

What is learnt is where throws have failed, in all rounds so far. Here it is a density over angle and speed that is
low where nothing was tried, and `score="failures"` goes there. The published score, the ratio of this density to the
thrower's own, divides by how much was tried: for two numbers with a smooth density little but noise is left of it.
Try `--score ratio`.

    python -m demos.negative_oracle
    python -m demos.negative_oracle --dask

The first asks the oracle in processes, `--dask` on a local cluster of Dask's (`pip install distributed`). Their answers
are the same, and so is all that is learnt from them. A run that was killed goes on with `--resume`.

`negative_oracle.png` shows where the throws of each round went: away from those that have failed before, and so at
times into the region that clears the wall, which only the picture knows.

It takes about a quarter of a minute on two cores.
"""

import argparse
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Beta, Categorical, Independent, MixtureSameFamily
from torch.nn.functional import softplus

from banel_pyro.negative import (
    Distillation,
    DrawnSuccesses,
    Generator,
    Learned,
    Ledger,
    Oracle,
    RatioFilter,
    Training,
    learn,
)
from banel_pyro.report.canvas import COLOURS, GREY, STYLE, WIDTH


# Step 1: the oracle, from candidates to 0 or 1. It may be as slow as it likes, and may fail.
def clears(x: Tensor) -> Tensor:
    """Whether a throw goes over a wall that is 15 m away and 18 m high, by steps of 10 ms with drag."""
    angle, speed = 0.1 + 1.4 * x[:, 0], 8 + 24 * x[:, 1]
    place, velocity = torch.zeros_like(x), speed[:, None] * torch.stack([angle.cos(), angle.sin()], -1)
    over = torch.zeros(len(x), dtype=torch.bool)
    for _ in range(500):
        before, place = place, place + 0.01 * velocity
        over |= (before[:, 0] < 15) & (place[:, 0] >= 15) & (place[:, 1] > 18)
        velocity = velocity - 0.01 * (0.02 * velocity.norm(dim=-1, keepdim=True) * velocity + torch.tensor([0, 9.81]))
    return over


# Step 2: the generator, anything that draws candidates and has their density: here a mixture of Beta distributions.
class Thrower(Generator):
    """Angles and speeds of throws, each between 0 and 1."""

    event_shape = torch.Size([2])

    def __init__(self, parts: int = 12) -> None:
        super().__init__()
        self.logits, self.shape = nn.Parameter(torch.zeros(parts)), nn.Parameter(6 + 0.1 * torch.randn(parts, 2, 2))

    def mixture(self) -> MixtureSameFamily:
        """The distribution as it stands: at the start a bell about the middle."""
        a, b = (1 + softplus(self.shape)).unbind(-1)
        return MixtureSameFamily(Categorical(logits=self.logits), Independent(Beta(a, b), 1))

    def sample(self, n: int) -> Tensor:
        """Draws of shape (n, 2)."""
        return self.mixture().sample((n,)).detach()

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-densities in nats, shape (n,)."""
        return self.mixture().log_prob(x)


# Step 3: learn. Each call of the oracle is charged before it is sent, and its answer written down before it is used.
def run(executor: Executor, args: argparse.Namespace) -> Learned:
    """Rounds of throws, of which only those that fail teach anything."""
    filter_ = RatioFilter(Training(epochs=30, batch_size=50, lr=0.03), score=args.score, data="all")
    distillation = Distillation(draws=2000, training=Training(epochs=15, batch_size=250, lr=0.03))
    return learn(
        Thrower(), Oracle(clears, executor=executor, batch_size=10, max_in_flight=args.workers), budget=args.budget,
        out=args.out, rounds=args.rounds, filter=filter_, factor=args.factor, distillation=distillation, name="throws",
        success_rate=DrawnSuccesses(clears, draws=args.draws), seed=args.seed, resume=args.resume,
    )  # fmt: skip


@contextmanager
def workers(number: int, dask: str | None) -> Iterator[Executor]:
    """What asks the oracle: processes of this machine, or a Dask cluster, "local" or by its address."""
    if dask is None:
        with ProcessPoolExecutor(number, mp_context=get_context("spawn")) as pool:  # a fork of torch's threads may hang
            yield pool
        return
    from distributed import Client

    local = {"n_workers": number, "threads_per_worker": 1, "processes": False, "dashboard_address": "localhost:0"}
    with Client(**local) if dask == "local" else Client(dask) as client, client.get_executor() as pool:
        yield pool


def picture(found: Learned, out: Path) -> None:
    """Where the throws of some rounds went, and how many in a hundred clear the wall after each."""
    with Ledger.reopen(found.folder / "ledger.db") as ledger:
        throws = [[ledger.candidates(round=i, reward=r) for r in (0, 1)] for i in range(len(found.rounds))]
    grid = torch.cartesian_prod(torch.linspace(0, 1, 241), torch.linspace(0, 1, 241))
    target = clears(grid).reshape(241, 241).T.double()
    shown = np.unique(np.linspace(0, len(throws) - 1, 5).round().astype(int))
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(3, 2, figsize=(WIDTH, 1.4 * WIDTH), layout="constrained")
        for axes, i in zip(panels.flat, shown, strict=False):
            axes.contourf(*grid.reshape(241, 241, 2).unbind(-1)[::1], target.T, levels=[0.5, 1.5], colors=[COLOURS[4]])
            failed, over = throws[i]
            axes.plot(*failed.T, ".", color=GREY, markersize=2.5)
            axes.plot(*over.T, "*", color=COLOURS[1], markersize=7)
            axes.set(title=f"round {i + 1}: {len(over)} of {len(over) + len(failed)}", xlabel="angle", ylabel="speed")
            axes.set(xlim=(0, 1), ylim=(0, 1))
        for axes in panels.flat[len(shown) : -1]:
            axes.axis("off")
        rates, axes = found.rounds, panels.flat[-1]
        base = found.config["base_rate"]
        columns = [100 * np.array([base[n], *rates[n]]) for n in ("success_rate", "success_low", "success_high")]
        spent = np.array([0, *rates["nre"]])
        axes.fill_between(spent, columns[1], columns[2], color=COLOURS[0], alpha=0.25, linewidth=0)
        axes.plot(spent, columns[0], "o-", color=COLOURS[0], markersize=3)
        axes.set(title="per cent that clear it", xlabel="throws asked", ylim=(0, None))
        figure.savefig(out / "negative_oracle.png", dpi=110, pil_kwargs={"optimize": True})
        plt.close(figure)


def main(args: argparse.Namespace) -> None:
    """Learn, print a row for each round, and draw the picture."""
    torch.manual_seed(args.seed)
    with workers(args.workers, args.dask) as executor:
        found = run(executor, args)
    columns = ["nre", "successes", "acceptance", "bound", "filter_gain", "distillation_gain", "success_rate"]
    print(found.rounds.reindex(columns=columns).to_string(float_format="{:.3g}".format))
    base = found.config["base_rate"]["success_rate"]
    best = found.rounds["success_rate"].max()
    last = found.rounds["success_rate"].iloc[-1]
    print(
        f"Of the throws {base:.2g} clear the wall at the start, {best:.2g} after the best round, {last:.2g} in the end."
    )
    print(f"{len(found.successes)} of the {args.budget} that were asked did.")
    picture(found, args.out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=int, default=600, help="throws that are asked (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=6, help="(default: %(default)s)")
    parser.add_argument("--factor", type=float, default=2.0, help="filter factor (default: %(default)s)")
    parser.add_argument("--score", choices=("failures", "ratio"), default="failures", help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=5000, help="that measure the success rate (default: %(default)s)")
    parser.add_argument("--dask", nargs="?", const="local", help="ask through Dask: on this machine, or an address")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/negative_oracle"), help="(default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    main(parser.parse_args())
