"""The report: its numbers against numpy's own, its pictures against their data, its page as a reader gets it."""

import json
import math
import re
from base64 import b64decode
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import arviz as az
import matplotlib
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoDelta

from banel_pyro import Estimate, Linear, Pair, Split, to_arviz
from banel_pyro.diagnostics.stored import is_local
from banel_pyro.inference_data import ArviZ, group
from banel_pyro.report import Comparison, Run, numbers, read_comparison, write_report
from banel_pyro.report.bits import bits_per_dimension
from banel_pyro.report.page import findings, render
from banel_pyro.report.pictures import MAX_LATENTS, pictures
from models import eight_schools, vae

Runs = Callable[..., Path]


def fit_runs(make: Callable[[], Pair], folder: Path, *lams: Any, **options: Any) -> Path:
    """Small runs, one for each λ."""
    for i, lam in enumerate(lams):
        with pyro.get_param_store().scope():
            pyro.set_rng_seed(0)
            make().fit(lam=lam, seed=0, out=folder / f"run{i}", progress=False, **options)
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits VAE at two λ: all latents local, held-out rows."""
    options = {"steps": 60, "batch_size": 128, "lr": 1e-2, "posterior_samples": 40}
    state = pyro.util.get_rng_state()
    folder = fit_runs(vae.digits, tmp_path_factory.mktemp("digits"), 0.0, 0.4, **options)
    pyro.util.set_rng_state(state)
    return folder


@pytest.fixture(scope="module")
def schools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight schools at two λ: latents that the rows share, training rows only."""
    options = {"steps": 20, "lr": 1e-2, "posterior_samples": 30}
    state = pyro.util.get_rng_state()
    folder = fit_runs(eight_schools.noncentered, tmp_path_factory.mktemp("schools"), 0.0, {"tau": 0.3}, **options)
    pyro.util.set_rng_state(state)
    return folder


def stats(folder: Path) -> dict[str, np.ndarray]:
    """The sample statistics of a run, read without any code of ours."""
    with xr.open_dataset(folder / "posterior.nc", group="sample_stats") as data:
        return {str(name): values.to_numpy()[0] for name, values in data.items()}


class Page(HTMLParser):
    """What a browser finds on a page: its tags with their attributes, and the text of each tag."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._open, []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def json_of(html: str) -> dict[str, Any]:
    """The numbers that a page holds as JSON."""
    (text,) = re.findall(r'<script type="application/json" id="numbers">(.*?)</script>', html, re.DOTALL)
    found: dict[str, Any] = json.loads(text)
    return found


def html_text(html: str, tag: str) -> str:
    """What a reader sees of the only element of that tag: spaces that keep a line together are spaces."""
    (inside,) = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", html, re.DOTALL)
    return unescape(re.sub(r"<[^>]*>", "", inside)).replace("\u00a0", " ")


# The numbers


def test_numbers_of_local_latents_are_those_that_numpy_finds_in_posterior_nc(digits: Path) -> None:
    """Per datum: KL = E[log q - log p + log lik], IWAE = log mean exp(log p - log q); errors over data points."""
    write_report(digits)
    found = json_of((digits / "report.html").read_text())
    assert (found["unit"], found["rows"], found["paired"]) == ("nats per data point", "all 297 held-out rows", True)
    assert found["pixels"] == 64
    vectors = []
    for run, folder in zip(found["runs"], ("run0", "run1"), strict=True):
        s = stats(digits / folder)
        lik, log_p, log_q = s["log_lik_datum"], s["log_p_datum"], s["log_q_datum"]
        assert lik.shape == (40, 297)
        vectors.append(
            {
                "log_likelihood": lik.mean(0),
                "kl": (log_q - log_p + lik).mean(0),
                "entropy": -log_q.mean(0),
                "elbo": (log_p - log_q).mean(0),
                "iwae": np.log(np.exp(log_p - log_q).mean(0)),
                "elbo_bits_per_dimension": (log_q - log_p).mean(0) / 64 / np.log(2),
                "iwae_bits_per_dimension": -np.log2(np.exp(log_p - log_q).mean(0)) / 64,
            }
        )
        for name, vector in vectors[-1].items():
            assert run[name] == pytest.approx(vector.sum() / 297)
            assert run[f"{name}_stderr"] == pytest.approx(vector.std() / math.sqrt(296))
        with xr.open_dataset(digits / folder / "posterior.nc", group="posterior") as data:
            means = data["z"].to_numpy()[0].mean(0)
        assert run["active_units"] == (means.var(axis=0) > 0.01).sum()
        assert (run["latents"], run["draws"]) == (8, 40)
    for name in vectors[0]:
        change = vectors[1][name] - vectors[0][name]
        assert found["runs"][0][f"{name}_difference"] is None
        assert found["runs"][1][f"{name}_difference"] == pytest.approx(change.sum() / 297)
        assert found["runs"][1][f"{name}_difference_stderr"] == pytest.approx(change.std() / math.sqrt(296))
    # what pairing is for
    assert found["runs"][1]["elbo_difference_stderr"] < 0.5 * found["runs"][1]["elbo_stderr"]


def test_numbers_of_shared_latents_are_totals_over_rows_with_errors_over_draws(schools: Path) -> None:
    write_report(schools)
    found = json_of((schools / "report.html").read_text())
    assert (found["unit"], found["rows"], found["paired"]) == ("nats per data point", "all 8 training rows", False)
    for run, folder in zip(found["runs"], ("run0", "run1"), strict=True):
        s = stats(schools / folder)
        log_w = s["log_p"] - s["log_q"]
        expected = {
            "log_likelihood": s["log_lik"],
            "kl": s["log_lik"] - log_w,
            "entropy": -s["log_q"],
            "elbo": log_w,
        }
        for name, draws in expected.items():
            assert run[name] == pytest.approx(draws.mean() / 8)
            assert run[f"{name}_stderr"] == pytest.approx(draws.std(ddof=1) / math.sqrt(30) / 8)
        assert run["iwae"] == pytest.approx(np.log(np.exp(log_w).mean()) / 8)
        assert run["active_units"] is None
        assert not [name for name in run if "bits" in name]
    first, second = found["runs"]
    assert second["elbo_difference"] == pytest.approx(second["elbo"] - first["elbo"])
    assert second["elbo_difference_stderr"] == pytest.approx(math.hypot(first["elbo_stderr"], second["elbo_stderr"]))


def test_one_shared_latent_makes_a_model_shared_however_many_rows_there_are(digits: Path) -> None:
    """Its share of log p and log q is lost in sums over many rows, so it is told by its dims."""
    idata = read_comparison(digits).runs[0].idata
    assert is_local(idata)
    idata["sample_stats"]["log_q_tiny"] = 0 * idata["sample_stats"]["log_q"]
    idata.attrs["densities"] = json.dumps({"z": ["z"], "tiny": ["tiny"]})
    assert not is_local(idata)
    idata.attrs["densities"] = json.dumps({"z": ["z"]})
    idata["sample_stats"]["log_p"] += 5.0  # a pyro.factor outside the plate
    assert not is_local(idata)


def test_elbo_is_log_likelihood_minus_kl_and_below_iwae(digits: Path, schools: Path) -> None:
    for folder in (digits, schools):
        for run in read_comparison(folder).runs:
            values = {name: estimate.value for name, estimate in run.numbers.values.items()}
            assert values["elbo"] == pytest.approx(values["log_likelihood"] - values["kl"])
            assert values["elbo"] < values["iwae"]


def test_no_number_depends_on_lam(digits: Path) -> None:
    """The penalised loss is nowhere on the page, whose table therefore compares what can be compared."""
    table = numbers.table(read_comparison(digits).numbers)
    assert not [name for name in table.columns if "loss" in name or "penalty" in name]


def test_rows_of_the_table_and_its_notes_tell_what_was_compared(digits: Path, schools: Path) -> None:
    local, shared = (read_comparison(folder).numbers for folder in (digits, schools))
    assert list(numbers.text_table(local).columns) == ["λ = 0", "λ = 0.4", "λ = 0.4 − λ = 0"]
    nats = ["log-likelihood", "KL", "entropy", "ELBO", "IWAE"]
    bits = ["bits per dimension", "bits per dimension, IWAE"]
    assert list(numbers.text_table(local).index) == [*nats, *bits, "active units"]
    assert list(numbers.text_table(shared).index) == nats
    assert "all 297 held-out rows, from 40 draws; ± one standard error over data points." in numbers.notes(local)[0]
    assert "totals divided by 8), on all 8 training rows, from 30 draws" in numbers.notes(shared)[0]
    assert numbers.notes(local)[1].startswith("Differences are paired")
    assert numbers.notes(shared)[1].startswith("Differences are not paired")
    assert numbers.notes(local)[2].startswith("Bits per dimension are −ELBO ÷ (64 pixels · ln 2)")
    assert not [note for note in numbers.notes(shared) if "Bits" in note]
    assert "never compared or ranked" in numbers.notes(shared)[-1]


def coins(pixels: int, *, draw: Callable[[], Any] = lambda: dist.Normal(0.0, 1.0), label: bool = False) -> ArviZ:
    """Draws for four images of fair coins, whose latents say nothing about them: KL = 0 where ``draw`` is the prior."""

    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(torch.full((pixels,), 0.5)).to_event(1), obs=x)
            if label:
                pyro.sample("label", dist.Bernoulli(0.5), obs=x[:, 0])

    def guide(x: torch.Tensor) -> None:
        with pyro.plate("data", 4):
            pyro.sample("z", draw())

    groups = ("posterior", "sample_stats", "prior", "observed_data")
    return to_arviz(model, guide, torch.eye(4, pixels), num_samples=3, groups=groups, seed=0)


def test_a_fair_coin_for_each_pixel_is_one_bit_per_dimension(float64: torch.dtype) -> None:
    found = numbers.run_numbers(coins(36)).values
    assert found["elbo"].value == pytest.approx(-36 * math.log(2), rel=1e-12)
    for name in ("elbo_bits_per_dimension", "iwae_bits_per_dimension"):
        assert found[name].value == pytest.approx(1.0, rel=1e-12)
        assert found[name].stderr == pytest.approx(0.0, abs=1e-12)


def test_bits_per_dimension_of_numbers_done_by_hand() -> None:
    """784 ln 2 = 543.4274 nats are one bit per pixel of MNIST; a difference of bounds is one of bits."""
    found = bits_per_dimension(Estimate(-100.0, 2.0), 784)
    assert (found.value, found.stderr) == (pytest.approx(0.1840172, rel=1e-6), pytest.approx(0.003680344, rel=1e-6))
    better = bits_per_dimension(Estimate(-90.0, 2.0), 784)
    assert better.value - found.value == pytest.approx(bits_per_dimension(Estimate(10.0, 0.0), 784).value)
    with pytest.raises(ValueError, match=r"dimensions=0: expected the dimensions of one data point, such as 784"):
        bits_per_dimension(Estimate(-1.0, 0.0), 0)


def test_bits_per_dimension_are_for_images_alone() -> None:
    """Not for rows of another shape, not with observations that are no pixels, not where the ELBO is no bound."""
    assert numbers.run_numbers(coins(36)).pixels == 36
    assert numbers.run_numbers(coins(35)).pixels is None
    assert numbers.run_numbers(coins(36, label=True)).pixels is None
    point = numbers.run_numbers(coins(36, draw=lambda: dist.Delta(torch.tensor(0.1))))
    assert point.point_masses == ("z",)
    assert point.pixels is None
    assert "elbo_bits_per_dimension" not in point.values


def test_a_model_without_a_data_plate_gives_totals(tmp_path: Path) -> None:
    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(mu, 1.0), obs=torch.tensor(0.5))

    def guide() -> None:
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.5))

    fit_runs(lambda: Pair(model, guide, data=lambda: None), tmp_path, 0.0, steps=3, posterior_samples=20)
    (run,) = write_report(tmp_path).runs
    s = stats(tmp_path / "run0")
    assert (run.numbers.unit, run.numbers.rows) == ("nats, total", "the data inside the model")
    assert run.numbers.values["elbo"].value == pytest.approx((s["log_p"] - s["log_q"]).mean())
    assert "x" in group(read_comparison(tmp_path).runs[0].idata, "posterior_predictive")


def test_the_entropy_of_a_point_is_minus_infinity(tmp_path: Path) -> None:
    def make() -> Pair:
        def model(x: torch.Tensor) -> None:
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            with pyro.plate("data", 4):
                pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

        return Pair(model, AutoDelta(model), data=lambda: torch.arange(4.0))

    fit_runs(make, tmp_path, 0.0, steps=3, posterior_samples=5)
    comparison = write_report(tmp_path)
    assert comparison.runs[0].numbers.values["entropy"].value == -math.inf
    assert numbers.text_table(comparison.numbers).loc["entropy", "λ = 0"] == "−∞"
    assert any("The posterior of mu is a point" in note for note in numbers.notes(comparison.numbers))
    assert json_of((tmp_path / "report.html").read_text())["runs"][0]["entropy"] is None


def test_transformed_training_rows_are_judged_as_they_were_trained_on(tmp_path: Path) -> None:
    """Grey images under a Bernoulli model: without the transform, Pyro would refuse them."""

    def make() -> Pair:
        pair = vae.digits()
        split = pair.split()
        return replace(pair, data=lambda: Split(split.train[:30], transform=split.transform))

    fit_runs(make, tmp_path, 0.0, steps=2, posterior_samples=3)
    (run,) = read_comparison(tmp_path).runs
    assert run.numbers.rows == "all 30 training rows"
    assert set(np.unique(group(run.idata, "observed_data")["x"])) == {0.0, 1.0}


# What is read


def test_lam_zero_comes_first_and_labels_tell_runs_apart(tmp_path: Path) -> None:
    lams = (0.5, Linear(0.0, 0.5, over=2), {"mu": -0.2, "tau": 0.1}, 0.0, -0.5, 0.5, lambda step, terms: 0.1)
    fit_runs(eight_schools.noncentered, tmp_path, *lams, steps=2, posterior_samples=2)
    labels = list(read_comparison(tmp_path).numbers)
    assert labels[:4] == ["λ = 0", "λ = −0.5", "λ = 0.5 (run0)", "λ = 0.5 (run5)"]
    assert labels[4:6] == ["λ = Linear(start=0.0, stop=0.5, over=2)", "λ of mu = −0.2, tau = 0.1"]
    assert labels[6] == "λ = <lambda>"
    write_report(tmp_path)


def test_runs_of_different_data_are_not_compared(digits: Path, schools: Path, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(digits / "run0")
    (tmp_path / "b").symlink_to(schools / "run0")
    with pytest.raises(ValueError, match=r"runs 'a' and 'b' differ in name \('digits' and .*one pair on one data set"):
        write_report(tmp_path)


def test_a_run_that_has_not_ended_is_left_out_and_named(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "ended").symlink_to(digits / "run0")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text((digits / "run1" / "config.json").read_text())
    assert write_report(tmp_path).unfinished == ("begun",)
    assert "Not shown, because they have not ended: begun." in (tmp_path / "report.html").read_text()
    (tmp_path / "ended").unlink()
    with pytest.raises(ValueError, match=r"no run in .* has ended"):
        write_report(tmp_path)


def test_what_a_run_wrote_about_itself_is_the_page_of_its_folder(digits: Path) -> None:
    before = (digits / "run1" / "report.html").read_bytes()
    write_report(digits / "run1")
    assert (digits / "run1" / "report.html").read_bytes() == before


# The page


def test_the_page_needs_nothing_but_itself_and_fits_a_phone(digits: Path) -> None:
    write_report(digits)
    page = Page((digits / "report.html").read_text())
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert not page.all("link") + page.all("iframe")
    assert page.all("a") == [{"href": "#trust"}]
    assert [script["type"] for script in page.all("script")] == ["application/json"]
    addresses = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href", "srcset")]
    addresses.remove("#trust")
    assert len(addresses) == 4
    assert all(str(address).startswith("data:image/svg+xml;base64,") for address in addresses)
    style = "".join(page.texts["style"])
    assert "url(" not in style
    assert "@import" not in style
    for rule in ("img { display: block; width: 100%", "overflow-x: auto", "prefers-color-scheme: dark"):
        assert rule in style


def test_every_picture_has_a_question_a_caption_and_a_text_for_those_who_do_not_see_it(digits: Path) -> None:
    write_report(digits)
    html = (digits / "report.html").read_text()
    page = Page(html)
    assert html.count("<figure>") == len(page.all("figcaption")) == len(page.all("img")) == 4
    for image in page.all("img"):
        assert len(str(image["alt"])) > 60
        svg = b64decode(str(image["src"]).partition(",")[2]).decode()
        assert not re.findall(r'(?:href|src)="(?!#|data:)', svg)
    assert all(text.endswith(".") for text in page.texts["figcaption"] if text.strip())


def test_the_page_says_what_lam_did_and_what_it_cost(digits: Path) -> None:
    comparison = read_comparison(digits)
    change = numbers.difference(comparison.runs[1].numbers, comparison.runs[0].numbers)
    (sentence,) = findings(comparison.runs)
    assert change["entropy"].value < 0 < -change["elbo"].value
    assert (
        f"At λ = 0.4 a data point's posterior is narrower than at λ = 0, by {-change['entropy'].value:.2f} nats"
        in sentence
    )
    assert (
        f"The ELBO is {numbers.readable(Estimate(-change['elbo'].value, change['elbo'].stderr))} nats lower" in sentence
    )
    assert sentence.endswith("per data point, on all 297 held-out rows.")
    (swapped,) = findings(comparison.runs[::-1])
    assert "wider than at λ = 0.4" in swapped
    assert "nats higher" in swapped
    (same,) = findings([comparison.runs[0], comparison.runs[0]])
    assert "as wide as at λ = 0, to within 0.005 nats" in same
    assert "The ELBO is the same to within 0.005 nats" in same


@pytest.mark.parametrize(("nats", "times"), [(0.01, "1 %"), (0.7, "2 times"), (4.39, "81 times"), (21.3, "10^9 times")])
def test_a_change_of_volume_is_told_in_two_digits(digits: Path, nats: float, times: str) -> None:
    run = read_comparison(digits).runs[0]
    wider = replace(run, label="wider")
    vectors = dict(run.numbers.per_datum)
    wider.__dict__["numbers"] = replace(run.numbers, per_datum=vectors | {"entropy": vectors["entropy"] + nats})
    assert f"by {nats:.2f} nats of entropy: {times} larger in volume" in findings([run, wider])[0]


def test_a_posterior_that_many_data_points_share_is_told_in_its_own_nats(schools: Path) -> None:
    """4 nats in all are 0.0004 for each of 10,000 data points, and no less a difference for that."""
    run = read_comparison(schools).runs[0]
    runs = [replace(run, label=label) for label in ("narrow", "wide")]
    for one, total in zip(runs, (0.0, 4.0), strict=True):
        values = dict(run.numbers.values) | dict.fromkeys(("entropy", "elbo"), Estimate(total / 1e4, 1e-8))
        one.__dict__["numbers"] = replace(run.numbers, values=values, num_rows=10_000)
    (sentence,) = findings(runs)
    assert "the posterior is wider than at narrow, by 4.00 nats of entropy: 55 times larger in volume." in sentence
    assert "The ELBO is 0.000400 ± 0.000000 nats higher per data point" in sentence


def test_the_findings_are_a_list_where_there_are_several(digits: Path) -> None:
    comparison = read_comparison(digits)
    first, second = comparison.runs
    three = replace(comparison, runs=(first, second, replace(second, label="again")))
    html = render(three)
    assert html_text(html, "ul").split("\n")[1:-1] == findings(three.runs)
    assert html_text(html, "h1") == "digits: λ = 0, λ = 0.4, again"
    assert 'class="lede"' not in html


def test_the_glossary_explains_every_row_of_the_table(digits: Path, schools: Path) -> None:
    for folder in (digits, schools):
        trust, _, rest = (folder / "run0" / "report.html").read_text().partition("<h2>The numbers</h2>")
        terms, checks = (re.findall(r"<dt>(.*?)</dt><dd>.+?</dd>", part) for part in (rest, trust))
        assert checks == [check.name for check in read_comparison(folder / "run0").runs[0].trust.checks]
        assert terms == [*numbers.text_table(read_comparison(folder / "run0").numbers).index, "nat"]


def test_text_from_outside_cannot_break_the_page(digits: Path) -> None:
    comparison = read_comparison(digits)
    nasty = "</script><script>alert(1)</script>&<b>"
    runs = (comparison.runs[0], replace(comparison.runs[1], label=nasty))
    html = render(replace(comparison, name=nasty, runs=runs, unfinished=(nasty,), command=nasty))
    assert html.count("<script") == html.count("</script>") == 1
    assert "<b>" not in html
    assert json_of(html)["runs"][1]["label"] == nasty


def test_how_the_runs_were_made_is_one_column_where_they_agree(digits: Path) -> None:
    comparison = read_comparison(digits)
    html = render(replace(comparison, command="banel fit models.vae:digits --lam 0,0.4"))
    assert html.count('<p class="lede">') == 1
    assert html_text(html, "pre") == "banel fit models.vae:digits --lam 0,0.4"
    assert html.count('<th scope="col">all runs</th>') == 1
    assert comparison.runs[0].config["data"][:16] in html
    other = replace(comparison.runs[1], config=comparison.runs[1].config | {"seed": 1})
    assert '<th scope="col">all runs</th>' not in render(replace(comparison, runs=(comparison.runs[0], other)))


def test_drawing_changes_no_setting_of_matplotlib(digits: Path) -> None:
    before = dict(matplotlib.rcParams)
    render(read_comparison(digits))
    assert dict(matplotlib.rcParams) == before


# The pictures


def test_images_are_shown_as_such_and_other_data_as_intervals(digits: Path, schools: Path) -> None:
    images, intervals = (pictures(read_comparison(folder).runs)[-1] for folder in (digits, schools))
    assert images.photo
    assert "12 images of 8 by 8 pixels" in images.alt
    assert not intervals.photo
    assert "each of 8 observed numbers" in intervals.alt


def test_entropy_is_shown_per_data_point_only_where_latents_are_local(digits: Path, schools: Path) -> None:
    local, shared = (pictures(read_comparison(folder).runs)[2] for folder in (digits, schools))
    assert "about each data point" in local.title
    assert "λ = 0.4: mean" in local.alt
    assert "about each data point" not in shared.title
    assert "theta_trans" in shared.alt


def many_latents(count: int) -> Run:
    """A run whose posterior is half as wide as its prior in each of many latents."""
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(1, 4000, count))
    log_q = np.zeros((1, 4000))
    attrs = {"data_plate": "", "densities": '{"z": ["z"]}'}
    names = ("log_p", "log_q", "log_q_z")
    idata = az.from_dict(posterior={"z": draws / 2}, prior={"z": draws}, sample_stats=dict.fromkeys(names, log_q))
    idata.add_groups(posterior_predictive=idata.posterior.isel(z_dim_0=slice(0)))
    idata.sample_stats["log_lik"] = idata.sample_stats["log_p"]
    idata.attrs.update(attrs)
    history = pd.DataFrame({"step": [1], **dict.fromkeys(("elbo", "log_likelihood", "kl", "entropy", "lam"), 0.0)})
    return Run("λ = 0", {"per": "total"}, history, idata)


def test_spread_shows_a_share_of_the_prior_and_says_when_it_leaves_latents_out() -> None:
    few, many = (pictures([many_latents(count)])[1] for count in (3, MAX_LATENTS + 5))
    assert "median 0.50, from 0.50 to 0.50" in few.alt
    assert f"first {MAX_LATENTS} of {MAX_LATENTS + 5} latents" in many.caption
    assert "latents are shown" not in few.caption


def test_a_comparison_of_one_run_has_no_differences(digits: Path) -> None:
    run = read_comparison(digits / "run0")
    assert isinstance(run, Comparison)
    assert list(numbers.text_table(run.numbers).columns) == ["λ = 0"]
    assert findings(run.runs) == []
