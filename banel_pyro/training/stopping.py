"""When to stop a run: the collapse detector. Pure functions of the history, on the untempered ELBO only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

__all__ = ["CollapseDetector", "CollapseError"]


class CollapseError(RuntimeError):
    """The guide is running away to a point: the penalised loss has no minimum here.

    Args:
        step: the step at which it was noticed.
        site: the density of the guide whose entropy fell most.
        report: the figures, in one sentence.
    """

    def __init__(self, step: int, site: str, report: str) -> None:
        self.step, self.site = step, site
        super().__init__(
            f"step {step}: the guide collapses at site '{site}'. {report} Use a smaller lam, a non-centred form of the model, "
            "a mapping of lam that leaves this site out; or collapse=None in fit to go on regardless."
        )


@dataclass(frozen=True)
class CollapseDetector:
    r"""Tells a guide that narrows to a new optimum from one that narrows for ever.

    A Gaussian posterior at weight λ is narrower than at λ = 0 by :math:`\tfrac12\log(1-\lambda)` nats in
    each dimension, and stays there. The detector fires when, since the log point with the best
    untempered ELBO, some site's entropy has fallen by more than that plus ``margin`` nats per dimension,
    is still falling, and the untempered ELBO has fallen beyond its noise. It looks only at log points
    whose λ is within ``tolerance`` of the present one: a schedule that raises λ narrows the guide rightly.

    Args:
        margin: nats per latent dimension beyond the Gaussian prediction.
        window: log points that are averaged on each side of a comparison.
        noise: standard errors by which the untempered ELBO must have fallen.
        tolerance: of λ, within which log points are compared.
    """

    margin: float = 0.5
    window: int = 5
    noise: float = 3.0
    tolerance: float = 0.05

    def check(self, history: pd.DataFrame, dimensions: Mapping[str, float]) -> tuple[str, str] | None:
        """Look at the history so far.

        Args:
            history: columns ``elbo``, ``entropy[site]`` and ``lam`` or ``lam[site]``, a row per log point.
            dimensions: latent numbers of each site, counted as its entropy is.

        Returns:
            The site and a sentence with the figures, or None.
        """
        w = self.window
        history = self._at_present_lam(history)
        if len(history) < 3 * w:
            return None
        elbo = history["elbo"].to_numpy(dtype=float)
        smooth = np.convolve(elbo, np.ones(w) / w, mode="valid")
        best = int(np.argmax(smooth))
        if best + 2 * w > len(smooth):  # the best is too recent for a trend since then
            return None
        noise = math.sqrt(_noise_variance(elbo) * 2 / w)
        fallen = smooth[best] - smooth[-1]
        if fallen <= self.noise * noise:
            return None
        falls = {site: self._excess(history, site, size, best) for site, size in dimensions.items() if size > 0}
        site, (excess, drop) = max(falls.items(), key=lambda item: item[1][0], default=("", (0.0, 0.0)))
        if excess <= self.margin:
            return None
        step = int(history["step"].iloc[best + w - 1])
        return site, (
            f"Since step {step} its entropy fell by {drop:.2f} nats per latent dimension, {excess:.2f} more than a Gaussian "
            f"posterior would at this lam, and the untempered ELBO fell by {fallen:.3g} (noise {noise:.2g})."
        )

    def _at_present_lam(self, history: pd.DataFrame) -> pd.DataFrame:
        """The log points since λ came near its present value."""
        lams = history[[c for c in history if c == "lam" or c.startswith("lam[")]].fillna(0.0).to_numpy(dtype=float)
        far = (np.abs(lams - lams[-1]) > self.tolerance).any(axis=1)
        return history.iloc[int(far.nonzero()[0][-1]) + 1 :] if far.any() else history

    def _excess(self, history: pd.DataFrame, site: str, size: float, best: int) -> tuple[float, float]:
        """Nats per dimension by which a site fell beyond the Gaussian prediction, and in all."""
        w = self.window
        column = f"lam[{site}]" if f"lam[{site}]" in history else "lam"
        lam = float(history[column].iloc[-1]) if column in history else 0.0
        per_dimension = history[f"entropy[{site}]"].to_numpy(dtype=float) / size
        if lam <= 0 or not np.isfinite(per_dimension).all():
            return 0.0, 0.0
        before, now = per_dimension[best : best + w].mean(), per_dimension[-w:].mean()
        if now >= per_dimension[-2 * w : -w].mean():  # no longer falling
            return 0.0, 0.0
        predicted = -0.5 * math.log1p(-lam) if lam < 1 else 0.0
        return float(before - now - predicted), float(before - now)


def _noise_variance(values: np.ndarray) -> float:
    """Variance of the noise around a slow trend, from second differences."""
    second = values[2:] - 2 * values[1:-1] + values[:-2]
    return float(np.median(second**2) / 0.4549 / 6)  # median of chi^2_1 is 0.4549; Var(second difference) = 6
