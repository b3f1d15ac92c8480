"""Which rows are in a step: data as tensors, seeded minibatches, and the data plate told so."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

__all__ = [
    "DataPlate",
    "Rows",
    "Split",
    "as_rows",
    "data_hash",
    "epoch_order",
    "find_data_plate",
    "minibatches",
]
__all__ += ["has_local_parameters", "tell_autoguide"]

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
        head = tuple(row[:batch] for row in rows)
        return self.transform(head) if self.transform is not None else head


def as_rows(data: Any, name: str = "data") -> Rows:
    """Data of any accepted kind as a tuple of tensors with a common leading axis (empty for None).

    Raises:
        TypeError: for anything that is not a tensor, an array, a tuple of them, a Dataset or a DataLoader.
        ValueError: for no rows, lengths that differ, NaN or inf.
    """
    if data is None or (isinstance(data, tuple | list) and len(data) == 0):
        return ()
    if isinstance(data, DataLoader):
        data = data.dataset
    if isinstance(data, TensorDataset):
        data = data.tensors
    elif isinstance(data, Dataset):
        if not len(data):  # type: ignore[arg-type]
            raise ValueError(f"{name} is an empty {type(data).__name__}: expected at least one row.")
        data = default_collate([data[i] for i in range(len(data))])  # type: ignore[arg-type]
    items: Sequence[Any] = data if isinstance(data, tuple | list) else (data,)
    rows = tuple(_as_tensor(item, f"{name}[{i}]" if len(items) > 1 else name) for i, item in enumerate(items))
    lengths = [len(row) for row in rows]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"the tensors of {name} have lengths {lengths}: expected a common leading axis (one row per datum)."
        )
    if lengths[0] == 0:
        raise ValueError(f"{name} has no rows (shape {tuple(rows[0].shape)}): expected at least one.")
    return rows


def _as_tensor(item: Any, name: str) -> Tensor:
    if isinstance(item, np.ndarray):
        item = torch.from_numpy(item)
    if not isinstance(item, Tensor):
        raise TypeError(
            f"{name} is a {type(item).__name__}: expected a tensor, a tuple of tensors, a Dataset or a DataLoader. "
            "Convert it with torch.as_tensor(...)."
        )
    if item.dim() == 0:
        raise ValueError(f"{name} is a single number: expected a leading axis over data points. Write x.reshape(1).")
    if item.is_floating_point() and not bool(torch.isfinite(item).all()):
        bad = (~torch.isfinite(item)).reshape(len(item), -1).any(1).nonzero().flatten()
        raise ValueError(
            f"{name} has NaN or inf in {len(bad)} of {len(item)} rows, the first at row {int(bad[0])}: expected finite "
            "numbers. Drop these rows, or impute them in the model with obs_mask."
        )
    return item


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
    return torch.randperm(size, generator=torch.Generator().manual_seed(mixed))


class DataPlate(Messenger):  # type: ignore[misc]
    """Tells the data plate, in model and guide alike, which rows are in the batch.

    A plate written over the full size N gets the batch's indices, so that Pyro scales its sites by
    N/B and picks the right rows of local parameters. A plate over ``len(x)`` is left alone.

    Args:
        name: name of the plate, or None if the model has none.
        size: N, rows in the data that the plate was written for.
        scaled: True for a plate over N, False for one over ``len(x)``.
    """

    def __init__(self, name: str | None, size: int, *, scaled: bool) -> None:
        super().__init__()
        self.name, self.size, self.scaled = name, size, scaled
        self._index: Tensor | None = None

    def rows(self, index: Tensor | None) -> DataPlate:
        """The same messenger, for the rows with these indices (None: whatever the model itself says)."""
        self._index = index
        return self

    def factor(self, batch: int) -> float:
        """What Pyro's totals over a batch are to be divided by to get nats per datum."""
        return float(self.size if self.scaled else batch)

    def _pyro_sample(self, msg: Any) -> None:
        if self._index is None or not self.scaled or msg["name"] != self.name or not site_is_subsample(msg):
            return
        if msg["value"] is self._index:
            return
        _check_subsample(msg, len(self._index))
        msg["value"] = self._index


def _check_subsample(msg: Any, batch: int) -> None:
    fixed = msg["fn"].subsample_size
    if msg["value"] is not None:
        raise ValueError(
            f"plate '{msg['name']}' has a subsample= of its own, so it cannot be told which rows are in the batch. "
            f"Write pyro.plate('{msg['name']}', {msg['fn'].size})."
        )
    if fixed is not None and fixed != batch:
        raise ValueError(
            f"plate '{msg['name']}' has subsample_size={fixed}, but the batch has {batch} rows. "
            f"Write pyro.plate('{msg['name']}', {msg['fn'].size}) without subsample_size."
        )


class _Discover(Messenger):  # type: ignore[misc]
    """Notes the plates of a model and tells those of full size which rows are in the batch."""

    def __init__(self, size: int, index: Tensor, only: str | None) -> None:
        super().__init__()
        self.size, self.index, self.only = size, index, only
        self.sizes: dict[str, int] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg):
            return
        size = self.sizes[msg["name"]] = msg["fn"].size
        told = msg["name"] == self.only or (self.only is None and size == self.size)
        if told and len(self.index) not in (0, size):
            _check_subsample(msg, len(self.index))
            msg["value"] = self.index


def find_data_plate(model: Callable[..., Any], first: Rows, size: int, name: str | None) -> DataPlate:
    """Find the plate over data points by running the model once on the first rows of ``size``.

    It is the plate called ``name``; without a name, the only plate whose size is that of the data, or of the batch.
    (A named plate may be of another size: held-out rows run through a model written for N training rows.)

    Raises:
        ValueError: if minibatches are asked for and no plate, or more than one, can be told which rows they are.
    """
    batch = len(first[0]) if first else 0
    index = torch.arange(batch)
    found = _Discover(size, index, name)
    with found:
        trace = pyro.poutine.trace(model).get_trace(*first)
    if name is not None and name not in found.sizes:
        raise ValueError(f"data_plate='{name}': the model has no plate of that name, only {sorted(found.sizes)}.")
    candidates = (
        [n for n, s in found.sizes.items() if n == name or (name is None and s in (size, batch))] if first else []
    )
    if len(candidates) != 1 and batch == size:
        return DataPlate(None, size, scaled=False)
    if len(candidates) != 1:
        raise ValueError(_no_plate(found.sizes, candidates, size, batch))
    full = found.sizes[candidates[0]]
    plate = DataPlate(candidates[0], full, scaled=full == size or full != batch)
    if batch < size and not plate.scaled:
        _refuse_global_latents(trace, candidates[0], size, batch)
    return plate


def _no_plate(sizes: dict[str, int], candidates: list[str], size: int, batch: int) -> str:
    if candidates:
        return f"plates {candidates} could each be the one over data points. Name it: data_plate='{candidates[0]}'."
    return (
        f"minibatches of {batch} of {size} rows need a plate over data points, and the model has none of that size, only "
        f"{sizes or 'no plates'}. Write `with pyro.plate('data', {size}):` around what is local to a row."
    )


def _refuse_global_latents(trace: Any, plate: str, size: int, batch: int) -> None:
    outside = [
        name
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
        if plate not in [frame.name for frame in site["cond_indep_stack"]]
    ]
    if outside:
        raise ValueError(
            f"plate '{plate}' is written over the {batch} rows of the batch, but the latents {outside} lie outside it: their "
            f"priors would count {size / batch:g} times too much. Write pyro.plate('{plate}', {size}), the size of all data."
        )


@contextmanager
def tell_autoguide(guide: Any, plate: DataPlate) -> Iterator[None]:
    """Let an autoguide make the data plate over all N rows, however many it saw when it was first called.

    Pyro's autoguides remember the size of the batch that they first saw, and run the model once with
    every handler blocked; both keep them from learning which rows are in the batch.
    """
    if not isinstance(guide, AutoGuide) or not plate.scaled:
        yield
        return
    parts = [part for part in guide.modules() if isinstance(part, AutoGuide)]
    models, given = [part._model for part in parts], guide.create_plates
    for part in parts:
        part._model = (_told(part.model, plate),)
    if given is None:
        guide.create_plates = lambda *args, **kwargs: _plate_of(guide, plate)
    try:
        yield
    finally:
        guide.create_plates = given
        for part, model in zip(parts, models, strict=True):
            part._model = model


def _told(model: Callable[..., Any], plate: DataPlate) -> Callable[..., Any]:
    def told(*args: Any, **kwargs: Any) -> Any:
        with DataPlate(plate.name, plate.size, scaled=True).rows(plate._index):
            return model(*args, **kwargs)

    return told


def _plate_of(guide: AutoGuide, plate: DataPlate) -> list[Any]:
    frame = guide._prototype_frames.get(plate.name)
    return [] if frame is None else [pyro.plate(plate.name, plate.size, dim=frame.dim)]


def has_local_parameters(guide: Any, plate: DataPlate, parameters: Iterable[Tensor]) -> bool:
    """True if a guide has parameters for each row of the training data, and so none for new rows."""
    if isinstance(guide, AutoGuide) and plate.name in guide._prototype_frames:
        return True
    # Pyro marks a parameter that a plate has picked rows from
    return any(getattr(parameter, "_pyro_subsample", None) for parameter in parameters)


def minibatches(rows: Rows, batch_size: int | None) -> Iterator[tuple[Tensor, Rows]]:
    """All rows in order, in chunks of at most ``batch_size``, as (indices, rows)."""
    size = len(rows[0]) if rows else 0
    if not rows:
        yield torch.arange(0), ()
        return
    step = batch_size or size
    for start in range(0, size, step):
        index = torch.arange(start, min(start + step, size))
        yield index, tuple(row[start : start + step] for row in rows)
