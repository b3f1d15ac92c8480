"""What entropies cost: the terms alone over torch's own, and steps of the graph and enum forms over Pyro's."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO, TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate
from pyro.infer.util import zero_grads
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import constraints

from banel_pyro import BaNEL_TraceEnum_ELBO, BaNEL_TraceGraph_ELBO
from banel_pyro.entropy import closed_form_entropy, renyi_entropy
from demos.benchmark.comparison import Call, Comparison, compare
from demos.benchmark.ways import LAM
from models import data

ORDERS = (0.5, 1.01, 2.0)
SHANNON_BAR, RENYI_BAR, STEP_BAR = 1.2, 1.5, 1.05
CATEGORIES, DIMENSIONS, NORMALS = 100_000, 512, (1024, 64)
ROWS, BITS, CLUSTERS, COMPONENTS = 128, 8, 10, 3

Entropy = Callable[[Any], Any]


@dataclass(frozen=True)
class Family:
    """A distribution whose entropy is timed.

    Args:
        leaf: The parameter that the entropy is differentiated with respect to.
        make: A distribution of that parameter. Each call gets a new one: torch's keep what they have worked out.
    """

    leaf: Tensor
    make: Callable[[Tensor], Any]


def families() -> dict[str, Family]:
    """The distributions by name."""
    tril = torch.eye(DIMENSIONS) + 0.01 * torch.rand(DIMENSIONS, DIMENSIONS).tril()
    mean, loc = torch.zeros(DIMENSIONS), torch.zeros(NORMALS)
    found = {
        "Categorical, logits": Family(torch.randn(CATEGORIES), lambda leaf: dist.Categorical(logits=leaf)),
        "Categorical, probs": Family(torch.rand(CATEGORIES) + 0.1, lambda leaf: dist.Categorical(probs=leaf)),
        "MultivariateNormal": Family(tril, lambda leaf: dist.MultivariateNormal(mean, scale_tril=leaf)),
        "Normal": Family(torch.rand(NORMALS) + 0.1, lambda leaf: dist.Normal(loc, leaf)),
    }
    for family in found.values():
        family.leaf.requires_grad_()
    return found


ENTROPIES: dict[str, Entropy] = {
    "torch": lambda fn: fn.entropy(),
    "ours": closed_form_entropy,
    **{f"alpha = {alpha:g}": partial(renyi_entropy, alpha=alpha) for alpha in ORDERS},
}


@contextmanager
def entropy_call(family: Family, entropy: Entropy, *, backward: bool) -> Iterator[Call]:
    """A call that takes an entropy of a new distribution and, with ``backward``, its gradient."""
    fn = family.make(family.leaf)
    yield lambda: torch.autograd.grad(entropy(fn).sum(), family.leaf) if backward else entropy(fn)


def entropies_table(repeats: int, calls: int) -> Comparison:
    """The time of an entropy term, forward alone and with its gradient."""
    results = {}
    for name, family in families().items():
        for part, backward in (("forward", False), ("and backward", True)):
            ways = {way: partial(entropy_call, family, e, backward=backward) for way, e in ENTROPIES.items()}
            results[f"{name}, {part}"] = compare(ways, repeats=repeats, calls=calls)
    bars = {"ours": SHANNON_BAR} | dict.fromkeys([way for way in ENTROPIES if way.startswith("alpha")], RENYI_BAR)
    # a step takes the gradient too: the value alone is shown, and has no bar
    return Comparison("µs a call", 1e6, "torch", bars, results, [name for name in results if name.endswith("forward")])


# The problems of the graph form: score-function sites with a baseline, on a batch of digits.
BASELINE = {"baseline": {"use_decaying_avg_baseline": True}}


class Bits(PyroModule):
    """The model: bits for each image, and pixels from them."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.decode = nn.Linear(BITS, pixels)

    def forward(self, x: Tensor) -> None:
        """Sample z, observe x."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=x.new_zeros(BITS)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decode(z)).to_event(1), obs=x)


class Clusters(PyroModule):
    """The model: a cluster for each image, and pixels from that cluster's picture."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.pictures = nn.Parameter(0.1 * torch.randn(CLUSTERS, pixels))

    def forward(self, x: Tensor) -> None:
        """Sample z, observe x."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=x.new_zeros(CLUSTERS)))
            pyro.sample("x", dist.Bernoulli(logits=self.pictures[z]).to_event(1), obs=x)


class Recognition(PyroModule):
    """The guide of either: a network from an image to the logits of its bits, or of its cluster."""

    def __init__(self, pixels: int, *, bits: bool) -> None:
        super().__init__()
        self.bits, self.encode = bits, nn.Linear(pixels, BITS if bits else CLUSTERS)

    def forward(self, x: Tensor) -> None:
        """Sample z given x."""
        with pyro.plate("data", len(x)):
            logits = self.encode(x)
            fn = dist.Bernoulli(logits=logits).to_event(1) if self.bits else dist.Categorical(logits=logits)
            pyro.sample("z", fn, infer=BASELINE)


# The problems of the enum form: a mixture of normals for the petals of iris, k summed out here or there.
def mixture(x: Tensor) -> None:
    """The model: weights, locations and scales of the components, and a component for each flower."""
    weights = pyro.sample("weights", dist.Dirichlet(2 * x.new_ones(COMPONENTS)))
    locations = pyro.sample("locations", dist.Normal(x.new_full((COMPONENTS,), 4.0), 2.0).to_event(1))
    scales = pyro.sample("scales", dist.LogNormal(x.new_full((COMPONENTS,), -1.0), 0.5).to_event(1))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locations[k], scales[k]), obs=x)


def components_guide(x: Tensor) -> None:
    """Independent densities of weights, locations and scales."""
    start, sd = torch.tensor([2.0, 4.0, 5.5]), torch.full((COMPONENTS,), 0.1)
    concentration = pyro.param(
        "concentration", lambda: torch.full((COMPONENTS,), 40.0), constraint=constraints.positive
    )
    pyro.sample("weights", dist.Dirichlet(concentration))
    loc = pyro.param("loc", lambda: start)
    pyro.sample("locations", dist.Normal(loc, _positive("sd", sd)).to_event(1))
    log_scale = pyro.param("log_scale", lambda: torch.full((COMPONENTS,), -1.0))
    pyro.sample("scales", dist.LogNormal(log_scale, _positive("log_sd", sd)).to_event(1))


def assignments_guide(x: Tensor) -> None:
    """Those, and the component of each flower."""
    components_guide(x)
    logits = pyro.param("logits", lambda: torch.zeros(len(x), COMPONENTS))
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Categorical(logits=logits))


def _positive(name: str, start: Tensor) -> Tensor:
    value: Tensor = pyro.param(name, lambda: start, constraint=constraints.positive)
    return value


# A step of each.
@dataclass(frozen=True)
class StepProblem:
    """A model and a guide whose step is timed.

    Args:
        pair: Makes model and guide anew.
        rows: The batch.
        form: Pyro's ELBO.
        ours: Ours of the same form.
    """

    pair: Callable[[], tuple[Any, Any]]
    rows: Tensor
    form: type[ELBO]
    ours: Callable[..., ELBO]


def step_problems() -> dict[str, StepProblem]:
    """The problems by name."""
    (x,) = data.binarize((data.digits().train[:ROWS],))
    pixels = x.shape[1]
    petals = data.iris_petals().train
    graph, enum = (TraceGraph_ELBO, BaNEL_TraceGraph_ELBO), (TraceEnum_ELBO, BaNEL_TraceEnum_ELBO)
    return {
        "graph, 8 bits": StepProblem(lambda: (Bits(pixels), Recognition(pixels, bits=True)), x, *graph),
        "graph, 10 clusters": StepProblem(lambda: (Clusters(pixels), Recognition(pixels, bits=False)), x, *graph),
        "enum, clusters": StepProblem(
            lambda: (Clusters(pixels), config_enumerate(Recognition(pixels, bits=False))), x, *enum
        ),
        "enum, k in the guide": StepProblem(lambda: (mixture, config_enumerate(assignments_guide)), petals, *enum),
        "enum, k in the model": StepProblem(lambda: (config_enumerate(mixture), components_guide), petals, *enum),
    }


class Stepper:
    """Steps of one ELBO on a pair of its own, without an optimiser: loss, gradients, and their removal.

    Args:
        problem: The problem.
        elbo: The loss.
    """

    def __init__(self, problem: StepProblem, elbo: ELBO) -> None:
        self.rows, self.elbo = problem.rows, elbo
        self.model, self.guide = problem.pair()
        with pyro.get_param_store().scope() as self.store:
            elbo.loss(self.model, self.guide, self.rows)
            # not the values that a constraint makes of them
            self.parameters = [value for _, value in pyro.get_param_store().named_parameters()]

    def __call__(self) -> float:
        """One step."""
        loss: float = self.elbo.loss_and_grads(self.model, self.guide, self.rows)
        zero_grads(self.parameters)
        return loss

    @contextmanager
    def ready(self) -> Iterator[Call]:
        """In the parameter store of this pair."""
        with pyro.get_param_store().scope(self.store):
            yield self


def step_ways(problem: StepProblem) -> Mapping[str, Stepper]:
    """Pyro's form, and ours without a penalty, with Shannon's entropy, and with Rényi's."""
    options = {"max_plate_nesting": 1}
    return {
        "Pyro": Stepper(problem, problem.form(**options)),
        "lam = 0": Stepper(problem, problem.ours(lam=0.0, **options)),
        f"lam = {LAM}": Stepper(problem, problem.ours(lam=LAM, **options)),
        # it may have no minimum, which a few steps do not look for
        f"lam = {LAM}, alpha = 2": Stepper(problem, problem.ours(lam=LAM, alpha=2.0, allow_unbounded=True, **options)),
    }


def forms_table(repeats: int, calls: int) -> Comparison:
    """The time of a step in the graph and the enum form."""
    results = {}
    for name, problem in step_problems().items():
        ways = {way: stepper.ready for way, stepper in step_ways(problem).items()}
        results[name] = compare(ways, repeats=repeats, calls=calls)
    return Comparison("ms a step", 1e3, "Pyro", {"lam = 0": STEP_BAR, f"lam = {LAM}": STEP_BAR}, results)
