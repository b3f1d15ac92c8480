"""Candidates as bytes: what a ledger keeps of them, and what goes to other processes. No pickles."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

__all__ = ["Packed", "pack", "pack_rows", "unpack", "unpack_rows"]

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
        torch.float32, torch.float64, torch.complex64, torch.complex128,
    )
}  # fmt: skip
"""The types that a candidate may have, by name."""


@dataclass(frozen=True)
class Packed:
    """A tensor as bytes.

    Args:
        dtype: its name, one of :data:`DTYPES`.
        shape: its shape.
        data: its elements, row by row.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @cached_property
    def hash(self) -> str:
        """BLAKE2b (160 bits) over type, shape and bytes, as hexadecimal digits."""
        found = hashlib.blake2b(f"{self.dtype} {self.shape}\n".encode(), digest_size=20)
        found.update(self.data)
        return found.hexdigest()


def check_rows(x: Any) -> Tensor:
    """Candidates as a plain tensor on the CPU, one a row.

    Raises:
        TypeError, ValueError: if they are none.
    """
    if not isinstance(x, Tensor) or x.layout != torch.strided or x.is_quantized:
        found = f"a {x.layout} tensor" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise TypeError(f"x is {found}: expected a dense tensor of shape (n, *event_shape), a candidate a row.")
    if x.ndim == 0:
        raise ValueError("x is a scalar: expected shape (n, *event_shape). Write x.unsqueeze(0) for one candidate.")
    if x.dtype not in DTYPES.values():
        raise TypeError(f"x is of {x.dtype}: expected one of {', '.join(DTYPES)}.")
    return x.detach().cpu().contiguous()


def pack(x: Tensor) -> Packed:
    """A tensor from :func:`check_rows` as bytes."""
    flat = x.reshape(-1).view(torch.uint8)
    return Packed(str(x.dtype).removeprefix("torch."), tuple(x.shape), flat.numpy().tobytes())


def pack_rows(x: Any) -> list[Packed]:
    r"""Each candidate of a tensor of shape (n, \*event_shape).

    Raises:
        TypeError, ValueError: if it is no such tensor.
    """
    rows = check_rows(x)
    whole, shape = pack(rows), tuple(rows.shape[1:])
    size = math.prod(shape) * rows.element_size()
    return [Packed(whole.dtype, shape, whole.data[i * size : (i + 1) * size]) for i in range(len(rows))]


def unpack(packed: Packed) -> Tensor:
    """The tensor, with memory of its own.

    Raises:
        ValueError: if the bytes are not those of such a tensor.
    """
    if packed.dtype not in DTYPES or any(size < 0 for size in packed.shape):
        raise ValueError(f"a tensor of type {packed.dtype!r} and shape {packed.shape}: there is none.")
    dtype = DTYPES[packed.dtype]
    expected = math.prod(packed.shape) * dtype.itemsize
    if len(packed.data) != expected:
        raise ValueError(f"{len(packed.data)} bytes for {packed.dtype} of shape {packed.shape}: expected {expected}.")
    if not expected:
        return torch.empty(packed.shape, dtype=dtype)
    return torch.frombuffer(bytearray(packed.data), dtype=dtype).reshape(packed.shape)


def unpack_rows(rows: list[Packed]) -> Tensor:
    r"""Candidates of one type and shape as a tensor (n, \*event_shape).

    Raises:
        ValueError: if they differ in type or shape.
    """
    kinds = {(row.dtype, row.shape) for row in rows}
    if len(kinds) > 1:
        raise ValueError(f"candidates of several kinds, {sorted(kinds)}: expected one. Ask for a round at a time.")
    if not rows:
        return torch.empty(0)
    ((dtype, shape),) = kinds
    return unpack(Packed(dtype, (len(rows), *shape), b"".join(row.data for row in rows)))
