"""The oracle: what it returns, what an error is, what is charged, and what is asked again."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from banel_pyro.negative import Answers, Ledger, Oracle, OracleError

NAN = float("nan")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db", task="toy", budget=100) as ledger:
        yield ledger


def even(x: Tensor) -> Tensor:
    return x % 2 == 0


class Calls:
    """An oracle that remembers what it was asked, and fails as often as it is told to.

    Args:
        fails: by candidate, how many calls with it raise.
    """

    def __init__(self, fails: dict[int, int] | None = None) -> None:
        self.fails, self.batches = Counter(fails or {}), list[list[int]]()

    def __call__(self, x: Tensor) -> Tensor:
        self.batches.append(x.tolist())
        if bad := [value for value in x.tolist() if self.fails[value] > 0]:
            self.fails.subtract(bad)
            raise ZeroDivisionError(f"at {bad}")
        return even(x)


def check(answers: Answers, expected: list[float]) -> None:
    assert answers.rewards.dtype == torch.float64
    np.testing.assert_array_equal(answers.rewards.numpy(), expected)
    np.testing.assert_array_equal(answers.successes.numpy(), np.array(expected) == 1)
    np.testing.assert_array_equal(answers.failures.numpy(), np.array(expected) == 0)


def quick(fn: Callable[[Tensor], Any], **options: Any) -> Oracle:
    return Oracle(fn, **{"backoff": 0.0, **options})


# What an oracle may return

GOOD: dict[str, Callable[[Tensor], Any]] = {
    "bool": even,
    "int": lambda x: even(x).long(),
    "float": lambda x: even(x).double(),
    "half": lambda x: even(x).half(),
    "array": lambda x: even(x).numpy(),
    "list": lambda x: even(x).tolist(),
    "tuple": lambda x: tuple(even(x).double().tolist()),
    "list of arrays' items": lambda x: [np.bool_(value) for value in even(x).tolist()],
    "a parameter": lambda x: torch.nn.Parameter(even(x).double()),
}


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_rewards_of_every_kind(kind: str, batch_size: int, ledger: Ledger) -> None:
    answers = Oracle(GOOD[kind], batch_size=batch_size).ask(torch.arange(5), ledger, round=0)
    check(answers, [1, 0, 1, 0, 1])
    assert answers.charged.tolist() == [True] * 5
    assert answers.unknown.tolist() == [False] * 5
    assert (answers.errors, answers.out_of_budget, ledger.nre) == ({}, False, 5)


@pytest.mark.parametrize("scalar", [True, 1, 1.0, np.float32(1), torch.tensor(1)], ids=lambda s: type(s).__name__)
def test_a_scalar_will_do_for_one_candidate(scalar: Any, ledger: Ledger) -> None:
    check(Oracle(lambda x: scalar).ask(torch.zeros(1, 3), ledger, round=0), [1])
    answers = quick(lambda x: scalar, batch_size=2, retries=0).ask(torch.ones(2, 3), ledger, round=1, known="ask")
    check(answers, [NAN, NAN])
    assert "expected 2 rewards" in answers.errors[0]


BAD: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "NaN": (lambda x: torch.where(even(x), NAN, 0.0), "the reward nan: expected 0 or 1"),
    "a half": (lambda x: torch.where(even(x), 0.5, 0.0), "the reward 0.5"),
    "two": (lambda x: torch.where(even(x), 2, 0), "the reward 2"),
    "minus one": (lambda x: torch.where(even(x), -1, 0), "the reward -1"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_reward_that_is_none_is_an_error_of_its_candidate_alone(kind: str, ledger: Ledger) -> None:
    fn, words = BAD[kind]
    answers = quick(fn, batch_size=4, retries=1).ask(torch.arange(4), ledger, round=0)
    check(answers, [NAN, 0, NAN, 0])
    assert sorted(answers.errors) == [0, 2]
    assert words in answers.errors[0]
    assert (ledger.nre, ledger.counts()["errors"], ledger.counts()["failures"]) == (6, 4, 2)


WRONG: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "column": (lambda x: even(x)[:, None], r"shape (2, 1): expected 2 rewards"),
    "too few": (lambda x: even(x)[:1], "shape (1,)"),
    "none": (lambda x: None, "returned None"),
    "text": (lambda x: "11", "returned '11'"),
    "object": (lambda x: object(), "returned a object"),
    "ragged": (lambda x: [[1], [0, 1]], "returned a list"),
    "raises": (lambda x: 1 / 0, "ZeroDivisionError: division by zero"),
    "no words": (lambda x: exec("raise Mute"), "NameError"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_call_that_brings_no_rewards_is_an_error_of_all_in_it(kind: str, ledger: Ledger) -> None:
    fn, words = WRONG[kind]
    answers = quick(fn, batch_size=2, retries=0).ask(torch.arange(4), ledger, round=0)
    check(answers, [NAN] * 4)
    assert all(words in answers.errors[i] for i in range(4))
    assert (ledger.nre, ledger.counts()["errors"], ledger.counts()["failures"]) == (4, 4, 0)


def test_an_oracle_may_do_with_its_batch_what_it_likes(ledger: Ledger) -> None:
    x = torch.arange(4)

    def spoil(batch: Tensor) -> Tensor:
        found = even(batch)
        batch.fill_(7)
        return found

    check(Oracle(spoil, batch_size=4).ask(x, ledger, round=0), [1, 0, 1, 0])
    assert torch.equal(x, torch.arange(4))
    assert torch.equal(ledger.candidates(), x)


def test_no_candidates(ledger: Ledger) -> None:
    answers = Oracle(even).ask(torch.empty(0, 3), ledger, round=0)
    assert answers.rewards.shape == answers.charged.shape == (0,)
    assert ledger.nre == 0


# Retries


def test_every_retry_is_charged_and_goes_alone(ledger: Ledger) -> None:
    calls = Calls({1: 2, 3: 3})
    answers = quick(calls, batch_size=4, retries=2).ask(torch.arange(6), ledger, round=0)
    check(answers, [1, 0, 1, NAN, 1, 0])
    assert calls.batches == [[0, 1, 2, 3], [0], [1], [2], [3], [1], [3], [4, 5]]
    assert answers.errors == {3: "ZeroDivisionError: at [3]"}
    assert ledger.nre == sum(map(len, calls.batches)) == 12
    frame = ledger.frame()
    assert list(frame[frame["position"] == 1]["state"]) == ["error", "error", "answered"]
    assert list(frame[frame["position"] == 3]["number"]) == [1, 2, 3]


def test_back_off_doubles(ledger: Ledger) -> None:
    Oracle(Calls({0: 3}), retries=3, backoff=0.05).ask(torch.arange(1), ledger, round=0)
    gaps = ledger.frame()["at"].diff().dt.total_seconds().to_numpy()[1:]
    assert (gaps >= np.array([0.05, 0.1, 0.2]) - 1e-3).all()
    assert gaps.sum() < 3


def test_others_are_asked_while_one_waits_for_its_retry(ledger: Ledger) -> None:
    calls = Calls({0: 1})
    Oracle(calls, retries=1, backoff=0.3).ask(torch.arange(4), ledger, round=0)
    assert calls.batches == [[0], [1], [2], [3], [0]]


def test_it_gives_up_when_all_calls_fail(ledger: Ledger) -> None:
    calls = Calls(dict.fromkeys(range(50), 99))
    with pytest.raises(OracleError, match=r"5 calls in a row have failed, the last with: ZeroDivisionError: at \[1\]"):
        quick(calls, give_up=5).ask(torch.arange(50), ledger, round=0)
    assert ledger.nre == len(calls.batches) == 5
    answers = quick(calls, give_up=None, retries=1).ask(torch.arange(10), ledger, round=0)
    assert len(answers.errors) == 10
    assert ledger.nre == 3 + 2 + 2 * 8, "those that were tried are not tried again with fewer retries"


def test_errors_between_answers_do_not_add_up(ledger: Ledger) -> None:
    calls = Calls(dict.fromkeys(range(1, 20, 2), 99))
    answers = quick(calls, give_up=2, retries=0).ask(torch.arange(20), ledger, round=0)
    assert len(answers.errors) == 10


# Going on


def test_a_round_that_is_asked_again_is_answered_from_its_slots(ledger: Ledger) -> None:
    calls = Calls({2: 9})
    first = quick(calls).ask(torch.arange(4), ledger, round=0)
    frame = ledger.frame()
    again = quick(calls).ask(torch.arange(4), ledger, round=0)
    check(again, [1, 0, NAN, 0])
    assert again.errors == first.errors
    assert torch.equal(again.charged, first.charged)
    assert ledger.frame().equals(frame)
    assert len(calls.batches) == ledger.nre == 6
    calls.fails.clear()
    check(quick(calls, retries=3).ask(torch.arange(4), ledger, round=0), [1, 0, 1, 0])
    assert ledger.nre == 7


@pytest.mark.parametrize("known", ["free", "ask"])
def test_a_slot_with_another_candidate_is_refused_before_anything_is_asked(known: str, ledger: Ledger) -> None:
    Oracle(even).ask(torch.arange(4), ledger, round=5)
    calls = Calls()
    with pytest.raises(ValueError, match=r"round=5, position 3: the ledger has another candidate there"):
        Oracle(calls).ask(torch.tensor([0, 1, 2, 9, 10]), ledger, round=5, known=known)
    with pytest.raises(ValueError, match="round=5, position 0"):
        Oracle(calls).ask(torch.arange(4).double(), ledger, round=5, known=known)
    assert calls.batches == []


def test_out_of_budget_midway(tmp_path: Path) -> None:
    calls = Calls()
    with Ledger(tmp_path / "ledger.db", task="toy", budget=5) as ledger:
        for _ in range(2):
            answers = Oracle(calls, batch_size=3).ask(torch.arange(8), ledger, round=0)
            check(answers, [1, 0, 1, 0, 1, NAN, NAN, NAN])
            assert answers.out_of_budget
            assert answers.charged.tolist() == [True] * 5 + [False] * 3
            assert answers.errors == {}
            assert ledger.nre == 5
    with Ledger(tmp_path / "ledger.db", task="toy", budget=9) as ledger:
        answers = Oracle(calls, batch_size=3).ask(torch.arange(8), ledger, round=0)
        check(answers, [1, 0] * 4)
        assert not answers.out_of_budget
    assert calls.batches == [[0, 1, 2], [3, 4], [5, 6, 7]]


def test_a_retry_that_the_budget_has_no_room_for(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db", task="toy", budget=3) as ledger:
        answers = quick(Calls({1: 9})).ask(torch.arange(3), ledger, round=0)
        check(answers, [1, NAN, NAN])
        assert answers.out_of_budget
        assert answers.errors == {1: "ZeroDivisionError: at [1]"}
        assert ledger.nre == 3


def test_ctrl_c_keeps_what_came(ledger: Ledger) -> None:
    asked = []

    def interrupted(x: Tensor) -> Tensor:
        asked.append(x.item())
        if len(asked) == 3:
            signal.raise_signal(signal.SIGINT)
        return even(x)

    found = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have had ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            Oracle(interrupted).ask(torch.arange(5), ledger, round=0)
    finally:
        signal.signal(signal.SIGINT, found)
    assert list(ledger.frame()["state"]) == ["answered", "answered", "unknown"]
    answers = Oracle(interrupted).ask(torch.arange(5), ledger, round=0)
    check(answers, [1, 0, NAN, 0, 1])
    assert answers.unknown.tolist() == [False, False, True, False, False]
    assert answers.errors == {}
    assert ledger.nre == 5
    check(Oracle(interrupted, idempotent=True).ask(torch.arange(5), ledger, round=0), [1, 0, 1, 0, 1])
    assert asked == [0, 1, 2, 3, 4, 2]
    assert ledger.nre == 6


def test_ctrl_c_among_threads(ledger: Ledger) -> None:
    """What has come back is kept, what runs is unknown, and what waited for a worker is known not to have begun."""
    free, second = threading.Event(), threading.Event()

    def slow(x: Tensor) -> Tensor:
        if x.item() > 0:
            second.set()
            free.wait(20)
        return even(x)

    def stop(done: int) -> None:
        if done:
            second.wait(20)
            raise KeyboardInterrupt

    with ThreadPoolExecutor(1) as threads:
        with pytest.raises(KeyboardInterrupt):
            Oracle(slow, executor=threads, max_in_flight=3).ask(torch.arange(9), ledger, round=0, progress=stop)
        free.set()
    assert list(ledger.frame()["state"]) == ["answered", "unknown", "unsent"]
    with ThreadPoolExecutor(1) as threads:
        answers = Oracle(slow, executor=threads).ask(torch.arange(4), ledger, round=0)
    check(answers, [1, NAN, 1, 0])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_answer_is_on_the_disk_before_it_is_used(workers: int, ledger: Ledger) -> None:
    seen = []

    def look(x: Tensor) -> Tensor:
        with Ledger.reopen(ledger.path) as other:
            assert other.counts()["in_flight"] == len(x)
        return even(x)

    def used(done: int) -> None:
        seen.append(done)
        with Ledger.reopen(ledger.path) as other:
            assert other.counts()["successes"] + other.counts()["failures"] == done

    with ThreadPoolExecutor(1) as threads:
        oracle = quick(look, executor=threads if workers else None, batch_size=2)
        answers = oracle.ask(torch.arange(6), ledger, round=0, progress=used)
    assert answers.errors == {}
    assert seen == [0, 2, 4, 6]


def test_ctrl_c_keeps_what_came_and_was_not_looked_at(ledger: Ledger) -> None:
    told = threading.Event()

    def second_waits(x: Tensor) -> Tensor:
        if x.item():
            told.wait(20)
        return even(x)

    def stop(done: int) -> None:
        if done:
            told.set()
            time.sleep(0.3)
            raise KeyboardInterrupt

    with ThreadPoolExecutor(2) as threads, pytest.raises(KeyboardInterrupt):
        Oracle(second_waits, executor=threads).ask(torch.arange(2), ledger, round=0, progress=stop)
    assert list(ledger.frame()["state"]) == ["answered", "answered"]


def test_retries_go_on_in_their_order(ledger: Ledger) -> None:
    def stop(done: int) -> None:
        if len(calls.batches) == 2:
            raise KeyboardInterrupt

    calls = Calls(dict.fromkeys(range(4), 2))
    with pytest.raises(KeyboardInterrupt):
        quick(calls, batch_size=4).ask(torch.arange(4), ledger, round=0, progress=stop)
    quick(calls, batch_size=4).ask(torch.arange(4), ledger, round=0)
    whole = Calls(dict.fromkeys(range(10, 14), 2))
    quick(whole, batch_size=4).ask(torch.arange(10, 14), ledger, round=1)
    assert [[value + 10 for value in batch] for batch in calls.batches] == whole.batches


# Known candidates


def test_equal_candidates_are_asked_once(ledger: Ledger) -> None:
    x = torch.tensor([3, 4, 3, 3, 4, 5])
    for batch_size in (1, 4):
        calls = Calls()
        oracle = Oracle(calls, batch_size=batch_size)
        answers = oracle.ask(x + 10 * batch_size, ledger, round=batch_size)
        check(answers, [0, 1, 0, 0, 1, 0])
        assert answers.charged.tolist() == [True, True, False, False, False, True]
        assert sum(map(len, calls.batches)) == 3
        later = oracle.ask(x + 10 * batch_size, ledger, round=10 + batch_size)
        check(later, [0, 1, 0, 0, 1, 0])
        assert not later.charged.any()
        assert sum(map(len, calls.batches)) == 3
    assert (ledger.nre, ledger.counts()["known"]) == (6, 18)
    assert len(ledger.candidates()) == 24


def test_known_candidates_may_be_asked_anew(ledger: Ledger) -> None:
    calls = Calls()
    x = torch.tensor([3, 3, 4])
    for round in range(2):
        answers = Oracle(calls, batch_size=3).ask(x, ledger, round=round, known="ask")
        assert answers.charged.all()
    assert calls.batches == [[3, 3, 4]] * 2
    assert ledger.nre == 6


def test_those_that_wait_for_one_that_failed_are_asked_themselves(ledger: Ledger) -> None:
    calls = Calls({3: 2})
    answers = quick(calls, retries=0, batch_size=2).ask(torch.tensor([3, 3, 3, 3, 4]), ledger, round=0)
    check(answers, [NAN, NAN, 0, 0, NAN])
    assert answers.charged.tolist() == [True, True, True, False, True]
    assert calls.batches == [[3, 4], [3], [3]]


def test_equal_candidates_of_a_round_that_goes_on(ledger: Ledger) -> None:
    calls = Calls({3: 1})
    with pytest.raises(OracleError):
        quick(calls, give_up=1).ask(torch.tensor([3, 3, 3]), ledger, round=0)
    check(quick(calls).ask(torch.tensor([3, 3, 3]), ledger, round=0), [0, 0, 0])
    assert ledger.nre == len(calls.batches) == 2


def test_draws_that_only_measure(ledger: Ledger) -> None:
    calls = Calls()
    answers = Oracle(calls).ask(torch.arange(4), ledger, round=0, purpose="evaluate")
    check(answers, [1, 0, 1, 0])
    assert not answers.charged.any()
    assert (ledger.nre, ledger.counts()["asked"], ledger.counts("evaluate")["asked"]) == (0, 0, 4)
    Oracle(calls).ask(torch.arange(4), ledger, round=0)
    assert (ledger.nre, len(calls.batches)) == (4, 8), "what they found answers no question of the learner's"
    Oracle(calls).ask(torch.arange(4), ledger, round=1, purpose="evaluate")
    assert len(calls.batches) == 8


# Executors


class Foreign(Executor):
    """An executor as others make them: futures that are no more than they must be."""

    class Promise:
        def __init__(self, inner: Future[Any]) -> None:
            self.result, self.done, self.cancel = inner.result, inner.done, inner.cancel
            self.add_done_callback = lambda tell: inner.add_done_callback(lambda _: tell(self))

    def __init__(self) -> None:
        self.inner = ThreadPoolExecutor(3)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return self.Promise(self.inner.submit(fn, *args, **kwargs))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.inner.shutdown(wait)


EXECUTORS: dict[str, Callable[[], Executor]] = {
    "threads": lambda: ThreadPoolExecutor(3),
    "processes": lambda: ProcessPoolExecutor(2),
    "foreign": Foreign,
}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of 3.12, where threads of other tests may be left
@pytest.mark.parametrize("kind", EXECUTORS)
def test_any_executor_will_do(kind: str, ledger: Ledger) -> None:
    done: list[int] = []
    with EXECUTORS[kind]() as executor:
        oracle = Oracle(even, executor=executor, batch_size=4, timeout=60.0)
        answers = oracle.ask(torch.arange(41).bfloat16(), ledger, round=0, progress=done.append)
    check(answers, [1, 0] * 20 + [1])
    assert (ledger.nre, ledger.counts()["in_flight"]) == (41, 0)
    assert done == sorted(done)
    assert done[-1] == 41
    workers = {worker.split(":")[1] for worker in ledger.frame()["worker"]}
    assert (str(os.getpid()) in workers) == (kind != "processes")


def test_no_more_is_in_flight_than_there_are_workers(ledger: Ledger) -> None:
    seen, barrier = [], threading.Barrier(4, timeout=20)

    def look(x: Tensor) -> Tensor:
        barrier.wait()
        seen.append(ledger.counts()["in_flight"])
        return even(x)

    with ThreadPoolExecutor(4) as threads:
        Oracle(look, executor=threads).ask(torch.arange(16), ledger, round=0)
    assert max(seen) == 4


def test_eight_threads_share_a_budget_and_a_ledger(ledger: Ledger) -> None:
    calls = Calls(dict.fromkeys(range(0, 800, 7), 1))

    def ask(worker: int) -> Answers:
        x = torch.arange(worker * 100, worker * 100 + 20)
        return quick(calls, batch_size=1 + worker % 3).ask(x, ledger, round=worker)

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(ask, range(8)))
    assert ledger.nre == sum(map(len, calls.batches)) == 100
    assert any(answers.out_of_budget for answers in found)
    counts = ledger.counts()
    assert counts["successes"] + counts["failures"] + counts["errors"] == 100
    assert counts["successes"] == sum(int(answers.successes.sum()) for answers in found)


def test_two_that_ask_the_same_round_do_not_ask_twice(tmp_path: Path) -> None:
    calls = Calls()

    def ask(_: int) -> Answers:
        with Ledger(tmp_path / "ledger.db", task="toy", budget=100) as own:
            return Oracle(calls, batch_size=2).ask(torch.arange(40), own, round=0)

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(ask, range(4)))
    assert sorted(value for batch in calls.batches for value in batch) == [*range(40)]
    for answers in found:
        assert all("another process" in words for words in answers.errors.values())
    with Ledger.reopen(tmp_path / "ledger.db") as ledger:
        check(Oracle(calls).ask(torch.arange(40), ledger, round=0), [1, 0] * 20)
        assert ledger.nre == 40


@pytest.mark.parametrize("idempotent", [False, True])
def test_a_call_that_never_returns(idempotent: bool, ledger: Ledger) -> None:
    """It is charged and given up; whether it is tried again depends on whether that does harm."""
    free, asked = threading.Event(), []

    def hang(x: Tensor) -> Tensor:
        asked.append(x.item())
        if x.item() == 1:
            free.wait(20)
        return even(x)

    with ThreadPoolExecutor(4) as threads:
        oracle = quick(hang, executor=threads, timeout=0.3, retries=1, idempotent=idempotent)
        start = time.perf_counter()
        answers = oracle.ask(torch.arange(4), ledger, round=0)
        assert time.perf_counter() - start < 10
        check(answers, [1, NAN, 1, 0])
        assert answers.errors == {1: "timed out after 0.3 s."}
        assert asked.count(1) == 1 + idempotent
        assert ledger.nre == 4 + idempotent
        assert not answers.unknown.any()
        free.set()
    assert set(ledger.frame()["state"]) == {"answered", "lost"}, "what it says later is not used"
    check(Oracle(even).ask(torch.arange(4), ledger, round=0), [1, NAN, 1, 0])


def test_no_call_is_wasted_on_workers_that_hang(ledger: Ledger) -> None:
    free = threading.Event()

    def hang(x: Tensor) -> Tensor:
        if x.item() in (2, 3):
            free.wait(20)
        return even(x)

    with ThreadPoolExecutor(2) as threads:
        with pytest.raises(OracleError, match="every worker is busy with a call that timed out"):
            quick(hang, executor=threads, timeout=0.2).ask(torch.arange(50), ledger, round=0)
        free.set()
    assert list(ledger.frame()["state"]) == ["answered", "answered", "lost", "lost"]
    with ThreadPoolExecutor(2) as threads:
        answers = quick(even, executor=threads).ask(torch.arange(50), ledger, round=0)
    assert sorted(answers.errors) == [2, 3]
    assert ledger.nre == 50


def test_a_call_that_no_worker_takes_up(ledger: Ledger) -> None:
    free = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        threads.submit(free.wait, 20)
        answers = quick(even, executor=threads, timeout=0.1, retries=1).ask(torch.arange(1), ledger, round=0)
        free.set()
    assert answers.errors == {0: "timed out after 0.1 s before a worker took it up."}
    assert list(ledger.frame()["state"]) == ["unsent"] * 2, "it has not begun, and may be tried again"


def die(x: Tensor) -> Tensor:
    if 3 in x:
        os._exit(1)
    return even(x)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_worker_that_dies(ledger: Ledger) -> None:
    with ProcessPoolExecutor(1) as processes:
        oracle = quick(die, executor=processes)
        with pytest.raises(OracleError, match=r"round 0: the executor broke \(BrokenProcessPool: "):
            oracle.ask(torch.arange(6), ledger, round=0)
        assert list(ledger.frame()["state"]) == ["answered"] * 3 + ["lost"]
        with pytest.raises(OracleError, match="the executor took no call"):
            oracle.ask(torch.arange(6), ledger, round=0)
    assert list(ledger.frame()["state"]) == ["answered"] * 3 + ["lost", "unsent"]
    answers = quick(even).ask(torch.arange(6), ledger, round=0)
    check(answers, [1, 0, 1, NAN, 1, 0])
    assert "BrokenProcessPool" in answers.errors[3]
    check(quick(even, idempotent=True).ask(torch.arange(6), ledger, round=0), [1, 0] * 3)
    assert ledger.nre == len(ledger.frame()) == 8


class Unpickled(Exception):
    """One that breaks the pool it is sent through."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(one)


def raise_it(x: Tensor) -> Tensor:
    raise Unpickled(1, 2)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_an_exception_that_cannot_be_sent_breaks_no_pool(ledger: Ledger) -> None:
    with ProcessPoolExecutor(1) as processes:
        answers = quick(raise_it, executor=processes, retries=0).ask(torch.arange(2), ledger, round=0)
    assert answers.errors == {0: "Unpickled: 1", 1: "Unpickled: 1"}


def exits(x: Tensor) -> Tensor:
    raise SystemExit(3)


def test_an_oracle_that_would_end_the_program(ledger: Ledger) -> None:
    with ThreadPoolExecutor(1) as threads:
        answers = quick(exits, executor=threads).ask(torch.arange(1), ledger, round=0)
    assert answers.errors == {0: "SystemExit: 3"}


def test_a_call_that_others_cancelled(ledger: Ledger) -> None:
    class Cancelling(Executor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.cancel()
            return future

    answers = quick(even, executor=Cancelling()).ask(torch.arange(1), ledger, round=0)
    assert answers.errors == {0: f"{CancelledError.__name__}: "}


# Options


@pytest.mark.parametrize(
    "options",
    [
        {"fn": 3}, {"executor": 4}, {"batch_size": 0}, {"batch_size": 2.0}, {"retries": -1}, {"backoff": -1.0},
        {"backoff": NAN}, {"timeout": 0.0, "executor": Foreign}, {"timeout": -1.0, "executor": Foreign},
        {"timeout": 3.0}, {"idempotent": 1}, {"max_in_flight": 0}, {"give_up": 0},
    ],
    ids=lambda options: " ".join(options),
)  # fmt: skip
def test_options_that_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{next(iter(options))}="):
        Oracle(**{"fn": even, **options})


def test_a_function_that_cannot_be_sent() -> None:
    with ProcessPoolExecutor(1) as processes, pytest.raises(TypeError, match="cannot be sent to another process"):
        Oracle(lambda x: 1, executor=processes)


@pytest.mark.parametrize(
    "options",
    [{"ledger": "x"}, {"round": -1}, {"round": True}, {"known": "yes"}, {"purpose": "x"}, {"x": [1]}],
    ids=str,
)
def test_questions_that_are_refused(options: dict[str, Any], ledger: Ledger) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^{next(iter(options))}\b"):
        Oracle(even).ask(**{"x": torch.arange(2), "ledger": ledger, "round": 0, **options})
    assert len(ledger.frame()) == 0
