"""Several runs of one pair from different seeds, and the best of them by the untempered ELBO."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
import pyro
from torch import nn

from banel_pyro.batches import Rows
from banel_pyro.checks import integer, seed_number
from banel_pyro.evaluate import mean_estimate, trace_draws
from banel_pyro.modules import fresh_modules
from banel_pyro.pair import Pair
from banel_pyro.run import FitResult
from banel_pyro.seeding import fork_rng
from banel_pyro.terms import Estimate
from banel_pyro.training.interrupt import INTERRUPTED
from banel_pyro.training.rollback import FAULTS

__all__ = ["Restarts", "restarts"]


@dataclass(frozen=True)
class Restarts:
    """Runs of one pair that differ in their seed alone.

    Args:
        results: the runs that came to an end, by seed; each keeps its parameters to itself
            (:meth:`~banel_pyro.FitResult.scope`).
        table: a row per seed: ``elbo`` and ``elbo_stderr``, untempered, in nats (per datum with a data plate, over
            draws); ``rows`` it was taken on; ``steps`` done; ``stopped`` or failed, why.
    """

    results: Mapping[int, FitResult]
    table: pd.DataFrame

    @property
    def best(self) -> FitResult:
        """The run with the highest ELBO. Where it leads by less than the errors, another would do as well."""
        return self.results[max(self.results, key=self.table["elbo"].to_dict().__getitem__)]


def restarts(
    make: Callable[[], Pair],
    *,
    seeds: int | Sequence[int] = 5,
    num_samples: int = 100,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Restarts:
    """Fit a pair from several seeds, and judge the runs by the untempered ELBO of held-out rows.

    Local optima are judged by what λ has no part in. Without held-out rows, or with a guide that says nothing about
    them, it is the ELBO of the training rows, which is then a bound of the evidence. A run that breaks down (numbers
    that are not finite, a collapse) is in the table with the reason and cannot be the best.

    Args:
        make: a function without arguments that returns a fresh pair, as the command line takes. Its data are made
            once, so that all runs see the same rows.
        seeds: of the runs, or how many: 5 is 0 to 4. A seed rules the first weights and everything drawn.
        num_samples: draws of the guide for the ELBO that they are judged by, the same for all.
        out: folder for the run folders ``seed=0`` and so on.
        **options: of :func:`~banel_pyro.fit`, such as ``steps=2000``.

    Returns:
        The runs. :attr:`Restarts.best` draws from its own parameters; the current param store is left alone.

    Raises:
        ValueError: if there are no seeds, or one twice; if ``make`` returns modules that it has returned before; or
            if every run broke down.
        KeyboardInterrupt: on Ctrl-C before the first run has ended; later, what there is is returned.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> found = restarts(lambda: Pair(model, AutoNormal(model), data=tuple), seeds=2, steps=20, progress=False)
        >>> list(found.table.index)
        [0, 1]
    """
    wanted, num_samples = _checked_seeds(seeds), integer("num_samples", num_samples, 2)
    with pyro.get_param_store().scope(), fork_rng(wanted[0]):
        split = make().split()
    found: dict[int, FitResult] = {}
    rows: dict[int, dict[str, Any]] = {}
    seen: list[nn.Module] = []
    for seed in wanted:
        folder = None if out is None else Path(out) / f"seed={seed}"
        store: Any = {"params": {}, "constraints": {}}
        with pyro.get_param_store().scope(store), fork_rng(seed):
            pair = make()
            seen += fresh_modules(pair.model, pair.guide, seen)
            try:
                result = replace(pair, data=lambda: split).fit(seed=seed, out=folder, **options)
            except FAULTS as error:
                rows[seed] = {"stopped": f"{type(error).__name__}: {error}"}
                continue
            if result.stopped == INTERRUPTED:
                rows[seed] = {"steps": _steps(result), "stopped": INTERRUPTED}
                break
            rows[seed] = _judged(result, num_samples)
        found[seed] = replace(result, store=store)
    if not found:
        _nothing_found(rows)
    columns = ["elbo", "elbo_stderr", "rows", "steps", "stopped"]
    return Restarts(found, pd.DataFrame.from_dict(rows, orient="index").reindex(columns=columns))


def _nothing_found(rows: Mapping[int, Mapping[str, Any]]) -> NoReturn:
    if any(row["stopped"] == INTERRUPTED for row in rows.values()):
        raise KeyboardInterrupt
    told = "; ".join(f"seed {seed}: {row['stopped']}" for seed, row in rows.items())
    raise ValueError(f"every run broke down ({told}).")


def _checked_seeds(seeds: Any) -> list[int]:
    wanted = list(range(integer("seeds", seeds))) if not isinstance(seeds, Sequence) else list(seeds)
    if not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(f"seeds={seeds!r}: expected different seeds, or how many. Write seeds=5, for instance.")
    return [seed_number(seed) for seed in wanted]


def _judged(result: FitResult, num_samples: int) -> dict[str, Any]:
    held_out = bool(result.held_out) and not result.local
    with fork_rng(0):  # the same draws for all
        elbo = _elbo(result, result.held_out if held_out else result.rows, num_samples)
    which = "held-out" if held_out else "training"
    return {
        "elbo": elbo.value, "elbo_stderr": elbo.stderr, "rows": which, "steps": _steps(result),
        "stopped": result.stopped or "",
    }  # fmt: skip


def _elbo(result: FitResult, rows: Rows, num_samples: int) -> Estimate:
    totals = [
        float(draw.model_trace.log_prob_sum() - draw.guide_trace.log_prob_sum())
        for draw in trace_draws(result.model, result.guide, rows, result.plate, num_samples=num_samples)
    ]
    total, size = mean_estimate(pd.Series(totals).to_numpy()), result.plate.factor(len(rows[0]) if rows else 1)
    return Estimate(total.value / size, total.stderr / size)


def _steps(result: FitResult) -> int:
    return int(result.history["step"].iloc[-1]) if len(result.history) else 0
