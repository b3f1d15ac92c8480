"""The page of learning from failures: what was gained, by what, what it cost, and what was learnt to be a failure."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from banel_pyro.report import html, page
from banel_pyro.report.negative_numbers import Method, NegativeReport, read_negative
from banel_pyro.report.negative_plots import negative_pictures
from banel_pyro.report.negative_words import findings, notes
from banel_pyro.run import RunFolder

__all__ = ["render_negative", "write_negative_report"]

SHOWN = 6
"""Candidates of each kind and round that the page shows."""

LONGEST = 60
"""Letters of a candidate that it shows."""


def write_negative_report(folder: Path) -> NegativeReport:
    """Write ``report.html`` into the folder of some runs, from their files alone.

    Args:
        folder: the ``--out`` of ``banel negative``, or one run.

    Returns:
        What the page shows.

    Raises:
        ValueError: if the folder holds no such run, or no round of any has ended.
    """
    report = read_negative(folder)
    RunFolder(folder).write_report(render_negative(report))
    return report


def render_negative(report: NegativeReport) -> str:
    """The page as HTML.

    Args:
        report: what the runs came to.
    """
    title = f"{report.name}: learning from failures"
    body = [
        f"<h1>{html.text(title).replace('_', '_<wbr>')}</h1>",
        html.lede(findings(report)),
        f"<p>{html.text(_about(report))}</p>",
        '<div class="pictures">',
        *(page.figure(picture) for picture in negative_pictures(report)),
        "</div>",
        "<h2>The numbers</h2>",
        html.table(report.text_table(), "number", "The numbers, method by method"),
        *(f'<p class="note">{html.text(note)}</p>' for note in notes(report)),
        *_compared(report),
        "<h2>Every run</h2>",
        html.table(report.seed_table(), "number", "Every run"),
        *_examples(report),
        "<h2>How this was made</h2>",
        *([html.box("pre", escape(report.command), "Command line")] if report.command else []),
        html.table(pd.DataFrame({m.name: _made(m) for m in report.methods}), "made", "Options and versions"),
    ]
    return html.page(title, body, report.to_json())


def _compared(report: NegativeReport) -> list[str]:
    cells = report.comparison_table()
    name = "Methods against each other"
    return [f"<h2>{name}</h2>", html.table(cells, "number", name)] if len(cells) else []


def _about(report: NegativeReport) -> str:
    """What was done, in a paragraph."""
    config = report.runs[0].config
    return (
        "Each round proposes candidates, asks the oracle about them, learns a score from those that failed, rejects "
        "the proposals that score lowest, and trains the generator on what is left. "
        f"Candidates that were asked before were {_known(config)}. Successes were {_successes(config)}."
    )


def _examples(report: NegativeReport) -> list[str]:
    """What was learnt to be a failure: of the first method that learns, the first run."""
    for run in report.runs:
        if (run.config.get("filter") or {}).get("filter") == "RandomFilter":
            continue
        rows = {
            f"round {n}": {"rejected first": _some(low), "kept first": _some(high[::-1])}
            for n, row in enumerate(run.rows, 1)
            if (low := row.get("most_like_failures")) and (high := row.get("least_like_failures"))
        }
        if rows:
            cells = pd.DataFrame.from_dict(rows, orient="index")
            return [
                "<h2>What was learnt to be a failure</h2>",
                f"<p>Fresh draws of each round of {html.text(run.name)}: those with the lowest score, most like its "
                "failures, and those with the highest. Whether they fail was not asked.</p>",
                html.table(cells, "verdict", "What was learnt to be a failure"),
            ]
    return []


def _some(texts: list[Any]) -> html.Html:
    cut = [
        text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
        for text in [*dict.fromkeys(map(str, texts))][:SHOWN]
    ]
    return html.Html(" · ".join(f"<code>{escape(text)}</code>" for text in cut))


# ---- how it was made -----------------------------------------------------------------------------


def _made(method: Method) -> dict[str, str]:
    """What made the runs of a method."""
    run = method.runs[0]
    config = run.config
    filtered = config.get("filter") is not None
    factor = (
        f"filter factor {config['factor']:g}" if config.get("log_tau") is None else f"log τ = {config['log_tau']:g}"
    )
    if config.get("ties") == "reject":
        factor += ", ties too"
    return {
        "seeds": ", ".join(str(run.seed) for run in method.runs),
        "budget": f"{config['budget']:,} reward evaluations",
        "rounds": str(config["rounds"]),
        "filter": _filter(config["filter"]) if filtered else "none",
        "rejects": f"{factor}, from {config['candidates']:,} fresh draws" if filtered else "nothing",
        "distillation": _distillation(config.get("distillation")),
        "known candidates": _known(config),
        "successes": _successes(config),
        "held-out failures": _held_out(config.get("held_out")),
        "success rates": _measured(config.get("success")),
        "versions": ", ".join(f"{name} {version}" for name, version in config["versions"].items()),
    }


def _held_out(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "none"
    choices = {"epochs": found.get("epochs"), "filter factor": found.get("factors")}
    told = [
        f"{name} among its own, {', '.join(f'{v:g}' for v in values)}" for name, values in choices.items() if values
    ]
    return f"{100 * found['fraction']:.3g} %" + f"; chooses {' and '.join(told)}" * bool(told)


def _filter(found: Mapping[str, Any]) -> str:
    training = found.get("training")
    return (
        str(found["filter"])
        if training is None
        else f"{found['filter']}, κ = {found['kappa']:g}; {_training(training)}"
    )


def _training(found: Mapping[str, Any]) -> str:
    return f"{found['epochs']} epochs, {found['batch_size']} a step, learning rate {found['lr']:g}"


def _distillation(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "none"
    regions = "regions kept" if found["keep_regions"] else "regions absorbed"
    return f"{found['draws']:,} draws, {_training(found['training'])}, from the {found['start']} generator, {regions}"


def _measured(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "not measured"
    if found.get("success") == "exact":
        return f"exact, over {found['listed']:,} successes"
    return f"from {found['draws']:,} fresh draws" if "draws" in found else str(found.get("success"))


def _known(config: Mapping[str, Any]) -> str:
    return "asked anew, and charged" if config.get("known") == "ask" else "answered from the ledger at no cost"


def _successes(config: Mapping[str, Any]) -> str:
    return "trained on" if config.get("use_successes") else "kept and counted, and not trained on"
