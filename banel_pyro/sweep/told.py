"""What a sweep says while it runs: a line for each run that has ended, and how many remain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from banel_pyro.report import lam_label
from banel_pyro.report.numbers import TERMS
from banel_pyro.sweep.extra import score_of
from banel_pyro.sweep.plan import Sweep
from banel_pyro.sweep.study import TRIES, replaced

if TYPE_CHECKING:
    import optuna

__all__ = ["Told"]


class Told:
    """A callable that says what is new of a study.

    Args:
        study: of the sweep; what has ended before is not told.
        sweep: what is to be done.
        say: gets each line.
    """

    def __init__(self, study: optuna.Study, sweep: Sweep, say: Callable[[str], Any]) -> None:
        self._study, self._sweep, self._say = study, sweep, say
        self.failed: list[str] = []
        self._before = {trial.number for trial in self._trials() if trial.state.is_finished()}
        self._seen = set(self._before)

    def __call__(self) -> None:
        """Say what has ended since the last call."""
        trials = self._trials()
        ended = sum(trial.state.name == "COMPLETE" for trial in trials)
        remaining = sum(trial.state.name in ("WAITING", "RUNNING") for trial in trials)
        for trial in trials:
            if trial.state.is_finished() and trial.number not in self._seen:
                self._seen.add(trial.number)
                self._tell(trial, f"{ended} of {ended + remaining} ended")

    def end(self) -> None:
        """Say what has ended since the last call, and which runs are lost: nothing was put in their place.

        Only when all processes have ended, since a process buries a run first, and puts it back into the queue then.
        """
        self()
        trials = self._trials()
        gone = replaced(trials) | self._before
        for trial in trials:
            if trial.state.name == "FAIL" and "error" not in trial.user_attrs and trial.number not in gone:
                self._fail(trial, f"its process died, at try {trial.user_attrs.get('tries', 1)} of {TRIES}")

    def _fail(self, trial: Any, why: str) -> None:
        run = _run(trial.user_attrs)
        self.failed.append(f"{run}: {why}")
        self._say(f"{run}: failed, {why}")

    def _trials(self) -> list[Any]:
        return [trial for trial in self._study.get_trials(deepcopy=False) if "seeds" in trial.user_attrs]

    def _tell(self, trial: Any, count: str) -> None:
        attrs = trial.user_attrs
        if "error" in attrs:
            self._fail(trial, attrs["error"])
        elif trial.state.name == "COMPLETE":
            self._say(f"{_run(attrs)}: {self._number(trial.value)}, {attrs.get('seconds', 0.0):.0f} s; {count}")

    def _number(self, value: float) -> str:
        if self._sweep.trials and self._sweep.target is not None:
            return f"entropy off by {-value:.3f} nats"
        score = score_of(self._sweep)
        return f"{TERMS.get(score, 'held-out predictive density')} {value:.2f}".replace("-", "−")


def _run(attrs: Mapping[str, Any]) -> str:
    """The run of a trial as a reader knows it, such as ``λ = 0.4, seed 1``."""
    seeds = ", ".join(map(str, attrs["seeds"]))
    return f"{_label(attrs.get('name', '?'))}, seed{'' if len(attrs['seeds']) == 1 else 's'} {seeds}"


def _label(name: str) -> str:
    """The name of a run as a reader knows it, such as ``λ = 0.4``."""
    kind, _, value = name.partition("=")
    if kind == "lam" and "=" not in value and value:
        return lam_label({"class": "Constant", "value": float(value)})
    if kind == "lam":
        return f"λ of {value.replace('+', ', ').replace('=', ' = ')}"
    return f"λ for {kind} {value}".replace("-", "−")
