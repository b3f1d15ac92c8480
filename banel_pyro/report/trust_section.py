"""The part of a page that answers "Can I trust this posterior?"."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import pandas as pd

from banel_pyro.diagnostics.judge import Check, Verdict
from banel_pyro.report.html import Html, table, text

if TYPE_CHECKING:
    from banel_pyro.report import Run

__all__ = ["section", "summary"]


def summary(runs: Sequence[Run]) -> str:
    """The verdict of each run in a line, as HTML.

    Args:
        runs: in the order of the page.
    """
    verdicts = ", ".join(f"{text(run.label)} {_badge(run.trust.verdict)}" for run in runs)
    return f'<p><a href="#trust">Can I trust this posterior?</a> {verdicts}</p>'


def section(runs: Sequence[Run]) -> list[str]:
    """A verdict for each run and check, with the number, where green ends, what it means and what to try.

    Args:
        runs: one column each.

    Returns:
        Parts of a page, as HTML.
    """
    found = {run.label: {check.name: check for check in run.trust.checks} for run in runs}
    names = list(dict.fromkeys(name for checks in found.values() for name in checks))
    by_name = {name: [checks[name] for checks in found.values() if name in checks] for name in names}
    columns = {"green if": {"in all": "every check is green"} | {name: c[0].limit for name, c in by_name.items()}}
    for run in runs:
        cells = {name: _cell(found[run.label][name]) for name in names if name in found[run.label]}
        columns[run.label] = {"in all": _badge(run.trust.verdict), **cells}
    return [
        '<h2 id="trust">Can I trust this posterior?</h2>',
        table(pd.DataFrame(columns).fillna(""), "verdict", "Checks, run by run"),
        "<dl>",
        *(
            f"<dt>{escape(name)}</dt><dd>{_words([c[name] for c in found.values() if name in c])}</dd>"
            for name in names
        ),
        "</dl>",
    ]


def _badge(verdict: Verdict) -> Html:
    return Html(f'<span class="badge {verdict}">{verdict}</span>')


def _cell(check: Check) -> Html:
    return Html(f"{_badge(check.verdict)} {text(check.found)}")


def _words(checks: Sequence[Check]) -> str:
    """What a check means, and what to try where it is not green; each sentence once."""
    meanings = dict.fromkeys(check.meaning for check in checks)
    advice = dict.fromkeys(check.advice for check in checks if check.advice)
    tried = f" <strong>Try:</strong> {' '.join(map(text, advice))}" if advice else ""
    return " ".join(map(text, meanings)) + tried
