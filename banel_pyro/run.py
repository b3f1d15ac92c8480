"""A run: the trained pair with its history, as `fit` returns it and as it is read from a run folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import pyro
import torch

from banel_pyro.batches import Rows, as_rows, data_hash, num_rows, transformed
from banel_pyro.checks import seed_number
from banel_pyro.evaluate import Arguments
from banel_pyro.folder import FORMAT, RunFolder, run_seed, versions
from banel_pyro.inference_data import ArviZ, posterior_of_rows, predictive_of_rows
from banel_pyro.pair import Pair
from banel_pyro.plates import DataPlate
from banel_pyro.precision import cast_modules, cast_rows, checked_dtype, default_dtype
from banel_pyro.predictive import as_arguments
from banel_pyro.seeding import fork_rng, kept_rng
from banel_pyro.training.parameters import Parameters
from banel_pyro.training.preflight import preflight
from banel_pyro.training.rollback import RolledBack

__all__ = ["FORMAT", "FitResult", "RunFolder", "run_seed", "versions"]


AnyRow = TypeVar("AnyRow", torch.Tensor, torch.Tensor | None)


@dataclass
class FitResult:
    """A trained pair, with its history and what made it.

    Args:
        model: the model.
        guide: the guide.
        config: options, seed, data hash and versions.
        history: a row per log point: ``log_likelihood, kl, entropy, penalty, elbo, loss`` in nats (per
            datum if ``config["per"] == "datum"``, averages since the last log point), ``lam``,
            ``grad_norm`` of the totals, ``seconds``, ``entropy[site]``, and ``val_elbo`` where it was evaluated.
        plate: the data plate.
        rows: the training data.
        held_out: data that were not trained on, or nothing.
        folder: the run folder, or None.
        transform: applied to each batch of training rows.
        local: what the guide has for each row of the training data.
        stopped: why the run ended before its last step: what a callback said, or ``"interrupted"``; else None.
        rollbacks: the faults that the run has rolled back from, in order.
        store: content of the param store that the run was made in, where it is not the current one.
    """

    model: Any
    guide: Any
    config: dict[str, Any]
    history: pd.DataFrame
    plate: DataPlate
    rows: Rows
    held_out: Rows = ()
    folder: Path | None = None
    transform: Callable[[Rows], Rows] | None = None
    local: tuple[str, ...] = ()
    stopped: str | None = None
    rollbacks: Sequence[RolledBack] = ()
    store: Any = field(default=None, repr=False)

    def posterior(
        self,
        data: Any = None,
        *,
        num_samples: int = 1000,
        groups: Sequence[str] = ("posterior", "sample_stats", "prior"),
        batch_size: int | None = None,
        coords: Mapping[str, Sequence[Any]] | None = None,
        dims: Mapping[str, str | Sequence[str]] | None = None,
        seed: int | None = None,
    ) -> ArviZ:
        """Draws as an ArviZ object; arguments as for :func:`~banel_pyro.to_arviz`.

        Args:
            data: rows to condition on; by default the training data, transformed as in training.
            num_samples: draws.
            groups: groups to fill.
            batch_size: rows in memory at a time, rounded up to a multiple of 16; the draws do not depend on it, but for
                the exceptions of :class:`~banel_pyro.streams.SiteStreams`.
            coords: coordinates by dim.
            dims: by variable, names for its axes that are no plates.
            seed: seed of the draws, the run's own by default.

        Raises:
            ValueError: for rows that the guide says nothing about, or options that are out of range.
        """
        with self.scope(), fork_rng(self.config["seed"] if seed is None else seed_number(seed)):
            rows = transformed(self.rows, self.transform) if data is None else self.checked(as_rows(data))
            attrs = {name: self.config[name] for name in ("lam", "objective", "seed")}
            return posterior_of_rows(
                self.model, self.guide, rows, self.plate, num_samples=num_samples, groups=groups, batch_size=batch_size,
                coords=coords, dims=dims, attrs=attrs,
            )  # fmt: skip

    def predictive(
        self,
        data: Any = None,
        *,
        num_samples: int = 1000,
        sites: Sequence[str] | None = None,
        batch_size: int | None = None,
        coords: Mapping[str, Sequence[Any]] | None = None,
        dims: Mapping[str, str | Sequence[str]] | None = None,
        seed: int | None = None,
    ) -> ArviZ:
        """Draws of the data from the model at draws of the guide, for the training data or for new rows.

        They are in the group ``posterior_predictive``, new rows or not; beside them stand ``observed_data`` and
        ``constant_data`` as far as they are known. A response that is not known is None, and the model gets None
        (``data=(x_new, None)`` for a ``model(x, y)`` that says ``obs=y``). A model that cannot do without gets a tensor
        of the right shape instead, whose numbers do not count: but a guide that reads the response would read them too.

        Args:
            data: rows to predict, like the training data, or None in place of some of the tensors; by default the
                training data, transformed as in training. There may be more or fewer of them.
            num_samples: draws.
            sites: sites of the model to keep, latent and deterministic ones too; by default what is observed.
            batch_size: rows in memory at a time, rounded up to a multiple of 16 (all by default); the draws do not
                depend on it. The result holds ``num_samples`` times the rows.
            coords: coordinates by dim.
            dims: by variable, names for its axes that are no plates.
            seed: seed of the draws, the run's own by default: the draws are then those of :meth:`posterior` with the
                same seed and rows.

        Raises:
            ValueError: for rows of another shape, type or number of tensors, rows that the guide says nothing about,
                unknown sites, None where the pair does not take it, or options that are out of range.
        """
        with self.scope(), fork_rng(self.config["seed"] if seed is None else seed_number(seed)):
            rows = transformed(self.rows, self.transform) if data is None else self.checked(as_arguments(data))
            attrs = {name: self.config[name] for name in ("lam", "objective", "seed")}
            return predictive_of_rows(
                self.model, self.guide, rows, self.plate, num_samples=num_samples, sites=sites, batch_size=batch_size,
                coords=coords, dims=dims, attrs=attrs,
            )  # fmt: skip

    def checked(self, rows: tuple[AnyRow, ...]) -> tuple[AnyRow, ...]:
        """New rows in the run's type; refused if unlike the training data, or if the guide says nothing about them."""
        dtype = checked_dtype(self.config["dtype"])
        rows = tuple(row if row is None else cast_rows((row,), dtype)[0] for row in rows)
        if not _alike(rows, self.rows):
            with kept_rng():
                seen = transformed(tuple(row[:1] for row in self.rows), self.transform)
            if not _alike(rows, seen):
                raise ValueError(
                    f"data has {_kinds(rows)}, the training data have {_kinds(seen)}: expected the same but for the "
                    "number of rows. Reshape it, or convert it with .to(...)."
                )
        known = [(new, old) for new, old in zip(rows, self.rows, strict=True) if new is not None]
        if self.local and self.transform is None and not all(torch.equal(new, old[: len(new)]) for new, old in known):
            raise ValueError(
                f"data: the guide has {list(self.local)} for each row of the training data, so it says nothing about "
                "other rows. Leave data out, pass the first of the training rows, or use a guide that computes from "
                "the row."
            )
        return rows

    def _repr_html_(self) -> str:
        """What a notebook shows: the terms and their picture."""
        from banel_pyro.report.notebook import result_html  # matplotlib is heavy to import

        return result_html(self)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Run a block with the run's own parameters in the param store, and its floating-point type as the default."""
        store = pyro.get_param_store()
        inside = nullcontext() if self.store is None else store.scope(self.store)
        with inside, default_dtype(checked_dtype(self.config["default_dtype"])):
            yield

    @staticmethod
    def load(folder: str | os.PathLike[str], pair: Pair) -> FitResult:
        """A run from its folder, with the parameters put into a fresh pair and the current param store.

        Args:
            folder: the run folder.
            pair: the pair it was trained on; its data say how it is called.

        Raises:
            ValueError: if the folder holds no run, or the state is of another pair or version.
        """
        run = RunFolder(Path(folder))
        config, state = run.read_config(), run.read_state()
        dtype, default = checked_dtype(config["dtype"]), checked_dtype(config["default_dtype"])
        # data that were cast had been made in the default type of their day, others in that of the run
        with fork_rng(config["seed"]), default_dtype(default if dtype is None else None):
            split = pair.split()
        with fork_rng(config["seed"]), default_dtype(default):
            cast_modules(default, pair.model, pair.guide)
            rows, held_out = cast_rows(as_rows(split.train), dtype), as_rows(split.held_out, "validation")
            _check_data(run.path, config, rows)
            parameters = Parameters(pair.model, pair.guide, torch.optim.SGD, {"lr": 0.0})
            batch = config["batch_size"] or config["num_data"]
            checked = preflight(pair.model, pair.guide, split, rows, batch, config["data_plate"], parameters)
            parameters.cast(default)
        parameters.load({**state, "optimizer": None})
        history = pd.DataFrame(state["history"])
        return FitResult(
            pair.model, pair.guide, config, history, checked.plate, rows, cast_rows(held_out, dtype), run.path,
            transform=split.transform, local=checked.local, stopped=state["stopped"],
            rollbacks=[RolledBack(**record) for record in state.get("rollbacks", [])],
        )  # fmt: skip


def _check_data(path: Path, config: dict[str, Any], rows: Rows) -> None:
    if data_hash(rows) != config["data"]:
        raise ValueError(
            f"the run in '{path}' was trained on other data than those of the pair ({config['num_data']} rows with "
            f"hash {config['data'][:12]}, here {num_rows(rows)} rows with {data_hash(rows)[:12]}). Use the pair that "
            "wrote it, with the same data and default dtype."
        )


def _alike(rows: Arguments, others: Rows) -> bool:
    """Whether data have as many tensors as others, of the same type and the same shape of a row; None fits all."""
    pairs = zip(rows, others, strict=False)
    return len(rows) == len(others) and all(
        a is None or (a.dtype, a.shape[1:]) == (b.dtype, b.shape[1:]) for a, b in pairs
    )


def _kinds(rows: Arguments) -> str:
    """Data in words: how many tensors, and the type and shape of a row of each."""
    kinds = ["None" if row is None else f"{str(row.dtype)[6:]} {tuple(row.shape[1:])}" for row in rows]
    return f"{len(rows)} tensor{'' if len(rows) == 1 else 's'} with rows of [{', '.join(kinds)}]"
