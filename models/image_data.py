"""Images for the autoencoders: digits embedded in scikit-learn, and MNIST from local files.

Grey images to train on, with `binarize` as the transform of their batches; fixed bits to judge by.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

from banel_pyro import Split
from models.local_data import data_folder, read_bits, read_idx

MNIST_SIZES = {"train": 60_000, "t10k": 10_000}
"""Images in MNIST's two parts, by the names of their files."""

MNIST_SIDE = 28
"""Height and width of MNIST's images in pixels."""


def digits(*, held_out: int = 297, seed: int = 0) -> Split:
    """1,797 handwritten digits of 8x8 pixels, with dynamic binarisation to train and fixed bits to judge.

    The images are put into a random order and the last `held_out` of them are held out. Writers are
    not told apart in the source, so both parts may hold digits by one hand. Training images stay grey:
    `binarize` draws their bits anew each time that a batch is used, once for model and guide together,
    which keeps a small set from being learnt by heart. Held-out images are binarised here, once, so
    that whatever is compared on them is compared on the same bits. The order, and then the held-out
    bits, come from `numpy.random.RandomState(seed)`, whose stream NumPy keeps fixed.

    Args:
        held_out: Number of images held out, 1 to 1796; the default leaves 1,500 for training.
        seed: Seed of the order and of the held-out bits.

    Returns:
        Split with grey training images (1797 - held_out, 64) in [0, 1], held-out bits (held_out, 64)
        and `transform=binarize`.

    Raises:
        ValueError: If `held_out` leaves one of the parts empty.

    Reference:
        Alpaydin, Kaynak, "Optical recognition of handwritten digits", UCI (1998); embedded in
        scikit-learn.
    """
    images = load_digits().data / 16
    rng = np.random.RandomState(seed)
    order = _digits_order(rng, held_out)
    train, judged = images[order[:-held_out]], images[order[-held_out:]]
    return Split(train=_tensor(train), held_out=_tensor(_bits(judged, rng)), transform=binarize)


def digits_labels(*, held_out: int = 297, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Which digit each image of `digits` shows, in the order of its rows.

    Args:
        held_out: As for `digits`.
        seed: As for `digits`.

    Returns:
        Labels 0 to 9 of the training images (1797 - held_out,) and of the held-out ones (held_out,), int64.

    Raises:
        ValueError: If `held_out` leaves one of the parts empty.
    """
    labels = load_digits().target[_digits_order(np.random.RandomState(seed), held_out)]
    return torch.as_tensor(labels[:-held_out]), torch.as_tensor(labels[-held_out:])


def mnist(*, seed: int = 0) -> Split:
    """MNIST, handwritten digits of 28x28 pixels, with dynamic binarisation to train and fixed bits to judge.

    The parts are the official ones, read from the four idx files (`.gz` or unpacked) in the folder
    `mnist` of `BANEL_DATA`. Training images stay grey, as in `digits`. The test images are put into a
    random order, since their first half is easier than the second, and binarised once. The order, and
    then the bits, come from `numpy.random.RandomState(seed)`.

    Args:
        seed: Seed of the order and of the bits of the held-out images.

    Returns:
        Split with grey training images (60000, 784) in [0, 1] in the order of the file, held-out bits
        (10000, 784) and `transform=binarize`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is damaged, or is not what its name says.

    Reference:
        LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition",
        Proc. IEEE 86 (1998).
    """
    rng = np.random.RandomState(seed)
    grey = _mnist_images("t10k")[rng.permutation(MNIST_SIZES["t10k"])] / 255
    return Split(
        train=_tensor(_mnist_images("train")).div_(255), held_out=_tensor(_bits(grey, rng)), transform=binarize
    )


def mnist_labels(*, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Which digit each image of `mnist` shows, in the order of its rows.

    Args:
        seed: As for `mnist`.

    Returns:
        Labels 0 to 9 of the training images (60000,) and of the held-out ones (10000,), int64.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is damaged, or is not what its name says.
    """
    order = np.random.RandomState(seed).permutation(MNIST_SIZES["t10k"])
    train, judged = _mnist_labels("train"), _mnist_labels("t10k")[order]
    return torch.as_tensor(train.astype(np.int64)), torch.as_tensor(judged.astype(np.int64))


def static_mnist(*, held_out: str = "valid", seed: int = 0) -> Split:
    """MNIST binarised once and for all, in Larochelle's split: what published figures are compared on.

    Training, validation and test part have 50,000, 10,000 and 10,000 images; the files
    `binarized_mnist_*.mat` are in the folder `static-binarized-mnist` of `BANEL_DATA`. Rows are images
    and stand in another order than MNIST's, so that MNIST's labels do not go with them; those of the
    test file are sorted by digit. The held-out rows are therefore put into the random order of
    `numpy.random.RandomState(seed)`.

    Args:
        held_out: "valid", to choose by, or "test", for the figure that is reported in the end.
        seed: Seed of the order of the held-out images.

    Returns:
        Split with training bits (50000, 784) and held-out bits (10000, 784), and no transform.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is damaged or holds something else, or for another `held_out`.

    Reference:
        Larochelle, Murray, "The neural autoregressive distribution estimator", AISTATS 2011.
    """
    if held_out not in ("valid", "test"):
        raise ValueError(f"held_out={held_out!r}: expected 'valid' or 'test', a part of the data set")
    folder = data_folder("static-binarized-mnist")
    train, judged = (
        read_bits(folder / f"binarized_mnist_{part}.mat", columns=MNIST_SIDE**2) for part in ("train", held_out)
    )
    order = np.random.RandomState(seed).permutation(len(judged))
    return Split(train=_tensor(train), held_out=_tensor(judged[order]))


def binarize(rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Draw black-and-white images from grey ones: each pixel is 1 with probability its grey value.

    The draws come from torch's current random state, so whoever seeds that gets the same bits.

    Args:
        rows: One tensor of grey values in [0, 1], in a tuple as a `Split` hands it over.

    Returns:
        One tensor of zeros and ones of the same shape and dtype, in a tuple.

    Reference:
        Salakhutdinov, Murray, "On the quantitative analysis of deep belief networks", ICML 2008;
        Burda, Grosse, Salakhutdinov, "Importance weighted autoencoders", ICLR 2016.
    """
    (grey,) = rows
    return (torch.bernoulli(grey),)


def _digits_order(rng: np.random.RandomState, held_out: int) -> NDArray[np.int64]:
    """The random order of the 1,797 digits, drawn from `rng`, once `held_out` is checked."""
    size = len(load_digits().target)
    if not 0 < held_out < size:
        raise ValueError(f"held_out={held_out}: expected 1 to {size - 1} of the {size} images")
    return rng.permutation(size)


def _bits(grey: NDArray[np.float64], rng: np.random.RandomState) -> NDArray[np.bool_]:
    """Bits drawn once from grey values in [0, 1]."""
    return rng.random_sample(grey.shape) < grey


def _mnist_images(part: str) -> NDArray[np.uint8]:
    """Images of one part of MNIST as rows (n, 784) of grey values, 0 to 255."""
    shape = (MNIST_SIZES[part], MNIST_SIDE, MNIST_SIDE)
    return read_idx(data_folder("mnist") / f"{part}-images-idx3-ubyte", shape=shape).reshape(shape[0], -1)


def _mnist_labels(part: str) -> NDArray[np.uint8]:
    """Labels (n,) of one part of MNIST, one for each of its images."""
    path = data_folder("mnist") / f"{part}-labels-idx1-ubyte"
    labels = read_idx(path, shape=(MNIST_SIZES[part],))
    if labels.max() > 9:
        raise ValueError(f"{str(path)!r} has labels up to {labels.max()}: expected 0 to 9. Fetch the file again.")
    return labels


def _tensor(values: object) -> Tensor:
    """The values as a tensor of torch's default dtype."""
    return torch.as_tensor(values, dtype=torch.get_default_dtype())
