"""What lambda buys and what it costs: the digits autoencoder from lambda = -1 to 0.9, judged untempered.

A negative lambda widens the posterior of every image, a positive one narrows it towards its mode. A narrow
posterior reconstructs better, because the decoder sees less noise, and explains the data worse, because it is
overconfident. This trains one autoencoder at each lambda, as `banel fit models.vae:digits` does, and
judges all of them on the same held-out images by numbers without lambda in them:

- log-likelihood, the reconstruction; KL; the entropy of an image's posterior;
- ELBO, the bound that training at lambda = 0 maximises;
- IWAE, a tighter bound of the log evidence, from as many draws as --draws says.

Each lambda is trained from several seeds. A figure is the mean over seeds and images; its error is over the
images, paired with lambda = 0 image by image and seed by seed. The seeds are shown one by one as well, since the
error over images says nothing about another training run.

    python -m demos.frontier

It takes about ten minutes on one core. Stopped, it goes on where it was: each run has a folder in --out, which
`banel report` can read too.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import stdev

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from banel_pyro import Estimate
from banel_pyro.evaluate import mean_estimate
from banel_pyro.report import read_comparison
from banel_pyro.report.numbers import TERMS, RunNumbers, difference, readable, table
from banel_pyro.seeding import fork_rng
from models.vae import digits

LAMS = (-1.0, -0.5, -0.25, -0.1, 0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9)
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#767676"


# Step 1: train. Every lambda of a seed starts from the same weights and sees the same batches.
def train(lam: float, seed: int, args: argparse.Namespace) -> None:
    """One run, in a folder of its own; a run that has ended is left as it is."""
    with pyro.get_param_store().scope(), fork_rng(seed):
        pair = digits()
        pair.fit(
            lam=lam,
            steps=args.steps,
            lr=3e-3,
            batch_size=128,
            seed=seed,
            out=folder_of(seed, args) / f"lam={lam:g}",
            resume=True,
            posterior_samples=args.draws,
            progress=False,
        )


def folder_of(seed: int, args: argparse.Namespace) -> Path:
    """The folder of the runs of a seed."""
    return Path(args.out) / f"seed={seed}"


# Step 2: judge. The numbers come from draws on the held-out images, which every run folder holds.
def judged(seed: int, args: argparse.Namespace) -> dict[float, RunNumbers]:
    """The numbers of the runs of a seed by lambda, lambda = 0 first."""
    runs = read_comparison(folder_of(seed, args)).runs
    return {run.config["lam"]["value"]: run.numbers for run in runs if run.config["lam"]["value"] in args.lams}


def averaged(runs: Sequence[RunNumbers]) -> RunNumbers:
    """The mean over seeds, image by image; errors are then over the images."""
    first = runs[0]
    per_datum = {name: np.mean([run.per_datum[name] for run in runs], axis=0) for name in TERMS}
    values = {name: mean_estimate(vector) for name, vector in per_datum.items()}
    return RunNumbers(values, per_datum, {}, first.rows, first.num_rows, first.draws)


def compare(seeds: Sequence[dict[float, RunNumbers]]) -> pd.DataFrame:
    """A row for each lambda in order: the terms, their paired differences from lambda = 0, and each seed's."""
    means = {lam: averaged([runs[lam] for runs in seeds]) for lam in seeds[0]}
    rows = table({f"{lam:g}": run for lam, run in means.items()})
    rows.insert(0, "lam", [float(label) for label in rows.index])
    for number, runs in enumerate(seeds):
        for name in ("elbo", "iwae"):
            rows[f"{name}_difference[{number}]"] = [difference(runs[lam], runs[0.0])[name].value for lam in means]
    return rows.drop(columns=["active_units", "latents"]).sort_values("lam").reset_index(drop=True)


def show(rows: pd.DataFrame, seeds: int) -> str:
    """The table to read, with errors where two runs are compared."""
    lines = [f"{'lam':>6} {'log-lik':>8} {'KL':>6} {'entropy':>8} {'ELBO':>8} {'IWAE':>8}"]
    lines[0] += f" {'ELBO - ELBO(0)':>17} {'IWAE - IWAE(0)':>17}" + (f" {'sd, seeds':>10}" if seeds > 1 else "")
    for _, row in rows.iterrows():
        line = f"{row['lam']:6g} {row['log_likelihood']:8.2f} {row['kl']:6.2f} {row['entropy']:8.2f}"
        line += f" {row['elbo']:8.2f} {row['iwae']:8.2f}"
        for name in ("elbo", "iwae"):
            line += f" {_change(row, name):>17}"
        if seeds > 1:
            line += f" {stdev(row[f'iwae_difference[{seed}]'] for seed in range(seeds)):10.2f}"
        lines.append(line)
    return "\n".join(lines)


def _change(row: pd.Series, name: str) -> str:
    value, error = row[f"{name}_difference"], row[f"{name}_difference_stderr"]
    return "0" if row["lam"] == 0 else f"{value:+.2f} ± {error:.2f}"


# Step 3: the picture.
def picture(rows: pd.DataFrame, seeds: int) -> Figure:
    """Above: what narrowing does. Below: what it costs, with the surroundings of 0 enlarged."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(6.4, 8.6), layout="constrained", sharex=True)
    above.plot(rows["lam"], rows["log_likelihood"], "o-", color=BLUE, label="log-likelihood (left axis)")
    above.set(title="Held-out images", ylabel="log-likelihood, nats per image")
    other = above.twinx()
    other.plot(rows["lam"], rows["entropy"], "s--", color=ORANGE, label="entropy of the posterior (right axis)")
    other.set_ylabel("entropy, nats per image")
    other.spines["top"].set_visible(False)
    above.legend(handles=[above.lines[0], other.lines[0]], frameon=False, loc="lower center")
    changes(below, rows, seeds)
    below.set(title="Difference from $\\lambda$ = 0, $\\pm$ two standard errors", ylabel="nats per image")
    below.set_xlabel("$\\lambda$ (0 is plain variational inference)")
    below.legend(frameon=False, loc="lower right", bbox_to_anchor=(0.87, 0.04))
    inset = below.inset_axes((0.12, 0.08, 0.5, 0.54))
    changes(inset, rows[rows["lam"].between(-0.26, 0.26)], seeds)
    inset.tick_params(labelsize=8)
    mark_best(inset, rows)
    for axis in (above, below):
        axis.spines["top"].set_visible(False)
    below.spines["right"].set_visible(False)
    return figure


def changes(axis: Axes, rows: pd.DataFrame, seeds: int) -> None:
    """ELBO and IWAE as differences from lambda = 0: the mean over seeds, and a thin line for each of them."""
    axis.axhline(0, color=GREY, linewidth=1)
    for name, colour, marker in (("elbo", BLUE, "o"), ("iwae", ORANGE, "s")):
        for seed in range(seeds if seeds > 1 else 0):
            axis.plot(rows["lam"], rows[f"{name}_difference[{seed}]"], color=colour, linewidth=0.7, alpha=0.4)
        error = 2 * rows[f"{name}_difference_stderr"].fillna(0)
        style = {"color": colour, "marker": marker, "markersize": 5, "capsize": 2}
        axis.errorbar(rows["lam"], rows[f"{name}_difference"].fillna(0), yerr=error, label=TERMS[name], **style)


def mark_best(axis: Axes, rows: pd.DataFrame) -> None:
    """Name the lambda with the highest IWAE, where it is."""
    best = rows.loc[rows["iwae"].idxmax()]
    text = f"best IWAE: $\\lambda$ = {best['lam']:g}".replace("-", "−")
    if axis.dataLim.x0 <= best["lam"] <= axis.dataLim.x1:
        at = best["lam"], 0.0 if best["lam"] == 0 else best["iwae_difference"]
        arrow = {"arrowstyle": "->", "color": GREY}
        axis.annotate(text, at, xytext=(0, 24), textcoords="offset points", ha="center", fontsize=9, arrowprops=arrow)
        low, high = axis.get_ylim()
        axis.set_ylim(low, high + 0.25 * (high - low))
    else:
        axis.set_title(text, fontsize=9)


def main(args: argparse.Namespace) -> None:
    """Train, judge, draw."""
    torch.set_num_threads(1)  # a step takes 3 ms: a second thread mostly waits
    args.lams = sorted({0.0, *args.lams})
    for seed in args.seeds:
        for lam in args.lams:
            train(lam, seed, args)
            print(f"seed {seed}, lam = {lam:g}: trained", flush=True)
    found = [judged(seed, args) for seed in args.seeds]
    rows = compare(found)
    first = found[0][0.0]
    print(f"\nNats per held-out image ({first.num_rows}), {first.draws} draws, mean over {len(args.seeds)} seed(s):\n")
    print(show(rows, len(args.seeds)))
    for name in ("elbo", "iwae"):
        best = rows.loc[rows[name].idxmax()]
        print(f"best {TERMS[name]}: lam = {best['lam']:g}, {readable(Estimate(best[name], best[f'{name}_stderr']))}")
    rows.to_csv(args.out / "frontier.csv", index=False)
    picture(rows, len(args.seeds)).savefig(args.out / "frontier.png", dpi=110, pil_kwargs={"optimize": True})
    print(f"The picture is {args.out / 'frontier.png'}, the numbers are beside it.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--lams",
        type=float,
        nargs="+",
        default=LAMS,
        help="values of lambda, below 1; 0 is always there (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, default=5000, help="optimiser steps of each run (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=500, help="draws to judge each run by (default: %(default)s)")
    parser.add_argument(
        "--seeds", "--seed", type=int, nargs="+", default=(0, 1, 2), help="seeds of the runs (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/frontier"), help="folder for the runs and results (default: %(default)s)"
    )
    main(parser.parse_args())
