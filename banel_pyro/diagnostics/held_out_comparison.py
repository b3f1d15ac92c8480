r"""Runs side by side by how well they predict rows that none was trained on: what values of λ are compared by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from banel_pyro.checks import seed_number
from banel_pyro.diagnostics.held_out import HeldOut, log_predictive
from banel_pyro.evaluate import mean_estimate, paired_difference
from banel_pyro.run import FitResult
from banel_pyro.seeding import draw_seed
from banel_pyro.terms import Estimate

__all__ = ["compare_held_out"]

SCORES = ("log_predictive", "elbo")


def compare_held_out(
    results: Mapping[str, FitResult | HeldOut],
    held_out: Any = None,
    *,
    num_samples: int = 1000,
    batch_size: int | None = None,
    seed: int | None = None,
) -> pd.DataFrame:
    r"""Runs compared by the two things that λ may be chosen by: held-out predictive density, and untempered ELBO.

    The ELBO of a row is that of the rows that are held out, with what belongs to all rows divided by the N rows of the
    training data, as in ``val_elbo``:

    .. math::
        E_q[\log p(x^*_i, z_i \mid g) - \log q(z_i \mid g)] + \frac1N E_q[\log p(g) - \log q(g)]

    The differences are paired: row by row, and draw by draw under common random numbers, since every run has the same
    seed. ``_stderr`` is over rows, ``_mcse`` of finite draws. Where ``_mcse`` is not much smaller, take more draws.

    Corrected quantities (``log_evidence``, :func:`~banel_pyro.diagnostics.loo.loo`, IWAE with many draws) have no place
    here: at every λ they estimate the same number.

    Args:
        results: runs by label, or what :func:`~banel_pyro.diagnostics.held_out.log_predictive` returned for them under
            one seed; the first one is what the others are compared with. Runs that were made in scopes of the param
            store which have ended have left their parameters there: score them inside.
        held_out: rows; by default those that were held out of training, which must be the same in all runs.
        num_samples: S, at least 2.
        batch_size: rows in memory at a time (all by default).
        seed: of all runs; None draws one.

    Returns:
        A row for each run; for each of ``log_predictive`` (which with latents of a row is no predictive density: see
        :func:`~banel_pyro.diagnostics.held_out.log_predictive`) and ``elbo``, in nats per row: ``NAME``,
        ``NAME_stderr``, ``NAME_mcse``, and of the difference ``NAME_difference``, ``NAME_difference_stderr``,
        ``NAME_difference_mcse`` (NaN in the first row).

    Raises:
        TypeError: for something else than runs.
        ValueError: for fewer than two runs, held-out rows that differ or were trained on, other numbers of draws, runs
            that would read each other's parameters, and as :func:`~banel_pyro.diagnostics.held_out.log_predictive`.
    """
    _check_results(results)
    seed = draw_seed() if seed is None else seed_number(seed)
    options: dict[str, Any] = {"num_samples": num_samples, "batch_size": batch_size, "seed": seed}
    found = {
        label: item if isinstance(item, HeldOut) else log_predictive(item, held_out, **options)
        for label, item in results.items()
    }
    _check_comparable(found, {label for label, item in results.items() if isinstance(item, HeldOut)})
    first, *_ = found
    table = {label: _row(scores, found[first], first=label == first) for label, scores in found.items()}
    return pd.DataFrame.from_dict(table, orient="index")


def _row(scores: HeldOut, other: HeldOut, *, first: bool) -> dict[str, float]:
    """Both scores of a run, and their differences from another one."""
    row: dict[str, float] = {}
    for name in SCORES:
        by_row, by_draw = scores.per_datum[name].to_numpy(), scores.by_draw[name].to_numpy()
        row |= _columns(name, mean_estimate(by_row), mean_estimate(by_draw))
        rows = paired_difference(by_row, other.per_datum[name].to_numpy())
        draws = paired_difference(by_draw, other.by_draw[name].to_numpy())
        change = _columns(f"{name}_difference", rows, draws)
        row |= dict.fromkeys(change, math.nan) if first else change
    return row


def _columns(name: str, rows: Estimate, draws: Estimate) -> dict[str, float]:
    return {name: rows.value, f"{name}_stderr": rows.stderr, f"{name}_mcse": draws.stderr}


def _check_results(results: Any) -> None:
    if not isinstance(results, Mapping) or len(results) < 2:
        raise ValueError(
            f"results is a {type(results).__name__}: expected at least two runs by label, such as "
            "{'λ = 0': result, 'λ = 0.4': other}."
        )
    for label, item in results.items():
        if not isinstance(item, FitResult | HeldOut):
            raise TypeError(
                f"results['{label}'] is a {type(item).__name__}: expected a FitResult, or what log_predictive returns."
            )


def _check_comparable(found: Mapping[str, HeldOut], scored: set[str]) -> None:
    """Refuse other rows or draws than those of the first, and runs whose parameters are in one place."""
    (first, one), *others = found.items()
    for label, other in others:
        if one.data != other.data:
            raise ValueError(
                f"runs '{first}' and '{label}' have other held-out rows: the difference would be that of the rows. "
                "Pass held_out, the same rows for all."
            )
        if len(one.by_draw) != len(other.by_draw):
            raise ValueError(
                f"runs '{first}' and '{label}' have {len(one.by_draw)} and {len(other.by_draw)} draws: expected as "
                "many in all, under one seed. Give log_predictive the same num_samples."
            )
    taken: dict[str, str] = {}
    for label in found.keys() - scored:
        for name in found[label].parameters:
            if taken.setdefault(name, label) != label:
                raise ValueError(
                    f"runs '{taken[name]}' and '{label}' both read the parameter '{name}' from the current param "
                    "store, which holds that of one of them. Train each in `with pyro.get_param_store().scope():`, "
                    "call log_predictive(result, seed=0) inside it, and pass what that returns."
                )
