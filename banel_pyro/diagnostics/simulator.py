"""One simulation of a calibration: data from the model, a guide fitted to them, ranks of the true values."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro.poutine.util import site_is_subsample

from banel_pyro.batches import Rows, as_rows, num_rows, transformed
from banel_pyro.checks import instance
from banel_pyro.diagnostics.simulate import Simulation, check_drawable, simulate
from banel_pyro.draws import Table
from banel_pyro.evaluate import guide_draws
from banel_pyro.modules import evaluation_mode, fresh_modules, reachable_modules
from banel_pyro.pair import Pair
from banel_pyro.plates import DataPlate, find_data_plate
from banel_pyro.precision import cast_modules, cast_rows, checked_dtype, default_dtype
from banel_pyro.seeding import draw_seed, fork_rng
from banel_pyro.traces import sample_sites, trained_parameters
from banel_pyro.training.interrupt import INTERRUPTED
from banel_pyro.training.rollback import FAULTS

__all__ = ["Recipe", "Record", "SamePair", "Simulator"]

Fit = Callable[[Pair], Any]


@dataclass(frozen=True)
class SamePair:
    """A factory of one pair, whose parameters are in the param store alone: in another scope it is as new.

    Args:
        pair: without modules.

    Raises:
        ValueError: for a pair with modules, which keep what they have learnt.
    """

    pair: Pair

    def __post_init__(self) -> None:
        modules = sorted({type(m).__name__ for m in reachable_modules(self.pair.model, self.pair.guide)})
        if modules:
            raise ValueError(
                f"the pair has {modules}, which keep what they have learnt: expected a fresh pair for each simulation. "
                "Make it in a function without arguments, and pass the function."
            )

    def __call__(self) -> Pair:
        """The pair."""
        return self.pair


@dataclass(frozen=True)
class Recipe:
    """What a simulation is made from: all that another process has to know.

    Args:
        make: returns a fresh pair.
        fit: trains the guide of a pair to its data in the current param store; None for :meth:`Pair.fit`.
        options: of :meth:`Pair.fit`.
        num_draws: draws of the guide.
        seed: of all simulations.
        sites: latents to rank, or None for all.
        amortized: whether the guide is trained once.
        dtype: torch's default type meanwhile.
        folder: for the run of an amortised guide, or None.
    """

    make: Callable[[], Pair]
    fit: Fit | None
    options: Mapping[str, Any]
    num_draws: int
    seed: int
    sites: tuple[str, ...] | None
    amortized: bool
    dtype: torch.dtype
    folder: str | None = None

    @property
    def cast(self) -> torch.dtype | None:
        """The type that data and modules are put into, or None to leave them as they are."""
        return checked_dtype(self.options.get("dtype"))

    def seed_of(self, number: int) -> int:
        """The seed of one simulation: it depends on nothing but this number and the seed of all."""
        return int(np.random.SeedSequence(self.seed, spawn_key=(number,)).generate_state(1)[0])


class Record(NamedTuple):
    """What one simulation found.

    Args:
        number: its number, from 0.
        seconds: that it took.
        ranks: by latent, the rank of the true value among the draws, an array in the shape of the latent.
        failed: why the fit broke down, or None.
    """

    number: int
    seconds: float
    ranks: Mapping[str, NDArray[np.int64]]
    failed: str | None = None


class Simulator:
    """Makes simulations of one recipe.

    Args:
        recipe: what they are made from.

    Raises:
        ValueError: if the model cannot simulate, has parameters that training would move, or the guide does not go
            with it.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._store = _empty_store()
        self._trained: Pair | None = None
        with _alone(recipe.dtype), pyro.get_param_store().scope(self._store), fork_rng(recipe.seed):
            self.pair = recipe.make()
            instance(
                "what pair() returned", self.pair, (Pair,), "a banel_pyro.Pair. Write return Pair(model, guide, ...)"
            )
            self._modules = reachable_modules(self.pair.model, self.pair.guide)
            cast_modules(recipe.cast, self.pair.model, self.pair.guide)
            split = self.pair.split()
            rows = cast_rows(as_rows(split.train), recipe.cast)
            self.rows: Rows = transformed(rows, split.transform)
            model, size = self.pair.model, num_rows(rows)
            check_drawable(model, self.rows)
            with evaluation_mode(model):
                self.plate: DataPlate = find_data_plate(model, self.rows, size, self.pair.data_plate, training=False)
            if recipe.amortized:
                _train(self.pair, recipe)
                self._trained = self.pair
            self.first = self._first()

    def run(self, number: int) -> Record:
        """Draw from the model, fit the guide, rank the true values among draws of the guide.

        Args:
            number: of the simulation. It has a seed of its own, a fresh pair in an empty param store, and one thread:
                its ranks do not depend on the other simulations, nor on where it is made.
        """
        start = perf_counter()
        store = _empty_store() if self._trained is None else self._store
        with _alone(self.recipe.dtype), pyro.get_param_store().scope(store), fork_rng(self.recipe.seed_of(number)):
            pair = self._trained or self._fresh()
            drawn = simulate(pair.model, self.rows, self.plate)
            if self._trained is None:
                try:
                    _train(replace(pair, data=lambda: drawn.rows), self.recipe)
                except FAULTS as error:
                    return Record(number, perf_counter() - start, {}, f"{type(error).__name__}: {error}")
            ranks = self._ranks(pair, drawn)
        return Record(number, perf_counter() - start, ranks)

    def _first(self) -> Table:
        """The true values of a first simulation: which latents there are, with their shapes and the names of axes."""
        drawn = simulate(self.pair.model, self.rows, self.plate)
        trained = trained_parameters(drawn.trace)
        if trained and not self.recipe.amortized:
            raise ValueError(
                f"the model has the parameters {trained}, which training would move away from those that the data are "
                "drawn with. Fix them; or pass amortized=True, which trains first and then draws from the trained "
                "model."
            )
        latents = self._latents(drawn)
        if self.recipe.amortized:
            self._refuse_blind_guide(drawn)
        return self._truth(drawn, latents)

    def _latents(self, drawn: Simulation) -> list[str]:
        draw = next(guide_draws(self.pair.guide, drawn.rows, self.plate, num_samples=1))
        found = [n for n, site in sample_sites(drawn.trace) if n in draw.trace.nodes and _is_latent(site)]
        wanted = found if self.recipe.sites is None else list(self.recipe.sites)
        unknown = sorted(set(wanted) - set(found))
        if unknown or not wanted:
            raise ValueError(f"sites={wanted}: unknown {unknown}, expected some of the guide's latents {found}.")
        return wanted

    def _refuse_blind_guide(self, drawn: Simulation) -> None:
        """Refuse a trained guide that says the same of any data."""
        other = simulate(self.pair.model, self.rows, self.plate)
        said = []
        for rows in (drawn.rows, other.rows):
            with fork_rng(self.recipe.seed):
                draw = next(guide_draws(self.pair.guide, rows, self.plate, num_samples=1))
            said.append([site["value"] for _, site in sample_sites(draw.trace)])
        if all(torch.equal(a, b) for a, b in zip(*said, strict=True)):
            raise ValueError(
                "amortized=True, but the guide says the same of any data: expected one that computes from the rows it "
                "gets. Leave amortized out, and it is fitted to each simulated data set."
            )

    def _fresh(self) -> Pair:
        pair = self.recipe.make()
        fresh_modules(pair.model, pair.guide, self._modules)
        cast_modules(self.recipe.cast, pair.model, pair.guide)
        return pair

    def _truth(self, drawn: Simulation, sites: Sequence[str]) -> Table:
        size = num_rows(self.rows)
        table = Table(1, self.plate, size)
        table.add_sites("posterior", 0, drawn.trace, torch.arange(size), sites)
        return table

    def _ranks(self, pair: Pair, drawn: Simulation) -> dict[str, NDArray[np.int64]]:
        sites = list(self.first.arrays("posterior"))
        truth = self._truth(drawn, sites).arrays("posterior")
        table = Table(self.recipe.num_draws, self.plate, num_rows(self.rows))
        for draw in guide_draws(pair.guide, drawn.rows, self.plate, num_samples=self.recipe.num_draws):
            table.add_sites("posterior", draw.number, draw.trace, draw.rows, sites)
        draws = table.arrays("posterior")
        return {name: _rank(truth[name], draws[name]) for name in sites}


def _rank(truth: NDArray[Any], draws: NDArray[Any]) -> NDArray[np.int64]:
    """How many draws are below the true value; where some are equal to it, any place among them is as likely."""
    if not np.isfinite(draws).all():
        raise ValueError("the fitted guide drew values that are not finite. Fit it with a smaller lr, or more steps.")
    below, equal = (draws < truth).sum(0), (draws == truth).sum(0)
    return np.asarray(below + np.random.randint(0, equal + 1), dtype=np.int64)  # seeded by fork_rng


def _train(pair: Pair, recipe: Recipe) -> None:
    if recipe.fit is not None:
        recipe.fit(pair)
        return
    folder = {} if recipe.folder is None else {"out": os.path.join(recipe.folder, "fit"), "resume": True}
    given = {"progress": False, "posterior_samples": 0, "capture": False, **recipe.options, **folder}
    if pair.fit(seed=draw_seed(), **given).stopped == INTERRUPTED:
        raise KeyboardInterrupt  # a guide that is half trained is no simulation


def _empty_store() -> Any:
    return {"params": {}, "constraints": {}}


def _is_latent(site: Any) -> bool:
    told = site["infer"].get("was_observed") or site["infer"].get("_deterministic")
    return not told and not site_is_subsample(site)


@contextmanager
def _alone(dtype: torch.dtype) -> Iterator[None]:
    """One thread and one default type, wherever a simulation is made; both are put back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with default_dtype(dtype):
            yield
    finally:
        torch.set_num_threads(threads)
