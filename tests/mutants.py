"""The code broken on purpose: each mutant must fail a law, or the law protects nothing."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from banel_pyro.capture import flat, graphs, optimizers
from banel_pyro.entropy import enumerated, joint
from banel_pyro.entropy import shannon as entropy_module
from banel_pyro.objectives import BaNEL_ELBO, BaNEL_TraceEnum_ELBO, BaNEL_TraceGraph_ELBO, banel, graph
from banel_pyro.objectives import enum as enum_form
from banel_pyro.objectives import trace as trace_form
from banel_pyro.objectives.trace import Costs
from banel_pyro.terms import Summand
from banel_pyro.training.loop_graphs import LoopGraphs
from tests import laws
from tests.cases import CASES, Case
from tests.test_forms import test_loss_and_gradient_of_dependent_sites as dependent_sites
from tests.test_forms import test_subsampled_plates_have_the_expectation_of_full_ones as batches
from tests.test_forms import test_terms_of_a_guide_that_is_summed_over_are_the_exact_sums as exact_rows

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


# ---- Rényi entropies and the other forms ------------------------------------------------------------------------


def no_score_term_of_renyi(patch: pytest.MonkeyPatch) -> None:
    """A Rényi entropy from draws that are not reparameterised has the gradient of its value alone."""
    patch.setattr(joint, "_score_function", lambda site: None)


def renyi_estimate_detached(patch: pytest.MonkeyPatch) -> None:
    """A Rényi entropy from draws has its score term alone."""
    original = joint.renyi_from_log_q
    patch.setattr(joint, "renyi_from_log_q", lambda log_q, alpha, dim: original(log_q.detach(), alpha, dim))


def closed_renyi_unscaled(patch: pytest.MonkeyPatch) -> None:
    """Rényi entropies in closed form ignore plates."""
    original = joint.scale_and_mask
    patch.setattr(joint, "scale_and_mask", lambda x, scale, mask: original(x, 1.0, mask))


def sums_of_renyi_entropies(patch: pytest.MonkeyPatch) -> None:
    """Rényi entropies of dependent sites are added."""
    patch.setattr(banel, "components", lambda parents: [(name,) for name in parents])


def first_site_alone(patch: pytest.MonkeyPatch) -> None:
    """The joint log q of dependent sites is that of the first of them."""
    original = joint._from_particles
    patch.setattr(joint, "_from_particles", lambda q, alpha: original(q[:1], alpha))


def order_ignored(patch: pytest.MonkeyPatch) -> None:
    """The penalty is Shannon's entropy whatever the order."""
    original = banel.EntropyWeighted.__init__
    patch.setattr(
        banel.EntropyWeighted, "__init__", lambda self, lam, alpha=1.0, **options: original(self, lam, **options)
    )


def no_provenance(patch: pytest.MonkeyPatch) -> None:
    """In the graph form no site pays for anything."""
    patch.setattr(graph, "get_provenance", lambda value: frozenset())


def own_provenance_alone(patch: pytest.MonkeyPatch) -> None:
    """In the graph form a global site does not pay for the local ones."""
    original = graph.get_provenance
    patch.setattr(graph, "get_provenance", lambda x: original(x) - (frozenset({"k"}) if x.dim() else frozenset()))


def baseline_of_the_current_draw(patch: pytest.MonkeyPatch) -> None:
    """The decaying average holds the gain from which it is subtracted."""
    original = graph.decaying_average
    patch.setattr(graph, "decaying_average", lambda *args: beta_mean(original(*args), *args[1:]))


def beta_mean(old: Tensor, gain: Tensor, beta: float) -> Tensor:
    """The average after a step."""
    return beta * old + (1 - beta) * gain


def baseline_untrained(patch: pytest.MonkeyPatch) -> None:
    """The loss that trains a baseline is left out."""
    original = graph.baseline_of
    patch.setattr(graph, "baseline_of", lambda site, gain: (original(site, gain)[0], 0.0))


def penalty_missing_downstream(patch: pytest.MonkeyPatch) -> None:
    """In the graph form the entropies are in nobody's cost."""
    patch.setattr(
        graph.GraphTotals,
        "loss_summands",
        property(lambda self: [s.weighted(-1.0) for s in self.bound.log_likelihood] + self.bound.kl),
    )


def no_power_of_renyi(patch: pytest.MonkeyPatch) -> None:
    """The sum over all values is of q, not of q to the power of alpha."""
    original = enumerated._power
    patch.setattr(enumerated, "_power", lambda site, alpha: original(site, 1.0))


def mask_ignored_by_enumeration(patch: pytest.MonkeyPatch) -> None:
    """Sums over all values ignore masks."""
    original = enumerated._power

    def power(site: Any, alpha: float) -> Tensor:
        return original({**site, "packed": {**site["packed"], "mask": None}}, alpha)

    patch.setattr(enumerated, "_power", power)


def enumeration_unscaled(patch: pytest.MonkeyPatch) -> None:
    """Sums over all values ignore the factor of a subsampled plate."""
    patch.setattr(enumerated, "common_scale", lambda densities, alpha: 1.0)


def values_unweighted(patch: pytest.MonkeyPatch) -> None:
    """The entropies of enumerated sites are summed over values without their probabilities."""
    patch.setattr(enum_form.EnumTotals, "_expected", lambda self, summands: enum_form.total(summands))


def rows_unweighted(patch: pytest.MonkeyPatch) -> None:
    """The terms of a row are those of the last of the enumerated values."""
    patch.setattr(enum_form, "marginal", lambda summand, trace: summand.value[-1])


# ---- captured steps -----------------------------------------------------------------------------------------------


def first_lam_for_ever(patch: pytest.MonkeyPatch) -> None:
    """A captured step has the λ with which it was traced."""
    original = LoopGraphs.step
    patch.setattr(LoopGraphs, "step", lambda self, index, lam, **options: original(self, index, 0.02, **options))


def first_rows_for_ever(patch: pytest.MonkeyPatch) -> None:
    """A captured step has the rows of the first one."""
    original = LoopGraphs.step
    rows = torch.arange(5)
    patch.setattr(LoopGraphs, "step", lambda self, index, lam, **options: original(self, rows, lam, **options))


def optimiser_at_its_second_step(patch: pytest.MonkeyPatch) -> None:
    """The bias corrections of a captured Adam stay those of its first captured step."""
    original = optimizers.GraphOptimizer.numbers
    patch.setattr(optimizers.GraphOptimizer, "numbers", lambda self, ahead=False: original(self, ahead=True))


def unchecked(patch: pytest.MonkeyPatch) -> None:
    """Nothing holds the graph against the eager step."""
    patch.setattr(graphs, "check_same", lambda *args: None)


def effects_dropped(patch: pytest.MonkeyPatch) -> None:
    """What a step writes in place, and nobody reads in it, is taken out of the graph."""
    patch.setattr(flat, "_is_effect", lambda node: node.op in ("placeholder", "output"))


def _pick(**wanted: Any) -> Case:
    return next(case for case in CASES if all(getattr(case, name) == value for name, value in wanted.items()))


PLAIN = {"guide": "plain", "particles": "1", "lam": "number"}
SCORE = _pick(**PLAIN, estimator="score", subsampled=False, scaled=False, masked=False)
GRAPH = replace(SCORE, form=BaNEL_TraceGraph_ELBO)
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
    "no score term of Rényi": (no_score_term_of_renyi, partial(dependent_sites, BaNEL_ELBO, -1.0, 2.0)),
    "no score term of Rényi (graph)": (
        no_score_term_of_renyi,
        partial(dependent_sites, BaNEL_TraceGraph_ELBO, -1.0, 0.5),
    ),
    "Rényi estimate detached": (renyi_estimate_detached, partial(dependent_sites, BaNEL_ELBO, -1.0, 2.0)),
    "closed form of Rényi unscaled": (closed_renyi_unscaled, partial(batches, BaNEL_TraceEnum_ELBO, 2.0, False, False)),
    "sum of Rényi entropies": (sums_of_renyi_entropies, partial(dependent_sites, BaNEL_TraceEnum_ELBO, 2.0, 2.0)),
    "joint log q of one site": (first_site_alone, partial(dependent_sites, BaNEL_ELBO, -1.0, 0.5)),
    "order ignored": (order_ignored, partial(dependent_sites, BaNEL_TraceEnum_ELBO, 0.5, 2.0)),
    "no provenance": (no_provenance, partial(unbiased, GRAPH, draws=150)),
    "own provenance alone": (own_provenance_alone, partial(unbiased, GRAPH, draws=150)),
    "baseline of the current draw": (
        baseline_of_the_current_draw,
        partial(laws.law_unbiased_with_baselines, "decaying average"),
    ),
    "baseline untrained": (baseline_untrained, partial(laws.law_zero_is_pyro_with_baselines, "network")),
    "penalty missing downstream": (
        penalty_missing_downstream,
        partial(laws.law_child_entropy_reaches_the_parent, BaNEL_TraceGraph_ELBO, draws=200),
    ),
    "no power of Rényi": (no_power_of_renyi, partial(dependent_sites, BaNEL_TraceEnum_ELBO, 0.5, 2.0)),
    "mask ignored by enumeration": (
        mask_ignored_by_enumeration,
        partial(batches, BaNEL_TraceEnum_ELBO, 2.0, True, True),
    ),
    "enumeration unscaled": (enumeration_unscaled, partial(batches, BaNEL_TraceEnum_ELBO, 0.5, False, True)),
    "values unweighted": (values_unweighted, partial(dependent_sites, BaNEL_TraceEnum_ELBO, 0.5, 1.0)),
    "values unweighted in the rows": (rows_unweighted, exact_rows),
    "captured: the first λ for ever": (first_lam_for_ever, laws.law_captured_run_is_the_eager_one),
    "captured: the first rows for ever": (first_rows_for_ever, laws.law_captured_run_is_the_eager_one),
    "captured: Adam stays at its second step": (optimiser_at_its_second_step, laws.law_captured_run_is_the_eager_one),
    "captured: unchecked": (unchecked, laws.law_captured_randomness_is_refused),
    "captured: effects dropped": (effects_dropped, laws.law_captured_run_is_the_eager_one),
}
"""Each mutant, and the law that must notice it."""
