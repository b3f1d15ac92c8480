"""Numbers that are not finite: which step, which site, and the last good state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyro
import torch
from torch import Tensor

from banel_pyro.traces import sample_sites

if TYPE_CHECKING:
    from banel_pyro.training.loop import Loop

__all__ = ["NonFiniteError", "first_bad_parameter", "first_bad_site", "locate_fault"]


class NonFiniteError(FloatingPointError):
    """A loss, a gradient or a parameter became NaN or inf. The parameters are those of the last good step.

    Args:
        step: the step that failed, from 0.
        where: what failed, for instance ``"guide site 'z'"``.
    """

    def __init__(self, step: int, where: str) -> None:
        self.step, self.where = step, where
        super().__init__(
            f"step {step}: {where} is not finite. The parameters are those before this step. Try a smaller lr, "
            "clip_norm=, or look at that site's scale."
        )


def locate_fault(loop: Loop, *, until: int) -> None:
    """Replay a run from its last good state, to find the step that is not finite, and leave it before that step.

    Args:
        loop: the run; left before its last step if all of them are finite.
        until: steps to replay up to.

    Raises:
        NonFiniteError: naming step and site; the parameters are those before that step.
    """
    rows = {row["step"]: row for row in loop.history}
    if loop.good is not None:
        loop.load(loop.good, rollback=True)
    before = loop.state()
    while loop.step < until:
        before = loop.state()
        where = _look_at_step(loop)
        if where is not None:
            loop.load(before, rollback=True)
            raise NonFiniteError(before["step"], where)
        if loop.step in rows:
            loop.pass_again(rows[loop.step])
    loop.load(before, rollback=True)


def _look_at_step(loop: Loop) -> str | None:
    """Take one step of a loop, looking at everything in it; returns what is not finite."""
    with pyro.validation_enabled(False), _watched(loop.objective) as traces:
        terms, entropies, batch = loop.differentiate()
        where = next((bad for pair in traces if (bad := first_bad_site(*pair)) is not None), None)
        where = where or first_bad_parameter(loop.parameters.names())
        # where the row is on another process, only the sum of the gradients is bad on this one
        where = min((w for w in loop.processes.gathered(where) if w), key=lambda w: "parameter" in w, default=None)
        if where is None:
            loop.update(terms, entropies, batch)
    return where or first_bad_parameter(loop.parameters.names())


@contextmanager
def _watched(objective: Any) -> Iterator[list[tuple[Any, Any]]]:
    """Keep the traces that an objective makes."""
    kept: list[tuple[Any, Any]] = []
    make = objective._get_traces

    def keeping(*args: Any, **kwargs: Any) -> Iterator[tuple[Any, Any]]:
        for pair in make(*args, **kwargs):
            kept.append(pair)
            yield pair

    objective._get_traces = keeping
    try:
        yield kept
    finally:
        del objective._get_traces  # the method of its class again


def first_bad_site(model_trace: Any, guide_trace: Any) -> str | None:
    """The first site whose value or log density is not finite, the guide's sites first; None if all are fine."""
    for kind, trace in (("guide", guide_trace), ("model", model_trace)):
        for name, site in sample_sites(trace):
            for tensor in (site["value"], site.get("log_prob")):
                if isinstance(tensor, Tensor) and not bool(torch.isfinite(tensor).all()):
                    return f"{kind} site '{name}'"
    return None


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
