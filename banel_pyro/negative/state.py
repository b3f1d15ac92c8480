"""What a run of learning from failures is to do, and what it knows between two steps: the content of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from banel_pyro.checkpoint import has_checkpoint, read_checkpoint
from banel_pyro.negative.distil import Distillation
from banel_pyro.negative.filters import Filter
from banel_pyro.negative.generator import Generator
from banel_pyro.negative.region import Region, Regions
from banel_pyro.negative.region_file import check_packed, filled, packed, unpacked
from banel_pyro.negative.signal import HeldOut
from banel_pyro.negative.success import SuccessRate
from banel_pyro.reading import Field, check_fields
from banel_pyro.seeding import fork_rng

__all__ = ["FORMAT", "STEPS", "Plan", "State", "read_state", "rows_of"]

FORMAT = 1
"""Version of the checkpoints."""

STEPS = ("propose", "ask", "filter", "distil", "evaluate")
"""The steps of a round: each is a function of what was known before it, and ends with a checkpoint."""


@dataclass(frozen=True)
class Plan:
    """What a run does: the options of :func:`~banel_pyro.negative.learn`, checked."""

    budget: int
    rounds: int
    filter: Filter | None
    factor: float
    ties: Literal["accept", "reject"]
    log_tau: float | None
    distillation: Distillation | None
    candidates: int
    max_draws: int
    known: str
    use_successes: bool
    held_out: HeldOut | None
    show: Callable[[Tensor], Sequence[str]] | None
    seed: int


@dataclass
class State:
    """What a run knows between two steps.

    Args:
        generator: from which candidates are proposed, outside of ``regions``.
        first: the generator that the run began with.
        best: the best generator so far: by its success rate, or else by the share of successes among the candidates
            that it has proposed.
        failures: of all rounds before this one.
        successes: of all rounds.
        proposed: the candidates of this round.
        rewards: of them, NaN without answer.
        regions: that are kept.
        last: the region of the last round, kept or absorbed.
        round: the number of this one, from 0.
        step: the next of :data:`STEPS`, by number.
        rows: a record of each round that is done.
        row: that of this round.
        best_round: the round that made ``best``, −1 for the start.
        best_value: what it was judged by.
        best_kept: how many of the regions, from the first, belong to ``best``.
        rate: the success rate of ``generator`` outside of ``regions``.
        base_rate: that of ``first``, as numbers.
        stopped: why there are no further rounds.
    """

    generator: Generator
    first: Generator
    best: Generator
    failures: Tensor
    successes: Tensor
    proposed: Tensor
    rewards: Tensor
    regions: Regions = field(default_factory=Regions)
    last: Region | None = None
    round: int = 0
    step: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    row: dict[str, Any] = field(default_factory=dict)
    best_round: int = -1
    best_value: float = -math.inf
    best_kept: int = 0
    rate: SuccessRate | None = None
    base_rate: dict[str, Any] = field(default_factory=dict)
    stopped: str = ""

    @classmethod
    def at_start(cls, generator: Generator) -> State:
        """Nothing is known yet."""
        first = generator.copy().requires_grad_(False)
        with fork_rng(0):
            none = first.sample(1)[:0]
        return cls(first, first, first, none, none, none, torch.empty(0, dtype=torch.float64))

    def judge(self, value: float, round: int) -> None:
        """Remember the generator that stands, with its regions, if it is better than all before; −1 is the start."""
        if value > self.best_value:
            self.best, self.best_kept, self.best_round, self.best_value = (
                self.generator, len(self.regions), round, value,
            )  # fmt: skip

    def pack(self) -> dict[str, Any]:
        """Tensors, numbers and texts."""
        named = [self.generator, self.first, self.best]
        pool: list[Generator] = []
        for generator in named:
            if not any(generator is known for known in pool):
                pool.append(generator)
        numbers = [next(i for i, known in enumerate(pool) if known is generator) for generator in named]
        regions = [*self.regions] + ([] if self.last is None else [self.last])
        return {
            **packed(Regions(regions), pool), "named": numbers, "kept": len(self.regions),
            "last": self.last is not None, "rate": None if self.rate is None else dict(vars(self.rate)),
            **{name: getattr(self, name) for name in _PLAIN},
            **{name: getattr(self, name).clone() for name in _TENSORS},  # a slice would bring its whole storage
        }  # fmt: skip

    @classmethod
    def unpack(cls, found: dict[str, Any], skeleton: Generator, filter: Filter | None, file: str) -> State:
        """A state from what :meth:`pack` made; ``filter`` knows what its scores are made of."""
        shared = {
            number: filled(skeleton, found["generators"][number], f"'{file}'", "") for number in set(found["named"])
        }
        with fork_rng(0):
            parts = {} if filter is None else dict(filter.parts())
        regions = list(unpacked(found, {"": skeleton, **parts}, filter.scores if filter else (), file, shared))
        for part in shared.values():
            part.requires_grad_(False)
        generator, first, best = (shared[number] for number in found["named"])
        return cls(
            generator, first, best, regions=Regions(regions[: found["kept"]]),
            last=regions[-1] if found["last"] else None,
            rate=None if found["rate"] is None else SuccessRate(**found["rate"]),
            **{name: found[name] for name in (*_PLAIN, *_TENSORS)},
        )  # fmt: skip


_PLAIN = ("round", "step", "rows", "row", "best_round", "best_value", "best_kept", "base_rate", "stopped")
_TENSORS = ("failures", "successes", "proposed", "rewards")


def _a(kind: type) -> Field:
    return lambda value: type(value) is kind, f"a {kind.__name__}"


def _at_least(least: int) -> Field:
    return lambda value: type(value) is int and value >= least, f"an integer of at least {least}"


_TENSOR: Field = (lambda value: isinstance(value, Tensor), "a tensor")
_RATE: dict[str, Field] = {
    **dict.fromkeys(("value", "low", "high"), _a(float)),
    "draws": _at_least(0),
    "reachable": (lambda value: value is None or type(value) is int, "an integer or None"),
    **dict.fromkeys(("successes", "weights"), _TENSOR),
}
_STATE: dict[str, Field] = {
    **dict.fromkeys(_TENSORS, _TENSOR),
    **dict.fromkeys(("round", "step", "kept", "best_kept"), _at_least(0)),
    "best_round": _at_least(-1),
    **{name: _a(kind) for name, kind in (("rows", list), ("row", dict), ("base_rate", dict), ("stopped", str),
                                         ("named", list), ("last", bool), ("best_value", float))},
    "rate": (lambda value: value is None or type(value) is dict, "a success rate, or None"),
}  # fmt: skip


def _check(state: dict[str, Any]) -> None:
    """Refuse what is no state of such a run.

    Raises:
        ValueError: naming what is missing or is something else.
    """
    check_packed(state)
    check_fields("it", state, _STATE, remedy="")
    if state["rate"] is not None:
        check_fields("its rate", state["rate"], _RATE, remedy="")
        if state["rate"].keys() != _RATE.keys():
            raise ValueError(f"its rate has {sorted(state['rate'])}: expected {sorted(_RATE)}")
    count = len(state["generators"])
    if len(state["named"]) != 3 or not all(type(n) is int and 0 <= n < count for n in state["named"]):
        raise ValueError("it does not say which of its generators is which")
    if state["kept"] + state["last"] != len(state["regions"]) or state["best_kept"] > state["kept"]:
        raise ValueError(f"it has {len(state['regions'])} regions: expected those that are kept, and the last one")
    if state["step"] >= len(STEPS):
        raise ValueError(f"it has step={state['step']}: expected less than {len(STEPS)}")


def read_state(folder: Path, skeleton: Generator, filter: Filter | None = None) -> State | None:
    """The last state of a run in a folder, None where there is none yet.

    Args:
        folder: of the run.
        skeleton: a generator of the architecture of the run's; it is not changed.
        filter: of the run, where its scores have generators of another architecture, or classes of their own.

    Raises:
        ValueError: if all checkpoints are damaged, or do not fit the generator.
    """
    if not has_checkpoint(folder):
        return None
    return State.unpack(read_checkpoint(folder, FORMAT, _check), skeleton, filter, str(folder))


def rows_of(state: State) -> pd.DataFrame:
    """A row for each round that is done."""
    return pd.DataFrame(state.rows)
