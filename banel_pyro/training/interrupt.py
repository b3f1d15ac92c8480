"""Ctrl-C, and the signal that ends programs: the step that is under way ends, and what there is is kept."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["INTERRUPTED", "Interrupt"]

INTERRUPTED = "interrupted"
"""Why a run stopped that a signal ended."""

_ORDINARY: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class Interrupt:
    """A context in which the first Ctrl-C, or SIGTERM, only sets :attr:`asked`; a second one ends the program at once.

    It does nothing outside the main thread, where Python delivers no signals, or where a signal has a handler of the
    user's own. After SIGTERM :attr:`exit_code` is what a program ends with that it has ended.
    """

    def __init__(self) -> None:
        self.asked = False
        self.exit_code: int | None = None
        self._ours: list[signal.Signals] = []

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._ours = [number for number, handler in _ORDINARY.items() if signal.getsignal(number) is handler]
        for number in self._ours:
            signal.signal(number, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number in self._ours:
            signal.signal(number, _ORDINARY[number])

    def _ask(self, number: int, frame: FrameType | None) -> Any:
        self.asked = True
        if number == signal.SIGTERM:
            self.exit_code = 128 + number
        for ours in self._ours:
            signal.signal(ours, _ORDINARY[ours])
