"""The attack on an adder: questions are read as they are written, rewards are right, and training happens once."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from banel_pyro.negative import DrawnSuccesses, ListedSuccesses
from banel_pyro.seeding import fork_rng
from models import addition, questions
from models.addition import Reward, Sizes
from models.questions import END, PLUS, SYMBOLS, Parsed

TINY = Sizes(digits=2, examples=24_000, questions=4000, batch_size=32, target_width=32, attacker_width=16)


def tokens(*texts: str, length: int = 6) -> Tensor:
    """Texts as sequences, filled with ends."""
    rows = [[SYMBOLS.index(sign) for sign in text] for text in texts]
    return torch.tensor([row + [END] * (length - len(row)) for row in rows])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def use_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BANEL_CACHE", str(cache))


@pytest.mark.parametrize("digits", [1, 2, 5])
def test_questions_are_read_as_they_are_written(digits: int) -> None:
    with fork_rng(0):
        x = questions.draw_questions(2000, digits)
    found = questions.parse(x, digits)
    assert x.shape == (2000, 2 * digits + 2)
    assert found.valid.all()
    assert not found.zeros.any()
    assert questions.text(x) == [f"{a}+{b}=" for a, b in zip(found.a.tolist(), found.b.tolist(), strict=True)]
    lengths = torch.bincount(found.plus, minlength=digits + 1)[1:]
    assert (lengths - 2000 / digits).abs().max() < 4.5 * (2000 / digits) ** 0.5  # each length as likely as another


def test_what_is_valid() -> None:
    good = ["1+1=", "0+0=", "00+7=", "12+34=", "7+09=", "99+99="]
    bad = ["+1=", "1+=", "1=", "=", "1+1+1=", "123+1=", "1+123=", "11+11+", "111111"]
    found = questions.parse(tokens(*good, *bad), 2)
    assert found.valid.tolist() == [True] * len(good) + [False] * len(bad)
    assert found.a[:6].tolist() == [1, 0, 0, 12, 7, 99]
    assert found.b[:6].tolist() == [1, 0, 7, 34, 9, 99]
    assert found.zeros[:6].tolist() == [False, False, True, False, True, False]


def test_what_follows_the_end_does_not_count() -> None:
    x = tokens("1+1=", "1+1=")
    x[1, 4:] = torch.tensor([PLUS, 3])
    found = questions.parse(x, 2)
    assert found.valid.all()
    assert found.b.tolist() == [1, 1]


def test_sums_are_written_units_first_without_leading_zeros() -> None:
    a, b = torch.tensor([0, 5, 95, 99]), torch.tensor([0, 5, 5, 99])
    assert questions.sums(a, b, 2).tolist() == [
        [0, END, END, END], [0, 1, END, END], [0, 0, 1, END], [8, 9, 1, END],
    ]  # fmt: skip


def test_the_adder_sees_a_question_alike_wherever_it_stands() -> None:
    """Positions are counted from the end, place values within a number."""
    made = addition.target(TINY)
    x = tokens("7+12=", "37+1=", "07+1=")
    read, values = made.read(x, questions.parse(x, 2))
    assert read.tolist() == [[12, 7, PLUS, 1, 2, END], [12, 3, 7, PLUS, 1, END], [12, 0, 7, PLUS, 1, END]]
    assert values.tolist() == [[0, 1, 0, 2, 1, 0], [0, 2, 1, 0, 1, 0], [0, 2, 1, 0, 1, 0]]


def test_every_question_of_two_digits() -> None:
    x = questions.every_question(2)
    assert x.shape == (110**2, 6)
    assert len(set(questions.text(x))) == len(x)
    assert questions.parse(x, 2).valid.all()


def test_the_reward_is_one_for_valid_questions_with_a_wrong_answer() -> None:
    reward = Reward(addition.target(TINY), zeros=True)
    strict = Reward(addition.target(TINY), zeros=False)
    x = questions.every_question(2)
    parsed = questions.parse(x, 2)
    wrong = reward.target.wrong(x, parsed)
    assert reward(x).equal(wrong)
    assert strict(x).equal(wrong & ~parsed.zeros)
    assert 0 < wrong.double().mean() < 1
    assert not reward(tokens("1+=", "123+1=")).any()
    one_by_one = torch.cat([reward(x[i : i + 1]) for i in range(0, 12100, 1000)])  # batches do not matter
    assert one_by_one.equal(wrong[::1000])


def test_a_target_that_adds_is_never_wrong_and_one_that_does_not_is(monkeypatch: pytest.MonkeyPatch) -> None:
    made = addition.target(TINY)
    x = tokens("1+1=", "19+3=")
    parsed = questions.parse(x, 2)
    right = questions.sums(parsed.a, parsed.b, 2)
    monkeypatch.setattr(made.net, "complete", lambda *args, **kwargs: right)
    assert not made.wrong(x, parsed).any()
    padded = right.clone()
    padded[0, 1] = 0  # 02 in place of 2: equal as a number, and not the digits of the sum
    monkeypatch.setattr(made.net, "complete", lambda *args, **kwargs: padded)
    assert made.wrong(x, parsed).tolist() == [True, False]


def test_training_happens_once_and_the_cache_gives_it_back(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = addition.attacker(TINY)
    monkeypatch.setattr(addition, "_train", lambda *args, **kwargs: pytest.fail("trained again"))
    again = addition.attacker(TINY)
    assert all(a.equal(b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert not any(p.requires_grad for p in again.parameters())
    assert len(list(cache.glob("addition-attacker-*.pt"))) == 1
    with pytest.raises(pytest.fail.Exception, match="trained again"):  # other sizes are another file
        addition.attacker(replace(TINY, seed=9))


def test_the_target_learns() -> None:
    """From nothing, nearly every answer would be wrong."""
    with fork_rng(1):
        x = questions.draw_questions(2000, 2)
    assert addition.target(TINY).wrong(x, questions.parse(x, 2)).double().mean() < 0.8


def test_exact_success_rates_are_those_of_draws() -> None:
    task = addition.attack(TINY)
    x = questions.every_question(2)
    exact = ListedSuccesses(x[task.reward(x)])(task.generator)
    drawn = DrawnSuccesses(task.reward, draws=4000)(task.generator, seed=2)
    assert drawn.low <= exact.value <= drawn.high
    assert exact.reachable == len(x[task.reward(x)])


def test_tasks_say_what_they_are() -> None:
    task = addition.attack(TINY, zeros=False)
    assert task.name == "addition of 2 digits, no leading zeros"
    assert task.texts(tokens("12+3=")) == ["12+3="]
    assert isinstance(task.reward, Reward)
    assert not task.reward.zeros


def test_parsed_rows_go_together() -> None:
    parsed = questions.parse(tokens("1+1=", "12+3="), 2)
    assert {len(value) for value in vars(parsed).values()} == {2}
    assert isinstance(parsed, Parsed)
