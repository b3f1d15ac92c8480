"""``banel negative``: learn from failures by name, with several methods and seeds, and a page that compares them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from banel_pyro.checks import seed_number
from banel_pyro.cli_options import Debug, Quiet, Resume, Threads, remember_command
from banel_pyro.negative.learn import Learned, learn
from banel_pyro.negative.methods import METHODS, with_method
from banel_pyro.negative.options import CONFIG, read_config
from banel_pyro.negative.oracle import Oracle
from banel_pyro.negative.posterior import AcceptanceError
from banel_pyro.negative.task import Task
from banel_pyro.negative.task_options import BUDGET, options_of, run_config
from banel_pyro.pair import Kind, load_factory
from banel_pyro.reading import read_json, read_text
from banel_pyro.recipe import cpu_threads
from banel_pyro.report import COMMAND
from banel_pyro.report.console import plain_console, text_cells

__all__ = ["is_negative", "negative", "show_negative"]

TASK = Kind(Task, "task", "negative.Task(name, generator, reward)", "models.addition:attack")

OWN = "the task's own"


def negative(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK",
            help="What to learn: module:function, such as models.addition:attack. The function takes no arguments and "
            "returns a banel_pyro.negative.Task. The working directory is on the path.",
        ),
    ],
    budget: Annotated[
        int | None,
        typer.Option(help="Reward evaluations (NRE) of each run, retries too.", show_default=f"{BUDGET}, or {OWN}"),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(help="Rounds among which they are shared out.", show_default=f"10, or {OWN}"),
    ] = None,
    factor: Annotated[
        float | None,
        typer.Option(
            help="Filter factor f: a round rejects the fraction 1 − 1/f of the proposals.",
            show_default=f"4, or {OWN}",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="Passes of the failure model through the failures of a round.", show_default=OWN),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of the runs of each method, with commas between.")] = "0",
    methods: Annotated[
        str,
        typer.Option(
            metavar="|".join(METHODS),
            help="Methods to compare, with commas between. random-filter rejects as many candidates at random, random "
            "only asks.",
        ),
    ] = "banel",
    known: Annotated[
        str | None,
        typer.Option(
            metavar="free|ask",
            help="Whether candidates that were asked before are answered from the ledger at no cost, or asked anew.",
            show_default="free",
        ),
    ] = None,
    use_successes: Annotated[
        bool, typer.Option("--use-successes", help="Train on successes too, which the paper does not.")
    ] = False,
    held_out: Annotated[
        float | None,
        typer.Option(
            metavar="FRACTION",
            help="Failures of a round that the failure model does not see, for a signal that needs no success.",
            show_default="none",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Threads that ask the oracle; 1 asks in this process.", min=1, show_default="1"),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="When a call is given up.", show_default="never")
    ] = None,
    idempotent: Annotated[
        bool,
        typer.Option("--idempotent", help="Asking twice does no harm: ask again what may have been asked."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for one per method and seed, and report.html.", show_default="runs/TASK.negative"),
    ] = None,
    threads: Threads = 1,
    resume: Resume = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Steer a generator away from what has failed, within a budget of reward evaluations.

    Example: banel negative models.addition:attack --methods banel,random-filter --seeds 0,1,2 --out runs/attack
    """
    folder = out or Path("runs") / f"{task.replace(':', '.')}.negative"
    runs = [(method, seed) for method in _methods(methods) for seed in _seeds(seeds)]
    given = {
        "budget": budget,
        "rounds": rounds,
        "factor": factor,
        "known": known,
        "use_successes": use_successes or None,
    }
    with cpu_threads(threads):
        made = load_factory(task, TASK)()
        if resume and budget is None:
            given["budget"] = _known_budget(folder, runs)
        options = options_of(made, given, epochs, held_out)
        asked = {"timeout": timeout, "idempotent": idempotent or None}
        how = {**made.oracle, **{name: value for name, value in asked.items() if value is not None}}
        with _executor(how, workers):
            oracle = Oracle(made.reward, **how)
            _check_out(folder, {m: run_config(made, options, m) for m, _ in runs}, resume=resume)
            remember_command(folder)
            failed = []
            for done, (method, seed) in enumerate(runs, 1):
                try:
                    learned = _learn(made, oracle, options, method, seed, folder, quiet=quiet)
                except AcceptanceError as error:  # of this run: the others are not to wait for it
                    failed.append(f"{method}, seed {seed}: {error}")
                    continue
                if not quiet:
                    typer.echo(f"{method}, seed {seed}: {_told(learned)}; {done} of {len(runs)} ended")
    show_negative(folder)
    if failed:
        raise ValueError(f"{len(failed)} of {len(runs)} runs ended early: {'; '.join(failed)}")


def is_negative(folder: Path) -> bool:
    """Whether a folder is a run of ``learn``, or holds those of ``banel negative``."""
    return (folder / CONFIG).exists() or any(folder.glob(f"*/seed-*/{CONFIG}"))


def show_negative(folder: Path) -> None:
    """Make the page of some runs from their files, and print its table.

    Args:
        folder: the ``--out`` of ``banel negative``, or one run.
    """
    from banel_pyro.report.negative_page import write_negative_report  # matplotlib is heavy to import
    from banel_pyro.report.negative_words import findings, notes

    found = write_negative_report(folder)
    console = plain_console()
    console.print(found.name, style="bold")
    console.print(text_cells(found.text_table()))
    for line in [*findings(found), *notes(found)]:
        console.print(line)
    console.print(f"\nreport: {folder / 'report.html'}", soft_wrap=True)


def _known_budget(folder: Path, runs: list[tuple[str, int]]) -> int | None:
    """The budget that the runs were begun with: it is only raised by who says so.

    Raises:
        ValueError: if they have different ones.
    """
    paths = [folder / method / f"seed-{seed}" for method, seed in runs]
    found = {read_config(path)["budget"] for path in paths if (path / CONFIG).exists()}
    if len(found) > 1:
        raise ValueError(f"the runs in '{folder}' have budgets {sorted(found)}: say which one with --budget.")
    return found.pop() if found else None


# ---- options -------------------------------------------------------------------------------------


def _methods(text: str) -> list[str]:
    found = [name.strip() for name in text.split(",")]
    for name in found:
        if name not in METHODS:
            raise ValueError(f"--methods={text!r}: {name!r} is none; expected some of {', '.join(METHODS)}.")
    if len(set(found)) < len(found):
        raise ValueError(f"--methods={text!r}: expected each method once.")
    return found


def _seeds(text: str) -> list[int]:
    try:
        found = [seed_number(int(item)) for item in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--seeds={text!r}: expected integers of 0 or more with commas, such as 0,1,2.") from error
    if len(set(found)) < len(found):
        raise ValueError(f"--seeds={text!r}: expected each seed once.")
    return found


@contextmanager
def _executor(how: dict[str, Any], workers: int | None) -> Iterator[None]:
    """Add threads to the options of an oracle, where they are asked for or a time limit needs one."""
    if workers == 1 and how.get("timeout") is None:
        how.pop("executor", None)
    if (workers or 1) == 1 and (how.get("timeout") is None or (workers is None and how.get("executor") is not None)):
        yield
        return
    pool = how["executor"] = ThreadPoolExecutor(workers or 1, thread_name_prefix="oracle")
    try:
        yield
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a call that was given up may never end


# ---- runs ----------------------------------------------------------------------------------------


def _learn(
    task: Task, oracle: Oracle, options: Mapping[str, Any], method: str, seed: int, folder: Path, *, quiet: bool
) -> Learned:
    """One run, new or from where it stands."""
    return learn(
        task.generator, oracle, **with_method(options, method), out=folder / method / f"seed-{seed}", seed=seed,
        resume=True, success_rate=task.success_rate, show=task.texts, name=task.name,
        progress=not quiet and sys.stderr.isatty(),
    )  # fmt: skip


def _told(run: Learned) -> str:
    """What a run came to, in a line."""
    base = run.config["base_rate"].get("success_rate")
    known = [base, *run.rounds.get("success_rate", pd.Series(dtype=float)).dropna()]
    rates = "" if base is None else f"success rate {base:.3g} → {known[-1]:.3g}, "
    nre, seen = int(run.rounds["nre"].iloc[-1]), len(run.successes)
    return f"{rates}{seen} success{'' if seen == 1 else 'es'} seen in {nre:,} reward evaluations, {run.stopped}"


def _check_out(folder: Path, configs: Mapping[str, dict[str, Any]], *, resume: bool) -> None:
    """Refuse a folder that holds something else, or runs that cannot be compared, before anything is asked."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"--out={folder} is a file: choose a new folder.")
    if (folder / CONFIG).exists():
        raise ValueError(f"--out={folder} is itself a run: choose a new folder, or the one around it.")
    found = sorted(folder.glob(f"*/seed-*/{CONFIG}"))
    if not found:
        command = folder / COMMAND  # of one that was killed before its first run
        ours = command.exists() and "banel negative" in read_text(command)
        if any(file.name not in ((COMMAND, *METHODS) if ours else ()) for file in folder.iterdir()):
            raise ValueError(f"--out={folder} holds other files and no runs of banel negative: choose a new folder.")
        return
    if not resume:
        held = ", ".join(f"{file.parents[1].name}, {file.parent.name}" for file in found[:3])
        raise ValueError(
            f"--out={folder} already holds runs ({held}{', …' * (len(found) > 3)}): choose another folder, or go on "
            "with --resume."
        )
    for file in found:
        _refuse_others(file, read_json(file), configs)


def _refuse_others(file: Path, known: Mapping[str, Any], configs: Mapping[str, dict[str, Any]]) -> None:
    """Refuse to put runs beside others: the same task and options, and for the same method all of them."""
    method = file.parents[1].name
    wanted = configs.get(method, next(iter(configs.values())))
    own = () if method in configs else ("filter", "distillation", "factor", "log_tau", "held_out")
    for key, value in wanted.items():
        if key not in ("seed", "budget", "max_draws", *own) and known.get(key) != value:
            raise ValueError(
                f"'{file.parent}' holds a run with {key}={known.get(key)!r}, and {key}={value!r} was asked for: runs "
                "in one folder have the same. Choose another folder for others."
            )
