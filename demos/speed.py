"""What a training step costs: hand-written PyTorch, Pyro's own SVI loop, and `fit`, side by side in one run.

Five ways to train one pair, from the same initial parameters on the same batches in the same order:

- PyTorch: the loss written by hand, no Pyro at all;
- Pyro: a loop of `pyro.infer.SVI.step` with `Trace_ELBO`;
- fit: the same objective in this library, with its history and its checks;
- Pyro, 0.4: what plain Pyro offers for lam = 0.4, `Trace_ELBO` on `poutine.scale(guide, 0.6)`;
- fit, 0.4: the same objective in this library.

All of them use fused Adam at one learning rate, index rows directly and draw the bits of grey images anew for
each batch. The time of a step is the difference between a long and a short run over the difference in steps,
which takes out what a run does only once: imports, the first trace, checks of the input. Repeats are
interleaved, A B C A B C, so that a slow minute of the machine hits all alike. Cells show the median over
repeats and, in brackets, the smallest and the largest; a ratio is taken within each repeat. That all do the
same work shows in the loss at the end: at equal lam it must agree within five standard errors, or this stops.

    python -m demos.speed --json runs/speed.json

Last, it counts the nodes of the autograd graph of a VAE step: a penalty adds pointwise nodes, and no second
pass through encoder or decoder.
"""

import argparse
import gc
import json
import math
import os
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor
from torch.nn import functional

from banel_pyro import BaNEL_ELBO, Pair
from banel_pyro.batches import Rows, epoch_order
from models import data, eight_schools, vae

LAM = 0.4
STANDARD_ERRORS = 5.0
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
Loss = Callable[..., Tensor]


# Step 1: the two losses, written by hand; one draw of the guide, and every constant kept.
def schools_by_hand(pair: Pair) -> tuple[list[Tensor], Loss]:
    """Non-centred eight schools under ten independent normals, from AutoNormal's initial parameters."""
    loc = torch.zeros(10, requires_grad=True)
    raw = torch.full((10,), math.log(math.expm1(0.1)), requires_grad=True)

    def loss(y: Tensor, sigma: Tensor) -> Tensor:
        noise, scale = torch.randn(10), functional.softplus(raw)
        draw = loc + scale * noise
        mu, log_tau, theta_trans = draw[0], draw[1], draw[2:]
        tau = log_tau.exp()
        log_q = -(0.5 * noise**2 + scale.log()).sum() - log_tau
        prior = -0.5 * ((mu / 5) ** 2 + (theta_trans**2).sum()) - torch.log1p((tau / 5) ** 2)
        likelihood = -(0.5 * ((y - mu - tau * theta_trans) / sigma) ** 2 + sigma.log()).sum()
        return log_q - prior - likelihood + 7 * HALF_LOG_2PI + math.log(5) + math.log(2.5 * math.pi)

    return [loc, raw], loss


def digits_by_hand(pair: Pair) -> tuple[list[Tensor], Loss]:
    """The VAE on the networks of the pair."""
    encode, decode = pair.guide.encode, pair.model.decode

    def loss(x: Tensor) -> Tensor:
        loc, raw = encode(x).chunk(2, dim=-1)
        scale = functional.softplus(raw) + vae.MIN_SD
        noise = torch.randn_like(loc)
        z = loc + scale * noise
        kl = (0.5 * (z**2 - noise**2) - scale.log()).sum()
        return kl + functional.binary_cross_entropy_with_logits(decode(z), x, reduction="sum")

    return [*encode.parameters(), *decode.parameters()], loss


@dataclass(frozen=True)
class Problem:
    """A pair to train, the same loss by hand, and how to train; batch_size=None is all rows."""

    factory: Callable[[], Pair]
    by_hand: Callable[[Pair], tuple[list[Tensor], Loss]]
    rows: Rows
    transform: Callable[[Rows], Rows] | None
    batch_size: int | None
    lr: float

    def batches(self, seed: int, steps: int) -> Iterator[Rows]:
        """The batches that `fit` trains on, by direct indexing."""
        size = len(self.rows[0])
        chunks: Sequence[Tensor] = ()
        for step in range(steps):
            batch = self.rows
            if self.batch_size is not None:
                epoch, position = divmod(step, -(-size // self.batch_size))
                chunks = epoch_order(size, seed, epoch).split(self.batch_size) if position == 0 else chunks
                batch = tuple(row[chunks[position]] for row in self.rows)
            yield batch if self.transform is None else self.transform(batch)


PROBLEMS = {
    "eight schools": lambda: Problem(
        eight_schools.noncentered, schools_by_hand, data.eight_schools(), None, batch_size=None, lr=0.01
    ),
    "digits VAE": lambda: Problem(
        vae.digits, digits_by_hand, (data.digits().train,), data.binarize, batch_size=128, lr=1e-3
    ),
}


# Step 2: the ways to train. Each returns the loss over training, in nats per datum.
def with_torch(problem: Problem, pair: Pair, seed: int, steps: int, log_every: int) -> list[float]:
    """A loop as in PyTorch's tutorials."""
    parameters, loss_of = problem.by_hand(pair)
    optimiser = torch.optim.Adam(parameters, lr=problem.lr, fused=True)
    losses = []
    for batch in problem.batches(seed, steps):
        loss = loss_of(*batch)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.detach() / len(batch[0]))
    return torch.stack(losses).tolist()


def with_svi(problem: Problem, pair: Pair, seed: int, steps: int, log_every: int, *, lam: float = 0.0) -> list[float]:
    """A loop as in Pyro's tutorials; at lam > 0 on a guide whose log-density is scaled."""
    guide = pair.guide if lam == 0 else poutine.scale(pair.guide, 1 - lam)
    optimiser = pyro.optim.Adam({"lr": problem.lr, "fused": True})
    svi = SVI(pair.model, guide, optimiser, loss=Trace_ELBO())
    return [svi.step(*batch) / len(batch[0]) for batch in problem.batches(seed, steps)]


def with_fit(problem: Problem, pair: Pair, seed: int, steps: int, log_every: int, *, lam: float = 0.0) -> list[float]:
    """Our loop."""
    options: dict[str, Any] = {"batch_size": problem.batch_size, "lr": problem.lr, "log_every": log_every}
    result = pair.fit(lam=lam, steps=steps, seed=seed, validation=None, progress=False, **options)
    return result.history["loss"].tolist()


WAYS: dict[str, Callable[..., list[float]]] = {
    "PyTorch": with_torch,
    "Pyro": with_svi,
    "fit": with_fit,
    f"Pyro, {LAM}": lambda *args: with_svi(*args, lam=LAM),
    f"fit, {LAM}": lambda *args: with_fit(*args, lam=LAM),
}
SAME = (("PyTorch", "Pyro"), ("fit", "Pyro"), (f"fit, {LAM}", f"Pyro, {LAM}"))


# Step 3: measure.
@dataclass(frozen=True)
class Run:
    """Milliseconds per step by the clock and by CPU time, and the last quarter's losses in nats per datum."""

    wall: float
    cpu: float
    losses: list[float]


Results = dict[str, dict[str, list[Run]]]
"""The runs of each way, for each problem."""


def measure(problem: Problem, way: str, seed: int, args: argparse.Namespace) -> Run:
    """Time one way once."""
    # fit logs as often in the short run as in the long one, by default a hundredth of a run
    log_every = max(1, args.steps // 100)
    clocks = []
    for steps in (args.steps // 10, args.steps):
        pyro.set_rng_seed(seed)
        pair = problem.factory()
        with pyro.get_param_store().scope():
            start = time.perf_counter(), time.process_time()
            losses = WAYS[way](problem, pair, seed, steps, log_every)
            clocks.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    wall, cpu = (1e3 * (long - short) / (args.steps - args.steps // 10) for short, long in zip(*clocks, strict=True))
    if len(losses) == args.steps:  # a loss for each step: average over the blocks that fit averages over
        losses = [statistics.fmean(losses[i : i + log_every]) for i in range(0, args.steps, log_every)]
    return Run(wall, cpu, losses[-max(2, len(losses) // 4) :])


def measure_all(problem: Problem, args: argparse.Namespace) -> dict[str, list[Run]]:
    """The runs of every way; a first round, which also warms up the machine, does not count."""
    runs: dict[str, list[Run]] = {way: [] for way in WAYS}
    for repeat in range(args.repeats + 1):
        gc.collect()  # leave no rubbish of others to the first way
        for way, found in runs.items():
            run = measure(problem, way, args.seed + repeat, args)
            if repeat > 0:
                found.append(run)
    return runs


def final_loss(runs: list[Run]) -> tuple[float, float]:
    """Mean of the last losses, and its standard error from the scatter of their blocks."""
    variances = [statistics.variance(run.losses) / len(run.losses) for run in runs]
    return statistics.fmean(statistics.fmean(run.losses) for run in runs), math.sqrt(sum(variances)) / len(runs)


def check_losses(name: str, runs: dict[str, list[Run]]) -> None:
    """Stop if two ways to do the same end at different losses."""
    for way, other in SAME:
        (a, error_a), (b, error_b) = final_loss(runs[way]), final_loss(runs[other])
        if abs(a - b) > STANDARD_ERRORS * math.hypot(error_a, error_b):
            sys.exit(
                f"{name}: '{way}' ends at a loss of {a:.4f} ± {error_a:.4f}, '{other}' at {b:.4f} ± {error_b:.4f}."
            )


# Step 4: the graph.
def graph_nodes(loss: Tensor) -> Counter[str]:
    """How many nodes of each kind the autograd graph below a loss has."""
    seen, todo, count = set(), [loss.grad_fn], Counter[str]()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            count[node.name()] += 1
            todo += [parent for parent, _ in node.next_functions]
    return count


def vae_graphs() -> dict[str, Counter[str]]:
    """The nodes of a step of the digits VAE, in Pyro and in this library without and with a penalty."""
    (x,) = data.binarize((data.digits().train[:128],))
    losses = {"Pyro": Trace_ELBO(), "lam = 0": BaNEL_ELBO(lam=0.0), f"lam = {LAM}": BaNEL_ELBO(lam=LAM)}
    with pyro.get_param_store().scope():
        pair = vae.digits()
        return {name: graph_nodes(elbo.differentiable_loss(pair.model, pair.guide, x)) for name, elbo in losses.items()}


# Step 5: say it.
def spread(values: list[float]) -> str:
    """Median, smallest and largest."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def ratios(runs: dict[str, list[Run]], way: str, clock: str = "wall") -> list[float]:
    """Time of a way over that of Pyro, within each repeat."""
    return [getattr(a, clock) / getattr(b, clock) for a, b in zip(runs[way], runs["Pyro"], strict=True)]


def print_table(results: Results) -> None:
    """One table: problems below each other, ways beside each other."""
    print(f"{'':26s}" + "".join(f"{way:>20s}" for way in WAYS))
    for name, runs in results.items():
        losses = [final_loss(found) for found in runs.values()]
        lines = {
            "ms a step": [spread([run.wall for run in found]) for found in runs.values()],
            "over Pyro": [spread(ratios(runs, way)) for way in WAYS],
            "final loss": [f"{loss:.3f} ± {error:.3f}" for loss, error in losses],
        }
        for i, (label, cells) in enumerate(lines.items()):
            print(f"{name if i == 0 else '':14s}{label:12s}" + "".join(f"{cell:>20s}" for cell in cells))


def print_verdict(results: Results, graphs: dict[str, Counter[str]]) -> None:
    """What to read off."""
    for name, runs in results.items():
        for way in ("fit", f"fit, {LAM}"):
            wall, cpu = (statistics.median(ratios(runs, way, clock)) for clock in ("wall", "cpu"))
            print(f"{name}: a step of '{way}' takes {wall:.2f} of the time of Pyro's own loop ({cpu:.2f} by CPU time).")
    print("\nAutograd nodes of a VAE step (matrix products are AddmmBackward0):")
    for name, count in graphs.items():
        print(f"  {name:10s}{count.total():4d} nodes, {count['AddmmBackward0']} matrix products")
    more = graphs[f"lam = {LAM}"] - graphs["lam = 0"]
    print(f"  the penalty adds {', '.join(f'{n} {kind}' for kind, n in sorted(more.items()))}")


def record(results: Results, graphs: dict[str, Counter[str]], args: argparse.Namespace) -> Any:
    """Everything, for JSON: facts about the machine, options, and every repeat."""
    machine = {"cpu": platform.processor() or platform.machine(), "cpus": os.cpu_count(), "threads": args.threads}
    machine |= {"system": platform.platform(), "python": platform.python_version()}
    machine |= {name: version(name) for name in ("torch", "pyro-ppl", "banel-pyro")}

    def figures(runs: dict[str, list[Run]], way: str) -> dict[str, Any]:
        times = {"ms_per_step": [run.wall for run in runs[way]], "cpu_ms_per_step": [run.cpu for run in runs[way]]}
        over = {"over_pyro": ratios(runs, way), "cpu_over_pyro": ratios(runs, way, "cpu")}
        return times | over | dict(zip(("final_loss", "final_loss_stderr"), final_loss(runs[way]), strict=True))

    problems = {name: {way: figures(runs, way) for way in runs} for name, runs in results.items()}
    options = {"steps": args.steps, "repeats": args.repeats, "seed": args.seed}
    return {"machine": machine, "options": options, "problems": problems, "graph_nodes": graphs}


def main(args: argparse.Namespace) -> None:
    """Measure, check, print, save."""
    found = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    try:
        results = {name: measure_all(make(), args) for name, make in PROBLEMS.items()}
    finally:
        torch.set_num_threads(found)
    graphs = vae_graphs()
    machine = f"{args.threads} of {os.cpu_count()} threads, torch {torch.__version__}"
    print(f"{args.repeats} repeats of {args.steps} steps, {machine}\n")
    print_table(results)
    print()
    print_verdict(results, graphs)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record(results, graphs, args), indent=2) + "\n")
    for name, runs in results.items():
        check_losses(name, runs)
    print(f"\nThe final losses at equal lam agree within {STANDARD_ERRORS:g} standard errors.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    number = {"type": int, "metavar": "N"}
    parser.add_argument("--repeats", default=5, help="rounds, 2 or more (default: %(default)s)", **number)
    parser.add_argument("--steps", default=1000, help="of a long run, 20 or more (default: %(default)s)", **number)
    parser.add_argument("--threads", default=1, help="threads of torch (default: %(default)s)", **number)
    parser.add_argument("--seed", default=0, help="seed of the first round (default: %(default)s)", **number)
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write every number there")
    main(parser.parse_args())
