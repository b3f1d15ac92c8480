"""What a step on more than one process does beside arithmetic, as operators that a graph can hold.

Each is a function of its tensors as far as a graph is concerned, and is called through Python from compiled code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
import torch.distributed as collective
from torch import Tensor

__all__ = ["add_up", "alone", "swap_stream"]

_alone = False


@contextmanager
def alone() -> Iterator[None]:
    """In the block nothing is exchanged with other processes: for runs whose values nobody looks at."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def swap_stream(state: Tensor, device: torch.device | None = None) -> None:
    """Exchange the state of torch's generator with another one.

    Args:
        state: the other one, as ``torch.Generator.get_state`` gives it; changed in place.
        device: whose generator, by default the CPU's.
    """
    _operators().swap_stream.default(state, -1 if device is None or device.type == "cpu" else device.index or 0)


def add_up(tensor: Tensor) -> None:
    """Replace a tensor by its sum over all processes, in place."""
    _operators().add_up.default(tensor)


@cache
def _operators() -> torch._ops._OpNamespace:
    """The operators, defined when they are used for the first time."""
    _library.define("swap_stream(Tensor(a!) state, int cuda) -> ()")
    _library.impl("swap_stream", _swap, "CPU")
    _library.impl("swap_stream", lambda state, cuda: None, "Meta")
    _library.define("add_up(Tensor(a!) tensor) -> ()")
    _library.impl("add_up", _all_reduce, "CompositeExplicitAutograd")
    _library.impl("add_up", lambda tensor: None, "Meta")
    return torch.ops.banel_pyro


def _swap(state: Tensor, cuda: int) -> None:
    generator = torch.default_generator if cuda < 0 else torch.cuda.default_generators[cuda]
    before = generator.get_state()
    generator.set_state(state)
    state.copy_(before)


def _all_reduce(tensor: Tensor) -> None:
    if not _alone:
        collective.all_reduce(tensor)


_library = torch.library.Library("banel_pyro", "FRAGMENT")
