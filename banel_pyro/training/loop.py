"""The loop: one step, one log point, one state that says everything about a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from banel_pyro.batches import Rows, epoch_order, transformed
from banel_pyro.evaluate import held_out_elbo
from banel_pyro.plates import DataPlate
from banel_pyro.schedules import Schedule
from banel_pyro.seeding import fork_rng, load_rng_state, rng_state
from banel_pyro.terms import LossTerms, Weight
from banel_pyro.training.captured import CapturedSteps
from banel_pyro.training.control import Controlled
from banel_pyro.training.explosion import ExplosionDetector, ExplosionError, largest_gradient
from banel_pyro.training.faults import NonFiniteError, first_bad_parameter, locate_fault
from banel_pyro.training.parameters import Parameters, plain_copy
from banel_pyro.training.processes import Processes
from banel_pyro.training.rollback import Rollback, Rollbacks
from banel_pyro.training.stopping import CollapseDetector, CollapseError

__all__ = ["Loop"]

GOOD_EVERY = 100
"""Steps after which a log point keeps a state to go back to: a fault costs at most these and those to the next one."""


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
        batch_size: rows per batch, None for all.
        accumulate: batches per step.
        seed: seed of the run.
        log_every: steps between log points.
        validate_every: steps between held-out evaluations.
        held_out: rows that are evaluated, or none.
        clip_norm: largest gradient norm, or None.
        collapse: the collapse detector, or None.
        explosion: the detector of exploding gradients, or None.
        on_fault: whether and how to roll back; None to raise.
        capture: whether its steps are captured; None for steps that are all eager.
        processes: those that share the steps.
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
    accumulate: int
    seed: int
    log_every: int
    validate_every: int
    held_out: Rows = ()
    clip_norm: float | None = None
    collapse: CollapseDetector | None = None
    explosion: ExplosionDetector | None = None
    on_fault: Rollback | None = None
    capture: CapturedSteps | None = None
    processes: Processes = field(default_factory=Processes)
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    last_terms: LossTerms | None = None
    good: dict[str, Any] | None = None
    stopped: str | None = None
    lam: Weight = 0.0
    _meter: Tensor | None = None
    _metered: int = 0
    _sites: list[str] = field(default_factory=list)
    _whole: bool = False
    _order: tuple[int, Tensor] | None = None

    def __post_init__(self) -> None:
        self.rollbacks = Rollbacks(self.on_fault, self.schedule)

    # ---- one step ---------------------------------------------------------------------------

    @property
    def noise(self) -> int | str:
        """What the noise of the rows is named after, where processes have noise of their own."""
        return self.rollbacks.noise(self.seed)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch; the last one may have fewer rows."""
        size = len(self.rows[0]) if self.rows else 1
        return -(-size // (self.rows_per_step or size))

    @property
    def rows_per_step(self) -> int | None:
        """Rows that a step sees, in one batch or in several; None for all."""
        return None if self.batch_size is None else self.batch_size * self.accumulate

    def index(self) -> Tensor | None:
        """Indices of the rows of the current step; None for all."""
        if not self.rows or self.rows_per_step is None:
            return None
        epoch, position = divmod(self.step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, epoch_order(len(self.rows[0]), self.seed, epoch))
        index = self._order[1][position * self.rows_per_step : (position + 1) * self.rows_per_step]
        return index.to(self.rows[0].device)

    def picked(self, index: Tensor | None) -> Rows:
        """Some rows, transformed."""
        if index is None:
            return transformed(self.rows, self.transform)
        picked = tuple(row.index_select(0, index.to(row.device)) for row in self.rows)  # faster than row[index]
        return transformed(picked, self.transform)

    def advance(self, most: int = 1, stop: Callable[[], bool] = lambda: False) -> None:
        """One step: batch, λ, loss and gradient, optimiser; a log point where one is due.

        Args:
            most: steps to make where they are captured; it ends at a log point in any case.
            stop: whether to return before that, asked after each call into a graph.
        """
        start = time.perf_counter()
        most = min(most, self.log_every - self.step % self.log_every, self.steps - self.step)
        norm = None if self.capture is None else self.capture.advance(most, stop)
        if norm is None:
            norm = self.update(*self.differentiate())
        self.seconds += time.perf_counter() - start
        if self.at_log_point or (self.processes.count > 1 and not self.is_finite):
            self._log(norm)

    def differentiate(self) -> tuple[LossTerms, dict[str, Tensor], int]:
        """The first half of a step: terms, entropies and rows of the step; leaves gradients at the parameters."""
        self.objective.lam = self.lam = self.schedule(self.step, self.last_terms)
        index = self.index()
        return self.gradients(index, self.picked(index))

    def gradients(
        self, index: Tensor | None, rows: Rows, streams: Sequence[Tensor] | None = None
    ) -> tuple[LossTerms, dict[str, Tensor], int]:
        """Terms, entropies and number of some rows; leaves gradients at the parameters.

        Args:
            index: the indices of the rows, or None for all.
            rows: the rows, transformed.
            streams: where the noise of this process starts, for a graph; parameters are then those of the last step.
        """
        size, known = len(rows[0]) if rows else 1, streams is not None
        streams = self.processes.streams(self.noise, self.step) if streams is None else streams
        with self.processes.noise(self.plate.name, streams):
            parts = [self._differentiate(*part) for part in self._parts(index, rows, size)]
        terms, entropies = parts[0]
        for more, sites in parts[1:]:
            terms, entropies = terms + more, {site: entropies[site] + sites[site] for site in entropies}
        return *self.processes.add_up_step(self.parameters, terms, entropies, known=known), size

    def _parts(self, index: Tensor | None, rows: Rows, size: int) -> list[tuple[Tensor | None, Rows, float]]:
        """The batches that this process computes of a step, each with its weight.

        Totals that Pyro scales to all rows are averaged over the batches of a step, those that it does not scale add
        up: either way they are what one batch of all the step's rows would give. A process that no row is left for
        computes one without weight, so that every process has the same gradients and terms.
        """
        if self.processes.count == 1 and (index is None or self.accumulate == 1):
            return [(index, rows, 1.0)]
        index = torch.arange(size, device=rows[0].device) if index is None else index
        found: list[tuple[Tensor | None, Rows, float]] = []
        for part in self.processes.parts(size, self.processes.each(self.batch_size or size)):
            count = part.stop - part.start
            taken = part if count else slice(1)
            weight = count / size if self.plate.scaled else float(count > 0)
            found.append((index[taken], tuple(row[taken] for row in rows), weight))
        return found

    def part_indices(self) -> list[Tensor | None]:
        """Indices of the rows of each batch that this process computes in the next step; None for all."""
        index = self.index()
        size = len(self.rows[0]) if index is None and self.rows else 1 if index is None else len(index)
        return [part for part, *_ in self._parts(index, self.rows, size)]

    def _differentiate(
        self, index: Tensor | None, rows: Rows, weight: float = 1.0
    ) -> tuple[LossTerms, dict[str, Tensor]]:
        """Terms and entropies of one batch, times its weight in the step; adds to the gradients."""
        told = self.plate.rows(index)
        # one that has nothing to tell would cost every site a call
        telling = told if told.scaled and index is not None else nullcontext()
        with telling, self.parameters.watch(), self.processes.autocast():
            loss, terms, entropies = self.objective.loss_and_terms(self.model, self.guide, *rows)
        if weight != 1.0:
            loss, terms = weight * loss, terms.map(lambda term: weight * term)
            entropies = {site: weight * entropy for site, entropy in entropies.items()}
        if loss.requires_grad:
            loss.backward()
        return terms, entropies

    def update(self, terms: LossTerms, entropies: Mapping[str, Tensor], batch: int) -> Tensor | None:
        """The second half: the optimiser moves, the terms are counted; the gradient's norm where it is needed."""
        self.step += 1
        norm = self.parameters.clip(self.clip_norm) if self.clip_norm is not None or self.at_log_point else None
        self.parameters.step()
        self.record(terms, entropies, batch)
        self._metered += 1
        return norm

    def count(self) -> None:
        """Count a step that was made, and recorded, elsewhere."""
        self.step += 1
        self._metered += 1

    @property
    def at_log_point(self) -> bool:
        """True after every ``log_every`` steps and after the last one."""
        return self.step % self.log_every == 0 or self.step == self.steps

    @property
    def at_evaluation(self) -> bool:
        """True at the log points at which held-out rows are evaluated."""
        return self.step % self.validate_every == 0 or self.step == self.steps

    # ---- log points -------------------------------------------------------------------------

    def record(self, terms: LossTerms, entropies: Mapping[str, Tensor], batch: int) -> None:
        """Add a step to the running sums, on the device. A step that is not finite stays visible in them."""
        device = torch.as_tensor(terms.penalty).device
        parts = (terms.elbo, terms.penalty, terms.log_likelihood, terms.kl, terms.entropy, *entropies.values())
        row = torch.stack([torch.as_tensor(part, device=device) for part in parts]) / self.plate.factor(batch)
        if self._meter is None:
            self._meter = torch.zeros_like(row)
        self._meter.add_(row)
        self._sites, self._whole = list(entropies), terms.whole is not None

    @property
    def has_recorded(self) -> bool:
        """Whether the running sums exist, which the first step makes."""
        return self._meter is not None

    @property
    def is_finite(self) -> bool:
        """Whether all is finite: the terms since the last log point, and the parameters. Waits for the device."""
        if self.capture is not None and self.capture.bad:
            return False
        terms = self._meter is None or bool(torch.isfinite(self._meter[:2]).all())
        return terms and first_bad_parameter(self.parameters.names()) is None

    def _log(self, norm: Tensor | None) -> None:
        if not self.is_finite:
            locate_fault(self, until=self.step)
            raise NonFiniteError(self.step, "a number that is finite when the step is replayed")
        row = self._close(norm)
        self._append(self.processes.on_first(lambda: row | self._judge()))
        if self.good is None or self.step - self.good["step"] >= GOOD_EVERY or self.step == self.steps:
            self.good = self.state()
        self._keep()
        if self.capture is not None:
            self.capture.look_again()
        self.detect()

    def _keep(self) -> None:
        """Keep a good state to roll back to where one is due: which steps that are, a resumed run knows too."""
        unit = -(-GOOD_EVERY // self.log_every) * self.log_every
        if self.on_fault is not None and self.step % unit == 0:
            newest = self.good is not None and self.good["step"] == self.step
            self.rollbacks.keep(self.good if newest else self.state(), unit)  # type: ignore[arg-type]

    def detect(self) -> None:
        """Look for an exploding gradient and for a collapse; raises where there is one."""
        if self.explosion is not None and (exploded := self.explosion.check(self.history)) is not None:
            since, report = exploded
            raise ExplosionError(self.step, report, *largest_gradient(self), since)
        if self.collapse is None or (len(self.history) % self.collapse.window and self.step != self.steps):
            return  # it looks at means over a window: once in each is enough
        found = self.collapse.check(self.history, self.sizes)
        if found is not None:
            raise CollapseError(self.step, *found, self.collapse.since(self.history))

    def _close(self, norm: Tensor | None) -> dict[str, Any]:
        """The row of the steps since the last log point, whose sums start anew."""
        values = (torch.as_tensor(self._meter) / self._metered).tolist()
        elbo, penalty, log_likelihood, kl, entropy = values[:5]
        self.last_terms = LossTerms(log_likelihood, kl, entropy, self.lam, penalty, elbo if self._whole else None)
        entropies = dict(zip(self._sites, values[5:], strict=True))
        if isinstance(self.schedule, Controlled):
            self.schedule.observe(self.last_terms, self._metered)
        torch.as_tensor(self._meter).zero_()
        self._metered = 0
        return self._row(self.last_terms, float(torch.as_tensor(norm)), entropies)

    def _append(self, row: dict[str, Any]) -> None:
        self.history.append(row)
        if "val_elbo" in row:
            self.parameters.judge(row["val_elbo"])

    def pass_again(self, row: dict[str, Any]) -> None:
        """Go by a log point once more, in a replay: its row is known."""
        self._close(torch.zeros(()))
        self._append(row)

    def _row(self, terms: LossTerms, norm: float, entropies: dict[str, float]) -> dict[str, Any]:
        lam = plain_copy(terms.lam)
        row = {
            "step": self.step,
            "epoch": self.step / self.steps_per_epoch,
            "log_likelihood": terms.log_likelihood,
            "kl": terms.kl,
            "entropy": terms.entropy,
            "lam": float("nan") if isinstance(lam, Mapping) else _number(lam),
            "penalty": terms.penalty,
            "elbo": terms.elbo,
            "loss": terms.loss,
            "grad_norm": norm,
            "seconds": self.seconds,
        }
        if self.parameters.lr is not None:
            row["lr"] = self.parameters.lr
        row |= self.rollbacks.columns
        row |= {f"entropy[{site}]": value for site, value in entropies.items()}
        if isinstance(lam, Mapping):
            row |= {f"lam[{site}]": _number(lam.get(site, 0.0)) for site in entropies}
        return row

    def _judge(self) -> dict[str, float]:
        """The untempered ELBO of held-out rows where it is due, on a generator of its own."""
        if not self.held_out or not self.at_evaluation:
            return {}
        with fork_rng(self.seed):
            return {"val_elbo": held_out_elbo(self.model, self.guide, self.held_out, self.plate)}

    # ---- state ------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit: parameters, optimiser, generators, position, history."""
        if self.capture is not None:
            self.capture.settle()
        return {
            **self.parameters.state(),
            "rng": rng_state(),
            "step": self.step,
            "seconds": self.seconds,
            "history": list(self.history),  # only a callback adds to its last row
            "meter": None if self._meter is None else self._meter.clone(),
            "metered": self._metered,
            "recorded": [self._sites, self._whole],
            "lam": plain_copy(self.lam),
            "next_lam": float(self.schedule.lam) if isinstance(self.schedule, Controlled) else None,
            "capture": None if self.capture is None else self.capture.state(),
            "last_terms": None if self.last_terms is None else plain_copy(vars(self.last_terms)),
            "stopped": self.stopped,
            **self.rollbacks.state(self),
        }

    def load(self, state: dict[str, Any], *, rollback: bool = False) -> None:
        """Put a state from :meth:`state` back.

        Args:
            state: the state.
            rollback: it is of this very run, earlier on.

        Raises:
            ValueError: if it is of another pair.
        """
        self.parameters.load(state, rollback=rollback)
        load_rng_state(state["rng"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.history = list(state["history"])
        device = next((parameter.device for parameter in self.parameters.names().values()), None)
        meter = state["meter"]
        self._meter = None if meter is None else meter.to(device, copy=True)
        self._metered, (self._sites, self._whole), self.lam = state["metered"], state["recorded"], state["lam"]
        if isinstance(self.schedule, Controlled):
            self.schedule.lam = state["next_lam"]
        self.rollbacks.load(self, state)
        if self.capture is not None:  # its graphs work on the tensors that were
            self.capture.load(state["capture"])
        self.last_terms = None if state["last_terms"] is None else LossTerms(**state["last_terms"])
        self.stopped = state["stopped"]
        self.good = state


def _number(lam: float | Tensor) -> float:
    """A λ for the history, where a tensor would be a text."""
    return float(lam) if isinstance(lam, Tensor) else lam
