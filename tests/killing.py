"""What the tests of SIGKILL share: a script of forks, each of which is killed, and what it says at its end."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def in_fork(work: Callable[[], None]) -> int:
    """The id of a new process that does something and ends."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    os._exit(code)


def lines(log: Path) -> int:
    """Lines of a file that may not be there yet."""
    return log.read_bytes().count(b"\n") if log.exists() else 0


def run_script(module: str, *arguments: str) -> Any:
    """What a script of this folder prints in its last line, as JSON."""
    command = [sys.executable, "-m", f"tests.{module}", *arguments]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
