"""The command line: ``banel fit`` and ``sweep`` train pairs, ``negative`` learns from failures, ``report`` shows it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

import banel_pyro
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
from banel_pyro.inference_data import read_netcdf
from banel_pyro.negative.command import is_negative, negative, show_negative
from banel_pyro.pair import load_pair
from banel_pyro.recipe import Recipe, cpu_threads, lams_of
from banel_pyro.report import COMMAND, Comparison, write_report
from banel_pyro.report.console import plain_console, text_cells
from banel_pyro.report.numbers import notes, text_table
from banel_pyro.sweep.command import show_sweep, sweep
from banel_pyro.sweep.plan import FILE as SWEEP
from banel_pyro.training.processes import is_first
from banel_pyro.training.rollback import FAULTS

__all__ = ["app", "main"]

EXIT_INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells and typer have it."""

app = typer.Typer(
    help="Entropy-shaped variational inference in Pyro: how spread out a posterior is, and a handle on it.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 when all went well, 2 with one line on standard error when not.

    Args:
        arguments: what follows the program's name, by default as it was called.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(given, prog_name="banel", standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except Exception as error:
        if "--debug" in given:
            raise
        _stop(f"error: {_message(error)}", 2)
    if code == EXIT_INTERRUPTED:
        _stop("stopped. The same command with --resume goes on.", EXIT_INTERRUPTED)
    sys.exit(code)


@app.callback(invoke_without_command=True)
def _banel(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"banel {banel_pyro.__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def fit(
    pair: PairPath,
    lam: Annotated[
        str | None,
        typer.Option(
            help="Entropy weights λ, one run for each, with commas between. λ = 0 is ordinary variational inference, "
            "λ > 0 narrows the posterior, λ < 0 widens it. For single latent sites: z=0.4+w=0.1.",
            show_default="0, or none with --target-entropy",
        ),
    ] = None,
    target_entropy: TargetNats = None,
    alpha: Alpha = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the results: one folder per λ, and report.html.", show_default="runs/PAIR"),
    ] = None,
    steps: Steps = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: Lr = LR,
    seed: Annotated[int, typer.Option(help="Seed of all that is drawn; every λ starts from the same weights.")] = 0,
    threads: Threads = 1,
    dtype: Dtype = None,
    capture: CaptureText = "auto",
    on_fault: OnFault = "raise",
    accelerator: Annotated[
        str | None,
        typer.Option(
            metavar="cpu|gpu|auto",
            help="What to train on. This and the next four need the extra fabric.",
            show_default="where torch puts it",
        ),
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="INTEGER|auto",
            help="Devices on each machine, with a process each; the rows of a step are shared out to them. Also under "
            "torchrun, which then starts the processes.",
            show_default="1",
        ),
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(metavar="ddp|auto", help="How processes work together.", show_default="auto")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="32-true|64-true|bf16-mixed",
            help="Floating-point type by Lightning's names; bf16-mixed computes the loss in bfloat16 where torch can.",
            show_default="that of --dtype",
        ),
    ] = None,
    num_nodes: Annotated[int | None, typer.Option(help="Machines.", show_default="1")] = None,
    draws: Draws = 500,
    resume: Resume = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a pair at each λ, then compare the posteriors in a table and on a page.

    Example: banel fit models.vae:digits --lam 0,0.4 --out runs/digits
    """
    options = training_options(steps, epochs, lr, dtype, capture, draws, on_fault) | {
        "accelerator": accelerator, "devices": _devices(devices), "strategy": strategy, "precision": precision,
        "num_nodes": num_nodes,
    }  # fmt: skip
    lams = lams_of(lam, target_entropy, options["steps"])
    recipe = Recipe(load_pair(pair), batch_size, alpha, options)
    folder = out or Path("runs") / pair.replace(":", ".")
    _check_out(folder, lams, resume=resume)
    kept: dict[str, Any] = {"resume": resume, "posterior_samples": draws, "progress": not quiet and sys.stderr.isatty()}
    with cpu_threads(threads):
        for value in lams.values():  # a mistake in the last λ is found before the first is trained
            recipe.rehearse(value, seed)
        if is_first():
            remember_command(folder)
        for name, value in lams.items():
            try:
                recipe.run(value, seed, out=folder / name, **kept)
            except Exception as error:
                if told := _so_far(folder, name):
                    error.add_note(told)
                raise
    if is_first():
        _show(write_report(folder), folder)


app.command()(sweep)
app.command()(negative)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The --out of fit, sweep or negative, or one run.")],
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draws that are taken for the truth, such as those of NUTS: a netCDF file of ArviZ's with the same "
            "latents. The page then says what the posteriors cover of them.",
        ),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Make report.html again from the files of the runs, and print its table."""
    if not folder.is_dir():
        raise ValueError(f"'{folder}' is no folder: give the --out of banel fit, sweep or negative, or one run in it.")
    # a link that the user names, as tools for large files make them, is followed; one in a run folder is not
    if reference is not None and not reference.exists():
        raise ValueError(f"--reference={reference}: there is no such file. Give a netCDF file of draws.")
    draws = None if reference is None else read_netcdf(os.path.realpath(reference))
    if (folder / SWEEP).exists():
        if reference is not None:
            raise ValueError(f"--reference={reference}: not for a sweep. Give one of its runs, a folder in '{folder}'.")
        show_sweep(folder)
        return
    if is_negative(folder):
        if reference is not None:
            raise ValueError(f"--reference={reference}: not for learning from failures, which has no posterior draws.")
        show_negative(folder)
        return
    _show(write_report(folder, reference=draws), folder)


def _devices(text: str | None) -> int | str | None:
    if text is None or text == "auto":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"--devices={text!r}: expected a number of devices, or auto.") from error


def _check_out(folder: Path, lams: Mapping[str, Any], *, resume: bool) -> None:
    """Refuse a folder that holds something else, before anything is trained."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"--out={folder} is a file: choose a new folder.")
    if (folder / "config.json").exists():
        raise ValueError(f"--out={folder} is itself a run: choose a new folder, or the one around it.")
    if (folder / SWEEP).exists():
        raise ValueError(f"--out={folder} holds a sweep: choose a new folder, or go on with banel sweep --resume.")
    if is_negative(folder):
        raise ValueError(f"--out={folder} holds runs of banel negative: choose a new folder.")
    if any(folder.iterdir()) and not any(folder.glob("*/config.json")) and not (folder / COMMAND).exists():
        raise ValueError(f"--out={folder} holds other files and no runs of banel fit: choose a new or an empty folder.")
    begun = [name for name in lams if (folder / name / "config.json").exists()]
    if begun and not resume:
        held = ", ".join(begun)
        raise ValueError(f"--out={folder} already holds {held}: choose another folder, or go on with --resume.")


def _so_far(folder: Path, name: str) -> str:
    """Where the results are when a run stops."""
    ended = sorted(file.parent.name for file in folder.glob("*/posterior.nc"))
    if ended:
        return f"Results so far are in {folder}: {', '.join(ended)} ended, `banel report {folder}` shows them."
    return f"Results so far are in {folder / name}." if (folder / name / "state.pt").exists() else ""


def _show(comparison: Comparison, folder: Path) -> None:
    """Print the table of a report and where its page is."""
    console = plain_console()
    console.print(comparison.name, style="bold")
    cells, count = text_table(comparison.numbers), len(comparison.runs)
    parts = [cells] if count < 3 else [cells.iloc[:, :count], cells.iloc[:, count:]]
    for part in parts:
        console.print(text_cells(part))
    for note in notes(comparison.numbers):
        console.print(note)
    console.print(f"Can it be trusted? {', '.join(f'{run.label}: {run.trust.verdict}' for run in comparison.runs)}.")
    if comparison.unfinished:
        console.print(f"Not shown, because they have not ended: {', '.join(comparison.unfinished)}.")
    console.print(f"\nreport: {folder / 'report.html'}", soft_wrap=True)


def _message(error: BaseException) -> str:
    """An error in one line."""
    shown = error.format_message() if hasattr(error, "format_message") else str(error)  # the former: wrong usage
    expected = (ValueError, TypeError, OSError, *FAULTS)
    if not hasattr(error, "format_message") and not isinstance(error, expected):
        shown = f"{type(error).__name__}: {shown} (--debug shows where)"
    shown = shown.partition("Trace Shapes:")[0]  # which Pyro adds
    return " ".join([*shown.split(), *(" ".join(note.split()) for note in getattr(error, "__notes__", []))])


def _stop(line: str, code: int) -> NoReturn:
    typer.echo(line, err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
