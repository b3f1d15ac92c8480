"""The floating-point type of a run: its data, its modules, and what is made while it lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from banel_pyro.batches import Rows
from banel_pyro.modules import reachable_modules

__all__ = ["cast_modules", "cast_rows", "checked_dtype", "default_dtype", "dtype_name"]

_NAMES = {torch.float32: "float32", torch.float64: "float64"}


def checked_dtype(dtype: Any) -> torch.dtype | None:
    """A type that a run can be in, or None for torch's default; from a config also by its name.

    Raises:
        TypeError: for anything else.
    """
    if dtype is None:
        return None
    for known, name in _NAMES.items():
        if dtype in (known, name):
            return known
    raise TypeError(f"dtype={dtype!r}: expected torch.float32, torch.float64 or None for torch's default.")


def dtype_name(dtype: torch.dtype | None) -> str | None:
    """The name of a type for a config; None for one that a run cannot ask for."""
    return None if dtype is None else _NAMES.get(dtype)


@contextmanager
def default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """Run a block in which new tensors are of this type; None leaves the default as it is."""
    before = torch.get_default_dtype()
    if dtype is not None:
        torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def cast_rows(rows: Rows, dtype: torch.dtype | None) -> Rows:
    """Rows with their floating-point tensors in this type; counts and labels stay as they are."""
    return tuple(row.to(dtype) if dtype is not None and row.is_floating_point() else row for row in rows)


def cast_modules(dtype: torch.dtype | None, *callables: Any) -> None:
    """Put the modules of models and guides into this type, in place, as ``module.to(dtype)`` does."""
    if dtype is not None:
        for module in reachable_modules(*callables):
            module.to(dtype)
