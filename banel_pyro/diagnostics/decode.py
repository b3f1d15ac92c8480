"""What a model makes of its latents: draws from its prior, and a walk along each latent dimension."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
import xarray as xr
from numpy.typing import NDArray
from pyro import poutine
from torch import Tensor

from banel_pyro.batches import Rows, as_rows
from banel_pyro.checks import integer
from banel_pyro.diagnostics.latent import chosen_site, data_plate_of
from banel_pyro.modules import evaluation_mode
from banel_pyro.plates import DataPlate
from banel_pyro.seeding import fork_rng
from banel_pyro.traces import Site, base_distribution, sample_sites

__all__ = ["STEPS", "latent_traversal", "prior_samples"]

Array = NDArray[np.floating[Any]]

STEPS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
"""Prior standard deviations from the prior's mean."""


def prior_samples(
    model: Any,
    data: Any,
    *,
    num_samples: int = 16,
    observed: str | None = None,
    mean: bool = True,
    all_rows: bool = False,
    data_plate: str | None = None,
    seed: int | None = None,
) -> xr.DataArray:
    r"""What the model makes of latents drawn from its prior: for the first row, or for all rows at once.

    Args:
        model: the model.
        data: rows that say how the model is called; what it observes of them is drawn anew.
        num_samples: draws.
        observed: name of the observed site; may be left out if there is one only.
        mean: the mean :math:`E[x \mid z]` of what is observed, such as grey values, and not a draw of it.
        all_rows: whether a draw is of all rows, not of the first; so it is in any case without a data plate.
        data_plate: name of the plate over data points, found by its size if left out.
        seed: draws inside a forked generator and leaves yours alone; None draws from yours.

    Returns:
        With dims (draw, ...), in units of the data.

    Raises:
        ValueError: for an unknown site, or one whose distribution has no mean.
    """
    integer("num_samples", num_samples)
    rows = as_rows(data)
    with nullcontext() if seed is None else fork_rng(seed):
        plate = data_plate_of((model,), rows, None, data_plate)
        with _conditioned(model, rows, plate, all_rows=all_rows) as run:
            found = [_of_observed(run({}), observed, mean=mean) for _ in range(num_samples)]
    return xr.DataArray(np.stack(found), dims=("draw", *(f"x_dim_{i}" for i in range(found[0].ndim))), name="x")


def latent_traversal(
    model: Any,
    data: Any,
    *,
    site: str | None = None,
    dims: Sequence[int] | None = None,
    sds: Sequence[float] = STEPS,
    num_samples: int = 1,
    observed: str | None = None,
    data_plate: str | None = None,
    seed: int | None = None,
) -> xr.DataArray:
    r"""What the model expects to see, :math:`E[x \mid z]`, as one latent dimension moves and the others stay.

    The others stay at the mean of their prior. All else is as for the first row; other latents are drawn.

    Args:
        model: the model.
        data: rows that say how the model is called.
        site: the latent; may be left out if there is one only.
        dims: numbers of the dimensions to move, in this order; all by default.
        sds: how far, in prior standard deviations from the prior's mean.
        num_samples: draws of other latents to average over.
        observed: name of the observed site; may be left out if there is one only.
        data_plate: name of the plate over data points, found by its size if left out.
        seed: draws inside a forked generator and leaves yours alone; None draws from yours.

    Returns:
        With dims (latent, sd, ...), in units of the data, and coordinates such as ``z[3]`` and -2.0.

    Raises:
        ValueError: for an unknown site or dimension, or a prior without a mean and standard deviation of its own.
    """
    rows = as_rows(data)
    integer("num_samples", num_samples)
    with nullcontext() if seed is None else fork_rng(seed):
        plate = data_plate_of((model,), rows, None, data_plate)
        with _conditioned(model, rows, plate) as run:
            name, prior = _prior(run, site)
            chosen = _check_dims(name, dims, prior.mean.numel())
            values = np.array(
                [
                    [_expected(run, name, _moved(name, prior, k, sd), observed, num_samples) for sd in sds]
                    for k in chosen
                ]
            )
    labels = [name if prior.mean.numel() == 1 else f"{name}[{k}]" for k in chosen]
    pixels = [f"x_dim_{i}" for i in range(values.ndim - 2)]
    return xr.DataArray(values, dims=("latent", "sd", *pixels), coords={"latent": labels, "sd": list(sds)}, name="x")


# ---- running the model with latents of one's own -------------------------------------------------

Run = Callable[[dict[str, Tensor]], Any]
"""From values of latents to a trace of the model."""


@contextmanager
def _conditioned(model: Any, rows: Rows, plate: DataPlate, *, all_rows: bool = False) -> Iterator[Run]:
    """The model of unobserved data, for the first row; for all rows where asked, or where there is no data plate."""
    one = plate.name is not None and not all_rows
    batch = tuple(row[:1] for row in rows) if one else rows
    index = torch.zeros(1, dtype=torch.long) if one else None

    def run(values: dict[str, Tensor]) -> Any:
        with torch.no_grad(), plate.rows(index):
            return poutine.trace(poutine.condition(poutine.uncondition(model), data=values)).get_trace(*batch)

    with evaluation_mode(model):
        yield run


def _of_observed(trace: Any, observed: str | None, *, mean: bool) -> Array:
    """What a run of the model gives at the observed site, without the axis of the one row."""
    data = {
        name: site
        for name, site in sample_sites(trace)
        if site["infer"].get("was_observed") and not site["infer"].get("_deterministic")
        if not isinstance(site["fn"], dist.Unit)
    }
    name = chosen_site(observed, list(data), "observed sites", "observed")
    fn, value = data[name]["fn"], data[name]["value"]
    if mean:
        try:
            value = fn.mean.expand(value.shape)
        except NotImplementedError:
            value = torch.full_like(value, torch.nan)
        if not torch.isfinite(value).all():
            kind = type(base_distribution(fn)).__name__
            raise ValueError(f"observed site '{name}': its {kind} has no mean. Use prior_samples(..., mean=False).")
    batch = value.dim() - fn.event_dim
    shape = [n for i, n in enumerate(value.shape) if i >= batch or n != 1]
    return np.asarray(value.detach().reshape(shape).double().cpu().numpy())


class _Prior(NamedTuple):
    mean: Tensor
    sd: Tensor
    support: Any


def _prior(run: Run, site: str | None) -> tuple[str, _Prior]:
    """The latent that was asked for, with the mean and standard deviation of its prior."""
    draws: list[Any] = [poutine.util.prune_subsample_sites(run({})) for _ in range(2)]
    first, second = draws
    latent = [name for name, found in sample_sites(first) if not found["infer"].get("was_observed")]
    name = chosen_site(site, latent, "latents of the model", "site")
    (mean, sd), again = (_moments(trace.nodes[name]) for trace in (first, second))
    if not all(map(torch.equal, (mean, sd), again)):
        raise ValueError(
            f"site '{name}' depends on other latents, so that its prior has no sd of its own: expected "
            "one that depends on none. Name another one with site=."
        )
    support = first.nodes[name]["fn"].support
    if support.is_discrete or not torch.isfinite(mean).all() or not torch.isfinite(sd).all():
        raise ValueError(f"site '{name}': expected a continuous prior with a finite mean and standard deviation.")
    return name, _Prior(mean, sd, support)


def _moments(site: Site) -> tuple[Tensor, Tensor]:
    shape = site["value"].shape
    return site["fn"].mean.expand(shape), site["fn"].stddev.expand(shape)


def _check_dims(name: str, dims: Sequence[int] | None, count: int) -> list[int]:
    chosen = list(range(count)) if dims is None else list(dims)
    if not chosen or not all(isinstance(k, int) and 0 <= k < count for k in chosen):
        raise ValueError(f"dims={dims!r}: expected numbers of the {count} dimensions of '{name}', 0 to {count - 1}.")
    return chosen


def _moved(name: str, prior: _Prior, dim: int, sds: float) -> Tensor:
    """The prior's mean with one dimension moved."""
    value = prior.mean.clone()
    value.view(-1)[dim] += sds * prior.sd.reshape(-1)[dim]
    if not prior.support.check(value).all():
        raise ValueError(f"sds has {sds:g}, which leads out of the support of '{name}': expected smaller steps.")
    return value


def _expected(run: Run, name: str, value: Tensor, observed: str | None, num_samples: int) -> Array:
    draws = [_of_observed(run({name: value}), observed, mean=True) for _ in range(num_samples)]
    return np.asarray(np.mean(draws, axis=0))
