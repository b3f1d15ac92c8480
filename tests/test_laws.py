"""The laws over all cases: equality with Pyro, the tempered guide, unbiased gradients, entry points."""

import pytest

from tests import laws
from tests.cases import AXES, CASES, Case, all_combinations, why_not

pytestmark = pytest.mark.usefixtures("float64")

each_case = pytest.mark.parametrize("case", CASES, ids=str)
one_lam = pytest.mark.parametrize("case", [case for case in CASES if case.lam == "number"], ids=str)


def test_the_cases_span_every_combination_that_exists() -> None:
    combinations = list(all_combinations())
    assert len(combinations) == 384
    assert len(CASES) == 216
    assert sum(why_not(case) is not None for case in combinations) == 384 - 216
    for axis, values in AXES.items():
        assert {getattr(case, axis) for case in CASES} == set(values)


@one_lam
def test_zero_is_pyro(case: Case) -> None:
    laws.law_zero_is_pyro(case)


@each_case
def test_tempered_guide(case: Case) -> None:
    laws.law_tempered_guide(case)


@each_case
def test_unbiased(case: Case) -> None:
    laws.law_unbiased(case, draws={"1": 150, "4": 50, "4 vectorised": 100}[case.particles])


@each_case
def test_entry_points_agree(case: Case) -> None:
    laws.law_entry_points_agree(case)
