"""Bayesian logistic regression in minibatches, written with a joint autoguide.

Is a tumour malignant? Thirty standardised measurements x_n of its cells, and the answer y_n:

    b ~ Normal(0, 1),    w ~ Normal(0, I),    y_n ~ Bernoulli(logits = b + x_n · w).

All latents are global, so that a minibatch of B of the N patients counts N/B times, and a guide over all of
them at once is right in minibatches too. The measurements are strongly correlated (the radius of a cell
and its area), and so are their weights.
"""

import pyro
import pyro.distributions as dist
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import Tensor

from banel_pyro import Pair
from models import data

NUM_PATIENTS = 400


def model(x: Tensor, y: Tensor) -> None:
    """Intercept and weights, and answers given the measurements.

    Args:
        x: Measurements (B, columns), all rows of training data or those of a minibatch.
        y: Answers (B,), 1 for malignant and 0 for benign.
    """
    intercept = pyro.sample("intercept", dist.Normal(x.new_zeros(()), 1.0))
    weights = pyro.sample("weights", dist.Normal(x.new_zeros(x.shape[-1]), 1.0).to_event(1))
    with pyro.plate("data", NUM_PATIENTS):
        # A particle's intercept has a trailing axis for the plate, its weights have their own after that.
        pyro.sample("y", dist.Bernoulli(logits=intercept + (x * weights).sum(-1)), obs=y)


def pair() -> Pair:
    """Breast tumours with a multivariate normal guide over the intercept and the thirty weights."""
    guide = AutoMultivariateNormal(model)
    return Pair(model, guide, data=data.breast_cancer, data_plate="data", name="logistic")
