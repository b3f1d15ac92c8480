"""What holds for every test and every doctest: seeded, alone with its parameters, and leaving no trace."""

import os

os.environ["MPLBACKEND"] = "Agg"  # before anything imports matplotlib: no test opens a window

from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any, TypeVar

import pyro
import pytest
import torch

pytest.register_assert_rewrite("tests.laws")
# The problems here are small: a second thread only waits, and on a busy machine it waits for milliseconds a call.
torch.set_num_threads(1)

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

SEED = 0

# Process-wide switches that a test must leave as it found them: how to read one, and how to set it.
SWITCHES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch.get_default_dtype()": (torch.get_default_dtype, torch.set_default_dtype),
    "torch.get_default_device()": (torch.get_default_device, torch.set_default_device),
    "torch.get_num_threads()": (torch.get_num_threads, torch.set_num_threads),
    "torch.is_grad_enabled()": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch.are_deterministic_algorithms_enabled()": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    # Among these: validate_distributions_torch, validate_distributions_pyro, validate_infer.
    **{
        f"pyro.settings.get({alias!r})": (
            partial(pyro.settings.get, alias),
            lambda found, alias=alias: pyro.settings.set(**{alias: found}),
        )
        for alias in pyro.settings.get()
    },
}


class Guards:
    """The rules, as a plugin: fixtures of this folder would not reach the doctests of the package."""

    @pytest.fixture(autouse=True)
    def seeded(self) -> Iterator[None]:
        """Seed torch, numpy and random for the test; give the caller's state back."""
        found = pyro.util.get_rng_state()
        pyro.set_rng_seed(SEED)
        yield
        pyro.util.set_rng_state(found)

    @pytest.fixture(autouse=True)
    def fresh_param_store(self) -> Iterator[None]:
        """Give the test a param store of its own; refuse parameters that were left outside of any test."""
        store = pyro.get_param_store()
        if left := sorted(store.keys()):
            store.clear()
            pytest.fail(
                f"Pyro's param store held {left} before this test: an import or a fixture of a wider scope "
                "put them there. Train in `with pyro.get_param_store().scope():`."
            )
        with store.scope():
            yield

    @pytest.fixture(autouse=True)
    def switches_left_as_found(self) -> Iterator[None]:
        """Fail the test that leaves a process-wide switch changed, and put the switch back."""
        found = {name: read() for name, (read, _) in SWITCHES.items()}
        yield
        changed = []
        for name, (read, write) in SWITCHES.items():
            if (left := read()) != found[name]:
                write(found[name])
                changed.append(f"{name} was {found[name]}, left as {left}")
        if changed:
            pytest.fail(
                f"the test changed the process: {'; '.join(changed)}. Pass the value to what needs it, or "
                "set it for a while: the fixture float64, `with pyro.settings.context(...)`."
            )

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Count a skipped test as failed where CI is set."""
        return _no_skip_in_ci((yield))

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """Count a skipped file as failed where CI is set."""
        return _no_skip_in_ci((yield))


def _no_skip_in_ci(report: Report) -> Report:
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"CI is set, where a skip is a failure. {report.longrepr}"
    return report


def pytest_configure(config: pytest.Config) -> None:
    """Put the guards above the folders, so that they see every test item."""
    config.pluginmanager.register(Guards(), "guards")


@pytest.fixture
def float64() -> Iterator[torch.dtype]:
    """Make float64 torch's default dtype for the test, as all that checks an exact answer needs."""
    found = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield torch.float64
    torch.set_default_dtype(found)
