"""Learning from failures alone, in one dimension, where all of it can be seen: and a success that is lost for ever.

A generator near Normal(0, 1) draws one of 31 bins. The oracle says yes at x = -2 and x = 2 only, one draw in 46, and
successes are set aside: nothing but failures is learnt from. In each round

1. ten candidates are drawn and asked about;
2. a failure model, here a smoothed histogram, is fitted to those that failed;
3. the candidates with the lowest ratio of generator to failure model are rejected from now on, in a region that is
   joined to those of the rounds before;
4. the exploration posterior is the generator outside of all regions, from which the next round draws.

The first ten failures are given. Two of them lie beside -2, so that the histogram smears over it: -2 is rejected
though nobody ever asked about it, and the union of regions never gives it back. The success rate rises all the same.
That is why the successes that can still be reached are counted beside it.

All rates are exact, by enumeration. At the end the same is done from many seeds with first draws of their own, to say
how often which success survives, and at what success rate.

    python -m demos.negative_bins

It takes about 20 seconds.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from banel_pyro.negative import AcceptanceError, ExplorationPosterior, LikelihoodRatio, Region, Regions
from banel_pyro.report.canvas import COLOURS, GREY, STYLE
from banel_pyro.seeding import fork_rng
from models.bins import (
    FIRST_FAILURES,
    NUM_BINS,
    SUCCESSES,
    WIDTH,
    SmoothedHistogram,
    accepted,
    number,
    position,
    posterior_table,
    prior,
    reachable,
    reward,
    success_rate,
)

BINS = torch.arange(NUM_BINS)
CENTRES = position(BINS).numpy()
BLUE, ORANGE, GREEN = COLOURS[:3]
PALE = "#c9c9c9"
END = 6
"""Nats at which the picture cuts off a log-ratio."""


@dataclass
class Round:
    """One round: what was drawn, what was learnt of it, and what is left."""

    proposal: Tensor
    drawn: Tensor
    failures: Tensor
    model: SmoothedHistogram
    region: Region
    kept: Tensor
    posterior: Tensor


# Step 1: the rounds. Every density here can be enumerated, but the loop does without: it draws and asks.
def play(args: argparse.Namespace, first: Tensor | None) -> list[Round]:
    """Rounds until all are played, every draw is a success, or too few draws are accepted."""
    base, regions, found = prior(), Regions(), []
    for _ in range(args.rounds):
        explore = ExplorationPosterior(base, regions, max_draws=200 * args.candidates)
        try:
            drawn = explore.sample((args.batch,)) if found or first is None else first
            candidates = explore.sample((args.candidates,))
        except AcceptanceError:
            break
        failures = drawn[reward(drawn) == 0]  # successes are set aside
        if not len(failures):
            break
        model = SmoothedHistogram.fitted(failures, args.width)
        # ties are rejected: once a bin holds most of what is left, it would be accepted for ever
        region = Region.at_quantile(LikelihoodRatio(base, model), candidates, args.factor, ties="reject")
        proposal, regions = posterior_table(base, regions), regions | region
        found.append(Round(proposal, drawn, failures, model, region, accepted(regions), posterior_table(base, regions)))
    return found


def table(rounds: list[Round]) -> pd.DataFrame:
    """A row for each round: evaluations so far, acceptance, success rate, and which successes can be reached."""
    base, rows = prior(), []
    for step, done in enumerate(rounds):
        old, new = success_rate(done.proposal), success_rate(done.posterior)
        share = float(done.proposal.exp()[done.kept].sum())
        rows.append(
            {
                "round": step + 1,
                "evaluations": sum(len(before.drawn) for before in rounds[: step + 1]),
                "accepted": share,
                "success_rate": new,
                "gain": new / old if old else math.nan,
                "bound": 1 / share,
                "rejected_so_far": 1 - float(base.table().detach().exp()[done.kept].sum()),
                "reachable": " ".join(f"{x:+.0f}" for x in reachable(done.posterior)) or "none",
            }
        )
    return pd.DataFrame(rows)


# Step 2: many seeds, with first draws of their own.
def survivors(args: argparse.Namespace) -> pd.DataFrame:
    """How many runs end with both successes within reach, with one, with none; and their mean success rate."""
    rows = []
    for seed in range(args.seeds):
        with fork_rng(seed):
            last = play(args, None)[-1]
        rows.append({"reachable": len(reachable(last.posterior)), "success_rate": success_rate(last.posterior)})
    return pd.DataFrame(rows).groupby("reachable")["success_rate"].agg(["size", "mean"]).iloc[::-1]


# Step 3: the picture, a row for each round.
def numbers(values: Tensor) -> Any:
    """As matplotlib takes them."""
    return values.detach().numpy()


def picture(rounds: list[Round]) -> Figure:
    """Left: what was drawn from, and what failed. Middle: the ratio and its threshold. Right: what is left."""
    with matplotlib.rc_context(STYLE):
        figure, grid = plt.subplots(
            len(rounds), 3, figsize=(11, 2.05 * len(rounds) + 0.6), layout="constrained", sharex=True, squeeze=False
        )
        for step, (done, axes) in enumerate(zip(rounds, grid, strict=True)):
            draw_failures(axes[0], done)
            draw_ratio(axes[1], done)
            draw_posterior(axes[2], done)
            axes[0].set_ylabel(f"round {step + 1}", fontweight="bold")
        titles = (
            "Drawn from (bars), failures (dots),\nfailure model (line)",
            f"Log-ratio, cut off at ±{END}: kept (blue),\nrejected now (orange) or before (hollow)",
            "Exploration posterior:\nthe next round draws from it",
        )
        for axis, title in zip(grid[0], titles, strict=True):
            axis.set_title(title, pad=12)
        for axis in grid[-1]:
            axis.set(xlabel="x", xticks=range(-3, 4))
        return figure


def mark_successes(ax: Axes, alive: Tensor) -> None:
    """Where the successes lie: filled while they can be reached."""
    for bin_ in SUCCESSES:
        x, colour = float(position(torch.tensor(bin_))), GREEN if alive[bin_] else GREY
        ax.axvline(x, color=colour, linewidth=1, linestyle=":", zorder=0.5)
        face = GREEN if alive[bin_] else "white"
        ax.plot(
            x, 1, "*", transform=ax.get_xaxis_transform(), markersize=11, color=colour, markerfacecolor=face,
            clip_on=False, zorder=5,
        )  # fmt: skip


def draw_failures(ax: Axes, done: Round) -> None:
    """Bars of the proposal, the failures as dots that pile up, and the failure model as a line."""
    ax.bar(CENTRES, numbers(done.proposal.exp()), width=0.9 * WIDTH, color=PALE)
    ax.plot(CENTRES, numbers(done.model.table().exp()), color=ORANGE, linewidth=1.8, drawstyle="steps-mid")
    top = 1.25 * max(*numbers(done.proposal.exp()), *numbers(done.model.table().exp()))
    for bin_, count in zip(*done.failures.unique(return_counts=True), strict=True):
        heights = [top * (0.035 + 0.06 * place) for place in range(int(count))]
        ax.plot([float(position(bin_))] * int(count), heights, "o", color=ORANGE, markersize=4, markeredgecolor="white")
    ax.set_ylim(0, top)
    mark_successes(ax, done.proposal > -math.inf)


def draw_ratio(ax: Axes, done: Round) -> None:
    """The score of each bin that was still drawn from: rejected below the threshold."""
    most = torch.where(done.region.rejects(BINS), END - 1, END)  # what is cut off stays on its side of the line
    scores = numbers(done.region.score(BINS).clamp(-END, END).minimum(most))
    line = min(done.region.log_tau, END - 0.5)
    before, kept = (done.proposal > -math.inf).numpy(), done.kept.numpy()
    ax.axhspan(-END - 1, line, color=ORANGE, alpha=0.10, linewidth=0)
    ax.axhline(line, color=ORANGE, linewidth=1.2)
    for rows, colour, face in (
        (~before, PALE, "white"), (before & kept, BLUE, BLUE), (before & ~kept, ORANGE, ORANGE),
    ):  # fmt: skip
        ax.plot(CENTRES[rows], scores[rows], "o", color=colour, markerfacecolor=face, markersize=4.5)
    ax.set(ylim=(-END - 1, END + 0.8), yticks=(-5, 0, 5))
    mark_successes(ax, done.kept)


def draw_posterior(ax: Axes, done: Round) -> None:
    """Bars of what is left, successes in their colour, and the rates in words."""
    p = numbers(done.posterior.exp())
    colours = [GREEN if int(bin_) in SUCCESSES else BLUE for bin_ in BINS]
    ax.bar(CENTRES, p, width=0.9 * WIDTH, color=colours)
    ax.set_ylim(0, 1.3 * p.max())
    if p.max() > 0.8:  # else there would be a tick above 1
        ax.set_yticks([0, 0.5, 1])
    mark_successes(ax, done.kept)
    where = " and ".join(f"{x:+.0f}" for x in reachable(done.posterior)) or "none"
    ax.text(
        0.30, 0.95, f"success rate {100 * success_rate(done.posterior):.1f} %\nwithin reach: {where}",
        transform=ax.transAxes, va="top", fontsize=8.5,
    )  # fmt: skip
    for bin_ in SUCCESSES:
        if not done.kept[bin_]:
            x = float(position(torch.tensor(bin_)))
            ax.text(
                x, 0.55, "lost", transform=ax.get_xaxis_transform(), rotation=90, color=GREY, ha="right", va="center"
            )


def main(args: argparse.Namespace) -> None:
    """Play, tell, draw."""
    with fork_rng(args.seed):
        rounds = play(args, number(torch.tensor(FIRST_FAILURES)))
    found = table(rounds)
    print(f"Before: success rate {success_rate(prior().table()):.4f}, within reach -2 +2\n")
    print(found.round(4).to_string(index=False))
    lost = [f"{float(position(torch.tensor(b))):+.0f}" for b in SUCCESSES if not rounds[-1].kept[b]]
    print(f"\nLost for ever: {', '.join(lost) or 'none'}. The success rate does not show it.")
    print(f"\n{args.seeds} seeds with first draws of their own, after up to {args.rounds} rounds:\n")
    many = survivors(args)
    for reached, row in many.iterrows():
        print(f"  {reached} of 2 within reach: {row['size']:4.0f} runs, mean success rate {row['mean']:.3f}")
    args.out.mkdir(parents=True, exist_ok=True)
    found.to_csv(args.out / "negative_bins.csv", index=False)
    many.to_csv(args.out / "survivors.csv")
    picture(rounds).savefig(args.out / "negative_bins.png", dpi=130)
    print(f"\nThe picture is {args.out / 'negative_bins.png'}, the numbers are beside it.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6, help="rounds (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=10, help="evaluations in each (default: %(default)s)")
    parser.add_argument("--factor", type=float, default=2.0, help="filter factor (default: %(default)s)")
    parser.add_argument("--width", type=float, default=WIDTH / 2, help="of the kernels (default: %(default)s)")
    parser.add_argument("--candidates", type=int, default=1000, help="draws per threshold (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=100, help="runs to count survivors in (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the run that is drawn (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/negative_bins"), help="folder for the results (default: %(default)s)"
    )
    main(parser.parse_args())
