"""The exploration posterior: exact on the bins, counted, and never a loop."""

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from scipy import stats
from torch import Tensor

from banel_pyro.inference_data import group, group_names, read_netcdf, write_netcdf
from banel_pyro.negative import (
    AcceptanceError,
    ExplorationPosterior,
    Generator,
    LikelihoodRatio,
    RandomScore,
    Region,
    Regions,
)
from banel_pyro.seeding import fork_rng
from models.bins import FIRST_FAILURES, NUM_BINS, SmoothedHistogram, acceptance, number, posterior_table, prior

pytestmark = pytest.mark.usefixtures("float64")

X = torch.arange(NUM_BINS)
NOTHING = Region(RandomScore(0), 1.0)
"""Rejects every candidate."""


def regions() -> Regions:
    """Two of the toy, which leave about a quarter."""
    failures = SmoothedHistogram.fitted(number(torch.tensor(FIRST_FAILURES)))
    return Regions([Region(LikelihoodRatio(prior(), failures), 0.05), Region(RandomScore(5), 0.4)])


def posterior(**options: Any) -> ExplorationPosterior:
    return ExplorationPosterior(prior(), regions(), **options)


# ---- exact ---------------------------------------------------------------------------------------


def law_sampler(draws: int = 20_000) -> None:
    """Frequencies are those of the exactly normalised posterior: chi-square over several seeds, Bonferroni at 1 %."""
    exact = posterior_table(prior(), regions()).exp()
    p_values = []
    for seed in range(5):
        with fork_rng(seed):
            counts = torch.bincount(posterior(batch_size=700).sample((draws,)), minlength=NUM_BINS).double()
        assert counts[exact == 0].sum() == 0
        seen = exact > 0
        p_values.append(stats.chisquare(counts[seen], draws * exact[seen] / exact[seen].sum()).pvalue)
    assert draws * exact[exact > 0].min() > 5, "or chi-square is no approximation"
    assert min(p_values) > 0.01 / 5


def test_the_sampler_matches_the_exact_posterior() -> None:
    law_sampler()


def test_log_prob_differs_from_the_exact_one_by_one_constant() -> None:
    exact, found = posterior_table(prior(), regions()), posterior().log_prob(X).detach()
    inside = regions().rejects(X)
    assert (found[inside] == -math.inf).all()
    difference = (exact - found)[~inside]
    assert torch.allclose(difference, torch.tensor(-math.log(acceptance(prior(), regions()))), atol=1e-12)
    assert 0 < inside.sum() < NUM_BINS


def test_log_prob_has_the_gradient_of_the_generator_outside() -> None:
    base = prior()
    found = ExplorationPosterior(base, regions(), batch_size=7).log_prob(X)
    kept = ~regions().rejects(X)
    found[kept].sum().backward()  # type: ignore[no-untyped-call]
    gradient, base.logits.grad = base.logits.grad, None
    base.log_prob(X)[kept].sum().backward()
    assert torch.allclose(gradient, base.logits.grad)


def law_acceptance_is_counted() -> None:
    """P(accept) within 4 standard errors, with the error that it claims over seeds; the tally adds up."""
    exact = acceptance(prior(), regions())
    z = []
    for seed in range(40):
        with fork_rng(seed):
            found = posterior(batch_size=256)
            found.sample((300,))
        assert found.acceptance.stderr > 0
        z.append((found.acceptance.value - exact) / found.acceptance.stderr)
        assert found.tally.drawn == found.tally.accepted + sum(found.tally.rejected)
        assert found.tally.accepted >= 300
    assert max(map(abs, z)) < 4
    assert abs(sum(z)) / math.sqrt(len(z)) < 3
    assert 0.6 < torch.tensor(z).std() < 1.4


def test_acceptance_is_counted() -> None:
    law_acceptance_is_counted()


def test_without_regions_it_is_the_generator() -> None:
    free = ExplorationPosterior(prior())
    assert free.log_prob(X).equal(prior().log_prob(X))
    with fork_rng(3):
        found = free.sample((50,))
    with fork_rng(3):
        assert found.equal(prior().sample(50))
    assert (free.acceptance.value, free.acceptance.stderr, free.tally.drawn) == (1, 0, 50)


# ---- draws ---------------------------------------------------------------------------------------


def test_draws_are_kept_with_what_rejected_them() -> None:
    found = posterior(batch_size=64)
    with fork_rng(1):
        draws = found.sample_with_draws(200)
    with fork_rng(1):
        assert draws.x.equal(posterior(batch_size=64).sample((200,)))
    assert draws.x.equal(draws.raw[draws.which < 0][:200])
    assert draws.which.equal(regions().which(draws.raw))
    assert len(draws.raw) == found.tally.drawn
    assert [int((draws.which == place).sum()) for place in range(2)] == found.tally.rejected
    assert set(draws.which.tolist()) == {-1, 0, 1}


def test_a_seed_gives_the_same_draws_whatever_came_before() -> None:
    fresh, used = posterior(), posterior()
    used.sample((1000,))
    found = []
    for one in (fresh, used):
        with fork_rng(7):
            found.append(one.sample((100,)))
    assert found[0].equal(found[1])


def test_not_many_more_draws_are_made_than_needed() -> None:
    found = posterior()
    found.sample((500,))
    assert found.tally.accepted < 1.5 * 500
    assert found.tally.drawn < 1.5 * 500 / acceptance(prior(), regions())


def test_batch_shapes() -> None:
    found = posterior().expand([3])
    assert (found.batch_shape, found.event_shape) == ((3,), ())
    assert found.sample().shape == (3,)
    assert found.sample((5,)).shape == (5, 3)
    assert found.sample((0,)).shape == (0, 3)
    assert found.log_prob(X[:3]).shape == (3,)
    assert found.log_prob(X[0]).shape == (3,)
    assert found.log_prob(X[:6].reshape(2, 3)).flatten().equal(posterior().log_prob(X[:6]))


class Pairs(Generator):
    """Two numbers each, in float32."""

    @property
    def event_shape(self) -> torch.Size:
        return torch.Size([2])

    def sample(self, n: int) -> Tensor:
        return torch.randn(n, 2, dtype=torch.float32)

    def log_prob(self, x: Tensor) -> Tensor:
        return dist.Normal(0.0, 1.0).log_prob(x).sum(-1)


def test_candidates_with_a_shape_of_their_own() -> None:
    found = ExplorationPosterior(Pairs(), Region(RandomScore(0), 0.5), batch_size=10).expand([4])
    x = found.sample((6,))
    assert (x.shape, x.dtype) == ((6, 4, 2), torch.float32)
    assert found.log_prob(x).shape == (6, 4)
    assert found.log_prob(x).isfinite().all()
    assert found.sample_with_draws(3).raw.shape[1:] == (2,)


def test_it_is_drawn_from_in_a_model() -> None:
    found = posterior()

    def model() -> Tensor:
        with pyro.plate("candidates", 4):
            x = pyro.sample("x", found)
            pyro.sample("y", dist.Normal(x.double(), 1.0))
        return x

    trace = poutine.trace(model).get_trace()
    assert not regions().rejects(trace.nodes["x"]["value"]).any()
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob"].equal(prior().log_prob(trace.nodes["x"]["value"]))
    draws = Predictive(model, num_samples=30)()
    assert draws["x"].shape == (30, 4)
    assert not regions().rejects(draws["x"].flatten()).any()
    assert Predictive(model, num_samples=30, parallel=True)()["x"].numel() == 120
    assert found.tally.accepted >= 4 + 2 * 120, "the copies that a plate expands count too"
    observed = poutine.trace(poutine.condition(model, {"x": X[:4]})).get_trace()
    observed.compute_log_prob()
    assert observed.nodes["x"]["log_prob"].isinf().equal(regions().rejects(X[:4]))


# ---- the cap -------------------------------------------------------------------------------------


def test_an_acceptance_of_nothing_raises_with_the_figures() -> None:
    found = ExplorationPosterior(prior(), Regions([Region(RandomScore(1), 0.4), NOTHING]), max_draws=5000)
    with pytest.raises(AcceptanceError, match=r"0 of .* draws were accepted, 10 were wanted.*max_draws=5,000") as error:
        found.sample((10,))
    assert (error.value.accepted, error.value.wanted, error.value.max_draws) == (0, 10, 5000)
    assert error.value.drawn == found.tally.drawn == sum(error.value.rejected) <= 5000
    assert f"region 1: {error.value.rejected[1]:,}" in str(error.value)
    assert found.acceptance.value == 0
    assert isinstance(error.value, RuntimeError)


def test_it_gives_up_as_soon_as_the_cap_is_out_of_reach() -> None:
    found = ExplorationPosterior(prior(), NOTHING)
    with pytest.raises(AcceptanceError):
        found.sample((10_000,))
    assert found.tally.drawn < 3000, "of a million"


def test_the_cap_is_never_passed_and_is_enough_where_it_is_enough() -> None:
    with pytest.raises(AcceptanceError):
        posterior(max_draws=99).sample((100,))
    few = posterior(max_draws=1)
    with pytest.raises(AcceptanceError):
        few.sample((2,))
    assert few.tally.drawn == 1
    free = ExplorationPosterior(prior(), max_draws=100)
    assert free.sample((100,)).shape == (100,)
    given_up = 0
    for seed in range(100):  # a cap of twice what is needed on average
        with fork_rng(seed):
            try:
                posterior(max_draws=int(2 * 100 / acceptance(prior(), regions()))).sample((100,))
            except AcceptanceError:
                given_up += 1
    assert given_up == 0


def test_the_error_comes_back_from_another_process() -> None:
    with pytest.raises(AcceptanceError) as error:
        ExplorationPosterior(prior(), NOTHING, max_draws=10).sample((2,))
    again = pickle.loads(pickle.dumps(error.value))
    assert (str(again), again.drawn) == (str(error.value), error.value.drawn)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_draws": 0}, "max_draws=0"),
        ({"max_draws": 1.5}, "max_draws=1.5"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"regions": [3]}, r"regions\[0\]=3"),
        ({"generator": 3}, "generator is a int without sample"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_other_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        ExplorationPosterior(**{"generator": prior(), "regions": regions()} | options)


def test_no_acceptance_before_the_first_draw() -> None:
    with pytest.raises(ValueError, match=r"an acceptance of 0 candidates.*Draw some first"):
        _ = posterior().acceptance
    with pytest.raises(ValueError, match="n=0"):
        posterior().sample_with_draws(0)


# ---- ArviZ ---------------------------------------------------------------------------------------


def test_what_was_rejected_is_drawn_into_arviz(tmp_path: Path) -> None:
    found = posterior()
    idata = found.to_arviz(150, seed=3)
    assert sorted(group_names(idata)) == ["posterior", "prior", "sample_stats", "sample_stats_prior"]
    with fork_rng(3):
        draws = posterior().sample_with_draws(150)
    get = lambda name, variable: torch.as_tensor(group(idata, name)[variable].to_numpy()[0])  # noqa: E731
    assert get("posterior", "x").equal(draws.x)
    assert get("prior", "x").equal(draws.raw)
    assert get("sample_stats_prior", "rejected_by").equal(draws.which)
    assert get("sample_stats", "log_prob").equal(prior().log_prob(draws.x).detach())
    assert get("sample_stats_prior", "log_prob").equal(prior().log_prob(draws.raw).detach())
    assert get("sample_stats", "score").equal(regions().scores(draws.x))
    assert get("sample_stats_prior", "score").equal(regions().scores(draws.raw))
    assert group(idata, "sample_stats")["score"].dims == ("chain", "draw", "region")
    attrs = idata.attrs
    assert (attrs["drawn"], attrs["seed"]) == (len(draws.raw), 3)
    assert attrs["acceptance"] == pytest.approx(found.acceptance.value)
    assert json.loads(attrs["rejected"]) == found.tally.rejected
    assert json.loads(attrs["scores"]) == ["likelihood ratio", "random"]
    assert attrs["accepted"] + sum(found.tally.rejected) == attrs["drawn"]
    write_netcdf(idata, tmp_path / "draws.nc")
    again = read_netcdf(tmp_path / "draws.nc")
    assert group(again, "prior").equals(group(idata, "prior"))
    assert again.attrs["log_tau"] == attrs["log_tau"]


def test_axes_of_a_candidate_have_names() -> None:
    idata = ExplorationPosterior(Pairs(), Region(RandomScore(0), 0.5)).to_arviz(20)
    assert group(idata, "prior")["x"].dims == ("chain", "draw", "x_dim_0")
    free = ExplorationPosterior(prior()).to_arviz(20)
    assert group(free, "sample_stats")["score"].shape == (1, 20, 0)
