"""What training costs: this library's `fit`, Pyro, hand-written PyTorch, NumPyro and pythae, side by side in one run.

`steps`, the table of steps, trains eight schools; radon (800 houses, 85 counties); logistic regression with 10^4, 10^5
and 10^6 made-up rows at batch 256; a normal mixture whose assignments are enumerated; the VAE of the digits, one of
MNIST's size (784-400-20) at batch 32, 128 and 1024, and a hierarchical one of the digits. Every way starts from the
same parameters and takes the same batches in the same order (but for plain Pyro's plates over all rows, which draw
their own, as in its tutorials):

- Pyro SVI: a loop of `pyro.infer.SVI.step` with `Trace_ELBO`, or `TraceEnum_ELBO`: what users have today;
- Pyro, one Adam: Pyro's ELBO as a module, one optimiser for all parameters;
- PyTorch: the loss written by hand, no Pyro at all; and `compiled`: that loss under `torch.compile`;
- NumPyro update: a jitted `svi.update` a step; and `run`: `svi.run`, all steps in one call, or the same scan over the
  batches where there are some (`pip install -e '.[bench]'`; without it the two are left out);
- fit, eager and captured: this library; and captured at lam = 0.4, for what a penalty costs.

All use Adam at one learning rate (fused, in torch), float32, and draw the bits of grey images anew for each batch. A
time is that from one step of a run to its last one; what comes before, imports, checks, tracing and compiling, is shown
by itself: in the first round, when nothing has been compiled before (inductor's cache is a new folder), and in later
ones. Repeats are interleaved, A B C A B C, so that a slow minute of the machine hits all alike. Cells show the median
over repeats and, in brackets, the smallest and the largest; a ratio is taken within each repeat. That all do the same
work shows in the loss at the end: at equal lam it must agree within five standard errors, or this says so and fails.

`job` is the whole job: ten epochs of that VAE on MNIST at batch 128 in a new process with empty caches, everything
included, and when a held-out ELBO is reached. `growth` has a step's time and the peak memory of a process against rows
(10^4 to 10^6) and sites (10 to 1000). MNIST and radon are read from the folder that BANEL_DATA names. Without it
made-up rows of the same shape take their place, and the output says so; the times are the same.

`bars` come last: ratios that are asked for, what they came to, and whether they hold. One that is missed stops nothing.

Two further tables ask whether an entropy costs more than it has to, in ratios that have a bar of their own:

- `entropies`: the entropy of single distributions with its gradient over torch's own `entropy()`: ours (bar 1.2) and
  Rényi's at three orders (bar 1.5; torch has none, so that its Shannon entropy is the base); the value alone beside it;
- `forms`: a step, loss and gradients without an optimiser, of `BaNEL_TraceGraph_ELBO` over Pyro's `TraceGraph_ELBO`
  and of `BaNEL_TraceEnum_ELBO` over `TraceEnum_ELBO` (bar 1.05 at alpha = 1), on problems so small that a step is
  nearly all overhead.

There single calls of all ways take turns, and a round's time is the median of its calls.

    python -m demos.speed --tables steps --problems "eight schools" radon --repeats 3

Everything goes to the terminal and, with every round in JSON and a picture, to the folder `--out`.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch

from demos.benchmark import graphs, growth, job, markdown, picture
from demos.benchmark.bars import Bar, Found, bars
from demos.benchmark.children import fresh_caches
from demos.benchmark.comparison import comparison_figures, comparison_text
from demos.benchmark.entropies import entropies_table, forms_table
from demos.benchmark.machine import machine
from demos.benchmark.problems import MNIST_ROWS, mnist_images, mnist_vae, radon_houses, step_makers
from demos.benchmark.products import best_rates, step_products
from demos.benchmark.timing import STANDARD_ERRORS, Measured, figures, measure_all, unlike
from demos.benchmark.ways import (
    CAPTURED,
    COMPILER,
    HAS_NUMPYRO,
    HAS_PYTHAE,
    PENALISED,
    SVI_WAY,
    step_ways,
)

TABLES = ("steps", "job", "growth", "entropies", "forms")
STEP_ROWS = 10_240
"""Images for the table of steps: enough for real batches, and few to check at the start of each run."""

PRODUCTS = "MNIST VAE, 1024"
"""The problem whose matrix products are measured by themselves."""

QUICK: dict[str, Any] = {
    "repeats": 1, "steps": 20, "epochs": 2, "rows": 1024, "calls": 2, "inline": True, "compiler": "eager",
    "grown_rows": [512, 1024], "grown_sites": [3, 6],
    "problems": ["radon", "digits VAE", "MNIST VAE, 1024"],
}  # fmt: skip
"""Sizes that show that all runs, and nothing about speed: no new processes, and no compiler for PyTorch by hand."""


# Step 1: the tables, each with its figures for JSON and its text.
def steps_table(args: argparse.Namespace, images: torch.Tensor) -> tuple[Measured, dict[str, Any], str]:
    """The time of a step."""
    makers = step_makers(images[:STEP_ROWS].clone())
    problems = {name: makers[name]() for name in makers if args.problems is None or name in args.problems}
    ways = step_ways(args.compiler)
    with compilers(args.threads, quick=args.quick):
        measured = measure_all(problems, ways, args.steps, repeats=args.repeats, seed=args.seed)
    text = markdown.steps_text(measured.results, SVI_WAY)
    for name, reasons in measured.left_out.items():
        text += "".join(f"\n\nLeft out: '{way}' of {name} ({reason})." for way, reason in reasons.items())
    if not HAS_NUMPYRO:
        text += "\n\nNumPyro is not installed: pip install -e '.[bench]' adds its columns."
    return measured, figures(measured.results, SVI_WAY) | {"left_out": measured.left_out}, text


@contextmanager
def compilers(threads: int, *, quick: bool) -> Iterator[None]:
    """XLA started with this many threads, if it is there; what inductor keeps in a new folder; or nothing compiled."""
    if HAS_NUMPYRO:
        from demos.benchmark.numpyro_ways import start  # a benchmark extra

        start(threads)
    uncompiled = {"TORCH_COMPILE_DISABLE": "1"} if quick else {}
    with TemporaryDirectory() as folder, mock.patch.dict(os.environ, fresh_caches(folder) | uncompiled):
        yield


def products(args: argparse.Namespace, measured: Measured, images: torch.Tensor) -> dict[str, Any]:
    """GFLOP/s of a captured step, and of its matrix products alone."""
    runs = measured.results.get(PRODUCTS, {}).get(CAPTURED, [])
    if not runs:
        return {}
    problem = mnist_vae(images[:1024], 1024)
    shapes = step_products(problem.factory(), 1024)
    together, alone = best_rates(shapes, repeats=args.repeats)
    reached = [sum(shape.gflop for shape in shapes) / run.wall for run in runs]
    return {
        "gflop": sum(shape.gflop for shape in shapes),
        "captured_gflop_per_s": reached,
        "products_gflop_per_s": together,
        "best_product_gflop_per_s": alone,
        "share": [a / b for a, b in zip(reached, together, strict=True)],
        "share_of_best": [a / b for a, b in zip(reached, alone, strict=True)],
    }


def job_table(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The whole job."""
    sizes = {"repeats": min(args.repeats, 2), "rows": args.rows, "epochs": args.epochs, "seed": args.seed}
    found = job.job_table(**sizes, threads=args.threads, inline=args.inline)
    text = markdown.job_text(found, args.target, "Pyro SVI, loader")
    return found, text + ("" if HAS_PYTHAE else "\n\npythae is not installed: pip install -e '.[bench]' adds its line.")


def growth_table(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Time and memory against rows and sites."""
    sizes = {"rows": args.grown_rows, "sites": args.grown_sites}
    options = {"steps": args.steps, "repeats": min(args.repeats, 2), "seed": args.seed, "inline": args.inline}
    found = growth.growth_table(sizes, threads=args.threads, **options)
    return dict(found), markdown.growth_text(found)


# Step 2: all of them.
class Output:
    """What goes to the terminal and to the folder.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.parts = folder, list[str]()
        self.record: dict[str, Any] = {}

    def say(self, text: str) -> None:
        """Print a part of the page."""
        print(text + "\n", flush=True)
        self.parts.append(text)

    def write(self) -> None:
        """Write the page and the numbers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "speed.md").write_text("\n\n".join(self.parts) + "\n", encoding="utf-8")
        (self.folder / "speed.json").write_text(json.dumps(self.record, indent=2, default=str) + "\n", encoding="utf-8")


def measure_tables(args: argparse.Namespace, output: Output, images: torch.Tensor) -> tuple[Measured, list[Bar]]:
    """The tables asked for, said as they are made; the runs of steps, and the bars."""
    measured, jobs, rates = Measured(), {}, {}
    for name in args.tables:
        output.say(f"## {name}")
        if name == "steps":
            measured, output.record[name], text = steps_table(args, images)
            output.record["products"] = rates = products(args, measured, images)
            text += "\n\n" + markdown.products_text(rates)
            picture.draw(measured.results, output.folder / "speed.png")
            text += "\n\n" + graphs.describe(graphs.vae_graphs())
        elif name == "job":
            jobs, text = job_table(args)
            output.record[name] = jobs
        elif name == "growth":
            output.record[name], text = growth_table(args)
        else:
            torch.manual_seed(args.seed)
            compared = {"entropies": entropies_table, "forms": forms_table}[name](args.repeats, args.calls)
            output.record[name], text = comparison_figures(compared), comparison_text(compared)
        output.say(text)
        output.write()  # a run that is stopped leaves what there is
    return measured, bars(Found(measured.results, jobs, rates))


def main(args: argparse.Namespace) -> None:
    """Measure, print, save, check."""
    images, source = mnist_images(args.rows)
    found = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    output = Output(args.out)
    facts = machine(args.threads)
    output.record |= {"machine": facts, "options": {name: str(value) for name, value in vars(args).items()}}
    output.say("# Speed\n\n" + ", ".join(f"{name} {value}" for name, value in facts.items()) + ".")
    houses = radon_houses()[1]
    output.say(
        f"{args.repeats} repeats of {args.steps} steps; threads of torch and XLA: {args.threads} of {os.cpu_count()}. "
        f"Images: {source}, {len(images)} of them. Houses: {houses}."
    )
    try:
        measured, asked = measure_tables(args, output, images)
    finally:
        torch.set_num_threads(found)
    output.say("## bars\n\n" + markdown.bars_text(asked))
    output.record["bars"] = [vars(bar) | {"holds": bar.holds} for bar in asked]
    alike = [[way for way in step_ways() if way != PENALISED]]
    wrong = [line for name, runs in measured.results.items() for line in unlike(name, runs, alike)]
    if measured.results:
        output.say("\n".join(wrong or [f"At equal lam the losses agree within {STANDARD_ERRORS:g} standard errors."]))
    output.write()
    if wrong:
        sys.exit("Ways that do the same work end at different losses.")


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    problems = list(step_makers(torch.zeros(1, 1)))
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES, help="which tables (default: all)")
    parser.add_argument("--problems", nargs="+", choices=problems, metavar="NAME", help=f"of {', '.join(problems)}")
    parser.add_argument(
        "--repeats", default=3, help="rounds; at most 2 of job and growth (default: %(default)s)", **number
    )
    parser.add_argument(
        "--steps",
        default=150,
        help="of a run, 20 or more; ten times as many of eight schools (default: %(default)s)",
        **number,
    )
    parser.add_argument("--epochs", default=10, help="of the whole job, 2 or more (default: %(default)s)", **number)
    parser.add_argument("--target", type=float, default=-110.0, help="held-out ELBO in nats (default: %(default)s)")
    parser.add_argument("--calls", default=50, help="of a round of the last two (default: %(default)s)", **number)
    parser.add_argument("--rows", default=MNIST_ROWS, help="images of MNIST (default: %(default)s)", **number)
    parser.add_argument("--threads", default=1, help="threads of torch and of XLA (default: %(default)s)", **number)
    parser.add_argument("--seed", default=0, help="seed of the first round (default: %(default)s)", **number)
    parser.add_argument("--out", type=Path, default=Path("runs/speed"), help="folder (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing compiled: it runs")
    args = parser.parse_args(words)
    vars(args).update(inline=False, compiler=COMPILER, grown_rows=growth.ROWS, grown_sites=growth.SITES)
    if args.quick:
        vars(args).update(QUICK | ({} if args.problems is None else {"problems": args.problems}))
    for name, least in {"repeats": 1, "steps": 20, "epochs": 2, "rows": 1024, "calls": 1, "threads": 1}.items():
        if getattr(args, name) < least:
            parser.error(f"--{name} {getattr(args, name)}: expected {least} or more")
    return args


if __name__ == "__main__":
    main(parse())
