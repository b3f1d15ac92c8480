"""Models whose discrete sites are summed out, and guides that enumerate: trained, judged, resumed and drawn from."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import Predictive, config_enumerate, infer_discrete
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from banel_pyro import BaNEL_ELBO, BaNEL_TraceEnum_ELBO, FitResult, Pair, fit, to_arviz
from banel_pyro.evaluate import Draw, elbo, held_out_elbo, iwae, trace_draws
from banel_pyro.plates import DataPlate
from banel_pyro.streams import SiteStreams
from banel_pyro.traces import sample_sites
from tests.laws import assert_mean
from tests.test_resume import Stop, differing, outcome

pytestmark = pytest.mark.usefixtures("float64")

N, K = 12, 3
ENUMERATE = {"enumerate": "parallel"}


def rows(size: int = N) -> Tensor:
    """Three clumps."""
    return torch.tensor([-2.0, 0.5, 3.0]).repeat(size // 3) + torch.linspace(-0.4, 0.4, size)


# ---- a Gaussian mixture: by enumeration, and with its sum written out ------------------------------------------


def globals_() -> tuple[Tensor, Tensor]:
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((K,), 2.0)))
    with pyro.plate("components", K):
        return weights, pyro.sample("means", dist.Normal(0.0, 3.0))


def mixture(x: Tensor) -> None:
    """The assignments are sites of the model's own."""
    weights, means = globals_()
    with pyro.plate("data", N):
        k = pyro.sample("k", dist.Categorical(weights), infer=ENUMERATE)
        pyro.sample("x", dist.Normal(means[k], 0.7), obs=x)


def written_out(x: Tensor) -> None:
    """The same model without them."""
    weights, means = globals_()
    with pyro.plate("data", N):
        parts = dist.Normal(means, torch.tensor(0.7).expand(K))
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), parts), obs=x)


def autonormal(model: Callable[..., Any] = mixture) -> AutoNormal:
    """A guide of the global sites, spread out in the order of the clumps."""
    first = {"weights": torch.full((K,), 1 / K), "means": torch.tensor([-1.0, 0.0, 1.0])}
    return AutoNormal(poutine.block(model, hide=["k"]), init_loc_fn=lambda site: first[site["name"]], init_scale=0.3)


def log_weights(
    model: Any, guide: Any, x: Tensor, plate: DataPlate, *, seed: int = 0, draws: int = 5, batch_size: int | None = None
) -> tuple[np.ndarray, list[Any]]:
    """log p - log q of each draw and chunk, and the model's traces. What the model draws does not move the guide."""
    with SiteStreams(seed):
        found = list(trace_draws(model, guide, (x,), plate, num_samples=draws, batch_size=batch_size))
    weights = [float(d.model_trace.log_prob_sum() - d.guide_trace.log_prob_sum()) for d in found]
    return np.array(weights), [d.model_trace for d in found]


@pytest.mark.parametrize("batch_size", [None, 5])
def test_draws_are_judged_as_with_the_sum_written_out(batch_size: int | None) -> None:
    """Log weights, draw by draw and chunk by chunk, and log p of each row."""
    guide = autonormal()
    plate = DataPlate("data", N, scaled=True)
    ours, traces = log_weights(mixture, guide, rows(), plate, batch_size=batch_size)
    theirs, exact = log_weights(written_out, guide, rows(), plate, batch_size=batch_size)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    for one, other in zip(traces, exact, strict=True):
        torch.testing.assert_close(one.nodes["x"]["log_prob"], other.nodes["x"]["log_prob"])
        torch.testing.assert_close(one.nodes["x"]["unscaled_log_prob"], other.nodes["x"]["unscaled_log_prob"])
        assert "k" not in one.nodes
    for bound in (elbo, iwae):
        assert bound(ours).value == pytest.approx(bound(theirs).value, rel=1e-12)
    scores = []
    for model in (mixture, written_out):
        with SiteStreams(9):
            scores.append(held_out_elbo(model, guide, (rows()[:4],), plate, num_samples=3))
    assert scores[0] == pytest.approx(scores[1], rel=1e-12)


def test_rows_of_the_log_likelihood_and_statistics_are_those_of_the_sum() -> None:
    """What PSIS-LOO and the tables of draws read."""
    guide = autonormal()
    groups = ("posterior", "sample_stats", "log_likelihood", "observed_data")
    both = [to_arviz(m, guide, rows(), num_samples=4, seed=3, groups=groups) for m in (mixture, written_out)]
    for group in groups:
        ours, theirs = (one[group] for one in both)
        assert set(ours.data_vars) == set(theirs.data_vars)
        for name in ours.data_vars:
            np.testing.assert_allclose(ours[name].to_numpy(), theirs[name].to_numpy(), rtol=1e-12, err_msg=name)
    assert both[0]["log_likelihood"]["x"].shape == (1, 4, N)


def test_a_batch_is_the_bound_of_the_step() -> None:
    """With batches N/B: the log weight of one draw is what the objective gives for it."""
    guide, plate = autonormal(), DataPlate("data", N, scaled=True)
    guide(rows())
    index = torch.tensor([7, 2, 4])
    for lam in (0.0, 0.4):
        pyro.set_rng_seed(1)
        with plate.rows(index):
            terms = BaNEL_TraceEnum_ELBO(lam, max_plate_nesting=1).terms(mixture, guide, rows()[index])
        found = []
        for model in (mixture, written_out):
            pyro.set_rng_seed(1)
            (draw,) = trace_draws(model, guide, (rows()[index],), plate, num_samples=1)
            found.append(float(draw.model_trace.log_prob_sum() - draw.guide_trace.log_prob_sum()))
        assert float(terms.elbo) == pytest.approx(found[0], rel=1e-12)
        assert found[0] == pytest.approx(found[1], rel=1e-12)
        assert math.isnan(float(terms.kl))
        assert math.isnan(float(terms.log_likelihood))
        assert float(terms.penalty) == pytest.approx(lam * float(terms.entropy))


def test_gradients_of_a_step_are_those_of_the_sum_written_out() -> None:
    guide = autonormal()
    guide(rows())
    found = []
    for elbo_of, model in ((BaNEL_TraceEnum_ELBO, mixture), (BaNEL_ELBO, written_out)):
        pyro.set_rng_seed(1)
        loss = elbo_of(0.4, max_plate_nesting=1).differentiable_loss(model, guide, rows())
        found.append((loss.detach(), torch.autograd.grad(loss, list(guide.parameters()))))
    torch.testing.assert_close(found[0][0], found[1][0])
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other)


# ---- other places to stand in ----------------------------------------------------------------------------------


def log_p(model: Any, guide: Any, *data: Tensor) -> tuple[float, Draw]:
    """log p of one draw under a seed, and the draw."""
    guide(*data)  # an autoguide draws at its first call
    pyro.set_rng_seed(0)
    (draw,) = trace_draws(model, guide, data, DataPlate("data", N, scaled=True), num_samples=1)
    return float(draw.model_trace.log_prob_sum()), draw


MEANS = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
PROBS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def test_a_global_site_of_many_rows() -> None:
    """log Σ_k p(k) Π_i p(x_i | k) belongs to no row: it stands in a factor, and no row claims it."""

    def model(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Categorical(PROBS), infer=ENUMERATE)
        with pyro.plate("data", N):
            pyro.sample("x", dist.Normal(MEANS[k] + a, 1.0), obs=x)

    guide = AutoNormal(poutine.block(model, hide=["k"]))
    found, draw = log_p(model, guide, rows())
    a = draw.guide_trace.nodes["a"]["value"]
    given = dist.Normal(MEANS[:, None] + a, 1.0).log_prob(rows()).sum(-1)
    exact = dist.Normal(0.0, 1.0).log_prob(a) + (PROBS.log() + given).logsumexp(0)
    assert found == pytest.approx(float(exact), rel=1e-12)
    assert "k" not in draw.model_trace.nodes
    pyro.set_rng_seed(0)
    terms = BaNEL_TraceEnum_ELBO(max_plate_nesting=1).terms(model, guide, rows())
    assert float(terms.elbo) == pytest.approx(found - float(draw.guide_trace.log_prob_sum()), rel=1e-12)
    idata = to_arviz(model, guide, rows(), num_samples=3, seed=0, groups=("log_likelihood",))
    assert idata["sample_stats"]["log_p"].shape == (1, 3)
    with pytest.raises(ValueError, match="scale"):  # some rows say nothing of a sum over a product of all of them
        fit(model, guide, rows(), objective=BaNEL_TraceEnum_ELBO(), steps=3, batch_size=4, progress=False)


def test_a_global_site_above_a_local_one() -> None:
    """The sums are nested: log Σ_k p(k) Π_i Σ_j p(j | k) p(x_i | k, j)."""

    def model(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Categorical(PROBS), infer=ENUMERATE)
        with pyro.plate("data", N):
            j = pyro.sample("j", dist.Bernoulli(0.2 + 0.3 * k / K), infer=ENUMERATE)
            pyro.sample("x", dist.Normal(MEANS[k] + a * j, 1.0), obs=x)

    guide = AutoNormal(poutine.block(model, hide=["k", "j"]))
    found, draw = log_p(model, guide, rows())
    a = draw.guide_trace.nodes["a"]["value"]
    by_j = torch.stack(
        [
            dist.Bernoulli(0.2 + 0.3 * torch.arange(K) / K).log_prob(torch.tensor(j))[:, None]
            + dist.Normal(MEANS[:, None] + a * j, 1.0).log_prob(rows())
            for j in (0.0, 1.0)
        ]
    ).logsumexp(0)
    exact = dist.Normal(0.0, 1.0).log_prob(a) + (PROBS.log() + by_j.sum(-1)).logsumexp(0)
    assert found == pytest.approx(float(exact), rel=1e-12)


def test_a_latent_of_the_guide_whose_prior_depends_on_the_sum() -> None:
    """z is drawn by the guide, k is not: what remains is the marginal prior of z, and the likelihood as it is."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", N):
            k = pyro.sample("k", dist.Categorical(PROBS), infer=ENUMERATE)
            z = pyro.sample("z", dist.Normal(MEANS[k], 0.6))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", N):
            scale = pyro.param("s", torch.tensor(0.4), constraint=constraints.positive)
            pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.8)) * x, scale))

    def exact_model(x: Tensor) -> None:
        with pyro.plate("data", N):
            prior = dist.MixtureSameFamily(dist.Categorical(PROBS), dist.Normal(MEANS, torch.tensor(0.6).expand(K)))
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    plate = DataPlate("data", N, scaled=True)
    ours, traces = log_weights(model, guide, rows(), plate, draws=3)
    theirs, exact = log_weights(exact_model, guide, rows(), plate, draws=3)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    for one, other in zip(traces, exact, strict=True):
        by_row = [torch.as_tensor(sum(site["log_prob"] for _, site in sample_sites(t))) for t in (one, other)]
        torch.testing.assert_close(by_row[0], by_row[1])
    groups = ("sample_stats", "log_likelihood")
    both = [to_arviz(m, guide, rows(), num_samples=3, seed=2, groups=groups) for m in (model, exact_model)]
    for name in ("log_p", "log_q", "log_p_datum", "log_q_datum"):
        one, other = (idata["sample_stats"][name].to_numpy() for idata in both)
        np.testing.assert_allclose(one, other, rtol=1e-12, err_msg=name)
    pyro.set_rng_seed(4)
    terms = BaNEL_TraceEnum_ELBO(0.3, max_plate_nesting=1).terms(model, guide, rows())
    pyro.set_rng_seed(4)
    expected = BaNEL_ELBO(0.3).terms(exact_model, guide, rows())
    for name in ("elbo", "entropy", "penalty", "loss"):
        assert float(getattr(terms, name)) == pytest.approx(float(getattr(expected, name)), rel=1e-12), name


@pytest.mark.parametrize("shift", [None, 1.0])
def test_the_likelihood_is_p_of_x_given_what_the_guide_draws(shift: float | None) -> None:
    """log p(x | z), with the marginal prior of z left out of it, whether x depends on k as well or not."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", N):
            k = pyro.sample("k", dist.Categorical(PROBS), infer=ENUMERATE)
            z = pyro.sample("z", dist.Normal(MEANS[k], 0.6))
            pyro.sample("x", dist.Normal(z if shift is None else z + shift * MEANS[k], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal(x, 0.4))

    idata = to_arviz(model, guide, rows(), num_samples=3, seed=0, groups=("log_likelihood",))
    z = torch.as_tensor(idata["posterior"]["z"].to_numpy()[0])[..., None]
    prior = PROBS.log() + dist.Normal(MEANS, 0.6).log_prob(z)
    given = dist.Normal(z + (shift or 0.0) * MEANS, 1.0).log_prob(rows()[:, None])
    exact = ((prior + given).logsumexp(-1) - prior.logsumexp(-1)).numpy()
    stats = idata["sample_stats"]
    np.testing.assert_allclose(stats["log_p_datum"].to_numpy()[0], (prior + given).logsumexp(-1).numpy(), rtol=1e-12)
    np.testing.assert_allclose(idata["log_likelihood"]["x"].to_numpy()[0], exact, rtol=1e-12)
    np.testing.assert_allclose(stats["log_lik"].to_numpy()[0], exact.sum(-1), rtol=1e-12)


def two_responses(x: Tensor, y: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N):
        k = pyro.sample("k", dist.Categorical(PROBS), infer=ENUMERATE)
        pyro.sample("x", dist.Normal(MEANS[k] + a, 1.0), obs=x)
        pyro.sample("y", dist.Poisson((MEANS[k] / 2).exp()), obs=y)
        pyro.sample("w", dist.Normal(a, 1.0), obs=x**2)


def test_two_sites_that_are_observed() -> None:
    """Both depend on k, so that their joint log p cannot be told apart; a third one stays as it is."""
    y = torch.arange(float(N)).remainder(4)
    guide = AutoNormal(poutine.block(two_responses, hide=["k"]))
    found, draw = log_p(two_responses, guide, rows(), y)
    a = draw.guide_trace.nodes["a"]["value"]
    given = dist.Normal(MEANS[:, None] + a, 1.0).log_prob(rows())
    given = given + dist.Poisson((MEANS / 2).exp()[:, None]).log_prob(y)
    by_row = (PROBS.log()[:, None] + given).logsumexp(0)
    third = dist.Normal(a, 1.0).log_prob(rows() ** 2)
    assert found == pytest.approx(float(dist.Normal(0.0, 1.0).log_prob(a) + (by_row + third).sum()), rel=1e-12)
    nodes = draw.model_trace.nodes
    torch.testing.assert_close(nodes["x"]["log_prob"] + nodes["y"]["log_prob"], by_row)
    torch.testing.assert_close(nodes["w"]["log_prob"], third)


@pytest.mark.parametrize("both", [False, True])
def test_a_masked_row_counts_nothing(both: bool) -> None:
    """Whether the mask is on the likelihood alone, where the assignment sums to 1, or on both."""
    mask = torch.arange(N).remainder(3) != 0

    def model(x: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", N):
            with poutine.mask(mask=mask | (not both)):
                k = pyro.sample("k", dist.Categorical(PROBS), infer=ENUMERATE)
            with poutine.mask(mask=mask):
                pyro.sample("x", dist.Normal(MEANS[k] + a, 1.0), obs=x)

    found, draw = log_p(model, AutoNormal(poutine.block(model, hide=["k"])), rows())
    a = draw.guide_trace.nodes["a"]["value"]
    summed = (PROBS.log()[:, None] + dist.Normal(MEANS[:, None] + a, 1.0).log_prob(rows())).logsumexp(0)
    exact = dist.Normal(0.0, 1.0).log_prob(a) + (summed * mask).sum()
    assert found == pytest.approx(float(exact), rel=1e-12)
    torch.testing.assert_close(draw.model_trace.nodes["x"]["log_prob"], summed * mask)


# ---- fit --------------------------------------------------------------------------------------------------------

OPTIONS: dict[str, Any] = {"lr": 0.05, "seed": 0, "progress": False, "posterior_samples": 0}


def test_a_mixture_is_fitted_as_with_the_sum_written_out() -> None:
    """The same run, step for step, but for likelihood and KL that cannot be told apart."""

    def lam(step: int, last_terms: Any) -> float:
        pyro.set_rng_seed(step)  # a model that draws k when it is looked at leaves another generator behind
        return 0.3

    runs = []
    for objective, model in ((BaNEL_TraceEnum_ELBO(), mixture), (BaNEL_ELBO(), written_out)):
        with pyro.get_param_store().scope():
            guide = autonormal(model)
            runs.append(
                fit(
                    model, guide, rows(), objective=objective, lam=lam, steps=60, batch_size=5, log_every=20,
                    **OPTIONS,
                )
            )  # fmt: skip
    ours, theirs = (run.history for run in runs)
    for column in ("elbo", "entropy", "penalty", "loss", "grad_norm", "entropy[means]", "entropy[weights]"):
        np.testing.assert_allclose(ours[column], theirs[column], rtol=1e-7, err_msg=column)
    assert ours["kl"].isna().all()
    assert ours["log_likelihood"].isna().all()
    first, second = (run.posterior(num_samples=10)["posterior"] for run in runs)
    assert set(first.data_vars) == {"means", "weights"}
    np.testing.assert_allclose(first["means"].to_numpy(), second["means"].to_numpy(), rtol=1e-6)
    assert runs[0].plate.name == "data"
    assert runs[0].config["objective"].startswith("BaNEL_TraceEnum_ELBO(")


def trained(steps: int = 150) -> FitResult:
    guide = autonormal()
    return fit(mixture, guide, rows(), objective=BaNEL_TraceEnum_ELBO(), lam=0.0, steps=steps, **OPTIONS | {"lr": 0.03})


def test_what_is_trained_predicts_and_assigns() -> None:
    result = trained()
    x = rows()
    means = result.posterior(num_samples=100)["posterior"]["means"].mean(("chain", "draw")).to_numpy()
    np.testing.assert_allclose(means, [x[i::3].mean() for i in range(3)], atol=0.4)
    # Pyro's Predictive, and ours
    draws = Predictive(result.model, guide=result.guide, num_samples=100, return_sites=("x", "k"))(x)
    assert draws["x"].shape == (100, N)
    idata = result.predictive(num_samples=100)
    drawn = idata["posterior_predictive"]["x"].to_numpy()[0]
    assert drawn.shape == (100, N)
    assert drawn.mean() == pytest.approx(float(x.mean()), abs=0.4)
    assert drawn.std() == pytest.approx(float(x.std()), abs=0.5)
    new = result.predictive(rows(6), num_samples=3)
    assert new["posterior_predictive"]["x"].shape == (1, 3, 6)
    prior = result.posterior(num_samples=3, groups=("prior", "prior_predictive"))
    assert prior["prior_predictive"]["x"].shape == (1, 3, N)
    # the assignments
    guide_trace = poutine.trace(result.guide).get_trace(x)
    conditioned = poutine.replay(result.model, trace=guide_trace)
    assigned = poutine.trace(infer_discrete(conditioned, first_available_dim=-2, temperature=0)).get_trace(x)
    assert assigned.nodes["k"]["value"].tolist() == [0, 1, 2] * (N // 3)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_an_order_is_used_and_recorded(alpha: float) -> None:
    """Of real sites it changes the loss by a constant; the record says which order it was."""

    def model(x: Tensor) -> None:
        with pyro.plate("components", K):
            means = pyro.sample("means", dist.Normal(0.0, 3.0))
        with pyro.plate("data", N):
            k = pyro.sample("k", dist.Categorical(PROBS), infer=ENUMERATE)
            pyro.sample("x", dist.Normal(means[k], 0.7), obs=x)

    runs = []
    for order in (1.0, alpha):
        with pyro.get_param_store().scope():
            guide = AutoNormal(poutine.block(model, hide=["k"]))
            objective = BaNEL_TraceEnum_ELBO(alpha=order)
            runs.append(fit(model, guide, rows(), objective=objective, lam=0.3, steps=5, log_every=1, **OPTIONS))
    shannon, renyi = (run.history for run in runs)
    np.testing.assert_allclose(shannon["elbo"], renyi["elbo"])
    constant = 0.3 * K * (math.log(alpha) / (alpha - 1) - 1) / 2
    np.testing.assert_allclose(renyi["penalty"] - shannon["penalty"], constant / N)
    assert f"alpha={alpha}" in runs[1].config["objective"]
    assert "alpha" not in runs[0].config["objective"]


def mixture_pair() -> Pair:
    return Pair(mixture, autonormal(), data=rows)


def train(make: Callable[[], Pair], folder: Path | None, *, stop: int | None = None, **options: Any) -> FitResult:
    def lam(step: int, last_terms: Any) -> float:
        if step == stop:
            raise Stop
        return 0.1 if last_terms is None else 0.1 + 0.001 * abs(last_terms.elbo)

    given = {"steps": 14, "batch_size": 5, "log_every": 2, "checkpoint_every": 5, "objective": BaNEL_TraceEnum_ELBO()}
    return make().fit(**OPTIONS | given | {"lam": lam, "out": folder} | options)


def enumerated_pair() -> Pair:
    """The assignments are the guide's, and summed over there."""

    def model(x: Tensor) -> None:
        means = pyro.param("means", torch.tensor([-1.0, 0.0, 1.0]))
        with pyro.plate("data", N):
            k = pyro.sample("k", dist.Categorical(PROBS))
            z = pyro.sample("z", dist.Normal(means[k], 0.5))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    @config_enumerate
    def guide(x: Tensor) -> None:
        a, b = pyro.param("a", torch.zeros(K)), pyro.param("b", torch.tensor([-0.5, 0.0, 0.5]))
        with pyro.plate("data", N):
            k = pyro.sample("k", dist.Categorical(logits=a + b * x[:, None]))
            pyro.sample("z", dist.Normal(0.5 * x + pyro.param("c", torch.zeros(K))[k], 0.4))

    return Pair(model, guide, data=rows)


@pytest.mark.parametrize("make", [mixture_pair, enumerated_pair])
@pytest.mark.parametrize("stop", [2, 8])
def test_a_resumed_run_equals_the_uninterrupted_one(make: Callable[[], Pair], stop: int, tmp_path: Path) -> None:
    with pyro.get_param_store().scope():
        expected = outcome(train(make, None))
    with pyro.get_param_store().scope(), pytest.raises(Stop):
        train(make, tmp_path / "run", stop=stop)
    with pyro.get_param_store().scope():
        assert differing(expected, outcome(train(make, tmp_path / "run", resume=True))) == []
    with pyro.get_param_store().scope():
        assert differing(expected, outcome(FitResult.load(tmp_path / "run", make()))) == []


def test_the_folder_of_a_run_with_a_sum_has_a_report(tmp_path: Path) -> None:
    """Likelihood and KL are NaN there, and the page is written all the same."""
    with pyro.get_param_store().scope():
        train(mixture_pair, tmp_path / "run", posterior_samples=5, validation=rows(6))
    page = (tmp_path / "run" / "report.html").read_text()
    assert "means" in page


# ---- guides that enumerate ---------------------------------------------------------------------------------------


def exact_enumerated(x: Tensor, lam: float, alpha: float) -> Tensor:
    """The loss of the pair at its first parameters, by summation; given k it is Gaussian."""
    means, c = torch.tensor([-1.0, 0.0, 1.0]), torch.zeros(K)
    log_q = (torch.tensor([-0.5, 0.0, 0.5]) * x[:, None]).log_softmax(-1)
    loc = 0.5 * x[:, None] + c
    normal = 0.5 * math.log(2 * math.pi)
    expected = -((loc - means) ** 2 + 0.16) / (2 * 0.25) - ((x[:, None] - loc) ** 2 + 0.16) / (2 * 0.25)
    expected = expected - 2 * (normal + math.log(0.5)) + normal + math.log(0.4) + 0.5
    expected = (log_q.exp() * (expected + PROBS.log() - log_q)).sum()
    entropy = -(log_q.exp() * log_q).sum() if alpha == 1 else (alpha * log_q).logsumexp(-1).sum() / (1 - alpha)
    return lam * entropy - expected


@pytest.mark.parametrize(("lam", "alpha"), [(-1.0, 0.5), (-1.0, 1.0), (0.0, 1.0), (0.5, 2.0), (2.0, 2.0)])
def test_an_enumerated_guide_is_exact_but_for_what_it_draws(lam: float, alpha: float) -> None:
    """All values of k, one draw of z for each: unbiased, by batches too."""
    pair = enumerated_pair()
    objective = BaNEL_TraceEnum_ELBO({"k": lam}, alpha=alpha, max_plate_nesting=1)
    exact = exact_enumerated(rows(), lam, alpha)
    losses = [torch.as_tensor(objective.terms(pair.model, pair.guide, rows()).loss) for _ in range(80)]
    assert_mean(losses, exact)
    plate = DataPlate("data", N, scaled=True)
    batches = torch.stack([torch.arange(N).roll(i)[:3] for i in range(0, N, 3)])
    means = []
    for _ in range(30):
        parts = []
        for index in batches:
            with plate.rows(index):
                parts.append(torch.as_tensor(objective.terms(pair.model, pair.guide, rows()[index]).loss))
        means.append(torch.stack(parts).mean())
    assert_mean(means, exact)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_an_enumerated_guide_in_fit_posterior_and_predictive(alpha: float) -> None:
    """Trained by sums, drawn from one value at a time."""
    pair = enumerated_pair()
    result = pair.fit(
        objective=BaNEL_TraceEnum_ELBO(alpha=alpha), lam={"k": -0.3}, steps=80, validation=rows(6), **OPTIONS
    )
    assert result.history["kl"].notna().all()
    assert result.history["elbo"].iloc[-1] > result.history["elbo"].iloc[0]
    assert np.isfinite(result.history["val_elbo"].iloc[-1])
    idata = result.posterior(num_samples=40, groups=("posterior", "sample_stats", "log_likelihood"))
    k = idata["posterior"]["k"].to_numpy()
    assert k.shape == (1, 40, N)
    assert set(np.unique(k)) <= {0, 1, 2}
    assert (np.median(k[0, :, 2::3], axis=0) > np.median(k[0, :, 0::3], axis=0)).all()
    assert np.isfinite(idata["log_likelihood"]["x"].to_numpy()).all()
    drawn = result.predictive(num_samples=40)["posterior_predictive"]["x"].to_numpy()
    assert drawn.shape == (1, 40, N)
    # the judged bound is that of the draws: its mean is the exact sum's
    exact = np.array([held_out_elbo(pair.model, pair.guide, (rows(),), result.plate) for _ in range(150)])
    sums = np.array(
        [
            float(
                BaNEL_TraceEnum_ELBO(max_plate_nesting=1).terms(pair.model, pair.guide, rows()).elbo
            ) / N
            for _ in range(60)
        ]
    )  # fmt: skip
    error = math.hypot(exact.std() / 150**0.5, sums.std() / 60**0.5)
    assert abs(exact.mean() - sums.mean()) < 5 * error


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1 + 1e-6, 2.0])
def test_enumerated_sites_that_depend_on_each_other_have_a_joint_entropy(alpha: float) -> None:
    """A global choice above one for each row: Σ_j q(j)^α Π_i Σ_k q(k_i | j)^α, exactly."""

    def model(x: Tensor) -> None:
        j = pyro.sample("j", dist.Bernoulli(torch.tensor(0.5)))
        with pyro.plate("data", N):
            pyro.sample("k", dist.Bernoulli(0.2 + 0.6 * j))

    @config_enumerate
    def guide(x: Tensor) -> None:
        j = pyro.sample("j", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.3))))
        with pyro.plate("data", N):
            pyro.sample("k", dist.Bernoulli(logits=pyro.param("b", torch.tensor(0.4)) * x + 2 * j))

    guide(rows())
    a, b = (pyro.get_param_store()._params[name] for name in "ab")
    log_joint = []
    for j in (0.0, 1.0):
        k = dist.Bernoulli(logits=b * rows() + 2 * j)
        one, none = (k.log_prob(torch.tensor(value)) for value in (1.0, 0.0))
        top = dist.Bernoulli(logits=a).log_prob(torch.tensor(j))
        if alpha == 1:
            log_joint.append(top.exp() * (top - k.entropy().sum()))
        else:
            log_joint.append(alpha * top + torch.logaddexp(alpha * one, alpha * none).sum())
    exact = -sum(log_joint) if alpha == 1 else torch.stack(log_joint).logsumexp(0) / (1 - alpha)  # type: ignore[arg-type]
    slopes = torch.autograd.grad(exact, [a, b])
    found = []
    for lam in (0.0, 0.7):
        elbo = BaNEL_TraceEnum_ELBO(lam, alpha=alpha, max_plate_nesting=1)
        found.append(torch.autograd.grad(elbo.differentiable_loss(model, guide, rows()), [a, b]))
    terms = BaNEL_TraceEnum_ELBO(0.7, alpha=alpha, max_plate_nesting=1).terms(model, guide, rows())
    assert float(terms.penalty) == pytest.approx(0.7 * float(exact.detach()), rel=1e-8)
    for plain, penalised, slope in zip(*found, slopes, strict=True):
        torch.testing.assert_close(penalised - plain, 0.7 * slope, rtol=1e-7, atol=1e-8)


def test_both_at_once() -> None:
    """One site is the guide's and enumerated there, another the model's own and summed out."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", N):
            k = pyro.sample("k", dist.Categorical(PROBS), infer=ENUMERATE)
            j = pyro.sample("j", dist.Bernoulli(0.2 + 0.3 * k / K), infer=ENUMERATE)
            pyro.sample("x", dist.Normal(MEANS[k] + j, 1.0), obs=x)

    @config_enumerate
    def guide(x: Tensor) -> None:
        with pyro.plate("data", N):
            pyro.sample("k", dist.Categorical(logits=pyro.param("b", torch.tensor([-0.5, 0.0, 0.5])) * x[:, None]))

    x = rows()
    log_q = (torch.tensor([-0.5, 0.0, 0.5]) * x[:, None]).log_softmax(-1)
    value = torch.zeros(())
    for k in range(K):
        given = torch.stack(
            [
                dist.Bernoulli(torch.tensor(0.2 + 0.3 * k / K)).log_prob(torch.tensor(j))
                + dist.Normal(MEANS[k] + j, 1.0).log_prob(x)
                for j in (0.0, 1.0)
            ]
        ).logsumexp(0)
        value = value + (log_q[:, k].exp() * (given + PROBS[k].log() - log_q[:, k])).sum()
    for alpha in (1.0, 2.0):
        terms = BaNEL_TraceEnum_ELBO(0.7, alpha=alpha, max_plate_nesting=1).terms(model, guide, x)
        assert float(terms.elbo) == pytest.approx(float(value), rel=1e-12)
        assert math.isnan(float(terms.kl))
        entropy = -(log_q.exp() * log_q).sum() if alpha == 1 else -(2 * log_q).logsumexp(-1).sum()
        assert float(terms.penalty) == pytest.approx(0.7 * float(entropy), rel=1e-12)
    result = fit(model, guide, x, objective=BaNEL_TraceEnum_ELBO(alpha=2.0), lam=0.1, steps=4, **OPTIONS)
    ours, _ = log_weights(model, guide, x, DataPlate("data", N, scaled=True), draws=200)
    exact = float(BaNEL_TraceEnum_ELBO(max_plate_nesting=1).terms(model, guide, x).elbo)
    assert_mean(torch.tensor(ours), exact)
    assert result.posterior(num_samples=3)["posterior"]["k"].shape == (1, 3, N)
