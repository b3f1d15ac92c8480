"""The entropy of a guide as a joint distribution, Shannon's or Rényi's: whole, by density, by data point."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from banel_pyro.checks import integer
from banel_pyro.entropy.draws import Densities, GuideDraws, Space
from banel_pyro.entropy.enumerated import enumerated_renyi, marginal
from banel_pyro.entropy.joint import closed_renyi, common_plates, components, is_the_site_alone, sum_to
from banel_pyro.entropy.renyi import check_order, renyi_from_log_q
from banel_pyro.entropy.shannon import density_entropy
from banel_pyro.modules import evaluation_mode
from banel_pyro.seeding import fork_rng
from banel_pyro.terms import Estimate, Summand, VectorEstimate
from banel_pyro.traces import GuideDensity, Stack, on_plate, plate_scale, unscaled_log_prob

__all__ = ["guide_entropy"]

Estimator: TypeAlias = Literal["auto", "closed_form", "monte_carlo"]


def guide_entropy(
    guide: Any,
    *args: Any,
    alpha: float = 1.0,
    space: Space = "constrained",
    estimator: Estimator = "auto",
    num_samples: int = 1000,
    per_site: bool = False,
    per_datum: bool = False,
    data_plate: str = "data",
    seed: int | None = None,
    **kwargs: Any,
) -> Any:
    r"""Entropy of a guide's joint distribution, in nats.

    .. math::
        H_1(q) = -E_q[\log q(z)] = \sum_s E[H(q(z_s \mid \text{parents}))], \qquad
        H_\alpha(q) = \frac{1}{1 - \alpha} \log \int q(z)^\alpha \, dz

    Subsampled plates count N/B and masked elements 0; a scale of the user's own (``poutine.scale``) does not count,
    since a scaled sum of entropies is no entropy. An auxiliary site and the Deltas that carry its Jacobian are one
    density; a Delta of its own is a point, whose entropy is minus infinity. Shannon's entropy adds over dependent
    sites; Rényi's adds over independent ones only, so that dependent sites are estimated jointly.

    Args:
        guide: a guide, an autoguide among them.
        *args: passed to the guide.
        alpha: the order α ≥ 0: 1 is Shannon's entropy, 0 and ∞ exist on finite supports only.
        space: ``"constrained"``, the space of the model's sites, or ``"unconstrained"``, that of their
            ``biject_to`` coordinates. Continuous entropies of the two differ by the mean log Jacobian.
        estimator: ``"auto"`` (closed form where there is one, given the draws of parents), ``"closed_form"``,
            or ``"monte_carlo"``.
        num_samples: draws of the guide. Where everything is in closed form and nothing depends on a draw, one does.
        per_site: a mapping from density to entropy in place of the sum.
        per_datum: vectors over the rows in the data plate, unscaled, of what lies inside it.
        data_plate: name of that plate.
        seed: draws inside a forked generator and leaves yours alone; None draws from yours.
        **kwargs: passed to the guide.

    Returns:
        Value and standard error in nats, the latter over draws (by the jackknife for α ≠ 1). It warns where a Rényi
        estimate cannot be trusted.

    Raises:
        TypeError: if α is no number.
        ValueError: for α < 0 or NaN; for α = 0 or ∞ without a closed form; for ``"closed_form"`` where there is none,
            with site and reason; for α ≠ 1 and sites that depend on each other across a subsampled plate, or that
            ``per_site`` would have to take apart.

    References:
        Rényi 1961, On measures of entropy and information. This is an entropy of q alone, not a Rényi divergence.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def guide():
        ...     z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> print(guide_entropy(guide))
        2.838 ± 0.000
        >>> print(guide_entropy(guide, alpha=2.0))
        2.531 ± 0.000
    """
    alpha = check_order(alpha)
    integer("num_samples", num_samples)
    for name, value, known in (("space", space, get_args(Space)), ("estimator", estimator, get_args(Estimator))):
        if value not in known:
            raise ValueError(f"{name}={value!r}: expected one of {list(known)}.")
    asked = _Asked(alpha, estimator, num_samples, data_plate if per_datum else None)
    with nullcontext() if seed is None else fork_rng(seed), torch.no_grad(), evaluation_mode(guide):
        draws = GuideDraws(guide, args, kwargs, space)
        found = (_shannon if alpha == 1 else _renyi)(draws, asked, apart=per_site)
    return found if per_site else _sum(list(found.values()), per_datum=per_datum)


@dataclass(frozen=True)
class _Asked:
    """What is asked of the draws; ``plate`` for vectors over the rows in it."""

    alpha: float
    estimator: Estimator
    count: int
    plate: str | None


# ---- Shannon -------------------------------------------------------------------------------------


def _shannon(draws: GuideDraws, asked: _Asked, *, apart: bool) -> dict[str, Any]:
    """Entropy of each density, or their sum: draw by draw, since they share draws."""
    values: dict[str, list[Any]] = {name: [] for name in draws.first}
    exact = False
    for densities, trace in draws.enumerated(asked.count) if draws.enumerates else _plain(draws, asked.count):
        labels = {}
        for name, density in densities.items():
            labels[name], summands = _shannon_summands(draws, density, asked.estimator)
            if trace is not None:
                summands = [replace(s, value=marginal(s, trace)) for s in summands]
            values[name].append(_value(density, summands, asked.plate))
        sampled = {name for name, label in labels.items() if label not in ("closed_form", "point_mass")}
        exact = sampled.union(*draws.parents.values()) <= draws.enumerates
        if exact:
            break
    if not apart:
        inside = [found for found in values.values() if found[0] is not None]
        values = {"": [sum(parts) for parts in zip(*inside, strict=True)]} if inside else {}
    return {name: _mean(found, exact=exact) for name, found in values.items() if found[0] is not None}


def _plain(draws: GuideDraws, count: int) -> Iterator[tuple[Densities, None]]:
    return ((densities, None) for densities in draws.draws(count))


def _shannon_summands(draws: GuideDraws, density: GuideDensity, estimator: Estimator) -> tuple[str, list[Summand]]:
    density, jacobians = draws.in_space(density)
    if jacobians and estimator == "closed_form":
        raise ValueError(_no_closed_form(density, "the Jacobian of its change of variables has none"))
    label, summands = density_entropy(density, estimator)
    for site, jacobian in jacobians:
        stack, symbols = site["cond_indep_stack"], site["infer"].get("_dim_to_symbol")
        summands = [*summands, Summand(site["scale"] * jacobian, 0.0, stack, weight=-1.0, symbols=symbols)]
    alone = not jacobians and is_the_site_alone(density)
    return label if alone else "monte_carlo", summands


def _value(density: GuideDensity, summands: Sequence[Summand], plate: str | None) -> Any:
    """A number, or a vector over a plate; None for what lies outside it."""
    if plate is None:
        return float(sum(s.weight * s.value.sum() for s in summands))
    if density.is_point:
        point = torch.full_like(density.site["log_prob"], -math.inf)
        summands = [Summand(point, 0.0, density.site["cond_indep_stack"])]
    rows = [on_plate(s.weight * s.value, s.stack, plate) for s in summands]
    inside = [row for row in rows if row is not None]
    return torch.stack(inside).sum(0).cpu().numpy() if len(inside) == len(rows) else None


# ---- Rényi ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    """Densities that depend on each other, and the plates over whose elements they are independent."""

    names: tuple[str, ...]
    plates: Stack


def _renyi(draws: GuideDraws, asked: _Asked, *, apart: bool) -> dict[str, Any]:
    """Entropy of each group of densities that depend on each other: of each density where none do."""
    found: dict[str, Any] = {}
    sampled: list[_Group] = []
    for names in components(draws.parents):
        first = draws.first[names[0]]
        if apart and len(names) > 1:
            raise ValueError(
                f"alpha={asked.alpha:g} with per_site: {list(names)} depend on each other, and Rényi entropies of "
                "dependent sites do not add. Leave per_site out, or use alpha=1.0."
            )
        closed = _closed(draws, first, asked) if len(names) == 1 else _summed(draws, names, asked)
        if closed is not None:
            found[names[0]] = _mean([_value(first, [closed], asked.plate)], exact=True)
            continue
        if asked.estimator == "closed_form":
            reason = "it depends on other sites" if len(names) > 1 else f"no formula is known for alpha={asked.alpha:g}"
            raise ValueError(_no_closed_form(first, reason))
        sampled.append(_Group(names, common_plates([draws.first[name] for name in names], asked.alpha)))
    if sampled and asked.count < 2:
        raise ValueError(
            f"num_samples={asked.count} with alpha={asked.alpha:g}: the entropy of {list(sampled[0].names)} is "
            "estimated from draws. Write num_samples=1000, or alpha=1.0."
        )
    if sampled:
        log_q = [[_joint_log_q(draws, one, group) for group in sampled] for one in draws.draws(asked.count)]
        for group, column in zip(sampled, zip(*log_q, strict=True), strict=True):
            found[" + ".join(group.names)] = _estimated(group, torch.stack(column), asked)
    return {name: value for name, value in found.items() if value is not None}


def _closed(draws: GuideDraws, density: GuideDensity, asked: _Asked) -> Summand | None:
    """Closed form of a density that depends on no other."""
    if density.is_point:
        return Summand(torch.as_tensor(-math.inf), 0.0)
    density, jacobians = draws.in_space(density)
    return None if asked.estimator == "monte_carlo" or jacobians else closed_renyi(density, asked.alpha)


def _summed(draws: GuideDraws, names: Sequence[str], asked: _Asked) -> Summand | None:
    """The sum over all values of densities that depend on each other, if all of them are marked for enumeration."""
    if asked.estimator == "monte_carlo" or not draws.enumerates.issuperset(names):
        return None
    densities, trace = next(draws.enumerated(1))
    return enumerated_renyi([densities[name] for name in names], asked.alpha, trace)


def _joint_log_q(draws: GuideDraws, densities: Densities, group: _Group) -> Tensor:
    """log q of a group at one draw, unscaled, over the plates that all its sites share."""
    total: Any = 0.0
    for name in group.names:
        density, jacobians = draws.in_space(densities[name])
        parts = [unscaled_log_prob(site) for site in density.sites] + [jacobian for _, jacobian in jacobians]
        total = total + sum(sum_to(part, group.plates) for part in parts)
    return torch.as_tensor(total)


def _estimated(group: _Group, log_q: Tensor, asked: _Asked) -> Any:
    value, diagnostic = renyi_from_log_q(log_q, asked.alpha)
    if not bool(diagnostic.trusted().all()):
        warnings.warn(
            f"the Rényi entropy of {list(group.names)} at alpha={asked.alpha:g} from {len(log_q)} draws cannot be "
            f"trusted, nor its error: the weights q^(alpha - 1) have Pareto k up to "
            f"{float(diagnostic.pareto_k().max()):.2f} and an effective sample size down to "
            f"{float(diagnostic.ess.min()):.0f}. Use more draws, or an alpha nearer to 1.",
            stacklevel=4,
        )
    scale = plate_scale(group.plates)
    if asked.plate is None:
        error = scale * diagnostic.stderr.double().square().sum().sqrt()
        return Estimate(float(scale * value.sum()), float(error))
    rows = on_plate(scale * value, group.plates, asked.plate)
    variances = on_plate((scale * diagnostic.stderr).square(), group.plates, asked.plate, scaled=False)
    if rows is None or variances is None:
        return None
    factor = next(frame.size / (frame.full_size or frame.size) for frame in group.plates if frame.name == asked.plate)
    return VectorEstimate(rows.cpu().numpy(), factor * variances.sqrt().cpu().numpy())


# ---- how -----------------------------------------------------------------------------------------


def _no_closed_form(density: GuideDensity, reason: str) -> str:
    return (
        f"estimator='closed_form', but the guide's entropy at site '{density.name}' has no closed form: {reason}. Use "
        "estimator='auto' or estimator='monte_carlo'."
    )


def _mean(values: Sequence[Any], *, exact: bool) -> Any:
    """Mean and standard error over draws; None for what has no values."""
    if values[0] is None:
        return None
    table = np.asarray(values, dtype=float)
    with np.errstate(invalid="ignore"):  # of a point mass
        mean = table.mean(axis=0)
        spread = table.std(axis=0, ddof=1) if len(table) > 1 else np.full_like(mean, math.nan)
    error = np.zeros_like(mean) if exact else np.asarray(spread / math.sqrt(len(table)))
    return Estimate(float(mean), float(error)) if mean.ndim == 0 else VectorEstimate(mean, error)


def _sum(found: Sequence[Any], *, per_datum: bool) -> Any:
    """The entropy of independent parts: values add, and variances."""
    if not found and not per_datum:
        raise ValueError("the guide draws no site, so that it has no entropy. Give it a pyro.sample statement.")
    if not found:
        raise ValueError("per_datum: the guide has no site in the data plate. Name the plate: data_plate='data'.")
    value = np.asarray(sum(np.asarray(part.value) for part in found))
    error = np.sqrt(sum(np.asarray(part.stderr) ** 2 for part in found))
    return Estimate(float(value), float(error)) if value.ndim == 0 else VectorEstimate(value, error)
