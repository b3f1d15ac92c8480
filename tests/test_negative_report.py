"""The page of learning from failures: its numbers against ones done by hand, and what it says of what is not known."""

import json
import math
import re
from base64 import b64decode
from pathlib import Path

import pytest
from scipy import stats

from banel_pyro.negative.options import CONFIG, ROUNDS
from banel_pyro.report.log_ratio import log_ratio
from banel_pyro.report.negative_numbers import read_negative
from banel_pyro.report.negative_page import render_negative, write_negative_report
from banel_pyro.report.negative_runs import Rate, pooled, read_runs
from banel_pyro.report.negative_words import findings, notes
from tests.negative_runs import SECONDS, write_run
from tests.test_cli import refused
from tests.test_report import Page, json_of


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Three seeds of two methods with exact rates, and one of random sampling."""
    ends = {"banel": (0.04, 0.32, 0.08), "random-filter": (0.01, 0.01, 0.04)}
    for method, finals in ends.items():
        for seed, final in enumerate(finals):
            write_run(tmp_path, method, seed, [0.01, 0.5 if seed == 0 else 0.02, final], gains=[1.6, 2.0])
    write_run(tmp_path, "random", 0, [0.01, None, None])
    return tmp_path


# The numbers


def test_rates_products_and_gains_are_those_done_by_hand(three: Path) -> None:
    report = read_negative(three)
    banel, filtered, random = report.methods
    assert [m.name for m in report.methods] == ["banel", "random-filter", "random"]
    assert [rate.value for rate in banel.final.values()] == [0.04, 0.32, 0.08]
    assert [rate.value for rate in banel.best.values()] == [0.5, 0.32, 0.08]
    assert [run.best for run in banel.runs] == [0, 1, 1]
    assert banel.products("filter_gain") == pytest.approx([3.2] * 3)
    assert banel.products("bound") == pytest.approx([4.0] * 3)
    assert banel.products("distillation_gain") == pytest.approx([4 / 3.2, 32 / 3.2, 8 / 3.2])
    for run in banel.runs + filtered.runs:  # the identity of the success rate
        gain = run.product("filter_gain") * run.product("distillation_gain")
        assert run.rates[-1].value == pytest.approx(0.01 * gain)
    assert random.runs[0].rates == [Rate(0.01, 0.01, 0.01, 0, 2)] * 3
    assert random.products("filter_gain") == [1.0]
    assert [run.nre for run in report.runs] == [[0, 4, 8]] * 7


def test_the_table_shows_them(three: Path) -> None:
    cells = read_negative(three).text_table()["banel"]
    shown = {
        "seeds": "3", "success rate at the start": "0.01", "final success rate, median": "0.08",
        "final success rate, mean": "0.147", "best so far success rate, median": "0.32",
        "best so far success rate, mean": "0.3", "gain: final median ÷ start": "8 ×",
        "gain: final mean ÷ start": "14.7 ×", "gain: best median ÷ start": "32 ×", "∏ filter gain, median": "3.2",
        "∏ distillation gain, median": "2.5", "∏ bound on filter gain, median": "4", "successes seen": "6",
        "reward evaluations (NRE)": "24", "answered from the ledger": "0", "errors and lost calls": "0",
        "unknown after a stop": "0", "wall time per run": "21.5 s", "of it in the oracle": "3.0 s",
        "record per candidate": "125 ms",
        "in models or oracle": "93.0 %",
    }  # fmt: skip
    assert dict(cells) == shown
    seeds = read_negative(three).seed_table()
    assert list(seeds["final"]) == ["0.04", "0.32", "0.08", "0.01", "0.01", "0.04", "0.01"]
    assert list(seeds["successes in reach"]) == ["2"] * 7
    assert list(seeds["best so far"][:2]) == ["0.5 (round 1)", "0.32 (round 2)"]
    assert seeds.loc["random, seed 0", "best so far"] == "the start"


def test_time_adds_up_and_the_oracle_takes_no_longer_than_asking(three: Path) -> None:
    (run, *_), _ = read_runs(three)
    assert run.seconds == {name: 2 * seconds for name, seconds in SECONDS.items()}
    assert run.in_models == pytest.approx(1 - 0.75 / 10.75)
    rows = [row | {"seconds_oracle": 99.0} for row in run.rows]  # of many threads
    assert type(run)(run.method, 0, run.config, rows, "", run.counts).seconds["oracle"] == 4.0


@pytest.mark.parametrize(("counts", "draws"), [((8, 5, 11), 20000), ((0, 0, 0), 500), ((3, 3, 3), 3)])
def test_measurements_of_one_rate_are_pooled(counts: tuple[int, ...], draws: int) -> None:
    found = pooled([Rate(count / draws, math.nan, math.nan, draws) for count in counts])
    k, n = sum(counts), len(counts) * draws
    low = stats.beta.ppf(0.025, k, n - k + 1) if k else 0.0
    high = stats.beta.ppf(0.975, k + 1, n - k) if k < n else 1.0
    assert (found.value, found.low, found.high) == pytest.approx((k / n, low, high), rel=1e-9)
    assert found.draws == n


def test_drawn_rates_have_the_interval_of_their_round(tmp_path: Path) -> None:
    write_run(tmp_path, "banel", 0, [0.002, 0.01], draws=1000, gains=[2.0])
    write_run(tmp_path, "banel", 1, [0.004, 0.0], draws=1000, gains=[2.0])
    report = read_negative(tmp_path)
    first = report.runs[0].rates[1]
    assert first.low == pytest.approx(stats.beta.ppf(0.025, 10, 991))
    assert first.high == pytest.approx(stats.beta.ppf(0.975, 11, 990))
    assert report.base is not None
    assert (report.base.value, report.base.draws) == (pytest.approx(0.003), 2000)
    assert report.runs[1].rates[1].log == pytest.approx(-math.log(1000))
    assert list(report.seed_table()["final ÷ start"]) == ["3.33 ×", "< 0.333 ×"]
    assert "< 1 in 1,000" in report.seed_table().loc["banel, seed 1", "final"]
    assert any("the rate as 1 in n, which is more than it may be" in note for note in notes(report))


def test_an_exact_rate_of_0_is_not_taken_for_one_that_was_not_seen() -> None:
    kept = Rate(0.0, 0.0, 0.0, 10000, 0)  # all listed successes are rejected; draws measure P(accept)
    assert (str(kept), kept.log, kept.unseen) == ("0", -math.inf, False)
    drawn = Rate(0.0, 0.0, 0.0004, 10000)
    assert (str(drawn), drawn.unseen) == ("< 1 in 10,000", True)
    assert drawn.log == pytest.approx(-math.log(10000))


def test_distillation_of_successes_alone_counts(tmp_path: Path) -> None:
    path = write_run(tmp_path, "banel", 0, [0.01, 0.02, 0.06], gains=[2.0, 1.5])
    found = json.loads((path / ROUNDS).read_text())
    for name in ("acceptance", "bound", "filter_gain"):
        del found["rounds"][1][name]
    found["rounds"][1]["distillation_gain"] = 3.0
    (path / ROUNDS).write_text(json.dumps(found))
    (run,) = read_negative(tmp_path).runs
    assert (run.product("filter_gain"), run.product("distillation_gain")) == pytest.approx((2.0, 3.0))


# Methods against each other


def test_the_paired_test_is_students_and_wilcoxons() -> None:
    first, second = [-1.0, -2.0, 0.5, 3.0, 1.5, 2.0], [-2.0, -1.5, -1.0, 0.0, 0.0, 0.0]
    found = log_ratio(first, second)
    by_t = stats.ttest_rel(first, second)
    interval = by_t.confidence_interval(0.95)
    assert found.t_p == pytest.approx(by_t.pvalue)
    assert (math.log(found.low), math.log(found.high)) == pytest.approx((interval.low, interval.high))
    assert math.log(found.times) == pytest.approx(8.5 / 6)
    # differences 1, -0.5, 1.5, 3, 1.5, 2: all ranks are up but the least one. Of the 64 signs, 4 are as far out
    distinct = log_ratio([1.0, -0.5, 1.4, 3.0, 1.5, 2.0], [0.0] * 6)
    assert distinct.wilcoxon_p == pytest.approx(4 / 64)
    assert (found.ahead, found.pairs) == (5, 6)


def test_ten_seeds_ahead_are_two_of_1024_signs() -> None:
    assert log_ratio([0.1 * i for i in range(1, 11)], [0.0] * 10).wilcoxon_p == pytest.approx(2 / 1024)


def test_what_the_paired_test_cannot_say_is_not_said() -> None:
    one = log_ratio([2.0], [1.0])
    assert one.times == pytest.approx(math.e)
    assert math.isnan(one.t_p)
    same = log_ratio([0.1 + 0.2, 0.3], [0.0, 0.0])  # equal but for rounding
    assert math.isnan(same.t_p)
    assert math.isnan(log_ratio([1.0, 2.0], [1.0, 2.0]).wilcoxon_p)
    lost = log_ratio([-math.inf, 1.0, 2.0, -math.inf], [0.0, 0.0, 0.0, -math.inf])
    assert math.isnan(lost.times)
    assert math.isnan(lost.t_p)
    assert lost.wilcoxon_p == 1.0  # 1 and 2 up, and 3, the exact 0, down
    assert (lost.ahead, lost.pairs) == (2, 4)


def test_methods_are_compared_over_the_seeds_that_both_have(three: Path) -> None:
    report = read_negative(three)
    assert list(report.comparisons) == ["random-filter", "random"]
    found = report.comparisons["random-filter"]
    assert found.times == pytest.approx((4 * 32 * 2) ** (1 / 3))
    assert (found.ahead, found.pairs) == (3, 3)
    assert report.comparisons["random"].pairs == 1
    assert "banel has 6.35 times its success rate (95 % interval" in findings(report)[1]
    cells = report.comparison_table()
    assert cells.loc["banel against random", "paired t, p"] == "–"
    assert cells.loc["banel against random-filter", "ahead at"] == "3 of 3 seeds"


# The page


def test_the_page_needs_nothing_but_itself_and_every_picture_is_described(three: Path) -> None:
    write_negative_report(three)
    html = (three / "report.html").read_text()
    page = Page(html)
    assert not page.all("link") + page.all("iframe") + page.all("a")
    assert [script["type"] for script in page.all("script")] == ["application/json"]
    assert html.count("<figure>") == len(page.all("figcaption")) == len(page.all("img")) == 6
    for image in page.all("img"):
        assert len(str(image["alt"])) > 60
        assert str(image["src"]).startswith("data:image/svg+xml;base64,")
        svg = b64decode(str(image["src"]).partition(",")[2]).decode()
        assert not re.findall(r'(?:href|src)="(?!#|data:)', svg)
    assert all(text.endswith(".") for text in page.texts["figcaption"] if text.strip())


def test_the_page_holds_the_numbers_and_says_how_they_were_made(three: Path) -> None:
    html = render_negative(read_negative(three))
    numbers = json_of(html)
    assert [run["success_rate"] for run in numbers["runs"][:2]] == [[0.01, 0.5, 0.04], [0.01, 0.02, 0.32]]
    assert numbers["against"]["random-filter"]["ahead"] == 3
    for words in (
        "answered from the ledger at no cost", "not trained on", "filter factor 4, from 4,000 fresh draws",
        "10 epochs, 64 a step", "exact, over 2 successes", "100 reward evaluations",
    ):  # fmt: skip
        assert words in html.replace("\u00a0", " "), words


def test_options_that_change_what_a_number_means_are_told(tmp_path: Path) -> None:
    write_run(tmp_path, "banel", 0, [0.01, 0.02], gains=[2.0], known="ask", use_successes=True)
    html = render_negative(read_negative(tmp_path))
    assert "Candidates that were asked before were asked anew, and charged. Successes were trained on." in html
    assert "They were trained on." in html


def test_texts_of_candidates_cannot_break_the_page(tmp_path: Path) -> None:
    evil = "</code><script>alert(1)</script>"
    write_run(tmp_path, "banel", 0, [0.01, 0.02], gains=[2.0], texts=(evil, "x" * 500), name=evil)
    page = Page(render_negative(read_negative(tmp_path)))
    assert [script["type"] for script in page.all("script")] == ["application/json"]
    assert "</code><script>alert(1)</script>" in page.texts["code"]
    assert f"{'x' * 59}…" in page.texts["code"]
    assert page.texts["code"].count(evil) == 1  # one candidate is shown once


def test_examples_are_of_a_method_that_learns(tmp_path: Path) -> None:
    write_run(tmp_path, "random-filter", 0, [0.01, 0.02], gains=[2.0])
    assert "learnt to be a failure" not in render_negative(read_negative(tmp_path))
    write_run(tmp_path, "banel", 4, [0.01, 0.02], gains=[2.0])
    assert "each round of banel, seed 4" in render_negative(read_negative(tmp_path))


def test_without_a_success_rate_the_page_shows_what_was_seen(tmp_path: Path) -> None:
    write_run(tmp_path, "banel", 0, [None, None, None])
    report = read_negative(tmp_path)
    html = render_negative(report)
    assert "measures no success rate" in html
    assert "How often does it succeed?" not in html
    assert "How many successes were found" in html
    assert report.text_table()["banel"]["successes seen"] == "2"
    assert report.text_table()["banel"]["∏ filter gain, median"] == "–"


def test_a_gain_that_is_not_known_is_not_made_up(tmp_path: Path) -> None:
    path = write_run(tmp_path, "banel", 0, [0.002, 0.0, 0.004], draws=1000, gains=[2.0, 2.0])
    rounds = json.loads((path / ROUNDS).read_text())
    rounds["rounds"][1]["filter_gain"] = None
    (path / ROUNDS).write_text(json.dumps(rounds))
    write_run(tmp_path, "banel", 1, [0.002, 0.004, 0.008], draws=1000, gains=[2.0, 2.0])
    report = read_negative(tmp_path)
    assert report.text_table()["banel"]["∏ filter gain, median"] == "4 (1 of 2 seeds)"
    assert report.seed_table().loc["banel, seed 0", "∏ filter gain"] == "–"
    assert json_of(render_negative(report))["runs"][0]["filter_gain_product"] is None


def test_runs_that_have_not_ended_are_named(tmp_path: Path) -> None:
    write_run(tmp_path, "banel", 0, [0.01, 0.02], gains=[2.0], stopped="")
    write_run(tmp_path, "banel", 1, [0.01])
    (write_run(tmp_path, "random", 0, [0.01]) / ROUNDS).unlink()
    told = " ".join(notes(read_negative(tmp_path)))
    assert "as far as they came: banel, seed 0 (1 rounds)" in told
    assert "no round has ended: banel, seed 1; random, seed-0" in told


def test_one_run_has_a_page_of_its_own(three: Path) -> None:
    report = write_negative_report(three / "banel" / "seed-1")
    assert [run.name for run in report.runs] == ["banel, seed 1"]
    assert not report.comparisons
    assert (three / "banel" / "seed-1" / "report.html").exists()


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        (ROUNDS, '{"rounds": [{"nre": NaN, "successes": 1}], "stopped": ""}', "NaN, which is no JSON"),
        (ROUNDS, '{"rounds": [{"successes": 1}], "stopped": ""}', "expected a list of rounds, each with its nre"),
        (ROUNDS, '{"rounds": []}', "has no 'stopped'"),
        (CONFIG, "[]", "holds a list: expected a mapping"),
        (CONFIG, '{"name": 3}', "name=3: expected a text"),
        ("ledger.db", "garbage", "ledger.db"),
    ],
    ids=["nan", "no nre", "no end", "a list", "no name", "ledger"],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, file: str, text: str, words: str) -> None:
    path = write_run(tmp_path, "banel", 0, [0.01, 0.02], gains=[2.0])
    (path / file).write_text(text)
    assert words in refused("report", str(tmp_path))


def test_what_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, "banel", 0, [0.01])
    assert "no round in" in refused("report", str(tmp_path))
    write_run(tmp_path, "banel", 1, [0.01, 0.02], gains=[2.0])
    write_run(tmp_path, "banel", 2, [0.01, 0.02], gains=[2.0], name="other")
    assert "runs of different tasks: other, toy" in refused("report", str(tmp_path))
    with pytest.raises(ValueError, match="holds no run of negative evidence"):
        read_negative(tmp_path / "banel")


def test_a_method_that_learns_nothing_enters_with_the_rate_of_all_starts(tmp_path: Path) -> None:
    """Its own measurements at the end are noise about it, and their logarithms too low on average."""
    for seed, (start, last) in enumerate([(0.002, 0.016), (0.006, 0.032)]):
        write_run(tmp_path, "banel", seed, [start, last], draws=1000)
        write_run(tmp_path, "random", seed, [start, start], draws=1000)
        for name, filter_ in (("banel", {"filter": "RatioFilter"}), ("random", None)):
            file = tmp_path / name / f"seed-{seed}" / "negative.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"filter": filter_}))
    found = read_negative(tmp_path).comparisons["random"]
    assert found.times == pytest.approx(math.sqrt(0.016 * 0.032) / 0.004)


def test_methods_that_measured_the_start_by_the_same_draws_count_once(tmp_path: Path) -> None:
    for method in ("banel", "random-filter"):
        for seed, start in enumerate((0.002, 0.006)):
            write_run(tmp_path, method, seed, [start, 0.01], draws=1000)
    base = read_negative(tmp_path).base
    assert base is not None
    assert (base.value, base.draws) == (0.004, 2000)
    assert base.low == pytest.approx(stats.beta.ppf(0.025, 8, 1993))
