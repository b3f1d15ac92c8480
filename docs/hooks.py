"""What the pages need beyond Markdown: formulas without a script from the network, and roles in docstrings.

Docstrings write formulas and cross-references as Sphinx does. `Roles` turns them into Markdown before mkdocstrings
reads them; `on_page_content` typesets every formula of a page with matplotlib, into a picture inside the page. A
formula that matplotlib cannot read ends the build, and so does a reference to nothing.
"""

import base64
import html
import io
import re
from pydoc import locate
from textwrap import indent
from typing import Any

import griffe
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.mathtext import MathTextParser

ROLE = re.compile(r":(?P<role>math|class|func|meth|data|attr|mod):`(?P<text>[^`]+)`")
DISPLAY = re.compile(r"^(?P<indent>[ ]*)\.\. math::\n(?P<body>(?:(?P=indent)[ ]+\S.*\n?|[ ]*\n)+)", re.MULTILINE)
DOCTEST = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)
"""Examples without a heading of their own."""
SHARED = re.compile(r"^(?P<indent> +)(?P<names>(?:\w+, )+\w+): (?P<text>.*(?:\n(?P=indent) +\S.*)*)", re.MULTILINE)
BRACKETS = re.compile(r"`+[^`]*`+|\]\(")
"""Code, which stays as it is, or what Markdown would take for a link."""
FORMULA = re.compile(r'<(?P<tag>span|div) class="arithmatex">(?P<latex>.*?)</(?P=tag)>', re.DOTALL)
SHORT_TEX = (
    (re.compile(r"\\frac(\w)(\w)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\le(?![a-z])"), r"\\leq"),
    (re.compile(r"\\[bB]ig+[lr]?(?![a-z])"), ""),
)
"""What TeX allows and matplotlib does not."""
POINTS = 10
"""Size at which a formula is set; the page scales it to the text around it."""


class Roles(griffe.Extension):
    """Turns the Sphinx markup of docstrings into Markdown."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object once it has been loaded."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value, obj)


def as_markdown(text: str, obj: griffe.Object | None = None) -> str:
    r"""A docstring with its formulas, references and examples in Markdown.

    Args:
        text: the docstring.
        obj: the object that it documents, in whose scope short names are looked up.

    >>> as_markdown(r"The entropy :math:`H(q)` of :class:`~banel_pyro.Pair`.")
    'The entropy $H(q)$ of <autoref identifier="banel_pyro.pair.Pair" optional><code>Pair</code></autoref>.'
    """
    text = re.sub(r"^Example:", "Examples:", text, flags=re.MULTILINE)
    text = DOCTEST.sub(lambda found: "Examples:\n" + indent(found[0], "    "), text)
    text = SHARED.sub(lambda found: _each(found["names"].split(", "), found["indent"], found["text"]), text)
    text = BRACKETS.sub(lambda found: "]&#40;" if found[0] == "](" else found[0], text)
    text = DISPLAY.sub(lambda found: f"\n$$\n{' '.join(found['body'].split())}\n$$\n\n", text)
    return ROLE.sub(lambda found: _role(found["role"], found["text"], obj), text)


def _each(names: list[str], spaces: str, text: str) -> str:
    """An entry of a section that describes several names at once, as an entry for each of them."""
    return "\n".join(f"{spaces}{name}: {text}" for name in names)


def _role(role: str, text: str, obj: griffe.Object | None) -> str:
    if role == "math":
        return f"${text}$"
    path, name = text.lstrip("~"), text.rpartition(".")[2] if text.startswith("~") else text
    path = path if path.startswith("banel_pyro.") else _full_path(path, obj)
    found = locate(path)
    if found is None:  # the build warns of it
        return f"[`{name}`][{path}]"
    home = f"{found.__module__}.{found.__qualname__}" if hasattr(found, "__qualname__") else path
    return f'<autoref identifier="{home}" optional><code>{name}</code></autoref>'  # code only, if it has no entry


def _full_path(name: str, obj: griffe.Object | None) -> str:
    """A name that a docstring uses without its module, as the scope of its object has it."""
    first, dot, rest = name.partition(".")
    try:
        return name if obj is None else obj.resolve(first) + dot + rest
    except griffe.NameResolutionError:
        return name


def on_page_content(content: str, **kwargs: Any) -> str:
    """Typeset the formulas of a page, and leave out the script with which notebooks load diagrams (a MkDocs event)."""
    content = re.sub(r'<script type="module">.*?</script>', "", content, flags=re.DOTALL)
    return FORMULA.sub(lambda found: typeset(html.unescape(found["latex"])), content)


def typeset(formula: str) -> str:
    r"""A formula as a picture inside the page.

    Args:
        formula: LaTeX between \( and \), in a line, or between \[ and \], on lines of its own.

    Raises:
        ValueError: if matplotlib cannot read it.
    """
    latex = formula.strip()[2:-2].strip()
    if not formula.strip().startswith(r"\["):
        return picture(latex)
    lines = [picture(part.strip()) for part in re.split(r"\\qquad", latex)]
    return f'<div class="formula">{"".join(lines)}</div>'


def picture(latex: str) -> str:
    """One line of a formula as an image with its LaTeX as the text for those who cannot see it."""
    text = f"${latex}$"
    for short, full in SHORT_TEX:
        text = short.sub(full, text)
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "formula", "mathtext.fontset": "cm", "font.size": POINTS}):
        width, height, depth, *_ = MathTextParser("path").parse(text, dpi=72)
        figure = Figure(figsize=(width / 72, height / 72))
        figure.text(0, depth / height, text)
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    source = base64.b64encode(file.getvalue()).decode()
    style = f"height:{height / POINTS:.3f}em;vertical-align:{-depth / POINTS:.3f}em"
    return f'<img class="math" alt="{html.escape(latex)}" style="{style}" src="data:image/svg+xml;base64,{source}">'
