"""Models whose discrete sites are summed out: log p(x, z) of the sites that the guide draws, in a trace like others."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, TypeAlias

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.traceenum_elbo import _compute_model_factors
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from banel_pyro.traces import Site, plate_nesting, plate_shape, sample_sites

__all__ = ["model_trace"]

Factors: TypeAlias = OrderedDict[frozenset[str], list[Tensor]]
"""Packed log densities by the plates that they are in."""


def model_trace(model: Any, guide_trace: Any, args: Any) -> Any:
    r"""The model's trace replayed against the guide's, with log densities.

    Latent sites that the guide lacks and the model marks with ``infer={"enumerate": "parallel"}`` are summed out:
    what remains is :math:`\log \sum_k p(x, z, k)`. Where z depends on k, :math:`\log \sum_k p(z, k)` stands at a latent
    site; the rest stands at an observed site in the same plates, or at a factor of its own. The other sites that the
    sums have taken in count 0.

    Args:
        model: the model.
        guide_trace: a trace of the guide, without subsampling sites.
        args: positional arguments of the model.
    """
    replayed = poutine.replay(model, trace=guide_trace)
    trace = prune_subsample_sites(poutine.trace(replayed).get_trace(*args))
    names = [name for name, site in sample_sites(trace) if _is_summed_out(site) and name not in guide_trace.nodes]
    if not names:
        trace.compute_log_prob()
        return trace
    enumerating = EnumMessenger(first_available_dim=-1 - plate_nesting(trace, guide_trace))(model)
    replayed = poutine.replay(enumerating, trace=guide_trace)  # outside of the enumeration, as Pyro has it
    enumerated = prune_subsample_sites(poutine.trace(replayed).get_trace(*args))
    _move_sums(trace, enumerated, guide_trace.copy(), names)
    return trace


def _is_summed_out(site: Site) -> bool:
    return not site["is_observed"] and site["infer"].get("enumerate") == "parallel"


def _contracted(factors: Factors, enumerated: Any, summed: set[str]) -> dict[frozenset[str], Tensor]:
    """Log of the sum over all values, by the plates in which it is left."""
    return {
        ordinal: torch.as_tensor(sum(packed.unpack(term, enumerated.symbol_to_dim) for term in terms))
        for ordinal, terms in contract_tensor_tree(factors, summed).items()
    }


def _without_observed(factors: Factors, enumerated: Any, touched: set[str]) -> Factors:
    sites = [site for name, site in sample_sites(enumerated) if name in touched and site["is_observed"]]
    observed = {id(site["packed"].get("masked_log_prob")) for site in sites}
    kept = ((ordinal, [term for term in terms if id(term) not in observed]) for ordinal, terms in factors.items())
    return OrderedDict((ordinal, terms) for ordinal, terms in kept if terms)


def _move_sums(trace: Any, enumerated: Any, guide_trace: Any, names: list[str]) -> None:
    """Give a trace with sampled values the log densities of one with all of them."""
    guide_trace.compute_log_prob()
    guide_trace.pack_tensors()
    enumerated.compute_log_prob()
    enumerated.pack_tensors(guide_trace.plate_to_symbol)
    _, factors, ordering, summed, scale = _compute_model_factors(enumerated, guide_trace)
    touched = {n for n, s in sample_sites(enumerated) if summed & set(s["packed"]["log_prob"]._pyro_dims)}
    for name in names:
        trace.remove_node(name)
    for name, site in sample_sites(trace):
        if name in touched:
            _put(site, torch.zeros(()), 1.0)
    sites = [(name, site) for name, site in reversed(list(sample_sites(trace))) if name in touched]
    hosts = {ordering[name]: name for name, site in sites if site["is_observed"]}
    latents = {ordering[name]: name for name, site in sites if not site["is_observed"]}
    priors = _contracted(_without_observed(factors, enumerated, touched), enumerated, summed) if latents else {}
    for ordinal, value in _contracted(factors, enumerated, summed).items():
        if ordinal in priors and ordinal in latents:
            _put(trace.nodes[latents[ordinal]], priors[ordinal], scale)
            value = value - priors[ordinal]
        if ordinal not in hosts:
            hosts[ordinal] = _add_factor(trace, enumerated, ordinal, names)
        _put(trace.nodes[hosts[ordinal]], value, scale)
    trace.compute_log_prob()  # of the sites that have none yet


def _put(site: Site, log_prob: Tensor, scale: Any) -> None:
    """Set the log density of a site, over its plates."""
    log_prob = log_prob.expand(plate_shape(site["cond_indep_stack"]))
    site["unscaled_log_prob"], site["mask"], site["scale"] = log_prob, None, scale
    site["log_prob"] = site["unscaled_log_prob"] * scale
    site["log_prob_sum"] = site["log_prob"].sum()


def _add_factor(trace: Any, enumerated: Any, ordinal: frozenset[str], names: list[str]) -> str:
    """A site like that of ``pyro.factor``, in the plates of an ordinal."""
    name = "sum over " + ", ".join(names)
    name = name if name not in trace.nodes else f"{name} ({''.join(sorted(ordinal))})"
    stacks = [site["cond_indep_stack"] for _, site in sample_sites(enumerated)]
    frames = {frame.name: frame for stack in stacks for frame in stack if frame.vectorized}
    stack = tuple(frame for name, frame in frames.items() if enumerated.plate_to_symbol[name] in ordinal)
    fn = dist.Unit(torch.zeros(()))
    trace.add_node(
        name, type="sample", name=name, fn=fn, is_observed=True, args=(), kwargs={}, value=fn.sample(), infer={},
        scale=1.0, mask=None, cond_indep_stack=stack, done=True, stop=False, continuation=None,
    )  # fmt: skip
    return name
