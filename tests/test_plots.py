"""The pictures: what is drawn is what was given, on the axes that were given, and nothing else changes."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pytest
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure

from banel_pyro import Estimate, FitResult, spread
from banel_pyro.diagnostics import Calibration, PredictiveCheck
from banel_pyro.diagnostics.latent import kl_per_dimension
from banel_pyro.report import plots
from models import data, eight_schools, vae


@pytest.fixture
def ax() -> Iterator[Any]:
    """Axes to draw on."""
    with matplotlib.rc_context(plots.STYLE):
        yield Figure().subplots()


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Close the figures that a test makes."""
    yield
    plt.close("all")


def fitted(pair: Any, **options: Any) -> FitResult:
    state = pyro.util.get_rng_state()
    with pyro.get_param_store().scope():
        pyro.set_rng_seed(0)
        result = pair().fit(seed=0, progress=False, **options)
    pyro.util.set_rng_state(state)
    return result


@pytest.fixture(scope="module")
def digits() -> FitResult:
    """A digits VAE after a few steps."""
    return fitted(vae.digits, steps=20, batch_size=128, lr=1e-2)


@pytest.fixture(scope="module")
def digit_draws(digits: FitResult) -> Any:
    with pyro.get_param_store().scope():
        return digits.posterior(digits.held_out[0][:30], num_samples=20)


@pytest.fixture(scope="module")
def school_draws() -> Any:
    result = fitted(eight_schools.noncentered, steps=20, lr=1e-2)
    with pyro.get_param_store().scope():
        return result.posterior(num_samples=50)


HISTORY = pd.DataFrame({"step": [1, 2, 3], "elbo": [-9.0, -2.0, -1.0], "val_elbo": [math.nan, -2.5, math.nan]})
WIDTHS = pd.Series({"z[0]": 0.9, "z[1]": 0.2})
ENTROPIES = {"mu": Estimate(1.0, 0.1), "point": Estimate(-math.inf, math.nan)}
KL = pd.DataFrame({"kl": [0.1, 2.0, 0.5], "stderr": [0.01, 0.2, math.nan]}, index=["z[0]", "z[1]", "z[2]"])
IMAGES = np.stack([np.full((8, 8), i / 2) for i in range(3)])
DRAWS = np.linspace(0.0, 1.0, 101)[:, None] * [1.0, 10.0]
POINTS = np.array([[0.0, 5.0, 1.0], [0.0, 3.0, -1.0], [0.1, 1.0, 4.0]])
SPREADS = {
    0.0: pd.Series({"mu": 2.0, "z[0]": 1.0, "z[1]": 4.0}),
    0.75: pd.Series({"mu": 1.0, "z[0]": 0.4, "z[1]": 3.0}),
}
COMPARISONS = {
    lam: pd.DataFrame(
        {"sd_ratio": ratio, "sd_ratio_stderr": [0.05, 0.1, 0.1], "non_normal": [0.02, 0.3, 0.02]},
        index=["mu", "tau", "z[0]"],
    )
    for lam, ratio in {0.0: [0.9, 1.2, 1.0], 0.75: [0.45, 1.1, 0.6]}.items()
}
TRAVERSAL = xr.DataArray(
    np.arange(6.0).reshape(2, 3, 1) / 5 * np.ones(25),
    dims=("latent", "sd", "x_dim_0"),
    coords={"latent": ["z[0]", "z[4]"], "sd": [-1.5, 0.0, 1.5]},
)

RANKED = Calibration(
    xr.Dataset({"z": (("simulation", "z_dim_0"), np.stack([np.arange(40) % 20, np.arange(40) % 2 * 19], -1))}),
    num_draws=19,
    seed=0,
    failed={},
    seconds=1.0,
)

CHECK = PredictiveCheck(
    pd.DataFrame({"observed": [0.2, 4.0], "sd": [0.3, 3.0], "p_value": [0.8, 0.6]}, index=["mean", "max"]),
    pd.DataFrame(DRAWS, columns=["mean", "max"]),
)

SINGLE: dict[str, Callable[..., Axes]] = {
    "terms": lambda **where: plots.plot_terms({"a": HISTORY, "b": HISTORY + 1}, held_out="val_elbo", **where),
    "spread": lambda **where: plots.plot_spread({"a": WIDTHS, "b": WIDTHS / 2}, **where),
    "entropy_per_datum": lambda **where: plots.plot_entropy_per_datum(np.array([1.0, 2.0, 2.1]), **where),
    "entropies": lambda **where: plots.plot_entropies({"a": ENTROPIES, "b": ENTROPIES}, **where),
    "intervals": lambda **where: plots.plot_intervals([0.3, 4.0], {"a": DRAWS, "b": DRAWS}, **where),
    "kl_per_dimension": lambda **where: plots.plot_kl_per_dimension({"a": KL, "b": KL / 2}, **where),
    "latent_scatter": lambda **where: plots.plot_latent_scatter(POINTS, [1, 2, 2], **where),
    "sd_ratio_against_lam": lambda **where: plots.plot_sd_ratio_against_lam(COMPARISONS, **where),
    "ranks": lambda **where: plots.plot_ranks({"a": RANKED, "b": RANKED}, "z[1]", **where),
    "predictive_check": lambda **where: plots.plot_predictive_check({"a": CHECK, "b": CHECK}, **where),
    "rank_ecdf": lambda **where: plots.plot_rank_ecdf({"a": RANKED, "b": RANKED}, "z[1]", **where),
    "spread_against_lam": lambda **where: plots.plot_spread_against_lam(SPREADS, **where),
}
GRIDS: dict[str, tuple[Callable[..., Any], tuple[int, int]]] = {
    "images": (lambda **where: plots.plot_images({"seen": IMAGES, "λ = 0": IMAGES}, **where), (2, 3)),
    "prior_images": (lambda **where: plots.plot_prior_samples(IMAGES, **where), (1, 3)),
    "prior_numbers": (lambda **where: plots.plot_prior_samples(DRAWS, observed=[0.2, 0.4], **where), (1, 1)),
    "latent_traversal": (lambda **where: plots.plot_latent_traversal(TRAVERSAL, **where), (2, 3)),
}


def settings() -> dict[str, Any]:
    return dict(matplotlib.rcParams)


# What holds for every picture


def test_every_public_function_is_under_these_tests() -> None:
    names = {name.removeprefix("plot_") for name in plots.__all__ if name.startswith("plot_")}
    assert names == {*SINGLE, "images", "prior_samples", "latent_traversal"}


@pytest.mark.parametrize("name", SINGLE)
def test_axes_that_are_given_are_drawn_on_and_returned(name: str, ax: Any) -> None:
    open_before, found = plt.get_fignums(), settings()
    assert SINGLE[name](ax=ax) is ax
    assert ax.has_data()
    assert ax.get_xlabel()
    assert (plt.get_fignums(), settings()) == (open_before, found)
    assert ax.figure.legends == []
    assert ax.get_legend() is None


@pytest.mark.parametrize("name", SINGLE)
def test_without_axes_there_is_one_figure_of_pyplot_in_our_style(name: str) -> None:
    found = settings()
    ax = SINGLE[name]()
    assert plt.get_fignums() == [ax.figure.number]
    assert settings() == found
    ax.figure.canvas.draw()  # which asks for all ticks, long after the style is gone
    assert not ax.spines["top"].get_visible()
    assert {label.get_fontsize() for label in ax.get_xticklabels() + ax.get_yticklabels()} == {9.5}
    assert {to_hex(label.get_color()) for label in ax.get_xticklabels()} == {"#222222"}
    assert ax.figure.get_figwidth() == plots.WIDTH


@pytest.mark.parametrize("name", GRIDS)
def test_grids_are_drawn_on_the_axes_given_or_on_a_figure_of_their_own(name: str) -> None:
    draw, shape = GRIDS[name]
    found, grid = settings(), Figure().subplots(*shape, squeeze=False)
    assert draw(axes=grid.tolist()).tolist() == grid.tolist()
    assert all(ax.has_data() for ax in grid.flat)
    assert plt.get_fignums() == []
    own = draw()
    assert own.shape == shape
    assert plt.get_fignums() == [own[0, 0].figure.number]
    assert settings() == found


@pytest.mark.parametrize("name", SINGLE)
def test_a_users_own_style_does_not_mix_with_ours(name: str) -> None:
    with plt.style.context("dark_background"):
        ax = SINGLE[name]()
        assert ax.get_facecolor() == ax.figure.get_facecolor() == to_rgba("white")
        assert to_hex(ax.xaxis.label.get_color()) == "#000000"


@pytest.mark.parametrize(("name", "entries"), [("terms", ["a", "b"]), ("kl_per_dimension", ["a", "b"])])
def test_legends_are_made_for_new_figures_and_left_to_the_owner_of_the_axes(
    name: str, entries: list[str], ax: Any
) -> None:
    (legend,) = SINGLE[name]().figure.legends
    assert [text.get_text() for text in legend.get_texts()] == entries
    SINGLE[name](ax=ax)
    assert [text.get_text() for text in ax.legend().get_texts()] == entries


def test_one_run_needs_no_legend() -> None:
    assert plots.plot_terms(HISTORY).figure.legends == []
    assert plots.plot_kl_per_dimension(KL).figure.legends == []


def test_runs_differ_in_colour_and_in_marker_or_line() -> None:
    found = plots.handles([str(i) for i in range(10)])
    assert len({(h.get_color(), h.get_marker()) for h in found}) == 10
    assert len({h.get_marker() for h in found}) == 10
    assert set(plots.COLOURS) <= {"#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"}


def test_a_picture_that_fails_leaves_no_empty_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("as asked")

    monkeypatch.setattr(Axes, "hist", fail)
    with pytest.raises(RuntimeError, match="as asked"):
        plots.plot_entropy_per_datum([1.0, 2.0])
    assert plt.get_fignums() == []


# The numbers drawn are the numbers given


def test_plot_terms_draws_each_history_and_its_held_out_points(ax: Any) -> None:
    plots.plot_terms({"a": HISTORY, "b": HISTORY + 1}, "elbo", held_out="val_elbo", ax=ax)
    line, point, other, _ = ax.lines
    assert list(line.get_ydata()) == [-9.0, -2.0, -1.0]
    assert list(point.get_xydata()[0]) == [2.0, -2.5]
    assert list(other.get_xdata()) == [2, 3, 4]
    assert line.get_color() != other.get_color()
    assert line.get_linestyle() != other.get_linestyle()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step (marks: held-out ELBO)", "ELBO (nats)")


def test_plot_terms_draws_a_lam_for_each_site_and_gaps_for_infinities(ax: Any) -> None:
    history = pd.DataFrame({"step": [1, 2], "lam": [math.nan] * 2, "lam[z]": [0.1, 0.2], "lam[w]": [0.3, 0.4]})
    plots.plot_terms({"a": history}, "lam", ax=ax)
    assert [list(line.get_ydata()) for line in ax.lines] == [[0.1, 0.2], [0.3, 0.4]]
    assert [text.get_text() for text in ax.legend().get_texts()] == ["a"]
    assert ax.get_ylabel() == "λ"
    plots.plot_terms(pd.DataFrame({"step": [1, 2], "entropy": [-math.inf, 1.0]}), "entropy", ax=ax)
    assert math.isnan(ax.lines[-1].get_ydata()[0])


def test_plot_terms_takes_results_and_knows_their_unit(digits: FitResult, ax: Any) -> None:
    plots.plot_terms(digits, "kl", ax=ax)
    assert ax.lines[0].get_ydata().tolist() == digits.history["kl"].to_list()
    assert ax.get_ylabel() == "KL (nats per data point)"


def test_plot_spread_has_a_row_for_each_latent_and_the_prior_at_one(ax: Any) -> None:
    plots.plot_spread({"a": WIDTHS, "b": pd.Series({"z[1]": 0.1, "z[0]": 0.3})}, ax=ax)
    assert [list(line.get_xdata()) for line in ax.lines[:2]] == [[0.9, 0.2], [0.3, 0.1]]
    assert list(ax.lines[2].get_xdata()) == [1.0, 1.0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["z[0]", "z[1]"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first on top


def test_plot_spread_reads_draws_and_tables(digit_draws: Any, school_draws: Any) -> None:
    table = spread(digit_draws, over="data")
    for given, exact in ((digit_draws, table), (table, table), ({"schools": school_draws}, spread(school_draws))):
        dims = "data" if given is digit_draws else ()
        ax = plots.plot_spread(given, over=dims, ax=Figure().subplots())
        assert list(ax.lines[0].get_xdata()) == exact["iqr_ratio"].to_list()


def test_plot_entropy_per_datum_counts_every_data_point(ax: Any) -> None:
    plots.plot_entropy_per_datum({"a": np.array([1.0, 2.0, 2.1]), "b": torch.tensor([-1.0, 0.0])}, ax=ax)
    assert [sum(bar.get_height() for bar in bars) for bars in ax.containers] == [3, 2]
    assert [line.get_xdata()[0] for line in ax.lines] == [pytest.approx(1.7), -0.5]


def test_entropies_are_read_from_draws(digit_draws: Any, school_draws: Any, ax: Any) -> None:
    plots.plot_entropy_per_datum(digit_draws, ax=ax)
    log_q = digit_draws["sample_stats"]["log_q_datum"].to_numpy()
    assert ax.lines[-1].get_xdata()[0] == pytest.approx(-log_q.mean())
    other = plots.plot_entropies(school_draws, ax=Figure().subplots())
    assert [label.get_text() for label in other.get_yticklabels()] == ["mu", "tau", "theta_trans"]
    log_q = school_draws["sample_stats"]["log_q_mu"].to_numpy()
    assert other.lines[0].get_xdata()[0] == pytest.approx(-log_q.mean())


def test_plot_entropies_shows_values_and_errors(ax: Any) -> None:
    plots.plot_entropies({"a": ENTROPIES}, ax=ax)
    assert ax.lines[0].get_xdata()[0] == 1.0
    assert math.isnan(ax.lines[0].get_xdata()[1])
    (segment, _) = ax.collections[0].get_segments()
    assert list(segment[:, 0]) == pytest.approx([0.8, 1.2])
    other = plots.plot_entropies(ENTROPIES, ax=Figure().subplots())  # one run without a label
    assert other.lines[0].get_xdata()[0] == 1.0


def test_plot_intervals_shows_ninety_per_cent_and_what_was_observed(ax: Any) -> None:
    plots.plot_intervals(pd.Series({"y[0]": 0.3, "y[1]": 4.0}), {"a": DRAWS}, ax=ax)
    ends = [segment[:, 0].tolist() for segment in ax.collections[0].get_segments()]
    assert ends == [pytest.approx([0.05, 0.95]), pytest.approx([0.5, 9.5])]
    assert ax.lines[-1].get_xdata().tolist() == [0.3, 4.0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["y[0]", "y[1]"]


def test_plot_ranks_counts_them_beside_the_law(ax: Any) -> None:
    """All at both ends: two bins of twenty, density 10; the law of λ = 0 is flat."""
    plots.plot_ranks(RANKED, "z[1]", lam=0.0, ax=ax)
    heights = ax.patches[-1].get_xy()[:, 1]
    assert sorted(set(heights.round(6))) == [0.0, 10.0]
    assert ax.lines[-1].get_ydata() == pytest.approx(np.ones(20))
    flat = plots.plot_ranks(RANKED, "z[0]", ax=Figure().subplots())
    assert set(flat.patches[-1].get_xy()[:, 1].round(6)) == {0.0, 1.0}


def test_plot_rank_ecdf_leaves_the_band_where_the_test_does(ax: Any) -> None:
    for latent, inside in (("z[0]", True), ("z[1]", False)):
        plots.plot_rank_ecdf(RANKED, latent, ax=ax)
        band, values = ax.collections[-1].get_paths()[0].vertices, ax.lines[-1].get_ydata()
        low, high = (np.array([f(band[band[:, 0] == x, 1]) for x in ax.lines[-1].get_xdata()]) for f in (min, max))
        assert bool(((low <= values) & (values <= high)).all()) is inside is bool(RANKED.table().loc[latent, "in_band"])


def test_plot_images_puts_each_image_in_its_place() -> None:
    images = {"seen": np.zeros((3, 64)), "λ = 0": torch.as_tensor(IMAGES)}
    grid = plots.plot_images(images)
    assert [float(ax.images[0].get_array().mean()) for ax in grid[1]] == [0.0, 0.5, 1.0]
    assert [line[0].get_ylabel() for line in grid] == ["seen", "λ = 0"]
    assert {ax.images[0].get_array().shape for ax in grid.flat} == {(8, 8)}


def test_kl_is_sorted_with_two_standard_errors(ax: Any) -> None:
    plots.plot_kl_per_dimension(KL, ax=ax)
    (bars,) = ax.containers
    assert bars.lines[0].get_xydata().tolist() == [[1, 2.0], [2, 0.5], [3, 0.1]]
    segments = [segment[:, 1].tolist() for segment in bars.lines[2][0].get_segments()]
    assert segments == [pytest.approx([1.6, 2.4]), pytest.approx([0.5, 0.5]), pytest.approx([0.08, 0.12])]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["z[1]", "z[2]", "z[0]"]
    assert "nats per data point" in ax.get_ylabel()
    plots.plot_kl_per_dimension({"a": KL, "b": KL}, ax=(several := Figure().subplots()))
    assert "rank" in several.get_xlabel()  # the dimensions of two runs have nothing in common


def test_kl_of_a_run_is_that_of_its_training_data(digits: FitResult, ax: Any) -> None:
    plots.plot_kl_per_dimension(digits, ax=ax)
    found = ax.containers[0].lines[0].get_ydata()
    exact = kl_per_dimension(digits.model, digits.guide, data.binarize(digits.rows))["kl"]  # other bits
    assert sorted(found) == pytest.approx(sorted(exact), rel=0.1)
    assert list(found) == sorted(found, reverse=True)


def test_prior_images_fill_rows_and_leave_the_rest_empty() -> None:
    grid = plots.plot_prior_samples(np.tile(IMAGES, (4, 1, 1))[:11])
    assert grid.shape == (2, 8)
    shown = [float(ax.images[0].get_array().mean()) for ax in grid.flat if ax.images]
    assert shown == [0.0, 0.5, 1.0] * 3 + [0.0, 0.5]
    assert [ax.axison for ax in grid.flat] == [True] * 11 + [False] * 5
    bands = plots.plot_prior_samples({"a": IMAGES, "b": IMAGES[:2]})
    assert [line[0].get_ylabel() for line in bands] == ["a", "b"]
    assert [len(ax.images) for ax in bands.flat] == [1, 1, 1, 1, 1, 0]


def test_prior_numbers_are_a_histogram_beside_what_was_observed() -> None:
    numbers = np.linspace(-1.0, 1.0, 1000)
    ((ax,),) = plots.plot_prior_samples({"a": numbers, "b": numbers * 2}, observed=[-2.0, 5.0])
    assert ax.get_xlim()[0] < -2.0
    assert ax.get_xlim()[1] > 5.0
    heights = [bar.get_height() for bar in ax.containers[-1]]
    width = ax.containers[-1][0].get_width()
    assert sum(heights) * width == pytest.approx(1.0)
    assert (np.array(heights) > 0).sum() == 2
    (legend,) = ax.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "observed"]
    squares = np.ones((4, 25))
    assert plots.plot_prior_samples(squares, images=False).shape == (1, 1)
    assert plots.plot_prior_samples(squares).shape == (1, 4)


def test_traversal_has_a_row_for_each_latent_and_says_how_far_each_column_is() -> None:
    grid = plots.plot_latent_traversal(TRAVERSAL)
    shown = [[float(ax.images[0].get_array().mean()) for ax in line] for line in grid]
    assert shown == [pytest.approx([0.0, 0.2, 0.4]), pytest.approx([0.6, 0.8, 1.0])]
    assert [line[0].get_ylabel() for line in grid] == ["z[0]", "z[4]"]
    assert [ax.get_xlabel() for ax in grid[-1]] == ["−1.5 sd", "mean", "+1.5 sd"]
    assert {ax.get_xlabel() for ax in grid[0]} == {""}


def test_scatter_shows_the_two_dimensions_that_vary_most_by_class(ax: Any) -> None:
    plots.plot_latent_scatter(POINTS, ["b", "a", "b"], ax=ax)
    assert [found.get_label() for found in ax.collections] == ["a", "b"]
    assert ax.collections[0].get_offsets().tolist() == [[3.0, -1.0]]
    assert ax.collections[1].get_offsets().tolist() == [[5.0, 1.0], [1.0, 4.0]]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("posterior mean of z[1]", "posterior mean of z[2]")
    plots.plot_latent_scatter(POINTS, dims=(2, 0), site="w", ax=(other := Figure().subplots()))
    assert other.collections[0].get_offsets().tolist() == POINTS[:, [2, 0]].tolist()
    assert other.get_xlabel() == "posterior mean of w[2]"


def test_scatter_of_ten_classes_tells_each_by_marker_and_by_colour_or_fill(ax: Any) -> None:
    plots.plot_latent_scatter(np.eye(10), range(10), ax=ax)
    looks = [
        (to_hex(c.get_edgecolor()[0]), len(c.get_facecolor()), c.get_paths()[0].vertices.tobytes())
        for c in ax.collections
    ]
    assert len({marker for *_, marker in looks}) == 10
    assert len({(colour, filled) for colour, filled, _ in looks}) == 10


def test_scatter_reads_the_means_of_draws(digit_draws: Any, ax: Any) -> None:
    plots.plot_latent_scatter(digit_draws, dims=(1, 5), ax=ax)
    means = digit_draws["posterior"]["z"].to_numpy()[0].mean(0)[:, [1, 5]]
    assert ax.collections[0].get_offsets().data == pytest.approx(means, rel=1e-5)


def test_spread_against_lam_is_relative_and_the_gaussian_curve_is_drawn_in(ax: Any) -> None:
    plots.plot_spread_against_lam(SPREADS, ax=ax)
    curve, mu, z = ax.lines
    assert curve.get_ydata() == pytest.approx(np.sqrt(1 - curve.get_xdata()))
    assert (curve.get_xdata()[0], curve.get_xdata()[-1]) == (0.0, 0.75)
    assert mu.get_xydata().tolist() == [[0.0, 1.0], [0.75, 0.5]]
    assert z.get_xydata().tolist() == [[0.0, 1.0], [0.75, 0.4], [0.0, 1.0], [0.75, 0.75]]
    assert [line.get_label() for line in (mu, z)] == ["mu", "z"]
    plots.plot_spread_against_lam({0: WIDTHS, 1.5: WIDTHS}, ax=ax)
    assert ax.lines[3].get_xdata()[-1] == 1.0  # beyond, a Gaussian has no spread to predict


def test_spread_against_lam_reads_draws(school_draws: Any, ax: Any) -> None:
    plots.plot_spread_against_lam({0.0: school_draws, 0.3: spread(school_draws)}, ax=ax)
    assert [line.get_label() for line in ax.lines[1:]] == ["mu", "tau", "theta_trans"]
    assert set(ax.lines[3].get_ydata()) == {1.0}


def test_sd_ratios_have_the_curves_of_normal_posteriors_from_their_own_start(ax: Any) -> None:
    plots.plot_sd_ratio_against_lam(COMPARISONS, ax=ax)
    curves = [line for line in ax.lines if len(line.get_xdata()) == 200]
    assert [curve.get_ydata()[0] for curve in curves] == [0.9, 1.0]  # none for tau, whose reference is skewed
    for curve in curves:
        assert curve.get_ydata() == pytest.approx(curve.get_ydata()[0] * np.sqrt(1 - curve.get_xdata()))
        assert (curve.get_xdata()[0], curve.get_xdata()[-1]) == (0.0, 0.75)
    points = {bar.get_label(): bar.lines[0].get_xydata().tolist() for bar in ax.containers}
    assert points == {"mu": [[0, 0.9], [0.75, 0.45]], "tau": [[0, 1.2], [0.75, 1.1]], "z": [[0, 1.0], [0.75, 0.6]]}
    (ends,) = ax.containers[1].lines[2]
    assert np.array(ends.get_segments())[:, :, 1] == pytest.approx(np.array([[1.0, 1.4], [0.9, 1.3]]))


# Bad input


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda **d: plots.plot_ranks({}), ValueError, "calibrations is an empty mapping"),
        (lambda **d: plots.plot_ranks(DRAWS), TypeError, "calibrations has a ndarray: expected what calibrate"),
        (
            lambda **d: plots.plot_ranks(RANKED),
            ValueError,
            r"there are several: expected one of \['z\[0\]', 'z\[1\]'\]",
        ),
        (lambda **d: plots.plot_rank_ecdf(RANKED, "y"), ValueError, "latent='y': expected one of"),
        (lambda **d: plots.plot_terms({}), ValueError, "histories is an empty mapping"),
        (lambda **d: plots.plot_terms([1.0]), TypeError, "histories is a list: expected a FitResult"),
        (lambda **d: plots.plot_terms({"a": 3}), TypeError, r"histories\['a'\] is a int"),
        (lambda **d: plots.plot_terms(HISTORY, "kl"), ValueError, r"column='kl': the history has no such column, only"),
        (lambda **d: plots.plot_terms(HISTORY, ax=3), TypeError, "ax is a int: expected matplotlib axes"),
        (lambda **d: plots.plot_spread(np.ones(3)), TypeError, "widths has a ndarray: expected an ArviZ object"),
        (lambda **d: plots.plot_spread(pd.Series(np.ones(101))), ValueError, "101 latents: expected at most 100"),
        (lambda **d: plots.plot_spread(d["digits"]), ValueError, "have 240 latents.*Average over the data plate"),
        (lambda **d: plots.plot_spread(d["bare"]), ValueError, "no prior to compare with"),
        (lambda **d: plots.plot_entropy_per_datum("words"), TypeError, "entropies is a str: expected an array"),
        (lambda **d: plots.plot_entropy_per_datum([[1.0]]), ValueError, r"entropies has the shape \(1, 1\)"),
        (lambda **d: plots.plot_entropy_per_datum([]), ValueError, r"entropies has the shape \(0,\)"),
        (lambda **d: plots.plot_entropy_per_datum([1.0, math.inf]), ValueError, "1 of 2 values are NaN or infinite"),
        (lambda **d: plots.plot_entropy_per_datum(d["schools"]), ValueError, "Use plot_entropies"),
        (lambda **d: plots.plot_entropies({"a": {"mu": 1.0}}), TypeError, "expected an Estimate for each density"),
        (lambda **d: plots.plot_images(np.ones((3, 10))), ValueError, r"images have the shape \(3, 10\): expected sq"),
        (lambda **d: plots.plot_images({"a": IMAGES, "b": IMAGES[:2]}), ValueError, "expected as many of each kind"),
        (lambda **d: plots.plot_images(IMAGES, axes=[[1, 2]]), ValueError, r"axes have the shape \(1, 2\), expected 1"),
        (lambda **d: plots.plot_intervals([1.0], DRAWS), ValueError, r"draws have the shape \(101, 2\) for 1 observed"),
        (lambda **d: plots.plot_intervals([1.0], [1.0]), ValueError, r"draws has the shape \(1,\): expected numbers"),
        (lambda **d: plots.plot_kl_per_dimension(WIDTHS), TypeError, "kls has a Series: expected a table of kl_per"),
        (lambda **d: plots.plot_prior_samples("words"), TypeError, "samples is a str"),
        (lambda **d: plots.plot_prior_samples(np.ones((2, 3)), images=True), ValueError, "samples have the shape"),
        (lambda **d: plots.plot_prior_samples(IMAGES, axes=[1, 2, 3]), ValueError, r"axes have the shape \(3,\)"),
        (lambda **d: plots.plot_latent_traversal(IMAGES), TypeError, "traversal is a ndarray: expected what latent_"),
        (lambda **d: plots.plot_latent_traversal(TRAVERSAL[..., :3]), ValueError, "traversal have the shape"),
        (lambda **d: plots.plot_latent_scatter(POINTS[:, :1]), ValueError, r"means have the shape \(3, 1\)"),
        (lambda **d: plots.plot_latent_scatter(POINTS, [1]), ValueError, r"labels have the shape \(1,\): expected \(3"),
        (lambda **d: plots.plot_latent_scatter(POINTS, dims=(0, 3)), ValueError, r"dims=\(0, 3\): .* from 0 to 2"),
        (
            lambda **d: plots.plot_latent_scatter(d["digits"], site="y"),
            ValueError,
            r"site='y': expected one of \['z'\]",
        ),
        (lambda **d: plots.plot_latent_scatter(d["schools"]), ValueError, r"site=None: expected one of \[\]"),
        (lambda **d: plots.plot_spread_against_lam(WIDTHS), TypeError, "spreads is a Series: expected a mapping"),
        (lambda **d: plots.plot_spread_against_lam({"λ = 0": WIDTHS}), TypeError, r"keys \['λ = 0'\]: expected num"),
        (lambda **d: plots.plot_spread_against_lam({0.5: WIDTHS}), ValueError, r"λ = \[0.5\]: expected λ = 0 among"),
        (lambda **d: plots.plot_spread_against_lam({0: WIDTHS, 0.5: WIDTHS[:1]}), ValueError, "other latents than"),
        (lambda **d: plots.plot_spread_against_lam({0: WIDTHS * 0}), ValueError, r"no spread at \['z\[0\]', 'z\[1\]"),
        (lambda **d: plots.plot_sd_ratio_against_lam(WIDTHS), TypeError, "comparisons is a Series: expected a mapping"),
        (lambda **d: plots.plot_sd_ratio_against_lam({0: HISTORY}), TypeError, r"comparisons\[0\] is a DataFrame: exp"),
        (
            lambda **d: plots.plot_sd_ratio_against_lam({"0": COMPARISONS[0.0]}),
            TypeError,
            "comparisons has the key '0'",
        ),
        (
            lambda **d: plots.plot_sd_ratio_against_lam({0.5: COMPARISONS[0.0]}),
            ValueError,
            r"λ = \[0.5\]: expected λ = 0",
        ),
        (
            lambda **d: plots.plot_sd_ratio_against_lam({0: COMPARISONS[0.0], 0.5: COMPARISONS[0.75][:1]}),
            ValueError,
            r"comparisons\[0.5\] has other latents",
        ),
        (lambda **d: plots.plot_spread_against_lam({0: HISTORY}), TypeError, r"spreads\[0\] has a DataFrame"),
    ],
)
def test_bad_input_is_named_and_leaves_no_figure(
    call: Callable[..., Any], error: type[Exception], words: str, digits: FitResult, digit_draws: Any, school_draws: Any
) -> None:
    bare = digits.posterior(digits.held_out[0][:3], num_samples=5, groups=["posterior"])
    with pytest.raises(error, match=words):
        call(digits=digit_draws, schools=school_draws, bare=bare)
    assert plt.get_fignums() == []
