"""An entropy that is asked for, and met: lambda moves until the posterior of an image has it, from three starts.

Nobody knows which lambda gives which entropy before the decoder and the encoder are trained. TargetEntropy moves lambda
while they are: up where the posterior is too wide, down where it is too narrow. Here it does so for two autoencoders
of digits, with one and with two levels of latents, starting below, at and above what lambda will be in the end.

It prints where each run ended: lambda, the entropy of an image's posterior over all training images, and how far it is
from the target per latent dimension.

    python -m demos.targets

It takes about three minutes on one core.
"""

import argparse
from collections.abc import Callable, Sequence

import pandas as pd
import pyro
import torch

from banel_pyro import Pair, TargetEntropy, guide_entropy
from banel_pyro.batches import as_rows, transformed
from banel_pyro.seeding import fork_rng
from models import hierarchical_vae, vae

PAIRS: dict[str, tuple[Callable[[], Pair], float, int]] = {
    "digits": (vae.digits, -4.0, 8),
    "hierarchical digits": (hierarchical_vae.digits, 2.0, 10),
}
"""A pair, the entropy to reach (nats per image) and its latent dimensions."""

STARTS = (-1.0, 0.0, 0.8)


# Step 1: a run, and the entropy that it ends with. Both levels of latents count, the upper one given the lower.
def run(make: Callable[[], Pair], target: float, start: float, steps: int, seed: int = 0) -> tuple[float, float]:
    """Train with a target; returns lambda and the entropy of an image's posterior at the end, in nats."""
    with pyro.get_param_store().scope(), fork_rng(seed):
        controller = TargetEntropy(target, start=start, over=max(50, steps // 10))
        result = make().fit(lam=controller, steps=steps, lr=3e-3, batch_size=128, seed=seed, progress=False)
        rows = transformed(result.rows, result.transform)
        entropy = guide_entropy(result.guide, *rows, num_samples=20, seed=seed)
    return float(result.history["lam"].iloc[-1]), float(entropy.value) / len(as_rows(rows)[0])


# Step 2: from several starts.
def ends(
    make: Callable[[], Pair], target: float, dimensions: int, *, starts: Sequence[float] = STARTS, steps: int = 5000
) -> pd.DataFrame:
    """Where runs end from each start: `lam`, `entropy`, and `gap`, nats per latent dimension from the target."""
    found = {start: run(make, target, start, steps) for start in starts}
    rows = [(start, lam, entropy, (entropy - target) / dimensions) for start, (lam, entropy) in found.items()]
    return pd.DataFrame(rows, columns=["start", "lam", "entropy", "gap"]).set_index("start")


def main(args: argparse.Namespace) -> None:
    """Both pairs."""
    torch.set_num_threads(1)  # a step takes 3 ms: a second thread mostly waits
    for name, (make, target, dimensions) in PAIRS.items():
        table = ends(make, target, dimensions, starts=args.starts, steps=args.steps)
        print(f"{name}: target {target:g} nats per image, {dimensions} latent dimensions")
        print(table.round(4).to_string())
        print(f"largest gap: {table['gap'].abs().max():.4f} nats per latent dimension\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000, help="optimiser steps of each run (default: %(default)s)")
    parser.add_argument(
        "--starts", type=float, nargs="+", default=STARTS, help="lambda at the first step (default: %(default)s)"
    )
    main(parser.parse_args())
