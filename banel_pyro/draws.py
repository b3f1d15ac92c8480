"""A table of draws: what traces say, by group and variable, filled chunk by chunk."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from pyro import poutine
from torch import Tensor

from banel_pyro.plates import DataPlate
from banel_pyro.traces import Site, guide_densities, on_plate, sample_sites, unscaled_log_prob

__all__ = ["WITHOUT_DRAWS", "Table", "event_dim_of", "is_data"]

Array: TypeAlias = NDArray[Any]

WITHOUT_DRAWS = ("observed_data", "constant_data")
"""Groups that hold data: there is one of them, not one a draw."""


class _LogProb(NamedTuple):
    """log density of a site in nats: summed, and by row of the data plate."""

    total: float
    rows: Array | None


class Table:
    """Arrays (draw, ...) by group and variable, with named dims.

    Args:
        draws: draws in all.
        plate: the data plate.
        size: rows of data, 0 if there are none.
        names: by variable, names for its axes that are no plates, in order; ``NAME_dim_0`` and so on by default.
    """

    def __init__(
        self, draws: int, plate: DataPlate, size: int, names: Mapping[str, str | Sequence[str]] | None = None
    ) -> None:
        self.draws, self.plate, self.size = draws, plate, size
        self.names = {name: [given] if isinstance(given, str) else list(given) for name, given in (names or {}).items()}
        self.dims: dict[str, dict[str, list[str]]] = {}
        self.densities: dict[str, list[str]] = {}
        self.points: set[str] = set()
        self.variables: set[str] = set()  # sites and arguments, also of groups that nobody asked for
        self.plates: set[str] = set()
        self.subsampled: set[str] = {str(plate.name)} if plate.scaled and size != plate.size else set()
        self._arrays: dict[str, dict[str, Array]] = {}
        self._filled: dict[tuple[str, str], set[int]] = {}

    # ---- reading ----------------------------------------------------------------------------

    def arrays(self, group: str) -> dict[str, Array]:
        """The arrays of a group.

        Args:
            group: its name.

        Raises:
            ValueError: if a site is missing in some draws, or shares its name with a dim.
        """
        found = self._arrays.get(group, {})
        for name in found:
            count = len(self._filled[group, name])
            if group not in WITHOUT_DRAWS and count < self.draws:
                raise ValueError(
                    f"site '{name}' is in {count} of {self.draws} draws only: expected the same sites in every draw. "
                    "Draw it always, or hide it with poutine.block."
                )
        dims = {"chain", "draw"}.union(*self.dims.get(group, {}).values())
        clash = sorted(found.keys() & dims)
        if clash:
            raise ValueError(
                f"{clash} are names of sites and of dims (plates, 'chain', 'draw') at once, which xarray cannot hold. "
                "Rename the sites or the plates."
            )
        return found

    def sizes(self, groups: Collection[str]) -> dict[str, int]:
        """The length of each dim.

        Args:
            groups: the groups to look at.

        Raises:
            ValueError: if a dim has two lengths, or if axes of unknown variables were named.
        """
        known = {group: arrays for group, arrays in self._arrays.items() if group in groups}
        variables = self.variables.union(*known.values())
        unknown = sorted(self.names.keys() - variables)
        if unknown:
            raise ValueError(
                f"dims['{unknown[0]}']: no such variable, expected some of {sorted(variables)}. Rename or drop it."
            )
        sizes: dict[str, int] = {}
        for group, arrays in known.items():
            for name, array in arrays.items():
                shape = array.shape if group in WITHOUT_DRAWS else array.shape[1:]
                for dim, n in zip(self.dims[group][name], shape, strict=True):
                    if sizes.setdefault(dim, n) != n:
                        raise ValueError(
                            f"dim '{dim}' has length {sizes[dim]} and, at site '{name}', {n}: expected one length "
                            "under one name. Rename one of the plates, or the dim in dims=."
                        )
        return sizes

    # ---- filling ----------------------------------------------------------------------------

    def note(self, trace: Any, arguments: Sequence[str]) -> None:
        """What the variables and plates of a model are called, whichever groups they end in."""
        frames = [frame for _, site in sample_sites(trace) for frame in site["cond_indep_stack"]]
        self.plates |= {frame.name for frame in frames}
        others = [frame for frame in frames if frame.name != self.plate.name]  # which comes in chunks
        self.subsampled |= {frame.name for frame in others if frame.full_size not in (None, frame.size)}
        self.variables |= ({name for name, _ in sample_sites(trace)} | set(arguments)) - self.plates

    def add_latents(self, group: str, draw: int, trace: Any, index: Tensor) -> None:
        """Latent and deterministic sites of a chunk of a model's trace."""
        for name, site in sample_sites(trace):
            if poutine.util.site_is_subsample(site):  # type: ignore[arg-type]
                continue
            observed = site["is_observed"] or site["infer"].get("was_observed")
            if not observed or site["infer"].get("_deterministic"):
                self._put(group, draw, name, site["value"], site, index)

    def add_observed(self, trace: Any, index: Tensor) -> None:
        """What is observed, or was before ``poutine.uncondition``."""
        for name, site in sample_sites(trace):
            value = site["infer"]["obs"] if site["infer"].get("was_observed") else site["value"]
            if is_data(site) and (site["is_observed"] or site["infer"].get("was_observed")):
                self._put("observed_data", None, name, value, site, index)

    def add_constants(self, names: Sequence[str], rows: Sequence[Tensor | None]) -> None:
        """The rows that are not the value of an observed site, such as a design or known standard errors.

        Args:
            names: what to call each.
            rows: the data as passed to the model; what is None is not known.
        """
        observed = list(self._arrays.get("observed_data", {}).values())
        lead = [] if self.plate.name is None else [self.plate.name]
        for name, row in zip(names, rows, strict=True):
            if row is None or any(_equal(row, array) for array in observed):
                continue
            if name == self.plate.name:
                name = f"{name}_"  # xarray cannot hold a variable that is named like a dim of others
            shape = tuple(row.shape)
            dims = lead + self._names_of(name, shape[len(lead) :])
            array = self._array("constant_data", name, shape, dims, row.detach().cpu().numpy().dtype, None)
            array[...] = row.detach().cpu().numpy()

    def add_likelihood(self, draw: int, trace: Any, index: Tensor) -> None:
        """log p of each thing observed, in nats."""
        for name, site in sample_sites(trace):
            if site["is_observed"] and is_data(site):
                self._put("log_likelihood", draw, name, unscaled_log_prob(site), site, index, event_dim=0)

    def add_sites(self, group: str, draw: int, trace: Any, index: Tensor, sites: Collection[str]) -> None:
        """The values of chosen sites in a chunk of a trace.

        Args:
            group: the group to fill.
            draw: number of the draw.
            trace: a trace of the model.
            index: numbers of the rows.
            sites: names of the sites.
        """
        for name, site in sample_sites(trace):
            if name in sites:
                self._put(group, draw, name, site["value"], site, index)

    def add_stats(self, draw: int, model_trace: Any, guide_trace: Any, index: Tensor, *, first: bool) -> None:
        """log p, log q and log likelihood of one chunk; terms outside the data plate count once."""
        p = {name: self._log_prob(site) for name, site in sample_sites(model_trace)}
        q = {name: self._log_prob(site) for name, site in sample_sites(guide_trace)}
        observed = [p[name] for name, site in sample_sites(model_trace) if site["is_observed"]]
        local: list[_LogProb] = []
        for name, density in guide_densities(model_trace, guide_trace).items():
            members = [site["name"] for site in density.sites]
            self.densities[name] = [member for member in members if member in p] or [name]
            self.points |= {name} if density.is_point else set()
            terms = [q[member] for member in members]
            if all(term.rows is not None for term in terms):
                self._put_rows(draw, f"log_q_{name}", terms, index)
                local += terms
            else:  # a joint density belongs to no row, though some of its latents do
                self._add_total(draw, f"log_q_{name}", terms, first)
        # not "log_likelihood": az.loo takes a variable of that name in sample_stats for pointwise values
        for name, terms in {"log_p": [*p.values()], "log_lik": observed, "log_q": [*q.values()]}.items():
            self._add_total(draw, name, terms, first)
            if local:
                self._put_rows(draw, f"{name}_datum", local if name == "log_q" else terms, index)

    # ---- how --------------------------------------------------------------------------------

    def _log_prob(self, site: Site) -> _LogProb:
        value = unscaled_log_prob(site)
        rows = on_plate(value, site["cond_indep_stack"], self.plate.name, scaled=False)
        return _LogProb(float(value.sum(dtype=torch.float64)), None if rows is None else rows.double().cpu().numpy())

    def _add_total(self, draw: int, name: str, terms: Sequence[_LogProb], first: bool) -> None:
        array = self._array("sample_stats", name, (self.draws,), [], np.float64, draw)
        array[draw] += sum(term.total for term in terms if first or term.rows is not None)

    def _put_rows(self, draw: int, name: str, terms: Sequence[_LogProb], index: Tensor) -> None:
        array = self._array("sample_stats", name, (self.draws, self.size), [str(self.plate.name)], np.float64, draw)
        array[draw, index.numpy()] = sum(term.rows for term in terms if term.rows is not None)

    def _put(
        self, group: str, draw: int | None, name: str, value: Tensor, site: Site, index: Tensor,
        event_dim: int | None = None,
    ) -> None:  # fmt: skip
        """Store a site's value: plates become named dims, batch axes of size 1 without a plate go."""
        frames = {frame.dim: frame for frame in site["cond_indep_stack"] if frame.vectorized}
        batch = value.dim() - (event_dim_of(site, value, frames) if event_dim is None else event_dim)
        keep = [i for i in range(value.dim()) if i >= batch or i - batch in frames or value.shape[i] != 1]
        free = [value.shape[i] for i in keep if i - batch not in frames]
        other = iter(self._names_of(name, free, event=event_dim is None))
        dims = [frames[i - batch].name if i - batch in frames else next(other) for i in keep]
        value = value.detach().reshape([value.shape[i] for i in keep]).cpu()
        data_axis = dims.index(self.plate.name) if self.plate.name in dims else None
        shape = [self.size if axis == data_axis else n for axis, n in enumerate(value.shape)]
        lead = [] if draw is None else [self.draws]
        array = self._array(group, name, (*lead, *shape), dims, value.numpy().dtype, draw)
        # a slice for the draw: beside a number, NumPy would move the axis of an index array to the front
        where: list[Any] = [] if draw is None else [slice(draw, draw + 1)]
        where += [index.numpy() if axis == data_axis else slice(None) for axis in range(len(shape))]
        array[tuple(where)] = value.numpy() if draw is None else value.numpy()[None]

    def _names_of(self, name: str, shape: Sequence[int], *, event: bool = True) -> list[str]:
        """Names of the axes of a variable that are no plates; without its event axes the first of them."""
        given = self.names.get(name)
        if given is None:
            return [f"{name}_dim_{i}" for i in range(len(shape))]
        if len(given) != len(shape) and (event or len(given) < len(shape)):
            raise ValueError(
                f"dims['{name}']={given} has {len(given)} names, but besides plates '{name}' has {len(shape)} axes (of "
                f"lengths {list(shape)}): expected a name for each, in order."
            )
        if len({*given, "chain", "draw", self.plate.name}) < len(given) + 3:
            raise ValueError(
                f"dims['{name}']={given}: expected names that differ from each other and from 'chain', 'draw' and the "
                f"data plate '{self.plate.name}'. Rename them."
            )
        return given[: len(shape)]

    def _array(
        self, group: str, name: str, shape: tuple[int, ...], dims: list[str], dtype: Any, draw: int | None
    ) -> Array:
        arrays = self._arrays.setdefault(group, {})
        if name not in arrays:
            arrays[name] = np.zeros(shape, dtype=dtype)
            self.dims.setdefault(group, {})[name] = dims
        if arrays[name].shape != shape:
            raise ValueError(
                f"site '{name}' has shape {shape[1:]} in one draw and {arrays[name].shape[1:]} in another: expected "
                "the same in every draw and chunk. Put what has a row for each datum inside the data plate."
            )
        self._filled.setdefault((group, name), set()).add(-1 if draw is None else draw)
        return arrays[name]


def event_dim_of(site: Site, value: Tensor, frames: dict[int, Any]) -> int:
    """Event axes of a value. ``pyro.deterministic`` counts all axes as event, those of its plates too."""
    event_dim = int(site["fn"].event_dim)
    if not site["infer"].get("_deterministic") or event_dim < value.dim() or not frames:
        return event_dim
    for events in reversed(range(value.dim())):
        axes = {dim: value.dim() - events + dim for dim in frames}
        if all(axis >= 0 and value.shape[axis] == frames[dim].size for dim, axis in axes.items()):
            return events
    return event_dim


def is_data(site: Site) -> bool:
    """Whether a site holds data: neither a deterministic value nor a ``pyro.factor``."""
    return not site["infer"].get("_deterministic") and not isinstance(site["fn"], dist.Unit)


def _equal(row: Tensor, array: Array) -> bool:
    """Whether an array holds the numbers of a tensor, in any shape and type."""
    return array.size == row.numel() and bool(np.array_equal(array.ravel(), row.detach().cpu().numpy().ravel()))
