r"""Draws of a guide with their importance weights, split where model and guide are.

What a pair draws once for a data set has a weight :math:`w(g)`, what it draws for row :math:`i` a weight
:math:`w_i` of its own. Nothing here multiplies the weights of independent rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from pyro import poutine
from torch import Tensor

from banel_pyro.batches import Rows, num_rows
from banel_pyro.evaluate import Arguments, chunks, drawn_guide, outside, replayed_model
from banel_pyro.modules import evaluation_mode
from banel_pyro.plates import DataPlate, one_line, tell_autoguide
from banel_pyro.seeding import kept_rng
from banel_pyro.traces import GuideDensity, Site, guide_densities, on_plate, sample_sites, unscaled_log_prob

__all__ = ["Structure", "WeightedDraw", "structure_of", "weighted_draws"]

Array: TypeAlias = NDArray[np.floating[Any]]

SAME = 1e-4
"""How far, relative to its size, a log density outside the data plate may move with the rows: rounding in float32."""


@dataclass(frozen=True)
class Structure:
    """Which densities of a guide are of one row of the data plate, and which of the data set.

    Args:
        local: names of densities inside the data plate.
        shared: names of the others, joint densities over rows among them.
    """

    local: frozenset[str]
    shared: frozenset[str]

    @property
    def kind(self) -> str:
        """``"global"``, ``"local"`` or ``"mixed"``."""
        return "mixed" if self.local and self.shared else "local" if self.local else "global"


class WeightedDraw(NamedTuple):
    """One draw for one chunk of rows.

    Args:
        shared: number of the draw outside the data plate.
        local: number of the draw inside it, given that one.
        rows: numbers of the rows.
        log_shared: log weight of what lies outside the data plate, in nats.
        log_rows: log weights (row) of what lies inside it, in nats; of no rows without a data plate.
        model_trace: the model at this draw.
    """

    shared: int
    local: int
    rows: Tensor
    log_shared: float
    log_rows: Array
    model_trace: Any


def structure_of(model: Any, guide: Any, rows: Rows, plate: DataPlate, batch_size: int | None) -> Structure:
    """What a pair's guide has for each row, and what for the whole data set, from one draw of it.

    Raises:
        ValueError: for point masses, auxiliary latents, plates that are subsampled or written as loops, latents in a
            plate that might be the data plate, or a joint density over rows of which only some are in memory.
    """
    with kept_rng(), tell_autoguide(guide, plate), evaluation_mode(model, guide):
        index, batch = next(iter(chunks(rows, batch_size)))
        try:
            model_trace, guide_trace = _traces(model, guide, plate, index, batch, shared=None)
        except (ValueError, RuntimeError) as error:
            if len(index) == num_rows(rows):
                raise
            raise ValueError(
                f"model or guide fails on {len(index)} of {num_rows(rows)} rows ({one_line(error)}). A guide that "
                "draws rows jointly, as AutoMultivariateNormal does, has one weight for all: leave batch_size out."
            ) from error
    _refuse_plates(model_trace, guide_trace, plate, num_rows(rows))
    local = set()
    densities = guide_densities(model_trace, guide_trace)
    for name, density in densities.items():
        _refuse_density(name, density, model_trace)
        inside = [plate.name in [frame.name for frame in site["cond_indep_stack"]] for site in density.sites]
        if all(inside):
            local.add(name)
        elif any(inside) and len(index) < num_rows(rows):
            raise ValueError(
                f"guide site '{name}' draws jointly what belongs to the rows of plate '{plate.name}', so that it has "
                f"one weight for all {num_rows(rows)} of them, not one for {len(index)}. Leave batch_size out."
            )
    return Structure(frozenset(local), frozenset(densities.keys() - local))


def weighted_draws(
    model: Any, guide: Any, rows: Rows, plate: DataPlate, structure: Structure, *, draws: int, local_draws: int,
    batch_size: int | None,
) -> Iterator[WeightedDraw]:  # fmt: skip
    """Draws with their weights: for each chunk of rows, each draw of what is shared, and each local draw given it.

    Args:
        model: the model.
        guide: the guide.
        rows: the data.
        plate: the data plate.
        structure: from :func:`structure_of`.
        draws: draws of what lies outside the data plate; every chunk of rows sees the same.
        local_draws: draws of what lies inside it, for each of these.
        batch_size: rows in memory at a time (all by default).

    Raises:
        ValueError: if what lies outside the data plate depends on the rows or on what is local to them.
    """
    with tell_autoguide(guide, plate), evaluation_mode(model, guide):
        shared: list[Any] = []
        outer: dict[int, float] = {}
        for index, batch in chunks(rows, batch_size):
            if not shared:
                shared = [_shared(guide, plate, index, batch, structure) for _ in range(draws)]
            for number, local in ((g, k) for g in range(draws) for k in range(local_draws)):
                traces = _traces(model, guide, plate, index, batch, shared[number])
                log_shared, log_rows = _log_weights(*traces, plate, structure, len(index))
                _check_shared(outer.setdefault(number, log_shared), log_shared, plate)
                yield WeightedDraw(number, local, index, outer[number], log_rows, traces[0])


@torch.no_grad()
def _shared(guide: Any, plate: DataPlate, index: Tensor, batch: Arguments, structure: Structure) -> Any:
    """A draw of what lies outside the data plate."""
    if not structure.shared:
        return None
    with plate.rows(index if batch else None):
        return outside(drawn_guide(guide, batch), plate.name)


@torch.no_grad()
def _traces(model: Any, guide: Any, plate: DataPlate, index: Tensor, batch: Arguments, shared: Any) -> tuple[Any, Any]:
    """Model and guide at a draw, with log densities."""
    with plate.rows(index if batch else None):
        replayed = guide if shared is None else poutine.replay(guide, trace=shared)
        return replayed_model(model, drawn_guide(replayed, batch), batch)


def _log_weights(
    model_trace: Any, guide_trace: Any, plate: DataPlate, structure: Structure, size: int
) -> tuple[float, Array]:
    """log p - log q outside the data plate, and inside it by row. Masks count, scales do not."""
    terms = [(1.0, site, True) for _, site in sample_sites(model_trace)]
    for name, density in guide_densities(model_trace, guide_trace).items():
        terms += [(-1.0, site, name in structure.local) for site in density.sites]
    log_shared, log_rows = 0.0, np.zeros(size)
    for sign, site, local in terms:
        value = unscaled_log_prob(site).double()
        rows = on_plate(value, site["cond_indep_stack"], plate.name, scaled=False) if local else None
        if rows is None:
            log_shared += sign * float(value.sum())
        else:
            log_rows += sign * rows.cpu().numpy()
    return log_shared, log_rows


# ---- what has no importance weights --------------------------------------------------------------


def _refuse_density(name: str, density: GuideDensity, model_trace: Any) -> None:
    if isinstance(density.site["fn"], dist.Unit):
        return
    if density.is_point:
        raise ValueError(
            f"guide site '{name}' is a point mass, which has no density and so no importance weights: expected a "
            "guide that draws it, such as AutoNormal. What is not to be inferred can be a parameter of the model."
        )
    if not density.deltas and name not in model_trace.nodes:
        raise ValueError(
            f"guide site '{name}' is auxiliary: log q of the model's latents alone is an integral over it, so there "
            "are no importance weights. Use a guide without it."
        )


def _refuse_plates(model_trace: Any, guide_trace: Any, plate: DataPlate, size: int) -> None:
    for trace in (model_trace, guide_trace):
        for name, site in sample_sites(trace):
            for frame in site["cond_indep_stack"]:
                _refuse_frame(name, site, frame, plate, size)


def _refuse_frame(name: str, site: Site, frame: Any, plate: DataPlate, size: int) -> None:
    if frame.name != plate.name and frame.vectorized and (frame.full_size or frame.size) != frame.size:
        raise ValueError(
            f"site '{name}' is in plate '{frame.name}', which is subsampled ({frame.size} of {frame.full_size}): the "
            "weights need all of it. Drop subsample_size= and subsample=."
        )
    if frame.name == plate.name and not frame.vectorized:
        raise ValueError(
            f"site '{name}' is in plate '{frame.name}', which is a loop over rows (for i in pyro.plate): its rows "
            f"have weights of their own only in `with pyro.plate('{frame.name}', {size}):`."
        )
    if plate.name is None and frame.size == size and not site["is_observed"]:
        raise ValueError(
            f"latent '{name}' is in plate '{frame.name}' of {size} elements, as many as there are rows: is it the "
            f"plate over data points? Then its rows have weights of their own. Name it: data_plate='{frame.name}'."
        )


def _check_shared(first: float, other: float, plate: DataPlate) -> None:
    if not abs(first - other) <= SAME * max(1.0, abs(first)) and first != other:
        raise ValueError(
            f"log p - log q outside plate '{plate.name}' is {first:.6g} nats for some rows and {other:.6g} for others "
            "at the same draw: what belongs to a row must be inside the plate, and the guide of what is shared must "
            "not depend on which rows it sees. Leave batch_size out, or change the pair."
        )
