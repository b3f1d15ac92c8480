"""What a calibration found: ranks of true values, and what they say of the posteriors' spread and centre."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from banel_pyro.diagnostics.ranks import ecdf_band, symmetry, tempered_ranks, uniformity
from banel_pyro.diagnostics.spread import stacked_labels
from banel_pyro.evaluate import mean_estimate

__all__ = ["Calibration"]


@dataclass(frozen=True)
class Calibration:
    """Ranks of true values among draws of the guides that were fitted to data simulated with them.

    Args:
        ranks: by latent, whole numbers from 0 to ``num_draws`` with dims (simulation, plates, event).
        num_draws: L.
        seed: of the simulations.
        failed: by number of the simulation, why its fit broke down. These have no ranks, and are the more reason for
            doubt, the more there are: data that no guide could be fitted to are missing in the tests.
        seconds: of wall time that this call took.
        name: of the pair.
    """

    ranks: xr.Dataset = field(repr=False)
    num_draws: int
    seed: int
    failed: Mapping[int, str]
    seconds: float
    name: str = ""

    @property
    def num_simulations(self) -> int:
        """Simulations that have ranks."""
        return self.ranks.sizes.get("simulation", 0)

    @cached_property
    def pit(self) -> xr.Dataset:
        """The share of the guide below the true value: (rank + U) / (L + 1) with U uniform, seeded; 0 to 1."""
        rng = np.random.default_rng(self.seed)
        return self.ranks.map(lambda rank: (rank + rng.uniform(size=rank.shape)) / (self.num_draws + 1))

    def table(self) -> pd.DataFrame:
        r"""What the ranks of each latent number say.

        SBC is ``uniform_chi2, uniform_p``, the test of :func:`~banel_pyro.diagnostics.ranks.uniformity`: a small p says
        that the spread or the centre is wrong. ``in_band`` says whether the distribution function stays in ArviZ's
        simultaneous band of 95 %. VSBC is ``symmetric_ks, symmetric_p``, that of
        :func:`~banel_pyro.diagnostics.ranks.symmetry`: a small p says that the centre is wrong.

        ``centre`` is the mean share of the guide below the true value, less 1/2: above 0 where guides lie too low.
        ``width`` is 12 times the mean square of that share less 1/2, without the part that is due to L: above 1 where
        guides are too narrow. Both have a standard error. ``sd_ratio`` is the sd of the guide over that of the
        posterior that makes this width where both are Gaussian with one centre: :math:`\sqrt{T}` with
        :math:`w = \frac{6}{\pi} \arcsin \frac{1}{1 + T}`.

        Returns:
            A row per latent number with these columns.

        Raises:
            ValueError: with fewer than 10 simulations.
        """
        rows = {}
        for label, ranks, pit in self._numbers():
            sbc, vsbc = uniformity(ranks, self.num_draws), symmetry(pit)
            draws = self.num_draws
            centre = mean_estimate(ranks / draws - 0.5)
            width = mean_estimate(12 * (np.square(ranks - draws / 2) - draws / 4) / (draws**2 - draws))
            rows[label] = {
                "uniform_chi2": sbc.statistic, "uniform_p": sbc.p_value, "in_band": ecdf_band(pit).inside,
                "symmetric_ks": vsbc.statistic, "symmetric_p": vsbc.p_value, "centre": centre.value,
                "centre_stderr": centre.stderr, "width": width.value, "width_stderr": width.stderr,
                "sd_ratio": _sd_ratio(width.value),
            }  # fmt: skip
        return pd.DataFrame.from_dict(rows, orient="index")

    def passes(self, what: Literal["spread", "centre"], *, level: float = 0.01) -> bool:
        """Whether no latent number fails a test, at a level for all of them together (Bonferroni).

        Args:
            what: ``"spread"`` for SBC (which an off centre fails as well), ``"centre"`` for VSBC.
            level: probability that guides which are the posteriors fail.

        Raises:
            ValueError: for another ``what``, or a level outside (0, 1).
        """
        columns = {"spread": "uniform_p", "centre": "symmetric_p"}
        if what not in columns:
            raise ValueError(f"what={what!r}: expected 'spread' or 'centre'.")
        if not 0 < level < 1:
            raise ValueError(f"level={level!r}: expected a probability between 0 and 1, such as 0.01.")
        p = self.table()[columns[what]]
        return bool(p.min() * len(p) >= level)

    def tempered(self, lam: float) -> pd.Series:
        """By latent number, the p-value of the law of :func:`~banel_pyro.diagnostics.ranks.tempered_ranks`.

        Args:
            lam: λ, below 1.
        """
        law = tempered_ranks(self.num_draws, lam)
        return pd.Series(
            {label: uniformity(r, self.num_draws, probabilities=law).p_value for label, r, _ in self._numbers()}
        )

    def coverage(self, probs: Sequence[float] = (0.5, 0.8, 0.95)) -> pd.DataFrame:
        """How often central intervals of the guide cover the true value.

        L draws tell quantiles of the guide to 1/(L + 1): the shares are exact where guides are the posteriors, and else
        for intervals that reach well into the cells of the first and last rank not before L is large.

        Args:
            probs: what they are said to cover.

        Returns:
            A row per latent number; for each probability, such as 0.8, the share in column ``0.8`` and its standard
            error in ``0.8_stderr``.

        Raises:
            ValueError: for a probability outside (0, 1).
        """
        wrong = [prob for prob in probs if not 0 < prob < 1]
        if wrong:
            raise ValueError(f"probs has {wrong}: expected probabilities between 0 and 1, such as 0.95.")
        rows: dict[str, dict[str, float]] = {}
        for label, _, pit in self._numbers():
            found = {f"{prob:g}": mean_estimate((np.abs(pit - 0.5) < prob / 2).astype(float)) for prob in probs}
            rows[label] = {name: share.value for name, share in found.items()}
            rows[label] |= {f"{name}_stderr": share.stderr for name, share in found.items()}
        return pd.DataFrame.from_dict(rows, orient="index")

    def shares(self) -> dict[str, NDArray[np.float64]]:
        """By latent number, such as ``z[0]``, the shares of :attr:`pit`, one for each simulation."""
        return {label: shares for label, _, shares in self._numbers()}

    def to_arviz(self) -> xr.DataTree:
        """The shares of :attr:`pit` for ``arviz_plots.plot_ecdf_pit``: group ``prior_sbc``, dims (chain, draw, ...)."""
        shares = self.pit.rename(simulation="draw").expand_dims("chain")
        return xr.DataTree.from_dict({"prior_sbc": shares.transpose("chain", "draw", ...)})

    def __str__(self) -> str:
        total = self.num_simulations + len(self.failed)
        text = f"calibration of {self.name or 'a pair'}: {total} simulations, {self.num_draws} draws each"
        text += f", {len(self.failed)} broke down" if self.failed else ""
        if self.num_simulations < 10:
            return text
        said = {True: "passes", False: "fails"}
        text += f"\nspread (SBC): {said[self.passes('spread')]} at 1 %"
        return text + f"\ncentre (VSBC): {said[self.passes('centre')]} at 1 %"

    def _numbers(self) -> Iterator[tuple[str, NDArray[np.int64], NDArray[np.float64]]]:
        """Each latent number with its label, its ranks and its shares, over simulations."""
        if not self.num_simulations:
            reason = next(iter(self.failed.values()), "there were none")
            raise ValueError(f"no simulation has ranks ({reason}).")
        for name, variable in self.ranks.data_vars.items():
            dims = [dim for dim in variable.dims if dim != "simulation"]
            if not dims:
                yield str(name), variable.to_numpy(), self.pit[name].to_numpy()
                continue
            ranks = variable.stack(number=dims).transpose("simulation", "number")
            shares = self.pit[name].stack(number=dims).transpose("simulation", "number").to_numpy()
            labels = stacked_labels(str(name), ranks["number"].to_numpy().tolist())
            for i, label in enumerate(labels):
                yield label, ranks.to_numpy()[:, i], shares[:, i]


def _sd_ratio(width: float) -> float:
    """The ratio that makes Gaussian guides that wide; NaN for a width that none makes."""
    return math.sqrt(1 / math.sin(math.pi * width / 6) - 1) if 0 < width <= 3 else math.nan
