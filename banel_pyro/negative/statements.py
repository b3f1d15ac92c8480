"""``pyro.param`` statements as parameters of a torch module, apart from the param store of the caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _DIM_ALLOCATOR
from torch import Tensor, nn
from torch.distributions import transform_to

from banel_pyro.modules import modules_of, reachable_modules

__all__ = ["Constrained", "ParamStatements", "apart", "held_values", "module_parts"]


class Constrained(nn.Module):
    """Named tensors, each within a constraint, kept as unconstrained parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.constraints: dict[str, Any] = {}
        self.free = nn.ParameterList()

    def add(self, name: str, value: Any, constraint: Any = constraints.real) -> None:
        """Take a tensor in.

        Args:
            name: its name.
            value: within the constraint.
            constraint: of ``torch.distributions.constraints``.

        Raises:
            TypeError, ValueError: if it is no tensor of floating-point numbers inside the constraint.
        """
        tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.get_default_dtype())
        if not tensor.is_floating_point():
            raise TypeError(f"parameter '{name}' is of {tensor.dtype}: expected floating point. Write {name}.float().")
        with torch.no_grad():
            free = transform_to(constraint).inv(tensor.detach())
        if not (bool(constraint.check(tensor).all()) and bool(free.isfinite().all())):
            raise ValueError(f"parameter '{name}' is {tensor}: expected finite numbers inside {constraint}.")
        self.free.append(nn.Parameter(free.clone()))
        self.constraints[name] = constraint

    def __contains__(self, name: str) -> bool:
        return name in self.constraints

    def __getitem__(self, name: str) -> Any:
        return transform_to(self.constraints[name])(self.free[list(self.constraints).index(name)])


class ParamStatements(Messenger):
    """Answers ``pyro.param`` from a module, where handlers further out do not see it.

    Parameters of torch modules are left to those: a PyroModule makes statements for them as well.

    Args:
        values: what answers.
        owner: the module whose parameters are its own.
        held: initial values by name, from a param store: with these, unknown statements are taken into ``values``.
    """

    def __init__(self, values: Constrained, owner: nn.Module, held: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self._values, self._held = values, held
        self._owned = {id(value) for value in owner.parameters()}

    def _pyro_param(self, msg: Any) -> None:
        name, arguments = msg["name"], msg["args"]
        if name not in self._values:
            init = arguments[1] if len(arguments) > 1 else None
            if id(init) in self._owned or (init is None and name in pyro.get_param_store()):
                return  # of a module
            if self._held is None:
                raise ValueError(
                    f"pyro.param '{name}' was not there when the generator was made: expected the same parameters in "
                    "every run of the model."
                )
            if name not in self._held and init is None:
                raise ValueError(f"pyro.param '{name}' has no initial value. Write pyro.param('{name}', tensor).")
            value = self._held[name] if name in self._held else init() if callable(init) else init
            self._values.add(name, value, msg["kwargs"].get("constraint", constraints.real))
        msg["value"], msg["done"], msg["stop"] = self._values[name], True, True


@contextmanager
def apart() -> Iterator[None]:
    """Run a block where nothing outside is seen or changed: param store, handlers, and the axes of plates."""
    store = pyro.get_param_store()
    links = [(value, value.unconstrained) for _, value in store.named_parameters() if hasattr(value, "unconstrained")]
    # Inside plates of the caller those of the block would get axes to the left of theirs, and may not share a name.
    axes, _DIM_ALLOCATOR._stack = _DIM_ALLOCATOR._stack, []
    try:
        with store.scope(), poutine.block():
            yield
    finally:
        _DIM_ALLOCATOR._stack = axes
        for value, link in links:  # which `scope` cuts, and SVI needs
            value.unconstrained = link


def held_values() -> dict[str, Tensor]:
    """What the caller's param store holds: where statements that are taken into a generator start from."""
    store = pyro.get_param_store()
    return {name: store[name].detach().clone() for name in store.keys()}  # noqa: SIM118  # its own keys()


def module_parts(name: str, function: Any) -> list[nn.Module]:
    """The torch modules that a model or guide is made of.

    Args:
        name: of the argument.
        function: the model or guide.

    Raises:
        ValueError: for modules that it only closes over: a copy of the generator would share their weights.
    """
    own = modules_of(function)
    inside = {id(part) for top in own for part in top.modules()}
    others = sorted({type(m).__name__ for m in reachable_modules(function) if id(m) not in inside})
    if others:
        raise ValueError(
            f"{name} uses {others}, which are not a part of it: a copy of the generator would share their weights. "
            f"Make {name} a torch module (or PyroModule) that has them as attributes."
        )
    return own
