"""How well classes can be read off the posterior means of rows: a linear probe, and the nearest neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from banel_pyro.checks import integer
from banel_pyro.evaluate import mean_estimate
from banel_pyro.terms import Estimate

__all__ = ["checked_labels", "majority_share", "probe_accuracies"]

Array: TypeAlias = NDArray[np.floating[Any]]
Labels: TypeAlias = NDArray[Any]


def probe_accuracies(features: Array, labels: Labels, *, folds: int = 5, neighbours: int = 5) -> Mapping[str, Estimate]:
    """Accuracy of two classifiers on rows that they were not trained on, by stratified cross-validation.

    ``linear`` is scikit-learn's LogisticRegression, ``neighbours`` its KNeighborsClassifier, both with their defaults.
    The folds depend on nothing but the labels, so that reports of one data set can be compared row by row. The
    standard errors are those of a share of rows; that the classifiers were trained on some rows and not on others is
    not in them, and cannot be had from one cross-validation (Bengio and Grandvalet 2004, JMLR 5).

    Args:
        features: (row, number), in units that are comparable: neither classifier scales them.
        labels: a class for each row, from :func:`checked_labels`.
        folds: at most as many as the smallest class has rows.
        neighbours: how many of them vote.

    Raises:
        ModuleNotFoundError: without scikit-learn.
        ValueError: for too many folds or neighbours.
    """
    try:
        from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]  # heavy, and an extra
        from sklearn.model_selection import StratifiedKFold, cross_val_predict  # type: ignore[import-untyped]
        from sklearn.neighbors import KNeighborsClassifier  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "labels= needs the package scikit-learn: pip install 'banel-pyro[models]'. Without labels it is not needed."
        ) from error
    _check_counts(labels, integer("folds", folds, 2), integer("neighbours", neighbours))
    splits = StratifiedKFold(folds, shuffle=True, random_state=0)
    classifiers = {
        "linear": LogisticRegression(max_iter=1000),
        "neighbours": KNeighborsClassifier(n_neighbors=neighbours),
    }
    found = {name: cross_val_predict(each, features, labels, cv=splits) for name, each in classifiers.items()}
    return {name: mean_estimate(predicted == labels) for name, predicted in found.items()}


def majority_share(labels: Labels) -> float:
    """The accuracy of always saying the class that most rows have."""
    return float(np.unique(labels, return_counts=True)[1].max() / len(labels))


def checked_labels(labels: Any, rows: int) -> Labels:
    """A class for each row: integers, truth values or texts.

    Args:
        labels: a tensor, an array, a series, a list.
        rows: how many rows there are.

    Raises:
        ValueError: for another number of labels, labels that are missing or no classes, or one class alone.
    """
    values = np.asarray(labels.detach().cpu().numpy() if isinstance(labels, Tensor) else labels)
    if values.shape != (rows,):
        raise ValueError(
            f"labels have the shape {values.shape}: expected ({rows},), a class for each row of data, in their order."
        )
    if missing := int(pd.isna(values).sum()):
        raise ValueError(
            f"labels: {missing} of {rows} are missing (NaN or None): expected a class for each row. Leave those rows "
            "out, of the data as well."
        )
    if values.dtype.kind in "fc":
        if not (values == np.round(values)).all():
            raise ValueError(
                f"labels has {values[values != np.round(values)][0]}: expected classes, as integers or texts. Cut "
                "numbers into classes first, such as with pandas.cut."
            )
        values = values.real.astype(np.int64)
    if values.dtype.kind == "O":
        values = values.astype(str)
    if len(np.unique(values)) < 2:
        raise ValueError(f"labels are all {values[0]!r}: expected two classes or more. Leave labels out.")
    return values


def _check_counts(labels: Labels, folds: int, neighbours: int) -> None:
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < folds:
        smallest = classes[counts.argmin()]
        raise ValueError(
            f"folds={folds}: class {smallest!s} has {counts.min()} rows, expected at least one for each fold. Write "
            f"folds={max(2, int(counts.min()))}, or leave the class out."
        )
    least = len(labels) - -(-len(labels) // folds)
    if neighbours > least:
        raise ValueError(
            f"neighbours={neighbours}: {least} rows are left to look among, with folds={folds}. Write neighbours=1."
        )
