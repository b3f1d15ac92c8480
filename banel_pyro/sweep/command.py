"""``banel sweep``: λ on a grid or in a search, several seeds, several processes, and a page that says which to take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from banel_pyro.cli_options import (
    LR,
    Alpha,
    BatchSize,
    CaptureText,
    Debug,
    Draws,
    Dtype,
    Epochs,
    Lr,
    OnFault,
    PairPath,
    Quiet,
    Resume,
    Steps,
    TargetNats,
    Threads,
    remember_command,
    training_options,
)
from banel_pyro.recipe import Lam, cpu_threads, lams_of
from banel_pyro.report.console import plain_console, text_cells
from banel_pyro.run import FitResult
from banel_pyro.sweep.extra import described, score_of
from banel_pyro.sweep.plan import FILE, SCORES, Sweep, refuse_others
from banel_pyro.sweep.study import count, enqueue, import_optuna, open_study
from banel_pyro.sweep.told import Told
from banel_pyro.sweep.work import work
from banel_pyro.sweep.workers import STORAGE, run_workers

__all__ = ["GRID", "show_sweep", "sweep"]

GRID = "-0.5,-0.2,0,0.2,0.4,0.6"
"""λ of a sweep that is not told any."""

ACROSS = 5
"""λ that are printed side by side."""


def sweep(
    pair: PairPath,
    lam: Annotated[
        str | None,
        typer.Option(
            help="A grid of λ, with commas between, as for banel fit.",
            show_default=f"{GRID}; none with --trials or --target-entropy",
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of the runs at each λ, with commas between.")] = "0,1,2",
    trials: Annotated[
        int, typer.Option(help="Search in place of a grid: how many λ to try.", min=0, show_default="no search")
    ] = 0,
    lam_range: Annotated[
        str | None, typer.Option(metavar="LOW,HIGH", help="The smallest and the largest λ of a search.")
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(SCORES),
            help="What λ is chosen by: the untempered ELBO, the density of held-out rows (latents that data points "
            "share), or IWAE (models that learn). Never the penalised loss.",
            show_default="predictive where there is one, else elbo",
        ),
    ] = None,
    target_entropy: TargetNats = None,
    workers: Annotated[int, typer.Option(help="Processes that share the runs, with --threads each.", min=1)] = 1,
    storage: Annotated[
        str | None,
        typer.Option(
            envvar=STORAGE,
            help="URL of the database that holds the study, one that several machines reach if they are to share it: "
            "postgresql+psycopg://user:password@host/name. On each machine give the same command with --resume.",
            show_default="sqlite:///OUT/study.db",
        ),
    ] = None,
    study: Annotated[str | None, typer.Option(help="Name of the study in --storage.", show_default="PAIR")] = None,
    alpha: Alpha = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for a folder per run, and report.html.", show_default="runs/PAIR.sweep"),
    ] = None,
    steps: Steps = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: Lr = LR,
    threads: Threads = 1,
    dtype: Dtype = None,
    capture: CaptureText = "auto",
    on_fault: OnFault = "raise",
    draws: Draws = 500,
    resume: Resume = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a pair at many λ from several seeds, and say which λ to take and why.

    Example: banel sweep models.vae:digits --lam=-0.5,0,0.2,0.4,0.6,0.8 --workers 2 --out runs/sweep
    """
    import_optuna()
    options = training_options(steps, epochs, lr, dtype, capture, draws, on_fault)
    grid = (
        {}
        if trials
        else lams_of(GRID if (lam, target_entropy) == (None, None) else lam, target_entropy, options["steps"])
    )
    if trials and lam is not None:
        raise ValueError(f"--lam={lam}, --trials={trials}: a grid or a search, not both. Leave one out.")
    plan = Sweep(
        pair, grid, _integers("--seeds", seeds), trials, _span(lam_range), objective, target_entropy, draws, batch_size,
        alpha, options,
    )  # fmt: skip
    folder = out or Path("runs") / f"{pair.replace(':', '.')}.sweep"
    known = _known(folder, resume=resume)
    with cpu_threads(threads):
        plan = _rehearsed(plan)
        if known is not None:
            refuse_others(f"--out={folder}", known.settings, plan.settings)
            plan = plan.joined(known)
        folder.mkdir(parents=True, exist_ok=True)
        url, name = storage or f"sqlite:///{folder / 'study.db'}", study or pair
        plan.write(folder)  # first: with a study alone, the folder of a command that was killed would be no sweep's
        try:
            opened = open_study(plan, url, name, resume=resume)
        except Exception:
            if known is None:
                (folder / FILE).unlink()
            raise
        remember_command(folder, _without_password)
        enqueue(opened, plan, folder)
        told = Told(opened, plan, typer.echo if not quiet else lambda _: None)
        if workers == 1:
            work(plan, folder, opened, told)
        else:
            run_workers(folder, url, name, workers, threads, told)
        told.end()
    if left := count(opened)["WAITING"] + count(opened)["RUNNING"]:
        raise OSError(f"the processes ended before {left} runs did; what they say is above. --resume goes on.")
    if count(opened)["COMPLETE"]:
        show_sweep(folder)
    if told.failed:
        raise ValueError(_of_failures(told.failed))


def show_sweep(folder: Path) -> None:
    """Make the page of a sweep from the files of its runs, and print what it says.

    Args:
        folder: of the sweep.
    """
    from banel_pyro.report.sweep_page import write_sweep_report  # matplotlib is heavy to import

    found = write_sweep_report(folder)
    console = plain_console()
    console.print(found.name, style="bold")
    cells = found.text_table().T
    for start in range(0, cells.shape[1], ACROSS):
        console.print(text_cells(cells.iloc[:, start : start + ACROSS]))
    for line in found.notes():
        console.print(line)
    console.print(f"\n{found.recommendation}", soft_wrap=True)
    console.print(f"\nreport: {folder / 'report.html'}", soft_wrap=True)


def _known(folder: Path, *, resume: bool) -> Sweep | None:
    """The sweep that a folder holds; refused if it holds anything else, or without ``--resume``."""
    if (folder / FILE).exists():
        if not resume:
            raise ValueError(f"--out={folder} already holds a sweep: choose another folder, or go on with --resume.")
        return Sweep.read(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--out={folder} holds other files and no sweep: choose a new or an empty folder.")
    return None


def _rehearsed(plan: Sweep) -> Sweep:
    """The sweep with what is known of its pair, after one step at each λ: mistakes are found before training."""
    ends: list[Lam] = list(plan.lam_range) if plan.lam_range is not None else list(plan.lams.values())
    about: dict[str, Any] = {}

    def describe(result: FitResult) -> None:
        about.update(about or described(result))

    for value in ends:
        plan.recipe.rehearse(value, plan.seeds[0], describe)
    plan = plan.with_about(about)
    score_of(plan)
    return plan


def _of_failures(failed: list[str]) -> str:
    """What is said at the end of runs that failed.

    >>> _of_failures(["λ = 0.5, seed 0: no number."])
    '1 run failed: λ = 0.5, seed 0: no number. --resume tries it again.'
    """
    several = len(failed) > 1
    why = "; ".join(text.rstrip(".") for text in failed)
    return f"{len(failed)} run{'s' * several} failed: {why}. --resume tries {'them' if several else 'it'} again."


def _integers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(item) for item in text.split(","))
    except ValueError as error:
        raise ValueError(f"{option}={text!r}: expected integers with commas between, such as 0,1,2.") from error


def _span(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = (float(item) for item in text.split(","))
    except ValueError as error:
        raise ValueError(f"--lam-range={text!r}: expected two numbers, such as --lam-range=-1,0.8.") from error
    return low, high


def _without_password(word: str) -> str:
    """A word of the command line without the password of a URL.

    >>> _without_password("--storage=postgresql://me:secret@host/db"), _without_password("models.vae:digits")
    ('--storage=postgresql://me:***@host/db', 'models.vae:digits')
    """
    return re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:***@", word)
