"""A flat graph through inductor, without Dynamo: no guards, one call into generated C++."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from banel_pyro.capture.flat import FlatGraph

__all__ = ["CompiledGraph", "compiled", "has_compiler"]

_log = logging.getLogger("banel_pyro")

_OPTIONS: dict[str, Any] = {
    "fallback_random": True,  # draws of torch's generator, the same as eager's
    "cpp_wrapper": True,  # on the CPU: one call into C++, not a Python function that calls kernels
    "size_asserts": False,  # shapes are those of the graph: whoever calls it looked
    "alignment_asserts": False,
    "nan_asserts": False,
    "reorder_for_peak_memory": False,  # nothing but their order ties draws to the generator
    "memory_planning": True,  # one block for all that is made in a step, in place of dozens
    "cpp.vec_isa_ok": True,  # the vector instructions of this processor; to try them out takes ten seconds of g++
}


class CompiledGraph:
    """A compiled step: called with its arguments, it changes the live tensors in place.

    Args:
        flat: the graph it was compiled from.
        run: what inductor made of it.
        seconds: how long that took.
    """

    def __init__(self, flat: FlatGraph, run: Callable[..., Any], seconds: float) -> None:
        self.flat, self.seconds = flat, seconds
        self._run, self._held = run, flat.held

    def __call__(self, *arguments: Tensor) -> Sequence[Tensor]:
        """Run it. Gradients must be off: the graph holds its own."""
        return self._run(*arguments, *self._held)  # type: ignore[no-any-return]


def has_compiler() -> bool:
    """Whether inductor has a C++ compiler, and torch's own switch (``TORCH_COMPILE_DISABLE=1``) lets it."""
    if os.environ.get("TORCH_COMPILE_DISABLE") == "1":
        return False
    with _quiet():
        from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception:  # it raises kinds of its own
        return False
    return True


def compiled(flat: FlatGraph, arguments: Sequence[Tensor]) -> CompiledGraph:
    """Compile a flat graph for arguments of these shapes and types.

    Inductor keeps what it has compiled in a cache on disk, across runs.

    Args:
        flat: the graph.
        arguments: example arguments.

    Raises:
        Exception: whatever inductor raises.
    """
    start = time.perf_counter()
    inputs: list[Any] = [tensor.detach() for tensor in (*arguments, *flat.held)]
    with torch.no_grad(), _quiet():
        from torch._guards import TracingContext, tracing
        from torch._inductor import compile as compile_graph  # heavy to import
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        # on a GPU the call is hidden behind the kernels, and C++ around them takes long to compile
        on_cpu = all(tensor.is_cpu for tensor in inputs)
        options = _OPTIONS | {"cpp_wrapper": on_cpu}
        with tracing(TracingContext(FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True))):
            try:
                run = compile_graph(flat.module, inputs, options=options)
            except Exception:  # perhaps this compiler does not know all that the processor does
                run = compile_graph(flat.module, inputs, options=options | {"cpp.vec_isa_ok": None})
    return CompiledGraph(flat, run, time.perf_counter() - start)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep inductor's remarks from the user, who can do nothing about them: operations without a shortcut, imports."""
    logger = logging.getLogger("torch._inductor")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
