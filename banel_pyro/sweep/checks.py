"""The checks of one run, as JSON can hold them. A stand-in until the library's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from banel_pyro.diagnostics.psis import MIN_DRAWS, k_hat_threshold, smooth
from banel_pyro.inference_data import ArviZ, group

__all__ = ["checks_of"]


def checks_of(idata: ArviZ, history: pd.DataFrame) -> dict[str, Any]:
    """What checks find."""
    stats = group(idata, "sample_stats")
    name = "_datum" if "log_q_datum" in stats else ""
    log_w = (stats[f"log_p{name}"] - stats[f"log_q{name}"]).to_numpy()
    log_w = log_w.reshape(-1, *log_w.shape[2:])
    if len(log_w) < MIN_DRAWS:
        return {"verdict": "amber", "checks": []}
    k_hat, threshold = float(np.quantile(smooth(log_w).k_hat, 0.9, method="higher")), k_hat_threshold(len(log_w))
    verdict = "green" if k_hat <= threshold else "amber" if k_hat <= 1 else "red"
    check = {"name": "importance weights", "verdict": verdict, "value": k_hat, "found": f"k-hat {k_hat:.2f}"}
    return {"verdict": verdict, "checks": [check], "k_hat": k_hat, "k_hat_threshold": threshold, "coverage": None}
