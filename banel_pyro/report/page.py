"""The page: one HTML file that needs nothing else, with four pictures, the numbers, and how they were made."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd

from banel_pyro.report import numbers, trust_section
from banel_pyro.report.html import box, lede, page, table, text
from banel_pyro.report.pictures import Picture, pictures
from banel_pyro.terms import Estimate

if TYPE_CHECKING:
    from banel_pyro.report import Comparison, Run

__all__ = ["ABOUT", "figure", "findings", "made", "render"]


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
        lede(findings(comparison.runs)),
        *([f"<p>{text(unfinished)}</p>"] if comparison.unfinished else []),
        trust_section.summary(comparison.runs),
        ABOUT,
        '<div class="pictures">',
        *(figure(picture) for picture in pictures(comparison.runs)),
        "</div>",
        *trust_section.section(comparison.runs),
        "<h2>The numbers</h2>",
        table(cells, "number", "The numbers, run by run"),
        *(f'<p class="note">{text(note)}</p>' for note in numbers.notes(runs)),
        _glossary([*cells.index, "nat"]),
        "<h2>How this was made</h2>",
        *([box("pre", escape(comparison.command), "Command line")] if comparison.command else []),
        table(_provenance(comparison.runs), "made", "Settings and versions"),
    ]
    verdicts = {run.label: run.trust.to_json() for run in comparison.runs}
    return page(title, body, numbers.to_json(runs) | {"trust": verdicts})


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
    """A picture with its title and caption, as HTML."""
    data = base64.b64encode(picture.svg.encode()).decode()
    kind = "photo" if picture.photo else "chart"
    return (
        f'<figure>\n<h2>{escape(picture.title)}</h2>\n<img class="{kind}" alt="{escape(picture.alt)}" '
        f'src="data:image/svg+xml;base64,{data}">\n<figcaption>{text(picture.caption)}</figcaption>\n</figure>'
    )


def _glossary(terms: Sequence[str]) -> str:
    """What the rows of the table are, in plain words."""
    return "<dl>\n" + "\n".join(f"<dt>{term}</dt><dd>{text(_GLOSSARY[term])}</dd>" for term in terms) + "\n</dl>"


def _provenance(runs: Sequence[Run]) -> pd.DataFrame:
    """What made the runs: one column where they agree, else one for each."""
    columns = {run.label: made(run.config, f"{run.numbers.draws}, of {run.numbers.rows}") for run in runs}
    for run in runs:
        if back := int(run.history["rollbacks"].max()) if "rollbacks" in run.history else 0:
            policy = run.config.get("on_fault")
            kept = isinstance(policy, Mapping) and policy.get("lam_factor") == 1
            smaller = "the learning rate was" if kept else "the learning rate and λ were"
            columns[run.label]["rollbacks"] = f"{back}, after which {smaller} smaller"
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
