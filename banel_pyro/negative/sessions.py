"""Which process a call belongs to, and whether it still lives."""

from __future__ import annotations

import os
import socket
from pathlib import Path

__all__ = ["is_alive", "this_process"]


def this_process() -> tuple[str, int, str]:
    """What tells this process from all others, now and later: machine, number, and when it began.

    Numbers are given out again, so that the number alone may soon be that of another process.
    """
    return socket.gethostname(), os.getpid(), _began(os.getpid())


_DEAD = "dead"


def is_alive(host: str, number: int, began: str) -> bool:
    """Whether the process of a session lives.

    One of another machine does not: SQLite's write-ahead log is for processes of one machine only.

    Args:
        host: from :func:`this_process`, as are the others.
        number: of the process.
        began: when it began.
    """
    if host != socket.gethostname():
        return False
    if os.name == "nt":  # where signal 0 would be Ctrl-C
        return number == os.getpid() or _began(number) == began != ""
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):  # the number may be anything that a file says
        return False
    except PermissionError:  # of another user
        pass
    return _began(number) == began != _DEAD


def _began(number: int) -> str:
    """The boot and the clock tick at which a process began, where Linux tells; "dead" of one that has ended."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return _DEAD if fields[0] in "ZX" else f"{boot} {fields[19]}"
