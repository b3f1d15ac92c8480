"""The three forms of the objective against sums over all values of small discrete guides."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoMultivariateNormal, AutoNormal
from torch import Tensor

from banel_pyro import BaNEL_ELBO, BaNEL_TraceEnum_ELBO, guide_entropy
from tests.cases import FORM_CASES, FORMS, Case, Problem
from tests.laws import Values, assert_mean, assert_same, gradients

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites"),
]

X = torch.tensor([0.5, -1.0, 1.5, 0.2], dtype=torch.float64)
ORDERS = (0.5, 1.0, 2.0)
WEIGHTS = (-1.0, 0.0, 0.5, 2.0)
LAM_AND_ALPHA = [(lam, alpha) for lam, alpha in product(WEIGHTS, ORDERS) if lam or alpha == 1]

each_form = pytest.mark.parametrize("form", FORMS)
each_order = pytest.mark.parametrize("alpha", ORDERS)


def entropy(log_q: Tensor, alpha: float) -> Tensor:
    """Rényi entropy of a table of log probabilities."""
    return -(log_q.exp() * log_q).sum() if alpha == 1 else (alpha * log_q).logsumexp(-1) / (1 - alpha)


def summed(log_q: Tensor, log_p: Tensor, lam: float, alpha: float) -> Tensor:
    """The loss, from tables of log q and log p."""
    return (log_q.exp() * (log_q - log_p)).sum() + lam * entropy(log_q, alpha)


def binary(n: int) -> Tensor:
    """All values of n binary variables."""
    return torch.tensor(list(product((0.0, 1.0), repeat=n)))


def parallel(guide: Callable[[], Any]) -> Any:
    """The guide with its discrete sites marked for enumeration."""
    return config_enumerate(guide, default="parallel")


def marked(guide: Callable[[], Any], kinds: dict[str, str]) -> Any:
    """The guide with some sites marked for enumeration of a kind."""
    return poutine.infer_config(guide, lambda site: {"enumerate": kinds[site["name"]]} if site["name"] in kinds else {})


def in_form(form: type, guide: Callable[[], Any]) -> Any:
    """The guide as a form takes it: with draws, or with all values."""
    return parallel(guide) if form is BaNEL_TraceEnum_ELBO else guide


def drawn(form: type, count: int = 300) -> dict[str, Any]:
    """Options of a form: so many draws at once, or none where values are summed over."""
    many = {} if form is BaNEL_TraceEnum_ELBO else {"num_particles": count, "vectorize_particles": True}
    return {"max_plate_nesting": 1, **many}


def exact_values(exact: Callable[[dict[str, Tensor]], Tensor], parameters: dict[str, Tensor]) -> Values:
    """The exact loss and its gradient."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
    loss = exact(leaves)
    slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    zeros = [torch.zeros_like(leaf) for leaf in leaves.values()]
    return float(loss.detach()), [z if g is None else g for g, z in zip(slopes, zeros, strict=True)]


def assert_values(form: type, draw: Callable[[], Values], exact: Values, *, repeats: int = 30) -> None:
    """Loss and gradient are the exact ones: to rounding where all values are summed over, else in standard errors."""
    if form is BaNEL_TraceEnum_ELBO:
        assert_same(draw(), exact)
        return
    found = [draw() for _ in range(repeats)]
    assert_mean(torch.tensor([loss for loss, _ in found]), exact[0])
    for i, slope in enumerate(exact[1]):
        assert_mean([slopes[i] for _, slopes in found], slope)


def assert_exact(form: type, elbo: Any, problem: Problem) -> None:
    """The same for a problem."""
    parameters = problem.parameters()
    assert_values(form, lambda: gradients(elbo, problem, parameters), exact_values(problem.exact, parameters))


# ---- the optimum (L4) -------------------------------------------------------------------------------------------

LOG_P = torch.log(torch.tensor([0.1, 0.45, 0.05, 0.4], dtype=torch.float64))


def categorical(logits: Tensor) -> Callable[[], Any]:
    return lambda: pyro.sample("z", dist.Categorical(logits=logits))


@each_form
@pytest.mark.parametrize("lam", [-1.0, 0.0, 0.5])
def test_the_optimum_is_a_softmax(form: type, lam: float) -> None:
    minimum = -(1 - lam) * torch.logsumexp(LOG_P / (1 - lam), 0)
    logits = (LOG_P / (1 - lam)).clone().requires_grad_()
    problem = Problem(categorical(LOG_P), in_form(form, categorical(logits)), lambda p: minimum)
    elbo = form(lam=lam, entropy="monte_carlo", max_plate_nesting=0)
    found = [gradients(elbo, problem, {"logits": logits}) for _ in range(1 if form is BaNEL_TraceEnum_ELBO else 150)]
    # log p - T log q is constant there: no draw has another loss
    torch.testing.assert_close(torch.tensor([loss for loss, _ in found]), minimum.expand(len(found)))
    if len(found) == 1:
        torch.testing.assert_close(found[0][1][0], torch.zeros(4))
    else:
        assert_mean([gradient[0] for _, gradient in found], torch.zeros(4))


@each_form
def test_above_one_the_optimum_is_the_point_mass_at_the_mode(form: type) -> None:
    logits = torch.zeros(4, requires_grad=True)
    problem = Problem(categorical(LOG_P), in_form(form, categorical(logits)), lambda p: -LOG_P.max())
    elbo = form(lam=2.0, **{**drawn(form, 16), "max_plate_nesting": 0})
    optimizer = torch.optim.Adam([logits], lr=0.2)
    for _ in range(150):
        gradients(elbo, problem, {"logits": logits})
        optimizer.step()
    assert int(logits.argmax()) == int(LOG_P.argmax())
    assert elbo.loss(problem.model, problem.guide) == pytest.approx(-float(LOG_P.max()), abs=0.02)


# ---- enumeration is the exact sum: k ~ B(0.3), b_i ~ B(0.6), x_i ~ N(k + 2 b_i, 1) ------------------------------


def joint_problem(lam: float, alpha: float, configure: Callable[[Any], Any] = lambda guide: guide) -> Problem:
    """A global site, and local ones that depend on it."""

    def model() -> None:
        k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.3)))
        with pyro.plate("data", len(X)):
            b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.6)))
            pyro.sample("x", dist.Normal(k + 2 * b, 1.0), obs=X)

    def guide() -> None:
        rho, beta, gamma = (pyro.param(name, torch.tensor(0.1)) for name in ("rho", "beta", "gamma"))
        k = pyro.sample("k", dist.Bernoulli(logits=rho))
        with pyro.plate("data", len(X)):
            pyro.sample("b", dist.Bernoulli(logits=beta * X + gamma * k))

    def exact(p: dict[str, Tensor]) -> Tensor:
        values = binary(1 + len(X))
        k, b = values[:, :1], values[:, 1:]
        log_q = dist.Bernoulli(logits=p["rho"]).log_prob(k).sum(1)
        log_q = log_q + dist.Bernoulli(logits=p["beta"] * X + p["gamma"] * k).log_prob(b).sum(1)
        local = dist.Bernoulli(torch.tensor(0.6)).log_prob(b) + dist.Normal(k + 2 * b, 1.0).log_prob(X)
        log_p = dist.Bernoulli(torch.tensor(0.3)).log_prob(k).sum(1) + local.sum(1)
        return summed(log_q, log_p, lam, alpha)

    return Problem(model, configure(guide), exact)


@each_form
@pytest.mark.parametrize(("lam", "alpha"), LAM_AND_ALPHA)
def test_loss_and_gradient_of_dependent_sites(form: type, lam: float, alpha: float) -> None:
    """Of dependent sites it is the joint Rényi entropy that counts."""
    problem = joint_problem(lam, alpha, lambda guide: in_form(form, guide))
    assert_exact(form, form(lam=lam, alpha=alpha, **drawn(form)), problem)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_dependent_sites_that_are_drawn_in_the_enumerated_form(alpha: float) -> None:
    elbo = BaNEL_TraceEnum_ELBO(lam=-1.0, alpha=alpha, **drawn(BaNEL_ELBO))
    assert_exact(BaNEL_ELBO, elbo, joint_problem(-1.0, alpha))


@pytest.mark.parametrize("particles", [{"num_particles": 3}, {"num_particles": 3, "vectorize_particles": True}])
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_particles_change_nothing_where_all_is_summed(alpha: float, particles: dict[str, Any]) -> None:
    elbo = BaNEL_TraceEnum_ELBO(lam=0.5, alpha=alpha, max_plate_nesting=1, **particles)
    assert_exact(BaNEL_TraceEnum_ELBO, elbo, joint_problem(0.5, alpha, parallel))


@pytest.mark.parametrize("lam", WEIGHTS)
def test_values_one_after_another(lam: float) -> None:
    """The global site in one trace for each of its values, the local ones in parallel."""

    elbo = BaNEL_TraceEnum_ELBO(lam=lam, max_plate_nesting=1)
    problem = joint_problem(lam, 1.0, lambda guide: marked(guide, {"k": "sequential", "b": "parallel"}))
    assert_exact(BaNEL_TraceEnum_ELBO, elbo, problem)


@pytest.mark.parametrize("lam", [-1.0, 0.5])
@pytest.mark.parametrize("summed_over", ["k", "b"])
def test_one_site_drawn_and_one_summed_over(lam: float, summed_over: str) -> None:
    elbo = BaNEL_TraceEnum_ELBO(lam=lam, num_particles=100, vectorize_particles=True, max_plate_nesting=1)
    assert_exact(BaNEL_ELBO, elbo, joint_problem(lam, 1.0, lambda guide: marked(guide, {summed_over: "parallel"})))


# ---- subsampled and masked plates: b_i ~ B(0.6), c_i | b_i ~ B(0.3 + 0.4 b_i), x_i ~ N(b_i + c_i, 1) ------------


def local_problem(
    lam: float, alpha: float, rows: list[int], *, mask: list[bool] | None = None, dependent: bool = True
) -> Problem:
    """Two sites for each row in `rows`, which stand for all, dependent or not; the exact loss of the unmasked ones."""
    subsample = torch.tensor(rows) if len(rows) < len(X) else None
    kept = torch.ones(len(X), dtype=torch.bool) if mask is None else torch.tensor(mask)

    def model() -> None:
        with pyro.plate("data", len(X), subsample=subsample) as i, poutine.mask(mask=kept[i]):
            b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.6)))
            c = pyro.sample("c", dist.Bernoulli(0.3 + 0.4 * b))
            pyro.sample("x", dist.Normal(b + c, 1.0), obs=X[i])

    def guide() -> None:
        beta, gamma, tau = (pyro.param(name, torch.tensor(0.1)) for name in ("beta", "gamma", "tau"))
        with pyro.plate("data", len(X), subsample=subsample) as i, poutine.mask(mask=kept[i]):
            b = pyro.sample("b", dist.Bernoulli(logits=beta * X[i]))
            pyro.sample("c", dist.Bernoulli(logits=tau + (gamma * b if dependent else gamma * X[i])))

    def exact(p: dict[str, Tensor]) -> Tensor:
        b, c = binary(2).T
        losses = []
        for x in X[kept]:
            log_q = dist.Bernoulli(logits=p["beta"] * x).log_prob(b)
            log_q = log_q + dist.Bernoulli(logits=p["tau"] + p["gamma"] * (b if dependent else x)).log_prob(c)
            log_p = dist.Bernoulli(torch.tensor(0.6)).log_prob(b) + dist.Bernoulli(0.3 + 0.4 * b).log_prob(c)
            losses.append(summed(log_q, log_p + dist.Normal(b + c, 1.0).log_prob(x), lam, alpha))
        return torch.stack(losses).sum()

    return Problem(model, guide, exact)


MASK = [True, False, True, True]


@each_form
@each_order
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dependent", [False, True])
def test_subsampled_plates_have_the_expectation_of_full_ones(
    form: type, alpha: float, masked: bool, dependent: bool
) -> None:
    """The mean over batches that share the rows among them is the loss of all rows."""
    options = {"mask": MASK if masked else None, "dependent": dependent}
    elbo = form(lam=0.5, alpha=alpha, **drawn(form, 200))
    whole = local_problem(0.5, alpha, list(range(len(X))), **options)
    parameters = whole.parameters()
    parts = [local_problem(0.5, alpha, rows, **options) for rows in ([2, 0], [1, 3])]
    parts = [replace(part, guide=in_form(form, part.guide)) for part in parts]

    def one() -> Values:
        found = [gradients(elbo, part, parameters) for part in parts]
        mean = [torch.stack(slopes).mean(0) for slopes in zip(*(slopes for _, slopes in found), strict=True)]
        return sum(loss for loss, _ in found) / len(parts), mean

    assert_values(form, one, exact_values(whole.exact, parameters), repeats=20)


# ---- what the order does, and does not --------------------------------------------------------------------------


def real_model() -> None:
    a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(X)):
        z = pyro.sample("z", dist.Normal(a.sum(), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=X)


def real_guide() -> None:
    loc, tril = pyro.param("loc", torch.zeros(2)), pyro.param("tril", torch.eye(2))
    pyro.sample("a", dist.MultivariateNormal(loc, scale_tril=tril))
    with pyro.plate("data", len(X)):
        pyro.sample("z", dist.Normal(pyro.param("u", torch.zeros(len(X))), pyro.param("t", torch.tensor(0.7))))


LOCATION_SCALE: dict[str, Callable[[], Any]] = {
    "Normal and MultivariateNormal": lambda: real_guide,
    "AutoNormal": lambda: AutoNormal(real_model),
    "AutoMultivariateNormal": lambda: AutoMultivariateNormal(real_model),
    "AutoLowRankMultivariateNormal": lambda: AutoLowRankMultivariateNormal(real_model, rank=2),
}


@each_form
@pytest.mark.parametrize("name", LOCATION_SCALE)
def test_the_order_adds_a_constant_for_location_scale_guides(form: type, name: str) -> None:
    """Six real numbers in all: each has (log(alpha) / (alpha - 1) - 1) / 2 nats more than Shannon's."""
    guide = LOCATION_SCALE[name]()
    guide()
    problem = Problem(real_model, guide, lambda p: torch.zeros(()))
    parameters = dict(pyro.get_param_store()._params)
    found = {}
    for alpha in (1.0, 0.3, 2.0, 7.0):
        pyro.set_rng_seed(2)
        found[alpha] = gradients(form(lam=0.4, alpha=alpha, max_plate_nesting=1), problem, parameters)
    for alpha in (0.3, 2.0, 7.0):
        more = 0.4 * 6 * (math.log(alpha) / (alpha - 1) - 1) / 2
        assert_same(found[alpha], (found[1.0][0] + more, found[1.0][1]))


@each_form
def test_the_order_changes_the_gradient_of_categorical_guides(form: type) -> None:
    """By exactly the difference of the entropies, under one seed."""
    logits = torch.tensor([0.3, -1.0, 0.8, 0.0], requires_grad=True)
    problem = Problem(categorical(LOG_P), in_form(form, categorical(logits)), lambda p: torch.zeros(()))
    found = {}
    for alpha in ORDERS:
        pyro.set_rng_seed(2)
        found[alpha] = gradients(form(lam=-0.7, alpha=alpha, max_plate_nesting=0), problem, {"logits": logits})
    for alpha in (0.5, 2.0):
        log_q = logits.log_softmax(0)
        more = -0.7 * (entropy(log_q, alpha) - entropy(log_q, 1.0))
        (slope,) = torch.autograd.grad(more, logits)
        assert float(slope.abs().max()) > 0.03
        assert_same(found[alpha], (found[1.0][0] + more.item(), [found[1.0][1][0] + slope]))


# ---- entropies by enumeration (L7) ------------------------------------------------------------------------------

T = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.1, 0.4]], dtype=torch.float64)


def global_and_local() -> None:
    k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.3)))
    with pyro.plate("data", 4):
        pyro.sample("b", dist.Bernoulli(logits=X + k))


def masked() -> None:
    k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.3)))
    with pyro.plate("data", 4), poutine.mask(mask=torch.tensor(MASK)):
        pyro.sample("b", dist.Bernoulli(logits=X + k))


def nested() -> None:
    k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.3)))
    with pyro.plate("outer", 2, dim=-2):
        b = pyro.sample("b", dist.Bernoulli(logits=X[:2, None] + k))
        with pyro.plate("data", 2, dim=-1):
            pyro.sample("c", dist.Bernoulli(logits=X[2:] - 2 * b))


def pairs() -> None:
    with pyro.plate("data", 3), poutine.mask(mask=torch.tensor([True, False, True])):
        b = pyro.sample("b", dist.Bernoulli(logits=X[:3]))
        pyro.sample("c", dist.Bernoulli(logits=1 - 3 * b))


def independent() -> None:
    pyro.sample("k", dist.Categorical(T[0]))
    with pyro.plate("data", 3):
        pyro.sample("b", dist.Bernoulli(logits=X[:3]))


def chain() -> None:
    z = torch.zeros((), dtype=torch.long)
    for t in pyro.markov(range(4)):
        z = pyro.sample(f"z{t}", dist.Categorical(T[z.long()]))


ENUMERATED: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "global and local": (global_and_local, {"k": 2, "b": [2, 2, 2, 2]}),
    "masked": (masked, {"k": 2, "b": [2, 1, 2, 2]}),
    "nested plates": (nested, {"k": 2, "b": [[2], [2]], "c": [[2, 2], [2, 2]]}),
    "pairs in a masked plate": (pairs, {"b": [2, 1, 2], "c": [2, 1, 2]}),
    "independent": (independent, {"k": 3, "b": [2, 2, 2]}),
    "Markov chain": (chain, {f"z{t}": 3 for t in range(4)}),
}
"""Guides, with the number of values of each element; of masked ones one will do."""
each_guide = pytest.mark.parametrize("name", ENUMERATED)


def run_by_run(name: str) -> dict[str, Tensor]:
    """log q of each site at every joint value, by one run of the guide for each value."""
    guide, counts = ENUMERATED[name]
    shapes = {site: torch.tensor(count) for site, count in counts.items()}
    tables: dict[str, list[Tensor]] = {site: [] for site in counts}
    for values in product(*(range(n) for shape in shapes.values() for n in shape.flatten().tolist())):
        parts = torch.tensor(values, dtype=X.dtype).split([shape.numel() for shape in shapes.values()])
        data = {site: part.reshape(shapes[site].shape) for site, part in zip(shapes, parts, strict=True)}
        trace = poutine.trace(poutine.condition(guide, data)).get_trace()
        trace.compute_log_prob()
        for site, table in tables.items():
            table.append(trace.nodes[site]["log_prob"])
    return {site: torch.stack(table) for site, table in tables.items()}


def by_value(tables: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same, summed over plates."""
    return {site: table.flatten(1).sum(1) if table.dim() > 1 else table for site, table in tables.items()}


@each_guide
@each_order
def test_entropy_by_enumeration_is_that_of_the_table(name: str, alpha: float) -> None:
    guide = ENUMERATED[name][0]
    log_q = torch.stack(list(by_value(run_by_run(name)).values())).sum(0)
    found = guide_entropy(parallel(guide), alpha=alpha)
    assert found.value == pytest.approx(float(entropy(log_q, alpha)), abs=1e-10)
    assert found.stderr == 0
    elbo = BaNEL_TraceEnum_ELBO(lam=0.5, alpha=alpha, max_plate_nesting=2)
    terms = elbo.terms(guide, parallel(guide))
    torch.testing.assert_close(terms.penalty, 0.5 * entropy(log_q, alpha))
    torch.testing.assert_close(terms.entropy, entropy(log_q, 1.0))
    assert float(terms.elbo) == pytest.approx(0.0, abs=1e-10)  # the model is the guide


@each_guide
def test_entropies_of_the_sites_by_table_closed_form_and_draws(name: str) -> None:
    guide = ENUMERATED[name][0]
    tables = by_value(run_by_run(name))
    log_q = torch.stack(list(tables.values())).sum(0)
    exact = {site: -(log_q.exp() * table).sum() for site, table in tables.items()}
    for mode in ("closed_form", "monte_carlo"):
        elbo = BaNEL_TraceEnum_ELBO(entropy=mode, max_plate_nesting=2)
        torch.testing.assert_close(elbo.site_entropies(guide, parallel(guide)), exact)
    for site, found in guide_entropy(parallel(guide), per_site=True).items():
        assert (found.value, found.stderr) == (pytest.approx(float(exact[site]), abs=1e-10), 0)
    drawn = BaNEL_ELBO(entropy="monte_carlo")
    samples = [drawn.site_entropies(guide, guide) for _ in range(100)]
    for site in exact:
        assert_mean(torch.stack([sample[site] for sample in samples]), exact[site])


@pytest.mark.parametrize("name", ["global and local", "masked", "nested plates", "pairs in a masked plate"])
def test_entropies_of_the_rows(name: str) -> None:
    guide, tables = ENUMERATED[name][0], run_by_run(name)
    q = torch.stack(list(by_value(tables).values())).sum(0).exp()
    # what has the axis of the plate: all but the global site, and the outer one of two nested plates
    local = [table for site, table in tables.items() if site != "k" and (name, site) != ("nested plates", "b")]
    exact = sum(-torch.tensordot(q, table, 1).reshape(-1, table.shape[-1]).sum(0) for table in local)
    found = guide_entropy(parallel(guide), per_datum=True)
    torch.testing.assert_close(torch.as_tensor(found.value), exact)
    assert not found.stderr.any()
    rows = BaNEL_TraceEnum_ELBO(lam=0.5, max_plate_nesting=2).terms_per_datum(guide, parallel(guide))
    torch.testing.assert_close(rows.entropy, exact)
    torch.testing.assert_close(rows.penalty, 0.5 * exact)


@each_order
def test_renyi_entropies_of_the_rows_and_of_the_sites(alpha: float) -> None:
    b, c = binary(2).T
    rows = [dist.Bernoulli(logits=x).log_prob(b) + dist.Bernoulli(logits=1 - 3 * b).log_prob(c) for x in X[:3]]
    exact = torch.stack([entropy(log_q, alpha) for log_q in rows]) * torch.tensor([1.0, 0.0, 1.0])
    found = guide_entropy(parallel(pairs), alpha=alpha, per_datum=True)
    torch.testing.assert_close(torch.as_tensor(found.value), exact)
    assert not found.stderr.any()
    apart = guide_entropy(parallel(independent), alpha=alpha, per_site=True)
    p = torch.sigmoid(X[:3])
    coins = sum(entropy(log_q, alpha) for log_q in torch.stack([p, 1 - p], 1).log())
    assert (apart["k"].value, apart["k"].stderr) == (pytest.approx(float(entropy(T[0].log(), alpha)), abs=1e-10), 0)
    assert (apart["b"].value, apart["b"].stderr) == (pytest.approx(float(coins), abs=1e-10), 0)


# ---- the terms of the enumerated form ---------------------------------------------------------------------------


def summed_out() -> None:
    k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.3)))
    with pyro.plate("data", len(X)):
        b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.6)), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(k + 2 * b, 1.0), obs=X)


@each_order
def test_where_the_model_sums_a_site_out_the_elbo_is_given_whole(alpha: float) -> None:
    log_q = torch.tensor([0.6, 0.4]).log()

    def guide() -> None:
        pyro.sample("k", dist.Bernoulli(torch.tensor(0.4)))

    k, b = torch.tensor([0.0, 1.0])[:, None, None], torch.tensor([0.0, 1.0])[:, None]
    log_x = (dist.Bernoulli(torch.tensor(0.6)).log_prob(b) + dist.Normal(k + 2 * b, 1.0).log_prob(X)).logsumexp(1)
    log_p = torch.tensor([0.7, 0.3]).log() + log_x.sum(1)
    elbo = BaNEL_TraceEnum_ELBO(lam=-0.8, alpha=alpha, max_plate_nesting=1)
    terms = elbo.terms(summed_out, parallel(guide))
    assert math.isnan(terms.log_likelihood)
    assert math.isnan(terms.kl)
    torch.testing.assert_close(terms.elbo, (log_q.exp() * (log_p - log_q)).sum())
    torch.testing.assert_close(terms.entropy, entropy(log_q, 1.0))
    torch.testing.assert_close(terms.penalty, -0.8 * entropy(log_q, alpha))
    torch.testing.assert_close(terms.loss, summed(log_q, log_p, -0.8, alpha))
    assert elbo.loss(summed_out, parallel(guide)) == pytest.approx(float(terms.loss), abs=1e-10)
    with pytest.raises(ValueError, match=r"terms_per_datum.*\['b'\] are summed out.*Use terms"):
        elbo.terms_per_datum(summed_out, parallel(guide))


def test_terms_of_a_guide_that_is_summed_over_are_the_exact_sums() -> None:
    problem = joint_problem(0.5, 2.0, parallel)
    p = {name: value.detach() for name, value in problem.parameters().items()}
    values = binary(1 + len(X))
    k, b = values[:, :1], values[:, 1:]
    local = dist.Bernoulli(logits=p["beta"] * X + p["gamma"] * k).log_prob(b)
    log_q = dist.Bernoulli(logits=p["rho"]).log_prob(k).sum(1) + local.sum(1)
    q = log_q.exp()
    log_x = dist.Normal(k + 2 * b, 1.0).log_prob(X)
    log_b, log_k = dist.Bernoulli(torch.tensor(0.6)).log_prob(b), dist.Bernoulli(torch.tensor(0.3)).log_prob(k).sum(1)
    elbo = BaNEL_TraceEnum_ELBO(lam=0.5, alpha=2.0, max_plate_nesting=1)
    terms = elbo.terms(problem.model, problem.guide)
    torch.testing.assert_close(terms.log_likelihood, (q * log_x.sum(1)).sum())
    torch.testing.assert_close(terms.kl, (q * (log_q - log_k - log_b.sum(1))).sum())
    torch.testing.assert_close(terms.entropy, entropy(log_q, 1.0))
    torch.testing.assert_close(terms.penalty, 0.5 * entropy(log_q, 2.0))
    rows = elbo.terms_per_datum(problem.model, problem.guide)
    torch.testing.assert_close(rows.log_likelihood, q @ log_x)
    torch.testing.assert_close(rows.kl, q @ (local - log_b))
    torch.testing.assert_close(rows.entropy, -(q @ local))


def close(one: Any, other: Any) -> None:
    """The same records."""
    for name in ("log_likelihood", "kl", "entropy", "penalty"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))


def test_rows_are_the_same_whatever_way_the_values_are_gone_through() -> None:
    elbo = BaNEL_TraceEnum_ELBO(lam=0.5, max_plate_nesting=1)
    found = []
    for kinds in ("parallel", "parallel"), ("sequential", "parallel"), ("sequential", "sequential"):
        problem = joint_problem(0.5, 1.0, lambda guide, kinds=kinds: marked(guide, dict(zip("kb", kinds, strict=True))))
        problem.parameters()
        found.append(elbo.terms_per_datum(problem.model, problem.guide))
    for other in found[1:]:
        close(other, found[0])


def test_rows_of_a_site_of_which_many_values_are_drawn() -> None:
    problem = joint_problem(0.5, 1.0, lambda guide: config_enumerate(guide, num_samples=300))
    problem.parameters()
    elbo = BaNEL_TraceEnum_ELBO(lam=0.5, max_plate_nesting=1)
    rows = elbo.terms_per_datum(problem.model, problem.guide)
    exact = elbo.terms_per_datum(problem.model, parallel(joint_problem(0.5, 1.0).guide))
    torch.testing.assert_close(rows.log_likelihood, exact.log_likelihood, rtol=0, atol=0.3)
    torch.testing.assert_close(rows.entropy, exact.entropy, rtol=0, atol=0.1)


def test_draws_of_which_a_particle_has_many_have_no_joint_renyi_entropy() -> None:
    problem = joint_problem(0.5, 2.0, lambda guide: config_enumerate(guide, num_samples=3))
    problem.parameters()
    elbo = BaNEL_TraceEnum_ELBO(lam=0.5, alpha=2.0, **drawn(BaNEL_ELBO))
    with pytest.raises(ValueError, match=r"alpha=2.*\['k', 'b'\].*num_samples"):
        elbo.loss(problem.model, problem.guide)


def test_rows_of_a_plate_that_the_guide_does_not_have() -> None:
    def model() -> None:
        k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.3)))
        with pyro.plate("data", len(X)):
            pyro.sample("x", dist.Normal(k, 1.0), obs=X)

    def guide() -> None:
        pyro.sample("k", dist.Bernoulli(torch.tensor(0.4)))

    rows = BaNEL_TraceEnum_ELBO(lam=0.5, max_plate_nesting=1).terms_per_datum(model, parallel(guide))
    k = torch.tensor([[0.0], [1.0]])
    torch.testing.assert_close(rows.log_likelihood, torch.tensor([0.6, 0.4]) @ dist.Normal(k, 1.0).log_prob(X))
    for nothing in (rows.kl, rows.entropy, rows.penalty):
        assert not nothing.any()


@pytest.mark.parametrize("case", [c for c in FORM_CASES if c.lam == "number" and c.guide == "plain"], ids=str)
def test_terms_per_datum_add_up(case: Case) -> None:
    """Totals are N/B times the sum over rows, plus what belongs to no row, under one seed."""
    problem = case.build()
    problem.parameters()
    elbo = case.form(lam=case.weights, **case.options)
    pyro.set_rng_seed(1)
    terms = elbo.terms(problem.model, problem.guide)
    pyro.set_rng_seed(1)
    rows = elbo.terms_per_datum(problem.model, problem.guide)
    factor = 3.0 if case.subsampled else 1.0
    torch.testing.assert_close(rows.log_likelihood.sum() * factor, terms.log_likelihood)
    torch.testing.assert_close(rows.penalty, 0.4 * rows.entropy)
    torch.testing.assert_close(terms.elbo, terms.log_likelihood - terms.kl)
    torch.testing.assert_close(terms.loss, terms.penalty - terms.elbo)
