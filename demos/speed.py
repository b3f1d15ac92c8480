"""What training costs: hand-written PyTorch, Pyro's own SVI loop, `fit` and pythae, side by side in one run.

The table of steps trains eight schools, the VAE of the digits, and one of MNIST's size (784-400-20) at batch
32, 128 and 1024, in five ways, from the same initial parameters on the same batches in the same order:

- PyTorch: the loss written by hand, no Pyro at all;
- Pyro: a loop of `pyro.infer.SVI.step` with `Trace_ELBO`;
- fit: the same objective in this library, with its history and its checks;
- Pyro, 0.4: what plain Pyro offers for lam = 0.4, `Trace_ELBO` on `poutine.scale(guide, 0.6)`;
- fit, 0.4: the same objective in this library.

The table of epochs trains that VAE on all of MNIST at batch 128, as its users would:

- PyTorch, loader and Pyro, loader: with a DataLoader (a TensorDataset, shuffled, no worker processes);
- PyTorch: rows indexed directly;
- fit: the same, which is how it always takes tensors in memory;
- pythae: the `BaseTrainer` of pythae, which has a DataLoader, on the same networks (`pip install -e '.[bench]'`).

MNIST is read from the folder that BANEL_DATA names. Without it random images of the same shape take its place,
and the output says so; the times are the same. All use fused Adam at one learning rate and draw the bits of grey
images anew for each batch. A time is the difference between a long and a short run over the difference in steps,
which takes out what a run does only once: imports, the first trace, checks of the input. Repeats are
interleaved, A B C A B C, so that a slow minute of the machine hits all alike. Cells show the median over
repeats and, in brackets, the smallest and the largest; a ratio is taken within each repeat. That all do the
same work shows in the loss at the end: at equal lam it must agree within five standard errors, or this stops.

Two further tables ask whether an entropy costs more than it has to, in ratios that have a bar:

- entropies: the entropy of single distributions with its gradient over torch's own `entropy()`: ours (bar 1.2) and
  Rényi's at three orders (bar 1.5; torch has none, so that its Shannon entropy is the base); the value alone beside it;
- forms: a step, loss and gradients without an optimiser, of `BaNEL_TraceGraph_ELBO` over Pyro's `TraceGraph_ELBO`
  and of `BaNEL_TraceEnum_ELBO` over `TraceEnum_ELBO` (bar 1.05 at alpha = 1), on problems so small that a step is
  nearly all overhead.

There single calls of all ways take turns, and a round's time is the median of its calls. A ratio above its bar is
named, by CPU time, which a busy machine disturbs less, and stops nothing.

    python -m demos.speed --json runs/speed.json

Last, it counts the nodes of the autograd graph of a VAE step: a penalty adds pointwise nodes, and no second
pass through encoder or decoder.
"""

import argparse
import json
import os
import platform
import statistics
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from banel_pyro import BaNEL_ELBO
from demos.benchmark.entropies import entropies_table, forms_table
from demos.benchmark.problems import (
    MNIST_ROWS,
    Problem,
    digits_vae,
    mnist_images,
    mnist_vae,
    noncentered_schools,
)
from demos.benchmark.timing import (
    STANDARD_ERRORS,
    Comparison,
    Lengths,
    Table,
    check_losses,
    comparison_figures,
    figures,
    measure_all,
    print_comparison,
    print_table,
    ratios,
)
from demos.benchmark.ways import EPOCH_WAYS, HAS_PYTHAE, LAM, STEP_WAYS
from models import data, vae

STEP_ROWS = 10_000
"""Images for the table of steps: enough for real batches, and few to check at the start of each run."""

QUICK = {"repeats": 1, "steps": 20, "epochs": 2, "rows": 1024, "calls": 2}
"""Sizes that show that all runs, and nothing about speed."""


# Step 1: the tables.
def steps_table(args: argparse.Namespace, images: Tensor) -> Table:
    """The time of a step."""
    problems = {"eight schools": noncentered_schools(), "digits VAE": digits_vae()}
    few = images[:STEP_ROWS].clone()
    for batch_size, share in ((32, 0.5), (128, 0.3), (1024, 0.1)):
        problems[f"MNIST, {batch_size}"] = mnist_vae(few, batch_size, share)
    results = {}
    for name, problem in problems.items():
        long = max(4, round(args.steps * problem.share))
        lengths = Lengths(max(1, long // 10), long)
        results[name] = measure_all(problem, STEP_WAYS, lengths, repeats=args.repeats, seed=args.seed)
    alike = (("PyTorch", "Pyro", "fit"), (f"Pyro, {LAM}", f"fit, {LAM}"))
    return Table("ms a step", 1e3, "Pyro", alike, results)


def epochs_table(args: argparse.Namespace, images: Tensor) -> Table:
    """The time of an epoch."""
    problem = mnist_vae(images, 128)
    epoch = problem.steps_per_epoch
    lengths = Lengths(epoch, args.epochs * epoch, per=epoch)
    runs = measure_all(problem, EPOCH_WAYS, lengths, repeats=args.repeats, seed=args.seed)
    return Table("s an epoch", 1.0, "Pyro, loader", (tuple(EPOCH_WAYS),), {"MNIST, 128": runs}, starts=True)


def comparisons(args: argparse.Namespace) -> dict[str, Comparison]:
    """The tables that have bars, by name, printed as they are made."""
    found = {}
    for name, make in {"entropies": entropies_table, "forms": forms_table}.items():
        if name in args.tables:
            torch.manual_seed(args.seed)
            found[name] = make(args.repeats, args.calls)
            print(f"\n{args.repeats} repeats of {args.calls} calls, {args.threads} of {os.cpu_count()} threads\n")
            print_comparison(found[name])
    print()
    return found


# Step 2: the graph.
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


def print_graphs(graphs: Mapping[str, Counter[str]]) -> None:
    """How many nodes, and which ones the penalty adds."""
    print("Autograd nodes of a step of the digits VAE (matrix products are AddmmBackward0):")
    for name, count in graphs.items():
        print(f"  {name:10s}{count.total():4d} nodes, {count['AddmmBackward0']} matrix products")
    more = graphs[f"lam = {LAM}"] - graphs["lam = 0"]
    print(f"  the penalty adds {', '.join(f'{n} {kind}' for kind, n in sorted(more.items()))}\n")


# Step 3: say it.
def print_verdict(table: Table) -> None:
    """What to read off: fit over Pyro, and over pythae."""
    what = table.unit.partition(" ")[2]
    for name, runs in table.results.items():
        ours = [way for way in runs if way.startswith("fit")]
        for way, other in ((way, other) for way in ours for other in (table.base, "pythae") if other in runs):
            wall, cpu = (statistics.median(ratios(runs, way, other, clock)) for clock in ("wall", "cpu"))
            print(f"{name}: {what} of '{way}' takes {wall:.2f} of the time of '{other}' ({cpu:.2f} by CPU time).")
    print()


def machine(threads: int) -> dict[str, Any]:
    """Facts about the machine and the versions."""
    facts = {"cpu": platform.processor() or platform.machine(), "cpus": os.cpu_count(), "threads": threads}
    facts |= {"system": platform.platform(), "python": platform.python_version()}
    packages = ("torch", "pyro-ppl", "banel-pyro", *(("pythae",) if HAS_PYTHAE else ()))
    return facts | {name: version(name) for name in packages}


def parameters(problem: Problem) -> int:
    """Numbers that are trained."""
    return sum(p.numel() for p in problem.by_hand(problem.factory())[0])


def main(args: argparse.Namespace) -> None:
    """Measure, print, save, check."""
    images, source = mnist_images(args.rows)
    print(f"Images: {source}, {len(images)} of them; their VAE has {parameters(mnist_vae(images, 128)):,} parameters.")
    found = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    record: dict[str, Any] = {
        "machine": machine(args.threads),
        "options": vars(args) | {"json": None},
        "images": source,
    }
    tables, compared = {}, {}
    try:
        for name, make in {"steps": steps_table, "epochs": epochs_table}.items():
            if name in args.tables:
                table = tables[name] = make(args, images)
                size = f"{args.steps} steps" if name == "steps" else f"{args.epochs} epochs"
                print(f"\n{args.repeats} repeats of {size}, {args.threads} of {os.cpu_count()} threads\n")
                print_table(table)
                print()
                print_verdict(table)
        compared = comparisons(args)
    finally:
        torch.set_num_threads(found)
    if not HAS_PYTHAE and "epochs" in args.tables:
        print("pythae is not installed: pip install -e '.[bench]' adds its column.\n")
    graphs = vae_graphs()
    print_graphs(graphs)
    if args.json is not None:
        record |= {name: figures(table) for name, table in tables.items()} | {"graph_nodes": graphs}
        record |= {name: comparison_figures(table) for name, table in compared.items()}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record, indent=2) + "\n")
    for table in tables.values():
        for name, runs in table.results.items():
            check_losses(name, runs, table.alike)
    if tables:
        print(f"The final losses at equal lam agree within {STANDARD_ERRORS:g} standard errors.")


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    number = {"type": int, "metavar": "N"}
    names = ["steps", "epochs", "entropies", "forms"]
    parser.add_argument("--tables", nargs="+", choices=names, default=names, help="which tables (default: all)")
    parser.add_argument("--repeats", default=5, help="rounds (default: %(default)s)", **number)
    parser.add_argument(
        "--steps", default=1000, help="of a long run, 20 or more; fewer for MNIST (default: %(default)s)", **number
    )
    parser.add_argument("--epochs", default=3, help="of a long run, 2 or more (default: %(default)s)", **number)
    parser.add_argument("--calls", default=50, help="of a round of the last two (default: %(default)s)", **number)
    parser.add_argument("--rows", default=MNIST_ROWS, help="images of MNIST (default: %(default)s)", **number)
    parser.add_argument("--threads", default=1, help="threads of torch (default: %(default)s)", **number)
    parser.add_argument("--seed", default=0, help="seed of the first round (default: %(default)s)", **number)
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write every number there")
    parser.add_argument("--quick", action="store_true", help=f"show that it runs: {QUICK}")
    args = parser.parse_args(words)
    if args.quick:
        vars(args).update(QUICK)
    for name, least in {"repeats": 1, "steps": 20, "epochs": 2, "rows": 256, "calls": 1, "threads": 1}.items():
        if getattr(args, name) < least:
            parser.error(f"--{name} {getattr(args, name)}: expected {least} or more")
    return args


if __name__ == "__main__":
    main(parse())
