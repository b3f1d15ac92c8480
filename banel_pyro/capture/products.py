"""Which matrix product: torch's own (MKL, OpenBLAS), or oneDNN's in the same build, whichever is faster here.

On AMD processors oneDNN multiplies float32 matrices up to twice as fast as MKL, on Intel's mostly slower. A flat graph
has its products with their shapes, so that each can be measured once and replaced. Convolutions go to oneDNN anyway,
and for batched products the build has no second kernel.

The operator is private in torch. Where it is missing or refuses, torch's own product stays.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from banel_pyro.seeding import kept_rng

__all__ = ["Products", "choose_products", "replace_products"]

_log = logging.getLogger("banel_pyro")

SWITCH = "BANEL_PRODUCTS"
"""Environment variable: ``torch`` leaves all products as they are, ``onednn`` takes oneDNN wherever it can be."""

FASTER = 1.1
"""How much faster oneDNN has to be to be taken: a difference within the noise of a machine is none."""
LEAST = 2e6
"""Floating-point operations of a product from which on it is measured: for smaller ones the call is what costs."""

Products = dict[str, str]
"""By product, whose kernel it takes: ``"torch"`` or ``"onednn"``."""


def choose_products(graph: GraphModule, inputs: Sequence[Tensor], decisions: Products) -> dict[Node, str]:
    """Decide about each matrix product of a graph.

    Args:
        graph: the graph.
        inputs: example inputs.
        decisions: what was decided before, which is kept; what is new is added.

    Returns:
        The products, by node; names of decisions.

    Raises:
        ValueError: if the environment asks for an unknown kernel.
    """
    switch = os.environ.get(SWITCH, "auto")
    if switch not in ("auto", "torch", "onednn"):
        raise ValueError(f"{SWITCH}={switch!r}: expected 'auto', 'torch' or 'onednn'. Unset it for 'auto'.")
    if switch == "torch" or not _has_onednn():
        return {}
    with torch.no_grad(), kept_rng():
        found = _Shapes(graph).of(inputs)
    for operands in found.values():
        key = _key(*operands)
        if switch == "onednn":
            decisions[key] = "onednn"
        elif key not in decisions:
            decisions[key] = _remembered(key, lambda operands=operands: _faster(*operands))  # type: ignore[misc]
    return {node: _key(*operands) for node, operands in found.items()}


def replace_products(graph: GraphModule, chosen: Mapping[Node, str], decisions: Products) -> None:
    """Give each matrix product of a graph the kernel that was decided on.

    Args:
        graph: the graph, changed in place.
        chosen: its products, from :func:`choose_products`.
        decisions: by name.
    """
    for node, key in chosen.items():
        if decisions[key] == "onednn":
            _replace(node)
    graph.recompile()


def _replace(node: Node) -> None:
    node.args = (None, *node.args) if node.target is torch.ops.aten.mm.default else tuple(node.args)
    node.target = torch.ops.banel_pyro.product.default


class _Shapes(Interpreter):
    """Runs a graph to see the operands of its products."""

    def of(self, inputs: Sequence[Tensor]) -> dict[Node, tuple[Tensor | None, Tensor, Tensor]]:
        """The operands of each float32 product that is large enough to matter, by node."""
        self._found: dict[Node, tuple[Tensor | None, Tensor, Tensor]] = {}
        before = [tensor.detach().clone() for tensor in inputs]
        self.run(*before)  # which changes its inputs
        return self._found

    def run_node(self, n: Node) -> Any:
        """Note the operands of a product, then run it."""
        if n.target in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default) and not n.kwargs:
            operands = [self.env[arg] for arg in n.args if isinstance(arg, Node)]
            bias, (a, b) = (operands[0] if len(operands) == 3 else None), operands[-2:]
            fits = bias is None or bias.dim() == 1
            if a.dtype == torch.float32 and a.is_cpu and fits and 2 * a.shape[0] * b.numel() >= LEAST:
                self._found[n] = (bias, a, b)
        return super().run_node(n)


# ---- measuring -----------------------------------------------------------------------------------


def _faster(bias: Tensor | None, a: Tensor, b: Tensor) -> str:
    """Whose product of these operands is faster, or torch's if oneDNN's is not the same."""
    ours, theirs = (lambda: torch.ops.banel_pyro.product(bias, a, b)), (lambda: _of_torch(bias, a, b))
    try:
        torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-5 * float(a.abs().max() * b.abs().max() + 1))
    except (AssertionError, RuntimeError):
        return "torch"
    ratios = sorted(_seconds(theirs) / _seconds(ours) for _ in range(5))
    return "onednn" if ratios[2] > FASTER else "torch"


def _of_torch(bias: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    return a @ b if bias is None else torch.addmm(bias, a, b)


def _seconds(product: Callable[[], Tensor], calls: int = 5) -> float:
    product()
    start = time.perf_counter()
    for _ in range(calls):
        product()
    return time.perf_counter() - start


def _key(bias: Tensor | None, a: Tensor, b: Tensor) -> str:
    layout = [("" if t.is_contiguous() else "t") for t in (a, b)]
    sizes = f"{a.shape[0]}{layout[0]}x{a.shape[1]}x{b.shape[1]}{layout[1]}"
    return f"{sizes}{'' if bias is None else '+bias'} on {torch.get_num_threads()} threads"


def _remembered(key: str, measure: Callable[[], str]) -> str:
    """A decision of this machine's, from the file in inductor's cache, or made now and kept there."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    file = Path(cache_dir()) / "banel_pyro" / "products.json"
    machine = f"{_processor()}, torch {torch.__version__}"
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        known = {}
    if not isinstance(known, dict) or not isinstance(known.setdefault(machine, {}), dict):
        known = {}
    found = known.get(machine, {}).get(key)
    if found not in ("torch", "onednn"):
        found = known.setdefault(machine, {})[key] = measure()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            aside = file.with_suffix(f".{os.getpid()}")
            aside.write_text(json.dumps(known, indent=1))
            os.replace(aside, file)
        except OSError as error:
            _log.debug("which matrix product is faster is not remembered: %s", error)
    return str(found)


@cache
def _processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    return " ".join(value.strip() for name, value in facts.items() if name.strip() in ("model name", "model"))


# ---- the operator --------------------------------------------------------------------------------


@cache
def _has_onednn() -> bool:
    """Whether oneDNN's product can be called; defines it as an operator of ours the first time."""
    try:
        operator = torch.ops.mkldnn._linear_pointwise.default
        operator(torch.ones(2, 3), torch.ones(4, 3), None, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return False
    library = torch.library.Library("banel_pyro", "FRAGMENT")
    library.define("product(Tensor? bias, Tensor a, Tensor b) -> Tensor")
    library.impl("product", lambda bias, a, b: operator(a, b.t(), bias, "none", [], ""), "CPU")
    library.impl("product", lambda bias, a, b: a.new_empty(a.shape[0], b.shape[1]), "Meta")
    _keep.append(library)
    _call_directly(operator)
    return True


_keep: list[Any] = []
"""The library of our operator, which lives as long as this object."""


def _call_directly(operator: Any) -> None:
    """Let compiled code call oneDNN without going through Python, if this inductor can be told how."""
    try:
        from torch._inductor import ir, lowering

        transpose = lowering.lowerings[torch.ops.aten.permute.default]

        def lowered(bias: Any, a: Any, b: Any) -> Any:
            found = ir.FallbackKernel.create(operator, a, transpose(b, [1, 0]), bias, "none", [], "")
            return ir.TensorBox.create(found)

        lowering.register_lowering(torch.ops.banel_pyro.product.default, type_promotion_kind=None)(lowered)
    except (ImportError, AttributeError, KeyError, TypeError) as error:
        _log.debug("oneDNN's product is called through Python: %s", error)
