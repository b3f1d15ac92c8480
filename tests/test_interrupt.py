"""Ctrl-C ends the step that is under way, saves, and returns what there is; a second one ends at once."""

import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pyro
import pytest

from banel_pyro import Event, FitResult
from banel_pyro.training.interrupt import Interrupt
from tests.test_callbacks import make, numbers, run, same

pytestmark = pytest.mark.usefixtures("float64")


def press(event: Event) -> None:
    """Ctrl-C in step 5."""
    if event.kind == "step" and event.step == 5:
        os.kill(os.getpid(), signal.SIGINT)


def test_the_step_ends_and_what_there_is_is_returned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pyro.get_param_store().scope():
        expected = numbers(run())
    with pyro.get_param_store().scope(), caplog.at_level(logging.WARNING, "banel_pyro"):
        stopped = run(callbacks=[press], out=tmp_path / "run", posterior_samples=2)
        assert stopped.stopped == "interrupted"
        assert stopped.history["step"].tolist() == [3]
        stopped.posterior(num_samples=2)
    assert "interrupted after step 5 of 12: the same call with resume=True goes on" in caplog.text
    assert not (tmp_path / "run" / "posterior.nc").exists()
    with pyro.get_param_store().scope():
        assert FitResult.load(tmp_path / "run", make()).stopped == "interrupted"
    with pyro.get_param_store().scope():
        resumed = run(out=tmp_path / "run", resume=True, posterior_samples=2)
    assert resumed.stopped is None
    assert (tmp_path / "run" / "report.html").exists()
    assert same(numbers(resumed), expected)


def test_the_end_event_says_so() -> None:
    reasons: list[str | None] = []
    run(callbacks=[press, lambda event: reasons.append(event.result.stopped) if event.kind == "end" else None])
    assert reasons == ["interrupted"]


def test_a_second_one_ends_at_once() -> None:
    def twice(event: Event) -> None:
        press(event)
        press(event)

    with pytest.raises(KeyboardInterrupt):
        run(callbacks=[twice])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_handler_is_put_back() -> None:
    run()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_users_own_stays() -> None:
    seen: list[int] = []

    def mine(number: int, frame: Any) -> None:
        seen.append(number)

    before = signal.signal(signal.SIGINT, mine)
    try:
        result = run(callbacks=[press])
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]
    assert result.stopped is None


def test_outside_the_main_thread_nothing_is_touched() -> None:
    found: list[Any] = []

    def inside() -> None:
        with Interrupt():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
