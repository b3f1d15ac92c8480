"""Callbacks: which events come when, what they may return, and that they cannot change a run's numbers."""

import csv
import logging
import random
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from banel_pyro import CSVLogger, Event, FitResult, Metric, Pair, Split, TensorBoard
from banel_pyro.training.callbacks import EVENTS

pytestmark = pytest.mark.usefixtures("float64")

OPTIONS: dict[str, Any] = {
    "steps": 12, "batch_size": 2, "lr": 0.05, "log_every": 3, "validate_every": 6, "posterior_samples": 0,
    "progress": False, "seed": 3,
}  # fmt: skip


class Decoder(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.decode = nn.Linear(1, 3)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decode(z), 1.0).to_event(1), obs=x)


class Encoder(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.BatchNorm1d(4), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, raw = self.encode(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, nn.functional.softplus(raw) + 1e-3).to_event(1))


def make() -> Pair:
    """Eight rows, four batches in an epoch; noise, dropout and running statistics to disturb."""
    torch.manual_seed(0)
    data = Split(torch.linspace(-1.0, 1.0, 24).reshape(8, 3), held_out=torch.linspace(-0.5, 0.5, 6).reshape(2, 3))
    return Pair(Decoder(), Encoder(), data=lambda: data)


def run(**options: Any) -> FitResult:
    return make().fit(**OPTIONS | options)


def numbers(result: FitResult) -> dict[str, Any]:
    found = {f"model {n}": v for n, v in result.model.state_dict().items()}
    found |= {f"guide {n}": v for n, v in result.guide.state_dict().items()}
    return found | {"history": result.history.drop(columns=["seconds", "noise"], errors="ignore")}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Bit for bit."""
    history = one.pop("history").equals(other.pop("history"))
    return history and one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Events


def test_events_come_in_order_at_the_steps_that_they_are_named_for() -> None:
    seen: list[tuple[str, int]] = []
    run(callbacks=[lambda event: seen.append((event.kind, event.step))])
    assert [step for kind, step in seen if kind == "step"] == list(range(1, 13))
    assert [step for kind, step in seen if kind == "log"] == [3, 6, 9, 12]
    assert [step for kind, step in seen if kind == "evaluation"] == [6, 12]
    assert [step for kind, step in seen if kind == "epoch"] == [4, 8, 12]
    assert [kind for kind, step in seen if step == 12] == list(EVENTS)
    assert seen[-1] == ("end", 12)


def test_an_event_knows_the_step_the_epoch_the_row_and_the_run() -> None:
    events: list[tuple[Event, pd.DataFrame]] = []
    result = run(callbacks=[lambda event: events.append((event, event.result.history))])
    for event, history in events:
        assert event.epoch == event.step / 4
        assert event.result.model is result.model
        assert len(history) == event.step // 3
        assert dict(event.row) == (
            {} if event.step < 3 else result.history.iloc[event.step // 3 - 1].dropna().to_dict()
        )
    assert isinstance(events[-1][0].row, Mapping)
    with pytest.raises(TypeError):
        events[-1][0].row["elbo"] = 0.0  # type: ignore[index]


def test_without_held_out_rows_there_are_evaluations_all_the_same() -> None:
    kinds: list[str] = []
    run(validation=None, callbacks=[lambda event: kinds.append(event.kind)])
    assert kinds.count("evaluation") == 2


def test_a_callback_may_name_the_events_it_wants() -> None:
    class Rare:
        events = ("epoch",)
        kinds: list[str] = []  # noqa: RUF012

        def __call__(self, event: Event) -> None:
            self.kinds.append(event.kind)

    rare = Rare()
    run(callbacks=[rare])
    assert rare.kinds == ["epoch"] * 3


# Law: they cannot change the run's numbers


def disturb(event: Event) -> None:
    """What a careless callback does: draws, seeds, evaluates, predicts, switches modes."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    event.result.guide.eval()
    event.result.model.train()
    with torch.enable_grad():
        sum(p.sum() for p in event.result.guide.parameters()).backward()
    event.result.guide.requires_grad_(False)
    if event.kind in ("log", "end"):
        event.result.posterior(num_samples=3)
        event.result.model.decode(torch.ones(1)).sum()
    torch.set_default_dtype(torch.float32)


def test_callbacks_do_not_change_the_numbers() -> None:
    with pyro.get_param_store().scope():
        expected = numbers(run())
    noise = Metric("noise", lambda result: float(torch.rand(())))
    with pyro.get_param_store().scope():
        assert same(numbers(run(callbacks=[disturb, noise])), expected)


# Stopping


@pytest.mark.parametrize(("kind", "last"), [("step", 5), ("log", 6), ("evaluation", 6), ("epoch", 8)])
def test_a_reason_stops_the_run(kind: str, last: int) -> None:
    kinds: list[tuple[str, int]] = []

    def stop(event: Event) -> str | None:
        kinds.append((event.kind, event.step))
        return "enough" if event.kind == kind and event.step >= 5 else None

    result = run(callbacks=[stop])
    assert result.stopped == "enough"
    assert kinds[-1] == ("end", last)
    assert max(step for _, step in kinds) == last
    assert len(result.history) == last // 3


def test_a_reason_at_the_last_step_stops_nothing() -> None:
    assert run(callbacks=[lambda event: "late" if event.step == 12 else None]).stopped is None


def test_two_reasons_are_both_told_each_once() -> None:
    stopped = run(callbacks=[lambda event: "one", lambda event: "two"], log_every=1).stopped
    assert stopped == "one; two"


def at_five(event: Event) -> str | None:
    return "at five" if event.kind == "step" and event.step == 5 else None


def test_a_run_that_is_stopped_before_its_first_log_point_has_its_files(tmp_path: Path) -> None:
    options = {"out": tmp_path / "run", "posterior_samples": 5, "log_every": 6}
    with pyro.get_param_store().scope():
        assert run(callbacks=[at_five], **options).stopped == "at five"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "How wide is the posterior" in page
    assert "What happened in training?" not in page
    with pyro.get_param_store().scope():
        assert len(run(resume=True, **options | {"steps": 14}).history) == 3


def test_a_stopped_run_is_over_until_more_steps_are_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pyro.get_param_store().scope():
        expected = numbers(run(steps=14))
    options = {"out": tmp_path / "run", "posterior_samples": 2}
    with pyro.get_param_store().scope():
        first = run(callbacks=[at_five], **options)
    assert (tmp_path / "run" / "report.html").exists()
    with pyro.get_param_store().scope():
        with caplog.at_level(logging.WARNING, "banel_pyro"):
            again = run(resume=True, **options)
        assert "stopped by a callback after step 5 (at five) and is left as it is: ask for more steps" in caplog.text
        assert again.stopped == first.stopped == "at five"
        assert same(numbers(again), numbers(first))
    with pyro.get_param_store().scope():
        assert FitResult.load(tmp_path / "run", make()).stopped == "at five"
    with pyro.get_param_store().scope():
        longer = run(resume=True, steps=14, **options)
    assert longer.stopped is None
    assert same(numbers(longer), expected)


def test_a_run_that_keeps_no_draws_is_over_as_well_when_it_is_stopped(tmp_path: Path) -> None:
    with pyro.get_param_store().scope():
        run(callbacks=[at_five], out=tmp_path / "run")
    steps: list[int] = []
    with pyro.get_param_store().scope():
        again = run(out=tmp_path / "run", resume=True, callbacks=[lambda event: steps.append(event.step)])
    assert again.stopped == "at five"
    assert not steps


# Numbers for the history


def test_a_metric_is_a_column_of_the_history(tmp_path: Path) -> None:
    drift = Metric("drift", lambda result: float(len(result.history)))
    result = run(callbacks=[drift], out=tmp_path / "run")
    assert result.history["drift"].dropna().to_dict() == {1: 2.0, 3: 4.0}
    assert pd.read_csv(tmp_path / "run" / "history.csv")["drift"].dropna().tolist() == [2.0, 4.0]
    with pyro.get_param_store().scope():
        assert FitResult.load(tmp_path / "run", make()).history["drift"].dropna().tolist() == [2.0, 4.0]


@pytest.mark.parametrize(
    ("found", "kind", "error", "words"),
    [
        ({"a": 1.0}, "step", ValueError, "returned numbers at a 'step' event"),
        ({"elbo": 1.0}, "log", ValueError, "'elbo', which is a column of ours"),
        ({"val_elbo": 1.0}, "log", ValueError, "'val_elbo', which is a column of ours"),
        ({"a": "high"}, "log", TypeError, "a='high': expected a number"),
        ({1: 1.0}, "log", TypeError, "a number named 1: expected a text"),
        ("", "step", TypeError, "returned '': expected None, a text"),
        (True, "log", TypeError, "returned True: expected None, a text that says why"),
        (0.5, "end", TypeError, "returned 0.5: expected None"),
    ],
)
def test_other_answers_are_refused(found: Any, kind: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        run(callbacks=[lambda event: found if event.kind == kind else None])


@pytest.mark.parametrize(
    ("callbacks", "words"),
    [
        (print, r"callbacks=<built-in function print>: expected a list of callables"),
        ([3], "callbacks has 3: expected a callable that takes one Event"),
        (None, "callbacks=None: expected a list"),
    ],
)
def test_what_cannot_be_called_is_refused(callbacks: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        run(callbacks=callbacks)


def test_unknown_events_are_refused() -> None:
    metric = Metric("m", lambda result: 0.0)
    metric.events = ("batch",)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"Metric wants events \['batch'\]: expected some of"):
        run(callbacks=[metric])


# A callback that raises


def raises_at_seven(event: Event) -> None:
    if event.step == 7:
        raise KeyError("oops")


def test_a_callback_that_raises_is_named_and_the_run_is_saved(tmp_path: Path) -> None:
    with pyro.get_param_store().scope():
        expected = numbers(run())
    with pyro.get_param_store().scope(), pytest.raises(KeyError, match="oops") as raised:
        run(callbacks=[raises_at_seven], out=tmp_path / "run")
    notes = " ".join(raised.value.__notes__)
    assert "raises_at_seven, at 'step' after step 7" in notes
    assert f"saved in {tmp_path / 'run'}; resume=True goes on" in notes
    steps: list[int] = []
    with pyro.get_param_store().scope():
        resumed = run(out=tmp_path / "run", resume=True, callbacks=[lambda event: steps.append(event.step)])
    assert steps[0] == 8
    assert same(numbers(resumed), expected)


def test_a_callback_that_raises_at_the_end_is_named_too(tmp_path: Path) -> None:
    class AtEnd:
        events = ("end",)

        def __call__(self, event: Event) -> None:
            raise KeyError("late")

    with pytest.raises(KeyError, match="late") as raised:
        run(callbacks=[AtEnd()], out=tmp_path / "run")
    assert "saved in" in " ".join(raised.value.__notes__)


# Ready ones


def test_the_csv_file_is_the_history(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "history.csv"
    sizes: list[int] = []

    def count(event: Event) -> None:
        if event.kind == "log":
            with file.open() as lines:
                sizes.append(len(list(csv.DictReader(lines))))

    noise = Metric("noise", lambda result: float(torch.rand(())))
    result = run(callbacks=[CSVLogger(file), count, noise])
    assert sizes == [1, 2, 3, 4]  # written as it comes
    pd.testing.assert_frame_equal(pd.read_csv(file), result.history, check_dtype=False)


def test_the_csv_file_of_a_resumed_run_is_whole(tmp_path: Path) -> None:
    with pyro.get_param_store().scope(), pytest.raises(KeyError):
        run(callbacks=[CSVLogger(tmp_path / "h.csv"), raises_at_seven], out=tmp_path / "run")
    with pyro.get_param_store().scope():
        result = run(out=tmp_path / "run", resume=True, callbacks=[CSVLogger(tmp_path / "h.csv")])
    assert pd.read_csv(tmp_path / "h.csv")["step"].tolist() == result.history["step"].tolist() == [3, 6, 9, 12]


def test_tensorboard_gets_every_number_once(tmp_path: Path) -> None:
    result = run(callbacks=[TensorBoard(tmp_path), Metric("noise", lambda result: 0.25)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what reads the files back
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        read = EventAccumulator(str(tmp_path))
        read.Reload()
    for name in read.Tags()["scalars"]:
        found = {scalar.step: scalar.value for scalar in read.Scalars(name)}
        column = result.history.set_index("step")[name].dropna()
        assert len(read.Scalars(name)) == len(column), name
        assert found == pytest.approx(column.to_dict(), rel=1e-6), name
    assert {"elbo", "kl", "val_elbo", "noise", "entropy[z]"} <= set(read.Tags()["scalars"])
