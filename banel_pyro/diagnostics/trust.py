"""Can I trust this posterior? Green, amber or red per check, each with its number and what to try."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtr  # type: ignore[import-untyped]

from banel_pyro.diagnostics import judge
from banel_pyro.diagnostics.calibrated import Calibration
from banel_pyro.diagnostics.importance import Importance
from banel_pyro.diagnostics.judge import Check, Verdict
from banel_pyro.diagnostics.psis import MIN_DRAWS, k_hat_threshold
from banel_pyro.diagnostics.reference import compare
from banel_pyro.diagnostics.spread import active_units, densities_of
from banel_pyro.diagnostics.stored import (
    corrected_spread,
    discrete_latents,
    is_local,
    kind_of,
    number_of_rows,
    point_masses,
    stored_weights,
)
from banel_pyro.evaluate import iwae_per_datum, mean_estimate
from banel_pyro.inference_data import ArviZ, group

__all__ = ["Trust", "trust"]

ROWS = 0.9
"""Share of rows with weights of their own whose k-hat is looked at: some rows are always odd."""


@dataclass(frozen=True)
class Trust:
    """What the checks of a posterior found; from :func:`trust`.

    Args:
        checks: one after the other.
    """

    checks: tuple[Check, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of all checks: green only if every one is."""
        return judge.worst(check.verdict for check in self.checks)

    def table(self) -> pd.DataFrame:
        """A row per check, with the fields of :class:`Check`."""
        rows = pd.DataFrame([asdict(check) for check in self.checks])
        return rows.set_index("name")

    def to_json(self) -> dict[str, Any]:
        """The same for JSON, with null for what is not finite."""
        checks = [asdict(check) for check in self.checks]
        for check in checks:
            check |= {k: v for k, v in check.items() if not isinstance(v, float)} | {
                k: v if math.isfinite(v) else None for k, v in check.items() if isinstance(v, float)
            }
        return {"verdict": self.verdict, "checks": checks}

    def __str__(self) -> str:
        lines = [f"can this posterior be trusted? {self.verdict}"]
        for check in self.checks:
            lines.append(f"{check.verdict:5}  {check.name}: {check.found}")
            if check.advice:
                lines.append(fill(check.advice, 100, initial_indent=7 * " ", subsequent_indent=7 * " "))
        return "\n".join(lines)


def trust(
    idata: ArviZ,
    history: pd.DataFrame | None = None,
    *,
    importance: Importance | None = None,
    reference: ArviZ | None = None,
    calibration: Calibration | None = None,
) -> Trust:
    r"""Judge a posterior by all that is known of it: its draws, its training, weights, a reference, simulations.

    | check | number | green | red |
    | --- | --- | --- | --- |
    | training | rise of the untempered ELBO in the last quarter | 0.25 nats, or 2 standard errors | 10 times |
    | importance weights | :math:`\hat k`, or that of 90 % of rows | min(1 − 1/log₁₀ S, 0.7) | above 1 |
    | spread | least coverage of 95 % intervals by corrected draws | 90 % | below 80 % |
    | λ | coverage that λ leaves to a normal posterior | 90 % | below 80 % |
    | gap | log p(x) − ELBO | 1 nat | never |
    | latent dimensions | that the data move | half | none |
    | reference | least coverage of its draws by 95 % intervals | 90 % | below 80 % |
    | calibration | ranks of simulated true values | uniform at 1 % | coverage below 80 % |

    Between the two it is amber, as is an sd 1.25 times too large, and a check that could not be made: nobody has
    looked. A posterior is green if all checks are. :math:`\hat k` alone never makes it so, because a guide that is a
    little too narrow, or far too wide, passes it: the spread is judged by what the weights *say*, by λ, by a reference
    and by simulation. The lines are ours, drawn where 95 % intervals miss twice and four times as often as they say.

    Args:
        idata: draws with their log densities, from :func:`~banel_pyro.to_arviz`, ``FitResult.posterior`` or a run
            folder; weights are looked at from 100 draws on.
        history: of the run, a row per log point, as in ``FitResult.history``; training is not judged without it.
        importance: from :func:`~banel_pyro.diagnostics.importance`: weights of more draws, and the only ones of a pair
            with shared and local latents; else those of ``idata`` are taken.
        reference: what is taken for the truth, as for :func:`~banel_pyro.diagnostics.compare`.
        calibration: from :func:`~banel_pyro.diagnostics.calibrate`.

    Raises:
        ValueError: for a reference with other latents.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from banel_pyro import to_arviz
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def narrow(x):
        ...     pyro.sample("z", dist.Normal(x / 2, 0.5))
        >>> found = trust(to_arviz(model, narrow, torch.ones(1), seed=0))
        >>> found.verdict, found.table().loc["spread", "found"]
        ('amber', '95 % intervals of z cover 83 % of the corrected posterior (its sd is 0.72 of the right one)')
    """
    checks = [_training(idata, history), *_weights(idata, importance), _lam(idata, history), *_latents(idata)]
    if reference is not None:
        checks.append(judge.by_reference(_compared(idata, reference)))
    if calibration is not None:
        checks.append(judge.by_calibration(calibration))
    return Trust(tuple(checks))


def _compared(idata: ArviZ, reference: ArviZ) -> pd.DataFrame:
    table, discrete = compare(idata, reference), set(discrete_latents(idata))
    return table[[str(label).partition("[")[0] not in discrete for label in table.index]]


# ---- the number of each check ---------------------------------------------------------------------


def _training(idata: ArviZ, history: pd.DataFrame | None) -> Check:
    rows = 0 if history is None else len(history)
    if history is None or rows < 8:
        return judge.not_judged(
            "training", f"There {'is no history' if not rows else f'are {rows} log points'}, so nobody saw it settle.",
            "Pass history=, of a run with at least 8 log points (log_every=).",
        )  # fmt: skip
    size = number_of_rows(idata)
    if size is None and idata.attrs["data_plate"]:
        return judge.not_judged("training", "The draws do not say of how many rows they are.", "Draw them anew.")
    scale = 1 if is_local(idata) else size or 1  # of latents that data points share there is one posterior
    elbo = history["elbo"].to_numpy(dtype=float) * scale
    quarter = rows // 4
    rise = float(elbo[-quarter:].mean() - elbo[-2 * quarter : -quarter].mean())
    noise = float(np.diff(elbo[-2 * quarter :]).std()) / math.sqrt(quarter)  # of both means; a trend is no noise
    held_out = history["val_elbo"].dropna().to_numpy() if "val_elbo" in history else np.zeros(0)
    return judge.by_training(rise, noise, _fall(held_out * scale))


def _fall(elbo: np.ndarray[Any, Any]) -> float:
    """How far the last of some noisy numbers are below the best, beyond two standard errors; means of three."""
    if len(elbo) < 6:
        return math.nan
    means = np.convolve(elbo, np.ones(3) / 3, mode="valid")
    noise = float(np.diff(elbo).std()) / math.sqrt(3)  # of the difference of two such means
    return max(0.0, float(means.max() - means[-1]) - 2 * noise)


def _weights(idata: ArviZ, importance: Importance | None) -> Iterator[Check]:
    """The checks that need importance weights."""
    points, stats = point_masses(idata), group(idata, "sample_stats")
    draws = stats.sizes["chain"] * stats.sizes["draw"]
    if importance is not None:
        yield from _given_weights(importance, idata)
    elif points:
        yield judge.Check(
            "spread", "red", f"the posterior of {', '.join(points)} is a point", 0.0, judge.COVERED, "it has a spread",
            "A point has no spread, and no weights to check it by.", "Take a guide with a density.",
        )  # fmt: skip
    elif draws < MIN_DRAWS:
        yield judge.not_judged(
            "importance weights", f"{draws} draws are too few.", f"Draw {MIN_DRAWS} or more, better 1000."
        )
    elif not np.isfinite(stats["log_p"] - stats["log_q"]).all():
        yield judge.Check(
            "importance weights", "red", "log p(x, z) or log q(z) is not finite", math.nan, math.nan, "they are finite",
            "The guide draws what the model gives no probability.", "Look at the supports of guide and model.",
        )  # fmt: skip
    elif kind_of(idata) == "mixed":
        yield judge.not_judged(
            "importance weights", "Shared latents and those of rows: each shared draw needs several of the latter.",
            "Run importance(model, guide, data), and pass what it returns as importance=.",
        )  # fmt: skip
    else:
        yield from _stored_weights(idata, draws)


def _stored_weights(idata: ArviZ, draws: int) -> Iterator[Check]:
    found, threshold = stored_weights(idata), k_hat_threshold(draws)
    local, k_hat = found.plate is not None, found.k_hat
    if not k_hat.size:
        yield judge.not_judged("importance weights", "Every row is masked.", "Draw for rows that are not.")
        return
    passing = k_hat <= threshold
    yield judge.by_k_hat(_most(k_hat), threshold, _rows(passing) if local else "")
    table = corrected_spread(idata, found, largest_k_hat=threshold)
    yield judge.by_spread(table, threshold, passing=float(np.mean(passing)))
    yield from _discrete(idata)
    log_w = found.log_w[:, found.seen] if local else found.log_w
    evidence = iwae_per_datum(log_w)
    gaps = evidence - log_w.mean(axis=0)
    # of one posterior by the influence of its draws, of many by how they differ
    errors = mean_estimate(gaps if local else np.exp(log_w - evidence) - log_w).stderr
    yield judge.by_gap(float(gaps.mean()), errors, "per row" if local else "in all")


def _discrete(idata: ArviZ) -> Iterator[Check]:
    if names := discrete_latents(idata):
        yield judge.not_judged(
            "discrete latents", f"{', '.join(names)}: of few values there are no intervals.",
            "Compare probabilities with a reference, or sum the sites out.",
        )  # fmt: skip


def _rows(passing: np.ndarray[Any, Any]) -> str:
    return f" at most, in {100 * ROWS:.0f} % of rows; {int((~passing).sum())} of {len(passing)} fail"


def _most(k_hat: np.ndarray[Any, Any]) -> float:
    """The k-hat that most rows stay below; ``higher`` because infinite ones have no midpoint."""
    return float(np.quantile(k_hat, ROWS, method="higher")) if k_hat.ndim else float(k_hat)


def _given_weights(given: Importance, idata: ArviZ) -> Iterator[Check]:
    """The same of weights that were drawn for it."""
    rows = given.per_datum["k_hat"].to_numpy() if "k_hat" in given.per_datum else np.zeros(0)
    local = given.kind == "local"
    k_hat = _most(rows) if local else max([given.k_hat, *([_most(rows)] if len(rows) else [])])
    yield judge.by_k_hat(k_hat, given.threshold, _rows(rows <= given.threshold) if local else "")
    yield _given_spread(given, idata)
    yield from _discrete(idata)
    rows_of = max(len(given.per_datum), 1) if local else 1
    yield judge.by_gap(given.gap.value / rows_of, given.gap.stderr / rows_of, "per row" if local else "in all")


def _given_spread(given: Importance, idata: ArviZ) -> Check:
    if given.sds is None:
        return judge.not_judged("spread", "importance() was asked for no draws.", "Call it with draws=True.")
    latents = _intervals(given.sds, idata)
    table = latents[latents["k_hat"] <= given.threshold].copy()
    # with the corrected sd, and centres as far apart: exact where both are normal
    reach, shift = 1.959964 * table["ratio"], table["shift"]
    table["coverage_95"] = ndtr(shift + reach) - ndtr(shift - reach)
    passing = len(table) / max(len(latents), 1)
    if given.kind == "local" and not table.empty:  # as for stored weights, a mean over rows and its lowest tenth
        whose = [_of_a_row(str(label)) for label in table.index]
        low = table["coverage_95"].groupby(whose).quantile(0.1)
        table = table.groupby(whose)[["ratio", "coverage_95"]].mean().assign(coverage_low=low)
    return judge.by_spread(table, given.threshold, passing=passing if len(latents) else 1.0)


def _intervals(table: pd.DataFrame, idata: ArviZ) -> pd.DataFrame:
    """The numbers, such as ``z[3]``, of latents that have intervals: not of discrete ones, and of what is computed."""
    names = {name for members in densities_of(idata).values() for name in members} - set(discrete_latents(idata))
    return table[[str(label).partition("[")[0] in names for label in table.index]]


def _of_a_row(label: str) -> str:
    """``z[0]`` for ``z[17, 0]``: the dimension without the row, which is the first of the plates."""
    name, bracket, inside = label.partition("[")
    rest = inside.rstrip("]").partition(", ")[2]
    return f"{name}[{rest}]" if bracket and rest else name


def _lam(idata: ArviZ, history: pd.DataFrame | None) -> Check:
    lams = [] if history is None or history.empty else _last_lams(history)
    lams = lams or _stored_lams(idata)
    if not lams:
        return judge.not_judged("λ", "Neither history nor draws say which λ it was.", "Pass history=.")
    checks = [judge.by_lam(lam) for lam in (max(lams), min(lams))]
    return max(checks, key=lambda check: (judge.ORDER.index(check.verdict), abs(check.value - 0.95)))


def _last_lams(history: pd.DataFrame) -> list[float]:
    columns = [name for name in history if str(name) == "lam" or str(name).startswith("lam[")]
    return [float(value) for value in history[columns].iloc[-1] if math.isfinite(value)]


def _stored_lams(idata: ArviZ) -> list[float]:
    """λ of the configuration that draws of a run carry, where it is a constant."""
    try:
        value = json.loads(str(idata.attrs.get("lam", "{}")))
    except json.JSONDecodeError:
        return []
    value = value.get("value") if isinstance(value, Mapping) else value
    values = value.values() if isinstance(value, Mapping) else [value]
    return [float(v) for v in values if isinstance(v, int | float)]


def _latents(idata: ArviZ) -> Iterator[Check]:
    plate = idata.attrs["data_plate"]
    if point_masses(idata) or not is_local(idata) or (number_of_rows(idata) or 0) < 2:
        return
    posterior = group(idata, "posterior")
    names = [name for names in densities_of(idata).values() for name in names if name in posterior]
    total = sum(posterior[name].isel({"chain": 0, "draw": 0, plate: 0}).size for name in names)
    active = sum(active_units(idata, name, plate) for name in names)
    stats = group(idata, "sample_stats")
    kl = float((stats["log_q_datum"] - stats["log_p_datum"] + stats["log_lik_datum"]).mean())
    yield judge.by_active_units(active, int(total), kl)
