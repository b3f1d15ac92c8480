"""Files that mean harm: none of them runs anything, leads out of its folder, or takes memory that it only claims."""

import gzip
import json
import os
import random
import resource
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from banel_pyro import FitResult, Pair
from banel_pyro.checkpoint import BEFORE, NEWEST, read_checkpoint, write_whole
from banel_pyro.cli import main
from banel_pyro.diagnostics import posteriordb_draws
from banel_pyro.diagnostics.simulation_folder import SimulationFolder
from banel_pyro.folder import FORMAT, RunFolder
from banel_pyro.hdf5 import MOST_GROWN
from banel_pyro.inference_data import read_netcdf
from banel_pyro.pair import load_pair
from banel_pyro.report import write_report
from models.local_data import read_bits, read_columns, read_idx

SPARE = 2**30
"""Bytes that reading may add to what the process has mapped: a tenth of what the files claim."""


def model(x: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 4):
        pyro.sample("x", dist.Normal(a, 1.0), obs=x)


def pair() -> Pair:
    return Pair(model, AutoNormal(model), data=lambda: torch.arange(4.0), name="four")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all of its files."""
    folder = tmp_path_factory.mktemp("made") / "run"
    with pyro.get_param_store().scope():
        pair().fit(steps=4, lr=0.1, seed=0, out=folder, posterior_samples=10, checkpoint_every=2, progress=False)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def contents(folder: Path) -> dict[str, Any]:
    """Every file of a folder, byte for byte; a link as a link."""
    files = (file for file in sorted(folder.rglob("*")) if not file.is_dir())
    return {str(f): os.readlink(f) if f.is_symlink() else f.read_bytes() if f.is_file() else None for f in files}


def refused(read: Callable[[], Any], file: Path | str, *words: str) -> str:
    """What is said when reading is refused: it names the file; no memory is taken, nothing on the disk is changed."""
    folder = Path(file).parent
    before = contents(folder) if folder.is_dir() else {}
    with open("/proc/self/statm") as pages:
        mapped = int(pages.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + SPARE, limits[1]))
    try:
        with pytest.raises((ValueError, OSError)) as error, pyro.get_param_store().scope():
            read()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert not isinstance(error.value, MemoryError)
    said = str(error.value)
    assert Path(file).name in said
    for word in words:
        assert word in said
    assert (contents(folder) if folder.is_dir() else {}) == before
    return said


# ---- states -------------------------------------------------------------------------------------


def archive(folder: Path, pickled: bytes | None = None, **parts: bytes) -> Path:
    """A state like torch's, with another pickle and other parts."""
    torch.save({"format": FORMAT, "step": 0, "weights": torch.ones(3)}, folder / "plain.pt")
    with zipfile.ZipFile(folder / "plain.pt") as plain:
        held = {name: plain.read(name) for name in plain.namelist()}
    (folder / "plain.pt").unlink()
    (root,) = {name.partition("/")[0] for name in held}
    with zipfile.ZipFile(folder / NEWEST, "w") as made:
        for name, part in (held | parts).items():
            made.writestr(name, pickled if pickled is not None and name == f"{root}/data.pkl" else part)
    return folder / NEWEST


TEN_GB = 10**10
LARGE = struct.pack("<q", TEN_GB)
PICKLES = {
    "a command": b"\x80\x02cposix\nsystem\nX\x0d\x00\x00\x00touch hostile\x85R.",
    "builtins": b"\x80\x02c__builtin__\neval\nX\x04\x00\x00\x001+1 \x85R.",
    "builtins by their new name": b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x041+1 \x85R.",
    "10 GB of zeros": b"\x80\x02cbuiltins\nbytearray\n\x8a\x08" + LARGE + b"\x85R.",
    "a module of torch": b"\x80\x02ctorch.nn.modules.linear\nLinear\nK\x02K\x03\x86R.",
    "an instance": b"\x80\x02(iposix\nsystem\n.",
    "a tensor without numbers": b"\x80\x02ctorch._utils\n_rebuild_meta_tensor_no_storage\n).",
    "nothing at all": b"",
    "no pickle": b"not a pickle",
    "a list that holds itself": b"\x80\x02]q\x00h\x00a.",
    "a mapping that holds itself": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
    "lists that unfold": b"\x80\x02}X\x01\x00\x00\x00a]q\xff(]q\x00" + b"".join(
        b"]q" + bytes([i]) + b"(h" + bytes([i - 1]) + b"h" + bytes([i - 1]) + b"e" for i in range(1, 60)
    ) + b"es.",
    "lists that unfold to a billion billions": b"\x80\x02}X\x01\x00\x00\x00a]q\xff(]q\x00" + b"".join(
        b"]q" + bytes([i]) + b"(" + 3 * (b"h" + bytes([i - 1])) + b"e" for i in range(1, 40)
    ) + b"es.",
    "lists that are deep behind each other": b"\x80\x02}X\x01\x00\x00\x00a]q\xff(]q\x00" + b"".join(
        b"]q" + bytes([i]) + b"h" + bytes([i - 1]) + b"a" for i in range(1, 60)
    ) + b"es.",
}  # fmt: skip

NAMES = {
    "a command": "it names posix system", "builtins": "it names __builtin__ eval",
    "an instance": "it names posix system",
    "10 GB of zeros": "it names builtins bytearray", "a module of torch": "it names torch.nn.modules.linear Linear",
    "a tensor without numbers": "it names torch._utils _rebuild_meta_tensor_no_storage",
    "lists that unfold": "50 parts inside each other",
    "lists that unfold to a billion billions": "it has more than 1,000,000 parts",
    "lists that are deep behind each other": "50 parts inside each other",
}  # fmt: skip
"""Names are found before torch looks at the pickle, which would make room for the zeros."""


@pytest.mark.parametrize("name", PICKLES)
def test_a_hostile_pickle_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = archive(tmp_path, PICKLES[name])
    refused(
        lambda: read_checkpoint(tmp_path, FORMAT), file, "cannot be read as a state", "damaged", NAMES.get(name, "")
    )
    assert not (tmp_path / "hostile").exists()


@pytest.mark.parametrize("part", ["../../outside", "/tmp/outside", "plain/../../outside", "..\\outside"])
def test_a_part_that_climbs_out_is_refused(part: str, tmp_path: Path) -> None:
    file = archive(tmp_path, **{part: b"mine"})
    refused(lambda: read_checkpoint(tmp_path, FORMAT), file, "would lie outside")
    assert not (tmp_path.parent / "outside").exists()


def test_two_pickles_in_one_state_are_refused(tmp_path: Path) -> None:
    """One that is looked at, and one that is loaded."""
    file = archive(tmp_path, **{"other/data.pkl": PICKLES["a command"]})
    refused(lambda: read_checkpoint(tmp_path, FORMAT), file, "2 parts data.pkl")


def test_a_part_that_claims_10_gb_is_refused(tmp_path: Path) -> None:
    """In the directory at the end of the archive, as the standard has it for sizes above 4 GB."""
    file = archive(tmp_path)
    whole = bytearray(file.read_bytes())
    at = whole.rfind(b"PK\x01\x02")
    for place in (at + 20, at + 24):
        whole[place : place + 4] = struct.pack("<I", 2**32 - 2)
    file.write_bytes(whole)
    refused(lambda: read_checkpoint(tmp_path, FORMAT), file, "damaged")


def test_a_tensor_that_is_larger_than_what_is_stored_is_refused(tmp_path: Path) -> None:
    """Ten billion times the one number that is there."""
    torch.save({"format": FORMAT, "weights": torch.ones(1).expand(TEN_GB)}, tmp_path / NEWEST)
    refused(lambda: read_checkpoint(tmp_path, FORMAT), tmp_path / NEWEST, "not stored whole")


# ---- netCDF -------------------------------------------------------------------------------------


def huge(file: Any, **options: Any) -> None:
    file.create_group("posterior").create_dataset("a", (1, 10, TEN_GB // 80), "f8", **options)


def elsewhere(file: Any) -> None:
    source = h5py.VirtualSource("/etc/passwd", "a", shape=(1, 10))
    layout = h5py.VirtualLayout((1, 10), "f8")
    layout[:] = source
    file.create_group("posterior").create_virtual_dataset("a", layout)


def around(file: Any) -> None:
    group = file.create_group("posterior")
    group["again"] = group


def deep(file: Any) -> None:
    group = file
    for _ in range(3000):
        group = group.create_group("g")


def filtered(file: Any) -> None:
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk((1, 10))
    settings.set_filter(32008, h5py.h5z.FLAG_OPTIONAL, ())
    space = h5py.h5s.create_simple((1, 10))
    h5py.h5d.create(file.create_group("posterior").id, b"a", h5py.h5t.NATIVE_DOUBLE, space, settings)


NETCDF: dict[str, tuple[Callable[[Any], Any], str]] = {
    "10 GB without data": (huge, "it claims 10,000,000,000 bytes"),
    "10 GB without data, packed": (lambda f: huge(f, chunks=(1, 10, 1000), compression="gzip"), "it claims"),
    "a chunk of 10 GB": (
        lambda f: f.create_dataset("a", (1, 10), "f8", maxshape=(1, None), chunks=(1, TEN_GB // 8), compression="gzip"),
        "claim",
    ),
    "zeros that unpack to 272 MB": (
        lambda f: f.create_dataset("a", data=np.zeros((1, 34, 10**6)), chunks=(1, 34, 10**5), compression="gzip"),
        "it claims 272,000,000 bytes",
    ),
    "a link to another file": (lambda f: f.update(posterior=h5py.ExternalLink("/etc/passwd", "/a")), "/etc/passwd"),
    "a link to a neighbour": (lambda f: f.update(posterior=h5py.ExternalLink("../x.nc", "/a")), "is a link to '../x"),
    "a soft link": (lambda f: f.update(posterior=h5py.SoftLink("/nowhere")), "is a link to '/nowhere'"),
    "an array in another file": (elsewhere, "lies in another file"),
    "raw bytes of another file": (
        lambda f: f.create_group("posterior").create_dataset("a", (1, 16), "u1", external=[("/etc/passwd", 0, 16)]),
        "lies in another file",
    ),
    "a group inside itself": (around, "there twice"),
    "groups without end": (deep, "too deep"),
    "objects": (
        lambda f: f.create_group("posterior").create_dataset("a", data=np.void(b"\x80\x02cposix\nsystem\n.")),
        "neither numbers nor texts",
    ),
    "references": (
        lambda f: f.create_dataset("a", (3,), dtype=h5py.ref_dtype),
        "neither numbers nor texts",
    ),
    "lists of numbers": (
        lambda f: f.create_dataset("a", (3,), dtype=h5py.vlen_dtype(np.float64)),
        "neither numbers nor texts",
    ),
    "a filter of its own": (filtered, "filter of its own"),
}  # fmt: skip


@pytest.mark.parametrize("name", NETCDF)
def test_a_hostile_netcdf_file_is_refused(name: str, run: Path) -> None:
    write, words = NETCDF[name]
    file = run / "posterior.nc"
    with h5py.File(file, "w") as content:
        write(content)
    assert file.stat().st_size < MOST_GROWN / 20
    said = refused(lambda: read_netcdf(file), file, words, "cannot be read as netCDF")
    assert ("delete it" in said) == ("claim" not in words and "link" not in words and "passwd" not in words), said
    refused(lambda: write_report(run), file, words)


def test_a_reference_behind_a_link_is_read(run: Path, made: Path, tmp_path: Path) -> None:
    """The user has named it, and tools for large files put links in their place."""
    (tmp_path / "truth.nc").symlink_to(made / "posterior.nc")
    with pytest.raises(SystemExit) as ended:
        main(["report", str(run), "--reference", str(tmp_path / "truth.nc")])
    assert ended.value.code == 0
    assert "delete it" not in refused(lambda: read_netcdf(tmp_path / "truth.nc"), "truth.nc", "is a link")


def test_a_run_whose_draws_were_deleted_draws_them_anew(run: Path, made: Path) -> None:
    """What the message says to do."""
    (run / "posterior.nc").unlink()
    options: dict[str, Any] = {"steps": 4, "lr": 0.1, "seed": 0, "posterior_samples": 10, "checkpoint_every": 2}
    pair().fit(**options, out=run, resume=True, progress=False)
    old, new = (read_netcdf(folder / "posterior.nc")["posterior"]["a"].to_numpy() for folder in (made, run))
    np.testing.assert_array_equal(old, new)


def test_torn_draws_are_refused_at_every_length(run: Path) -> None:
    file = run / "posterior.nc"
    whole = file.read_bytes()
    for part in range(20):
        file.write_bytes(whole[: len(whole) * part // 20])
        refused(lambda: read_netcdf(file), file, "cannot be read as netCDF")


def test_flipped_bits_of_draws_are_refused_or_do_no_harm(run: Path) -> None:
    """The numbers of compressed arrays have checksums, the texts around them have none."""
    file, draw = run / "posterior.nc", random.Random(1)
    whole, found = file.read_bytes(), list[str]()
    for _ in range(20):
        at = draw.randrange(len(whole))
        file.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << draw.randrange(8))]) + whole[at + 1 :])
        try:
            read_netcdf(file)
        except ValueError as error:
            found.append(str(error))
    assert len(found) >= 3
    assert all("posterior.nc" in said for said in found)


# ---- run folders --------------------------------------------------------------------------------


def load(folder: Path) -> FitResult:
    return FitResult.load(folder, pair())


@pytest.mark.parametrize("name", ["config.json", "history.csv", "posterior.nc", "../command.txt"])
def test_a_link_out_of_a_run_folder_is_not_followed(name: str, run: Path, tmp_path: Path) -> None:
    """What a report shows may be published: no secret gets into it by a link."""
    (tmp_path / "secret").write_text("a password")
    file = (run / name).resolve()
    file.unlink(missing_ok=True)
    file.symlink_to(tmp_path / "secret")
    (run / "report.html").unlink()
    refused(lambda: write_report(tmp_path if "command" in name else run), file, "is a link")
    assert not (run / "report.html").exists()
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("name", [NEWEST, BEFORE])
def test_a_state_behind_a_link_is_not_followed(name: str, run: Path, tmp_path: Path) -> None:
    os.replace(run / name, tmp_path / "elsewhere.pt")
    (run / name).symlink_to(tmp_path / "elsewhere.pt")
    (run / ({NEWEST, BEFORE} - {name}).pop()).unlink()
    refused(lambda: load(run), run / name, "is a link")


def test_a_pipe_in_place_of_a_file_does_not_hang(run: Path) -> None:
    for name in ("config.json", "history.csv", NEWEST):
        (run / name).unlink()
        os.mkfifo(run / name)
    refused(lambda: write_report(run), run / "config.json", "a pipe")
    refused(lambda: RunFolder(run).read_history(), run / "history.csv", "a pipe")


def test_writing_does_not_follow_a_link(tmp_path: Path) -> None:
    """One that stands where the file is written aside, or where it is going to be."""
    (tmp_path / "mine").write_text("mine")
    for name in (".state.pt.partial", "state.pt"):
        (tmp_path / name).symlink_to(tmp_path / "mine")
    write_whole(tmp_path / "state.pt", lambda file: file.write_text("new"))
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "state.pt").is_symlink()
    assert (tmp_path / "state.pt").read_text() == "new"


JSON = {
    "nested without end": b"[" * 100_000,
    "nested and closed": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "a number of a million digits": b'{"format": 3, "seed": ' + b"9" * 1_000_000 + b"}",
    "not a number": b'{"format": 3, "lr": NaN}',
    "infinity": b'{"format": 3, "lr": -Infinity}',
    "bytes": bytes(range(256)),
    "nothing": b"",
    "a list": b"[3]",
    "a text": b'"format"',
    "a format in words": b'{"format": "3"}',
    "a format that equals": b'{"format": 3.0}',
    "a yes for a format": b'{"format": true}',
    "versions in words": b'{"format": 2, "versions": "2.0"}',
}


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize("read", [load, write_report])
def test_a_hostile_configuration_is_refused(name: str, read: Callable[[Path], Any], run: Path) -> None:
    (run / "config.json").write_bytes(JSON[name])
    said = refused(lambda: read(run), run)
    assert "config.json" in said or "run of format" in said


@pytest.mark.parametrize("name", ["config.json", "history.csv"])
def test_a_file_of_10_gb_is_not_read(name: str, run: Path) -> None:
    """Of which nothing is on the disk."""
    os.truncate(run / name, TEN_GB)
    read = write_report if name == "config.json" else lambda folder: RunFolder(folder).read_history()
    os.replace(run / name, run.parent / name)  # so that comparing does not read it
    os.link(run.parent / name, run / name)
    with pytest.raises(ValueError, match=rf"{name}' has 10,000,000,000 bytes, expected at most"):
        read(run)


def test_what_a_page_shows_runs_nothing(run: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    config = json.loads((run / "config.json").read_text())
    config |= {"name": evil, "optim": evil, "data": evil, "lam": {"callable": evil}, "versions": {evil: evil}}
    (run / "config.json").write_text(json.dumps(config))
    (run / "command.txt").write_text(evil)
    write_report(run)
    page = (run / "report.html").read_text()
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert" in page


@pytest.mark.parametrize(
    "path",
    ["../evil:make", "/tmp/evil:make", "evil.py:make", "os:system('x')", "a b:make", ":make", "evil:", "evil", "",
     ".:x", "a..b:make", "__import__('os'):x", "evil:make:more", "evil:make.func", "evil;x:make", "evil\n:make"],
)  # fmt: skip
def test_a_pair_is_a_name_and_not_a_path_or_code(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text("open('hostile', 'w').write('')")
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    with pytest.raises(ValueError, match=r"expected module:attribute, such as models.vae:digits|no module 'evil.py'"):
        load_pair(path)
    assert not (tmp_path / "inside" / "hostile").exists()


# ---- simulations, and data of others ------------------------------------------------------------


SITES = {"z": {"dims": [], "shape": []}}
LINES = {
    "deep": b"[" * 100_000,
    "no number": b'{"simulation": -1, "failed": null, "seconds": 1, "ranks": {"z": 1}}',
    "a number in words": b'{"simulation": "1", "failed": null, "seconds": 1, "ranks": {"z": 1}}',
    "without ranks": b'{"simulation": 1, "failed": null, "seconds": 1, "ranks": {}}',
    "other shape": b'{"simulation": 1, "failed": null, "seconds": 1, "ranks": {"z": [1, 2]}}',
    "ranks beyond": b'{"simulation": 1, "failed": null, "seconds": 1, "ranks": {"z": 1e400}}',
    "huge ranks": b'{"simulation": 1, "failed": null, "seconds": 1, "ranks": {"z": 99999999999999999999999}}',
    "a list": b"[1]",
    "failed for no reason": b'{"simulation": 1, "failed": 3, "seconds": 1, "ranks": {"z": 1}}',
    "binary": bytes(range(128, 256)),
}


@pytest.mark.parametrize("name", LINES)
def test_a_hostile_simulation_is_refused(name: str, tmp_path: Path) -> None:
    folder = SimulationFolder(tmp_path / "calibration")
    folder.open({"seed": 1, "sites": SITES})
    (folder.path / "simulations.jsonl").write_bytes(LINES[name] + b"\n")
    said = refused(lambda: folder.open({"seed": 1, "sites": SITES}), folder.path / "simulations.jsonl", "line 1")
    assert "Delete the line" in said


@pytest.mark.parametrize("file", ["calibration.json", "simulations.jsonl"])
def test_links_in_a_folder_of_simulations_are_refused(file: str, tmp_path: Path) -> None:
    folder = SimulationFolder(tmp_path / "calibration")
    folder.open({"seed": 1, "sites": SITES})
    (tmp_path / "mine").write_text("{}")
    (folder.path / file).unlink(missing_ok=True)
    (folder.path / file).symlink_to(tmp_path / "mine")
    refused(lambda: folder.open({"seed": 1, "sites": SITES}), folder.path / file, "is a link")


@pytest.mark.parametrize("name", JSON)
def test_a_hostile_configuration_of_simulations_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_bytes(JSON[name])
    refused(SimulationFolder(tmp_path).config, tmp_path / "calibration.json")


def draws_file(folder: Path, content: bytes, **options: Any) -> Path:
    file = folder / "name.json.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr(options.get("inside", "name.json"), content)
    return file


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000, b"{}", b"[]", b"[1, 2]", b'[{"a": 1}]', b'[{"a": [1, "x"]}]', b'[{"a": []}]',
        b'[{"a[999999999]": [1.0, 2.0]}]', b'[{"a[-5]": [1.0]}]', b'[{"a[x]": [1.0]}]', b'[{"a": [1.0]}, {"b": [1.0]}]',
        b'[{"a": [1.0]}, {"a": [1.0, 2.0]}]', b'[{"a": [NaN]}]', b'[{"a[1]": [1.0], "a": [1.0]}]', b"\xff\xfe",
        b'[{"a[99999,99999]": [1.0]}]',
    ],
)  # fmt: skip
def test_hostile_reference_draws_are_refused(content: bytes, tmp_path: Path) -> None:
    file = draws_file(tmp_path, content)
    refused(lambda: posteriordb_draws("name", folder=tmp_path), file, "holds no reference draws", "posteriordb again")


def test_reference_draws_that_climb_or_grow_are_refused(tmp_path: Path) -> None:
    file = draws_file(tmp_path, b"[]", inside="../name.json")
    refused(lambda: posteriordb_draws("name", folder=tmp_path), file, "holds no reference draws")
    for name in ("../name", "a/b", "/etc/passwd", ""):
        with pytest.raises(ValueError, match=r"expected the name of a posterior"):
            posteriordb_draws(name, folder=tmp_path)
    file = draws_file(tmp_path, b"[" + bytes(1000) + b"]")
    whole = bytearray(file.read_bytes())
    at = whole.rfind(b"PK\x01\x02")
    whole[at + 24 : at + 28] = struct.pack("<I", 2**32 - 2)
    file.write_bytes(whole)
    refused(lambda: posteriordb_draws("name", folder=tmp_path), file, "more than")


IDX = {
    "10 GB of images": bytes((0, 0, 8, 3)) + struct.pack(">III", 100_000, 316, 317),
    "images without end": bytes((0, 0, 8, 3)) + struct.pack(">III", 2**32 - 1, 2**32 - 1, 2**32 - 1),
    "too many axes": bytes((0, 0, 8, 255)) + bytes(255 * 4),
    "packed zeros": gzip.compress(bytes((0, 0, 8, 3)) + struct.pack(">III", 2, 3, 3) + bytes(3 * 10**7), 1),
    "packed and torn": gzip.compress(bytes(1000))[:20],
    "nothing": b"",
}


@pytest.mark.parametrize("name", IDX)
def test_hostile_images_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(IDX[name])
    refused(lambda: read_idx(tmp_path / "images", shape=(2, 3, 3)), tmp_path / "images")


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"\xff", b"[1]", b'{"a": 1}', b'{"a": [1], "b": [1, 2]}'])
def test_hostile_columns_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    refused(lambda: read_columns(tmp_path / "x.json", names=("a", "b")), tmp_path / "x.json")


def test_a_matrix_that_claims_10_gb_is_refused(tmp_path: Path) -> None:
    """A MATLAB file of version 5 whose one variable has 10¹⁰ bytes, by its header."""
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<HH", 0x0100, 0x4D49)
    flags = struct.pack("<IIII", 6, 8, 9, 0) + struct.pack("<IIii", 5, 8, 100_000, 100_000)
    named = struct.pack("<HH4s", 1, 1, b"X") + struct.pack("<II", 2, 2**31 - 1)
    body = flags + named
    (tmp_path / "x.mat").write_bytes(header + struct.pack("<II", 14, len(body)) + body)
    refused(lambda: read_bits(tmp_path / "x.mat", columns=4), tmp_path / "x.mat")
