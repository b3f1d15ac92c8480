"""What the laws run over: every combination of guide, estimator, plate, scale, mask, lambda and particles.

Two families of problems, each with its exact loss: a Gaussian one, whose expectations are quadratic, and a
discrete one, which is enumerated. `models.normal_normal`, `models.gaussian_regression`, `models.beta_bernoulli`,
`models.eight_schools`, `models.vae` and `models.hierarchical_vae`, `models.logistic`, `models.radon`, `models.mixture`
and `models.kidiq` join them where a law is about the pairs themselves.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import log, pi
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, AutoNormalMessenger
from torch import Tensor
from torch.distributions import transform_to

from banel_pyro.objectives import BaNEL_ELBO, BaNEL_TraceEnum_ELBO, BaNEL_TraceGraph_ELBO
from models import (
    beta_bernoulli,
    eight_schools,
    gaussian_regression,
    hierarchical_vae,
    kidiq,
    logistic,
    mixture,
    normal_normal,
    radon,
    vae,
)

PAIRS = {
    "normal_normal": normal_normal.pair,
    "full_rank": gaussian_regression.full_rank,
    "mean_field": gaussian_regression.mean_field,
    "beta_bernoulli": beta_bernoulli.pair,
    "noncentered": eight_schools.noncentered,
    "centered": eight_schools.centered,
    "digits": vae.digits,
    "mnist": vae.mnist,
    "static_mnist": vae.static_mnist,
    "hierarchical_digits": hierarchical_vae.digits,
    "hierarchical_mnist": hierarchical_vae.mnist,
    "logistic": logistic.pair,
    "radon": radon.pair,
    "mixture": mixture.pair,
    "kidiq_raw": kidiq.raw,
    "kidiq_mean_field": kidiq.mean_field,
    "kidiq_full_rank": kidiq.full_rank,
    "kidiq_flow": kidiq.flow,
}
"""All pairs of `models/`."""

FORMS: dict[type, type] = {
    BaNEL_ELBO: Trace_ELBO,
    BaNEL_TraceGraph_ELBO: TraceGraph_ELBO,
    BaNEL_TraceEnum_ELBO: TraceEnum_ELBO,
}
"""Each form of the objective, and what it is in Pyro at lambda = 0."""

OBJECTIVES = {form.__name__: form for form in FORMS}
"""All objectives: each is held to every law below by the exact loss of every case."""

X = (0.3, -1.2, 2.0, 0.7, -0.4, 1.1)
MASK = (True, True, False, True, False, True)
SCALE = 2.5
BATCH = 2
LOG_2PI = log(2 * pi)

Weights = dict[str, float]
Exact = Callable[[dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Problem:
    """A model, a guide, and the exact loss as a function of the constrained parameters."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    exact: Exact

    def parameters(self) -> dict[str, Tensor]:
        """The unconstrained parameters, created and set to values away from any optimum."""
        store = pyro.get_param_store()
        poutine.block(self.guide)()
        generator = torch.Generator().manual_seed(7)
        for name in sorted(store._params):
            with torch.no_grad():
                value = store._params[name]
                value.copy_(0.4 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
        return dict(store._params)

    def exact_loss(self, parameters: dict[str, Tensor]) -> Tensor:
        """The exact loss as a function of the unconstrained parameters."""
        kinds = pyro.get_param_store()._constraints
        return self.exact({name: transform_to(kinds[name])(value) for name, value in parameters.items()})


@dataclass(frozen=True)
class Case:
    """One combination. `estimator` is how the gradient of the guide's sites is estimated, `form` which ELBO does it."""

    estimator: str  # reparameterised | score
    guide: str  # plain | AutoNormal | AutoMultivariateNormal | messenger
    subsampled: bool
    scaled: bool
    masked: bool
    lam: str  # number | per_site
    particles: str  # 1 | 4 | 4 vectorised
    form: type = BaNEL_ELBO
    enumerated: bool = False  # the discrete sites of the guide are summed over

    def __str__(self) -> str:
        form = [] if self.form is BaNEL_ELBO else [self.form.__name__, *["enumerated"] * self.enumerated]
        flags = [name for name in ("subsampled", "scaled", "masked") if getattr(self, name)]
        return "-".join([*form, self.estimator, self.guide, *flags, self.lam, self.particles.replace(" ", "_")])

    @property
    def pyro_form(self) -> type:
        """What the objective is in Pyro at lambda = 0."""
        return FORMS[self.form]

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of an ELBO for this case's particles."""
        # plates are counted once, at the first call, with draws of its own: said here, every call draws alike
        many = {"num_particles": 4, "vectorize_particles": "vectorised" in self.particles, "max_plate_nesting": 1}
        if self.particles != "1":
            return many
        return {"max_plate_nesting": 1} if self.form is BaNEL_TraceEnum_ELBO else {}

    @property
    def weights(self) -> Any:
        """Lambda: a number, or a mapping that leaves one site out and rewards another."""
        if self.lam == "number":
            return 0.4
        if self.estimator == "score":
            return {"k": 0.3, "z": -0.5}
        return {"_AutoMultivariateNormal_latent": -0.5} if self.guide == "AutoMultivariateNormal" else {"z": -0.5}

    def weight_of(self, site: str) -> float:
        """Lambda of one site."""
        return self.weights.get(site, 0.0) if isinstance(self.weights, dict) else self.weights

    def build(self) -> Problem:
        """A fresh problem; needs an empty param store."""
        return _gaussian(self) if self.estimator == "reparameterised" else _discrete(self)

    def plate(self) -> Any:
        """The data plate."""
        return pyro.plate("data", len(X), subsample_size=BATCH if self.subsampled else None, dim=-1)

    def local(self, rows: Tensor) -> Any:
        """The context of the local sites: scale and mask."""
        context = poutine.scale(scale=SCALE) if self.scaled else poutine.scale(scale=1.0)
        mask = torch.tensor(MASK)[rows] if self.masked else torch.ones(len(rows), dtype=torch.bool)
        return _both(context, poutine.mask(mask=mask))

    def factors(self, *, guide: bool) -> Tensor:
        """Weight of each row in the exact loss; an autoguide does not see scales and masks inside the model."""
        if guide and self.guide.startswith("Auto"):
            return torch.ones(len(X))
        mask = torch.tensor(MASK, dtype=torch.get_default_dtype()) if self.masked else torch.ones(len(X))
        return mask * (SCALE if self.scaled else 1.0)


class _both:
    def __init__(self, *contexts: Any) -> None:
        self.contexts = contexts

    def __enter__(self) -> None:
        for context in self.contexts:
            context.__enter__()

    def __exit__(self, *error: Any) -> None:
        for context in reversed(self.contexts):
            context.__exit__(*error)


AXES = {
    "estimator": ("reparameterised", "score"),
    "guide": ("plain", "AutoNormal", "AutoMultivariateNormal", "messenger"),
    "subsampled": (False, True),
    "scaled": (False, True),
    "masked": (False, True),
    "lam": ("number", "per_site"),
    "particles": ("1", "4", "4 vectorised"),
}


def why_not(case: Case) -> str | None:
    """Why a combination does not exist, or None if it does."""
    if case.estimator == "score" and case.guide != "plain":
        return "Pyro's autoguides and messenger guides are reparameterised"
    if case.guide == "AutoMultivariateNormal" and case.subsampled:
        return "a joint density over local latents of a subsampled plate is refused: Pyro scales it wrongly"
    return None


def all_combinations() -> Iterator[Case]:
    """Every combination of the axes."""
    return (Case(*values) for values in product(*AXES.values()))


CASES = [case for case in all_combinations() if why_not(case) is None]


def why_not_elsewhere(case: Case) -> str | None:
    """Why the other forms leave a case out, or None if they take it."""
    if case.guide == "messenger":
        return "Pyro's TraceEnum_ELBO knows no messenger guides"
    if case.particles == "4":
        return "a loop over particles is the same code in all forms"
    flags = case.subsampled + case.scaled + case.masked
    if flags == 2 or (flags == 1 and case.guide != "plain"):
        return "what is right alone and all together is right in pairs"
    return None


FORM_CASES = [
    replace(case, form=form, enumerated=enumerated)
    for form in FORMS
    if form is not BaNEL_ELBO
    for case in CASES
    if why_not_elsewhere(case) is None
    for enumerated in ((False, True) if form is BaNEL_TraceEnum_ELBO and case.estimator == "score" else (False,))
]
"""The cases of the other forms."""


# ---- the Gaussian family: a ~ N(0, 1), z_i ~ N(a, 1), x_i ~ N(z_i, 1) ------------------------------------------


def _gaussian(case: Case) -> Problem:
    x = torch.tensor(X)

    def model() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with case.plate() as rows, case.local(rows):
            z = pyro.sample("z", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def plain() -> None:
        m, u, w = (pyro.param(name, torch.tensor(0.1)) for name in ("m", "u", "w"))
        s, t = (pyro.param(name, torch.tensor(0.5), constraint=constraints.positive) for name in ("s", "t"))
        a = pyro.sample("a", dist.Normal(m, s))
        with case.plate() as rows, case.local(rows):
            pyro.sample("z", dist.Normal(u * x[rows] + w * a, t))

    guides: dict[str, Callable[[], Any]] = {
        "plain": lambda: plain,
        "AutoNormal": lambda: AutoNormal(model, create_plates=lambda: case.plate()),
        "AutoMultivariateNormal": lambda: AutoMultivariateNormal(model),
        "messenger": lambda: AutoNormalMessenger(model),
    }
    return Problem(model, guides[case.guide](), lambda parameters: _gaussian_loss(case, parameters))


def _moments(case: Case, p: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the guide's joint Gaussian over (a, z_1, ..., z_N)."""
    n = len(X)
    if case.guide == "plain":
        mean = torch.cat([p["m"].reshape(1), p["u"] * torch.tensor(X) + p["w"] * p["m"]])
        load = torch.cat([torch.ones(1), p["w"].expand(n)])
        own = torch.cat([torch.zeros(1), p["t"].expand(n) ** 2])
        return mean, p["s"] ** 2 * torch.outer(load, load) + torch.diag(own)
    if case.guide == "AutoMultivariateNormal":
        tril = p["AutoMultivariateNormal.scale"][:, None] * p["AutoMultivariateNormal.scale_tril"]
        return p["AutoMultivariateNormal.loc"], tril @ tril.T
    prefix = "AutoNormal." if case.guide == "AutoNormal" else ""
    loc, scale = (torch.cat([p[f"{prefix}{k}.a"].reshape(1), p[f"{prefix}{k}.z"]]) for k in ("locs", "scales"))
    return loc, torch.diag(scale**2)


def _gaussian_entropies(case: Case, p: dict[str, Tensor], covariance: Tensor) -> dict[str, Tensor]:
    """Exact entropies by density, local ones weighted as the guide weights them."""
    constant = (1 + LOG_2PI) / 2
    if case.guide == "AutoMultivariateNormal":
        return {"_AutoMultivariateNormal_latent": torch.logdet(covariance) / 2 + len(covariance) * constant}
    local = p["t"].log().expand(len(X)) if case.guide == "plain" else covariance.diagonal()[1:].log() / 2
    a = covariance[0, 0].log() / 2 + constant
    return {"a": a, "z": (case.factors(guide=True) * (local + constant)).sum()}


def _gaussian_loss(case: Case, p: dict[str, Tensor]) -> Tensor:
    mean, covariance = _moments(case, p)
    variance = covariance.diagonal()
    gap = mean[1:] - mean[0]
    square_gap = gap**2 + variance[1:] + variance[0] - 2 * covariance[0, 1:]
    square_error = (torch.tensor(X) - mean[1:]) ** 2 + variance[1:]
    log_prior = -(LOG_2PI + mean[0] ** 2 + variance[0]) / 2
    log_local = case.factors(guide=False) * (-(2 * LOG_2PI + square_gap + square_error) / 2)
    entropies = _gaussian_entropies(case, p, covariance)
    loss = -log_prior - log_local.sum()
    for site, entropy in entropies.items():
        loss = loss - (1 - case.weight_of(site)) * entropy
    return loss


# ---- the discrete family: k ~ B(0.3), b_i ~ B(0.6), z_i ~ N(k + b_i, 1), x_i ~ N(z_i, 1) ------------------------

PRIOR_K, PRIOR_B = 0.3, 0.6


def _discrete(case: Case) -> Problem:
    x = torch.tensor(X)

    def model() -> None:
        k = pyro.sample("k", dist.Bernoulli(torch.tensor(PRIOR_K)))
        with case.plate() as rows, case.local(rows):
            b = pyro.sample("b", dist.Bernoulli(torch.tensor(PRIOR_B)))
            z = pyro.sample("z", dist.Normal(k + b, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide() -> None:
        p = {name: pyro.param(name, torch.tensor(0.1)) for name in DISCRETE_PARAMETERS}
        k = pyro.sample("k", dist.Bernoulli(logits=p["rho"]))
        with case.plate() as rows, case.local(rows):
            b = pyro.sample("b", dist.Bernoulli(logits=_logit_b(p, x[rows], k)))
            pyro.sample("z", dist.Normal(_loc_z(p, x[rows], k, b), _log_sd_z(p, k, b).exp()))

    form = config_enumerate(guide) if case.enumerated else guide
    return Problem(model, form, lambda parameters: _discrete_loss(case, parameters))


DISCRETE_PARAMETERS = ("rho", "beta", "gamma", "u", "v", "w", "tau", "kappa", "eta")


def _logit_b(p: dict[str, Tensor], x: Tensor, k: Any) -> Tensor:
    return p["beta"] * x + p["gamma"] * k


def _loc_z(p: dict[str, Tensor], x: Tensor, k: Any, b: Any) -> Tensor:
    return p["u"] * x + p["v"] * k + p["w"] * b


def _log_sd_z(p: dict[str, Tensor], k: Any, b: Any) -> Tensor:
    return p["tau"] + p["kappa"] * k + p["eta"] * b


def _discrete_loss(case: Case, p: dict[str, Tensor]) -> Tensor:
    x, factors = torch.tensor(X), case.factors(guide=True)
    lam = {site: case.weight_of(site) for site in ("k", "b", "z")}
    loss = torch.zeros(())
    for k in (0.0, 1.0):
        log_qk = dist.Bernoulli(logits=p["rho"]).log_prob(torch.tensor(k))
        cost = (1 - lam["k"]) * log_qk - dist.Bernoulli(torch.tensor(PRIOR_K)).log_prob(torch.tensor(k))
        for b in (0.0, 1.0):
            log_qb = dist.Bernoulli(logits=_logit_b(p, x, k)).log_prob(torch.tensor(b))
            log_pb = dist.Bernoulli(torch.tensor(PRIOR_B)).log_prob(torch.tensor(b))
            loc, log_sd = _loc_z(p, x, k, b), _log_sd_z(p, k, b)
            variance = (2 * log_sd).exp()
            log_p = -(2 * LOG_2PI + (loc - k - b) ** 2 + (x - loc) ** 2 + 2 * variance) / 2
            entropy = log_sd + (1 + LOG_2PI) / 2
            row = (1 - lam["b"]) * log_qb - log_pb - log_p - (1 - lam["z"]) * entropy
            cost = cost + (factors * log_qb.exp() * row).sum()
        loss = loss + log_qk.exp() * cost
    return loss
