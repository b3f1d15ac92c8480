"""What holds for every Rényi entropy, whatever the parameters: order, limits, symmetries, bounds, numbers that last."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from banel_pyro import guide_entropy
from banel_pyro.entropy import renyi_entropy, renyi_from_log_q

EXAMPLES = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""The same examples in every run."""

# ---- what is drawn --------------------------------------------------------------------------------------------

ORDERS = st.floats(0.02, 40.0)
SHAPES = st.floats(-4.0, 6.0).map(math.exp)
"""Of Beta, Dirichlet and Gamma: from deep poles to nearly normal."""
LOGITS = st.floats(-40.0, 40.0)
SCALES = st.floats(-6.0, 6.0).map(math.exp)


def f64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def several(of: Any, least: int = 2) -> Any:
    return st.lists(of, min_size=least, max_size=8).map(f64)


FAMILIES: dict[str, Any] = {
    "Categorical": several(LOGITS).map(lambda x: dist.Categorical(logits=x)),
    "Categorical by probs": several(st.one_of(st.just(0.0), st.floats(0.0, 1.0)))
    .filter(lambda p: p.sum() > 0)
    .map(dist.Categorical),
    "Bernoulli": LOGITS.map(lambda x: dist.Bernoulli(logits=f64(x))),
    "Bernoulli by probs": st.floats(0.0, 1.0).map(lambda p: dist.Bernoulli(f64(p))),
    "Beta": st.tuples(SHAPES, SHAPES).map(lambda a: dist.Beta(f64(a[0]), f64(a[1]))),
    "Dirichlet": several(SHAPES).map(dist.Dirichlet),
    "Gamma": st.tuples(SHAPES, SCALES).map(lambda a: dist.Gamma(f64(a[0]), f64(a[1]))),
    "Normal": SCALES.map(lambda s: dist.Normal(f64(0.3), f64(s))),
    "StudentT": st.tuples(SHAPES, SCALES).map(lambda a: dist.StudentT(f64(a[0]), f64(0.0), f64(a[1]))),
}
DISCRETE = ("Categorical", "Categorical by probs", "Bernoulli", "Bernoulli by probs")


def entropy(fn: Any, alpha: float) -> float:
    found = renyi_entropy(fn, alpha)
    assert found is not None
    assert found.shape == fn.batch_shape
    return float(found)


def slack(*values: float) -> float:
    """What rounding may do."""
    return 1e-9 * (1 + max(abs(v) for v in values if math.isfinite(v))) if any(map(math.isfinite, values)) else 0.0


# ---- as a function of the order -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
@EXAMPLES
@given(data=st.data())
def test_it_never_rises_with_the_order(name: str, data: st.DataObject) -> None:
    """+inf first, where it has it, and -inf last; Shannon's in its place."""
    fn = data.draw(FAMILIES[name])
    orders = sorted({1.0, *data.draw(st.lists(ORDERS, min_size=2, max_size=6))})
    values = [entropy(fn, alpha) for alpha in orders]
    assert math.isfinite(values[orders.index(1.0)])
    assert not any(math.isnan(value) for value in values)
    for above, below in pairwise(values):
        assert below <= above + slack(above, below), list(zip(orders, values, strict=True))


@pytest.mark.parametrize("name", FAMILIES)
@EXAMPLES
@given(data=st.data(), gap=st.floats(1e-12, 1e-5))
def test_shannon_is_the_limit(name: str, data: st.DataObject, gap: float) -> None:
    """Between its neighbours, which are as near to it as half the variance of log q times the gap."""
    fn = data.draw(FAMILIES[name])
    below, shannon, above = (entropy(fn, alpha) for alpha in (1 - gap, 1.0, 1 + gap))
    wide = math.isinf(below) or math.isinf(above)  # a tail that next to no order can take
    assume(not wide)
    assert above <= shannon + slack(shannon)
    assert shannon <= below + slack(shannon)
    first, second = shannon - above, below - shannon
    assert abs(first - second) <= 0.2 * abs(first + second) + slack(shannon)


@pytest.mark.parametrize("name", DISCRETE)
@EXAMPLES
@given(data=st.data(), alpha=ORDERS)
def test_on_a_finite_support_it_lies_between_the_extremes(name: str, data: st.DataObject, alpha: float) -> None:
    """0 <= H_∞ <= H_α <= H_0 <= log K; and H_α <= α/(α - 1) H_∞ above α = 1."""
    fn = data.draw(FAMILIES[name])
    size = 2 if "Bernoulli" in name else fn.probs.shape[-1]
    least, found, most = (entropy(fn, order) for order in (math.inf, alpha, 0.0))
    rounding = slack(found, least, most)
    assert -rounding <= least <= found + rounding
    assert found <= most + rounding
    assert most <= math.log(size) + 1e-12
    if name == "Categorical by probs":
        possible = (fn.probs > torch.finfo(torch.float64).tiny).sum()  # a denormal number counts as none
        assert most == pytest.approx(math.log(int(possible)))
    if alpha > 1:
        assert found <= alpha / (alpha - 1) * least + rounding


# ---- symmetries -----------------------------------------------------------------------------------------------


@EXAMPLES
@given(logits=several(LOGITS), alpha=ORDERS, seed=st.integers(0, 1000))
def test_the_names_of_categories_are_of_no_account(logits: Tensor, alpha: float, seed: int) -> None:
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))
    pairs = [
        (dist.Categorical(logits=logits), dist.Categorical(logits=logits[order])),
        (dist.OneHotCategorical(logits=logits), dist.OneHotCategorical(logits=logits[order])),
        (dist.Dirichlet((logits / 10).exp()), dist.Dirichlet((logits / 10).exp()[order])),
    ]
    for one, other in pairs:
        assert entropy(one, alpha) == pytest.approx(entropy(other, alpha), rel=1e-9, abs=1e-9)


@EXAMPLES
@given(a=SHAPES, b=SHAPES, logit=LOGITS, alpha=ORDERS)
def test_an_event_and_its_opposite_are_alike(a: float, b: float, logit: float, alpha: float) -> None:
    one, other = dist.Beta(f64(a), f64(b)), dist.Beta(f64(b), f64(a))
    assert entropy(one, alpha) == pytest.approx(entropy(other, alpha), rel=1e-9, abs=1e-9)
    two = [dist.Bernoulli(logits=f64(sign * logit)) for sign in (1, -1)]
    assert entropy(two[0], alpha) == pytest.approx(entropy(two[1], alpha), rel=1e-9, abs=1e-300)
    pair = dist.Categorical(logits=f64([0.0, logit]))
    assert entropy(two[0], alpha) == pytest.approx(entropy(pair, alpha), rel=1e-9, abs=1e-13)


@EXAMPLES
@given(shape=SHAPES, scale=SCALES, factor=SCALES, alpha=ORDERS)
def test_a_stretched_density_gains_the_log_of_the_factor(
    shape: float, scale: float, factor: float, alpha: float
) -> None:
    families: list[Callable[[float], Any]] = [
        lambda s: dist.Normal(f64(1.0), f64(s)),
        lambda s: dist.Gamma(f64(shape), f64(1 / s)),
        lambda s: dist.StudentT(f64(shape), f64(0.0), f64(s)),
    ]
    for of in families:
        before, after = entropy(of(scale), alpha), entropy(of(scale * factor), alpha)
        assert after == pytest.approx(before + math.log(factor), rel=1e-9, abs=1e-9)


@EXAMPLES
@given(data=st.data(), alpha=ORDERS)
def test_independent_sites_of_a_guide_add(data: st.DataObject, alpha: float) -> None:
    """Of any families, and over a plate; in closed form, so that no draw matters."""
    names = data.draw(st.lists(st.sampled_from(sorted(FAMILIES)), min_size=1, max_size=3))
    sites = {f"z{i}": data.draw(FAMILIES[name]) for i, name in enumerate(names)}
    rows = data.draw(several(SCALES))
    parts = {name: entropy(fn, alpha) for name, fn in sites.items()}
    assume(all(math.isfinite(value) for value in parts.values()))

    def guide() -> None:
        for name, fn in sites.items():
            pyro.sample(name, fn)
        with pyro.plate("data", len(rows)):
            pyro.sample("local", dist.Normal(torch.zeros_like(rows), rows))

    found = guide_entropy(guide, alpha=alpha)
    local = float(rows.log().sum()) + len(rows) * entropy(dist.Normal(f64(0.0), f64(1.0)), alpha)
    assert found.value == pytest.approx(sum(parts.values()) + local, rel=1e-9, abs=1e-9)
    assert found.stderr == 0
    apart = guide_entropy(guide, alpha=alpha, per_site=True)
    assert {name: apart[name].value for name in parts} == pytest.approx(parts)


@EXAMPLES
@given(top=several(st.floats(-5.0, 5.0)), below=several(st.floats(-5.0, 5.0)), alpha=ORDERS)
def test_of_independent_choices_the_joint_table_has_the_sum(top: Tensor, below: Tensor, alpha: float) -> None:
    joint = dist.Categorical(logits=(top.log_softmax(-1)[:, None] + below.log_softmax(-1)).reshape(-1))
    apart = sum(entropy(dist.Categorical(logits=logits), alpha) for logits in (top, below))
    assert entropy(joint, alpha) == pytest.approx(apart, rel=1e-9, abs=1e-9)


# ---- numbers that last ----------------------------------------------------------------------------------------

EDGES = [0.0, 1e-45, 1e-38, 1e-30, 1e-7, 0.5, 1 - 1e-7, 1.0]
"""Probabilities in float32, the smallest among them denormal."""


@EXAMPLES
@given(
    probs=st.lists(st.one_of(st.sampled_from(EDGES), st.floats(0.0, 1.0, width=32)), min_size=2, max_size=6),
    alpha=st.one_of(ORDERS, st.floats(-1e-6, 1e-6).map(lambda d: 1 + d)),
)
def test_float32_survives_probabilities_near_zero_and_one(probs: list[float], alpha: float) -> None:
    """Values as in float64, gradients finite."""
    assume(sum(probs) > 0.1)
    given_probs = torch.tensor(probs)
    for make in (lambda p: dist.Categorical(p), lambda p: dist.OneHotCategorical(p), lambda p: dist.Bernoulli(p)):
        leaf = given_probs.clone().requires_grad_()
        found = renyi_entropy(make(leaf), alpha)
        exact = renyi_entropy(make(given_probs.double()), alpha)
        assert found is not None
        assert exact is not None
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=3e-5, atol=3e-6)
        (gradient,) = torch.autograd.grad(found.sum(), leaf)
        assert bool(gradient.isfinite().all())


@EXAMPLES
@given(logits=st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=6), alpha=ORDERS)
def test_float32_survives_any_logits(logits: list[float], alpha: float) -> None:
    leaf = torch.tensor(logits).requires_grad_()
    for fn in (dist.Categorical(logits=leaf), dist.Bernoulli(logits=leaf)):
        found = renyi_entropy(fn, alpha)
        assert found is not None
        assert bool((found >= -1e-5).all())
        assert bool((found <= math.log(len(logits)) + 1e-5).all())
        (gradient,) = torch.autograd.grad(found.sum(), leaf)
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("name", ["Beta", "Dirichlet", "Gamma", "StudentT"])
@EXAMPLES
@given(data=st.data(), alpha=ORDERS)
def test_gradients_of_shapes_are_finite_wherever_they_lie(name: str, data: st.DataObject, alpha: float) -> None:
    """Also where the entropy is not, in single precision."""
    shapes = data.draw(several(SHAPES)).float().requires_grad_()
    families: dict[str, Callable[[Tensor], Any]] = {
        "Beta": lambda a: dist.Beta(a, a.flip(0)),
        "Dirichlet": lambda a: dist.Dirichlet(a),
        "Gamma": lambda a: dist.Gamma(a, a),
        "StudentT": lambda a: dist.StudentT(a, 0.0, a),
    }
    found = renyi_entropy(families[name](shapes), alpha)
    assert found is not None
    assert not bool(found.isnan().any())
    (gradient,) = torch.autograd.grad(found.sum(), shapes)
    assert bool(gradient.isfinite().all())


# ---- from draws -----------------------------------------------------------------------------------------------


@EXAMPLES
@given(counts=st.lists(st.integers(1, 9), min_size=2, max_size=6), alpha=st.floats(0.1, 8.0))
def test_draws_that_are_the_distribution_itself_have_its_entropy(counts: list[int], alpha: float) -> None:
    """Each value as often as it is probable: then the mean over draws is the sum, and weights sum to the escort's.

    What the jackknife adds falls with the number of draws.
    """
    n = torch.tensor(counts)
    log_q = (n.double() / n.sum()).log()
    exact = entropy(dist.Categorical(logits=log_q), alpha)
    errors = []
    for copies in (40, 4000):
        value, diagnostic = renyi_from_log_q(log_q.repeat_interleave(n * copies), alpha)
        errors.append(abs(float(value) - exact))
        weights = diagnostic.log_weights.softmax(0)
        each = torch.stack([part.sum() for part in weights.split((n * copies).tolist())])
        torch.testing.assert_close(each, (alpha * log_q).softmax(0))
        mean = (log_q.exp() * ((alpha - 1) * log_q).exp()).sum()
        square = (log_q.exp() * (2 * (alpha - 1) * log_q).exp()).sum()
        assert float(diagnostic.ess) == pytest.approx(float(n.sum() * copies * mean**2 / square), rel=1e-9)
    assert errors[1] <= 1e-3
    assert errors[1] <= errors[0] / 50 + 1e-9


@settings(EXAMPLES, suppress_health_check=[HealthCheck.filter_too_much])  # of large orders few have more than one draw
@given(log_q=st.lists(st.floats(-60.0, 20.0), min_size=3, max_size=12).map(f64), alpha=ORDERS, shift=st.floats(-50, 50))
@example(log_q=torch.tensor([0.0] * 11 + [2.0], dtype=torch.float64), alpha=27.11171548398878, shift=0.0)
def test_draws_in_another_order_or_unit_are_the_same(log_q: Tensor, alpha: float, shift: float) -> None:
    """A constant in log q comes out as it is; the order of draws is of no account."""
    value, diagnostic = renyi_from_log_q(log_q, alpha)
    assert bool(value.isfinite())
    assume(float(diagnostic.ess) > 1.05)  # where one draw has all the weight, what is left without it is rounding
    scale = 1e-7 * (1 + float(value.abs()) + abs(shift))
    assert float(renyi_from_log_q(log_q.flip(0), alpha)[0]) == pytest.approx(float(value), abs=scale)
    moved, other = renyi_from_log_q(log_q + shift, alpha)
    assert float(moved) == pytest.approx(float(value) - shift, abs=scale)
    assert float(other.stderr) == pytest.approx(float(diagnostic.stderr), rel=1e-5, abs=1e-6)
