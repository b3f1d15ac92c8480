"""What all pages are made of: text, tables and boxes as HTML, the style, and a page that needs nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

__all__ = ["Html", "box", "lede", "page", "table", "text"]


class Html(str):
    """What is HTML already."""


def page(title: str, body: Sequence[str], data: Mapping[str, Any]) -> str:
    """A page as HTML, in one file.

    Args:
        title: of the page.
        body: parts, as HTML.
        data: the numbers that it shows, which go along as JSON.

    Raises:
        ValueError: for numbers that JSON does not know.
    """
    numbers = json.dumps(data, indent=1, allow_nan=False).replace("<", "\\u003c")
    return PAGE.format(title=escape(title), style=STYLE, body="\n".join(body), data=numbers)


def text(words: str) -> str:
    """Text as HTML, without line breaks inside ``λ = 0.4``, ``± 0.2`` and ``ln 2``."""
    return escape(re.sub(r" (?==)|(?<=[=±]) |(?<=ln) ", "\u00a0", words))


def lede(sentences: Sequence[str]) -> str:
    """What a reader should know first: a paragraph, or a list of several."""
    if len(sentences) < 2:
        return "".join(f'<p class="lede">{text(sentence)}</p>' for sentence in sentences)
    items = "\n".join(f"<li>{text(sentence)}</li>" for sentence in sentences)
    return f"<ul>\n{items}\n</ul>"


def table(cells: pd.DataFrame, kind: str, name: str) -> str:
    """A table in a box of its own.

    Args:
        cells: texts; those that are :class:`Html` go in as they are.
        kind: ``"number"``, ``"made"`` or ``"verdict"``, for the style.
        name: what a screen reader calls it.
    """
    head = "".join(f'<th scope="col">{text(str(name))}</th>' for name in cells.columns)
    rows = [
        f'<tr><th scope="row">{text(name)}</th>' + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>"
        for name, row in zip(cells.index, cells.to_numpy(), strict=True)
    ]
    body = "\n".join(rows)
    inside = f"<thead><tr><td></td>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    return box("div", f'<table class="{kind}">\n{inside}</table>', name)


def _cell(content: str) -> str:
    return content if isinstance(content, Html) else text(content)


def box(tag: str, html: str, name: str) -> str:
    """A box that scrolls sideways where the screen is narrow, by keyboard too."""
    return f'<{tag} class="scroll" role="region" aria-label="{escape(name)}" tabindex="0">{html}</{tag}>'


STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --soft: #5c5c5c; --line: #d9d9d9; --paper: #ffffff; --box: #f6f6f4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e9e9e6; --soft: #a8a8a4; --line: #3c3c3c; --paper: #1a1a1a; --box: #242424; }
  img.chart { filter: invert(0.9) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 68rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0.5rem 0 1rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; }
p, ul, dl { max-width: 44rem; }
ul { padding-left: 1.1rem; }
li { margin-bottom: 0.3rem; }
.lede { font-size: 1.12rem; }
.pictures { margin-top: 1.5rem; }
@media (min-width: 56rem) { .pictures { columns: 2; column-gap: 3rem; } }
figure { margin: 0; padding-bottom: 2rem; break-inside: avoid; }
figure:last-child { padding-bottom: 0; }
figure h2 { margin: 0 0 0.5rem; }
img { display: block; width: 100%; height: auto; }
img.photo { background: #ffffff; }
figcaption, .note, dd { color: var(--soft); font-size: 0.92rem; }
figcaption { margin-top: 0.4rem; }
.note { margin: 0.4rem 0; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; background: var(--box); }
table { border-collapse: collapse; font-size: 0.92rem; min-width: 100%; }
th, td { padding: 0.45rem 0.8rem; text-align: left; vertical-align: top; font-weight: normal; }
thead th { font-weight: 600; }
tbody tr { border-top: 1px solid var(--line); }
.number td, .number thead th { text-align: right; font-variant-numeric: tabular-nums; }
.number td, .number tbody th { white-space: nowrap; }
tbody th { position: sticky; left: 0; background: var(--box); }
@media (max-width: 30rem) {
  .number { font-size: 0.8rem; }
  .number th, .number td { padding: 0.45rem 0.35rem; }
  .number td, .number tbody th { white-space: normal; }
}
.verdict td { min-width: 14rem; }
.badge { font-weight: 600; white-space: nowrap; }
.badge::before { content: "●"; margin-right: 0.35rem; }
.green::before { color: #0a8f68; }
.amber::before { color: #e69f00; }
.red::before { color: #cf3a24; }
dl { font-size: 0.92rem; }
dd { margin: 0 0 0.4rem; }
@media (min-width: 30.01rem) {
  dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.15rem 1rem; }
  dd { margin: 0; }
}
pre { padding: 0.8rem; font-size: 0.85rem; }
@media print {
  .scroll { overflow: visible; }
  .number td, .number tbody th { white-space: normal; }
  pre { white-space: pre-wrap; }
}
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
<script type="application/json" id="numbers">
{data}
</script>
</body>
</html>
"""
