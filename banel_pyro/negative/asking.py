"""One round of questions to an oracle: what is sent when, what waits, and what is done with what comes back."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from banel_pyro.negative.call import Inline, OracleError, Reply, Settings, call, words
from banel_pyro.negative.ledger import Ledger, Result, refuse_other
from banel_pyro.negative.ledger_records import Slot
from banel_pyro.negative.packed import Packed

__all__ = ["Asking"]


@dataclass
class _Flight:
    """A call that has not come back: its attempts by position, and when it is given up."""

    attempts: dict[int, int]
    future: Future[Reply]
    deadline: float


class Asking:
    """Ask about the candidates of a round, until each has its answer or none is to be had.

    Args:
        how: the oracle.
        ledger: where all of it is written down.
        items: candidates by position.
        round: of them.
        purpose: of the questions.
        known: answer equal candidates from the ledger.
        progress: called with the number of candidates that are done.
    """

    def __init__(
        self,
        how: Settings,
        ledger: Ledger,
        items: Mapping[int, Packed],
        *,
        round: int,
        purpose: str,
        known: bool,
        progress: Callable[[int], Any] | None,
    ) -> None:
        self.how, self.ledger, self.items = how, ledger, items
        self.round, self.purpose, self.known, self.progress = round, purpose, known, progress
        self.executor: Executor = Inline() if how.executor is None else how.executor
        self.queue: deque[int] = deque()
        self.later: list[tuple[float, int, int]] = []  # a heap of retries: when, after which attempt, and of which
        self.twins: dict[str, list[int]] = {}  # by hash of a candidate that is asked: equal ones, which wait for it
        self.tries: dict[int, int] = {}  # failed ones
        self.in_flight: dict[int, _Flight] = {}  # by the first of its attempts
        self.returned: SimpleQueue[int] = SimpleQueue()
        self.stuck: list[Future[Reply]] = []  # given up, and still keeping a worker busy
        self.in_a_row = 0
        self.out_of_budget = False
        self.failure: OracleError | None = None

    def run(self) -> None:
        """Ask, and write all answers into the ledger.

        Raises:
            OracleError: if the executor broke, or call after call failed.
            ValueError: if the ledger has other candidates in this round.
        """
        self.session = self.ledger.begin_session()
        try:
            self._plan()
            self._tell()
            while self.queue or self.later or self.in_flight:
                self._send()
                self._settle(self._wait())
                self._tell()
        except BaseException:
            self._abandon()
            raise
        finally:
            self.ledger.end_session(self.session)
        if self.failure is not None:
            raise self.failure

    # What is to be asked

    def _plan(self) -> None:
        slots = self.ledger.slots(self.round, purpose=self.purpose)
        now = time.monotonic()  # one for all: their retries go on in the order of their attempts
        for position, candidate in self.items.items():
            slot = slots.get(position, Slot(candidate.hash))
            refuse_other(self.round, position, slot.hash, candidate.hash)
            tries = slot.errors + slot.lost * self.how.idempotent
            if self._is_settled(slot, tries):
                continue
            if tries:
                self.tries[position] = tries
                self.twins[candidate.hash] = []
                self._try_again(position, slot.last, now)
            else:
                self.queue.append(position)
        if self.known:
            self.queue = deque(self._recall(self.queue))

    def _is_settled(self, slot: Slot, tries: int) -> bool:
        if slot.reward is not None or slot.in_flight is not None or tries > self.how.retries:
            return True
        return not self.how.idempotent and bool(slot.unknown or slot.lost)

    def _recall(self, positions: Iterable[int]) -> list[int]:
        """Answer what is known; the positions that are not."""
        asked = {position: self.items[position] for position in positions}
        found = self.ledger.recall(asked, round=self.round, session=self.session, purpose=self.purpose)
        return [position for position in asked if position not in found]

    def _next(self) -> list[int]:
        """The positions of the next call: one that is tried again goes alone, so that it takes no others along."""
        if self.later and self.later[0][0] <= time.monotonic():
            return [heapq.heappop(self.later)[2]]
        batch: list[int] = []
        while self.queue and len(batch) < self.how.batch_size:
            position = self.queue.popleft()
            hash_ = self.items[position].hash
            if self.known and hash_ in self.twins:
                self.twins[hash_].append(position)
            else:
                self.twins[hash_] = []
                batch.append(position)
        return batch

    # Out

    def _room(self) -> int:
        """How many more calls find a worker."""
        self.stuck = [future for future in self.stuck if not future.done()]
        return self.how.max_in_flight - len(self.in_flight) - len(self.stuck)

    def _send(self) -> None:
        while self._room() > 0 and (batch := self._next()):
            asked = {position: self.items[position] for position in batch}
            sent, over = self.ledger.charge(
                asked, round=self.round, session=self.session, purpose=self.purpose, known=self.known, partial=True
            )
            if sent:
                self._submit(sent)
            if over:
                self.out_of_budget = True
                self._stop()
            for position in asked.keys() - sent.keys() - set(over):  # another process was faster
                self._release(position)
        if (self.queue or self.later) and not self.in_flight and self._room() <= 0:
            self._fail("every worker is busy with a call that timed out: give the oracle a new executor")

    def _submit(self, attempts: dict[int, int]) -> None:
        rows = [self.items[position] for position in attempts]
        batch = Packed(rows[0].dtype, (len(rows), *rows[0].shape), b"".join(row.data for row in rows))
        key = min(attempts.values())
        try:
            future = self.executor.submit(call, self.how.fn, batch)
        except Exception as error:
            self.ledger.settle(Result(attempt, "unsent", error=words(error)) for attempt in attempts.values())
            self._fail(f"the executor took no call ({words(error)}): give the oracle a new one", error)
            return
        deadline = float("inf") if self.how.timeout is None else time.monotonic() + self.how.timeout
        self.in_flight[key] = _Flight(attempts, future, deadline)
        future.add_done_callback(lambda _: self.returned.put(key))

    # Back

    def _wait(self) -> list[_Flight]:
        """The calls that have come back, or have been out for too long: at least one, if no retry falls due first."""
        moments = [flight.deadline for flight in self.in_flight.values()]
        if self._room() > 0:
            moments += [due for due, *_ in self.later[:1]]
        until = min(moments, default=0.0)
        keys = []
        try:
            keys.append(
                self.returned.get(timeout=None if until == float("inf") else max(0.0, until - time.monotonic()))
            )
            while True:
                keys.append(self.returned.get_nowait())
        except Empty:
            pass
        now = time.monotonic()
        keys += [key for key, flight in self.in_flight.items() if flight.deadline <= now]
        return [self.in_flight[key] for key in dict.fromkeys(keys) if key in self.in_flight]

    def _settle(self, flights: list[_Flight]) -> None:
        """Write down what came, and only then go by it."""
        results = [(flight, self._results(flight)) for flight in flights]
        if results:
            self.ledger.settle(result for _, found in results for result in found)
        for flight, found in results:
            del self.in_flight[min(flight.attempts.values())]
            self.stuck.append(flight.future)
            for position, result in zip(flight.attempts, found, strict=True):
                self._follow(position, result)
            self.in_a_row = 0 if any(result.state == "answered" for result in found) else self.in_a_row + 1
            if self.how.give_up is not None and self.in_a_row >= self.how.give_up:
                self._fail(
                    f"{self.in_a_row} calls in a row have failed, the last with: {found[-1].error} Mend the oracle and "
                    "ask the round again with more retries=; let it return 0 for what it cannot judge, or go on "
                    "whatever happens with give_up=None"
                )

    def _results(self, flight: _Flight) -> list[Result]:
        unsent = not flight.future.done() and self._cancelled(flight.future)
        if unsent or not flight.future.done():
            text = f"timed out after {self.how.timeout:g} s{' before a worker took it up' * unsent}."
            return [Result(n, "unsent" if unsent else "lost", error=text) for n in flight.attempts.values()]
        try:
            reply = flight.future.result()
        except (Exception, SystemExit) as error:  # not of fn, whose errors are words by now
            if isinstance(error, BrokenExecutor):
                self._fail(f"the executor broke ({words(error)}): give the oracle a new one", error)
            return [Result(n, "lost", error=words(error)) for n in flight.attempts.values()]
        seconds = reply.seconds / len(reply.rewards)
        return [
            Result(n, "error", None, seconds, found, reply.worker)
            if isinstance(found, str)
            else Result(n, "answered", found, seconds, None, reply.worker)
            for n, found in zip(flight.attempts.values(), reply.rewards, strict=True)
        ]

    def _follow(self, position: int, result: Result) -> None:
        if result.state != "answered":
            self.tries[position] = self.tries.get(position, 0) + 1
            again = self.tries[position] <= self.how.retries and (result.state != "lost" or self.how.idempotent)
            if again and not self.out_of_budget and self.failure is None:
                self._try_again(position, result.attempt, time.monotonic())
                return
        self._release(position)

    def _try_again(self, position: int, attempt: int, now: float) -> None:
        wait = self.how.backoff * 2.0 ** (self.tries[position] - 1)
        heapq.heappush(self.later, (now + wait, attempt, position))

    def _release(self, position: int) -> None:
        """A candidate is done with: those that waited for its answer have it, or are asked themselves."""
        waiting = self.twins.pop(self.items[position].hash, [])
        if waiting:
            waiting = self._recall(waiting)
            if not self.out_of_budget and self.failure is None:
                self.queue.extendleft(reversed(waiting))

    # The end

    def _stop(self) -> None:
        """Send no more; what is in flight is waited for, since it is paid for."""
        self.queue.clear()
        self.later.clear()

    def _fail(self, why: str, cause: BaseException | None = None) -> None:
        if self.failure is None:
            self.failure = OracleError(f"round {self.round}: {why}. Nothing of what came is lost.")
            self.failure.__cause__ = cause
        self._stop()

    def _abandon(self) -> None:
        """On the way out: keep what has come back, and take back what no worker has taken up."""
        results: list[Result] = []
        for flight in self.in_flight.values():
            if flight.future.done():
                results += self._results(flight)
            elif self._cancelled(flight.future):
                results += [Result(n, "unsent", error="cancelled before it began.") for n in flight.attempts.values()]
        self.ledger.settle(results)

    def _cancelled(self, future: Future[Reply]) -> bool:
        """Cancel a call if it has not begun: only of these executors is it known that they cancel no other."""
        done = future.cancel()
        return done and isinstance(self.executor, ThreadPoolExecutor | ProcessPoolExecutor)

    def _tell(self) -> None:
        if self.progress is not None:
            pending = len(self.queue) + len(self.later) + sum(map(len, self.twins.values()))
            pending += sum(len(flight.attempts) for flight in self.in_flight.values())
            self.progress(len(self.items) - pending)
