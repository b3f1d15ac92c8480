"""What learning from failures costs beside the oracle: parts of it, each as a ratio.

- `cache`: sampling a transformer over tokens without cached keys and values over sampling it with them. Both draw the
  same sequences, of every length asked for, and read n L (L + 1) / 2 positions or n L. At length 32 the bar is 5.
- `overhead`: a candidate's way past two regions, to an oracle that answers at once, and into the ledger, on the 31 bins
  of `models.bins`, whose densities cost nothing. The bar is a millisecond.

Times are those of single calls that take turns, A B A B, so that a slow minute of the machine hits both; a ratio is
taken within each round. Cells show the median over rounds and, in brackets, the smallest and the largest.

    python -m demos.negative_speed

It takes about half a minute on one core. Everything goes to the terminal and, with every round in JSON, to `--out`.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch

from banel_pyro.negative import ExplorationPosterior, Ledger, LikelihoodRatio, Oracle, Region
from banel_pyro.seeding import fork_rng
from demos.benchmark.bars import Bar
from demos.benchmark.cells import spread, table
from demos.benchmark.machine import machine
from demos.benchmark.markdown import bars_text
from models import bins
from models.transformer import TokenTransformer

CACHE_LENGTH, CACHE_BAR, OVERHEAD_BAR = 32, 5.0, 1.0


# Step 1: time calls in turn.
def rounds(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call in each round, after one that does not count."""
    for call in calls.values():
        call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            began = perf_counter()
            call()
            found[name].append(perf_counter() - began)
    return found


# Step 2: the tables, each with its figures, its text and its bars.
def cache_table(args: argparse.Namespace) -> tuple[dict[str, Any], str, list[Bar]]:
    """Sampling with and without the cache, by length."""
    figures: dict[str, Any] = {}
    rows, bars = [], []
    for length in args.lengths:
        generator = TokenTransformer(12, length, width=args.width, layers=args.layers)
        uniforms = torch.rand(args.sequences, length, dtype=torch.float64)
        draw = partial(generator.sample, args.sequences, uniforms=uniforms)
        took = rounds({"cached": draw, "uncached": partial(draw, cached=False)}, args.repeats)
        ratios = [slow / fast for slow, fast in zip(took["uncached"], took["cached"], strict=True)]
        figures[str(length)] = took | {"ratio": ratios}
        rows.append([str(length), spread([1e3 * seconds for seconds in took["cached"]]), spread(ratios)])
        if length == CACHE_LENGTH:
            bars = [Bar(f"sampling at length {length}: uncached ÷ cached", CACHE_BAR, ratios, at_least=True)]
    return figures, table(["length", "cached, ms", "uncached ÷ cached"], rows), bars


def overhead_table(args: argparse.Namespace) -> tuple[dict[str, Any], str, list[Bar]]:
    """Milliseconds per candidate beside models and oracle."""
    base = bins.prior()
    scores = [LikelihoodRatio(base, bins.SmoothedHistogram.fitted(base.sample(10))) for _ in range(2)]
    regions = [Region.at_quantile(score, base.sample(1000), factor=1.5) for score in scores]
    oracle, n = Oracle(bins.reward, batch_size=256), args.candidates
    with TemporaryDirectory() as folder, Ledger(Path(folder) / "ledger.db", task="bins", budget=10**9) as ledger:
        turns = count()

        def propose() -> torch.Tensor:
            return ExplorationPosterior(base, regions).sample((n,))

        x = propose()
        calls = {"past the regions": propose, "record": lambda: oracle.ask(x, ledger, round=next(turns), known="ask")}
        took = rounds(calls, args.repeats)
    each = {name: [1e3 * seconds / n for seconds in values] for name, values in took.items()}
    both = [a + b for a, b in zip(*each.values(), strict=True)]
    rows = [[name, spread(values)] for name, values in [*each.items(), ("both", both)]]
    bar = Bar("filter and record, ms per candidate", OVERHEAD_BAR, both)
    return each | {"both": both}, table(["", "ms per candidate"], rows), [bar]


TABLES = {"cache": cache_table, "overhead": overhead_table}


# Step 3: all of them.
def main(args: argparse.Namespace) -> None:
    """Measure, print, save."""
    found = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    record: dict[str, Any] = {"machine": machine(args.threads), "options": {k: str(v) for k, v in vars(args).items()}}
    asked: list[Bar] = []
    try:
        for name in args.tables:
            with fork_rng(args.seed):
                record[name], text, bars = TABLES[name](args)
            asked += bars
            print(f"## {name}\n\n{text}\n", flush=True)
    finally:
        torch.set_num_threads(found)
    print("## bars\n\n" + bars_text(asked))
    record["bars"] = [vars(bar) | {"holds": bar.holds} for bar in asked]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "speed.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=list(TABLES), help="which (default: all)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[8, CACHE_LENGTH], help="of sequences")
    parser.add_argument("--sequences", type=int, default=512, help="drawn in a call (default: %(default)s)")
    parser.add_argument("--candidates", type=int, default=4096, help="asked in a call (default: %(default)s)")
    parser.add_argument("--width", type=int, default=48, help="of the transformer (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=2, help="of the transformer (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and numbers (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/negative_speed"), help="folder (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse())
