"""``learn`` as a whole: what each round does, exactly; what a kill leaves; what is refused, and what can be resumed."""

import json
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from torch import Tensor

from banel_pyro.checkpoint import BEFORE, NEWEST
from banel_pyro.negative import (
    AcceptanceError,
    Answers,
    Distillation,
    DrawnSuccesses,
    Evidence,
    Filter,
    HeldOut,
    Learned,
    Ledger,
    ListedSuccesses,
    Oracle,
    OracleError,
    RandomFilter,
    RatioFilter,
    Score,
    Training,
)
from banel_pyro.negative import rounds as rounds_module
from banel_pyro.seeding import rng_state
from banel_pyro.training.progress import Progress
from tests.killing import run_script
from tests.learn_script import BUDGET, KILLS, Bell
from tests.negative_cases import QUICK, VALUES, WINS, Coarse, Table, accepted, reward, run

QUIET = {"rounds": 1, "budget": 40}
"""Options of a run that is over at once."""


def state_of(learned: Learned) -> dict[str, Any]:
    """All that a run has learnt, in numbers that can be compared."""
    table = learned.rounds
    return {
        "generator": learned.generator.state_dict()["logits"],
        "best": learned.best.state_dict()["logits"],
        "rows": table[[name for name in table if not name.startswith("seconds")]],
        "log_tau": [region.log_tau for region in learned.regions],
        "scores": learned.regions.scores(VALUES),
        "successes": learned.successes,
        "failures": learned.failures,
        "rest": (learned.best_round, len(learned.best_regions), learned.stopped, learned.config),
    }


def check_same(one: Learned, other: Learned) -> None:
    """Bit for bit."""
    for name, value in state_of(one).items():
        found = state_of(other)[name]
        if isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(found, value, check_exact=True)
        elif isinstance(value, Tensor):
            assert torch.equal(found, value), name
        else:
            assert found == value, name


# A crash after any step


class Crash(Exception):
    pass


RUNS: dict[str, dict[str, Any]] = {
    "distilled": {"success_rate": ListedSuccesses(WINS), "held_out": HeldOut(), "show": lambda x: map(str, x.tolist())},
    "union": {
        "distillation": None, "known": "free", "success_rate": DrawnSuccesses(reward, draws=200),
        "filter": RatioFilter(QUICK, start="previous", data="all"),
    },
    "regions kept": {"distillation": Distillation(draws=300, training=QUICK, keep_regions=True)},
}  # fmt: skip


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", RUNS)
def test_a_run_that_crashes_at_every_checkpoint_ends_as_the_uninterrupted_one(
    kind: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt writes one checkpoint and crashes right after it, or before the one that follows it."""
    asked = {"whole": list[float](), "crashed": list[float]()}

    def logged(name: str) -> Oracle:
        return Oracle(lambda x: asked[name].extend(x.tolist()) or reward(x), batch_size=16)

    options = {"budget": 60, "rounds": 2, **RUNS[kind]}
    whole = run(tmp_path / "whole", oracle=logged("whole"), **options)
    write = rounds_module.write_checkpoint
    written = 0

    def crashing(*args: Any) -> None:
        nonlocal written
        if when == "before" and written == 1:
            raise Crash
        write(*args)
        written += 1
        if when == "after":
            raise Crash

    monkeypatch.setattr(rounds_module, "write_checkpoint", crashing)
    crashes, crashed = 0, None
    while crashed is None:
        written = 0
        try:
            crashed = run(tmp_path / "crashed", oracle=logged("crashed"), resume=True, **options)
        except Crash:
            crashes += 1
    assert crashes >= 10 - (when == "before")
    check_same(whole, crashed)
    assert asked["crashed"] == asked["whole"], "nothing is asked twice"
    check_same(whole, Learned.load(tmp_path / "crashed", Table()))


# What a checkpoint is read back with


class Far(Score):
    """Numbers that are near to a failure score low."""

    kind = "far"

    def __init__(self, power: float, seen: Tensor | None = None) -> None:
        super().__init__()
        self.power = power
        self.register_buffer("seen", torch.zeros(40) if seen is None else seen)

    def forward(self, x: Tensor) -> Tensor:
        return -self.seen[x].log1p() * self.power

    def config(self) -> dict[str, Any]:
        return {"power": self.power}


@dataclass(frozen=True)
class Counts(Filter):
    """A filter of one's own: counts of failures."""

    power: float = 2.0
    scores = (Far,)

    def learn(self, evidence: Evidence, *, seed: int) -> Score:
        return Far(self.power, torch.bincount(evidence.failures, minlength=40).float())


@pytest.mark.parametrize("filter", [RatioFilter(QUICK, start=Coarse), Counts()], ids=["another model", "another score"])
@pytest.mark.parametrize("distillation", [None, Distillation(draws=200, training=QUICK)], ids=["union", "distilled"])
def test_a_filter_says_what_its_scores_are_made_of(
    filter: Filter, distillation: Distillation | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"filter": filter, "distillation": distillation, "budget": 60, "rounds": 2, "factor": 1.5}
    whole = run(tmp_path / "whole", **options)
    ask, asked = Oracle.ask, 0

    def crashing(*args: Any, **given: Any) -> Answers:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise Crash
        return ask(*args, **given)

    monkeypatch.setattr(Oracle, "ask", crashing)
    with pytest.raises(Crash):
        run(tmp_path / "crashed", **options)
    check_same(whole, run(tmp_path / "crashed", resume=True, **options))
    check_same(whole, Learned.load(tmp_path / "whole", Table(), filter=filter))
    with pytest.raises(ValueError, match=r"does not fit|is of a score 'far'"):
        Learned.load(tmp_path / "whole", Table())


# SIGKILL


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def found(root: Path) -> dict[str, list[dict[str, Any]]]:
    """What was in the ledgers after each kill, and in the end."""
    content: dict[str, list[dict[str, Any]]] = run_script("learn_script", str(root))
    return content


def asked_of(folder: Path) -> Counter[str]:
    """How often the oracle was asked about each candidate, by its own log."""
    return Counter((folder / "log").read_text().split())


@pytest.mark.parametrize("name", ["asked once", "asked again"])
def test_kills_at_random_moments(name: str, root: Path, found: dict[str, list[dict[str, Any]]]) -> None:
    states = found[name]
    assert len(states) > KILLS - 3, "hardly any kill came after the run had ended"
    assert len({state["nre"] for state in states}) > KILLS / 3, "the kills are not all at one place"
    for before, after in pairwise(states):
        assert before["answered"].items() <= after["answered"].items(), "no answer is lost"
        assert before["nre"] <= after["nre"] <= BUDGET
    with Ledger.reopen(root / name / "run" / "ledger.db") as ledger:
        frame = ledger.frame()
    assert states[-1]["nre"] == frame["charged"].sum() == BUDGET, "the budget is exact"
    unknown = frame[frame["state"] == "unknown"]
    assert len(unknown) <= KILLS, "one worker has one attempt in flight"
    log = asked_of(root / name)
    assert log.total() <= BUDGET
    learned = Learned.load(root / name / "run", Bell())
    assert len(learned.successes) + len(learned.failures) == len(states[-1]["answered"]), "all answers were used"
    if name == "asked once":
        assert set(log.values()) == {1}
        assert learned.rounds["unanswered"].sum() == len(unknown)
    else:
        again = sum(count - 1 for count in log.values())
        assert 0 < again <= len(unknown), "only what was in flight is asked again"
    answers = Counter(key.split()[1] for key in states[-1]["answered"])
    assert set(answers.values()) == {1}


def test_kills_at_checkpoints_leave_the_uninterrupted_run(root: Path, found: dict[str, list[dict[str, Any]]]) -> None:
    whole, stopped = (Learned.load(root / name / "run", Table()) for name in ("whole", "stopped"))
    check_same(whole, stopped)
    assert (root / "whole" / "log").read_text() == (root / "stopped" / "log").read_text()
    assert json.loads((root / "stopped" / "run" / "rounds.json").read_text())["stopped"] == "all rounds are done"
    with Ledger.reopen(root / "stopped" / "run" / "ledger.db") as ledger:
        frame = ledger.frame()
    assert set(frame["state"]) == {"answered"}
    assert set(asked_of(root / "stopped").values()) == {1}, "and what is known is free"
    assert whole.rounds["charged"].sum() == frame["charged"].sum() < len(frame)


# What rounds do


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("data", ["round", "all"])
def test_the_success_rate_identity_at_every_round(data: Any, tmp_path: Path) -> None:
    """Without distillation: SR = SR₀ ∏ P(accept | success) / P(accept), each factor at most its 1 / P(accept)."""
    found = run(
        tmp_path / "run", distillation=None, filter=RatioFilter(QUICK, data=data), budget=200, rounds=4, factor=1.5,
        success_rate=ListedSuccesses(WINS, draws=4000),
    )  # fmt: skip
    base = Table().table()
    assert torch.equal(found.generator.state_dict()["logits"], Table().logits)
    assert found.config["base_rate"]["success_rate"] == pytest.approx(float(base[WINS].sum()), rel=1e-6)
    assert len(found.regions) == 4
    before, expected = torch.ones(40, dtype=torch.bool), float(base[WINS].sum())
    with Ledger.reopen(tmp_path / "run" / "ledger.db") as ledger:
        proposed = [ledger.candidates(round=i) for i in range(4)]
    for i, row in found.rounds.iterrows():
        assert before[proposed[int(i)]].all(), "it proposes outside of the union"
        after = accepted(found.regions[: int(i) + 1])
        assert not (after & ~before).any(), "what is accepted can only shrink"
        accept = float(base[after].sum() / base[before].sum())
        given = float((base * after)[WINS].sum() / (base * before)[WINS].sum())
        assert row["accept_given_success"] == pytest.approx(given, rel=1e-12)
        stderr = (accept * (1 - accept) / 500) ** 0.5
        assert abs(row["acceptance"] - accept) < 4 * stderr
        assert row["filter_gain"] == pytest.approx(given / row["acceptance"], rel=1e-12)
        assert row["filter_gain"] <= row["bound"] == 1 / row["acceptance"]
        expected *= given / accept
        total = float(base[after].sum())
        assert expected == pytest.approx(float((base * after)[WINS].sum()) / total, rel=1e-12)
        assert abs(row["success_rate"] / expected - 1) < 4 * ((1 - total) / total / 4000) ** 0.5
        assert row["success_low"] <= row["success_rate"] <= row["success_high"]
        assert row["reachable"] == int(after[WINS].sum())
        before = after
    assert "distillation_gain" not in found.rounds  # nothing was distilled


@pytest.mark.parametrize("distillation", [None, Distillation(draws=300, training=QUICK)], ids=["union", "distilled"])
def test_zero_epochs_change_nothing(
    distillation: Distillation | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "banel_pyro")
    found = run(
        tmp_path / "run", filter=RatioFilter(Training(epochs=0)), distillation=distillation,
        success_rate=ListedSuccesses(WINS), held_out=HeldOut(patience=2),
    )  # fmt: skip
    assert list(found.rounds["acceptance"]) == list(found.rounds["filter_gain"]) == [1.0, 1.0]
    assert set(found.rounds["success_rate"]) == {found.config["base_rate"]["success_rate"]}
    assert set(found.rounds["reachable"]) == {2}
    assert torch.equal(found.generator.state_dict()["logits"], Table().logits)
    assert len(found.regions) == 0
    assert found.stopped == "the signal says that nothing is learnt"
    assert "rejects nothing" in caplog.text
    assert json.loads((tmp_path / "run" / "rounds.json").read_text())["rounds"][0]["log_tau"] is None


def test_a_random_filter_gains_nothing_in_expectation(tmp_path: Path) -> None:
    wins = torch.arange(0, 4000, 40)
    gains = []
    oracle = Oracle(lambda x: x % 40 == 0, batch_size=64)
    for seed in range(8):
        found = run(
            tmp_path / str(seed), generator=Table(torch.zeros(4000)), oracle=oracle, filter=RandomFilter(),
            distillation=None, success_rate=ListedSuccesses(wins), seed=seed, **QUIET,
        )  # fmt: skip
        gains.append(found.rounds["filter_gain"][0])
        assert found.rounds["acceptance"][0] == pytest.approx(0.5, abs=0.01)
    # of 100 successes a half is accepted: the share has the standard deviation 0.05, and the gain 0.1
    assert np.std(gains) == pytest.approx(0.1, rel=0.8)
    assert abs(np.mean(gains) - 1) < 4 * 0.1 / len(gains) ** 0.5


def test_no_filter_is_random_sampling(tmp_path: Path) -> None:
    generator = Table()
    rate = float(generator.table()[WINS].sum())
    found = run(tmp_path / "run", filter=None, budget=4000, rounds=2, success_rate=ListedSuccesses(WINS))
    assert abs(len(found.successes) - 4000 * rate) < 4 * (4000 * rate * (1 - rate)) ** 0.5
    assert list(found.rounds["proposed"]) == [2000, 2000]
    assert list(found.rounds["success_rate"]) == pytest.approx([rate] * 2, rel=1e-5)
    assert "acceptance" not in found.rounds
    assert torch.equal(found.generator.state_dict()["logits"], generator.logits)
    assert found.best_round == -1
    assert torch.isin(found.successes, WINS).all()
    assert not torch.isin(found.failures, WINS).any()


def test_the_best_generator_is_the_one_that_proposed(tmp_path: Path) -> None:
    """Without a measured rate it is judged by what the candidates of each generator came to."""
    found = run(tmp_path / "run", generator=Table(torch.zeros(40)), budget=400, rounds=4)
    shares = found.rounds["successes"] / (found.rounds["successes"] + found.rounds["failures"])
    assert found.best_round == int(shares.argmax()) - 1
    assert found.best_round >= 0, "or the test says nothing"
    again = run(
        tmp_path / "less", generator=Table(torch.zeros(40)), budget=400 * (found.best_round + 1) // 4,
        rounds=found.best_round + 1,
    )  # fmt: skip
    assert torch.equal(again.generator.state_dict()["logits"], found.best.state_dict()["logits"])


def test_the_best_one_comes_with_its_regions(tmp_path: Path) -> None:
    found = run(tmp_path / "run", distillation=None, budget=200, rounds=5, seed=3, success_rate=ListedSuccesses(WINS))
    rates = found.rounds["success_rate"]
    assert found.best_round == int(rates.argmax())
    assert len(found.best_regions) == found.best_round + 1
    assert [r.log_tau for r in found.best_regions] == [r.log_tau for r in found.regions[: found.best_round + 1]]


def test_all_succeed_and_nothing_is_learnt(tmp_path: Path) -> None:
    found = run(tmp_path / "run", oracle=Oracle(lambda x: x >= 0, batch_size=64), success_rate=ListedSuccesses(VALUES))
    assert list(found.rounds["successes"]) == [40, 40, 40]
    assert found.config["base_rate"]["success_rate"] == pytest.approx(1.0)
    assert "acceptance" not in found.rounds
    assert len(found.failures) == 0


def test_a_base_rate_of_0(tmp_path: Path) -> None:
    logits = Table().logits.detach().clone()
    logits[WINS] = -800.0  # a probability that is no number of float64
    found = run(tmp_path / "run", generator=Table(logits), success_rate=ListedSuccesses(WINS), rounds=2, budget=60,
                distillation=None)  # fmt: skip
    assert list(found.rounds["success_rate"]) == [0, 0]
    assert list(found.rounds["reachable"]) == [0, 0]
    assert found.rounds["filter_gain"].isna().all()
    rows = json.loads((tmp_path / "run" / "rounds.json").read_text())["rounds"]
    assert rows[0]["filter_gain"] is None
    check_same(found, Learned.load(tmp_path / "run", Table()))


def test_known_candidates_are_free(tmp_path: Path) -> None:
    """Equal ones of one proposal too; what they save goes to the rounds that are left."""
    asked = list[float]()
    oracle = Oracle(lambda x: asked.extend(x.tolist()) or reward(x), batch_size=16)
    found = run(tmp_path / "run", oracle=oracle, known="free", budget=60)
    assert len(set(asked)) == len(asked) == found.rounds["nre"].iloc[-1] <= 40
    assert (found.rounds["failures"] + found.rounds["successes"] == found.rounds["proposed"]).all()
    assert found.rounds["proposed"].iloc[1] > 20
    assert found.rounds["charged"].cumsum().equals(found.rounds["nre"])


def test_candidates_without_an_answer_teach_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def moody(x: Tensor) -> Tensor:
        if int(x[0]) % 5 == 0:
            raise ValueError("no")
        return reward(x)

    found = run(tmp_path / "run", oracle=Oracle(moody, retries=1, backoff=0.0, give_up=None))
    assert found.rounds["nre"].iloc[-1] == 120
    assert (found.rounds["unanswered"] > 0).all()
    assert not (found.failures % 5 == 0).any()
    total = found.rounds[["successes", "failures", "unanswered"]].sum(axis=1)
    assert total.equals(found.rounds["proposed"])
    assert "have no answer" in caplog.text


@dataclass(frozen=True)
class Watched(RatioFilter):
    """The paper's, with a record of what it was given."""

    seen: ClassVar[list[tuple[Evidence, Score]]] = []

    def learn(self, evidence: Evidence, *, seed: int) -> Score:
        self.seen.append((evidence, super().learn(evidence, seed=seed)))
        return self.seen[-1][1]


def test_what_a_filter_is_given(tmp_path: Path) -> None:
    """Failures of the round and of those before, none of them held out; all successes; and the score before."""
    Watched.seen.clear()
    found = run(tmp_path / "run", filter=Watched(QUICK), generator=Table(torch.zeros(40)), held_out=HeldOut(0.25))
    with Ledger.reopen(tmp_path / "run" / "ledger.db") as ledger:
        failed, won = ([ledger.candidates(round=i, reward=reward) for i in range(3)] for reward in (0, 1))
    assert len(torch.cat(won)) > 0
    for i, (evidence, _) in enumerate(Watched.seen):
        kept, held_out = Counter(evidence.failures.tolist()), Counter(failed[i].tolist())
        assert kept <= held_out
        assert kept.total() == len(failed[i]) - round(0.25 * len(failed[i]))
        assert torch.equal(evidence.earlier, torch.cat([evidence.failures[:0], *failed[:i]]))
        assert torch.equal(evidence.successes, torch.cat(won[: i + 1]))
        assert evidence.previous is (None if i == 0 else Watched.seen[i - 1][1])
    assert torch.equal(Watched.seen[0][0].generator.logits, torch.zeros(40))
    assert found.rounds["rejected_trained"].between(0, 1).all()


@pytest.mark.parametrize("use", [False, True])
def test_successes_are_trained_on_only_where_they_are_asked_for(
    use: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    train = Training.__call__

    def spy(self: Training, generator: Any, x: Tensor, **options: Any) -> pd.DataFrame:
        seen.append(x)
        return train(self, generator, x, **options)

    monkeypatch.setattr(Training, "__call__", spy)
    found = run(tmp_path / "run", generator=Table(torch.zeros(40)), budget=60, rounds=1, use_successes=use)
    _, failures, draws = seen  # the first: whether a step of training moves it at all
    assert len(found.successes) > 0
    assert torch.equal(failures.sort().values, found.failures.sort().values)
    assert not torch.isin(failures, WINS).any()
    assert len(draws) == 400 + use * len(found.successes)
    if use:
        assert torch.equal(draws[400:], found.successes)


def test_it_leaves_the_callers_world_alone(tmp_path: Path) -> None:
    pyro.param("mine", torch.ones(()))
    generator = Table()
    before, state = generator.state_dict()["logits"].clone(), rng_state()
    run(tmp_path / "run", generator=generator, **QUIET)
    assert torch.equal(state["torch"], torch.get_rng_state())
    assert state["random"] == rng_state()["random"]
    assert torch.equal(state["numpy"][1], rng_state()["numpy"][1])
    assert torch.equal(generator.logits, before)
    assert generator.logits.requires_grad
    assert generator.logits.grad is None
    assert list(pyro.get_param_store().keys()) == ["mine"]


def test_a_seed_is_all_that_decides(tmp_path: Path) -> None:
    one = run(tmp_path / "one", **QUIET)
    torch.rand(3)
    check_same(one, run(tmp_path / "two", **QUIET))
    other = run(tmp_path / "three", **QUIET | {"seed": 2})
    assert not torch.equal(other.failures, one.failures)


# What is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": 0}, "^budget=0"),
        ({"rounds": 0}, "^rounds=0"),
        ({"budget": 2}, "^rounds=3, budget=2"),
        ({"factor": 1.0}, "^factor=1.0: expected more than 1"),
        ({"factor": 0.5}, "^factor=0.5"),
        ({"factor": 1.01, "candidates": 50}, "^candidates=50, factor=1.01: expected at least 101"),
        ({"candidates": 1}, "^candidates=1"),
        ({"log_tau": float("nan")}, "^log_tau=nan"),
        ({"known": "maybe"}, "^known='maybe'"),
        ({"max_draws": 0}, "^max_draws=0"),
        ({"filter": "ratio"}, "^filter='ratio'"),
        ({"distillation": 3}, "^distillation=3"),
        ({"held_out": 0.2}, "^held_out=0.2"),
        ({"use_successes": 1}, "^use_successes=1"),
        ({"success_rate": reward}, "^success_rate="),
        ({"oracle": reward}, "^oracle="),
        ({"seed": -1}, "^seed=-1"),
        ({"generator": torch.nn.Linear(1, 1)}, "without sample, log_prob"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_refused_before_anything_is_there(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        run(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_other_things(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(ValueError, match="holds other files and no run"):
            run(tmp_path, resume=resume, **QUIET)
        with pytest.raises(ValueError, match="holds other files and no run"):
            run(tmp_path / "notes.txt", resume=resume, **QUIET)
    with pytest.raises(ValueError, match=r"holds no run of negative evidence: expected a negative\.json"):
        Learned.load(tmp_path, Table())
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_that_was_begun_and_not_more(tmp_path: Path) -> None:
    """Killed while its first file was written."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".negative.json.partial").write_text("{")
    assert run(tmp_path / "run", resume=True, **QUIET).stopped == "all rounds are done"


def test_a_run_is_not_overwritten_nor_resumed_with_other_options(tmp_path: Path) -> None:
    whole = run(tmp_path / "run", **QUIET)
    with pytest.raises(ValueError, match="already holds a run"):
        run(tmp_path / "run", **QUIET)
    for options, words in (
        ({"factor": 3.0}, r"factor=2\.0, and factor=3\.0 was asked for"),
        ({"seed": 5}, "seed=1, and seed=5"),
        ({"filter": RatioFilter(Training(epochs=5, batch_size=32, lr=0.1))}, "filter="),
        ({"distillation": None}, "distillation="),
        ({"candidates": 501}, "candidates="),
        ({"name": "other"}, "name='task', and name='other'"),
        ({"success_rate": ListedSuccesses(WINS)}, "success=None"),
    ):
        with pytest.raises(ValueError, match=words):
            run(tmp_path / "run", resume=True, **QUIET | options)
    check_same(whole, run(tmp_path / "run", resume=True, **QUIET | {"seed": None}))


def test_a_ledger_of_another_task(tmp_path: Path) -> None:
    run(tmp_path / "run", **QUIET)
    (tmp_path / "run" / "ledger.db").unlink()
    with Ledger(tmp_path / "run" / "ledger.db", task="proofs", budget=9):
        pass
    with pytest.raises(ValueError, match="the ledger of the task 'proofs', and not of 'task'"):
        run(tmp_path / "run", resume=True, **QUIET)


def test_options_that_are_objects_are_told_in_words(tmp_path: Path) -> None:
    training = Training(epochs=2, lr=0.1, options={"explosion": None, "optim": torch.optim.SGD})
    for resume in (False, True):
        run(tmp_path / "run", filter=RatioFilter(training), resume=resume, **QUIET)
    assert Learned.load(tmp_path / "run", Table()).config["filter"]["training"]["options"]["optim"] == "SGD"


# What can be resumed


@pytest.mark.parametrize("kind", ["raises", "NaN", "wrong shape"])
def test_an_oracle_that_never_answers(kind: str, tmp_path: Path) -> None:
    """It is given up after some calls; mended, the run goes on with what is left."""
    bad = {
        "raises": lambda x: 1 / 0, "NaN": lambda x: x * torch.nan, "wrong shape": lambda x: reward(x)[:, None],
    }[kind]  # fmt: skip
    with pytest.raises(OracleError, match="5 calls in a row have failed"):
        run(tmp_path / "run", oracle=Oracle(bad, retries=0, backoff=0.0, give_up=5))
    stopped = Learned.load(tmp_path / "run", Table())
    assert (stopped.stopped, len(stopped.rounds)) == ("", 0)
    found = run(tmp_path / "run", resume=True)
    assert found.rounds["nre"].iloc[-1] == 120
    assert found.rounds["unanswered"].sum() == 0
    assert len(found.successes) + len(found.failures) == 115
    assert found.stopped == "all rounds are done"


def test_an_acceptance_that_collapses(tmp_path: Path) -> None:
    """The run stops with the figures, and goes on with a larger cap on draws."""
    options: dict[str, Any] = {"distillation": None, "factor": 4.0, "rounds": 5, "budget": 200}
    with pytest.raises(AcceptanceError, match="max_draws=900 will not do"):
        run(tmp_path / "run", max_draws=900, **options)
    assert len(Learned.load(tmp_path / "run", Table()).rounds) < 5
    found = run(tmp_path / "run", max_draws=200_000, resume=True, **options)
    assert found.stopped == "all rounds are done"
    assert found.posterior.max_draws == found.config["max_draws"] == 200_000
    assert json.loads((tmp_path / "run" / "negative.json").read_text())["max_draws"] == 200_000
    check_same(found, run(tmp_path / "whole", max_draws=200_000, **options))


def test_a_fixed_threshold_above_all_scores(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^log_tau=50 rejects all"):
        run(tmp_path / "run", log_tau=50.0, **QUIET)


def test_a_fixed_threshold(tmp_path: Path) -> None:
    found = run(tmp_path / "run", log_tau=0.0, distillation=None)
    assert list(found.rounds["log_tau"]) == [0.0] * 3
    assert (found.rounds["acceptance"] < 1).all()


def test_a_budget_that_is_spent_early_and_raised(tmp_path: Path) -> None:
    """By retries: a run that stopped for the want of it goes on with its rounds."""

    def bad(x: Tensor) -> Tensor:
        raise ValueError("no")

    first = run(tmp_path / "run", oracle=Oracle(bad, retries=9, backoff=0.0, give_up=None), budget=30)
    assert (first.stopped, len(first.rounds)) == ("the budget is spent", 1)
    same = run(tmp_path / "run", budget=30, resume=True)
    assert (same.stopped, len(same.rounds)) == ("the budget is spent", 1)
    more = run(tmp_path / "run", budget=60, resume=True)
    assert (more.stopped, len(more.rounds), more.rounds["nre"].iloc[-1]) == ("all rounds are done", 3, 60)
    assert more.config["budget"] == 60
    with pytest.raises(ValueError, match=r"budget=40: .* has 60 charged"):
        run(tmp_path / "run", budget=40, resume=True)
    assert json.loads((tmp_path / "run" / "negative.json").read_text())["budget"] == 60


@pytest.mark.parametrize("damage", ["newest", "both"])
def test_a_damaged_checkpoint(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The run goes on from the one before, or says that there is none."""
    whole = run(tmp_path / "run", budget=80, rounds=2)
    for name in (NEWEST, BEFORE)[: 1 + (damage == "both")]:
        content = (tmp_path / "run" / name).read_bytes()
        (tmp_path / "run" / name).write_bytes(content[:-100])
    if damage == "both":
        with pytest.raises(ValueError, match="the file is damaged"):
            run(tmp_path / "run", budget=80, rounds=2, resume=True)
        return
    check_same(whole, run(tmp_path / "run", budget=80, rounds=2, resume=True))
    assert "the file is damaged" in caplog.text


def test_a_checkpoint_of_something_else(tmp_path: Path) -> None:
    """What is in it is looked at before it is believed."""
    run(tmp_path / "run", success_rate=ListedSuccesses(WINS), **QUIET)
    state = torch.load(tmp_path / "run" / NEWEST, weights_only=True)
    (tmp_path / "run" / BEFORE).unlink()
    for change in (
        {"step": 7}, {"round": -1}, {"named": [0, 0]}, {"named": [0, 0, 9]}, {"kept": 4}, {"best_kept": 3},
        {"rewards": None}, {"rate": {"value": 1.0}}, {"rate": state["rate"] | {"more": 1}}, {"rows": 3},
    ):  # fmt: skip
        torch.save(state | change, tmp_path / "run" / NEWEST)
        with pytest.raises(ValueError, match="the file is damaged"):
            Learned.load(tmp_path / "run", Table())
    torch.save(state, tmp_path / "run" / NEWEST)
    with pytest.raises(ValueError, match="does not fit the Table that was given"):
        Learned.load(tmp_path / "run", Table(torch.zeros(3)))


def test_a_record_that_is_damaged_or_missing_is_written_again(tmp_path: Path) -> None:
    run(tmp_path / "run", **QUIET)
    file = tmp_path / "run" / "rounds.json"
    text = file.read_text()
    for break_it in (lambda: file.write_text("{"), file.unlink):
        break_it()
        run(tmp_path / "run", resume=True, **QUIET)
        assert file.read_text() == text


def test_damaged_options_are_refused(tmp_path: Path) -> None:
    run(tmp_path / "run", **QUIET)
    for text, words in (("{", "is not JSON"), ("[]", "holds a list"), ("{}", "has no 'budget'")):
        (tmp_path / "run" / "negative.json").write_text(text)
        with pytest.raises(ValueError, match=words):
            Learned.load(tmp_path / "run", Table())
        with pytest.raises(ValueError, match=r"negative\.json|holds a run with"):
            run(tmp_path / "run", resume=True, **QUIET)


def test_the_bar_shows_what_was_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, str]] = []
    monkeypatch.setattr(Progress, "show", lambda self, done, text: told.append((done, text)))
    found = run(tmp_path / "run", progress=True)
    shown = [(done, text) for done, text in told if text.startswith("round")]  # those of training are others
    assert shown[-1][0] == 120
    assert [done for done, _ in shown] == sorted(done for done, _ in shown)
    assert shown[-1][1].startswith("round 3  accept ")
    assert f"gain ≤ {found.rounds['bound'].prod():.3g}" in shown[-1][1]
