"""The code broken on purpose: each mutant must fail a law, or the law protects nothing."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from banel_pyro.entropy import shannon as entropy_module
from banel_pyro.objectives import banel
from banel_pyro.objectives import trace as trace_form
from banel_pyro.objectives.trace import Costs
from banel_pyro.terms import Summand
from tests import laws
from tests.cases import CASES, Case

Patch = Callable[[pytest.MonkeyPatch], None]


def no_score_term(patch: pytest.MonkeyPatch) -> None:
    """Score-function sites get no gradient."""
    patch.setattr(Costs, "of", lambda self, stack, name: torch.zeros(()))


def no_jacobian(patch: pytest.MonkeyPatch) -> None:
    """The entropy of an auxiliary + Delta pair is that of the auxiliary alone."""
    original = entropy_module.density_entropy
    patch.setattr(
        "banel_pyro.objectives.bound.density_entropy",
        lambda density, mode: original(replace(density, deltas=(), unconstrained=True), mode),
    )


def closed_form_unscaled(patch: pytest.MonkeyPatch) -> None:
    """Closed-form entropies ignore plates and poutine.scale."""
    original = entropy_module.scale_and_mask
    patch.setattr(entropy_module, "scale_and_mask", lambda x, scale, mask: original(x, 1.0, mask))


def mask_ignored(patch: pytest.MonkeyPatch) -> None:
    """Closed-form entropies ignore masks."""
    original = entropy_module.scale_and_mask
    patch.setattr(entropy_module, "scale_and_mask", lambda x, scale, mask: original(x, scale, None))


def entropy_detached(patch: pytest.MonkeyPatch) -> None:
    """The penalty has a value and no gradient of its own."""
    original = banel.EntropyWeighted.penalty
    patch.setattr(
        banel.EntropyWeighted, "penalty", lambda self, bound: [replace(s, surrogate=0.0) for s in original(self, bound)]
    )


def sign_flipped(patch: pytest.MonkeyPatch) -> None:
    """Entropy is rewarded where it should be penalised."""
    original = banel.EntropyWeighted.penalty
    patch.setattr(
        banel.EntropyWeighted, "penalty", lambda self, bound: [s.weighted(-1.0) for s in original(self, bound)]
    )


def child_entropy_missing(patch: pytest.MonkeyPatch) -> None:
    """Closed-form terms stay out of the cost of score-function parents."""

    def costs(summands: list[Summand]) -> Costs:
        return Costs([s for s in summands if s.owner is None])

    patch.setattr(trace_form, "Costs", costs)


def own_entropy_counted_twice(patch: pytest.MonkeyPatch) -> None:
    """The expectation of a closed form is differentiated as if it were a draw: log q enters with both weights."""
    original = entropy_module._minus_log_q
    patch.setattr(entropy_module, "_minus_log_q", lambda site: original(site).weighted(2.0))


def plate_factor_squared(patch: pytest.MonkeyPatch) -> None:
    """Closed-form entropies are scaled twice."""
    original = entropy_module.scale_and_mask
    patch.setattr(entropy_module, "scale_and_mask", lambda x, scale, mask: original(x, scale * scale, mask))


def _pick(**wanted: Any) -> Case:
    return next(case for case in CASES if all(getattr(case, name) == value for name, value in wanted.items()))


PLAIN = {"guide": "plain", "particles": "1", "lam": "number"}
SCORE = _pick(**PLAIN, estimator="score", subsampled=False, scaled=False, masked=False)
SMOOTH = _pick(**PLAIN, estimator="reparameterised", subsampled=False, scaled=False, masked=False)
SUBSAMPLED = _pick(**PLAIN, estimator="reparameterised", subsampled=True, scaled=False, masked=False)
SCALED = _pick(**PLAIN, estimator="reparameterised", subsampled=False, scaled=True, masked=False)
MASKED = _pick(**PLAIN, estimator="reparameterised", subsampled=False, scaled=False, masked=True)

unbiased = partial(laws.law_unbiased, draws=2000)
sampled = partial(laws.law_unbiased, draws=600, entropy="monte_carlo")

MUTANTS: dict[str, tuple[Patch, Callable[[], None]]] = {
    "no score term": (no_score_term, partial(unbiased, SCORE, draws=400)),
    "no Jacobian": (no_jacobian, laws.law_positive_site),
    "closed form unscaled (plate)": (closed_form_unscaled, partial(unbiased, SUBSAMPLED)),
    "closed form unscaled (scale)": (closed_form_unscaled, partial(unbiased, SCALED)),
    "plate factor squared": (plate_factor_squared, partial(unbiased, SUBSAMPLED)),
    "mask ignored": (mask_ignored, partial(unbiased, MASKED)),
    "entropy detached": (entropy_detached, partial(unbiased, SMOOTH)),
    "sign flipped": (sign_flipped, partial(unbiased, SMOOTH)),
    "sign flipped, against Pyro": (sign_flipped, partial(laws.law_tempered_guide, SMOOTH)),
    "child entropy missing in the parent's cost": (child_entropy_missing, laws.law_child_entropy_reaches_the_parent),
    "log q counted twice": (own_entropy_counted_twice, partial(sampled, SMOOTH)),
}
"""Each mutant, and the law that must notice it."""
