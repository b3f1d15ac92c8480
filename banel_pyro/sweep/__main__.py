"""A process at work on a sweep, as ``banel sweep --workers`` starts it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from banel_pyro.recipe import cpu_threads
from banel_pyro.sweep.plan import Sweep
from banel_pyro.sweep.study import open_study
from banel_pyro.sweep.work import PAUSE, work
from banel_pyro.sweep.workers import STORAGE


def main(folder: str, name: str, threads: str, parent: str) -> int:
    """Work until no run is left.

    Args:
        folder: of the sweep.
        name: of the study; its storage's URL is in the environment, since it may have a password in it.
        threads: of torch.
        parent: the process that started this one, with which it ends.

    Returns:
        The exit status: 0, or 130 if it was interrupted.
    """
    threading.Thread(target=_end_with, args=[int(parent)], daemon=True).start()
    sweep = Sweep.read(Path(folder))
    study = open_study(sweep, os.environ[STORAGE], name, resume=True)
    try:
        with cpu_threads(int(threads)):
            work(sweep, Path(folder), study)
    except KeyboardInterrupt:
        return 130
    return 0


def _end_with(parent: int) -> None:
    """Ask this process to end when the one that started it has gone."""
    while os.getppid() == parent:
        time.sleep(PAUSE)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
