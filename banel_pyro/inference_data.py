"""From Pyro's SVI to ArviZ. The only place that knows which line of ArviZ is installed: 0.x, or 1.x."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import xarray as xr

from banel_pyro.batches import Rows, as_rows, num_rows
from banel_pyro.checks import check_callable, integer, seed_number
from banel_pyro.draws import WITHOUT_DRAWS, Table
from banel_pyro.evaluate import Arguments, learnt_parameters, trace_draws
from banel_pyro.modules import evaluation_mode
from banel_pyro.plates import DataPlate, find_data_plate, one_line
from banel_pyro.predictive import add_prior, argument_names, predict, predicted_sites, predictive_table
from banel_pyro.reading import plain_file
from banel_pyro.seeding import draw_seed, fork_rng
from banel_pyro.streams import SiteStreams, rows_at_a_time

if TYPE_CHECKING:
    import arviz as az

__all__ = [
    "GROUPS",
    "ArviZ",
    "arviz_version",
    "from_datasets",
    "from_draws",
    "group",
    "group_names",
    "merge",
    "posterior_of_rows",
    "predictive_of_rows",
    "read_netcdf",
    "to_arviz",
    "write_netcdf",
]

ArviZ: TypeAlias = "az.InferenceData | xr.DataTree"
"""What ArviZ works on: InferenceData in its 0.x line, DataTree in its 1.x line."""

Names: TypeAlias = Mapping[str, str | Sequence[str]]
"""By variable, names for its axes that are no plates, in order."""

GROUPS = (
    "posterior",
    "posterior_predictive",
    "log_likelihood",
    "sample_stats",
    "prior",
    "prior_predictive",
    "observed_data",
    "constant_data",
)
"""Groups that :func:`to_arviz` knows, in the order of ArviZ."""


def to_arviz(
    model: Any,
    guide: Any,
    *args: Any,
    num_samples: int = 1000,
    groups: Sequence[str] = ("posterior", "sample_stats", "prior"),
    batch_size: int | None = None,
    data_plate: str | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Names | None = None,
    seed: int | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> ArviZ:
    r"""Draw from a guide into what ArviZ works on, with dims (chain=1, draw, plates, event).

    That is an ``InferenceData`` where the package ``arviz`` of the 0.x line is installed, else a ``DataTree`` with the
    same groups. The draws are independent: R-hat and autocorrelations say nothing about them; use
    ``summary(idata, kind="stats")``. ``sample_stats`` holds, per draw and in nats, ``log_p`` =
    log p(x, z), ``log_q`` = log q(z), ``log_lik`` = log p(x | z) and the part ``log_q_NAME`` of each density of
    the guide, for local latents also per datum (``log_p_datum`` and so on). Masks count, scales do not.
    A point mass (AutoDelta) counts 0 in ``log_q``, as in Pyro. Modules are in evaluation mode meanwhile.

    Args:
        model: the model.
        guide: the guide.
        *args: passed to both: tensors with a common leading axis over data points.
        num_samples: draws.
        groups: of ``posterior``, ``sample_stats`` (both always there), ``log_likelihood``, ``posterior_predictive``,
            ``prior``, ``prior_predictive``, ``observed_data``, and ``constant_data``: those of ``args`` that are not
            the value of an observed site, under the name that the model gives them.
        batch_size: rows in memory at a time, rounded up to a multiple of 16 (all by default). On the CPU the draws do
            not depend on it, but for the exceptions of :class:`~banel_pyro.streams.SiteStreams`.
        data_plate: name of the plate over data points, found by its size if left out; needed for rows that are
            others than the N that the plate was written for.
        coords: coordinates by dim, such as a plate's name; a range by default.
        dims: by variable, names for its axes that are no plates, in order: ``{"z": ["latent"]}``; ``z_dim_0`` and so
            on by default.
        seed: draws inside a forked generator and leaves yours alone; None draws from yours.
        attrs: attributes of the result, such as λ; what is no text or number is written as JSON.

    Returns:
        The groups that were asked for, with attributes ``data_plate`` (or ""), ``densities`` (JSON: the
        model's sites by density of the guide), ``point_masses`` (JSON), ``subsampled`` (JSON: plates of which not all
        rows are there), ``model_parameters`` (JSON, with ``log_likelihood``: what of the model is learnt) and versions.

    Raises:
        ValueError: for unknown groups or dims, coordinates or names of the wrong number, too few draws, or a batch
            size without a data plate.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("schools", 3):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> with pyro.get_param_store().scope():
        ...     idata = to_arviz(model, AutoNormal(model), torch.ones(3), num_samples=50, seed=0)
        >>> dict(idata["posterior"]["mu"].sizes)
        {'chain': 1, 'draw': 50}
    """
    rows = as_rows(args, "args")
    size = num_rows(rows)
    if batch_size is not None:
        integer("batch_size", batch_size)
    for side, function in (("model", model), ("guide", guide)):
        check_callable(side, function, rows)
    first = tuple(row[: batch_size or size] for row in rows)
    with fork_rng(0), evaluation_mode(model, guide):  # looking for the plate runs the model, but not on your stream
        plate = find_data_plate(model, first, size, data_plate, training=False)
    with nullcontext() if seed is None else fork_rng(seed_number(seed)):
        return posterior_of_rows(
            model, guide, rows, plate, num_samples=num_samples, groups=groups, batch_size=batch_size, coords=coords,
            dims=dims, attrs={**(attrs or {}), **({} if seed is None else {"seed": seed})},
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
    dims: Names | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> ArviZ:
    """As :func:`to_arviz`, with the data plate known."""
    _check_options(num_samples, groups, batch_size, plate)
    table, arguments = Table(num_samples, plate, num_rows(rows), dims), argument_names(model, len(rows))
    step = rows_at_a_time(num_rows(rows), batch_size)
    with SiteStreams(draw_seed()) as streams:
        draws = trace_draws(model, guide, rows, plate, num_samples=num_samples, batch_size=step)
        for draw, chunk, model_trace, guide_trace, index in draws:
            table.add_latents("posterior", draw, model_trace, index)
            table.add_stats(draw, model_trace, guide_trace, index, first=chunk == 0)
            if draw == 0:
                table.note(model_trace, arguments)
            if draw == 0 and not set(WITHOUT_DRAWS).isdisjoint(groups):
                table.add_observed(model_trace, index)
            if "log_likelihood" in groups:
                table.add_likelihood(draw, model_trace, index)
            if "posterior_predictive" in groups:
                with streams.part("predictive"):
                    trace = predict(model, tuple(row[index] for row in rows), guide_trace, plate, index)
                table.add_sites("posterior_predictive", draw, trace, index, predicted_sites(trace, guide_trace))
        if not {"prior", "prior_predictive"}.isdisjoint(groups):
            with streams.part("prior"):
                add_prior(table, model, guide, rows, plate, step, groups)
    if "constant_data" in groups:
        table.add_constants(arguments, rows)
    if "log_likelihood" in groups:
        attrs = {**(attrs or {}), "model_parameters": learnt_parameters(model, guide, rows, plate, step)}
    return _arviz(table, {"posterior", "sample_stats", *groups}, coords or {}, attrs or {})


def predictive_of_rows(
    model: Any,
    guide: Any,
    rows: Arguments,
    plate: DataPlate,
    *,
    num_samples: int,
    sites: Sequence[str] | None = None,
    batch_size: int | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Names | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> ArviZ:
    """As :meth:`~banel_pyro.FitResult.predictive`, with the data plate known."""
    _check_options(num_samples, (), batch_size, plate)
    table = predictive_table(
        model, guide, rows, plate, num_samples=num_samples, sites=sites, batch_size=batch_size, dims=dims
    )
    return _arviz(table, {"posterior_predictive", *WITHOUT_DRAWS}, coords or {}, attrs or {})


def _check_options(num_samples: Any, groups: Sequence[str], batch_size: Any, plate: DataPlate) -> None:
    unknown = [groups] if isinstance(groups, str) else sorted(set(groups) - set(GROUPS))
    if unknown:
        raise ValueError(f"groups={groups!r}: unknown {unknown}, expected a list of some of {list(GROUPS)}.")
    integer("num_samples", num_samples, 2)
    if batch_size is not None:
        integer("batch_size", batch_size)
    if batch_size is not None and plate.name is None:
        raise ValueError(f"batch_size={batch_size} needs a plate over data points. Name it with data_plate=.")


def _arviz(table: Table, groups: set[str], coords: Mapping[str, Sequence[Any]], attrs: Mapping[str, Any]) -> ArviZ:
    """The groups of a table as Datasets, which both lines of ArviZ take as they are."""
    arrays = {name: found for name in GROUPS if name in groups and (found := table.arrays(name))}
    _check_coords(coords, table.sizes(arrays), table.plates.union(*table.names.values()))
    about: dict[str, Any] = {
        "data_plate": table.plate.name or "",
        "densities": table.densities,
        "point_masses": sorted(table.points),
    }
    about |= {"subsampled": sorted(table.subsampled), "num_rows": table.size if table.plate.name else 0}
    named = {
        name: {variable: (table.dims[name][variable], array) for variable, array in variables.items()}
        for name, variables in arrays.items()
    }
    return from_draws(named, {**attrs, **about}, coords)


def from_draws(
    groups: Mapping[str, Mapping[str, tuple[Sequence[str], Any]]],
    attrs: Mapping[str, Any],
    coords: Mapping[str, Sequence[Any]] | None = None,
) -> ArviZ:
    """Groups as Datasets, of independent draws where they hold draws; with the versions of what made them.

    Args:
        groups: by group and variable, the names of its axes and the array. In groups of draws the array has an axis
            over draws in front, which the names leave out.
        attrs: attributes of the result and of each group; what is no text or number is written as JSON.
        coords: coordinates by dim; a range by default.
    """
    versions = {name: version(name) for name in ("banel_pyro", "pyro-ppl", "torch")} | arviz_version()
    plain = {
        "created_at": datetime.now(UTC).isoformat(),
        **{f"{name}_version": number for name, number in versions.items()},
        **{n: v if isinstance(v, str | int | float) else json.dumps(v) for n, v in attrs.items()},
    }
    datasets = {}
    for name, variables in groups.items():
        # draws get a chain axis of their own: ArviZ would take the first axis of an array for the chains
        lead, axis = ((), ()) if name in WITHOUT_DRAWS else (("chain", "draw"), (None,))
        filled = xr.Dataset({v: ((*lead, *dims), array[axis]) for v, (dims, array) in variables.items()})
        labels = {dim: (coords or {}).get(str(dim), np.arange(n)) for dim, n in filled.sizes.items()}
        datasets[name] = filled.assign_coords(labels).assign_attrs(plain)
    return from_datasets(datasets, plain)


def _check_coords(coords: Mapping[str, Sequence[Any]], sizes: Mapping[str, int], elsewhere: Collection[str]) -> None:
    if not isinstance(coords, Mapping):
        raise TypeError(f"coords={coords!r}: expected a mapping from dims to their coordinates.")
    for name, values in coords.items():
        if isinstance(values, str) or not hasattr(values, "__len__") or np.ndim(values) != 1:
            raise TypeError(f"coords['{name}']={values!r}: expected a list with an entry for each element of the dim.")
        if name not in sizes and name not in elsewhere:
            raise ValueError(f"coords['{name}']: no such dim, expected some of {sorted(sizes)}. Rename or drop it.")
        if name in sizes and len(values) != sizes[name]:
            raise ValueError(
                f"coords['{name}'] has {len(values)} entries, but the dim has {sizes[name]}: expected one for each."
            )


# ---- the two lines of ArviZ ----------------------------------------------------------------------


def arviz_version() -> dict[str, str]:
    """The version of ArviZ, by package: that of ``arviz``, or of ``arviz-base`` where only the parts of 1.x are."""
    package = "arviz-base" if find_spec("arviz") is None else "arviz"
    return {package: version(package)}


def from_datasets(datasets: Mapping[str, xr.Dataset], attrs: Mapping[Any, Any]) -> ArviZ:
    """Groups as one object of the line of ArviZ that is installed.

    Args:
        datasets: by group.
        attrs: attributes of the whole.
    """
    if arviz_version().get("arviz", "1").startswith("0."):
        import arviz as az  # heavy, and it imports pyplot

        return az.InferenceData(attrs=dict(attrs), **datasets)  # type: ignore[arg-type]
    tree = xr.DataTree.from_dict({name: datasets[name] for name in sorted(datasets, key=_place)})
    tree.attrs = dict(attrs)
    return tree


def _place(name: str) -> tuple[int, str]:
    return (GROUPS.index(name) if name in GROUPS else len(GROUPS), name)


def group_names(idata: ArviZ) -> tuple[str, ...]:
    """Names of the groups.

    Args:
        idata: from :func:`to_arviz`.

    Raises:
        TypeError: if it is no ArviZ object.
    """
    if not (hasattr(idata, "groups") and hasattr(idata, "attrs")) or isinstance(idata, xr.Dataset):
        raise TypeError(
            f"idata is a {type(idata).__name__}: expected what to_arviz returns, an InferenceData or a DataTree with "
            "groups such as 'posterior'."
        )
    return tuple(idata.children if isinstance(idata, xr.DataTree) else idata.groups())


def group(idata: ArviZ, name: str) -> xr.Dataset:
    """A group as a Dataset.

    Args:
        idata: from :func:`to_arviz`.
        name: of the group.

    Raises:
        TypeError: if it is no ArviZ object.
        ValueError: if there is no such group.
    """
    if name not in group_names(idata):
        raise ValueError(
            f"idata has no group '{name}', only {list(group_names(idata))}: draw with groups=('{name}', ...)."
        )
    found: Any = idata[name]
    dataset: xr.Dataset = found.to_dataset() if isinstance(idata, xr.DataTree) else found
    return dataset


def merge(idata: ArviZ, other: ArviZ) -> ArviZ:
    """The groups of the first, and those of the other that the first does not have; attributes of the first.

    Args:
        idata: the first.
        other: the other.
    """
    extra = [name for name in group_names(other) if name not in group_names(idata)]
    both = {name: group(idata, name) for name in group_names(idata)} | {name: group(other, name) for name in extra}
    return from_datasets(both, idata.attrs)


def write_netcdf(idata: ArviZ, file: str | PathLike[str]) -> None:
    """Write all groups to a netCDF file, which both lines of ArviZ read.

    Args:
        idata: from :func:`to_arviz`.
        file: its path; a file that is there is replaced.
    """
    xr.Dataset(attrs=idata.attrs).to_netcdf(str(file), mode="w", engine="h5netcdf")
    for name in group_names(idata):
        data = group(idata, name)
        small = {variable: {"zlib": True} for variable, array in data.variables.items() if array.dtype.kind in "biuf"}
        data.to_netcdf(str(file), mode="a", group=name, engine="h5netcdf", encoding=small)


def read_netcdf(file: str | PathLike[str]) -> ArviZ:
    """What :func:`write_netcdf` or ArviZ wrote, in memory: the file may be replaced afterwards.

    The file may come from others: what leads out of it, or claims much more than it holds, is refused before it is
    read (:mod:`banel_pyro.hdf5`).

    Args:
        file: its path.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, or is no such file.
    """
    from banel_pyro.hdf5 import RefusedError, check_hdf5  # h5py is heavy to import

    path = plain_file(Path(file))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what xarray makes of a damaged file
            check_hdf5(path)
            return _read_groups(path)
    except FileNotFoundError:
        raise
    except RefusedError as error:
        raise ValueError(f"'{path}' cannot be read as netCDF: {error}.") from error
    except Exception as error:  # HDF5, h5netcdf and xarray raise many kinds for a damaged file
        raise ValueError(
            f"'{path}' cannot be read as netCDF ({type(error).__name__}: {one_line(error)[:200]}): the file is "
            "damaged, or none that to_arviz or ArviZ wrote. In a run folder, delete it: the same call with resume=True "
            "draws it anew."
        ) from error


def _read_groups(path: Path) -> ArviZ:
    found = xr.open_groups(path, engine="h5netcdf")
    try:
        datasets = {name.strip("/"): data.load() for name, data in found.items()}
        return from_datasets(datasets, datasets.pop("", xr.Dataset()).attrs)
    finally:
        for data in found.values():
            data.close()
