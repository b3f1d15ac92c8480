"""Data of models/ from files and from scikit-learn: what they are, and which damage to a file is named."""

import gzip
import json
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat
from sklearn.datasets import load_breast_cancer, load_digits, load_iris
from torch import Tensor

from banel_pyro import Split
from models import data, image_data, local_data

SIZES = {"train": 5, "t10k": 3}
NAMES = {part: (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte") for part in SIZES}


def idx(values: np.ndarray, code: int = 8) -> bytes:
    """An idx file of unsigned bytes, whatever type code it claims."""
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, code, values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of four intact files for an MNIST of 5 and 3 images, which the loaders are told to expect."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, size in SIZES.items():
        for name, shape, top in zip(NAMES[part], ((size, 28, 28), (size,)), (256, 10), strict=True):
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(rng.integers(0, top, shape))))
    monkeypatch.setenv("BANEL_DATA", str(tmp_path))
    for part, size in SIZES.items():
        monkeypatch.setitem(image_data.MNIST_SIZES, part, size)
    return folder


def load() -> None:
    data.mnist()
    data.mnist_labels()


# Idx files


def test_labels_that_are_no_digits_are_refused(small: Path) -> None:
    (small / f"{NAMES['train'][1]}.gz").write_bytes(gzip.compress(idx(np.array([0, 9, 10, 3, 1]))))
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte' has labels up to 10: expected 0 to 9"):
        data.mnist_labels()


def test_idx_files_are_read_packed_and_unpacked_whatever_their_name(small: Path) -> None:
    packed, labels = data.mnist(), data.mnist_labels()
    for path in list(small.iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert torch.equal(data.mnist().train, packed.train)
    assert torch.equal(data.mnist().held_out, packed.held_out)
    for path in list(small.iterdir()):  # unpacked under a packed name, as some tools leave it
        path.rename(f"{path}.gz")
    assert all(torch.equal(a, b) for a, b in zip(data.mnist_labels(), labels, strict=True))


def test_idx_values_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    values = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    (tmp_path / "images").write_bytes(idx(values))
    assert np.array_equal(local_data.read_idx(tmp_path / "images", shape=(2, 3, 4)), values)


def test_training_images_are_grey_and_in_order_and_held_out_ones_are_shuffled_bits(small: Path) -> None:
    split = data.mnist(seed=3)
    images = [
        local_data.read_idx(small / NAMES[part][0], shape=(size, 28, 28)).reshape(size, -1)
        for part, size in SIZES.items()
    ]
    assert torch.allclose(split.train, torch.tensor(images[0]) / 255)
    assert split.transform is data.binarize
    rng = np.random.RandomState(3)
    order = rng.permutation(3)
    expected = rng.random_sample((3, 784)) < images[1][order] / 255
    assert np.array_equal(split.held_out.bool().numpy(), expected)
    labels = local_data.read_idx(small / NAMES["t10k"][1], shape=(3,))
    assert data.mnist_labels(seed=3)[1].tolist() == labels[order].tolist()


def damage(content: bytes) -> bytes:
    """Other bits in the middle of a gzip file."""
    half = len(content) // 2
    return content[:half] + bytes(255 - byte for byte in content[half : half + 8]) + content[half + 8 :]


IMAGES, LABELS = np.zeros((5, 28, 28)), np.zeros(5)
ONE_PACKED = gzip.compress(idx(np.random.default_rng(0).integers(0, 256, (5, 28, 28))))
BAD_IMAGES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"is no idx file: it starts with the bytes '', expected '00 00 08 03' for images.*Download"),
    "magic": (b"\x89PNG" + bytes(800), r"it starts with the bytes '89 50 4e 47', expected '00 00 08 03'"),
    "html": (gzip.compress(b"<html>not found"), r"it starts with the bytes '3c 68 74 6d', expected '00 00 08 03'"),
    "gzip cut short": (ONE_PACKED[:-100], r"is a damaged gzip file of \d+ bytes \(.+\)\. Download it again"),
    "gzip damaged": (damage(ONE_PACKED), r"is a damaged gzip file of \d+ bytes \(.+\)\. Download it again"),
    "gzip head only": (b"\x1f\x8b", r"is a damaged gzip file of 2 bytes \(.+\)\. Download it again"),
    "header cut short": (idx(IMAGES)[:10], r"is cut short: 10 bytes, less than its header\. Download it again"),
    "cut short": (idx(IMAGES)[:-7], r"cut short: its header says 5 x 28 x 28 = 3920 values, the file holds 3913"),
    "too long": (idx(IMAGES) + b"\0", r"too long: its header says 5 x 28 x 28 = 3920 values, the file holds 3921"),
    "huge header": (struct.pack(">BBBB3I", 0, 0, 8, 3, *[2**32 - 1] * 3), r"cut short: .* the file holds 0"),
    "type": (idx(IMAGES, 0x0D), r"holds values of type code 0x0d, expected 0x08, unsigned bytes\. Convert it"),
    "labels": (idx(LABELS), r"holds labels \(1 dimensions\), expected images \(3\)\. The files of images and labels"),
    "matrix": (idx(np.zeros((5, 784))), r"holds values \(2 dimensions\), expected images \(3\)"),
    "other part": (idx(IMAGES[:3]), r"holds 3 x 28 x 28 images, expected 5 x 28 x 28\. Put .* changed places"),
    "other side": (idx(np.zeros((5, 8, 8))), r"holds 5 x 8 x 8 images, expected 5 x 28 x 28\. Put the original"),
}
BAD_LABELS: dict[str, tuple[bytes, str]] = {
    "images": (idx(IMAGES), r"holds images \(3 dimensions\), expected labels \(1\)\. The files .* changed places"),
    "another number": (idx(LABELS[:4]), r"holds 4 labels, expected 5\. Put the original file"),
    "cut short": (idx(LABELS)[:-1], r"cut short: its header says 5 = 5 values, the file holds 4"),
}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        pytest.param(name, content, expected, id=f"{name[6:12]}-{kind}")
        for name, kinds in zip(NAMES["train"], (BAD_IMAGES, BAD_LABELS), strict=True)
        for kind, (content, expected) in kinds.items()
    ],
)
def test_a_bad_idx_file_is_named_with_what_to_do(small: Path, name: str, content: bytes, expected: str) -> None:
    path = small / f"{name}.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=expected) as error:
        load()
    assert repr(str(path)) in str(error.value)
    assert "\n" not in str(error.value)


def test_swapped_images_and_labels_are_named(small: Path) -> None:
    images, labels = (small / f"{name}.gz" for name in NAMES["t10k"])
    images.rename(small / "kept")
    labels.rename(images)
    (small / "kept").rename(labels)
    with pytest.raises(ValueError, match=r"t10k-images.*holds labels.*may have changed places"):
        data.mnist()
    with pytest.raises(ValueError, match=r"t10k-labels.*holds images.*may have changed places"):
        data.mnist_labels()


def test_a_missing_file_is_named_with_the_folder(small: Path) -> None:
    (small / "train-images-idx3-ubyte.gz").unlink()
    expected = r"'train-images-idx3-ubyte' or 'train-images-idx3-ubyte.gz' is missing: put it into '.*mnist'"
    with pytest.raises(FileNotFoundError, match=expected):
        data.mnist()


# Static MNIST


@pytest.fixture
def static(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three intact files of 6, 4 and 3 images."""
    folder = tmp_path / "static-binarized-mnist"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, size in {"train": 6, "valid": 4, "test": 3}.items():
        bits = np.asfortranarray(rng.integers(0, 2, (size, 784), dtype=np.uint8))
        savemat(folder / f"binarized_mnist_{part}.mat", {"X": bits}, do_compression=True)
    monkeypatch.setenv("BANEL_DATA", str(tmp_path))
    return folder


def test_static_bits_are_rows_in_order_to_train_and_shuffled_to_judge(static: Path) -> None:
    for part, size in {"valid": 4, "test": 3}.items():
        split = data.static_mnist(held_out=part, seed=1)
        stored = local_data.read_bits(static / f"binarized_mnist_{part}.mat", columns=784)
        assert np.array_equal(split.held_out.numpy(), stored[np.random.RandomState(1).permutation(size)])
        assert split.train.shape == (6, 784)
        assert split.transform is None
    assert torch.equal(data.static_mnist().held_out, data.static_mnist(held_out="valid").held_out)


def _mat(content: dict[str, object]) -> Callable[[Path], None]:
    return lambda path: savemat(path, content)


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda path: path.write_bytes(b"no such thing" * 20), r"is no intact MATLAB file \(ValueError: .*Download"),
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), r"is no intact MATLAB file \(.*Download it again"),
        (lambda path: path.write_bytes(b""), r"is no intact MATLAB file \(.*Download it again"),
        (_mat({"Y": np.zeros((2, 784))}), r"has no variable 'X', only \['Y'\]: expected a matrix \(images, 784\)"),
        (_mat({"X": np.zeros((784, 2))}), r"has shape \(784, 2\), expected \(images, 784\).*Transpose"),
        (_mat({"X": np.full((2, 784), 0.5)}), r"holds 1568 values other than 0 and 1, the first 0.5: expected bin"),
        (_mat({"X": np.full((1, 784), np.nan)}), r"holds 784 values other than 0 and 1, the first nan"),
    ],
    ids=["text", "cut short", "empty", "no X", "transposed", "grey", "nan"],
)
def test_a_bad_matlab_file_is_named(static: Path, write: Callable[[Path], None], expected: str) -> None:
    path = static / "binarized_mnist_train.mat"
    write(path)
    with pytest.raises(ValueError, match=expected) as error:
        data.static_mnist()
    assert repr(str(path)) in str(error.value)


def test_a_missing_matlab_file_and_an_unknown_part_are_named(static: Path) -> None:
    (static / "binarized_mnist_test.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"'binarized_mnist_test.mat' is missing: put it into '.*static-bin"):
        data.static_mnist(held_out="test")
    with pytest.raises(ValueError, match="held_out='train': expected 'valid' or 'test'"):
        data.static_mnist(held_out="train")


# Radon


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", r"is no intact JSON file \(JSONDecodeError: .*Download it again"),
        ("[1, 2]", r"has columns of lengths \{\}, expected \['county_idx', 'floor_measure', 'log_uppm', 'log_radon'\]"),
        (json.dumps({"county_idx": [1], "floor_measure": [0]}), r"lengths \{'county_idx': 1, 'floor_measure': 1\}"),
        (
            json.dumps({"county_idx": [1, 2], "floor_measure": [0], "log_uppm": [0], "log_radon": [0]}),
            r"lengths \{'county_idx': 2, .* expected .* of one length",
        ),
    ],
    ids=["json", "list", "missing", "lengths"],
)
def test_a_bad_radon_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, expected: str
) -> None:
    (tmp_path / "bayes").mkdir()
    (tmp_path / "bayes" / "radon_mn.json").write_text(content)
    monkeypatch.setenv("BANEL_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=expected):
        data.radon()


# The real data


@pytest.fixture(scope="module")
def real() -> Split:
    """MNIST itself."""
    if not os.environ.get("BANEL_DATA"):
        pytest.skip("BANEL_DATA is not set")
    return data.mnist()


def agreement(train: Tensor, labels: Tensor, judged: Tensor) -> Tensor:
    """The class whose mean training image is nearest to each judged image."""
    means = torch.stack([train[labels == digit].mean(0) for digit in range(10)])
    return torch.cdist(judged, means).argmin(1)


def test_mnist_is_the_published_one(real: Split) -> None:
    assert real.train.shape == (60_000, 784)
    assert real.held_out.shape == (10_000, 784)
    assert real.train.dtype == real.held_out.dtype == torch.float32
    assert (real.train.min(), real.train.max()) == (0, 1)
    assert real.train.mean(dtype=torch.float64) == pytest.approx(
        0.1306604762738429, rel=1e-6
    )  # as everyone's pipelines
    assert set(real.held_out.unique().tolist()) == {0.0, 1.0}
    train, judged = data.mnist_labels()
    assert train[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert train.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert judged.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert train.dtype == judged.dtype == torch.int64


def test_mnist_labels_go_with_the_rows(real: Split) -> None:
    train, judged = data.mnist_labels()
    predicted = agreement(real.train, train, real.held_out)
    assert (predicted == judged).float().mean() > 0.78  # the nearest mean is right for 82 per cent of grey images
    assert (predicted[:1000] == judged[:1000]).float().mean() > 0.75


def test_held_out_bits_have_their_grey_value_as_mean(real: Split) -> None:
    grey = local_data.read_idx(data.data_folder("mnist") / "t10k-images-idx3-ubyte", shape=(10_000, 28, 28))
    grey = torch.tensor(grey[np.random.RandomState(0).permutation(10_000)].reshape(10_000, 784).astype(np.int64))
    counts = grey.flatten().bincount()
    ones = grey.flatten().bincount(real.held_out.flatten())
    p = torch.arange(256) / 255
    assert ones[0] == 0
    assert ones[255] == counts[255]
    z = (ones - counts * p)[1:255] / (counts * p * (1 - p))[1:255].sqrt()
    assert z.abs().max() < 4.5


def test_static_mnist_shows_upright_digits_in_no_order_of_digits(real: Split) -> None:
    labels = data.mnist_labels()[0]
    for part in ("valid", "test"):
        split = data.static_mnist(held_out=part)
        assert split.train.shape == (50_000, 784)
        assert split.held_out.shape == (10_000, 784)
        assert set(split.held_out.unique().tolist()) == {0.0, 1.0}
        assert abs(split.held_out.mean() - real.train.mean()) < 0.003
        shown = agreement(real.train, labels, split.held_out[:500]).bincount(minlength=10)
        assert shown.min() > 20  # the stored test part begins with a thousand zeros


def test_digits_labels_go_with_the_rows() -> None:
    for options in ({}, {"held_out": 500, "seed": 4}):
        split, (train, judged) = data.digits(**options), data.digits_labels(**options)
        assert (len(train), len(judged)) == (len(split.train), len(split.held_out))
        assert (agreement(split.train, train, split.held_out) == judged).float().mean() > 0.8
        assert torch.cat([train, judged]).bincount().tolist() == np.bincount(load_digits().target).tolist()
    with pytest.raises(ValueError, match="held_out=0: expected 1 to 1796"):
        data.digits_labels(held_out=0)


def test_breast_cancer_is_standardised_by_its_training_part() -> None:
    split = data.breast_cancer()
    (x, y), (judged_x, judged_y) = split.train, split.held_out
    assert (x.shape, y.shape, judged_x.shape, judged_y.shape) == ((400, 30), (400,), (169, 30), (169,))
    assert x.mean(0).abs().max() < 1e-6
    assert torch.allclose(x.std(0, correction=0), torch.ones(30))
    assert judged_x.mean(0).abs().max() > 0.01
    assert y.sum() + judged_y.sum() == 212  # malignant among 569, as published
    stored = load_breast_cancer()
    order = np.random.RandomState(0).permutation(569)
    assert np.array_equal(torch.cat([y, judged_y]).numpy(), 1 - stored.target[order])
    assert np.corrcoef(x[:, 0], stored.data[order[:400], 0])[0, 1] == pytest.approx(1)


def test_iris_petals_are_split_in_the_seeded_order() -> None:
    split = data.iris_petals(held_out=50, seed=2)
    stored = load_iris().data[np.random.RandomState(2).permutation(150), 2]
    assert np.allclose(torch.cat([split.train, split.held_out]), stored)
    assert len(split.held_out) == 50


@pytest.mark.parametrize(("load", "size"), [(data.breast_cancer, 569), (data.iris_petals, 150)])
@pytest.mark.parametrize("held_out", [-1, 0, math.inf])
def test_an_empty_part_is_refused(load: Callable[..., Split], size: int, held_out: float) -> None:
    held_out = size if held_out == math.inf else held_out
    with pytest.raises(ValueError, match=f"held_out={held_out}: expected 1 to {size - 1} of the {size}"):
        load(held_out=held_out)


def test_radon_is_posteriordbs() -> None:
    if not os.environ.get("BANEL_DATA"):
        pytest.skip("BANEL_DATA is not set")
    split = data.radon()
    county, floor, uranium, y = (torch.cat(parts) for parts in zip(split.train, split.held_out, strict=True))
    assert len(split.train[0]) == 800
    assert county.dtype == torch.int64
    assert (county.min(), county.max(), len(county.unique()), len(county)) == (0, 84, 85, 919)
    assert set(floor.tolist()) == {0.0, 1.0}
    for one in county.unique():
        assert len(uranium[county == one].unique()) == 1
    assert y[floor == 0].mean() - y[floor == 1].mean() == pytest.approx(0.6, abs=0.05)  # less radon above the basement


def test_rows_come_in_the_default_dtype(small: Path, float64: torch.dtype) -> None:
    for split in (data.mnist(), data.breast_cancer(), data.iris_petals()):
        for part in (split.train, split.held_out):
            assert {row.dtype for row in (part if isinstance(part, tuple) else (part,))} == {float64}
    assert data.mnist_labels()[0].dtype == torch.int64
