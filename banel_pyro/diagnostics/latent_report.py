"""What a latent space carries, in one record: information, units in use, collapse, and what can be read off it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from banel_pyro.batches import Rows, as_rows, num_rows, transformed
from banel_pyro.checks import integer, number, seed_number
from banel_pyro.diagnostics.aggregate import decompose, effective_dimension
from banel_pyro.diagnostics.latent import data_plate_of
from banel_pyro.diagnostics.probes import checked_labels, majority_share, probe_accuracies
from banel_pyro.diagnostics.row_posteriors import RowPosteriors, row_posteriors
from banel_pyro.evaluate import mean_estimate
from banel_pyro.seeding import fork_rng
from banel_pyro.terms import Estimate

__all__ = ["LatentReport", "latent_report"]

Array: TypeAlias = NDArray[np.floating[Any]]

NEAR_CEILING = 0.9
"""Share of log N from which on the mutual information says more of the number of rows than of the guide."""

SHOWN = 20
"""Rows of the table that are printed."""


@dataclass(frozen=True)
class LatentReport:
    r"""What the latent of an amortised pair carries about the rows of data; from :func:`latent_report`.

    All of it is in nats a row unless said otherwise. It speaks of the rows that were given: the mutual information
    is that of z and *which of the N rows it is*, at most log N, and there is no bias in it. As an estimate for more
    rows of the kind it is too low, and ``marginal_kl`` too high by as much, since mutual information is concave and
    a KL convex in the distribution of x; ``total_correlation`` can be off either way. What is 0 may come out below 0,
    by its error.

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


def latent_report(
    model: Any,
    guide: Any = None,
    data: Any = None,
    *,
    site: str | None = None,
    labels: Any = None,
    num_samples: int = 10,
    batch_size: int | None = None,
    data_plate: str | None = None,
    active_threshold: float = 0.01,
    kl_threshold: float = 0.01,
    folds: int = 5,
    neighbours: int = 5,
    seed: int | None = None,
) -> LatentReport:
    r"""What the latent of an amortised pair carries about the rows of data.

    With the aggregate posterior :math:`q(z) = \frac1N \sum_n q(z \mid x_n)` of all N rows, the mean KL to the prior
    comes apart into information about the row and the distance of :math:`q(z)` from the prior (Hoffman and Johnson
    2016, "ELBO surgery"):

    .. math::
        \frac1N \sum_n \mathrm{KL}\big(q(z \mid x_n) \,\|\, p(z)\big)
            = I_q(x; z) + \mathrm{KL}\big(q(z) \,\|\, p(z)\big)

    A dimension is active if the variance over rows of its posterior mean is above ``active_threshold``; 0.01 is that of
    Burda et al. (2016, arXiv 1509.00519), for a standard normal prior: they found variances in two groups far apart on
    either side of it, so that the count hardly depends on it. A dimension has *collapsed* if it is not active and its
    KL is below ``kl_threshold``: its posterior is the prior for every row.

    The mixture takes ``num_samples`` · N² · D evaluations of a density (some seconds for 1,500 rows of 8 dimensions):
    of a large data set take some thousand rows. On M rows the information is at most log M.

    Probes are trained and tested on posterior means by cross-validation. Dimensions are in units of the sd of
    :math:`q(z_k)`: were each scaled to the sd of its means, a dimension that has collapsed would be blown up, and
    read, although no draw of it can be told from the prior. See
    :func:`~banel_pyro.diagnostics.probes.probe_accuracies`.

    Args:
        model: the model; or a :class:`~banel_pyro.Pair` or :class:`~banel_pyro.FitResult`, which bring all else.
        guide: the guide.
        data: rows to condition on; those that a pair or run was trained on, if left out.
        site: a latent inside the data plate; may be left out if there is one only.
        labels: a class for each row, (row,), for the probes (scikit-learn, the extra ``models``).
        num_samples: draws of each row's posterior, at least 2.
        batch_size: rows in memory at a time (all by default). The draws do not depend on it.
        data_plate: name of the plate over data points, found by its size if left out.
        active_threshold: in squared units of the latent.
        kl_threshold: in nats a row.
        folds: parts of the cross-validation.
        neighbours: how many vote for the class of a row.
        seed: draws inside a forked generator and leaves yours alone; None draws from yours.

    Raises:
        TypeError: for a guide beside a pair or run, or a model without a guide.
        ValueError: for a latent that :func:`~banel_pyro.diagnostics.latent.kl_per_dimension` refuses, that depends on
            other latents, is masked, or whose prior is not the same for all rows; labels that do not fit the rows.
        ModuleNotFoundError: for labels without scikit-learn.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> def guide(x):  # the first dimension tells rows apart, the second has collapsed
        ...     with pyro.plate("data", len(x)):
        ...         loc = torch.stack([x, 0 * x], -1)
        ...         pyro.sample("z", dist.Normal(loc, torch.tensor([0.01, 1.0])).to_event(1))
        >>> found = latent_report(model, guide, torch.tensor([-1.0, 0.0, 1.0]), seed=0)
        >>> print(found.mutual_information, round(math.log(3), 3))
        1.099 ± 0.000 1.099
        >>> found.table["collapsed"].to_dict()
        {'z[0]': False, 'z[1]': True}
    """
    integer("num_samples", num_samples, 2)
    if batch_size is not None:
        integer("batch_size", batch_size)
    thresholds = [_threshold(n, v) for n, v in (("active_threshold", active_threshold), ("kl_threshold", kl_threshold))]
    scope = _checked_pair(model, guide, data)
    with scope(), nullcontext() if seed is None else fork_rng(seed_number(seed)):
        model, guide, rows, plate_name = _parts(model, guide, data)
        if num_rows(rows) < 2:
            raise ValueError(f"data has {num_rows(rows)} rows: expected 2 or more, to tell apart by their latents.")
        classes = None if labels is None else checked_labels(labels, num_rows(rows))
        plate = data_plate_of((model, guide), rows, batch_size, data_plate or plate_name)
        found = row_posteriors(model, guide, rows, plate, site=site, num_samples=num_samples, batch_size=batch_size)
    probes = {} if classes is None else _probes(found, classes, folds, neighbours)
    return _report(found, num_samples, thresholds, probes)


def _report(
    found: RowPosteriors, num_samples: int, thresholds: list[float], probes: Mapping[str, Estimate]
) -> LatentReport:
    measures, numbers = decompose(found.densities)
    active, small = thresholds
    kls = [mean_estimate(column) for column in found.densities.kl.T]
    table = pd.DataFrame({"kl": [kl.value for kl in kls], "stderr": [kl.stderr for kl in kls]}, index=found.labels)
    table[list(numbers.columns)] = numbers.to_numpy()
    table["variance"] = found.means.var(axis=0)
    table["active"] = table["variance"] > active
    table["collapsed"] = ~table["active"] & (table["kl"] < small)
    return LatentReport(
        found.site, len(found.means), num_samples, measures, table, effective_dimension(found.means), found.entropies,
        active, small, probes,
    )  # fmt: skip


def _probes(found: RowPosteriors, labels: NDArray[Any], folds: int, neighbours: int) -> dict[str, Estimate]:
    spread = np.sqrt(found.means.var(axis=0) + found.variances.mean(axis=0))  # of q(z_k)
    features = (found.means - found.means.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    shares = probe_accuracies(features, labels, folds=folds, neighbours=neighbours)
    return {**shares, "majority": Estimate(majority_share(labels), 0.0)}


# ---- what is reported on -------------------------------------------------------------------------


def _checked_pair(model: Any, guide: Any, data: Any) -> Any:
    """The scope to work in; refuses what is neither model and guide with data, nor a pair or run alone."""
    from banel_pyro.pair import Pair  # which import this package
    from banel_pyro.run import FitResult

    kind = type(model).__name__
    if isinstance(model, Pair | FitResult):
        if guide is not None:
            raise TypeError(
                f"latent_report got a {kind} and guide=<{type(guide).__name__}>: a {kind} has a guide of its own. "
                "Rows go by name: latent_report(result, data=x)."
            )
        return getattr(model, "scope", nullcontext)
    if guide is None or data is None:
        missing = "guide" if guide is None else "data"
        raise TypeError(
            f"latent_report got a model ({kind}) without {missing}: expected latent_report(model, guide, data), or a "
            "Pair or FitResult in place of all three."
        )
    return nullcontext


def _parts(model: Any, guide: Any, data: Any) -> tuple[Any, Any, Rows, str | None]:
    """Model, guide, rows and the name of the data plate, of a pair or a run as well."""
    if guide is not None:
        return model, guide, as_rows(data), None
    if hasattr(model, "split"):
        split = model.split()
        rows = transformed(as_rows(split.train), split.transform) if data is None else as_rows(data)
        return model.model, model.guide, rows, model.data_plate
    rows = transformed(model.rows, model.transform) if data is None else model._checked(as_rows(data))
    return model.model, model.guide, rows, model.plate.name


def _threshold(name: str, value: Any) -> float:
    if number(name, value) <= 0:
        raise ValueError(f"{name}={value!r}: expected a number above 0, such as 0.01.")
    return float(value)


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
        return f"not collapsed: {_count(total, 'dimension')} of {total} in use, and {carried}."
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
