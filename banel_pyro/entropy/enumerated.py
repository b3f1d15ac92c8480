"""Entropies of guides whose discrete sites are enumerated: sums over all values, exactly."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
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
from banel_pyro.traces import WRAPPERS, GuideDensity, Site, Stack, plate_shape, sample_sites

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


def _only_parallel(site: Any) -> Any:
    """What is to be enumerated value by value is drawn instead: that takes runs of their own."""
    return {"enumerate": None} if site["infer"].get("enumerate") == "sequential" else {}


def enumerated_trace(guide: Any, args: Any, kwargs: Any, nesting: int) -> Any:
    """A trace of a guide with its enumerated sites on axes to the left of ``nesting`` plates, without log densities."""
    parallel = poutine.infer_config(guide, _only_parallel)
    enumerating = EnumMessenger(first_available_dim=-1 - nesting)(parallel)
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
    symbol_to_dim = {symbol: dim for dim, symbol in (summand.symbols or {}).items()}
    return packed.unpack(mean, symbol_to_dim).expand(plate_shape(summand.stack))  # type: ignore[no-any-return]


def depends_on_values(summand: Summand) -> bool:
    """Whether a summand has an axis of enumerated values."""
    others = max(summand.value.dim() - len(plate_shape(summand.stack)), 0)
    return any(size != 1 for size in summand.value.shape[:others])


def enumerated_renyi(densities: Sequence[GuideDensity], alpha: float, trace: Any) -> Summand:
    r"""Rényi entropy of enumerated sites that depend on each other, in nats, over the plates that they share.

    .. math:: H_\alpha = \frac{1}{1-\alpha} \log \sum_z \prod_s q(z_s \mid \text{parents})^\alpha,

    by Pyro's message passing, so that chains and plates cost no more than they have to.

    Args:
        densities: the densities, from a packed trace with its score parts computed.
        alpha: the order α, 0 < α < ∞.
        trace: the trace.

    Raises:
        ValueError: for α = 0 or ∞, dependence across a subsampled plate, different scales, and masks inside of
            distributions.
    """
    names = [density.name for density in densities]
    if alpha == 0 or math.isinf(alpha):
        raise ValueError(
            f"alpha={alpha:g}: {names} depend on each other, and their joint Rényi entropy is for 0 < alpha < inf. "
            "Write alpha=0.01 or alpha=100.0, or make the sites independent."
        )
    inside = [density.name for density in densities if _is_masked_inside(density.site["fn"])]
    if inside:
        raise ValueError(
            f"alpha={alpha:g}: {inside} are enumerated, depend on each other or others, and have a mask in their "
            "distribution, which hides their probabilities. Write `with poutine.mask(mask=...)` around the statement "
            "in place of .mask(...)."
        )
    plates, scale = common_plates(densities, alpha), common_scale(densities, alpha)
    factors: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()  # what Pyro asks for
    powers: list[Any] = [_power(density.site, alpha) for density in densities]
    present = {symbol for power in powers for symbol in power._pyro_dims}  # packing drops plates of one element
    for density, power in zip(densities, powers, strict=True):
        ordinal = ordinal_of(density.site["cond_indep_stack"], trace) & present
        factors.setdefault(ordinal, []).append(power)
    sums = {density.site["infer"]["_enumerate_symbol"] for density in densities} & present
    log_sum = contract_to_tensor(factors, sums, target_ordinal=ordinal_of(plates, trace) & present)
    value = packed.unpack(log_sum, trace.symbol_to_dim).expand(plate_shape(plates))
    value = scale * value.to(densities[0].site["log_prob"].dtype) / (1 - alpha)
    return Summand(value, value, plates, paid_for=False)


def _is_masked_inside(fn: Any) -> bool:
    while isinstance(fn, WRAPPERS) and not isinstance(fn, dist.MaskedDistribution):
        fn = fn.base_dist
    return isinstance(fn, dist.MaskedDistribution)


def _power(site: Site, alpha: float) -> Tensor:
    r""":math:`\alpha \log q` of a site, packed, in float64: it is divided by α - 1 later.

    A masked element has no entropy, but its values still happen with their probabilities: it stays :math:`\log q`.
    """
    log_q = site["packed"]["unscaled_log_prob"]
    plain: Any = log_q.double()
    power: Any = alpha * plain
    power._pyro_dims = plain._pyro_dims = log_q._pyro_dims
    mask = site["packed"]["mask"]
    if mask is None or mask is True:
        return torch.as_tensor(power)
    if mask is False:
        return torch.as_tensor(plain)
    power, plain, wide = packed.broadcast_all(power, plain, mask)
    masked: Any = torch.where(wide, power, plain)
    masked._pyro_dims = power._pyro_dims
    return torch.as_tensor(masked)
