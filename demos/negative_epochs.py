"""Does more compute on the failures help, and can one tell without a success?

Bayesian Negative Evidence Learning trains a failure model on each round's failures. Epochs are its knob of compute: the
reward evaluations stay the same. This runs the attack on an adder (`models.addition`) at several numbers of epochs from
several seeds, and draws

- the gain in success rate, final over base, of every seed;
- what can be known without a success: how much more of the *held-out* failures the regions reject than of fresh draws
  (the signal), and how much more of the failures that the failure model was trained on (what it has learnt by heart).

It then lets the signal choose the epochs of each seed, and says how far its choice is from the best in hindsight. Fresh
draws are failures themselves but for a fraction of the success rate, so the signal cannot be larger than that rate: a
signal that needs no success cannot see much where there are hardly any.

    python -m demos.negative_epochs

It takes about forty minutes on one core: 15 runs of 7500 reward evaluations. A run that is there already is not run
again, and one that was killed goes on.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from banel_pyro.negative import Filter, HeldOut, Oracle, RatioFilter, Task, Training, learn
from models import addition

TASKS = {
    "attack": addition.attack,
    "attack_without_zeros": addition.attack_without_zeros,
    "small_attack": addition.small_attack,
}


# Step 1: one run for each number of epochs and each seed, with a fifth of the failures held out.
def run(task: Task, epochs: int, seed: int, args: argparse.Namespace) -> pd.DataFrame:
    """The rounds of one run."""
    filter: Filter = RatioFilter(Training(epochs=epochs))
    distillation = replace(task.options["distillation"], draws=args.draws)
    options = {"filter": filter, "distillation": distillation, "budget": args.budget, "rounds": args.rounds}
    found = learn(
        task.generator,
        Oracle(task.reward, batch_size=500),
        held_out=HeldOut(),
        success_rate=task.success_rate,
        out=args.out / args.task / f"epochs-{epochs}" / f"seed-{seed}",
        seed=seed,
        resume=True,
        name=task.name,
        **{**task.options, **options},
    )
    return found.rounds.assign(epochs=epochs, seed=seed, base=found.config["base_rate"]["success_rate"])


# Step 2: a row for each run.
def summary(rounds: pd.DataFrame) -> pd.DataFrame:
    """Gain, signal and memory of each run; the signal is a mean over rounds, with its binomial error.

    All runs start from the same generator: gains are over the mean of what was measured of it.
    """
    rows = []
    base = rounds.groupby("seed")["base"].first().mean()
    for (epochs, seed), part in rounds.groupby(["epochs", "seed"]):
        last = part["success_rate"].iloc[-1]
        error = np.sqrt((part["signal_stderr"] ** 2).sum()) / len(part)
        heart = (part["rejected_trained"] - part["rejected_held_out"]).mean()
        rows.append((epochs, seed, base, last, last / base, part["signal"].mean(), error, heart))
    names = ["epochs", "seed", "base", "final", "gain", "signal", "signal_stderr", "by_heart"]
    return pd.DataFrame(rows, columns=names)


def choices(table: pd.DataFrame) -> pd.DataFrame:
    """For each seed the epochs that the signal chooses, the best ones in hindsight, and the ratio of their gains."""
    rows = []
    for seed, part in table.groupby("seed"):
        chosen, best = part.loc[part["signal"].idxmax()], part.loc[part["gain"].idxmax()]
        rows.append((seed, int(chosen["epochs"]), int(best["epochs"]), best["gain"] / max(chosen["gain"], 1e-12)))
    return pd.DataFrame(rows, columns=["seed", "chosen", "best", "best_over_chosen"])


# Step 3: the picture.
def picture(table: pd.DataFrame) -> Figure:
    """Gain against epochs, and below it what can be known without a success."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(7.5, 7), layout="constrained", sharex=True)
    medians = table.groupby("epochs")["gain"].median()
    shown = table["gain"].clip(lower=0.05)
    above.scatter(table["epochs"], shown, s=28, facecolor="none", edgecolor="#0072B2", label="a seed")
    above.plot(medians.index, medians.clip(lower=0.05), color="#0072B2", label="median")
    above.axhline(1, color="black", linewidth=1, label="no gain")
    above.set(xscale="log", yscale="log", ylabel="final success rate over base")
    for column, colour, marker, label in (
        ("signal", "#D55E00", "o", "signal: of held-out failures, minus of fresh draws"),
        ("by_heart", "#777777", "s", "by heart: of trained failures, minus of held-out ones"),
    ):
        means = table.groupby("epochs")[column].mean()
        below.plot(means.index, means, color=colour, marker=marker, label=label)
    pooled = table.groupby("epochs")["signal_stderr"].apply(lambda e: np.sqrt((e**2).sum()) / len(e))
    below.errorbar(pooled.index, table.groupby("epochs")["signal"].mean(), 2 * pooled, color="#D55E00", linestyle="")
    below.axhline(0, color="black", linewidth=1)
    below.set(xlabel="epochs of the failure model, each round", ylabel="rejected, difference of rates")
    ticks = sorted(table["epochs"].unique())
    below.set_xticks(ticks, [str(t) for t in ticks])
    below.minorticks_off()
    for axis in (above, below):
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    return figure


def main(args: argparse.Namespace) -> None:
    """Run, print, draw."""
    torch.set_num_threads(1)
    task = TASKS[args.task]()
    runs = [run(task, epochs, seed, args) for epochs in args.epochs for seed in args.seeds]
    table = summary(pd.concat(runs))
    chosen = choices(table)
    print(table.round(5).to_string(index=False))
    print(f"\nGain by epochs:\n{table.groupby('epochs')['gain'].agg(['median', 'mean', 'min', 'max']).round(2)}")
    print(f"\nEpochs that the signal chooses:\n{chosen.round(2).to_string(index=False)}")
    within = int((chosen["best_over_chosen"] <= 2).sum())
    print(f"\nWithin a factor 2 of the best in hindsight: {within} of {len(chosen)} seeds.")
    table.to_csv(args.out / f"{args.task}.csv", index=False)
    picture(table).savefig(args.out / "negative_epochs.png", dpi=130)
    print(f"The picture is {args.out / 'negative_epochs.png'}, the numbers are beside it.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(TASKS), default="attack", help="(default: %(default)s)")
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 3, 10, 30, 100], help="to compare")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--budget", type=int, default=7500, help="reward evaluations a run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="of each run (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=4000, help="distilled a round (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/negative_epochs"), help="folder (default: %(default)s)")
    main(parser.parse_args())
