"""All parameters of a pair, however Pyro holds them, in one optimiser and one saved state."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions import constraints as pyro_constraints
from torch import Tensor, nn
from torch.distributions import constraints
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from banel_pyro.modules import modules_of, reachable_modules
from banel_pyro.states import check_moments
from banel_pyro.training.optimizers import OptimizerFactory, SchedulerFactory, checked_optimizer, checked_scheduler

__all__ = ["Parameters", "plain_copy", "safe_constraints"]


class Parameters:
    """The unconstrained parameters of a model and a guide, and the one optimiser over them.

    ``pyro.param`` and ``pyro.module`` statements and the parameters of torch modules all count. One
    that first appears at a later step joins the optimiser then.

    Args:
        model: the model.
        guide: the guide.
        factory: a ``torch.optim`` class, or any callable from a list of tensors to an optimiser.
        options: keyword arguments of ``factory``, such as ``{"lr": 1e-3}``.
        scheduler: from the optimiser to a scheduler of its learning rate, or None.
    """

    def __init__(
        self,
        model: Any,
        guide: Any,
        factory: OptimizerFactory,
        options: dict[str, Any],
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        self._modules = modules_of(model, guide)
        self._buffers = [m for m in reachable_modules(model, guide) if m not in self._modules]
        self._factory, self._options, self._make_scheduler = factory, options, scheduler
        self._known: dict[Tensor, str] = {}
        self._groups: list[list[str]] = []
        self._complete = -1  # size of the param store when all that it held was ours
        self.optimizer: torch.optim.Optimizer | None = None
        self.scheduler: LRScheduler | None = None
        self.lr: float | None = None

    def names(self) -> dict[str, Tensor]:
        """The parameters by name, unconstrained."""
        return {name: tensor for tensor, name in self._known.items()}

    def trained(self) -> dict[str, Tensor]:
        """Those that have gradients: without the decaying averages that Pyro keeps for baselines among parameters."""
        return {name: tensor for tensor, name in self._known.items() if not name.startswith("__baseline_avg_")}

    def running(self) -> list[Tensor]:
        """What modules hold beside parameters and move themselves, such as the running means of BatchNorm."""
        found = {id(b): b for m in (*self._modules, *self._buffers) for b in m.buffers() if b.is_floating_point()}
        return list(found.values())

    # ---- finding and moving them ------------------------------------------------------------

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Note the parameters that a block uses, and give new ones to the optimiser."""
        if len(pyro.get_param_store()._params) == self._complete:  # a new one will show in the size of the store
            yield
            if len(pyro.get_param_store()._params) != self._complete:
                self._note({p: n for n, p in pyro.get_param_store()._params.items()})
            return
        with poutine.trace(param_only=True) as capture:
            yield
        sites = capture.trace.nodes.values()
        used = {_unconstrained(site["value"]): str(site["name"]) for site in sites if site["type"] == "param"}
        if not self._known:
            used |= {p: n for m in self._modules for n, p in m.named_parameters() if p not in used}
        self._note(used)

    def _note(self, used: dict[Tensor, str]) -> None:
        new = {p: n for p, n in used.items() if p not in self._known and p.requires_grad}
        if new:
            self._add(new)
        stored = pyro.get_param_store()._params.values()
        ours = all(p in self._known for p in stored) and not pyro.settings.get("module_local_params")
        self._complete = len(stored) if ours else -1

    def _add(self, new: dict[Tensor, str]) -> None:
        self._known |= new
        self._groups.append(list(new.values()))
        if self.optimizer is None:
            self.optimizer = checked_optimizer(self._factory(list(new), **self._options))
            if self._make_scheduler is not None:
                self.scheduler = checked_scheduler(self._make_scheduler(self.optimizer), self.optimizer)
        elif len(self.optimizer.param_groups) == 1:  # the group that a scheduler knows
            self.optimizer.param_groups[0]["params"] += list(new)
        elif self.scheduler is None:
            self.optimizer.add_param_group({"params": list(new)})
        else:
            raise ValueError(
                f"parameters {list(new.values())} first appear after the first step, and the optimiser's groups of "
                "parameters have a scheduler each: make them at the first step, or use one group."
            )

    def clip(self, largest: float | None) -> Tensor:
        """The norm of the gradient over all parameters, which is then scaled down to at most ``largest``."""
        gradients = [p.grad for p in self._known if p.grad is not None]
        if not gradients:
            return torch.zeros(())
        norms = [norm.to(gradients[0]) for norm in torch._foreach_norm(gradients)]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        if largest is not None:
            torch._foreach_mul_(gradients, torch.clamp(largest / norm, max=1.0))
        return norm

    def step(self) -> None:
        """One step of the optimiser and of the learning rate's scheduler, gradients dropped afterwards."""
        if self.optimizer is None:
            return
        self.optimizer.step()
        for parameter in self._known:
            parameter.grad = None
        self.move_rate()

    def move_rate(self) -> None:
        """Let the scheduler set the learning rate of the next step."""
        if self.scheduler is not None and self.optimizer is not None:
            self.lr = float(self.optimizer.param_groups[0]["lr"])
            if not isinstance(self.scheduler, ReduceLROnPlateau):
                self.scheduler.step()

    @torch.no_grad()
    def cast(self, dtype: torch.dtype | None) -> None:
        """Put the parameters into a floating-point type, in place; None leaves them as they are."""
        for parameter in self._known:
            if dtype is not None and parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)

    @torch.no_grad()
    def move(self, device: torch.device) -> None:
        """Put modules and the param store on a device, in place."""
        for module in (*self._modules, *self._buffers):
            module.to(device)
        for parameter in pyro.get_param_store()._params.values():
            parameter.data = parameter.data.to(device)

    def judge(self, elbo: float) -> None:
        """Tell a scheduler that looks for a plateau the untempered ELBO of held-out rows, in nats."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(elbo)

    # ---- saving -----------------------------------------------------------------------------

    def _tensors(self) -> dict[str, Tensor]:
        """What modules hold: parameters and buffers of the pair's own, buffers of those it closes over."""
        own = {f"{i}.{k}": v for i, m in enumerate(self._modules) for k, v in m.state_dict(keep_vars=True).items()}
        other = {f"closure{i}.{k}": v for i, m in enumerate(self._buffers) for k, v in m.named_buffers()}
        return {name: tensor for name, tensor in (own | other).items() if isinstance(tensor, Tensor)}

    def state(self) -> dict[str, Any]:
        """Everything that a run changes: its parameters in the param store, its modules' tensors, the optimiser.

        ``groups`` has the names in the order in which they joined the optimiser. For those that joined after the
        first step, which a fresh pair has yet to make, ``constraints`` and ``owners`` say what they are.
        """
        store = pyro.get_param_store()
        later = {name for group in self._groups[1:] for name in group}
        tensors = self._tensors()
        clones: dict[int, Tensor] = {}  # of parameters that the param store and a module both hold

        def cloned(tensor: Tensor) -> Tensor:
            if id(tensor) not in clones:
                clones[id(tensor)] = tensor.detach().clone()
            return clones[id(tensor)]

        return {
            # one that modules share has several names in the store, and one here
            "params": {self._known[p]: cloned(p) for p in store._params.values() if p in self._known},
            "constraints": {name: _saved(store._constraints[name]) for name in later if name in store._params},
            "modules": {name: cloned(tensor) for name, tensor in tensors.items()},
            "owners": {name: self._known[t] for name, t in tensors.items() if self._known.get(t) in later},
            "groups": [list(names) for names in self._groups],
            "optimizer": None if self.optimizer is None else plain_copy(self.optimizer.state_dict()),
            "kinds": [type(item).__name__ for item in (self.optimizer, self.scheduler)],
            "scheduler": None if self.scheduler is None else plain_copy(copy.deepcopy(self.scheduler.state_dict())),
        }

    @torch.no_grad()
    def load(self, state: dict[str, Any], *, rollback: bool = False) -> None:
        """Put back what :meth:`state` saved, in place, so that modules, param store and optimiser stay one.

        Parameters that the pair has yet to make wait for it in the param store.

        Args:
            state: from :meth:`state`; with ``"optimizer": None`` the optimiser starts anew.
            rollback: drop parameters that the state does not know, because they were made later in the same run.

        Raises:
            ValueError: if names or shapes are not those of this pair.
        """
        if rollback:
            self._forget(self.names().keys() - {name for group in state["groups"] for name in group})
        self._check(state)
        store, known, tensors = pyro.get_param_store(), self.names(), self._tensors()
        for name, value in state["modules"].items():
            if name in tensors:
                tensors[name].copy_(value)
        for name, value in state["params"].items():
            if name in known:
                known[name].copy_(value)
            else:
                known[name] = _insert(store, name, value, state["constraints"][name])
        self._known, self._groups, self._complete = {}, [], -1
        self.optimizer, self.scheduler = None, None
        for names in state["groups"]:
            self._add({known[name]: name for name in names})
        for parameter in self._known:
            parameter.grad = None
        if self.optimizer is not None and state["optimizer"] is not None:
            _check_kinds(state["kinds"], [type(item).__name__ for item in (self.optimizer, self.scheduler)])
            try:
                self.optimizer.load_state_dict(plain_copy(state["optimizer"]))
                check_moments(self.optimizer)
                if self.scheduler is not None:
                    self.scheduler.load_state_dict(copy.deepcopy(state["scheduler"]))
            except Exception as error:  # whatever torch meets in what is none of its states
                raise ValueError(
                    f"optim: the state of the {state['kinds'][0]} that was saved does not fit the one here "
                    f"({type(error).__name__}: {error}). Go on with the same optimiser, scheduler and parameters."
                ) from error

    def _check(self, state: dict[str, Any]) -> None:
        """Refuse a state with other names or shapes; what a pair makes at a later step may be missing in it."""
        known, tensors = self.names(), self._tensors()
        waiting = {name for group in state["groups"][1:] for name in group} - known.keys()
        made = {n: v for n, v in state["modules"].items() if n in tensors or state["owners"].get(n) not in waiting}
        _check_same("module tensors", made, tensors)
        names = {name for group in state["groups"] for name in group} - waiting
        saved = {name: state["params"].get(name, known.get(name)) for name in names}
        _check_same("parameters", saved, known)

    def _forget(self, names: set[str]) -> None:
        store = pyro.get_param_store()
        for key, tensor in self._tensors().items():
            if self._known.get(tensor) in names:
                index, _, path = key.partition(".")
                _delete(self._modules[int(index)], path)
        for name in names & store._params.keys():
            del store[name]
        self._known = {p: n for p, n in self._known.items() if n not in names}

    @contextmanager
    def alone(self, state: dict[str, Any] | None) -> Iterator[None]:
        """Go on from a state with nothing in the param store that it does not know.

        A run that stopped may have left parameters that it made after its last checkpoint: the resumed run makes
        them anew. What belongs to others comes back afterwards.
        """
        store = pyro.get_param_store()
        known = set() if state is None else {*state["params"], *self.names().values()}
        hidden = {
            n: (p, store._constraints[n])
            for n, p in store._params.items()
            if state and n not in known and p not in self._known
        }
        for name in hidden:
            del store[name]
        try:
            yield
        finally:
            for name, (parameter, constraint) in hidden.items():
                if name not in store._params:
                    _put(store, name, parameter, constraint)


def _unconstrained(value: Any) -> Tensor:
    # with Pyro's module-local parameters a plain parameter has no unconstrained one beside it
    unconstrained: Tensor = value.unconstrained() if hasattr(value, "unconstrained") else value
    return unconstrained


@functools.cache
def safe_constraints() -> frozenset[type]:
    """Classes that a saved state may name: the constraints of torch and Pyro, which only hold numbers."""
    found = [item for module in (constraints, pyro_constraints) for item in vars(module).values()]
    classes = [item if isinstance(item, type) else type(item) for item in found]
    return frozenset(c for c in classes if issubclass(c, constraints.Constraint))


def _saved(constraint: Any) -> Any:
    """A constraint if it can be read back, else None: a class of the user's is code, which a state never loads."""
    parts = [part for part in vars(constraint).values() if isinstance(part, constraints.Constraint)]
    fine = type(constraint) in safe_constraints() and all(_saved(part) is not None for part in parts)
    return constraint if fine else None


def _delete(module: nn.Module, path: str) -> None:
    place, _, leaf = path.rpartition(".")
    owner = module.get_submodule(place)
    constrained = leaf.removesuffix("_unconstrained")
    delattr(owner, constrained if constrained in getattr(owner, "_pyro_params", {}) else leaf)


def _insert(store: Any, name: str, value: Tensor, constraint: Any) -> Tensor:
    """Let a parameter wait in the param store for the pair to ask for it."""
    if constraint is None:
        raise ValueError(
            f"parameter '{name}' first appears at a later step, with a constraint that is not one of torch's or Pyro's "
            "and was not saved. Make the parameter at the first step, or use a constraint of torch.distributions."
        )
    parameter = nn.Parameter(value.to(torch.get_default_device(), copy=True))
    _put(store, name, parameter, constraint)
    return parameter


def _put(store: Any, name: str, parameter: Tensor, constraint: Any) -> None:
    store._params[name] = parameter
    store._constraints[name] = constraint
    store._param_to_name[parameter] = name


def _check_kinds(saved: list[str], current: list[str]) -> None:
    """Refuse the state of another optimiser or scheduler, whose numbers would mean something else here."""
    for option, old, new in zip(("optim", "lr_scheduler"), saved, current, strict=True):
        if old != new:
            raise ValueError(f"{option}: the state was saved by {old}, here it is {new}. Go on with the same.")


def _check_same(what: str, saved: dict[str, Tensor], current: dict[str, Tensor]) -> None:
    missing, unexpected = sorted(set(saved) - set(current)), sorted(set(current) - set(saved))
    if missing or unexpected:
        raise ValueError(
            f"the state is of another pair: {what} saved but not in the pair {missing}, in the pair but not saved "
            f"{unexpected}. Use the pair that wrote it."
        )
    for name, value in saved.items():
        if value.shape != current[name].shape:
            raise ValueError(
                f"the state is of another pair: '{name}' has shape {tuple(value.shape)} in it and "
                f"{tuple(current[name].shape)} here. Use the pair that wrote it."
            )


def plain_copy(tree: Any) -> Any:
    """A copy of tensors, numbers and containers of them, with Python's numbers for numpy's, which a state cannot hold.

    Args:
        tree: what is copied, its keys too.
    """
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, np.generic):
        return tree.item()
    if isinstance(tree, dict):
        copied = copy.copy(tree)  # a Counter of a scheduler's stays one
        copied.clear()
        for key, value in tree.items():
            copied[plain_copy(key)] = plain_copy(value)
        return copied
    if isinstance(tree, list | tuple):
        return type(tree)(plain_copy(v) for v in tree)
    return tree
