"""The laws over all cases: equality with Pyro, the tempered guide, unbiased gradients, entry points."""

from collections import Counter

import pytest

from tests import laws
from tests.cases import AXES, CASES, FORM_CASES, FORMS, Case, all_combinations, why_not

pytestmark = [
    pytest.mark.usefixtures("float64"),
    # of guides that have nothing to enumerate
    pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites"),
]

EVERY = [*CASES, *FORM_CASES]
each_case = pytest.mark.parametrize("case", EVERY, ids=str)
# the slowest law, over half of them
ONE_LAM_A_SIZE = [case for case in FORM_CASES if (case.lam == "number") == (case.particles == "1")]
one_lam = pytest.mark.parametrize("case", [case for case in EVERY if case.lam == "number"], ids=str)


def test_the_cases_span_every_combination_that_exists() -> None:
    combinations = list(all_combinations())
    assert len(combinations) == 384
    assert len(CASES) == 216
    assert sum(why_not(case) is not None for case in combinations) == 384 - 216
    for axis, values in AXES.items():
        assert {getattr(case, axis) for case in CASES} == set(values)


def test_the_other_forms_take_each_axis_too() -> None:
    found = Counter((case.form.__name__, case.estimator, case.enumerated) for case in FORM_CASES)
    assert found == {
        ("BaNEL_TraceGraph_ELBO", "reparameterised", False): 32,
        ("BaNEL_TraceGraph_ELBO", "score", False): 20,
        ("BaNEL_TraceEnum_ELBO", "reparameterised", False): 32,
        ("BaNEL_TraceEnum_ELBO", "score", False): 20,
        ("BaNEL_TraceEnum_ELBO", "score", True): 20,
    }
    for axis, values in AXES.items():
        assert {getattr(case, axis) for case in FORM_CASES} == set(values) - {"messenger", "4"}


@one_lam
def test_zero_is_pyro(case: Case) -> None:
    laws.law_zero_is_pyro(case)


@each_case
def test_tempered_guide(case: Case) -> None:
    laws.law_tempered_guide(case)


@pytest.mark.parametrize("case", [*CASES, *ONE_LAM_A_SIZE], ids=str)
def test_unbiased(case: Case) -> None:
    draws = {"1": 150, "4": 50, "4 vectorised": 100}[case.particles]
    laws.law_unbiased(case, draws=draws if case in CASES else 50)


@pytest.mark.parametrize("form", FORMS)
def test_child_entropy_reaches_the_parent(form: type) -> None:
    laws.law_child_entropy_reaches_the_parent(form, draws=200)


@pytest.mark.parametrize("kind", laws.BASELINES)
def test_baselines_are_those_of_pyro(kind: str) -> None:
    laws.law_zero_is_pyro_with_baselines(kind)


@pytest.mark.parametrize("kind", laws.BASELINES)
def test_unbiased_with_baselines(kind: str) -> None:
    laws.law_unbiased_with_baselines(kind)


@each_case
def test_entry_points_agree(case: Case) -> None:
    laws.law_entry_points_agree(case)
