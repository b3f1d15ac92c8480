"""Numbers that a user gives, checked: what every option of their kind goes through."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from torch import nn

__all__ = ["check_callable", "instance", "integer", "number", "probability", "seed_number"]


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
    try:
        found = float(value)
    except OverflowError:  # an integer of hundreds of digits
        found = math.inf
    if not math.isfinite(found):
        raise ValueError(f"{name}={value!r}: expected a finite number. Write the one you mean.")
    return found


def seed_number(seed: Any) -> int:
    """A seed that torch, NumPy and Python's ``random`` all take: 0 to 2³² − 1.

    Raises:
        TypeError, ValueError: if it is none.
    """
    return integer("seed", seed, 0, 2**32 - 1)


def probability(name: str, value: Any) -> float:
    """A probability that is neither 0 nor 1.

    Raises:
        TypeError, ValueError: if it is none.
    """
    if not 0 < number(name, value) < 1:
        raise ValueError(f"{name}={value!r}: expected a probability between 0 and 1, such as 0.9.")
    return float(value)


def instance(name: str, value: Any, kinds: tuple[type, ...], expected: str) -> None:
    """An option of some types.

    Args:
        name: of the option.
        value: its value.
        kinds: types that it may have.
        expected: what they are, and what to write, in words.

    Raises:
        TypeError: if it has another.
    """
    if not isinstance(value, kinds):
        raise TypeError(f"{name}={value!r}: expected {expected}.")


def check_callable(name: str, function: Any, arguments: Sequence[Any]) -> None:
    """Refuse a model or guide that cannot be called with the rows of the data.

    Args:
        name: ``"model"`` or ``"guide"``.
        function: the function, module or autoguide.
        arguments: the rows.

    Raises:
        TypeError: saying what it takes, and what it gets.
    """
    if not callable(function):
        raise TypeError(
            f"{name}={function!r}: expected a callable with pyro.sample statements. Pass the function or module itself."
        )
    try:
        signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):  # Python cannot tell of some that are written in C
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(
            f"{name} takes {signature} and gets the {len(arguments)} tensors of data ({error}): expected an argument "
            "for each. Pass data=(x, y) for a model(x, y), and None where it takes none."
        ) from error
