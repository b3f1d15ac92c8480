"""What a run does about numerical faults: it stops, or goes back to a good state and on more carefully."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import pyro
import torch

from banel_pyro.checks import integer, number
from banel_pyro.schedules import Constant, Schedule
from banel_pyro.terms import Weight
from banel_pyro.training.control import Controlled
from banel_pyro.training.explosion import ExplosionError
from banel_pyro.training.faults import NonFiniteError
from banel_pyro.training.parameters import plain_copy
from banel_pyro.training.stopping import CollapseError

if TYPE_CHECKING:
    from banel_pyro.training.loop import Loop

__all__ = ["FAULTS", "Fault", "Rollback", "Rollbacks", "RolledBack", "Scaled", "checked_on_fault"]

_log = logging.getLogger("banel_pyro")

FAULTS = (NonFiniteError, ExplosionError, CollapseError)
"""The numerical faults that a run can roll back from."""

Fault: TypeAlias = NonFiniteError | ExplosionError | CollapseError

AGES = (1, 8)
"""Of the good states, those are kept whose number is a multiple of these, the last two of each; and the first."""

_GROUP_RATES = ("lr", "initial_lr", "max_lr", "min_lr")
_SCHEDULER_RATES = ("base_lrs", "max_lrs", "min_lrs", "eta_min", "_last_lr")


@dataclass(frozen=True)
class Rollback:
    """Go back to the last good state at a fault, and on from there with a smaller learning rate and a smaller λ.

    A fault is a number that is not finite, a gradient that explodes, or a guide that collapses. The good state is one
    from before the trouble: of a collapse or an explosion, from before it began. Where the same fault comes again
    before the run has got past it, the run goes back further. The noise from there on is fresh; the rows of each
    step are the same.

    Each rollback multiplies all learning rates (a scheduler's too) and λ by their factors. A λ below 0 comes nearer to
    0 as well; of a controller, the bound on its side of 0 becomes the λ at the fault times the factor.

    Args:
        times: rollbacks in all; the fault after that is raised, with a note that says how many there were.
        lr_factor: of the learning rates, more than 0 and at most 1.
        lam_factor: of λ, more than 0 and at most 1.

    Raises:
        TypeError, ValueError: for times below 1, or factors out of range.

    Example:
        >>> Rollback(times=5, lam_factor=1.0)  # fit(..., on_fault=Rollback(...))
        Rollback(times=5, lr_factor=0.5, lam_factor=1.0)
    """

    times: int = 3
    lr_factor: float = 0.5
    lam_factor: float = 0.5

    def __post_init__(self) -> None:
        integer("Rollback: times", self.times)
        for name in ("lr_factor", "lam_factor"):
            value = getattr(self, name)
            if not 0 < number(f"Rollback: {name}", value) <= 1:
                raise ValueError(
                    f"Rollback: {name}={value!r}: expected more than 0 and at most 1. Write {name}=0.5, or 1.0 "
                    "to leave it as it is."
                )


@dataclass(frozen=True)
class RolledBack:
    """One rollback of a run.

    Args:
        step: of the fault.
        why: the fault, with site or parameter and figures.
        back_to: the step that the run went back to.
        lr: learning rate from there on, of the optimiser's first group of parameters.
        lam: λ of the step gone back to, from there on.
    """

    step: int
    why: str
    back_to: int
    lr: float
    lam: Weight


def checked_on_fault(on_fault: Any) -> Rollback | None:
    """The option ``on_fault``: a policy, or None for ``"raise"``.

    Raises:
        TypeError, ValueError: if it is none.
    """
    if isinstance(on_fault, Rollback):
        return on_fault
    if isinstance(on_fault, str) and on_fault in ("raise", "rollback"):
        return Rollback() if on_fault == "rollback" else None
    error = ValueError if isinstance(on_fault, str) else TypeError
    raise error(
        f"on_fault={on_fault!r}: expected 'raise', 'rollback', or a Rollback. Write on_fault=Rollback(times=3, "
        "lr_factor=0.5, lam_factor=0.5), for instance."
    )


@dataclass(frozen=True)
class Scaled:
    """A schedule times a number.

    Args:
        schedule: any schedule.
        factor: of its λ, or of each site's.

    Example:
        >>> Scaled(lambda step, last_terms: {"z": 0.4}, 0.5)(0)
        {'z': 0.2}
    """

    schedule: Schedule
    factor: float

    def __call__(self, step: int, last_terms: Any = None) -> Any:
        """λ at a step."""
        return _times(self.schedule(step, last_terms), self.factor)


def _scaled(schedule: Schedule, factor: float) -> Schedule:
    """A schedule times a number; a constant stays one, which graphs know about."""
    if factor == 1:
        return schedule
    if isinstance(schedule, Constant):
        return Constant(_times(schedule.value, factor))
    return Scaled(schedule, factor)


def _times(lam: Any, factor: float) -> Any:
    if isinstance(lam, Mapping):
        return {site: factor * value for site, value in lam.items()}
    return factor * lam


class Rollbacks:
    """The rollbacks of one run: those that were made, and the states to go back to.

    Args:
        policy: whether and how to roll back; None to raise.
        schedule: λ without rollbacks.
    """

    def __init__(self, policy: Rollback | None, schedule: Schedule) -> None:
        self.policy, self._schedule = policy, schedule
        self.made: list[RolledBack] = []
        self.kept: list[dict[str, Any]] = []
        self._rate = self._weight = 1.0

    @property
    def columns(self) -> dict[str, float]:
        """What a row of the history says of them: nothing in a run that cannot have any."""
        return {"rollbacks": float(len(self.made))} if self.policy is not None or self.made else {}

    def noise(self, seed: int) -> int | str:
        """What the noise of a run with this seed is named after: fresh after each rollback."""
        return f"{seed}/rollback {len(self.made)}" if self.made else seed

    # ---- states -----------------------------------------------------------------------------

    def state(self, loop: Loop) -> dict[str, Any]:
        """What a run's state has of them."""
        bounds = list(loop.schedule.bounds) if isinstance(loop.schedule, Controlled) else None
        made = [asdict(record) for record in self.made]
        state: dict[str, Any] = plain_copy(
            {"rollbacks": made, "slowed": [self._rate, self._weight], "lam_bounds": bounds}
        )
        return state

    def load(self, loop: Loop, state: Mapping[str, Any]) -> None:
        """Take over what a state of the run has, after its parameters: its optimiser's rates are slowed already."""
        self.made = [RolledBack(**record) for record in state.get("rollbacks", [])]
        self._rate, self._weight = state.get("slowed", (1.0, 1.0))
        if loop.parameters.optimizer is not None and self._rate != 1:
            _slow_defaults(loop.parameters.optimizer, self._rate)
        if isinstance(loop.schedule, Controlled):
            if state.get("lam_bounds") is not None:
                loop.schedule.bounds = tuple(state["lam_bounds"])
        else:
            loop.schedule = _scaled(self._schedule, self._weight)

    def keep(self, state: dict[str, Any], unit: int) -> None:
        """Keep a good state, and of the older ones a few: the older, the further apart.

        Args:
            state: of a step that is a multiple of ``unit``.
            unit: steps between good states.
        """
        newest = state["step"] // unit
        wanted = {newest // age * age - back for age in AGES for back in (0, age)}
        older = [s for s in self.kept if s["step"] < state["step"]]
        self.kept = [s for i, s in enumerate(older) if i == 0 or s["step"] // unit in wanted] + [state]

    # ---- going back -------------------------------------------------------------------------

    def take(self, loop: Loop, fault: Fault) -> None:
        """Go back, and on more carefully.

        Raises:
            Fault: this one, where there is no policy or no rollback left.
        """
        policy = self.policy
        if policy is None or len(self.made) >= policy.times:
            if self.made:
                fault.add_note(f"The run had rolled back {len(self.made)} times: the log says why.")
            raise fault
        made, rate, weight = self.made, policy.lr_factor * self._rate, policy.lam_factor * self._weight
        lam, seconds, target = loop.lam, loop.seconds, self._target(fault)
        bounds = loop.schedule.bounds if isinstance(loop.schedule, Controlled) else None
        loop.load(target, rollback=True)
        loop.seconds = seconds  # what was in vain has taken its time, too
        self._slow(loop, rate, weight)
        if isinstance(loop.schedule, Controlled) and bounds is not None:
            loop.schedule.bounds = bounds
            loop.schedule.damp(policy.lam_factor, float(lam))  # type: ignore[arg-type]
        now, lr = loop.schedule(loop.step, loop.last_terms), _rate(loop.parameters.optimizer)
        self.made = [*made, RolledBack(fault.step, fault.summary, loop.step, lr, now)]
        pyro.set_rng_seed(_number(self.noise(loop.seed)))
        loop.good = loop.state()
        self.kept = [s for s in self.kept if s["step"] <= loop.step]
        if loop.processes.rank == 0:
            _log.warning(
                "%s. Rollback %d of %d: the run goes on from step %d with lr %.3g and lam %s.", fault.summary,
                len(self.made), policy.times, loop.step, lr, _shown(now),
            )  # fmt: skip

    def _target(self, fault: Fault) -> dict[str, Any]:
        """The last state from before the trouble; one before the last target where this has come again too soon."""
        limit = getattr(fault, "since", fault.step)
        if self.made and fault.step <= self.made[-1].step:
            limit = min(limit, self.made[-1].back_to - 1)
        return next((s for s in reversed(self.kept) if s["step"] <= limit), self.kept[0])

    def _slow(self, loop: Loop, rate: float, weight: float) -> None:
        """Bring learning rates and λ, which are those of a state just loaded, down to these factors in all."""
        if loop.parameters.optimizer is not None:
            slow_down(loop.parameters.optimizer, loop.parameters.scheduler, rate / self._rate)
        if not isinstance(loop.schedule, Controlled):
            loop.schedule = _scaled(self._schedule, weight)
        self._rate, self._weight = rate, weight


def slow_down(optimizer: torch.optim.Optimizer, scheduler: Any, factor: float) -> None:
    """Multiply the learning rates of an optimiser, and all that its scheduler makes them from, by a factor."""
    for group in optimizer.param_groups:
        for name in _GROUP_RATES:
            if group.get(name) is not None:
                group[name] = group[name] * factor
    _slow_defaults(optimizer, factor)
    for part in _parts(scheduler):
        for name in _SCHEDULER_RATES:
            value = getattr(part, name, None)
            if value is not None:
                setattr(part, name, [v * factor for v in value] if isinstance(value, list) else value * factor)


def _slow_defaults(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """The rate of a group that joins later."""
    if isinstance(optimizer.defaults.get("lr"), float):
        optimizer.defaults["lr"] *= factor


def _parts(scheduler: Any) -> Iterator[Any]:
    """A scheduler, and those that it is made of."""
    if scheduler is not None:
        yield scheduler
        for part in getattr(scheduler, "_schedulers", []):
            yield from _parts(part)


def _rate(optimizer: torch.optim.Optimizer | None) -> float:
    return 0.0 if optimizer is None else float(optimizer.param_groups[0]["lr"])


def _number(text: Any) -> int:
    """A seed from a text."""
    return int.from_bytes(hashlib.sha256(str(text).encode()).digest()[:4], "little")


def _shown(lam: Weight) -> str:
    if isinstance(lam, Mapping):
        return "{" + ", ".join(f"'{site}': {float(value):.3g}" for site, value in lam.items()) + "}"
    return f"{float(lam):.3g}"
