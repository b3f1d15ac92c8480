"""The page: one HTML file that needs nothing else, with four pictures, the numbers, and how they were made."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import pandas as pd

from banel_pyro.report import numbers
from banel_pyro.report.pictures import Picture, pictures
from banel_pyro.terms import Estimate

if TYPE_CHECKING:
    from banel_pyro.report import Comparison, Run

__all__ = ["findings", "render"]


def render(comparison: Comparison) -> str:
    """The page as HTML.

    Args:
        comparison: the runs to show.
    """
    runs = comparison.numbers
    cells = numbers.text_table(runs)
    title = f"{comparison.name}: {' and '.join(runs) if len(runs) < 3 else ', '.join(runs)}"
    sentences = findings(comparison.runs)
    if comparison.unfinished:
        sentences.append(f"Not shown, because they have not ended: {', '.join(comparison.unfinished)}.")
    body = [
        f"<h1>{escape(title)}</h1>",
        *(f'<p class="lede">{escape(sentence)}</p>' for sentence in sentences),
        _ABOUT,
        '<div class="pictures">',
        *(_figure(picture) for picture in pictures(comparison.runs)),
        "</div>",
        "<h2>The numbers</h2>",
        _table(cells, "number"),
        *(f'<p class="note">{escape(note)}</p>' for note in numbers.notes(runs)),
        _glossary([*cells.index, "nat"]),
        "<h2>How this was made</h2>",
        *([f"<pre>{escape(comparison.command)}</pre>"] if comparison.command else []),
        _table(_provenance(comparison.runs), "made"),
    ]
    data = json.dumps(numbers.to_json(runs), indent=1, allow_nan=False).replace("<", "\\u003c")
    return _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(body), data=data)


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
    nats, noise = abs(entropy.value) * scale, 2 * entropy.stderr * scale
    width = f"as wide as at {reference.label}, to within {noise:.2g} nats of entropy"
    if nats > noise:
        word, size = ("narrower", "smaller") if entropy.value < 0 else ("wider", "larger")
        width = f"{word} than at {reference.label}, by {nats:.2f} nats of entropy: {_times(nats)} {size} in volume"
    price = f"the same to within {2 * elbo.stderr:.2g} nats"
    if abs(elbo.value) > 2 * elbo.stderr:
        size = numbers.readable(Estimate(abs(elbo.value), elbo.stderr))
        price = f"{size} nats {'lower' if elbo.value < 0 else 'higher'}"
    each = " per data point" if run.numbers.num_rows else ""
    return f"At {run.label} {whose} is {width}. The ELBO is {price}{each}, on {run.numbers.rows}."


def _times(nats: float) -> str:
    """How many times e^nats is, in two digits; as a power of ten where that is long."""
    decades = nats / math.log(10)
    if decades >= 6:
        return f"10^{decades:.0f} times"
    return f"{round(math.exp(nats), 1 - math.floor(decades)):,g} times"


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.svg.encode()).decode()
    kind = "photo" if picture.photo else "chart"
    return (
        f'<figure>\n<h2>{escape(picture.title)}</h2>\n<img class="{kind}" alt="{escape(picture.alt)}" '
        f'src="data:image/svg+xml;base64,{data}">\n<figcaption>{escape(picture.caption)}</figcaption>\n</figure>'
    )


def _table(cells: pd.DataFrame, kind: str) -> str:
    """A table in a box of its own, which scrolls sideways where the screen is narrow."""
    head = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in cells.columns)
    rows = [
        f'<tr><th scope="row">{escape(name)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for name, row in zip(cells.index, cells.to_numpy(), strict=True)
    ]
    body = "\n".join(rows)
    return (
        f'<div class="scroll" tabindex="0"><table class="{kind}">\n<thead><tr><td></td>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _glossary(terms: Sequence[str]) -> str:
    """What the rows of the table are, in plain words."""
    return "<dl>\n" + "\n".join(f"<dt>{term}</dt><dd>{_GLOSSARY[term]}</dd>" for term in terms) + "\n</dl>"


def _provenance(runs: Sequence[Run]) -> pd.DataFrame:
    """What made the runs: one column where they agree, else one for each."""
    columns = {run.label: _made(run) for run in runs}
    first = next(iter(columns.values()))
    same = all(column == first for column in columns.values())
    return pd.DataFrame({"all runs" if len(runs) > 1 else runs[0].label: first} if same else columns)


def _made(run: Run) -> dict[str, str]:
    config = run.config
    rows, versions = config["num_data"], config["versions"]
    batch = "all rows at once" if config["batch_size"] is None else f"{config['batch_size']} rows"
    return {
        "data": f"{rows} rows, SHA-256 {config['data'][:16]}…" if rows else "inside the model",
        "seed": str(config["seed"]),
        "steps": f"{config['steps']}, each of {batch}" if rows else str(config["steps"]),
        "optimiser": f"{config['optim'].rpartition('.')[2]}, learning rate {config['lr']}",
        "draws": f"{run.numbers.draws}, of {run.numbers.rows}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


_ABOUT = """<p>Training minimised −ELBO + λ · entropy of the posterior. λ = 0 is ordinary variational inference,
λ &gt; 0 presses the posterior together, λ &lt; 0 spreads it out. Every number below leaves λ out, so that runs can be
compared.</p>"""

_GLOSSARY = {
    "log-likelihood": "how well draws from the posterior explain the data",
    "KL": "how far the posterior is from the prior",
    "entropy": "how spread out the posterior is",
    "ELBO": "log-likelihood − KL: a lower bound of the log evidence, and the score of a run",
    "IWAE": "a closer lower bound, which weighs the draws by importance",
    numbers.ACTIVE_UNITS: "latent dimensions whose posterior mean moves with the data (variance above 0.01)",
    "nat": "the unit of all of these, 1.44 bits",
}

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --soft: #5c5c5c; --line: #d9d9d9; --paper: #ffffff; --box: #f6f6f4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e9e9e6; --soft: #a8a8a4; --line: #3c3c3c; --paper: #191919; --box: #242424; }
  img.chart { filter: invert(0.9) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 68rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0.5rem 0 1rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; }
p, dl { max-width: 44rem; }
.lede { font-size: 1.12rem; }
.pictures { margin-top: 1.5rem; }
@media (min-width: 56rem) { .pictures { columns: 2; column-gap: 3rem; } }
figure { margin: 0; padding-bottom: 2rem; break-inside: avoid; }
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
.number td, .number thead th { white-space: nowrap; text-align: right; font-variant-numeric: tabular-nums; }
.number th { white-space: nowrap; }
tbody th { position: sticky; left: 0; background: var(--box); }
@media (max-width: 30rem) {
  .number { font-size: 0.8rem; }
  .number th, .number td { padding: 0.45rem 0.35rem; }
  .number tbody th { white-space: normal; }
}
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.15rem 1rem; font-size: 0.92rem; }
dd { margin: 0; }
pre { white-space: pre-wrap; padding: 0.8rem; border-radius: 6px; background: var(--box); font-size: 0.85rem; }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
<script type="application/json" id="numbers">
{data}
</script>
</body>
</html>
"""
