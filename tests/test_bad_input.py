"""Bad input is refused before anything is trained, with the name, the value and what to do instead."""

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from torch import Tensor, nn

from banel_pyro import (
    BaNEL_ELBO,
    BaNEL_TraceEnum_ELBO,
    BaNEL_TraceGraph_ELBO,
    FitResult,
    Linear,
    Pair,
    Piecewise,
    fit,
    to_arviz,
)
from models import data as model_data
from models import vae

N = 6


def rows() -> Tensor:
    return torch.linspace(-1.0, 1.0, N)


def model(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N):
        z = pyro.sample("z", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    m = pyro.param("m", torch.tensor(0.1))
    a = pyro.sample("a", dist.Normal(m, 0.5))
    with pyro.plate("data", N):
        pyro.sample("z", dist.Normal(a + 0.5 * x, 0.5))


def missing_site(x: Tensor) -> None:
    pyro.sample("a", dist.Normal(pyro.param("m", torch.tensor(0.1)), 0.5))


def extra_site(x: Tensor) -> None:
    guide(x)
    pyro.sample("b", dist.Normal(0.0, 1.0))


def wrong_shape(x: Tensor) -> None:
    pyro.sample("a", dist.Normal(pyro.param("m", torch.zeros(2)), 0.5).to_event(1))
    with pyro.plate("data", N):
        pyro.sample("z", dist.Normal(x, 0.5))


def subsampling(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N, subsample=torch.arange(2)) as index:
        z = pyro.sample("z", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[index])


def images_model(x: Tensor) -> None:
    net = nn.Linear(3, 3)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=net(z)).to_event(1), obs=x)


def images_guide(x: Tensor) -> None:
    pyro.module("net", NET)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(NET(x), 1.0).to_event(1))


def images_free_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("m", torch.zeros(3)), 1.0).to_event(1))


def two_scales(x: Tensor) -> None:
    """z depends on a, and counts thrice."""
    a = pyro.sample("a", dist.Normal(pyro.param("m", torch.tensor(0.1)), 0.5))
    with pyro.plate("data", N), poutine.scale(scale=3.0):
        pyro.sample("z", dist.Normal(a + 0.5 * x, 0.5))


def drawn_as(fn: Any) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None]]:
    """A model and a guide of one site g, for which the guide has a distribution of its own."""

    def of_model(x: Tensor) -> None:
        support = getattr(fn().support, "base_constraint", fn().support)  # of a mixture, that of its parts
        prior = {constraints.positive: dist.Gamma(1.0, 1.0), constraints.real: dist.Normal(0.0, 1.0)}
        g = pyro.sample("g", next((p for s, p in prior.items() if support is s), dist.Beta(2.0, 2.0)))
        with pyro.plate("data", N):
            pyro.sample("x", dist.Normal(g, 1.0), obs=x)

    def of_guide(x: Tensor) -> None:
        pyro.sample("g", fn())

    return of_model, of_guide


def choice_model(x: Tensor) -> None:
    with pyro.plate("data", N):
        k = pyro.sample("k", dist.Categorical(torch.ones(2) / 2))
        pyro.sample("x", dist.Normal(k.to(x.dtype), 1.0), obs=x)


@config_enumerate
def enumerated_guide(x: Tensor) -> None:
    with pyro.plate("data", N):
        pyro.sample("k", dist.Categorical(logits=pyro.param("m", torch.tensor([0.1, 0.1])) * x[:, None]))


def choices_model(x: Tensor) -> None:
    j = pyro.sample("j", dist.Bernoulli(torch.tensor(0.5)))
    with pyro.plate("data", N):
        k = pyro.sample("k", dist.Bernoulli(0.2 + 0.6 * j))
        pyro.sample("x", dist.Normal(k, 1.0), obs=x)


@config_enumerate
def enumerated_chain(x: Tensor) -> None:
    j = pyro.sample("j", dist.Bernoulli(logits=pyro.param("m", torch.tensor(0.1))))
    with pyro.plate("data", N):
        pyro.sample("k", dist.Bernoulli(logits=x + j))


def half_enumerated(x: Tensor) -> None:
    j = pyro.sample("j", dist.Bernoulli(logits=pyro.param("m", torch.tensor(0.1))))
    with pyro.plate("data", N):
        pyro.sample("k", dist.Bernoulli(logits=x + j), infer={"enumerate": "parallel"})


def many(alpha: float) -> BaNEL_ELBO:
    return BaNEL_ELBO(alpha=alpha, num_particles=5, vectorize_particles=True)


def drawn(fn: Any, alpha: float, lam: Any = 0.3, form: Any = BaNEL_ELBO) -> dict[str, Any]:
    """Options of fit for a guide that draws one site from a distribution."""
    of_model, of_guide = drawn_as(fn)
    return {"model": of_model, "guide": of_guide, "objective": form(alpha=alpha), "lam": lam}


FORMS = (BaNEL_ELBO, BaNEL_TraceGraph_ELBO, BaNEL_TraceEnum_ELBO)
NET = nn.Linear(3, 3)
PIXELS = torch.randint(0, 256, (N, 3), dtype=torch.uint8)

CASES: dict[str, tuple[dict[str, Any], str]] = {
    # unknown site in lam
    "lam_site": ({"lam": {"zz": 0.3}}, r"lam names unknown sites \['zz'\].*densities are \['a', 'z'\]"),
    "lam_site_in_objective": ({"objective": BaNEL_ELBO(lam={"zz": 0.3})}, r"unknown sites \['zz'\]"),
    "lam_site_of_joint": ({"guide": AutoDiagonalNormal, "lam": {"a": 0.3}}, r"\['a'\].*_AutoDiagonalNormal_latent"),
    "lam_site_later": ({"lam": Linear(0.0, 0.3, over=5), "guide": AutoDelta}, r"'a'.*point mass.*lam=0"),
    # lam >= 1 on a continuous site
    "lam_one": ({"lam": 1.0}, r"lam=1.0 at the continuous site 'a'.*no minimum.*Use lam < 1"),
    "lam_one_of_a_site": ({"lam": {"z": 1.5}}, r"lam=1.5 at the continuous site 'z'.*allow_unbounded"),
    "lam_one_at_the_end": ({"lam": Linear(0.0, 1.0, over=3)}, r"lam=1.0 at the continuous site 'a'"),
    "lam_one_for_a_while": ({"lam": Piecewise([3, 4], [0.0, 1.2, 0.1])}, r"lam=1.2 at the continuous site 'a'"),
    # model and guide that disagree
    "missing": ({"guide": missing_site}, r"latent sites \['z'\] are missing from the guide.*Add them to the guide"),
    "extra": ({"guide": extra_site}, r"guide's sites \['b'\] are no latent sites.*Rename them.*is_auxiliary"),
    "shape": (
        {"guide": wrong_shape},
        r"disagree in shape at site 'a': \(\) in the model, \(2,\) in the guide.*to_event",
    ),
    # data
    "nan": ({"data": torch.tensor([0.0, np.nan] * 3)}, r"data has NaN or inf in 3 of 6 rows.*Drop these rows"),
    "validation_nan": ({"validation": torch.tensor([np.inf])}, r"validation has NaN or inf in 1 of 1 rows"),
    "empty": ({"data": torch.zeros(0)}, r"data has no rows \(shapes \[\(0,\)\]\): expected at least one"),
    "empty_list": ({"data": []}, "data has no rows"),
    "empty_validation": ({"validation": torch.zeros(0)}, "validation has no rows"),
    "batch": ({"batch_size": 7}, r"batch_size=7 is more than the 6 rows of data. Use at most 6"),
    "lengths": ({"data": (torch.zeros(6), torch.zeros(5))}, r"lengths \[6, 5\]: expected a common leading axis.*Cut"),
    "validation_shape": (
        {"validation": torch.zeros(3, 2)},
        r"validation rows have shapes and types .*\(2,\).*the same",
    ),
    "validation_type": ({"validation": torch.zeros(3, dtype=torch.float64)}, r"float64.*training rows .*float32"),
    "size": ({"data": torch.zeros(8)}, r"8 rows need a plate.*'data': 6.*Write .*pyro.plate\('data', 8\)"),
    # integers where floats are needed
    "integers_in_a_network": (
        {"model": images_model, "guide": images_guide, "data": PIXELS},
        r"data\[0\] holds torch.uint8, where the model computes with torch.float32.*Convert it.*255",
    ),
    "integers_in_a_density": (
        {"model": images_model, "guide": images_free_guide, "data": PIXELS},
        r"data\[0\] holds torch.uint8, where the model computes with torch.float32.*Convert it.*255",
    ),
    "doubles": (
        {"model": images_model, "guide": images_guide, "data": np.zeros((N, 3))},
        r"data\[0\] holds torch.float64, where the model computes with torch.float32.*x.to",
    ),
    # a plate that cannot be told
    "subsample": ({"model": subsampling, "batch_size": 3}, r"plate 'data' has a subsample= of its own.*3 rows.*Write"),
    "plate_name": ({"data_plate": "rows"}, r"data_plate='rows': the model has no plate of that name, only \['data'\]"),
    # a joint autoguide with local latents in a subsampled plate
    "joint": ({"guide": AutoDiagonalNormal, "batch_size": 3}, r"'_AutoDiagonalNormal_latent'.*3 of 6 rows.*AutoNormal"),
    # held-out rows that the guide says nothing about
    "local_validation": (
        {"guide": AutoNormal, "validation": torch.zeros(3)},
        r"validation: the guide has \[.*'AutoNormal.locs.z'.*\] for each row of plate 'data'.*Leave validation out",
    ),
    "local_validation_of_equal_length": (
        {"guide": AutoNormal, "validation": torch.zeros(6)},
        r"validation: the guide has .* for each row of plate 'data'",
    ),
    # orders that a support does not have
    **{
        f"{name}_of_a_continuous_site_{form.__name__}": (
            {"objective": form(alpha=alpha), "lam": {"a": 0.3}},
            rf"alpha={name} \({words}\) of Normal: it is for finite supports only \(B.*Write .* alpha={instead} ",
        )
        for form in FORMS[:2]
        for name, alpha, words, instead in (
            ("0", 0.0, "Hartley entropy", "0.1"),
            ("inf", math.inf, "min-entropy", "100.0"),
        )
    },
    # infinite entropies as a penalty
    "infinite_gamma": (
        drawn(lambda: dist.Gamma(0.3, 1.0), 2.0),
        r"alpha=2 at site 'g': the Rényi entropy of its Gamma is -inf.*alpha nearer to 1 \(alpha=1.0 is always finite",
    ),
    "infinite_beta_in_a_reward": (
        drawn(lambda: dist.Beta(0.4, 2.0), 3.0, lam=-0.3, form=BaNEL_TraceGraph_ELBO),
        r"alpha=3 at site 'g': the Rényi entropy of its Beta is -inf",
    ),
    "infinite_student": (
        drawn(lambda: dist.StudentT(0.5), 0.5, form=BaNEL_TraceGraph_ELBO),
        r"alpha=0.5 at site 'g': the Rényi entropy of its StudentT is \+inf.*alpha nearer to 1",
    ),
    # a point mass under a penalty, whatever the order
    "point_mass": (
        {"guide": AutoDelta, "objective": BaNEL_ELBO(alpha=2.0), "lam": {"a": -0.3}},
        r"lam=-0.3 at site 'a'.*point mass \(Delta\): its entropy is -inf.*leaves this site out, use lam=0, or",
    ),
    "bare_delta": (
        drawn(lambda: dist.Delta(pyro.param("m", torch.tensor(0.1)).sigmoid()), 0.5, form=BaNEL_TraceGraph_ELBO),
        r"lam=0.3 at site 'g'.*point mass \(Delta\).*give the site a guide with a density",
    ),
    # sites that depend on each other
    **{
        f"dependent_{form.__name__}": (
            {"objective": form(alpha=2.0), "lam": -0.3},
            r"alpha=2: \['a', 'z'\] depend on each other.*num_particles=10 or more with vectorize_particles=True",
        )
        for form in FORMS[:2]
    },
    "not_vectorised": (
        {"objective": BaNEL_ELBO(alpha=0.5, num_particles=20), "lam": 0.3},
        r"alpha=0.5: \['a', 'z'\] depend on each other.*vectorize_particles=True",
    ),
    "no_closed_form": (
        drawn(lambda: dist.VonMises(0.0, 1.0), 2.0, lam=-0.3),
        r"alpha=2: 'g' has no closed form.*num_particles=10 or more with vectorize_particles=True, leave the site out",
    ),
    "closed_form_of_a_joint_density": (
        {"objective": BaNEL_ELBO(alpha=2.0, entropy="closed_form"), "lam": -0.3},
        r"entropy='closed_form', but the Rényi entropy of \['a', 'z'\] at alpha=2 has no closed form. Use",
    ),
    "child_alone": (
        {"objective": many(2.0), "lam": {"z": 0.3}},
        r"alpha=2 with lam=0.3 at site 'z' and lam=0.0 at 'a', on which it depends.*Give 'a' the same lam, leave",
    ),
    "two_lams": (
        {"objective": many(0.5), "lam": {"z": 0.3, "a": 0.2}},
        r"alpha=0.5 with lam=0.3 at site 'z' and lam=0.2",
    ),
    "across_a_subsampled_plate": (
        {"objective": many(0.5), "lam": 0.3, "batch_size": 3},
        r"\['a', 'z'\] depend on each other across the subsampled plate 'data' \(3 of 6 rows\).*Pass all rows",
    ),
    "across_the_last_batch": (
        {"objective": many(0.5), "lam": Linear(0.0, 0.3, over=5), "batch_size": 4},
        r"depend on each other across the subsampled plate 'data' \(4 of 6 rows\)",
    ),
    "different_scales": (
        {"guide": two_scales, "objective": many(2.0), "lam": -0.3},
        r"\['a', 'z'\] have different scales \['1.0', '3.0'\].*Put one poutine.scale with one number around all",
    ),
    # penalties that a spike of little mass lets fall without end
    **{
        f"spike_{form.__name__}": (
            {"objective": form(alpha=2.0, num_particles=5, vectorize_particles=True), "lam": 0.3},
            r"lam=0.3 with alpha=2 at \['a', 'z'\].*density on little mass.*alpha <= 1.*allow_unbounded=True",
        )
        for form in FORMS[:2]
    },
    "spike_of_a_mixture": (
        drawn(
            lambda: dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), 1.0)),
            1.5,
            form=partial(BaNEL_ELBO, num_particles=5, vectorize_particles=True),
        ),
        r"lam=0.3 with alpha=1.5 at \['g'\].*density on little mass.*allow_unbounded=True",
    ),
    # enumeration
    **{
        f"enumerated_{form.__name__}": (
            {"model": choice_model, "guide": enumerated_guide, "objective": form()},
            r"guide's sites \['k'\] are configured for enumeration.*Use BaNEL_TraceEnum_ELBO.*config_enumerate off",
        )
        for form in (BaNEL_ELBO, BaNEL_TraceGraph_ELBO)
    },
    "enumerated_by_default": (
        {"model": choice_model, "guide": enumerated_guide},
        r"guide's sites \['k'\] are configured for enumeration.*Use BaNEL_TraceEnum_ELBO",
    ),
    "enumerated_across_a_subsampled_plate": (
        {"model": choices_model, "guide": enumerated_chain, "objective": BaNEL_TraceEnum_ELBO(alpha=2.0), "lam": 0.3}
        | {"batch_size": 3},
        r"\['j', 'k'\] depend on each other across the subsampled plate 'data' \(3 of 6 rows\)",
    ),
    "enumerated_at_infinity": (
        {
            "model": choices_model,
            "guide": enumerated_chain,
            "objective": BaNEL_TraceEnum_ELBO(alpha=math.inf),
            "lam": 0.3,
        },
        r"alpha=inf: \['j', 'k'\] depend on each other, and their joint Rényi entropy is for 0 < alpha < inf",
    ),
    "half_enumerated": (
        {"model": choices_model, "guide": half_enumerated, "objective": BaNEL_TraceEnum_ELBO(alpha=2.0), "lam": 0.3},
        r"alpha=2: \['j', 'k'\] depend on each other, and only \['k'\] are summed over. Enumerate all of them",
    ),
    "missing_under_the_enumerated_form": (
        {"guide": missing_site, "objective": BaNEL_TraceEnum_ELBO()},
        r"latent sites \['z'\] are missing from the guide.*Discrete ones can be summed out.*BaNEL_TraceEnum_ELBO",
    ),
}


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_before_training(case: str, validate: bool, tmp_path: Path) -> None:
    """Nothing is written, the parameters are as they were made, and the same call with good input then works."""
    options, words = CASES[case]
    given = {"model": model, "guide": guide, "data": rows(), "steps": 10, "lr": 0.1, "progress": False} | options
    chosen, described = given.pop("guide"), given.pop("model")
    taken = chosen(described) if isinstance(chosen, type) else chosen
    state = torch.get_rng_state()
    with pyro.validation_enabled(validate), pytest.raises(ValueError, match=f"(?s){words}"):
        fit(described, taken, given.pop("data"), seed=0, out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()
    assert torch.equal(state, torch.get_rng_state())
    made = dict(pyro.get_param_store().named_parameters()).get("m", torch.zeros(1))
    assert made.unique().tolist() in ([0.0], [pytest.approx(0.1)])
    with pyro.get_param_store().scope():
        fit(model, guide, rows(), steps=1, seed=0, out=tmp_path / "run", posterior_samples=0, progress=False)


def test_unbounded_penalties_are_accepted_where_they_are_wanted() -> None:
    fit(model, guide, rows(), objective=BaNEL_ELBO(allow_unbounded=True), lam=1.2, steps=2, progress=False)


@pytest.mark.parametrize(("alpha", "lam", "allowed"), [(2.0, 0.3, True), (2.0, -0.3, False), (0.5, 0.3, False)])
def test_joint_penalties_are_accepted_where_they_have_a_minimum(alpha: float, lam: float, allowed: bool) -> None:
    particles = {"num_particles": 5, "vectorize_particles": True}
    objective = BaNEL_ELBO(alpha=alpha, allow_unbounded=allowed, **particles)
    result = fit(model, guide, rows(), objective=objective, lam=lam, steps=2, progress=False)
    assert np.isfinite(result.history["penalty"]).all()


def test_a_schedule_of_the_users_own_is_asked_for_its_first_lam() -> None:
    seen: list[int] = []

    def lam(step: int, last_terms: Any) -> float:
        seen.append(step)
        return 1.0 if step == 3 else 0.1

    with pytest.raises(ValueError, match=r"lam=1.0 at the continuous site 'a'") as stopped:
        fit(model, guide, rows(), lam=lam, steps=10, progress=False)
    assert stopped.value.__notes__ == ["This happened in fit, at step 3."]
    assert seen[:2] == [0, 0]


@pytest.mark.parametrize("lam", ["0.3", [0.1, 0.2], True, lambda step, last_terms: "0.3"])
def test_a_lam_that_is_no_number_is_refused(lam: Any) -> None:
    with pytest.raises(TypeError, match=r"lam=.*expected a number"):
        fit(model, guide, rows(), lam=lam, steps=10, progress=False)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("alpha", "error", "words"),
    [
        (-1.0, ValueError, r"alpha=-1.0: the order of a Rényi entropy must be >= 0. Write alpha=1.0 for Shannon's"),
        (math.nan, ValueError, r"alpha=nan: the order .* must be >= 0. Write alpha=1.0"),
        (-math.inf, ValueError, r"alpha=-inf: the order"),
        ("2", TypeError, r"alpha='2' is a str: expected a number >= 0.*Write alpha=1.0"),
        (None, TypeError, r"alpha=None is a NoneType: expected a number"),
        (True, TypeError, r"alpha=True is a bool: expected a number"),
        (torch.tensor(2.0), TypeError, r"alpha=tensor\(2.\) is a Tensor: expected a number.*float\(x\) for a tensor x"),
    ],
)
def test_orders_that_are_none_are_refused(form: Any, alpha: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        form(0.3, alpha=alpha)


def test_the_enumerated_form_has_no_closed_form_kl() -> None:
    with pytest.raises(ValueError, match=r"kl='closed_form'.*summed out.*Use kl='monte_carlo', which is exact"):
        BaNEL_TraceEnum_ELBO(0.3, kl="closed_form")


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (BaNEL_TraceEnum_ELBO, r"objective is a BaNEL_TraceEnum_ELBO: .*such as BaNEL_ELBO\(\)"),
        (Trace_ELBO(), r"objective is a Trace_ELBO: .*With lam=0 it is Pyro's Trace_ELBO"),
        ("trace", r"objective is a str: expected a banel_pyro objective"),
        (lambda model, guide: 0.0, r"objective is a function: expected a banel_pyro objective"),
    ],
)
def test_an_objective_of_another_kind_is_refused(objective: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        fit(model, guide, rows(), objective=objective, steps=1, progress=False)


def test_a_row_of_a_sum_has_no_terms() -> None:
    def summed(x: Tensor) -> None:
        with pyro.plate("data", N):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    elbo = BaNEL_TraceEnum_ELBO(max_plate_nesting=1)
    with pytest.raises(
        ValueError, match=r"terms_per_datum: the model's latent sites \['k'\] are summed out.*Use terms"
    ):
        elbo.terms_per_datum(summed, lambda x: None, rows())


def test_an_entropy_that_becomes_infinite_stops_the_run() -> None:
    """Not at the first step: the shape falls below a half while it is trained."""

    def of_guide(x: Tensor) -> None:
        shape = pyro.param("shape", torch.tensor(0.7), constraint=constraints.positive)
        pyro.sample("g", dist.Gamma(shape, 1.0))

    of_model = drawn_as(lambda: dist.Gamma(1.0, 1.0))[0]
    objective = BaNEL_ELBO(alpha=2.0, allow_unbounded=True)
    with pytest.raises(ValueError, match=r"alpha=2 at site 'g': the Rényi entropy of its Gamma is -inf") as stopped:
        fit(of_model, of_guide, rows(), objective=objective, lam=0.9, steps=200, lr=0.1, seed=0, progress=False)
    assert "This happened in fit, at step" in stopped.value.__notes__[0]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"devices": 0}, ValueError, r"devices=0: expected an integer of at least 1. Write devices=1"),
        ({"devices": -1}, ValueError, r"devices=-1: expected an integer of at least 1"),
        ({"devices": "two"}, TypeError, r"devices='two': expected an integer. Write devices=1"),
        ({"devices": [-1]}, ValueError, r"devices=-1: expected an integer of at least 0"),
        ({"devices": True}, TypeError, r"devices=True: expected an integer"),
        ({"num_nodes": 0}, ValueError, r"num_nodes=0: expected an integer of at least 1"),
        ({"strategy": "fsdp"}, ValueError, r"strategy='fsdp': expected one of 'auto', 'ddp'. Write strategy='auto'"),
        ({"accelerator": "tpu"}, ValueError, r"accelerator='tpu': expected one of 'auto', 'cpu', .*Write accelerator="),
        (
            {"precision": "16-mixed"},
            ValueError,
            r"precision='16-mixed': expected one of '32-true', '64-true', 'bf16-mi",
        ),
        (
            {"precision": "64-true", "dtype": torch.float32},
            ValueError,
            r"precision='64-true' has parameters of torch.float64, but dtype=torch.float32.*Leave dtype out",
        ),
        ({"accelerator": "cpu", "devices": [5, 5]}, ValueError, r"Lightning Fabric refuses devices=\[5, 5\]"),
    ],
)
def test_devices_that_are_none_are_refused(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        fit(model, guide, rows(), steps=1, progress=False, **options)


def test_another_number_of_processes_than_were_started_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By torchrun, or by an earlier run of the same program."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"ask for 1 processes, but this program has 2: .*Use one number of devices"):
        fit(model, guide, rows(), steps=1, progress=False, accelerator="cpu")


def test_devices_without_fabric_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(ModuleNotFoundError, match=r"fit\(devices=2\) needs .*pip install 'banel-pyro\[fabric\]'"):
        fit(model, guide, rows(), steps=1, progress=False, devices=2)
    with pyro.get_param_store().scope():
        fit(model, guide, rows(), steps=1, progress=False)


@pytest.mark.parametrize("call", ["fit", "to_arviz"])
def test_data_of_another_kind_are_refused(call: str) -> None:
    calls: dict[str, Callable[..., Any]] = {
        "fit": lambda data: fit(model, guide, data, steps=1, progress=False),
        "to_arviz": lambda data: to_arviz(model, guide, data, num_samples=2),
    }
    with pytest.raises(TypeError, match=r"is a str: expected a tensor.*torch.as_tensor"):
        calls[call]("file.csv")


def test_a_folder_of_another_pair_or_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no run folder: it has no config.json"):
        FitResult.load(tmp_path, Pair(model, guide, data=rows))
    out = tmp_path / "run"
    with pyro.get_param_store().scope():
        fit(model, guide, rows(), steps=1, seed=0, out=out, posterior_samples=0, progress=False)
    with pyro.get_param_store().scope(), pytest.raises(ValueError, match=r"state is of another pair.*Use the pair"):
        FitResult.load(out, Pair(model, AutoNormal(model), data=rows))
    with pyro.get_param_store().scope(), pytest.raises(ValueError, match=r"already holds a run.*resume=True"):
        fit(model, guide, rows(), steps=1, seed=0, out=out, progress=False)


def test_a_missing_data_folder_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A pair whose data need BANEL_DATA passes the message of its loader on, and writes nothing."""
    monkeypatch.delenv("BANEL_DATA", raising=False)
    pair = Pair(model, guide, data=lambda: model_data.data_folder("mnist"))
    with pytest.raises(FileNotFoundError, match=r"'mnist' is not embedded and BANEL_DATA is not set: put the files"):
        pair.fit(steps=1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_grey_images_need_a_transform() -> None:
    """Bernoulli pixels between 0 and 1: refused by Pyro's validation, before training."""
    torch.manual_seed(0)
    pair = vae.digits()
    with pytest.raises(ValueError, match=r"(?s)support.*Boolean"):
        fit(pair.model, pair.guide, pair.split().train, steps=1, progress=False)
