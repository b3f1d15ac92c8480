"""Numbers that a user gives, checked: what every option of their kind goes through."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

__all__ = ["integer", "number", "seed_number"]


def integer(name: str, value: Any, least: int = 1, most: float = math.inf) -> int:
    """An integer option within bounds.

    Raises:
        TypeError, ValueError: if it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}={value!r}: expected an integer. Write {name}={least}, for instance.")
    if not least <= int(value) <= most:
        bound = f"at least {least}" if int(value) < least else f"at most {most:g}"
        raise ValueError(f"{name}={value!r}: expected an integer of {bound}. Write {name}={least}, for instance.")
    return int(value)


def number(name: str, value: Any) -> float:
    """A finite number.

    Raises:
        TypeError, ValueError: if it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r}: expected a number. Write an int or a float.")
    if not math.isfinite(value):
        raise ValueError(f"{name}={value!r}: expected a finite number. Write the one you mean.")
    return float(value)


def seed_number(seed: Any) -> int:
    """A seed that torch, NumPy and Python's ``random`` all take: 0 to 2³² − 1.

    Raises:
        TypeError, ValueError: if it is none.
    """
    return integer("seed", seed, 0, 2**32 - 1)
