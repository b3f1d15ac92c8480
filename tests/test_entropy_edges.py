"""Guides at the edges: parameters in subsampled plates, plates of one row, masked parents, relaxed sites, mixtures."""

import math
from itertools import product
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoNormal, AutoNormalMessenger
from torch import Tensor

from banel_pyro import BaNEL_ELBO, BaNEL_TraceEnum_ELBO, fit, guide_entropy
from banel_pyro.objectives import EnumObjective, TraceObjective

pytestmark = pytest.mark.usefixtures("float64")

TOP = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
BELOW = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5]], dtype=torch.float64)


@pytest.mark.parametrize("kind", [AutoNormal, AutoNormalMessenger])
@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_an_autoguide_with_local_latents_trains_on_minibatches(kind: Any, alpha: float) -> None:
    """Its parameters lie inside of the subsampled plate."""
    x = torch.randn(20)

    def model(rows: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 20):
            z = pyro.sample("z", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=rows)

    particles = {"num_particles": 4, "vectorize_particles": kind is AutoNormalMessenger}
    options: dict[str, Any] = {"lam": -0.2, "batch_size": 5, "steps": 8, "seed": 0, "progress": False}
    result = fit(model, kind(model), x, objective=BaNEL_ELBO(alpha=alpha, **particles), **options)
    assert math.isfinite(result.history["loss"].iloc[-1])


def test_the_entropy_of_an_autoguide_in_a_subsampled_plate() -> None:
    x = torch.randn(20)

    def plate() -> Any:
        return pyro.plate("data", 20, subsample_size=5)

    def model() -> None:
        with plate() as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    guide = AutoNormal(model, create_plates=plate)
    for alpha, constant in ((1.0, 0.5), (2.0, math.log(2) / 2)):
        exact = 20 * (math.log(2 * math.pi) / 2 + constant + math.log(0.1))
        assert guide_entropy(guide, alpha=alpha).value == pytest.approx(exact)


@config_enumerate
def chain(rows: int = 3, mask: Tensor | None = None) -> None:
    """j depends on k in each row; k alone may be masked."""
    with pyro.plate("data", rows):
        with poutine.mask(mask=torch.ones(rows, dtype=torch.bool) if mask is None else mask):
            k = pyro.sample("k", dist.Categorical(TOP))
        pyro.sample("j", dist.Categorical(BELOW[k]))


def joint(alpha: float, *, masked: bool = False) -> float:
    """The joint Renyi entropy of a row; a masked k happens, but has no entropy of its own."""
    cells = [TOP[k] ** (1 if masked else alpha) * BELOW[k, j] ** alpha for k, j in product(range(3), range(2))]
    return float(torch.stack(cells).sum().log()) / (1 - alpha)


@pytest.mark.parametrize("alpha", [0.5, 0.999, 2.0])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_plate_of_one_row_is_a_plate(alpha: float, rows: int) -> None:
    """The last batch of an epoch may have one row."""

    def model(rows: int) -> None:
        with pyro.plate("data", rows):
            pyro.sample("k", dist.Categorical(torch.ones(3)))
            pyro.sample("j", dist.Categorical(torch.ones(2)))

    assert guide_entropy(chain, rows, alpha=alpha).value == pytest.approx(rows * joint(alpha))
    assert guide_entropy(chain, rows, alpha=alpha, per_datum=True).value == pytest.approx([joint(alpha)] * rows)
    elbo = BaNEL_TraceEnum_ELBO(-0.4, alpha=alpha, max_plate_nesting=1)
    assert float(elbo.terms(model, chain, rows).penalty) == pytest.approx(-0.4 * rows * joint(alpha))
    assert elbo.terms_per_datum(model, chain, rows).penalty.tolist() == pytest.approx([-0.4 * joint(alpha)] * rows)


@pytest.mark.parametrize("alpha", [0.5, 0.999, 1.001, 2.0])
def test_values_of_a_masked_parent_keep_their_probabilities(alpha: float) -> None:
    mask = torch.tensor([True, False, False])
    exact = joint(alpha) + 2 * joint(alpha, masked=True)
    assert guide_entropy(chain, 3, mask, alpha=alpha).value == pytest.approx(exact)


def test_a_mask_inside_of_a_distribution_is_refused_where_it_hides_probabilities() -> None:
    @config_enumerate
    def guide() -> None:
        with pyro.plate("data", 3):
            k = pyro.sample("k", dist.Categorical(TOP).expand([3]).mask(torch.tensor([True, True, False])))
            pyro.sample("j", dist.Categorical(BELOW[k]))

    with pytest.raises(ValueError, match=r"\['k'\] are enumerated.*poutine.mask"):
        guide_entropy(guide, alpha=2.0)


def test_sites_enumerated_one_by_one_beside_others() -> None:
    def guide() -> None:
        k = pyro.sample("k", dist.Categorical(TOP), infer={"enumerate": "sequential"})
        pyro.sample("j", dist.Categorical(BELOW[k]), infer={"enumerate": "parallel"})

    cells = torch.stack([TOP[k] * BELOW[k, j] for k, j in product(range(3), range(2))])
    found = guide_entropy(guide, num_samples=500, seed=0)
    assert abs(found.value + float((cells * cells.log()).sum())) < 5 * found.stderr


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_a_straight_through_relaxation_is_the_relaxation(alpha: float) -> None:
    """In unconstrained coordinates its draws are rounded, its density is not."""
    options: dict[str, Any] = {"alpha": alpha, "space": "unconstrained", "num_samples": 2000, "seed": 1}
    smooth, hard = (
        guide_entropy(lambda kind=kind: pyro.sample("z", kind(torch.tensor(0.5), torch.tensor(0.3))), **options)
        for kind in (dist.RelaxedBernoulli, dist.RelaxedBernoulliStraightThrough)
    )
    assert abs(smooth.value - hard.value) < 5 * math.hypot(smooth.stderr, hard.stderr)


def test_a_mixture_of_real_numbers_is_its_own_unconstrained_coordinate() -> None:
    def guide() -> None:
        parts = dist.Normal(torch.tensor([-1.0, 1.0]), 0.5)
        pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts))

    found = [guide_entropy(guide, space=space, seed=2) for space in ("constrained", "unconstrained")]
    assert found[0] == found[1]


def test_an_infinite_member_makes_a_joint_entropy_infinite() -> None:
    def guide() -> None:
        a = pyro.sample("a", dist.Gamma(0.3, 1.0))
        pyro.sample("b", dist.Normal(a, 1.0))

    def model() -> None:
        pyro.sample("a", dist.Gamma(1.0, 1.0))
        pyro.sample("b", dist.Normal(0.0, 1.0))

    elbo = BaNEL_ELBO(-0.3, alpha=2.0, num_particles=5, vectorize_particles=True)
    with pytest.raises(ValueError, match=r"site 'a'.*Gamma is -inf"):
        elbo.loss(model, guide)


@pytest.mark.parametrize("form", [TraceObjective, EnumObjective])
def test_an_objective_of_ones_own_has_a_name_that_stays(form: Any) -> None:
    """Its record must not hold an address in memory, or no other process could go on with the run."""
    from banel_pyro.training.options import describe_objective

    class Mine(form):  # type: ignore[misc,valid-type]
        pass

    objective = Mine(0.0)
    objective.f, objective.sizes = math.exp, (1, 2)
    said = describe_objective(objective)
    assert " at 0x" not in said
    assert "f=math.exp" in said
    assert "sizes=[1, 2]" in said
