"""What the README says works: its code, its commands, its picture, its links."""

import re
from pathlib import Path

import pytest

import banel_pyro

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_code_runs_and_says_what_the_readme_says(capsys: pytest.CaptureFixture[str]) -> None:
    """All blocks in one session, as a reader would paste them."""
    scope: dict[str, object] = {}
    for block in BLOCKS:
        exec(block, scope)
    printed = capsys.readouterr().out
    sds = [float(line.split()[1]) for line in printed.splitlines() if line.startswith("mean ")]
    assert sds == pytest.approx([0.1414, 0.0707], rel=0.1)


def test_the_first_example_is_short() -> None:
    lines = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len(lines) <= 12


def test_commands_pictures_and_links_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"`make ([a-z]+)`", TEXT)) <= set(targets)
    for demo in re.findall(r"python -m demos\.(\w+)", TEXT):
        assert (ROOT / "demos" / f"{demo}.py").exists()
    for link in re.findall(r"\]\((?!http)([^)]+)\)", TEXT):
        assert (ROOT / link.partition("#")[0]).exists(), link


def test_every_demo_and_schedule_has_a_row() -> None:
    for path in (ROOT / "demos").glob("[a-z]*.py"):
        assert f"demos.{path.stem}`" in TEXT
    for name in ("Constant", "Piecewise", "Linear", "Cosine", "Exponential", "Cyclical", "Warmup", "Join"):
        assert hasattr(banel_pyro, name)
        assert f"`{name}`" in TEXT
