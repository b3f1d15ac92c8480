"""Schedules: their values at the boundaries, their two units, JSON and back, and what they refuse."""

import inspect
import itertools
import json
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest
import torch

from banel_pyro import schedules
from banel_pyro.schedules import (
    Constant,
    Cosine,
    Cyclical,
    Exponential,
    Join,
    Linear,
    Piecewise,
    Warmup,
    as_schedule,
    bind,
    from_config,
    to_config,
)

# One line per claim: a schedule and its value at each step, the steps around every boundary among them.
TABLES = [
    (Constant(0.4), {0: 0.4, 1: 0.4, 10**9: 0.4}),
    (Constant(-1), {0: -1.0}),
    (Constant({"z": 0.4, "w": -0.1}), {0: {"z": 0.4, "w": -0.1}, 7: {"z": 0.4, "w": -0.1}}),
    (Linear(0.0, 0.5, 4), {0: 0.0, 1: 0.125, 2: 0.25, 3: 0.375, 4: 0.5, 5: 0.5, 10**9: 0.5}),
    (Linear(0.5, -0.5, 4), {0: 0.5, 1: 0.25, 2: 0.0, 3: -0.25, 4: -0.5, 5: -0.5}),
    (Linear(0.1, 0.7, 1), {0: 0.1, 1: 0.7, 2: 0.7}),
    (Cosine(1.0, 0.0, 4), {0: 1.0, 1: 0.8535533905932737, 2: 0.5, 3: 0.1464466094067262, 4: 0.0, 5: 0.0}),
    (Cosine(-0.2, 0.6, 3), {0: -0.2, 1: 0.0, 2: 0.4, 3: 0.6, 4: 0.6}),
    (
        Exponential(1.0, 0.5, 3, 0.2),
        {0: 1.0, 1: 1.0, 2: 1.0, 3: 0.5, 5: 0.5, 6: 0.25, 8: 0.25, 9: 0.2, 10**9: 0.2},
    ),
    (Exponential(-1.0, 0.5, 1, -1.0), {0: -1.0, 1: -0.5, 2: -0.25}),
    (Exponential(0.3, 1.0, 2, 0.0), {0: 0.3, 2: 0.3, 1000: 0.3}),
    (Cyclical(0.0, 1.0, 8), {0: 0, 1: 0.25, 3: 0.75, 4: 1, 5: 1, 7: 1, 8: 0, 9: 0.25, 12: 1, 15: 1, 16: 0}),
    (Cyclical(0.4, 0.0, 4, ramp_fraction=0.25), {0: 0.4, 1: 0.0, 3: 0.0, 4: 0.4, 5: 0.0}),
    (Cyclical(0.0, 1.0, 4, ramp_fraction=1), {0: 0.0, 1: 0.25, 3: 0.75, 4: 0.0}),
    (Piecewise([2, 5], [0.0, -0.1, 0.4]), {0: 0.0, 1: 0.0, 2: -0.1, 4: -0.1, 5: 0.4, 6: 0.4, 10**9: 0.4}),
    (Join([Linear(0.0, 1.0, 4), 0.2, Linear(0.2, 0.6, 2)], [3, 5]),
     {0: 0.0, 2: 0.5, 3: 0.2, 4: 0.2, 5: 0.2, 6: 0.4, 7: 0.6, 8: 0.6}),
    (Warmup(4, 0.4), {0: 0.0, 1: 0.1, 3: 0.3, 4: 0.4, 5: 0.4}),
    (Warmup(2, Linear(1.0, 0.0, 4)), {0: 0.0, 1: 0.5, 2: 1.0, 3: 0.75, 5: 0.25, 6: 0.0, 7: 0.0}),
    (Warmup(2, {"z": 0.4, "w": -1}), {0: {"z": 0, "w": 0}, 1: {"z": 0.2, "w": -0.5}, 2: {"z": 0.4, "w": -1}}),
]  # fmt: skip

# Every class that has a unit, in epochs: bound to 10 steps per epoch it must equal its twin in steps.
EPOCHS = [
    (Linear(0.0, 0.4, 2.5, unit="epochs"), Linear(0.0, 0.4, 25)),
    (Cosine(0.0, 0.4, 3, unit="epochs"), Cosine(0.0, 0.4, 30)),
    (Exponential(1.0, 0.9, 0.1, 0.01, unit="epochs"), Exponential(1.0, 0.9, 1, 0.01)),
    (Cyclical(0.0, 1.0, 2, ramp_fraction=0.7, unit="epochs"), Cyclical(0.0, 1.0, 20, ramp_fraction=0.7)),
    (Piecewise([0.3, 2], [0, 1, 2], unit="epochs"), Piecewise([3, 20], [0, 1, 2])),
    (
        Join([0.1, Warmup(1, Linear(1, 0, 2, unit="epochs"), unit="epochs")], [2], unit="epochs"),
        Join([0.1, Warmup(10, Linear(1, 0, 20))], [20]),
    ),
    (
        Warmup(0.5, Cyclical(0.1, 0.4, 1, unit="epochs"), unit="epochs"),
        Warmup(5, Cyclical(0.1, 0.4, 10)),
    ),
]

CLASSES = [
    member
    for name in schedules.__all__
    if inspect.isclass(member := getattr(schedules, name)) and member is not schedules.Schedule
]
ALL = [schedule for schedule, _ in TABLES] + [schedule for pair in EPOCHS for schedule in pair]


@pytest.mark.parametrize(("schedule", "table"), TABLES, ids=lambda x: repr(x) if callable(x) else "")
def test_values_at_the_boundaries(schedule, table):
    for step, expected in table.items():
        value = schedule(step, None)
        assert value == pytest.approx(expected, rel=1e-15, abs=1e-16), f"step {step}"
        assert schedule(step) == value


@pytest.mark.parametrize("cls", CLASSES)
def test_every_exported_class_is_in_the_lists(cls):
    assert any(type(schedule) is cls for schedule, _ in TABLES)
    assert cls is Constant or any(type(schedule) is cls for schedule, _ in EPOCHS)
    assert cls is Constant or fields(cls)[0].kw_only  # the unit


def test_every_concrete_class_is_exported():
    defined = {name for name, member in vars(schedules).items() if hasattr(member, "__dataclass_fields__")}
    assert {cls.__name__ for cls in CLASSES} == {name for name in defined if not name.startswith("_")}


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_json_and_back(schedule):
    config = to_config(schedule)
    again = from_config(json.loads(json.dumps(config, allow_nan=False)))
    assert again == schedule
    assert type(again) is type(schedule)
    assert repr(again) == repr(schedule)
    assert to_config(again) == config == json.loads(json.dumps(config))


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_printed_as_it_is_written(schedule):
    assert eval(repr(schedule), {cls.__name__: cls for cls in CLASSES}) == schedule


def test_print():
    assert str(Linear(0, 0.4, over=100)) == "Linear(start=0.0, stop=0.4, over=100)"
    assert str(Warmup(2, 0.4, unit="epochs")) == "Warmup(over=2.0, then=Constant(value=0.4), unit='epochs')"


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_frozen(schedule):
    with pytest.raises(FrozenInstanceError):
        setattr(schedule, fields(schedule)[0].name, 1)


@pytest.mark.parametrize(("epochs", "steps"), EPOCHS, ids=repr)
def test_bind_turns_epochs_into_steps(epochs, steps):
    bound = bind(epochs, 10)
    assert bound == steps
    assert [bound(t) for t in range(80)] == [steps(t) for t in range(80)]
    assert bind(bound, 7) is bound


@pytest.mark.parametrize("schedule", [schedule for schedule, _ in EPOCHS], ids=repr)
def test_unbound_epochs_are_refused_when_called(schedule):
    with pytest.raises(ValueError, match=r"unit='epochs'\).* fit binds .*bind\(schedule, steps_per_epoch\)"):
        schedule(0)


def test_bind_rounds_to_the_nearest_step():
    # 0.1 * 30 is above 3 in floating point: the decay must fall on step 3 all the same
    assert bind(Exponential(1.0, 0.5, 0.1, 0.0, unit="epochs"), 30)(3) == 0.5
    assert bind(Linear(0, 1, 1 / 3, unit="epochs"), 10) == Linear(0, 1, 3)
    assert bind(Linear(0, 1, 0.29, unit="epochs"), 100) == Linear(0, 1, 29)  # 0.29 * 100 is below 29


def test_bind_leaves_what_counts_in_steps():
    def own(step, last_terms):
        return 0.1

    assert bind(own, 10) is own
    assert bind(Constant(0.3), 10) == Constant(0.3)
    assert bind(Linear(0, 1, 5), 10) == Linear(0, 1, 5)
    assert bind(Join([own, 0.2], [2], unit="epochs"), 10) == Join([own, 0.2], [20])


@pytest.mark.parametrize(("lam0", "decay", "every", "lam_min"), [(1.0, 0.7, 3, 0.15), (-0.5, 0.8, 2, -0.9)])
def test_exponential_is_the_recursion(lam0, decay, every, lam_min):
    schedule, lam = Exponential(lam0, decay, every, lam_min), lam0
    for step in range(40):
        if step and step % every == 0:
            lam = max(lam_min, decay * lam)
        assert schedule(step) == pytest.approx(lam, rel=1e-13)


def test_ramps_end_exactly_where_they_should():
    for cls, start, stop in itertools.product((Linear, Cosine), (0.1, -0.7, 1e300), (0.3, -1.1, -1e300)):
        schedule = cls(start, stop, 7)
        assert [schedule(0), schedule(7), schedule(8)] == [start, stop, stop]


def test_inner_schedules_get_their_own_step_and_the_last_terms():
    calls = []

    def own(step, last_terms):
        calls.append((step, last_terms))
        return 0.8

    terms = object()
    assert Join([0.0, own], [3])(5, terms) == 0.8
    assert [Warmup(4, own)(t, terms) for t in (1, 3, 4, 6)] == pytest.approx([0.2, 0.6, 0.8, 0.8], rel=1e-15)
    assert calls == [(2, terms), (0, terms), (0, terms), (0, terms), (2, terms)]


def test_a_mapping_cannot_be_changed_through_its_copies():
    given = {"z": 0.4}
    schedule = Constant(given)
    given["z"] = schedule(0)["z"] = to_config(schedule)["value"]["z"] = 9.0
    assert schedule(0) == {"z": 0.4}


def test_a_site_may_be_called_class():
    schedule = Warmup(3, {"class": 0.4})
    assert from_config(json.loads(json.dumps(to_config(schedule)))) == schedule


def test_numbers_of_numpy_become_plain_ones():
    schedule = Linear(np.float32(0.5), np.int64(1), np.int64(4))
    assert [type(x) for x in (schedule.start, schedule.stop, schedule.over)] == [float, float, int]
    assert Linear(0, 1, 1e3).over == 1000


def test_as_schedule():
    def own(step, last_terms):
        return 0.1

    line = Linear(0, 1, 3)
    assert as_schedule(0.4) == as_schedule(np.float64(0.4)) == Constant(0.4)
    assert as_schedule({"z": -0.4}) == Constant({"z": -0.4})
    assert as_schedule(line) is line
    assert as_schedule(own) is own


# What is refused: the call, the error, and what its message must hold: name, value, remedy.
NAN, INF = float("nan"), float("inf")
REFUSED = {
    "nan": (lambda: Constant(NAN), ValueError, "Constant: value=nan", "write the number you mean"),
    "site nan": (lambda: Constant({"z": NAN}), ValueError, "Constant: value['z']=nan", "write the number"),
    "site name": (lambda: Constant({1: 0.4}), TypeError, "Constant: value={1: 0.4}", "{'z': 0.4}"),
    "bool": (lambda: Constant(True), TypeError, "Constant: value=True", "write an int or a float"),
    "string": (lambda: Linear("0", 1, 3), TypeError, "Linear: start='0'", "write an int or a float"),
    "tensor": (lambda: Linear(0, torch.tensor(1.0), 3), TypeError, "Linear: stop=tensor(1.)", "write an int"),
    "infinite": (lambda: Cosine(0, INF, 3), ValueError, "Cosine: stop=inf", "write the number you mean"),
    "infinite ramp": (lambda: Linear(0, 1, INF), ValueError, "Linear: over=inf", "write 1 or more"),
    "nan epochs": (
        lambda: Linear(0, 1, NAN, unit="epochs"),
        ValueError,
        "over=nan",
        "write a positive number",
    ),
    "negative": (lambda: Linear(0, 1, -5), ValueError, "Linear: over=-5", "write 1 or more"),
    "no time": (lambda: Cosine(0, 1, 0), ValueError, "Cosine: over=0", "write 1 or more"),
    "bool steps": (lambda: Linear(0, 1, True), TypeError, "Linear: over=True", "write an int or a float"),
    "part of a step": (lambda: Warmup(2.5, 1), ValueError, "Warmup: over=2.5", "or use unit='epochs'"),
    "no epochs": (lambda: Linear(0, 1, 0, unit="epochs"), ValueError, "over=0", "write a positive number"),
    "unit": (lambda: Linear(0, 1, 3, unit="days"), ValueError, "Linear: unit='days'", "write one of the two"),
    "unit list": (
        lambda: Linear(0, 1, 3, unit=["steps"]),
        ValueError,
        "unit=['steps']",
        "write one of the two",
    ),
    "lists": (lambda: Linear([0, 1], 1, 3), TypeError, "Linear: start=[0, 1]", "write an int or a float"),
    "decay 0": (lambda: Exponential(1, 0, 3, 0), ValueError, "Exponential: decay=0", "write a fraction"),
    "decay > 1": (
        lambda: Exponential(1, 1.1, 3, 0),
        ValueError,
        "Exponential: decay=1.1",
        "write a fraction",
    ),
    "every": (lambda: Exponential(1, 0.5, -3, 0), ValueError, "Exponential: every=-3", "write 1 or more"),
    "floor": (
        lambda: Exponential(0.1, 0.5, 3, 0.2),
        ValueError,
        "lam_min=0.2: expected at most lam0=0.1",
        "lower lam_min",
    ),
    "period": (lambda: Cyclical(0, 1, 0), ValueError, "Cyclical: period=0", "write 1 or more"),
    "ramp 0": (lambda: Cyclical(0, 1, 3, ramp_fraction=0), ValueError, "ramp_fraction=0", "write a fraction"),
    "ramp > 1": (
        lambda: Cyclical(0, 1, 3, ramp_fraction=2),
        ValueError,
        "ramp_fraction=2",
        "write a fraction",
    ),
    "ramp nan": (
        lambda: Cyclical(0, 1, 3, ramp_fraction=NAN),
        ValueError,
        "ramp_fraction=nan",
        "write a fraction",
    ),
    "too few": (
        lambda: Piecewise([2], [1]),
        ValueError,
        "Piecewise: values=(1.0,): expected 2",
        "add or drop one",
    ),
    "too many": (
        lambda: Piecewise([], [1, 2]),
        ValueError,
        "Piecewise: values=(1.0, 2.0): expected 1",
        "add or drop",
    ),
    "unsorted": (lambda: Piecewise([5, 2], [1, 2, 3]), ValueError, "boundaries=(5, 2)", "sort them"),
    "repeated": (
        lambda: Join([1, 2, 3], [2, 2]),
        ValueError,
        "Join: boundaries=(2, 2)",
        "drop repeated ones",
    ),
    "at 0": (lambda: Piecewise([0], [1, 2]), ValueError, "Piecewise: boundaries[0]=0", "write 1 or more"),
    "no list": (lambda: Piecewise(2, [1, 2]), TypeError, "Piecewise: boundaries=2", "write boundaries=[...]"),
    "text list": (lambda: Piecewise([2], "12"), TypeError, "Piecewise: values='12'", "write values=[...]"),
    "value": (lambda: Piecewise([2], [1, INF]), ValueError, "Piecewise: values[1]=inf", "write the number"),
    "schedules": (
        lambda: Join([1], [2]),
        ValueError,
        "Join: schedules=(Constant(value=1.0),): expected 2",
        "add",
    ),
    "inner": (
        lambda: Join([1, "x"], [2]),
        TypeError,
        "Join: schedules[1]='x'",
        "Linear(0.0, 0.4, over=1000)",
    ),
    "then": (lambda: Warmup(2, NAN), ValueError, "Warmup: then=nan", "write the number you mean"),
    "two units": (
        lambda: Warmup(2, Linear(1, 0, 8), unit="epochs"),
        ValueError,
        "Warmup: then=Linear(start=1.0, stop=0.0, over=8): expected unit='epochs'",
        "give both the same unit",
    ),
    "step": (lambda: Linear(0, 1, 3)(-1), ValueError, "Linear: step=-1", "count the steps from 0"),
    "lam none": (lambda: as_schedule(None), TypeError, "lam=None", "write one such as 0.4 or Linear("),
    "lam nan": (lambda: as_schedule(NAN), ValueError, "lam=nan", "write the number you mean"),
    "lam bool": (lambda: as_schedule(True), TypeError, "lam=True", "write an int or a float"),
    "lam class": (lambda: as_schedule(Linear), TypeError, "lam=<class", "Linear(0.0, 0.4, over=1000)"),
    "lam name": (lambda: as_schedule("a", name="beta"), TypeError, "beta='a'", "write one such as"),
    "bind 0": (lambda: bind(Linear(0, 1, 3), 0), ValueError, "steps_per_epoch=0", "number of batches"),
    "bind 1.5": (lambda: bind(Constant(1), 1.5), ValueError, "steps_per_epoch=1.5", "number of batches"),
    "bind short": (
        lambda: bind(Join([1, 2], [0.04], unit="epochs"), 10),
        ValueError,
        "boundaries=(0.04,), unit='epochs'): expected",
        "at steps_per_epoch=10; lengthen the short ones",
    ),
    "bind close": (
        lambda: bind(Piecewise([1, 1.01], [1, 2, 3], unit="epochs"), 10),
        ValueError,
        "boundaries=(1.0, 1.01)",
        "lengthen the short ones",
    ),
    "own to json": (
        lambda: to_config(Warmup(2, max)),
        TypeError,
        "schedule=<built-in function max>",
        "Linear",
    ),
    "number to json": (lambda: to_config(0.4), TypeError, "schedule=0.4", "Warmup"),
    "json class": (
        lambda: from_config({"class": "os.system"}),
        ValueError,
        "'os.system'",
        "one of Constant, Linear",
    ),
    "json no class": (
        lambda: from_config({"value": 1}),
        ValueError,
        "config={'value': 1}",
        "one of Constant,",
    ),
    "json list": (lambda: from_config([1]), ValueError, "config=[1]", "name one of these"),
    "json inner": (
        lambda: from_config({"class": "Warmup", "over": 2, "then": {"class": "eval"}}),
        ValueError,
        "config={'class': 'eval'}",
        "name one of these",
    ),
    "json unknown": (
        lambda: from_config({"class": "Constant", "value": 1, "lam": 2}),
        ValueError,
        "'lam': 2",
        "expected the fields ['value']",
    ),
    "json missing": (
        lambda: from_config({"class": "Linear", "start": 1, "unit": "steps"}),
        ValueError,
        "config={'class': 'Linear', 'start': 1, 'unit': 'steps'}",
        "expected the fields ['over', 'start', 'stop'] and at will ['unit']",
    ),
    "json value": (
        lambda: from_config({"class": "Linear", "start": 0, "stop": 1, "over": -1}),
        ValueError,
        "Linear: over=-1",
        "write 1 or more",
    ),
}


@pytest.mark.parametrize(("call", "error", "named", "remedy"), REFUSED.values(), ids=REFUSED)
def test_refused_with_name_value_and_remedy(call, error, named, remedy):
    with pytest.raises(error) as caught:
        call()
    assert named in str(caught.value)
    assert remedy in str(caught.value)
