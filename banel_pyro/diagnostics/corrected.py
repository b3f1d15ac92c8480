"""Posterior draws of a guide corrected by importance weights, and each sd beside its corrected sd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from banel_pyro.diagnostics.psis import Array, resampled
from banel_pyro.diagnostics.spread import labelled
from banel_pyro.diagnostics.weighted import WeightedDraw
from banel_pyro.draws import Table, event_dim_of
from banel_pyro.inference_data import ArviZ, from_datasets
from banel_pyro.plates import DataPlate
from banel_pyro.traces import Site, sample_sites

__all__ = ["Drawn"]

GUIDE, CHOSEN = "posterior", "chosen"


class Drawn:
    """The latents at the draws of a guide, kept until their weights are known.

    Where a pair has several local draws for each shared one, the first is the guide's, and another is chosen for each
    row in proportion to its weight.

    Args:
        draws: draws in all.
        kind: of pair: ``"global"``, ``"local"`` or ``"mixed"``.
        local_draws: for each shared draw of a mixed pair.
        plate: the data plate.
        size: rows of data.
    """

    def __init__(self, draws: int, kind: str, local_draws: int, plate: DataPlate, size: int) -> None:
        self.table = Table(draws, plate, size)
        self.kind, self.plate, self._last = kind, plate, local_draws - 1
        self._keys, self._values = torch.zeros(0), dict[str, Tensor]()
        self._computed: set[str] = set()  # outside the plate from what may be inside it

    def add(self, draw: WeightedDraw) -> None:
        """Keep the latents of a draw for one chunk of rows."""
        trace, number = draw.model_trace, draw.local if self.kind == "local" else draw.shared
        if self.kind != "global":
            self._computed |= {
                name
                for name, site in sample_sites(trace)
                if site["infer"].get("_deterministic") and not self._inside(site)
            }
        if self.kind != "mixed" or draw.local == 0:
            self.table.add_latents(GUIDE, number, trace, draw.rows)
        if self.kind == "mixed":
            self._choose(draw)
            if draw.local == self._last:
                for name, site in sample_sites(trace):
                    trace.nodes[name] = {**site, "value": self._values[name]}
                self.table.add_latents(CHOSEN, number, trace, draw.rows)

    def _inside(self, site: Site) -> bool:
        return self.plate.name in [frame.name for frame in site["cond_indep_stack"]]

    def _choose(self, draw: WeightedDraw) -> None:
        """Take over the rows whose weight wins: the largest log weight plus Gumbel noise is one drawn by weight."""
        uniform = torch.rand(len(draw.rows), dtype=torch.float64).clamp(min=1e-300)
        keys = torch.as_tensor(draw.log_rows) - (-uniform.log()).log()
        if draw.local == 0:
            self._keys, self._values = keys, {name: site["value"] for name, site in sample_sites(draw.model_trace)}
            return
        wins = keys > self._keys
        self._keys = torch.where(wins, keys, self._keys)
        for name, site in sample_sites(draw.model_trace):
            frame = next((f for f in site["cond_indep_stack"] if f.name == self.plate.name), None)
            if frame is not None:
                self._values[name] = _rows_replaced(self._values[name], site, frame, wins)

    def corrected(self, log_weights: Array, attrs: dict[str, Any]) -> ArviZ:
        """Draws resampled by their weights: as many as there are, all of equal weight.

        Args:
            log_weights: normalised (draw,), or (draw, row) for a local pair.
            attrs: attributes of the result.
        """
        chosen = xr.DataArray(resampled(log_weights), dims=self._dims(log_weights))
        draws = self._dataset(CHOSEN if self.kind == "mixed" else GUIDE)
        picked = {name: array.isel(draw=chosen).transpose(*array.dims) for name, array in draws.data_vars.items()}
        dataset = xr.Dataset(picked, attrs=attrs).expand_dims("chain")
        coords = {dim: np.arange(n) for dim, n in dataset.sizes.items()}
        return from_datasets({"posterior": dataset.assign_coords(coords)}, attrs)

    def sds(self, log_weights: Array, k_hat: float, by_row: Array | None) -> pd.DataFrame:
        """Standard deviations of the guide and corrected ones, by latent number.

        Args:
            log_weights: normalised (draw,), or (draw, row) for a local pair.
            k_hat: of the weights that a latent outside the data plate is corrected by.
            by_row: of those of a latent inside it (row), or None if that is the same.
        """
        guide, chosen = (self._dataset(g) for g in (GUIDE, CHOSEN if self.kind == "mixed" else GUIDE))
        weights = xr.DataArray(np.exp(log_weights), dims=self._dims(log_weights))
        inside = k_hat if by_row is None else xr.DataArray(by_row, dims=[str(self.plate.name)])
        table: dict[str, dict[str, float]] = {}
        for name, draws in chosen.data_vars.items():
            sd, mean = guide[name].std("draw", ddof=1), (weights * draws).sum("draw")
            variance = (weights * (draws - mean) ** 2).sum("draw") / (1 - (weights**2).sum("draw"))
            found = xr.Dataset({"sd": sd, "psis_sd": variance**0.5, "ratio": sd / variance**0.5})
            found["shift"] = (guide[name].mean("draw") - mean) / variance**0.5
            found["k_hat"] = xr.zeros_like(sd, dtype=float) + (inside if self.plate.name in sd.dims else k_hat)
            table |= labelled(str(name), found.transpose(*sd.dims))
        return pd.DataFrame.from_dict(table, orient="index")

    def _dims(self, log_weights: Array) -> list[str]:
        return ["draw", str(self.plate.name)][: log_weights.ndim]

    def _dataset(self, group: str) -> xr.Dataset:
        """Draws (draw, ...) in numbers, without what is computed outside the plate from what may be inside it."""
        dims, arrays = self.table.dims.get(group, {}), self.table.arrays(group)
        kept = {name: array for name, array in arrays.items() if name not in self._computed}
        return xr.Dataset({name: (("draw", *dims[name]), array) for name, array in kept.items()})


def _rows_replaced(value: Tensor, site: Site, frame: Any, wins: Tensor) -> Tensor:
    """A value with the rows that win taken from a site."""
    frames = {f.dim: f for f in site["cond_indep_stack"] if f.vectorized}
    axis = value.dim() - event_dim_of(site, value, frames) + frame.dim
    if axis < 0 or value.shape[axis] != len(wins):
        return value
    mask = wins.to(value.device).reshape([-1 if i == axis else 1 for i in range(value.dim())])
    return torch.where(mask, site["value"], value)
