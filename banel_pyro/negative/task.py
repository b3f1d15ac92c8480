"""A task: a generator, a reward, and how to look at candidates; what ``banel negative`` takes by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from banel_pyro.checks import instance
from banel_pyro.negative.generator import Generator, check_generator
from banel_pyro.negative.success import SuccessRates

__all__ = ["Task"]


@dataclass(frozen=True)
class Task:
    r"""What is to be learnt from failures: a generator that hardly ever succeeds, and what judges it.

    Args:
        name: for the ledger and reports.
        generator: what proposes candidates at the start.
        reward: from candidates, shape (n, \*event_shape), to n rewards of 0 or 1: what an
            :class:`~banel_pyro.negative.Oracle` asks.
        success_rate: measures success rates for reports, outside of the budget; None if they cannot be known.
        show: candidates as texts.
        options: of :func:`~banel_pyro.negative.learn`, by which this task is run unless others are given.
        oracle: options of the :class:`~banel_pyro.negative.Oracle`, such as ``batch_size``.

    Raises:
        TypeError: for what is none of these.
    """

    name: str
    generator: Generator
    reward: Callable[[Tensor], Any]
    success_rate: SuccessRates | None = None
    show: Callable[[Tensor], Sequence[str]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    oracle: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        instance("name", self.name, (str,), "a text")
        check_generator(self.generator, probe=False)
        if not callable(self.reward):
            raise TypeError(f"reward={self.reward!r}: expected a function from candidates to rewards of 0 or 1.")

    def texts(self, x: Tensor) -> list[str]:
        """Candidates as texts."""
        return [str(row.tolist()) for row in x] if self.show is None else list(self.show(x))
