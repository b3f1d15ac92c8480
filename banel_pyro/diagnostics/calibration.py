"""Calibration by simulation: are posteriors right on average over data that the model itself draws?"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import xarray as xr

from banel_pyro.batches import data_hash
from banel_pyro.checks import instance, integer, seed_number
from banel_pyro.diagnostics.calibrated import Calibration
from banel_pyro.diagnostics.simulation_folder import SimulationFolder
from banel_pyro.diagnostics.simulator import Fit, Recipe, Record, SamePair, Simulator
from banel_pyro.folder import versions
from banel_pyro.pair import Pair
from banel_pyro.precision import checked_dtype, dtype_name
from banel_pyro.seeding import draw_seed
from banel_pyro.training.options import describe, describe_objective, name_of
from banel_pyro.training.progress import Progress

__all__ = ["Calibration", "calibrate"]

_OURS = ("seed", "out", "resume", "progress", "posterior_samples", "validation", "data_plate")


def calibrate(
    pair: Pair | Callable[[], Pair],
    *,
    num_simulations: int = 200,
    num_draws: int = 99,
    fit: Fit | None = None,
    amortized: bool = False,
    sites: Sequence[str] | None = None,
    workers: int = 1,
    seed: int | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = True,
    **options: Any,
) -> Calibration:
    r"""Draw true values and data from the model, fit the guide to the data, rank the true values among its draws.

    Where guides are the posteriors, the rank of a true value among L draws is 0 to L with equal probability. Two tests
    read the ranks: simulation-based calibration (SBC: Talts et al. 2018, arXiv 1804.06788) asks whether they are
    uniform, which they are not as soon as guides are too narrow or too wide; VSBC (Yao et al. 2018, arXiv 1802.02538)
    asks whether they are symmetric, and that is all it sees: whether the centre is off, not the spread. With λ > 0
    guides are narrower on purpose, and SBC has to say so. Both speak of an average over the prior: the posterior given
    the data that you have may be better or worse than that.

    Each simulation has a seed of its own, a fresh pair, an empty param store and one thread, so that the ranks are the
    same in any number of processes. The rows of the pair's data say how many there are and hold what is not observed.

    Args:
        pair: a function without arguments that returns a fresh pair; or a pair, if it has no modules.
        num_simulations: M. A folder that holds fewer is filled up.
        num_draws: L, draws of each guide; L + 1 ranks share out evenly over bins for 19, 99 or 199.
        fit: trains the guide of the pair it gets, whose data are the simulated ones, in the current param store; by
            default :meth:`~banel_pyro.Pair.fit` with ``options``, and without capture unless they ask for it.
        amortized: train once, on the pair's own data, and ask that one guide about all simulated data sets, which are
            drawn from the model as it then is. It tests the guide as a function of the data; without, each data set
            gets a guide of its own, also where the guide could be asked about any.
        sites: latents to rank, by default all that the guide draws.
        workers: processes. With more than one, ``pair`` and ``fit`` have to be functions of a module.
        seed: of all simulations; by default that of the folder, else drawn from torch's generator.
        out: folder that each simulation is written to when it ends.
        resume: go on with the simulations in ``out``; starts them if there are none.
        progress: show a progress bar.
        **options: of :meth:`~banel_pyro.Pair.fit`, such as ``lam=0.5, steps=2000``.

    Raises:
        TypeError, ValueError: for options out of range, a pair that is not made afresh, a folder of other simulations,
            or a model that cannot simulate, with the reason (:func:`~banel_pyro.diagnostics.simulate.simulate`).

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", 1):
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the posterior itself: nothing to fit
        ...     pyro.sample("z", dist.Normal(x.sum() / 2, 0.5**0.5))
        >>> pair = Pair(model, guide, data=lambda: torch.zeros(1))
        >>> found = calibrate(pair, num_simulations=50, num_draws=19, fit=lambda pair: None, seed=0, progress=False)
        >>> found.passes("spread"), found.passes("centre")
        (True, True)
    """
    num_simulations = integer("num_simulations", num_simulations, 10)
    workers = integer("workers", workers)
    instance("out", out, (str, os.PathLike, type(None)), "the path of a folder. Write out='runs/calibration'")
    folder = None if out is None else SimulationFolder(Path(out))
    if folder is None and resume:
        raise ValueError("resume=True, but out=None: name the folder to go on with, such as out='runs/calibration'.")
    if folder is not None:
        folder.check(resume=resume)
    recipe = Recipe(
        _factory(pair), fit, _checked_options(options, fit), integer("num_draws", num_draws, 2), _seed(seed, folder),
        None if sites is None else _names(sites), amortized, checked_dtype(options.get("dtype"))
        or torch.get_default_dtype(), None if out is None else str(out),
    )  # fmt: skip
    _check_workers(recipe, workers)
    start = perf_counter()
    simulator = Simulator(recipe)
    records = {} if folder is None else folder.open(_config(simulator))
    missing = [number for number in range(num_simulations) if number not in records]
    with Progress(num_simulations, enabled=progress, title="calibrate") as bar:
        for record in _run(simulator, missing, min(workers, len(missing))):
            if folder is not None:
                folder.append(record)
            records[record.number] = record
            bar.show(len(records), f"{perf_counter() - start:.0f} s, {record.seconds:.2f} s a fit")
    kept = [records[number] for number in range(num_simulations)]
    return _collected(simulator, kept, perf_counter() - start)


def _run(simulator: Simulator, numbers: Sequence[int], workers: int) -> Iterator[Record]:
    """Simulations as they end."""
    if workers <= 1:
        for number in numbers:
            yield _noted(simulator.run, number)
        return
    payload = pickle.dumps(simulator.recipe)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            for future in as_completed([pool.submit(_in_worker, payload, number) for number in numbers]):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@lru_cache(maxsize=1)
def _simulator(payload: bytes) -> Simulator:
    return Simulator(pickle.loads(payload))  # of our own parent process


def _in_worker(payload: bytes, number: int) -> Record:
    return _noted(_simulator(payload).run, number)


def _noted(run: Callable[[int], Record], number: int) -> Record:
    try:
        return run(number)
    except Exception as error:
        error.add_note(f"This came from simulation {number}.")
        raise


def _collected(simulator: Simulator, records: Sequence[Record], wall: float) -> Calibration:
    done = [record for record in records if record.failed is None]
    dims = simulator.first.dims["posterior"]
    ranks = {name: (("simulation", *dims[name]), np.stack([r.ranks[name] for r in done])) for name in dims if done}
    dataset = xr.Dataset(ranks, coords={"simulation": [record.number for record in done]})
    failed = {record.number: record.failed for record in records if record.failed is not None}
    return Calibration(
        dataset, simulator.recipe.num_draws, simulator.recipe.seed, failed, wall, simulator.pair.name or ""
    )


# ---- options -------------------------------------------------------------------------------------


def _factory(pair: Any) -> Callable[[], Pair]:
    if isinstance(pair, Pair):
        return SamePair(pair)
    if not callable(pair):
        raise TypeError(
            f"pair is a {type(pair).__name__}: expected a Pair, or a function without arguments that returns one."
        )
    made: Callable[[], Pair] = pair
    return made


def _checked_options(options: Mapping[str, Any], fit: Fit | None) -> dict[str, Any]:
    ours = sorted(set(options) & set(_OURS))
    if ours:
        raise TypeError(f"calibrate sets {ours} of each fit itself: leave them out.")
    if fit is not None and set(options) - {"dtype"}:
        raise TypeError(
            f"fit={name_of(fit)} trains the guides, so that {sorted(set(options) - {'dtype'})} would not count. Set "
            "them there: fit=lambda pair: pair.fit(...)."
        )
    if fit is not None and not callable(fit):
        raise TypeError(f"fit={fit!r}: expected a callable that trains the pair it gets, or None.")
    return dict(options)


def _names(sites: Any) -> tuple[str, ...]:
    if isinstance(sites, str) or not isinstance(sites, Iterable) or not all(isinstance(name, str) for name in sites):
        raise TypeError(f"sites={sites!r}: expected a list of names. Write sites=['mu'], for instance.")
    return tuple(sites)


def _seed(seed: int | None, folder: SimulationFolder | None) -> int:
    if seed is not None:
        return seed_number(seed)
    config = None if folder is None else folder.config()
    return draw_seed() if config is None else int(config["seed"])


def _check_workers(recipe: Recipe, workers: int) -> None:
    if workers == 1:
        return
    if recipe.amortized:
        raise ValueError(
            f"workers={workers} with amortized=True: one guide answers all simulations, in this process. Leave workers "
            "out."
        )
    try:
        pickle.dumps(recipe)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"workers={workers}: pair or fit cannot be sent to another process ({error}). Define them at the top of a "
            "module, and pass the functions themselves; or leave workers out."
        ) from error


def _config(simulator: Simulator) -> dict[str, Any]:
    """What the ranks depend on, as JSON. The rows of a first simulation tell models apart that have one name."""
    recipe, pair, first = simulator.recipe, simulator.pair, simulator.first
    arrays = first.arrays("posterior")
    options = {name: _described(name, value) for name, value in sorted(recipe.options.items())}
    return {
        "pair": pair.name or "",
        "model": name_of(pair.model),
        "guide": name_of(pair.guide),
        "data": data_hash(simulator.rows),
        "first": {name: f"{float(array.sum()):.4g}" for name, array in arrays.items()},
        "objective": None if pair.objective is None else describe_objective(pair.objective),
        "fit": None if recipe.fit is None else name_of(recipe.fit),
        "amortized": recipe.amortized,
        "options": options,
        "num_draws": recipe.num_draws,
        "seed": recipe.seed,
        "dtype": dtype_name(recipe.dtype),
        "sites": {
            name: {"dims": first.dims["posterior"][name], "shape": list(array.shape[1:])}
            for name, array in arrays.items()
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }


def _described(name: str, value: Any) -> Any:
    if name == "lam" and callable(value):
        return describe(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _described(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_described("", item) for item in value]
    return describe_objective(value) if name == "objective" else name_of(value)
