"""``learn``: rounds of propose, ask, fit the failures, reject, distil, until a budget of oracle calls is spent."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from torch import Tensor

from banel_pyro.checks import instance
from banel_pyro.negative.distil import Distillation
from banel_pyro.negative.filters import Filter, RatioFilter
from banel_pyro.negative.generator import Generator, check_generator
from banel_pyro.negative.guards import check_learns, check_ledger, locked
from banel_pyro.negative.ledger import Ledger
from banel_pyro.negative.options import CONFIG, LEDGER, ROUNDS, claim, plan_of, read_config, write_json
from banel_pyro.negative.oracle import Oracle
from banel_pyro.negative.posterior import MOST_DRAWS, ExplorationPosterior
from banel_pyro.negative.region import Regions
from banel_pyro.negative.rounds import Rounds
from banel_pyro.negative.signal import HeldOut
from banel_pyro.negative.state import Plan, State, read_state, rows_of
from banel_pyro.negative.success import SuccessRates
from banel_pyro.seeding import kept_rng
from banel_pyro.training.progress import Progress

__all__ = ["CONFIG", "LEDGER", "ROUNDS", "Learned", "learn"]


@dataclass(frozen=True)
class Learned:
    r"""What a run has come to.

    Args:
        generator: the last one; candidates come from it outside of ``regions``.
        regions: that are kept, empty where they were absorbed by distillation.
        best: the best generator so far: by its measured success rate, or else by the share of successes among the
            candidates that it has proposed, which says little where successes are few.
        best_regions: outside of which it is the best.
        best_round: the round that made it, −1 for the start.
        rounds: a row for each round: see :func:`learn`.
        successes: candidates that succeeded, shape (k, \*event_shape).
        failures: candidates that failed.
        stopped: why there were no further rounds.
        config: the options of the run, and the success rate at its start.
        folder: where its files are.
    """

    generator: Generator
    regions: Regions
    best: Generator
    best_regions: Regions
    best_round: int
    rounds: pd.DataFrame
    successes: Tensor
    failures: Tensor
    stopped: str
    config: dict[str, Any]
    folder: Path

    @property
    def posterior(self) -> ExplorationPosterior:
        """The final exploration posterior: what to draw further candidates from."""
        return ExplorationPosterior(self.generator, self.regions, max_draws=self.config["max_draws"])

    @staticmethod
    def load(folder: str | os.PathLike[str], generator: Generator, *, filter: Filter | None = None) -> Learned:
        """A run from its folder, finished or not.

        Args:
            folder: the ``out`` of :func:`learn`.
            generator: one of the architecture that it was given; it is not changed.
            filter: the one that it was given, if its scores have generators of another architecture (``start=`` a
                function), or classes of their own.

        Raises:
            ValueError: if the folder holds no such run.
        """
        path = Path(folder)
        if not (path / CONFIG).exists():
            raise ValueError(f"'{path}' holds no run of negative evidence: expected a {CONFIG} in it.")
        config = read_config(path)
        state = read_state(path, generator, filter)
        if state is None:
            raise ValueError(f"'{path}' has no checkpoint: the run stopped before its first one.")
        return _learned(state, config, path)


def learn(
    generator: Generator,
    oracle: Oracle,
    *,
    budget: int,
    out: str | os.PathLike[str],
    rounds: int = 10,
    filter: Filter | None = RatioFilter(),  # noqa: B008  # frozen: safe to share
    factor: float = 4.0,
    ties: Literal["accept", "reject"] = "accept",
    log_tau: float | None = None,
    distillation: Distillation | None = Distillation(),  # noqa: B008
    candidates: int = 4000,
    max_draws: int = MOST_DRAWS,
    known: str = "free",
    use_successes: bool = False,
    held_out: HeldOut | None = None,
    success_rate: SuccessRates | None = None,
    show: Callable[[Tensor], Sequence[str]] | None = None,
    seed: int | None = None,
    resume: bool = False,
    progress: bool = True,
    name: str = "task",
) -> Learned:
    r"""Steer a generator away from what has failed, without a single success to learn from.

    A round proposes candidates, asks the oracle about them, learns a score from those that failed, rejects the fraction
    1 − 1/f of the proposals that score lowest, and distils what is left into the generator, from which the next round
    proposes:

    .. math::
        p_{t+1}(x) \propto p_t(x)\, 1[\log p_t(x) - \kappa \log p_{\varphi_t}(x) \geq \log\tau_t]

    The success rate is multiplied by P(accept | success) / P(accept) ≤ 1 / P(accept), exactly; what distillation adds
    or takes comes on top. Successes are kept and counted, and not trained on: that is the paper's protocol.

    Args:
        generator: :math:`p_0`. It is copied, and all parameters of the copy are trained: what is fixed is a buffer.
        oracle: what is asked.
        budget: reward evaluations (NRE) that may be spent, retries among them: a hard limit.
        out: folder of the run: the ledger with every answer, a checkpoint after every step, and a record.
        rounds: among which the budget is shared out evenly. What known candidates save goes to the rounds that are
            left; what they save in the last one is left over.
        filter: how a score is learnt: :class:`RatioFilter` is the paper's, :class:`RandomFilter` knows nothing, and
            None is random sampling.
        factor: the filter factor f, more than 1: 1 − 1/f of the proposals are rejected.
        ties: what happens to candidates that share the score at the quantile, as in :meth:`Region.at_quantile`: where
            a generator makes one failure in more than 1/f of its draws, only ``"reject"`` gets rid of it.
        log_tau: a fixed threshold in nats in place of a quantile. One that leaves nothing of a round's fresh draws
            is a ValueError in that round.
        distillation: how accepted draws are trained on; None keeps all regions, and rejects by their union, so that a
            candidate costs about fᵗ draws after t rounds.
        candidates: fresh draws that place the quantile, and measure the acceptance.
        max_draws: of the generator in one call, until an acceptance that has collapsed is an error.
        known: ``"free"`` answers repeated candidates from the ledger at no cost, ``"ask"`` asks anew.
        use_successes: distil successes along with accepted draws. Not the paper's protocol.
        held_out: failures that are held out in every round, for a signal that needs no success.
        success_rate: measures success rates for the record, at no cost in reward evaluations. Nothing is learnt from
            it; only which round was best is judged by it.
        show: candidates as texts: a round's record then shows which fresh draws scored lowest and highest.
        seed: of all that is drawn, by default drawn from torch's generator.
        resume: go on with the run in ``out``; starts it if there is none. The options are those that it was begun
            with, but for ``budget``, ``rounds`` and ``max_draws``: a run that has ended goes on with more of them.
        progress: show a progress bar.
        name: of the task, which the ledger remembers.

    Returns:
        The last generator and the best one, with ``rounds``, a row for each: ``nre``, charged so far;
        ``charged``, ``successes`` and ``failures`` of the round; ``acceptance`` and ``bound`` (1 / P(accept));
        ``filter_gain``, ``distillation_gain`` and ``success_rate`` with its interval, where it is measured;
        ``divergence`` of the distillation in nats; ``seconds_*`` of each step and of its checkpoints.

    Raises:
        TypeError, ValueError: for bad input, before anything is asked.
        AcceptanceError: if too few draws are accepted; the run is saved.
        OracleError: if the oracle fails again and again; the run is saved.

    References:
        Lee, Amos and Fanti, arXiv 2510.09596, 2025.
    """
    plan = plan_of(
        budget=budget, rounds=rounds, filter=filter, factor=factor, ties=ties, log_tau=log_tau,
        distillation=distillation, candidates=candidates, max_draws=max_draws, known=known,
        use_successes=use_successes, held_out=held_out, show=show, seed=0,
    )  # fmt: skip
    with kept_rng():
        check_generator(generator)
        check_learns(generator, plan)
    instance("oracle", oracle, (Oracle,), "an Oracle. Write Oracle(fn) for a function from candidates to rewards")
    instance("success_rate", success_rate, (SuccessRates, type(None)), "ListedSuccesses, DrawnSuccesses or None")
    folder = Path(out)
    config = claim(folder, plan, success_rate, seed, name, resume=resume)
    plan = Plan(**{**vars(plan), "seed": config["seed"]})
    with locked(folder), Ledger(folder / LEDGER, task=name, budget=plan.budget) as ledger:
        state = read_state(folder, generator, filter) or State.at_start(generator)
        check_ledger(ledger, state)
        with Progress(plan.budget, enabled=progress, title=name) as bar:

            def tell(state: State) -> None:
                bar.show(ledger.nre, _told(state))

            def record(state: State) -> None:
                tell(state)
                write_json(folder / CONFIG, config | {"base_rate": state.base_rate})
                write_json(folder / ROUNDS, {"rounds": state.rows, "stopped": state.stopped, "best": state.best_round})

            state = Rounds(
                plan, oracle, ledger, folder, success_rate, state, saved=record, asking=tell if progress else None
            ).run()
    return _learned(state, config | {"base_rate": state.base_rate}, folder)


def _told(state: State) -> str:
    """A run in a line: round, acceptance, successes seen, and the bound on what filters have gained."""
    filtered = [row["acceptance"] for row in [*state.rows, state.row] if "acceptance" in row]
    bound = 1 / math.prod(filtered)
    accept = f"  accept {filtered[-1]:.2f}" if filtered else ""
    return f"round {len(state.rows) + bool(state.row)}{accept}  successes {len(state.successes)}  gain ≤ {bound:.3g}"


def _learned(state: State, config: dict[str, Any], folder: Path) -> Learned:
    return Learned(
        state.generator, state.regions, state.best, state.regions[: state.best_kept], state.best_round, rows_of(state),
        state.successes, state.failures, state.stopped, config, folder,
    )  # fmt: skip
