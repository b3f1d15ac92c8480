"""The latent report against quadrature, enumeration and limits that are known; its errors over many seeds; refusals."""

import json
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch import Tensor

from banel_pyro import Pair, Split, fit, to_arviz
from banel_pyro.diagnostics import active_units, aggregate, kl_per_dimension, latent_report
from banel_pyro.diagnostics.aggregate import Conditional, LogDensities, decompose, effective_dimension, log_aggregate
from banel_pyro.diagnostics.probes import checked_labels, probe_accuracies
from banel_pyro.report import plots
from models import data, vae

pytestmark = pytest.mark.usefixtures("float64")

Program = Callable[..., None]

LOCS = torch.tensor([[-1.0, 0.2], [0.1, 0.4], [0.5, -0.8], [1.2, 1.5], [0.9, 0.7]], dtype=torch.float64)
SCALE = torch.tensor([0.4, 0.7], dtype=torch.float64)


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.new_zeros(2), 1.5).to_event(1))


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, SCALE).to_event(1))


def with_scale(scale: Tensor) -> Program:
    """A guide like the one above, of other sds."""

    def run(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, scale).to_event(1))

    return run


# ---- exact answers


def by_quadrature(locs: Tensor, scale: Tensor, prior: float) -> dict[str, float]:
    """All measures of normal posteriors in the plane, from sums over a fine grid of z."""
    axes = [
        torch.linspace(float(m.min() - 9 * s), float(m.max() + 9 * s), 801) for m, s in zip(locs.T, scale, strict=True)
    ]
    steps = [float(axis[1] - axis[0]) for axis in axes]
    each = [dist.Normal(locs[:, k, None], scale[k]).log_prob(axes[k]).exp() for k in range(2)]  # (row, point)
    joint = torch.einsum("na,nb->ab", *each) / len(locs)

    def entropy(density: Tensor, cell: float) -> float:
        return float(-torch.special.xlogy(density, density).sum()) * cell

    whole = entropy(joint, steps[0] * steps[1])
    marginals = [entropy(each[k].mean(0), steps[k]) for k in range(2)]
    own = [0.5 * math.log(2 * math.pi * math.e * float(s) ** 2) for s in scale]
    square = ((locs**2).mean(0) + scale**2) / prior**2
    cross = [0.5 * (math.log(2 * math.pi * prior**2) + float(square[k])) for k in range(2)]  # -E log p(z_k)
    return {
        "kl": sum(cross) - sum(own),
        "mutual_information": whole - sum(own),
        "marginal_kl": sum(cross) - whole,
        "total_correlation": sum(marginals) - whole,
        "dimension_kl": sum(cross) - sum(marginals),
        "mutual_information[0]": marginals[0] - own[0],
        "marginal_kl[1]": cross[1] - marginals[1],
    }


def test_measures_are_those_of_quadrature_within_their_errors() -> None:
    exact = by_quadrature(LOCS, SCALE, 1.5)
    found = latent_report(model, guide, LOCS, num_samples=500, seed=0)
    assert found.kl.value == pytest.approx(exact["kl"], rel=1e-10)
    assert found.kl.stderr < 1e-12
    for name in aggregate.MEASURES[1:]:
        value, error = found.measures.loc[name, ["value", "stderr"]]
        assert 0 < error < 0.02
        assert abs(value - exact[name]) < 4 * error, name
    table = found.table
    error = table["mutual_information_stderr"].to_numpy()
    assert (error > 0).all()
    assert (error < 0.02).all()
    assert abs(table["mutual_information"].iloc[0] - exact["mutual_information[0]"]) < 4 * error[0]
    assert abs(table["marginal_kl"].iloc[1] - exact["marginal_kl[1]"]) < 4 * error[1]


def test_the_parts_of_the_kl_add_up_exactly() -> None:
    found = latent_report(model, guide, LOCS, num_samples=3, seed=1)
    value, table = found.measures["value"], found.table
    assert found.mutual_information.value + found.marginal_kl.value == pytest.approx(found.kl.value, rel=1e-12)
    parts = value[["mutual_information", "total_correlation", "dimension_kl"]]
    assert parts.sum() == pytest.approx(found.kl.value, rel=1e-12)
    assert table["marginal_kl"].sum() == pytest.approx(value["dimension_kl"], rel=1e-12)
    assert (table["mutual_information"] + table["marginal_kl"]).to_list() == pytest.approx(table["kl"].to_list())
    bias = found.measures["rows_bias"]
    assert bias["mutual_information"] + bias["marginal_kl"] == 0
    assert bias[["mutual_information", "total_correlation", "dimension_kl"]].sum() == pytest.approx(0, abs=1e-15)


def test_bernoulli_latents_by_enumeration() -> None:
    probs = torch.tensor([[0.9, 0.2], [0.1, 0.6], [0.5, 0.5]])

    def bits(at: Any) -> Program:
        def run(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Bernoulli(at(x)).to_event(1))

        return run

    found = latent_report(bits(lambda x: torch.full((2,), 0.3)), bits(lambda x: x), probs, num_samples=500, seed=0)
    states = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    each = dist.Bernoulli(probs[:, None]).log_prob(states).sum(-1).exp()  # (row, state)
    mixture, single = each.mean(0), probs.mean(0)
    entropies = torch.special.entr(each).sum(-1)
    marginal = (torch.special.entr(single) + torch.special.entr(1 - single)).sum()
    exact = {
        "mutual_information": float(torch.special.entr(mixture).sum() - entropies.mean()),
        "total_correlation": float(marginal - torch.special.entr(mixture).sum()),
    }
    for name, value in exact.items():
        assert abs(found.measures.loc[name, "value"] - value) < 4 * found.measures.loc[name, "stderr"], name
        assert found.measures.loc[name, "stderr"] < 0.02
    assert found.entropies.tolist() == pytest.approx(entropies.tolist())
    assert found.table["variance"].to_list() == pytest.approx(probs.var(0, correction=0).tolist())


def test_a_guide_that_is_the_prior_has_collapsed() -> None:
    found = latent_report(model, with_scale(torch.full((2,), 1.5)), torch.zeros(6, 2), seed=0)
    assert found.measures.abs().max(axis=None) < 1e-12
    assert (found.active_units, found.effective_dimension) == (0, 0.0)
    assert found.table["collapsed"].all()
    assert found.verdict.startswith("collapsed: all 2 dimensions have the prior as posterior for every row (KL at most")


def test_rows_that_are_told_apart_carry_the_log_of_their_number() -> None:
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    found = latent_report(model, with_scale(torch.full((2,), 1e-9)), x, seed=0)
    assert found.mutual_information.value == pytest.approx(math.log(20), rel=1e-12)
    assert found.mutual_information.stderr < 1e-12
    assert "near its ceiling log 20 = 3.00" in found.verdict
    assert found.verdict.startswith("not collapsed: 2 of 2 dimensions active, and the latent carries 3.00 nats")


def test_a_full_grid_of_rows_has_no_total_correlation() -> None:
    x = torch.cartesian_prod(torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([-0.5, 0.1]))
    found = latent_report(model, guide, x, seed=0)
    assert found.measures.loc["total_correlation", ["value", "stderr"]].abs().max() < 1e-12
    assert found.table["mutual_information"].sum() == pytest.approx(found.mutual_information.value, rel=1e-12)
    assert found.mutual_information.value > 0.5


def test_an_aggregate_posterior_that_is_the_prior_has_no_marginal_kl() -> None:
    """The control variate then is the information itself, and no noise is left."""
    probs = torch.tensor([0.9, 0.1, 0.7, 0.3])

    def bit(at: Any) -> Program:
        def run(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Bernoulli(at(x)))

        return run

    found = latent_report(bit(lambda x: torch.full((len(x),), 0.5)), bit(lambda x: x), probs, seed=0)
    assert found.marginal_kl.value == pytest.approx(0, abs=1e-12)
    assert found.marginal_kl.stderr < 1e-12
    assert found.mutual_information.value == pytest.approx(float(math.log(2) - dist.Bernoulli(probs).entropy().mean()))


def test_dimensions_are_active_idle_or_collapsed() -> None:
    """z[0] varies with the row, z[1] is the prior, z[2] is off the prior but the same for all rows."""

    def three(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))

    def of_rows(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = x * torch.tensor([1.0, 0.0, 0.0]) + torch.tensor([0.0, 0.0, 2.0])
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    x = torch.tensor([[-1.0], [1.0]] * 3)
    found = latent_report(three, of_rows, x, seed=0)
    assert found.table["variance"].to_list() == pytest.approx([1.0, 0.0, 0.0])
    assert found.table["active"].to_list() == [True, False, False]
    assert found.table["collapsed"].to_list() == [False, True, False]
    assert found.verdict.startswith("collapsed in part: 1 of 3 dimensions (z[1]) have")
    assert "z[2]: off the prior (KL up to 2 nats) in nearly the same way for every row" in found.verdict
    assert latent_report(three, of_rows, x, active_threshold=1.1, seed=0).active_units == 0
    assert latent_report(three, of_rows, x, kl_threshold=2.1, seed=0).table["collapsed"].to_list()[1:] == [True, True]
    idata = to_arviz(three, of_rows, x, num_samples=300, seed=0)
    assert active_units(idata, "z", "data") == found.active_units == 1


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]], 25 / 17),  # eigenvalues 4 : 1
        ([[1.0, 1.0], [-1.0, -1.0]], 1.0),
        ([[1.0], [2.0]], 1.0),
        ([[3.0, 1.0], [3.0, 1.0]], 0.0),
    ],
)
def test_effective_dimension_of_known_covariances(means: list[list[float]], expected: float) -> None:
    assert effective_dimension(np.array(means)) == pytest.approx(expected)
    if len(means[0]) == 2:
        c, s = math.cos(0.7), math.sin(0.7)
        assert effective_dimension(np.array(means) @ [[c, s], [-s, c]] + 5) == pytest.approx(expected)


def test_entropies_are_those_of_each_row() -> None:
    scales = torch.tensor([[0.5], [1.0], [3.0]])

    def of_rows(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(2), x).to_event(1))

    found = latent_report(model, of_rows, scales, seed=0)
    exact = [2 * (0.5 * math.log(2 * math.pi * math.e) + math.log(float(s))) for s in scales]
    assert found.entropies.tolist() == pytest.approx(exact)
    assert found.entropy.value == pytest.approx(np.mean(exact))
    counts, ends = found.histogram(4)
    assert (counts.tolist(), ends[0], ends[-1]) == ([1, 1, 0, 1], pytest.approx(exact[0]), pytest.approx(exact[2]))


# ---- errors


def decomposed(x: Tensor, scale: Tensor, draws: int, prior: float = 1.0) -> pd.DataFrame:
    """The measures of rows with normal posteriors around them, without any Pyro."""
    q, p = dist.Normal(x, scale), dist.Normal(0.0, prior)
    z = q.sample((draws,))
    part = Conditional(len(x), lambda points: q.log_prob(points[:, None]))
    joint, marginal = log_aggregate([part], z.flatten(0, 1))
    kl = (scale**2 + x**2) / (2 * prior**2) - 0.5 - (scale / prior).log()
    arrays = [v.numpy() for v in (q.log_prob(z), p.log_prob(z))]
    return decompose(LogDensities(*arrays, marginal.reshape(z.shape), joint.reshape(z.shape[:2]), kl.numpy()))[0]


def test_monte_carlo_errors_are_right_over_seeds() -> None:
    """Scores (value − exact)/stderr of 400 seeds have mean 0 and sd 1, within four standard errors of each."""
    torch.manual_seed(5)
    x, count = torch.randn(40, 2), 400
    exact = by_quadrature(x, SCALE, 1.5)
    found = [decomposed(x, SCALE, 8, prior=1.5) for _ in range(count)]
    for name in aggregate.MEASURES[1:]:
        scores = np.array([(f.loc[name, "value"] - exact[name]) / f.loc[name, "stderr"] for f in found])
        assert abs(scores.mean()) < 4 / math.sqrt(count), name
        assert abs(scores.std() - 1) < 4 / math.sqrt(2 * count), name


def test_the_control_variate_pays() -> None:
    """Against the mean of log q(z | x) − log q(z) alone, by which nothing else is known."""
    torch.manual_seed(5)
    x = torch.randn(40, 2)
    q = dist.Normal(x, SCALE)
    z = q.sample((200,))
    gain = q.log_prob(z).sum(-1) - (q.log_prob(z[:, :, None]).sum(-1).logsumexp(-1) - math.log(40))
    plain = float((gain.var(0).mean() / 200 / 40).sqrt())
    assert decomposed(x, SCALE, 200, prior=1.5).loc["mutual_information", "stderr"] < 0.5 * plain


def test_errors_and_bias_of_rows_are_right_over_data_sets() -> None:
    """x ~ N(0, 1) in two dimensions and z | x ~ N(x, s²): the aggregate posterior of all x is N(0, 1 + s²)."""
    torch.manual_seed(6)
    s, size, count = 0.6, 200, 200
    information, marginal = math.log(1 + 1 / s**2), s**2 - math.log(1 + s**2)
    exact = {"kl": information + marginal, "mutual_information": information, "marginal_kl": marginal}
    exact |= {"total_correlation": 0.0, "dimension_kl": marginal}
    found = [decomposed(torch.randn(size, 2), torch.full((2,), s), 2) for _ in range(count)]
    for name, value in exact.items():
        off, error, bias = np.array([f.loc[name, ["value", "rows_stderr", "rows_bias"]] for f in found], float).T
        off, mean_error = off - value, off.std() / math.sqrt(count)
        if name in ("marginal_kl", "total_correlation", "dimension_kl"):
            assert off.mean() > 6 * mean_error, "the bias would not be seen"
            assert 0.6 * off.mean() < bias.mean() < off.mean() + 2 * mean_error, name
        else:
            assert abs((off - bias).mean()) < 4 * mean_error, name
        spread, band = (off / error).std(), 4 / math.sqrt(2 * count)
        if name in ("kl", "mutual_information"):
            assert abs(spread - 1) < band, name
        elif name != "total_correlation":  # cautious near 0; at 0 the influence is 0, and there is no error
            assert 0.8 - band < spread < 1 + band, name
    assert (np.array([f.loc["mutual_information", "rows_bias"] for f in found]) < 0).all()


def test_more_draws_than_one_of_each_row_are_independent() -> None:
    """Ten times the draws, a tenth of the variance."""
    few, many = (latent_report(model, guide, LOCS, num_samples=n, seed=0) for n in (60, 600))
    ratio = few.measures["stderr"] / many.measures["stderr"]
    assert ratio["mutual_information"] == pytest.approx(math.sqrt(10), rel=0.2)


# ---- chunks and layouts


@pytest.mark.parametrize("elements", [1, 7, 40])
def test_chunks_of_points_and_parts_of_rows_change_rounding_only(
    elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    z = torch.randn(11, 2)

    def part(x: Tensor) -> Conditional:
        return Conditional(len(x), lambda points: dist.Normal(x, SCALE).log_prob(points[:, None]))

    log_q = dist.Normal(LOCS, SCALE).log_prob(z[:, None])
    monkeypatch.setattr(aggregate, "ELEMENTS", elements)
    joint, marginal = log_aggregate([part(LOCS[:2]), part(LOCS[2:])], z)
    assert joint == pytest.approx(log_q.sum(-1).exp().mean(1).log().numpy(), rel=1e-12)
    assert marginal == pytest.approx(log_q.exp().mean(1).log().numpy(), rel=1e-12)


def test_the_report_does_not_depend_on_the_rows_in_memory() -> None:
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    whole, parts = (latent_report(model, guide, x, batch_size=b, num_samples=3, seed=0) for b in (None, 16))
    assert parts.measures.to_numpy() == pytest.approx(whole.measures.to_numpy(), rel=1e-9, abs=1e-12)
    assert parts.table.to_numpy(dtype=float) == pytest.approx(whole.table.to_numpy(dtype=float), rel=1e-9, abs=1e-12)
    assert parts.entropies.tolist() == whole.entropies.tolist()


def test_numbers_of_an_inner_plate_are_laid_out_right() -> None:
    """Means differ by 100 between numbers: one that were compared with another would be far off."""
    offset = torch.arange(6.0).reshape(3, 1, 2) * 100

    def inner(loc: Callable[[Tensor], Tensor]) -> Program:
        def run(x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1), pyro.plate("groups", 3, dim=-2):
                pyro.sample("z", dist.Normal(loc(x), 1.0).expand([3, len(x), 2]).to_event(1))

        return run

    found = latent_report(
        inner(lambda x: offset), inner(lambda x: x[:, None] + offset), LOCS[:, 0], num_samples=200, seed=0
    )
    assert list(found.table.index) == [f"z[{i}, {j}]" for i in range(3) for j in range(2)]
    assert found.table["kl"].to_list() == pytest.approx([float((LOCS[:, 0] ** 2).mean() / 2)] * 6)
    exact = by_quadrature(LOCS[:, [0, 0]], torch.ones(2), 1.0)["mutual_information[0]"]
    off = (found.table["mutual_information"] - exact) / found.table["mutual_information_stderr"]
    assert off.abs().max() < 4


def test_a_scalar_latent_of_an_autoguide_is_one_row() -> None:
    def scalar(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    auto = AutoNormal(scalar, init_scale=0.5)
    report = latent_report(scalar, auto, LOCS[:, 0], seed=0)
    assert list(report.table.index) == ["z"]
    assert report.table["kl"].iloc[0] == pytest.approx(kl_per_dimension(scalar, auto, LOCS[:, 0])["kl"].iloc[0])
    assert report.total_correlation.value == pytest.approx(0, abs=1e-12)


def test_the_vae_has_the_kls_of_kl_per_dimension() -> None:
    pair = vae.digits()
    images = data.digits().held_out[:40]
    found = latent_report(pair.model, pair.guide, images, seed=0)
    expected = kl_per_dimension(pair.model, pair.guide, images)
    pd.testing.assert_frame_equal(found.table[["kl", "stderr"]], expected)
    assert len(found.table) == 8
    assert 0 < found.mutual_information.value < found.kl.value


# ---- probes


def test_probes_read_what_is_there() -> None:
    """Quadrants: one coordinate's sign is linear, their product is not; the majority class is always right by share."""
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(2))
    x += 0.3 * x.sign()
    sign = latent_report(model, guide, x, labels=(x[:, 0] > 0).numpy(), seed=0).probes
    assert sign["linear"].value > 0.97
    assert sign["majority"].value == pytest.approx(
        max(float((x[:, 0] > 0).double().mean()), float((x[:, 0] <= 0).double().mean()))
    )
    product = latent_report(model, guide, x, labels=(x.prod(-1) > 0), seed=0).probes
    assert product["neighbours"].value > 0.93
    assert abs(product["linear"].value - 0.5) < 0.15
    share, error = product["linear"].value, product["linear"].stderr
    assert error == pytest.approx(math.sqrt(share * (1 - share) / 199))


def test_a_collapsed_dimension_is_not_read_although_its_means_tell_classes_apart() -> None:
    labels = torch.arange(60) % 2
    x = 1e-5 * torch.stack([labels, -labels], -1).double()
    found = latent_report(model, with_scale(torch.full((2,), 1.5)), x, labels=labels, seed=0)
    assert found.table["collapsed"].all()
    assert found.probes["linear"].value <= 0.6
    assert probe_accuracies(x.numpy() * 1e5, labels.numpy())["linear"].value == 1.0  # blown up, it would be read


def test_labels_may_be_texts_and_whole_numbers_of_any_type() -> None:
    assert checked_labels(["a", "b", "a"], 3).tolist() == ["a", "b", "a"]
    assert checked_labels(torch.tensor([1.0, 2.0]), 2).tolist() == [1, 2]
    assert checked_labels(pd.Series([True, False], dtype=object), 2).tolist() == ["True", "False"]


def test_without_scikit_learn_labels_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    latent_report(model, guide, LOCS, seed=0)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'banel-pyro\[models\]'"):
        latent_report(model, guide, LOCS, labels=[0, 1, 0, 1, 0], folds=2, neighbours=1, seed=0)


# ---- the record, pairs and runs


def test_the_record_prints_and_goes_to_json() -> None:
    found = latent_report(model, guide, LOCS, labels=[0, 1, 0, 1, 0], folds=2, neighbours=1, seed=0)
    text = str(found)
    for words in (
        "latent 'z': 2 dimensions, 5 rows, 10 draws",
        "at most log 5 = 1.609",
        "verdict: not collapsed",
        "z[1]",
    ):
        assert words in text
    again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert again["measures"]["mutual_information"]["value"] == found.mutual_information.value
    assert again["dimensions"]["z[1]"]["active"] is True
    assert sum(again["entropy_histogram"]["counts"]) == 5
    assert again["probes"]["majority"] == {"value": 0.6, "stderr": 0.0}
    assert again["verdict"] == found.verdict


def test_pictures_take_a_report() -> None:
    found = latent_report(model, guide, LOCS, seed=0)
    bars = plots.plot_kl_per_dimension({"a": found})
    drawn = bars.containers[0].lines[0].get_ydata()
    assert drawn.tolist() == sorted(found.table["kl"], reverse=True)
    histogram = plots.plot_entropy_per_datum(found)
    assert sum(patch.get_height() for patch in histogram.patches if hasattr(patch, "get_height")) == len(LOCS)


def test_a_run_and_a_pair_bring_their_own_rows() -> None:
    split = Split(LOCS, None, lambda rows: (rows[0] + 0.0,))

    def observed(x: Tensor) -> None:
        with pyro.plate("data", 5):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    auto = AutoNormal(observed)
    pair = Pair(observed, auto, data=lambda: split, data_plate="data")
    result = pair.fit(steps=3, seed=0, progress=False)
    direct = latent_report(observed, auto, LOCS, seed=0)
    for found in (latent_report(result, seed=0), latent_report(pair, seed=0), latent_report(result, data=LOCS, seed=0)):
        pd.testing.assert_frame_equal(found.measures, direct.measures)
    with pytest.raises(TypeError, match="a FitResult has a guide of its own"):
        latent_report(result, LOCS)
    plain = fit(observed, auto, LOCS, steps=1, seed=0, progress=False)
    with pytest.raises(ValueError, match=r"the guide has .* for each row of the training data"):
        latent_report(plain, data=LOCS + 1)


def test_a_seed_leaves_the_generator_alone_and_decides() -> None:
    before = torch.get_rng_state()
    first, again = (latent_report(model, guide, LOCS, seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    pd.testing.assert_frame_equal(first.measures, again.measures)
    assert (
        latent_report(model, guide, LOCS).measures.loc["mutual_information", "value"] != first.mutual_information.value
    )


# ---- refusals


def correlated(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))


def heavy(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.StudentT(3.0, torch.zeros(2), 1.0).to_event(1))


def positive(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))


def prior_of_rows(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 1.0).to_event(1))


def classes(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Categorical(torch.ones(3)))


def two(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        top = pyro.sample("top", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("low", dist.Normal(top, 1.0))


def one_prior(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("top", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("low", dist.Normal(torch.zeros(len(x)), 1.0))


def shared(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(mu, 1.0).expand([len(x), 2]).to_event(1))


def beside_shared(x: Tensor) -> None:
    pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 1.0).to_event(1))


def masked(program: Program) -> Program:
    return poutine.mask(program, mask=torch.arange(5) < 3)


@pytest.mark.parametrize(
    ("pair", "options", "words"),
    [
        ((model, correlated), {}, "site 'z' is a MultivariateNormal in the guide, which does not factorise"),
        ((model, heavy), {}, "no KL in closed form from StudentT to Normal"),
        ((positive, AutoNormal(positive)), {}, "no density of its own in the guide"),
        ((model, AutoDelta(model)), {}, "no density of its own in the guide"),
        ((model, AutoMultivariateNormal(model)), {}, "no density of its own in the guide"),
        ((masked(model), masked(guide)), {}, "site 'z' is masked for some rows"),
        ((prior_of_rows, guide), {}, "site 'z': its prior differs between rows or draws"),
        ((shared, beside_shared), {}, "site 'z': its prior differs between rows or draws"),
        ((one_prior, two), {"site": "low"}, "site 'low': its density in the guide differs between draws"),
        ((two, two), {}, r"site=None: the latents inside the data plate are \['top', 'low'\]"),
        ((classes, classes), {}, "site 'z' is a Categorical in the guide, which has no finite mean"),
        ((model, guide), {"site": "y"}, r"site='y': the latents inside the data plate are \['z'\]"),
        ((model, guide), {"num_samples": 1}, "num_samples=1: expected an integer of at least 2"),
        ((model, guide), {"batch_size": 0}, "batch_size=0"),
        ((model, guide), {"active_threshold": 0.0}, "active_threshold=0.0: expected a number above 0"),
        ((model, guide), {"kl_threshold": -1}, "kl_threshold=-1"),
        ((model, guide), {"labels": [0, 1]}, r"labels have the shape \(2,\): expected \(5,\), a class for each row"),
        ((model, guide), {"labels": [0, 1, math.nan, 1, 0]}, "labels: 1 of 5 are missing"),
        ((model, guide), {"labels": ["a", None, "b", None, "a"]}, "labels: 2 of 5 are missing"),
        ((model, guide), {"labels": [0, 1, 0.5, 1, 0]}, "labels has 0.5: expected classes"),
        ((model, guide), {"labels": [1] * 5}, "labels are all .*1.*: expected two classes or more"),
        ((model, guide), {"labels": [0, 1, 0, 1, 0]}, "folds=5: class 1 has 2 rows"),
        ((model, guide), {"labels": [0, 1, 0, 1, 0], "folds": 2}, "neighbours=5: 2 rows are left"),
    ],
)
def test_what_has_no_report_is_refused(pair: tuple[Any, Any], options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        latent_report(*pair, LOCS, seed=0, **options)


def test_a_latent_above_others_is_reported_on() -> None:
    """`top` depends on no other latent."""
    assert latent_report(two, two, LOCS, site="top", seed=0).kl.value == 0


def test_one_row_or_no_guide_is_refused() -> None:
    with pytest.raises(ValueError, match="data has 1 rows: expected 2 or more"):
        latent_report(model, guide, LOCS[:1])
    with pytest.raises(TypeError, match="without guide: expected latent_report"):
        latent_report(model)
    with pytest.raises(TypeError, match="without data"):
        latent_report(model, guide)
