"""How figures are written: the cells of tables, and tables in Markdown."""

import statistics
from collections.abc import Sequence

MISSING = "–"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, its columns padded to be read as it is."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (head, *rows)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: Sequence[float]) -> str:
    """Median, smallest and largest."""
    median, least, most = (
        f"{v:.3g}" if abs(v) < 1 else f"{v:.2f}" if abs(v) < 10 else f"{v:.1f}"
        for v in (statistics.median(values), min(values), max(values))
    )
    return f"{median} [{least}, {most}]"
