"""Both lines of ArviZ: the InferenceData of 0.x and the DataTree of 1.x hold the same numbers; their tools work."""

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import arviz as az
import arviz_base
import arviz_plots
import arviz_stats
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from arviz.stats import diagnostics
from torch import Tensor

from banel_pyro import FitResult, inference_data, spread, to_arviz
from banel_pyro.folder import versions
from banel_pyro.inference_data import (
    GROUPS,
    arviz_version,
    group,
    group_names,
    merge,
    read_netcdf,
    write_netcdf,
)
from banel_pyro.report import write_report
from models import eight_schools

pytestmark = pytest.mark.usefixtures("float64")

N = 6
VARIABLE_ATTRS = ("created_at", "arviz_version", "arviz-base_version")


@contextmanager
def hidden() -> Iterator[None]:
    """Without the package `arviz`, as where only the parts of the 1.x line are installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "arviz", None)
        yield


@contextmanager
def one_dot_three() -> Iterator[None]:
    """With the package `arviz` of the 1.x line."""
    installed = inference_data.version
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference_data, "version", lambda name: "1.3.0" if name == "arviz" else installed(name))
        yield


def model(x: Tensor, y: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", N):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("k", dist.Poisson(torch.ones(())))
        pyro.sample("flag", dist.Bernoulli(torch.tensor(0.5)))
        pyro.sample("y", dist.Normal(a + (z * x).sum(-1), 1.0), obs=y)


def guide(x: Tensor, y: Tensor) -> None:
    pyro.sample("a", dist.Normal(0.5, 0.1))
    with pyro.plate("data", N):
        pyro.sample("z", dist.Normal(x, 0.3).to_event(1))
        pyro.sample("k", dist.Poisson(torch.ones(())))
        pyro.sample("flag", dist.Bernoulli(torch.tensor(0.5)))


def made(**options: Any) -> Any:
    x, y = torch.arange(2.0 * N).reshape(N, 2) / N, torch.linspace(-1, 1, N)
    named = {"coords": {"data": list("abcdef"), "latent": ["one", "two"]}, "dims": {"z": ["latent"], "x": "latent"}}
    return to_arviz(model, guide, x, y, **{"num_samples": 40, "groups": GROUPS, "seed": 0} | named | options)


def schools() -> FitResult:
    pair = eight_schools.noncentered()
    return pair.fit(steps=30, lam=0.2, seed=2, progress=False)


def assert_same(one: Any, other: Any) -> None:
    """The same groups, variables, dims, coordinates, numbers, types and attributes, but for what the line is."""
    assert group_names(one) == group_names(other)
    pairs = [(group(one, name), group(other, name)) for name in group_names(one)]
    for a, b in [*pairs, (one, other)]:
        both = [{name: value for name, value in data.attrs.items() if name not in VARIABLE_ATTRS} for data in (a, b)]
        assert both[0] == both[1]
    for a, b in pairs:
        xr.testing.assert_equal(a, b)
        assert {n: v.dtype.kind for n, v in a.variables.items()} == {n: v.dtype.kind for n, v in b.variables.items()}
        assert {n: v.dims for n, v in a.variables.items()} == {n: v.dims for n, v in b.variables.items()}


def test_both_lines_hold_the_same_numbers() -> None:
    old = made()
    assert isinstance(old, az.InferenceData)
    for line in (hidden, one_dot_three):
        with line():
            new = made()
            assert isinstance(new, xr.DataTree)
            assert set(group_names(new)) == set(GROUPS)
            assert_same(old, new)


def test_both_lines_predict_the_same_numbers() -> None:
    result = schools()
    old = result.predictive(num_samples=20, coords={"schools": list("ABCDEFGH")})
    with hidden():
        assert_same(old, result.predictive(num_samples=20, coords={"schools": list("ABCDEFGH")}))


def test_versions_are_those_of_the_line() -> None:
    assert arviz_version() == {"arviz": az.__version__}
    assert versions()["arviz"] == az.__version__
    with hidden():
        assert arviz_version() == {"arviz-base": arviz_base.__version__}
        assert versions()["arviz-base"] == arviz_base.__version__
        assert made(groups=()).attrs["arviz-base_version"] == arviz_base.__version__


def test_groups_are_those_that_arviz_base_makes() -> None:
    """Its own `from_dict`, given the same arrays and dims."""
    with hidden():
        tree = made()
    arrays = {n: {str(v): a.to_numpy() for v, a in group(tree, n).data_vars.items()} for n in group_names(tree)}
    named = {str(v): list(a.dims) for n in group_names(tree) for v, a in group(tree, n).data_vars.items()}
    dims = {v: [dim for dim in names if dim not in ("chain", "draw")] for v, names in named.items()}
    coords = {"data": list("abcdef"), "latent": ["one", "two"]}
    other = arviz_base.from_dict(arrays, sample_dims=["chain", "draw"], dims=dims, coords=coords)
    assert list(other.children) == list(group_names(tree))
    for name in group_names(tree):
        xr.testing.assert_equal(group(tree, name), other[name].to_dataset())


# Files


@pytest.mark.parametrize("written", ["0.x", "1.x"])
@pytest.mark.parametrize("read", ["0.x", "1.x"])
def test_netcdf_round_trip(tmp_path: Path, written: str, read: str) -> None:
    """Also a file of the other line."""
    lines: dict[str, Callable[[], Any]] = {"0.x": lambda: pytest.MonkeyPatch.context(), "1.x": hidden}
    file = tmp_path / "posterior.nc"
    with lines[written]():
        before = made(attrs={"lam": {"z": 0.1}, "run": 3})
        write_netcdf(before, file)
        write_netcdf(before, file)  # replaced, not added to
    with lines[read]():
        after = read_netcdf(file)
        assert isinstance(after, az.InferenceData if read == "0.x" else xr.DataTree)
    file.unlink()  # in memory
    assert_same(before, after)
    assert dict(after.attrs) == dict(before.attrs)


def test_arviz_reads_our_files_and_we_read_those_of_arviz(tmp_path: Path) -> None:
    ours, theirs, tree = (tmp_path / f"{name}.nc" for name in ("ours", "theirs", "tree"))
    idata = made()
    write_netcdf(idata, ours)
    assert_same(az.from_netcdf(str(ours)), idata)
    with xr.open_datatree(ours, engine="h5netcdf") as opened:
        assert_same(opened, idata)
    idata.to_netcdf(str(theirs))
    assert_same(read_netcdf(theirs), idata)
    with hidden():
        made().to_netcdf(tree, engine="h5netcdf")
        assert_same(read_netcdf(tree), idata)


@pytest.mark.parametrize("line", [pytest.MonkeyPatch.context, hidden])
def test_merging_keeps_the_groups_of_the_first(line: Callable[[], Any]) -> None:
    with line():
        one, other = made(groups=("prior",)), made(groups=("prior", "log_likelihood"), seed=1)
        both = merge(one, other)
        assert set(group_names(both)) == {"posterior", "sample_stats", "prior", "log_likelihood"}
        assert "log_likelihood" not in group_names(one)
        xr.testing.assert_identical(group(both, "prior"), group(one, "prior"))
        xr.testing.assert_identical(group(both, "log_likelihood"), group(other, "log_likelihood"))
        assert both.attrs == one.attrs


# Each line's tools


def refuse(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("R-hat and ESS say nothing about independent draws")


def test_the_tools_of_1_work_on_the_data_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    result = schools()
    with hidden():
        tree = result.posterior(num_samples=200, groups=GROUPS, coords={"schools": list("ABCDEFGH")})
        summary = arviz_stats.summary(tree, kind="stats", ci_prob=0.9, round_to="none")
        assert {"mu", "tau", "theta[A]", "theta_trans[H]"} <= set(summary.index)
        assert summary.loc["mu", "mean"] == pytest.approx(float(tree["posterior"]["mu"].mean()))
        widths = arviz_stats.hdi(tree, prob=0.9)["theta"]
        assert dict(widths.sizes) == {"schools": 8, "ci_bound": 2}
        assert arviz_stats.loo(tree, pointwise=True).n_data_points == 8
        for plot in (arviz_plots.plot_forest, arviz_plots.plot_dist):
            assert plot(tree, var_names=["theta"], backend="matplotlib") is not None
        assert arviz_plots.plot_ppc_dist(tree, backend="matplotlib", num_samples=10) is not None
        plt.close("all")


def test_the_tools_of_0_work_on_inference_data(monkeypatch: pytest.MonkeyPatch) -> None:
    for place, name in ((az, "rhat"), (az, "ess"), (diagnostics, "_rhat"), (diagnostics, "_ess")):
        monkeypatch.setattr(place, name, refuse)
    idata = schools().posterior(num_samples=200, groups=GROUPS, coords={"schools": list("ABCDEFGH")})
    assert {"mu", "theta[A]"} <= set(az.summary(idata, kind="stats").index)
    assert az.hdi(idata, hdi_prob=0.9)["theta"].dims == ("schools", "hdi")
    assert az.loo(idata, pointwise=True).n_data_points == 8
    az.plot_forest(idata, var_names=["theta"], combined=True)
    plt.close("all")


def test_spread_is_the_same_on_both_lines() -> None:
    table = spread(made(), hdi_prob=0.9)
    with hidden():
        other = spread(made(), hdi_prob=0.9)
    np.testing.assert_array_equal(table.drop(columns="density"), other.drop(columns="density"))
    assert list(table.index) == list(other.index)
    assert "z[a, two]" in table.index


def test_interval_widths_are_those_of_arviz() -> None:
    idata = made(num_samples=300)
    table = spread(idata, hdi_prob=0.9)
    ends = az.hdi(idata, hdi_prob=0.9)
    for name in ("a", "z", "k"):
        exact = (ends[name].sel(hdi="higher") - ends[name].sel(hdi="lower")).to_numpy().ravel()
        found = table.loc[[label for label in table.index if label.split("[")[0] == name], "hdi_width"]
        np.testing.assert_array_equal(found, exact)


# A run


def test_a_run_of_the_1_line_makes_its_report(tmp_path: Path) -> None:
    """Folder, netCDF, report, and a load under either line."""
    with hidden():
        pair = eight_schools.noncentered()
        result = pair.fit(steps=20, seed=1, out=tmp_path / "run", posterior_samples=40, progress=False)
        assert result.folder is not None
        assert isinstance(inference_data.read_netcdf(result.folder / "posterior.nc"), xr.DataTree)
        page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
        assert "<img" in page or "<svg" in page
        write_report(tmp_path / "run")
    assert isinstance(inference_data.read_netcdf(tmp_path / "run" / "posterior.nc"), az.InferenceData)


def test_without_the_package_arviz(tmp_path: Path) -> None:
    """In a process of its own, in which `import arviz` fails and every warning is an error."""
    script = """
        import sys
        sys.modules["arviz"] = None
        import pyro, pyro.distributions as dist, torch, xarray
        from pyro.infer.autoguide import AutoNormal
        from banel_pyro import fit, spread

        def model(x):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            with pyro.plate("data", 20):
                pyro.sample("x", dist.Normal(a, 1.0), obs=x)

        result = fit(model, AutoNormal(model), torch.randn(20), steps=5, seed=0, out=sys.argv[1],
                     posterior_samples=10, progress=False)
        assert isinstance(result.posterior(num_samples=5), xarray.DataTree)
        assert isinstance(result.predictive(num_samples=5), xarray.DataTree)
        assert len(spread(result.posterior(num_samples=5))) == 1
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").exists()


def test_importing_the_library_imports_no_arviz() -> None:
    script = "import banel_pyro, sys; print([m for m in sys.modules if m.startswith(('arviz', 'matplotlib.pyplot'))])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
