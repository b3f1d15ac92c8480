"""What a latent space carries, as a record: the figures, the verdict in words, and what is printed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from banel_pyro.checks import integer
from banel_pyro.evaluate import mean_estimate
from banel_pyro.terms import Estimate

__all__ = ["LatentReport"]

Array: TypeAlias = NDArray[np.floating[Any]]

NEAR_CEILING = 0.9
"""Share of log N from which on the mutual information says more of the number of rows than of the guide."""

SHOWN = 20
"""Rows of the table that are printed."""


@dataclass(frozen=True)
class LatentReport:
    r"""What the latent of an amortised pair carries about the rows of data.

    :func:`~banel_pyro.diagnostics.latent_report.latent_report` makes it. All of it is in nats a row unless said
    otherwise. It speaks of the rows that were given: the mutual information is that of z and *which of the N rows it
    is*, at most log N, and there is no bias in it. As an estimate for more rows of the kind it is too low, and
    ``marginal_kl`` too high by as much, since mutual information is concave and a KL convex in the distribution of x;
    ``total_correlation`` can be off either way. What is 0 may come out below 0, by its error.

    Args:
        site: the latent.
        num_rows: N.
        num_samples: draws of each row.
        measures: a row for ``kl`` to the prior, in closed form; ``mutual_information``, I_q(x; z); ``marginal_kl``,
            KL(q(z), p(z)); ``total_correlation`` of q(z); ``dimension_kl``, the sum over dimensions of
            KL(q(z_k), p(z_k)). Columns are ``value``; ``stderr``, Monte Carlo, given the rows; ``rows_stderr`` and
            ``rows_bias``, its error and its bias to first order in 1/N for rows that are a sample of more. See
            :func:`~banel_pyro.diagnostics.aggregate.decompose`.
        table: a row for each dimension, such as ``z[3]``: ``kl`` and ``stderr`` over rows as in
            :func:`~banel_pyro.diagnostics.latent.kl_per_dimension`; ``mutual_information`` I_q(x; z_k),
            ``mutual_information_stderr`` given the rows, ``marginal_kl`` KL(q(z_k), p(z_k)); ``variance`` over rows of
            the posterior mean, in squared units of the latent; ``active`` and ``collapsed``.
        effective_dimension: participation ratio of the covariance of posterior means over rows, see
            :func:`~banel_pyro.diagnostics.aggregate.effective_dimension`.
        entropies: of each row's posterior, (row,).
        active_threshold: variance of posterior means above which a dimension is active.
        kl_threshold: KL below which a dimension that is not active has collapsed.
        probes: with labels, the accuracy (0 to 1) of a ``linear`` classifier and of the nearest ``neighbours`` on
            posterior means, and of always saying the ``majority`` class; else empty.
    """

    site: str
    num_rows: int
    num_samples: int
    measures: pd.DataFrame = field(repr=False)
    table: pd.DataFrame = field(repr=False)
    effective_dimension: float
    entropies: Array = field(repr=False)
    active_threshold: float
    kl_threshold: float
    probes: Mapping[str, Estimate] = field(default_factory=dict)

    @property
    def kl(self) -> Estimate:
        """Mean KL of a row's posterior to the prior."""
        return self._measure("kl")

    @property
    def mutual_information(self) -> Estimate:
        """I_q(x; z) for these rows, at most log N."""
        return self._measure("mutual_information")

    @property
    def marginal_kl(self) -> Estimate:
        """KL of the aggregate posterior to the prior: ``kl`` less ``mutual_information``."""
        return self._measure("marginal_kl")

    @property
    def total_correlation(self) -> Estimate:
        """KL of the aggregate posterior to the product of its marginals."""
        return self._measure("total_correlation")

    @property
    def entropy(self) -> Estimate:
        """Mean entropy of a row's posterior, with its standard error over rows."""
        return mean_estimate(self.entropies)

    @property
    def active_units(self) -> int:
        """Dimensions whose posterior mean varies over rows by more than ``active_threshold``."""
        return int(self.table["active"].sum())

    @property
    def verdict(self) -> str:
        """Whether the posterior has collapsed to the prior, in words, with the figures that say so."""
        return " ".join([_collapse(self), *_idle(self), *_ceiling(self)])

    def histogram(self, bins: int = 20) -> tuple[NDArray[np.int64], Array]:
        """The entropies of rows in equal bins: how many in each, (bin,), and the ends of bins in nats, (bin + 1,).

        :func:`~banel_pyro.report.plots.plot_entropy_per_datum` draws it.

        Args:
            bins: how many.
        """
        counts, ends = np.histogram(self.entropies, integer("bins", bins))
        return counts.astype(np.int64), ends

    def to_dict(self) -> dict[str, Any]:
        """All of it but the single entropies, as what JSON holds; numbers that are not finite are None."""
        counts, ends = self.histogram()
        found = {
            "site": self.site, "num_rows": self.num_rows, "num_samples": self.num_samples,
            "measures": self.measures.to_dict("index"), "dimensions": self.table.to_dict("index"),
            "active_units": self.active_units, "active_threshold": self.active_threshold,
            "kl_threshold": self.kl_threshold, "effective_dimension": self.effective_dimension,
            "entropy": vars(self.entropy), "entropy_histogram": {"counts": counts.tolist(), "ends": ends.tolist()},
            "probes": {name: vars(share) for name, share in self.probes.items()}, "verdict": self.verdict,
        }  # fmt: skip
        plain: dict[str, Any] = _plain(found)
        return plain

    def __str__(self) -> str:
        low, middle, high = np.quantile(self.entropies, [0.05, 0.5, 0.95])
        lines = [
            f"latent '{self.site}': {_count(len(self.table), 'dimension')}, {self.num_rows} rows, {self.num_samples} "
            "draws of each; nats a row",
            f"  KL to the prior               {self.kl.value:.3f}",
            f"  mutual information I_q(x; z)  {self.mutual_information}, at most log {self.num_rows} = "
            f"{math.log(self.num_rows):.3f}",
            f"    of more such rows           {self._of_more_rows()}",
            f"  KL of q(z) to the prior       {self.marginal_kl}",
            f"  total correlation of q(z)     {self.total_correlation}",
            f"  entropy of a row's posterior  {self.entropy.value:.3f}; of 90 % of rows {low:.3f} to {high:.3f}, "
            f"median {middle:.3f}",
            f"  active dimensions             {self.active_units} of {len(self.table)}, with posterior means of "
            f"variance above {self.active_threshold:g}",
            f"  effective dimension           {self.effective_dimension:.2f}",
        ]
        if self.probes:
            shares = ", ".join(f"{name} {share}" for name, share in self.probes.items() if name != "majority")
            lines.append(
                f"  accuracy of probes            {shares}; majority class {self.probes['majority'].value:.3f}"
            )
        largest = self.table.sort_values("kl", ascending=False, kind="stable")[:SHOWN]
        columns = ["kl", "mutual_information", "marginal_kl", "variance", "active", "collapsed"]
        rest = f"\n({len(self.table) - SHOWN} dimensions of a smaller KL in table)" if len(self.table) > SHOWN else ""
        return "\n".join([*lines, f"verdict: {self.verdict}", largest[columns].round(3).to_string()]) + rest

    def _of_more_rows(self) -> str:
        found = self.measures[["value", "rows_stderr", "rows_bias"]].loc["mutual_information"].to_numpy()
        return f"{Estimate(found[0], found[1])}, too low by about {abs(found[2]):.3f} or more"

    def _measure(self, name: str) -> Estimate:
        found = self.measures[["value", "stderr"]].loc[name].to_numpy()
        return Estimate(float(found[0]), float(found[1]))


# ---- words ---------------------------------------------------------------------------------------


def _collapse(report: LatentReport) -> str:
    table, total, information = report.table, len(report.table), report.mutual_information.value
    gone = table.index[table["collapsed"]]
    if len(gone) == total:
        every = "its only dimension has" if total == 1 else f"all {total} dimensions have"
        return (
            f"collapsed: {every} the prior as posterior for every row (KL at most {table['kl'].max():.2g} nats, "
            f"variance of posterior means at most {table['variance'].max():.2g})."
        )
    carried = f"the latent carries {information:.2f} nats about which row it is"
    if not len(gone):
        return f"not collapsed: {report.active_units} of {_count(total, 'dimension')} active, and {carried}."
    return (
        f"collapsed in part: {len(gone)} of {total} dimensions ({_some(gone)}) have the prior as posterior for every "
        f"row (KL below {report.kl_threshold:g} nats, variance of posterior means at most "
        f"{report.active_threshold:g}); {carried}."
    )


def _idle(report: LatentReport) -> list[str]:
    """Dimensions that cost and tell nothing."""
    table = report.table
    idle = table.index[~table["active"] & ~table["collapsed"]]
    if not len(idle):
        return []
    return [
        f"{_some(idle)}: off the prior (KL up to {table.loc[idle, 'kl'].max():.2g} nats) in nearly the same way for "
        "every row, so not active."
    ]


def _ceiling(report: LatentReport) -> list[str]:
    ceiling = math.log(report.num_rows)
    if report.mutual_information.value < NEAR_CEILING * ceiling:
        return []
    return [
        f"The information is near its ceiling log {report.num_rows} = {ceiling:.2f}: a draw tells which row it came "
        "from, and more rows would show more."
    ]


def _some(labels: pd.Index) -> str:
    shown = ", ".join(str(label) for label in labels[:6])
    return f"{shown} and {len(labels) - 6} more" if len(labels) > 6 else shown


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _plain(value: Any) -> Any:
    """What JSON holds."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
