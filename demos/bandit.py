"""What an entropy bonus does to a policy: a bandit with a high narrow peak of reward and a lower broad one.

The policy is a categorical guide over 31 arms, trained by the score-function estimator (REINFORCE): arms are
drawn, their rewards looked up, nothing is enumerated. The reward enters as pyro.factor, in units of a temperature.
The ELBO holds Shannon's entropy once already, so that up to a constant

    temperature * loss = -E[reward] - temperature * (H_1 - lam * H_alpha)

and lam < 0 is a bonus on the Rényi entropy H_alpha on top of it; alpha = 1 is Shannon's own. lam = 0 is
near-greedy. lam = 1 at alpha = 1 takes all entropy out ("plain"): policy gradient as in the books.

Bonuses of different alpha are compared twice: at the same price, where lam is chosen such that the exact optimum
earns what it earns with Shannon's bonus, and at the same lam. To be seen:

- the exact optimum of each, by a sum over the arms: its entropies, its mass on each peak, its rarest arm;
- how far the trained policies end from it, over several seeds;
- at which lam the exact loss has more than one stationary point: for alpha > 1 it need not be convex;
- the noise of the gradient, without and with the decaying-average baseline of the graph form.

    python -m demos.bandit

It takes two to three minutes.
"""

import argparse
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pyro.optim.clipped_adam import ClippedAdam
from scipy.optimize import brentq
from scipy.special import logsumexp, wrightomega

from banel_pyro import BaNEL_ELBO, BaNEL_TraceGraph_ELBO, fit

ARMS = np.arange(31)
PEAKS = {"narrow": (7, 1.0, 1.0), "broad": (21, 3.0, 0.8)}  # centre and width in arms, height in reward
REWARD = sum((h * np.exp(-0.5 * ((ARMS - c) / w) ** 2) for c, w, h in PEAKS.values()), np.zeros(len(ARMS)))
COLOURS = {1.0: "#0072B2", 0.5: "#009E73", 2.0: "#D55E00", 5.0: "#CC79A7"}  # one for each alpha
GREY = "#767676"
FIRST_LR, LAST_LR = 0.3, 0.002


# Step 1: the exact optimum, in float64 and without the library.
def normalised(logits: np.ndarray) -> np.ndarray:
    """Log probabilities (..., arms)."""
    return logits - logsumexp(logits, axis=-1, keepdims=True)


def entropy(log_q: np.ndarray, alpha: float) -> np.ndarray:
    """H_alpha of policies (..., arms), in nats."""
    if alpha == 1:
        return 0.0 - (np.exp(log_q) * np.maximum(log_q, -1e300)).sum(-1)  # 0 log 0 is 0
    return logsumexp(alpha * log_q, axis=-1) / (1 - alpha)


class Exact:
    """The loss at one alpha, and all its stationary points at any lam <= 0.

    With S = Σ_j q_j^alpha and w = -lam alpha / S the slope of the loss is 0 where, with a constant nu,

        log q_i + w q_i^(alpha - 1) / (alpha - 1) = reward_i / temperature - nu.

    The left side grows with q_i, so each w > 0 has one policy, and that policy one lam: every stationary point lies
    on this curve. The minimum is one of them, as the ELBO's entropy is infinitely steep at the edge, q_i = 0.
    Wright's omega function solves for log q_i. A grid over w brackets the points that have a given lam.
    """

    def __init__(self, alpha: float, temperature: float) -> None:
        self.alpha, self.temperature = alpha, temperature
        self.grid = np.geomspace(1e-5, 1e3 * max(1.0, len(ARMS) ** (alpha - 1)), 1000)
        policies = self._policies(self.grid)
        self.lams, self.rewards = self._lams(self.grid, policies), np.exp(policies) @ REWARD

    def loss(self, log_q: np.ndarray, lam: float) -> float:
        """-ELBO + lam H_alpha of a policy (arms), in nats; the prior over arms is uniform."""
        elbo = np.exp(log_q) @ REWARD / self.temperature + entropy(log_q, 1.0) - math.log(len(ARMS))
        return float(lam * entropy(log_q, self.alpha) - elbo)

    def stationary(self, lam: float) -> list[np.ndarray]:
        """Log probabilities (arms) of the policies at which the slope is 0, the lowest loss first."""
        if self.alpha == 1 and lam >= 1:
            return [np.where(REWARD.max() == REWARD, 0.0, -np.inf)]
        if self.alpha == 1 or lam == 0:
            return [normalised(REWARD / self.temperature / (1 - lam))]
        above = self.lams > lam
        places = np.flatnonzero(above[:-1] != above[1:])
        if not places.size:
            raise ValueError(f"lam={lam} at alpha={self.alpha}: expected a number in [{self.lams[-1]:.3g}, 0].")
        roots = [brentq(self._distance, self.grid[i], self.grid[i + 1], (lam,), rtol=1e-12) for i in places]
        return sorted(self._policies(np.array(roots)), key=lambda log_q: self.loss(log_q, lam))

    def priced(self, reward: float) -> float:
        """The lam at which the optimum earns this expected reward."""

        def distance(lam: float) -> float:
            return float(np.exp(self.stationary(lam)[0]) @ REWARD) - reward

        lam = brentq(distance, -60.0, 0.0, xtol=1e-10)
        if abs(distance(lam)) > 1e-6:
            raise SystemExit(f"alpha={self.alpha}: the optimum jumps past {reward:.3f} at lam={lam:.3f}; change --lam.")
        return float(lam)

    def folds(self) -> list[tuple[float, float]]:
        """The ranges of lam with more than one stationary point, as far as the grid resolves them."""
        back = np.flatnonzero(np.diff(self.lams) > 0)  # elsewhere lam falls as w grows
        runs = np.split(back, np.flatnonzero(np.diff(back) > 1) + 1) if back.size else []
        return [(float(self.lams[run[0]]), float(self.lams[run[-1] + 1])) for run in runs]

    def _distance(self, w: float, lam: float) -> float:
        at = np.array([w])
        return float(self._lams(at, self._policies(at))[0]) - lam

    def _lams(self, w: np.ndarray, policies: np.ndarray) -> np.ndarray:
        return -w * np.exp(logsumexp(self.alpha * policies, axis=-1)) / self.alpha

    def _policies(self, w: np.ndarray) -> np.ndarray:
        """Log probabilities (len(w), arms); nu by bisection, such that they sum to 1."""
        if self.alpha == 1:  # w = -lam
            return normalised(REWARD / self.temperature / (1 + w[:, None]))

        def log_q(nu: np.ndarray) -> np.ndarray:
            right = REWARD / self.temperature - nu[:, None]
            return right - wrightomega((self.alpha - 1) * right + np.log(w)[:, None]) / (self.alpha - 1)

        # no q_i is above 1, and one is at least 1 / arms
        low = REWARD.max() / self.temperature - w / (self.alpha - 1)
        high = low + math.log(len(ARMS)) + w * (1 - len(ARMS) ** (1 - self.alpha)) / (self.alpha - 1)
        for _ in range(80):
            middle = (low + high) / 2
            long = logsumexp(log_q(middle), axis=1) > 0
            low, high = np.where(long, middle, low), np.where(long, high, middle)
        return normalised(log_q((low + high) / 2))


# Step 2: the comparison.
@dataclass(frozen=True)
class Case:
    """A bonus, and the log probabilities (arms) of the exact optimum under it."""

    label: str
    comparison: str
    alpha: float
    lam: float
    exact: np.ndarray


def cases(curves: dict[float, Exact], lam: float) -> list[Case]:
    """Without a bonus; bonuses at the price of Shannon's at `lam`; then those at that `lam`."""
    price = float(np.exp(curves[1.0].stationary(lam)[0]) @ REWARD)
    rows = [("plain", "no bonus", 1.0, 1.0), ("none", "no bonus", 1.0, 0.0), ("Shannon", "same price", 1.0, lam)]
    renyi = {f"Rényi {alpha:g}": curve for alpha, curve in curves.items() if alpha != 1}
    rows += [(label, "same price", curve.alpha, curve.priced(price)) for label, curve in renyi.items()]
    rows += [(label, "same lam", curve.alpha, lam) for label, curve in renyi.items()]
    return [Case(*row, exact=curves[row[2]].stationary(row[3])[0]) for row in rows]


def measures(log_q: np.ndarray) -> dict[str, float]:
    """What is said of a policy: expected reward, entropies in nats, masses, extreme probabilities."""
    q = np.exp(log_q)
    near = {name: q[abs(ARMS - centre) <= width].sum() for name, (centre, width, _) in PEAKS.items()}
    entropies = {f"H_{alpha:g}": abs(entropy(log_q, alpha)) for alpha in sorted(COLOURS)}
    return {"reward": q @ REWARD, **entropies, **near, "rest": 1 - sum(near.values()), "top": q.max(), "least": q.min()}


# Step 3: train. The pulls of a step are its particles, each with a baseline of its own.
def model(temperature: float) -> None:
    """An arm from a uniform prior, and its reward."""
    arm = pyro.sample("arm", dist.Categorical(torch.ones(len(ARMS))))
    pyro.factor("reward", torch.tensor(REWARD).float()[arm] / temperature)


def guide(start: torch.Tensor) -> None:
    """The policy, by its logits (arms)."""
    logits = pyro.param("logits", start)
    baseline = {"use_decaying_avg_baseline": True, "baseline_beta": 0.9}  # read by the graph form only
    pyro.sample("arm", dist.Categorical(logits=logits), infer={"baseline": baseline})


def objective(form: type, case: Case, args: argparse.Namespace) -> BaNEL_ELBO:
    """The loss of a case, in one form of the bound."""
    options = {"num_particles": args.pulls, "vectorize_particles": True, "max_plate_nesting": 0}
    return form(case.lam, alpha=case.alpha, **options)


def trained(case: Case, seed: int, args: argparse.Namespace) -> np.ndarray:
    """Log probabilities (arms) of the policy trained from the uniform one."""
    decay = (LAST_LR / FIRST_LR) ** (1 / args.steps)
    with pyro.get_param_store().scope():
        fit(
            partial(model, args.temperature),
            partial(guide, torch.zeros(len(ARMS))),
            objective=objective(BaNEL_TraceGraph_ELBO, case, args),
            optim=partial(ClippedAdam, lr=FIRST_LR, lrd=decay, clip_norm=math.inf),
            steps=args.steps,
            seed=seed,
            progress=False,
        )
        return normalised(pyro.param("logits").detach().double().numpy())


def compare(found: list[Case], curves: dict[float, Exact], args: argparse.Namespace) -> pd.DataFrame:
    """A row for each fit: measures of the policy and of the exact optimum, the distances between them, the policy."""
    rows = []
    for case in found:
        about = {"comparison": case.comparison, "label": case.label, "alpha": case.alpha, "lam": case.lam}
        exact = {f"exact_{name}": value for name, value in measures(case.exact).items()}
        loss = partial(curves[case.alpha].loss, lam=case.lam)
        for seed in args.seeds:
            log_q = trained(case, seed, args)
            q = np.exp(log_q)
            distance = {"tv": abs(q - np.exp(case.exact)).sum() / 2, "excess": loss(log_q) - loss(case.exact)}
            policy = {f"p[{arm}]": q[arm] for arm in ARMS}
            rows.append({**about, "seed": seed, **measures(log_q), **distance, **exact, **policy})
        print(f"{case.comparison}, {case.label}, lam = {case.lam:.3g}: {len(args.seeds)} seed(s) trained", flush=True)
    return pd.DataFrame(rows)


# Step 4: the noise of the gradient, where training begins and where it should end.
def gradient_noise(form: type, case: Case, args: argparse.Namespace) -> list[float]:
    """Variance of the gradient by the logits from one pull, summed over them, and its standard error."""
    warm_up = 50
    gradients: list[torch.Tensor] = []
    with pyro.get_param_store().scope():
        pyro.set_rng_seed(0)
        bound, start = objective(form, case, args), torch.tensor(case.exact).float()
        for _ in range(warm_up + args.gradients):
            loss = bound.differentiable_loss(partial(model, args.temperature), partial(guide, start))
            gradients += torch.autograd.grad(loss, pyro.param("logits"))
    drawn = torch.stack(gradients[warm_up:]).double()  # the baseline has found its level by then
    squares = args.pulls * (drawn - drawn.mean(0)).square().sum(1)
    return [float(squares.mean()), float(squares.std() / math.sqrt(len(squares)))]


def noise(found: list[Case], args: argparse.Namespace) -> pd.DataFrame:
    """A row for each policy: the variance without a baseline (trace form) and with it (graph form)."""
    start = Case("uniform", "start", 1.0, 0.0, normalised(np.zeros(len(ARMS))))
    rows = []
    for case in (start, *compared(found)):
        forms = (BaNEL_ELBO, BaNEL_TraceGraph_ELBO)
        rows.append([case.label, *(number for form in forms for number in gradient_noise(form, case, args))])
    return pd.DataFrame(rows, columns=["policy", "trace", "trace_stderr", "graph", "graph_stderr"])


# Step 5: tables and picture.
def compared(found: list[Case]) -> list[Case]:
    """What stands side by side: no bonus, and each bonus at the same price."""
    return [case for case in found if case.label == "none" or case.comparison == "same price"]


def with_error(means: pd.Series, errors: pd.Series, digits: int = 4) -> list[str]:
    """Numbers to read."""
    return [f"{mean:.{digits}f} ± {error:.{digits}f}" for mean, error in zip(means, errors, strict=True)]


def show(found: list[Case], rows: pd.DataFrame, noises: pd.DataFrame) -> None:
    """Print the exact optima, the trained policies with their distance from them, and the noise."""
    exact = pd.DataFrame([{"": c.comparison, "bonus": c.label, "lam": c.lam, **measures(c.exact)} for c in found])
    print("\nExact optima. Entropies in nats; masses within a width of a peak; largest and smallest probability:\n")
    print(exact.to_string(index=False, float_format="%.3f", formatters={"least": "{:.0e}".format}))
    fits = rows.groupby(["comparison", "label", "lam"], sort=False)
    trained = exact[["", "bonus", "lam"]].copy()
    for name in ("reward", "H_1", *PEAKS, "tv", "excess"):
        trained[name] = with_error(fits[name].mean(), fits[name].sem())
    print("\nTrained, ± standard error over seeds. tv: total variation; excess: nats above the exact minimum:\n")
    print(trained.to_string(index=False, float_format="%.3f"))
    noises = noises.assign(**{"no baseline": with_error(noises["trace"], noises["trace_stderr"], 2)})
    noises = noises.assign(**{"decaying average": with_error(noises["graph"], noises["graph_stderr"], 2)})
    print("\nVariance of the gradient by the logits from one pull, summed over them, ± standard error:\n")
    print(noises[["policy", "no baseline", "decaying average"]].to_string(index=False))


def picture(found: list[Case], rows: pd.DataFrame, curves: dict[float, Exact]) -> Figure:
    """A row for each bonus at the same price, in linear and log scale; below, what each lam earns."""
    shown = compared(found)
    figure = plt.figure(figsize=(6.4, 1.55 * len(shown) + 2.9), layout="constrained")
    grid = figure.add_gridspec(len(shown) + 1, 2, height_ratios=[1.0] * len(shown) + [1.7])
    for place, case in enumerate(shown):
        left, right = figure.add_subplot(grid[place, 0]), figure.add_subplot(grid[place, 1])
        lam = f"$\\lambda$ = {case.lam:.2f}".replace("-", "−")
        left.set_title(f"{case.label.replace('none', 'no bonus')}, {lam}", fontsize=10, loc="left")
        left.set_ylabel("probability")
        left.bar(ARMS, REWARD * np.exp(case.exact).max(), width=1.0, color="#e4e4e4", label="reward, to scale")
        right.set(yscale="log", ylim=(1e-7, 1.5))
        for axis in (left, right):
            draw_policy(axis, case, rows[(rows["label"] == case.label) & (rows["lam"] == case.lam)])
            axis.set_xlabel("arm" if case is shown[-1] else "")
        if place == 0:
            right.set_title("the same, log scale", fontsize=10, loc="left")
            left.legend(frameon=False, fontsize=8, loc="upper right")
    draw_rewards(figure.add_subplot(grid[len(shown), :]), found, curves)
    return figure


def draw_policy(axis: Axes, case: Case, fits: pd.DataFrame) -> None:
    """The exact optimum as a line, the policy of every seed as dots."""
    axis.step(ARMS, np.exp(case.exact), where="mid", color="black", linewidth=1, label="exact optimum")
    probabilities = fits[[f"p[{arm}]" for arm in ARMS]].to_numpy()
    places = np.broadcast_to(ARMS, probabilities.shape)
    colour = GREY if case.label == "none" else COLOURS[case.alpha]
    axis.plot(places.ravel(), probabilities.ravel(), "o", color=colour, markersize=2.5, label="trained, each seed")
    axis.spines[["top", "right"]].set_visible(False)


def draw_rewards(axis: Axes, found: list[Case], curves: dict[float, Exact]) -> None:
    """What stationary policies earn at each lam; where a line turns back, a lam has several of them."""
    for alpha, curve in sorted(curves.items()):
        axis.plot(curve.lams, curve.rewards, color=COLOURS[alpha], label=f"$\\alpha$ = {alpha:g}")
        chosen = [(case.lam, np.exp(case.exact) @ REWARD) for case in found if case.alpha == alpha and case.lam < 0]
        axis.plot(*zip(*chosen, strict=True), "o", color=COLOURS[alpha], markersize=5)
    axis.set_xlim(1.35 * min(case.lam for case in found), 0)
    axis.set(xlabel="$\\lambda$ (dots: where policies were trained)", ylabel="expected reward")
    axis.set_title("Stationary points of the exact loss", fontsize=10, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9, loc="lower right")


def main(args: argparse.Namespace) -> None:
    """Solve, train, compare, draw."""
    torch.set_num_threads(1)  # a step takes a millisecond or two: a second thread mostly waits
    curves = {alpha: Exact(alpha, args.temperature) for alpha in COLOURS}
    found = cases(curves, args.lam)
    rows, noises = compare(found, curves, args), noise(found, args)
    show(found, rows, noises)
    print("\nStationary points of the exact loss:\n")
    for alpha, curve in curves.items():
        ranges = " and ".join(f"{low:.3f} < lam < {high:.3f}" for low, high in curve.folds())
        print(f"alpha = {alpha:g}: " + (f"several for {ranges}" if ranges else "one for every lam"))
    args.out.mkdir(parents=True, exist_ok=True)
    rows.to_csv(args.out / "bandit.csv", index=False)
    noises.to_csv(args.out / "noise.csv", index=False)
    picture(found, rows, curves).savefig(args.out / "bandit.png", dpi=110, pil_kwargs={"optimize": True})
    print(f"\nThe picture is {args.out / 'bandit.png'}, the numbers are beside it.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, kind, default, text in (
        ("--lam", float, -3.0, "lambda of Shannon's bonus, below 0"),
        ("--temperature", float, 0.05, "unit of the reward in the model"),
        ("--steps", int, 800, "optimiser steps of each fit"),
        ("--pulls", int, 512, "arms drawn per step"),
        ("--gradients", int, 200, "gradients drawn for their noise"),
        ("--out", Path, Path("runs/bandit"), "folder for the results"),
    ):
        parser.add_argument(flag, type=kind, default=default, help=f"{text} (default: %(default)s)")
    parser.add_argument(
        "--seeds", "--seed", type=int, nargs="+", default=range(5), help="of the fits (default: 0 to 4)"
    )
    given = parser.parse_args()
    if given.lam >= 0:
        parser.error(f"--lam {given.lam:g}: expected a number below 0, which rewards entropy.")
    main(given)
