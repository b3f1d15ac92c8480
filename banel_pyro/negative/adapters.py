"""Generators made of what there is: a Pyro model with one site, and distributions of torch's and Pyro's."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from contextlib import suppress
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution

from banel_pyro.checks import check_callable, integer
from banel_pyro.negative.generator import Generator
from banel_pyro.negative.statements import Constrained, ParamStatements, apart, held_values, module_parts
from banel_pyro.seeding import fork_rng
from banel_pyro.traces import WRAPPERS

__all__ = ["DistributionGenerator", "SiteGenerator"]


class _Adapter(Generator):
    """A generator whose density is a distribution's, made anew from the parameters whenever it is needed."""

    _shape: torch.Size

    @abstractmethod
    def made(self) -> Any:
        """The distribution; all its axes are those of one candidate."""

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one candidate."""
        return self._shape

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        r"""Independent draws, shape (n, \*event_shape)."""
        draws: Tensor = self.made().sample((integer("n", n, 0),))
        return draws

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Log-density in nats, shape (n,), of candidates of shape (n, \*event_shape)."""
        if x.dim() != 1 + len(self._shape) or x.shape[1:] != self._shape:
            expected = ", ".join(["n", *map(str, self._shape)])
            raise ValueError(f"x has shape {tuple(x.shape)}: expected ({expected}). Write a row for each candidate.")
        each: Tensor = self.made().log_prob(x)
        return each.flatten(1).sum(1) if each.dim() > 1 else each


class SiteGenerator(_Adapter):
    r"""A Pyro model without arguments that draws one candidate at one site.

    All axes of the site, those of plates inside the model too, belong to the candidate: :math:`\log p_\theta(x)` is
    the sum over them. Each ``pyro.param`` becomes a parameter of the generator, within its constraint; it starts from
    the value in the param store, where there is one, and is apart from it afterwards.

    Args:
        model: a function, a torch module or a PyroModule. It may compute and have other parameters, as long as x is
            all that it draws.
        site: name of the site.

    Raises:
        ValueError: if it draws other sites, observes something, scales or masks the site, or has no such site; if it
            uses networks that are not a part of it.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     loc = pyro.param("loc", torch.zeros(2))
        ...     pyro.sample("x", dist.Normal(loc, 1.0).to_event(1))
        >>> generator = SiteGenerator(model)
        >>> generator.log_prob(torch.zeros(3, 2)).exp()
        tensor([0.1592, 0.1592, 0.1592], grad_fn=<ExpBackward0>)
    """

    def __init__(self, model: Any, *, site: str = "x") -> None:
        super().__init__()
        check_callable("model", model, ())
        self.parts = torch.nn.ModuleList(module_parts("model", model))
        self.values = Constrained()
        self._program, self.site = (model,), site  # in a tuple: a module is among the parts already
        found = self._run(held_values())
        if found.fn is None:
            raise ValueError(f"the model has no site '{site}', only {found.seen}. Name the candidate's: site=...")
        self._shape = torch.Size(found.fn.shape())

    def made(self) -> Any:
        """The distribution at the site."""
        return self._run(None).fn

    def _run(self, held: dict[str, Tensor] | None) -> _Site:
        found = _Site(self.site, whole=held is not None)
        statements = ParamStatements(self.values, self.parts, held)
        with apart(), statements, found, suppress(_Reached):
            self._program[0]()
        return found


class _Reached(Exception):
    """The site was reached: the rest of the model does not matter."""


class _Site(Messenger):
    """Looks for the candidate's distribution, and refuses what would make its density another.

    Args:
        site: its name.
        whole: run the whole model, to see what else it draws.
    """

    def __init__(self, site: str, *, whole: bool) -> None:
        super().__init__()
        self.fn: Any = None
        self.seen: list[str] = []
        self._site, self._whole = site, whole

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            self._refuse_subsample(msg)
        elif not msg["infer"].get("_deterministic"):
            self.seen.append(msg["name"])
            if msg["name"] != self._site:
                self._refuse_other(msg)
            if msg["is_observed"] or msg["value"] is not None:
                raise ValueError(f"site '{self._site}' is observed: a generator draws it. Leave obs= out.")
            if msg["mask"] is not None or not bool((torch.as_tensor(msg["scale"]) == 1).all()):
                raise ValueError(f"site '{self._site}' is scaled or masked: its density would be no distribution's.")
            self.fn = msg["fn"]
            if not self._whole:
                raise _Reached

    def _refuse_other(self, msg: Any) -> None:
        if msg["is_observed"]:
            raise ValueError(
                f"the model observes '{msg['name']}' beside '{self._site}': its density would be known but for a "
                "constant. Leave it out; what is known to fail belongs to the oracle."
            )
        raise ValueError(
            f"the model draws '{msg['name']}' beside '{self._site}': its density is an integral. Use PairGenerator, "
            "with a guide for it."
        )

    def _refuse_subsample(self, msg: Any) -> None:
        if msg["fn"].subsample_size not in (None, msg["fn"].size):
            raise ValueError(f"plate '{msg['name']}' is subsampled: a candidate needs all of it.")


class DistributionGenerator(_Adapter):
    """A distribution of torch's or Pyro's as a generator.

    Args:
        family: a class, a function that returns a distribution, or a distribution. All axes of it belong to one
            candidate.
        parameters: of the class or function. Tensors of floating-point numbers, and floats, are trained: those of a
            class within its ``arg_constraints``, those of a function without any. All else is passed as it is. A
            distribution is taken apart into its class and parameters where it can be rebuilt from these; else it
            stays fixed, and :class:`~banel_pyro.negative.training.Training` says that there is nothing to train.

    Raises:
        TypeError: for what is no distribution.
        ValueError: for parameters outside their constraint.

    Example:
        >>> import pyro.distributions as dist
        >>> generator = DistributionGenerator(dist.Normal, loc=torch.zeros(2), scale=torch.ones(2))
        >>> generator.sample(3).shape, [tuple(p.shape) for p in generator.parameters()]
        (torch.Size([3, 2]), [(2,), (2,)])
        >>> DistributionGenerator(dist.Normal(0.0, 2.0)).log_prob(torch.zeros(1)).exp()
        tensor([0.1995], grad_fn=<ExpBackward0>)
    """

    def __init__(self, family: Any, /, **parameters: Any) -> None:
        super().__init__()
        if isinstance(family, Distribution):
            if parameters:
                raise TypeError(f"{sorted(parameters)} beside a distribution, which has its own. Give its class.")
            family, parameters = _taken_apart(family)
        if not callable(family):
            raise TypeError(f"family={family!r}: expected a class of distributions, such as dist.Normal, or one.")
        self.family, self.values = family, Constrained()
        known = _constraints_of(family)
        for name, value in parameters.items():
            constraint = constraints.real if known is None else known.get(name)
            if _is_trained(value, constraint):
                self.values.add(name, value, constraint)
        self.fixed = {name: value for name, value in parameters.items() if name not in self.values}
        made = self.made()
        if not isinstance(made, Distribution):
            raise TypeError(f"family(...) gave a {type(made).__name__}: expected a distribution.")
        self._shape = torch.Size(made.batch_shape + made.event_shape)

    def made(self) -> Any:
        """The distribution at the parameters of now."""
        return self.family(**self.fixed, **{name: self.values[name] for name in self.values.constraints})


def _constraints_of(family: Any) -> dict[str, Any] | None:
    """The constraints of a class; of a function none."""
    if not inspect.isclass(family):
        return None
    found = getattr(family, "arg_constraints", {})
    return found if isinstance(found, dict) else {}


def _is_trained(value: Any, constraint: Any) -> bool:
    if constraint is None or constraint.is_discrete or isinstance(constraint, type(constraints.dependent)):
        return False
    return isinstance(value, float) or (isinstance(value, Tensor) and value.is_floating_point())


def _taken_apart(given: Distribution) -> tuple[Any, dict[str, Any]]:
    """The class and parameters that a distribution can be rebuilt from, or itself."""
    inner: Any = given
    while isinstance(inner, (*WRAPPERS[:1], torch.distributions.Independent)):
        inner = inner.base_dist
    family = type(inner)
    names = list(_constraints_of(family) or {})
    for found in ({n: vars(inner)[n] for n in names if n in vars(inner)}, {n: getattr(inner, n, None) for n in names}):
        if {"probs", "logits"} <= found.keys():  # the one is computed from the other
            del found["probs"]
        if found and _rebuilds(inner, family, found):
            return family, found
    return (lambda: given), {}


def _rebuilds(given: Any, family: Any, parameters: dict[str, Any]) -> bool:
    try:
        rebuilt = family(**parameters)
        with torch.no_grad(), fork_rng(0):
            x = given.sample((5,))
            return given.batch_shape == rebuilt.batch_shape and torch.allclose(given.log_prob(x), rebuilt.log_prob(x))
    except (TypeError, ValueError, NotImplementedError, RuntimeError):
        return False
