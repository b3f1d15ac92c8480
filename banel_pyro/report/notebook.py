"""A run in a notebook's cell: what it was, where its terms ended, and their picture. Plain HTML, no widgets."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from banel_pyro.report import lam_label
from banel_pyro.report.numbers import TERMS
from banel_pyro.report.pictures import training_picture

if TYPE_CHECKING:
    from banel_pyro.run import FitResult

__all__ = ["result_html"]

_SHOWN = {name: TERMS[name] for name in ("log_likelihood", "kl", "entropy", "elbo")} | {"val_elbo": "ELBO, held-out"}


def result_html(result: FitResult) -> str:
    """A run as HTML that needs nothing else.

    Args:
        result: the run.
    """
    config, history = result.config, result.history
    done = int(history["step"].iloc[-1]) if len(history) else 0
    name = f"{config['name']}, " if config["name"] else ""
    facts = [f"{name}{lam_label(config['lam'])}: {done} of {config['steps']} steps, seed {config['seed']}"]
    facts += [f"stopped: {result.stopped}"] if result.stopped else []
    parts = [f"<p><b>FitResult</b> {escape('; '.join(facts))}</p>"]
    if not len(history):
        return f"{parts[0]}<p>It ended before its first log point.</p>"
    unit = "nats per data point" if config["per"] == "datum" else "nats in all"
    last = {column: history[column].dropna().iloc[-1] for column in _SHOWN if column in history}
    picture = training_picture({"": history}, config["per"])
    data = base64.b64encode(picture.svg.encode()).decode()
    return "\n".join(
        [
            *parts,
            _table(last, unit),
            f'<img alt="{escape(picture.alt)}" src="data:image/svg+xml;base64,{data}" '
            'style="max-width: 30em; width: 100%; background: white">',
        ]
    )


def _table(last: Mapping[str, Any], unit: str) -> str:
    rows = "".join(
        f'<tr><th scope="row" style="text-align: left">{_SHOWN[name]}</th><td>{_number(value)}</td></tr>'
        for name, value in last.items()
    )
    return f"<table><caption>At the last log point, in {unit}</caption><tbody>{rows}</tbody></table>"


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "−") if math.isfinite(value) else str(value).replace("-", "−")
