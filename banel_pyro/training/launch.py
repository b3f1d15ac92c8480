"""Devices, precision and processes by name, started by Lightning Fabric, which only this file imports, and late."""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from banel_pyro.checks import integer
from banel_pyro.training.processes import Processes, leave

__all__ = ["PRECISIONS", "floating_type", "start"]

PRECISIONS = {"32-true": torch.float32, "64-true": torch.float64, "bf16-mixed": torch.float32}
"""Precisions by Fabric's names, and the floating-point type of data and parameters in each."""

_ACCELERATORS = ("auto", "cpu", "cuda", "gpu", "mps")
_STRATEGIES = ("auto", "ddp")


def floating_type(precision: str | None, dtype: torch.dtype | None) -> torch.dtype | None:
    """The type of data and parameters that a precision stands for; without one, ``dtype``.

    Raises:
        ValueError: for an unknown precision, or a ``dtype`` beside it that says something else.
    """
    wanted = PRECISIONS.get(_known("precision", precision, PRECISIONS), dtype)
    if dtype is not None and wanted != dtype:
        raise ValueError(
            f"precision={precision!r} has parameters of {wanted}, but dtype={dtype}: expected one of the two, or the "
            "same type in both. Leave dtype out."
        )
    return wanted


def start(
    *,
    accelerator: str | None = None,
    devices: int | str | Sequence[int] | None = None,
    strategy: str | None = None,
    precision: str | None = None,
    num_nodes: int | None = None,
) -> Processes:
    """The processes that the arguments of ``fit`` ask for, started if they are not running.

    Without arguments it is the one that there is, and nothing is imported, unless ``fabric run`` started it.

    Raises:
        TypeError, ValueError: for arguments that are unknown or do not go together.
        ModuleNotFoundError: if lightning-fabric is not installed.
        RuntimeError: if the processes of an earlier run were lost.
    """
    by_launcher = os.environ.get("LT_CLI_USED") == "1"  # fabric run
    asked = {"accelerator": accelerator, "devices": devices, "strategy": strategy, "num_nodes": num_nodes}
    if not by_launcher and precision is None and all(value is None for value in asked.values()):
        return Processes()
    _check(asked, precision)
    if Processes.parted:
        raise RuntimeError("the processes of this program parted when an earlier run failed: start the program again.")
    try:
        from lightning_fabric import Fabric  # heavy
    except ModuleNotFoundError as error:
        given = ", ".join(f"{n}={v!r}" for n, v in (asked | {"precision": precision}).items() if v is not None)
        raise ModuleNotFoundError(
            f"fit({given}) needs the package lightning-fabric: pip install 'banel-pyro[fabric]'."
        ) from error
    fabric = _fabric(Fabric, {name: value for name, value in asked.items() if value is not None})
    _check_count(fabric.world_size)
    if not by_launcher:
        fabric.launch()
    if fabric.world_size > 1:
        atexit.unregister(leave)  # at most once
        atexit.register(leave)
    precision = precision or os.environ.get("LT_PRECISION")
    return Processes(fabric.global_rank, fabric.world_size, fabric.device, _known("precision", precision, PRECISIONS))


def _fabric(fabric: Any, asked: dict[str, Any]) -> Any:
    """Fabric with these arguments; one device where it is not said how many."""
    if "LT_DEVICES" not in os.environ:
        asked = {"devices": 1} | asked
    try:
        return fabric(**asked)
    except Exception as error:  # Fabric raises many kinds
        given = ", ".join(f"{name}={value!r}" for name, value in asked.items())
        raise ValueError(f"Lightning Fabric refuses {given}: {' '.join(str(error).split())}") from error


def _check_count(count: int) -> None:
    """Refuse another number of processes than have been started, by torchrun or by an earlier run."""
    running = int(os.environ.get("WORLD_SIZE", count))
    if running != count:
        raise ValueError(
            f"devices= and num_nodes= ask for {count} processes, but this program has {running}: expected the same in "
            "every call of fit, and as many as torchrun starts. Use one number of devices."
        )


def _check(asked: Mapping[str, Any], precision: Any) -> None:
    _known("accelerator", asked["accelerator"], _ACCELERATORS)
    _known("strategy", asked["strategy"], _STRATEGIES)
    _known("precision", precision, PRECISIONS)
    devices = asked["devices"]
    if isinstance(devices, Sequence) and not isinstance(devices, str) and devices:
        for device in devices:
            integer("devices", device, 0)
    elif devices is not None and devices != "auto":
        integer("devices", devices)
    if asked["num_nodes"] is not None:
        integer("num_nodes", asked["num_nodes"])


def _known(name: str, value: Any, allowed: Sequence[str] | Mapping[str, Any]) -> Any:
    if value is not None and value not in tuple(allowed):
        example = next(iter(allowed))
        known = ", ".join(map(repr, allowed))
        raise ValueError(f"{name}={value!r}: expected one of {known}. Write {name}={example!r}, for instance.")
    return value
