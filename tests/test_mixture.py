"""The mixture against exact answers: assignments enumerated, and the evidence of the unsorted model."""

import itertools
import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from scipy import integrate
from sklearn.datasets import load_iris
from torch import Tensor

from banel_pyro import fit
from models import data, mixture
from models.mixture import SortedNormal, responsibilities
from tests.importance import evidence_error, mean_error, weighted_draws

pytestmark = pytest.mark.usefixtures("float64")

X = (1.5, 4.2, 1.2, 5.1, 3.0)
WEIGHTS, SCALES = (0.35, 0.65), (0.5, 0.9)
SMALL = partial(mixture.model, size=len(X), components=2)


def small() -> tuple[Tensor, Tensor, Tensor]:
    """Five lengths, and the weights and scales of two components."""
    return torch.tensor(X), torch.tensor(WEIGHTS), torch.tensor(SCALES)


def assignments() -> itertools.product:
    """All ways to assign the five lengths to two components."""
    return itertools.product(range(2), repeat=len(X))


# The assignments


def test_the_summed_likelihood_is_that_of_all_assignments() -> None:
    x, weights, scales = small()
    locations = torch.tensor([1.9, 4.4])
    at = {"weights": weights, "locations": locations, "scales": scales}
    trace = poutine.trace(poutine.condition(SMALL, at)).get_trace(x)
    trace.compute_log_prob()
    all_k = torch.tensor(list(assignments()))
    log_joint = (weights[all_k].log() + dist.Normal(locations[all_k], scales[all_k]).log_prob(x)).sum(-1)
    assert trace.nodes["x"]["log_prob_sum"] == pytest.approx(float(log_joint.logsumexp(0)), rel=1e-12)
    found = responsibilities(x, **at)
    assert torch.allclose(found[:, 1], log_joint.softmax(0) @ all_k.double())
    assert torch.allclose(found.sum(-1), torch.ones(len(X)))


def test_responsibilities_keep_the_axis_of_draws() -> None:
    x, weights, scales = small()
    locations = torch.tensor([[1.9, 4.4], [1.0, 3.0], [2.0, 6.0]])
    found = responsibilities(x, weights=weights.expand(3, 2), locations=locations, scales=scales.expand(3, 2))
    assert found.shape == (3, 5, 2)
    assert torch.allclose(found[1], responsibilities(x, weights=weights, locations=locations[1], scales=scales))


# Sorted locations


def unsorted_evidence(x: Tensor, weights: Tensor, scales: Tensor) -> tuple[float, float]:
    """Evidence in nats and the posterior mean of Σ_k m_k, of two components with locations Normal(4, 2) in any order.

    Given an assignment the lengths of a component are normal with a shared part of variance 4, and the posterior
    of its location is the conjugate one.
    """
    log_p, means = [], []
    for k in assignments():
        assigned = torch.tensor(k)
        total, mean = weights[assigned].log().sum(), torch.zeros(())
        for j in range(2):
            mine = x[assigned == j]
            covariance = scales[j] ** 2 * torch.eye(len(mine)) + 4.0
            if len(mine):
                total = total + dist.MultivariateNormal(torch.full_like(mine, 4.0), covariance).log_prob(mine)
            precision = 1 / 4 + len(mine) / scales[j] ** 2
            mean = mean + (4 / 4 + mine.sum() / scales[j] ** 2) / precision
        log_p.append(total)
        means.append(mean)
    stacked = torch.stack(log_p)
    return float(stacked.logsumexp(0)), float(stacked.softmax(0) @ torch.stack(means))


def test_sorting_leaves_the_evidence_and_nameless_means_alone() -> None:
    """Equal weights and scales: then the names are all that a permutation changes."""
    x, equal, scale = torch.tensor(X), torch.tensor([0.5, 0.5]), torch.tensor([0.7, 0.7])
    log_evidence, mean = unsorted_evidence(x, equal, scale)
    model = poutine.condition(SMALL, {"weights": equal, "scales": scale})
    guide = AutoNormal(model, init_scale=0.3)
    fit(model, guide, x, steps=150, lr=0.05, data_plate="data", seed=0, progress=False)
    weighted = weighted_draws(model, guide, x, draws=1000)
    of_weights = dist.Dirichlet(torch.full((2,), 2.0)).log_prob(equal)
    of_scales = dist.LogNormal(-1.0, 0.5).log_prob(scale).sum()
    assert abs(evidence_error(weighted.log_w - of_weights - of_scales, log_evidence)) < 4
    assert abs(mean_error(weighted, weighted.values["locations"].sum(-1), torch.tensor(mean))) < 4
    assert log_evidence - (weighted.log_w - of_weights - of_scales).mean() < 0.5


def test_the_sorted_density_integrates_to_one() -> None:
    q = SortedNormal(torch.tensor(4.0), torch.tensor(2.0), 2)
    total, _ = integrate.dblquad(
        lambda b, a: float(q.log_prob(torch.tensor([a, b])).exp()), -10, 18, lambda a: a, lambda a: 18, epsabs=1e-5
    )
    assert total == pytest.approx(1, abs=1e-4)


def test_sorted_draws_have_the_means_of_order_statistics() -> None:
    draws = SortedNormal(torch.tensor(4.0), torch.tensor(2.0), 2).sample((20_000,))
    assert (draws[:, 0] < draws[:, 1]).all()
    gap = 2 / math.sqrt(math.pi)  # of two standard normals the larger is 1/sqrt(pi) on average
    for column, exact in zip(draws.T, (4 - gap, 4 + gap), strict=True):
        assert abs(column.mean() - exact) < 4 * column.std() / len(column) ** 0.5


def test_sorted_draws_have_gradients_and_batches() -> None:
    loc = torch.tensor([1.0, 5.0], requires_grad=True)
    q = SortedNormal(loc, torch.tensor(2.0), 3).expand(torch.Size((4, 2)))
    draws = q.rsample((7,))
    assert draws.shape == (7, 4, 2, 3)
    assert q.log_prob(draws).shape == (7, 4, 2)
    (gradient,) = torch.autograd.grad(draws.sum(), loc)
    assert torch.equal(gradient, torch.full((2,), 7.0 * 4 * 3))
    one = SortedNormal(torch.tensor(1.0), torch.tensor(2.0), 3)
    assert q.log_prob(draws)[0, 0, 0].item() == pytest.approx(one.log_prob(draws[0, 0, 0]).item())


def test_values_out_of_order_are_refused() -> None:
    q = SortedNormal(torch.tensor(4.0), torch.tensor(2.0), 2)
    for sorted_normal in (q, q.expand(torch.Size((3,)))):
        with pytest.raises(ValueError, match="support"):
            sorted_normal.log_prob(torch.tensor([2.0, 1.0]))


# The irises


def test_the_components_of_the_irises_are_their_species() -> None:
    torch.manual_seed(0)
    pair = mixture.pair()
    result = pair.fit(steps=400, lr=0.03, batch_size=60, seed=0, progress=False)
    (x,) = result.rows
    weighted = weighted_draws(pair.model, pair.guide, x, draws=100)
    names = ("weights", "locations", "scales")
    found = responsibilities(x, **{name: weighted.values[name] for name in names}).mean(0)
    small_petals = x < 2.5  # as every Iris setosa has them, and no other
    assert small_petals.sum() == pytest.approx(40, abs=12)
    assert found[small_petals, 0].min() > 0.9
    assert found[~small_petals, 0].max() < 0.1
    virginica = torch.tensor(load_iris().data[load_iris().target == 2, 2])
    of_virginica = responsibilities(virginica, **{name: weighted.values[name] for name in names}).mean((0, 1))
    assert of_virginica.argmax() == 2
    assert len(data.iris_petals().train) == mixture.NUM_FLOWERS
