"""One call of an oracle, wherever it runs: what goes there and what comes back are numbers and texts only."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from banel_pyro.negative.packed import Packed, unpack

__all__ = ["Inline", "OracleError", "Reply", "Settings", "call", "words"]

LONGEST = 2000
"""Letters of an error that are kept."""


class OracleError(RuntimeError):
    """The oracle cannot be asked any more. All answers that came are in the ledger; ask the same round again."""


@dataclass(frozen=True)
class Settings:
    """How an oracle is asked; see :class:`~banel_pyro.negative.Oracle`."""

    fn: Callable[[Tensor], Any]
    executor: Executor | None
    batch_size: int
    retries: int
    backoff: float
    timeout: float | None
    idempotent: bool
    max_in_flight: int
    give_up: int | None


@dataclass(frozen=True)
class Reply:
    """What a call brought.

    Args:
        rewards: 0 or 1 of each candidate, or in words why there is none.
        seconds: that it took.
        worker: machine, process and thread.
    """

    rewards: tuple[int | str, ...]
    seconds: float
    worker: str


def call(fn: Callable[[Tensor], Any], batch: Packed) -> Reply:
    """Ask a function about a batch. What it raises becomes words here, since some exceptions survive no pickling.

    Args:
        fn: the oracle.
        batch: of candidates.
    """
    n, start = batch.shape[0], time.perf_counter()
    try:
        rewards = read_rewards(fn(unpack(batch)), n)
    except Exception as error:
        rewards = (words(error),) * n
    seconds = time.perf_counter() - start
    return Reply(rewards, seconds, f"{socket.gethostname()}:{os.getpid()}:{threading.current_thread().name}")


def read_rewards(found: Any, n: int) -> tuple[int | str, ...]:
    """The rewards that an oracle returned for n candidates: each 0 or 1, or why it is none.

    Raises:
        TypeError, ValueError: if there are not n numbers.
    """
    expected = f"expected {n} rewards, each 0 or 1, as a tensor of shape ({n},)"
    if found is None or isinstance(found, str | bytes):
        raise TypeError(f"the oracle returned {found!r:.80}: {expected}.")
    try:
        values = found.detach().cpu() if isinstance(found, Tensor) else torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"the oracle returned a {type(found).__name__} ({found!r:.80}): {expected}.") from error
    if values.ndim == 0 and n == 1:
        values = values.reshape(1)
    if tuple(values.shape) != (n,):
        raise ValueError(f"the oracle returned shape {tuple(values.shape)}: {expected}.")
    return tuple(
        int(value) if value in (0, 1) else f"the oracle returned the reward {value!r}: expected 0 or 1."
        for value in values.tolist()
    )


def words(error: BaseException) -> str:
    """An exception in words, of a length that a ledger can keep."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # of a __str__ that fails
        text = type(error).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


class Inline(Executor):
    """An executor that does a call at once, in the thread that submits it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """A future that is done. Ctrl-C in the call comes out here."""
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done
