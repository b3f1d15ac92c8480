"""Ctrl-C: the step that is under way ends, and what there is is kept."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["INTERRUPTED", "Interrupt"]

INTERRUPTED = "interrupted"
"""Why a run stopped that Ctrl-C ended."""


class Interrupt:
    """A context in which the first Ctrl-C only sets :attr:`asked`; a second one raises ``KeyboardInterrupt`` at once.

    It does nothing outside the main thread, where Python delivers no signals, or where Ctrl-C has a handler of the
    user's own.
    """

    def __init__(self) -> None:
        self.asked = False
        self._ours = False

    def __enter__(self) -> Interrupt:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._ask)
            self._ours = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _ask(self, number: int, frame: FrameType | None) -> Any:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
