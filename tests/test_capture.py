"""A captured step is the eager step: same draws, same numbers; and what cannot be captured is found out."""

import json
import random
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor, nn
from torch._dynamo.utils import counters

from banel_pyro import BaNEL_ELBO, CapturedSVI, CaptureError, LossTerms
from banel_pyro.capture import compiler, graphs, products, step
from banel_pyro.capture.check import check_same, difference
from banel_pyro.capture.flat import as_found, flat_graph, patched
from banel_pyro.capture.optimizers import GraphOptimizer
from banel_pyro.capture.products import choose_products
from banel_pyro.seeding import fork_rng
from tests.cases import CASES, FORM_CASES, FORMS, Case

X = torch.linspace(-1.0, 2.5, 8)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs run operation by operation, which is what most of this is about, and quick to make."""
    monkeypatch.setattr(graphs, "has_compiler", lambda: False)
    monkeypatch.setattr(graphs, "_said", {""})


def model(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


# ---- the law: captured is eager ---------------------------------------------------------------------------------

CAPTURED = random.Random(1).sample([case for case in [*CASES, *FORM_CASES] if case.lam == "number"], 60)


@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
@pytest.mark.parametrize("case", CAPTURED, ids=str)
def test_loss_and_gradient_of_the_graph_are_those_of_the_eager_step(case: Case, float64: torch.dtype) -> None:
    problem = case.build()
    parameters = list(problem.parameters().values())
    elbo = case.form(**case.options)
    elbo.loss(problem.model, problem.guide)  # at which Pyro counts plates

    def body(lam: Tensor) -> list[Tensor]:
        elbo.lam = lam
        loss, terms, _ = elbo.loss_and_terms(problem.model, problem.guide)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [torch.as_tensor(terms.loss), *(g for g in gradients if g is not None)]

    graph = flat_graph(body, [torch.tensor(0.4)])
    check_same(body, graph, graph, [[torch.tensor(lam)] for lam in (0.4, -0.7)], seed=5)
    for seed in (1, 2):
        with fork_rng(seed):
            ours = graph(torch.tensor(0.3))
        with fork_rng(seed):
            theirs = body(torch.tensor(0.3))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-12, atol=1e-12)
    assert not any("pyro" in str(node.target) for node in graph.module.graph.nodes)


def test_cases_of_the_law_take_each_axis() -> None:
    assert {case.form for case in CAPTURED} == set(FORMS)
    for axis in ("estimator", "guide", "particles", "subsampled", "scaled", "masked"):
        values = {getattr(case, axis) for case in CASES}
        assert {getattr(case, axis) for case in CAPTURED} == values, axis


# ---- the flat graph ---------------------------------------------------------------------------------------------


def test_tracing_leaves_tensors_and_generators_as_they_were() -> None:
    counter, weight = torch.zeros(()), nn.Parameter(torch.ones(3))
    before = torch.get_rng_state()

    def body(x: Tensor) -> list[Tensor]:
        counter.add_(1)
        loss = (weight * x * torch.randn(3)).sum()
        (gradient,) = torch.autograd.grad(loss, weight)
        weight.detach().sub_(gradient)
        return [loss.detach()]

    graph = flat_graph(body, [torch.ones(3)])
    assert counter == 0
    assert bool((weight == 1).all())
    assert bool((torch.get_rng_state() == before).all())
    assert {id(t) for t in graph.changed} == {id(counter), id(weight)}
    graph(torch.ones(3))
    assert counter == 1


def test_a_tensor_from_outside_is_read_anew_at_each_call() -> None:
    outside = torch.ones(())
    graph = flat_graph(lambda x: [x * outside], [torch.ones(())])
    outside.fill_(3.0)
    assert graph(torch.tensor(2.0)) == [torch.tensor(6.0)]


def test_draws_that_nobody_uses_still_move_the_generator() -> None:
    def body(x: Tensor) -> list[Tensor]:
        torch.randn(5)
        return [x * torch.randn(())]

    graph = flat_graph(body, [torch.ones(())])
    check_same(body, graph, graph, [[torch.ones(())]], seed=0)


def test_batch_normalisation_moves_its_statistics() -> None:
    net = nn.BatchNorm1d(3)

    def body(x: Tensor) -> list[Tensor]:
        return [net(x).sum().detach()]

    x = torch.randn(6, 3) + 2
    graph = flat_graph(body, [x])
    assert bool((net.running_mean == 0).all())
    with as_found([net.running_mean, net.running_var, net.num_batches_tracked]):
        body(x)
        expected = net.running_mean.clone(), net.running_var.clone(), net.num_batches_tracked.clone()
    graph(x)
    torch.testing.assert_close((net.running_mean, net.running_var, net.num_batches_tracked), expected)


@pytest.mark.parametrize(
    "ask", [lambda z: float(z), lambda z: z.item(), lambda z: bool(z > 0), lambda z: z.numpy(), lambda z: z.tolist()]
)
def test_a_step_that_asks_for_a_value_is_refused(ask: Callable[[Tensor], Any]) -> None:
    def body(x: Tensor) -> list[Tensor]:
        z = torch.randn(())
        return [x * float(ask(z))]

    with pytest.raises(CaptureError, match=r"ask for the value of a tensor.*torch.where"):
        flat_graph(body, [torch.ones(())])


def test_a_value_of_a_tensor_from_outside_is_refused_too() -> None:
    outside = torch.ones(())
    with pytest.raises(CaptureError, match="ask for the value"):
        flat_graph(lambda x: [x * outside.item()], [torch.ones(())])


def test_memory_that_comes_in_unseen_is_refused() -> None:
    weight = torch.ones(3)
    view = weight.numpy()
    with pytest.raises(CaptureError, match="the memory of another one"):
        flat_graph(lambda x: [torch.from_numpy(view) * x + weight], [torch.ones(3)])


def test_patches_go() -> None:
    assert Tensor.numpy is Tensor.__base__.numpy  # type: ignore[union-attr]
    with patched(Tensor, numpy=None):
        assert Tensor.numpy is None
    assert "numpy" not in vars(Tensor)


# ---- the check --------------------------------------------------------------------------------------------------


def test_the_check_tells_rounding_from_another_number(float64: torch.dtype) -> None:
    one, before = torch.tensor([1.0, 2.0]), [torch.tensor([0.9, 2.0])]
    same = ([one], [one])
    for shift, roundings, found in ((1e-15, 2e3, False), (1e-9, 2e3, True), (1e-12, 4e5, False), (1e-3, 4e5, True)):
        for other in (([one + shift], [one]), ([one], [one + shift])):
            wrong = difference(same, other, before=before, roundings=roundings)
            assert (wrong is not None) == found, (shift, wrong)


def test_the_check_tells_integers_and_what_is_not_finite() -> None:
    count, nan = torch.tensor(3), torch.tensor([1.0, torch.nan])
    assert difference(([count], []), ([count + 1], []), before=[], roundings=4e5) is not None
    assert difference(([nan], []), ([nan], []), before=[], roundings=2e3) is None
    assert difference(([nan], []), ([torch.ones(2)], []), before=[], roundings=4e5) is not None


# ---- optimisers -------------------------------------------------------------------------------------------------

OPTIMISERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "Adam": lambda p: torch.optim.Adam(p, lr=0.03),
    "Adam, decay": lambda p: torch.optim.Adam(p, lr=0.03, weight_decay=0.1, betas=(0.8, 0.99), eps=1e-4),
    "Adam, amsgrad": lambda p: torch.optim.Adam(p, lr=0.03, amsgrad=True, maximize=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.03, weight_decay=0.2),
    "ClippedAdam": lambda p: ClippedAdam(p, lr=0.03, lrd=0.9, clip_norm=0.5, weight_decay=0.1),
    "ClippedAdam, centred": lambda p: ClippedAdam(p, lr=0.03, centered_variance=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.03),
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9, dampening=0.1, weight_decay=0.1),
    "SGD, Nesterov": lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9, nesterov=True, maximize=True),
    "groups": lambda p: torch.optim.Adam([{"params": p[:1], "lr": 0.1}, {"params": p[1:], "lr": 0.01}]),
}


def _weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((), (3,), (2, 2))]


def _gradients(time: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(time)
    return [torch.randn(shape, generator=generator) for shape in ((), (3,), (2, 2))]


@pytest.mark.parametrize("make", OPTIMISERS.values(), ids=OPTIMISERS)
def test_updates_are_those_of_the_optimiser(make: Callable[[Any], torch.optim.Optimizer], float64: torch.dtype) -> None:
    """Through changes of the learning rate and turns of the optimiser's own in between."""
    ours, theirs = _weights(), _weights()
    optimizers = [make(ours), make(theirs)]
    inside = None
    for time in range(7):
        for weights in (ours, theirs):
            for weight, gradient in zip(weights, _gradients(time), strict=True):
                weight.grad = gradient
        optimizers[1].step()
        if time in (0, 4):  # of its own: the state is made, and taken over later
            if inside is not None:
                inside.push(lost=0)
            optimizers[0].step()
            inside = GraphOptimizer(optimizers[0])
            inside.pull()
        else:
            assert inside is not None
            assert inside.numbers(ahead=True) == inside.numbers(ahead=True)
            with torch.no_grad():
                inside.update([torch.tensor(number) for number in inside.numbers()], torch.tensor(True))
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] *= 0.9
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert inside is not None
    inside.push(lost=0)
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    torch.testing.assert_close(states[0], states[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("make", [torch.optim.Adam, lambda weights, lr: ClippedAdam(weights, lr=lr, lrd=0.5)])
def test_a_step_that_is_not_finite_moves_nothing(make: Callable[..., torch.optim.Optimizer]) -> None:
    weights = _weights()
    optimizer = make(weights, lr=0.1)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    inside = GraphOptimizer(optimizer)
    inside.pull()
    rate = optimizer.param_groups[0]["lr"]
    before = [w.detach().clone() for w in weights], [s["exp_avg"].clone() for s in optimizer.state.values()]
    with torch.no_grad():
        inside.update([torch.tensor(number) for number in inside.numbers()], torch.tensor(False))
    inside.push(lost=1)
    assert all(bool((w == b).all()) for w, b in zip(weights, before[0], strict=True))
    assert all(bool((s["exp_avg"] == b).all()) for s, b in zip(optimizer.state.values(), before[1], strict=True))
    assert all(s["step"] == 1 for s in optimizer.state.values())
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, rel=1e-12)


# ---- a loop of one's own ----------------------------------------------------------------------------------------


def losses_of(objective: Any, steps: int = 12, *, eager: bool = False, **options: Any) -> list[float]:
    """Losses of the first steps, captured or by the objective's own entry points."""
    with pyro.get_param_store().scope(), fork_rng(4):
        guide = AutoNormal(model)
        svi = CapturedSVI(objective, model, guide, lr=0.05, **options)
        found = []
        for time in range(steps):
            if hasattr(objective, "lam"):
                objective.lam = 0.1 * (time % 3)
            if eager:
                svi._captured = None  # every step is a first one
            terms = svi.step(X.roll(time))
            found.append(float(terms.loss if isinstance(terms, LossTerms) else terms))
        return found


@pytest.mark.parametrize("make", [BaNEL_ELBO, Trace_ELBO, TraceMeanField_ELBO], ids=lambda make: make.__name__)
def test_a_captured_loop_has_the_losses_of_the_eager_one(make: Callable[[], Any], no_compiler: None) -> None:
    captured, eager = losses_of(make()), losses_of(make(), eager=True)
    assert captured == pytest.approx(eager, rel=1e-5)


def test_compiled_steps_have_the_losses_of_eager_ones(caplog: pytest.LogCaptureFixture) -> None:
    captured, eager = losses_of(BaNEL_ELBO(), clip_norm=2.0), losses_of(BaNEL_ELBO(), eager=True, clip_norm=2.0)
    assert captured == pytest.approx(eager, rel=1e-5)
    assert not [r for r in caplog.records if r.name == "banel_pyro"]  # it did compile


def test_what_is_compiled_is_found_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In inductor's cache on disk: by another program too, which has nothing of it in memory."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    found = []
    for _ in range(2):
        counters.clear()
        losses = losses_of(BaNEL_ELBO(), steps=3)
        found.append((counters["inductor"]["fxgraph_cache_miss"], counters["inductor"]["fxgraph_cache_hit"], losses))
    assert found[0][:2] == (1, 0)
    assert found[1][:2] == (0, 1)
    assert found[0][2] == found[1][2]


def test_pyros_own_elbo_equals_its_svi(no_compiler: None) -> None:
    with pyro.get_param_store().scope(), fork_rng(4):
        svi = pyro.infer.SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
        expected = [svi.step(X.roll(time)) for time in range(12)]
    assert losses_of(Trace_ELBO()) == pytest.approx(expected, rel=1e-5)


def test_a_point_mass_at_lam_zero_is_captured(no_compiler: None) -> None:
    svi = CapturedSVI(BaNEL_ELBO(), model, AutoDelta(model))
    first, *_, last = [float(svi.step(X).log_likelihood) for _ in range(4)]  # type: ignore[union-attr]
    assert last != first


def test_other_shapes_get_graphs_of_their_own_and_then_the_eager_step(
    no_compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "GRAPHS", 2)
    found = []
    for eager in (False, True):
        with pyro.get_param_store().scope(), fork_rng(0):
            svi = CapturedSVI(BaNEL_ELBO(lam=0.3), model, AutoNormal(model), lr=0.1)
            for rows in (8, 8, 5, 3, 2, 8, 3):
                if eager:
                    svi._captured = None
                terms = svi.step(X[:rows])
            found.append(float(terms.loss))  # type: ignore[union-attr]
            if not eager:
                assert svi._captured is not None
                assert len(svi._captured._graphs) == 2
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_tensors_of_another_type_or_layout_get_a_graph_of_their_own() -> None:
    """Compiled code reads memory as it lay when it was compiled."""

    def wide(x: Tensor) -> None:
        pyro.sample("x", dist.Normal(pyro.sample("mean", dist.Normal(0.0, 3.0)), 1.0).expand([4, 4]).to_event(2), obs=x)

    x = torch.arange(16.0).reshape(4, 4)
    found = []
    for eager in (False, True):
        with pyro.get_param_store().scope(), fork_rng(0):
            svi = CapturedSVI(BaNEL_ELBO(), wide, AutoNormal(wide), lr=0.1)
            for batch in (x, x, x.t(), x.double(), x.t()):
                if eager:
                    svi._captured = None
                terms = svi.step(batch)
            found.append(float(terms.loss))  # type: ignore[union-attr]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_loop_of_ones_own_hears_of_what_is_not_finite_and_goes_on(no_compiler: None) -> None:
    svi = CapturedSVI(BaNEL_ELBO(), model, AutoNormal(model), lr=0.1)
    with pytest.raises(FloatingPointError, match="first step"):
        svi.step(X * 1e30)
    for _ in range(3):
        svi.step(X)
    before = {name: p.detach().clone() for name, p in pyro.get_param_store()._params.items()}
    svi.step(X * torch.nan)
    with pytest.raises(FloatingPointError, match="an earlier step is not finite"):
        svi.step(X)
    for name, p in pyro.get_param_store()._params.items():
        assert bool((p == before[name]).all())
    assert svi.optimizer.state_dict()["state"][0]["step"] == 3
    svi.step(X)
    assert svi.optimizer.state_dict()["state"][0]["step"] == 4


def test_the_same_tensor_twice_is_two_arguments(no_compiler: None) -> None:
    """Also where it is a tensor that the model reads from outside."""
    found = []
    for eager in (False, True):
        with pyro.get_param_store().scope(), fork_rng(0):
            y = X.clone()

            def both(a: Tensor, b: Tensor, y: Tensor = y) -> None:
                mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
                for name, rows in (("a", a), ("b", b), ("y", y)):
                    pyro.sample(name, dist.Normal(mean, 1.0).expand([8]).to_event(1), obs=rows)

            svi = CapturedSVI(BaNEL_ELBO(), both, AutoNormal(both), lr=0.1)
            for b in (y, y, X + 3.0):
                if eager:
                    svi._captured = None
                terms = svi.step(y, b)
            found.append(float(terms.loss))  # type: ignore[union-attr]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_other_sites_of_lam_and_frozen_parameters_get_graphs_of_their_own(no_compiler: None) -> None:
    def two(x: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        pyro.sample("x", dist.Normal(pyro.sample("mean", dist.Normal(0.0, 3.0)), scale).expand([8]).to_event(1), obs=x)

    found = []
    for eager in (False, True):
        with pyro.get_param_store().scope(), fork_rng(0):
            guide = AutoNormal(two)
            svi = CapturedSVI(BaNEL_ELBO(), two, guide, lr=0.1)
            losses = []
            for lam in ({"mean": 0.3}, {"mean": 0.3}, {"scale": 0.3}, 0.3, 0.0):
                svi.objective.lam = lam  # type: ignore[attr-defined]
                if eager:
                    svi._captured = None
                losses.append(float(svi.step(X).loss))  # type: ignore[union-attr]
            found.append(losses)
            frozen = pyro.get_param_store()._params["AutoNormal.locs.mean"]
            frozen.requires_grad_(False)
            before = frozen.detach().clone()
            svi.step(X)
            assert bool((frozen == before).all())
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_number_that_is_changed_between_steps_is_noticed(no_compiler: None) -> None:
    strength = {"beta": 1.0}

    def annealed(x: Tensor) -> None:
        with pyro.poutine.scale(scale=strength["beta"]):
            mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
        pyro.sample("x", dist.Normal(mean, 1.0).expand([8]).to_event(1), obs=x)

    svi = CapturedSVI(BaNEL_ELBO(), annealed, AutoNormal(annealed))
    with pytest.raises(CaptureError, match=r"strength\['beta'\] \(1.0 to 0.5\)"):
        for time in range(102):
            strength["beta"] = 0.5 if time > 50 else 1.0
            svi.step(X)


def test_gradients_that_overflow_their_norm_are_finite(no_compiler: None) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=1e-22)

    def differentiate(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        loss = (weight * x).sum()
        loss.backward()
        return loss.detach(), []

    captured = step.Captured(differentiate, optimizer)
    x = torch.full((3,), 1e21)  # its square is infinite in float32
    captured(captured.step_of([x], []))
    assert captured.bad is None
    assert float(weight.detach()[0]) == pytest.approx(0.9)
    captured(captured.step_of([x * torch.inf], []))
    assert captured.bad == 1
    assert float(weight.detach()[0]) == pytest.approx(0.9)


def test_an_objective_without_a_differentiable_loss_is_refused() -> None:
    with pytest.raises(TypeError, match="TraceGraph_ELBO: expected a banel_pyro objective"):
        CapturedSVI(pyro.infer.TraceGraph_ELBO(), model, AutoNormal(model))
    with pytest.raises(RuntimeError, match="before the first step"):
        _ = CapturedSVI(BaNEL_ELBO(), model, AutoNormal(model)).optimizer


# ---- compiling --------------------------------------------------------------------------------------------------

DISTRIBUTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "continuous": lambda a: torch.stack([
        dist.Normal(a, a).rsample(), dist.Gamma(a, a).rsample(), dist.Beta(a, a).rsample(),
        dist.Dirichlet(a).rsample(), dist.StudentT(a).rsample(), dist.Cauchy(a, a).rsample(),
        dist.Laplace(a, a).rsample(), dist.Exponential(a).rsample(), dist.Gumbel(a, a).rsample(),
    ]),
    "discrete": lambda a: torch.stack([
        dist.Bernoulli(a / 3).sample(), dist.Poisson(a).sample(), dist.Binomial(10, a / 3).sample(),
        dist.Geometric(a / 3).sample(), dist.Categorical(logits=a).sample((3,)).float(),
    ]),
    "many": lambda a: torch.cat([torch.randn(40), torch.rand(40), torch.bernoulli(torch.rand(40))]),
}  # fmt: skip


@pytest.mark.parametrize("draw", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_compiled_draws_are_those_of_torchs_generator(draw: Callable[[Tensor], Tensor]) -> None:
    a = torch.tensor([0.5, 1.5, 2.5])

    def body(a: Tensor) -> list[Tensor]:
        return [draw(a)]

    flat = flat_graph(body, [a])
    compiled = compiler.compiled(flat, [a])
    for seed in range(3):
        found = []
        for run in (body, compiled):
            with fork_rng(seed), torch.no_grad(), pyro.validation_enabled(False):
                found.append((run(a)[0].clone(), torch.get_rng_state()))
        torch.testing.assert_close(found[0][0], found[1][0])
        assert bool((found[0][1] == found[1][1]).all())


def test_a_graph_that_does_not_compile_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any) -> None:
        raise NotImplementedError("no such thing")

    monkeypatch.setattr(graphs, "compiled", broken)
    monkeypatch.setattr(graphs, "_said", {""})
    losses = losses_of(BaNEL_ELBO())
    assert losses == pytest.approx(losses_of(BaNEL_ELBO(), eager=True), rel=1e-5)
    assert [r.message for r in caplog.records] == [
        "the captured step does not compile (NotImplementedError: no such thing): it runs uncompiled."
    ]


def test_without_a_compiler_it_says_so_once(no_compiler: None, caplog: pytest.LogCaptureFixture) -> None:
    losses_of(BaNEL_ELBO())
    assert len([r for r in caplog.records if "no C++ compiler" in r.message]) == 1


def test_a_graph_that_takes_too_long_to_compile_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(graphs, "MOST_NODES", 100)
    monkeypatch.setattr(graphs, "compiled", None)  # is not called
    with caplog.at_level("INFO", "banel_pyro"):
        assert losses_of(BaNEL_ELBO()) == pytest.approx(losses_of(BaNEL_ELBO(), eager=True), rel=1e-5)
    assert "takes too long to compile" in caplog.text


def test_the_compiler_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    assert compiler.has_compiler()
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        assert not compiler.has_compiler()
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    assert not compiler.has_compiler()


def test_the_penalty_adds_pointwise_nodes_only() -> None:
    counts = {}
    for lam in (0.0, 0.4):
        with pyro.get_param_store().scope():
            guide, elbo = AutoNormal(model), BaNEL_ELBO(lam=lam)
            guide(X)

            def body(x: Tensor, guide: Any = guide, elbo: Any = elbo) -> list[Tensor]:
                return [torch.as_tensor(elbo.loss_and_terms(model, guide, x)[0])]

            counts[lam] = [str(n.target) for n in flat_graph(body, [X]).module.graph.nodes if n.op == "call_function"]
    more = len(counts[0.4]) - len(counts[0.0])
    assert 0 < more <= 8, counts


# ---- matrix products --------------------------------------------------------------------------------------------


def replace(flat: Any, arguments: list[Tensor], decisions: dict[str, str]) -> None:
    """Choose kernels, and take them."""
    chosen = choose_products(flat.module, [*arguments, *flat.held], decisions)
    products.replace_products(flat.module, chosen, decisions)


def _products() -> tuple[Any, list[Tensor]]:
    w, bias, x = torch.randn(80, 130), torch.randn(80), torch.randn(150, 130)

    def body(x: Tensor) -> list[Tensor]:
        h = nn.functional.linear(x, w, bias)
        return [h, x.t() @ h, h @ w, x[:3] @ w.t()]

    return body, [x]


@pytest.mark.parametrize("compile", [False, True])
def test_a_product_of_onednn_is_the_same_product(compile: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(products.SWITCH, "onednn")
    body, arguments = _products()
    flat, decisions = flat_graph(body, arguments), {}
    replace(flat, arguments, decisions)
    targets = [str(node.target) for node in flat.module.graph.nodes]
    assert targets.count("banel_pyro.product.default") == 3  # the last one is too small to matter
    assert sorted(set(decisions.values())) == ["onednn"]
    run = compiler.compiled(flat, arguments) if compile else flat
    with torch.no_grad():
        for ours, theirs in zip(run(*arguments), body(*arguments), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_products_are_left_alone_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    body, arguments = _products()
    flat, decisions = flat_graph(body, arguments), {}
    monkeypatch.setenv(products.SWITCH, "torch")
    replace(flat, arguments, decisions)
    monkeypatch.setenv(products.SWITCH, "auto")
    monkeypatch.setattr(products, "_has_onednn", lambda: False)
    replace(flat, arguments, decisions)
    assert not decisions
    monkeypatch.setenv(products.SWITCH, "fast")
    with pytest.raises(ValueError, match=r"BANEL_PRODUCTS='fast': expected"):
        replace(flat, arguments, decisions)


def test_the_faster_product_is_taken_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    clock: Iterator[float] = iter([3.0, 1.0] * 100)  # torch's takes three times as long
    monkeypatch.setattr(products, "_seconds", lambda product: next(clock))
    body, arguments = _products()
    for _ in range(2):
        flat, decisions = flat_graph(body, arguments), {}
        replace(flat, arguments, decisions)
        assert set(decisions.values()) == {"onednn"}
        monkeypatch.setattr(products, "_faster", None)  # is not asked again
    (known,) = json.loads((tmp_path / "banel_pyro" / "products.json").read_text()).values()
    assert known == decisions
    flat = flat_graph(body, arguments)
    replace(flat, arguments, dict.fromkeys(decisions, "torch"))  # as it was decided
    assert not any("product" in str(node.target) for node in flat.module.graph.nodes)


def test_a_product_that_is_not_the_same_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_of_torch", lambda bias, a, b: a @ b + 1.0)
    assert products._faster(None, torch.randn(9, 8), torch.randn(8, 7)) == "torch"


# ---- what is found out ------------------------------------------------------------------------------------------


class Drifting(nn.Module):
    """A model whose scale is a tensor that it replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.tensor(1.0)

    def forward(self, x: Tensor) -> None:
        self.scale = self.scale * 1.1
        _with_scale(x, self.scale)


class Shared(nn.Module):
    """A model that counts the calls of all models of its class."""

    calls = 0

    def forward(self, x: Tensor) -> None:
        type(self).calls += 1
        _with_scale(x, 1.0)


class Settings:
    """Numbers by name."""

    calls = 0


settings = types.ModuleType("settings")
settings.calls = 0  # type: ignore[attr-defined]


def _in_a_module(x: Tensor) -> None:
    settings.calls += 1
    _with_scale(x, 1.0)


def _in_a_class(x: Tensor) -> None:
    Settings.calls += 1
    _with_scale(x, 1.0)


class Counting(nn.Module):
    """A model that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = {"n": 0}

    def forward(self, x: Tensor) -> None:
        self.calls["n"] += 1
        _with_scale(x, 1.0 + 0.01 * self.calls["n"])


def _with_scale(x: Tensor, scale: Any) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, scale), obs=x)


def _listing() -> Callable[[Tensor], None]:
    seen: list[int] = []

    def listing(x: Tensor) -> None:
        seen.append(len(seen))
        _with_scale(x, 1.0)

    return listing


def _comes_and_goes(x: Tensor) -> None:
    if random.random() < 0.5:
        pyro.factor("extra", torch.tensor(1.0))
    _with_scale(x, 1.0)


UNFIT: dict[str, tuple[Callable[[], Any], str]] = {
    "Python's generator": (lambda: lambda x: _with_scale(x, 1.0 + random.random()), "differs from the eager one"),
    "NumPy's generator": (lambda: lambda x: _with_scale(x, 1.0 + float(np.random.rand())), "differs from the eager"),
    "sites that come and go": (lambda: _comes_and_goes, "differs from the eager one"),
    "a value of the data": (lambda: lambda x: _with_scale(x, 3.0 + float(x[0])), "ask for the value"),
    "a list that grows": (_listing, r"a step changes model → seen \(length\)"),
    "a counter": (Counting, r"a step changes model.calls\['n'\]"),
    "a number of its class": (Shared, r"a step changes model.calls"),
    "a number in a class": (lambda: _in_a_class, r"a step changes model → Settings.calls"),
    "a number in a module": (lambda: _in_a_module, r"a step changes model → settings.calls"),
    "a tensor that is replaced": (Drifting, r"a step changes model.scale \(another tensor"),
}


@pytest.mark.parametrize(("make", "words"), UNFIT.values(), ids=UNFIT)
def test_what_a_graph_cannot_hold_is_refused(make: Callable[[], Any], words: str, no_compiler: None) -> None:
    unfit = make()
    svi = CapturedSVI(BaNEL_ELBO(), unfit, AutoNormal(model))
    svi.step(X)
    with pytest.raises(CaptureError, match=words):
        svi.step(X)
        svi.step(X)
