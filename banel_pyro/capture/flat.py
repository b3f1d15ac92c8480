"""One flat graph of tensor operations from a Python function that works on live tensors.

The function runs once under non-strict tracing (``make_fx``): Pyro's handlers, autograd and the optimiser's Python
all run then, and what is left of them is the list of tensor operations that they asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyro
import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.graph import CodeGen
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from banel_pyro.seeding import kept_rng

__all__ = ["Body", "CaptureError", "FlatGraph", "as_found", "flat_graph", "unvalidated"]

Body: TypeAlias = Callable[..., Sequence[Tensor]]
"""What is captured: a function of tensors that returns tensors, and may read and change live tensors in place."""


class CaptureError(RuntimeError):
    """A step cannot be captured, or the captured step is not the eager one. The message says why, and what to do."""


@dataclass(frozen=True)
class FlatGraph:
    """A body as a graph of tensor operations.

    Args:
        module: the graph as a module, called as ``module(*arguments, *held)``.
        held: the live tensors that it reads or changes in place: parameters, buffers, data, the optimiser's state.
        changed: which of them it may change.
    """

    module: GraphModule
    held: tuple[Tensor, ...]
    changed: tuple[Tensor, ...]

    @torch.no_grad()
    def __call__(self, *arguments: Tensor) -> list[Tensor]:
        """Run the operations one by one."""
        return list(self.module(*arguments, *self.held))


def flat_graph(body: Body, arguments: Sequence[Tensor]) -> FlatGraph:
    """Trace a body, leaving all tensors and generators as they were.

    Args:
        body: the function.
        arguments: example arguments; the graph is for these shapes and types only.

    Raises:
        CaptureError: if the body asks for the value of a tensor, or does else what a graph cannot hold.
    """
    # of their own: one that is there twice, or is a live tensor as well, would be one input of the graph
    arguments = [tensor.detach().clone() for tensor in arguments]
    with unvalidated(), kept_rng():
        found = _discover(body, arguments)
        held, changed = tuple(found.tensors), tuple(found.originals)
        with as_found(changed):
            graph = _traced(body, arguments, held)
    used = [not node.users for node in graph.graph.nodes if node.op == "placeholder"][len(arguments) :]
    _drop_unused(graph, len(arguments))
    held = tuple(tensor for tensor, unused in zip(held, used, strict=True) if not unused)
    return FlatGraph(graph, held, tuple(t for t in changed if any(t is h for h in held)))


@contextmanager
def unvalidated() -> Iterator[None]:
    """Switch off the validation of distributions and of Pyro: it asks for the values of tensors."""
    with pyro.validation_enabled(False):
        yield


@contextmanager
def as_found(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Run a block, then put the values of some tensors back."""
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        put_back(tensors, before)


@torch.no_grad()
def put_back(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy values into tensors."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.detach().copy_(value)  # through detach: a leaf that requires a gradient may not be changed in place


class _Discover(TorchDispatchMode):
    """Notes the tensors that come from outside of a block, and the values of those that it changes in place."""

    def __init__(self, arguments: Sequence[Tensor]) -> None:
        super().__init__()
        self._made: dict[int, Tensor] = {id(tensor): tensor for tensor in arguments}
        self._outside: dict[int, Tensor] = {}
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors from outside."""
        return list(self._outside.values())

    @property
    def originals(self) -> list[Tensor]:
        """Those of them whose storage is changed."""
        return [t for t in self.tensors if _storage(t) in self._before]

    def restore(self) -> None:
        """Put back what was changed."""
        put_back([t for t, _ in self._before.values()], [value for _, value in self._before.values()])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        literal = func in (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default)
        for tensor in _tensors((args, kwargs)):
            if id(tensor) not in self._made and id(tensor) not in self._outside:
                (self._made if literal else self._outside)[id(tensor)] = tensor
        for tensor in _written(func, args, kwargs):
            self._keep(tensor)
        result = func(*args, **kwargs)
        self._made |= {id(t): t for t in _tensors(result) if id(t) not in self._outside}
        return result

    def _keep(self, tensor: Tensor) -> None:
        """Keep the value of what is about to be changed, if it lies in the storage of a tensor from outside."""
        storage = _storage(tensor)
        if storage in self._before:
            return
        for outside in self._outside.values():
            if _storage(outside) == storage:
                self._before[storage] = (outside, outside.detach().clone())
                return


def _discover(body: Body, arguments: Sequence[Tensor]) -> _Discover:
    found = _Discover(arguments)
    try:
        with found:
            body(*arguments)
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(_why(error)) from error
    finally:
        found.restore()
    return found


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() or id(tensor)


_WRITES_UNTOLD = {
    torch.ops.aten.native_batch_norm.default: (3, 4),
    torch.ops.aten.cudnn_batch_norm.default: (3, 4),
    torch.ops.aten.miopen_batch_norm.default: (3, 4),
}
"""Operations that change arguments without their schema saying so."""


def _written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operation changes in place."""
    found: list[Tensor] = [args[i] for i in _WRITES_UNTOLD.get(func, ()) if isinstance(args[i], Tensor)]
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += _tensors(args[i] if i < len(args) else kwargs.get(argument.name))
    return found


def _traced(body: Body, arguments: Sequence[Tensor], held: Sequence[Tensor]) -> GraphModule:
    """The graph with arguments and held tensors as its inputs."""

    def function(*inputs: Tensor) -> list[Tensor]:
        return list(body(*inputs[: len(arguments)]))

    try:
        with _no_values():
            graph = make_fx(function)(*arguments, *held)
    except Exception as error:  # whatever it is, it ran before and does not under tracing
        raise CaptureError(_why(error)) from error
    _refuse_strays(graph, held)
    for node in graph.graph.nodes:
        node.meta.clear()  # example values, which would be kept alive and have no use
    graph.graph.set_codegen(CodeGen())
    graph.graph.eliminate_dead_code(_is_effect)
    graph.recompile()
    return graph


@contextmanager
def _no_values() -> Iterator[None]:
    """Refuse what reads the values of a tensor past the dispatcher, where tracing would not see it."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(_ASKS_FOR_VALUE)

    with patched(Tensor, numpy=refuse, tolist=refuse, __array__=refuse):
        yield


_ASKS_FOR_VALUE = "trying to get value out of a tracing tensor"
"""What ``make_fx`` says at ``.item()``."""


def _why(error: Exception) -> str:
    text = str(error)
    if _ASKS_FOR_VALUE in text or "_local_scalar_dense" in text:
        return (
            "model, guide or objective ask for the value of a tensor (.item(), float(...), .numpy(), a branch on it), "
            "which is another one at each step. Write it with tensors (torch.where), or use capture=False."
        )
    line = text.strip().splitlines()[0] if text.strip() else ""
    return f"the step cannot be traced ({type(error).__name__}: {line[:200]}). Use capture=False."


def _refuse_strays(graph: GraphModule, held: Sequence[Tensor]) -> None:
    """Refuse tensors that share memory with a live one and came in unseen, as those of NumPy's views do."""
    storages = {_storage(tensor) for tensor in held}
    for node in graph.graph.nodes:
        if node.op == "get_attr" and _storage(getattr(graph, node.target)) in storages:
            raise CaptureError(
                "model, guide or objective make a tensor of the memory of another one (torch.from_numpy of a view). "
                "Use the tensor itself, or capture=False."
            )


def _is_effect(node: Node) -> bool:
    """Whether a node stays in the graph although nobody reads it: draws move the generator, writes a tensor."""
    if node.op in ("placeholder", "output") or node.is_impure():
        return True
    func = node.target
    if not isinstance(func, torch._ops.OpOverload):
        return False
    return torch.Tag.nondeterministic_seeded in func.tags or func._schema.is_mutable or func in _WRITES_UNTOLD


def _drop_unused(graph: GraphModule, first: int) -> None:
    """Take out the held inputs that nothing reads."""
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"][first:]
    for node in inputs:
        if not node.users:
            graph.graph.erase_node(node)
    graph.recompile()


@contextmanager
def patched(owner: Any, **values: Any) -> Iterator[None]:
    """Set attributes for a while."""
    with ExitStack() as stack:
        for name, value in values.items():
            inherited = name not in vars(owner)
            stack.callback(*(delattr, owner, name) if inherited else (setattr, owner, name, getattr(owner, name)))
            setattr(owner, name, value)
        yield
