"""The data of the pairs: small real data sets, embedded, and the way to the larger ones.

Every function returns tensors in torch's default dtype (float32 unless you changed it), so that
data, priors and parameters agree. `data_folder` finds the sets that are too large to embed.
"""

import os
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor

from banel_pyro import Split

CAVENDISH_DENSITIES = (
    5.50, 5.61, 4.88, 5.07, 5.26, 5.55, 5.36, 5.29, 5.58, 5.65,
    5.57, 5.53, 5.62, 5.29, 5.44, 5.34, 5.79, 5.10, 5.27, 5.39,
    5.42, 5.47, 5.63, 5.34, 5.46, 5.30, 5.75, 5.68, 5.85,
)  # fmt: skip
"""Cavendish's 29 determinations of the Earth's mean density, in units of water's."""

DAMAGED_FLIGHTS = (0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 1)
"""For the 23 shuttle flights before Challenger's last: 1 where an O-ring was damaged."""

SCHOOL_EFFECTS = (28, 8, -3, 7, -1, 1, 18, 12)
"""Estimated effect of coaching in each of the eight schools, in points of the SAT-V score."""

SCHOOL_STANDARD_ERRORS = (15, 10, 16, 11, 9, 11, 10, 18)
"""Standard errors of `SCHOOL_EFFECTS`, in the same points."""


def earth_density() -> Tensor:
    """Cavendish's 29 determinations of the Earth's density, in the order he made them.

    Returns:
        Shape (29,), in units of the density of water.

    Reference:
        Cavendish, "Experiments to determine the density of the Earth", Phil. Trans. 88 (1798);
        as listed in Stigler, "Do robust estimators work with real data?", Ann. Stat. 5 (1977).
    """
    return _tensor(CAVENDISH_DENSITIES)


def shuttle_o_rings() -> Tensor:
    """Whether each of 23 shuttle flights came back with a damaged O-ring, in order of launch.

    Returns:
        Shape (23,), 1 for damage (seven flights) and 0 for none.

    Reference:
        Dalal, Fowlkes, Hoadley, "Risk analysis of the space shuttle: pre-Challenger prediction of
        failure", JASA 84 (1989).
    """
    return _tensor(DAMAGED_FLIGHTS)


def diabetes() -> tuple[Tensor, Tensor]:
    """Progression of diabetes in 442 patients and ten measurements that predict it, standardised.

    Several columns go together (two blood values are correlated at 0.9), so that the posterior of
    a regression is far from a product. Every column and the response have mean 0 and standard
    deviation 1, which makes an intercept superfluous.

    Returns:
        Design x of shape (442, 10) and response y of shape (442,).

    Reference:
        Efron, Hastie, Johnstone, Tibshirani, "Least angle regression", Ann. Stat. 32 (2004);
        embedded in scikit-learn.
    """
    x, y = load_diabetes(return_X_y=True, scaled=False)
    return _tensor((x - x.mean(0)) / x.std(0)), _tensor((y - y.mean()) / y.std())


def eight_schools() -> tuple[Tensor, Tensor]:
    """Effects of coaching in eight schools and their standard errors.

    Returns:
        Effects y and standard errors sigma, both of shape (8,), in points of the SAT-V score.

    Reference:
        Rubin, "Estimation in parallel randomized experiments", J. Educ. Stat. 6 (1981).
    """
    return _tensor(SCHOOL_EFFECTS), _tensor(SCHOOL_STANDARD_ERRORS)


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
    if not 0 < held_out < len(images):
        raise ValueError(f"held_out={held_out}: expected 1 to {len(images) - 1} of the {len(images)} images")
    rng = np.random.RandomState(seed)
    images = images[rng.permutation(len(images))]
    train, judged = images[:-held_out], images[-held_out:]
    bits = rng.random_sample(judged.shape) < judged
    return Split(train=_tensor(train), held_out=_tensor(bits), transform=binarize)


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


def data_folder(name: str) -> Path:
    """The folder of a data set that is too large to embed: `name` inside the folder `BANEL_DATA`.

    Args:
        name: Name of the data set's folder, such as "mnist".

    Returns:
        Path of the folder, which exists.

    Raises:
        FileNotFoundError: If the environment variable `BANEL_DATA` is not set, or its folder has no
            folder `name`.
    """
    root = os.environ.get("BANEL_DATA")
    if not root:
        raise FileNotFoundError(
            f"data set {name!r} is not embedded and BANEL_DATA is not set: put the files into a folder "
            f"{name!r} and set BANEL_DATA to the folder that holds it"
        )
    folder = Path(root).expanduser() / name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"data set {name!r} is missing: put its files into {str(folder)!r}, or set BANEL_DATA "
            f"(now {root!r}) to the folder that holds {name!r}"
        )
    return folder


def _tensor(values: object) -> Tensor:
    """The values as a tensor of torch's default dtype."""
    return torch.as_tensor(values, dtype=torch.get_default_dtype())
