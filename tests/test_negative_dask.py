"""An oracle that is asked through Dask: the same answers, and a cluster that is gone afterwards."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from banel_pyro.negative import Ledger, Oracle
from demos.negative_oracle import clears, workers
from tests.negative_cases import QUICK, Table, reward, run

pytest.importorskip("distributed")

from distributed import Client


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    before = threading.active_count()
    with Client(n_workers=2, threads_per_worker=1, processes=False, dashboard_address="localhost:0") as client:
        yield client
    assert threading.active_count() <= before + 4, "what is left are Dask's own helpers, and not its workers"


def test_the_answers_are_the_same(client: Client, tmp_path: Path) -> None:
    x = torch.rand(64, 2) * 0.5 + 0.5
    with client.get_executor() as pool, Ledger(tmp_path / "ledger.db", task="throws", budget=64) as ledger:
        answers = Oracle(clears, executor=pool, batch_size=8, max_in_flight=2).ask(x, ledger, round=0)
        assert torch.equal(answers.successes, clears(x))
        assert 0 < int(answers.successes.sum()) < 64
        assert ledger.nre == 64
        assert ledger.frame()["worker"].nunique() == 2, "both workers had something to do"


def test_an_error_comes_back_in_words(client: Client, tmp_path: Path) -> None:
    with client.get_executor() as pool, Ledger(tmp_path / "ledger.db", task="throws", budget=9) as ledger:
        oracle = Oracle(lambda x: 1 / 0, executor=pool, retries=1, backoff=0.0)
        answers = oracle.ask(torch.zeros(2), ledger, round=0, known="ask")
    assert set(answers.errors) == {0, 1}
    assert "ZeroDivisionError: division by zero" in answers.errors[0]


def test_a_run_is_the_same(client: Client, tmp_path: Path) -> None:
    alone = run(tmp_path / "alone", budget=60, rounds=2)
    with client.get_executor() as pool:
        oracle = Oracle(reward, executor=pool, batch_size=8, max_in_flight=2)
        through_dask = run(tmp_path / "dask", oracle=oracle, budget=60, rounds=2)
    assert torch.equal(alone.generator.state_dict()["logits"], through_dask.generator.state_dict()["logits"])
    assert torch.equal(alone.failures, through_dask.failures)
    assert QUICK.epochs == 4
    assert isinstance(alone.generator, Table)


def test_the_demos_own_cluster(tmp_path: Path) -> None:
    with workers(1, "local") as pool, Ledger(tmp_path / "ledger.db", task="throws", budget=8) as ledger:
        answers = Oracle(clears, executor=pool, batch_size=4).ask(torch.full((8, 2), 0.8), ledger, round=0)
    assert answers.rewards.unique().numel() == 1
