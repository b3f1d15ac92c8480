"""The posteriors that an amortised guide gives to rows, in closed form, with draws: what latent diagnostics read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from banel_pyro.batches import Rows, num_rows
from banel_pyro.diagnostics.aggregate import Conditional, LogDensities, log_aggregate
from banel_pyro.diagnostics.latent import elementwise_kl, factors, guide_site, layout_of, local_site
from banel_pyro.evaluate import Draw, trace_draws
from banel_pyro.plates import DataPlate
from banel_pyro.seeding import draw_seed
from banel_pyro.streams import SiteStreams, rows_at_a_time

__all__ = ["RowPosteriors", "row_posteriors"]

Array: TypeAlias = NDArray[np.floating[Any]]

SAME = 1e-4
"""How far, relative to its size, a log density may move between draws or rows: rounding in float32."""


@dataclass(frozen=True)
class RowPosteriors:
    """The posterior of one latent for each row.

    Args:
        site: its name.
        labels: of the numbers of the latent, such as ``z[3]``.
        means: (row, number).
        variances: (row, number).
        entropies: of each row in nats, (row,).
        densities: at draws of each row.
    """

    site: str
    labels: list[str]
    means: Array
    variances: Array
    entropies: Array
    densities: LogDensities


@torch.no_grad()
def row_posteriors(
    model: Any, guide: Any, rows: Rows, plate: DataPlate, *, site: str | None, num_samples: int, batch_size: int | None
) -> RowPosteriors:
    """Run a pair ``num_samples`` times for all rows, and read the posteriors of a latent inside the data plate.

    The draws are the same for every ``batch_size``, but for the exceptions of
    :class:`~banel_pyro.streams.SiteStreams`.

    Args:
        model: the model.
        guide: the guide.
        rows: the data.
        plate: the data plate.
        site: the latent; None for the only one.
        num_samples: draws of each row.
        batch_size: rows in memory at a time (all by default).

    Raises:
        ValueError: if the latent has no KL by dimension, is masked, has no finite mean and variance, depends on other
            latents, or has a prior that is not the same for all rows.
    """
    step = rows_at_a_time(num_rows(rows), batch_size)
    parts: list[_Part] = []
    with SiteStreams(draw_seed()):
        for draw in trace_draws(model, guide, rows, plate, num_samples=num_samples, batch_size=step):
            if draw.number == 0:
                parts.append(_Part(draw, local_site(draw, plate, site), plate))
            parts[draw.chunk].add(draw, parts[0])
    conditionals = [part.conditional for part in parts]
    points = torch.cat([torch.stack(part.points) for part in parts], 1)
    joint, marginal = log_aggregate(conditionals, points.flatten(0, 1))
    own, prior = (np.concatenate([np.stack(getattr(part, n)) for part in parts], 1) for n in ("own", "prior"))
    means, variances, kl = (np.concatenate([getattr(p, n) for p in parts]) for n in ("means", "variances", "kl"))
    densities = LogDensities(own, prior, marginal.reshape(own.shape), joint.reshape(own.shape[:2]), kl)
    first = parts[0]
    return RowPosteriors(first.name, first.layout.labels, means, variances, _entropies(parts, own), densities)


class _Part:
    """A chunk of rows: their posteriors as the first draw shows them, and the log densities of all draws."""

    def __init__(self, draw: Draw, name: str, plate: DataPlate) -> None:
        self.name, self.plate = name, plate
        self.layout = layout_of(draw, name, plate)
        self.kl = _numbers(elementwise_kl(draw, name, plate))  # refuses what does not factorise
        self.fn = factors(name, "guide", guide_site(draw, name)["fn"])
        self.means = self._moment("mean")
        self.variances = self._moment("variance")
        self.probe = self.layout.table(draw.model_trace.nodes[name]["value"])[:1]
        self.at_probe: Tensor | None = None
        self.points: list[Tensor] = []
        self.own: list[Array] = []
        self.prior: list[Array] = []

    def add(self, draw: Draw, first: _Part) -> None:
        """Take in a draw, if it shows the posteriors of the first draw and the prior of the first part."""
        site, density = draw.model_trace.nodes[self.name], guide_site(draw, self.name)
        self._refuse_mask(site["mask"], density["mask"])
        prior, fn = factors(self.name, "model", site["fn"]), factors(self.name, "guide", density["fn"])
        own = self.layout.table(fn.log_prob(site["value"]))
        if not _same(own, self.layout.table(self.fn.log_prob(site["value"]))):
            raise ValueError(
                f"site '{self.name}': its density in the guide differs between draws, so that it depends on other "
                "latents, and its density given the row alone is an integral over those. Expected a guide that "
                "computes it from the row; for a hierarchy, name the latent that is drawn first with site=."
            )
        self._check_prior(self.layout.table(prior.log_prob(self.layout.points(first.probe)))[0], first)
        self.points.append(self.layout.table(site["value"]))
        self.own.append(_numbers(own))
        self.prior.append(_numbers(self.layout.table(prior.log_prob(site["value"]))))

    @property
    def conditional(self) -> Conditional:
        """The posteriors as a function of points."""
        fn, layout = self.fn, self.layout
        return Conditional(len(self.means), lambda points: layout.table(fn.log_prob(layout.points(points))))

    def entropies(self) -> Array | None:
        """In closed form, (row,), or None."""
        try:
            entropy = self.fn.entropy()
        except NotImplementedError:
            return None
        total: Array = _numbers(self.layout.table(entropy)).sum(-1)
        return total

    def _moment(self, name: str) -> Array:
        try:
            values = _numbers(self.layout.table(getattr(self.fn, name)))
        except NotImplementedError:
            values = np.full(1, np.nan)
        if not np.isfinite(values).all():
            raise ValueError(
                f"site '{self.name}' is a {type(self.fn).__name__} in the guide, which has no finite {name}: active "
                "units and probes need one. Expected such as Normal or Bernoulli."
            )
        return values

    def _refuse_mask(self, *masks: Any) -> None:
        for mask in masks:
            if mask is not None and not bool(torch.as_tensor(mask).all()):
                raise ValueError(
                    f"site '{self.name}' is masked for some rows, which have no posterior then: expected rows that all "
                    "count. Pass those only, such as data[mask]."
                )

    def _check_prior(self, at_probe: Tensor, first: _Part) -> None:
        """All rows, and all draws, have to give one point the same prior density."""
        if first.at_probe is None:
            first.at_probe = at_probe[:1]
        if not _same(at_probe, first.at_probe.expand_as(at_probe)):
            raise ValueError(
                f"site '{self.name}': its prior differs between rows or draws, so that the aggregate posterior has no "
                "one prior to be compared with: expected a prior that depends on no row and no other latent."
            )


def _same(found: Tensor, first: Tensor) -> bool:
    return torch.allclose(found, first, rtol=SAME, atol=SAME)


def _numbers(values: Tensor) -> Array:
    found: Array = values.detach().double().cpu().numpy()
    return found


def _entropies(parts: list[_Part], own: Array) -> Array:
    """In closed form, or by Monte Carlo where there is none."""
    known = [part.entropies() for part in parts]
    found = [entropies for entropies in known if entropies is not None]
    return np.concatenate(found) if len(found) == len(known) else -own.sum(-1).mean(0)
