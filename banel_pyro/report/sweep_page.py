"""The page of a sweep: which λ to take and why, the pictures, the numbers, and every run."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from banel_pyro.report import html, page
from banel_pyro.report.numbers import readable
from banel_pyro.report.recommend import Recommendation
from banel_pyro.report.sweep_numbers import SweepReport, read_sweep
from banel_pyro.report.sweep_plots import sweep_pictures
from banel_pyro.run import RunFolder
from banel_pyro.sweep.plan import run_name

__all__ = ["render_sweep", "write_sweep_report"]


def write_sweep_report(folder: Path) -> SweepReport:
    """Write ``report.html`` into the folder of a sweep, from the files of its runs alone.

    Args:
        folder: of the sweep.

    Returns:
        What the page shows.

    Raises:
        ValueError: if the folder holds no sweep, or no run of it has ended.
    """
    report = read_sweep(folder)
    RunFolder(folder).write_report(render_sweep(report))
    return report


def render_sweep(report: SweepReport) -> str:
    """The page as HTML.

    Args:
        report: what the sweep found.
    """
    title = f"{report.name}: which λ?"
    unfinished = f"Not shown, because they have not ended: {', '.join(report.unfinished)}."
    body = [
        f"<h1>{html.text(title).replace('_', '_<wbr>')}</h1>",
        _lede(report.recommendation),
        *([f"<p>{html.text(unfinished)}</p>"] if report.unfinished else []),
        page.ABOUT,
        '<div class="pictures">',
        *(page.figure(picture) for picture in sweep_pictures(report)),
        "</div>",
        "<h2>The numbers</h2>",
        html.table(report.text_table(), "number", "The numbers, λ by λ"),
        *(f'<p class="note">{html.text(note)}</p>' for note in report.notes()),
        *_failed(report),
        "<h2>Every run</h2>",
        _runs(report),
        "<h2>How this was made</h2>",
        *([html.box("pre", escape(report.command), "Command line")] if report.command else []),
        html.table(_made(report), "made", "Settings and versions"),
    ]
    return html.page(title, body, report.to_json())


def _lede(found: Recommendation) -> str:
    head = f"Take {found.label}." if found.label else "No λ is recommended."
    rest = " ".join([found.reason, *found.cautions])
    return f'<p class="lede"><strong>{html.text(head)}</strong> {html.text(rest)}</p>'


def _failed(report: SweepReport) -> list[str]:
    """What the checks have against each λ."""
    items = [f"<li>{html.text(f'{g.label}: {what}')}</li>" for g in report.groups for what in g.failed]
    return ["<p>What checks have against some:</p>", "<ul>", *items, "</ul>"] if items else []


def _runs(report: SweepReport) -> str:
    """A table with a link to the page of each run."""
    rows = []
    for group in report.groups:
        for seed, run in group.numbers.items():
            name = run_name(group.name, seed)
            link = f'<a href="{escape(quote(name))}/report.html">{html.text(f"{group.label}, seed {seed}")}</a>'
            seconds = group.seconds.get(seed, math.nan)
            cells = [readable(run.values["elbo"]), readable(run.values["entropy"]), f"{seconds:.0f} s"]
            rows.append(
                f'<tr><th scope="row">{link}</th>{"".join(f"<td>{html.text(cell)}</td>" for cell in cells)}</tr>'
            )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("ELBO", "entropy", "training"))
    inside = f"<thead><tr><td></td>{head}</tr></thead>\n<tbody>\n{chr(10).join(rows)}\n</tbody>"
    return html.box("div", f'<table class="number">\n{inside}</table>', "Every run")


def _made(report: SweepReport) -> pd.DataFrame:
    """What made the runs: settings that all of them share."""
    config, first = next(iter(report.configs.values())), next(iter(report.reference.numbers.values()))
    made = page.made(config, f"{first.draws}, of {first.rows}")
    made["seed"] = ", ".join(map(str, report.sweep.seeds))
    made["λ"] = ", ".join(group.label.removeprefix("λ = ") for group in report.groups)
    made["chosen by"] = "an entropy target" if report.sweep.target is not None else report.terms[report.score]
    return pd.DataFrame({"all runs": made})
