"""The captured step held against the eager one: on other rows, other draws, other values of every input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from banel_pyro.capture.flat import Body, CaptureError, FlatGraph, as_found, unvalidated
from banel_pyro.seeding import fork_rng

__all__ = ["check_same", "difference"]

SAME_OPERATIONS = 2e3
"""Largest difference in roundings of the largest change that a step makes to a tensor (0.02 % in float32), where the
operations are the same: what was baked into a graph differs by far more."""
OTHER_ORDER = 4e5
"""The same for compiled code (5 % in float32), which adds in another order: where large terms cancel, as they do in the
gradient of a weight before a batch normalisation, little else is left. A fault of the compiler would be gross."""

Trial = tuple[list[Tensor], list[Tensor]]


def check_same(
    body: Body,
    graph: Callable[..., Sequence[Tensor]],
    flat: FlatGraph,
    trials: Sequence[Sequence[Tensor]],
    seed: int,
) -> None:
    """Run both from the same state with the same draws, and leave tensors and generators as they were.

    Args:
        body: the eager step.
        graph: what is to do the same.
        flat: the flat graph, which knows what they change.
        trials: arguments, one tuple a trial.
        seed: of the first trial; the next ones have the following seeds.

    Raises:
        CaptureError: naming what differs and by how much.
    """
    roundings, found = SAME_OPERATIONS if graph is flat else OTHER_ORDER, []
    for number, arguments in enumerate(trials):
        eager, captured = (_trial(step, flat, arguments, seed + number) for step in (body, graph))
        wrong = difference(eager, captured, before=flat.changed, roundings=roundings)
        found += [] if wrong is None else [f"in trial {number + 1} of {len(trials)}: {wrong}"]
    if found:  # only now: processes that share a step make all trials, or none
        raise CaptureError(
            f"the captured step differs from the eager one {found[0]}. Something in it is not a function of tensors "
            "and torch's generator: Python or NumPy randomness, a branch, a counter, sites that come and go. Use "
            "capture=False, or take that out."
        )


def _trial(step: Callable[..., Any], flat: FlatGraph, arguments: Sequence[Tensor], seed: int) -> Trial:
    with as_found(flat.changed), fork_rng(seed), unvalidated():
        outputs = [tensor.detach().clone() for tensor in step(*(tensor.clone() for tensor in arguments))]
        return outputs, [tensor.detach().clone() for tensor in flat.changed]


def difference(eager: Trial, captured: Trial, *, before: Sequence[Tensor], roundings: float) -> str | None:
    """What differs beyond rounding, in words; None if nothing does."""
    for what, ours, theirs in (("output", captured[0], eager[0]), ("live tensor", captured[1], eager[1])):
        if len(ours) != len(theirs):
            return f"{len(ours)} {what}s in place of {len(theirs)}"
        starts = before if what == "live tensor" else [torch.zeros_like(t) for t in theirs]
        for i, (a, b, start) in enumerate(zip(ours, theirs, starts, strict=True)):
            if a.shape != b.shape or a.dtype != b.dtype:
                return f"{what} {i} is {tuple(a.shape)} {a.dtype} in place of {tuple(b.shape)} {b.dtype}"
            worst = _distance(a, b, start.detach(), roundings)
            if worst > 1:
                return f"{what} {i} of shape {tuple(a.shape)} is off by {worst:.3g} times what rounding explains"
    return None


def _distance(a: Tensor, b: Tensor, start: Tensor, roundings: float) -> float:
    """The largest difference, in units of what is allowed."""
    if not a.is_floating_point():
        return 0.0 if bool((a == b).all()) else float("inf")
    if bool((torch.isfinite(a) != torch.isfinite(b)).any()):
        return float("inf")
    kind = a.dtype
    a, b, start = (torch.nan_to_num(t.double(), nan=0.0, posinf=0.0, neginf=0.0) for t in (a, b, start))
    if not a.numel():
        return 0.0
    eps = torch.finfo(kind).eps
    allowed = eps * (roundings * (b - start).abs().max() + 16 * b.abs().max()) + torch.finfo(kind).tiny
    return float((a - b).abs().max() / allowed)
