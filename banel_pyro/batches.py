"""Data as rows: tensors with a common leading axis, checked, hashed, and in seeded minibatches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

__all__ = [
    "Rows",
    "Split",
    "as_rows",
    "data_hash",
    "epoch_order",
    "loader_batch_size",
    "minibatches",
    "num_rows",
    "transformed",
]

Rows: TypeAlias = tuple[Tensor, ...]
"""Tensors with a common leading axis, passed positionally to model and guide."""


@dataclass(frozen=True)
class Split:
    """Training data, held-out data, and a transform of each training batch.

    Args:
        train: a tensor, a tuple of tensors with a common leading axis, a ``Dataset`` or a ``DataLoader``.
        held_out: the same for data that are never trained on, or None.
        transform: applied to the tuple of rows of each training batch, before model and guide see it,
            for instance dynamic binarisation. Draws from the run's generator; never applied to ``held_out``.
    """

    train: Any
    held_out: Any = None
    transform: Callable[[Rows], Rows] | None = None

    def first(self, rows: Rows, batch: int) -> Rows:
        """The first ``batch`` rows, transformed as in training."""
        return transformed(tuple(row[:batch] for row in rows), self.transform)


def transformed(rows: Rows, transform: Callable[[Rows], Rows] | None) -> Rows:
    """Rows as model and guide see them.

    Raises:
        TypeError: if the transform returns no tuple of tensors.
        ValueError: if it changes the number of rows.
    """
    if transform is None:
        return rows
    result = transform(rows)
    if not isinstance(result, tuple) or not all(isinstance(row, Tensor) for row in result):
        kind = type(result).__name__
        raise TypeError(f"transform returned a {kind}: expected a tuple of tensors, as it gets. Write (x,) for one.")
    if rows and any(len(row) != len(rows[0]) for row in result):
        lengths = [len(row) for row in result]
        raise ValueError(f"transform returned {lengths} rows for {len(rows[0])}: expected a row for each row.")
    return result


def as_rows(data: Any, name: str = "data") -> Rows:
    """Data of any accepted kind as a tuple of tensors with a common leading axis (empty for None).

    A ``DataLoader`` stands for its dataset and its ``collate_fn``; the order of its rows is ours.

    Args:
        data: a tensor, an array, a tuple of them, a ``Dataset``, a ``DataLoader``, or None.
        name: what error messages call it.

    Raises:
        TypeError: for anything else.
        ValueError: for no rows, lengths that differ, NaN or inf.
    """
    if data is None or (isinstance(data, tuple) and not data):
        return ()
    if isinstance(data, DataLoader | Dataset):
        data = _collated(data, name)
    items: Sequence[Any] = data if isinstance(data, tuple | list) else (data,)
    rows = tuple(_as_tensor(item, f"{name}[{i}]" if len(items) > 1 else name) for i, item in enumerate(items))
    lengths = [len(row) for row in rows]
    if not rows or min(lengths) == 0:
        shapes = [tuple(row.shape) for row in rows]
        raise ValueError(
            f"{name} has no rows (shapes {shapes}): expected at least one. A model without data takes None."
        )
    if len(set(lengths)) > 1:
        raise ValueError(
            f"the tensors of {name} have lengths {lengths}: expected a common leading axis, one row per datum. "
            "Cut them to the same rows."
        )
    return rows


def _collated(data: Any, name: str) -> Any:
    """All rows of a dataset at once, put together as its loader does."""
    collate: Callable[[list[Any]], Any] = default_collate
    if isinstance(data, DataLoader):
        _refuse_other_sampler(data, name)
        collate, data = data.collate_fn, data.dataset
    if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
        raise TypeError(
            f"{name} is a {type(data).__name__} without a length: expected rows with numbers, which a seeded order can "
            "pick. Collect it into tensors first."
        )
    if isinstance(data, TensorDataset) and collate is default_collate:
        return data.tensors
    if not len(data):
        raise ValueError(f"{name} is an empty {type(data).__name__}: expected at least one row.")
    return collate([data[i] for i in range(len(data))])


def _refuse_other_sampler(loader: DataLoader[Any], name: str) -> None:
    if not isinstance(loader.sampler, RandomSampler | SequentialSampler) or loader.batch_size is None:
        raise TypeError(
            f"{name} is a DataLoader with a {type(loader.sampler).__name__} and batch_size={loader.batch_size}: each "
            "row is to be seen once an epoch. Pass the dataset itself, for a subset torch.utils.data.Subset."
        )


def loader_batch_size(data: Any) -> int | None:
    """The batch size that a ``DataLoader`` asks for, at most the size of its data; None for other data."""
    if not isinstance(data, DataLoader) or data.batch_size is None:
        return None
    return min(data.batch_size, len(data.dataset))  # type: ignore[arg-type]


def _as_tensor(item: Any, name: str) -> Tensor:
    if isinstance(item, np.ndarray) and item.dtype.kind in "biufc":
        item = torch.from_numpy(np.array(item, dtype=item.dtype.newbyteorder("=")))
    if not isinstance(item, Tensor):
        kind = f"{type(item).__name__} of dtype {item.dtype}" if isinstance(item, np.ndarray) else type(item).__name__
        raise TypeError(
            f"{name} is a {kind}: expected a tensor, a tuple of tensors, a Dataset or a DataLoader. "
            "Convert it with torch.as_tensor(...)."
        )
    if item.dim() == 0:
        raise ValueError(f"{name} is a single number: expected a leading axis over data points. Write x.reshape(1).")
    if (item.is_floating_point() or item.is_complex()) and not bool(torch.isfinite(item).all()):
        bad = (~torch.isfinite(item)).reshape(len(item), -1).any(1).nonzero().flatten()
        raise ValueError(
            f"{name} has NaN or inf in {len(bad)} of {len(item)} rows, the first at row {int(bad[0])}: expected finite "
            "numbers. Drop these rows, or impute them in the model with obs_mask."
        )
    return item


def num_rows(rows: Rows) -> int:
    """Rows of data; 0 for a model without arguments."""
    return len(rows[0]) if rows else 0


def data_hash(rows: Rows) -> str:
    """SHA-256 over dtype, shape and bytes of the rows: tells whether two runs saw the same data."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.dtype}{tuple(row.shape)}".encode())
        digest.update(row.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def epoch_order(size: int, seed: int, epoch: int) -> Tensor:
    """The order of the rows in one epoch: a function of seed and epoch alone, so it needs no state."""
    mixed = int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()[:8], "little") >> 1
    return torch.randperm(size, generator=torch.Generator().manual_seed(mixed), device="cpu")


def minibatches(rows: Rows, batch_size: int | None) -> Iterator[tuple[Tensor, Rows]]:
    """All rows in order, in chunks of at most ``batch_size``, as (indices, rows)."""
    size = num_rows(rows)
    if not rows:
        yield torch.arange(0), ()
        return
    step = batch_size or size
    for start in range(0, size, step):
        index = torch.arange(start, min(start + step, size))
        yield index, tuple(row[start : start + step] for row in rows)
