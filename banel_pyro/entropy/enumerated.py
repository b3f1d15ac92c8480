"""Entropies of guides whose discrete sites are enumerated: sums over all values, exactly."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero
from pyro.infer.util import compute_site_dice_factor
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from pyro.ops.einsum import contract
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from banel_pyro.entropy.joint import common_plates, common_scale
from banel_pyro.terms import Summand
from banel_pyro.traces import GuideDensity, Site, Stack, sample_sites

__all__ = [
    "depends_on_values",
    "enumerated_renyi",
    "enumerated_trace",
    "is_enumerated",
    "marginal",
    "ordinal_of",
    "to_enumerate",
]


def is_enumerated(site: Site) -> bool:
    """Whether all values of a site are on an axis of their own."""
    return "_enumerate_dim" in site["infer"] and site["infer"].get("num_samples") is None


def to_enumerate(site: Site) -> bool:
    """Whether a site of a guide is marked for enumeration of all its values, in parallel."""
    return site["infer"].get("enumerate") == "parallel" and site["infer"].get("num_samples") is None


def enumerated_trace(guide: Any, args: Any, kwargs: Any, nesting: int) -> Any:
    """A trace of a guide with its enumerated sites on axes to the left of ``nesting`` plates, without log densities."""
    enumerating = EnumMessenger(first_available_dim=-1 - nesting)(guide)
    return prune_subsample_sites(poutine.trace(enumerating).get_trace(*args, **kwargs))


def ordinal_of(stack: Stack, trace: Any) -> frozenset[str]:
    """The plates of a stack, as Pyro's enumeration names them."""
    return frozenset(trace.plate_to_symbol[frame.name] for frame in stack if frame.vectorized)


def marginal(summand: Summand, trace: Any) -> Tensor:
    """A summand's mean over the enumerated values that it depends on, with the axes of its plates alone.

    Args:
        summand: the summand.
        trace: the packed trace of the guide.
    """
    ordinal = ordinal_of(summand.stack, trace)
    operands = [packed.pack(summand.value, summand.symbols)]
    factor = 1.0
    for _, site in sample_sites(trace):
        log_weight, log_count = compute_site_dice_factor(site)
        if not ordinal_of(site["cond_indep_stack"], trace) <= ordinal:
            # values in other plates are none of this summand's: their probabilities sum to 1, over so many traces
            factor /= math.exp(log_count)
        elif not is_identically_zero(log_weight):
            operands.append(log_weight.exp())
            operands[-1]._pyro_dims = log_weight._pyro_dims
    kept = "".join(sorted(ordinal & {symbol for operand in operands for symbol in operand._pyro_dims}))
    terms = ",".join(operand._pyro_dims for operand in operands)
    mean: Any = factor * contract(f"{terms}->{kept}", *operands, backend="torch")
    mean._pyro_dims = kept
    frames = [frame for frame in summand.stack if frame.vectorized]
    shape = [1] * max((-frame.dim for frame in frames), default=0)
    for frame in frames:
        shape[frame.dim] = frame.size
    symbol_to_dim = {symbol: dim for dim, symbol in (summand.symbols or {}).items()}
    return packed.unpack(mean, symbol_to_dim).expand(shape)  # type: ignore[no-any-return]


def depends_on_values(summand: Summand) -> bool:
    """Whether a summand has an axis of enumerated values."""
    plates = max((-frame.dim for frame in summand.stack if frame.vectorized), default=0)
    return any(size != 1 for size in summand.value.shape[: max(summand.value.dim() - plates, 0)])


def enumerated_renyi(densities: Sequence[GuideDensity], alpha: float, trace: Any) -> Summand:
    r"""Rényi entropy of enumerated sites that depend on each other, in nats, over the plates that they share.

    .. math:: H_\alpha = \frac{1}{1-\alpha} \log \sum_z \prod_s q(z_s \mid \text{parents})^\alpha,

    by Pyro's message passing, so that chains and plates cost no more than they have to.

    Args:
        densities: the densities, from a packed trace with its score parts computed.
        alpha: the order α, 0 < α < ∞.
        trace: the trace.

    Raises:
        ValueError: for α = 0 or ∞, dependence across a subsampled plate, and different scales.
    """
    names = [density.name for density in densities]
    if alpha == 0 or math.isinf(alpha):
        raise ValueError(
            f"alpha={alpha:g}: {names} depend on each other, and their joint Rényi entropy is for 0 < alpha < inf. "
            "Write alpha=0.01 or alpha=100.0, or make the sites independent."
        )
    plates, scale = common_plates(densities, alpha), common_scale(densities, alpha)
    factors: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()  # what Pyro asks for
    for density in densities:
        factors.setdefault(ordinal_of(density.site["cond_indep_stack"], trace), []).append(_power(density.site, alpha))
    sums = {density.site["infer"]["_enumerate_symbol"] for density in densities}
    log_sum = contract_to_tensor(factors, sums, target_ordinal=ordinal_of(plates, trace))
    value = packed.unpack(log_sum, trace.symbol_to_dim).to(densities[0].site["log_prob"].dtype)
    value = scale * value / (1 - alpha)
    return Summand(value, value, plates, paid_for=False)


def _power(site: Site, alpha: float) -> Tensor:
    r""":math:`\alpha \log q` of a site, packed, in float64: it is divided by α - 1 later. Masked elements sum to 1."""
    log_q = site["packed"]["unscaled_log_prob"]
    power: Any = alpha * log_q.double()
    power._pyro_dims = log_q._pyro_dims
    mask = site["packed"]["mask"]
    if mask is None or mask is True:
        return torch.as_tensor(power)
    values = log_q.shape[log_q._pyro_dims.index(site["infer"]["_enumerate_symbol"])]
    if mask is False:
        masked: Any = torch.full_like(power, -math.log(values))
    else:
        power, wide = packed.broadcast_all(power, mask)
        masked = torch.where(wide, power, -math.log(values))
    masked._pyro_dims = power._pyro_dims
    return torch.as_tensor(masked)
