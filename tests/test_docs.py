"""The pages in docs/: their code runs and prints what they show, and the site builds without a warning."""

import importlib
import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import griffe
import pytest
import torch

import banel_pyro
from banel_pyro import cli
from banel_pyro.report import plots
from tests import pages

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}


# ---- the code ------------------------------------------------------------------------------------


@pytest.fixture
def one_thread() -> Any:
    """The fits are small: a second thread only waits."""
    found = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(found)


@pytest.mark.parametrize("page", [page for page in PAGES if list(pages.blocks(page))], ids=lambda page: page.stem)
@pytest.mark.usefixtures("one_thread")
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a reader would paste it, in an empty folder; what is shown below a block is what it prints."""
    monkeypatch.chdir(tmp_path)
    pages.run(page)


def test_a_page_that_shows_something_else_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint('sd', 0.5)\n```\n\n```text\nsd 0.9\n```\n")
    with pytest.raises(AssertionError):
        pages.run(page)
    page.write_text("```python\nprint('sd', 0.5)\n```\n\n```text\nse 0.5\n```\n")
    with pytest.raises(AssertionError):
        pages.run(page)


@pytest.mark.usefixtures("one_thread")
def test_the_commands_of_the_pairs_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those about the file that the page has the reader save."""
    page = DOCS / "pairs.md"
    commands = re.findall(r"^\$ banel (.*)$", TEXTS[page], re.MULTILINE)
    saved = next(block for block in pages.blocks(page) if block.title)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path(saved.title).write_text(saved.source)
    ours = [command.split() for command in commands if "horses" in command]
    assert [command[0] for command in ours] == ["fit", "report"]
    for command in ours:
        with pytest.raises(SystemExit) as end:
            cli.main([*command, "--draws", "20"] if command[0] == "fit" else command)
        assert not end.value.code
    sys.modules.pop(Path(saved.title).stem)
    assert Path("runs/horses/report.html").exists()


def test_commands_and_demos_exist() -> None:
    text = "\n".join(TEXTS.values())
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:\$ |`)make ([a-z]+)", text)) <= set(targets)
    for demo in re.findall(r"python -m demos\.(\w+)", text):
        assert (ROOT / "demos" / f"{demo}.py").exists() or (ROOT / "demos" / demo).is_dir(), demo
    for module, factory in re.findall(r"(models(?:\.\w+)+):(\w+)", text):
        assert callable(getattr(importlib.import_module(module), factory))


def test_every_picture_is_shown_once_with_a_text() -> None:
    shown = [found for text in TEXTS.values() for found in re.findall(r"!\[([^\]]*)\]\((pictures/[^)]+)\)", text)]
    assert sorted(path for _, path in shown) == sorted(f"pictures/{file.name}" for file in DOCS.glob("pictures/*.png"))
    assert all(len(alt) > 30 for alt, _ in shown)
    functions = [name for name in plots.__all__ if name.startswith("plot_")]
    assert [name for name in functions if f"**`{name}`**" not in TEXTS[DOCS / "pictures.md"]] == []


# ---- the site ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site, with warnings as errors: missing links, anchors and references, pages that nothing leads to."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(ROOT / "mkdocs.yml")]
    build = subprocess.run(
        [*command, "--site-dir", str(folder)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert build.returncode == 0, build.stdout + build.stderr
    return folder


def html_of(site: Path) -> dict[str, str]:
    """The pages of the site."""
    return {str(file.relative_to(site)): file.read_text(encoding="utf-8") for file in site.rglob("*.html")}


class Loaded(HTMLParser):
    """What a browser loads for a page, and the anchors that it holds."""

    ATTRIBUTES = (("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src"), ("source", "src"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.anchors: set[str] = set()
        self.images: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {str(found["id"])} if "id" in found else set()
        self.images += [found] if tag == "img" else []
        self.addresses += [str(found[name]) for kind, name in self.ATTRIBUTES if kind == tag and found.get(name)]


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    for name, text in html_of(site).items():
        page = Loaded(text)
        outside = [address for address in page.addresses if urlsplit(address).scheme not in ("", "data")]
        assert outside == [], name
        assert not re.search(r"(unpkg|jsdelivr|cdnjs|googleapis|gstatic)\.", text), name
        assert all(image.get("alt") for image in page.images), name


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    anchors = set().union(*(Loaded(text).anchors for name, text in html_of(site).items() if name.startswith("api/")))
    missing = []
    for name in banel_pyro.__all__:
        thing = getattr(banel_pyro, name)
        if f"{thing.__module__}.{thing.__qualname__}" not in anchors:
            missing.append(name)
    assert missing == [], "add `::: module.name` to a page in docs/api"


def test_docstrings_are_free_of_sphinx_markup_on_the_site(site: Path) -> None:
    left = re.compile(r":(?:math|class|func|meth|data|attr):|\.\. math::|class=\"arithmatex\"|``")
    found = {name: left.search(text) for name, text in html_of(site).items() if name.startswith("api/")}
    assert {name: match[0] for name, match in found.items() if match} == {}


# ---- the hooks -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """docs/hooks.py."""
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_formula_becomes_a_picture_that_can_be_read_aloud(hooks: ModuleType) -> None:
    line, lines = r"\(\lambda H(q) &lt; 0\)", r"\[a,\qquad b\]"
    page = f'<p>The <span class="arithmatex">{line}</span></p><div class="arithmatex">{lines}</div>'
    found = Loaded(hooks.on_page_content(page)).images
    assert [image["alt"] for image in found] == [r"\lambda H(q) < 0", "a,", "b"]
    assert all(str(image["src"]).startswith("data:image/svg+xml;base64,") for image in found)


@pytest.mark.parametrize(
    "latex",
    [
        r"\frac1K \sum_k w_k",
        r"\operatorname{Var}(z) \le d",
        r"\big(q \,\|\, p\big)",
        r"E[-\log q(z_s \mid \text{parents})]",
    ],
)
def test_short_tex_is_understood(hooks: ModuleType, latex: str) -> None:
    assert 'class="math"' in hooks.picture(latex)


def test_a_formula_with_a_mistake_ends_the_build(hooks: ModuleType) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        hooks.typeset(r"\(\nonsense\)")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("of :math:`H(q)`", "of $H(q)$"),
        (".. math::\n    a = b,\n    c\n\nAfter.", "\n$$\na = b, c\n$$\n\nAfter."),
        (
            ":class:`~banel_pyro.Pair`",
            '<autoref identifier="banel_pyro.pair.Pair" optional><code>Pair</code></autoref>',
        ),
        (":func:`~banel_pyro.nothing`", "[`nothing`][banel_pyro.nothing]"),  # which --strict refuses
        ("Example:\n    >>> 1\n    1", "Examples:\n    >>> 1\n    1"),
        (">>> 1\n1\n\nAfter.", "Examples:\n    >>> 1\n    1\n\nAfter."),
        (
            "Args:\n    a, b: both\n        of them.",
            "Args:\n    a: both\n        of them.\n    b: both\n        of them.",
        ),
        ("values[i](t) and ``values[i](t)``", "values[i]&#40;t) and ``values[i](t)``"),
    ],
)
def test_docstrings_become_markdown(hooks: ModuleType, written: str, expected: str) -> None:
    assert hooks.as_markdown(written) == expected


@pytest.mark.parametrize("name", ["Estimate", "LossTerms.map"])
def test_short_names_are_looked_up_where_the_docstring_is(hooks: ModuleType, name: str) -> None:
    source = "class Estimate: ...\nclass LossTerms: ...\ndef f(): ..."
    module = griffe.visit("banel_pyro.terms", Path("terms.py"), source)
    assert f'identifier="banel_pyro.terms.{name}"' in hooks.as_markdown(f"a :class:`{name}`", module["f"])
