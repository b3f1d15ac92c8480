"""What the repository promises of itself: everything is listed, imports point one way and change nothing."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def sources(folder: str) -> list[Path]:
    """The Python files of a folder of the repository and of the folders in it."""
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in its code; `from a import b` counts as a and as a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def table_rows(path: Path) -> str:
    """The rows of all tables of a Markdown file."""
    return "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|"))


def word(name: str) -> re.Pattern[str]:
    """A pattern for the name by itself, not as a part of a longer one."""
    return re.compile(rf"\b{re.escape(name)}\b")


# What has to be listed


def models() -> list[str]:
    """The files of models/ but the package itself and the data they share (data, *_data)."""
    return [path.stem for path in sources("models") if path.stem != "__init__" and not path.stem.endswith("data")]


def pairs() -> list[str]:
    """Those that define pairs; others define generators and tasks."""
    return [name for name in models() if "banel_pyro.Pair" in imports(ROOT / "models" / f"{name}.py")]


def test_every_model_has_a_row_in_the_readme() -> None:
    rows = table_rows(ROOT / "README.md").replace("/", ".")
    missing = [name for name in models() if not word(f"models.{name}").search(rows)]
    assert not missing, f"README.md has no table row that names models.NAME (or models/NAME.py) for {missing}"


def test_every_pair_is_in_the_cases() -> None:
    text = (ROOT / "tests" / "cases.py").read_text(encoding="utf-8")
    named = imports(ROOT / "tests" / "cases.py")
    missing = [n for n in pairs() if f"models.{n}" not in named and not word(f"models.{n}").search(text)]
    assert pairs()
    assert not missing, f"tests/cases.py uses nothing of {missing} in models/"


def test_every_other_model_has_a_test_of_its_own() -> None:
    tested = {name for path in sources("tests") for name in imports(path)}
    missing = [name for name in models() if f"models.{name}" not in tested]
    assert not missing, f"no test imports {missing} of models/"


FORMS = {"TraceObjective", "GraphObjective", "EnumObjective"}


def objectives() -> Iterator[str]:
    """The objectives: the classes of banel_pyro/objectives/ that are in one of the forms of the bound."""
    for path in sources("banel_pyro/objectives"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and FORMS & {ast.unparse(base) for base in node.bases}:
                yield node.name


def test_there_are_objectives() -> None:
    assert {"BaNEL_ELBO", "BaNEL_TraceGraph_ELBO", "BaNEL_TraceEnum_ELBO"} <= set(objectives())


@pytest.mark.parametrize("place", ["banel_pyro/objectives/__init__.py", "tests/cases.py", "README.md"])
def test_every_objective_is_exported_and_tested_and_in_the_readme(place: str) -> None:
    path = ROOT / place
    text = table_rows(path) if path.suffix == ".md" else path.read_text(encoding="utf-8")
    missing = [name for name in objectives() if not word(name).search(text)]
    assert not missing, f"{place} does not name {missing}: see 'Adding an objective' in CONTRIBUTING.md"


def test_every_requirement_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    required = project["build-system"]["requires"] + project["project"]["dependencies"]
    required += [line for extra in project["project"]["optional-dependencies"].values() for line in extra]
    names = {re.split(r"[^\w-]", line)[0] for line in required} - {project["project"]["name"]}
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = set(re.findall(r"^([\w-]+)==", pins, re.MULTILINE))
    assert names <= pinned, f"constraints.txt does not pin {sorted(names - pinned)}"


def test_the_citation_names_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {version('banel-pyro')}\n" in citation


# Which way imports point


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [("banel_pyro", {"models", "demos", "tests"}), ("models", {"demos", "tests"}), ("demos", {"tests"})],
)
def test_imports_point_one_way(folder: str, forbidden: set[str]) -> None:
    wrong = {
        str(path.relative_to(ROOT)): sorted(name for name in imports(path) if name.split(".")[0] in forbidden)
        for path in sources(folder)
    }
    wrong = {path: names for path, names in wrong.items() if names}
    assert not wrong, f"{folder} must not import {sorted(forbidden)}: {wrong}"


# What an import does

IMPORT = """
import json, sys
import pyro, torch

def state():
    switches = torch.get_default_dtype(), torch.get_num_threads(), pyro.settings.get()
    rng = pyro.util.get_rng_state()
    randomness = rng["torch"].tolist(), rng["random"], [repr(part) for part in rng["numpy"]]
    return switches, randomness, list(pyro.get_param_store().keys())

before = state()
import banel_pyro
missing = [name for name in banel_pyro.__all__ if not hasattr(banel_pyro, name)]
print(json.dumps({"modules": list(sys.modules), "changed": before != state(), "missing": missing}))
"""
OPTIONAL = {"IPython", "lightning", "lightning_fabric", "matplotlib.pyplot", "sklearn"}


@pytest.fixture(scope="module")
def fresh_import() -> dict[str, object]:
    """What a new interpreter, with warnings as errors, looks like after `import banel_pyro`."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_import_loads_nothing_optional(fresh_import: dict[str, list[str]]) -> None:
    loaded = sorted(OPTIONAL & set(fresh_import["modules"]))
    assert not loaded, f"import banel_pyro imports {loaded}: import them inside the function that needs them"


def test_import_changes_no_state_and_exports_what_it_says(fresh_import: dict[str, object]) -> None:
    assert not fresh_import["changed"], "import banel_pyro changes a switch, a random state or the params"
    assert fresh_import["missing"] == []


# What the guards of conftest.py catch

OFFENDERS = """
import pytest, pyro, torch

@pytest.fixture(scope="module")
def trained_outside():
    pyro.param("leaked", torch.zeros(1))

def test_dtype(): torch.set_default_dtype(torch.float64)
def test_validation(): torch.distributions.Distribution.set_default_validate_args(False)
def test_pyro_validation(): pyro.enable_validation(False)
def test_threads(): torch.set_num_threads(torch.get_num_threads() + 1)
def test_store(trained_outside): pass
def test_skip(): pytest.skip("no data")

def test_fine(float64):
    assert torch.zeros(1).dtype == float64 and torch.rand(1) == torch.rand(1, generator=torch.manual_seed(0))
    assert not pyro.get_param_store().keys()
    pyro.param("mine", torch.zeros(1))

@pytest.mark.parametrize("seen", [0, 1])
def test_alone(seen): assert "mine" not in pyro.get_param_store()
"""


def test_guards_catch_what_a_test_leaves_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_offenders.py").write_text(OFFENDERS)
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("COLUMNS", "400")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    for expected in (
        r"ERROR .*::test_dtype - .*torch.get_default_dtype\(\) was torch.float32, left as torch.float64",
        r"ERROR .*::test_validation - .*'validate_distributions_torch'\) was True, left as False",
        r"ERROR .*::test_pyro_validation - .*'validate_infer'\).*'validate_poutine'\)",
        r"ERROR .*::test_threads - .*torch.get_num_threads\(\)",
        r"ERROR .*::test_store - .*held \['leaked'\]",
        r"FAILED .*::test_skip - CI is set",
    ):
        assert re.search(expected, run.stdout), f"no line like {expected!r} in\n{run.stdout}"
    for allowed in ("test_fine", "test_alone[0]", "test_alone[1]"):
        assert f"PASSED test_offenders.py::{allowed}" in run.stdout
