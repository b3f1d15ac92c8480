"""The loop: one step, one log point, one state that says everything about a run."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pyro
import torch
from torch import Tensor

from banel_pyro.batches import DataPlate, Rows, epoch_order
from banel_pyro.evaluate import held_out_elbo
from banel_pyro.objectives.base import Objective
from banel_pyro.schedules import Schedule
from banel_pyro.seeding import fork_rng, load_rng_state, rng_state
from banel_pyro.terms import LossTerms
from banel_pyro.training.faults import NonFiniteError, first_bad_parameter, first_bad_site
from banel_pyro.training.parameters import Parameters
from banel_pyro.training.stopping import CollapseDetector, CollapseError

__all__ = ["Loop"]


@dataclass
class Loop:
    """A training run in progress.

    Args:
        model: the model.
        guide: the guide.
        objective: a copy of the user's objective, whose λ the loop sets.
        schedule: λ from step and last terms.
        parameters: the parameters and their optimiser.
        rows: the training data.
        transform: applied to each batch of rows.
        plate: the data plate.
        sizes: latent numbers of each density, per datum.
        steps: steps in all.
        batch_size: rows per step, None for all.
        seed: seed of the run.
        log_every: steps between log points.
        validate_every: steps between held-out evaluations.
        held_out: rows that are evaluated, or none.
        clip_norm: largest gradient norm, or None.
        collapse: the collapse detector, or None.
    """

    model: Any
    guide: Any
    objective: Any
    schedule: Schedule
    parameters: Parameters
    rows: Rows
    transform: Callable[[Rows], Rows] | None
    plate: DataPlate
    sizes: Mapping[str, float]
    steps: int
    batch_size: int | None
    seed: int
    log_every: int
    validate_every: int
    held_out: Rows = ()
    clip_norm: float | None = None
    collapse: CollapseDetector | None = None
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    last_terms: LossTerms | None = None
    _meter: Tensor | None = None
    _order: tuple[int, Tensor] | None = None
    _good: dict[str, Any] | None = None

    # ---- one step ---------------------------------------------------------------------------

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch; the last one may be smaller."""
        size = len(self.rows[0]) if self.rows else 1
        return -(-size // (self.batch_size or size))

    def batch(self) -> tuple[Tensor | None, Rows]:
        """Indices and rows of the current step."""
        if not self.rows or self.batch_size is None:
            rows = self.rows
            index = None
        else:
            epoch, position = divmod(self.step, self.steps_per_epoch)
            if self._order is None or self._order[0] != epoch:
                self._order = (epoch, epoch_order(len(self.rows[0]), self.seed, epoch))
            index = self._order[1][position * self.batch_size : (position + 1) * self.batch_size]
            rows = tuple(row[index] for row in self.rows)
        return index, self.transform(rows) if self.transform is not None else rows

    def advance(self) -> None:
        """One step: batch, λ, loss and gradient, optimiser; a log point where one is due."""
        start = time.perf_counter()
        index, rows = self.batch()
        terms, entropies = self._gradient(index, rows)
        self.step += 1
        norm = self._clip() if self.clip_norm is not None or self.at_log_point else None
        self.parameters.step()
        self._record(terms, entropies, len(rows[0]) if rows else 1)
        self.seconds += time.perf_counter() - start
        if norm is not None and self.at_log_point:
            self._log(terms, list(entropies), norm)

    def _gradient(self, index: Tensor | None, rows: Rows) -> tuple[LossTerms, dict[str, Tensor]]:
        self.objective.lam = self.schedule(self.step, self.last_terms)
        with self.plate.rows(index), self.parameters.watch():
            loss, terms, entropies = self.objective.loss_and_terms(self.model, self.guide, *rows)
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        return terms, entropies

    @property
    def at_log_point(self) -> bool:
        """True after every ``log_every`` steps and after the last one."""
        return self.step % self.log_every == 0 or self.step == self.steps

    def _clip(self) -> Tensor:
        gradients = self.parameters.gradients()
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.clip_norm is not None:
            torch._foreach_mul_(gradients, torch.clamp(self.clip_norm / (norm + 1e-6), max=1.0))
        return norm

    # ---- log points -------------------------------------------------------------------------

    def _record(self, terms: LossTerms, entropies: Mapping[str, Tensor], batch: int) -> None:
        """Add a step to the running sums, on the device. A step that is not finite stays visible in them."""
        parts = (terms.log_likelihood, terms.kl, terms.penalty, terms.entropy, *entropies.values())
        row = torch.stack([torch.as_tensor(part) for part in parts]) / self.plate.factor(batch)
        self._meter = row if self._meter is None else self._meter + row

    def _log(self, terms: LossTerms, sites: list[str], norm: Tensor) -> None:
        mean = torch.as_tensor(self._meter) / ((self.step - 1) % self.log_every + 1)
        if not bool(torch.isfinite(mean[:3]).all()) or first_bad_parameter(self.parameters.names()):
            self.locate_fault()
        values = mean.tolist()
        log_likelihood, kl, penalty, entropy = values[:4]
        self.last_terms = LossTerms(log_likelihood, kl, entropy, terms.lam, penalty)
        self.history.append(self._row(self.last_terms, dict(zip(sites, values[4:], strict=True)), float(norm)))
        self._meter = None
        self._good = self.state()
        if self.collapse is not None:
            found = self.collapse.check(pd.DataFrame(self.history), self.sizes)
            if found is not None:
                raise CollapseError(self.step, *found)

    def _row(self, terms: LossTerms, entropies: dict[str, float], norm: float) -> dict[str, float]:
        lam = terms.lam
        row = {
            "step": self.step,
            "epoch": self.step / self.steps_per_epoch,
            "log_likelihood": terms.log_likelihood,
            "kl": terms.kl,
            "entropy": terms.entropy,
            "lam": float("nan") if isinstance(lam, Mapping) else lam,
            "penalty": terms.penalty,
            "elbo": terms.elbo,
            "loss": terms.loss,
            "grad_norm": norm,
            "seconds": self.seconds,
        }
        row |= {f"entropy[{site}]": value for site, value in entropies.items()}
        if isinstance(lam, Mapping):
            row |= {f"lam[{site}]": lam.get(site, 0.0) for site in entropies}
        if self.held_out and (self.step % self.validate_every == 0 or self.step == self.steps):
            with fork_rng(self.seed + 1):
                row["val_elbo"] = held_out_elbo(self.model, self.guide, self.held_out, self.plate)
        return row  # type: ignore[return-value]

    # ---- faults -----------------------------------------------------------------------------

    def locate_fault(self) -> None:
        """Replay from the last good state to the step that is not finite, and stop before it.

        Raises:
            NonFiniteError: naming step and site; the parameters are those before that step.
        """
        last, state = self.step, self._good
        if state is None:
            raise NonFiniteError(self.step, "the first loss")
        self.load(state)
        while self.step <= last:
            before, step = self.state(), self.step
            where = self._replay_step()
            if where is not None:
                self.load(before)
                raise NonFiniteError(step, where)
        raise NonFiniteError(last, "a number that does not return when the steps are replayed")

    def _replay_step(self) -> str | None:
        """Take one step again, looking at everything in it; returns what is not finite."""
        index, rows = self.batch()
        generators = rng_state()
        with self.plate.rows(index), torch.no_grad(), pyro.validation_enabled(False):
            for traces in self.objective._get_traces(self.model, self.guide, rows, {}):
                where = first_bad_site(*traces)
                if where is not None:
                    return where
        load_rng_state(generators)
        self._gradient(index, rows)
        where = first_bad_parameter(self.parameters.names())
        self._clip()
        self.parameters.step()
        self.step += 1
        return where or first_bad_parameter(self.parameters.names())

    # ---- state ------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit: parameters, optimiser, generators, position, history."""
        return {
            **self.parameters.state(),
            "rng": rng_state(),
            "step": self.step,
            "seconds": self.seconds,
            "history": copy.deepcopy(self.history),
            "meter": self._meter,
            "last_terms": None if self.last_terms is None else vars(self.last_terms),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Put a state from :meth:`state` back."""
        self.parameters.load(state, strict=False)
        load_rng_state(state["rng"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.history = copy.deepcopy(state["history"])
        self._meter = state["meter"]
        self.last_terms = None if state["last_terms"] is None else LossTerms(**state["last_terms"])
        self._good = state

    def start(self) -> None:
        """Note the state before the first step as good."""
        self._good = self.state()
