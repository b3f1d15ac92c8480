"""Numbers that are not finite: which step, which site, and the last good state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from banel_pyro.traces import sample_sites

__all__ = ["NonFiniteError", "first_bad_parameter", "first_bad_site"]


class NonFiniteError(FloatingPointError):
    """A loss, a gradient or a parameter became NaN or inf. The parameters are those of the last good step.

    Args:
        step: the step that failed, from 0.
        where: what failed, for instance ``"guide site 'z'"``.
    """

    def __init__(self, step: int, where: str) -> None:
        self.step, self.where = step, where
        super().__init__(
            f"step {step}: {where} is not finite. The parameters are those before this step. Try a smaller lr, clip_norm=, "
            "or look at that site's scale."
        )


def first_bad_site(model_trace: Any, guide_trace: Any) -> str | None:
    """The first site whose value or log density is not finite, the guide's sites first; None if all are fine."""
    for kind, trace in (("guide", guide_trace), ("model", model_trace)):
        for name, site in sample_sites(trace):
            for tensor in (site["value"], site["log_prob"]):
                if isinstance(tensor, Tensor) and not bool(torch.isfinite(tensor).all()):
                    return f"{kind} site '{name}'"
    return None


def first_bad_parameter(parameters: dict[str, Tensor]) -> str | None:
    """The first parameter that is not finite, or whose gradient is not; None if all are fine."""
    for name, parameter in parameters.items():
        if not bool(torch.isfinite(parameter).all()):
            return f"parameter '{name}'"
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            return f"the gradient of parameter '{name}'"
    return None
