"""Rejection regions: which side is rejected, where the threshold lies, unions, and files of them."""

import logging
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from banel_pyro.negative import FailureLikelihood, Generator, LikelihoodRatio, RandomScore, Region, Regions, Score
from banel_pyro.negative.score import evaluate
from banel_pyro.negative.threshold import quantile_cut
from models.bins import FIRST_FAILURES, NUM_BINS, SUCCESSES, Bins, SmoothedHistogram, number, prior
from tests.test_checkpoint import Command

pytestmark = pytest.mark.usefixtures("float64")

X = torch.arange(NUM_BINS)
FAILURES = number(torch.tensor(FIRST_FAILURES))


def ratio(kappa: float = 1.0) -> LikelihoodRatio:
    """The score of the toy's first round."""
    return LikelihoodRatio(prior(), SmoothedHistogram.fitted(FAILURES), kappa)


def scores(score: Score, x: Tensor = X) -> Tensor:
    return evaluate(score, x)


def quantile(values: Tensor, factor: float, sizes: Tensor | None = None, ties: str = "accept") -> Any:
    return quantile_cut(values, values.abs() if sizes is None else sizes, factor, ties)


class Table(Score):
    """Scores of one's own, by the number of the bin."""

    kind = "table"

    def __init__(self, size: int = NUM_BINS, shift: float = 0.0) -> None:
        super().__init__()
        self.size, self.shift = size, shift
        self.values = nn.Parameter(torch.arange(size) * 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.values[x] + self.shift

    def config(self) -> dict[str, Any]:
        return {"size": self.size, "shift": self.shift}


# ---- scores --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kappa", [0.5, 1.0, 2.0])
def test_the_ratio_is_that_of_the_definition(kappa: float) -> None:
    base, failures = prior(), SmoothedHistogram.fitted(FAILURES)
    p, q = base.table().exp(), failures.table().exp()
    assert torch.allclose(scores(LikelihoodRatio(base, failures, kappa)), (p / q**kappa).log(), atol=1e-12)
    assert torch.allclose(scores(FailureLikelihood(failures, kappa)), (1 / q**kappa).log(), atol=1e-12)


def test_kappa_is_1_by_default() -> None:
    p, q = prior().table().exp(), SmoothedHistogram.fitted(FAILURES).table().exp()
    assert torch.allclose(scores(LikelihoodRatio(prior(), SmoothedHistogram.fitted(FAILURES))).exp(), p / q)
    assert torch.allclose(scores(FailureLikelihood(SmoothedHistogram.fitted(FAILURES))).exp(), 1 / q)


def law_failures_are_rejected() -> None:
    """A failure model that is the base concentrated on the failures: they are rejected, and nothing else is."""
    base = prior()
    concentrated = base.table().detach() + 3.0 * torch.isin(X, FAILURES)
    score = LikelihoodRatio(base, Bins(concentrated))
    share = float(base.table().exp()[FAILURES].sum().detach())
    region = Region.at_quantile(score, base.sample(4000), 1 / (1 - share) + 0.2)  # rejects a little more than a share
    assert region.rejects(X).equal(torch.isin(X, FAILURES))


def test_failures_are_rejected_and_not_kept() -> None:
    law_failures_are_rejected()


def test_what_cannot_be_is_never_nan() -> None:
    """p_phi = 0: +inf, accepted. p_theta = 0: -inf, rejected, whatever the failure model says."""
    base, failures = torch.zeros(NUM_BINS), torch.zeros(NUM_BINS)
    failures[[0, 1]], base[[1, 2]] = -math.inf, -math.inf
    score = LikelihoodRatio(Bins(base), Bins(failures))
    assert scores(score)[:3].tolist() == [math.inf, -math.inf, -math.inf]
    assert Region(score, -5.0).rejects(X[:4]).tolist() == [False, True, True, False]
    assert scores(FailureLikelihood(Bins(failures)))[0] == math.inf


def test_nan_and_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="LikelihoodRatio is NaN for 31 of 31 candidates"):
        scores(LikelihoodRatio(prior(), Bins(torch.full((NUM_BINS,), math.nan))))

    class Column(Table):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).unsqueeze(-1)

    with pytest.raises(ValueError, match=r"Column gave \(31, 1\) for 31 candidates.*shape \(31,\)"):
        scores(Column())


@pytest.mark.parametrize("kappa", [0, -1.0, math.nan])
def test_an_exponent_that_would_keep_the_failures_is_refused(kappa: float) -> None:
    with pytest.raises(ValueError, match="kappa"):
        ratio(kappa)
    with pytest.raises(ValueError, match="kappa"):
        FailureLikelihood(prior(), kappa)


def test_what_is_no_generator_or_score_is_refused() -> None:
    with pytest.raises(TypeError, match=r"failures=.*expected a Generator"):
        LikelihoodRatio(prior(), nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"score=.*expected a Score"):
        Region(prior(), 0.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"(?s)regions\[1\]=.*expected a Region"):
        Regions([Region(ratio(), 0.0), ratio()])  # type: ignore[list-item]


def test_scores_have_no_gradient_no_dropout_and_the_dtype_of_the_generators() -> None:
    class Dropped(Bins):
        def __init__(self, log_weights: Tensor) -> None:
            super().__init__(log_weights)
            self.dropout = nn.Dropout(0.5)

        def table(self) -> Tensor:
            return self.dropout(self.logits).log_softmax(-1)

    score = LikelihoodRatio(prior().float(), Dropped(torch.randn(NUM_BINS)).float())
    assert score.training
    found = scores(score)
    assert found.equal(scores(score))
    assert score.failures.dropout.training
    assert not found.requires_grad
    assert found.dtype == torch.float32
    assert score(X).requires_grad


def test_a_random_score_is_uniform_and_a_function_of_the_candidate() -> None:
    x = torch.randint(10, (20_000, 5))
    first = scores(RandomScore(0), x)
    assert first.equal(evaluate(RandomScore(0), x, batch_size=17))
    assert stats.kstest(first.unique(), "uniform").pvalue > 0.01
    assert abs(stats.spearmanr(first, scores(RandomScore(1), x)).statistic) < 4 / math.sqrt(len(x))
    assert first.equal(scores(RandomScore(0), x.to(torch.int32)))
    assert scores(RandomScore(0), torch.tensor([0.0, 0.5])).equal(scores(RandomScore(0), torch.tensor([-0.0, 0.5])))
    assert scores(RandomScore(0), torch.tensor([0.5]).float()).equal(scores(RandomScore(0), torch.tensor([0.5])))
    assert len(scores(RandomScore(0), torch.arange(5))) == 5
    assert 0 < float(first.min()) < float(first.max()) < 1


# ---- thresholds ----------------------------------------------------------------------------------


def law_strict() -> None:
    """Where all scores are equal nothing is rejected, at the threshold too; kappa has no effect at 1 only."""
    base = prior()
    same = LikelihoodRatio(base, base.copy())
    assert not Region(same, 0.0).rejects(X).any()
    region = Region.at_quantile(same, base.sample(500), 16)
    assert region.log_tau == -math.inf
    assert region.cut is not None
    assert (region.cut.acceptance, region.cut.ties) == (1.0, 1.0)
    assert Region(Table(), 3.0).rejects(X).sum() == 3


def test_a_failure_model_that_has_learnt_nothing_rejects_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "banel_pyro"):
        law_strict()
    assert "factor=16 rejects nothing: 100 % of 500 candidates share the lowest score" in caplog.text


def test_with_another_kappa_it_filters_by_the_density_of_the_base() -> None:
    base = prior()
    region = Region.at_quantile(LikelihoodRatio(base, base.copy(), 2.0), base.sample(4000), 2)
    assert region.rejects(X).equal(base.table() > base.table()[region.rejects(X)].min() - 1e-9)
    assert region.rejects(X).any()


def test_a_perfect_failure_model_separates() -> None:
    """p_phi = p_theta on the failures: the ratio is 1 - SR on each of them, and infinite on the successes."""
    base = prior()
    success = torch.isin(X, torch.tensor(SUCCESSES))
    score = LikelihoodRatio(base, Bins(base.table().detach().masked_fill(success, -math.inf)))
    sr = float(base.table().detach().exp()[success].sum())
    found = scores(score)
    assert torch.allclose(found[~success].exp(), torch.tensor(1 - sr), atol=1e-12)
    assert (found[success] == math.inf).all()
    for log_tau in (math.log(1 - sr) + 1e-9, 0.0, 100.0):
        assert Region(score, log_tau).rejects(X).equal(~success)
    region = Region.at_quantile(score, torch.cat([base.sample(2000), X[success]]), 10_000)
    assert math.log(1 - sr) < region.log_tau < math.inf
    assert region.rejects(X).equal(~success)


@given(
    st.lists(st.integers(-4, 4), min_size=40, max_size=200),
    st.sampled_from([1.032, 1.5, 2.0, 3.0, 16.0]),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_the_threshold_is_the_quantile_and_the_tie_at_it_is_accepted(whole: list[int], factor: float) -> None:
    """The smallest set of whole ties that has 1/factor; or the largest that has no more, if there is one."""
    values = torch.tensor(whole, dtype=torch.float64)
    n = len(values)
    needed = math.ceil(n / factor - 1e-6)
    ordered = values.sort(descending=True).values
    at, last_rejected = ordered[needed - 1], ordered[needed]
    least, most = values >= at, values > last_rejected
    for ties, right in (("accept", least), ("reject", most if most.any() else least)):
        cut = quantile(values, factor, ties=ties)
        assert (values >= cut.log_tau).equal(right)
        assert cut.acceptance == float(right.double().mean())
        assert cut.log_tau == -math.inf or cut.log_tau not in whole, "in a gap"
    assert quantile(values, factor).ties == float((values == at).double().mean())


def test_a_failure_that_is_most_of_the_draws_can_be_rejected() -> None:
    values = torch.tensor([0.0] * 77 + [1.0] * 23)
    assert quantile(values, 2).acceptance == 1
    cut = quantile(values, 2, ties="reject")
    assert (cut.acceptance, cut.log_tau, cut.ties) == (0.23, 0.5, 0.77)
    assert quantile(torch.zeros(100), 2, ties="reject").acceptance == 1
    with pytest.raises(ValueError, match="ties='drop'"):
        Region.at_quantile(ratio(), X, 2, ties="drop")  # type: ignore[arg-type]


@pytest.mark.parametrize(("factor", "rejected"), [(2, 500), (16, 937), (1.032, 31), (4 / 3, 250), (1000, 999)])
def test_without_ties_the_fraction_is_that_of_the_factor(factor: float, rejected: int) -> None:
    cut = quantile(torch.randn(1000), factor)
    assert round(1000 * (1 - cut.acceptance)) == rejected
    assert (cut.candidates, cut.ties, cut.factor) == (1000, 0.001, factor)


def test_a_factor_of_9_on_9_candidates_is_not_put_off_by_rounding() -> None:
    for n in range(2, 200):
        assert quantile(torch.randn(n), n).acceptance == pytest.approx(1 / n)


@pytest.mark.parametrize("ties", ["accept", "reject"])
def test_a_larger_factor_is_nested_in_a_smaller_one(ties: Any) -> None:
    """On the same scores a larger factor accepts less, and only what a smaller one accepts."""
    candidates, score = prior().sample(3000), ratio()
    kept = [~Region.at_quantile(score, candidates, f, ties=ties).rejects(X) for f in (1.032, 1.5, 2.0, 4.0, 16.0)]
    assert all(bool((larger <= smaller).all()) for smaller, larger in pairwise(kept))
    assert int(kept[-1].sum()) < int(kept[0].sum())


@pytest.mark.parametrize("shift", [-1000.0, 3.0, 1e6])
def test_a_constant_leaves_a_quantile_alone_and_moves_a_fixed_threshold(shift: float) -> None:
    candidates = torch.randint(NUM_BINS, (500,))
    plain, moved = Table(), Table(shift=shift)
    assert (
        Region.at_quantile(plain, candidates, 3).rejects(X).equal(Region.at_quantile(moved, candidates, 3).rejects(X))
    )
    assert not Region(plain, 5.5).rejects(X).equal(Region(moved, 5.5).rejects(X))


@pytest.mark.parametrize("factor", [1, 1.0, 0.5, 0, -2, math.nan, math.inf])
def test_a_factor_that_would_filter_nothing_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="factor"):
        Region.at_quantile(ratio(), X, factor)


def test_too_few_candidates_are_refused() -> None:
    with pytest.raises(ValueError, match=r"20 candidates are too few for factor=1.032.*Draw at least 33"):
        Region.at_quantile(ratio(), prior().sample(20), 1.032)
    with pytest.raises(ValueError, match="0 candidates are too few"):
        Region.at_quantile(ratio(), X[:0], 2)


@pytest.mark.parametrize("log_tau", [math.nan, math.inf, "0"])
def test_what_is_no_threshold_is_refused(log_tau: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="log_tau"):
        Region(ratio(), log_tau)


def test_a_fixed_threshold_above_every_score_is_refused_when_it_is_checked() -> None:
    region = Region(Table(), 100.0)
    assert region.acceptance(X).value == 0
    with pytest.raises(ValueError, match=r"log_tau=100 rejects all of 31 candidates.*Lower it"):
        region.check(X)
    half = Region(Table(), 15.5)
    assert half.check(X) is half


def test_acceptance_has_a_binomial_error() -> None:
    found = Region(Table(), 7.5).acceptance(torch.arange(31)[:20])
    assert (found.value, found.stderr) == (0.6, pytest.approx(math.sqrt(0.6 * 0.4 / 20)))
    with pytest.raises(ValueError, match="0 candidates"):
        Region(Table(), 0.0).acceptance(X[:0])


# ---- rounding ------------------------------------------------------------------------------------


class Sentences(Generator):
    """Eight letters, three to a sentence: a small network whose sums have another order in other batches."""

    def __init__(self, size: int = 64) -> None:
        super().__init__()
        self.letters, self.net = nn.Embedding(9, size), nn.GRU(size, size, 2, batch_first=True)
        self.out = nn.Linear(size, 8)

    @property
    def event_shape(self) -> torch.Size:
        return torch.Size([3])

    def sample(self, n: int) -> Tensor:
        return torch.randint(8, (n, 3))

    def log_prob(self, x: Tensor) -> Tensor:
        before = torch.cat([torch.full_like(x[:, :1], 8), x[:, :-1]], 1)
        logits = 3 * self.out(3 * self.net(self.letters(before))[0])
        return logits.log_softmax(-1).gather(-1, x.unsqueeze(-1)).squeeze(-1).sum(-1)


def test_rounding_does_not_split_a_tie() -> None:
    """Each of 512 sentences comes some times. In batches of other sizes its score differs in the last bits."""
    score = LikelihoodRatio(Sentences().float(), Sentences().float())
    x = score.base.sample(1500)
    alone, together = evaluate(score, x, batch_size=1), evaluate(score, x, batch_size=1500)
    assert (alone != together).any(), "or this tests nothing"
    mixed, sizes = torch.where(torch.rand(len(x)) < 0.5, alone, together), torch.full((len(x),), 8.0)
    split = 0
    for factor in torch.linspace(1.1, 8.0, 40).tolist():
        for ties in ("accept", "reject"):
            log_tau = quantile(mixed, factor, sizes, ties).log_tau
            assert (alone < log_tau).equal(together < log_tau)
        at = float(mixed.double().sort().values[1500 - math.ceil(1500 / factor)])
        split += int(((alone.double() < at) != (together.double() < at)).sum())
    assert split > 0, "a threshold at a score would split it"
    region = Region.at_quantile(score, x, 2, batch_size=64)
    assert region.rejects(x, batch_size=1).equal(together < region.log_tau)


def test_a_copy_that_differs_by_rounding_rejects_nothing() -> None:
    """The log-densities are large and their difference is rounding: its size is relative to them, not to the score."""
    base = (torch.randn(10_000) * 30 - 300).float()
    score = base - (base + torch.randn(10_000).float() * 3e-5)
    assert score.abs().max() > 0
    assert quantile(score, 2, base.abs()).acceptance == 1
    assert quantile(score, 2, score.abs()).acceptance < 1, "or this tests nothing"
    spread = torch.randn(10_000).float()
    assert quantile(spread, 2, base.abs()).acceptance == pytest.approx(0.5, abs=0.01)


# ---- unions --------------------------------------------------------------------------------------


def law_union() -> None:
    """What any region rejects is rejected; the first that does is named; each further region can only take away."""
    found = Regions()
    kept = torch.ones(NUM_BINS, dtype=torch.bool)
    for region in (Region(RandomScore(1), 0.2), Region(ratio(), -0.2), Region(RandomScore(2), 0.3)):
        found = found | region
        assert bool((~found.rejects(X) <= kept).all())
        kept = kept & ~region.rejects(X)
        assert found.rejects(X).equal(~kept)
    each = torch.stack([region.rejects(X) for region in found])
    first = torch.where(each.any(0), each.int().argmax(0), -1)
    assert found.which(X).equal(first)
    assert set(first.tolist()) == {-1, 0, 1, 2}
    assert found.which(X, batch_size=4).equal(first)


def test_the_union_rejects_what_any_of_them_rejects() -> None:
    law_union()


def test_no_regions_reject_nothing() -> None:
    assert not Regions(()).rejects(X).any()
    assert Regions().acceptance(X).value == 1
    assert Regions().scores(X).shape == (NUM_BINS, 0)


def test_regions_are_a_sequence() -> None:
    one, two, three = (Region(RandomScore(seed), 0.5) for seed in range(3))
    union = Regions([one]) + two | Regions([three])
    assert list(union) == [one, two, three]
    assert (len(union), union[-1], list(union[1:])) == (3, three, [two, three])
    assert isinstance(union[1:], Regions)
    assert two in union
    assert Regions.of(one)[0] is one
    assert Regions.of(union) is union
    assert repr(union[:1]) == "Regions([Region(random, log_tau=0.5)])"


class Counted(Bins):
    """A generator that writes down how many rows it is asked for."""

    def __init__(self, log_weights: Tensor) -> None:
        super().__init__(log_weights)
        self.asked: list[int] = []

    def log_prob(self, x: Tensor) -> Tensor:
        self.asked.append(len(x))
        return super().log_prob(x)


def test_a_shared_base_is_asked_once_and_failure_models_for_what_is_left() -> None:
    base, first, second = (Counted(torch.randn(NUM_BINS)) for _ in range(3))
    union = Regions([Region(LikelihoodRatio(base, first), 0.0), Region(LikelihoodRatio(base, second), 0.0)])
    left = int((~union[0].rejects(X)).sum())
    for part in (base, first, second):
        part.asked.clear()
    union.rejects(X)
    assert (base.asked, first.asked, second.asked) == ([31], [31], [left])
    assert 0 < left < 31
    base.asked.clear()
    union.rejects(X, batch_size=20)
    assert base.asked == [20, 11]
    for part in (base, first):
        part.asked.clear()
    Regions([Region(LikelihoodRatio(base, first), -math.inf)]).rejects(X)
    assert not base.asked, "a region that rejects nothing asks for nothing"


# ---- files ---------------------------------------------------------------------------------------


@pytest.fixture
def saved() -> Regions:
    base, failures = prior(), SmoothedHistogram.fitted(FAILURES)
    candidates = base.sample(500)
    other = Table(shift=0.5)
    nn.init.normal_(other.values)
    return Regions(
        [
            Region.at_quantile(LikelihoodRatio(base, failures), candidates, 2),
            Region(LikelihoodRatio(base, SmoothedHistogram.fitted(X[:3]), 1.5), -1.0),
            Region(FailureLikelihood(failures, 0.5), 1.2),
            Region(RandomScore(7), -math.inf),
            Region(other, -0.7),
        ]
    )


def test_regions_come_back_from_a_file(saved: Regions, tmp_path: Path) -> None:
    saved.save(tmp_path / "regions.pt")
    skeleton = Bins(torch.randn(NUM_BINS))
    before = skeleton.logits.clone()
    found = Regions.load(tmp_path / "regions.pt", skeleton, scores=[Table])
    assert found.scores(X).equal(saved.scores(X))
    assert found.which(X).equal(saved.which(X))
    assert [region.cut for region in found] == [region.cut for region in saved]
    assert found[0].cut is not None
    parts: Callable[[int], Any] = lambda place: found[place].score  # noqa: E731
    assert parts(0).base is parts(1).base
    assert parts(0).failures is parts(2).failures
    assert parts(0).base is not parts(0).failures
    assert skeleton.logits.equal(before)
    found.save(tmp_path / "again.pt")
    again = Regions.load(tmp_path / "again.pt", {"base": skeleton, "failures": prior()}, scores=[Table])
    assert again.which(X).equal(saved.which(X))


def test_no_regions_come_back_from_a_file(tmp_path: Path) -> None:
    Regions().save(tmp_path / "regions.pt")
    assert len(Regions.load(tmp_path / "regions.pt", prior())) == 0


def test_a_file_that_does_not_fit_is_refused(saved: Regions, tmp_path: Path) -> None:
    file = tmp_path / "regions.pt"
    saved.save(file)
    load = Regions.load
    with pytest.raises(ValueError, match=r"regions\[4\].*is of a score 'table'.*Give its class"):
        load(file, prior())
    with pytest.raises(ValueError, match=r"generator 'base' of regions\[0\].*does not fit the Bins.*float64 \(31,\)"):
        load(file, Bins(torch.zeros(7)), scores=[Table])
    with pytest.raises(ValueError, match=r"float64 \(31,\) there, float32 \(31,\) here"):
        load(file, prior().float(), scores=[Table])
    with pytest.raises(ValueError, match=r"has a generator 'failures', and generator= has only \['base'\]"):
        load(file, {"base": prior()}, scores=[Table])
    with pytest.raises(TypeError, match=r"generator=.*expected a Generator"):
        load(file, {"": nn.Linear(1, 1)})  # type: ignore[dict-item]
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.pt", prior())


def test_a_score_without_a_name_is_not_saved(tmp_path: Path) -> None:
    class Nameless(Table):
        kind = ""

    with pytest.raises(ValueError, match=r"regions\[0\] has a Nameless without a kind"):
        Regions([Region(Nameless(), 0.0)]).save(tmp_path / "regions.pt")
    assert not list(tmp_path.iterdir())


ROW: dict[str, Any] = {"kind": "random", "log_tau": 0.5, "config": {"seed": 0}, "parts": {}, "own": {}, "cut": None}
FILE: dict[str, Any] = {"format": 1, "generators": [], "regions": [ROW]}
HOSTILE: dict[str, tuple[Any, str]] = {
    "a list": ([1], "holds a list"),
    "another format": (FILE | {"format": 2}, "format=2"),
    "no regions": ({"format": 1, "generators": []}, "no 'regions'"),
    "a region that is a number": (FILE | {"regions": [3]}, "regions=.*a list of mappings"),
    "NaN as threshold": (FILE | {"regions": [ROW | {"log_tau": math.nan}]}, "region 0 has log_tau=nan"),
    "+inf as threshold": (FILE | {"regions": [ROW | {"log_tau": math.inf}]}, "region 0 has log_tau=inf"),
    "a generator that is not there": (FILE | {"regions": [ROW | {"parts": {"base": 0}}]}, "not there"),
    "NaN in a generator": (FILE | {"generators": [{"a": torch.tensor(math.nan)}]}, "generators="),
    "no seed": (FILE | {"regions": [ROW | {"config": {}}]}, r"does not say what a RandomScore is made of.*seed"),
    "a seed below 0": (FILE | {"regions": [ROW | {"config": {"seed": -1}}]}, r"regions\[0\].*seed=-1"),
    "an argument too many": (FILE | {"regions": [ROW | {"config": {"seed": 0, "x": 1}}]}, "does not say what"),
    "tensors that no score has": (FILE | {"regions": [ROW | {"own": {"w": torch.ones(1)}}]}, "does not fit.*w: float"),
    "a damaged record": (FILE | {"regions": [ROW | {"cut": {"factor": 2}}]}, "cut="),
    "code": (FILE | {"regions": Command()}, "cannot be read as a state"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, words = HOSTILE[name]
    torch.save(content, tmp_path / "regions.pt")
    with pytest.raises(ValueError, match=words):
        Regions.load(tmp_path / "regions.pt", prior())
    assert not (tmp_path / "hostile").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"{}", bytes(100)])
def test_a_damaged_file_and_a_link_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "regions.pt").write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        Regions.load(tmp_path / "regions.pt", prior())
    (tmp_path / "link.pt").symlink_to(tmp_path / "regions.pt")
    with pytest.raises(ValueError, match="is a link"):
        Regions.load(tmp_path / "link.pt", prior())


def test_the_file_of_a_hostile_row_is_read_without_it(tmp_path: Path) -> None:
    """What the refusals above start from is fine in itself."""
    torch.save(FILE, tmp_path / "regions.pt")
    assert Regions.load(tmp_path / "regions.pt", prior())[0].log_tau == 0.5
