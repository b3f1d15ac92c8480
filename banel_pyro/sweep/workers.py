"""Several processes on one study: started, watched, and asked to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from banel_pyro.training.interrupt import Interrupt

__all__ = ["STORAGE", "run_workers"]

STORAGE = "BANEL_STORAGE"
"""The variable of the environment that holds the URL of the storage."""

LOOK = 0.3
"""Seconds between looks at the processes."""

_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def run_workers(
    out: Path, url: str, name: str, workers: int, threads: int, told: Callable[[], Any] = lambda: None
) -> list[int]:
    """Run processes on a study until no run is left.

    Each is in a session of its own, so that Ctrl-C reaches it once: from here, as does SIGTERM. The step under way
    ends, the run is saved, and it goes back into the queue.

    Args:
        out: the folder of the sweep.
        url: of the storage.
        name: of the study.
        workers: how many processes.
        threads: of torch in each.
        told: called every now and then.

    Returns:
        The exit status of each.

    Raises:
        KeyboardInterrupt: if they were interrupted.
    """
    command = [sys.executable, "-m", "banel_pyro.sweep", str(out), name, str(threads), str(os.getpid())]
    environment = {**os.environ, STORAGE: url, **dict.fromkeys(_ONE_THREAD, str(threads))}
    with Interrupt() as interrupt:
        processes = [subprocess.Popen(command, env=environment, start_new_session=True) for _ in range(workers)]
        asked = False
        try:
            while any(process.poll() is None for process in processes):
                if interrupt.asked and not asked:
                    asked = True
                    _ask(processes)
                time.sleep(LOOK)
                told()
        finally:
            if any(process.poll() is None for process in processes):
                _ask(processes)
    if asked:
        raise KeyboardInterrupt
    return [process.returncode for process in processes]


def _ask(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
