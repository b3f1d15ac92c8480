"""What the latent dimensions of a pair carry: the KL of each to its prior."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pandas as pd
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import kl_divergence

from banel_pyro.batches import Rows, as_rows, num_rows
from banel_pyro.checks import check_callable, integer
from banel_pyro.evaluate import Draw, mean_estimate, trace_draws
from banel_pyro.modules import evaluation_mode
from banel_pyro.plates import DataPlate, find_data_plate
from banel_pyro.seeding import fork_rng
from banel_pyro.traces import Site, guide_densities, sample_sites

__all__ = ["chosen_site", "data_plate_of", "kl_per_dimension"]

Array = NDArray[np.floating[Any]]


def kl_per_dimension(
    model: Any,
    guide: Any,
    data: Any,
    *,
    site: str | None = None,
    num_samples: int = 1,
    batch_size: int | None = None,
    data_plate: str | None = None,
    seed: int | None = None,
) -> pd.DataFrame:
    r"""KL of each latent dimension to its prior, averaged over data points, in nats per data point.

    .. math::
        \text{kl}_k = \frac1N \sum_n \mathrm{KL}\big(q(z_{nk} \mid x_n) \,\|\, p(z_{nk})\big)

    in closed form, for a site that factorises over its dimensions in model and guide: then these add up to the site's
    KL. Where the site depends on other latents, it is averaged over draws of those. A dimension at 0 is unused.

    Args:
        model: the model.
        guide: the guide.
        data: rows to condition on.
        site: a latent inside the data plate; may be left out if there is one only.
        num_samples: draws to average over; one is exact where the site depends on no other latent.
        batch_size: rows in memory at a time (all by default).
        data_plate: name of the plate over data points, found by its size if left out.
        seed: draws inside a forked generator and leaves yours alone; None draws from yours.

    Returns:
        A row for each dimension, such as ``z[3]``, with ``kl`` and its standard error over data points, ``stderr``.

    Raises:
        ValueError: if the site does not factorise, has no KL in closed form, or lies outside the data plate.

    Example:
        >>> import torch, pyro
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(torch.tensor([0.0, 2.0]), 1.0).to_event(1))
        >>> kl_per_dimension(model, guide, torch.zeros(5))["kl"].to_dict()
        {'z[0]': 0.0, 'z[1]': 2.0}
    """
    integer("num_samples", num_samples)
    rows = as_rows(data)
    totals: dict[str, Array] = {}
    with nullcontext() if seed is None else fork_rng(seed):
        plate = data_plate_of((model, guide), rows, batch_size, data_plate)
        for draw in trace_draws(model, guide, rows, plate, num_samples=num_samples, batch_size=batch_size):
            for label, kl in _elementwise_kl(draw, _local_site(draw, plate, site), plate):
                total = totals.setdefault(label, np.zeros(num_rows(rows)))
                total[draw.rows.numpy()] += kl.detach().double().cpu().numpy() / num_samples
    estimates = [mean_estimate(total) for total in totals.values()]
    return pd.DataFrame({"kl": [e.value for e in estimates], "stderr": [e.stderr for e in estimates]}, index=[*totals])


# ---- one number of a site at a time --------------------------------------------------------------


def data_plate_of(pair: tuple[Any, ...], rows: Rows, batch_size: int | None, name: str | None) -> DataPlate:
    """The plate over data points of a model, which is the first of the pair."""
    size = num_rows(rows)
    if batch_size is not None:
        integer("batch_size", batch_size)
    for side, function in zip(("model", "guide"), pair, strict=False):
        check_callable(side, function, rows)
    first = tuple(row[: batch_size or size] for row in rows)
    with fork_rng(0), evaluation_mode(*pair):  # looking for the plate runs the model, but not on your stream
        return find_data_plate(pair[0], first, size, name, training=False)


def _local_site(draw: Draw, plate: DataPlate, site: str | None) -> str:
    """The latent that was asked for, or the only one inside the data plate."""
    latent = [name for name, s in sample_sites(draw.model_trace) if not s["is_observed"]]
    drawn = [name for name, _ in sample_sites(draw.guide_trace) if name in latent]
    local = [name for name in latent if _frame(draw.model_trace.nodes[name], plate) is not None]
    name = chosen_site(site, local, "latents inside the data plate", "site")
    if drawn != latent:
        raise ValueError(
            f"site '{name}': the guide draws its sites in the order {drawn} and the model in the order {latent}, so "
            "that a KL in closed form, given the latents before it, is not that of the pair. Reorder the guide."
        )
    return name


def _frame(site: Site, plate: DataPlate) -> Any:
    return next((f for f in site["cond_indep_stack"] if f.name == plate.name and f.vectorized), None)


def chosen_site(name: str | None, known: Sequence[str], what: str, option: str) -> str:
    """The site of that name, or the only one that is known.

    Raises:
        ValueError: for another name, or none where there are several.
    """
    if name is None and len(known) == 1:
        return known[0]
    if name not in known:
        raise ValueError(f"{option}={name!r}: the {what} are {list(known)}; name one of them with {option}=.")
    return str(name)


def _elementwise_kl(draw: Draw, name: str, plate: DataPlate) -> Iterator[tuple[str, Tensor]]:
    """The KL of each number of a site to its prior, by its label: a tensor over the rows in the data plate."""
    prior, site = draw.model_trace.nodes[name], _density(draw, name)
    p, q = (_factors(name, side, fn) for side, fn in (("model", prior["fn"]), ("guide", site["fn"])))
    try:
        kl = kl_divergence(q, p).expand(prior["value"].shape)
    except NotImplementedError as error:
        raise ValueError(
            f"site '{name}' has no KL in closed form from {type(q).__name__} to {type(p).__name__}: expected a "
            "pair of distributions that torch.distributions.kl knows."
        ) from error
    events = prior["fn"].event_dim
    if site["mask"] is not None:
        mask = torch.as_tensor(site["mask"])
        kl = torch.where(mask.reshape(*mask.shape, *[1] * events), kl, 0.0)
    frame = _frame(prior, plate)
    columns = kl.movedim(kl.dim() - events + frame.dim, 0)
    shape = [n for i, n in enumerate(columns.shape[1:]) if n != 1 or i >= columns.dim() - 1 - events]
    for index, column in zip(np.ndindex(*shape), columns.reshape(len(columns), -1).T, strict=True):
        yield f"{name}[{', '.join(map(str, index))}]" if index else name, column


def _density(draw: Draw, name: str) -> Site:
    """The guide's site that draws a latent; an autoguide draws it under another name."""
    density = guide_densities(draw.model_trace, draw.guide_trace).get(name)
    if density is None or not density.unconstrained or density.is_point:
        raise ValueError(
            f"site '{name}' has no density of its own in the guide over its own space (it is a point, a part of a "
            "joint density, or changes variables): expected a guide that draws it directly."
        )
    return density.site


def _factors(name: str, side: str, fn: Any) -> Any:
    """The distribution of each number of a site, below ``to_event`` and ``expand``."""
    base = fn
    while isinstance(base, dist.Independent | dist.ExpandedDistribution):
        base = base.base_dist
    if base.event_shape:
        raise ValueError(
            f"site '{name}' is a {type(base).__name__} in the {side}, which does not factorise over dimensions: "
            "expected independent ones, such as Normal(loc, scale).to_event(1)."
        )
    return base
