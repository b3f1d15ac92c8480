"""`dtype=`: data, modules, parameters and draws of a run are of one type; what is global is left alone."""

from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from banel_pyro import FitResult, Pair, fit
from models import vae
from tests.test_callbacks import make

N = 5


def model(x: Tensor) -> None:
    a = pyro.sample("a", dist.HalfNormal(1.0))
    with pyro.plate("data", N):
        pyro.sample("x", dist.Normal(a, 1.0), obs=x)


def guide(x: Tensor) -> None:
    pyro.sample("a", dist.LogNormal(pyro.param("m", torch.tensor(0.1)), pyro.param("s", torch.tensor(0.5))))


OPTIONS: dict[str, Any] = {"steps": 4, "seed": 0, "progress": False}


def types(result: FitResult) -> set[torch.dtype]:
    parts = [part for part in (result.model, result.guide) if isinstance(part, torch.nn.Module)]
    tensors = [t for part in parts for t in (*part.parameters(), *part.buffers())]
    tensors += [p for _, p in pyro.get_param_store().named_parameters()]
    return {tensor.dtype for tensor in (*tensors, *result.rows) if tensor.is_floating_point()}


@pytest.mark.parametrize("kind", ["function", "autoguide"])
def test_everything_is_of_the_type_that_was_asked_for(kind: str) -> None:
    assert torch.get_default_dtype() == torch.float32
    auto = guide if kind == "function" else AutoNormal(model)
    result = fit(model, auto, torch.ones(N), dtype=torch.float64, **OPTIONS)
    assert types(result) == {torch.float64}
    assert str(result.posterior(num_samples=2).posterior["a"].dtype) == "float64"
    assert torch.get_default_dtype() == torch.float32
    assert result.config["dtype"] == "float64"


def test_modules_are_cast_and_counts_stay_counts() -> None:
    pair = make()
    result = pair.fit(batch_size=2, dtype=torch.float64, **OPTIONS)
    assert types(result) == {torch.float64}
    assert result.guide.encode[2].num_batches_tracked.dtype == torch.int64
    idata = result.posterior(torch.zeros(3, 3), num_samples=2, groups=("posterior", "posterior_predictive"))
    assert str(idata.posterior_predictive["x"].dtype) == "float64"


def test_parameters_of_an_earlier_run_are_cast() -> None:
    fit(model, guide, torch.ones(N), **OPTIONS)
    result = fit(model, guide, torch.ones(N), dtype=torch.float64, **OPTIONS)
    assert types(result) == {torch.float64}


def test_it_is_what_a_run_in_that_default_type_gives(float64: torch.dtype) -> None:
    with pyro.get_param_store().scope():
        expected = fit(model, guide, torch.ones(N), **OPTIONS).history
    torch.set_default_dtype(torch.float32)
    with pyro.get_param_store().scope():
        found = fit(model, guide, torch.ones(N), dtype=torch.float64, **OPTIONS).history
    torch.set_default_dtype(float64)
    # 0.1 in float32 is another number; the data are the same
    assert found["elbo"].to_numpy() == pytest.approx(expected["elbo"].to_numpy(), rel=1e-12)


def test_a_loaded_run_is_of_its_type(tmp_path: Any) -> None:
    with pyro.get_param_store().scope():
        result = make().fit(batch_size=2, dtype=torch.float64, out=tmp_path / "run", posterior_samples=2, **OPTIONS)
        expected = result.posterior(num_samples=3).posterior["z"].to_numpy()
    with pyro.get_param_store().scope():
        loaded = FitResult.load(tmp_path / "run", make())
        assert types(loaded) == {torch.float64}
        assert (loaded.posterior(num_samples=3).posterior["z"].to_numpy() == expected).all()
    assert torch.get_default_dtype() == torch.float32


def test_a_run_in_the_default_type_of_its_day_is_loaded_in_that_type(tmp_path: Any, float64: torch.dtype) -> None:
    def doubles() -> Pair:
        return replace(make(), data=lambda: torch.linspace(-1.0, 1.0, 24, dtype=torch.float64).reshape(8, 3))

    with pyro.get_param_store().scope():
        result = doubles().fit(batch_size=2, out=tmp_path / "run", posterior_samples=2, **OPTIONS)
        expected = result.posterior(num_samples=3).posterior["z"].to_numpy()
    torch.set_default_dtype(torch.float32)
    with pyro.get_param_store().scope():
        loaded = FitResult.load(tmp_path / "run", doubles())
        assert types(loaded) == {torch.float64}
        assert (loaded.posterior(num_samples=3).posterior["z"].to_numpy() == expected).all()
    with pyro.get_param_store().scope(), pytest.raises(ValueError, match="'float64' there, 'float32' here"):
        pair = doubles()
        pair.guide.double(), pair.model.double()
        pair.fit(batch_size=2, out=tmp_path / "run", resume=True, **OPTIONS | {"steps": 8})
    torch.set_default_dtype(float64)


def test_a_network_of_the_embedded_digits_runs_in_float64() -> None:
    result = vae.digits().fit(batch_size=100, dtype=torch.float64, **OPTIONS)
    assert types(result) == {torch.float64}


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64, "double", 64])
def test_other_types_are_refused(dtype: Any) -> None:
    with pytest.raises(TypeError, match=r"dtype=.*expected torch.float32, torch.float64 or None"):
        fit(model, guide, torch.ones(N), dtype=dtype, **OPTIONS)
