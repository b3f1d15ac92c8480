r"""log p(x) by importance sampling, and whether a guide is close enough to its posterior to be corrected."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from banel_pyro.batches import as_rows, num_rows
from banel_pyro.checks import integer, seed_number
from banel_pyro.diagnostics.corrected import Drawn
from banel_pyro.diagnostics.latent import data_plate_of
from banel_pyro.diagnostics.psis import Array, Smoothed, k_hat_threshold, smooth
from banel_pyro.diagnostics.weighted import WeightedDraw, structure_of, weighted_draws
from banel_pyro.evaluate import iwae_per_datum
from banel_pyro.inference_data import ArviZ
from banel_pyro.seeding import fork_rng
from banel_pyro.terms import Estimate

__all__ = ["Importance", "importance"]

VALUES = ("log_evidence", "elbo", "gap")
ERRORS = ("stderr", "elbo_stderr", "gap_stderr")


@dataclass(frozen=True)
class Importance:
    r"""What importance weights say about a guide; from :func:`importance`.

    **What** :math:`\hat k` **judges**: whether the *correction* can be trusted, that is ``log_evidence``,
    ``corrected`` and ``psis_sd``. It does not judge the guide's spread. A guide that is too narrow by a little has
    light enough tails to be corrected, so its :math:`\hat k` passes while its own intervals cover too little: at
    λ = 0.4 a normal posterior has :math:`\hat k` ≈ 0.4, and 95 % intervals that cover 87 %. A guide that is too wide
    always passes. Read the spread off ``sds``, where :math:`\hat k` passes.

    Args:
        kind: ``"global"``: one weight a draw, for the whole data set; ``"local"``: one a draw and row; ``"mixed"``:
            both.
        draws: draws of what each weight is about (for a mixed pair, of the shared latents).
        log_evidence: log p(x) in nats, of the whole data set; its expectation is a lower bound.
        elbo: the untempered ELBO in nats, from the same draws.
        gap: ``log_evidence`` - ``elbo``, an estimate of KL(q, p(z | x)).
        threshold: what :math:`\hat k` has to stay below: min(1 − 1/log₁₀ S, 0.7).
        k_hat: of the weights of the data set; of a local pair that of its worst row.
        ess: effective sample size of the smoothed weights, in draws; of a local pair that of its worst row.
        per_datum: a row for each row of data. Local pairs: ``log_evidence``, ``stderr``, ``elbo``, ``elbo_stderr``,
            ``gap``, ``gap_stderr`` in nats, ``k_hat``, ``ess``. Mixed pairs: ``k_hat`` and ``ess`` of the local weights
            given the shared draw (ESS out of the local draws, on average). Global pairs: empty.
        sds: a row for each latent number: ``sd`` of the guide, ``psis_sd`` the corrected one, ``ratio`` = sd ÷ psis_sd,
            ``shift`` = (mean − corrected mean) ÷ psis_sd, and the ``k_hat`` that says whether to believe them.
        corrected: as an ArviZ object, draws *resampled* by their smoothed weights: as many as there were, equally
            weighted, some of them several times. None if they were not asked for.
    """

    kind: str
    draws: int
    log_evidence: Estimate
    elbo: Estimate
    gap: Estimate
    threshold: float
    k_hat: float
    ess: float
    per_datum: pd.DataFrame = field(repr=False)
    sds: pd.DataFrame | None = field(repr=False, default=None)
    corrected: ArviZ | None = field(repr=False, default=None)

    @property
    def passes(self) -> bool:
        """Whether the correction can be trusted. It is not whether the spread of the guide is right."""
        return self.k_hat <= self.threshold and not self.failing.size

    @property
    def failing(self) -> np.ndarray[Any, np.dtype[np.intp]]:
        """Numbers of the rows of data whose own weights cannot be corrected."""
        return np.flatnonzero(self.per_datum.get("k_hat", pd.Series(dtype=float)).to_numpy() > self.threshold)


def importance(
    model: Any,
    guide: Any,
    data: Any = (),
    *,
    num_samples: int = 1000,
    local_samples: int = 10,
    draws: bool = True,
    batch_size: int | None = None,
    data_plate: str | None = None,
    seed: int | None = None,
) -> Importance:
    r"""log p(x), Pareto :math:`\hat k` and corrected draws from the importance weights of a guide.

    .. math::
        \log p(x_i) \approx \log \frac1S \sum_s w_{is}, \qquad
        \log p(x) \approx \log \frac1S \sum_s w(g_s) \prod_i \frac1L \sum_l w_{isl}

    on the left for latents inside the data plate (local), on the right for pairs that have latents outside it as well
    (mixed), where :math:`w(g)` is the weight of those and :math:`w_{isl}` that of row i given them; without
    local latents the product is over likelihoods (global). A row never shares its weight with others, but for a
    guide that draws rows jointly (such as AutoMultivariateNormal), which has one weight for all of them.

    Discrete sites that the model sums out, masks and rows of a plate written for more are as in
    :func:`~banel_pyro.to_arviz`; scales other than those of the plate do not count. What is left out of the corrected
    draws: deterministic sites outside the data plate of a local or mixed pair, which may mix the rows.

    It runs model and guide once for each draw and chunk of rows: ``num_samples`` times, or ``num_samples`` times
    ``local_samples`` for a mixed pair.

    Args:
        model: the model.
        guide: the guide.
        data: rows to condition on.
        num_samples: S, at least 100.
        local_samples: L, for each shared draw of a mixed pair, at least 2. The more, the closer to 1 its weights.
        draws: whether to keep the latents of all draws for ``corrected`` and ``sds``.
        batch_size: rows in memory at a time (all by default). The draws depend on it.
        data_plate: name of the plate over data points, found by its size if left out. Without one, all latents
            share a weight.
        seed: draws inside a forked generator and leaves yours alone; None draws from yours.

    Raises:
        ValueError: for too few draws, point masses, auxiliary latents of the guide, subsampled plates and loops over
            rows, log densities that are NaN or infinite, or terms outside the data plate that depend on the rows.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> found = importance(model, guide, torch.tensor([1.0]), num_samples=100, seed=0)
        >>> print(found.log_evidence, round(float(dist.Normal(0.0, 2.0**0.5).log_prob(torch.ones(()))), 3))
        -1.516 ± 0.000 -1.516
    """
    threshold = k_hat_threshold(integer("num_samples", num_samples))
    integer("local_samples", local_samples, 2)
    rows = as_rows(data)
    with nullcontext() if seed is None else fork_rng(seed_number(seed)):
        plate = data_plate_of((model, guide), rows, batch_size, data_plate)
        structure = structure_of(model, guide, rows, plate, batch_size)
        kind = structure.kind
        shared, local = {"global": (num_samples, 1), "local": (1, num_samples)}.get(kind, (num_samples, local_samples))
        sums = _Sums(kind, shared, local, num_rows(rows))
        drawn = Drawn(num_samples, kind, local, plate, num_rows(rows)) if draws else None
        for draw in weighted_draws(
            model, guide, rows, plate, structure, draws=shared, local_draws=local, batch_size=batch_size
        ):
            sums.add(draw)
            if drawn is not None:
                drawn.add(draw)
        return sums.result(num_samples, threshold, drawn)


class _Sums:
    """The log weights of the data set, and what is known of each row; the weights of one chunk of rows at a time."""

    def __init__(self, kind: str, shared: int, local: int, size: int) -> None:
        self.kind, self.counts = kind, (shared, local)
        self.log_w, self.elbo = np.zeros(shared), np.zeros(shared)
        self.per_datum: dict[str, Array] = {}
        self.weights = np.zeros((local, size)) if kind == "local" else np.zeros(0)
        self._size, self._block, self._seen = size, np.zeros(0), 0

    def add(self, draw: WeightedDraw) -> None:
        """Take a draw in; the last one of a chunk of rows ends it."""
        if (draw.shared, draw.local) == (0, 0):
            self._block, self._seen = np.zeros((*self.counts, len(draw.rows))), self._seen + 1
        if self._seen == 1 and draw.local == 0:
            self.log_w[draw.shared] += draw.log_shared
            self.elbo[draw.shared] += draw.log_shared
        self._block[draw.shared, draw.local] = draw.log_rows
        if (draw.shared + 1, draw.local + 1) == self.counts:
            self._finish(draw.rows.numpy())

    def _finish(self, rows: Any) -> None:
        means = iwae_per_datum(self._block.swapaxes(0, 1))
        self.log_w += means.sum(-1)
        self.elbo += self._block.mean(1).sum(-1)
        if self.kind == "local" and len(rows):
            smoothed = smooth(self._block[0])
            self.weights[:, rows] = smoothed.log_weights
            self._put(rows, {**_bounds(self._block[0], self._block[0]), "k_hat": smoothed.k_hat, "ess": smoothed.ess})
        if self.kind == "mixed" and len(rows):
            relative = self._block - means[:, None]
            ess = np.exp(2 * np.logaddexp.reduce(relative, 1) - np.logaddexp.reduce(2 * relative, 1)).mean(0)
            self._put(rows, {"k_hat": smooth(relative.reshape(-1, len(rows))).k_hat, "ess": ess})

    def _put(self, rows: Any, columns: dict[str, Array]) -> None:
        for name, values in columns.items():
            self.per_datum.setdefault(name, np.full(self._size, math.nan))[rows] = values

    def result(self, draws: int, threshold: float, drawn: Drawn | None) -> Importance:
        """What all of it says."""
        rows = pd.DataFrame(self.per_datum)
        smoothed, by_row = self._smoothed(rows)
        evidence, elbo, gap = self._estimates(rows)
        whole = float(np.max(smoothed.k_hat))
        attrs = {"psis": "resampled", "kind": self.kind, "k_hat": whole, "densities": "{}", "point_masses": "[]"}
        return Importance(
            kind=self.kind,
            draws=draws,
            log_evidence=evidence,
            elbo=elbo,
            gap=gap,
            threshold=threshold,
            k_hat=whole,
            ess=float(np.min(smoothed.ess)),
            per_datum=rows,
            sds=None if drawn is None else drawn.sds(smoothed.log_weights, whole, by_row),
            corrected=None if drawn is None else drawn.corrected(smoothed.log_weights, attrs),
        )

    def _smoothed(self, rows: pd.DataFrame) -> tuple[Smoothed, Array | None]:
        """The weights that draws are corrected by, and k-hat by row where a row has weights of its own."""
        if self.kind == "local":
            k_hat, ess = rows["k_hat"].to_numpy(), rows["ess"].to_numpy()
            return Smoothed(self.weights, k_hat, ess), k_hat
        smoothed = smooth(self.log_w)
        return smoothed, np.maximum(rows["k_hat"].to_numpy(), smoothed.k_hat) if self.kind == "mixed" else None

    def _estimates(self, rows: pd.DataFrame) -> tuple[Estimate, Estimate, Estimate]:
        """Evidence, ELBO and gap of the data set; the draws of rows are independent of each other."""
        if self.kind != "local":
            found = {name: float(value) for name, value in _bounds(self.log_w, self.elbo).items()}
            errors = [found[name] for name in ERRORS]
        else:
            found = {"log_evidence": float(self.log_w[0]), "elbo": float(self.elbo[0])}
            found["gap"] = found["log_evidence"] - found["elbo"]
            errors = [math.hypot(*rows[name]) for name in ERRORS]
        evidence, elbo, gap = (Estimate(found[n], e) for n, e in zip(VALUES, errors, strict=True))
        return evidence, elbo, gap


def _bounds(log_w: Array, elbo: Array) -> dict[str, Array]:
    """Evidence, ELBO and their difference in nats, each with its standard error, over draws (the first axis).

    Args:
        log_w: log weights.
        elbo: values whose mean is the ELBO.
    """
    root = math.sqrt(len(log_w))
    evidence = iwae_per_datum(log_w)
    ratio = np.exp(log_w - evidence)  # the influence of a draw on log mean w, but for a constant
    return {
        "log_evidence": evidence,
        "stderr": ratio.std(axis=0, ddof=1) / root,
        "elbo": elbo.mean(axis=0),
        "elbo_stderr": elbo.std(axis=0, ddof=1) / root,
        "gap": evidence - elbo.mean(axis=0),
        "gap_stderr": (ratio - elbo).std(axis=0, ddof=1) / root,
    }
