"""References to compare a guide with: Pyro's NUTS run on the pair, and the reference draws of posteriordb."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from pyro import poutine
from pyro.infer import MCMC, NUTS
from torch import Tensor

from banel_pyro.batches import Rows, as_rows, num_rows
from banel_pyro.checks import integer, probability, seed_number
from banel_pyro.diagnostics.latent import data_plate_of
from banel_pyro.draws import Table
from banel_pyro.inference_data import ArviZ, from_datasets
from banel_pyro.modules import evaluation_mode
from banel_pyro.plates import DataPlate
from banel_pyro.seeding import fork_rng
from banel_pyro.traces import sample_sites

if TYPE_CHECKING:
    from banel_pyro.pair import Pair
    from banel_pyro.run import FitResult

__all__ = ["nuts_reference", "posteriordb_draws"]

LOGGER = logging.getLogger("banel_pyro")

MAX_R_HAT = 1.01
"""R-hat above which chains have not mixed (Vehtari et al. 2021, arXiv 1903.08008)."""

MOST_BYTES = 2**30
"""The largest file of draws that is unpacked."""

LEAST_BYTES, GROWS = 2**26, 20
"""Nor is one of more than so many bytes that is also so many times as large as it is packed: numbers are not."""

# ---- NUTS ----------------------------------------------------------------------------------------


def nuts_reference(
    pair: Pair | FitResult,
    data: Any = None,
    *,
    num_samples: int = 500,
    warmup_steps: int = 500,
    num_chains: int = 4,
    target_accept: float = 0.8,
    seed: int | None = None,
) -> ArviZ:
    """Draws of a model's posterior by Pyro's NUTS, to compare a guide with.

    The guide plays no part. Parameters of the model are taken as they are. Discrete latents are summed out, as Pyro
    does; they, and deterministic sites of a model that has any, are not in the result. The chains run one after
    another in this process; a chain that has not mixed is warned of by the logger ``banel_pyro``.

    Args:
        pair: a :class:`~banel_pyro.Pair`, or a :class:`~banel_pyro.FitResult` for its trained model.
        data: rows to condition on; by default the training data.
        num_samples: draws of each chain.
        warmup_steps: steps of each chain that are thrown away, in which it adapts.
        num_chains: chains, at least 2 so that R-hat can tell whether they agree.
        target_accept: acceptance probability to adapt to; nearer to 1 where there are divergences.
        seed: draws inside a forked generator and leaves yours alone; None draws from yours.

    Returns:
        A ``posterior`` (chain, draw, plates, event), with attributes ``sampler``, ``divergences`` and ``max_r_hat``.

    Raises:
        TypeError, ValueError: for options out of range, or a model without continuous latents.
    """
    for name, value, least in (("num_samples", num_samples, 4), ("warmup_steps", warmup_steps, 1)):
        integer(name, value, least)
    integer("num_chains", num_chains, 2)
    probability("target_accept", target_accept)
    if not (hasattr(pair, "model") and hasattr(pair, "guide")):
        raise TypeError(f"pair is a {type(pair).__name__}: expected a Pair, or a FitResult for its trained model.")
    scope = getattr(pair, "scope", nullcontext)
    with scope(), nullcontext() if seed is None else fork_rng(seed_number(seed)):
        rows = as_rows(data) if data is not None else _rows_of(pair)
        plate = data_plate_of((pair.model, pair.guide), rows, None, _plate_name(pair))
        told = _told(pair.model, rows, plate)
        with evaluation_mode(pair.model):
            chains, divergences = [], 0
            for _ in range(num_chains):
                draws, count = _chain(told, num_samples, warmup_steps, target_accept)
                chains.append(draws)
                divergences += count
            table = _table(told, chains, plate, num_rows(rows))
    return _as_chains(
        table, num_chains, {"sampler": "NUTS", "divergences": divergences, "data_plate": plate.name or ""}
    )


def _rows_of(pair: Any) -> Rows:
    rows: Rows = pair.rows if hasattr(pair, "rows") else as_rows(pair.split().train)
    return rows


def _plate_name(pair: Any) -> str | None:
    name: str | None = pair.plate.name if hasattr(pair, "plate") else pair.data_plate
    return name


def _told(model: Any, rows: Rows, plate: DataPlate) -> Any:
    """The model of some rows, which knows which rows they are."""
    index = torch.arange(num_rows(rows)) if rows else None

    def told() -> Any:
        with plate.rows(index):
            return model(*rows)

    return told


def _chain(model: Any, num_samples: int, warmup_steps: int, target_accept: float) -> tuple[dict[str, Tensor], int]:
    """The draws of a chain by site, and how many of its steps diverged."""
    kernel = NUTS(model, target_accept_prob=target_accept)
    mcmc = MCMC(kernel, num_samples=num_samples, warmup_steps=warmup_steps, num_chains=1, disable_progbar=True)
    mcmc.run()
    draws: dict[str, Tensor] = mcmc.get_samples()
    if not draws:
        raise ValueError("the model has no continuous latent to draw: expected at least one for NUTS.")
    return draws, sum(len(found) for found in mcmc.diagnostics()["divergences"].values())


@torch.no_grad()
def _table(model: Any, chains: list[dict[str, Tensor]], plate: DataPlate, size: int) -> Table:
    """Latents and what the model computes from them, at every draw."""
    draws = {name: torch.cat([chain[name] for chain in chains]) for name in chains[0]}
    count = len(next(iter(draws.values())))
    table, prototype = Table(count, plate, size), poutine.trace(model).get_trace()
    summed_out = _latents(prototype) - draws.keys()
    for number in range(count):
        values = poutine.Trace()
        for name, value in draws.items():
            values.add_node(name, **{**prototype.nodes[name], "value": value[number]})
        trace = poutine.trace(poutine.replay(model, trace=values)).get_trace()
        if summed_out:  # so that nothing computed from them is known
            for name in [name for name, _ in sample_sites(trace) if name not in draws]:
                trace.remove_node(name)
        table.add_latents("posterior", number, trace, torch.arange(size))
    return table


def _latents(trace: Any) -> set[str]:
    sites = ((name, site) for name, site in sample_sites(trace) if not site["is_observed"])
    return {name for name, site in sites if not poutine.util.site_is_subsample(site)}  # type: ignore[arg-type]


def _as_chains(table: Table, chains: int, attrs: dict[str, Any]) -> ArviZ:
    """A table of draws, chain after chain, as an ArviZ object."""
    import arviz_stats  # heavy; of both lines of ArviZ

    arrays = table.arrays("posterior").items()
    shaped = {name: array.reshape(chains, -1, *array.shape[1:]) for name, array in arrays}
    found = xr.Dataset({n: (("chain", "draw", *table.dims["posterior"][n]), array) for n, array in shaped.items()})
    found = found.assign_coords({dim: np.arange(n) for dim, n in found.sizes.items()})
    varying = found[[str(n) for n, v in found.data_vars.items() if float(v.std()) > 0]]
    r_hats = arviz_stats.rhat(varying)  # type: ignore[attr-defined]
    attrs["max_r_hat"] = max(float(r_hat.max()) for r_hat in r_hats.data_vars.values())
    if attrs["max_r_hat"] > MAX_R_HAT or attrs["divergences"]:
        LOGGER.warning(
            "NUTS: R-hat is up to %.3f (expected at most %g), %d transitions diverged (expected none): this is no "
            "reference yet. Draw more (num_samples=, warmup_steps=), raise target_accept=, or use a non-centred form.",
            attrs["max_r_hat"], MAX_R_HAT, attrs["divergences"],
        )  # fmt: skip
    return from_datasets({"posterior": found.assign_attrs(attrs)}, attrs)


# ---- posteriordb ---------------------------------------------------------------------------------


def posteriordb_draws(name: str, *, folder: str | os.PathLike[str] | None = None) -> ArviZ:
    """The reference draws of a posterior in posteriordb, by its name there.

    They are 10 chains of 1000 draws of long NUTS runs (Magnusson et al. 2025, arXiv 2407.04967). The file is
    ``NAME.json.zip``, as posteriordb has it.

    Args:
        name: such as ``eight_schools-eight_schools_noncentered``.
        folder: where the file is; by default ``bayes/reference_draws`` in the folder that ``BANEL_DATA`` names.

    Returns:
        A ``posterior`` (chain, draw, ...): what posteriordb calls ``theta[1]`` to ``theta[8]`` is ``theta``, with dim
        ``theta_dim_0``.

    Raises:
        FileNotFoundError: saying what is missing and where to put it.
        ValueError: for a file that is not one of reference draws.
    """
    file = _draws_file(name, folder)
    try:
        with zipfile.ZipFile(file) as archive:
            inside = archive.getinfo(f"{name}.json")
            most = min(MOST_BYTES, max(LEAST_BYTES, GROWS * inside.compress_size))
            if inside.file_size > most:
                raise ValueError(f"its content has {inside.file_size} bytes, more than {most}")
            chains = json.loads(archive.read(inside))
        arrays = _arrays(chains)
    except Exception as error:  # zipfile, zlib, json and what is no list or mapping raise many kinds
        raise ValueError(
            f"'{file}' holds no reference draws ({type(error).__name__}: {error}): expected '{name}.json' in it, a "
            "list of chains of draws by parameter. Download it from posteriordb again."
        ) from error
    variables = {n: (("chain", "draw", *(f"{n}_dim_{i}" for i in range(a.ndim - 2))), a) for n, a in arrays.items()}
    found = xr.Dataset(variables)
    found = found.assign_coords({dim: np.arange(n) for dim, n in found.sizes.items()})
    attrs = {"sampler": "posteriordb", "posteriordb": name}
    return from_datasets({"posterior": found.assign_attrs(attrs)}, attrs)


def _draws_file(name: str, folder: str | os.PathLike[str] | None) -> Path:
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"name={name!r}: expected the name of a posterior, such as 'kidiq-kidscore_momhsiq'.")
    root = os.environ.get("BANEL_DATA")
    if folder is None and not root:
        raise FileNotFoundError(
            f"reference draws of '{name}' need BANEL_DATA, which is not set: put '{name}.json.zip' of posteriordb into "
            "bayes/reference_draws of a folder and set BANEL_DATA to it, or write folder=."
        )
    where = Path(folder) if folder is not None else Path(str(root)).expanduser() / "bayes" / "reference_draws"
    file = where / f"{name}.json.zip"
    if not file.is_file():
        there = sorted(path.name.removesuffix(".json.zip") for path in where.glob("*.json.zip"))
        raise FileNotFoundError(
            f"reference draws of '{name}' are not in '{where}', which has {there}: put '{file.name}' of "
            "posteriordb there."
        )
    return file


def _arrays(chains: list[dict[str, list[float]]]) -> dict[str, NDArray[np.float64]]:
    """Draws (chain, draw, ...) by variable; elements of an array come as ``name[i,j]``, counted from 1."""
    places: dict[str, dict[tuple[int, ...], str]] = {}
    for label in chains[0]:
        name, _, numbers = label.rstrip("]").partition("[")
        places.setdefault(name, {})[tuple(int(n) - 1 for n in numbers.split(",")) if numbers else ()] = label
    found: dict[str, NDArray[np.float64]] = {}
    for name, labels in places.items():
        shape = tuple(max(along) + 1 for along in zip(*labels, strict=True))
        if math.prod(shape) != len(labels) or any(number < 0 for place in labels for number in place):
            raise ValueError(f"'{name}' of shape {shape} lacks elements")
        draws = np.array([[chain[label] for chain in chains] for _, label in sorted(labels.items())], dtype=float)
        if draws.ndim != 3 or not draws.size or not np.isfinite(draws).all():
            raise ValueError(
                f"'{name}' has draws that are no numbers: shape {draws.shape[1:]}, expected chains of them"
            )
        found[name] = np.moveaxis(draws, 0, -1).reshape(*draws.shape[1:], *shape)
    return found
