"""The data of the pairs: small real data sets, embedded, and the way to the larger ones.

Every function returns tensors in torch's default dtype (float32 unless you changed it), so that
data, priors and parameters agree; labels and other indices are int64. Images are in `image_data`, the
files of what is too large to embed in `local_data`; both are reached from here.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from torch import Tensor

from banel_pyro import Split
from models.image_data import binarize, digits, digits_labels, mnist, mnist_labels, static_mnist
from models.local_data import data_folder, read_columns

__all__ = [
    "CAVENDISH_DENSITIES",
    "DAMAGED_FLIGHTS",
    "SCHOOL_EFFECTS",
    "SCHOOL_STANDARD_ERRORS",
    "binarize",
    "breast_cancer",
    "data_folder",
    "diabetes",
    "digits",
    "digits_labels",
    "earth_density",
    "eight_schools",
    "iris_petals",
    "kidiq",
    "mnist",
    "mnist_labels",
    "radon",
    "shuttle_o_rings",
    "static_mnist",
]

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


def breast_cancer(*, held_out: int = 169, seed: int = 0) -> Split:
    """Thirty measurements of cell nuclei from 569 breast tumours, and whether the tumour is malignant.

    The patients are put into the random order of `numpy.random.RandomState(seed)` and the last
    `held_out` of them are held out. Every column has mean 0 and standard deviation 1 in the training part.

    Args:
        held_out: Number of patients held out, 1 to 568; the default leaves 400 for training.
        seed: Seed of the order.

    Returns:
        Split of design x (n, 30) and response y (n,), 1 for malignant and 0 for benign.

    Raises:
        ValueError: If `held_out` leaves one of the parts empty.

    Reference:
        Street, Wolberg, Mangasarian, "Nuclear feature extraction for breast tumor diagnosis", 1993;
        embedded in scikit-learn.
    """
    x, benign = load_breast_cancer(return_X_y=True)
    train, judged = _parts(len(x), held_out, seed, "patients")
    x = (x - x[train].mean(0)) / x[train].std(0)
    return Split(*((_tensor(x[part]), _tensor(1 - benign[part])) for part in (train, judged)))


def iris_petals(*, held_out: int = 30, seed: int = 0) -> Split:
    """Length of a petal of 150 irises of three species, which are not told.

    Args:
        held_out: Number of flowers held out, 1 to 149; the default leaves 120 for training.
        seed: Seed of the random order, as in `breast_cancer`.

    Returns:
        Split of lengths (n,) in centimetres.

    Raises:
        ValueError: If `held_out` leaves one of the parts empty.

    Reference:
        Fisher, "The use of multiple measurements in taxonomic problems", Ann. Eugenics 7 (1936), with
        Anderson's measurements; embedded in scikit-learn.
    """
    lengths = load_iris().data[:, 2]
    return Split(*(_tensor(lengths[part]) for part in _parts(len(lengths), held_out, seed, "flowers")))


def kidiq() -> tuple[Tensor, Tensor]:
    """Test scores of 434 children, and their mothers' schooling and scores, from posteriordb's file `kidiq.json`.

    The file is in the folder `bayes` of `BANEL_DATA`.

    Returns:
        Mothers (434, 2): 1 for a high-school degree and 0 for none, and the score of a test of intelligence; scores
        of the children (434,).

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is damaged or holds something else.

    Reference:
        Gelman, Hill, "Data analysis using regression and multilevel/hierarchical models", 2007, chapter
        3; Magnusson et al., "posteriordb", arXiv 2407.04967.
    """
    school, mother, child = read_columns(data_folder("bayes") / "kidiq.json", names=("mom_hs", "mom_iq", "kid_score"))
    return torch.stack([_tensor(school), _tensor(mother)], dim=1), _tensor(child)


def radon(*, held_out: int = 119, seed: int = 0) -> Split:
    """Radon in 919 houses of Minnesota's 85 counties, from posteriordb's file `radon_mn.json`.

    The file is in the folder `bayes` of `BANEL_DATA`. Several counties have a single house, which may be
    a held-out one.

    Args:
        held_out: Number of houses held out, 1 to 918; the default leaves 800 for training.
        seed: Seed of the random order, as in `breast_cancer`.

    Returns:
        Split of four columns (n,): the county (int64, 0 to 84), 1 where the measurement was taken on the
        first floor and 0 in the basement, the logarithm of the county's uranium in the soil (in parts per
        million), and the logarithm of the radon measured (in picocuries per litre), the response.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is damaged or holds something else, or if `held_out` leaves a part empty.

    Reference:
        Gelman, Hill, "Data analysis using regression and multilevel/hierarchical models", 2007, chapter
        12; Magnusson et al., "posteriordb", arXiv 2407.04967.
    """
    names = ("county_idx", "floor_measure", "log_uppm", "log_radon")
    county, *others = read_columns(data_folder("bayes") / "radon_mn.json", names=names)
    parts = _parts(len(county), held_out, seed, "houses")
    return Split(*((torch.as_tensor(county[i] - 1), *(_tensor(column[i]) for column in others)) for i in parts))


def _parts(size: int, held_out: int, seed: int, what: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the training and of the held-out rows, both in random order."""
    if not 0 < held_out < size:
        raise ValueError(f"held_out={held_out}: expected 1 to {size - 1} of the {size} {what}")
    order = np.random.RandomState(seed).permutation(size)
    return order[:-held_out], order[-held_out:]


def _tensor(values: object) -> Tensor:
    """The values as a tensor of torch's default dtype."""
    return torch.as_tensor(values, dtype=torch.get_default_dtype())
