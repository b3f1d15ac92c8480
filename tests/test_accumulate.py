"""Gradient accumulation: a step of k batches is a step of one batch k times as large."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

from banel_pyro import BaNEL_ELBO, Split, fit

pytestmark = pytest.mark.usefixtures("float64")

N = 10
Model = Callable[[Tensor], None]


def rows() -> Tensor:
    return torch.linspace(-1.0, 2.0, N)


def scaled_model(x: Tensor) -> None:
    """A global and a local latent; the plate is over all rows."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N):
        z = pyro.sample("z", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def still_guide(x: Tensor) -> None:
    """Point masses: no noise, so that any split of the rows must give the same numbers."""
    pyro.sample("a", dist.Delta(pyro.param("m", torch.tensor(0.1))))
    with pyro.plate("data", N):
        pyro.sample("z", dist.Delta(pyro.param("w", torch.tensor(0.2)) * x + pyro.param("b", torch.tensor(0.0))))


def batch_model(x: Tensor) -> None:
    """A plate over the rows of the batch, whose totals Pyro does not scale."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def still_batch_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Delta(pyro.param("w", torch.tensor(0.2)) * x + pyro.param("b", torch.tensor(0.0))))


def run(model: Model, guide: Model, **options: Any) -> tuple[dict[str, Tensor], pd.DataFrame]:
    with pyro.get_param_store().scope():
        options = {"steps": 12, "lr": 0.05, "log_every": 1, "progress": False, "seed": 1} | options
        history = fit(model, guide, rows(), **options).history
        return {n: p.detach().clone() for n, p in pyro.get_param_store().named_parameters()}, history


def close(one: tuple[dict[str, Tensor], pd.DataFrame], other: tuple[dict[str, Tensor], pd.DataFrame]) -> bool:
    same = all(torch.allclose(one[0][n], other[0][n], rtol=0, atol=1e-12) for n in one[0] | other[0])
    columns = ["step", "epoch", "log_likelihood", "kl", "loss", "grad_norm"]
    return same and np.allclose(one[1][columns], other[1][columns], rtol=0, atol=1e-11)


@pytest.mark.parametrize(("batch", "times"), [(1, 4), (2, 2), (3, 2), (2, 5), (4, 2)])
@pytest.mark.parametrize(("model", "guide"), [(scaled_model, still_guide), (batch_model, still_batch_guide)])
def test_k_batches_equal_one_k_times_as_large(model: Model, guide: Model, batch: int, times: int) -> None:
    """Also where the last step of an epoch, or the last batch of a step, is smaller: 10 rows in threes or eights."""
    assert close(run(model, guide, batch_size=batch, accumulate=times), run(model, guide, batch_size=batch * times))


def test_it_is_not_the_same_as_small_steps() -> None:
    assert not close(
        run(scaled_model, still_guide, batch_size=2, accumulate=2), run(scaled_model, still_guide, batch_size=2)
    )


def test_the_transform_sees_all_rows_of_a_step_at_once() -> None:
    sizes: list[int] = []

    def counted(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        sizes.append(len(batch[0]))
        return batch

    split = Split(rows(), transform=counted)
    fit(batch_model, still_batch_guide, split, steps=4, batch_size=2, accumulate=3, seed=1, progress=False)
    assert sizes[-4:] == [6, 4, 6, 4]


def noisy_guide(x: Tensor) -> None:
    s = pyro.param("s", torch.tensor(0.5), constraint=constraints.positive)
    a = pyro.sample("a", dist.Normal(pyro.param("m", torch.tensor(0.1)), s))
    with pyro.plate("data", N):
        pyro.sample("z", dist.Normal(a + pyro.param("w", torch.tensor(0.2)) * x, s))


def test_gradients_and_terms_have_the_same_expectation() -> None:
    """With noise and an entropy penalty: at the first step, over many seeds, within four standard errors."""

    def first(seed: int, **options: Any) -> np.ndarray:
        with pyro.get_param_store().scope():
            row = fit(
                scaled_model, noisy_guide, rows(), steps=1, seed=seed, progress=False, objective=BaNEL_ELBO(lam=0.4),
                collapse=None, optim=torch.optim.SGD, lr=1.0, **options,
            ).history.iloc[-1]  # fmt: skip
            moved = [float(p.detach()) for _, p in sorted(pyro.get_param_store().named_parameters())]
            return np.array([row["elbo"], row["entropy"], row["penalty"], *moved])

    small = np.stack([first(seed, batch_size=2, accumulate=5) for seed in range(200)])
    large = np.stack([first(seed, batch_size=10) for seed in range(1000, 1200)])
    error = np.sqrt(small.var(0, ddof=1) / len(small) + large.var(0, ddof=1) / len(large))
    difference = np.abs(small.mean(0) - large.mean(0))
    assert (difference <= 4 * error + 1e-9).all(), (difference, error)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"accumulate": 2}, ValueError, "accumulate=2 needs batches: give batch_size="),
        ({"accumulate": 0, "batch_size": 2}, ValueError, "accumulate=0: expected an integer of at least 1"),
        ({"accumulate": 1.5, "batch_size": 2}, TypeError, "accumulate=1.5: expected an integer"),
        ({"accumulate": 4, "batch_size": 3}, ValueError, "4 batches of 3 rows are more than the 10 rows.*accumulate=3"),
    ],
)
def test_bad_numbers_are_refused(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        run(scaled_model, still_guide, **options)


def test_a_fault_in_a_later_batch_is_found() -> None:
    """The log of a negative number, in the batch that holds the last row."""
    from banel_pyro import NonFiniteError

    def breaking(x: Tensor) -> None:
        with pyro.plate("data", N):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + torch.log(1.9 - x), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal(pyro.param("w", torch.tensor(0.2)) * x, 1.0))

    with pytest.raises((NonFiniteError, ValueError), match="x"):
        run(breaking, guide, batch_size=2, accumulate=2, log_every=3)
