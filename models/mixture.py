"""A mixture of normal distributions with its assignments summed out, written with an autoguide.

Petals of three species of iris, not told apart. Weights p_k, locations m_k in centimetres, scales s_k:

    p ~ Dirichlet(2, ..., 2),    m_1 < ... < m_K: K draws of Normal(4, 2), sorted,    log s_k ~ Normal(-1, 0.5),
    x_n ~ Σ_k p_k Normal(m_k, s_k).

No discrete latent is left, so that every gradient is a pathwise one. A mixture's posterior has K! equal modes,
one for each naming of its components. Sorted locations name them: the prior of sorted draws is K! times that of
unsorted ones where they are in order, and 0 elsewhere, so that the evidence is that of the unsorted model
and every function of the components that does not depend on their names has the same posterior.

The prior keeps scales away from 0, where a component around a single point would have infinite density.
"""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from banel_pyro import Pair
from models import data

NUM_FLOWERS, NUM_SPECIES = 120, 3


class SortedNormal(TorchDistribution):  # type: ignore[misc]
    """Draws of a normal distribution, sorted: log p(m) = log K! + Σ_k log Normal(m_k), m in ascending order.

    Args:
        loc: Mean of a draw before sorting, of the batch's shape.
        scale: Its standard deviation, of the same shape.
        size: K, number of draws.
        validate_args: As in every distribution of torch.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012
    support = constraints.ordered_vector
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, size: int, *, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc.shape, (size,), validate_args=validate_args)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Sorted draws (*sample_shape, *batch, K)."""
        noise = self.loc.new_empty((*sample_shape, *self.batch_shape, *self.event_shape)).normal_()
        return (self.loc[..., None] + self.scale[..., None] * noise).sort(dim=-1).values

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of sorted values (..., K), in nats."""
        if self._validate_args:
            self._validate_sample(value)
        unsorted = dist.Normal(self.loc[..., None], self.scale[..., None], validate_args=False).log_prob(value)
        return unsorted.sum(-1) + math.lgamma(value.shape[-1] + 1)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "SortedNormal":
        """The same with another batch shape."""
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        return SortedNormal(loc, scale, self.event_shape[0], validate_args=self._validate_args)


def model(x: Tensor, *, size: int = NUM_FLOWERS, components: int = NUM_SPECIES) -> None:
    """Weights, locations and scales of the components, and lengths given them.

    Args:
        x: Lengths in centimetres (B,), all rows of training data or those of a minibatch.
        size: N, rows of training data.
        components: K, number of components.
    """
    weights = pyro.sample("weights", dist.Dirichlet(2 * x.new_ones(components)))
    locations = pyro.sample("locations", SortedNormal(x.new_tensor(4.0), x.new_tensor(2.0), components))
    scales = pyro.sample("scales", dist.LogNormal(x.new_full((components,), -1.0), 0.5).to_event(1))
    with pyro.plate("data", size):
        parts = dist.Normal(locations, scales)
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), parts), obs=x)


def pair() -> Pair:
    """Petals of three species with independent normal guides for weights, locations and scales.

    There are modes that no naming explains, such as two components for the species that stands apart and
    one for the others. A fit ends in one of them: compare the held-out ELBO of several seeds.
    """
    return Pair(model, AutoNormal(model), data=data.iris_petals, data_plate="data", name="mixture")


def responsibilities(x: Tensor, *, weights: Tensor, locations: Tensor, scales: Tensor) -> Tensor:
    """How probable each component is for each row: p(k | x_n) ∝ p_k Normal(x_n; m_k, s_k).

    The mean over posterior draws of the latents is the posterior probability of the assignment.

    Args:
        x: Lengths (N,).
        weights: p (..., K), for instance one row a posterior draw.
        locations: m (..., K).
        scales: s (..., K).

    Returns:
        Probabilities (..., N, K), which sum to 1 over the last axis.
    """
    weights, locations, scales = (each[..., None, :] for each in (weights, locations, scales))
    log_joint = weights.log() + dist.Normal(locations, scales).log_prob(x[:, None])
    return log_joint.softmax(-1)
