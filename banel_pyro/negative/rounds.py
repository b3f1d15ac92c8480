"""One run of learning from failures: the steps of a round, with a checkpoint after each."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from banel_pyro.checkpoint import write_checkpoint
from banel_pyro.negative.distil import distil
from banel_pyro.negative.filters import Evidence, Filter
from banel_pyro.negative.ledger import Ledger
from banel_pyro.negative.oracle import Oracle
from banel_pyro.negative.posterior import ExplorationPosterior
from banel_pyro.negative.region import Region
from banel_pyro.negative.score import evaluate
from banel_pyro.negative.signal import chosen_region, held_out_signal
from banel_pyro.negative.state import FORMAT, STEPS, Plan, State
from banel_pyro.negative.success import SuccessRate, SuccessRates
from banel_pyro.seeding import fork_rng

__all__ = ["Rounds"]

_log = logging.getLogger("banel_pyro")

EXAMPLES = 12
"""Candidates of each kind that a round's record shows."""

BUDGET, ROUNDS, QUIET = "the budget is spent", "all rounds are done", "the signal says that nothing is learnt"


def _nothing(state: State) -> None:
    """What is done with a state by default."""


class Rounds:
    """Runs the rounds of a plan from where a state stands.

    Args:
        plan: what is done.
        oracle: what is asked.
        ledger: where it is written down.
        folder: where checkpoints go.
        rates: what measures success rates for the report, or None.
        state: where it stands.
        saved: called with the state after every checkpoint.
        asking: called with the state whenever the oracle has answered; None if nobody looks.
    """

    def __init__(
        self, plan: Plan, oracle: Oracle, ledger: Ledger, folder: Path, rates: SuccessRates | None, state: State, *,
        saved: Callable[[State], None] = _nothing, asking: Callable[[State], None] | None = None,
    ) -> None:  # fmt: skip
        self.plan, self.oracle, self.ledger, self.folder = plan, oracle, ledger, folder
        self.rates, self.state, self.saved, self.asking = rates, state, saved, asking

    def run(self) -> State:
        """Go on until all rounds are done, the budget is spent, or nothing more is learnt."""
        state = self.state
        if state.step == 0:  # a budget may have been raised, or spent on attempts that were lost
            state.stopped = self._why_stop()
        self.saved(state)
        if self.rates is not None and not state.base_rate:
            state.rate = self.rates(state.generator, seed=self._seed(-1))
            state.base_rate = _numbers(state.rate)
            state.judge(state.rate.value, -1)
            self._checkpoint()
        while not state.stopped:
            while state.step < len(STEPS):
                self._do(STEPS[state.step])
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

    def _do(self, step: str) -> None:
        start = time.perf_counter()
        with fork_rng(self._seed(self.state.step)):
            getattr(self, f"_{step}")()
        self.state.row[f"seconds_{step}"] = time.perf_counter() - start

    def _propose(self) -> None:
        state = self.state
        count = math.ceil(self.ledger.left / (self.plan.rounds - state.round))
        posterior = self.posterior()
        state.proposed = posterior.sample((count,))
        state.row = {"round": state.round, "proposed": count, "draws": posterior.tally.drawn}

    def _ask(self) -> None:
        state, asking = self.state, self.asking
        before, spent = self.ledger.counts()["seconds"], state.rows[-1]["nre"] if state.rows else 0
        answers = self.oracle.ask(
            state.proposed, self.ledger, round=state.round, known=self.plan.known,
            progress=None if asking is None else lambda done: asking(state),
        )  # fmt: skip
        state.rewards = answers.rewards
        won = state.proposed[answers.successes]
        state.successes = torch.cat([state.successes, won])
        failed, silent = int(answers.failures.sum()), int(torch.isnan(answers.rewards).sum())
        state.row |= {
            "charged": self.ledger.nre - spent, "successes": len(won), "failures": failed, "unanswered": silent,
            "nre": self.ledger.nre, "seconds_oracle": self.ledger.counts()["seconds"] - before,
        }  # fmt: skip
        if silent:
            _log.warning(
                "round %d: %d of %d candidates have no answer, and teach nothing.", state.round, silent, len(won) +
                failed + silent,
            )  # fmt: skip
        if self.rates is None and len(won) + failed:  # it is the proposals of the round before that were judged
            state.judge(len(won) / (len(won) + failed), state.round - 1)

    def _filter(self) -> None:
        """A score from the failures, and the region that it cuts off."""
        state, plan = self.state, self.plan
        failures = state.proposed[state.rewards == 0]
        if plan.filter is None or not len(failures):
            return
        held_out = 0 if plan.held_out is None else plan.held_out.count(len(failures))
        shuffled = failures[torch.randperm(len(failures))]
        evidence = Evidence(
            state.generator, shuffled[held_out:], state.failures, state.successes,
            None if state.last is None else state.last.score,
        )  # fmt: skip
        fresh = self.posterior().sample((plan.candidates,))
        region = self._region(plan.filter, evidence, shuffled[:held_out], fresh)
        acceptance = region.acceptance(fresh).value
        state.row |= {"log_tau": region.log_tau, "acceptance": acceptance, "bound": 1 / acceptance}
        if plan.show is not None:
            order = evaluate(region.score, fresh).argsort()
            state.row |= {"most_like_failures": list(plan.show(fresh[order[:EXAMPLES]])),
                          "least_like_failures": list(plan.show(fresh[order[-EXAMPLES:]]))}  # fmt: skip
        if held_out:
            state.row |= held_out_signal(region, trained=shuffled[held_out:], held_out=shuffled[:held_out], fresh=fresh)
        if state.rate is not None:
            kept = state.rate.accepted_by(region)
            state.row |= {"accept_given_success": kept, "filter_gain": kept / acceptance}
        state.last = region
        if region.log_tau > -math.inf:
            state.regions = state.regions | region

    def _region(self, filter: Filter, evidence: Evidence, held_out: Tensor, fresh: Tensor) -> Region:
        plan, seed = self.plan, self._seed(100)
        if plan.held_out is None or not plan.held_out.chooses or not len(held_out):
            score = filter.learn(evidence, seed=seed)
            if plan.log_tau is not None:
                return Region(score, plan.log_tau).check(fresh)
            return Region.at_quantile(score, fresh, plan.factor, ties=plan.ties)
        scores = filter.stages(evidence, plan.held_out.epochs, seed=seed)
        region, told = chosen_region(
            scores, (plan.factor, *plan.held_out.factors), default=(next(iter(scores)), plan.factor),
            held_out=held_out, fresh=fresh, ties=plan.ties,
        )  # fmt: skip
        self.state.row |= told
        return region

    def _distil(self) -> None:
        state, plan = self.state, self.plan
        successes = state.successes if plan.use_successes else None
        filtered = state.row.get("log_tau", -math.inf) > -math.inf
        # a generator trained on its own draws learns nothing, and loses a little
        if plan.distillation is None or not (filtered or (successes is not None and len(successes))):
            return
        done = distil(
            self.posterior(), plan.distillation, start=state.first if plan.distillation.start == "first" else None,
            seed=self._seed(200), successes=successes,
        )  # fmt: skip
        state.generator = done.generator
        if not plan.distillation.keep_regions:
            state.regions = state.regions[:0]
        state.row |= {
            "held_out_nats": done.held_out.value, "divergence": done.divergence.value,
            "divergence_stderr": done.divergence.stderr, "acceptance_after": done.acceptance.value,
        }  # fmt: skip

    def _evaluate(self) -> None:
        state = self.state
        if self.rates is None or state.rate is None:
            return
        distilled = "divergence" in state.row
        if distilled or state.row.get("log_tau", -math.inf) > -math.inf:  # else it is the same generator as before
            before = state.rate.value
            state.rate = self.rates(state.generator, state.regions, seed=self._seed(300))
            filtered = before * state.row.get("filter_gain", 1.0)
            if distilled and filtered > 0:
                state.row["distillation_gain"] = state.rate.value / filtered
        state.row |= _numbers(state.rate)
        state.judge(state.rate.value, state.round)

    # ---- between them ----------------------------------------------------------------------------

    def _end_round(self) -> None:
        state = self.state
        state.failures = torch.cat([state.failures, state.proposed[state.rewards == 0]])
        state.rows.append(state.row)
        state.row = {}
        state.round, state.step = state.round + 1, 0
        state.stopped = self._why_stop()

    def _why_stop(self) -> str:
        """Why there is no further round; empty if there is one."""
        if self.state.round >= self.plan.rounds:
            return ROUNDS
        if self.plan.held_out is not None and self.plan.held_out.stops(self.state.rows):
            return QUIET
        return "" if self.ledger.left else BUDGET

    def _seed(self, step: int) -> int:
        """Seeds of their own for every step of every round: what a step draws does not depend on a resume before it."""
        mixed = torch.Generator().manual_seed(self.plan.seed * 1_000_003 + self.state.round * 1009 + step + 7)
        return int(torch.randint(2**31, (), generator=mixed))

    def _checkpoint(self) -> None:
        state, start = self.state, time.perf_counter()
        write_checkpoint(self.folder, state.pack(), FORMAT)
        self.saved(state)
        row = state.row or (state.rows[-1] if state.rows else {})  # which is on the disk from the next checkpoint on
        row["seconds_checkpoint"] = row.get("seconds_checkpoint", 0.0) + time.perf_counter() - start


def _numbers(rate: SuccessRate) -> dict[str, Any]:
    numbers = {"success_rate": rate.value, "success_low": rate.low, "success_high": rate.high}
    return numbers | {"evaluated": rate.draws} | ({} if rate.reachable is None else {"reachable": rate.reachable})
