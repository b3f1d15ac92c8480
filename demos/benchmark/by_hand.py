"""The losses, written by hand without Pyro: one draw of the guide, every constant kept, nats for the rows given."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from banel_pyro import Pair
from demos.benchmark.pairs import COLUMNS, COMPONENTS, STARTS
from models import hierarchical_vae, radon, vae

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)

Loss = Callable[..., Tensor]
ByHand = tuple[list[Tensor], Loss]
"""Parameters, and a function of the batch: -ELBO in nats, for one draw."""


def _independent_normals(start: Tensor) -> tuple[list[Tensor], Callable[[], tuple[Tensor, Tensor]]]:
    """AutoNormal on a vector: its parameters, and a function that draws and returns (draw, log q of the draw)."""
    loc = start.clone().requires_grad_()
    raw = torch.full_like(start, math.log(math.expm1(0.1))).requires_grad_()
    size = len(start)

    def draw() -> tuple[Tensor, Tensor]:
        noise, scale = torch.randn(size), functional.softplus(raw)
        return loc + scale * noise, -(0.5 * noise**2 + scale.log()).sum() - size * HALF_LOG_2PI

    return [loc, raw], draw


def _normal(value: Tensor, loc: Tensor | float, scale: Tensor | float) -> Tensor:
    """Log density, a sum over all."""
    log_scale = scale.log() if isinstance(scale, Tensor) else math.log(scale)
    return -(0.5 * ((value - loc) / scale) ** 2 + log_scale + HALF_LOG_2PI).sum()


def schools(pair: Pair) -> ByHand:
    """Non-centred eight schools under ten independent normals, from AutoNormal's initial parameters."""
    parameters, draw = _independent_normals(torch.zeros(10))

    def loss(y: Tensor, sigma: Tensor) -> Tensor:
        z, log_q = draw()
        mu, log_tau, theta_trans = z[0], z[1], z[2:]
        tau = log_tau.exp()
        half_cauchy = -math.log(2.5 * math.pi) - torch.log1p((tau / 5) ** 2)
        prior = _normal(mu, 0.0, 5.0) + half_cauchy + _normal(theta_trans, 0.0, 1.0)
        return log_q - log_tau - prior - _normal(y, mu + tau * theta_trans, sigma)

    return parameters, loss


def houses(pair: Pair) -> ByHand:
    """Radon, all houses: three coefficients, two standard deviations, and the counties."""
    parameters, draw = _independent_normals(torch.zeros(5 + radon.NUM_COUNTIES))

    def loss(county: Tensor, floor: Tensor, uranium: Tensor, y: Tensor) -> Tensor:
        z, log_q = draw()
        intercept, slope_floor, slope_uranium = z[:3].unbind()
        log_sds, offset = z[3:5], z[5:]
        sds = log_sds.exp()
        half_normals = 2 * math.log(2) + _normal(sds, 0.0, 1.0)
        prior = _normal(z[:3], 0.0, 2.0) + half_normals + _normal(offset, 0.0, 1.0)
        loc = intercept + slope_uranium * uranium + sds[0] * offset[county] + slope_floor * floor
        return log_q - log_sds.sum() - prior - _normal(y, loc, sds[1])

    return parameters, loss


def logistic(pair: Pair) -> ByHand:
    """Logistic regression, a batch counted for all rows."""
    parameters, draw = _independent_normals(torch.zeros(1 + COLUMNS))
    size = len(pair.split().train[0])

    def loss(x: Tensor, y: Tensor) -> Tensor:
        z, log_q = draw()
        misfit = functional.binary_cross_entropy_with_logits(z[0] + x @ z[1:], y, reduction="sum")
        return log_q - _normal(z, 0.0, 1.0) + size / len(x) * misfit

    return parameters, loss


def mixture(pair: Pair) -> ByHand:
    """The mixture, its assignments summed out as a log-sum-exp; weights by breaking a stick."""
    sticks = COMPONENTS - 1
    start = torch.cat([torch.zeros(sticks), torch.tensor(STARTS), torch.full((COMPONENTS,), -1.0)])
    parameters, draw = _independent_normals(start.to(torch.get_default_dtype()))
    even = (sticks - torch.arange(sticks)).log().to(start.dtype)

    def loss(x: Tensor) -> Tensor:
        z, log_q = draw()
        locations, log_scales = z[sticks : sticks + COMPONENTS], z[sticks + COMPONENTS :]
        odds = z[:sticks] - even
        log_left = functional.pad(functional.logsigmoid(-odds).cumsum(0), (1, 0))
        log_weights = functional.pad(functional.logsigmoid(odds), (0, 1)) + log_left
        log_det = (functional.logsigmoid(-odds) + log_weights[:-1]).sum() + log_scales.sum()
        dirichlet = log_weights.sum() + math.lgamma(2 * COMPONENTS)
        lognormal = _normal(log_scales, -1.0, 0.5) - log_scales.sum()
        parts = log_weights - 0.5 * ((x[:, None] - locations) / log_scales.exp()) ** 2 - log_scales - HALF_LOG_2PI
        log_joint = dirichlet + _normal(locations, 4.0, 2.0) + lognormal + parts.logsumexp(-1).sum()
        return log_q - log_det - log_joint

    return parameters, loss


def chain(pair: Pair) -> ByHand:
    """A chain, all of its sites in one vector."""
    parameters, draw = _independent_normals(torch.zeros(len(pair.split().train[0])))

    def loss(y: Tensor) -> Tensor:
        z, log_q = draw()
        return log_q - _normal(z, functional.pad(z[:-1], (1, 0)), 1.0) - _normal(y, z, 1.0)

    return parameters, loss


def _moments(raw: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    loc, scale = raw.chunk(2, dim=-1)
    return loc, functional.softplus(scale) + floor


def one_level(pair: Pair) -> ByHand:
    """The VAE on the networks of the pair."""
    encode, decode = pair.guide.encode, pair.model.decode

    def loss(x: Tensor) -> Tensor:
        loc, scale = _moments(encode(x), vae.MIN_SD)
        noise = torch.randn_like(loc)
        z = loc + scale * noise
        kl = (0.5 * (z**2 - noise**2) - scale.log()).sum()
        return kl + functional.binary_cross_entropy_with_logits(decode(z), x, reduction="sum")

    return [*encode.parameters(), *decode.parameters()], loss


def two_levels(pair: Pair) -> ByHand:
    """The hierarchical VAE on the networks of the pair."""
    model, guide = pair.model, pair.guide

    def loss(x: Tensor) -> Tensor:
        loc1, scale1 = _moments(guide.encode_x(x), hierarchical_vae.MIN_SD)
        noise1 = torch.randn_like(loc1)
        z1 = loc1 + scale1 * noise1
        loc2, scale2 = _moments(guide.encode_z1(z1), hierarchical_vae.MIN_SD)
        noise2 = torch.randn_like(loc2)
        z2 = loc2 + scale2 * noise2
        lower = (0.5 * ((z1 - model.decode_z2(z2)) ** 2 - noise1**2) - scale1.log()).sum()
        upper = (0.5 * (z2**2 - noise2**2) - scale2.log()).sum()
        return lower + upper + functional.binary_cross_entropy_with_logits(model.decode_z1(z1), x, reduction="sum")

    return [*guide.parameters(), *model.parameters()], loss
