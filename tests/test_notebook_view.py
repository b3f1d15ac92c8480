"""What a notebook shows of a run: plain HTML with the terms and their picture."""

import re
from html.parser import HTMLParser

import matplotlib as mpl
import pytest

from banel_pyro import FitResult
from tests.test_callbacks import at_five, run

pytestmark = pytest.mark.usefixtures("float64")


class Tags(HTMLParser):
    """Opened and closed tags, and what has to be loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.alts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "img":
            self.sources.append(values["src"] or "")
            self.alts.append(values["alt"] or "")
        else:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(result: FitResult) -> tuple[str, Tags]:
    html = result._repr_html_()
    tags = Tags()
    tags.feed(html)
    assert not tags.open
    return html, tags


def test_it_shows_the_terms_and_their_picture() -> None:
    before = dict(mpl.rcParams)
    result = run(lam=0.3, name="three <numbers>")
    html, tags = parsed(result)
    assert "three &lt;numbers&gt;, λ = 0.3: 12 of 12 steps, seed 3" in html
    row = result.history.iloc[-1]
    for name, label in {"kl": "KL", "entropy": "entropy", "elbo": "ELBO", "val_elbo": "ELBO, held-out"}.items():
        shown = re.search(rf">{label}</th><td>(.*?)</td>", html)
        assert shown is not None
        assert float(shown[1].replace("−", "-")) == pytest.approx(row[name], abs=0.006)
    assert [source[:26] for source in tags.sources] == ["data:image/svg+xml;base64,"]
    assert f"ELBO {row['elbo']:.2f}" in tags.alts[0]
    assert dict(mpl.rcParams) == before
    assert "<script" not in html


def test_a_run_that_was_stopped_says_why() -> None:
    html, _ = parsed(run(callbacks=[at_five]))
    assert "3 of 12 steps, seed 3; stopped: at five" in html


def test_a_run_without_a_log_point_says_so() -> None:
    html, tags = parsed(run(callbacks=[at_five], log_every=6))
    assert "It ended before its first log point." in html
    assert not tags.sources
