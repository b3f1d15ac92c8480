"""The command line: ``banel fit`` trains a pair at several λ, ``banel report`` makes their page again."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import pandas as pd
import pyro
import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table

import banel_pyro
from banel_pyro.batches import as_rows
from banel_pyro.checks import integer
from banel_pyro.entropy.renyi import check_order
from banel_pyro.objectives import BaNEL_ELBO, Objective
from banel_pyro.objectives.banel import EntropyWeighted
from banel_pyro.pair import Pair, load_pair
from banel_pyro.precision import checked_dtype
from banel_pyro.report import COMMAND, Comparison, write_report
from banel_pyro.report.numbers import notes, text_table
from banel_pyro.seeding import fork_rng
from banel_pyro.training.captured import Capture
from banel_pyro.training.interrupt import INTERRUPTED
from banel_pyro.training.processes import is_first

__all__ = ["app", "main"]

STEPS = 5000
"""Steps of a run that is given neither steps nor epochs: 30 seconds for the two runs of the digits."""
LR = 3e-3
BATCH, SMALL = 128, 512
"""Rows per step of data with more than ``SMALL`` rows; smaller data are taken whole."""

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
    pair: Annotated[
        str,
        typer.Argument(
            metavar="PAIR",
            help="What to train: module:function, such as models.vae:digits. The function takes no arguments and "
            "returns a fresh banel_pyro.Pair of model, guide and data. The working directory is on the path.",
        ),
    ],
    lam: Annotated[
        str,
        typer.Option(
            help="Entropy weights λ, one run for each, with commas between. λ = 0 is ordinary variational inference, "
            "λ > 0 narrows the posterior, λ < 0 widens it. For single latent sites: z=0.4+w=0.1."
        ),
    ] = "0",
    alpha: Annotated[
        float | None,
        typer.Option(
            help="Order α of the entropy in the penalty: 1 is Shannon's, others Rényi's. It makes no difference for "
            "normal guides.",
            show_default="1, or the pair's own",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the results: one folder per λ, and report.html.", show_default="runs/PAIR"),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of each run.", show_default=str(STEPS))] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes through the data, in place of --steps.")] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            metavar="INTEGER|all",
            help="Rows of data per step.",
            show_default=f"all of up to {SMALL} rows, else {BATCH}",
        ),
    ] = None,
    lr: Annotated[float, typer.Option(help="Learning rate of Adam.")] = LR,
    seed: Annotated[int, typer.Option(help="Seed of all that is drawn; every λ starts from the same weights.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads; one is best for small networks.", min=1)] = 1,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="float32|float64", help="Floating-point type of each run.", show_default="float32"),
    ] = None,
    capture: Annotated[
        str,
        typer.Option(
            metavar="auto|yes|no",
            help="Whether training steps run as one compiled graph, without Pyro: the same numbers to rounding, many "
            "times as fast for small models. auto: in long runs, where it can be done.",
        ),
    ] = "auto",
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
    draws: Annotated[int, typer.Option(help="Draws from each posterior for the numbers and the page.")] = 500,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the runs in --out stopped.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress bar.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train a pair at each λ, then compare the posteriors in a table and on a page.

    Example: banel fit models.vae:digits --lam 0,0.4 --out runs/digits
    """
    lams = _parse_lams(lam)
    make = load_pair(pair)
    if draws < 2:
        raise ValueError(f"--draws={draws}: expected at least 2.")
    for option, count in (("--steps", steps), ("--epochs", epochs)):
        if count is not None:
            integer(option, count)
    if steps is None and epochs is None:
        steps = STEPS
    if steps is not None and epochs is not None:
        raise ValueError(f"epochs={epochs}, steps={steps}: give exactly one of --epochs and --steps.")
    folder = out or Path("runs") / pair.replace(":", ".")
    _check_out(folder, lams, resume=resume)
    options = {
        "steps": steps, "epochs": epochs, "lr": lr, "dtype": checked_dtype(dtype), "capture": _capture(capture),
        "accelerator": accelerator, "devices": _devices(devices), "strategy": strategy, "precision": precision,
        "num_nodes": num_nodes,
    }  # fmt: skip
    plan = _Plan(make, batch_size, seed, alpha, options)
    kept = {"resume": resume, "posterior_samples": draws, "progress": not quiet and sys.stderr.isatty()}
    with _threads(threads):
        for value in lams.values():  # a mistake in the last λ is found before the first is trained
            plan.rehearse(value)
        if is_first():
            _remember_command(folder)
        for name, value in lams.items():
            try:
                plan.run(value, out=folder / name, **kept)
            except Exception as error:
                if told := _so_far(folder, name):
                    error.add_note(told)
                raise
    if is_first():
        _show(write_report(folder), folder)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The --out of banel fit, or one run in it.")],
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Make report.html again from the files of the runs, and print its table."""
    if not folder.is_dir():
        raise ValueError(f"'{folder}' is no folder: give the --out of banel fit, or one run in it.")
    _show(write_report(folder), folder)


@dataclass(frozen=True)
class _Plan:
    """How each run is made: only λ and the folder differ between runs."""

    make: Callable[[], Pair]
    batch_size: str | None
    seed: int
    alpha: float | None
    options: Mapping[str, Any]

    def run(self, lam: float | dict[str, float], **options: Any) -> None:
        """Train a fresh pair with the first weights that the seed gives, alone with its parameters."""
        with pyro.get_param_store().scope(), fork_rng(self.seed):
            pair = self.make()
            split = pair.split()
            rows = as_rows(split.train)
            pair = replace(pair, data=lambda: split, objective=_of_order(self.alpha, pair.objective))
            batch_size = _batch_size(self.batch_size, len(rows[0]) if rows else 0)
            result = pair.fit(**{**self.options, "lam": lam, "batch_size": batch_size, "seed": self.seed, **options})
        if result.stopped == INTERRUPTED:
            raise KeyboardInterrupt

    def rehearse(self, lam: float | dict[str, float]) -> None:
        """One step, which goes through all checks and leaves nothing behind."""
        self.run(lam, steps=1, epochs=None, progress=False, capture=False)


def _of_order(alpha: float | None, objective: Objective | None) -> Objective | None:
    """The pair's own objective with another order of the entropy."""
    if alpha is None:
        return objective
    changed = BaNEL_ELBO() if objective is None else copy(objective)
    if not isinstance(changed, EntropyWeighted):
        raise ValueError(f"--alpha={alpha:g}: the pair's own {type(changed).__name__} has no order. Leave --alpha out.")
    changed.alpha = check_order(alpha)
    return changed


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _parse_lams(text: str) -> dict[str, float | dict[str, float]]:
    """λ of each run by the name of its folder."""
    found: dict[str, float | dict[str, float]] = {}
    for item in text.split(","):
        try:
            parts = [part.partition("=") for part in item.split("+")] if "=" in item else []
            value = {site.strip(): float(number) for site, _, number in parts} if parts else float(item)
        except ValueError as error:
            raise ValueError(
                f"--lam={text!r}: cannot read {item!r}. Expected numbers with commas between, such as 0,0.4, or for "
                "single sites z=0.4+w=0.1."
            ) from error
        shown = "+".join(f"{s}={v:g}" for s, v in value.items()) if isinstance(value, dict) else f"{value:g}"
        if f"lam={shown}" in found:
            raise ValueError(f"--lam={text!r}: {shown} is there twice. Give each λ once.")
        found[f"lam={shown}"] = value
    return found


def _batch_size(text: str | None, size: int) -> int | None:
    if text is None:
        return BATCH if size > SMALL else None
    if text == "all":
        return None
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"--batch-size={text!r}: expected a number of rows, or all.") from error


def _capture(text: str) -> Capture:
    if text not in ("auto", "yes", "no"):
        raise ValueError(f"--capture={text!r}: expected auto, yes or no.")
    return "auto" if text == "auto" else text == "yes"


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
    if any(folder.iterdir()) and not any(folder.glob("*/config.json")) and not (folder / COMMAND).exists():
        raise ValueError(f"--out={folder} holds other files and no runs of banel fit: choose a new or an empty folder.")
    begun = [name for name in lams if (folder / name / "config.json").exists()]
    if begun and not resume:
        held = ", ".join(begun)
        raise ValueError(f"--out={folder} already holds {held}: choose another folder, or go on with --resume.")


def _remember_command(folder: Path) -> None:
    """Keep the command line for the page, once."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / COMMAND
    known = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    command = shlex.join(["banel", *(word for word in sys.argv[1:] if word not in ("--resume", "--quiet", "--debug"))])
    if command not in known:
        file.write_text("\n".join([*known, command]) + "\n", encoding="utf-8")


def _so_far(folder: Path, name: str) -> str:
    """Where the results are when a run stops."""
    ended = sorted(file.parent.name for file in folder.glob("*/posterior.nc"))
    if ended:
        return f"Results so far are in {folder}: {', '.join(ended)} ended, `banel report {folder}` shows them."
    return f"Results so far are in {folder / name}." if (folder / name / "state.pt").exists() else ""


def _show(comparison: Comparison, folder: Path) -> None:
    """Print the table of a report and where its page is."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 120
    console.print(comparison.name, style="bold")
    cells, count = text_table(comparison.numbers), len(comparison.runs)
    parts = [cells] if count < 3 else [cells.iloc[:, :count], cells.iloc[:, count:]]
    for part in parts:
        console.print(_table(part))
    for note in notes(comparison.numbers):
        console.print(note)
    if comparison.unfinished:
        console.print(f"Not shown, because they have not ended: {', '.join(comparison.unfinished)}.")
    console.print(f"\nreport: {folder / 'report.html'}", soft_wrap=True)


def _table(cells: pd.DataFrame) -> Table:
    table = Table("", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in cells.columns:
        table.add_column(str(name), justify="right")
    for name, row in zip(cells.index, cells.to_numpy(), strict=True):
        table.add_row(str(name), *row)
    return table


def _message(error: BaseException) -> str:
    """An error in one line."""
    shown = error.format_message() if hasattr(error, "format_message") else str(error)  # the former: wrong usage
    expected = (ValueError, TypeError, OSError, banel_pyro.NonFiniteError, banel_pyro.CollapseError)
    if not hasattr(error, "format_message") and not isinstance(error, expected):
        shown = f"{type(error).__name__}: {shown} (--debug shows where)"
    shown = shown.partition("Trace Shapes:")[0]  # which Pyro adds
    return " ".join([*shown.split(), *(" ".join(note.split()) for note in getattr(error, "__notes__", []))])


def _stop(line: str, code: int) -> NoReturn:
    typer.echo(line, err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
