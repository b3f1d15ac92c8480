"""What the command line prints of a report."""

from __future__ import annotations

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

__all__ = ["plain_console", "text_cells"]


def plain_console() -> Console:
    """Standard output, 120 columns wide where it is no terminal."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 120
    return console


def text_cells(cells: pd.DataFrame) -> Table:
    """A table of texts to print.

    Args:
        cells: its texts, with a name for each row and column.
    """
    table = Table("", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in cells.columns:
        table.add_column(str(name), justify="right")
    for name, row in zip(cells.index, cells.to_numpy(), strict=True):
        table.add_row(str(name), *row)
    return table
