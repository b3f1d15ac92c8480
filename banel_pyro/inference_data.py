"""From Pyro's SVI to ArviZ. The only place that knows which line of ArviZ is installed (0.23)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import xarray as xr
from pyro import poutine
from torch import Tensor

from banel_pyro.batches import Rows, as_rows, minibatches, num_rows
from banel_pyro.draws import Table
from banel_pyro.evaluate import outside, trace_draws
from banel_pyro.modules import evaluation_mode
from banel_pyro.plates import DataPlate, find_data_plate, tell_autoguide
from banel_pyro.seeding import fork_rng

if TYPE_CHECKING:
    import arviz as az

__all__ = [
    "GROUPS",
    "ArviZ",
    "group",
    "group_names",
    "merge",
    "posterior_of_rows",
    "read_netcdf",
    "to_arviz",
    "write_netcdf",
]

ArviZ: TypeAlias = "az.InferenceData | xr.DataTree"
"""What ArviZ works on: InferenceData in its 0.x line, DataTree in its 1.x line."""

GROUPS = ("posterior", "sample_stats", "prior", "posterior_predictive", "log_likelihood", "observed_data")
"""Groups that :func:`to_arviz` knows."""


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
    log p(x, z), ``log_q`` = log q(z), ``log_lik`` = log p(x | z) and the part ``log_q_NAME`` of each density of
    the guide, for local latents also per datum (``log_p_datum`` and so on). Masks count, scales do not.
    A point mass (AutoDelta) counts 0 in ``log_q``, as in Pyro. Modules are in evaluation mode meanwhile.

    Args:
        model: the model.
        guide: the guide.
        *args: passed to both: tensors with a common leading axis over data points.
        num_samples: draws.
        groups: of ``posterior``, ``sample_stats`` (both always there), ``prior``, ``posterior_predictive``,
            ``log_likelihood``, ``observed_data``.
        batch_size: rows in memory at a time (all by default).
        data_plate: name of the plate over data points, found by its size if left out; needed for rows that are
            others than the N that the plate was written for.
        coords: coordinates by dim, such as a plate's name; a range by default.
        seed: draws inside a forked generator and leaves yours alone; None draws from yours.
        attrs: attributes of the result, such as λ; what is no text or number is written as JSON.

    Returns:
        The groups that were asked for, with attributes ``data_plate`` (or ""), ``densities`` (JSON: the
        model's sites by density of the guide), ``point_masses`` (JSON) and versions.

    Raises:
        ValueError: for unknown groups or coordinates, too few draws, or a batch size without a data plate.

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
    rows = as_rows(args, "args")
    size = num_rows(rows)
    first = tuple(row[: batch_size or size] for row in rows)
    with fork_rng(0), evaluation_mode(model, guide):  # looking for the plate runs the model, but not on your stream
        plate = find_data_plate(model, first, size, data_plate, training=False)
    with nullcontext() if seed is None else fork_rng(seed):
        return posterior_of_rows(
            model, guide, rows, plate, num_samples=num_samples, groups=groups, batch_size=batch_size, coords=coords,
            attrs={**(attrs or {}), **({} if seed is None else {"seed": seed})},
        )  # fmt: skip


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
    _check_options(num_samples, groups, batch_size, plate)
    table = Table(num_samples, plate, num_rows(rows))
    draws = trace_draws(model, guide, rows, plate, num_samples=num_samples, batch_size=batch_size)
    for draw, chunk, model_trace, guide_trace, index in draws:
        table.add_latents("posterior", draw, model_trace, index)
        table.add_stats(draw, model_trace, guide_trace, index, first=chunk == 0)
        if "observed_data" in groups and draw == 0:
            table.add_observed(model_trace, index)
        if "log_likelihood" in groups:
            table.add_likelihood(draw, model_trace, index)
        if "posterior_predictive" in groups:
            batch = tuple(row[index] for row in rows)
            table.add_predictive(draw, _predict(model, batch, guide_trace, plate, index), index)
    if "prior" in groups:
        _add_prior(table, model, guide, rows, plate, batch_size)
    versions = {f"{name}_version": version(name) for name in ("banel_pyro", "pyro-ppl", "torch", "arviz")}
    return _inference_data(table, dict(coords or {}), {**versions, **(attrs or {})})


def _check_options(num_samples: Any, groups: Sequence[str], batch_size: Any, plate: DataPlate) -> None:
    unknown = [groups] if isinstance(groups, str) else sorted(set(groups) - set(GROUPS))
    if unknown:
        raise ValueError(f"groups={groups!r}: unknown {unknown}, expected a list of some of {list(GROUPS)}.")
    for name, value, least in (("num_samples", num_samples, 2), ("batch_size", batch_size, 1)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise ValueError(f"{name}={value!r}: expected an integer of at least {least}, such as {least * 100}.")
    if batch_size is not None and plate.name is None:
        raise ValueError(f"batch_size={batch_size} needs a plate over data points. Name it with data_plate=.")


@torch.no_grad()
def _predict(model: Any, batch: Rows, guide_trace: Any, plate: DataPlate, index: Tensor) -> Any:
    with plate.rows(index if batch else None):
        return poutine.trace(poutine.uncondition(poutine.replay(model, trace=guide_trace))).get_trace(*batch)


@torch.no_grad()
def _add_prior(table: Table, model: Any, guide: Any, rows: Rows, plate: DataPlate, batch_size: int | None) -> None:
    """Draws of the model's latents as the model draws them; those outside the data plate are shared by the chunks."""
    with tell_autoguide(guide, plate), evaluation_mode(model, guide):
        for draw in range(table.draws):
            shared: Any = None
            for index, batch in minibatches(rows, batch_size):
                prior = model if shared is None else poutine.replay(model, trace=shared)
                with plate.rows(index if batch else None):
                    trace = poutine.trace(prior).get_trace(*batch)
                shared = outside(trace, plate.name) if shared is None else shared
                table.add_latents("prior", draw, trace, index)


def _inference_data(table: Table, coords: dict[str, Any], attrs: dict[str, Any]) -> az.InferenceData:
    """Hand the arrays to ArviZ: the one place that depends on its line."""
    import arviz as az  # heavy, and it imports pyplot

    sizes = table.sizes()
    for name, values in coords.items():
        if name not in sizes:
            raise ValueError(f"coords['{name}']: no such dim, expected some of {sorted(sizes)}. Rename or drop it.")
        if len(values) != sizes[name]:
            raise ValueError(
                f"coords['{name}'] has {len(values)} entries, but the dim has {sizes[name]}: expected one for each."
            )
    sites = {"data_plate": table.plate.name or "", "densities": table.densities, "point_masses": sorted(table.points)}
    plain = {name: v if isinstance(v, str | int | float) else json.dumps(v) for name, v in {**attrs, **sites}.items()}
    groups = {group: table.arrays(group) for group in GROUPS}
    datasets = {
        group: az.dict_to_dataset(
            # draws get a chain axis of their own: ArviZ would take the first axis of an array for the chains
            arrays if group == "observed_data" else {name: array[None] for name, array in arrays.items()},
            coords=coords,
            dims=table.dims[group],
            default_dims=[] if group == "observed_data" else None,
            attrs=plain,
        )
        for group, arrays in groups.items()
        if arrays
    }
    return az.InferenceData(attrs=plain, **datasets)


# ---- reading, whichever line made it -------------------------------------------------------------


def group_names(idata: ArviZ) -> tuple[str, ...]:
    """Names of the groups.

    Args:
        idata: from :func:`to_arviz`.
    """
    return tuple(idata.groups())


def group(idata: ArviZ, name: str) -> xr.Dataset:
    """A group as a Dataset.

    Args:
        idata: from :func:`to_arviz`.
        name: of the group.
    """
    found: xr.Dataset = idata[name]  # type: ignore[assignment]
    return found


def merge(idata: ArviZ, other: ArviZ) -> ArviZ:
    """The groups of the first, and those of the other that the first does not have; attributes of the first."""
    idata.extend(other)
    return idata


def write_netcdf(idata: ArviZ, file: str | PathLike[str]) -> None:
    """Write all groups to a netCDF file."""
    idata.to_netcdf(str(file))


def read_netcdf(file: str | PathLike[str]) -> ArviZ:
    """What :func:`write_netcdf` wrote, in memory: the file may be replaced afterwards."""
    import arviz as az  # heavy, and it imports pyplot
    from arviz.rcparams import rc_context

    with rc_context({"data.load": "eager"}):
        found: ArviZ = az.from_netcdf(str(file))
    return found
