"""Bits per dimension: the bounds of a run on images, per pixel and in bits."""

from __future__ import annotations

import math
from collections.abc import Mapping

from banel_pyro.inference_data import ArviZ, group, group_names
from banel_pyro.terms import Estimate

__all__ = ["BITS", "bits_per_dimension", "pixels", "with_bits"]

BITS = {"elbo_bits_per_dimension": "bits per dimension", "iwae_bits_per_dimension": "bits per dimension, IWAE"}
"""The bounds that are also given per pixel, and what a reader knows them as. Lower is better."""


def bits_per_dimension(bound: Estimate, dimensions: int) -> Estimate:
    r"""A lower bound of log p(x) as bits per dimension of x, an upper bound of what coding x takes.

    .. math::
        \frac{-\text{bound}}{D \ln 2}

    It is linear, so a difference of two bounds becomes the difference of their bits, standard error and all.
    Of continuous dimensions it is the bits of a density: it depends on their scale and may be negative
    (Theis, van den Oord, Bethge 2016, arXiv 1511.01844).

    Args:
        bound: ELBO or IWAE per data point, in nats.
        dimensions: D, the dimensions of one data point: the pixels of an image.

    Returns:
        Bits per dimension.

    Raises:
        ValueError: if there is less than one dimension.

    Example:
        >>> bits_per_dimension(Estimate(-64 * math.log(2), 0.0), 64)
        Estimate(value=1.0, stderr=0.0)
    """
    if dimensions < 1:
        raise ValueError(f"dimensions={dimensions}: expected the dimensions of one data point, such as 784 pixels.")
    scale = dimensions * math.log(2)
    return Estimate(-bound.value / scale, bound.stderr / scale)


def with_bits(terms: Mapping[str, Estimate], dimensions: int | None) -> dict[str, Estimate]:
    """Terms in nats, and where data are images their bounds in bits per dimension too.

    Args:
        terms: ``elbo`` and ``iwae`` among them, per data point in nats; values, or differences of two runs.
        dimensions: pixels of an image; None where data are none, which leaves the terms as they are.
    """
    if dimensions is None:
        return dict(terms)
    return {**terms, **{name: bits_per_dimension(terms[name.partition("_")[0]], dimensions) for name in BITS}}


def pixels(idata: ArviZ) -> int | None:
    """Pixels of an image where data are images: one observed site, whose rows have the shape of a square image.

    Args:
        idata: from :func:`~banel_pyro.to_arviz`.

    Returns:
        None where there are other observations, whose log-likelihood no pixel has.
    """
    from banel_pyro.report.plots import image_side  # matplotlib is heavy to import

    plate = idata.attrs["data_plate"]
    observed = list(group(idata, "observed_data").values()) if "observed_data" in group_names(idata) else []
    if len(observed) != 1 or plate not in observed[0].dims:
        return None
    side = image_side([size for dim, size in observed[0].sizes.items() if dim != plate])
    return None if side is None else side**2
