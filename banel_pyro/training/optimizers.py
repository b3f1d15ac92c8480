"""Optimisers and schedulers of torch as a user gives them: factories, checked when they have made something."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

__all__ = ["OptimizerFactory", "SchedulerFactory", "check_plateau", "checked_optimizer", "checked_scheduler"]

OptimizerFactory: TypeAlias = Callable[..., torch.optim.Optimizer]
SchedulerFactory: TypeAlias = Callable[[torch.optim.Optimizer], LRScheduler]


def checked_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """Refuse what a factory returned if it is no optimiser, or one that calls the loss itself."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optim returned a {type(optimizer).__name__}: expected a torch.optim.Optimizer. Write "
            "optim=lambda params: torch.optim.Adam(params, lr=1e-3)."
        )
    if inspect.signature(optimizer.step).parameters["closure"].default is inspect.Parameter.empty:
        raise TypeError(
            f"optim is {type(optimizer).__name__}, which evaluates the loss several times a step: expected an "
            "optimiser of stochastic gradients, such as torch.optim.Adam."
        )
    return optimizer


def checked_scheduler(scheduler: Any, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Refuse what a factory returned if it is no scheduler of this optimiser, or one that would minimise the ELBO.

    Raises:
        TypeError: if it is no scheduler.
        ValueError: if it is of another optimiser, or looks for a plateau from the wrong side.
    """
    if not isinstance(scheduler, LRScheduler):
        raise TypeError(
            f"lr_scheduler returned a {type(scheduler).__name__}: expected a scheduler of torch.optim.lr_scheduler. "
            "Write lr_scheduler=lambda optimizer: CosineAnnealingLR(optimizer, T_max=1000)."
        )
    if scheduler.optimizer is not optimizer:
        raise ValueError("lr_scheduler returned a scheduler of another optimiser: use the one that it is given.")
    if isinstance(scheduler, ReduceLROnPlateau) and scheduler.mode != "max":
        raise ValueError(
            f"lr_scheduler: ReduceLROnPlateau has mode={scheduler.mode!r}, but it is told the held-out ELBO, which is "
            "maximised. Write ReduceLROnPlateau(optimizer, mode='max')."
        )
    return scheduler


def check_plateau(scheduler: LRScheduler | None, held_out: Sequence[Tensor]) -> None:
    """Refuse a scheduler that waits for held-out numbers which will not come.

    Raises:
        ValueError: for ``ReduceLROnPlateau`` without held-out rows.
    """
    if isinstance(scheduler, ReduceLROnPlateau) and not held_out:
        raise ValueError("lr_scheduler: ReduceLROnPlateau needs held-out rows to look at. Give validation=.")
