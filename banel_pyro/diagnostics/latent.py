"""What the latent dimensions of a pair carry: the KL of each to its prior."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
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

__all__ = ["Layout", "chosen_site", "data_plate_of", "elementwise_kl", "factors", "guide_site"]
__all__ += ["kl_per_dimension", "layout_of", "local_site"]

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
            name = local_site(draw, plate, site)
            kls = elementwise_kl(draw, name, plate).detach().double().cpu().numpy()
            for label, kl in zip(layout_of(draw, name, plate).labels, kls.T, strict=True):
                total = totals.setdefault(label, np.zeros(num_rows(rows)))
                total[draw.rows.numpy()] += kl / num_samples
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


def local_site(draw: Draw, plate: DataPlate, site: str | None) -> str:
    """The latent that was asked for, or the only one inside the data plate.

    Raises:
        ValueError: for another one, or a guide that draws its sites in another order than the model.
    """
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


@dataclass(frozen=True)
class Layout:
    """Where the numbers of a latent lie: in tensors of its own shape, and in tables (row, number).

    Args:
        name: of the site.
        shape: of its value, with the data plate and its event.
        axis: of the data plate in it, counted from the end.
        events: axes of its event.
    """

    name: str
    shape: tuple[int, ...]
    axis: int
    events: int

    @property
    def labels(self) -> list[str]:
        """The label of each number, such as ``z[3]``."""
        inner = len(self.shape) - self.events  # axes before it are of other plates, or padding
        axes = [i for i in range(len(self.shape)) if i != len(self.shape) + self.axis]
        lengths = [self.shape[i] for i in axes if self.shape[i] != 1 or i >= inner]
        return [f"{self.name}[{', '.join(map(str, i))}]" if i else self.name for i in np.ndindex(*lengths)]

    def table(self, values: Tensor) -> Tensor:
        """Values (..., shape), or what broadcasts to that, as (..., row, number)."""
        lead = max(values.dim() - len(self.shape), 0)
        values = values.expand(*values.shape[:lead], *self.shape).movedim(self.axis, lead)
        return values.reshape(*values.shape[: lead + 1], -1)

    def points(self, numbers: Tensor) -> Tensor:
        """Points (point, number) as values (point, shape) that hold for all rows: the data plate has length 1."""
        others = list(self.shape)
        del others[self.axis]
        return numbers.reshape(len(numbers), 1, *others).movedim(1, self.axis)


def layout_of(draw: Draw, name: str, plate: DataPlate) -> Layout:
    """The layout of a latent inside the data plate."""
    site = draw.model_trace.nodes[name]
    events = site["fn"].event_dim
    return Layout(name, tuple(site["value"].shape), _frame(site, plate).dim - events, events)


def elementwise_kl(draw: Draw, name: str, plate: DataPlate) -> Tensor:
    """The KL of each number of a latent to its prior, (row, number); 0 where it is masked.

    Raises:
        ValueError: if the site does not factorise, or has no KL in closed form.
    """
    prior, site = draw.model_trace.nodes[name], guide_site(draw, name)
    p, q = (factors(name, side, fn) for side, fn in (("model", prior["fn"]), ("guide", site["fn"])))
    try:
        kl = kl_divergence(q, p).expand(prior["value"].shape)
    except NotImplementedError as error:
        raise ValueError(
            f"site '{name}' has no KL in closed form from {type(q).__name__} to {type(p).__name__}: expected a "
            "pair of distributions that torch.distributions.kl knows."
        ) from error
    if site["mask"] is not None:
        mask = torch.as_tensor(site["mask"])
        kl = torch.where(mask.reshape(*mask.shape, *[1] * prior["fn"].event_dim), kl, 0.0)
    return layout_of(draw, name, plate).table(kl)


def guide_site(draw: Draw, name: str) -> Site:
    """The guide's site that draws a latent; an autoguide draws it under another name.

    Raises:
        ValueError: if the latent is a point, a part of a joint density, or changes variables.
    """
    density = guide_densities(draw.model_trace, draw.guide_trace).get(name)
    if density is None or not density.unconstrained or density.is_point:
        raise ValueError(
            f"site '{name}' has no density of its own in the guide over its own space (it is a point, a part of a "
            "joint density, or changes variables): expected a guide that draws it directly."
        )
    return density.site


def factors(name: str, side: str, fn: Any) -> Any:
    """The distribution of each number of a site, below ``to_event`` and ``expand``.

    Raises:
        ValueError: if it does not factorise over them.
    """
    base = fn
    while isinstance(base, dist.Independent | dist.ExpandedDistribution):
        base = base.base_dist
    if base.event_shape:
        raise ValueError(
            f"site '{name}' is a {type(base).__name__} in the {side}, which does not factorise over dimensions: "
            "expected independent ones, such as Normal(loc, scale).to_event(1)."
        )
    return base
