"""The options that ``banel fit`` and ``banel sweep`` share, with their help, and how they are read."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from banel_pyro.checks import integer
from banel_pyro.precision import checked_dtype, dtype_name
from banel_pyro.recipe import BATCH, SMALL
from banel_pyro.report import COMMAND
from banel_pyro.training.captured import Capture

__all__ = ["LR", "STEPS", "Alpha", "BatchSize", "CaptureText", "Debug", "Draws", "Dtype", "Epochs", "Lr", "OnFault"]
__all__ += [
    "PairPath",
    "Quiet",
    "Resume",
    "Steps",
    "TargetNats",
    "Threads",
    "capture_of",
    "remember_command",
    "training_options",
]

STEPS = 5000
"""Steps of a run that is given neither steps nor epochs: 30 seconds for the two runs of the digits."""
LR = 3e-3

PairPath = Annotated[
    str,
    typer.Argument(
        metavar="PAIR",
        help="What to train: module:function, such as models.vae:digits. The function takes no arguments and returns a "
        "fresh banel_pyro.Pair of model, guide and data. The working directory is on the path.",
    ),
]
Alpha = Annotated[
    float | None,
    typer.Option(
        help="Order α of the entropy in the penalty: 1 is Shannon's, others Rényi's. It makes no difference for "
        "normal guides.",
        show_default="1, or the pair's own",
    ),
]
TargetNats = Annotated[
    float | None,
    typer.Option(
        metavar="NATS",
        help="In place of a λ, or beside some: move λ until the posterior has this entropy, in nats per data point, "
        "over all its latents (in all, if the model has no plate over data points).",
    ),
]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps of each run.", show_default=str(STEPS))]
Epochs = Annotated[int | None, typer.Option(help="Passes through the data, in place of --steps.")]
BatchSize = Annotated[
    str | None,
    typer.Option(
        metavar="INTEGER|all", help="Rows of data per step.", show_default=f"all of up to {SMALL} rows, else {BATCH}"
    ),
]
Lr = Annotated[float, typer.Option(help="Learning rate of Adam.")]
Threads = Annotated[int, typer.Option(help="CPU threads of a process; one is best for small networks.", min=1)]
Dtype = Annotated[
    str | None,
    typer.Option(metavar="float32|float64", help="Floating-point type of each run.", show_default="float32"),
]
CaptureText = Annotated[
    str,
    typer.Option(
        metavar="auto|yes|no",
        help="Whether training steps run as one compiled graph, without Pyro: the same numbers to rounding, many times "
        "as fast for small models. auto: in long runs, where it can be done.",
    ),
]
OnFault = Annotated[
    str,
    typer.Option(
        metavar="raise|rollback",
        help="What NaN, an exploding gradient or a collapse does: end the run, or take it back to a good state, from "
        "where it goes on with half the learning rate and λ (in a sweep, which compares λ: at the same λ), three times "
        "at most.",
    ),
]
Draws = Annotated[int, typer.Option(help="Draws from each posterior for the numbers and the page.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where the runs in --out stopped.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def training_options(
    steps: int | None, epochs: int | None, lr: float, dtype: str | None, capture: str, draws: int, on_fault: str
) -> dict[str, Any]:
    """Options of :func:`~banel_pyro.fit` from those of the command line, as JSON can hold them.

    Raises:
        TypeError, ValueError: for what is out of range.
    """
    if draws < 2:
        raise ValueError(f"--draws={draws}: expected at least 2.")
    for option, count in (("--steps", steps), ("--epochs", epochs)):
        if count is not None:
            integer(option, count)
    if steps is not None and epochs is not None:
        raise ValueError(f"epochs={epochs}, steps={steps}: give exactly one of --epochs and --steps.")
    if on_fault not in ("raise", "rollback"):
        raise ValueError(f"--on-fault={on_fault!r}: expected raise or rollback.")
    if steps is None and epochs is None:
        steps = STEPS
    dtype = dtype_name(checked_dtype(dtype))
    return {
        "steps": steps, "epochs": epochs, "lr": lr, "dtype": dtype, "capture": capture_of(capture), "on_fault": on_fault
    }  # fmt: skip


def capture_of(text: str) -> Capture:
    """``--capture`` as ``fit`` has it."""
    if text not in ("auto", "yes", "no"):
        raise ValueError(f"--capture={text!r}: expected auto, yes or no.")
    return "auto" if text == "auto" else text == "yes"


def remember_command(folder: Path, shown: Callable[[str], str] = str) -> None:
    """Keep the command line for the page, once.

    Args:
        folder: of the results.
        shown: a word as it may be shown; it hides a password.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / COMMAND
    known = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    words = [shown(word) for word in sys.argv[1:] if word not in ("--resume", "--quiet", "--debug")]
    command = shlex.join(["banel", *words])
    if command not in known:
        file.write_text("\n".join([*known, command]) + "\n", encoding="utf-8")
