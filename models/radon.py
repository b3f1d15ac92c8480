"""Radon in houses of Minnesota's counties: a varying intercept, non-centred, in minibatches over the houses.

The logarithm of the radon y_n in house n, which stands in county c_n, was measured on floor f_n and over soil
with log uranium u_n (the same for all houses of a county):

    intercept, floor, uranium ~ Normal(0, 2),    county_sd, noise_sd ~ HalfNormal(1),
    county_c ~ Normal(0, 1),    y_n ~ Normal(intercept + uranium u_n + county_sd county_c_n + floor f_n, noise_sd).

`county_sd * county` is how far a county lies from what its uranium predicts. Written like this, and not drawn
around it, it has no funnel: many counties have few houses. Counties are few and shared by the minibatches,
so the plate over them is always full; the houses are what is subsampled.
"""

import pyro
import pyro.distributions as dist
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from banel_pyro import Pair
from models import data

NUM_HOUSES, NUM_COUNTIES = 800, 85


def model(county: Tensor, floor: Tensor, uranium: Tensor, y: Tensor) -> None:
    """Coefficients and counties, and radon given where and how it was measured.

    Args:
        county: Numbers of the counties (B,), int64, all rows of training data or those of a minibatch.
        floor: 1 for the first floor, 0 for the basement, (B,).
        uranium: Log of the county's uranium in parts per million (B,).
        y: Log of the radon in picocuries per litre (B,).
    """
    intercept, slope_floor, slope_uranium = (
        pyro.sample(name, dist.Normal(y.new_zeros(()), 2.0)) for name in ("intercept", "floor", "uranium")
    )
    county_sd, noise_sd = (pyro.sample(name, dist.HalfNormal(y.new_ones(()))) for name in ("county_sd", "noise_sd"))
    with pyro.plate("counties", NUM_COUNTIES):
        offset = pyro.sample("county", dist.Normal(y.new_zeros(()), 1.0))
    with pyro.plate("data", NUM_HOUSES):
        at_county = intercept + slope_uranium * uranium + county_sd * offset[..., county]
        pyro.sample("y", dist.Normal(at_county + slope_floor * floor, noise_sd), obs=y)


def pair() -> Pair:
    """Radon with independent normal guides: a joint one has 4,095 numbers to learn from noisy gradients.

    After 3,000 steps with minibatches of 100 it is still 19 nats below these guides.
    """
    return Pair(model, AutoNormal(model), data=data.radon, data_plate="data", name="radon")
