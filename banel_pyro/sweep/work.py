"""One process at work on a sweep: it takes a run from the study, trains it in its folder, and tells what came out."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from banel_pyro.recipe import Lam
from banel_pyro.run import FitResult, RunFolder
from banel_pyro.sweep.extra import FILE as EXTRA
from banel_pyro.sweep.extra import judge, score_of, write_extra
from banel_pyro.sweep.plan import Sweep, decoded, run_name
from banel_pyro.sweep.study import ANEW, again, bury, count, import_optuna, quiet, replaced, this_process
from banel_pyro.training.rollback import FAULTS

if TYPE_CHECKING:
    import optuna

__all__ = ["PAUSE", "work"]

PAUSE = 1.0
"""Seconds between looks at the study of a process that waits for the runs of others."""


def work(sweep: Sweep, out: Path, study: optuna.Study, told: Callable[[], Any] = lambda: None) -> None:
    """Take runs until none is left. While others are under way it waits: their processes may die.

    Args:
        sweep: what is to be done.
        out: the folder of the run folders.
        study: of the sweep.
        told: called after each run.

    Raises:
        KeyboardInterrupt: if the run under way was interrupted; it is saved, and back in the queue.
    """
    worker = _Worker(sweep, out, study)
    with quiet():
        while (states := count(study))["WAITING"] + states["RUNNING"]:
            if states["WAITING"]:
                try:
                    with suppress(ValueError):  # of a trial that was taken for dead: its run is done, and will be found
                        study.optimize(worker, n_trials=1, catch=(Exception,))
                except KeyboardInterrupt:
                    worker.put_back()
                    raise
            else:
                time.sleep(PAUSE)
            bury(study)
            told()


class _Worker:
    """What Optuna calls for each trial."""

    def __init__(self, sweep: Sweep, out: Path, study: optuna.Study) -> None:
        self._sweep, self._out, self._study = sweep, out, study
        self._recipe, self._optuna = sweep.recipe, import_optuna()
        self._interrupted: int | None = None

    def __call__(self, trial: optuna.Trial) -> float:
        """Train the runs of a trial; returns the mean of their scores."""
        attrs, start = trial.user_attrs, time.monotonic()
        if "seeds" not in attrs or self._is_double(trial):  # another process was faster
            raise self._optuna.TrialPruned("nothing is left to do")
        trial.set_user_attr("process", this_process())
        try:
            name, lam = self._lam(trial)
            if ANEW in attrs:
                self._clear(name, attrs["seeds"])
            scores = [self._run(name, lam, seed) for seed in attrs["seeds"]]
            if any(map(math.isnan, scores)):
                raise FloatingPointError(f"{score_of(self._sweep)}=nan: expected a number.")
        except (KeyboardInterrupt, SystemExit) as stop:
            self._interrupted = trial.number
            raise KeyboardInterrupt from stop
        except Exception as error:
            trial.set_user_attr("error", f"{type(error).__name__}: {' '.join(str(error).split())}")
            trial.set_user_attr("fault", isinstance(error, (*FAULTS, FloatingPointError)))
            raise
        trial.set_user_attr("seconds", time.monotonic() - start)
        return sum(scores) / len(scores)

    def put_back(self) -> None:
        """Put the run that was interrupted back into the queue, now that its trial has ended.

        Before that, another process that took it would find it under way, and leave it.
        """
        if self._interrupted is not None:
            again(self._study, self._study.get_trials(deepcopy=False)[self._interrupted])

    def _lam(self, trial: optuna.Trial) -> tuple[str, Lam]:
        """The λ that was asked for, or in a search the one to try next."""
        if "lam" in trial.user_attrs:
            return trial.user_attrs["name"], decoded(trial.user_attrs["lam"])
        low, high = self._sweep.lam_range or (0.0, 0.0)
        # by the trial's number: processes must not try the same, and a sweep that goes on must try what it would have
        self._study.sampler = self._optuna.samplers.TPESampler(
            seed=self._sweep.seeds[0] + trial.number, n_startup_trials=max(4, self._sweep.trials // 4)
        )
        name = f"lam={trial.suggest_float('lam', low, high):.4g}"
        trial.set_user_attr("name", name)
        return name, float(name.removeprefix("lam="))

    def _run(self, name: str, lam: Lam, seed: int) -> float:
        folder = self._out / run_name(name, seed)
        if not (folder / EXTRA).exists():  # which is the last that a run writes
            options = {"resume": True, "posterior_samples": self._sweep.draws, "progress": False}
            self._recipe.run(lam, seed, partial(self._finish, folder), out=folder, **options)
        return judge(folder, self._sweep)

    def _clear(self, name: str, seeds: Sequence[int]) -> None:
        """Take away what a fault has left of runs: they would go on from it into the same fault."""
        for seed in seeds:
            folder = self._out / run_name(name, seed)
            if folder.exists():
                shutil.rmtree(folder)

    def _finish(self, folder: Path, result: FitResult) -> None:
        write_extra(RunFolder(folder), result, self._sweep)

    def _is_double(self, trial: optuna.Trial) -> bool:
        """Whether an earlier trial is the same run, as when two machines began a sweep at the same moment."""
        mine = [trial.user_attrs.get(key) for key in ("name", "seeds")]
        trials = self._study.get_trials(deepcopy=False)
        gone = replaced(trials)
        others = [other for other in trials[: trial.number] if other.number not in gone]
        return "search" not in trial.user_attrs and any(
            other.state.name in ("RUNNING", "COMPLETE") and [other.user_attrs.get(k) for k in ("name", "seeds")] == mine
            for other in others
        )
