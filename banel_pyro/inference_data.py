"""From Pyro's SVI to ArviZ. The only place that knows which line of ArviZ is installed (0.23)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from typing import Any

import arviz as az
import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from banel_pyro.batches import DataPlate, Rows, as_rows, find_data_plate, minibatches, tell_autoguide
from banel_pyro.evaluate import Traces, trace_draws
from banel_pyro.seeding import fork_rng
from banel_pyro.traces import Site, guide_densities, on_plate, sample_sites, unscaled_log_prob

__all__ = ["GROUPS", "posterior_of_rows", "to_arviz"]

GROUPS = ("posterior", "sample_stats", "prior", "posterior_predictive", "log_likelihood", "observed_data")


def to_arviz(
    model: Any,
    guide: Any,
    *args: Any,
    num_samples: int = 1000,
    groups: Sequence[str] = ("posterior", "sample_stats", "prior"),
    batch_size: int | None = None,
    data_plate: str | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    seed: int | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> az.InferenceData:
    r"""Draw from a guide into an ArviZ ``InferenceData`` with dims (chain=1, draw, plates, event).

    The draws are independent: R-hat and autocorrelations say nothing about them; use
    ``az.summary(idata, kind="stats")``. ``sample_stats`` holds, per draw and in nats, ``log_p`` =
    log p(x, z), ``log_q`` = log q(z), ``log_likelihood`` and the part ``log_q_NAME`` of each density of
    the guide, for local latents also per datum (``log_p_datum`` and so on). Masks count, scales do not.

    Args:
        model: the model.
        guide: the guide.
        *args: passed to both: tensors with a common leading axis over data points.
        num_samples: draws.
        groups: of ``posterior``, ``sample_stats`` (always there), ``prior``, ``posterior_predictive``,
            ``log_likelihood``, ``observed_data``.
        batch_size: rows in memory at a time (all by default).
        data_plate: name of the plate over data points (found by its size if left out).
        coords: coordinates of plates by name; a range by default.
        seed: draws inside a forked generator and leaves yours alone; None draws from yours.
        attrs: attributes of the result, such as λ.

    Raises:
        ValueError: for unknown groups, too few draws, or a batch size without a data plate.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("schools", 3):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> with pyro.get_param_store().scope():
        ...     idata = to_arviz(model, AutoNormal(model), torch.ones(3), num_samples=50, seed=0)
        >>> dict(idata.posterior["mu"].sizes)
        {'chain': 1, 'draw': 50}
    """
    rows = as_rows(args)
    size = len(rows[0]) if rows else 0
    first = tuple(row[: batch_size or size] for row in rows)
    with fork_rng(0):  # looking for the plate runs the model once: leave the caller's stream as it is
        plate = find_data_plate(model, first, size, data_plate)
    with nullcontext() if seed is None else fork_rng(seed):
        return posterior_of_rows(
            model,
            guide,
            rows,
            plate,
            num_samples=num_samples,
            groups=groups,
            batch_size=batch_size,
            coords=coords,
            attrs=attrs,
        )


def posterior_of_rows(
    model: Any,
    guide: Any,
    rows: Rows,
    plate: DataPlate,
    *,
    num_samples: int,
    groups: Sequence[str],
    batch_size: int | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> az.InferenceData:
    """As :func:`to_arviz`, with the data plate known."""
    unknown = sorted(set(groups) - set(GROUPS))
    if unknown:
        raise ValueError(f"groups={list(groups)}: unknown {unknown}, expected some of {list(GROUPS)}.")
    if not isinstance(num_samples, int) or num_samples < 2:
        raise ValueError(f"num_samples={num_samples!r}: expected an integer of at least 2.")
    if batch_size is not None and plate.name is None:
        raise ValueError(f"batch_size={batch_size} needs a plate over data points. Name it with data_plate=.")
    size = len(rows[0]) if rows else 0
    table = _Table(num_samples, plate, size)
    draws = trace_draws(model, guide, rows, plate, num_samples=num_samples, batch_size=batch_size)
    for draw, chunks in enumerate(draws):
        for number, (model_trace, guide_trace, index) in enumerate(chunks):
            table.add_posterior(
                draw,
                model_trace,
                index,
                "log_likelihood" in groups,
                observed=draw == 0 and "observed_data" in groups,
            )
            table.add_stats(draw, (model_trace, guide_trace, index), first=number == 0)
            if "posterior_predictive" in groups:
                batch = tuple(row[index] for row in rows)
                table.add_predictive(draw, _predict(model, batch, guide_trace, plate, index), index)
    if "prior" in groups:
        _add_prior(table, model, guide, rows, plate, batch_size)
    versions = {f"{name}_version": version(name) for name in ("banel_pyro", "pyro-ppl", "torch")}
    return _inference_data(table, {**(coords or {})}, {**versions, **(attrs or {})})


@torch.no_grad()
def _predict(model: Any, batch: Rows, guide_trace: Any, plate: DataPlate, index: Tensor) -> Any:
    with plate.rows(index):
        return poutine.trace(poutine.uncondition(poutine.replay(model, trace=guide_trace))).get_trace(*batch)


@torch.no_grad()
def _add_prior(table: _Table, model: Any, guide: Any, rows: Rows, plate: DataPlate, batch_size: int | None) -> None:
    with tell_autoguide(guide, plate):
        for draw in range(table.draws):
            shared: Any = None
            for index, batch in minibatches(rows, batch_size):
                prior = model if shared is None else poutine.replay(model, trace=shared)
                with plate.rows(index):
                    trace = poutine.trace(prior).get_trace(*batch)
                shared = shared or trace
                if shared is trace and batch_size is not None:
                    shared = _latents_outside(trace, plate.name)
                table.add_latents("prior", draw, trace, index)


def _latents_outside(trace: Any, plate: str | None) -> Any:
    kept = poutine.Trace()
    for name, site in sample_sites(trace):
        if (
            not site["is_observed"]
            and plate not in [frame.name for frame in site["cond_indep_stack"]]
            and name != plate
        ):
            kept.add_node(name, **site)
    return kept


class _Table:
    """Arrays (draw, ...) by group and variable, filled chunk by chunk."""

    def __init__(self, draws: int, plate: DataPlate, size: int) -> None:
        self.draws, self.plate, self.size = draws, plate, size
        self.groups: dict[str, dict[str, np.ndarray]] = {}
        self.dims: dict[str, dict[str, list[str]]] = {}
        self.densities: dict[str, list[str]] = {}

    def add_posterior(self, draw: int, trace: Any, index: Tensor, likelihood: bool, *, observed: bool) -> None:
        """Latents, and what is observed, of one chunk."""
        self.add_latents("posterior", draw, trace, index)
        for name, site in sample_sites(trace):
            if _is_data(site):
                if observed:
                    self._put("observed_data", None, name, site["value"], site, index)
                if likelihood:
                    self._put("log_likelihood", draw, name, unscaled_log_prob(site), site, index, event=False)

    def add_latents(self, group: str, draw: int, trace: Any, index: Tensor) -> None:
        """Latent and deterministic sites of a model's trace."""
        for name, site in sample_sites(trace):
            if poutine.util.site_is_subsample(site):
                continue
            if not site["is_observed"] or site["infer"].get("_deterministic"):
                self._put(group, draw, name, site["value"], site, index)

    def add_predictive(self, draw: int, trace: Any, index: Tensor) -> None:
        """Draws of the observed sites from an unconditioned model."""
        for name, site in sample_sites(trace):
            if site["infer"].get("was_observed") and not site["infer"].get("_deterministic"):
                self._put("posterior_predictive", draw, name, site["value"], site, index)

    def add_stats(self, draw: int, traces: Traces, *, first: bool) -> None:
        """log p, log q and log likelihood of one chunk; terms outside the data plate count once."""
        model_trace, guide_trace, index = traces
        model_sites = [site for _, site in sample_sites(model_trace)]
        sums = {
            "log_p": model_sites,
            "log_likelihood": [site for site in model_sites if site["is_observed"]],
            "log_q": [site for _, site in sample_sites(guide_trace)],
        }
        densities = guide_densities(model_trace, guide_trace)
        local = any(self._rows(site) is not None for site in sums["log_q"])
        for name, sites in sums.items():
            self._add_total(draw, name, sites, first)
            if local:
                self._put_rows(draw, f"{name}_datum", sites, index)
        for name, density in densities.items():
            members = [site["name"] for site in density.sites if site["name"] in model_trace.nodes]
            self.densities[name] = members or [name]
            if any(self._rows(site) is not None for site in density.sites):
                self._put_rows(draw, f"log_q_{name}", density.sites, index)
            else:
                self._add_total(draw, f"log_q_{name}", density.sites, first)

    def _rows(self, site: Site) -> Tensor | None:
        return on_plate(unscaled_log_prob(site), site["cond_indep_stack"], self.plate.name, scaled=False)

    def _add_total(self, draw: int, name: str, sites: Sequence[Site], first: bool) -> None:
        kept = [site for site in sites if first or self._rows(site) is not None]
        array = self._array("sample_stats", name, (self.draws,), [], np.float64)
        array[draw] += float(sum(unscaled_log_prob(site).sum() for site in kept))

    def _put_rows(self, draw: int, name: str, sites: Sequence[Site], index: Tensor) -> None:
        found = [row for row in map(self._rows, sites) if row is not None]
        plate = str(self.plate.name)
        array = self._array("sample_stats", name, (self.draws, self.size), [plate], np.float64)
        if found:
            array[draw, index.numpy()] = sum(found[1:], found[0]).cpu().numpy()

    def _put(
        self,
        group: str,
        draw: int | None,
        name: str,
        value: Tensor,
        site: Site,
        index: Tensor,
        *,
        event: bool = True,
    ) -> None:
        """Store a site's value: plates become named dims, batch axes of size 1 without a plate go."""
        event_dim = site["fn"].event_dim if event else 0
        frames = {frame.dim: frame.name for frame in site["cond_indep_stack"] if frame.vectorized}
        batch = value.dim() - event_dim
        keep = [i for i in range(value.dim()) if i >= batch or i - batch in frames or value.shape[i] != 1]
        dims = [frames.get(i - batch) or f"{name}_dim_{i - min(batch, i)}" for i in keep]
        value = value.detach().reshape([value.shape[i] for i in keep]).cpu()
        data_axis = dims.index(self.plate.name) if self.plate.name in dims else None
        shape = [self.size if axis == data_axis else n for axis, n in enumerate(value.shape)]
        lead = [] if draw is None else [self.draws]
        array = self._array(group, name, (*lead, *shape), dims, value.numpy().dtype)
        where: list[Any] = ([] if draw is None else [draw]) + [slice(None)] * len(shape)
        if data_axis is not None:
            where[len(lead) + data_axis] = index.numpy()
        array[tuple(where)] = value.numpy()

    def _array(self, group: str, name: str, shape: tuple[int, ...], dims: list[str], dtype: Any) -> np.ndarray:
        arrays = self.groups.setdefault(group, {})
        if name not in arrays:
            arrays[name] = np.zeros(shape, dtype=dtype)
            self.dims.setdefault(group, {})[name] = dims
        if arrays[name].shape != shape:
            raise ValueError(
                f"site '{name}' has shape {shape[1:]} in one draw and {arrays[name].shape[1:]} in another: to_arviz needs sites of "
                "the same shape in every draw."
            )
        return arrays[name]


def _is_data(site: Site) -> bool:
    return bool(site["is_observed"]) and not site["infer"].get("_deterministic") and type(site["fn"]).__name__ != "Unit"


def _inference_data(table: _Table, coords: dict[str, Sequence[Any]], attrs: dict[str, Any]) -> az.InferenceData:
    """Hand the arrays to ArviZ: the one call that depends on its line."""
    sizes = {
        dim: n
        for group, arrays in table.groups.items()
        for name, array in arrays.items()
        for dim, n in zip(table.dims[group][name], array.shape[0 if group == "observed_data" else 1 :], strict=True)
    }
    for name, values in coords.items():
        if name in sizes and len(values) != sizes[name]:
            raise ValueError(f"coords['{name}'] has {len(values)} entries, but the plate has {sizes[name]} rows.")
    attrs = {**attrs, "data_plate": table.plate.name or "", "densities": json.dumps(table.densities)}
    idata = az.InferenceData(attrs=attrs)
    for group in GROUPS:
        arrays = table.groups.get(group, {})
        if arrays:
            # draws get a chain axis of their own: ArviZ would take the first axis of an array for the chains
            chained = {name: array if group == "observed_data" else array[None] for name, array in arrays.items()}
            idata.extend(az.from_dict(**{group: chained}, coords=dict(coords), dims=table.dims[group], attrs=attrs))
    return idata
