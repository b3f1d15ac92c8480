"""Draws of a guide for its entropy: its densities, in the space asked for, and which of them depend on which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import biject_to

from banel_pyro.entropy.enumerated import enumerated_trace, to_enumerate
from banel_pyro.entropy.joint import site_parents
from banel_pyro.seeding import kept_rng
from banel_pyro.traces import (
    GuideDensity,
    Site,
    guide_densities,
    is_unconstrained,
    plate_nesting,
    plate_scale,
    sample_sites,
    unscaled_log_prob,
)

__all__ = ["Densities", "GuideDraws", "Jacobians", "Space"]

Space: TypeAlias = Literal["constrained", "unconstrained"]
Densities: TypeAlias = dict[str, GuideDensity]
Jacobians: TypeAlias = list[tuple[Site, Tensor]]
"""Sites of a density, with log|det dz/du| of each over its batch, unscaled."""


class GuideDraws:
    """Draws of a guide, scaled by their plates alone.

    Args:
        guide: the guide.
        args: its positional arguments.
        kwargs: its keyword arguments.
        space: whose densities are asked for.
    """

    def __init__(self, guide: Any, args: Any, kwargs: Any, space: Space) -> None:
        self.guide, self.space = guide, space
        self._args, self._kwargs = args, kwargs
        first = self._trace()
        self._reference = _reference(guide, first, args, kwargs)
        self.first: Densities = guide_densities(self._reference, first)
        self.parents: Mapping[str, set[str]] = site_parents(guide, args, kwargs, self.first)
        self.enumerates: set[str] = {name for name, site in sample_sites(first) if to_enumerate(site)}
        self._nesting = plate_nesting(first)

    def draws(self, count: int) -> Iterator[Densities]:
        """The densities of the guide at so many draws."""
        yield self.first
        for _ in range(count - 1):
            yield self._as_first(guide_densities(self._reference, self._trace()))

    def enumerated(self, count: int) -> Iterator[tuple[Densities, Any]]:
        """The same with all values of the sites that are marked for it, and the trace they are packed in."""
        for _ in range(count):
            trace = self._scored(enumerated_trace(self.guide, self._args, self._kwargs, self._nesting))
            trace.pack_tensors()
            yield self._as_first(guide_densities(self._reference, trace)), trace

    def _as_first(self, densities: Densities) -> Densities:
        if densities.keys() != self.first.keys():
            raise ValueError(
                f"the guide draws the sites {list(densities)} at one call and {list(self.first)} at another: expected "
                "the same at each. Write a subsampled plate with `with pyro.plate(...)`, not as a loop over rows."
            )
        return densities

    def _trace(self) -> Any:
        return self._scored(prune_subsample_sites(poutine.trace(self.guide).get_trace(*self._args, **self._kwargs)))

    def _scored(self, trace: Any) -> Any:
        for name, site in list(sample_sites(trace)):
            if site["is_observed"] and not site["infer"].get("is_auxiliary"):
                trace.remove_node(name)  # a messenger guide also runs the model's observations
            else:
                site["scale"] = plate_scale(site["cond_indep_stack"])
        trace.compute_score_parts()
        return trace

    def in_space(self, density: GuideDensity) -> tuple[GuideDensity, Jacobians]:
        r"""What to take for a density in the space asked for, and what to add to its log q at each site.

        In unconstrained coordinates u it is :math:`\log q(z) + \log|\det dz/du|`. Where the auxiliary site draws u
        itself, as in most autoguides, the two changes of variables cancel, and that site alone is the density.
        """
        if self.space == "constrained" or density.is_point:
            return density, []
        found = [(site, self._log_jacobian(site)) for site in density.deltas or density.sites]
        jacobians = [(site, jacobian) for site, jacobian in found if jacobian is not None]
        if not density.deltas:
            return density, jacobians
        left = [unscaled_log_prob(site) + (0.0 if jacobian is None else jacobian) for site, jacobian in found]
        if all(torch.allclose(rest, torch.zeros_like(rest), atol=1e-4) for rest in left):
            return GuideDensity(density.name, density.site), []
        return density, jacobians

    def _log_jacobian(self, site: Site) -> Tensor | None:
        """log|det dz/du| at the value of a site, over its batch; None where u is z."""
        support = self._reference.nodes[site["name"]]["fn"].support
        support = getattr(support, "base_constraint", support) if "Mixture" in type(support).__name__ else support
        if support.is_discrete or is_unconstrained(support):
            return None
        transform = biject_to(support)
        value = getattr(site["value"], "_unquantize", site["value"])  # of a straight-through relaxation
        jacobian: Tensor = transform.log_abs_det_jacobian(transform.inv(value), value)
        while jacobian.dim() > site["log_prob"].dim():
            jacobian = jacobian.sum(-1)
        mask = site["mask"]
        return jacobian if mask is None else torch.where(torch.as_tensor(mask), jacobian, 0.0)


def _reference(guide: Any, trace: Any, args: Any, kwargs: Any) -> Any:
    """What says which of a guide's sites are the model's: the model, where the guide knows it, else the guide."""
    if isinstance(guide, AutoGuide | GuideMessenger):
        with kept_rng():
            replayed = poutine.trace(poutine.replay(guide.model, trace=trace)).get_trace(*args, **kwargs)
            return prune_subsample_sites(replayed)
    own = poutine.Trace()
    for name, site in sample_sites(trace):
        if not site["infer"].get("is_auxiliary"):
            own.add_node(name, **{**site, "name": name})
    return own
