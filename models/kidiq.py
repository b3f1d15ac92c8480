"""Test scores of children given their mothers: a regression whose reference draws are in posteriordb.

The score y_n of child n, whose mother has finished high school (h_n = 1) or not and has the score q_n herself:

    beta_k ~ Normal(0, 1000),  sigma ~ HalfCauchy(2.5),  y_n ~ Normal(beta_1 + beta_2 h_n + beta_3 q_n, sigma).

This is posteriordb's `kidiq-kidscore_momhsiq` in its names, whose coefficients have flat priors: normal ones as wide as
these move no digit that can be seen. Its columns are as they were measured, so that intercept and slope of q go
together at -0.95 and their sds differ by a factor of a hundred: independent guides are far too narrow (`raw`). Drawn
for centred columns, with beta computed from that, the same posterior is nearly a product (the other pairs).
"""

from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal, init_to_value
from torch import Tensor

from banel_pyro import Pair
from models import data

NUM_CHILDREN = 434
USUAL_SCORE, USUAL_NOISE = 87.0, 20.0
USUAL_MOTHER, UNITS = (0.8, 100.0), (0.4, 15.0)
"""A usual mother, and how much mothers differ: like those above round numbers near means and sds."""


def raw_model(mother: Tensor, score: Tensor) -> None:
    """Coefficients of the columns as they are, residual sd, and scores given mothers.

    Args:
        mother: High school (0 or 1) and test score of the mother (B, 2).
        score: Test scores of the children (B,).
    """
    beta = pyro.sample("beta", dist.Normal(score.new_zeros(3), 1000.0).to_event(1))
    _scores(mother, score, beta, pyro.sample("sigma", dist.HalfCauchy(score.new_tensor(2.5))))


def model(mother: Tensor, score: Tensor) -> None:
    """The same by what is of the order of 1: coefficients of centred columns, and sigma in units of 20.

    Args:
        mother: High school (0 or 1) and test score of the mother (B, 2).
        score: Test scores of the children (B,).
    """
    coef = pyro.sample("coef", dist.Normal(score.new_zeros(3), 1000.0).to_event(1))
    slopes = coef[..., 1:] / score.new_tensor(UNITS)
    intercept = USUAL_SCORE + coef[..., :1] - (slopes * score.new_tensor(USUAL_MOTHER)).sum(-1, keepdim=True)
    beta = pyro.deterministic("beta", torch.cat([intercept, slopes], dim=-1), event_dim=1)
    noise = pyro.sample("noise", dist.HalfCauchy(score.new_tensor(2.5 / USUAL_NOISE)))
    _scores(mother, score, beta, pyro.deterministic("sigma", USUAL_NOISE * noise, event_dim=0))


def _scores(mother: Tensor, score: Tensor, beta: Tensor, sigma: Tensor) -> None:
    with pyro.plate("data", NUM_CHILDREN):
        mean = beta[..., 0] + (mother * beta[..., 1:]).sum(-1)
        pyro.sample("score", dist.Normal(mean, sigma), obs=score)


def raw() -> Pair:
    """Independent normal guides for the columns as they are: an sd is a seventh of what it should be."""
    start = init_to_value(values={"beta": torch.tensor([26.0, 6.0, 0.56]), "sigma": torch.tensor(18.0)})
    return _pair(raw_model, partial(AutoNormal, init_loc_fn=start), "kidiq_raw")


def mean_field() -> Pair:
    """Independent normal guides for centred columns."""
    return _pair(model, partial(AutoNormal, init_loc_fn=_usual()), "kidiq_mean_field")


def full_rank() -> Pair:
    """A normal guide with all correlations, for centred columns."""
    return _pair(model, partial(AutoMultivariateNormal, init_loc_fn=_usual()), "kidiq_full_rank")


def flow() -> Pair:
    """A guide of two inverse autoregressive flows, for centred columns."""
    return _pair(model, partial(AutoIAFNormal, num_transforms=2), "kidiq_flow")


def _usual() -> Callable[..., Tensor]:
    """A start at the usual child: the prior is so wide that draws from it are nowhere near."""
    start: Callable[..., Tensor] = init_to_value(values={"coef": torch.zeros(3), "noise": torch.ones(())})
    return start


def _pair(written: Callable[[Tensor, Tensor], None], guide: Callable[..., Callable[..., object]], name: str) -> Pair:
    return Pair(written, guide(written), data=data.kidiq, data_plate="data", name=name)
