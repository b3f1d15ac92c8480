"""The torch modules of a pair: what models and guides are, own, or close over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn

__all__ = ["evaluation_mode", "fresh_modules", "modules_of", "reachable_modules"]


def modules_of(*callables: Any) -> list[nn.Module]:
    """The torch modules among models and guides: modules themselves, and the owners of bound methods."""
    found: list[nn.Module] = []
    for item in callables:
        owner = item if isinstance(item, nn.Module) else getattr(item, "__self__", None)
        if isinstance(owner, nn.Module) and owner not in found:
            found.append(owner)
    return found


def reachable_modules(*callables: Any) -> list[nn.Module]:
    """The modules of :func:`modules_of`, then those that the callables close over, wrap or name as globals."""
    found: list[nn.Module] = modules_of(*callables)
    seen: set[int] = set()
    for item in callables:
        for module in _walk(item, seen):
            inside = {id(part) for top in found for part in top.modules()}
            if id(module) not in inside:
                found.append(module)
    return found


def fresh_modules(model: Any, guide: Any, seen: Sequence[nn.Module]) -> list[nn.Module]:
    """The modules of a pair that a user's function has made, none of which may be one of ``seen``.

    Raises:
        ValueError: if one is: a run would go on from what that has learnt, and change an earlier result.
    """
    found = reachable_modules(model, guide)
    shared = sorted({type(module).__name__ for module in found if any(module is other for other in seen)})
    if shared:
        raise ValueError(
            f"make() returned a pair with the same {shared} as before: expected a fresh pair at every call. Make "
            "networks and autoguides inside the function."
        )
    return found


def _walk(item: Any, seen: set[int], depth: int = 5) -> Iterator[nn.Module]:
    if id(item) in seen or depth == 0:
        return
    seen.add(id(item))
    if isinstance(item, nn.Module):
        yield item
        return
    for part in _parts(item):
        yield from _walk(part, seen, depth - 1)


def _parts(item: Any) -> list[Any]:
    if isinstance(item, partial):  # Pyro's handlers wrap a model in one
        return [item.func, *item.args, *item.keywords.values()]
    if isinstance(item, MethodType):
        return [item.__self__, item.__func__]
    if isinstance(item, FunctionType):
        return _named_by(item)
    if isinstance(item, list | tuple):
        return list(item)
    return [value for value in getattr(item, "__dict__", {}).values() if isinstance(value, nn.Module)]


def _named_by(function: FunctionType) -> list[Any]:
    """What a function closes over, and the globals that it names: modules, and functions of the same file."""
    named = [function.__globals__.get(name) for name in function.__code__.co_names]
    local = [f for f in named if isinstance(f, FunctionType) and f.__module__ == function.__module__]
    wrapped = [f for f in named if isinstance(f, nn.Module | partial)]
    return [_contents(cell) for cell in function.__closure__ or ()] + wrapped + local


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return None


@contextmanager
def evaluation_mode(*callables: Any) -> Iterator[None]:
    """Run a block with all modules of a pair in evaluation mode: no dropout, no running statistics updated."""
    training = [part for top in reachable_modules(*callables) for part in top.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
