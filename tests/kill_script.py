"""What tests/test_kill.py starts: runs of the digits that are killed by SIGKILL and resumed, each in a fork of this.

This process imports and trains nothing itself, so that fifty runs cost one import of torch. It ends with a line of
JSON: for each kill, what it found.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import pyro
import torch

from banel_pyro import Event, checkpoint, folder
from models import vae
from tests.killing import in_fork

STEPS, EVERY = 120, 10
OPTIONS: dict[str, Any] = {
    "steps": STEPS, "batch_size": 64, "lr": 3e-3, "lam": 0.3, "seed": 3, "log_every": 5, "checkpoint_every": EVERY,
    "validate_every": 20, "posterior_samples": 0, "progress": False,
}  # fmt: skip
PHASES = ("half of it", "not synced", "between the renames", "not listed", "no history")
"""Where a run is held while it writes a checkpoint: half of the state is written, all of it is but not brought to the
disk, the old one is renamed, the new one is too, the history comes next."""


@dataclass(frozen=True)
class Kill:
    """A moment.

    Args:
        step: of the log point that it comes after; a phase is that of the checkpoint of this step.
        wait: seconds after the log point.
        phase: where in a checkpoint, or None for anywhere.
        capture: whether steps are captured.
        again: log points after which the resumed run is killed as well.
    """

    step: int
    wait: float = 0.0
    phase: str | None = None
    capture: bool = False
    again: tuple[int, ...] = ()


def train(out: Path, *, capture: bool, callbacks: Any = ()) -> None:
    """The run, begun or gone on with."""
    torch.set_num_threads(1)
    torch.manual_seed(7)  # of the networks
    with pyro.get_param_store().scope():
        vae.digits().fit(**OPTIONS, capture=capture, out=out, resume=True, callbacks=callbacks)


def killed(out: Path, step: int, wait: float, phase: str | None, capture: bool) -> None:
    """Begin or go on with a run, and kill it."""
    reading, writing = os.pipe()

    def tell(event: Event) -> None:
        os.write(writing, f"{event.step}\n".encode())

    tell.events = ("log",)  # type: ignore[attr-defined]

    def work() -> None:
        if phase is not None:
            hold(phase, step, lambda: os.write(writing, b"held\n"))
        train(out, capture=capture, callbacks=[tell])

    process = in_fork(work)
    os.close(writing)
    with os.fdopen(reading) as said:
        wanted = "held" if phase is not None else str(step)
        if not any(line.strip() == wanted for line in said):
            raise RuntimeError(f"{out.name}: the run ended before {wanted}")
        time.sleep(wait)
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
    if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
        raise RuntimeError(f"{out.name}: the run ended before it was killed")


def hold(phase: str, step: int, tell: Callable[[], Any]) -> None:
    """Let the checkpoint of a step stop in one of its phases, and wait there to be killed."""
    save, replace, sync, to_csv = torch.save, os.replace, checkpoint._sync, folder.pd.DataFrame.to_csv
    now = {"step": -1, "renames": 0}

    def wait() -> NoReturn:
        tell()
        while True:
            time.sleep(60)

    def is_at(*phases: str) -> bool:
        return now["step"] == step and phase in phases

    def saving(state: Any, file: Any) -> None:
        now["step"], now["renames"] = state["step"], 0
        save(state, file)
        if is_at("half of it"):
            os.truncate(file, os.path.getsize(file) // 2)
            wait()

    def syncing(path: Path) -> None:
        if is_at("not synced") or (is_at("not listed") and path.is_dir()):
            wait()
        sync(path)

    def renaming(*names: Any) -> None:
        if is_at("between the renames") and now["renames"] == 1:
            wait()
        now["renames"] += 1
        replace(*names)

    def writing(self: Any, *args: Any, **options: Any) -> Any:
        if is_at("no history"):
            wait()
        return to_csv(self, *args, **options)

    torch.save, checkpoint._sync = saving, syncing  # type: ignore[assignment]
    os.replace, folder.pd.DataFrame.to_csv = renaming, writing  # type: ignore[assignment,method-assign]


def main(root: Path, kills: dict[str, Kill]) -> None:
    """Each kill in a folder of its own, and the runs without."""
    for module in ("torch._dynamo", "torch._inductor.compile_fx", "sklearn.datasets"):  # here, and not in every fork
        import_module(module)
    found: dict[str, Any] = {}
    for capture in sorted({kill.capture for kill in kills.values()}):
        name = "whole, captured" if capture else "whole"
        finish(root / name, capture)
    for name, kill in kills.items():
        out = root / name
        killed(out, kill.step, kill.wait, kill.phase, kill.capture)
        found[name] = {
            "files": sorted(file.name for file in out.iterdir()),
            "step": checkpoint.read_checkpoint(out, folder.FORMAT)["step"],
        }
        for step in kill.again:
            killed(out, step, 0.0, None, kill.capture)
        finish(out, kill.capture)
    sys.stdout.write(json.dumps(found) + "\n")


def finish(out: Path, capture: bool) -> None:
    """Run to the end."""
    _, status = os.waitpid(in_fork(lambda: train(out, capture=capture)), 0)
    if status:
        raise RuntimeError(f"{out.name}: the run failed")


def arguments(root: Path, kills: dict[str, Kill]) -> list[str]:
    """Those of this script's command line."""
    return [str(root), json.dumps({name: asdict(kill) for name, kill in kills.items()})]


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    main(Path(sys.argv[1]), {name: Kill(**{**k, "again": tuple(k["again"])}) for name, k in given.items()})
