"""All parameters of a pair, however Pyro holds them, in one optimiser and one saved state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import pyro
import torch
from pyro.distributions import constraints as pyro_constraints
from pyro.poutine import trace as param_trace
from torch import Tensor, nn
from torch.distributions import constraints

__all__ = ["OptimizerFactory", "Parameters", "modules_of", "safe_constraints"]

OptimizerFactory: TypeAlias = Callable[..., torch.optim.Optimizer]


def modules_of(*callables: Any) -> list[nn.Module]:
    """The torch modules among models and guides: modules themselves, and the owners of bound methods."""
    found: list[nn.Module] = []
    for item in callables:
        owner = item if isinstance(item, nn.Module) else getattr(item, "__self__", None)
        if isinstance(owner, nn.Module) and owner not in found:
            found.append(owner)
    return found


class Parameters:
    """The unconstrained parameters of a model and a guide, and the one optimiser over them.

    ``pyro.param`` and ``pyro.module`` statements and the parameters of torch modules all count. One
    that first appears at a later step joins the optimiser then.

    Args:
        model: the model.
        guide: the guide.
        factory: a ``torch.optim`` class, or any callable from a list of tensors to an optimiser.
        options: keyword arguments of ``factory``, such as ``{"lr": 1e-3}``.
    """

    def __init__(self, model: Any, guide: Any, factory: OptimizerFactory, options: dict[str, Any]) -> None:
        self._modules = modules_of(model, guide)
        self._factory, self._options = factory, options
        self._known: dict[Tensor, str] = {}
        self._groups: list[list[str]] = []
        self.optimizer: torch.optim.Optimizer | None = None

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._known)

    def names(self) -> dict[str, Tensor]:
        """The parameters by name, unconstrained."""
        return {name: tensor for tensor, name in self._known.items()}

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Note the parameters that a block uses, and give new ones to the optimiser."""
        with param_trace(param_only=True) as capture:
            yield
        sites = capture.trace.nodes.values()
        used = {site["value"].unconstrained(): site["name"] for site in sites if site["type"] == "param"}
        if not self._known:
            used |= {p: n for m in self._modules for n, p in m.named_parameters() if p not in used}
        new = {p: n for p, n in used.items() if p not in self._known and p.requires_grad}
        if new:
            self._add(new)

    def _add(self, new: dict[Tensor, str]) -> None:
        self._known |= new
        self._groups.append(list(new.values()))
        if self.optimizer is None:
            self.optimizer = self._factory(list(new), **self._options)
        else:
            self.optimizer.add_param_group({"params": list(new)})

    def gradients(self) -> list[Tensor]:
        """The gradients that there are, after a backward pass."""
        return [p.grad for p in self._known if p.grad is not None]

    def step(self) -> None:
        """One step of the optimiser, gradients dropped afterwards."""
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    # ---- saving ----------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that a run changes: the param store, the modules' buffers and parameters, the optimiser."""
        store = pyro.get_param_store()
        modules = {
            f"{i}.{k}": v.detach().clone() for i, m in enumerate(self._modules) for k, v in m.state_dict().items()
        }
        return {
            "params": {name: store._params[name].detach().clone() for name in store._params},
            "constraints": {name: store._constraints[name] for name in store._params},
            "modules": modules,
            "groups": [list(names) for names in self._groups],
            "optimizer": None if self.optimizer is None else _clone(self.optimizer.state_dict()),
        }

    @torch.no_grad()
    def load(self, state: dict[str, Any], *, strict: bool = True) -> None:
        """Put back what :meth:`state` saved, in place, so that modules and param store stay one.

        Args:
            state: from :meth:`state`.
            strict: refuse a state that lacks some of the pair's parameters.

        Raises:
            ValueError: if names or shapes are not those of this pair.
        """
        store = pyro.get_param_store()
        modules = {f"{i}.{k}": v for i, m in enumerate(self._modules) for k, v in m.state_dict(keep_vars=True).items()}
        ours = {name: p for name, p in store._params.items() if name in state["params"] or name in self._known.values()}
        _check_same("module tensors", state["modules"], modules)
        if strict:
            later = {name for group in state["groups"][len(self._groups) :] for name in group}
            _check_same("parameters", {n: p for n, p in state["params"].items() if n in ours or n not in later}, ours)
        for name, value in state["modules"].items():
            modules[name].copy_(value)
        for name, value in state["params"].items():
            if name in store._params:
                store._params[name].copy_(value)
            else:  # it appears at a later step: wait for it in the store
                _insert(store, name, value, state["constraints"][name])
        for names in state["groups"][len(self._groups) :]:
            self._add({store._params[name]: name for name in names})
        if self.optimizer is not None and state["optimizer"] is not None and len(state["groups"]) == len(self._groups):
            self.optimizer.load_state_dict(_clone(state["optimizer"]))


def _insert(store: Any, name: str, value: Tensor, constraint: Any) -> None:
    parameter = value.clone().requires_grad_(True)
    store._params[name] = parameter
    store._constraints[name] = constraint
    store._param_to_name[parameter] = name


def _check_same(what: str, saved: dict[str, Tensor], current: dict[str, Tensor]) -> None:
    missing, unexpected = sorted(set(saved) - set(current)), sorted(set(current) - set(saved))
    if missing or unexpected:
        raise ValueError(
            f"the state is of another pair: {what} saved but not in the pair {missing}, in the pair but not saved {unexpected}."
        )
    for name, value in saved.items():
        if value.shape != current[name].shape:
            raise ValueError(
                f"the state is of another pair: '{name}' has shape {tuple(value.shape)} in it and {tuple(current[name].shape)} here."
            )


def _clone(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, dict):
        return {k: _clone(v) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_clone(v) for v in tree)
    return tree


def safe_constraints() -> Iterable[Any]:
    """Classes that a saved param store may name: the constraints of torch and Pyro, which only hold numbers."""
    found = {
        item if isinstance(item, type) else type(item)
        for module in (constraints, pyro_constraints)
        for item in vars(module).values()
        if isinstance(item, constraints.Constraint)
        or (isinstance(item, type) and issubclass(item, constraints.Constraint))
    }
    return sorted(found, key=lambda c: c.__qualname__)
