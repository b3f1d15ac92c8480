"""What a Pyro trace says: the guide's densities, auxiliary sites and Deltas, masks, scales and plates.

Nothing else in the package reads the structure of a trace.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Independent as IndependentDistribution
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import ComposeTransform, IndependentTransform

__all__ = [
    "WRAPPERS",
    "GuideDensity",
    "Site",
    "Stack",
    "base_distribution",
    "batch_shape",
    "check_sites",
    "guide_densities",
    "is_unconstrained",
    "on_plate",
    "plate_nesting",
    "plate_scale",
    "plate_shape",
    "refuse_enumerated",
    "sample_sites",
    "trained_parameters",
    "unscaled_log_prob",
]

Site: TypeAlias = dict[str, Any]
Stack: TypeAlias = tuple[Any, ...]


def sample_sites(trace: Any) -> Iterator[tuple[str, Site]]:
    """The ``pyro.sample`` sites of a trace as (name, site), in the order in which they ran."""
    return ((name, site) for name, site in trace.nodes.items() if site["type"] == "sample")


def trained_parameters(trace: Any) -> list[str]:
    """The parameters of a model that training would move, by the names that Pyro knows them by."""
    found = [(str(name), site["value"]) for name, site in trace.nodes.items() if site["type"] == "param"]
    return [name for name, value in found if getattr(value, "unconstrained", lambda value=value: value)().requires_grad]


WRAPPERS = (IndependentDistribution, dist.ExpandedDistribution, dist.MaskedDistribution)
"""Distributions around another one: of ``to_event``, ``expand`` and ``mask``."""


def base_distribution(fn: Any) -> Any:
    """The distribution below ``to_event``, ``expand`` and ``mask`` wrappers."""
    while isinstance(fn, WRAPPERS):
        fn = fn.base_dist
    return fn


@dataclass(frozen=True)
class GuideDensity:
    r"""One conditional density of the guide, :math:`q(z_s \mid \text{parents})`.

    A plain latent site is a density of its own. An auxiliary site together with the Delta sites
    that carry its :math:`-\log|\det J|` is *one* density, by change of variables. A Delta that
    belongs to no auxiliary site is a point mass.

    Args:
        name: the name under which users know it. The model's site; for a joint density over
            several model sites (and for Pyro's joint autoguides always) the auxiliary site.
        site: the site that draws.
        deltas: the Delta sites of the change of variables, empty for a plain site.
        unconstrained: True if the change of variables is known to be the identity.
    """

    name: str
    site: Site
    deltas: tuple[Site, ...] = ()
    unconstrained: bool = True

    @property
    def sites(self) -> tuple[Site, ...]:
        """All guide sites that make up log q of this density."""
        return (self.site, *self.deltas)

    @cached_property
    def is_point(self) -> bool:
        """True for a Delta (also under AutoLaplaceApproximation's auxiliary name): no density at all."""
        return isinstance(base_distribution(self.site["fn"]), dist.Delta)

    @property
    def is_continuous(self) -> bool:
        """True if the density is over a continuous space, where its entropy has no lower bound."""
        fn = base_distribution(self.site["fn"])
        return not isinstance(fn, dist.Unit) and not bool(fn.support.is_discrete)


def check_sites(model_trace: Any, guide_trace: Any) -> None:
    """Refuse a model and a guide that do not draw the same latent sites.

    Raises:
        ValueError: naming the sites that one of them lacks.
    """
    latents = {name: site for name, site in sample_sites(model_trace) if not site["is_observed"]}
    drawn = {name: bool(site["infer"].get("is_auxiliary")) for name, site in sample_sites(guide_trace)}
    summed_out = {name for name, site in latents.items() if "_enumerate_dim" in site["infer"]}
    missing = sorted(latents.keys() - drawn.keys() - summed_out)
    if missing:
        raise ValueError(
            f"the model's latent sites {missing} are missing from the guide, which draws {sorted(drawn)}. "
            "Add them to the guide, or observe them in the model. Discrete ones can be summed out: mark them with "
            "infer={'enumerate': 'parallel'} and use BaNEL_TraceEnum_ELBO."
        )
    extra = sorted(name for name, auxiliary in drawn.items() if name not in latents and not auxiliary)
    if extra:
        raise ValueError(
            f"the guide's sites {extra} are no latent sites of the model, which has {sorted(latents)}. Rename them, "
            "or mark them as auxiliary: pyro.sample(..., infer={'is_auxiliary': True})."
        )


def refuse_enumerated(guide_trace: Any) -> None:
    """Refuse a guide with sites that are to be enumerated.

    Raises:
        ValueError: naming the sites.
    """
    names = [name for name, site in sample_sites(guide_trace) if site["infer"].get("enumerate")]
    if names:
        raise ValueError(
            f"the guide's sites {names} are configured for enumeration, which this form of the ELBO would sample "
            "instead. Use BaNEL_TraceEnum_ELBO, which sums over their values, or take infer={'enumerate': ...} and "
            "config_enumerate off the guide."
        )


def guide_densities(model_trace: Any, guide_trace: Any) -> dict[str, GuideDensity]:
    """The densities of a guide, by name, in the order of the guide.

    A Delta at a model's latent site is matched to the auxiliary site that carries its name (``x``
    to ``x_unconstrained`` or ``x_aux``, as Pyro's autoguides write them), else to the first
    auxiliary site that still has room for as many unconstrained numbers as the Delta has.

    Args:
        model_trace: a trace of the model, replayed against ``guide_trace``.
        guide_trace: a trace of the guide.

    Raises:
        ValueError: if a joint autoguide has local latents in a subsampled plate. Pyro leaves its
            auxiliary site unscaled there and scales the Jacobian by N/B.
    """
    sites = dict(sample_sites(guide_trace))
    owners = _match_deltas(model_trace, sites)
    deltas: dict[str, list[str]] = {}
    for delta, auxiliary in owners.items():
        deltas.setdefault(auxiliary, []).append(delta)
    densities: dict[str, GuideDensity] = {}
    for name, site in sites.items():
        if name in owners:
            continue
        parts = deltas.get(name, [])
        _refuse_subsampled_joint(site, [sites[part] for part in parts])
        joint = len(parts) != 1 or name.startswith("_")
        key = name if joint else parts[0]
        densities[key] = GuideDensity(
            key,
            site,
            tuple(sites[part] for part in parts),
            all(is_unconstrained(model_trace.nodes[part]["fn"].support) for part in parts),
        )
    return densities


def _match_deltas(model_trace: Any, sites: Mapping[str, Site]) -> dict[str, str]:
    """Delta site -> the auxiliary site whose change of variables it closes."""
    room = {
        name: site["value"].numel()
        for name, site in sites.items()
        if name not in model_trace.nodes and not isinstance(site["fn"], dist.Unit)
    }
    if not room:
        return {}
    owners: dict[str, str] = {}
    latents = [name for name in sites if name in model_trace.nodes]
    unmatched = [name for name in latents if isinstance(base_distribution(sites[name]["fn"]), dist.Delta)]
    for name in list(unmatched):
        for auxiliary in (f"{name}_unconstrained", f"{name}_aux"):
            if auxiliary in room:
                owners[name] = auxiliary
                room[auxiliary] = 0
                unmatched.remove(name)
    order = {name: i for i, name in enumerate(sites)}
    for name in unmatched:
        support = model_trace.nodes[name]["fn"].support
        if support.is_discrete:
            continue
        size = biject_to(support).inverse_shape(sites[name]["value"].shape).numel()
        for auxiliary, free in room.items():
            if 0 < size <= free and order[auxiliary] < order[name]:
                owners[name] = auxiliary
                room[auxiliary] = free - size
                break
    return owners


def _refuse_subsampled_joint(auxiliary: Site, deltas: Iterable[Site]) -> None:
    outer = {frame.name for frame in auxiliary["cond_indep_stack"]}
    for delta in deltas:
        for frame in delta["cond_indep_stack"]:
            subsampled = frame.full_size is not None and frame.full_size != frame.size
            if subsampled and frame.name not in outer:
                raise ValueError(
                    f"guide site '{auxiliary['name']}' draws jointly the latent '{delta['name']}', which is local "
                    f"to the subsampled plate '{frame.name}' ({frame.size} of {frame.full_size} rows): Pyro scales "
                    "such a density wrongly. Use AutoNormal, a messenger guide or a hand-written guide for local "
                    "latents, or batch_size=None to use all rows."
                )


def is_unconstrained(support: constraints.Constraint) -> bool:
    """Whether a site of this support is its own unconstrained coordinate."""
    transform = biject_to(support) if not support.is_discrete else None
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    return isinstance(transform, ComposeTransform) and not transform.parts


def on_plate(value: Tensor, stack: Stack, plate: str | None, *, scaled: bool = True) -> Tensor | None:
    """Sum a batched term over everything but one plate, and take out that plate's N/B.

    Args:
        value: a term with Pyro's batch shape.
        stack: the ``cond_indep_stack`` of the term's site.
        plate: name of the data plate.
        scaled: whether ``value`` carries the plate's factor N/B, as Pyro's ``log_prob`` does.

    Returns:
        A vector over the rows in the plate, in nats per datum, or None outside the plate.
    """
    frame = next((frame for frame in stack if frame.name == plate and frame.vectorized), None)
    if frame is None:
        return None
    if value.dim() < -frame.dim:
        raise ValueError(
            f"a term of shape {tuple(value.shape)} has no axis {frame.dim} for plate '{plate}': "
            "write the distribution so that its batch shape has the plate's dimension."
        )
    others = [d for d in range(-value.dim(), 0) if d != frame.dim]
    rows = (value.sum(others) if others else value).expand(frame.size)
    return rows * (frame.size / (frame.full_size or frame.size)) if scaled else rows


def batch_shape(site: Site) -> torch.Size:
    """The batch shape of a site's density as a function of its parents: its own enumerated values have no axis."""
    shape: torch.Size = site["log_prob"].shape
    axis = site["infer"].get("_enumerate_dim")
    if axis is None or len(shape) < -axis:
        return shape
    return torch.Size([*shape[:axis], 1, *shape[len(shape) + axis + 1 :]])


def plate_shape(stack: Stack) -> list[int]:
    """The batch shape that the plates of a stack make."""
    frames = [frame for frame in stack if frame.vectorized]
    shape = [1] * max((-frame.dim for frame in frames), default=0)
    for frame in frames:
        shape[frame.dim] = frame.size
    return shape


def plate_nesting(*traces: Any) -> int:
    """How many axes the plates in some traces take."""
    return max(
        (len(plate_shape(site["cond_indep_stack"])) for trace in traces for _, site in sample_sites(trace)), default=0
    )


def plate_scale(stack: Stack) -> float:
    """N/B over the subsampled plates that a site lies in: its scale without what the user adds to it."""
    return float(math.prod(frame.full_size / frame.size for frame in stack if frame.full_size is not None))


def unscaled_log_prob(site: Site) -> Tensor:
    """log density of a site, batched, with masks and without any scale (plate or ``poutine.scale``)."""
    log_prob: Tensor = scale_and_mask(site["unscaled_log_prob"], 1.0, site["mask"])
    return torch.as_tensor(log_prob)
