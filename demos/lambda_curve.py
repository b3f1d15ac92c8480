"""Lambda against the exact curve: on a normal posterior the guide's sd is sqrt(1 - lam) times what it was.

For a normal target the optimum of loss = -ELBO + lam * H(guide) is known. A guide that can represent the
posterior keeps its mean and gets its covariance times 1 - lam; a mean-field guide gets the variances
(1 - lam) / Lambda_ii, with Lambda the precision of the posterior. So every standard deviation lies on

    sd(lam) = sqrt(1 - lam) * sd(0)

with sd(0) computed exactly from the data, not fitted. This fits three pairs at several lambda:

- the density of the Earth: one latent, model and guide written as functions;
- a regression with ten correlated columns, with a full-rank guide;
- the same regression with a mean-field guide.

It prints fitted and exact standard deviations with their ratio, worst latent first, and draws points and curve.

    python -m demos.lambda_curve

It takes about a minute.
"""

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pyro
import torch
from matplotlib.figure import Figure
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor

from banel_pyro import BaNEL_ELBO, Pair
from models import gaussian_regression, normal_normal

Exact = Callable[[tuple[Tensor, ...], float], Tensor]
FIRST_LR, LAST_LR = 0.1, 0.001


# Step 1: the pairs, each with its exact answer: standard deviations of the latents at a given lambda.
def exact_normal(data: tuple[Tensor, ...], lam: float) -> Tensor:
    """Standard deviation of the Earth's density."""
    return normal_normal.tempered_optimum(*data, lam=lam).stddev.reshape(1)


def exact_regression(data: tuple[Tensor, ...], lam: float, *, mean_field: bool) -> Tensor:
    """Standard deviations of the ten weights."""
    return gaussian_regression.tempered_optimum(*data, lam=lam, mean_field=mean_field).stddev


PAIRS: dict[str, tuple[Callable[[], Pair], Exact]] = {
    "one normal mean": (normal_normal.pair, exact_normal),
    "regression, full rank": (gaussian_regression.full_rank, partial(exact_regression, mean_field=False)),
    "regression, mean field": (gaussian_regression.mean_field, partial(exact_regression, mean_field=True)),
}


# Step 2: fit. To meet the curve within a per cent the noise of the gradient has to go: hundreds of draws of the
# guide a step, and a learning rate that falls by a constant factor each step. `optim` takes any callable from
# parameters to a torch optimiser; Pyro's ClippedAdam has the decay built in. The second beta is shorter than
# usual, so that Adam forgets the steep slopes far from the optimum by the time that it is there.
def fitted(pair: Pair, lam: float, args: argparse.Namespace) -> Tensor:
    """Standard deviations of a guide trained at one lambda, read from its parameters."""
    decay = (LAST_LR / FIRST_LR) ** (1 / args.steps)
    pair.fit(
        objective=BaNEL_ELBO(lam=lam, num_particles=args.particles, vectorize_particles=True, max_plate_nesting=1),
        optim=partial(ClippedAdam, lr=FIRST_LR, lrd=decay, betas=(0.9, 0.95), clip_norm=math.inf),
        steps=args.steps,
        seed=args.seed,
        progress=False,
    )
    if hasattr(pair.guide, "quantiles"):  # an autoguide: of a normal, one sd lies between these two
        median, upper = pair.guide.quantiles([0.5, 0.8413447])["weights"]
        return (upper - median).detach()
    return pyro.param("density_scale").detach().reshape(1)


def compare(args: argparse.Namespace) -> pd.DataFrame:
    """A row for each latent of each pair at each lambda: fitted and exact sd, and their ratio."""
    rows = []
    for name, (factory, exact) in PAIRS.items():
        for lam in args.lams:
            with pyro.get_param_store().scope():
                pair = factory()
                sds = fitted(pair, lam, args)
            data = pair.data()
            data = data if isinstance(data, tuple) else (data,)
            for i, (sd, right) in enumerate(zip(sds, exact(data, lam), strict=True)):
                rows.append({"pair": name, "lam": lam, "latent": i, "fitted": float(sd), "exact": float(right)})
    table = pd.DataFrame(rows)
    return table.assign(ratio=table["fitted"] / table["exact"])


# Step 3: points and curve.
def picture(table: pd.DataFrame) -> Figure:
    """Left: sd against lambda, with the exact curve. Right: what is left between them, in per cent."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained", sharex=True)
    line = torch.linspace(min(-0.6, float(table["lam"].min())), 1, 400)
    left.plot(line, (1 - line).sqrt(), color="black", linewidth=1.2, label=r"exact: $\sqrt{1-\lambda}$")
    right.axhline(0, color="black", linewidth=1.2)
    right.axhspan(-2, 2, color="#dddddd", label="2 %")
    styles = zip(table.groupby("pair", sort=False), ("#0072B2", "#D55E00", "#009E73"), "os^", (12, 8, 4), strict=True)
    for shift, ((name, rows), colour, marker, size) in enumerate(styles):
        style = {"color": colour, "marker": marker, "linestyle": "", "markerfacecolor": "none", "label": name}
        plain = rows["exact"] / (1 - rows["lam"]) ** 0.5
        left.plot(rows["lam"], rows["fitted"] / plain, markersize=size, **style)
        # side by side, so that all of them can be seen
        right.plot(rows["lam"] + 0.03 * (shift - 1), 100 * (rows["ratio"] - 1), markersize=5, **style)
    left.set(title="Spread of the guide", ylabel="sd of each latent, over its exact sd at $\\lambda$ = 0")
    right.set(title="Distance from the curve", ylabel="fitted sd over exact sd, minus 1, in %")
    right.set_ylim(-3.2, 3.2)
    for axis in (left, right):
        axis.set_xlabel("$\\lambda$ (0 is plain variational inference)")
        axis.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    right.legend(frameon=False, loc="lower center", ncols=2)
    return figure


def main(args: argparse.Namespace) -> None:
    """Fit, compare, draw."""
    torch.set_num_threads(1)  # a step is a millisecond or two: a second thread mostly waits
    table = compare(args)
    worst = (table["ratio"] - 1).abs()
    ordered = table.loc[worst.sort_values(ascending=False).index]
    shown = ordered.drop_duplicates(["pair", "lam"]).sort_values(["pair", "lam"])
    print("Standard deviations, of the latent in each fit that is furthest from the exact answer:\n")
    print(shown[["pair", "lam", "latent", "fitted", "exact", "ratio"]].round(4).to_string(index=False))
    print(f"\nLargest distance of {len(table)} standard deviations from the exact curve: {100 * worst.max():.2f} %")
    args.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(args.out / "lambda_curve.csv", index=False)
    picture(table).savefig(args.out / "lambda_curve.png", dpi=130)
    print(f"The picture is {args.out / 'lambda_curve.png'}, the numbers are beside it.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--lams",
        type=float,
        nargs="+",
        default=[-0.5, 0.0, 0.3, 0.6, 0.9],
        help="values of lambda, below 1 (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, default=1500, help="optimiser steps of each fit (default: %(default)s)")
    parser.add_argument("--particles", type=int, default=256, help="draws of the guide per step (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of every fit (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/lambda_curve"), help="folder for the results (default: %(default)s)"
    )
    main(parser.parse_args())
