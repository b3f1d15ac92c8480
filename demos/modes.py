"""Which modes survive: a mixture guide on a mixture target, at several lambda and orders alpha of the entropy.

The target is a mixture of four normals of unequal weights and widths, the guide one of ten with free weights,
locations and scales, and

    loss = -ELBO + lam * H_alpha(q) = -E[log p] - H_1(q) + lam * H_alpha(q).

Each (lam, alpha) is fitted from several starts and compared with the optimum over all densities q, found on a fine
grid. For alpha = 1 it is q ~ p^(1 / (1 - lam)). Otherwise log q + lam * r / (1 - alpha) = log p + constant, where
r = alpha * q^(alpha - 1) / (integral of q^alpha), and what that means depends on the signs:

- lam < 0, alpha < 1: tails are rewarded. They fall as |z|^(-2 / (1 - alpha)), though those of p are normal, and there
  is no optimum for alpha <= 1/3.
- lam < 0, alpha > 1: peaks are flattened; the tails stay those of p.
- lam > 0, alpha < 1: tails are cut. The loss is not convex, the optimum is 0 where p is low, and whole modes go.
- lam > 0, alpha > 1: no optimum, however small lam is. A spike of mass m < lam and width w adds m log(1/w) to the loss
  and takes lam log(1/w) away, and w can go to 0. What there can be is a *local* optimum, with lam * r < 1 everywhere.
  The guide's scales are bounded below here (FLOOR): a fit that runs into a spike ends at that bound.

A mode survives with more than 2 % of the mass, counted between the valleys of the target. Masses, entropies and losses
are by quadrature. The Monte-Carlo estimate of H_alpha that trains the guides is audited, and the same guides are
trained on the quadrature as well: what the best of them lacks is due to its shape, the rest to the draws.

    python -m demos.modes

It takes about two minutes on one core.
"""

import argparse
import math
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pyro import poutine
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor
from torch.distributions import constraints

from banel_pyro import BaNEL_ELBO, fit
from banel_pyro.entropy import renyi_from_log_q
from banel_pyro.seeding import fork_rng

TARGET = (0.4, 0.3, 0.25, 0.05), (-4.0, 0.0, 4.0, 8.0), (0.8, 1.2, 0.4, 0.6)  # weights, locations, scales
LOCS = TARGET[1]
COMPONENTS, FLOOR, SURVIVES, REPEATS = 10, 0.05, 0.02, 100
FIRST_LR, LAST_LR = 0.05, 0.001
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#C8C8C8"
NOTES = {"global": "", "local": ", local optimum", "none": ", no optimum"}

Curve = tuple[Tensor, Tensor | None]
"""Log q on the grid, of the fitted guides and of the optimum."""


# Step 1: target and guide. A plate holds several guides side by side, each with its own start and its own draws. Draws
# of a torch mixture carry no gradient, so that the score function is used. That is as well: a pathwise gradient of a
# weight has to carry mass through the valleys, where hardly ever a draw is.
def mixture(weights: Tensor, locs: Tensor, scales: Tensor) -> Any:
    """Mixture of normals in one dimension, with components on the last axis."""
    return dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(locs, scales))


def model(guides: int) -> None:
    """The target is the prior of z, and nothing is observed: the ELBO is -KL(q || p)."""
    with pyro.plate("guides", guides):
        pyro.sample("z", mixture(*map(torch.tensor, TARGET)))


def guide(guides: int) -> None:
    """Components start at equal weights and scales, spread over the target and shaken."""
    shape = (guides, COMPONENTS)
    spread = torch.linspace(LOCS[0] - 4, LOCS[-1] + 4, COMPONENTS)
    locs = pyro.param("locs", lambda: spread + torch.randn(shape))
    weights = pyro.param("weights", torch.full(shape, 1 / COMPONENTS), constraint=constraints.simplex)
    scales = pyro.param("scales", torch.ones(shape), constraint=constraints.greater_than(FLOOR))
    with pyro.plate("guides", guides):
        pyro.sample("z", mixture(weights, locs, scales))


def adam(parameters: Any, steps: int) -> ClippedAdam:
    """Adam with a learning rate that falls by a constant factor each step."""
    decay = (LAST_LR / FIRST_LR) ** (1 / steps)
    return ClippedAdam(parameters, lr=FIRST_LR, lrd=decay, betas=(0.9, 0.95), clip_norm=math.inf)


def fitted(lam: float, alpha: float, args: argparse.Namespace) -> Any:
    """The trained guides as one distribution in float64, a row for each start."""
    with pyro.get_param_store().scope():
        fit(
            partial(model, args.starts),
            partial(guide, args.starts),
            objective=BaNEL_ELBO(
                lam,
                alpha=alpha,
                allow_unbounded=True,  # the scales are bounded below: a spike ends there, and is to be seen
                num_particles=args.particles,
                vectorize_particles=True,
                max_plate_nesting=1,
            ),
            optim=partial(adam, steps=args.steps),
            steps=args.steps,
            seed=args.seed,
            collapse=None,
            progress=False,
        )
        return mixture(*(pyro.param(name).detach().double() for name in ("weights", "locs", "scales")))


# Step 2: quadrature, on a grid that is fine around the modes and reaches out to thousands, for heavy tails.
_FAR = torch.logspace(math.log10(12), math.log10(5000), 120, dtype=torch.float64)
Z = 2 + torch.cat([-_FAR.flip(0)[:-1], torch.linspace(-12, 12, 801, dtype=torch.float64), _FAR[1:]])
DZ = (torch.cat([Z[1:], Z[-1:]]) - torch.cat([Z[:1], Z[:-1]])) / 2
LOG_P = mixture(*(torch.tensor(numbers, dtype=torch.float64) for numbers in TARGET)).log_prob(Z)
VALLEYS = 1 + ((LOG_P[1:-1] < LOG_P[:-2]) & (LOG_P[1:-1] < LOG_P[2:])).nonzero().squeeze(-1)


def integral(values: Tensor) -> Tensor:
    """Over z, the last axis."""
    return (DZ * values).sum(-1)


def masses(log_q: Tensor) -> Tensor:
    """The mass at each mode, between the valleys of the target; modes on the last axis."""
    mass = DZ * log_q.exp()
    left = (mass.cumsum(-1) - mass / 2)[..., VALLEYS]
    ends = torch.zeros_like(left[..., :1])
    return torch.cat([ends, left, ends + 1], -1).diff(dim=-1)


def entropy(log_q: Tensor, alpha: float) -> Tensor:
    """The Rényi entropy of order alpha in nats, Shannon's at 1."""
    if alpha == 1:
        return -integral(log_q.exp() * log_q)
    return integral((alpha * log_q).exp()).log() / (1 - alpha)


def loss(log_q: Tensor, lam: float, alpha: float) -> Tensor:
    """The loss in nats."""
    return integral(log_q.exp() * (log_q - LOG_P)) + lam * entropy(log_q, alpha)


def log_density(q: Any) -> Tensor:
    """Log q on the grid, a row for each guide. Densities below e^-200 are 0 for all that is done here."""
    return torch.as_tensor(q.log_prob(Z.unsqueeze(-1)).T.clamp(min=-200))


def loss_by_quadrature(lam: float, alpha: float, args: argparse.Namespace) -> Tensor:
    """The loss that the same guides reach when they are trained on the quadrature in place of draws."""
    store = pyro.get_param_store()
    with store.scope(), fork_rng(args.seed):
        traced = poutine.trace(guide)
        traced.get_trace(args.starts)
        optimizer = adam([parameter for _, parameter in store.named_parameters()], args.steps)
        for _ in range(args.steps):
            losses = loss(log_density(traced.get_trace(args.starts).nodes["z"]["fn"]), lam, alpha)
            optimizer.zero_grad()
            losses.sum().backward()
            optimizer.step()
    return losses.detach()


# Step 3: the optimum over all densities on the grid.
def normalised(log_q: Tensor) -> Tensor:
    """With an integral of 1."""
    return (log_q - (log_q + DZ.log()).logsumexp(-1, keepdim=True)).clamp(min=-200)


def push(log_q: Tensor, alpha: float) -> Tensor:
    """r = alpha * q^(alpha - 1) / (integral of q^alpha): how hard H_alpha pushes where; 1 everywhere for alpha = 1."""
    return alpha * ((alpha - 1) * log_q - integral((alpha * log_q).exp()).log().unsqueeze(-1)).exp()


def downhill(log_q: Tensor, lam: float, alpha: float) -> Tensor:
    """Where damped Newton steps in log q, point by point, lead from log q."""
    for _ in range(1000):
        r = push(log_q, alpha)
        slope = log_q - LOG_P + lam * r / (1 - alpha)
        curvature = (1 - lam * r).clamp(min=1)
        share = log_q.exp() / curvature
        level = (integral(share * slope) / integral(share)).unsqueeze(-1)
        step = ((level - slope) / curvature / 2).clamp(-1, 1)
        log_q = normalised(log_q + step)
        if float(integral(log_q.exp() * step.abs()).max()) < 1e-9:
            break
    return log_q


def optimum(lam: float, alpha: float) -> tuple[str, Tensor | None]:
    """Whether it is "global", "local" or "none", and its log q.

    Where the loss has a minimum but is not convex (lam > 0, alpha < 1) the best of many starts is taken. Each has more
    of p cut off from below: the optimum is larger where p is larger.
    """
    tempered = normalised(LOG_P / (1 - lam))
    if alpha == 1:
        return "global", tempered
    if lam > 0 and alpha < 1:
        levels = torch.linspace(-12, float(LOG_P.max()) - 0.05, 100, dtype=torch.float64).unsqueeze(-1)
        found = downhill(normalised(torch.where(levels < LOG_P, tempered, -200.0)), lam, alpha)
        return "global", found[loss(found, lam, alpha).argmin()]
    found = downhill(tempered, lam, alpha)
    if lam < 0:
        return "global", found
    return ("local", found) if float((lam * push(found, alpha)).max()) < 1 else ("none", None)


# Step 4: compare.
def audited(q: Any, exact: Tensor, alpha: float, args: argparse.Namespace) -> dict[str, list[float]]:
    """What the Monte-Carlo estimate of H_alpha is worth, with as many draws as a training step has."""
    with fork_rng(args.seed):
        draws = q.sample((args.particles, REPEATS))
    value, diagnostic = renyi_from_log_q(q.log_prob(draws), alpha)
    error = value - exact
    columns = {"bias": error.mean(0), "noise": error.std(0), "ess": diagnostic.ess.mean(0)}
    columns |= {"pareto_k": diagnostic.pareto_k().mean(0), "trusted": diagnostic.trusted().double().mean(0)}
    return {name: column.tolist() for name, column in columns.items()}


def compare(lam: float, alpha: float, args: argparse.Namespace) -> tuple[pd.DataFrame, Curve]:
    """A row for each start; and the densities."""
    q = fitted(lam, alpha, args)
    log_q = log_density(q)
    kind, best = optimum(lam, alpha)
    rows: dict[str, Any] = {"lam": lam, "alpha": alpha, "start": range(args.starts), "optimum": kind}
    for side, density in (("optimum", best), ("fitted", log_q)):
        if density is not None:
            found = masses(density)
            rows |= {f"{side}[{loc:g}]": found[..., mode].tolist() for mode, loc in enumerate(LOCS)}
            rows[f"{side}_modes"] = (found > SURVIVES).sum(-1).tolist()
            rows[f"{side}_entropy"] = entropy(density, 1.0).tolist()
            rows[f"{side}_elbo"] = (-loss(density, 0.0, 1.0)).tolist()
            rows[f"{side}_loss"] = loss(density, lam, alpha).tolist()
    rows["narrowest"] = q.component_distribution.scale.amin(-1).tolist()
    rows |= audited(q, entropy(log_q, alpha), alpha, args)
    skip = alpha == 1 or best is None  # the draws alone come close; there is nothing to come close to
    rows["quadrature_loss"] = math.nan if skip else loss_by_quadrature(lam, alpha, args).tolist()
    return pd.DataFrame(rows), (log_q, best)


# Step 5: tables and picture.
def mean(column: "pd.Series[float]", digits: int) -> str:
    """Mean and standard error over the starts."""
    return (
        "-" if column.isna().any() else f"{column.mean():.{digits}f} ± {column.std() / len(column) ** 0.5:.{digits}f}"
    )


def counts(modes: pd.Series) -> str:
    """A number of modes, or its range over the starts."""
    low, high = int(modes.min()), int(modes.max())
    return f"{low}" if low == high else f"{low}-{high}"


def summary(rows: pd.DataFrame) -> str:
    """Masses and modes that survive, entropy, ELBO, what the losses exceed the optimum by, starts with a spike."""
    locs = " ".join(f"{loc:>4g}" for loc in LOCS)
    lines = [f"{'':11} | {'optimum':<28} | fitted"]
    lines += [f"{'lam':>5} {'alpha':>5} | {locs} {'n':>3} {'H_1':>5} | {locs} {'se':>4} {'n':>3} {'H_1':>5}"]
    lines[1] += f" {'ELBO':>14} {'excess loss':>15} {'by grid':>7} {'spikes':>6}"
    for (lam, alpha), cell in rows.groupby(["lam", "alpha"]):
        name = "any" if lam == 0 else f"{alpha:g}"
        best, found = (100 * cell[[f"{side}[{loc:g}]" for loc in LOCS]] for side in ("optimum", "fitted"))
        left, right = (" ".join(f"{mass:4.1f}" for mass in table.mean()) for table in (best, found))
        left += f" {cell['optimum_modes'].iloc[0]:3.0f} {cell['optimum_entropy'].iloc[0]:5.2f}"
        if cell["optimum"].iloc[0] == "none":
            left = f"{'none':<28}"
        right += f" {found.sem().max():4.1f} {counts(cell['fitted_modes']):>3} {cell['fitted_entropy'].mean():5.2f}"
        gap, exact = (cell[f"{side}_loss"] - cell["optimum_loss"] for side in ("fitted", "quadrature"))
        least = "-" if exact.isna().any() else f"{exact.min():.4f}"
        spikes = (cell["narrowest"] < 1.2 * FLOOR).sum()
        right += f" {mean(cell['fitted_elbo'], 3):>14} {mean(gap, 4):>15} {least:>7} {spikes:6}"
        lines.append(f"{lam:5g} {name:>5} | {left} | {right}")
    return "\n".join(lines)


def audit(rows: pd.DataFrame) -> str:
    """What the Monte-Carlo estimate of each H_alpha is worth."""
    lines = [f"{'lam':>5} {'alpha':>5} {'bias':>16} {'noise':>7} {'ESS':>6} {'k':>6} {'trusted':>8}"]
    for (lam, alpha), cell in rows[rows["alpha"] != 1].groupby(["lam", "alpha"]):
        error = ((cell["noise"] ** 2).mean() / (REPEATS * len(cell))) ** 0.5
        bias = f"{cell['bias'].mean():.3f} ± {error:.3f}"
        line = f"{lam:5g} {alpha:5g} {bias:>16} {cell['noise'].mean():7.3f}"
        lines.append(f"{line} {cell['ess'].mean():6.0f} {cell['pareto_k'].mean():6.2f} {cell['trusted'].mean():8.0%}")
    return "\n".join(lines)


def picture(rows: pd.DataFrame, curves: dict[tuple[float, float], Curve]) -> Figure:
    """A panel for each (lam, alpha) but lam = 0, with how many modes survive in the fitted guides."""
    lams, alphas = (sorted({key[axis] for key in curves if key[0] != 0}) for axis in (0, 1))
    figure = plt.figure(figsize=(7.6, 0.9 + 1.35 * len(lams)), layout="constrained")
    axes = figure.subplots(len(lams), len(alphas), sharex=True, sharey="row", squeeze=False)
    for line, lam in zip(axes, lams, strict=True):
        shown = [q for alpha in alphas for q in (LOG_P, curves[lam, alpha][1]) if q is not None]
        line[0].set_ylim(0, 1.2 * max(float(q.exp().max()) for q in shown))
        line[0].set_ylabel(f"$\\lambda$ = {lam:g}".replace("-", "−"))
        for axis, alpha in zip(line, alphas, strict=True):
            cell = rows[(rows["lam"] == lam) & (rows["alpha"] == alpha)]
            text = f"$\\alpha$ = {alpha:g}, n = {counts(cell['fitted_modes'])}{NOTES[cell['optimum'].iloc[0]]}"
            axis.set_title(text, fontsize=8, loc="left")
            panel(axis, *curves[lam, alpha])
    labelled = {line.get_label(): line for axis in axes.flat for line in axis.get_legend_handles_labels()[0]}
    figure.legend(handles=list(labelled.values()), loc="outside upper center", ncols=3, frameon=False)
    figure.supxlabel("z", fontsize=10)
    figure.supylabel("density, each row on its own scale", fontsize=10)
    return figure


def panel(axis: Axes, log_q: Tensor, best: Tensor | None) -> None:
    """Densities at one (lam, alpha)."""
    shown = slice(130, -130)
    axis.fill_between(Z[shown], LOG_P[shown].exp(), color=GREY, linewidth=0, label="target")
    lines = axis.plot(Z[shown], log_q.T[shown].exp(), color=ORANGE, linewidth=0.8)
    lines[0].set_label("fitted, a line for each start")
    if best is not None:
        axis.plot(Z[shown], best[shown].exp(), "--", color=BLUE, linewidth=1.2, label="optimum over all densities")
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def main(args: argparse.Namespace) -> None:
    """Fit, compare, draw."""
    torch.set_num_threads(1)  # a step takes a few milliseconds: a second thread mostly waits
    pairs = [(0.0, 1.0), *((lam, alpha) for lam in sorted({*args.lams} - {0.0}) for alpha in sorted({*args.alphas}))]
    tables: list[pd.DataFrame] = []
    curves: dict[tuple[float, float], Curve] = {}
    for lam, alpha in pairs:
        table, curves[lam, alpha] = compare(lam, alpha, args)
        tables.append(table)
        print(f"lam = {lam:g}, alpha = {alpha:g}: fitted", flush=True)
    rows = pd.concat(tables, ignore_index=True)
    print(f"\nMass at each mode in %, n of them above {SURVIVES:.0%}; nats; mean of {args.starts} starts ± se.")
    print("excess loss: above the optimum; by grid: the same, of the best guide that was trained on the quadrature.\n")
    print(summary(rows))
    print(f"\nH_alpha of the fitted guides from {args.particles} draws, {REPEATS} times each, against quadrature:\n")
    print(audit(rows))
    args.out.mkdir(parents=True, exist_ok=True)
    rows.to_csv(args.out / "modes.csv", index=False)
    picture(rows, curves).savefig(args.out / "modes.png", dpi=110, pil_kwargs={"optimize": True})
    print(f"\nThe picture is {args.out / 'modes.png'}, the numbers are beside it.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    lams, alphas = [-1.0, -0.5, 0.1, 0.25, 0.5, 0.75], [0.5, 1.0, 2.0, 5.0]
    for flag, kind, default, text in (
        ("--lams", float, lams, "values of lambda, below 1; 0 is always there"),
        ("--alphas", float, alphas, "orders of the Rényi entropy, above 1/3"),
        ("--steps", int, 1000, "optimiser steps of each fit"),
        ("--particles", int, 256, "draws of the guide per step"),
        ("--starts", int, 5, "starts of each fit"),
        ("--seed", int, 0, "seed of every fit"),
        ("--out", Path, Path("runs/modes"), "folder for the results"),
    ):
        several = "+" if isinstance(default, list) else None
        parser.add_argument(flag, type=kind, nargs=several, default=default, help=f"{text} (default: %(default)s)")
    main(parser.parse_args())
