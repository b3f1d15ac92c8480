"""An expensive judge of candidates, asked through any executor and written down in a ledger."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from banel_pyro.checks import instance, integer, number
from banel_pyro.negative.asking import Asking
from banel_pyro.negative.call import OracleError, Settings
from banel_pyro.negative.ledger import Ledger
from banel_pyro.negative.ledger_records import PURPOSES, Slot
from banel_pyro.negative.packed import pack_rows

__all__ = ["Answers", "Oracle", "OracleError"]


@dataclass(frozen=True)
class Answers:
    """What an oracle said about n candidates, as it stands in the ledger.

    Args:
        rewards: shape (n,), float64: 1 success, 0 failure, NaN no answer.
        charged: shape (n,), whether any attempt at the candidate was charged; not if it was known.
        unknown: shape (n,), whether an attempt at it ended with its process, before an answer was there. Without an
            answer it is neither a success nor a failure, and asked again only of an idempotent oracle.
        errors: of candidates without answer, by position: the last error in words.
        out_of_budget: whether candidates were not asked, or not again, since the budget was spent.
    """

    rewards: Tensor
    charged: Tensor
    unknown: Tensor
    errors: Mapping[int, str]
    out_of_budget: bool = False

    @property
    def successes(self) -> Tensor:
        """Mask of the candidates with reward 1, shape (n,)."""
        return self.rewards == 1

    @property
    def failures(self) -> Tensor:
        """Mask of the candidates with reward 0, shape (n,). Errors are none."""
        return self.rewards == 0


class Oracle:
    r"""A function that judges candidates, :math:`r(x) \in \{0, 1\}`, and how it is asked.

    ``fn`` may fail. An exception, and anything but a 0 or 1 for each candidate, is an *error* of the attempt: written
    down, tried again, and never taken for a failure of the candidate. Every attempt is charged.

    Args:
        fn: from a batch of b candidates, a tensor of shape (b, \*event_shape) on the CPU, to b rewards, each 0, 1,
            False or True: a tensor, an array or a list; a scalar will do for b = 1.
        executor: any ``concurrent.futures.Executor``: threads, processes, Dask's ``client.get_executor()``, MPI's.
            None calls ``fn`` in this thread, one batch after the other.
        batch_size: candidates a call, b at most.
        retries: how often a candidate is tried again after an error. It then goes alone, so that one that is bad takes
            no others along.
        backoff: seconds before the first retry, doubled before each further one.
        timeout: seconds from when a call is submitted until it is given up, with the error ``timed out``. No executor
            can end a call that runs: its worker stays busy, and what it says later is not used. None waits for ever.
        idempotent: whether asking twice does no harm. Only then is asked again what may have been asked already: a
            call that timed out, or whose process or worker died. Otherwise it stays without answer.
        max_in_flight: calls at a time, and so the most that is unknown after a kill. By default one a worker.
        give_up: calls in a row that fail until :class:`OracleError` is raised, since then it is not the candidates
            that are bad. None never gives up.

    Raises:
        TypeError, ValueError: for a value that is none of these.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> def is_far(x):
        ...     return x.norm(dim=-1) > 2.0
        >>> with TemporaryDirectory() as folder, ThreadPoolExecutor(2) as threads:
        ...     with Ledger(Path(folder) / "ledger.db", task="far", budget=3) as ledger:
        ...         oracle = Oracle(is_far, executor=threads, batch_size=2, timeout=60.0)
        ...         answers = oracle.ask(torch.arange(8.0).reshape(4, 2), ledger, round=0)
        ...         answers.rewards, answers.out_of_budget
        (tensor([0., 1., 1., nan], dtype=torch.float64), True)
    """

    def __init__(
        self,
        fn: Callable[[Tensor], Any],
        *,
        executor: Executor | None = None,
        batch_size: int = 1,
        retries: int = 2,
        backoff: float = 1.0,
        timeout: float | None = None,
        idempotent: bool = False,
        max_in_flight: int | None = None,
        give_up: int | None = 20,
    ) -> None:
        _check_function(fn, executor)
        if timeout is not None and number("timeout", timeout) <= 0:
            raise ValueError(f"timeout={timeout!r}: expected seconds above 0, such as 60.0, or None to wait for ever.")
        if timeout is not None and executor is None:
            raise ValueError(
                f"timeout={timeout!r} and executor=None: a call in this thread cannot be given up. Write "
                "executor=ThreadPoolExecutor(1), from concurrent.futures."
            )
        if number("backoff", backoff) < 0:
            raise ValueError(f"backoff={backoff!r}: expected seconds, 0 or more, such as 1.0.")
        instance("idempotent", idempotent, (bool,), "True or False")
        workers = 1 if executor is None else getattr(executor, "_max_workers", None) or os.cpu_count() or 1
        self._settings = Settings(
            fn=fn,
            executor=executor,
            batch_size=integer("batch_size", batch_size),
            retries=integer("retries", retries, 0),
            backoff=float(backoff),
            timeout=None if timeout is None else float(timeout),
            idempotent=idempotent,
            max_in_flight=integer("max_in_flight", workers if max_in_flight is None else max_in_flight),
            give_up=None if give_up is None else integer("give_up", give_up),
        )

    def ask(
        self,
        x: Tensor,
        ledger: Ledger,
        *,
        round: int,
        known: str = "free",
        purpose: str = "learn",
        progress: Callable[[int], Any] | None = None,
    ) -> Answers:
        r"""The rewards of candidates, each written into the ledger before it is here.

        To ask the same round with the same candidates again goes on with it: what was answered is not asked again.

        Args:
            x: candidates, shape (n, \*event_shape).
            ledger: where it is written down, and what it is charged to.
            round: of these candidates, 0 or more. A ledger has one set of candidates in a round.
            known: ``"free"`` answers a candidate that equals one of an earlier slot from the ledger, at no cost;
                ``"ask"`` asks anew.
            purpose: ``"learn"``, or ``"evaluate"`` for draws that only measure: they are not charged, and listed apart.
            progress: called with the number of candidates that are done.

        Raises:
            ValueError: if the ledger has another candidate in a slot of this round.
            OracleError: if the executor broke, or ``give_up`` calls in a row failed.
        """
        instance("ledger", ledger, (Ledger,), "a Ledger, such as Ledger('ledger.db', task=..., budget=...)")
        integer("round", round, 0, 2**62)
        for name, value, allowed in (("known", known, ("free", "ask")), ("purpose", purpose, PURPOSES)):
            if value not in allowed:
                raise ValueError(f"{name}={value!r}: expected {allowed[0]!r} or {allowed[1]!r}.")
        rows = pack_rows(x)
        asking = Asking(
            self._settings,
            ledger,
            dict(enumerate(rows)),
            round=round,
            purpose=purpose,
            known=known == "free",
            progress=progress,
        )
        asking.run()
        slots = ledger.slots(round, purpose=purpose)
        return _answers([slots.get(i, Slot(row.hash)) for i, row in enumerate(rows)], asking.out_of_budget)


def _answers(slots: list[Slot], out_of_budget: bool) -> Answers:
    rewards = [float("nan") if slot.reward is None else slot.reward for slot in slots]
    errors = {i: slot.error for i, slot in enumerate(slots) if slot.reward is None and slot.error is not None}
    errors |= {
        i: "another process is asking it." for i, s in enumerate(slots) if s.reward is None and s.in_flight is not None
    }
    return Answers(
        torch.tensor(rewards, dtype=torch.float64),
        torch.tensor([slot.charged for slot in slots], dtype=torch.bool),
        torch.tensor([slot.unknown > 0 for slot in slots], dtype=torch.bool),
        errors,
        out_of_budget,
    )


def _check_function(fn: Any, executor: Any) -> None:
    if not callable(fn):
        raise TypeError(f"fn={fn!r}: expected a function from a batch of candidates to rewards.")
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise TypeError(
            f"executor={executor!r}: expected a concurrent.futures.Executor, such as ThreadPoolExecutor(4), or None."
        )
    if isinstance(executor, ProcessPoolExecutor):
        try:
            pickle.dumps(fn)
        except Exception as error:
            raise TypeError(
                f"fn={fn!r} cannot be sent to another process ({error}): write it with def at the top of a module, or "
                "use ThreadPoolExecutor."
            ) from error
