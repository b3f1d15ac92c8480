"""Randomness that is ours alone: seeded, and the caller's generators left as they were found."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro.util import get_rng_state, set_rng_state

__all__ = ["fork_rng", "load_rng_state", "rng_state"]


@contextmanager
def fork_rng(seed: int) -> Iterator[None]:
    """Run a block on seeded generators (torch, Python, NumPy), then put the caller's state back.

    Example:
        >>> with fork_rng(0):
        ...     first = torch.rand(())
        >>> with fork_rng(0):
        ...     assert torch.rand(()) == first
    """
    state = get_rng_state()
    try:
        pyro.set_rng_seed(seed)
        yield
    finally:
        set_rng_state(state)


def rng_state() -> dict[str, Any]:
    """The state of the three generators, in types that load with ``weights_only=True``."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "random": [version, list(internal), gauss],
    }


def load_rng_state(state: dict[str, Any]) -> None:
    """Put the three generators into a state from :func:`rng_state`."""
    torch.set_rng_state(state["torch"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss = state["random"]
    random.setstate((version, tuple(internal), gauss))
