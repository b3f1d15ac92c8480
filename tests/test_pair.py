"""`Pair`: what a user defines, and how a path names one."""

from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from banel_pyro import Pair, Split
from banel_pyro.pair import load_pair


def model(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 4):
        pyro.sample("x", dist.Normal(a, 1.0), obs=x)


def guide(x: Tensor) -> None:
    pyro.sample("a", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))


def data() -> Tensor:
    return torch.ones(4)


FILE = """
import torch
from banel_pyro import Pair
from tests.test_pair import data, guide, model

instance = Pair(model, guide, data=data)
number = 3

def good(): return Pair(model, guide, data=data)
def needs(width): return Pair(model, guide, data=data)
def optional(width=3): return Pair(model, guide, data=data)
def wrong(): return model, guide
def failing(): raise KeyError("inside")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with the file above in it; the path and the modules are left as found."""
    import sys

    (tmp_path / "mine_pairs.py").write_text(FILE)
    (tmp_path / "broken_pairs.py").write_text("import no_such_dependency")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return tmp_path


def test_a_path_names_a_factory_in_the_working_directory(folder: Path) -> None:
    for name in ("good", "optional"):
        make = load_pair(f"mine_pairs:{name}")
        assert isinstance(make(), Pair)
        assert make() is not make()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("mine_pairs", "pair 'mine_pairs': expected module:attribute, such as"),
        ("mine_pairs:", "expected module:attribute"),
        (":good", "expected module:attribute"),
        ("mine_pairs.py:good", r"no module 'mine_pairs.py' in .* or on the path"),
        ("./mine_pairs.py:good", "expected module:attribute"),
        (".mine_pairs:good", "expected module:attribute"),
        ("models/vae:digits", "expected module:attribute"),
        ("no_such_file:good", "no module 'no_such_file' in .*A pair is a function in a Python file"),
        ("mine_pairs:bad", "module 'mine_pairs' has no attribute 'bad'"),
        ("mine_pairs:number", "pair 'mine_pairs:number' is a int: expected a function"),
        ("mine_pairs:instance", "pair 'mine_pairs:instance' is a Pair: expected a function.*def make"),
    ],
)
def test_a_path_that_names_none_is_refused(folder: Path, path: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_pair(path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("needs", r"'mine_pairs:needs' cannot be called without arguments \(missing a required argument: 'width'\)"),
        ("wrong", "'mine_pairs:wrong' returned a tuple: expected a banel_pyro.Pair"),
        ("Pair", "'mine_pairs:Pair' cannot be called without arguments"),
    ],
)
def test_a_factory_of_something_else_is_refused(folder: Path, name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_pair(f"mine_pairs:{name}")()


def test_errors_inside_a_file_are_not_hidden(folder: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        load_pair("broken_pairs:good")
    with pytest.raises(KeyError, match="inside"):
        load_pair("mine_pairs:failing")()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.zeros(3), guide), r"Pair: model=tensor\(.*expected a callable"),
        ((model, None), "Pair: guide=None: expected a callable"),
    ],
)
def test_models_and_guides_are_callables(arguments: tuple[Any, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        Pair(*arguments)


def test_data_are_made_by_a_callable() -> None:
    with pytest.raises(TypeError, match=r"Pair: data is a Tensor.*Write data=lambda: x"):
        Pair(model, guide, data=torch.ones(3))
    with pytest.raises(ValueError, match="pair 'mine' has no data: give Pair"):
        Pair(model, guide, name="mine").fit(steps=1)


def test_a_split_is_what_the_data_are() -> None:
    held_out = torch.zeros(2)
    assert Pair(model, guide, data=data).split().held_out is None
    split = Split(data(), held_out)
    assert Pair(model, guide, data=lambda: split).split() is split


def test_fit_passes_on_what_the_pair_knows_and_what_the_call_says() -> None:
    pair = Pair(model, guide, data=lambda: Split(data(), torch.zeros(4)), data_plate="data", name="mine")
    result = pair.fit(steps=2, seed=0, progress=False)
    assert (result.config["name"], result.config["data_plate"]) == ("mine", "data")
    assert result.history["val_elbo"].notna().any()
    other = pair.fit(steps=2, seed=0, progress=False, validation=None, name="yours")
    assert other.config["name"] == "yours"
    assert "val_elbo" not in other.history
    with pytest.raises(TypeError, match="unexpected keyword argument 'stepz'"):
        pair.fit(stepz=2)


def test_an_empty_pair_fits_a_model_without_arguments() -> None:
    def closed() -> None:
        pyro.sample("a", dist.Normal(0.0, 1.0))

    def closed_guide() -> None:
        pyro.sample("a", dist.Normal(pyro.param("m", torch.tensor(1.0)), 1.0))

    result = Pair(closed, closed_guide, data=lambda: None).fit(steps=3, seed=0, progress=False)
    assert result.config["num_data"] == 0
