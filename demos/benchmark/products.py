"""How fast the matrix products of a VAE's step can be: the best kernel at hand for each of their shapes."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from banel_pyro import Pair

Kernel = Callable[[], object]


@dataclass(frozen=True)
class Product:
    """A product (m, k) by (k, n).

    Args:
        m: Rows of the first matrix.
        k: Its columns.
        n: Columns of the second one.
    """

    m: int
    k: int
    n: int

    @property
    def gflop(self) -> float:
        """Multiplications and additions, in billions."""
        return 2e-9 * self.m * self.k * self.n


def step_products(pair: Pair, batch: int) -> list[Product]:
    """The products of a step's loss and gradients: three a layer, but two for the first, whose input needs none."""
    layers = [m for net in (pair.guide.encode, pair.model.decode) for m in net if isinstance(m, torch.nn.Linear)]
    found = []
    for i, layer in enumerate(layers):
        inputs, outputs = layer.in_features, layer.out_features
        found += [Product(batch, inputs, outputs), Product(outputs, batch, inputs)]
        found += [Product(batch, outputs, inputs)] if i > 0 else []
    return found


def kernels(product: Product) -> Mapping[str, Kernel]:
    """The ways to do it that this torch has: what `mm` calls, and oneDNN."""
    a, b = torch.randn(product.m, product.k), torch.randn(product.k, product.n)
    found: dict[str, Kernel] = {"mm": lambda: a @ b}
    if _onednn(a, b) is not None:
        weight = b.T.contiguous()
        found["oneDNN"] = lambda: torch.ops.mkldnn._linear_pointwise(a, weight, None, "none", [], "")
    return found


def _onednn(a: Tensor, b: Tensor) -> Tensor | None:
    """The product by oneDNN, or None where torch does not offer it: the operator is private."""
    try:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.T.contiguous(), None, "none", [], "")
    except (AttributeError, RuntimeError):
        return None
    return found if torch.allclose(found, a @ b, rtol=1e-3, atol=1e-2) else None


def best_rates(products: list[Product], *, repeats: int, seconds: float = 0.02) -> tuple[list[float], list[float]]:
    """GFLOP/s that the products of a step could reach, in each round.

    Args:
        products: The products.
        repeats: Rounds.
        seconds: For how long a kernel is tried in a round.

    Returns:
        All of them one after the other, each by its best kernel; and the best one of them alone.
    """
    tried = {product: kernels(product) for product in dict.fromkeys(products)}
    together, alone = [], []
    for _ in range(repeats):
        took = {product: min(_seconds(kernel, seconds) for kernel in tried[product].values()) for product in tried}
        total = sum(product.gflop for product in products)
        together.append(total / sum(took[product] for product in products))
        alone.append(max(product.gflop / took[product] for product in tried))
    return together, alone


def _seconds(kernel: Kernel, seconds: float) -> float:
    """The median time of a call."""
    kernel()
    times, until = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < until:
        start = time.perf_counter()
        kernel()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
