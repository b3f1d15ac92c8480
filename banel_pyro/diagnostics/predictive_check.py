r"""Does the model know data like these? Statistics of replicated data sets against those of the observed one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from banel_pyro.checks import number
from banel_pyro.diagnostics.psis import Array
from banel_pyro.evaluate import mean_estimate
from banel_pyro.inference_data import ArviZ, group, group_names
from banel_pyro.run import FitResult

__all__ = ["STATISTICS", "PredictiveCheck", "posterior_predictive_check"]

Statistic: TypeAlias = str | Callable[[Array], float]
"""One of :data:`STATISTICS`, or a function from a data set, shaped as it was observed, to a number."""

STATISTICS: Mapping[str, Callable[[Array], float]] = {
    "mean": lambda values: float(values.mean()),
    "sd": lambda values: float(values.std()),
    "min": lambda values: float(values.min()),
    "max": lambda values: float(values.max()),
    "median": lambda values: float(np.median(values)),
}
"""Statistics by name, over all numbers of a data set; ``sd`` divides by their count."""


@dataclass(frozen=True)
class PredictiveCheck:
    r"""Statistics of replicated data sets against those of the observed one; from :func:`posterior_predictive_check`.

    Args:
        table: a row for each statistic, such as ``mean`` (``y: mean`` where several things are observed):
            ``observed``; ``expected`` and ``sd``, mean and sd over replicated data sets; ``p_value`` and its
            Monte-Carlo standard error ``mcse`` (0 where no replicated data set is on one side, which with S of them
            says that the share there is below some 3/S).
        replicated: each statistic of each replicated data set: a row for each of S, a column for each statistic.
    """

    table: pd.DataFrame
    replicated: pd.DataFrame = field(repr=False)

    def extreme(self, level: float = 0.05) -> list[str]:
        """The statistics whose observed value is in one of the tails of probability ``level`` / 2.

        Args:
            level: probability of both tails.

        Raises:
            ValueError: if it is no probability.
        """
        if not 0 < number("level", level) < 1:
            raise ValueError(f"level={level!r}: expected a probability between 0 and 1, such as 0.05.")
        p = self.table["p_value"]
        return [str(label) for label in self.table.index[np.minimum(p, 1 - p) < level / 2]]

    def __str__(self) -> str:
        return self.table.to_string(float_format=lambda value: f"{value:.3g}")


def posterior_predictive_check(
    draws: ArviZ | FitResult,
    statistics: Sequence[Statistic] | Mapping[str, Statistic] = ("mean", "sd", "min", "max"),
    *,
    var_names: Sequence[str] | None = None,
) -> PredictiveCheck:
    r"""Where statistics of the observed data lie among those of data drawn from the posterior predictive distribution.

    .. math::
        p = P\big(T(x^{\text{rep}}) > T(x)\big) + \frac12 P\big(T(x^{\text{rep}}) = T(x)\big), \qquad
        x^{\text{rep}} \sim p(x \mid z),\; z \sim q

    with one replicated data set for each draw; the second term (mid-p) is for data that can be equal. A p near 0 or 1
    says that the model makes data unlike these in that respect. A p near 1/2 says little: the data are used twice, so
    under a right model p is nearer to 1/2 than uniform, and a statistic that the model fits, as a mean with a free
    mean, hardly can fail. Choose statistics that it does not fit.

    The guide counts as it is: λ > 0 narrows its part of the predictive distribution as well. Rows that are masked count
    as data, so leave them out or give a statistic that knows them.

    Args:
        draws: with the groups ``posterior_predictive`` and ``observed_data``, as from
            :meth:`~banel_pyro.FitResult.predictive`, or a :class:`~banel_pyro.FitResult` to draw 1,000 from.
        statistics: names of :data:`STATISTICS` and functions from a data set, shaped as it was observed, to a number;
            functions go by their own name, or by that of a mapping.
        var_names: things observed, all by default.

    Raises:
        TypeError: for something else, or a statistic that is no function.
        ValueError: for missing groups, unknown names, or data or statistics that are NaN or infinite.

    References:
        Gelman, Meng and Stern 1996, Statistica Sinica 6.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from banel_pyro import to_arviz
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     pyro.sample("z", dist.Normal(x.mean(), 0.1))
        >>> x = torch.linspace(-9.0, 9.0, 100)  # far wider than a standard normal distribution
        >>> groups = ["posterior_predictive", "observed_data"]
        >>> found = posterior_predictive_check(to_arviz(model, guide, x, num_samples=200, groups=groups, seed=0))
        >>> found.extreme()
        ['sd', 'min', 'max']
    """
    idata = draws.predictive() if isinstance(draws, FitResult) else draws
    if not hasattr(idata, "groups") or not hasattr(idata, "attrs"):
        raise TypeError(f"draws is a {type(draws).__name__}: expected an ArviZ object, or a FitResult.")
    functions = _functions(statistics)
    table: dict[str, dict[str, float]] = {}
    replicated: dict[str, Array] = {}
    for name, observed, drawn, several in _data(idata, var_names):
        for statistic, function in functions.items():
            label = f"{name}: {statistic}" if several else statistic
            value = _value(label, function, observed)
            values = np.array([_value(label, function, one) for one in drawn])
            equal = np.isclose(values, value, rtol=1e-9, atol=0.0)  # sums in another order differ in their last digit
            share = mean_estimate(((values > value) & ~equal) + 0.5 * equal)
            table[label] = {
                "observed": value, "expected": float(values.mean()), "sd": float(values.std(ddof=1)),
                "p_value": share.value, "mcse": share.stderr,
            }  # fmt: skip
            replicated[label] = values
    return PredictiveCheck(pd.DataFrame.from_dict(table, orient="index"), pd.DataFrame(replicated))


def _functions(statistics: Any) -> dict[str, Callable[[Array], float]]:
    """Statistics by label."""
    if isinstance(statistics, str) or not isinstance(statistics, Sequence | Mapping) or not statistics:
        raise ValueError(f"statistics={statistics!r}: expected some of {list(STATISTICS)}, or functions, in a list.")
    named = statistics if isinstance(statistics, Mapping) else {_label(item): item for item in statistics}
    if len(named) < len(statistics):
        raise ValueError(f"statistics={[*map(_label, statistics)]}: two have one name. Write {{'name': function}}.")
    found = {}
    for label, item in named.items():
        if isinstance(item, str) and item not in STATISTICS:
            raise ValueError(f"statistics: unknown '{item}', expected some of {list(STATISTICS)}, or a function.")
        found[str(label)] = STATISTICS[item] if isinstance(item, str) else item
        if not callable(found[str(label)]):
            raise TypeError(f"statistics: {item!r} is no function from a data set to a number. Write one.")
    return found


def _label(statistic: Any) -> str:
    return statistic if isinstance(statistic, str) else str(getattr(statistic, "__name__", statistic))


def _data(idata: ArviZ, var_names: Sequence[str] | None) -> Iterator[tuple[str, Array, Array, bool]]:
    """Each thing observed: its name, its values, replicated ones (draw, ...), and whether there are several."""
    missing = sorted({"posterior_predictive", "observed_data"} - set(group_names(idata)))
    if missing:
        raise ValueError(
            f"draws have no {missing}: write groups=['posterior_predictive', 'observed_data'] in to_arviz or "
            "posterior(), or take those of predictive()."
        )
    drawn, observed = group(idata, "posterior_predictive"), group(idata, "observed_data")
    known = [str(name) for name in observed.data_vars if name in drawn]
    names = known if var_names is None else list(var_names)
    if isinstance(var_names, str) or set(names) - set(known) or not names:
        raise ValueError(f"var_names={var_names!r}: expected a list of some of {known}, which are observed and drawn.")
    for name in names:
        dims = observed[name].dims
        values = drawn[name].stack(sample=("chain", "draw")).transpose("sample", *dims).to_numpy()
        yield name, _finite(name, observed[name].to_numpy()), _finite(f"replicated {name}", values), len(names) > 1


def _finite(name: str, values: Any) -> Array:
    array: Array = np.asarray(values, dtype=float)
    if wrong := int((~np.isfinite(array)).sum()):
        raise ValueError(f"{name}: {wrong} of {array.size} values are NaN or infinite. Leave their rows out.")
    return array


def _value(label: str, function: Callable[[Array], float], data: Array) -> float:
    """A statistic of a data set."""
    found = np.asarray(function(data), dtype=float)
    if found.ndim or not np.isfinite(found):
        raise ValueError(
            f"statistic '{label}' is {found if found.ndim == 0 else f'an array of shape {found.shape}'} of a data set "
            f"of shape {data.shape}: expected a finite number."
        )
    return float(found)
