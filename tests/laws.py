"""The laws that objectives are held to, each stated once. Every check raises AssertionError."""

import random
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.poutine.messenger import Messenger
from torch import Tensor

from banel_pyro import CaptureError, Linear, fit
from banel_pyro.objectives import BaNEL_ELBO, BaNEL_TraceGraph_ELBO
from tests.cases import Case, Problem, X

Values = tuple[float, list[Tensor]]


def gradients(elbo: Any, problem: Problem, parameters: dict[str, Tensor], guide: Any = None) -> Values:
    """One estimate of the loss and of its gradient in the unconstrained parameters."""
    for parameter in parameters.values():
        parameter.grad = None
    loss = elbo.loss_and_grads(problem.model, guide or problem.guide)
    return loss, [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters.values()]


def assert_same(ours: Values, theirs: Values) -> None:
    """Equal to rounding."""
    torch.testing.assert_close(torch.tensor(ours[0]), torch.tensor(theirs[0]), rtol=1e-10, atol=1e-10)
    for a, b in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def assert_mean(samples: Sequence[Tensor] | Tensor, exact: Tensor | float, *, errors: float = 5.0) -> None:
    """The mean of independent samples is `exact`, within standard errors."""
    values = samples if isinstance(samples, Tensor) else torch.stack(list(samples))
    mean = values.mean(0)
    stderr = values.std(0) / len(values) ** 0.5
    # a sample without noise still rounds
    slack = 1e-9 * (1 + mean.abs())
    distance = (mean - torch.as_tensor(exact)).abs()
    worst = (distance / (stderr + slack)).max()
    assert bool((distance <= errors * stderr + slack).all()), (
        f"{worst:.1f} standard errors off: mean {mean.tolist()}, exact {torch.as_tensor(exact).tolist()}"
    )


# ---- L1: lambda = 0 is Pyro -----------------------------------------------------------------------------------


def law_zero_is_pyro(case: Case) -> None:
    """Same loss and gradient as Pyro's form under the same seed."""
    problem = case.build()
    parameters = problem.parameters()
    ours, theirs = case.form(lam=0.0, **case.options), case.pyro_form(**case.options)
    assert_same(*(_seeded(lambda e=elbo: gradients(e, problem, parameters)) for elbo in (ours, theirs)))
    losses = [_seeded(lambda e=elbo: e.loss(problem.model, problem.guide)) for elbo in (ours, theirs)]
    assert_same((losses[0], []), (losses[1], []))
    if case.pyro_form is TraceGraph_ELBO:
        return  # it has no differentiable_loss
    surrogates = [_seeded(lambda e=e: e.differentiable_loss(problem.model, problem.guide)) for e in (ours, theirs)]
    values = [torch.autograd.grad(s, list(parameters.values()), allow_unused=True) for s in surrogates]
    found = [[torch.zeros(()) if g is None else g for g in value] for value in values]
    assert_same((surrogates[0].item(), found[0]), (surrogates[1].item(), found[1]))


BASELINES: dict[str, Callable[[Tensor], dict[str, Any]]] = {
    "decaying average": lambda w: {"use_decaying_avg_baseline": True, "baseline_beta": 0.3},
    "network": lambda w: {"nn_baseline": lambda x: w[0] + w[1] * x, "nn_baseline_input": torch.tensor(X)},
    "value": lambda w: {"baseline_value": w[0] + w[1] * torch.tensor(X)},
    "network and average": lambda w: {**BASELINES["network"](w), **BASELINES["decaying average"](w)},
}
"""Pyro's baselines of the local discrete site, from two weights that are trained."""


def with_baselines(kind: str, weights: Tensor) -> Callable[[Any], Any]:
    """Gives the global discrete site of a guide a decaying average, and the local one a baseline of some kind."""

    def config(site: Any) -> dict[str, Any]:
        kinds = {"k": "decaying average", "b": kind}
        return {"baseline": BASELINES[kinds[site["name"]]](weights)} if site["name"] in kinds else {}

    return lambda guide: poutine.infer_config(guide, config)


def _with_two_discrete_sites(form: type) -> Case:
    return Case("score", "plain", False, False, False, "number", "1", form)


def law_zero_is_pyro_with_baselines(kind: str) -> None:
    """Same losses, gradients and gradients of the baseline as TraceGraph_ELBO, for some steps."""
    found = []
    for form in (BaNEL_TraceGraph_ELBO, TraceGraph_ELBO):
        with pyro.get_param_store().scope():
            problem = _with_two_discrete_sites(BaNEL_TraceGraph_ELBO).build()
            parameters = problem.parameters()
            weights = torch.tensor([0.3, -0.2], requires_grad=True)
            guide, elbo = with_baselines(kind, weights)(problem.guide), form()
            parameters["weights of the baseline"] = weights
            found.append(_seeded(lambda p=parameters: [gradients(elbo, problem, p, guide) for _ in range(4)]))  # noqa: B023
    for ours, theirs in zip(*found, strict=True):
        assert_same(ours, theirs)


# ---- L2: the tempered guide -----------------------------------------------------------------------------------


class Temper(Messenger):  # type: ignore[misc]
    """Scales log q of each density by 1 - lambda: Pyro's own way to the same objective."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def _pyro_sample(self, msg: Any) -> None:
        if poutine.util.site_is_subsample(msg) or msg["is_observed"]:
            return
        density = msg["name"].removesuffix("_unconstrained")
        if self.case.guide == "AutoMultivariateNormal":
            density = "_AutoMultivariateNormal_latent"
        msg["scale"] = msg["scale"] * (1 - self.case.weight_of(density))


class TemperedMessenger_ELBO(Trace_ELBO):
    """The same for a messenger guide, which runs the model inside: a handler around it would scale both."""

    def __init__(self, case: Case, **options: Any) -> None:
        super().__init__(**options)
        self.case = case

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        guide(*args, **kwargs)
        model_trace, guide_trace = poutine.unwrap(guide).get_traces()
        for name, site in guide_trace.nodes.items():
            if site["type"] == "sample":
                site["scale"] = site["scale"] * (1 - self.case.weight_of(name))
        model_trace.compute_log_prob()
        guide_trace.compute_score_parts()
        return model_trace, guide_trace


def law_tempered_guide(case: Case) -> None:
    """With Monte-Carlo terms: exactly Pyro's form on the guide scaled by 1 - lambda, under the same seed."""
    problem = case.build()
    parameters = problem.parameters()
    elbo = case.form(lam=case.weights, entropy="monte_carlo", **case.options)
    ours = _seeded(lambda: gradients(elbo, problem, parameters))
    if case.guide == "messenger":
        theirs = _seeded(lambda: gradients(TemperedMessenger_ELBO(case, **case.options), problem, parameters))
    else:
        tempered = Temper(case)(problem.guide)
        theirs = _seeded(lambda: gradients(case.pyro_form(**case.options), problem, parameters, tempered))
    assert_same(ours, theirs)


# ---- L5: unbiased ---------------------------------------------------------------------------------------------


def law_unbiased(
    case: Case, *, draws: int = 200, entropy: str = "auto", configure: Callable[[Any], Any] | None = None
) -> None:
    """Loss and gradient have the exact expectation; `configure` may mark sites of the guide."""
    problem = case.build()
    parameters = problem.parameters()
    guide = problem.guide if configure is None else configure(problem.guide)
    elbo = case.form(lam=case.weights, entropy=entropy, **case.options)
    samples = [gradients(elbo, problem, parameters, guide) for _ in range(draws)]
    leaves = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
    exact = problem.exact_loss(leaves)
    slopes = torch.autograd.grad(exact, list(leaves.values()), allow_unused=True)
    assert_mean(torch.tensor([loss for loss, _ in samples]), exact.detach())
    for i, slope in enumerate(slopes):
        if slope is not None:
            assert_mean([gradient[i] for _, gradient in samples], slope)


def law_unbiased_with_baselines(kind: str, draws: int = 200) -> None:
    """A baseline moves no expectation, entropies in the costs or not."""
    configure = with_baselines(kind, torch.tensor([-4.0, 0.5], requires_grad=True))
    law_unbiased(_with_two_discrete_sites(BaNEL_TraceGraph_ELBO), draws=draws, configure=configure)


def law_child_entropy_reaches_the_parent(form: type = BaNEL_ELBO, draws: int = 500) -> None:
    """A discrete parent that sets its child's spread is paid for the child's entropy."""
    lam = -5.0

    def model() -> None:
        pyro.sample("k", pyro.distributions.Bernoulli(torch.tensor(0.5)))
        pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))

    def guide() -> None:
        k = pyro.sample("k", pyro.distributions.Bernoulli(logits=pyro.param("rho", torch.tensor(0.3))))
        pyro.sample("z", pyro.distributions.Normal(0.0, k.exp()))

    def exact(p: dict[str, Tensor]) -> Tensor:
        one = torch.sigmoid(p["rho"])
        kl = one * (torch.e**2 - 1) / 2 - one  # of z given k, up to a constant
        entropy_k = -(one * one.log() + (1 - one) * (1 - one).log())
        return kl - entropy_k + lam * one  # H(z|k) = k + constant

    problem = Problem(model, guide, exact)
    guide()
    parameters = dict(pyro.get_param_store()._params)
    (slope,) = torch.autograd.grad(exact(parameters), list(parameters.values()))
    elbo = form(lam={"z": lam}, max_plate_nesting=0)
    assert_mean([gradients(elbo, problem, parameters)[1][0] for _ in range(draws)], slope)


# ---- L15: captured steps --------------------------------------------------------------------------------------


def law_captured_run_is_the_eager_one(randomness: bool = False) -> None:
    """The same history, under a schedule of lambda and on minibatches; what a graph cannot hold is refused."""

    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", pyro.distributions.Normal(0.0, 3.0))
        scale = 1.0 + random.random() if randomness else 1.0
        with pyro.plate("data", 20):
            pyro.sample("x", pyro.distributions.Normal(mean, scale), obs=x)

    x, options = torch.linspace(-1.0, 2.5, 20), {"lam": Linear(0.0, 0.8, over=30), "lr": 0.05, "collapse": None}
    options |= {"steps": 40, "batch_size": 5, "seed": 1, "log_every": 5, "progress": False}
    found = []
    for capture in (False, True):
        uncompiled = mock.patch("banel_pyro.capture.graphs.has_compiler", return_value=False)
        with pyro.get_param_store().scope(), uncompiled:
            try:
                result = fit(model, AutoNormal(model), x, capture=capture, **options)
            except CaptureError as error:
                if randomness:
                    raise
                raise AssertionError("it was not captured") from error
        found.append(torch.tensor(result.history[["loss", "entropy", "grad_norm"]].to_numpy()))
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-8)


def law_captured_randomness_is_refused() -> None:
    """A step that draws from Python's generator raises."""
    try:
        law_captured_run_is_the_eager_one(randomness=True)
    except CaptureError:
        return
    raise AssertionError("it was captured")


# ---- L6: the entry points agree -------------------------------------------------------------------------------


def law_entry_points_agree(case: Case) -> None:
    """loss, loss_and_grads, differentiable_loss, the ELBO module and terms give one number under one seed."""
    problem = case.build()
    parameters = problem.parameters()
    elbo = case.form(lam=case.weights, **case.options)
    model, guide = problem.model, problem.guide
    loss, gradient = _seeded(lambda: gradients(elbo, problem, parameters))
    differentiable = _seeded(lambda: elbo.differentiable_loss(model, guide))
    slopes = torch.autograd.grad(differentiable, list(parameters.values()), allow_unused=True)
    found = [torch.zeros_like(p) if g is None else g for g, p in zip(slopes, parameters.values(), strict=True)]
    assert_same((differentiable.item(), found), (loss, gradient))
    terms = _seeded(lambda: elbo.terms(model, guide))
    others = [
        _seeded(lambda: elbo.loss(model, guide)),
        float(terms.loss),
        float(terms.penalty - terms.elbo),
        float(_seeded(lambda: elbo.loss_and_terms(model, guide))[1].loss),
        _seeded(lambda: elbo(model, guide)()).item(),
        _seeded(lambda: pyro.infer.SVI(model, guide, pyro.optim.SGD({"lr": 0.0}), elbo).step()),
    ]
    for other in others:
        assert_same((other, []), (loss, []))


def _seeded(call: Callable[[], Any]) -> Any:
    pyro.set_rng_seed(11)
    return call()


# ---- L7: one density by change of variables -------------------------------------------------------------------


def law_positive_site(draws: int = 500) -> None:
    """An autoguide at a positive site: loss and entropy in the constrained space are exact, for several lambda."""

    def model() -> None:
        pyro.sample("x", pyro.distributions.LogNormal(0.0, 1.0))

    guide = pyro.infer.autoguide.AutoNormal(model, init_scale=0.5)
    guide()
    pyro.get_param_store()._params["AutoNormal.locs.x"].data.fill_(0.7)
    loc, sd = torch.tensor(0.7), 0.5
    exact_entropy = loc + torch.distributions.Normal(0.0, sd).entropy()
    # E_q[log p] of a log-normal in log space, minus E[log x]
    exact_prior = -(torch.tensor(2 * torch.pi).log() + loc**2 + sd**2) / 2 - loc
    for lam in (0.0, 0.4, -1.0):
        elbo = BaNEL_ELBO(lam=lam)
        terms = [elbo.terms(model, guide) for _ in range(draws)]
        assert_mean(torch.stack([torch.as_tensor(t.entropy) for t in terms]), exact_entropy)
        assert_mean(torch.stack([torch.as_tensor(t.loss) for t in terms]), -exact_prior - (1 - lam) * exact_entropy)
