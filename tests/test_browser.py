"""The report as a reader's browser shows it: Chromium, without a network, on a phone and on a desk, in light and dark.

What a page is checked for beyond its content is what axe-core checks: contrast, names, landmarks, and the order of
headings among them.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pyro
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, Route, sync_playwright

from banel_pyro import Pair
from banel_pyro.report import Comparison, read_comparison
from banel_pyro.report.negative_numbers import read_negative
from banel_pyro.report.negative_page import render_negative
from banel_pyro.report.page import render
from models import eight_schools, vae
from tests.negative_runs import write_run

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")

Scheme: TypeAlias = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
SMALL_PHONE, PHONE, DESK = 320, 390, 1100  # pixels wide
PICTURES = {"one run": 4, "two runs": 4, "many runs with long names": 4, "no images": 4, "learning from failures": 6}
PAGES = tuple(PICTURES)

LONG = "a_task_with_a_long_name" * 3
COMMAND = "banel fit models.vae:digits --lam 0,0.4 --out " + "far/" * 30
RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")


@dataclass
class Visit:
    """A page that a browser has loaded, with all that happened meanwhile.

    Args:
        page: the page.
        requests: addresses that it asked for, other than itself and what it holds.
        complaints: what it or the browser wrote on the console, and errors that nothing caught.
    """

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


Visitor = Callable[..., Visit]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages to look at, of small runs."""
    folder = tmp_path_factory.mktemp("pages")
    state = pyro.util.get_rng_state()
    for lam in (0.0, 0.4):
        fit(vae.digits(), lam, folder / "digits" / str(lam), batch_size=128)
    fit(eight_schools.noncentered(), 0.0, folder / "schools")
    pyro.util.set_rng_state(state)
    for seed, final in enumerate((0.02, 0.0, 0.16)):
        write_run(folder / "failures", "banel", seed, [0.001, 0.01, final], draws=1000, gains=[2.0, 1.5], name=LONG)
        write_run(folder / "failures", "random", seed, [0.001, None, None], draws=1000, name=LONG)
    failures = read_negative(folder / "failures")
    two = replace(read_comparison(folder / "digits"), command=COMMAND)
    made = {
        "one run": (folder / "digits" / "0.0" / "report.html").read_text(),
        "two runs": render(two),
        "many runs with long names": render(long_names(two)),
        "learning from failures": render_negative(replace(failures, command=COMMAND)),
        "no images": (folder / "schools" / "report.html").read_text(),
    }
    files = {name: folder / f"{name}.html" for name in PAGES}
    for name, file in files.items():
        file.write_text(made[name])
    return files


def fit(pair: Pair, lam: float, folder: Path, **options: Any) -> None:
    """A short run."""
    with pyro.get_param_store().scope():
        pyro.set_rng_seed(0)
        pair.fit(lam=lam, seed=0, out=folder, progress=False, steps=30, lr=1e-2, posterior_samples=20, **options)


def long_names(comparison: Comparison) -> Comparison:
    """Four runs, and names that are longer than a phone is wide, with spaces or without."""
    labels = ["λ = 0", *(f"λ = Linear(start=0.0, stop=0.{i}23456789, over=123456)" for i in range(2)), "λ" * 60]
    runs = [replace(comparison.runs[i % 2], label=label) for i, label in enumerate(labels)]
    return replace(comparison, name="a_pair_with_a_long_name" * 3, runs=tuple(runs), unfinished=("folder" * 12,))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, ended with the last test of this file: while it runs, its event loop is that of the process."""
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser, pages: dict[str, Path]) -> Iterator[Visitor]:
    """A function that opens a page where there is no network."""
    contexts: list[BrowserContext] = []

    def open_page(address: str, width: int = PHONE, scheme: Scheme = "light") -> Visit:
        viewport = {"width": width, "height": 844}
        context = browser.new_context(viewport=viewport, color_scheme=scheme, offline=True, service_workers="block")
        contexts.append(context)
        found = Visit(context.new_page())

        def refuse_network(route: Route) -> None:
            if route.request.url.startswith(("file:", "data:")):
                route.continue_()
            else:
                found.requests.append(route.request.url)
                route.abort()

        context.route("**/*", refuse_network)
        found.page.on("websocket", lambda socket: found.requests.append(socket.url))
        found.page.on("console", lambda message: found.complaints.append(message.text))
        found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
        found.page.goto(pages[address].as_uri(), wait_until="load")
        return found

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", PAGES)
def test_the_page_asks_for_nothing_and_complains_of_nothing(visit: Visitor, name: str) -> None:
    found = visit(name)
    found.page.wait_for_load_state("networkidle")
    assert found.requests == []
    assert found.complaints == []
    assert found.page.title()


@pytest.mark.parametrize("name", PAGES)
def test_every_picture_is_shown_and_described(visit: Visitor, name: str) -> None:
    images = visit(name).page.eval_on_selector_all(
        "img", "images => images.map(image => [image.alt.trim(), image.complete, image.naturalWidth, image.width])"
    )
    assert len(images) == PICTURES[name]
    for alt, complete, natural_width, shown_width in images:
        assert alt
        assert complete
        assert natural_width > 0
        assert shown_width > 250


@pytest.mark.parametrize("name", PAGES)
def test_the_page_does_not_scroll_sideways(visit: Visitor, name: str) -> None:
    page = visit(name).page
    for width in (SMALL_PHONE, PHONE, DESK):
        page.set_viewport_size({"width": width, "height": 844})
        wide, room = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert wide <= room == width


@pytest.mark.parametrize("name", PAGES)
def test_headings_go_down_one_level_at_a_time(visit: Visitor, name: str) -> None:
    levels = visit(name).page.eval_on_selector_all(
        "h1, h2, h3, h4, h5, h6", "headings => headings.map(heading => Number(heading.tagName[1]))"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below <= above + 1 for above, below in pairwise(levels))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("name", PAGES)
def test_contrast_and_all_else_that_axe_checks_is_right(visit: Visitor, name: str, width: int, scheme: Scheme) -> None:
    page = visit(name, width, scheme).page
    found = Axe().run(page, options={"runOnly": {"type": "tag", "values": list(RULES)}})
    assert not found.response["violations"], found.generate_report()
    assert not found.response["incomplete"], [rule["id"] for rule in found.response["incomplete"]]
    assert "color-contrast" in {rule["id"] for rule in found.response["passes"]}


def test_a_dark_screen_gets_a_dark_page(visit: Visitor) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    assert visit("two runs", scheme="light").page.evaluate(paper) == "rgb(255, 255, 255)"
    assert visit("two runs", scheme="dark").page.evaluate(paper) == "rgb(26, 26, 26)"


def test_a_wide_table_scrolls_in_its_box_by_keyboard(visit: Visitor) -> None:
    page = visit("many runs with long names").page
    label = "document.activeElement.getAttribute('aria-label')"
    stops = [(page.keyboard.press("Tab"), page.evaluate(label))[1] for _ in range(3)]  # the first is a link
    assert stops == [None, "Checks, run by run", "The numbers, run by run"]
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.activeElement.scrollLeft > 0")
    label, box = page.evaluate(
        "[document.activeElement.querySelector('tbody th'), document.activeElement]"
        ".map(element => element.getBoundingClientRect().left)"
    )
    assert 0 <= label - box <= 2  # the names of the rows stay in view


def test_paper_shows_what_a_screen_scrolls_to(visit: Visitor) -> None:
    page = visit("many runs with long names", DESK).page
    overflow = "getComputedStyle(document.querySelector('.scroll')).overflowX"
    assert page.evaluate(overflow) == "auto"
    page.emulate_media(media="print")
    assert page.evaluate(overflow) == "visible"
