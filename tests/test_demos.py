"""Every demo runs, at a small size: the flags here may only shrink sizes, never leave a step out."""

import runpy
import sys
from pathlib import Path

import pytest

DEMO_FOLDER = Path(__file__).parents[1] / "demos"

DEMOS: dict[str, list[str]] = {}


@pytest.mark.parametrize("name", DEMOS)
def test_demo_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `python -m demos.NAME FLAGS` in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *DEMOS[name]])
    monkeypatch.delitem(sys.modules, f"demos.{name}", raising=False)
    try:
        runpy.run_module(f"demos.{name}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            pytest.fail(f"demos.{name} ended with {end.code!r}")


def test_every_demo_is_listed() -> None:
    """A demo without an entry in DEMOS would run in no test."""
    found = {path.stem for path in DEMO_FOLDER.glob("*.py")} - {"__init__"}
    assert found == set(DEMOS), "DEMOS in tests/test_demos.py must name every file of demos/, and no other"
