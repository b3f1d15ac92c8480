"""The data plate: found in the model, and told, in model and guide alike, which rows are in the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from banel_pyro.batches import Rows
from banel_pyro.modules import reachable_modules

__all__ = ["DataPlate", "find_data_plate", "local_parameters", "one_line", "tell_autoguide"]


class DataPlate(Messenger):
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
        """What Pyro's totals over a batch are to be divided by to get nats per datum (1 without a data plate)."""
        if self.name is None:
            return 1.0
        return float(self.size if self.scaled else batch)

    def _pyro_sample(self, msg: Any) -> None:
        if self._index is None or not self.scaled or msg["name"] != self.name or not site_is_subsample(msg):
            return
        if msg["value"] is self._index:
            return
        _check_subsample(msg, len(self._index))
        msg["value"] = self._index


def _check_subsample(msg: Any, batch: int) -> None:
    name, size, fixed = msg["name"], msg["fn"].size, msg["fn"].subsample_size
    if msg["value"] is not None:
        raise ValueError(
            f"plate '{name}' has a subsample= of its own, so it cannot be told which {batch} rows are in the batch. "
            f"Write pyro.plate('{name}', {size}) and let batch_size= choose the rows."
        )
    if fixed is not None and fixed != batch:
        raise ValueError(
            f"plate '{name}' has subsample_size={fixed}, but model and guide get {batch} rows. "
            f"Write pyro.plate('{name}', {size}) without it and let batch_size={fixed} choose the rows."
        )


_ABOUT_SHAPES = ("mismatch", "must match", "broadcastable")
"""Words in the errors of a plate that does not fit the rows."""


@dataclass(frozen=True)
class _Seen:
    """The plates of a model as one run showed them."""

    sizes: dict[str, int]
    trace: Any = None
    error: Exception | None = None


class _Discover(Messenger):
    """Notes the plates of a model and tells those of full size which rows are in the batch."""

    def __init__(self, size: int, batch: int, only: str | None) -> None:
        super().__init__()
        self.size, self.index, self.only = size, torch.arange(batch), only
        self.sizes: dict[str, int] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg):
            return
        size = self.sizes[msg["name"]] = msg["fn"].size
        told = msg["name"] == self.only or (self.only is None and size == self.size)
        if told and len(self.index) not in (0, size):
            _check_subsample(msg, len(self.index))
            msg["value"] = self.index


def _look(model: Callable[..., Any], rows: Rows, size: int, name: str | None) -> _Seen:
    found = _Discover(size, len(rows[0]) if rows else 0, name)
    try:
        with found, torch.no_grad():
            trace = poutine.trace(model).get_trace(*rows)
            trace.compute_log_prob()
    except (ValueError, RuntimeError, IndexError) as error:  # a plate that does not fit the rows raises these
        return _Seen(found.sizes, error=error)
    return _Seen(found.sizes, trace)


def find_data_plate(
    model: Callable[..., Any], first: Rows, size: int, name: str | None, *, training: bool = True
) -> DataPlate:
    """Find the plate over data points by running the model on the first rows of ``size``.

    It is the plate called ``name``; without a name, the only plate whose size is that of the data, or of the batch.
    (A named plate may be of another size: held-out rows run through a model written for N training rows.)

    Args:
        model: the model.
        first: the first rows, as many as go into a batch.
        size: N, rows in all.
        name: name of the plate, or None to find it.
        training: whether minibatches stand for all rows, and not just for themselves.

    Raises:
        ValueError: if minibatches are asked for and no plate, or more than one, can be told which rows they are.
    """
    batch = len(first[0]) if first else 0
    seen = _look(model, first, size, name)
    if name is not None and name not in seen.sizes and seen.error is None:
        raise ValueError(f"data_plate='{name}': the model has no plate of that name, only {sorted(seen.sizes)}.")
    if seen.error is not None and not any(words in str(seen.error) for words in _ABOUT_SHAPES):
        raise seen.error
    fits = _candidates(seen.sizes, size, batch, name)
    if len(fits) != 1 and (batch < size or (seen.error is not None and seen.sizes)):
        raise ValueError(_no_plate(seen, fits, size, batch)) from seen.error
    if seen.error is not None:
        raise seen.error
    if len(fits) != 1:
        return DataPlate(None, size, scaled=False)
    full = seen.sizes[fits[0]]
    follows = _follows_batch(model, first, fits[0]) if full == size == batch else full == batch
    plate = DataPlate(fits[0], full, scaled=not follows)
    if batch < size:
        _check_minibatches(seen.trace, plate, size, batch, training=training)
    return plate


def _candidates(sizes: dict[str, int], size: int, batch: int, name: str | None) -> list[str]:
    if name is not None or not batch:
        return [name] if name in sizes and batch else []
    return [n for n, s in sizes.items() if s == size] or [n for n, s in sizes.items() if s == batch]


def _follows_batch(model: Callable[..., Any], rows: Rows, name: str) -> bool:
    """True if a plate is written over ``len(x)``: with a row fewer, it is smaller by one."""
    fewer = len(rows[0]) - 1
    other = tuple(row[:-1] for row in rows) if fewer else tuple(torch.cat([row, row]) for row in rows)
    seen = _look(model, other, len(rows[0]), name)
    return seen.sizes.get(name) == len(other[0])


def one_line(error: Exception) -> str:
    """What an error of Pyro's says, without its table of shapes."""
    return " ".join(str(error).partition("Trace Shapes:")[0].split())


def _no_plate(seen: _Seen, fits: list[str], size: int, batch: int) -> str:
    if fits:
        return f"plates {fits} could each be the one over data points. Name it: data_plate='{fits[0]}'."
    what = f"minibatches of {batch} of {size} rows need" if batch < size else f"{size} rows need"
    why = f" ({one_line(seen.error)})" if seen.error is not None else ""
    has = f"none of that size, only {seen.sizes}" if seen.sizes else "no plates"
    return (
        f"{what} a plate over data points, and the model has {has}{why}. "
        f"Write `with pyro.plate('data', {size}):` around what is local to a row."
    )


def _check_minibatches(trace: Any, plate: DataPlate, size: int, batch: int, *, training: bool) -> None:
    frames = [f for site in trace.nodes.values() for f in site.get("cond_indep_stack", ()) if f.name == plate.name]
    if any(not frame.vectorized for frame in frames):
        raise ValueError(
            f"plate '{plate.name}' is a loop over rows (for i in pyro.plate), which cannot be told which {batch} of "
            f"{size} rows are in the batch. Write `with pyro.plate('{plate.name}', {size}):`, or use batch_size=None."
        )
    if training and not plate.scaled:
        _refuse_global_latents(trace, plate, size, batch)


def _refuse_global_latents(trace: Any, plate: DataPlate, size: int, batch: int) -> None:
    outside = [
        name
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
        if plate.name not in [frame.name for frame in site["cond_indep_stack"]]
    ]
    if outside:
        raise ValueError(
            f"plate '{plate.name}' is written over the {batch} rows of the batch, but the latents {outside} lie "
            f"outside it: their priors would count {size / batch:g} times too much. Write pyro.plate('{plate.name}', "
            f"{size}), the size of all data."
        )


# ---- guides --------------------------------------------------------------------------------------


def local_parameters(guide: Any, guide_trace: Any, plate: DataPlate) -> list[str]:
    """Names of what a guide has for each row of the training data: parameters, or the latents of a joint autoguide."""
    guides = [g for g in reachable_modules(guide) if isinstance(g, AutoGuide) and plate.name in g._prototype_frames]
    found = [g._pyro_name for g in guides]
    for name, site in guide_trace.nodes.items():
        frames = [frame for frame in site.get("cond_indep_stack", ()) if frame.name == plate.name and frame.vectorized]
        if site["type"] != "param" or not frames or site["kwargs"].get("event_dim") is None:
            continue
        axis = frames[0].dim - site["kwargs"]["event_dim"]
        if site["value"].dim() >= -axis and site["value"].shape[axis] in (frames[0].size, frames[0].full_size):
            found.append(name)
    return found


@contextmanager
def tell_autoguide(guide: Any, plate: DataPlate) -> Iterator[None]:
    """Let autoguides make the data plate over all N rows, however many they saw when they were first called.

    Pyro's autoguides remember the size of the batch that they first saw, and run the model once with
    every handler blocked; both keep them from learning which rows are in the batch.
    """
    guides = [g for g in reachable_modules(guide) if isinstance(g, AutoGuide)] if plate.scaled else []
    with ExitStack() as stack:
        for found in guides:
            stack.enter_context(_told_autoguide(found, plate))
        yield


@contextmanager
def _told_autoguide(guide: AutoGuide, plate: DataPlate) -> Iterator[None]:
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
            _remember_full_size(part, plate)


def _told(model: Callable[..., Any], plate: DataPlate) -> Callable[..., Any]:
    """A model that knows which rows it gets, inside the handlers around it: ``poutine.block`` would hide its plate."""
    inner = model.func if isinstance(model, partial) and isinstance(model.func, partial) else model
    if isinstance(inner, partial) and len(inner.args) == 2 and isinstance(inner.args[0], Messenger):
        handler, core = inner.args
        wrapped: Callable[..., Any] = handler(_told(core, plate))
        return wrapped

    def told(*args: Any, **kwargs: Any) -> Any:
        with DataPlate(plate.name, plate.size, scaled=True).rows(plate._index):
            return model(*args, **kwargs)

    return told


def _plate_of(guide: AutoGuide, plate: DataPlate) -> list[Any]:
    frame = guide._prototype_frames.get(plate.name)
    return [] if frame is None else [pyro.plate(str(plate.name), plate.size, dim=frame.dim)]


def _remember_full_size(guide: AutoGuide, plate: DataPlate) -> None:
    """Leave an autoguide with the plate over all rows, so that it works on all data without us."""
    frame = guide._prototype_frames.get(plate.name)
    if frame is not None and frame.size != plate.size:
        guide._prototype_frames[plate.name] = frame._replace(size=plate.size, full_size=plate.size)
