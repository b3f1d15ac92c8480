"""The checks of one run, as JSON can hold them: those of :func:`~banel_pyro.diagnostics.trust`, k-hat and coverage."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from banel_pyro.diagnostics.psis import MIN_DRAWS, k_hat_threshold
from banel_pyro.diagnostics.stored import corrected_spread, stored_weights
from banel_pyro.diagnostics.trust import ROWS, trust
from banel_pyro.inference_data import ArviZ, group

__all__ = ["checks_of"]


def checks_of(idata: ArviZ, history: pd.DataFrame) -> dict[str, Any]:
    """What the checks of a run find.

    Args:
        idata: its draws; fewer than 100 are not judged.
        history: its history.

    Returns:
        ``verdict`` and ``checks`` as in ``Trust.to_json()``; where weights are known ``k_hat``, that 90 % of the rows
        stay below where rows have weights of their own, and its ``k_hat_threshold``; where they can be trusted
        ``coverage``, the least of any latent: what central 95 % intervals of the guide hold of the corrected posterior.
    """
    stats = group(idata, "sample_stats")
    draws = int(stats.sizes["chain"] * stats.sizes["draw"])
    if draws < MIN_DRAWS:
        return {"verdict": "amber", "checks": []}
    return trust(idata, history).to_json() | _weights(idata, draws)


def _weights(idata: ArviZ, draws: int) -> dict[str, float | None]:
    try:
        found = stored_weights(idata)
    except ValueError:  # points, or rows with shared latents too: trust says so
        return {}
    threshold, k_hat = k_hat_threshold(draws), np.atleast_1d(found.smoothed.k_hat)
    most = float(np.quantile(k_hat, ROWS, method="higher"))
    known: dict[str, float | None] = {"k_hat": most if math.isfinite(most) else None, "k_hat_threshold": threshold}
    if np.mean(k_hat <= threshold) >= 0.5:
        known["coverage"] = float(corrected_spread(idata, found, largest_k_hat=threshold)["coverage_95"].min())
    return known
