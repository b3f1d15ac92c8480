"""The notebooks of the documentation run, and their committed outputs are what they print.

After a change: jupyter nbconvert --to notebook --execute --inplace docs/notebooks/NAME.ipynb
"""

import base64
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.pages import assert_agrees

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))
PICTURE_BYTES = 60_000


def outputs(notebook: Any) -> Iterator[tuple[Any, list[Any]]]:
    """The code cells of a notebook with their outputs."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            yield cell, cell.outputs


def text_of(output: Any) -> str:
    """What an output says in plain text; errors and warnings too, which have none to agree with."""
    return str(output.get("data", {}).get("text/plain", output.get("text", output.get("evalue", ""))))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def committed(request: pytest.FixtureRequest) -> Any:
    """A notebook as it was committed."""
    return nbformat.read(request.param, as_version=4)


def test_it_is_committed_as_one_run(committed: Any) -> None:
    counts = [cell.execution_count for cell, _ in outputs(committed)]
    assert counts == list(range(1, len(counts) + 1))
    found = [output for _, several in outputs(committed) for output in several]
    assert {output.output_type for output in found} <= {"display_data", "execute_result"}  # no warning, no error
    pictures = [base64.b64decode(o.data["image/png"]) for o in found if "image/png" in o.get("data", {})]
    assert pictures
    assert max(map(len, pictures)) < PICTURE_BYTES


def test_it_runs_and_says_what_was_committed(committed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a kernel of its own, in an empty folder, without ipywidgets: the progress bar needs none."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel has its own
    fresh = deepcopy(committed)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(fresh, timeout=300, kernel_name="python3", resources=resources).execute()
    for (cell, found), (_, expected) in zip(outputs(fresh), outputs(committed), strict=True):
        assert [o.output_type for o in found] == [o.output_type for o in expected], cell.source
        for new, old in zip(found, expected, strict=True):
            assert set(new.get("data", {})) == set(old.get("data", {}))
            assert_agrees(text_of(new), text_of(old), rel=0.2, abs=0.3)
