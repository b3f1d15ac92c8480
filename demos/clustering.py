"""Deep clustering of the digits: does a bonus on the entropy of the assignment keep clusters alive?

Each of K clusters has a decoder of its own, a picture; a network says how probable each cluster is for an image:

    k_n ~ Categorical(1/K, ..., 1/K),    x_n ~ Bernoulli(logits = picture of k_n),    q(k_n | x_n) = network(x_n).

The guide is enumerated, so that ELBO and gradient are exact sums over k. Trained plainly, some clusters end without
images: a picture that fits nothing is chosen by nothing, and learns nothing. A usual cure is a bonus on the entropy of
the *aggregated* assignment, the mean of q(k | x_n) over the images:

    loss = -ELBO + N * lam * H_alpha(mean of q(k | x_n) over n),    lam < 0.

This is not the guide's own entropy, which would only blur each image's assignment, so it is an objective of the
demo's own: `AggregatedEntropyELBO` fills the one hole of the bound's enumerated form, `penalty`. Two remarks:

- under a uniform prior the ELBO already holds the Shannon entropy of the aggregated assignment, with weight 1;
- the mean over a batch of B images scatters: its entropy is too small, by some (K - 1)/2B nats. The run measures it.

Compared are no bonus, Shannon's (alpha = 1) and Rényi's, each from the same weights and on the same batches. Clusters
used (by more than 1/4K of the images), exp(H), balance H/log K and normalised mutual information (NMI) with the
labels, which nothing is trained on, are of the training images; the ELBO is untempered, exact and of held-out ones. To
be seen: the bonus keeps the clusters; whether the labels gain by it depends on K; and a large alpha can do harm at a
large learning rate, since H_alpha then pushes at the largest clusters only and brings none back.

    python -m demos.clustering

It takes about three minutes on one core.
"""

import argparse
import math
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from pyro.nn import PyroModule
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor, nn

from banel_pyro import BaNEL_TraceEnum_ELBO, Split, fit
from banel_pyro.entropy import renyi_entropy
from banel_pyro.objectives import Bound, EnumObjective
from banel_pyro.seeding import fork_rng
from banel_pyro.terms import Summand
from models.data import digits, digits_labels

SIDE, PIXELS, HIDDEN = 8, 64, 100
COLOURS, GREY, RED = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"), "#767676", "#D55E00"
FORMATS = {"used": ".1f", "exp_H": ".1f", "balance": ".3f", "nmi": ".3f", "nmi_gain": "+.3f"}
FORMATS |= {"elbo": ".2f", "elbo_gain": "+.2f"}
PANELS = {"used": "clusters used", "nmi": "NMI with the labels", "elbo_gain": "ELBO gained, nats per image"}


# Step 1: the objective. It reads the guide's trace and hands back what is added to -ELBO.
class AggregatedEntropyELBO(EnumObjective):
    r"""The evidence lower bound with a λ-weighted entropy of the aggregated assignment.

    .. math::
        \text{loss}(\lambda) = -\text{ELBO} + N \lambda\, H_\alpha\Big(\frac1B \sum_{n=1}^{B} q(k \mid x_n)\Big)

    The entropy of a mean over the B rows of a minibatch is too small, by up to (K - 1)/2B nats or so.

    Args:
        lam: λ in nats per nat and row; λ < 0 rewards the use of all clusters.
        alpha: the order α of Rényi's entropy; 1 is Shannon's.
        site: the guide's categorical site, in the data plate.
        plate: the data plate, with B rows that stand for N.
        **options: as for `banel_pyro.objectives.EnumObjective`.
    """

    def __init__(
        self, lam: float = 0, *, alpha: float = 1, site: str = "k", plate: str = "data", **options: Any
    ) -> None:
        super().__init__(lam, **options)
        self.alpha, self.site, self.plate = alpha, site, plate

    def penalty(self, bound: Bound) -> list[Summand]:
        """N λ H_α of the mean over the data plate of the site's probabilities."""
        if self.lam == 0:
            return []
        site = bound.guide_trace.nodes[self.site]
        (frame,) = (frame for frame in site["cond_indep_stack"] if frame.name == self.plate)
        mean = site["fn"].probs.mean(frame.dim - 1)  # the last axis holds the probabilities
        total = (frame.full_size or frame.size) * renyi_entropy(dist.Categorical(probs=mean), self.alpha)
        # no draw is in it, so that no score-function site pays for it, and it lies in no plate
        return [Summand(total, total, weight=self.lam, paid_for=False)]


# Step 2: model and guide.
class Pictures(PyroModule):
    """The model: a cluster for each image, and pixels from that cluster's picture."""

    def __init__(self, clusters: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(0.1 * torch.randn(clusters, PIXELS))

    def forward(self, x: Tensor) -> None:
        """Sample k and observe x, images (B, 64) of zeros and ones."""
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=x.new_zeros(len(self.logits))))
            pyro.sample("x", dist.Bernoulli(logits=self.logits[k]).to_event(1), obs=x)


class Assignment(PyroModule):
    """The guide: a network from an image to the probabilities of the clusters, which are summed over."""

    def __init__(self, clusters: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, clusters))

    def forward(self, x: Tensor) -> None:
        """Sample k given x."""
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=self.network(x)), infer={"enumerate": "parallel"})


# Step 3: train, and judge by numbers without lambda in them.
class Images(NamedTuple):
    """The digits, their training images as bits to judge clusters by, and the labels of these."""

    split: Split
    bits: Tensor
    labels: Tensor


class Run(NamedTuple):
    """A trained clustering: its measures, and each cluster's picture and share."""

    measures: dict[str, float]
    pictures: Tensor
    shares: Tensor


def train(clusters: int, alpha: float, lam: float, seed: int, data: Images, args: argparse.Namespace) -> Run:
    """One run. Every setting of a seed starts from the same weights and sees the same batches."""
    with pyro.get_param_store().scope(), fork_rng(seed):
        model, guide = Pictures(clusters), Assignment(clusters)
        objective = AggregatedEntropyELBO(lam, alpha=alpha, max_plate_nesting=1)
        options = {"steps": args.steps, "lr": args.lr, "batch_size": args.batch, "seed": seed, "progress": False}
        fit(model, guide, data.split, objective=objective, **options)
        exact = BaNEL_TraceEnum_ELBO(max_plate_nesting=1).terms(model, guide, data.split.held_out)
    with torch.no_grad():
        probs, pictures = guide.network(data.bits).softmax(-1), model.logits.sigmoid()
    # the rows are in random order, so that the first B are a minibatch, and the next B
    bias = float(np.mean([shannon(part.mean(0)) for part in probs.split(args.batch)])) - shannon(probs.mean(0))
    own = {"elbo": float(exact.elbo) / len(data.split.held_out), "bias": bias}
    return Run(judged(probs, data.labels) | own, pictures, probs.mean(0))


def judged(probs: Tensor, labels: Tensor) -> dict[str, float]:
    """Use and balance of the clusters and what they say about the labels, from probabilities (N, K)."""
    shares, clusters = probs.mean(0), probs.shape[1]
    entropy = shannon(shares)
    return {
        "used": float((shares > 1 / (4 * clusters)).sum()),
        "exp_H": math.exp(entropy),
        "balance": entropy / math.log(clusters),
        "nmi": float(normalized_mutual_info_score(labels.numpy(), probs.argmax(-1).numpy())),
    }


def shannon(probs: Tensor) -> float:
    """Shannon's entropy of probabilities (K,), in nats."""
    return float(renyi_entropy(dist.Categorical(probs=probs), 1.0))


def k_means(clusters: int, seed: int, data: Images) -> dict[str, float]:
    """The same measures for k-means, as a yardstick."""
    found = KMeans(clusters, n_init=1, random_state=seed).fit_predict(data.bits.numpy())
    return judged(nn.functional.one_hot(torch.as_tensor(found).long(), clusters).to(data.bits), data.labels)


# Step 4: the table.
def with_gains(rows: pd.DataFrame) -> pd.DataFrame:
    """Add what NMI and ELBO gain over the run without a bonus of the same K and seed."""
    plain = rows[rows["lam"] == 0].set_index(["clusters", "seed"])
    for name in ("nmi", "elbo"):
        without = rows.join(plain[name].rename("without"), on=["clusters", "seed"])["without"]
        rows[f"{name}_gain"] = (rows[name] - without).where(rows["lam"] != 0)
    return rows


def show(rows: pd.DataFrame) -> str:
    """The table to read: means over seeds with standard errors."""
    groups = rows.groupby("label", sort=False)[list(FORMATS)]
    mean, error = groups.mean(), groups.sem()
    table = pd.DataFrame(index=mean.index.rename(None))
    for name, form in FORMATS.items():
        pairs = zip(mean[name], error[name], strict=True)
        table[name] = ["" if math.isnan(m) else f"{m:{form}} ± {e:{form[-3:]}}" for m, e in pairs]
    return table.to_string()


# Step 5: the picture.
def picture(runs: dict[str, Run], rows: pd.DataFrame) -> Figure:
    """Above: the clusters of one run a setting. Below: bars of three measures, a column for each K."""
    heights = (0.72 * len(runs) + 0.4, 6.6)
    figure = plt.figure(figsize=(6.4, sum(heights)), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=heights)
    above.suptitle("Clusters of the first seed, and their shares of the images (framed: lost)", fontsize=10)
    for axis, (label, run) in zip(above.subplots(len(runs), 1, squeeze=False).flat, runs.items(), strict=True):
        strip(axis, label, run)
    panels = below.subplots(len(PANELS), rows["clusters"].nunique(), squeeze=False, sharex="col", sharey="row")
    for column, (clusters, part) in zip(panels.T, rows.groupby("clusters", sort=False), strict=True):
        for axis, (name, title) in zip(column, PANELS.items(), strict=True):
            bars(axis, part[part["lam"].notna()], name)
            axis.set_title(f"K = {clusters}: {title}", fontsize=9)
        column[-1].set_xlabel("$\\lambda$ of the bonus")
    below.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def strip(axis: Axes, label: str, run: Run) -> None:
    """The pictures of a run in a row, the largest share first."""
    order = run.shares.argsort(descending=True)
    tiles = nn.functional.pad(run.pictures[order].reshape(-1, SIDE, SIDE), (0, 2))
    axis.imshow(1 - torch.cat(list(tiles), dim=1).numpy(), cmap="gray", vmin=0, vmax=1)
    for place, share in enumerate(run.shares[order].tolist()):
        left = place * (SIDE + 2) - 0.5
        axis.text(left + SIDE / 2, SIDE, f"{100 * share:.0f} %", ha="center", va="top", fontsize=7)
        if share <= 1 / (4 * len(order)):
            axis.add_patch(Rectangle((left, -0.5), SIDE, SIDE, fill=False, edgecolor=RED, linewidth=1.5))
    axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def bars(axis: Axes, rows: pd.DataFrame, name: str) -> None:
    """Means of a measure with two standard errors: no bonus, then a group of bars for each lambda."""
    alphas, lams = sorted(rows["alpha"].dropna().unique()), sorted(rows["lam"].unique(), reverse=True)
    for (lam, alpha), group in rows.groupby(["lam", "alpha"], dropna=False, sort=False):
        number = 0 if lam == 0 else alphas.index(alpha)
        at = lams.index(lam) + (0 if lam == 0 else 0.18 * (number - (len(alphas) - 1) / 2))
        label = "no bonus" if lam == 0 else f"$\\alpha$ = {alpha:g}" if lam == lams[1] else "_"  # once in the legend
        style = {"color": GREY if lam == 0 else COLOURS[number % len(COLOURS)], "ecolor": "black", "capsize": 2}
        axis.bar(at, group[name].mean(), yerr=2 * group[name].sem(), width=0.16, label=label, **style)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xticks(range(len(lams)), [f"{lam:g}" for lam in lams])
    axis.spines[["top", "right"]].set_visible(False)


def main(args: argparse.Namespace) -> None:
    """Train, judge, draw."""
    torch.set_num_threads(1)  # a step takes 3 ms: a second thread mostly waits
    split = digits()
    with fork_rng(0):
        data = Images(split, torch.bernoulli(split.train), digits_labels()[0])
    settings = [("no bonus", 1.0, 0.0)]
    settings += [(f"alpha {alpha:g}, lam {lam:g}", alpha, lam) for lam in args.lams for alpha in args.alphas]
    found: list[dict[str, Any]] = []
    shown: dict[str, Run] = {}
    for clusters in args.clusters:
        for seed in args.seeds:
            key = {"clusters": clusters, "seed": seed}
            for label, alpha, lam in settings:
                run = train(clusters, alpha, lam, seed, data, args)
                found.append({"label": label, "alpha": alpha if lam else math.nan, "lam": lam} | key | run.measures)
                if lam in (0, args.lams[-1]):
                    shown.setdefault(label, run)
            found.append({"label": "k-means"} | key | k_means(**key, data=data))
            print(f"K = {clusters}, seed {seed}: {len(settings)} runs done", flush=True)
    rows = with_gains(pd.DataFrame(found))
    print(f"\nMeans over {len(args.seeds)} seed(s) ± one standard error; gains paired by seed; ELBO in nats per image.")
    for clusters, part in rows.groupby("clusters", sort=False):
        bias = part.loc[part["lam"] == 0, "bias"].mean()
        print(f"\nK = {clusters}\n{show(part)}")
        print(f"Without a bonus, H of the mean over {args.batch} images is {-bias:.3f} nats below that over all.")
    args.out.mkdir(parents=True, exist_ok=True)
    rows.to_csv(args.out / "clustering.csv", index=False)
    picture(shown, rows).savefig(args.out / "clustering.png", dpi=110, pil_kwargs={"optimize": True})
    print(f"\nThe picture is {args.out / 'clustering.png'}, the numbers are beside it.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--clusters", type=int, nargs="+", default=(10, 20), help="numbers of clusters K (default: %(default)s)")
    add("--alphas", type=float, nargs="+", default=(0.5, 1.0, 2.0, 5.0), help="orders of H (default: %(default)s)")
    add("--lams", type=float, nargs="+", default=(-1.0, -10.0), help="weights of the bonus (default: %(default)s)")
    add("--seeds", type=int, nargs="+", default=(0, 1, 2, 3, 4), help="seeds of the runs (default: %(default)s)")
    add("--steps", type=int, default=500, help="optimiser steps of each run (default: %(default)s)")
    add("--lr", type=float, default=0.03, help="learning rate (default: %(default)s)")
    add("--batch", type=int, default=150, help="images per step (default: %(default)s)")
    add("--out", type=Path, default=Path("runs/clustering"), help="folder for the results (default: %(default)s)")
    main(parser.parse_args())
