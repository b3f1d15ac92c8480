"""The progress bar: steps, ELBO, KL, entropy and λ, in a terminal or a notebook."""

from __future__ import annotations

import random
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

__all__ = ["Progress"]


class Progress:
    """A context that shows a bar on standard error, or nothing.

    Args:
        total: steps in all.
        enabled: False shows nothing.
    """

    def __init__(self, total: int, *, enabled: bool) -> None:
        self._bar = _rich_bar() if enabled else None
        self._task = None if self._bar is None else self._bar.add_task("fit", total=total, terms="")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, row: Mapping[str, float]) -> None:
        """Show a row of the history."""
        if self._bar is not None and self._task is not None:
            terms = f"ELBO {row['elbo']:.2f}  KL {row['kl']:.2f}  entropy {row['entropy']:.2f}  lam {row['lam']:.3g}"
            self._bar.update(self._task, completed=step, terms=terms)


def _rich_bar() -> RichProgress:
    state = random.getstate()  # importing rich draws from Python's generator, which may be the run's
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    random.setstate(state)
    terms = TextColumn("{task.fields[terms]}")
    columns = (TextColumn("fit"), BarColumn(), MofNCompleteColumn(), terms, TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))
