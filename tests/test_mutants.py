"""Every mutant fails its law, and the code as it stands passes it."""

import pytest

from tests import diagnostic_mutants, generator_mutants, mutants, negative_mutants

MUTANTS = mutants.MUTANTS | diagnostic_mutants.MUTANTS | generator_mutants.MUTANTS | negative_mutants.MUTANTS

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_fails_its_law(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate, law = MUTANTS[name]
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        law()


@pytest.mark.parametrize("name", MUTANTS)
def test_the_law_holds_without_the_mutant(name: str) -> None:
    MUTANTS[name][1]()
