"""The Optuna study of a sweep: which runs wait, are under way, and have ended, for all processes and machines.

Every run is put into the queue beforehand, and taken from it by one process only. A process says every few seconds
that it is alive; a run whose process has fallen silent goes back into the queue.
"""

from __future__ import annotations

import json
import os
import socket
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from banel_pyro.sweep.extra import FILE as EXTRA
from banel_pyro.sweep.plan import Sweep, encoded, refuse_others, run_name

if TYPE_CHECKING:
    import optuna

__all__ = [
    "ANEW", "BEAT", "GRACE", "TRIES", "again", "bury", "count", "enqueue", "import_optuna", "open_study", "quiet",
    "replaced", "this_process",
]  # fmt: skip

BEAT, GRACE = 5, 60
"""Seconds between signs of life, and without one until a process of another machine is taken for dead."""

TRIES = 4
"""How often a run is begun whose process dies: one that uses up the memory would go round for ever."""

ANEW = "anew"
"""The mark of a trial whose runs start over, since what is in their folders ended with a fault."""


def import_optuna() -> Any:
    """Optuna, which is an extra.

    Raises:
        ModuleNotFoundError: naming the extra.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("a sweep needs Optuna: pip install 'banel-pyro[sweep]'.") from error
    return optuna


def open_study(sweep: Sweep, url: str, name: str, *, resume: bool) -> optuna.Study:
    """The study of a sweep, made if need be.

    Args:
        sweep: what is to be done.
        url: of the storage: any that SQLAlchemy and so Optuna take, such as ``sqlite:///runs/study.db``.
        name: of the study in it.
        resume: whether it may be there already.

    Raises:
        ModuleNotFoundError: without Optuna, or without the driver of a database.
        ValueError: for a storage that cannot be opened, a study that is there without ``resume``, or one of another
            pair, other data or other settings.
    """
    optuna = import_optuna()
    with quiet():
        storage = _storage(url)
        known = name in optuna.get_all_study_names(storage)
        if known and not resume:
            raise ValueError(
                f"the study {name!r} is there already: go on with it or join it with --resume, or choose another --out."
            )
        study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
        if "settings" in study.user_attrs:
            refuse_others(f"the study {name!r}", json.loads(study.user_attrs["settings"]), sweep.settings)
        else:
            study.set_user_attr("settings", json.dumps(sweep.settings))
    return study  # type: ignore[no-any-return]


def _storage(url: str) -> Any:
    storages = import_optuna().storages
    try:
        with warnings.catch_warnings():  # Optuna calls signs of life experimental
            warnings.simplefilter("ignore")
            storage = storages.RDBStorage(
                url, heartbeat_interval=BEAT, grace_period=GRACE, heartbeat_stale_trial_callback=_died,
                engine_kwargs={"connect_args": {"timeout": GRACE}} if url.startswith("sqlite") else {},
            )  # fmt: skip
        if storage.engine.dialect.name == "sqlite":
            _one_at_a_time(storage.engine)
        return storage
    except ImportError as error:
        raise ModuleNotFoundError(
            f"--storage: the driver of this database is missing ({error}). Install it."
        ) from error
    except Exception as error:
        raise ValueError(
            f"--storage cannot be opened ({type(error).__name__}: {str(error).splitlines()[0]}). Expected a URL such "
            "as sqlite:///runs/study.db or postgresql+psycopg://user:password@host/database."
        ) from error


def _one_at_a_time(engine: Any) -> None:
    """Let transactions of SQLite lock the database before they read.

    Optuna takes a run by reading that it waits and writing that it is under way. Python's driver begins a transaction
    with the first write only, so that two processes may read before either writes, and both take the run. This is
    SQLAlchemy's own recipe against it; see "Serializable isolation" in its documentation of SQLite.
    """
    from sqlalchemy import event

    def connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", begin)
    engine.dispose()  # connections that are open would know nothing of it


@contextmanager
def quiet() -> Iterator[None]:
    """Run a block in which Optuna logs nothing: what there is to say is said in our words."""
    logging = import_optuna().logging
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def enqueue(study: optuna.Study, sweep: Sweep, out: Path) -> None:
    """Put the runs of a sweep that neither wait, nor are under way, nor have ended into the queue.

    Those that have ended but whose files are gone are among them. Of a run that ended with a fault nothing is kept.

    Args:
        study: of the sweep.
        sweep: what is to be done.
        out: the folder of the run folders.
    """
    trials = study.get_trials(deepcopy=False)
    gone = replaced(trials)
    alive = [t for t in trials if t.state.name in ("WAITING", "RUNNING", "COMPLETE") and t.number not in gone]
    for trial in alive:
        if trial.state.name == "COMPLETE" and "seeds" in trial.user_attrs and not _has_files(trial, out):
            again(study, trial)
    if sweep.trials:
        planned = sum("search" in trial.user_attrs for trial in alive)
        for _ in range(sweep.trials - planned):
            study.enqueue_trial({}, user_attrs={"search": True, "seeds": list(sweep.seeds)})
        return
    known = {(trial.user_attrs.get("name"), *trial.user_attrs.get("seeds", [])) for trial in alive}
    faulty = {(t.user_attrs.get("name"), *t.user_attrs["seeds"]) for t in trials if t.user_attrs.get("fault")}
    for name, lam, seed in sweep.runs:
        if (name, seed) not in known:
            anew = {ANEW: True} if (name, seed) in faulty else {}
            study.enqueue_trial({}, user_attrs={"name": name, "lam": encoded(lam), "seeds": [seed], **anew})


def _has_files(trial: optuna.trial.FrozenTrial, out: Path) -> bool:
    """Whether the runs of a trial that has ended are in the folder."""
    name = trial.user_attrs["name"]
    return all((out / run_name(name, seed) / EXTRA).exists() for seed in trial.user_attrs["seeds"])


def replaced(trials: Iterable[optuna.trial.FrozenTrial]) -> set[int]:
    """Numbers of the trials in whose place another one is, which :func:`again` has made."""
    return {trial.user_attrs["after"] for trial in trials if "after" in trial.user_attrs}


def again(study: optuna.Study, trial: optuna.trial.FrozenTrial, **attrs: Any) -> None:
    """Put what a trial was to do back into the queue, at the λ that it had.

    Args:
        study: of the sweep.
        trial: the trial, which has ended. One that is under way would be in the way of the new one.
        attrs: of the new trial, beside those of the old.
    """
    optuna = import_optuna()
    kept = {name: v for name, v in trial.user_attrs.items() if name not in ("process", "seconds", ANEW)}
    study.add_trial(
        optuna.create_trial(
            state=optuna.trial.TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={**kept, **attrs, "after": trial.number},
            system_attrs=trial.system_attrs,
        )
    )


def _died(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
    """What happens to the trial of a process that has fallen silent."""
    tries = int(trial.user_attrs.get("tries", 1))
    if tries < TRIES and "seeds" in trial.user_attrs:
        again(study, trial, tries=tries + 1)


def this_process() -> list[Any]:
    """What tells this process from all others: its machine and its number."""
    return [socket.gethostname(), os.getpid()]


def bury(study: optuna.Study) -> None:
    """Put back into the queue what processes that have died were at: those of this machine at once, others by and by.

    Args:
        study: of the sweep.
    """
    optuna = import_optuna()
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        if _has_died(trial):
            try:
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            except ValueError:  # another process was faster
                continue
            _died(study, trial)
    with warnings.catch_warnings(action="ignore"):  # that signs of life are experimental
        optuna.storages.fail_stale_trials(study)


def _has_died(trial: optuna.trial.FrozenTrial) -> bool:
    """Whether the process of a trial has died on this machine, or anywhere before it gave a sign of life."""
    if "process" in trial.user_attrs:
        host, number = trial.user_attrs["process"]
        return bool(host == socket.gethostname()) and not _is_alive(number)
    begun = trial.datetime_start  # by the clock of its machine, without a time zone
    return begun is not None and (datetime.now() - begun).total_seconds() > GRACE


def _is_alive(number: int) -> bool:
    if os.name == "nt":  # where this would be Ctrl-C; signs of life tell as well
        return True
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def count(study: optuna.Study) -> Counter[str]:
    """How many planned trials there are in each state, such as ``"WAITING"``."""
    return Counter(trial.state.name for trial in study.get_trials(deepcopy=False) if "seeds" in trial.user_attrs)
