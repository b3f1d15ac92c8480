"""Baselines of score-function sites in the graph form: Pyro's numbers, batches of any size, and runs that resume."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, TraceGraph_ELBO
from torch import Tensor, nn

from banel_pyro import BaNEL_TraceGraph_ELBO, FitResult, Pair
from tests.laws import assert_mean
from tests.test_resume import Stop, differing, outcome

pytestmark = pytest.mark.usefixtures("float64")

N = 7
AVERAGE = "__baseline_avg_downstream_cost_k"
DECAYING = {"use_decaying_avg_baseline": True, "baseline_beta": 0.8}


def rows(size: int = N) -> Tensor:
    return torch.linspace(-1.0, 2.0, size)


def model(x: Tensor) -> None:
    with pyro.plate("data", N, subsample_size=len(x)):
        k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.3)))
        z = pyro.sample("z", dist.Normal(k, 1.0))
        pyro.sample("x", dist.Normal(2 * z + 5.0, 1.0), obs=x)


def guide_with(x: Tensor, baseline: dict[str, Any]) -> None:
    a, b = pyro.param("a", torch.tensor(0.1)), pyro.param("b", torch.tensor(-0.2))
    with pyro.plate("data", N, subsample_size=len(x)):
        k = pyro.sample("k", dist.Bernoulli(logits=a * x + b), infer={"baseline": baseline})
        pyro.sample("z", dist.Normal(pyro.param("c", torch.tensor(0.5)) * k, 1.0))


def plain(x: Tensor) -> None:
    guide_with(x, {})


def decaying(x: Tensor) -> None:
    guide_with(x, DECAYING)


def neural(x: Tensor) -> None:
    pyro.module("network", NETWORK[0])
    guide_with(x, {"nn_baseline": NETWORK[0], "nn_baseline_input": x})


def by_value(x: Tensor) -> None:
    pyro.module("network", NETWORK[0])
    guide_with(x, {"baseline_value": NETWORK[0](x)})


def both(x: Tensor) -> None:
    pyro.module("network", NETWORK[0])
    guide_with(x, {"nn_baseline": NETWORK[0], "nn_baseline_input": x} | DECAYING)


class Baseline(nn.Module):
    """One number for each row, from the row."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x[:, None])[:, 0]


NETWORK: list[nn.Module] = []
"""The network of the running test."""


@pytest.fixture(autouse=True)
def _network(float64: torch.dtype) -> None:
    NETWORK[:] = [Baseline()]


def average() -> Tensor:
    """What the store holds for site k."""
    return pyro.get_param_store()._params[AVERAGE].detach().clone()


def parameters() -> list[Tensor]:
    """a, b and c."""
    if "a" not in pyro.get_param_store()._params:
        plain(rows())
    return [pyro.get_param_store()._params[name] for name in "abc"]


def gradients(elbo: Any, guide: Callable[..., Any], x: Tensor) -> tuple[float, list[Tensor]]:
    """One estimate of the loss and its gradient in a, b and c."""
    for parameter in parameters():
        parameter.grad = None
    loss = elbo.loss_and_grads(model, guide, x)
    return loss, [torch.as_tensor(p.grad).clone() for p in parameters()]


def exact_slopes(lam: float, alpha: float) -> list[Tensor]:
    """Of the loss over all rows, in a, b and c, by enumeration."""
    x = rows()
    a, b, c = p = [value.detach().clone().requires_grad_() for value in parameters()]
    logits = a * x + b
    loss = torch.zeros(())
    for k in (0.0, 1.0):
        log_q = dist.Bernoulli(logits=logits).log_prob(torch.tensor(k))
        log_p = dist.Bernoulli(torch.tensor(0.3)).log_prob(torch.tensor(k))
        cost = log_q - log_p + (c * k - k) ** 2 / 2 + ((x - 2 * c * k - 5) ** 2 + 4) / 2
        loss = loss + (log_q.exp() * cost).sum()
    one = torch.sigmoid(logits)
    entropy = dist.Bernoulli(one).entropy() if alpha == 1 else (one**alpha + (1 - one) ** alpha).log() / (1 - alpha)
    return list(torch.autograd.grad(loss + lam * entropy.sum(), p))


# ---- as in Pyro -----------------------------------------------------------------------------------------------

PARTICLES: dict[str, dict[str, Any]] = {
    "1": {},
    "3": {"num_particles": 3},
    "3 vectorised": {"num_particles": 3, "vectorize_particles": True},
}
ON_K = {"k": 0.4}
"""A λ of k alone: z depends on it, so that with α ≠ 1 both together would take several draws."""
BATCHES = ([0, 1, 2], [3, 4, 5], [1, 0, 6], [2, 2, 5])


@pytest.mark.parametrize(
    ("guide", "particles"),
    [(guide, p) for guide in (plain, decaying, neural, by_value, both) for p in ("1", "3")]
    + [(decaying, "3 vectorised")],
)
def test_without_a_penalty_it_is_pyro_s(guide: Callable[..., Any], particles: str) -> None:
    """Losses, averages and all parameters, those of the network among them, after several steps under a seed."""
    initial = {name: value.clone() for name, value in NETWORK[0].state_dict().items()}
    found = []
    for kind in (BaNEL_TraceGraph_ELBO, TraceGraph_ELBO):
        NETWORK[0].load_state_dict(initial)
        elbo = kind(max_plate_nesting=1, **PARTICLES[particles])
        with pyro.get_param_store().scope():
            pyro.set_rng_seed(4)
            svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.003}), elbo)
            losses = [svi.step(rows()[index]) for index in BATCHES]
            found.append((losses, {n: p.detach().clone() for n, p in pyro.get_param_store()._params.items()}))
    (ours, store), (theirs, expected) = found
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-10, atol=0)
    assert store.keys() == expected.keys()
    assert (AVERAGE in store) == (guide in (decaying, both))
    assert ("network$$$net.weight" in store) == (guide in (neural, by_value, both))
    for name, value in store.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-12, msg=lambda m, n=name: n + m)


def test_the_network_is_trained_to_the_gain() -> None:
    """The loss that it gets is the squared distance to what depends on the site, and reaches nothing else."""
    x = rows()
    parameters()
    bias = NETWORK[0].net.bias
    found = []
    for value in (0.0, 1.0):
        torch.nn.init.constant_(bias, value)
        bias.grad = None
        pyro.set_rng_seed(1)
        gradients(BaNEL_TraceGraph_ELBO(ON_K), neural, x)
        found.append(float(torch.as_tensor(bias.grad)))
    gain = float(gain_of(1, N).sum())
    outputs = float((NETWORK[0](x).detach() - 1.0).sum())
    # d/db of Σ (gain - w x - b)²
    assert found[0] == pytest.approx(-2 * (gain - outputs), rel=1e-9)
    assert found[1] - found[0] == pytest.approx(2 * N, rel=1e-9)


def test_the_network_trains_nothing_but_itself() -> None:
    """Not what its input is made of."""
    parameters()
    found = []
    for cut in (True, False):

        def guide(x: Tensor, cut: bool = cut) -> None:
            given = pyro.param("a") * x
            guide_with(x, {"nn_baseline": NETWORK[0], "nn_baseline_input": given.detach() if cut else given})

        pyro.set_rng_seed(1)
        found.append(gradients(BaNEL_TraceGraph_ELBO(ON_K), guide, rows())[1])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


# ---- batches of any size --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(3, 3, 1, 3), (1, 3), (3, 5, 1, 2, 7), (2, 2, 7, 1)])
@pytest.mark.parametrize("guide", [decaying, plain])
def test_batches_of_any_size_move_their_positions(guide: Callable[..., Any], sizes: tuple[int, ...]) -> None:
    """beta · old + (1 - beta) · gain at the first positions; new ones begin at the mean of what there is."""
    elbo = BaNEL_TraceGraph_ELBO(ON_K)
    parameters()
    expected = torch.zeros(sizes[0])
    for step, size in enumerate(sizes):
        pyro.set_rng_seed(step)
        _, found = gradients(elbo, guide, rows()[:size])
        assert all(bool(g.isfinite()) for g in found)
        if guide is plain:
            assert AVERAGE not in pyro.get_param_store()._params
            continue
        if size > len(expected):
            expected = torch.cat([expected, expected.mean().expand(size - len(expected))])
        stored = average()
        assert stored.numel() == len(expected)
        gain = (stored.reshape(-1) - 0.8 * expected)[:size] / 0.2
        torch.testing.assert_close(gain, gain_of(step, size))
        torch.testing.assert_close(stored.reshape(-1)[size:], expected[size:])
        expected = stored.reshape(-1)


def gain_of(seed: int, size: int) -> Tensor:
    """What depends on k in -loss, by row, under a seed: the ELBO, all of it; the entropy of k is in closed form."""
    pyro.set_rng_seed(seed)
    terms = BaNEL_TraceGraph_ELBO(ON_K).terms_per_datum(model, plain, rows()[:size])
    return torch.as_tensor(terms.elbo) * N / size


def test_a_network_takes_a_batch_of_one_row() -> None:
    """As the last batch of an epoch may be: its number then stands for one row, not for none."""
    elbo = BaNEL_TraceGraph_ELBO(ON_K)
    parameters()
    for size in (3, 1, 3):
        _, found = gradients(elbo, neural, rows()[:size])
        assert all(bool(g.isfinite()) for g in found)


def test_pyro_s_own_does_not_take_a_smaller_batch() -> None:
    """Why this form has a decaying average of its own; if Pyro mends it, this test says so."""
    elbo = TraceGraph_ELBO()
    gradients(elbo, decaying, rows()[:3])
    with pytest.raises(ValueError, match="Expected baseline at site k"):
        gradients(elbo, decaying, rows()[:1])


def test_two_plates_of_which_one_is_the_batch() -> None:
    """The average has both axes, wherever the batch is, one row or more."""
    for dim in (-1, -2):
        other = -3 - dim

        def both_plates(size: int, dim: int = dim, other: int = other) -> None:
            with pyro.plate("data", N, subsample_size=size, dim=dim), pyro.plate("kinds", 2, dim=other):
                logits = pyro.param("a", torch.tensor(0.1)).expand(2, 2)[:1, :1]
                pyro.sample("k", dist.Bernoulli(logits=logits), infer={"baseline": DECAYING})

        with pyro.get_param_store().scope():
            elbo = BaNEL_TraceGraph_ELBO(0.3)
            for size, kept in ((3, 3), (1, 3), (2, 3), (4, 4), (1, 4)):
                elbo.loss_and_grads(both_plates, both_plates, size)
                shape = (2, kept) if dim == -1 else (kept, 2)
                assert average().shape == shape


@pytest.mark.parametrize("alpha", [1.0, 2.0])
@pytest.mark.parametrize("guide", [decaying, neural], ids=lambda guide: guide.__name__)
def test_gradients_of_batches_of_any_size_are_unbiased(guide: Callable[..., Any], alpha: float) -> None:
    elbo = BaNEL_TraceGraph_ELBO({"k": -0.7}, alpha=alpha)
    exact = exact_slopes(-0.7, alpha)
    sizes = (3, 2, 5) if guide is neural else (3, 1, 5)
    found = []
    for _ in range(50):
        each = [gradients(elbo, guide, rows()[torch.randperm(N)[:size]])[1] for size in sizes]
        found.append([torch.stack(parts).mean() for parts in zip(*each, strict=True)])
    for i, slope in enumerate(exact):
        assert_mean([gradient[i] for gradient in found], slope)


def test_a_decaying_average_lowers_the_variance() -> None:
    """Costs of about 45 that differ by 10: what is left of the noise is less than a tenth."""

    def far(baseline: dict[str, Any]) -> None:
        with pyro.plate("data", 5):
            logits = pyro.param("b", torch.tensor(0.2)).expand(5)
            pyro.sample("k", dist.Bernoulli(logits=logits), infer={"baseline": baseline})

    def far_model(baseline: dict[str, Any]) -> None:
        with pyro.plate("data", 5):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(k, 1.0), obs=torch.full((5,), 10.0))

    spread = []
    for baseline in ({}, DECAYING):
        with pyro.get_param_store().scope():
            elbo, found = BaNEL_TraceGraph_ELBO(0.3), []
            for _ in range(120):
                elbo.loss_and_grads(far_model, far, baseline)
                parameter = pyro.get_param_store()._params["b"]
                found.append(torch.as_tensor(parameter.grad).clone())
                parameter.grad = None
            spread.append(torch.stack(found[20:]).var())
    assert spread[1] < spread[0] / 10


# ---- what leaves it alone -------------------------------------------------------------------------------------


def test_looking_never_moves_the_average() -> None:
    elbo = BaNEL_TraceGraph_ELBO(ON_K, alpha=2.0)
    svi = SVI(model, decaying, pyro.optim.SGD({"lr": 0.01}), elbo)
    looks: dict[str, Callable[[], Any]] = {
        "loss": lambda: elbo.loss(model, decaying, rows()),
        "terms": lambda: elbo.terms(model, decaying, rows()),
        "terms_per_datum": lambda: elbo.terms_per_datum(model, decaying, rows()),
        "site_entropies": lambda: elbo.site_entropies(model, decaying, rows()),
        "estimators": lambda: elbo.estimators(model, decaying, rows()),
        "evaluate_loss": lambda: svi.evaluate_loss(rows()),
    }
    for look in looks.values():
        look()
    assert AVERAGE not in pyro.get_param_store()._params
    svi.step(rows())
    before = average()
    assert bool((before != 0).all())
    for name, look in looks.items():
        look()
        assert torch.equal(average(), before), name
    elbo.differentiable_loss(model, decaying, rows())  # this is a step's
    assert not torch.equal(average(), before)


# ---- refusals -------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"use_decaying_average": True}, r"use_decaying_average"),
    "both": (
        {"nn_baseline": lambda x: x, "nn_baseline_input": torch.zeros(N), "baseline_value": torch.zeros(N)},
        r"site 'k': give nn_baseline or baseline_value in infer\['baseline'\], not both",
    ),
    "scalar": (
        {"baseline_value": torch.tensor(0.3)},
        r"site 'k': the baseline has shape \(\), but what it stands for \(7,\), that of its plates. Return one number",
    ),
    "column": (
        {"nn_baseline": lambda x: x[:, None], "nn_baseline_input": torch.zeros(N)},
        r"site 'k': the baseline has shape \(7, 1\), but what it stands for \(7,\)",
    ),
    "other rows": ({"baseline_value": torch.zeros(N - 1)}, r"the baseline has shape \(6,\).*\(7,\)"),
    "with an average": ({"baseline_value": torch.zeros(N - 1)} | DECAYING, r"the baseline has shape \(6,\).*\(7,\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_baselines_are_refused(case: str) -> None:
    options, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        gradients(BaNEL_TraceGraph_ELBO(0.3), lambda x: guide_with(x, options), rows())
    assert AVERAGE not in pyro.get_param_store()._params


# ---- fit ------------------------------------------------------------------------------------------------------


def of_rows(x: Tensor, baseline: dict[str, Any], size: int) -> None:
    with pyro.plate("data", size):
        k = pyro.sample(
            "k", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.1)) * x), infer={"baseline": baseline}
        )
        pyro.sample("z", dist.Normal(pyro.param("c", torch.tensor(0.5)) * k, 1.0))


def pair(kind: str, size: int) -> Pair:
    """Batches of 3 do not divide the rows."""
    torch.manual_seed(2)
    network = Baseline()

    def fitted_model(x: Tensor) -> None:
        with pyro.plate("data", size):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.3)))
            z = pyro.sample("z", dist.Normal(k, 1.0))
            pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)

    def fitted_guide(x: Tensor) -> None:
        options: dict[str, Any] = {}
        if kind in ("neural", "both"):
            pyro.module("network", network)
            options = {"nn_baseline": network, "nn_baseline_input": x}
        of_rows(x, options | (DECAYING if kind in ("decaying", "both") else {}), size)

    return Pair(fitted_model, fitted_guide, data=lambda: rows(size))


KINDS = {"decaying": N, "neural": 8, "both": 8}
OPTIONS: dict[str, Any] = {
    "steps": 14, "batch_size": 3, "lr": 0.05, "log_every": 2, "checkpoint_every": 5, "posterior_samples": 0,
    "progress": False, "seed": 5,
}  # fmt: skip


def train(kind: str, folder: Path | None, *, stop: int | None = None, **options: Any) -> FitResult:
    def lam(step: int, last_terms: Any) -> dict[str, float]:
        if step == stop:
            raise Stop
        return {"k": 0.1 if last_terms is None else 0.1 + 0.01 * abs(last_terms.kl) / (1 + abs(last_terms.kl))}

    objective = BaNEL_TraceGraph_ELBO(alpha=2.0)
    return pair(kind, KINDS[kind]).fit(**OPTIONS | {"objective": objective, "lam": lam, "out": folder} | options)


@pytest.mark.parametrize("stop", [2, 8])
@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_equals_the_uninterrupted_one(kind: str, fresh: bool, stop: int, tmp_path: Path) -> None:
    """Bit for bit, its average among the rest, in a store of its own or in that of the stopped run."""
    with pyro.get_param_store().scope():
        expected = outcome(train(kind, None))
    assert (f"param {AVERAGE}" in expected) == (kind != "neural")
    with pyro.get_param_store().scope():
        with pytest.raises(Stop):
            train(kind, tmp_path / "run", stop=stop)
        if fresh or kind != "decaying":  # those of modules are refused in an old store
            pyro.clear_param_store()
        resumed = outcome(train(kind, tmp_path / "run", resume=True))
    assert differing(expected, resumed) == []
    with pyro.get_param_store().scope():
        loaded = outcome(FitResult.load(tmp_path / "run", pair(kind, KINDS[kind])))
    assert {name for name in differing(resumed, loaded) if AVERAGE not in name} == set()


def test_the_average_is_a_step_s_and_no_parameter_of_the_optimiser() -> None:
    """Weight decay and a scheduler leave it alone; it is what the gains of the batches make it."""
    found = []
    for options in ({}, {"optim": lambda p: torch.optim.SGD(p, lr=1e-9, weight_decay=1e3)}, {"clip_norm": 1e-6}):
        with pyro.get_param_store().scope():
            train("decaying", None, lam={"k": 0.1}, lr=None if "optim" in options else 1e-9, **options)
            assert pyro.get_param_store()._params[AVERAGE].grad is None
            found.append(average())
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-4, atol=1e-4)


def test_held_out_rows_and_the_record_leave_it_alone() -> None:
    """A run that is judged at every step ends with the average of one that is not."""
    found = []
    for options in ({}, {"validation": torch.zeros(4), "validate_every": 2}, {"log_every": 1}):
        with pyro.get_param_store().scope():
            train("decaying", None, lam={"k": 0.1}, **options)
            found.append(average())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
