"""The page: one HTML file that needs nothing else, with four pictures, the numbers, and how they were made."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd

from banel_pyro.report import numbers
from banel_pyro.report.pictures import Picture, pictures
from banel_pyro.terms import Estimate

if TYPE_CHECKING:
    from banel_pyro.report import Comparison, Run

__all__ = ["ABOUT", "PAGE", "STYLE", "box", "figure", "findings", "made", "render", "table", "text"]


def render(comparison: Comparison) -> str:
    """The page as HTML.

    Args:
        comparison: the runs to show.
    """
    runs = comparison.numbers
    cells = numbers.text_table(runs)
    title = f"{comparison.name}: {' and '.join(runs) if len(runs) < 3 else ', '.join(runs)}"
    unfinished = f"Not shown, because they have not ended: {', '.join(comparison.unfinished)}."
    body = [
        f"<h1>{text(title).replace('_', '_<wbr>')}</h1>",  # a name may be longer than a phone is wide
        _lede(findings(comparison.runs)),
        *([f"<p>{text(unfinished)}</p>"] if comparison.unfinished else []),
        ABOUT,
        '<div class="pictures">',
        *(figure(picture) for picture in pictures(comparison.runs)),
        "</div>",
        "<h2>The numbers</h2>",
        table(cells, "number", "The numbers, run by run"),
        *(f'<p class="note">{text(note)}</p>' for note in numbers.notes(runs)),
        _glossary([*cells.index, "nat"]),
        "<h2>How this was made</h2>",
        *([box("pre", escape(comparison.command), "Command line")] if comparison.command else []),
        table(_provenance(comparison.runs), "made", "Settings and versions"),
    ]
    data = json.dumps(numbers.to_json(runs), indent=1, allow_nan=False).replace("<", "\\u003c")
    return PAGE.format(title=escape(title), style=STYLE, body="\n".join(body), data=data)


def text(shown: str) -> str:
    """Text as HTML, without line breaks inside ``λ = 0.4``, ``± 0.2`` and ``ln 2``."""
    return escape(re.sub(r" (?==)|(?<=[=±]) |(?<=ln) ", "\u00a0", shown))


def _lede(sentences: Sequence[str]) -> str:
    """What a reader should know first: a paragraph, or a list of several."""
    if len(sentences) < 2:
        return "".join(f'<p class="lede">{text(sentence)}</p>' for sentence in sentences)
    items = "\n".join(f"<li>{text(sentence)}</li>" for sentence in sentences)
    return f"<ul>\n{items}\n</ul>"


def findings(runs: Sequence[Run]) -> list[str]:
    """What λ did to the spread and what it cost: a sentence for each run but the first.

    Args:
        runs: the others are compared with the first.
    """
    return [_finding(runs[0], run) for run in runs[1:]]


def _finding(reference: Run, run: Run) -> str:
    change = numbers.difference(run.numbers, reference.numbers)
    entropy, elbo = change["entropy"], change["elbo"]
    if not math.isfinite(entropy.value):
        return f"{run.label} and {reference.label} cannot be compared in entropy: a posterior is a point."
    # of latents that data points share there is one posterior, whatever their number
    local = bool(run.numbers.per_datum)
    whose, scale = ("a data point's posterior", 1) if local else ("the posterior", run.numbers.num_rows or 1)
    nats, noise = abs(entropy.value) * scale, max(2 * entropy.stderr * scale, _NOTHING)
    width = f"as wide as at {reference.label}, to within {noise:.2g} nats of entropy"
    if nats > noise:
        word, size = ("narrower", "smaller") if entropy.value < 0 else ("wider", "larger")
        width = f"{word} than at {reference.label}, by {nats:.2f} nats of entropy: {_times(nats)} {size} in volume"
    tie = max(2 * elbo.stderr, _NOTHING / scale)
    price = f"the same to within {tie:.2g} nats"
    if abs(elbo.value) > tie:
        size = numbers.readable(Estimate(abs(elbo.value), elbo.stderr))
        price = f"{size} nats {'lower' if elbo.value < 0 else 'higher'}"
    each = " per data point" if run.numbers.num_rows else ""
    return f"At {run.label} {whose} is {width}. The ELBO is {price}{each}, on {run.numbers.rows}."


def _times(nats: float) -> str:
    """How many times e^nats is, in two digits; per cent where it is little, a power of ten where it is much."""
    decades = nats / math.log(10)
    if nats < 0.1:
        return f"{100 * math.expm1(nats):.2g} %"
    if decades >= 6:
        return f"10^{decades:.0f} times"
    return f"{round(math.exp(nats), 1 - math.floor(decades)):,g} times"


def figure(picture: Picture) -> str:
    """A picture with its title and caption."""
    data = base64.b64encode(picture.svg.encode()).decode()
    kind = "photo" if picture.photo else "chart"
    return (
        f'<figure>\n<h2>{escape(picture.title)}</h2>\n<img class="{kind}" alt="{escape(picture.alt)}" '
        f'src="data:image/svg+xml;base64,{data}">\n<figcaption>{text(picture.caption)}</figcaption>\n</figure>'
    )


def table(cells: pd.DataFrame, kind: str, name: str) -> str:
    """A table in a box of its own."""
    head = "".join(f'<th scope="col">{text(str(name))}</th>' for name in cells.columns)
    rows = [
        f'<tr><th scope="row">{text(name)}</th>' + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>"
        for name, row in zip(cells.index, cells.to_numpy(), strict=True)
    ]
    body = "\n".join(rows)
    inside = f"<thead><tr><td></td>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    return box("div", f'<table class="{kind}">\n{inside}</table>', name)


def box(tag: str, html: str, name: str) -> str:
    """A box that scrolls sideways where the screen is narrow, by keyboard too."""
    return f'<{tag} class="scroll" role="region" aria-label="{escape(name)}" tabindex="0">{html}</{tag}>'


def _glossary(terms: Sequence[str]) -> str:
    """What the rows of the table are, in plain words."""
    return "<dl>\n" + "\n".join(f"<dt>{term}</dt><dd>{text(_GLOSSARY[term])}</dd>" for term in terms) + "\n</dl>"


def _provenance(runs: Sequence[Run]) -> pd.DataFrame:
    """What made the runs: one column where they agree, else one for each."""
    columns = {run.label: made(run.config, f"{run.numbers.draws}, of {run.numbers.rows}") for run in runs}
    first = next(iter(columns.values()))
    same = all(column == first for column in columns.values())
    return pd.DataFrame({"all runs" if len(runs) > 1 else runs[0].label: first} if same else columns)


def made(config: Mapping[str, Any], draws: str) -> dict[str, str]:
    """What made a run.

    Args:
        config: of the run.
        draws: how many there are, and of what.
    """
    rows, versions = config["num_data"], config["versions"]
    batch = "all rows at once" if config["batch_size"] is None else f"{config['batch_size']} rows"
    return {
        "data": f"{rows} rows, SHA-256 {config['data'][:16]}…" if rows else "inside the model",
        "seed": str(config["seed"]),
        "steps": f"{config['steps']}, each of {batch}" if rows else str(config["steps"]),
        "optimiser": f"{config['optim'].rpartition('.')[2]}, learning rate {config['lr']}",
        "draws": draws,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


_NOTHING = 0.005
"""Nats: a difference between two posteriors below it is none to a reader, however small its standard error."""

ABOUT = """<p>Training minimised −ELBO + λ · entropy of the posterior. λ = 0 is ordinary variational inference,
λ &gt; 0 presses the posterior together, λ &lt; 0 spreads it out. Every number below leaves λ out, so that runs can be
compared.</p>"""

_GLOSSARY = {
    "log-likelihood": "how well draws from the posterior explain the data",
    "KL": "how far the posterior is from the prior",
    "entropy": "how spread out the posterior is",
    "ELBO": "log-likelihood − KL: a lower bound of the log evidence, and the score of a run",
    "IWAE": "a closer lower bound, which weighs the draws by importance",
    "bits per dimension": "the ELBO for each pixel in bits, with the sign of a cost: −ELBO ÷ (pixels · ln 2). Lower is "
    "better. Of continuous pixels it is that of a density, and depends on their scale",
    "bits per dimension, IWAE": "the same of the IWAE",
    numbers.ACTIVE_UNITS: "latent dimensions whose posterior mean moves with the data (variance above 0.01)",
    "nat": "the unit where no other is named, 1.44 bits",
}

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
