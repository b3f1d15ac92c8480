"""Data from a model's prior, passed back to it as rows: what calibration by simulation starts from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from banel_pyro.batches import Rows
from banel_pyro.draws import is_data
from banel_pyro.modules import evaluation_mode
from banel_pyro.plates import DataPlate, one_line
from banel_pyro.predictive import argument_names, predict
from banel_pyro.traces import Site, base_distribution, sample_sites, unscaled_log_prob

__all__ = ["Simulation", "check_drawable", "simulate"]


class Simulation(NamedTuple):
    """Latents and data drawn from a model together.

    Attributes:
        trace: the model's trace, in which what is usually observed was drawn.
        rows: the data as the model takes them: the observed ones are new, the others are those that were given.
    """

    trace: Any
    rows: Rows


def simulate(model: Any, rows: Rows, plate: DataPlate) -> Simulation:
    """Draw latents and data from the model's joint distribution, for data of the shape of ``rows``.

    The rows say how many data there are and hold what is not observed, such as a design. Those that are observed are
    replaced by what was drawn. Then the model is run on the new rows at the drawn latents: its distributions must be
    those that were drawn from. A prior that looks at the data, or an autoregressive model that is fed them, is found
    out so.

    Args:
        model: the model.
        rows: all rows of the data that the model was written for.
        plate: the data plate.

    Raises:
        ValueError: if the model cannot simulate, with the reason: nothing is observed; what is observed is no argument;
            improper priors, ``pyro.factor``, scales, masked latents; or distributions that depend on what is observed.
    """
    with evaluation_mode(model), torch.no_grad(), _told():
        index = torch.arange(len(rows[0])) if rows else torch.arange(0)
        with _Drawable():
            trace = predict(model, rows, poutine.Trace(), plate, index)
        observed = {name: site for name, site in sample_sites(trace) if site["infer"].get("was_observed")}
        new = _replaced(rows, observed, argument_names(model, len(rows)))
        with plate.rows(index if rows else None):
            again = poutine.trace(poutine.replay(model, trace=_latents(trace))).get_trace(*new)
        _check_same(trace, again)
    return Simulation(trace, new)


def check_drawable(model: Any, rows: Rows) -> None:
    """Refuse a model with a site that a simulation cannot be right about, before anything else is asked of it.

    Args:
        model: the model.
        rows: all rows of the data that it was written for.

    Raises:
        ValueError: naming the site, with the reason.
    """
    nowhere = DataPlate(None, len(rows[0]) if rows else 0, scaled=False)
    with evaluation_mode(model), _Drawable(), _told():
        predict(model, rows, poutine.Trace(), nowhere, torch.arange(nowhere.size))


class _Drawable(Messenger):
    """Refuses, before it is drawn, a site that a simulation cannot be right about."""

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or msg["infer"].get("_deterministic"):
            return
        reason = _why_not(msg)
        if reason:
            raise ValueError(f"the model cannot simulate: site '{msg['name']}' {reason}")


def _why_not(site: Any) -> str | None:
    base, latent = base_distribution(site["fn"]), not site["infer"].get("was_observed")
    if isinstance(base, dist.Unit):
        return (
            "is a pyro.factor, a term of log p that nothing can be drawn from. Write it as a distribution: "
            "pyro.sample(..., obs=...)."
        )
    if isinstance(base, dist.ImproperUniform):
        return "has an improper prior. Give it a distribution that can be drawn from."
    if _differs(site["scale"], 1.0):
        return (
            f"is scaled by {_value(site['scale']):g}, so that its density is not the one that is drawn from. Leave out "
            "poutine.scale, and plates that pick some of their rows."
        )
    if latent and (isinstance(site["fn"], dist.MaskedDistribution) or _differs(site["mask"], True)):
        return "is a masked latent: where the mask is off it has no prior. Take the mask off, or mask what is observed."
    return None


def _differs(value: Any, expected: float | bool) -> bool:
    return value is not None and bool((torch.as_tensor(value) != expected).any())


def _value(scale: Any) -> float:
    return float(torch.as_tensor(scale).flatten()[0])


@contextmanager
def _told() -> Iterator[None]:
    """Say which call was not possible, where a distribution has no draws."""
    try:
        yield
    except NotImplementedError as error:
        raise ValueError(
            f"the model cannot simulate: one of its distributions cannot be drawn from ({one_line(error)}). Use "
            "distributions with a sample method."
        ) from error


def _latents(trace: Any) -> Any:
    kept = poutine.Trace()
    for name, site in sample_sites(trace):
        if not site["infer"].get("was_observed") and not site["infer"].get("_deterministic"):
            kept.add_node(name, **site)
    return kept


# ---- from sites to arguments ---------------------------------------------------------------------


def _replaced(rows: Rows, observed: dict[str, Site], names: list[str]) -> Rows:
    """The rows with what was drawn in place of what is observed."""
    if not observed:
        raise ValueError(
            "the model cannot simulate: it observes nothing, so that there are no data to draw. Give it an argument, "
            "and pyro.sample(..., obs=argument)."
        )
    new = list(rows)
    for name, site in observed.items():
        found = _argument(rows, site["infer"]["obs"])
        if found is None:
            raise ValueError(
                f"the model cannot simulate: site '{name}' observes a value that is none of its arguments {names} as "
                "they are, so that it cannot be given other data. Pass the data as an argument, and observe that: "
                "transform them outside of the model."
            )
        drawn = site["value"]
        if drawn.numel() != rows[found].numel():
            raise ValueError(
                f"the model cannot simulate: site '{name}' draws values of shape {tuple(drawn.shape)} for the argument "
                f"'{names[found]}' of shape {tuple(rows[found].shape)}. Observe as many values as are drawn."
            )
        if not bool(torch.isfinite(drawn).all()):
            raise ValueError(
                f"the model cannot simulate: site '{name}' drew values that are not finite. Choose priors under which "
                "the data stay finite."
            )
        new[found] = drawn.reshape(rows[found].shape).to(rows[found].dtype)
    return tuple(new)


def _argument(rows: Rows, value: Tensor) -> int | None:
    """Which argument is observed: the one whose memory it shares, else the one with its numbers."""
    same_size = [i for i, row in enumerate(rows) if row.numel() == value.numel()]
    shared = [i for i in same_size if rows[i].untyped_storage().data_ptr() == value.untyped_storage().data_ptr()]
    alike = [i for i in same_size if torch.equal(rows[i].flatten().to(value.dtype), value.flatten())]
    return next(iter(shared + alike), None)


def _check_same(drawn: Any, again: Any) -> None:
    """Refuse a model whose distributions depend on what is observed."""
    drawn.compute_log_prob()
    again.compute_log_prob()
    before, after = dict(sample_sites(drawn)), dict(sample_sites(again))
    for name, site in before.items():
        if site["infer"].get("_deterministic") or site_is_subsample(site):  # type: ignore[arg-type]
            continue
        if name not in after or not _alike(site, after[name]):
            raise ValueError(
                f"the model cannot simulate: given the data that it drew, its distribution at site '{name}' is not the "
                "one that was drawn from. A prior, a scale or an autoregressive input is computed from what is "
                "observed, or the values are changed before they are observed. Compute them from other arguments."
            )


def _alike(site: Site, other: Site) -> bool:
    if is_data(site) and site["value"].numel() != other["value"].numel():
        return False
    same_value = torch.allclose(site["value"].flatten().double(), other["value"].flatten().double(), rtol=1e-4)
    return same_value and torch.allclose(unscaled_log_prob(site), unscaled_log_prob(other), rtol=1e-3, atol=1e-3)
