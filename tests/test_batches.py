"""The minibatch contract: data as rows, the data plate found and told, unbiased gradients at every batch size."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoMultivariateNormal, AutoNormal, AutoNormalMessenger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from banel_pyro import BaNEL_ELBO, Split, fit
from banel_pyro.batches import as_rows, data_hash, epoch_order, minibatches
from banel_pyro.evaluate import trace_draws
from banel_pyro.plates import DataPlate, find_data_plate, tell_autoguide

pytestmark = pytest.mark.usefixtures("float64")

N = 6
X = (0.3, -1.2, 2.0, 0.7, -0.4, 1.1)
GUIDES = {"AutoNormal": AutoNormal, "AutoNormalMessenger": AutoNormalMessenger, "AutoDelta": AutoDelta}


def local_model(x: Tensor) -> None:
    """One global and N local latents, in a plate over all data."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N):
        z = pyro.sample("z", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def global_model(x: Tensor) -> None:
    """One global latent, in a plate over all data."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N):
        pyro.sample("x", dist.Normal(a, 1.0), obs=x)


def vae_model(x: Tensor) -> None:
    """Local latents only, in a plate over the batch."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def vae_guide(x: Tensor) -> None:
    w = pyro.param("w", torch.tensor(0.4))
    s = pyro.param("s", torch.tensor(0.9), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(w * x, s))


# Data as rows


class Numbered(Dataset[tuple[Tensor, int]]):
    """Rows of a vector and a label, one at a time."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.full((2,), float(i)), i


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Any:
        return iter(torch.zeros(3))


@pytest.mark.parametrize(
    ("data", "shapes"),
    [
        (torch.zeros(4, 2), [(4, 2)]),
        (np.zeros((4, 2)), [(4, 2)]),
        (np.zeros((4, 2))[::-1], [(4, 2)]),
        (np.zeros(4, dtype=">f8"), [(4,)]),
        ((torch.zeros(4), np.zeros((4, 3))), [(4,), (4, 3)]),
        ([torch.zeros(4), torch.zeros(4)], [(4,), (4,)]),
        (TensorDataset(torch.zeros(4), torch.zeros(4, 2)), [(4,), (4, 2)]),
        (Numbered(), [(N, 2), (N,)]),
        (DataLoader(Numbered(), batch_size=2, shuffle=True), [(N, 2), (N,)]),
        (None, []),
        ((), []),
    ],
    ids=["tensor", "array", "reversed", "endian", "tuple", "list", "tensors", "dataset", "loader", "none", "no_args"],
)
def test_data_of_every_kind_becomes_rows(data: Any, shapes: list[tuple[int, ...]]) -> None:
    rows = as_rows(data)
    assert [tuple(row.shape) for row in rows] == shapes
    assert all(isinstance(row, Tensor) for row in rows)


def test_a_dataset_keeps_its_rows_in_order_and_a_loader_its_collate_fn() -> None:
    vectors, labels = as_rows(Numbered())
    assert torch.equal(labels, torch.arange(N))
    assert torch.equal(vectors[:, 0], torch.arange(N).double())
    doubled = DataLoader(Numbered(), collate_fn=lambda items: torch.stack([2 * v for v, _ in items]))
    (rows,) = as_rows(doubled)
    assert torch.equal(rows, 2 * vectors)


def test_a_read_only_array_is_taken_without_a_warning() -> None:
    array = np.zeros(3)
    array.setflags(write=False)
    assert torch.equal(as_rows(array)[0], torch.zeros(3))


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (torch.zeros(0, 3), ValueError, r"data has no rows \(shapes \[\(0, 3\)\]\).*at least one"),
        ([], ValueError, "data has no rows.*takes None"),
        (TensorDataset(torch.zeros(0)), ValueError, "data has no rows"),
        ((torch.zeros(3), torch.zeros(4)), ValueError, r"lengths \[3, 4\].*common leading axis.*Cut them"),
        (torch.tensor(1.0), ValueError, "data is a single number.*reshape"),
        (torch.tensor([1.0, float("nan")]), ValueError, r"NaN or inf in 1 of 2 rows, the first at row 1.*obs_mask"),
        ((torch.zeros(2), np.array([np.inf, 0.0])), ValueError, r"data\[1\] has NaN or inf in 1 of 2 rows.*row 0"),
        ("file.csv", TypeError, "data is a str.*torch.as_tensor"),
        ({"x": torch.zeros(3)}, TypeError, "data is a dict"),
        (np.array(["a"]), TypeError, "data is a ndarray of dtype <U1"),
        (Stream(), TypeError, "Stream without a length.*Collect it"),
        (DataLoader(Numbered(), sampler=WeightedRandomSampler([1.0] * N, N)), TypeError, "WeightedRandom.*Subset"),
    ],
    ids=["empty", "list", "tensors", "lengths", "scalar", "nan", "inf", "text", "dict", "strings", "stream", "sampler"],
)
def test_bad_data_are_refused(data: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        as_rows(data)


def test_the_hash_tells_data_apart() -> None:
    x = torch.arange(6.0)
    hashes = {data_hash(rows) for rows in ((x,), (x.reshape(2, 3),), (x.float(),), (x, x), (x + 1e-12,))}
    assert len(hashes) == 5
    assert data_hash((x.clone(),)) == data_hash((x,))


def test_an_epoch_has_every_row_once_in_an_order_of_its_own() -> None:
    orders = [epoch_order(50, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(torch.equal(order.sort().values, torch.arange(50)) for order in orders)
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(orders, 2))
    assert torch.equal(orders[0], epoch_order(50, 0, 0))


def test_chunks_cover_all_rows_in_order() -> None:
    rows = (torch.arange(7.0),)
    chunks = list(minibatches(rows, 3))
    assert [len(index) for index, _ in chunks] == [3, 3, 1]
    assert torch.equal(torch.cat([chunk for _, (chunk,) in chunks]), rows[0])
    assert all(torch.equal(rows[0][index], chunk) for index, (chunk,) in chunks)


# The data plate found


def looped(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    for i in pyro.plate("data", N):
        pyro.sample(f"x_{i}", dist.Normal(a, 1.0), obs=x[i])


def two_plates(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", N):
        pyro.sample("x", dist.Normal(a, 1.0), obs=x)
    with pyro.plate("others", N):
        pyro.sample("y", dist.Normal(a, 1.0), obs=torch.tensor(X))


def features(x: Tensor) -> None:
    with pyro.plate("features", 2):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N):
        pyro.sample("x", dist.Normal(a.sum(), 1.0), obs=x)


def no_plate(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(a, 1.0).expand(x.shape).to_event(1), obs=x)


def wrong_size(x: Tensor) -> None:
    with pyro.plate("data", 50):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def own_subsample(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N, subsample=torch.tensor([0, 1])):
        pyro.sample("x", dist.Normal(a, 1.0), obs=x[:2])


def own_size(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N, subsample_size=3):
        pyro.sample("x", dist.Normal(a, 1.0), obs=x[:3])


@pytest.mark.parametrize(
    ("model", "batch", "name", "found"),
    [
        (local_model, N, None, ("data", N, True)),
        (local_model, 2, None, ("data", N, True)),
        (vae_model, 2, None, ("data", 2, False)),
        (vae_model, N, None, ("data", N, False)),
        (features, 2, None, ("data", N, True)),
        (features, 2, "data", ("data", N, True)),
        (two_plates, 2, "rows", ("rows", N, True)),
        (two_plates, N, None, (None, N, False)),
        (no_plate, N, None, (None, N, False)),
        (looped, N, None, ("data", N, True)),
    ],
)
def test_the_data_plate_is_found(
    model: Callable[..., Any], batch: int, name: str | None, found: tuple[str | None, int, bool]
) -> None:
    plate = find_data_plate(model, (torch.tensor(X)[:batch],), N, name)
    assert (plate.name, plate.size, plate.scaled) == found


@pytest.mark.parametrize(
    ("model", "batch", "name", "words"),
    [
        (no_plate, 2, None, rf"minibatches of 2 of {N} rows need a plate.*no plates.*pyro.plate\('data', {N}\)"),
        (two_plates, 2, None, r"plates \['rows', 'others'\] could each be.*data_plate='rows'"),
        (local_model, N, "rows", r"data_plate='rows': the model has no plate of that name, only \['data'\]"),
        (wrong_size, N, None, rf"{N} rows need a plate.*'data': 50.*pyro.plate\('data', {N}\)"),
        (wrong_size, 2, None, rf"minibatches of 2 of {N} rows.*'data': 50.*pyro.plate\('data', {N}\)"),
        (own_subsample, 2, None, rf"plate 'data' has a subsample= of its own.*2 rows.*pyro.plate\('data', {N}\)"),
        (own_size, 2, None, r"plate 'data' has subsample_size=3, but model and guide get 2 rows.*batch_size=3"),
        (looped, 2, None, rf"plate 'data' is a loop over rows.*2 of {N} rows.*with pyro.plate\('data', {N}\)"),
    ],
)
def test_a_plate_that_cannot_be_told_is_refused(
    model: Callable[..., Any], batch: int, name: str | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        find_data_plate(model, (torch.tensor(X)[:batch],), N, name)


def test_a_batch_sized_plate_with_global_latents_is_refused() -> None:
    def model(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(a, 1.0), obs=x)

    with pytest.raises(ValueError, match=rf"over the 2 rows of the batch.*\['a'\] lie outside.*3 times.*'data', {N}\)"):
        find_data_plate(model, (torch.tensor(X)[:2],), N, None)
    assert not find_data_plate(model, (torch.tensor(X),), N, None).scaled


# The data plate told


@pytest.mark.parametrize("kind", [*GUIDES, "list", "wrapped", "blocked"])
def test_model_and_guide_have_the_rows_of_the_batch(kind: str) -> None:
    guide: Any
    if kind == "list":
        guide = AutoGuideList(local_model)
        guide.append(AutoDelta(poutine.block(local_model, expose=["a"])))
        guide.append(AutoNormal(poutine.block(local_model, expose=["z"])))
    elif kind == "wrapped":
        inner = AutoNormal(local_model)
        guide = lambda x: inner(x)  # noqa: E731
    else:
        guide = poutine.block(AutoNormal(local_model)) if kind == "blocked" else GUIDES[kind](local_model)
    plate = DataPlate("data", N, scaled=True)
    for rows in ([3, 1, 4], [5, 0, 2], [2]):  # the last batch is smaller
        index = torch.tensor(rows)
        with plate.rows(index), tell_autoguide(guide, plate):
            guide_trace = poutine.trace(guide).get_trace(torch.tensor(X)[index])
            trace = poutine.trace(poutine.replay(local_model, trace=guide_trace)).get_trace(torch.tensor(X)[index])
        seen = [trace] if kind == "blocked" else [trace, guide_trace]
        assert all(torch.equal(t.nodes["data"]["value"], index) for t in seen)
        assert trace.nodes["z"]["scale"] == N / len(rows)
    size = {n: p.shape for n, p in pyro.get_param_store().named_parameters() if "z" in n}
    assert set(size.values()) == {torch.Size([N])}


def test_an_autoguide_trains_the_parameters_of_its_rows_only() -> None:
    """Pyro by itself draws rows of its own: others' parameters would move."""
    guide = AutoNormal(local_model, init_scale=0.5)
    fit(local_model, guide, torch.tensor(X), steps=1, batch_size=2, seed=0, lr=0.1, progress=False)
    moved = (pyro.param("AutoNormal.scales.z") != 0.5).nonzero().flatten()
    assert set(moved.tolist()) == set(epoch_order(N, 0, 0)[:2].tolist())


def test_an_autoguide_works_on_all_data_after_training_on_batches() -> None:
    guide = AutoNormal(local_model)
    fit(local_model, guide, torch.tensor(X), steps=3, batch_size=2, seed=0, progress=False)
    trace = poutine.trace(guide).get_trace(torch.tensor(X))
    assert trace.nodes["z"]["value"].shape == (N,)
    assert torch.isfinite(torch.as_tensor(BaNEL_ELBO().loss(local_model, guide, torch.tensor(X))))
    assert guide.create_plates is None


def test_chunks_of_a_draw_share_global_latents_and_get_their_own_rows() -> None:
    guide = AutoNormal(local_model)
    plate = DataPlate("data", N, scaled=True)
    draws = list(trace_draws(local_model, guide, (torch.tensor(X),), plate, num_samples=2, batch_size=4))
    assert [draw.rows.tolist() for draw in draws] == 2 * [[0, 1, 2, 3], [4, 5]]
    assert [(draw.number, draw.chunk) for draw in draws] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    values = [float(draw.model_trace.nodes["a"]["value"]) for draw in draws]
    assert values[0] == values[1] != values[2] == values[3]


# Unbiased gradients


def plain_guide(x: Tensor) -> None:
    """A global latent; the local ones from parameters of their own and from the row."""
    m, w = pyro.param("m", torch.tensor(0.2)), pyro.param("w", torch.tensor(0.4))
    s = pyro.param("s", torch.tensor(0.7), constraint=constraints.positive)
    a = pyro.sample("a", dist.Normal(m, s))
    with pyro.plate("data", N):
        own = pyro.param("own", torch.linspace(-1.0, 1.0, N), event_dim=0)
        pyro.sample("z", dist.Normal(w * x + own + 0.3 * a, s))


class FrozenNoise(poutine.messenger.Messenger):
    """Draws z of each row by noise that depends on the row alone, so that all batches share it."""

    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.noise = torch.randn(N, generator=torch.Generator().manual_seed(3))

    def _pyro_sample(self, msg: Any) -> None:
        if msg["value"] is None and msg["name"] in ("a", "z"):
            rows = self.rows if msg["cond_indep_stack"] else torch.tensor(0)
            msg["value"] = msg["fn"].loc + msg["fn"].scale * self.noise[rows]
            msg["done"] = True


@pytest.mark.parametrize("lam", [0.0, 0.4])
def test_the_expected_gradient_is_the_same_for_every_batch_size(lam: float) -> None:
    """Exact: averaged over all choices of rows, with the noise of a row frozen."""
    x = torch.tensor(X)
    elbo, plate = BaNEL_ELBO(lam=lam), DataPlate("data", N, scaled=True)
    noise = FrozenNoise()

    def gradient(rows: tuple[int, ...]) -> dict[str, Tensor]:
        index = torch.tensor(rows)
        noise.rows = index
        store = pyro.get_param_store()
        with noise, plate.rows(index):
            loss, _, _ = elbo.loss_and_terms(local_model, plain_guide, x[index])
        parameters = dict(store._params)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        return dict(zip(parameters, gradients, strict=True))

    full = gradient(tuple(range(N)))
    for size in (1, 2, 4):
        choices = list(itertools.combinations(range(N), size))
        found = [gradient(rows) for rows in choices]
        for name, value in full.items():
            mean = torch.stack([g[name] for g in found]).mean(0)
            torch.testing.assert_close(mean, value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 2, 4, None])
def test_an_epoch_of_a_local_pair_sums_to_the_full_gradient(batch_size: int | None) -> None:
    """A plate over ``len(x)``: the totals of an epoch's batches add up to those of all rows."""
    result = fit(
        vae_model, vae_guide, torch.tensor(X), steps=-(-N // (batch_size or N)), batch_size=batch_size, seed=0,
        optim=lambda parameters: torch.optim.SGD(parameters, lr=1e-300), log_every=1, progress=False,
    )  # fmt: skip
    sizes = [min(batch_size or N, N - i) for i in range(0, N, batch_size or N)]
    entropy = (result.history["entropy"] * sizes).sum()
    per_row = 0.5 * torch.log(2 * torch.pi * torch.e * torch.tensor(0.81))
    assert entropy == pytest.approx(N * float(per_row), rel=1e-12)


def test_the_fit_of_a_conjugate_pair_agrees_for_every_batch_size() -> None:
    """The posterior of the mean is exact whatever the batch: a gradient scaled wrongly would move sd or mean."""
    x = torch.tensor(X)
    exact_mean, exact_sd = x.sum() / (N + 1), (N + 1) ** -0.5
    for batch_size in (1, None):
        with pyro.get_param_store().scope():
            guide = AutoNormal(global_model)
            for steps, lr in ((300, 0.05), (300, 0.01), (300, 0.002)):
                fit(global_model, guide, x, steps=steps, batch_size=batch_size, lr=lr, seed=1, progress=False)
            assert guide.locs.a.item() == pytest.approx(float(exact_mean), abs=0.05)
            assert guide.scales.a.item() == pytest.approx(float(exact_sd), rel=0.15)


# What fit makes of it


def test_a_loader_says_the_batch_size() -> None:
    loader = DataLoader(TensorDataset(torch.tensor(X)), batch_size=2)
    result = fit(local_model, AutoNormal(local_model), loader, epochs=1, seed=0, progress=False)
    assert result.config["batch_size"] == 2
    assert result.config["steps"] == 3
    with pyro.get_param_store().scope():
        mine = fit(local_model, AutoNormal(local_model), loader, epochs=1, batch_size=3, seed=0, progress=False)
    assert mine.config["steps"] == 2


def test_rows_of_a_tuple_go_together() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def model(x: Tensor, y: Tensor) -> None:
        seen.append((x, y))
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(a * x, 1.0), obs=y)

    x = torch.tensor(X)
    fit(model, AutoNormal(model), (x, 10 * x), epochs=2, batch_size=4, seed=0, progress=False)
    assert all(torch.equal(y, 10 * x) for x, y in seen)
    assert {len(x) for x, _ in seen} == {2, 4}


def test_a_transform_sees_training_batches_only() -> None:
    seen: list[int] = []

    def transform(rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(len(rows[0]))
        return (rows[0] + 100,)

    split = Split(torch.tensor(X), held_out=torch.zeros(3), transform=transform)
    result = fit(vae_model, vae_guide, split, epochs=2, batch_size=4, seed=0, log_every=1, progress=False)
    assert set(seen) == {2, 4}
    assert result.history["log_likelihood"].max() < -1000
    assert result.history["val_elbo"].iloc[-1] > -100


@pytest.mark.parametrize(
    ("transform", "error", "words"),
    [
        (lambda rows: rows[0], TypeError, r"transform returned a Tensor: expected a tuple.*\(x,\)"),
        (lambda rows: (rows[0][:1],), ValueError, r"transform returned \[1\] rows for 2"),
    ],
)
def test_a_transform_that_returns_something_else_is_refused(
    transform: Callable[..., Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        fit(vae_model, vae_guide, Split(torch.tensor(X), transform=transform), epochs=1, batch_size=2, progress=False)


def test_local_parameters_of_a_batch_sized_plate_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'data' is written over the 2 rows.*AutoNormal.*different rows would share"):
        fit(vae_model, AutoNormal(vae_model), torch.tensor(X), steps=1, batch_size=2, progress=False)


def test_a_plate_of_another_size_in_the_guide_is_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", N):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match=rf"plate 'data' at site 'z' has {N} rows in the model and 2 in the guide"):
        fit(model, vae_guide, torch.tensor(X), steps=1, batch_size=2, progress=False)


def test_a_plate_that_does_not_fit_the_last_batch_is_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"last batch of an epoch has 2 rows instead of 4.*divides the data"):
        fit(model, vae_guide, torch.tensor(X), steps=1, batch_size=4, progress=False)


def test_a_joint_autoguide_with_local_latents_in_batches_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'_AutoMultivariateNormal_latent'.*'z'.*subsampled plate 'data' \(2 of 6"):
        fit(local_model, AutoMultivariateNormal(local_model), torch.tensor(X), steps=1, batch_size=2, progress=False)


def test_vectorised_particles_and_minibatches_go_together() -> None:
    elbo = BaNEL_ELBO(num_particles=3, vectorize_particles=True)
    guide = AutoNormal(local_model)
    result = fit(local_model, guide, torch.tensor(X), objective=elbo, steps=3, batch_size=4, seed=0, progress=False)
    assert result.history["elbo"].notna().all()
    assert elbo.max_plate_nesting == float("inf")
