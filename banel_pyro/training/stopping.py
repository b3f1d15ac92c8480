"""When to break off a run: the collapse detector. Pure functions of the history, on the untempered ELBO only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["CollapseDetector", "CollapseError", "Columns", "at_present_lam", "columns_of", "noise_variance"]

Columns: TypeAlias = dict[str, NDArray[np.float64]]


class CollapseError(RuntimeError):
    """The guide is running away to a point: the penalised loss has no minimum here.

    Args:
        step: the step at which it was noticed.
        site: the density of the guide whose entropy fell most.
        report: the figures, in one sentence.
        since: the step from which on it went wrong, if that is known: ``step`` by default.

    ``summary`` is the message without its advice.
    """

    def __init__(self, step: int, site: str, report: str, since: int | None = None) -> None:
        self.step, self.site, self.since = step, site, step if since is None else since
        self.summary = f"step {step}: the guide collapses at site '{site}'. {report.removesuffix('.')}"
        super().__init__(
            f"{self.summary}. Use a smaller lam, a non-centred form of the model, a mapping of lam that leaves this "
            "site out; on_fault='rollback' to go on from an earlier state with a smaller lam; or collapse=None in fit "
            "to go on regardless."
        )


@dataclass(frozen=True)
class CollapseDetector:
    r"""Tells a guide that narrows to a new optimum from one that narrows for ever.

    At weight λ the optimum :math:`p(z \mid x)^{1/(1-\lambda)}` is narrower than the posterior, for a log-concave
    one by at most :math:`-\log(1-\lambda)` nats in each dimension (half of that for a Gaussian), and stays there.
    The detector fires when, since the log point with the best untempered ELBO, some site's entropy has fallen
    by more than that plus ``margin`` nats per dimension in two windows running, is still falling, and the
    untempered ELBO has fallen, all beyond their noise. It looks only at log points whose λ is within
    ``tolerance`` of the present one: a schedule that raises λ narrows the guide rightly.

    The bound follows from :math:`\operatorname{Var}(\log p(z)) \le d` for log-concave densities in d dimensions
    (Fradelizi, Madiman, Wang 2016, arXiv 1508.04093).

    Args:
        margin: nats per latent dimension beyond the bound.
        window: log points that are averaged on each side of a comparison.
        noise: standard errors by which entropy and untempered ELBO must have fallen.
        tolerance: of λ, within which log points are compared.

    Raises:
        ValueError: for a margin, noise or tolerance below 0, or a window below 1.
    """

    margin: float = 0.3
    window: int = 5
    noise: float = 3.0
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        for name, least in (("margin", 0), ("window", 1), ("noise", 0), ("tolerance", 0)):
            value = getattr(self, name)
            if not value >= least:
                raise ValueError(
                    f"CollapseDetector: {name}={value!r}: expected at least {least}. Leave it out for the default."
                )

    def check(
        self, history: pd.DataFrame | Sequence[Mapping[str, Any]], dimensions: Mapping[str, float]
    ) -> tuple[str, str] | None:
        """Look at the history so far.

        Args:
            history: columns ``step``, ``elbo``, ``entropy[site]`` and ``lam`` or ``lam[site]``, a row per log point.
            dimensions: latent numbers of each site, counted as its entropy is.

        Returns:
            The site and a sentence with the figures, or None.
        """
        if len(history) < 3 * self.window:
            return None
        columns = at_present_lam(columns_of(history), self.tolerance)
        best, fallen, noise = self._fall(columns["elbo"])
        if fallen <= self.noise * noise:
            return None
        falls = {site: self._excess(columns, site, size, best) for site, size in dimensions.items() if size > 0}
        site, (excess, drop) = max(falls.items(), key=lambda item: item[1][0], default=("", (0.0, 0.0)))
        if excess <= self.margin:
            return None
        step = int(columns["step"][best + self.window - 1])
        return site, (
            f"Since step {step} its entropy fell by {drop:.2f} nats per latent dimension, at least {excess:.2f} more "
            "than a log-concave posterior could at this lam, and the untempered ELBO fell by "
            f"{fallen:.3g} (noise {noise:.2g})."
        )

    def since(self, history: pd.DataFrame | Sequence[Mapping[str, Any]]) -> int:
        """The step with the best untempered ELBO at the present λ: where a collapse that is found began."""
        columns = at_present_lam(columns_of(history), self.tolerance)
        return int(columns["step"][self._fall(columns["elbo"])[0]])

    def _fall(self, elbo: NDArray[np.float64]) -> tuple[int, float, float]:
        """Where the ELBO was best, how far it has fallen since, and the noise of that; 0 while that is too recent."""
        w = self.window
        if len(elbo) < 3 * w:
            return 0, 0.0, 0.0
        smooth = np.convolve(elbo, np.ones(w) / w, mode="valid")
        best = int(np.argmax(smooth))
        if best + 2 * w > len(smooth):
            return best, 0.0, 0.0
        return best, float(smooth[best] - smooth[-1]), math.sqrt(noise_variance(elbo) * 2 / w)

    def _excess(self, columns: Columns, site: str, size: float, best: int) -> tuple[float, float]:
        """Nats per dimension by which a site fell beyond the bound, and in all."""
        w = self.window
        lam = float(columns[f"lam[{site}]" if f"lam[{site}]" in columns else "lam"][-1])
        per_dimension = columns[f"entropy[{site}]"] / size
        if not lam > 0 or not np.isfinite(per_dimension).all():
            return 0.0, 0.0
        before, now = per_dimension[best : best + w].mean(), per_dimension[-w:].mean()
        earlier = per_dimension[-2 * w : -w].mean()
        if now >= earlier:  # no longer falling
            return 0.0, 0.0
        bound = -math.log1p(-lam) if lam < 1 else 0.0
        noise = self.noise * math.sqrt(noise_variance(per_dimension) * 2 / w)
        # the earlier window had to be below it as well: one low window of a noisy step size is no trend
        return float(before - earlier - bound - noise), float(before - now)


def columns_of(history: pd.DataFrame | Sequence[Mapping[str, Any]]) -> Columns:
    """What detectors look at, as arrays: steps, λ, ELBO, entropies, norms of gradients."""
    rows = history.to_dict("records") if isinstance(history, pd.DataFrame) else history
    looked_at = ("step", "elbo", "lam", "grad_norm")
    names = [str(c) for c in rows[-1] if c in looked_at or str(c).startswith(("lam[", "entropy["))]
    nan = math.nan
    return {name: np.array([row.get(name, nan) for row in rows], dtype=float) for name in names}


def at_present_lam(columns: Columns, tolerance: float) -> Columns:
    """The log points since λ came near its present value.

    Args:
        columns: from :func:`columns_of`.
        tolerance: of λ.
    """
    lams = np.stack([np.nan_to_num(v) for c, v in columns.items() if c == "lam" or c.startswith("lam[")], axis=1)
    far = (np.abs(lams - lams[-1]) > tolerance).any(axis=1).nonzero()[0]
    start = int(far[-1]) + 1 if len(far) else 0
    return {name: values[start:] for name, values in columns.items()}


def noise_variance(values: NDArray[np.float64]) -> float:
    """Variance of the noise around a slow trend, from second differences.

    Args:
        values: at least three, equally far apart.
    """
    second = values[2:] - 2 * values[1:-1] + values[:-2]
    return float(np.median(second**2) / 0.4549 / 6)  # median of chi^2_1 is 0.4549; Var(second difference) = 6
