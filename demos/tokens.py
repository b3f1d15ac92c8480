"""Does an entropy bonus make a text policy repeat itself less? Measured, for Shannon's and Rényi's entropies.

A policy that is trained by policy gradient on the log-likelihood of a language model writes the likeliest text that it
finds, again and again: "set set set set". An entropy bonus is the usual cure, and one with a Rényi entropy is said to
reduce repetition in text generation. Here the reward r is the log-likelihood under a trigram model of English letters,
estimated on the descriptions of scikit-learn's data sets. The policy is a network that gives the next letter from the
last two. Its whole text is one guide site, the model has a uniform prior and pyro.factor("reward", r / temperature), so

    temperature * loss = -E[r] - temperature * (H_1 - lam * H_alpha) + constant

With lam = -weight / temperature and a small temperature the bonus is weight * H_alpha. For alpha = 1 the policy would
then be the trigram model itself at weight 1. Compared are

- no bonus (alpha = 1, lam = 1: nothing of the entropy is left);
- Shannon's entropy, and Rényi's of order 0.5, 2 and 5, of the whole text: it has no closed form in the library, and is
  estimated jointly from vectorised particles;
- Rényi's of each next letter, added up: an objective of our own, since that sum is no entropy of the text.

All have the same steps, and weights from hardly enough to too much. Reward can always be had for repetition, and
distinct n-grams for gibberish: look at both at once, and at the settings at equal reward.

A policy that sees two letters is a Markov chain, so that its reward and its entropies are known exactly, for texts
of any length. All settings are trained on the exact loss as well: the difference is the estimator's doing. To be seen:

- without a bonus four bigrams of five were in the text before, and nearly all texts of a sample are alike;
- a bonus cures this, but Rényi's of order 2 and 5 do so at a higher price than Shannon's;
- Rényi's of order 0.5 of the whole text does not cure it: it is earned with gibberish in a few texts of a hundred,
  while the others stay the same. Of the next letters it buys more distinct bigrams than Shannon's, and repeats more;
- the estimate from draws gets worse with the length of a text and with the order: at 16 letters and order 5 one or two
  of 128 draws count, and it is three nats too high.

    python -m demos.tokens

It takes about three minutes on one core.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Size, Tensor

from banel_pyro.entropy import renyi_from_log_q
from banel_pyro.seeding import fork_rng
from demos.texts.chain import LETTERS, AutoregressiveTokens, english, exact_entropy, expected, trigram_model
from demos.texts.policy import Bonus, Policy, Task, exact_loss

COLOURS = {1.0: "black", 0.5: "#0072B2", 2.0: "#D55E00", 5.0: "#CC79A7"}
OTHER = "#E69F00"


# Step 1: train, on the estimated or on the exact loss.
def train(task: Task, bonus: Bonus, seed: int, args: argparse.Namespace, *, exact: bool) -> Tensor:
    """Log probabilities of the next letter under a trained policy, (27, 27, 27)."""
    with pyro.get_param_store().scope(), fork_rng(seed):
        policy = Policy()
        optimiser = torch.optim.Adam(policy.parameters(), lr=args.lr, betas=(0.9, 0.99))
        objective = bonus.objective(task.temperature, num_particles=args.particles)
        guide = task.guide(policy)
        for _ in range(args.steps):
            optimiser.zero_grad()
            if exact:
                exact_loss(policy().log_softmax(-1), task, bonus).backward()
            else:
                objective.loss_and_grads(task.model, guide)
            optimiser.step()
        return policy().log_softmax(-1).detach()


# Step 2: judge.
def of_texts(texts: Tensor) -> dict[str, float]:
    """What is counted in a sample of texts, (texts, L).

    distinct-n: different n-grams over all n-grams of the sample (Li et al. 2016, A diversity-promoting objective
    function for neural conversation models). repeated: the share of a text's bigrams that were in that text before.
    same: the share of texts that were in the sample before.
    """
    found = {}
    for n in (1, 2, 3):
        grams = texts.unfold(1, n, 1).flatten(0, 1)
        found[f"distinct_{n}"] = len(grams.unique(dim=0)) / len(grams)
    bigrams = (texts[:, :-1] * len(LETTERS) + texts[:, 1:]).sort(-1).values
    found["repeated"] = float((bigrams[:, 1:] == bigrams[:, :-1]).float().mean()) * (1 - 1 / bigrams.shape[1])
    return found | {"same": 1 - len(texts.unique(dim=0)) / len(texts)}


def judged(log_probs: Tensor, task: Task, bonus: Bonus, args: argparse.Namespace) -> dict[str, Any]:
    """Exact reward (nats per letter) and entropies (nats per text) of a policy, and what its texts look like."""
    tokens = AutoregressiveTokens(log_probs, task.length)
    estimate, diagnostic = renyi_from_log_q(tokens.log_prob(tokens.sample(Size((args.particles,)))), bonus.alpha)
    texts = tokens.sample(Size((args.texts,)))
    return {
        "reward": float(expected(log_probs, task.length, task.language)) / task.length,
        "entropy": float(exact_entropy(log_probs, task.length, 1.0)),
        "renyi": float(exact_entropy(log_probs, task.length, bonus.alpha)),
        "renyi_estimate": float(estimate),
        "ess": math.nan if bonus.alpha == 1 else float(diagnostic.ess),
        **of_texts(texts),
        "texts": [spelled(text) for text in texts[:3]],
    }


def spelled(text: Tensor) -> str:
    """A text in letters."""
    return "".join(LETTERS[token] for token in text.tolist())


# Step 3: compare.
def compare(task: Task, args: argparse.Namespace) -> pd.DataFrame:
    """A row for each bonus and seed, trained on the estimated and on the exact loss."""
    bonuses = [Bonus(), *(Bonus(1.0, weight) for weight in args.weights)]
    bonuses += [Bonus(a, w, of) for of in ("text", "letters") for a in args.alphas if a != 1 for w in args.weights]
    rows, start = [], perf_counter()
    for seed in args.seeds:
        for bonus in bonuses:
            for loss in ("estimated", "exact"):
                log_probs = train(task, bonus, seed, args, exact=loss == "exact")
                with fork_rng(seed):
                    found = judged(log_probs, task, bonus, args)
                rows.append({"name": bonus.name, **asdict(bonus), "seed": seed, "loss": loss, **found})
        print(f"seed {seed}: {len(bonuses)} bonuses, {perf_counter() - start:.0f} s", flush=True)
    return pd.DataFrame(rows)


def references(task: Task, text: Tensor, args: argparse.Namespace) -> pd.DataFrame:
    """Texts of the trigram model, and passages of the descriptions that begin with a word."""
    with fork_rng(args.seeds[0]):
        model = judged(task.language, task, Bonus(), args)
        starts = (text[: -task.length] == 0).nonzero().squeeze(-1) + 1
        starts = starts[torch.randperm(len(starts))[: args.texts]]
    passages = torch.stack([text[start : start + task.length] for start in starts])
    reward = float(AutoregressiveTokens(task.language, task.length).log_prob(passages).mean()) / task.length
    real = {"reward": reward, **of_texts(passages), "texts": [spelled(passage) for passage in passages[:3]]}
    return pd.DataFrame([{"name": "trigram model", **model}, {"name": "descriptions", **real}])


def at_reward(table: pd.DataFrame, reward: float) -> pd.DataFrame:
    """What is compared at one reward, interpolated between the two weights around it: a row for each kind of bonus."""
    rows = []
    for (kind, loss, seed), runs in table[table["weight"] > 0].groupby(["name", "loss", "seed"], sort=False):
        runs = runs.sort_values("reward")
        found = {name: np.interp(reward, runs["reward"], runs[name], math.nan, math.nan) for name in COMPARED}
        rows.append({"name": kind, "loss": loss, "seed": seed, **found})
    return pd.DataFrame(rows)


def trust(task: Task, args: argparse.Namespace, repeats: int = 200) -> pd.DataFrame:
    """Estimates of the trigram model's entropies from as many draws as a step of training has, and the exact ones."""
    rows = []
    for alpha in (alpha for alpha in args.alphas if alpha != 1):
        for length in (4, 8, 16, 32):
            tokens = AutoregressiveTokens(task.language, length)
            with fork_rng(args.seeds[0]):
                log_q = tokens.log_prob(tokens.sample(Size((args.particles, repeats))))
            value, diagnostic = renyi_from_log_q(log_q, alpha)
            exact = float(exact_entropy(task.language, length, alpha))
            row = {"alpha": alpha, "letters": length, "exact": exact, "bias": float(value.mean()) - exact}
            ess, k_hat = float(diagnostic.ess.mean()), float(diagnostic.pareto_k().median())
            rows.append(row | {"sd": float(value.std()), "ess": ess, "pareto_k": k_hat})
    return pd.DataFrame(rows)


# Step 4: the tables and the picture.
PER_CENT = ("distinct_1", "distinct_2", "distinct_3", "repeated", "same")
HEADS = ("reward", "entropy", "renyi", *PER_CENT, "ess")
COMPARED = ("entropy", "distinct_2", "distinct_3", "repeated")
DIGITS = {"entropy": 1, "renyi": 1, "distinct_3": 1, "repeated": 1, "same": 1, "ess": 1}


def cell(values: pd.Series, name: str) -> str:
    """Mean and standard error over seeds, of shares in per cent."""
    values, digits = values * (100 if name in PER_CENT else 1), DIGITS.get(name, 2)
    if values.isna().any():
        return "-"
    return f"{values.mean():.{digits}f}" + (f" ± {values.sem():.{digits}f}" if len(values) > 1 else "")


def show(table: pd.DataFrame, keys: Sequence[str], columns: Sequence[str]) -> str:
    """A table with a row for each value of the keys, in the order in which they come."""
    groups = table.groupby(list(keys), sort=False, dropna=False)
    rows = [[*map(str, key), *(cell(runs[name], name) for name in columns)] for key, runs in groups]
    cells = [[*keys, *(name.replace("_", "-") + (" %" if name in PER_CENT else "") for name in columns)], *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(f"{c:>{w}}" for c, w in zip(row, widths, strict=True)) for row in cells)


def picture(table: pd.DataFrame, known: pd.DataFrame, trusted: pd.DataFrame) -> Figure:
    """Above: reward against distinct bigrams. Below: how far the estimated entropies are off."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(6.4, 9.4), layout="constrained", height_ratios=(2, 1))
    frontier(above, table)
    for (_, row), marker in zip(known.iterrows(), ("*", "P"), strict=True):
        style = {"color": "#009E73", "markersize": 11, "linestyle": "", "zorder": 5}
        above.plot(100 * row["distinct_2"], row["reward"], marker=marker, label=row["name"], **style)
    above.legend(frameon=False, fontsize=8, ncols=2, loc="lower left")
    above.set(
        title="What a bonus buys: mean over seeds, ± two standard errors\n(broken lines: trained on the exact loss)"
    )
    above.set(xlabel="distinct bigrams of the sample, in %", ylabel="reward, nats per letter")
    below.axhline(0, color="#767676", linewidth=1)
    for shift, (alpha, rows) in enumerate(trusted.groupby("alpha")):
        style = {"color": COLOURS.get(alpha, OTHER), "marker": "o", "markersize": 5, "capsize": 2}
        below.errorbar(1.04**shift * rows["letters"], rows["bias"], yerr=rows["sd"], label=f"α = {alpha:g}", **style)
    below.set_xscale("log", base=2)
    below.set_xticks(lengths := sorted(set(trusted["letters"])), map(str, lengths))
    below.set(title="Estimated minus exact Rényi entropy, and the sd of estimates")
    below.set(xlabel="letters of a text (of the trigram model)", ylabel="nats per text")
    below.legend(frameon=False, loc="upper left")
    for axis in (above, below):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def frontier(axis: Axes, table: pd.DataFrame) -> None:
    """A line for each kind of bonus along its weights; broken where the loss was exact."""
    for (name, loss), runs in table.groupby(["name", "loss"], sort=False):
        alpha, of = runs["alpha"].iloc[0], runs["of"].iloc[0]
        groups = runs.groupby("weight")[["distinct_2", "reward"]]
        mean, error = groups.mean(), 2 * groups.sem().fillna(0)
        style = {"color": "#767676" if name == "none" else COLOURS.get(alpha, OTHER), "linewidth": 1.2}
        if loss == "exact":
            line = "x" if name == "none" else "--" if of == "text" else ":"
            axis.plot(100 * mean["distinct_2"], mean["reward"], line, alpha=0.8, **style)
            continue
        style |= {"marker": {"none": "X"}.get(name, "o" if of == "text" else "^"), "markersize": 6, "capsize": 2}
        style |= {"markerfacecolor": "white"} if of == "letters" else {}
        bars = {"xerr": 100 * error["distinct_2"], "yerr": error["reward"]}
        axis.errorbar(100 * mean["distinct_2"], mean["reward"], label=name, **bars, **style)


def main(args: argparse.Namespace) -> None:
    """Train, judge, draw."""
    torch.set_num_threads(1)  # a step is a few milliseconds: a second thread mostly waits
    if args.length < 3:
        raise ValueError(f"length={args.length}: expected at least 3, for there to be trigrams.")
    text = english()
    task = Task(trigram_model(text), args.length, args.temperature)
    with pyro.validation_enabled(False):  # half of the time of a step
        table = compare(task, args)
    known, trusted = references(task, text, args), trust(task, args)
    sampled, exact = (table[table["loss"] == loss] for loss in ("estimated", "exact"))
    print(f"\nTexts of {args.length} letters; samples of {args.texts}; mean and standard error over seeds.")
    print("reward: nats per letter; entropy (Shannon's) and renyi (that of the bonus): nats per text; ess: draws, of a")
    print(f"step's {args.particles}, that count in the Rényi entropy of the text\n")
    print(show(pd.concat([known.assign(weight="", ess=math.nan), sampled]), ["name", "weight"], HEADS))
    print("\nTrained on the exact loss:\n")
    print(show(exact, ["name", "weight"], HEADS))
    print(f"\nAt equal reward, {args.reward:g} nats per letter (- where the weights of some seed do not reach it):\n")
    print(show(at_reward(table, args.reward), ["name", "loss"], COMPARED))
    print(f"\nEntropy of the trigram model, estimated from {args.particles} draws, nats per text:\n")
    print(trusted.round(2).to_string(index=False))
    print("\nTexts of the first seed:\n")
    for _, row in pd.concat([known.assign(weight=""), sampled[sampled["seed"] == args.seeds[0]]]).iterrows():
        print(f"{row['name']:20s} {row['weight']!s:>4}  " + " | ".join(row["texts"]))
    args.out.mkdir(parents=True, exist_ok=True)
    table.assign(texts=table["texts"].map(" | ".join)).to_csv(args.out / "tokens.csv", index=False)
    trusted.to_csv(args.out / "trust.csv", index=False)
    picture(table, known, trusted).savefig(args.out / "tokens.png", dpi=110, pil_kwargs={"optimize": True})
    print(f"\nThe picture is {args.out / 'tokens.png'}, the numbers are beside it.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers: dict[str, Any] = {"type": float, "nargs": "+"}
    parser.add_argument("--alphas", **numbers, default=(0.5, 2.0, 5.0), help="Rényi orders (default: %(default)s)")
    parser.add_argument("--weights", **numbers, default=(0.8, 1.0, 2.0), help="of the bonuses (default: %(default)s)")
    parser.add_argument("--length", type=int, default=16, help="letters of a text (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="optimiser steps of each run (default: %(default)s)")
    parser.add_argument("--particles", type=int, default=128, help="texts drawn per step (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=0.01, help="learning rate of Adam (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.01, help="of the reward (default: %(default)s)")
    parser.add_argument(
        "--reward", type=float, default=-2.1, help="to compare at, nats a letter (default: %(default)s)"
    )
    parser.add_argument("--texts", type=int, default=200, help="texts to judge a policy by (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), help="seeds (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/tokens"), help="folder for the results (default: %(default)s)"
    )
    main(parser.parse_args())
