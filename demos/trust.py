"""Can a posterior be trusted? The verdicts of eight checks, held against long runs of NUTS that nobody has in practice.

Two posteriors whose reference draws are in posteriordb, each with several guides, at two lambda:

- eight schools, non-centred: independent normals, a full-rank normal, a flow;
- the scores of 434 children: the same three for centred columns, and independent normals for the columns as they are.

A guide sees no reference when it is judged. The table puts what the checks found (k-hat, coverage by corrected draws,
the verdict) beside what the reference says (coverage of 95 % intervals, sd ratio, error of the mean in sds), and the
last line says whether any guide was called green whose intervals cover too little. It should be none, whatever the
k-hat. The other way round is common: k-hat fails, so that nobody knows, and amber is what that is called.

Then the curve: coverage against lambda on a posterior that is normal, where it is known exactly.

    BANEL_DATA=... python -m demos.trust

It takes ten minutes. The folder that BANEL_DATA names has posteriordb's files in its folder `bayes`; without it only
the curve is made.
"""

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import torch
from matplotlib.figure import Figure
from pyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal

from banel_pyro import BaNEL_ELBO, Pair, Rollback
from banel_pyro.diagnostics import Trust, compare, importance, posteriordb_draws, trust
from banel_pyro.diagnostics.judge import COVERED, tempered_coverage
from banel_pyro.diagnostics.stored import corrected_spread, stored_weights
from models import data, eight_schools, kidiq, normal_normal


# Step 1: the pairs. Only the guide differs between those of one posterior.
def schools(guide: Callable[..., Any], name: str) -> Pair:
    """Eight schools with another guide."""
    model = eight_schools.noncentered_model
    return Pair(model, guide(model), data=data.eight_schools, data_plate="schools", name=name)


PAIRS: dict[tuple[str, str], Callable[[], Pair]] = {
    ("eight schools", "mean field"): eight_schools.noncentered,
    ("eight schools", "full rank"): partial(schools, AutoMultivariateNormal, "full_rank"),
    ("eight schools", "flow"): partial(schools, partial(AutoIAFNormal, num_transforms=2), "flow"),
    ("kidiq", "mean field, raw"): kidiq.raw,
    ("kidiq", "mean field"): kidiq.mean_field,
    ("kidiq", "full rank"): kidiq.full_rank,
    ("kidiq", "flow"): kidiq.flow,
}
REFERENCES = {
    "eight schools": ("eight_schools-eight_schools_noncentered", ["mu", "tau", "theta"]),
    "kidiq": ("kidiq-kidscore_momhsiq", ["beta", "sigma"]),
}


# Step 2: fit, check, and only then look at the reference. A flow at this learning rate may overflow once: it is rolled
# back, and goes on with a smaller one.
def falling(optimizer: Any, steps: int) -> Any:
    """A learning rate that falls to a thousandth, so that the guide ends at its optimum and not around it."""
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.001 ** (1 / steps))


def judged(pair: Pair, lam: float, args: argparse.Namespace) -> tuple[Trust, Any, float]:
    """What the checks say of a fit, its draws, and its k-hat."""
    result = pair.fit(
        lam=lam, steps=args.steps, lr=0.05, lr_scheduler=partial(falling, steps=args.steps), seed=args.seed,
        on_fault=Rollback(lam_factor=1.0), progress=False,
    )  # fmt: skip
    weights = importance(pair.model, pair.guide, result.rows, num_samples=args.draws, seed=args.seed)
    posterior = result.posterior(num_samples=args.draws)
    return trust(posterior, result.history, importance=weights), posterior, weights.k_hat


def against_references(args: argparse.Namespace) -> pd.DataFrame:
    """A row for each guide and lambda: what the checks say, and what the reference says."""
    rows = []
    for (name, guide), make in PAIRS.items():
        file, latents = REFERENCES[name]
        reference = posteriordb_draws(file)
        for lam in args.lams:
            with pyro.get_param_store().scope():
                torch.manual_seed(args.seed)
                found, posterior, k_hat = judged(make(), lam, args)
            table = compare(posterior, reference, var_names=latents)
            spread = found.table().loc["spread"]
            rows.append(
                {
                    "posterior": name, "guide": guide, "lam": lam, "k_hat": k_hat, "spread": spread["verdict"],
                    "covers, by the checks": spread["value"], "verdict": found.verdict,
                    "covers, by NUTS": table["coverage_95"].min(), "least sd ratio": table["sd_ratio"].min(),
                    "largest": table["sd_ratio"].max(), "mean error": table["mean_error"].abs().max(),
                }
            )  # fmt: skip
            print(f"{name}, {guide}, λ = {lam:g}: {found.verdict}", flush=True)
    return pd.DataFrame(rows)


# Step 3: the curve. One latent whose posterior is normal: fitted guides, and the exact coverage of their intervals.
def curve(args: argparse.Namespace) -> pd.DataFrame:
    """Coverage by corrected draws, exact coverage of the fitted guide, and that of the optimal one, by lambda."""
    density = normal_normal.pair().data()
    exact = normal_normal.tempered_optimum(density, lam=0.0)
    rows = []
    for lam in args.curve:
        with pyro.get_param_store().scope():
            pair = normal_normal.pair()
            elbo = BaNEL_ELBO(lam=lam, num_particles=64, vectorize_particles=True, max_plate_nesting=1)
            result = pair.fit(
                objective=elbo, steps=args.curve_steps, lr=0.05, lr_scheduler=partial(falling, steps=args.curve_steps),
                seed=args.seed, progress=False,
            )  # fmt: skip
            idata = result.posterior(num_samples=args.draws)
        row = corrected_spread(idata, stored_weights(idata), largest_k_hat=np.inf).iloc[0]
        z = idata["posterior"]["density"].to_numpy().ravel()
        low, high = (torch.as_tensor(np.quantile(z, q)) for q in (0.025, 0.975))
        of_guide = float(exact.cdf(high) - exact.cdf(low))
        rows.append(
            {
                "lam": lam, "corrected": row["coverage_95"], "stderr": row["coverage_stderr"], "of the guide": of_guide,
                "optimum": tempered_coverage(lam),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def picture(table: pd.DataFrame) -> Figure:
    """Coverage against lambda: the exact curve, and what is found."""
    figure, axis = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
    lams = np.linspace(min(-1.0, float(table["lam"].min())), 0.98, 300)
    axis.plot(lams, [100 * tempered_coverage(lam) for lam in lams], color="black", label="exact")
    axis.errorbar(
        table["lam"], 100 * table["corrected"], yerr=200 * table["stderr"], fmt="o", color="#0072B2", mfc="none",
        capsize=3, label="by corrected draws, ± 2 standard errors",
    )  # fmt: skip
    axis.axhline(100 * COVERED, color="#767676", linestyle="--", linewidth=1, label="green above")
    axis.set(xlabel="$\\lambda$", ylabel="coverage in %", title="What 95 % intervals of the posterior cover")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="lower left")
    return figure


def main(args: argparse.Namespace) -> None:
    """Tables, a picture, and whether a verdict was wrong."""
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    if os.environ.get("BANEL_DATA"):
        table = against_references(args)
        print(f"\n{table.round(2).to_string(index=False)}\n")
        table.to_csv(args.out / "references.csv", index=False)
        wrong = table[(table["verdict"] == "green") & (table["covers, by NUTS"] < COVERED)]
        names = ", ".join(f"{row.posterior}, {row.guide}, λ = {row.lam:g}" for row in wrong.itertuples())
        print(f"Guides called green whose 95 % intervals cover less than {100 * COVERED:.0f} %: {names or 'none'}.\n")
    else:
        print("BANEL_DATA is not set: reference draws are in its folder bayes/. Only the curve is made.\n")
    found = curve(args)
    print(found.round(3).to_string(index=False))
    found.to_csv(args.out / "coverage.csv", index=False)
    picture(found).savefig(args.out / "coverage.png", dpi=130)
    print(f"\nThe picture is {args.out / 'coverage.png'}, the numbers are beside it.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--lams", type=float, nargs="+", default=[0.0, 0.4], help="λ of the fits (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=6000, help="steps of each fit (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=1000, help="draws of each guide (default: %(default)s)")
    parser.add_argument(
        "--curve", type=float, nargs="+", default=[-1.0, -0.5, 0.0, 0.2, 0.3, 0.4, 0.5, 0.6],
        help="λ of the curve (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--curve-steps", type=int, default=5000, help="steps of its fits (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/trust"), help="folder for the results (default: %(default)s)"
    )
    main(parser.parse_args())
