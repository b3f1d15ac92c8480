"""One run of learning from failures: what it knows, the steps of a round, and its checkpoints."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from banel_pyro.checkpoint import has_checkpoint, read_checkpoint, write_checkpoint
from banel_pyro.negative.distil import Distillation, distil
from banel_pyro.negative.filters import Evidence, Filter
from banel_pyro.negative.generator import Generator
from banel_pyro.negative.ledger import Ledger
from banel_pyro.negative.oracle import Oracle
from banel_pyro.negative.posterior import ExplorationPosterior
from banel_pyro.negative.region import Region, Regions
from banel_pyro.negative.region_file import check_packed, filled, packed, unpacked
from banel_pyro.negative.score import evaluate
from banel_pyro.negative.signal import HeldOut, held_out_signal
from banel_pyro.negative.success import SuccessRate, SuccessRates
from banel_pyro.reading import check_fields
from banel_pyro.seeding import fork_rng

__all__ = ["FORMAT", "STEPS", "Plan", "Rounds", "State"]

_log = logging.getLogger("banel_pyro")

FORMAT = 1
"""Version of the checkpoints."""

STEPS = ("propose", "ask", "filter", "distil", "evaluate")
"""The steps of a round: each is a function of what was known before it, and ends with a checkpoint."""

EXAMPLES = 12
"""Candidates of each kind that a round's record shows."""

BUDGET, ROUNDS, QUIET = "the budget is spent", "all rounds are done", "the signal says that nothing is learnt"


@dataclass(frozen=True)
class Plan:
    """What a run does: the options of :func:`~banel_pyro.negative.learn`, checked."""

    budget: int
    rounds: int
    filter: Filter | None
    factor: float | None
    log_tau: float | None
    distillation: Distillation | None
    candidates: int
    max_draws: int
    known: str
    use_successes: bool
    held_out: HeldOut | None
    show: Callable[[Tensor], Sequence[str]] | None
    seed: int


@dataclass
class State:
    """What a run knows between two steps.

    Args:
        generator: from which candidates are proposed, outside of ``regions``.
        first: the generator that the run began with.
        best: the generator of the best round so far, by its success rate or else by its successes among the asked.
        regions: that are kept.
        last: the region of the last round, kept or absorbed.
        failures: of all rounds before this one.
        successes: of all rounds.
        proposed: the candidates of this round.
        rewards: of them, NaN without answer.
        round: the number of this one, from 0.
        step: the next of :data:`STEPS`, by number.
        rows: a record of each round that is done.
        row: that of this round.
        rate: the success rate of ``generator`` outside of ``regions``.
        stopped: why there are no further rounds.
    """

    generator: Generator
    first: Generator
    best: Generator
    failures: Tensor
    successes: Tensor
    proposed: Tensor
    rewards: Tensor
    regions: Regions = field(default_factory=Regions)
    last: Region | None = None
    round: int = 0
    step: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    row: dict[str, Any] = field(default_factory=dict)
    best_round: int = -1
    best_value: float = -math.inf
    rate: SuccessRate | None = None
    base_rate: dict[str, Any] = field(default_factory=dict)
    stopped: str = ""

    @classmethod
    def at_start(cls, generator: Generator) -> State:
        """Nothing is known yet."""
        first = generator.copy().requires_grad_(False)
        with fork_rng(0):
            none = first.sample(1)[:0]
        return cls(first, first, first, none, none, none, torch.empty(0, dtype=torch.float64))

    def pack(self) -> dict[str, Any]:
        """Tensors, numbers and texts."""
        generators = [self.generator, self.first, self.best]
        regions = [*self.regions] + ([] if self.last is None else [self.last])
        pool: list[Generator] = []
        for generator in generators:
            if not any(generator is known for known in pool):
                pool.append(generator)
        numbers = [next(i for i, known in enumerate(pool) if known is generator) for generator in generators]
        plain = {name: getattr(self, name) for name in _PLAIN}
        tensors = {name: getattr(self, name).clone() for name in _TENSORS}
        rate = None if self.rate is None else dict(vars(self.rate))
        return {**packed(Regions(regions), generators), "named": numbers, "kept": len(self.regions), "rate": rate,
                "last": self.last is not None, **plain, **tensors}  # fmt: skip

    @classmethod
    def unpack(cls, found: dict[str, Any], skeleton: Generator, file: str) -> State:
        """A state from what :meth:`pack` made."""
        shared: dict[int, Generator] = {}
        for number in found["named"]:
            if number not in shared:
                shared[number] = filled(skeleton, found["generators"][number], f"'{file}'", "").requires_grad_(False)
        regions = list(unpacked(found, {"": skeleton}, (), file, shared))
        for generator in shared.values():
            generator.requires_grad_(False)
        generator, first, best = (shared[number] for number in found["named"])
        last = regions[-1] if found["last"] else None
        return cls(
            generator, first, best, regions=Regions(regions[: found["kept"]]), last=last,
            rate=None if found["rate"] is None else SuccessRate(**found["rate"]),
            **{name: found[name] for name in (*_PLAIN, *_TENSORS)},
        )  # fmt: skip


_PLAIN = ("round", "step", "rows", "row", "best_round", "best_value", "base_rate", "stopped")
_TENSORS = ("failures", "successes", "proposed", "rewards")


def check_state(state: dict[str, Any]) -> None:
    """Refuse what is no state of such a run.

    Raises:
        ValueError: naming what is missing or is something else.
    """
    check_packed(state)
    fields: dict[str, Any] = {name: (lambda v: isinstance(v, Tensor), "a tensor") for name in _TENSORS}
    for name, kind in (("rows", list), ("row", dict), ("base_rate", dict), ("stopped", str), ("named", list),
                       ("last", bool), ("best_value", float)):  # fmt: skip
        fields[name] = (lambda v, kind=kind: isinstance(v, kind), f"a {kind.__name__}")
    for name, least in (("round", 0), ("step", 0), ("kept", 0), ("best_round", -1)):
        fields[name] = (lambda v, least=least: type(v) is int and v >= least, f"an integer of at least {least}")
    fields["rate"] = (lambda v: v is None or isinstance(v, dict), "a success rate, or None")
    check_fields("it", state, fields, remedy="")
    count = len(state["generators"])
    if len(state["named"]) != 3 or not all(type(n) is int and 0 <= n < count for n in state["named"]):
        raise ValueError("it does not say which of its generators is which")
    if state["step"] >= len(STEPS):
        raise ValueError(f"it has step={state['step']}: expected less than {len(STEPS)}")


class Rounds:
    """Runs the rounds of a plan from where a state stands.

    Args:
        plan: what is done.
        oracle: what is asked.
        ledger: where it is written down.
        folder: where checkpoints go.
        rates: what measures success rates for the report, or None.
        state: where it stands.
        show: called with the state after every step, and with the candidates that were answered while the oracle is
            asked.
    """

    def __init__(
        self, plan: Plan, oracle: Oracle, ledger: Ledger, folder: Path, rates: SuccessRates | None, state: State,
        show: Callable[[State, int], None] = lambda state, done: None,
    ) -> None:  # fmt: skip
        self.plan, self.oracle, self.ledger, self.folder = plan, oracle, ledger, folder
        self.rates, self.state, self.show = rates, state, show

    def run(self) -> State:
        """Go on until all rounds are done, the budget is spent, or nothing more is learnt."""
        state = self.state
        if self.rates is not None and not state.base_rate:
            state.rate = self.rates(state.generator, seed=self._seed(-1))
            state.base_rate = _numbers(state.rate)
            state.best_value = state.rate.value
            self._checkpoint()
        while not state.stopped:
            while state.step < len(STEPS):
                name = STEPS[state.step]
                start = time.perf_counter()
                with fork_rng(self._seed(state.step)):
                    getattr(self, f"_{name}")()
                state.row[f"seconds_{name}"] = time.perf_counter() - start
                state.step += 1
                if state.step < len(STEPS):
                    self._checkpoint()
            self._end_round()
            self._checkpoint()
        return state

    def posterior(self) -> ExplorationPosterior:
        """Where candidates are proposed from."""
        return ExplorationPosterior(self.state.generator, self.state.regions, max_draws=self.plan.max_draws)

    # ---- the steps -------------------------------------------------------------------------------

    def _propose(self) -> None:
        state, plan = self.state, self.plan
        count = math.ceil(self.ledger.left / (plan.rounds - state.round))
        posterior = self.posterior()
        state.proposed = posterior.sample((count,))
        state.row = {"round": state.round, "proposed": count, "draws": posterior.tally.drawn}

    def _ask(self) -> None:
        state = self.state
        before = self.ledger.counts()["seconds"]
        answers = self.oracle.ask(
            state.proposed, self.ledger, round=state.round, known=self.plan.known,
            progress=lambda done: self.show(state, done),
        )  # fmt: skip
        state.rewards = answers.rewards
        won = state.proposed[answers.successes]
        state.successes = torch.cat([state.successes, won])
        state.row |= {
            "charged": int(answers.charged.sum()), "successes": len(won), "failures": int(answers.failures.sum()),
            "unanswered": int(torch.isnan(answers.rewards).sum()), "nre": self.ledger.nre,
            "seconds_oracle": self.ledger.counts()["seconds"] - before,
        }  # fmt: skip

    def _filter(self) -> None:
        """A score from the failures, and the region that it cuts off."""
        state, plan = self.state, self.plan
        failures = state.proposed[state.rewards == 0]
        if plan.filter is None or not len(failures):
            return
        seed = self._seed(100)
        held_out = 0 if plan.held_out is None else plan.held_out.count(len(failures))
        shuffled = failures[torch.randperm(len(failures))]
        evidence = Evidence(
            state.generator, shuffled[held_out:], state.failures, state.successes,
            None if state.last is None else state.last.score,
        )  # fmt: skip
        score = plan.filter.learn(evidence, seed=seed)
        fresh = self.posterior().sample((plan.candidates,))
        region = (
            Region(score, plan.log_tau).check(fresh)
            if plan.log_tau is not None
            else Region.at_quantile(score, fresh, plan.factor or 2.0)
        )
        acceptance = region.acceptance(fresh).value
        state.row |= {"log_tau": region.log_tau, "acceptance": acceptance, "bound": 1 / acceptance}
        if plan.show is not None:
            order = evaluate(score, fresh).argsort()
            state.row |= {"most_like_failures": list(plan.show(fresh[order[:EXAMPLES]])),
                          "least_like_failures": list(plan.show(fresh[order[-EXAMPLES:]]))}  # fmt: skip
        if held_out:
            state.row |= held_out_signal(region, trained=shuffled[held_out:], held_out=shuffled[:held_out], fresh=fresh)
        if state.rate is not None:
            kept = state.rate.accepted_by(region)
            state.row |= {"accept_given_success": kept, "filter_gain": kept / acceptance}
        state.last, state.regions = region, state.regions | region

    def _distil(self) -> None:
        state, plan = self.state, self.plan
        if plan.distillation is None or "acceptance" not in state.row:
            return
        done = distil(
            self.posterior(), plan.distillation, start=state.first if plan.distillation.start == "first" else None,
            seed=self._seed(200), successes=state.successes if plan.use_successes else None,
        )  # fmt: skip
        state.generator = done.generator
        if not plan.distillation.keep_regions:
            state.regions = Regions()
        state.row |= {
            "held_out_nats": done.held_out.value, "divergence": done.divergence.value,
            "divergence_stderr": done.divergence.stderr, "acceptance_after": done.acceptance.value,
        }  # fmt: skip

    def _evaluate(self) -> None:
        state = self.state
        value = state.row["successes"] / max(state.row["proposed"], 1)  # of the proposals of this round
        if self.rates is not None and "acceptance" in state.row:
            before = math.nan if state.rate is None else state.rate.value
            state.rate = self.rates(state.generator, state.regions, seed=self._seed(300))
            state.row |= _numbers(state.rate)
            if before and state.row["filter_gain"]:
                state.row["distillation_gain"] = state.rate.value / (before * state.row["filter_gain"])
        if state.rate is not None:
            value = state.rate.value
        if value > state.best_value:
            state.best, state.best_round, state.best_value = state.generator, state.round, value

    def _end_round(self) -> None:
        state, plan = self.state, self.plan
        state.failures = torch.cat([state.failures, state.proposed[state.rewards == 0]])
        state.rows.append(state.row)
        state.round, state.step = state.round + 1, 0
        if state.round >= plan.rounds:
            state.stopped = ROUNDS
        elif self.ledger.left == 0:
            state.stopped = BUDGET
        elif plan.held_out is not None and plan.held_out.stops(state.rows):
            state.stopped = QUIET

    # ---- between them ----------------------------------------------------------------------------

    def _seed(self, step: int) -> int:
        """Seeds of their own for every step of every round: what a step draws does not depend on a resume before it."""
        mixed = torch.Generator().manual_seed(self.plan.seed * 1_000_003 + self.state.round * 1009 + step + 7)
        return int(torch.randint(2**31, (), generator=mixed))

    def _checkpoint(self) -> None:
        write_checkpoint(self.folder, self.state.pack(), FORMAT)
        self.show(self.state, 0)


def read_state(folder: Path, skeleton: Generator) -> State | None:
    """The last state of a run in a folder, None where there is none yet."""
    if not has_checkpoint(folder):
        return None
    found = read_checkpoint(folder, FORMAT, check_state)
    return State.unpack(found, skeleton, str(folder))


def rows_of(state: State) -> pd.DataFrame:
    """A row for each round that is done."""
    return pd.DataFrame(state.rows)


def _numbers(rate: SuccessRate) -> dict[str, Any]:
    numbers = {"success_rate": rate.value, "success_low": rate.low, "success_high": rate.high}
    return numbers | {"evaluated": rate.draws} | ({} if rate.reachable is None else {"reachable": rate.reachable})
