"""Diagnostics broken on purpose: as in `mutants.py`, each must fail a law."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from banel_pyro.diagnostics import (
    aggregate,
    corrected,
    held_out,
    predictive_check,
    psis,
    reference,
    row_posteriors,
    stored,
    weighted,
)
from banel_pyro.evaluate import iwae_per_datum
from tests import (
    test_held_out,
    test_importance,
    test_latent_report,
    test_loo,
    test_predictive_check,
    test_reference,
    test_trust,
)

Patch = Callable[[pytest.MonkeyPatch], None]


def one_weight_for_all_rows(patch: pytest.MonkeyPatch) -> None:
    """Independent rows share the product of their weights."""
    importance = import_module("banel_pyro.diagnostics.importance")  # the name is that of the function, too
    whole = weighted.Structure(frozenset(), frozenset({"z"}))
    patch.setattr(importance, "structure_of", lambda *args: whole)


def masks_ignored(patch: pytest.MonkeyPatch) -> None:
    """Masked terms count in the weights."""
    patch.setattr(weighted, "unscaled_log_prob", lambda site: site["unscaled_log_prob"])


def ratios_turned_round(patch: pytest.MonkeyPatch) -> None:
    """The tail that is fitted is that of 1/w."""
    original = psis._smooth_one
    patch.setattr(psis, "_smooth_one", lambda log_w: original(-log_w - (-log_w).max()))


def draws_not_weighted(patch: pytest.MonkeyPatch) -> None:
    """Corrected draws are the guide's."""
    flat = corrected.resampled
    patch.setattr(corrected, "resampled", lambda weights: flat(np.full_like(weights, -np.log(len(weights)))))


def reference_taken_as_independent(patch: pytest.MonkeyPatch) -> None:
    """The draws of a Markov chain count in full."""
    patch.setattr(reference, "_ess", lambda draws, method: np.full(draws.shape[-1], draws.shape[0] * draws.shape[1]))


def mixture_of_other_rows(patch: pytest.MonkeyPatch) -> None:
    """The aggregate posterior is that of the first rows in memory."""
    original = aggregate.log_aggregate
    patch.setattr(row_posteriors, "log_aggregate", lambda parts, points: original(parts[:1], points))


def rows_taken_for_draws(patch: pytest.MonkeyPatch) -> None:
    """The Monte-Carlo error has the spread between rows in it."""
    patch.setattr(aggregate, "_draws_error", lambda values: values.std((0, 1)) / np.sqrt(values[..., 0].size))


def marginals_of_each_row(patch: pytest.MonkeyPatch) -> None:
    """The total correlation is that of a row's posterior."""
    original = aggregate.decompose

    def broken(found: aggregate.LogDensities) -> Any:
        return original(replace(found, marginal=found.own))

    patch.setattr(import_module("banel_pyro.diagnostics.latent_report"), "decompose", broken)


def loo_of_the_guide(patch: pytest.MonkeyPatch) -> None:
    """Rows leave the guide, which is taken for the posterior: log p - log q is missing."""
    patch.setattr(test_loo.LOO, "_log_ratios", lambda log_lik, log_w: -log_lik)


def loo_correction_turned_round(patch: pytest.MonkeyPatch) -> None:
    """log q - log p."""
    patch.setattr(test_loo.LOO, "_log_ratios", lambda log_lik, log_w: -log_w[:, None] - log_lik)


def loo_keeps_the_row(patch: pytest.MonkeyPatch) -> None:
    """The row counts twice instead of not at all."""
    patch.setattr(test_loo.LOO, "_log_ratios", lambda log_lik, log_w: log_w[:, None] + log_lik)


def mean_log_for_log_mean(patch: pytest.MonkeyPatch) -> None:
    """The held-out score is the expected log likelihood, which is below the predictive density."""
    patch.setattr(held_out, "iwae_per_datum", lambda log_lik: log_lik.mean(axis=0))


def held_out_is_reweighted(patch: pytest.MonkeyPatch) -> None:
    """The score is that of a colder guide than the one that drew."""
    patch.setattr(held_out, "iwae_per_datum", lambda log_lik: iwae_per_datum(2 * log_lik) - iwae_per_datum(log_lik))


def ties_do_not_count(patch: pytest.MonkeyPatch) -> None:
    """p without the half of those that are equal."""
    original = predictive_check.mean_estimate
    patch.setattr(predictive_check, "mean_estimate", lambda share: original(np.floor(share)))


def coverage_without_weights(patch: pytest.MonkeyPatch) -> None:
    """The guide's intervals are held against its own draws."""
    patch.setattr(stored, "smooth", lambda log_w: psis.smooth(0.0 * log_w))


MUTANTS: dict[str, tuple[Patch, Callable[[], None]]] = {
    "one weight for all rows": (
        one_weight_for_all_rows,
        test_importance.test_every_row_of_a_local_pair_has_its_own_weight,
    ),
    "masks ignored by weights": (masks_ignored, test_importance.test_masked_rows_do_not_count_and_scales_neither),
    "ratios turned round": (
        ratios_turned_round,
        partial(test_importance.test_k_hat_of_a_tempered_normal_is_lambda, 0.4),
    ),
    "corrected draws not weighted": (
        draws_not_weighted,
        test_importance.test_a_guide_that_covers_too_little_passes_and_its_corrected_draws_do_not,
    ),
    "reference taken as independent": (
        reference_taken_as_independent,
        test_reference.test_errors_of_an_autocorrelated_reference_are_larger,
    ),
    "mixture of other rows": (
        mixture_of_other_rows,
        test_latent_report.test_the_report_does_not_depend_on_the_rows_in_memory,
    ),
    "rows taken for draws": (rows_taken_for_draws, test_latent_report.test_monte_carlo_errors_are_right_over_seeds),
    "marginals of each row": (
        marginals_of_each_row,
        test_latent_report.test_measures_are_those_of_quadrature_within_their_errors,
    ),
    "LOO of the guide": (
        loo_of_the_guide,
        partial(test_loo.test_loo_is_that_of_the_exact_posterior_at_every_lambda, 0.5),
    ),
    "LOO correction turned round": (
        loo_correction_turned_round,
        partial(test_loo.test_loo_is_that_of_the_exact_posterior_at_every_lambda, 0.3),
    ),
    "LOO keeps the row": (
        loo_keeps_the_row,
        partial(test_loo.test_loo_is_that_of_the_exact_posterior_at_every_lambda, 0.0),
    ),
    "mean of logs for log of mean": (
        mean_log_for_log_mean,
        partial(test_held_out.test_the_held_out_density_of_a_normal_guide_is_exact, -1.0, None),
    ),
    "held-out draws weighted": (
        held_out_is_reweighted,
        partial(test_held_out.test_the_held_out_density_of_a_normal_guide_is_exact, -1.0, None),
    ),
    "ties do not count": (ties_do_not_count, test_predictive_check.test_ties_count_half),
    "coverage without weights": (
        coverage_without_weights,
        partial(test_trust.test_coverage_follows_the_exact_curve, 0.4),
    ),
}
