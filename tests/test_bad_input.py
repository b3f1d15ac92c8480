"""Bad input is refused before anything is trained, with the name, the value and what to do instead."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from torch import Tensor, nn

from banel_pyro import BaNEL_ELBO, FitResult, Linear, Pair, Piecewise, fit, to_arviz
from models import data as model_data
from models import vae

N = 6


def rows() -> Tensor:
    return torch.linspace(-1.0, 1.0, N)


def model(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N):
        z = pyro.sample("z", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    m = pyro.param("m", torch.tensor(0.1))
    a = pyro.sample("a", dist.Normal(m, 0.5))
    with pyro.plate("data", N):
        pyro.sample("z", dist.Normal(a + 0.5 * x, 0.5))


def missing_site(x: Tensor) -> None:
    pyro.sample("a", dist.Normal(pyro.param("m", torch.tensor(0.1)), 0.5))


def extra_site(x: Tensor) -> None:
    guide(x)
    pyro.sample("b", dist.Normal(0.0, 1.0))


def wrong_shape(x: Tensor) -> None:
    pyro.sample("a", dist.Normal(pyro.param("m", torch.zeros(2)), 0.5).to_event(1))
    with pyro.plate("data", N):
        pyro.sample("z", dist.Normal(x, 0.5))


def subsampling(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N, subsample=torch.arange(2)) as index:
        z = pyro.sample("z", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])


def images_model(x: Tensor) -> None:
    net = nn.Linear(3, 3)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=net(z)).to_event(1), obs=x)


def images_guide(x: Tensor) -> None:
    pyro.module("net", NET)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(NET(x), 1.0).to_event(1))


def images_free_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("m", torch.zeros(3)), 1.0).to_event(1))


NET = nn.Linear(3, 3)
PIXELS = torch.randint(0, 256, (N, 3), dtype=torch.uint8)

CASES: dict[str, tuple[dict[str, Any], str]] = {
    # unknown site in lam
    "lam_site": ({"lam": {"zz": 0.3}}, r"lam names unknown sites \['zz'\].*densities are \['a', 'z'\]"),
    "lam_site_in_objective": ({"objective": BaNEL_ELBO(lam={"zz": 0.3})}, r"unknown sites \['zz'\]"),
    "lam_site_of_joint": ({"guide": AutoDiagonalNormal, "lam": {"a": 0.3}}, r"\['a'\].*_AutoDiagonalNormal_latent"),
    "lam_site_later": ({"lam": Linear(0.0, 0.3, over=5), "guide": AutoDelta}, r"'a'.*point mass.*lam=0"),
    # lam >= 1 on a continuous site
    "lam_one": ({"lam": 1.0}, r"lam=1.0 at the continuous site 'a'.*no minimum.*Use lam < 1"),
    "lam_one_of_a_site": ({"lam": {"z": 1.5}}, r"lam=1.5 at the continuous site 'z'.*allow_unbounded"),
    "lam_one_at_the_end": ({"lam": Linear(0.0, 1.0, over=3)}, r"lam=1.0 at the continuous site 'a'"),
    "lam_one_for_a_while": ({"lam": Piecewise([3, 4], [0.0, 1.2, 0.1])}, r"lam=1.2 at the continuous site 'a'"),
    # model and guide that disagree
    "missing": ({"guide": missing_site}, r"latent sites \['z'\] are missing from the guide.*Add them to the guide"),
    "extra": ({"guide": extra_site}, r"guide's sites \['b'\] are no latent sites.*Rename them.*is_auxiliary"),
    "shape": (
        {"guide": wrong_shape},
        r"disagree in shape at site 'a': \(\) in the model, \(2,\) in the guide.*to_event",
    ),
    # data
    "nan": ({"data": torch.tensor([0.0, np.nan] * 3)}, r"data has NaN or inf in 3 of 6 rows.*Drop these rows"),
    "validation_nan": ({"validation": torch.tensor([np.inf])}, r"validation has NaN or inf in 1 of 1 rows"),
    "empty": ({"data": torch.zeros(0)}, r"data has no rows \(shapes \[\(0,\)\]\): expected at least one"),
    "empty_list": ({"data": []}, "data has no rows"),
    "empty_validation": ({"validation": torch.zeros(0)}, "validation has no rows"),
    "batch": ({"batch_size": 7}, r"batch_size=7 is more than the 6 rows of data. Use at most 6"),
    "lengths": ({"data": (torch.zeros(6), torch.zeros(5))}, r"lengths \[6, 5\]: expected a common leading axis.*Cut"),
    "validation_shape": (
        {"validation": torch.zeros(3, 2)},
        r"validation rows have shapes and types .*\(2,\).*the same",
    ),
    "validation_type": ({"validation": torch.zeros(3, dtype=torch.float64)}, r"float64.*training rows .*float32"),
    "size": ({"data": torch.zeros(8)}, r"8 rows need a plate.*'data': 6.*Write .*pyro.plate\('data', 8\)"),
    # integers where floats are needed
    "integers_in_a_network": (
        {"model": images_model, "guide": images_guide, "data": PIXELS},
        r"data\[0\] holds torch.uint8, where the model computes with torch.float32.*Convert it.*255",
    ),
    "integers_in_a_density": (
        {"model": images_model, "guide": images_free_guide, "data": PIXELS},
        r"data\[0\] holds torch.uint8, where the model computes with torch.float32.*Convert it.*255",
    ),
    "doubles": (
        {"model": images_model, "guide": images_guide, "data": np.zeros((N, 3))},
        r"data\[0\] holds torch.float64, where the model computes with torch.float32.*x.to",
    ),
    # a plate that cannot be told
    "subsample": ({"model": subsampling, "batch_size": 3}, r"plate 'data' has a subsample= of its own.*3 rows.*Write"),
    "plate_name": ({"data_plate": "rows"}, r"data_plate='rows': the model has no plate of that name, only \['data'\]"),
    # a joint autoguide with local latents in a subsampled plate
    "joint": ({"guide": AutoDiagonalNormal, "batch_size": 3}, r"'_AutoDiagonalNormal_latent'.*3 of 6 rows.*AutoNormal"),
    # held-out rows that the guide says nothing about
    "local_validation": (
        {"guide": AutoNormal, "validation": torch.zeros(3)},
        r"validation: the guide has \[.*'AutoNormal.locs.z'.*\] for each row of plate 'data'.*Leave validation out",
    ),
    "local_validation_of_equal_length": (
        {"guide": AutoNormal, "validation": torch.zeros(6)},
        r"validation: the guide has .* for each row of plate 'data'",
    ),
}


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_before_training(case: str, validate: bool, tmp_path: Path) -> None:
    """Nothing is written, the parameters are as they were made, and the same call with good input then works."""
    options, words = CASES[case]
    given = {"model": model, "guide": guide, "data": rows(), "steps": 10, "lr": 0.1, "progress": False} | options
    chosen, described = given.pop("guide"), given.pop("model")
    taken = chosen(described) if isinstance(chosen, type) else chosen
    state = torch.get_rng_state()
    with pyro.validation_enabled(validate), pytest.raises(ValueError, match=f"(?s){words}"):
        fit(described, taken, given.pop("data"), seed=0, out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()
    assert torch.equal(state, torch.get_rng_state())
    made = dict(pyro.get_param_store().named_parameters()).get("m", torch.zeros(1))
    assert made.unique().tolist() in ([0.0], [pytest.approx(0.1)])
    with pyro.get_param_store().scope():
        fit(model, guide, rows(), steps=1, seed=0, out=tmp_path / "run", posterior_samples=0, progress=False)


def test_unbounded_penalties_are_accepted_where_they_are_wanted() -> None:
    fit(model, guide, rows(), objective=BaNEL_ELBO(allow_unbounded=True), lam=1.2, steps=2, progress=False)


def test_a_schedule_of_the_users_own_is_asked_for_its_first_lam() -> None:
    seen: list[int] = []

    def lam(step: int, last_terms: Any) -> float:
        seen.append(step)
        return 1.0 if step == 3 else 0.1

    with pytest.raises(ValueError, match=r"lam=1.0 at the continuous site 'a'") as stopped:
        fit(model, guide, rows(), lam=lam, steps=10, progress=False)
    assert stopped.value.__notes__ == ["This happened in fit, at step 3."]
    assert seen[:2] == [0, 0]


@pytest.mark.parametrize("lam", ["0.3", [0.1, 0.2], True, lambda step, last_terms: "0.3"])
def test_a_lam_that_is_no_number_is_refused(lam: Any) -> None:
    with pytest.raises(TypeError, match=r"lam=.*expected a number"):
        fit(model, guide, rows(), lam=lam, steps=10, progress=False)


@pytest.mark.parametrize("call", ["fit", "to_arviz"])
def test_data_of_another_kind_are_refused(call: str) -> None:
    calls: dict[str, Callable[..., Any]] = {
        "fit": lambda data: fit(model, guide, data, steps=1, progress=False),
        "to_arviz": lambda data: to_arviz(model, guide, data, num_samples=2),
    }
    with pytest.raises(TypeError, match=r"is a str: expected a tensor.*torch.as_tensor"):
        calls[call]("file.csv")


def test_a_folder_of_another_pair_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no run folder: it has no config.json"):
        FitResult.load(tmp_path, Pair(model, guide, data=rows))
    out = tmp_path / "run"
    with pyro.get_param_store().scope():
        fit(model, guide, rows(), steps=1, seed=0, out=out, posterior_samples=0, progress=False)
    with pyro.get_param_store().scope(), pytest.raises(ValueError, match=r"state is of another pair.*Use the pair"):
        FitResult.load(out, Pair(model, AutoNormal(model), data=rows))
    with pyro.get_param_store().scope(), pytest.raises(ValueError, match=r"already holds a run.*resume=True"):
        fit(model, guide, rows(), steps=1, seed=0, out=out, progress=False)


def test_a_missing_data_folder_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A pair whose data need BANEL_DATA passes the message of its loader on, and writes nothing."""
    monkeypatch.delenv("BANEL_DATA", raising=False)
    pair = Pair(model, guide, data=lambda: model_data.data_folder("mnist"))
    with pytest.raises(FileNotFoundError, match=r"'mnist' is not embedded and BANEL_DATA is not set: put the files"):
        pair.fit(steps=1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_grey_images_need_a_transform() -> None:
    """Bernoulli pixels between 0 and 1: refused by Pyro's validation, before training."""
    torch.manual_seed(0)
    pair = vae.digits()
    with pytest.raises(ValueError, match=r"(?s)support.*Boolean"):
        fit(pair.model, pair.guide, pair.split().train, steps=1, progress=False)
