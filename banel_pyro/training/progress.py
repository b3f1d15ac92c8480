"""The progress bar: steps, ELBO, KL, entropy and λ, in a terminal or a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

__all__ = ["Progress"]


class Progress:
    """A context that shows a bar on standard error, or nothing.

    Args:
        total: steps in all.
        enabled: False shows nothing.
    """

    def __init__(self, total: int, *, enabled: bool) -> None:
        columns = (
            TextColumn("fit"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[terms]}"),
            TimeRemainingColumn(),
        )
        self._bar = RichProgress(*columns, console=Console(stderr=True), disable=not enabled)
        self._task = self._bar.add_task("fit", total=total, terms="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()

    def update(self, step: int, row: Mapping[str, float]) -> None:
        """Show a row of the history."""
        terms = f"ELBO {row['elbo']:.2f}  KL {row['kl']:.2f}  entropy {row['entropy']:.2f}  lam {row['lam']:.3g}"
        self._bar.update(self._task, completed=step, terms=terms)
