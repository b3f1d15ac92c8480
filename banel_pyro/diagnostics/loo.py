r"""Leave-one-out cross-validation from the draws of a guide: how well a model predicts a row that it has not seen."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from banel_pyro.diagnostics.psis import Array, k_hat_threshold, smooth
from banel_pyro.evaluate import mean_estimate
from banel_pyro.inference_data import ArviZ, group, group_names
from banel_pyro.run import FitResult
from banel_pyro.terms import Estimate

if TYPE_CHECKING:
    from arviz_stats.utils import ELPDData

__all__ = ["Loo", "loo"]


@dataclass(frozen=True)
class Loo:
    r"""How well a model predicts each row from all others, by importance sampling; from :func:`loo`.

    It speaks of the model and its **exact** posterior, at whatever λ the draws were made: the weights undo the guide.
    So it compares models, and must not be used to choose λ; for that there is
    :func:`~banel_pyro.diagnostics.held_out_comparison.compare_held_out`.

    Args:
        draws: S.
        elpd: sum over rows of log p(x_i | all other rows), in nats, with its standard error over rows.
        mcse: Monte-Carlo standard error of ``elpd``, which is that of finite draws, in nats.
        p_loo: effective number of parameters: what the sum would be with each row itself among the data, less
            ``elpd``, with its Monte-Carlo standard error. The draws are weighted there as well, so that it is that of
            the exact posterior too (ArviZ takes them as they are).
        threshold: what :math:`\hat k` has to stay below: min(1 − 1/log₁₀ S, 0.7).
        per_datum: a row for each row of data: ``elpd``, ``mcse`` and ``p_loo`` in nats, ``k_hat``. A row that is masked
            whole is left out.
    """

    draws: int
    elpd: Estimate
    mcse: float
    p_loo: Estimate
    threshold: float
    per_datum: pd.DataFrame = field(repr=False)

    @property
    def k_hat(self) -> float:
        r""":math:`\hat k` of the worst row."""
        return float(self.per_datum["k_hat"].max())

    @property
    def failing(self) -> np.ndarray[Any, np.dtype[np.intp]]:
        """Numbers of the rows of data that cannot be left out with these draws."""
        return self.per_datum.index[self.per_datum["k_hat"] > self.threshold].to_numpy()

    @property
    def passes(self) -> bool:
        """Whether all of them can, so that ``elpd`` is to be believed."""
        return not self.failing.size

    def to_arviz(self) -> ELPDData:
        """As what ``arviz_stats.compare`` takes, to compare models by their rows."""
        from arviz_stats.utils import ELPDData  # heavy; of both lines of ArviZ

        rows = {"row": self.per_datum.index.to_numpy()}
        elpd, k_hat = (xr.DataArray(self.per_datum[n].to_numpy(), rows, ["row"]) for n in ("elpd", "k_hat"))
        return ELPDData(
            "loo", self.elpd.value, self.elpd.stderr, self.p_loo.value, self.draws, len(self.per_datum), "log",
            not self.passes, self.threshold, elpd, k_hat, approx_posterior=True,
        )  # fmt: skip

    def __str__(self) -> str:
        rows = len(self.per_datum)
        return "\n".join(
            [
                f"leave-one-out over {rows} rows, from {self.draws} draws",
                f"elpd {self.elpd.value:.2f} ± {self.elpd.stderr:.2f} nats over rows, ± {self.mcse:.2f} by Monte Carlo",
                f"p_loo {self.p_loo.value:.2f} ± {self.p_loo.stderr:.2f} by Monte Carlo",
                f"k-hat: {rows - self.failing.size} of {rows} rows pass, the worst at {self.k_hat:.2f} of at most "
                f"{self.threshold:.2f}",
                "of the exact posterior, at whatever λ the draws were made: not to choose λ by",
            ]
        )


def loo(draws: ArviZ | FitResult) -> Loo:
    r"""Leave-one-out predictive density by Pareto-smoothed importance sampling, corrected for the guide.

    .. math::
        \text{elpd} = \sum_i \log \frac{\sum_s w_{is}\, p(x_i \mid z_s)}{\sum_s w_{is}}, \qquad
        \log w_{is} = -\log p(x_i \mid z_s) + \log p(x, z_s) - \log q(z_s), \qquad z_s \sim q

    The first term takes row i out of the data, the other two make the guide the posterior: without them the result
    would be that of the guide. The weights are smoothed for each row, and :math:`\hat k` says whether they can be. A
    row is left out with all that is observed in it. Masks count, scales do not.

    **It does not depend on λ**, but for its Monte-Carlo error: at every λ it estimates the same number, that of the
    exact posterior. Never choose λ by it.

    Only models with latents that all rows share and without parameters that are learnt. A latent of one row has
    nothing but its prior left when the row is gone, and a parameter has learnt from the row.

    Args:
        draws: from :func:`~banel_pyro.to_arviz` with ``log_likelihood`` among its groups, or a
            :class:`~banel_pyro.FitResult` to draw 1,000 from.

    Raises:
        TypeError: for something else.
        ValueError: for latents of rows, learnt parameters, point masses, auxiliary latents of the guide, no data
            plate, some of the rows only, terms that belong to no row, or fewer than 100 draws.

    References:
        Vehtari et al. 2017, arXiv 1507.04544; Magnusson et al. 2019, arXiv 1904.10679.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from banel_pyro import to_arviz
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", 3):
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     pyro.sample("z", dist.Normal(x.sum() / 4, 0.5))
        >>> draws = to_arviz(model, guide, torch.zeros(3), num_samples=1000, groups=["log_likelihood"], seed=0)
        >>> exact = 3 * dist.Normal(0.0, (1 + 1 / 3) ** 0.5).log_prob(torch.zeros(()))
        >>> round(loo(draws).elpd.value, 1), round(float(exact), 1)
        (-3.2, -3.2)
    """
    idata = draws.posterior(groups=["log_likelihood"]) if isinstance(draws, FitResult) else draws
    if not hasattr(idata, "groups") or not hasattr(idata, "attrs"):
        raise TypeError(f"draws is a {type(draws).__name__}: expected an ArviZ object of to_arviz, or a FitResult.")
    _refuse(idata)
    stats = group(idata, "sample_stats")
    log_p, log_q, total = (stats[name].to_numpy().ravel() for name in ("log_p", "log_q", "log_lik"))
    log_lik = _log_likelihood(idata, str(idata.attrs["data_plate"]))
    _refuse_rest(log_lik, total)
    seen = (log_lik != 0).any(axis=0)
    return _from_ratios(log_lik[:, seen], log_p - log_q, np.flatnonzero(seen))


def _from_ratios(log_lik: Array, log_w: Array, rows: np.ndarray[Any, np.dtype[np.intp]]) -> Loo:
    """LOO from log likelihoods (draw, row) and the log weights (draw) that make the guide the posterior."""
    threshold = k_hat_threshold(len(log_w))
    left_out = smooth(_log_ratios(log_lik, log_w))
    elpd, influence = _log_mean(left_out.log_weights, log_lik)
    lppd, other = _log_mean(smooth(log_w).log_weights[:, None], log_lik)
    columns = {"elpd": elpd, "mcse": _norm(influence), "p_loo": lppd - elpd, "k_hat": left_out.k_hat}
    mean, parameters = mean_estimate(elpd), float((lppd - elpd).sum())
    return Loo(
        draws=len(log_w),
        elpd=Estimate(len(elpd) * mean.value, len(elpd) * mean.stderr),
        mcse=float(_norm(influence.sum(1))),  # the rows share their draws
        p_loo=Estimate(parameters, float(_norm((other - influence).sum(1)))),
        threshold=threshold,
        per_datum=pd.DataFrame(columns, index=rows),
    )


def _norm(influence: Array) -> Array:
    """The Monte-Carlo standard error of what each draw moves by its influence."""
    return np.asarray(np.sqrt((influence**2).sum(axis=0)))


def _log_ratios(log_lik: Array, log_w: Array) -> Array:
    """Log weights (draw, row) that make the guide the posterior without the row."""
    return log_w[:, None] - log_lik


def _log_mean(log_weights: Array, log_values: Array) -> tuple[Array, Array]:
    """Log of the mean over draws under normalised weights, and the influence of each draw on it (delta method)."""
    found = np.asarray(np.logaddexp.reduce(log_weights + log_values, axis=0))
    return found, np.asarray(np.exp(log_weights) * np.expm1(log_values - found))


def _log_likelihood(idata: ArviZ, plate: str) -> Array:
    """Log likelihoods (draw, row): of all that is observed in the row."""
    found: Any = 0.0
    for values in group(idata, "log_likelihood").data_vars.values():
        if plate in values.dims:
            found = found + values.sum([d for d in values.dims if d not in ("chain", "draw", plate)])
    return np.asarray(found.stack(sample=("chain", "draw")).transpose("sample", plate).to_numpy(), dtype=float)


# ---- what has no leave-one-out -------------------------------------------------------------------


def _refuse(idata: ArviZ) -> None:
    missing = sorted({"posterior", "sample_stats", "log_likelihood"} - set(group_names(idata)))
    if missing:
        raise ValueError(f"draws have no {missing}: write groups=['log_likelihood'] in to_arviz or posterior().")
    if "model_parameters" not in idata.attrs or "densities" not in idata.attrs:
        raise ValueError(
            "draws have no attributes 'densities' and 'model_parameters', which say what was learnt and from what: "
            "expected draws from banel_pyro.to_arviz, or a file they were saved to."
        )
    plate = str(idata.attrs["data_plate"])
    if not plate or not any(plate in v.dims for v in group(idata, "log_likelihood").data_vars.values()):
        raise ValueError(
            "the model observes nothing in a plate over data points, so that there are no rows to leave out. Write "
            "`with pyro.plate('data', N):` around what is observed, and name it with data_plate= if need be."
        )
    _refuse_guide(idata, plate)
    if parameters := json.loads(idata.attrs["model_parameters"]):
        raise ValueError(
            f"the model has the parameters {parameters}, which have learnt from all rows: leaving one out afterwards "
            "does not make them forget it. Hold data out before training (compare_held_out), or give them a prior."
        )
    if subsampled := json.loads(idata.attrs.get("subsampled", "[]")):
        raise ValueError(
            f"the draws are of some of the rows of the plates {subsampled}, so that log p(x, z) is not that of the "
            "posterior. Draw with all rows of the training data."
        )


def _refuse_guide(idata: ArviZ, plate: str) -> None:
    points, posterior = json.loads(idata.attrs["point_masses"]), group(idata, "posterior")
    if points:
        raise ValueError(
            f"guide sites {points} are point masses, which have no density and so no importance weights: expected a "
            "guide that draws them, such as AutoNormal."
        )
    latents = [name for sites in json.loads(idata.attrs["densities"]).values() for name in sites]
    if auxiliary := [name for name in latents if name not in posterior]:
        raise ValueError(
            f"guide sites {auxiliary} are no latents of the model: log q of its latents alone is an integral over "
            "them, so there are no importance weights. Use a guide without them."
        )
    if local := [name for name in latents if plate in posterior[name].dims]:
        raise ValueError(
            f"latents {local} belong to one row of plate '{plate}' each: without the row nothing but the prior is left "
            "of them, which no weights of these draws reach. Hold rows out instead: compare_held_out."
        )


def _refuse_rest(log_lik: Array, total: Array) -> None:
    if not math.isfinite(float(np.abs(log_lik).sum() + np.abs(total).sum())):
        raise ValueError("log likelihoods are NaN or infinite at some draws. Check the supports of guide and model.")
    rest, size = float(np.abs(log_lik.sum(axis=1) - total).max()), float(np.abs(total).max())
    if rest > 1e-3 + 1e-4 * size:  # more than rounding in float32
        raise ValueError(
            f"the log likelihood has up to {rest:.3g} nats more or less than its rows have together: something is "
            "observed outside the data plate, a pyro.factor, or a sum over discrete sites of all rows. Put all of it "
            "into the plate, with pyro.sample(..., obs=...)."
        )
    if not log_lik.any():
        raise ValueError("every row is masked: expected something that is observed. Check the model's masks.")
