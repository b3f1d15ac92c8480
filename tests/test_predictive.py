"""`FitResult.predictive`: exact answers, new rows, unknown responses, and numbers that no batch changes."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, AutoNormalMessenger
from torch import Tensor

from banel_pyro import FitResult, Pair, fit, to_arviz
from banel_pyro.inference_data import GROUPS, group, group_names
from banel_pyro.predictive import argument_names
from banel_pyro.streams import SiteStreams, rows_at_a_time
from models import vae

pytestmark = pytest.mark.usefixtures("float64")

N, COLUMNS, SD = 70, 3, 0.7
BATCH = 16


def design(rows: int = N, seed: int = 3) -> Tensor:
    return torch.randn(rows, COLUMNS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def responses(x: Tensor) -> Tensor:
    noise = torch.randn(len(x), generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + SD * noise


def regression(x: Tensor, y: Tensor | None = None) -> None:
    weights = pyro.sample("weights", dist.Normal(torch.zeros(COLUMNS), 1.0).to_event(1))
    with pyro.plate("data", N):
        mean = pyro.deterministic("mean", x @ weights)
        pyro.sample("y", dist.Normal(mean, SD), obs=y)


def exact(x: Tensor, y: Tensor) -> dist.MultivariateNormal:
    precision = torch.eye(COLUMNS) + x.T @ x / SD**2
    return dist.MultivariateNormal(torch.linalg.solve(precision, x.T @ y / SD**2), precision_matrix=precision)


def exact_guide(x: Tensor, y: Tensor | None = None) -> None:
    """The exact posterior of the training data, with a parameter that hardly moves."""
    posterior = exact(design(), responses(design()))
    shift = pyro.param("shift", torch.zeros(COLUMNS))
    pyro.sample("weights", dist.MultivariateNormal(posterior.loc + shift, posterior.covariance_matrix))


def run(model: Any = regression, guide: Any = exact_guide, data: Any = None, **options: Any) -> FitResult:
    """A run of one tiny step: what it predicts is known from its guide."""
    data = (design(), responses(design())) if data is None else data
    return fit(model, guide, data, **{"steps": 1, "lr": 1e-9, "seed": 0, "progress": False} | options)


def values(idata: Any, name: str = "y", where: str = "posterior_predictive") -> np.ndarray:
    return group(idata, where)[name].to_numpy()[0]


# Exact answers


def test_predictions_of_a_regression_are_normal_with_the_exact_moments() -> None:
    """New rows, their response unknown: mean x·m, covariance x S xᵀ + sd², within their standard errors."""
    x, draws = design(4, seed=9), 2000
    y = torch.from_numpy(values(run().predictive((x, None), num_samples=draws)))
    posterior = exact(design(), responses(design()))
    mean, covariance = x @ posterior.loc, x @ posterior.covariance_matrix @ x.T + SD**2 * torch.eye(4)
    assert ((y.mean(0) - mean).abs() < 5 * (covariance.diagonal() / draws).sqrt()).all()
    error = ((covariance.diagonal().outer(covariance.diagonal()) + covariance**2) / draws).sqrt()
    assert ((y.T.cov() - covariance).abs() < 5 * error).all()


def test_predictions_of_a_shared_mean() -> None:
    def guide(x: Tensor) -> None:
        pyro.sample("a", dist.Normal(pyro.param("loc", torch.tensor(1.5)), 0.3))

    draws = 2000
    x = values(run(pooled, guide, torch.randn(20)).predictive(num_samples=draws), "x")
    variance = 0.3**2 + SD**2
    assert abs(x[:, 0].mean() - 1.5) < 5 * (variance / draws) ** 0.5
    assert x[:, 0].var() == pytest.approx(variance, rel=5 * (2 / draws) ** 0.5)
    assert np.cov(x[:, 0], x[:, 1])[0, 1] == pytest.approx(0.3**2, abs=5 * variance / draws**0.5)


def pooled(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 20):
        pyro.sample("x", dist.Normal(a, SD), obs=x)


def test_chosen_sites_are_those_of_one_draw() -> None:
    x = design(5, seed=1)
    idata = run().predictive((x, None), num_samples=20, sites=["weights", "mean", "y"])
    assert list(group(idata, "posterior_predictive")) == ["weights", "mean", "y"]
    np.testing.assert_allclose(values(idata, "mean"), values(idata, "weights") @ x.T.numpy())


# Rows


@pytest.mark.parametrize("rows", [1, 5, 2 * N])
def test_new_rows_may_be_fewer_or_more_than_the_plate_was_written_for(rows: int) -> None:
    x = design(rows, seed=1)
    idata = run().predictive((x, None), num_samples=3, batch_size=BATCH if rows > BATCH else None)
    assert dict(group(idata, "posterior_predictive")["y"].sizes) == {"chain": 1, "draw": 3, "data": rows}
    assert set(group_names(idata)) == {"posterior_predictive", "constant_data"}
    np.testing.assert_array_equal(group(idata, "constant_data")["x"], x)
    assert group(idata, "constant_data")["x"].dims == ("data", "x_dim_0")


def test_known_responses_stand_beside_the_predictions() -> None:
    x = design(5, seed=1)
    names = {"coords": {"data": list("abcde"), "column": ["one", "two", "three"]}, "dims": {"x": ["column"]}}
    idata = run().predictive((x, responses(x)), num_samples=3, **names)
    np.testing.assert_array_equal(group(idata, "observed_data")["y"], responses(x))
    assert list(group(idata, "constant_data")) == ["x"]
    assert group(idata, "constant_data")["x"].dims == ("data", "column")
    for name in group_names(idata):
        assert group(idata, name).coords["data"].to_numpy().tolist() == list("abcde")


def test_a_placeholder_predicts_what_none_does() -> None:
    """What is observed is drawn anew: its values do not count."""
    x, result = design(20, seed=1), run()
    unknown = values(result.predictive((x, None), num_samples=5))
    np.testing.assert_array_equal(values(result.predictive((x, torch.zeros(20)), num_samples=5)), unknown)
    np.testing.assert_array_equal(values(result.predictive((x, responses(x)), num_samples=5)), unknown)


def test_training_rows_are_transformed_as_in_training() -> None:
    from banel_pyro.batches import Split

    result = run(data=Split((design(), responses(design())), None, lambda rows: (rows[0], rows[1] + 100)))
    idata = result.predictive(num_samples=2)
    np.testing.assert_array_equal(group(idata, "observed_data")["y"], responses(design()) + 100)


# What no batch changes


def test_one_batch_or_many() -> None:
    result = run()
    for data in (None, (design(100, seed=2), None)):
        whole = result.predictive(data, num_samples=7, sites=["y", "mean", "weights"])
        many = result.predictive(data, num_samples=7, sites=["y", "mean", "weights"], batch_size=BATCH)
        for name in group_names(whole):
            xr.testing.assert_allclose(group(many, name), group(whole, name), rtol=1e-12)


FAMILIES: dict[str, Callable[[Tensor], Any]] = {
    "Normal": lambda z: dist.Normal(z, 1.0),
    "vector": lambda z: dist.Normal(z[:, None].expand(-1, 3), 1.0).to_event(1),
    "MultivariateNormal": lambda z: dist.MultivariateNormal(z[:, None].expand(-1, 2), torch.eye(2)),
    "Bernoulli": lambda z: dist.Bernoulli(logits=z),
    "Categorical": lambda z: dist.Categorical(logits=torch.stack([z, -z, 2 * z], -1)),
    "Gamma": lambda z: dist.Gamma(z.exp(), 1.0),
    "Poisson": lambda z: dist.Poisson(z.exp()),
    "StudentT": lambda z: dist.StudentT(3.0, z, 1.0),  # draws a gamma and a normal
    "NegativeBinomial": lambda z: dist.NegativeBinomial(3.0, logits=z),
    "LKJCholesky": lambda z: dist.LKJCholesky(3, z.exp()),
    "mixture": lambda z: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(len(z), 2)), dist.Normal(torch.stack([z, z + 9], -1), 1.0)
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_one_batch_or_many_for_each_family(family: str) -> None:
    """Posterior, prior and predictions, with a latent and an observed site of the family."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", N):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("u", FAMILIES[family](z))
            pyro.sample("x", FAMILIES[family](z), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", N):
            z = pyro.sample("z", dist.Normal(0.1, 0.5))
            pyro.sample("u", FAMILIES[family](z))

    x = FAMILIES[family](torch.zeros(N)).sample()
    groups = ("posterior_predictive", "prior", "prior_predictive")
    whole, many = (
        to_arviz(model, guide, x, num_samples=3, groups=groups, seed=0, batch_size=size) for size in (None, BATCH)
    )
    for name in ("posterior", *groups):
        xr.testing.assert_allclose(group(many, name), group(whole, name), rtol=1e-12)


def test_images_in_one_batch_or_many() -> None:
    pair = vae.digits()
    result = pair.fit(steps=2, batch_size=64, seed=0, progress=False)
    few = tuple(row[:75] for row in result.held_out)
    whole, many = (result.predictive(few, num_samples=2, batch_size=size) for size in (None, 20))
    for name in group_names(whole):
        xr.testing.assert_allclose(group(many, name), group(whole, name), rtol=1e-5)


def test_predictions_are_those_of_the_posterior_with_the_same_seed() -> None:
    result = run()
    asked = result.posterior(num_samples=5, groups=("posterior_predictive", "observed_data", "constant_data"), seed=3)
    found = result.predictive(num_samples=5, batch_size=BATCH, seed=3)
    for name in group_names(found):
        xr.testing.assert_allclose(group(found, name), group(asked, name), rtol=1e-12)
    alone = result.posterior(num_samples=5, groups=(), seed=3)
    for other in (GROUPS, ("prior",), ("posterior_predictive",)):  # what else is asked for does not matter
        more = result.posterior(num_samples=5, groups=other, seed=3)
        xr.testing.assert_equal(group(more, "posterior"), group(alone, "posterior"))


def test_a_loaded_run_predicts_the_same(tmp_path: Path) -> None:
    def pair() -> Pair:
        return Pair(regression, AutoMultivariateNormal(regression), lambda: (design(), responses(design())))

    x = design(40, seed=5)
    with pyro.get_param_store().scope():
        result = pair().fit(steps=20, seed=4, out=tmp_path / "run", posterior_samples=0, progress=False)
        before = [result.predictive(data, num_samples=6) for data in (None, (x, None))]
    with pyro.get_param_store().scope():
        loaded = FitResult.load(tmp_path / "run", pair())
        after = [loaded.predictive(data, num_samples=6) for data in (None, (x, None))]
    for old, new in zip(before, after, strict=True):
        for name in group_names(old):
            xr.testing.assert_equal(group(new, name), group(old, name))


def test_the_model_sees_no_more_rows_than_asked_for() -> None:
    lengths = set()

    def watched(x: Tensor, y: Tensor | None = None) -> None:
        lengths.add(len(x))
        regression(x, y)

    result = run(watched)
    lengths.clear()
    result.predictive((design(20 * BATCH), None), num_samples=2, batch_size=BATCH)
    assert lengths == {BATCH}


def test_batches_are_whole_blocks() -> None:
    for size in range(1, 200):
        for batch in (1, 15, 16, 17, 50, 300):
            step = rows_at_a_time(size, batch)
            assert step is not None
            assert step % 16 == 0
            assert step >= batch
            assert size <= step or size % step not in range(1, 16)
    assert rows_at_a_time(0, 16) == 16


# Streams


def fails() -> None:
    dist.Normal(0.0, torch.tensor(-1.0), validate_args=True)


def test_streams_leave_the_callers_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    found = [torch.rand(())]
    with SiteStreams(0) as streams:
        drawn = pyro.sample("a", dist.Normal(0.0, 1.0))
        found.append(torch.rand(()))
        with streams.part("other"):
            assert pyro.sample("a", dist.Normal(0.0, 1.0)) != drawn
    with pytest.raises(ValueError, match="of distribution Normal"), SiteStreams(0):
        assert pyro.sample("a", dist.Normal(0.0, 1.0)) == drawn
        pyro.sample("b", fails)
    found.append(torch.rand(()))
    torch.testing.assert_close(torch.stack(found), expected, rtol=0, atol=0)


def test_without_a_seed_the_callers_generator_moves_on() -> None:
    x = design()

    def draw() -> np.ndarray:
        return values(to_arviz(regression, exact_guide, x, responses(x), num_samples=2), "weights", "posterior")

    torch.manual_seed(2)
    first, second = draw(), draw()
    assert not np.array_equal(first, second)
    torch.manual_seed(2)
    np.testing.assert_array_equal(draw(), first)


# Bad input


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ((design()[:, :2], None), r"2 tensors with rows of \[float64 \(2,\), None\], the training data have 2 tensors"),
        (design(), r"1 tensor with rows of \[float64 \(3,\)\].*\[float64 \(3,\), float64 \(\)\]: expected the same"),
        ((design(), responses(design())[:, None]), r"float64 \(1,\)\], the training data"),
        ((design().float(), None), r"float32 \(3,\), None\].*convert it with \.to"),
        ((None, None), "data holds None only: expected a tensor"),
        ((design(), responses(design(5))), r"lengths \[70, 5\]: expected a common leading axis"),
        ((design() * math.nan, None), "NaN or inf in 70 of 70 rows"),
    ],
)
def test_rows_unlike_the_training_data_are_refused(data: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        run().predictive(data, num_samples=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"sites": ["y", "slope"]},
            r"unknown \['slope'\], expected a list of some of the model's \['weights', 'mean', 'y'\]",
        ),
        ({"sites": "y"}, "sites='y'"),
        ({"num_samples": 1}, "num_samples=1: expected an integer of at least 2"),
        ({"batch_size": 0}, "batch_size=0: expected an integer"),
        ({"coords": {"data": [1, 2]}}, r"coords\['data'\] has 2 entries, but the dim has 70"),
        (
            {"dims": {"x": ["a", "b"]}},
            r"dims\['x'\]=\['a', 'b'\] has 2 names, but besides plates 'x' has 1 axes",
        ),
        (
            {"dims": {"slope": ["a"]}},
            r"dims\['slope'\]: no such variable.*some of \['mean', 'weights', 'x', 'y'\]",
        ),
        ({"dims": {"x": ["data"]}}, r"dims\['x'\]=\['data'\]: expected names that differ"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        run().predictive(**{"num_samples": 2} | options)


def test_a_local_guide_says_nothing_about_new_rows() -> None:
    def local(x: Tensor) -> None:
        with pyro.plate("data", N):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    result = run(local, AutoNormal(local), torch.randn(N))
    assert values(result.predictive(result.rows[0][:5], num_samples=2), "x").shape == (2, 5)
    with pytest.raises(ValueError, match=r"the guide has .* for each row of the training data"):
        result.predictive(torch.randn(N), num_samples=2)


def test_a_guide_that_runs_the_model_takes_no_none() -> None:
    result = run(guide=AutoNormalMessenger(regression))
    before = list(pyro.get_param_store())
    with pytest.raises(ValueError, match=r"data\[1\] is None, and the guide runs the model itself.*torch.zeros"):
        result.predictive((design(), None), num_samples=2)
    assert list(pyro.get_param_store()) == before
    assert values(result.predictive((design(), torch.zeros(N)), num_samples=2)).shape == (2, N)


def test_a_pair_that_cannot_do_without_the_response_says_so() -> None:
    def needs_y(x: Tensor, y: Tensor) -> None:
        weights = pyro.sample("weights", dist.Normal(torch.zeros(COLUMNS), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(x @ weights, SD), obs=y)

    result = run(needs_y)
    with pytest.raises(ValueError, match=r"data\[1\] is None, and model or guide fails \(TypeError: object"):
        result.predictive((design(), None), num_samples=2)
    assert values(result.predictive((design(5), torch.zeros(5)), num_samples=2)).shape == (2, 5)


# Names of arguments


def test_constant_data_have_the_names_of_the_models_arguments() -> None:
    class Module(pyro.nn.PyroModule):
        def forward(self, x: Tensor, y: Tensor) -> None:
            regression(x, y)

    class Owner:
        def model(self, x: Tensor, y: Tensor) -> None:
            regression(x, y)

    for model in (regression, poutine.scale(regression, 2.0), Module(), poutine.scale(Module(), 2.0), Owner().model):
        assert argument_names(model, 2) == ["x", "y"]
    assert argument_names(lambda x, *more: None, 3) == ["x", "arg_1", "arg_2"]


def test_an_argument_with_the_name_of_the_plate() -> None:
    def model(data: Tensor, y: Tensor | None = None) -> None:
        regression(data, y)

    idata = run(model).predictive(num_samples=2)
    assert list(group(idata, "constant_data")) == ["data_"]
