"""The checks of one run, as JSON can hold them. A stand-in until the library's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from banel_pyro.diagnostics.psis import MIN_DRAWS, k_hat_threshold, smooth
from banel_pyro.inference_data import ArviZ, group

__all__ = ["checks_of"]


def checks_of(idata: ArviZ, history: pd.DataFrame) -> dict[str, Any]:
    stats = group(idata, "sample_stats")
    name = "_datum" if "log_q_datum" in stats else ""
    log_w = (stats[f"log_p{name}"] - stats[f"log_q{name}"]).to_numpy()
    log_w = log_w.reshape(-1, *log_w.shape[2:])
    if len(log_w) < MIN_DRAWS:
        return {"verdict": "amber", "checks": []}
    k = float(np.quantile(smooth(log_w).k_hat, 0.9, method="higher"))
    bad = k > k_hat_threshold(len(log_w))
    return {
        "verdict": "red" if bad else "green",
        "checks": [
            {
                "name": "importance weights",
                "verdict": "red" if bad else "green",
                "value": k,
                "found": f"k-hat {k:.2f}",
                "threshold": k_hat_threshold(len(log_w)),
            }
        ],
    }
