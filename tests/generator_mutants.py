"""Generators broken on purpose: as in `mutants.py`, each must fail a law."""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from banel_pyro.evaluate import elbo_per_datum
from banel_pyro.negative import pairs
from models import decoder, transformer
from tests import test_negative_adapters, test_transformer

Patch = Callable[[pytest.MonkeyPatch], None]


def future_seen(patch: pytest.MonkeyPatch) -> None:
    """Attention of whole sequences is not causal."""
    original = decoder.F.scaled_dot_product_attention
    patch.setattr(decoder.F, "scaled_dot_product_attention", lambda q, k, v, is_causal=False: original(q, k, v))


def end_ignored(patch: pytest.MonkeyPatch) -> None:
    """What follows the end of a sequence counts."""
    patch.setattr(transformer, "ended_before", lambda x, end: torch.zeros_like(x, dtype=torch.bool))


def other_rows_kept(patch: pytest.MonkeyPatch) -> None:
    """Sequences go on with the keys and values of others."""
    original = decoder.Cache.keep
    patch.setattr(decoder.Cache, "keep", lambda self, rows: original(self, rows.flip(0)))


def place_of_the_first(patch: pytest.MonkeyPatch) -> None:
    """A position after cached ones is embedded as if it were the first."""
    original = decoder.TokenDecoder.states

    def states(self: Any, tokens: Tensor, cache: Any = None, extra: Any = None) -> Tensor:
        first = self.place[:1].detach().expand_as(self.place)
        with mock.patch.object(self, "place", self.place if cache is None else torch.nn.Parameter(first)):
            return original(self, tokens, cache, extra)

    patch.setattr(decoder.TokenDecoder, "states", states)


def bound_for_evidence(patch: pytest.MonkeyPatch) -> None:
    """log p(x) is the mean of log weights."""
    patch.setattr(pairs, "iwae_per_datum", elbo_per_datum)


def numbers_by_row(patch: pytest.MonkeyPatch) -> None:
    """Candidates are drawn for with numbers of their own, by where they stand."""
    patch.setattr(pairs._SharedNumbers, "_pyro_sample", lambda self, msg: None)


MUTANTS: dict[str, tuple[Patch, Callable[[], None]]] = {
    "the future seen": (
        future_seen,
        partial(test_transformer.test_teacher_forcing_agrees_with_sampling_step_by_step, None, 4, torch.float64),
    ),
    "the end ignored": (end_ignored, partial(test_transformer.test_probabilities_sum_to_one, 2, torch.float64)),
    "other rows kept": (
        other_rows_kept,
        partial(test_transformer.test_rows_that_have_ended_change_no_other, torch.float64),
    ),
    "place of the first": (
        place_of_the_first,
        partial(test_transformer.test_cached_sampling_is_uncached_sampling, None, 4, torch.float64),
    ),
    "bound for evidence": (
        bound_for_evidence,
        partial(test_negative_adapters.test_evidence_of_a_linear_pair_is_exact_within_its_error, torch.float64),
    ),
    "numbers by row": (
        numbers_by_row,
        partial(test_negative_adapters.test_a_candidate_has_one_number_whatever_it_is_evaluated_with, torch.float64),
    ),
}
