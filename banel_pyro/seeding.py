"""Randomness that is ours alone: seeded, and the caller's generators left as they were found."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch

__all__ = ["draw_seed", "fork_rng", "kept_rng", "load_rng_state", "rng_state"]


def draw_seed() -> int:
    """A seed from torch's generator: runs without a seed of their own follow ``torch.manual_seed``."""
    return int(torch.randint(2**31, ()))


@contextmanager
def kept_rng() -> Iterator[None]:
    """Run a block, then put the generators (torch, Python, NumPy) back as they were."""
    state = rng_state()
    try:
        yield
    finally:
        load_rng_state(state)


@contextmanager
def fork_rng(seed: int) -> Iterator[None]:
    """Run a block on seeded generators (torch, Python, NumPy), then put the caller's state back.

    Example:
        >>> with fork_rng(0):
        ...     first = torch.rand(())
        >>> with fork_rng(0):
        ...     bool(torch.rand(()) == first)
        True
    """
    with kept_rng():
        pyro.set_rng_seed(seed)
        yield


def rng_state() -> dict[str, Any]:
    """The state of the generators, in types that load with ``weights_only=True``."""
    kind, keys, position, has_gauss, cached = np.random.get_state()  # the legacy tuple
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "random": [version, list(internal), gauss],
    }


def load_rng_state(state: dict[str, Any]) -> None:
    """Put the generators into a state from :func:`rng_state`."""
    torch.set_rng_state(state["torch"])
    for device, generator in enumerate(state["cuda"]):
        torch.cuda.set_rng_state(generator, device)
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss = state["random"]
    random.setstate((version, tuple(internal), gauss))
