"""Runs the code of Markdown pages, and compares what it prints with what they show."""

import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

FENCE = re.compile(r"^```(?P<language>\w+)(?P<options>[^\n]*)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"[-+−]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Block:
    """A block of code of a page.

    Args:
        page: the page's file.
        line: of the page, from 0, on which the code begins.
        source: the code.
        title: the name of the file that it is to be saved as, or "".
        shown: the block of text that follows, as what the code prints; None if there is none.
    """

    page: Path
    line: int
    source: str
    title: str = ""
    shown: str | None = None

    def run(self, scope: dict[str, Any]) -> str:
        """Run it; an error shows the page's own line. Returns what it printed."""
        if self.title:
            Path(self.title).write_text(self.source, encoding="utf-8")
        printed = StringIO()
        with redirect_stdout(printed):
            exec(compile("\n" * self.line + self.source, str(self.page), "exec"), scope)
        return printed.getvalue()


def blocks(page: Path, language: str = "python") -> Iterator[Block]:
    """The blocks of a page in one language, in order."""
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    for this, after in pairwise([*found, None]):
        if this is not None and this["language"] == language:
            follows = after is not None and after["language"] == "text" and not text[this.end() : after.start()].strip()
            shown = after["body"] if after is not None and follows else None
            title = re.search(r'title="(.*?)"', this["options"])
            yield Block(page, text[: this.start("body")].count("\n"), this["body"], title[1] if title else "", shown)


def run(page: Path) -> None:
    """Run the blocks of a page one after another, as a reader would paste them, and check what they print."""
    scope: dict[str, Any] = {"__name__": page.stem}
    for block in blocks(page):
        printed = block.run(scope)
        if block.shown is not None:
            assert_agrees(printed, block.shown)


def assert_agrees(printed: str, shown: str, *, rel: float = 0.15, abs: float = 0.05) -> None:
    """The same words, and the same numbers up to the noise of a fit on another machine."""
    assert words(printed) == words(shown)
    assert numbers(printed) == pytest.approx(numbers(shown), rel=rel, abs=abs)


def words(text: str) -> str:
    """A text without its numbers and without the layout that goes with them."""
    return " ".join(NUMBER.sub("#", text).split())


def numbers(text: str) -> list[float]:
    """The numbers in a text."""
    return [float(number.replace("−", "-")) for number in NUMBER.findall(text)]
