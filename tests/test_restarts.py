"""Restarts: runs that differ in their seed alone, judged by the untempered ELBO of held-out rows."""

import os
import signal
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

from banel_pyro import CollapseDetector, Event, NonFiniteError, Pair, Split, restarts
from tests.test_callbacks import make as network

pytestmark = pytest.mark.usefixtures("float64")

OPTIONS: dict[str, Any] = {"steps": 400, "lr": 0.05, "progress": False, "posterior_samples": 0}
PEAKS = (-4.0, 4.0)
WEIGHTS = (0.2, 0.8)


def mixture() -> Pair:
    """A posterior with two far peaks of unequal weight; a run falls to the one near which its seed starts it."""

    def model() -> None:
        peaks = dist.MixtureSameFamily(dist.Categorical(torch.tensor(WEIGHTS)), dist.Normal(torch.tensor(PEAKS), 0.5))
        pyro.sample("z", peaks)

    start = torch.tensor(PEAKS[torch.initial_seed() % 2])

    def guide() -> None:
        loc, scale = pyro.param("loc", start), pyro.param("scale", torch.tensor(0.3), constraint=constraints.positive)
        pyro.sample("z", dist.Normal(loc, scale))

    return Pair(model, guide, data=tuple)


def test_the_best_is_the_peak_with_more_weight() -> None:
    """Alone in its peak, the guide is exact there: the ELBO is the log of the peak's weight."""
    found = restarts(mixture, seeds=3, **OPTIONS)
    sides = {seed: float(torch.as_tensor(result.posterior().posterior["z"].mean().item())) > 0
             for seed, result in found.results.items()}  # fmt: skip
    assert set(sides.values()) == {True, False}
    for seed, right in sides.items():
        row = found.table.loc[seed]
        expected = torch.tensor(WEIGHTS[int(right)]).log().item()
        assert abs(row["elbo"] - expected) < 4 * row["elbo_stderr"] + 0.02
    best = next(seed for seed, result in found.results.items() if result is found.best)
    assert sides[best]
    assert found.table["rows"].unique().tolist() == ["training"]


def test_every_run_keeps_its_own_parameters() -> None:
    pyro.param("loc", torch.tensor(7.0))
    found = restarts(mixture, seeds=[3, 4], **OPTIONS | {"steps": 5})
    assert dict(pyro.get_param_store().named_parameters()).keys() == {"loc"}
    locs = []
    for result in found.results.values():
        with result.scope():
            locs.append(pyro.param("loc").item())
    assert len({7.0, *locs}) == 3
    assert pyro.param("loc").item() == 7.0


def test_runs_are_judged_by_held_out_rows_without_lambda() -> None:
    """The ELBO of a linear-Gaussian pair as its own formula gives it, whatever λ is."""
    found = restarts(network, seeds=2, **OPTIONS | {"steps": 30, "lam": 0.7, "batch_size": 4, "num_samples": 400})
    assert found.table["rows"].tolist() == ["held-out"] * 2
    for seed, result in found.results.items():
        elbo = found.table.loc[seed, "elbo"]
        with result.scope(), torch.no_grad():
            x = result.held_out[0]
            result.guide.eval()
            loc, raw = result.guide.encode(x).chunk(2, -1)
            scale = torch.nn.functional.softplus(raw) + 1e-3
            kl = torch.distributions.kl_divergence(
                torch.distributions.Normal(loc, scale), torch.distributions.Normal(0.0, 1.0)
            ).sum()
            w, b = result.model.decode.weight[:, 0], result.model.decode.bias
            squares = (x - loc * w - b) ** 2 + scale**2 * w**2
            expected = (-0.5 * squares - 0.5 * torch.log(torch.tensor(2 * torch.pi))).sum() - kl
        assert abs(elbo - float(expected) / 2) < 5 * found.table.loc[seed, "elbo_stderr"]


def test_the_same_seeds_give_the_same_runs_and_the_same_rows() -> None:
    def drawn() -> Pair:
        return Pair(network().model, network().guide, data=lambda: Split(torch.randn(8, 3), torch.randn(4, 3)))

    one, two = (restarts(drawn, seeds=[1, 2], **OPTIONS | {"steps": 3}) for _ in range(2))
    assert one.table.equals(two.table)
    assert torch.equal(one.results[1].rows[0], one.results[2].rows[0])
    assert not one.results[1].history["elbo"].equals(one.results[2].history["elbo"])


def failing() -> Pair:
    """Breaks down for odd seeds."""
    bad = torch.initial_seed() % 2 == 1

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        calls.append(1)
        pyro.factor("f", torch.log(z * 0 - 1.0) if bad and len(calls) > 20 else z * 0)

    calls: list[int] = []

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))

    return Pair(model, guide, data=lambda: torch.ones(1))


def test_runs_that_break_down_are_told_and_passed_over() -> None:
    found = restarts(failing, seeds=[1, 2], **OPTIONS | {"steps": 30})
    assert list(found.results) == [2]
    assert found.best is found.results[2]
    assert "NonFiniteError: step" in found.table.loc[1, "stopped"]
    with pytest.raises(ValueError, match=r"every run broke down \(seed 1: NonFiniteError.*seed 3: NonFiniteError"):
        restarts(failing, seeds=[1, 3], **OPTIONS | {"steps": 30})
    assert NonFiniteError is not CollapseDetector


def test_runs_have_folders_and_go_on(tmp_path: Path) -> None:
    first = restarts(network, seeds=2, out=tmp_path, **OPTIONS | {"steps": 6})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed=0", "seed=1"]
    again = restarts(network, seeds=3, out=tmp_path, resume=True, **OPTIONS | {"steps": 6})
    assert again.table.iloc[:2].equals(first.table)
    assert len(again.table) == 3


def test_a_pair_that_is_not_fresh_is_refused() -> None:
    """Its second run would go on where the first one ended, and change the first one's result."""
    shared = network()
    with pytest.raises(ValueError, match=r"the same \['Decoder', 'Encoder'\] as before: expected a fresh pair"):
        restarts(lambda: Pair(shared.model, shared.guide, data=shared.data), seeds=2, **OPTIONS | {"steps": 3})
    with pytest.raises(ValueError, match="num_samples=1: expected an integer of at least 2"):
        restarts(network, seeds=2, num_samples=1, **OPTIONS)


def press(event: Event) -> None:
    if event.kind == "step" and event.step == 2 and event.result.config["seed"] == 1:
        os.kill(os.getpid(), signal.SIGINT)


def test_after_ctrl_c_there_is_what_has_ended() -> None:
    found = restarts(network, seeds=3, callbacks=[press], **OPTIONS | {"steps": 6})
    assert list(found.results) == [0]
    assert found.table["stopped"].tolist() == ["", "interrupted"]
    with pytest.raises(KeyboardInterrupt):
        restarts(network, seeds=[1], callbacks=[press], **OPTIONS | {"steps": 6})


@pytest.mark.parametrize(
    ("seeds", "error", "words"),
    [
        (0, ValueError, "seeds=0: expected an integer of at least 1"),
        ([], ValueError, r"seeds=\[\]: expected different seeds, or how many"),
        ([1, 1], ValueError, r"seeds=\[1, 1\]: expected different seeds"),
        ([-1], ValueError, "seed=-1: expected an integer of at least 0"),
        (1.5, TypeError, "seeds=1.5: expected an integer"),
    ],
)
def test_bad_seeds_are_refused(seeds: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        restarts(network, seeds=seeds, **OPTIONS)
