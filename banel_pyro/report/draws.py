"""The draws of a run, checked: a page is made of files that others may have written."""

from __future__ import annotations

from pathlib import Path

import xarray as xr

from banel_pyro.diagnostics.spread import densities_of, point_masses_of
from banel_pyro.inference_data import ArviZ, group

__all__ = ["checked_draws"]

LOGS = ("log_lik", "log_p", "log_q")


def checked_draws(idata: ArviZ, file: Path) -> ArviZ:
    """Draws as they are, if a page can be made of them.

    Args:
        idata: the draws.
        file: what they were read from.

    Raises:
        ValueError: naming the file and what is missing in it.
    """
    try:
        plate, densities = idata.attrs.get("data_plate"), densities_of(idata)
        point_masses_of(idata)
        if not isinstance(plate, str):
            raise ValueError(f"data_plate={plate!r}, expected the name of the data plate or an empty text")
        for name in ("posterior", "sample_stats"):
            _check_sample(group(idata, name), name)
        stats = group(idata, "sample_stats")
        missing = [name for name in (*LOGS, *(f"log_q_{density}" for density in densities)) if name not in stats]
        if missing:
            raise ValueError(f"sample_stats has no {missing}")
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"'{file}' holds no draws of a run ({error}). Delete it: the same call with resume=True draws anew."
        ) from error
    return idata


def _check_sample(data: xr.Dataset, name: str) -> None:
    for variable, array in data.data_vars.items():
        if array.dims[:2] != ("chain", "draw") or array.dtype.kind not in "biuf" or 0 in array.shape:
            raise ValueError(
                f"'{variable}' in {name} has dims {array.dims} of {array.dtype}, expected numbers (chain, draw, ...)"
            )
