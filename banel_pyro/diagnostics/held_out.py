r"""How well a guide predicts rows that it was not trained on."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from pyro import poutine

from banel_pyro.batches import Rows, as_rows, data_hash, num_rows
from banel_pyro.checks import integer, seed_number
from banel_pyro.diagnostics.latent import data_plate_of
from banel_pyro.diagnostics.psis import Array
from banel_pyro.diagnostics.weighted import structure_of, weighted_draws
from banel_pyro.draws import is_data
from banel_pyro.evaluate import iwae_per_datum, mean_estimate, trace_draws
from banel_pyro.pair import Pair
from banel_pyro.plates import DataPlate
from banel_pyro.run import FitResult
from banel_pyro.seeding import fork_rng, kept_rng
from banel_pyro.terms import Estimate
from banel_pyro.traces import on_plate, sample_sites, unscaled_log_prob

__all__ = ["HeldOut", "log_predictive"]


@dataclass(frozen=True)
class HeldOut:
    r"""What a guide makes of rows that it was not trained on; from :func:`log_predictive`.

    Args:
        kind: of pair: ``"global"``, ``"local"`` or ``"mixed"``. What is meant by "predictive" depends on it: see
            :func:`log_predictive`.
        per_datum: a row for each row of data, in nats: ``log_predictive`` and its Monte-Carlo error ``mcse``, ``elbo``
            as :func:`~banel_pyro.diagnostics.held_out_comparison.compare_held_out` has it; ``ess``, how many draws
            carry the mean. Where that is a handful, the logarithm is too low, and more draws are needed.
        by_draw: a row for each draw, with what it adds to the mean over rows of each score, but for a constant.
        data: hash of the rows.
        parameters: names of the parameters that were read from Pyro's param store as it was.
    """

    kind: str
    per_datum: pd.DataFrame = field(repr=False)
    by_draw: pd.DataFrame = field(repr=False)
    data: str = field(repr=False)
    parameters: frozenset[str] = field(repr=False, default=frozenset())

    @property
    def log_predictive(self) -> Estimate:
        """Mean over rows of log mean_s p(x_i | z_s), in nats per row, with its standard error over rows."""
        return mean_estimate(self.per_datum["log_predictive"].to_numpy())

    @property
    def mcse(self) -> float:
        """Monte-Carlo standard error of that mean, by the delta method, in nats per row."""
        return mean_estimate(self.by_draw["log_predictive"].to_numpy()).stderr

    @property
    def elbo(self) -> Estimate:
        """Mean over rows of the untempered ELBO, in nats per row, with its standard error over rows."""
        return mean_estimate(self.per_datum["elbo"].to_numpy())


def log_predictive(
    pair: Pair | FitResult,
    held_out: Any = None,
    *,
    num_samples: int = 1000,
    batch_size: int | None = None,
    seed: int | None = None,
) -> HeldOut:
    r"""The log predictive density of each held-out row under a guide as it is, tempered or not.

    .. math::
        \log \frac1S \sum_s p(x^*_i \mid z_s), \qquad z_s \sim q_\lambda

    No importance weights: these would undo λ, and give the same for every one.

    **With latents that all rows share** this is the density that the guide predicts a new row with. **With latents of
    a row** (an encoder) :math:`z_s \sim q_\lambda(z \mid x^*_i)` has seen the row: it is a *reconstruction score*, no
    density of x, and nothing in it pays for leaving the prior. A narrower guide mostly scores higher, up to a point
    mass. Read it beside the untempered ELBO, which does pay, as
    :func:`~banel_pyro.diagnostics.held_out_comparison.compare_held_out` does.

    In expectation the estimate is below its limit, by half the squared ``mcse`` of the row: compare at equal S only.

    Args:
        pair: a :class:`~banel_pyro.FitResult`, or a :class:`~banel_pyro.Pair` whose parameters are in the current
            param store, with ``data_plate`` named where there are not as many rows as its plate has.
        held_out: rows; by default those that were held out of training.
        num_samples: S, at least 2.
        batch_size: rows in memory at a time (all by default). The draws depend on it; S times the rows are kept.
        seed: draws inside a forked generator and leaves yours alone; None draws from yours.

    Raises:
        ValueError: without held-out rows or a data plate, for rows that the guide says nothing about, and for what
            has no importance weights (:func:`~banel_pyro.diagnostics.importance.importance`).

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     pyro.sample("z", dist.Normal(0.0, 0.5))
        >>> found = log_predictive(Pair(model, guide), torch.zeros(2), num_samples=2000, seed=0)
        >>> exact = dist.Normal(0.0, 1.25**0.5).log_prob(torch.zeros(()))
        >>> round(found.log_predictive.value, 2), round(float(exact), 2)
        (-1.03, -1.03)
    """
    integer("num_samples", num_samples, 2)
    with _scope(pair), nullcontext() if seed is None else fork_rng(seed_number(seed)):
        rows = _rows(pair, held_out)
        return _scores(pair, rows, num_samples, batch_size)


def _scores(pair: Pair | FitResult, rows: Rows, num_samples: int, batch_size: int | None) -> HeldOut:
    """Both scores of some rows at draws of the guide, whose latents of rows see those rows."""
    plate = _plate(pair, rows, batch_size)
    structure = structure_of(pair.model, pair.guide, rows, plate, batch_size)
    outer, inner = (1, num_samples) if structure.kind == "local" else (num_samples, 1)
    log_lik = np.zeros((num_samples, num_rows(rows)))
    elbo, by_draw = np.zeros(num_rows(rows)), np.zeros(num_samples)
    shared = np.zeros(num_samples)
    for draw in weighted_draws(
        pair.model, pair.guide, rows, plate, structure, draws=outer, local_draws=inner, batch_size=batch_size
    ):
        number, index = draw.shared + draw.local, draw.rows.numpy()
        log_lik[number, index] = _log_likelihood(draw.model_trace, plate)
        elbo[index] += draw.log_rows / num_samples
        by_draw[number] += draw.log_rows.sum() / num_rows(rows)
        shared[number] = draw.log_shared / _size(pair, plate)
    log_mean = iwae_per_datum(log_lik)
    ratio = np.exp(log_lik - log_mean)  # the influence of a draw on log mean p, but for a constant
    table = {"log_predictive": log_mean, "mcse": ratio.std(0, ddof=1) / math.sqrt(num_samples)}
    table |= {"ess": num_samples**2 / (ratio**2).sum(0), "elbo": elbo + shared.mean()}
    draws = pd.DataFrame({"log_predictive": ratio.mean(1), "elbo": by_draw + shared})
    names = _read_parameters(pair, rows, plate, batch_size)
    return HeldOut(structure.kind, pd.DataFrame(table), draws, data_hash(rows), names)


def _size(pair: Pair | FitResult, plate: DataPlate) -> float:
    """N, rows of the training data; not known of a pair whose plate is over the rows that there are."""
    if isinstance(pair, FitResult):
        return num_rows(pair.rows)
    return plate.size if plate.scaled else math.nan


@torch.no_grad()
def _read_parameters(pair: Pair | FitResult, rows: Rows, plate: DataPlate, batch_size: int | None) -> frozenset[str]:
    """What model and guide take from the current param store; nothing for a run that has a store of its own."""
    if isinstance(pair, FitResult) and pair.store is not None:
        return frozenset()
    with kept_rng(), poutine.trace(param_only=True) as capture:
        next(trace_draws(pair.model, pair.guide, rows, plate, num_samples=1, batch_size=batch_size))
    return frozenset(str(name) for name in capture.trace.param_nodes)


def _log_likelihood(trace: Any, plate: DataPlate) -> Array:
    """log p of what is observed in each row, masks included and scales not."""
    found: Any = 0.0
    for name, site in sample_sites(trace):
        if site["is_observed"]:
            rows = on_plate(unscaled_log_prob(site).double(), site["cond_indep_stack"], plate.name, scaled=False)
            if rows is None and is_data(site):
                raise ValueError(
                    f"site '{name}' is observed outside plate '{plate.name}', so that it belongs to no held-out row. "
                    "Put it inside the plate."
                )
            found = found + (0.0 if rows is None else rows.cpu().numpy())
    return np.asarray(found)


# ---- which rows ----------------------------------------------------------------------------------


def _scope(pair: Any) -> Any:
    if not isinstance(pair, Pair | FitResult):
        raise TypeError(f"pair is a {type(pair).__name__}: expected a FitResult of fit(), or a Pair(model, guide).")
    return pair.scope() if isinstance(pair, FitResult) else nullcontext()


def _rows(pair: Pair | FitResult, held_out: Any) -> Rows:
    """The rows to score; for a run in its type, and none that it was trained on."""
    if held_out is not None:
        rows = as_rows(held_out, "held_out")
    else:
        rows = pair.held_out if isinstance(pair, FitResult) else as_rows(pair.split().held_out)
    if not rows:
        raise ValueError(
            "held_out=None, and nothing was held out of training: pass rows, or train on Split(train, held_out)."
        )
    if not isinstance(pair, FitResult):
        return rows
    if _same(pair.rows, rows):
        raise ValueError("held_out are the rows that the run was trained on: expected rows that it has not seen.")
    return pair.checked(rows)


def _plate(pair: Pair | FitResult, rows: Rows, batch_size: int | None) -> DataPlate:
    if isinstance(pair, FitResult):
        plate = pair.plate
    else:
        plate = data_plate_of((pair.model, pair.guide), rows, batch_size, pair.data_plate)
    if plate.name is None:
        raise ValueError(
            f"the model has no plate over the {num_rows(rows)} held-out rows, so that it has no density for each of "
            "them. Write `with pyro.plate('data', N):` around what is observed, and name it: data_plate='data'."
        )
    return plate


def _same(rows: Rows, others: Rows) -> bool:
    pairs = zip(rows, others, strict=False)
    return len(rows) == len(others) and all(a.shape == b.shape and bool(torch.all(a == b)) for a, b in pairs)
