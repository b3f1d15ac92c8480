"""The progress bar: steps, ELBO, KL, entropy and λ, in a terminal or a notebook."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from banel_pyro.seeding import kept_rng

__all__ = ["Progress"]


class Progress:
    """A context that shows a bar, on standard error or below a notebook's cell, or nothing.

    Args:
        total: steps in all.
        enabled: False shows nothing.
        title: what is under way.
    """

    def __init__(self, total: int, *, enabled: bool, title: str = "fit") -> None:
        self._bar: _Terminal | _Notebook | None = None
        if enabled:
            with kept_rng():  # importing rich draws from Python's generator
                from rich.console import Console

                console = Console(stderr=True)
                # in a notebook rich needs ipywidgets, and warns without
                self._bar = _Notebook(total, title) if console.is_jupyter else _Terminal(total, title, console)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, row: Mapping[str, Any], captured: float = 0.0) -> None:
        """Show a row of the history, and how many seconds it took to capture the step, if it is."""
        sites = [f"{name[4:-1]}={value:.3g}" for name, value in row.items() if name.startswith("lam[")]
        lam = " ".join(sites) or f"{row['lam']:.3g}"
        terms = f"ELBO {row['elbo']:.2f}  KL {row['kl']:.2f}  entropy {row['entropy']:.2f}  lam {lam}"
        terms += f"  captured in {captured:.0f} s" if captured else ""
        self.show(step, terms)

    def show(self, done: int, text: str) -> None:
        """Show how much is done, and a text."""
        if self._bar is not None:
            self._bar.show(done, text)


class _Terminal:
    """A bar of rich on a console."""

    def __init__(self, total: int, title: str, console: Any) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        terms = TextColumn("{task.fields[terms]}")
        columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), terms, TimeRemainingColumn())
        self._bar = Bar(*columns, console=console)
        self._task = self._bar.add_task(title, total=total, terms="")
        self._bar.start()

    def show(self, step: int, terms: str) -> None:
        self._bar.update(self._task, completed=step, terms=terms)

    def stop(self) -> None:
        self._bar.stop()


class _Notebook:
    """A bar of characters in the output of a notebook's cell, which needs nothing but IPython."""

    def __init__(self, total: int, title: str) -> None:
        self.total, self.title = total, title
        display = importlib.import_module("IPython.display").display
        self._handle = display(self._text(0, ""), raw=True, display_id=True)

    def show(self, step: int, terms: str) -> None:
        self._handle.update(self._text(step, terms), raw=True)

    def stop(self) -> None:
        """The last line stays."""

    def _text(self, step: int, terms: str) -> dict[str, str]:
        done = 30 * step // self.total
        return {"text/plain": f"{self.title} {'━' * done}{' ' * (30 - done)} {step}/{self.total}  {terms}"}
