"""The objective of demos.clustering: an entropy of the mean assignment, in one hole filled."""

import pyro.distributions as dist
import pytest
import torch

from banel_pyro.entropy import renyi_entropy
from demos.clustering import AggregatedEntropyELBO, Assignment, Pictures


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_the_penalty_is_the_entropy_of_the_mean(alpha: float, float64: torch.dtype) -> None:
    """Loss and gradient differ from those at lambda = 0 by N lambda H_alpha."""
    model, guide, x = Pictures(7), Assignment(7), torch.bernoulli(torch.rand(20, 64))
    losses = [
        AggregatedEntropyELBO(lam, alpha=alpha, max_plate_nesting=1).differentiable_loss(model, guide, x)
        for lam in (0.0, -3.0)
    ]
    mean = guide.network(x).softmax(-1).mean(0)
    exact = -3.0 * 20 * renyi_entropy(dist.Categorical(probs=mean), alpha)
    torch.testing.assert_close(losses[1] - losses[0], exact)
    parameters = list(guide.parameters())
    found = torch.autograd.grad(losses[1] - losses[0], parameters)
    torch.testing.assert_close(found, torch.autograd.grad(exact, parameters))
