"""The autoencoder with two levels: its factorisation, its entropies, and its evidence against quadrature."""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from banel_pyro import BaNEL_ELBO
from models import hierarchical_vae
from tests.importance import evidence_error, weighted_draws

pytestmark = pytest.mark.usefixtures("float64")

SIZES = {"pixels": 5, "hidden": 4, "lower": 1, "upper": 1}


def tiny() -> tuple[hierarchical_vae.Decoder, hierarchical_vae.Encoder, Tensor]:
    """Networks with one latent at each level, wider than the prior in the guide, and one image."""
    torch.manual_seed(1)
    decoder, encoder = hierarchical_vae.Decoder(**SIZES), hierarchical_vae.Encoder(**SIZES)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(3.0)
        for network in (encoder.encode_x, encoder.encode_z1):
            network[-1].bias[1] = 1.5  # the importance weights stay bounded
    return decoder, encoder, torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0]])


def test_the_evidence_agrees_with_quadrature_over_both_levels() -> None:
    decoder, encoder, x = tiny()
    side = torch.linspace(-8, 8, 401)
    z1, z2 = torch.meshgrid(side, side, indexing="ij")
    with torch.no_grad():
        log_p = dist.Normal(0.0, 1.0).log_prob(z2)
        log_p = log_p + dist.Normal(decoder.decode_z2(z2[..., None])[..., 0], 1.0).log_prob(z1)
        pixels = dist.Bernoulli(logits=decoder.decode_z1(side[:, None])).to_event(1).log_prob(x)
    log_evidence = (log_p + pixels[:, None]).logsumexp((0, 1)) + 2 * math.log(side[1] - side[0])
    weighted = weighted_draws(decoder, encoder, x, draws=2000)
    assert abs(evidence_error(weighted.log_w, log_evidence)) < 4
    assert weighted.log_w.mean() < log_evidence


def test_the_guide_goes_from_the_bottom_up_and_z1_shields_z2() -> None:
    pair = hierarchical_vae.digits()
    x = torch.rand(2, 64).round()
    trace = poutine.trace(pair.guide).get_trace(x)
    assert [name for name in trace.stochastic_nodes if name != "data"] == ["z1", "z2"]
    other = poutine.replay(pair.guide, trace=trace)
    again = poutine.trace(other).get_trace(1 - x)
    assert torch.equal(again.nodes["z2"]["fn"].mean, trace.nodes["z2"]["fn"].mean)
    assert not torch.equal(again.nodes["z1"]["fn"].mean, trace.nodes["z1"]["fn"].mean)


@torch.no_grad()
def test_the_entropy_is_that_of_z1_and_the_conditional_one_of_z2() -> None:
    decoder, encoder, x = tiny()
    found = torch.tensor([float(BaNEL_ELBO().terms(decoder, encoder, x).entropy) for _ in range(400)])
    q1 = hierarchical_vae.normal(encoder.encode_x(x))
    z1 = q1.sample((20_000,))
    conditional = hierarchical_vae.normal(encoder.encode_z1(z1)).entropy()
    expected = (q1.entropy() + conditional.mean()).item()
    stderr = math.hypot(float(found.std()) / 400**0.5, float(conditional.std()) / 20_000**0.5)
    assert abs(found.mean() - expected) < 4 * stderr


def test_the_lower_latents_have_a_scale_that_is_not_learnt() -> None:
    """With one that is, shrinking z1 would lower its entropy at no cost."""
    pair = hierarchical_vae.digits()
    trace = poutine.trace(pair.model).get_trace(torch.rand(3, 64).round())
    assert torch.equal(trace.nodes["z1"]["fn"].stddev, torch.ones(3, 8))
