"""What a step changes outside of tensors: counters, lists, attributes that a graph would leave as they are."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from banel_pyro.capture.flat import CaptureError

__all__ = ["python_state", "refuse_changes"]

_DEPTH = 8
"""How far to look into functions, containers and objects."""

State = dict[str, Any]


def python_state(**roots: Any) -> State:
    """The numbers, texts, containers and tensor identities that some callables can reach, by the path to them.

    Looks into the variables and globals that a function uses, what it takes from modules and classes by name, and into
    the attributes of modules and objects of the user's, those of their classes too.

    Args:
        **roots: model, guide and the like, by the name to call them.
    """
    found: State = {}
    seen: set[int] = set()
    for name, root in roots.items():
        _visit(root, name, found, seen, _DEPTH)
    return found


def refuse_changes(before: State, after: State) -> None:
    """Refuse a step after which Python's state is another.

    Raises:
        CaptureError: naming what changed.
    """
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path, "nothing"), after.get(path, "nothing")
        if old != new and (old == old or new == new):  # NaN is NaN
            shown = ("another tensor",) if isinstance(new, _Identity) else (f"{old!r}", "to", f"{new!r}")
            raise CaptureError(
                f"a step changes {path} ({' '.join(shown)[:120]}), which a captured step would leave as it is. Keep "
                "such state in tensors that are changed in place (buffer.copy_(...)), or use capture=False."
            )


class _Identity(int):
    """Which object a tensor is."""


def _visit(item: Any, path: str, found: State, seen: set[int], depth: int) -> None:
    if item is None or isinstance(item, bool | int | float | complex | str | bytes):
        found[path] = item
    elif isinstance(item, Tensor):
        found[path] = _Identity(id(item))
    elif isinstance(item, np.ndarray | np.random.RandomState | np.random.Generator):
        found[path] = repr(item.__reduce__()) if not isinstance(item, np.ndarray) else item.tobytes()
    elif id(item) not in seen and depth:
        seen.add(id(item))
        for name, part in _parts(item):
            _visit(part, f"{path}{name}", found, seen, depth - 1)


def _parts(item: Any) -> Iterator[tuple[str, Any]]:
    """What lies inside of a container, a function or an object, with how it is reached."""
    if isinstance(item, list | tuple | set | frozenset):
        yield " (length)", len(item)
        for i, part in enumerate(list(item)[:100]):
            yield f"[{i}]", part
    elif isinstance(item, Mapping):
        yield " (length)", len(item)
        for key, part in list(item.items())[:100]:
            yield f"[{key!r}]", part
    elif isinstance(item, types.MethodType):
        yield "", item.__self__
        yield "", item.__func__
    elif isinstance(item, functools.partial):  # as Pyro's handlers are
        yield "", item.func
        yield from ((f" (bound {i})", part) for i, part in enumerate([*item.args, *item.keywords.values()]))
    elif isinstance(item, types.FunctionType):
        if _home(item) not in _LIBRARIES:
            yield from _variables(item)
    elif _is_users(item):
        yield from ((f".{name}", part) for name, part in _attributes(item).items())


def _variables(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """The variables of outer functions and the globals that a function uses, and its defaults."""
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f" → {name}", cell.cell_contents
        except ValueError:  # not set yet
            continue
    names = _names(code)
    for name in names:
        part = function.__globals__.get(name)
        if not isinstance(part, types.ModuleType | type):
            yield f" → {name}", part
        elif _home(part) not in _LIBRARIES:  # settings.beta
            yield from ((f" → {name}.{inner}", vars(part)[inner]) for inner in names & vars(part).keys())
    for i, part in enumerate([*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]):
        yield f" (default {i})", part
    yield from ((f".{name}", part) for name, part in vars(function).items())


def _names(code: types.CodeType) -> set[str]:
    """The names that a function uses, those of functions inside of it too."""
    inner = [part for part in code.co_consts if isinstance(part, types.CodeType)]
    return set(code.co_names).union(*(_names(part) for part in inner))


_CALLED = ("__call__", "__getitem__")
"""Methods with names of this kind that a step may use."""
_OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes that every module has."""


def _attributes(item: Any) -> dict[str, Any]:
    """Attributes of an object, and those of its class that are the user's: numbers, methods."""
    users = [cls for cls in type(item).__mro__ if _home(cls) not in _LIBRARIES]
    of_class = {k: v for cls in reversed(users) for k, v in vars(cls).items() if not k.startswith("__") or k in _CALLED}
    return of_class | _own_attributes(item)


def _own_attributes(item: Any) -> dict[str, Any]:
    own = {k: v for k, v in vars(item).items() if k not in _OF_TORCH and not k.startswith("_pyro")}
    if isinstance(item, nn.Module):
        own |= {k: v for k, v in item._buffers.items() if v is not None} | dict(item._modules)
    return own


def _is_users(item: Any) -> bool:
    """Whether an object is of a class outside of the libraries, which keep caches that mean nothing."""
    if not hasattr(item, "__dict__") or isinstance(item, type | types.ModuleType):
        return False
    package = _home(type(item))
    return package not in _LIBRARIES or (package == "torch" and isinstance(item, nn.Module))


_LIBRARIES = ("pyro", "torch", "banel_pyro", "numpy", "functools", "builtins")


def _home(item: Any) -> str:
    """The package that a class, a function or a module is of."""
    name = item.__name__ if isinstance(item, types.ModuleType) else item.__module__
    return str(name).partition(".")[0]
