"""What a netCDF file claims, looked at before any of it is read: no way out of the file, and no size without data.

NetCDF files are HDF5 files. HDF5 has links to other files, arrays that lie in other files, and arrays of any size that
take no place; xarray follows the first two and makes room for the third.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]

from banel_pyro.reading import plain_file

__all__ = ["GROWS", "MOST_GROWN", "RefusedError", "check_hdf5"]

MOST_GROWN, GROWS = 2**28, 20
"""Refused are contents of more than so many bytes that are also so many times as large as the file."""

MOST_PARTS, DEEPEST = 100_000, 8

_FILTERS = frozenset((1, 2, 3, 4, 5, 6, 32000))
"""Those that HDF5 and h5py bring along; others are libraries that HDF5 would look for and load."""


class RefusedError(ValueError):
    """A file that is whole perhaps, and not read for a link in it or for its size; its message says what to do."""


def check_hdf5(file: Path) -> None:
    """Refuse a file that leads out of itself, or would take much more memory than disk.

    Args:
        file: the file.

    Raises:
        FileNotFoundError: if there is none.
        RefusedError: for a link in it, or more than it has, with the part of the file.
        ValueError: with the part of the file and the reason.
        OSError: for what is no HDF5 file.
    """
    size, grown = plain_file(file).stat().st_size, 0
    with h5py.File(file, "r") as root:
        waiting, seen = [(root["/"], 0)], {_address(root["/"])}
        while waiting:
            group, depth = waiting.pop()
            grown += _attributes(group)
            for name in group:
                part, where = _linked(group, name), f"'{group.name.rstrip('/')}/{name}'"
                if _address(part) in seen or len(seen) > MOST_PARTS or depth > DEEPEST:
                    raise ValueError(f"{where} is there twice, or one of too many, or too deep inside")
                seen.add(_address(part))
                if isinstance(part, h5py.Group):
                    waiting.append((part, depth + 1))
                elif isinstance(part, h5py.Dataset):
                    grown += _attributes(part) + _checked(part, where)
                if grown > max(MOST_GROWN, GROWS * size):
                    raise RefusedError(
                        f"at {where} it claims {grown:,} bytes, and has {size:,}. If that is right, write it unpacked"
                    )


def _linked(group: Any, name: str) -> Any:
    """A part of a group that lies in the group itself."""
    link = group.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        aim = f"{getattr(link, 'filename', '')} {getattr(link, 'path', '')}".strip()
        raise RefusedError(f"'{name}' is a link to '{aim}', and netCDF files have none. Copy what it points to")
    return group[name]


def _address(part: Any) -> Any:
    return h5py.h5o.get_info(part.id).addr


def _attributes(part: Any) -> int:
    """Bytes that the attributes of a part claim."""
    return sum(h5py.h5a.open(part.id, index=i).get_storage_size() for i in range(h5py.h5a.get_num_attrs(part.id)))


def _checked(data: Any, where: str) -> int:
    """Bytes that an array claims, if it lies in the file and holds numbers or texts."""
    settings = data.id.get_create_plist()
    if data.is_virtual or settings.get_external_count():
        raise ValueError(f"{where} lies in another file")
    if data.dtype.kind not in "biufcSU" and h5py.check_string_dtype(data.dtype) is None:
        raise ValueError(f"{where} holds {data.dtype}, which is neither numbers nor texts")
    filters = [settings.get_filter(i)[0] for i in range(settings.get_nfilters())]
    if not _FILTERS.issuperset(filters):
        raise ValueError(f"{where} is packed by a filter of its own ({filters})")
    return max(int(data.size or 0), math.prod(data.chunks or ())) * int(data.dtype.itemsize)
