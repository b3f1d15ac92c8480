"""What a latent space carries, in one call: information, units in use, collapse, and what can be read off it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from banel_pyro.batches import Rows, as_rows, num_rows, transformed
from banel_pyro.checks import integer, number, seed_number
from banel_pyro.diagnostics.aggregate import decompose, effective_dimension
from banel_pyro.diagnostics.latent import data_plate_of
from banel_pyro.diagnostics.latent_record import LatentReport
from banel_pyro.diagnostics.probes import checked_labels, majority_share, probe_accuracies
from banel_pyro.diagnostics.row_posteriors import RowPosteriors, row_posteriors
from banel_pyro.evaluate import mean_estimate
from banel_pyro.seeding import fork_rng
from banel_pyro.terms import Estimate

__all__ = ["latent_report"]


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
        >>> print(found.mutual_information)  # log 3
        1.099 ± 0.000
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
    rows = transformed(model.rows, model.transform) if data is None else model.checked(as_rows(data))
    return model.model, model.guide, rows, model.plate.name


def _threshold(name: str, value: Any) -> float:
    if number(name, value) <= 0:
        raise ValueError(f"{name}={value!r}: expected a number above 0, such as 0.01.")
    return float(value)
