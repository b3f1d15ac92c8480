"""Numbers that are not finite: which step, which site, which rows of the data, and the last good state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyro
import torch
from torch import Tensor

from banel_pyro.traces import base_distribution, sample_sites

if TYPE_CHECKING:
    from banel_pyro.training.loop import Loop

__all__ = ["NonFiniteError", "first_bad_parameter", "locate_fault"]

FEW = 5
"""Rows that a message names; the error has all of them."""


class NonFiniteError(FloatingPointError):
    """A loss, a gradient or a parameter became NaN or inf. The parameters are those of the last good step.

    Args:
        step: the step that failed, from 0.
        where: what failed, for instance ``"guide site 'z'"``.
        rows: indices in the data of all rows of that step; empty for a model without data.
        bad_rows: those of them whose own value or log density is not finite at that site; empty where the site is
            not in the data plate, or only a gradient failed.
        why: what else is known, for instance ``"its scale has run to 0"``.

    ``summary`` is the message without its advice.
    """

    def __init__(
        self, step: int, where: str, rows: Sequence[int] = (), *, bad_rows: Sequence[int] = (), why: str = ""
    ) -> None:
        self.step, self.where, self.rows, self.bad_rows, self.why = step, where, rows, tuple(bad_rows), why
        told = _told(self.bad_rows, "at row") or _told(rows, "in a step of row")
        self.summary = f"step {step}: {where} is not finite{told}{why and f': {why}'}"
        super().__init__(
            f"{self.summary}. The parameters are those before this step. Try a smaller lr, clip_norm=, or look at "
            "that site's scale; on_fault='rollback' goes on from an earlier state with a smaller lr and lam."
        )


def _told(rows: Sequence[int], how: str) -> str:
    """The first few rows in words; nothing where there are none."""
    if not len(rows):
        return ""
    more = f", … ({len(rows)} in all)" if len(rows) > FEW else ""
    return f" {how}{'s' * (len(rows) > 1)} {', '.join(map(str, rows[:FEW]))}{more} of the data"


@dataclass(frozen=True)
class _Fault:
    """What is not finite in a step: in words, at which rows, and why, as far as that shows."""

    where: str
    rows: tuple[int, ...] = ()
    why: str = ""


def locate_fault(loop: Loop, *, until: int) -> None:
    """Replay a run from its last good state, to find the step that is not finite, and leave it before that step.

    Args:
        loop: the run; left before its last step if all of them are finite.
        until: steps to replay up to.

    Raises:
        NonFiniteError: naming step, site and rows; the parameters are those before that step.
    """
    rows = {row["step"]: row for row in loop.history}
    if loop.good is not None:
        loop.load(loop.good, rollback=True)
    before = loop.state()
    while loop.step < until:
        before = loop.state()
        fault = _look_at_step(loop)
        if fault is not None:
            loop.load(before, rollback=True)
            raise NonFiniteError(loop.step, fault.where, _rows(loop), bad_rows=fault.rows, why=fault.why)
        if loop.step in rows:
            loop.pass_again(rows[loop.step])
    loop.load(before, rollback=True)


def _rows(loop: Loop) -> Sequence[int]:
    """Indices of the rows of a loop's next step."""
    index = loop.index()
    if index is None:
        return range(len(loop.rows[0]) if loop.rows else 0)
    return tuple(index.tolist())


def _look_at_step(loop: Loop) -> _Fault | None:
    """Take one step of a loop, looking at everything in it; returns what is not finite."""
    with pyro.validation_enabled(False), _watched(loop.objective) as parts:
        indices = loop.part_indices()
        terms, entropies, batch = loop.differentiate()
        plate = loop.plate.name if len(indices) == len(parts) else None  # else it is not known which batch is whose
        indices = indices if plate is not None else [None] * len(parts)
        pairs = ((index, *pair) for index, pairs in zip(indices, parts, strict=True) for pair in pairs)
        found = (_bad_site(model, guide, plate, index) for index, model, guide in pairs)
        fault = next((fault for fault in found if fault is not None), None)
        fault = fault or _bad_parameter(loop)
        fault = _of_all(loop.processes.gathered(fault))
        if fault is None:
            loop.update(terms, entropies, batch)
    return fault or _bad_parameter(loop)


def _of_all(faults: Sequence[_Fault | None]) -> _Fault | None:
    """What the processes that share a step have found; a site says more than a parameter.

    Where the row is on another process, only the sum of the gradients is bad on this one.
    """
    found = [fault for fault in faults if fault is not None]
    first = min(found, key=lambda fault: "parameter" in fault.where, default=None)
    if first is None:
        return None
    rows = {row for fault in found if fault.where == first.where for row in fault.rows}
    return replace(first, rows=tuple(sorted(rows)))


@contextmanager
def _watched(objective: Any) -> Iterator[list[list[tuple[Any, Any]]]]:
    """Keep the traces that an objective makes, by the call that made them: one for each batch of a step."""
    kept: list[list[tuple[Any, Any]]] = []
    make = objective._get_traces

    def keeping(*args: Any, **kwargs: Any) -> Iterator[tuple[Any, Any]]:
        kept.append([])
        for pair in make(*args, **kwargs):
            kept[-1].append(pair)
            yield pair

    objective._get_traces = keeping
    try:
        yield kept
    finally:
        del objective._get_traces  # the method of its class again


def _bad_site(model_trace: Any, guide_trace: Any, plate: str | None, index: Tensor | None) -> _Fault | None:
    """The first site whose value or log density is not finite, the guide's first, with the rows and why; None if fine.

    The rows are of those with some indices.
    """
    for kind, trace in (("guide", guide_trace), ("model", model_trace)):
        for name, site in sample_sites(trace):
            tensors = [(site["value"], site["fn"].event_dim), (site.get("log_prob"), 0)]
            bad = [(t, d) for t, d in tensors if isinstance(t, Tensor) and not bool(torch.isfinite(t).all())]
            if bad:
                rows = _bad_rows(site, *bad[0], plate)
                rows = rows if index is None or not len(rows) else index.to(rows.device)[rows]
                return _Fault(f"{kind} site '{name}'", tuple(rows.tolist()), _why(site["fn"]))
    return None


def _bad_rows(site: Any, tensor: Tensor, event_dim: int, plate: str | None) -> Tensor:
    """Positions in the data plate at which a site's value or log density is not finite; none outside the plate."""
    frame = next((f for f in site["cond_indep_stack"] if f.name == plate and f.vectorized), None)
    axis = 0 if frame is None else frame.dim - event_dim
    if frame is None or tensor.dim() < -axis or tensor.shape[axis] != frame.size:
        return torch.zeros(0, dtype=torch.int64)
    return (~torch.isfinite(tensor)).movedim(axis, 0).reshape(frame.size, -1).any(1).nonzero().flatten()


def _why(fn: Any) -> str:
    """What the distribution of a site shows of the reason."""
    base = base_distribution(fn)
    scale = getattr(base, "scale", None)
    if isinstance(tril := getattr(base, "scale_tril", None), Tensor):
        scale = tril.diagonal(dim1=-2, dim2=-1)
    return "its scale has run to 0" if isinstance(scale, Tensor) and bool((scale == 0).any()) else ""


def _bad_parameter(loop: Loop) -> _Fault | None:
    where = first_bad_parameter(loop.parameters.names())
    return None if where is None else _Fault(where)


def first_bad_parameter(parameters: dict[str, Tensor]) -> str | None:
    """The first parameter that is not finite, or whose gradient is not; None if all are fine."""
    tensors = [t.detach() for p in parameters.values() for t in (p, p.grad) if t is not None]
    if not tensors or bool(torch.isfinite(torch.stack(torch._foreach_norm(tensors))).all()):
        return None  # one question for all of them; what follows says which
    for name, parameter in parameters.items():
        if not bool(torch.isfinite(parameter).all()):
            return f"parameter '{name}'"
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            return f"the gradient of parameter '{name}'"
    return None
