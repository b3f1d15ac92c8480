"""More than one process: two of them take the step that one takes, and agree in all that they keep."""

import os
import re
import subprocess
import sys
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor

from banel_pyro.folder import RunFolder
from banel_pyro.training.processes import Processes

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tests" / "processes_script.py"
PATH = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

pytestmark = pytest.mark.usefixtures("float64")


def run(*command: Any, timeout: float = 90) -> "subprocess.CompletedProcess[str]":
    """A program in a process of its own, with warnings as errors and one thread."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("LT_", "MASTER_", "LOCAL_", "WORLD_"))}
    env = kept | {"PYTHONPATH": PATH, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    return subprocess.run(
        [sys.executable, *map(str, command)], env=env, cwd=ROOT, capture_output=True, text=True, timeout=timeout,
        check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def script() -> Any:
    """The script, for what one process makes of the same."""
    spec = spec_from_file_location("processes_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def found(folder: Path) -> list[Any]:
    return [torch.load(folder / f"found{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes, started by Fabric, have left all that the script does."""
    folder = tmp_path_factory.mktemp("two")
    done = run(SCRIPT, "everything", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def two(folder: Path) -> list[Any]:
    return found(folder)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What they make of captured steps."""
    folder = tmp_path_factory.mktemp("graphs")
    done = run(SCRIPT, "captured", folder, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("training is eager: on another process: model, guide or obj") == 1, done.stderr
    return found(folder)


def close(one: dict[str, Any], other: dict[str, Any]) -> bool:
    columns = one["history"].keys() | other["history"].keys()
    terms = all(np.allclose(one["history"][c], other["history"][c], rtol=0, atol=1e-10) for c in columns)
    return terms and all(
        torch.allclose(one["params"][n], other["params"][n], rtol=0, atol=1e-12)  # moved by gradients times 0.01
        for n in one["params"] | other["params"]
    )


@pytest.mark.parametrize("sizes", ["shares differ", "a share is empty", "all rows", "accumulated"])
@pytest.mark.parametrize("name", ["local", "local, len(x)", "global", "mixed"])
def test_two_processes_take_the_steps_of_one(script: Any, two: list[Any], name: str, sizes: str) -> None:
    """With its noise: loss, terms, norms of gradients and parameters after each step."""
    one = script.law(name, sizes)
    assert close(one, two[0]["law"][name, sizes])
    assert close(one, two[1]["law"][name, sizes])


@pytest.mark.parametrize("score", [False, True])
def test_without_its_noise_they_agree_in_expectation(script: Any, two: list[Any], score: bool) -> None:
    one, other = script.expectation(score, range(1000, 1200)), two[0]["expectation"][score]
    error = (one.var(0) / len(one) + other.var(0) / len(other)).sqrt()
    difference = (one.mean(0) - other.mean(0)).abs()
    assert (difference <= 4 * error + 1e-12).all(), (difference, error)


def test_rows_are_shared_out_and_noise_is_their_own(two: list[Any]) -> None:
    for (x, a, noise), (y, b, other) in zip(*(found["draws"] for found in two), strict=True):
        assert torch.equal(a, b), "a latent outside the data plate is one draw for all"
        assert len(set(noise.tolist()) | set(other.tolist())) == len(x) + len(y)
    epoch = torch.cat([step[0] for found in two for step in found["draws"][:2]])
    # the last step has one row less than the first, which both processes share out
    assert torch.equal(epoch.sort().values, torch.linspace(-1.0, 2.0, 7))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [1, 2, 100])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 12])
def test_every_row_is_in_one_share(count: int, batch: int, size: int) -> None:
    parts = [part for rank in range(count) for part in Processes(rank, count).parts(size, batch)]
    taken = Counter(row for part in parts for row in range(size)[part])
    assert taken == Counter(range(size))
    shares = [sum(p.stop - p.start for p in Processes(r, count).parts(size, batch)) for r in range(count)]
    assert max(shares) - min(shares) <= 1
    assert max(shares) == Processes(0, count).each(size)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    columns = (one["history"].keys() | other["history"].keys()) - {"seconds"}
    history = all(np.array_equal(one["history"][c], other["history"][c], equal_nan=True) for c in columns)
    return history and all(torch.equal(t, other["tensors"][n]) for n, t in one["tensors"].items())


def test_all_that_they_keep_is_the_same(two: list[Any]) -> None:
    """Times, held-out numbers and those of callbacks included; parameters made late and running means too."""
    assert str(two[0]["whole"]) == str(two[1]["whole"])
    assert same(two[0]["whole"], two[1]["whole"])
    assert set(two[0]["whole"]["history"]["rank"][1::2]) == {0.0}
    assert "late" in two[0]["whole"]["tensors"]


@pytest.mark.parametrize("form", ["score", "graph", "enumerated", "autoguide", "particles"])
def test_every_form_of_the_bound_runs_on_two(two: list[Any], form: str) -> None:
    """Also where processes keep decaying averages of shares of different sizes."""
    one, other = two[0]["forms"][form], two[1]["forms"][form]
    assert same(one, other)
    assert np.isfinite(one["history"]["elbo"]).all()
    assert all(bool(tensor.isfinite().all()) for tensor in one["tensors"].values())


@pytest.mark.parametrize("rank", [0, 1])
def test_a_resumed_run_is_the_whole_one_bit_for_bit(two: list[Any], rank: int) -> None:
    assert same(two[rank]["resumed"], two[rank]["whole"])


def test_the_first_alone_writes(folder: Path, two: list[Any]) -> None:
    whole = folder / "process0" / "whole"
    assert {"config.json", "state.pt", "history.csv", "posterior.nc", "report.html"} <= {
        p.name for p in whole.iterdir()
    }
    assert not (folder / "process1").exists()
    assert RunFolder(whole).read_config()["processes"] == 2
    assert two[0]["loaded"] == two[0]["whole"]["history"]["elbo"][-1]


def test_a_callback_on_one_stops_both(two: list[Any]) -> None:
    assert two[0]["stopped"] == two[1]["stopped"] == (3, "enough")


def test_numbers_that_are_not_finite_are_found_by_both(two: list[Any]) -> None:
    assert two[0]["not_finite"] == two[1]["not_finite"]
    assert re.match(r"step \d+: model site 'x' is not finite", two[0]["not_finite"])


def test_both_roll_back_at_the_same_step_as_one_does(script: Any, two: list[Any]) -> None:
    one, (first, second) = script.rolled_back(), (found["rolled_back"] for found in two)
    assert len(one["made"]) >= 1
    assert one["made"] == first["made"] == second["made"]
    assert same(first, second)
    for name, tensor in one["tensors"].items():
        torch.testing.assert_close(tensor, first["tensors"][name], rtol=0, atol=1e-10)


REFUSED = [
    r"2 processes share.*plate 'data' is written over the 3 rows.*latents \['a'\] lie outside.*pyro.plate\('data', 6\)",
    r"2 processes share.*the model has no plates. Write `with pyro.plate\('data', 6\):`",
    r"data has 1 rows a step, but devices= and num_nodes= ask for 2 processes.*Use fewer devices",
    r"batch_size=1 gives 1 rows a step, but devices= .* 2 processes: expected a row for each. Use .*larger batches",
    r"the 2 processes were given different runs.*expected the same rows and options in each. Give seed=",
    r"ask for 3 processes, but this program has 2: .*Use one number of devices",
]


@pytest.mark.parametrize(("number", "words"), list(enumerate(REFUSED)))
def test_what_cannot_be_shared_is_refused_by_both(two: list[Any], number: int, words: str) -> None:
    for each in two:
        assert re.search(words, each["refused"][number]), each["refused"][number]


def test_a_parameter_of_one_alone_is_refused_by_both(two: list[Any]) -> None:
    """And nothing follows: they have parted."""
    for each in two:
        said, after = each["one_sided"]
        assert re.search(r"have different parameters \(process 0 has \[\]; process 1 has \['only'\]\): expected", said)
        assert re.search(r"the processes of this program parted.*start the program again", after)


def test_one_that_fails_ends_the_other(tmp_path: Path) -> None:
    done = run(SCRIPT, "failing", tmp_path, timeout=60)
    assert done.returncode != 0
    assert "the disk of process 1 is gone" in done.stderr
    assert "This was process 1 of 2" in done.stderr


def test_fabric_run_says_how_a_script_runs(script: Any, tmp_path: Path) -> None:
    command = ["-m", "lightning_fabric.cli", "--accelerator", "cpu", "--devices", 2, "--strategy", "ddp"]
    done = run(*command, SCRIPT, "plain", tmp_path)
    assert done.returncode == 0, done.stderr
    one = script.law("mixed", "shares differ")
    assert all(close(one, other) for other in found(tmp_path))


def test_torchrun_runs_the_command_line(tmp_path: Path) -> None:
    """The page, the table and the files come once."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "-m", "banel_pyro.cli"]
    options = ["--lam", "0.5", "--steps", 4, "--draws", 2, "--out", tmp_path / "runs", "--dtype", "float64"]
    done = run(
        *launcher, "fit", "models.normal_normal:pair", *options, "--accelerator", "cpu", "--devices", 2, "--strategy",
        "ddp", "--debug",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1
    assert sorted(p.name for p in (tmp_path / "runs").glob("*/posterior.nc")) == ["posterior.nc"]
    assert (tmp_path / "runs" / "report.html").exists()


# ---- one process on a device, and precision ------------------------------------------------------


def one_step(script: Any, **options: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from banel_pyro import fit

    with pyro.get_param_store().scope():
        result = fit(*script.kind("mixed", 6), script.rows(6), steps=2, batch_size=4, seed=0, progress=False, **options)
        return result.history.drop(columns="seconds").iloc[-1].to_dict() | result.config, script.params()


def test_one_process_on_a_device_has_the_numbers_of_none(script: Any) -> None:
    plain, on_cpu = one_step(script), one_step(script, accelerator="cpu", devices=1, strategy="auto", num_nodes=1)
    assert all(torch.equal(t, on_cpu[1][n]) for n, t in plain[1].items())
    assert on_cpu[0]["processes"] == 1
    assert "processes" not in plain[0]
    assert on_cpu[0]["elbo"] == plain[0]["elbo"]


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("64-true", torch.float64)])
def test_true_precisions_are_dtypes(script: Any, precision: str, dtype: torch.dtype) -> None:
    named, typed = one_step(script, precision=precision), one_step(script, dtype=dtype)
    assert all(torch.equal(t, named[1][n]) and t.dtype == dtype for n, t in typed[1].items())
    assert named[0]["elbo"] == typed[0]["elbo"]


def test_mixed_precision_computes_products_in_bfloat16_and_the_rest_in_float32() -> None:
    import pyro.distributions as dist

    from banel_pyro import fit

    torch.manual_seed(0)
    net, seen = torch.nn.Linear(3, 1), []

    def model(x: Tensor) -> None:
        with pyro.plate("data", 8):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))[:, None], 1.0).to_event(1), obs=x)  # fmt: skip  # noqa: E501

    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        loc = net(x)[:, 0]
        seen.append(loc.dtype)
        with pyro.plate("data", 8):
            pyro.sample("z", dist.Normal(loc.float(), 0.5))

    found = {}
    for precision in ("32-true", "bf16-mixed"):
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 1)
        with pyro.get_param_store().scope():
            result = fit(
                model, guide, torch.randn(8, 3), steps=20, lr=0.01, seed=0, precision=precision, progress=False
            )
        found[precision] = result.history["elbo"].to_numpy()
    assert seen[-1] == torch.bfloat16
    assert net.weight.dtype == torch.float32
    assert np.isfinite(found["bf16-mixed"]).all()
    assert 0 < np.abs(found["bf16-mixed"] - found["32-true"]).max() < 0.05


# ---- captured steps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", ["shares differ", "a share is empty", "all rows", "accumulated"])
@pytest.mark.parametrize("name", ["local", "local, len(x)", "global", "mixed"])
def test_captured_steps_of_two_are_those_of_one(script: Any, graphs: list[Any], name: str, sizes: str) -> None:
    one = script.law(name, sizes)
    assert all(close(one, found["law"][name, sizes]) for found in graphs)


@pytest.mark.parametrize("how", ["compiled", "several a call"])
def test_however_they_are_captured(script: Any, graphs: list[Any], how: str) -> None:
    one = script.law("mixed", "shares differ")
    assert all(close(one, found[how]) for found in graphs)


def test_draws_of_captured_steps_are_those_of_eager_ones(graphs: list[Any]) -> None:
    """In all forms, with autoguides and particles; running means and dropout too, compiled."""
    for found in graphs:
        pairs = {name: (found["forms"][name], found["eager forms"][name]) for name in found["forms"]}
        for name, (ours, eager) in (pairs | {"network": (found["whole"], found["eager"])}).items():
            for key, tensor in eager["tensors"].items():
                assert torch.allclose(ours["tensors"][key], tensor, rtol=1e-9, atol=1e-11), (name, key)
            assert np.allclose(ours["history"]["elbo"], eager["history"]["elbo"], rtol=1e-9), name


def test_captured_runs_of_two_are_alike_and_resume_bit_for_bit(graphs: list[Any]) -> None:
    one, other = graphs
    assert same(one["whole"], other["whole"])
    assert all(same(found["whole"], found["resumed"]) for found in graphs)
    assert all(same(one["forms"][name], other["forms"][name]) for name in one["forms"])


def test_numbers_that_are_not_finite_stop_captured_steps_of_both(graphs: list[Any]) -> None:
    assert graphs[0]["not_finite"] == graphs[1]["not_finite"]
    assert "not finite" in graphs[0]["not_finite"]


def test_what_one_cannot_capture_neither_does(graphs: list[Any]) -> None:
    (elsewhere, first), (here, second) = (found["refused"] for found in graphs)
    assert "ask for the value of a tensor" in here
    assert elsewhere == f"on another process: {here}"
    assert first == second == "nothing"
