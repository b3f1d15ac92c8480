"""Learning from failures broken on purpose: as in `mutants.py`, each must fail a law."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from banel_pyro.negative import LikelihoodRatio, Region, Regions, SuccessRate, success, threshold
from banel_pyro.negative.posterior import ExplorationPosterior, Tally
from banel_pyro.negative.score import Batch, scored
from banel_pyro.report import log_ratio
from banel_pyro.terms import Estimate
from tests import (
    test_negative_distil,
    test_negative_posterior,
    test_negative_region,
    test_negative_report,
    test_negative_success,
)

Patch = Callable[[pytest.MonkeyPatch], None]


def ratio_turned_round(patch: pytest.MonkeyPatch) -> None:
    """The ratio is p_phi / p_theta: what is like the failures is kept."""
    original = LikelihoodRatio.terms
    patch.setattr(LikelihoodRatio, "terms", lambda self, batch: tuple(-term for term in original(self, batch)))


def exponent_forgotten(patch: pytest.MonkeyPatch) -> None:
    """The failure model counts with 1 whatever kappa is."""
    patch.setattr(
        LikelihoodRatio, "terms", lambda self, batch: (batch.log_prob(self.base), -batch.log_prob(self.failures))
    )


def threshold_rejected(patch: pytest.MonkeyPatch) -> None:
    """Scores at the threshold are rejected."""
    patch.setattr(Region, "rejects_batch", lambda self, batch: scored(self.score, batch)[0].double() <= self.log_tau)


def rounding_ignored(patch: pytest.MonkeyPatch) -> None:
    """Scores that differ in the last bits are no tie."""
    patch.setattr(threshold, "_rounding", lambda scores, sizes: 0.0)


def last_region_alone(patch: pytest.MonkeyPatch) -> None:
    """The newest region takes the place of those before it."""

    def which(self: Regions, batch: Batch) -> Tensor:
        return torch.where(self[-1].rejects_batch(batch), len(self) - 1, -1)

    patch.setattr(Regions, "which_batch", which)


def rejected_draws_not_counted(patch: pytest.MonkeyPatch) -> None:
    """The acceptance is the share of the accepted draws that were accepted."""
    original = Tally.add
    patch.setattr(Tally, "add", lambda self, which: original(self, which[which < 0]))


def batches_of_one_kind(patch: pytest.MonkeyPatch) -> None:
    """A batch that has an accepted draw is accepted whole."""
    original = ExplorationPosterior._draw

    def draw(self: ExplorationPosterior, wanted: int) -> object:
        for raw, which in original(self, wanted):
            yield raw, torch.full_like(which, -1) if bool((which < 0).any()) else which

    patch.setattr(ExplorationPosterior, "_draw", draw)


def one_sided(patch: pytest.MonkeyPatch) -> None:
    """The p-value of the signed ranks is that of one side."""
    original = log_ratio._signed_ranks
    patch.setattr(log_ratio, "_signed_ranks", lambda d: original(d) / 2)


def not_exact(patch: pytest.MonkeyPatch) -> None:
    """The interval of a rate is Wilson's, which covers less than it says."""
    kind = type(binomtest(1, 2))
    original = kind.proportion_ci
    patch.setattr(kind, "proportion_ci", lambda self, level, method: original(self, level, "wilson"))


def posterior_unnormalised(patch: pytest.MonkeyPatch) -> None:
    """The divergence is from the base's density, as if all draws were accepted."""
    patch.setattr(ExplorationPosterior, "acceptance", property(lambda self: Estimate(1.0, 0.0)))


def tail_of_the_other_end(patch: pytest.MonkeyPatch) -> None:
    """The ends of the interval have the whole error each."""
    original = success.clopper_pearson
    patch.setattr(
        success, "clopper_pearson", lambda count, draws, confidence: original(count, draws, 2 * confidence - 1)
    )
    patch.setattr(test_negative_success, "clopper_pearson", success.clopper_pearson)


def lost_successes_counted(patch: pytest.MonkeyPatch) -> None:
    """P(accept | success) is the share of the successes, whatever their weight."""
    patch.setattr(
        SuccessRate, "accepted_by", lambda self, region: float((~region.rejects(self.successes)).double().mean())
    )


MUTANTS: dict[str, tuple[Patch, Callable[[], None]]] = {
    "negative: ratio turned round": (ratio_turned_round, test_negative_region.law_failures_are_rejected),
    "negative: exponent forgotten": (
        exponent_forgotten,
        partial(test_negative_region.test_the_ratio_is_that_of_the_definition, 2.0),
    ),
    "negative: threshold rejected": (threshold_rejected, test_negative_region.law_strict),
    "negative: rounding ignored": (
        rounding_ignored,
        test_negative_region.test_a_copy_that_differs_by_rounding_rejects_nothing,
    ),
    "negative: last region alone": (last_region_alone, test_negative_region.law_union),
    "negative: rejected draws not counted": (
        rejected_draws_not_counted,
        test_negative_posterior.law_acceptance_is_counted,
    ),
    "negative: posterior unnormalised": (
        posterior_unnormalised,
        test_negative_distil.test_enough_draws_and_epochs_make_it_the_posterior,
    ),
    "negative: tail of the other end": (
        tail_of_the_other_end,
        partial(test_negative_success.test_clopper_and_pearson_against_quantiles, 7, 0.95),
    ),
    "negative: successes without weight": (lost_successes_counted, test_negative_success.test_accepted_given_success),
    "negative: rejected draws kept": (batches_of_one_kind, test_negative_posterior.law_sampler),
    "negative: one-sided test": (one_sided, test_negative_report.test_the_paired_test_is_students_and_wilcoxons),
    "negative: interval not exact": (
        not_exact,
        partial(
            test_negative_report.test_measurements_of_one_rate_are_pooled,
            (8, 5, 11),
            20000,
        ),
    ),
}
