"""``learn``: rounds of propose, ask, fit the failures, reject, distil, until a budget of oracle calls is spent."""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from banel_pyro.checkpoint import write_whole
from banel_pyro.checks import instance, integer, number
from banel_pyro.folder import versions
from banel_pyro.negative.distil import Distillation
from banel_pyro.negative.filters import Filter, RatioFilter
from banel_pyro.negative.generator import Generator, check_generator
from banel_pyro.negative.ledger import Ledger
from banel_pyro.negative.oracle import Oracle
from banel_pyro.negative.posterior import MOST_DRAWS, ExplorationPosterior
from banel_pyro.negative.region import Regions
from banel_pyro.negative.rounds import Plan, Rounds, State, read_state, rows_of
from banel_pyro.negative.signal import HeldOut
from banel_pyro.negative.success import SuccessRates
from banel_pyro.negative.threshold import filter_factor
from banel_pyro.reading import read_json
from banel_pyro.run import run_seed
from banel_pyro.training.progress import Progress

__all__ = ["CONFIG", "LEDGER", "ROUNDS", "Learned", "learn", "learn_config"]

CONFIG, LEDGER, ROUNDS = "negative.json", "ledger.db", "rounds.json"
"""Files of a run: its options, the ledger, and a record of each round."""


@dataclass(frozen=True)
class Learned:
    r"""What a run has come to.

    Args:
        generator: the last one; candidates come from it outside of ``regions``.
        regions: that are kept, empty where they were absorbed by distillation.
        best: the generator of the best round so far.
        best_round: its number, −1 for the one at the start.
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
    def load(folder: str | os.PathLike[str], generator: Generator) -> Learned:
        """A run from its folder, finished or not.

        Args:
            folder: the ``out`` of :func:`learn`.
            generator: one of the architecture that it was given; it is not changed.

        Raises:
            ValueError: if the folder holds no such run.
        """
        path = Path(folder)
        if not (path / CONFIG).exists():
            raise ValueError(f"'{path}' holds no run of negative evidence: expected a {CONFIG} in it.")
        state = read_state(path, generator)
        if state is None:
            raise ValueError(f"'{path}' has no checkpoint: the run stopped before its first one.")
        return _learned(state, read_json(path / CONFIG), path)


def learn(
    generator: Generator,
    oracle: Oracle,
    *,
    budget: int,
    out: str | os.PathLike[str],
    rounds: int = 10,
    filter: Filter | None = RatioFilter(),  # noqa: B008  # frozen: safe to share
    factor: float = 4.0,
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

    .. math:: p_{t+1}(x) \propto p_t(x)\, 1[\log p_t(x) - \kappa \log p_{\varphi_t}(x) \ge \log\tau_t]

    The success rate is multiplied by P(accept | success) / P(accept) ≤ 1 / P(accept), exactly; what distillation adds
    or takes comes on top. Successes are kept and counted, and not trained on: that is the paper's protocol.

    Args:
        generator: :math:`p_0`. It is copied.
        oracle: what is asked.
        budget: reward evaluations (NRE) that may be spent, retries among them: a hard limit.
        out: folder of the run: the ledger with every answer, a checkpoint after every step, and a record.
        rounds: among which the budget is shared out evenly.
        filter: how a score is learnt: :class:`RatioFilter` is the paper's, :class:`RandomFilter` knows nothing, and
            None is random sampling.
        factor: the filter factor f, more than 1: 1 − 1/f of the proposals are rejected.
        log_tau: a fixed threshold in nats in place of a quantile.
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
        resume: go on with the run in ``out``; starts it if there is none.
        progress: show a progress bar.
        name: of the task, which the ledger remembers.

    Returns:
        The last generator and the best one, with ``rounds``, a row for each: ``nre``, ``charged``, ``successes`` and
        ``failures`` of the round; ``acceptance`` and ``bound`` (1 / P(accept)); ``filter_gain`` and
        ``distillation_gain``, ``success_rate`` with its interval, where it is measured; ``divergence`` of the
        distillation in nats; ``seconds_*`` of each step.

    Raises:
        TypeError, ValueError: for bad input, before anything is asked.
        AcceptanceError: if too few draws are accepted; the run is saved.
        OracleError: if the oracle fails again and again; the run is saved.

    References:
        Lee, Amos and Fanti, arXiv 2510.09596, 2025.
    """
    plan = _plan(
        budget=budget, rounds=rounds, filter=filter, factor=factor, log_tau=log_tau, distillation=distillation,
        candidates=candidates, max_draws=max_draws, known=known, use_successes=use_successes, held_out=held_out,
        show=show, seed=0,
    )  # fmt: skip
    check_generator(generator)
    instance("oracle", oracle, (Oracle,), "an Oracle. Write Oracle(fn) for a function from candidates to rewards")
    instance("success_rate", success_rate, (SuccessRates, type(None)), "ListedSuccesses, DrawnSuccesses or None")
    folder = Path(out)
    config = _claim(folder, plan, success_rate, seed, name, resume=resume)
    plan = Plan(**{**vars(plan), "seed": config["seed"]})
    with Ledger(folder / LEDGER, task=name, budget=plan.budget) as ledger:
        state = read_state(folder, generator) or State.at_start(generator)
        with Progress(plan.budget, enabled=progress, title=name) as bar:

            def record(state: State, done: int) -> None:
                bar.show(ledger.nre, _told(state))
                if not done:
                    config["base_rate"] = state.base_rate
                    _write(folder / CONFIG, config)
                    _write(folder / ROUNDS, {"rounds": state.rows, "stopped": state.stopped, "best": state.best_round})

            state = Rounds(plan, oracle, ledger, folder, success_rate, state, record).run()
    return _learned(state, config, folder)


def learn_config(*, success_rate: SuccessRates | None = None, name: str = "task", **options: Any) -> dict[str, Any]:
    """What :func:`learn` records of its options, checked; nothing is asked or written.

    Args:
        success_rate: as for :func:`learn`, as are the others.
        name: of the task.
        options: those that decide numbers.

    Raises:
        TypeError, ValueError: for bad input.
    """
    own = inspect.signature(learn).parameters
    names = [field.name for field in fields(Plan)]
    if unknown := sorted(options.keys() - set(names)):
        raise TypeError(f"options has {unknown}: expected options of learn, which are {', '.join(names)}.")
    instance("success_rate", success_rate, (SuccessRates, type(None)), "ListedSuccesses, DrawnSuccesses or None")
    options = {option: own[option].default for option in names if option != "budget"} | options
    return _describe(_plan(**options | {"seed": 0}), success_rate, name)


def _plan(**options: Any) -> Plan:
    """The options, checked."""
    for name, least in (("budget", 1), ("rounds", 1), ("candidates", 2), ("max_draws", 1)):
        integer(name, options[name], least)
    if options["rounds"] > options["budget"]:
        raise ValueError(
            f"rounds={options['rounds']}, budget={options['budget']}: expected a candidate a round or more."
        )
    instance("filter", options["filter"], (Filter, type(None)), "a Filter, such as RatioFilter(), or None")
    instance("distillation", options["distillation"], (Distillation, type(None)), "a Distillation, or None")
    instance("held_out", options["held_out"], (HeldOut, type(None)), "a HeldOut, or None")
    instance("use_successes", options["use_successes"], (bool,), "True or False")
    if options["log_tau"] is None:
        filter_factor(options["factor"])
    else:
        number("log_tau", options["log_tau"])
    if options["known"] not in ("free", "ask"):
        raise ValueError(f"known={options['known']!r}: expected 'free' or 'ask'.")
    return Plan(**options)


def _describe(plan: Plan, success_rate: SuccessRates | None, name: str) -> dict[str, Any]:
    """What decides a run's numbers, as JSON."""
    fields = {name: value for name, value in vars(plan).items() if name != "show"}
    fields |= {
        "filter": None if plan.filter is None else plan.filter.describe(),
        "distillation": None if plan.distillation is None else plan.distillation.describe(),
        "held_out": None if plan.held_out is None else vars(plan.held_out),
        "success": None if success_rate is None else success_rate.describe(),
        "name": name,
    }
    return json.loads(json.dumps(fields))  # type: ignore[no-any-return]


def _claim(
    folder: Path, plan: Plan, success_rate: SuccessRates | None, seed: int | None, name: str, *, resume: bool
) -> dict[str, Any]:
    """The configuration of a run, new or the one that is resumed; refused where the folder holds something else."""
    wanted = _describe(plan, success_rate, name)
    if (folder / CONFIG).exists():
        if not resume:
            raise ValueError(f"out='{folder}' already holds a run: choose another folder, or go on with resume=True.")
        config: dict[str, Any] = read_json(folder / CONFIG)
        wanted["seed"] = config.get("seed") if seed is None else seed
        for key, value in wanted.items():
            if key != "budget" and config.get(key) != value:
                raise ValueError(
                    f"out='{folder}' holds a run with {key}={config.get(key)!r}, and {key}={value!r} was asked for: "
                    "expected the options that it was begun with. Choose another folder for others."
                )
        return config
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"out='{folder}' holds other files and no run: choose a new or an empty folder.")
    folder.mkdir(parents=True, exist_ok=True)
    config = {**wanted, "seed": run_seed(seed, None, resume=False), "versions": versions(), "base_rate": {}}
    _write(folder / CONFIG, config)
    return config


def _write(file: Path, content: dict[str, Any]) -> None:
    text = json.dumps(_known(content), indent=2, allow_nan=False)
    write_whole(file, lambda path: path.write_text(text, encoding="utf-8"))


def _known(content: Any) -> Any:
    """JSON knows no NaN: what is not known, such as the gain of a filter where no success is known, is null."""
    if isinstance(content, dict):
        return {name: _known(value) for name, value in content.items()}
    if isinstance(content, list):
        return [_known(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _told(state: State) -> str:
    """A run in a line: round, acceptance, successes seen, and the bound on what filters have gained."""
    bound = 1.0
    for row in [*state.rows, state.row]:
        bound *= row.get("bound", 1.0)
    last = ([*state.rows, state.row][-1] or {}).get("acceptance")
    accept = "" if last is None else f"  accept {last:.2f}"
    return f"round {state.round + 1}{accept}  successes {len(state.successes)}  gain ≤ {bound:.3g}"


def _learned(state: State, config: dict[str, Any], folder: Path) -> Learned:
    return Learned(
        state.generator, state.regions, state.best, state.best_round, rows_of(state), state.successes, state.failures,
        state.stopped, config, folder,
    )  # fmt: skip
