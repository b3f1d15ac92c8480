"""Schedules: the entropy weight λ, of either sign, as a function of the step.

A schedule is any callable ``lam(step, last_terms)``. Those below are frozen dataclasses without state,
written to JSON by ``to_config`` and read by ``from_config``. In the formulas t is the step, from 0.
Durations count in ``unit``, "steps" (the default) or "epochs"; λ can move at every step in both. Every class
refuses wrong arguments: ``TypeError`` for what is no number or list, ``ValueError`` for one out of range.

To add one: a subclass of ``_Timed`` whose fields name their kind, an entry in ``__all__`` and in
``_CLASSES``, a table of its values in the tests.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol, TypeAlias

if TYPE_CHECKING:
    from banel_pyro.terms import LossTerms

__all__ = ["Constant", "Cosine", "Cyclical", "Exponential", "Join", "Linear", "Piecewise", "Schedule"]
__all__ += ["Warmup", "as_schedule", "bind", "from_config", "to_config"]

Lam: TypeAlias = float | Mapping[str, float]


class Schedule(Protocol):
    """Any callable of the step and the last logged terms that gives λ."""

    def __call__(self, step: int, last_terms: LossTerms | None, /) -> Lam:
        """Return λ at ``step``, from 0; ``last_terms`` is None before the first log point."""
        ...


def _is_count(x: float) -> bool:
    return x >= 1 and x.is_integer()


_KINDS: dict[str, tuple[Callable[[float], bool], str, str]] = {  # of numbers: the test, its words, the remedy
    "number": (math.isfinite, "a finite number", "write the number you mean instead of NaN or infinity"),
    "fraction": (lambda x: 0 < x <= 1, "more than 0 and at most 1", "write a fraction such as 0.5"),
    "epochs": (lambda x: 0 < x < math.inf, "more than 0 epochs", "write a positive number such as 0.5"),
    "steps": (_is_count, "whole steps, at least 1", "write 1 or more, or use unit='epochs'"),
    "count": (_is_count, "a whole number, at least 1", "give the number of batches in one epoch"),
}
_NUMBER, _FRACTION, _DURATION, _SCHEDULE = ({"kind": kind} for kind in ("number", "fraction", "duration", "schedule"))
_LIST = {"list": True}  # the field holds a list of its kind


def _refuse(label: str, value: Any, expected: str, remedy: str, error: type[Exception] = ValueError) -> NoReturn:
    raise error(f"{label}={value!r}: expected {expected}; {remedy}")


def _number(label: str, value: Any, kind: str = "number") -> float:
    holds, expected, remedy = _KINDS[kind]
    if isinstance(value, bool) or not isinstance(value, Real):
        _refuse(label, value, "a number", "write an int or a float", TypeError)
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf
    if not holds(number):
        _refuse(label, value, expected, remedy)
    return int(number) if holds is _is_count else number


def _lam(label: str, value: Any) -> Lam:
    if not isinstance(value, Mapping):
        return _number(label, value)
    if not all(isinstance(site, str) for site in value):
        _refuse(label, value, "site names as keys", "write a mapping such as {'z': 0.4}", TypeError)
    return {site: _number(f"{label}[{site!r}]", lam) for site, lam in value.items()}


def _between(start: float, stop: float, fraction: float) -> float:
    return start * (1.0 - fraction) + stop * fraction  # exact at both ends


@dataclass(frozen=True)
class Constant:
    """The same value at every step: λ(t) = value.

    Args:
        value: A number, or ``{site: number}`` with one λ for each latent site.

    >>> Constant({"z": 0.4})(10_000)
    {'z': 0.4}
    """

    value: Lam

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", _lam("Constant: value", self.value))

    def __call__(self, step: int, last_terms: LossTerms | None = None) -> Lam:
        """Return the value; a mapping comes as a copy."""
        return dict(self.value) if isinstance(self.value, Mapping) else self.value


@dataclass(frozen=True, repr=False)
class _Timed(ABC):
    """A schedule with durations: each field is checked by its kind, and one in epochs waits for ``bind``."""

    unit: Literal["steps", "epochs"] = field(default="steps", kw_only=True)

    def __post_init__(self) -> None:
        if self.unit not in ("steps", "epochs"):
            _refuse(self._label("unit"), self.unit, "'steps' or 'epochs'", "write one of the two")
        for f in fields(self)[1:]:
            label, value, kind = self._label(f.name), getattr(self, f.name), f.metadata["kind"]
            if "list" not in f.metadata:
                value = self._checked(label, value, kind)
            elif isinstance(value, list | tuple):
                value = tuple(self._checked(f"{label}[{i}]", item, kind) for i, item in enumerate(value))
            else:
                _refuse(label, value, "a list or a tuple", f"write {f.name}=[...]", TypeError)
            object.__setattr__(self, f.name, value)

    def _label(self, name: str) -> str:
        return f"{type(self).__name__}: {name}"

    def _checked(self, label: str, value: Any, kind: str) -> Any:
        if kind != "schedule":
            return _number(label, value, self.unit if kind == "duration" else kind)
        schedule = as_schedule(value, name=label)
        if isinstance(schedule, _Timed) and schedule.unit != self.unit:  # silently mixed clocks are a trap
            remedy = "give both the same unit, or turn epochs into steps with bind(schedule, steps_per_epoch)"
            _refuse(label, schedule, f"unit={self.unit!r} as in the schedule around it", remedy)
        return schedule

    def _check_pieces(self, name: str, boundaries: Sequence[float]) -> None:
        pieces, count = getattr(self, name), len(boundaries) + 1
        if list(boundaries) != sorted(set(boundaries)):
            remedy = "sort them and drop repeated ones"
            _refuse(self._label("boundaries"), boundaries, "strictly increasing", remedy)
        if len(pieces) != count:
            expected = f"{count} of them for boundaries={boundaries}, not {len(pieces)}"
            _refuse(self._label(name), pieces, expected, "add or drop one")

    @abstractmethod
    def _at(self, step: int, last_terms: LossTerms | None) -> Lam: ...

    def __call__(self, step: int, last_terms: LossTerms | None = None) -> Lam:
        if self.unit != "steps":
            remedy = "fit binds it to its steps per epoch, by hand call bind(schedule, steps_per_epoch)"
            _refuse("schedule", self, "unit='steps' when it is called", remedy)
        if step < 0:
            _refuse(self._label("step"), step, "0 or more", "count the steps from 0")
        return self._at(step, last_terms)

    def __repr__(self) -> str:
        names = [f.name for f in fields(self)[1:]] + ["unit"] * (self.unit != "steps")
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"


@dataclass(frozen=True, repr=False)
class Linear(_Timed):
    """A line, then constant: λ(t) = start + (stop - start) t / over for t < over, stop for t ≥ over.

    Args:
        start: λ at step 0.
        stop: λ from ``over`` on.
        over: Length of the line, in ``unit``.
        unit: "steps" or "epochs".

    >>> [Linear(0.0, 0.5, over=4)(t) for t in (0, 1, 3, 4, 5)]
    [0.0, 0.125, 0.375, 0.5, 0.5]
    """

    start: float = field(metadata=_NUMBER)
    stop: float = field(metadata=_NUMBER)
    over: float = field(metadata=_DURATION)

    def _at(self, step: int, last_terms: LossTerms | None) -> float:
        return _between(self.start, self.stop, self._shape(min(step / self.over, 1.0)))

    def _shape(self, fraction: float) -> float:
        return fraction


@dataclass(frozen=True, repr=False)
class Cosine(Linear):
    """Half a cosine, level at both ends, then constant.

    λ(t) = start + (stop - start) (1 - cos(π t / over)) / 2 for t < over, stop for t ≥ over: the shape of
    Loshchilov and Hutter 2017, arXiv 1608.03983.

    Args:
        start, stop, over, unit: As in ``Linear``.

    >>> [round(Cosine(1.0, 0.0, over=4)(t), 4) for t in (0, 1, 2, 4, 5)]
    [1.0, 0.8536, 0.5, 0.0, 0.0]
    """

    def _shape(self, fraction: float) -> float:
        return (1.0 - math.cos(math.pi * fraction)) / 2.0


@dataclass(frozen=True, repr=False)
class Exponential(_Timed):
    """A decay in jumps down to a floor: λ ← max(lam_min, decay λ) each time ``every`` has passed.

    λ(t) = max(lam_min, lam0 decay^floor(t / every)).

    Args:
        lam0: λ for t < every; a negative one rises towards 0.
        decay: The factor, in (0, 1].
        every: Time between two decays, in ``unit``.
        lam_min: The floor, at most ``lam0``.
        unit: "steps" or "epochs".

    >>> [Exponential(1.0, 0.5, every=3, lam_min=0.2)(t) for t in (0, 2, 3, 6, 9, 12)]
    [1.0, 1.0, 0.5, 0.25, 0.2, 0.2]
    """

    lam0: float = field(metadata=_NUMBER)
    decay: float = field(metadata=_FRACTION)
    every: float = field(metadata=_DURATION)
    lam_min: float = field(metadata=_NUMBER)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lam_min > self.lam0:
            remedy = "lower lam_min, or rise with Linear"
            _refuse(self._label("lam_min"), self.lam_min, f"at most lam0={self.lam0}", remedy)

    def _at(self, step: int, last_terms: LossTerms | None) -> float:
        return max(self.lam_min, self.lam0 * math.pow(self.decay, step // self.every))


@dataclass(frozen=True, repr=False)
class Cyclical(_Timed):
    """A line, then hold, anew in each period.

    λ(t) = start + (stop - start) min(1, τ / ramp_fraction), τ = (t mod period) / period: cyclical annealing,
    Fu et al. 2019, arXiv 1903.10145; ``ramp_fraction`` is R there.

    Args:
        start: λ at the first step of each period.
        stop: λ held after the line.
        period: Length of one cycle, in ``unit``.
        ramp_fraction: The part of a period that the line takes, in (0, 1].
        unit: "steps" or "epochs".

    >>> [Cyclical(0.0, 1.0, period=8)(t) for t in (0, 2, 4, 7, 8, 10)]
    [0.0, 0.5, 1.0, 1.0, 0.0, 0.5]
    """

    start: float = field(metadata=_NUMBER)
    stop: float = field(metadata=_NUMBER)
    period: float = field(metadata=_DURATION)
    ramp_fraction: float = field(default=0.5, kw_only=True, metadata=_FRACTION)

    def _at(self, step: int, last_terms: LossTerms | None) -> float:
        line = self.ramp_fraction * self.period
        return _between(self.start, self.stop, min(step % self.period / line, 1.0))


@dataclass(frozen=True, repr=False)
class Piecewise(_Timed):
    """Constant between boundaries: λ(t) = values[i] for boundaries[i-1] ≤ t < boundaries[i].

    Args:
        boundaries: When the value changes, in ``unit``, strictly increasing.
        values: One more than boundaries.
        unit: "steps" or "epochs".

    >>> [Piecewise([2, 5], [0.0, 0.1, 0.4])(t) for t in (0, 1, 2, 4, 5, 9)]
    [0.0, 0.0, 0.1, 0.1, 0.4, 0.4]
    """

    boundaries: Sequence[float] = field(metadata=_DURATION | _LIST)
    values: Sequence[float] = field(metadata=_NUMBER | _LIST)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_pieces("values", self.boundaries)

    def _at(self, step: int, last_terms: LossTerms | None) -> float:
        return self.values[bisect_right(self.boundaries, step)]


@dataclass(frozen=True, repr=False)
class Join(_Timed):
    """One schedule after another, each from its own step 0, as in ``optax.join_schedules``.

    λ(t) = schedules[i](t - boundaries[i-1]) for boundaries[i-1] ≤ t < boundaries[i]; before: schedules[0](t).

    Args:
        schedules: Schedules (if with a unit, the same), numbers or mappings; one more than boundaries.
        boundaries: When the next one takes over, in ``unit``, strictly increasing.
        unit: "steps" or "epochs".

    >>> [Join([Linear(0.0, 1.0, over=4), 0.2], [2])(t) for t in (0, 1, 2, 3)]
    [0.0, 0.25, 0.2, 0.2]
    """

    schedules: Sequence[Any] = field(metadata=_SCHEDULE | _LIST)
    boundaries: Sequence[float] = field(metadata=_DURATION | _LIST)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_pieces("schedules", self.boundaries)

    def _at(self, step: int, last_terms: LossTerms | None) -> Lam:
        i = bisect_right(self.boundaries, step)
        schedule: Schedule = self.schedules[i]
        return schedule(step - int(self.boundaries[i - 1]) if i else step, last_terms)


@dataclass(frozen=True, repr=False)
class Warmup(_Timed):
    """A line from 0 to where ``then`` starts, and on with ``then``.

    λ(t) = then(0) t / over for t < over, then(t - over) for t ≥ over.

    Args:
        over: Length of the line, in ``unit``.
        then: A schedule (if it has a unit, the same), a number or ``{site: number}``.
        unit: "steps" or "epochs".

    >>> [Warmup(4, 0.4)(t) for t in (0, 1, 2, 4, 5)]
    [0.0, 0.1, 0.2, 0.4, 0.4]
    """

    over: float = field(metadata=_DURATION)
    then: Any = field(metadata=_SCHEDULE)

    def _at(self, step: int, last_terms: LossTerms | None) -> Lam:
        lam: Lam = self.then(max(step - int(self.over), 0), last_terms)
        fraction = min(step / self.over, 1.0)
        return {site: fraction * x for site, x in lam.items()} if isinstance(lam, Mapping) else fraction * lam


_CLASSES: dict[str, type[Any]] = {
    cls.__name__: cls for cls in (Constant, Linear, Cosine, Exponential, Cyclical, Piecewise, Join, Warmup)
}


def as_schedule(lam: Any, *, name: str = "lam") -> Schedule:
    """Return a number or ``{site: number}`` as ``Constant``, and a callable as it is.

    Args:
        lam: A number, a mapping, a schedule, or any callable of (step, last_terms).
        name: What error messages call it.

    Raises:
        TypeError: It is none of these.
        ValueError: A number is not finite.
    """
    if isinstance(lam, type) or not (callable(lam) or isinstance(lam, Real | Mapping)):
        remedy = "write one such as 0.4 or Linear(0.0, 0.4, over=1000)"
        _refuse(name, lam, "a number, {site: number} or a schedule", remedy, TypeError)
    schedule: Schedule = lam if callable(lam) else Constant(_lam(name, lam))
    return schedule


def bind(schedule: Schedule, steps_per_epoch: int) -> Schedule:
    """Return a schedule in epochs as the same in steps, with those inside it, and any other as it is.

    Args:
        schedule: Any schedule, your own callable too.
        steps_per_epoch: Optimisation steps in one epoch; durations become the nearest whole number of steps.

    Raises:
        ValueError: ``steps_per_epoch`` is no whole number from 1 on, or a duration rounds to no step.

    >>> bind(Linear(0.0, 0.4, over=2.5, unit="epochs"), steps_per_epoch=30)
    Linear(start=0.0, stop=0.4, over=75)
    """
    steps = int(_number("steps_per_epoch", steps_per_epoch, "count"))
    if not isinstance(schedule, _Timed) or schedule.unit == "steps":
        return schedule
    convert = {"duration": lambda x: round(x * steps), "schedule": lambda inner: bind(inner, steps)}
    kinds = {f.name: f.metadata["kind"] for f in fields(schedule)[1:]}
    changes = {name: _map(convert[k], getattr(schedule, name)) for name, k in kinds.items() if k in convert}
    try:
        return replace(schedule, unit="steps", **changes)
    except ValueError:
        expected = f"durations, and gaps between boundaries, of at least one step at steps_per_epoch={steps}"
        _refuse("schedule", schedule, expected, "lengthen the short ones")


def to_config(schedule: Schedule) -> dict[str, Any]:
    """Return what JSON can hold of a schedule: the name of its class under "class", and its fields.

    Args:
        schedule: One of this module, as are those inside it.

    Raises:
        TypeError: It, or one inside it, is a callable of your own.
    """
    if type(schedule) not in _CLASSES.values():
        _refuse("schedule", schedule, f"one of {', '.join(_CLASSES)}", "only these go to JSON", TypeError)
    values = {f.name: getattr(schedule, f.name) for f in fields(_CLASSES[type(schedule).__name__])}
    return {"class": type(schedule).__name__} | {name: _map(_encode, value) for name, value in values.items()}


def from_config(config: Mapping[str, Any]) -> Schedule:
    """Return the schedule that ``to_config`` wrote; class names are looked up here, nothing is evaluated.

    Args:
        config: The class name under "class", and that class's fields.

    Raises:
        TypeError, ValueError: An unknown class, missing or unknown fields, or values that the class refuses.

    >>> from_config({"class": "Linear", "start": 0.0, "stop": 0.4, "over": 10})
    Linear(start=0.0, stop=0.4, over=10)
    """
    cls = _CLASSES.get(str(config.get("class"))) if isinstance(config, Mapping) else None
    if cls is None:
        expected = f"a mapping whose 'class' is one of {', '.join(_CLASSES)}"
        _refuse("config", config, expected, "name one of these")
    values = {name: _map(_decode, value) for name, value in config.items() if name != "class"}
    optional = {f.name for f in fields(cls) if f.default is not MISSING}
    required = {f.name for f in fields(cls)} - optional
    if not required <= values.keys() <= required | optional:
        expected = f"the fields {sorted(required)} and at will {sorted(optional)}"
        _refuse("config", config, expected, f"write those of {cls.__name__}")
    schedule: Schedule = cls(**values)
    return schedule


def _encode(value: Any) -> Any:
    return to_config(value) if callable(value) else dict(value) if isinstance(value, Mapping) else value


def _decode(value: Any) -> Any:
    return from_config(value) if isinstance(value, Mapping) and isinstance(value.get("class"), str) else value


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    return [function(x) for x in value] if isinstance(value, list | tuple) else function(value)
