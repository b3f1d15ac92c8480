"""What a user defines: a model, a guide, and the data they are for."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from banel_pyro.batches import Split
from banel_pyro.folder import RunFolder, run_seed
from banel_pyro.seeding import fork_rng

if TYPE_CHECKING:
    from banel_pyro.objectives import Objective
    from banel_pyro.run import FitResult

__all__ = ["Kind", "Pair", "load_factory", "load_pair"]

Made = TypeVar("Made")


@dataclass(frozen=True)
class Pair:
    """A model and its guide, with the data they are for.

    Args:
        model: a Pyro model: a function, a PyroModule or a bound method.
        guide: its guide: the same, or an autoguide.
        data: a callable without arguments that returns the training data, or a
            :class:`~banel_pyro.batches.Split` with held-out data as well.
        data_plate: name of the plate over data points (found by its size if left out).
        name: a name for reports.
        objective: what :meth:`fit` minimises, by default a :class:`~banel_pyro.BaNEL_ELBO`; a pair with sites to
            enumerate takes a :class:`~banel_pyro.BaNEL_TraceEnum_ELBO`.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> def model(x):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", 3):
        ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
        >>> pair = Pair(model, AutoNormal(model), data=lambda: torch.ones(3), name="three ones")
        >>> with pyro.get_param_store().scope():
        ...     result = pair.fit(steps=10, seed=0, progress=False)
        >>> int(result.history["step"].iloc[-1])
        10
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    data: Callable[[], Any] | None = None
    data_plate: str | None = None
    name: str | None = None
    objective: Objective | None = None

    def __post_init__(self) -> None:
        for field in ("model", "guide"):
            if not callable(getattr(self, field)):
                raise TypeError(
                    f"Pair: {field}={getattr(self, field)!r}: expected a callable with pyro.sample statements. "
                    "Pass the function or module itself."
                )
        if self.data is not None and not callable(self.data):
            raise TypeError(
                f"Pair: data is a {type(self.data).__name__}: expected a callable without arguments that returns the "
                "data. Write data=lambda: x."
            )

    def split(self) -> Split:
        """The pair's data as a :class:`~banel_pyro.batches.Split`."""
        if self.data is None:
            raise ValueError(
                f"pair {self.name or ''!r} has no data: give Pair(..., data=...), or call fit(model, guide, data)."
            )
        data = self.data()
        return data if isinstance(data, Split) else Split(data)

    def fit(self, **options: Any) -> FitResult:
        """Train on the pair's own data; options as for :func:`banel_pyro.fit`.

        The data are made under the run's seed.
        """
        from banel_pyro.training.fit import fit

        resume = bool(options.get("resume", False))
        seed = run_seed(options.get("seed"), RunFolder.at(options.get("out"), resume=resume), resume=resume)
        with fork_rng(seed):
            split = self.split()
        own = {"data_plate": self.data_plate, "name": self.name, "objective": self.objective}
        options = {"validation": split.held_out} | own | options
        return fit(self.model, self.guide, Split(split.train, None, split.transform), **options | {"seed": seed})


def load_pair(path: str) -> Callable[[], Pair]:
    """The factory that ``module:attribute`` names, with the working directory on the path.

    Args:
        path: such as ``models.vae:digits``: a function without arguments that returns a fresh Pair.

    Raises:
        ValueError: if there is no such module or attribute, or it does not return a Pair.
    """
    return load_factory(path, PAIR)


@dataclass(frozen=True)
class Kind(Generic[Made]):
    """What the functions make that the command line takes by name.

    Args:
        made: the class.
        noun: what error messages call it.
        write: how it is made.
        example: the path of a function that does.
    """

    made: type[Made]
    noun: str
    write: str
    example: str


PAIR = Kind(Pair, "pair", "Pair(model, guide, data=...)", "models.vae:digits")

_COMMANDS = {"Pair": "A Pair is for banel fit and banel sweep.", "Task": "A Task is for banel negative."}


def load_factory(path: str, kind: Kind[Made]) -> Callable[[], Made]:
    """The factory that ``module:attribute`` names, with the working directory on the path.

    Args:
        path: such as ``models.vae:digits``: a function without arguments.
        kind: what it has to return.

    Raises:
        ValueError: if there is no such module or attribute, or it returns something else.
    """
    what = f"{kind.noun} '{path}'"
    module_name, _, attribute = path.partition(":")
    if not attribute or not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        file = kind.example.partition(":")[0].replace(".", "/")
        raise ValueError(f"{what}: expected module:attribute, such as {kind.example} for {file}.py.")
    factory = getattr(_module(what, module_name, kind), attribute, None)
    if factory is None:
        raise ValueError(f"{what}: module '{module_name}' has no attribute '{attribute}'. Name a function in it.")
    if not callable(factory):
        name = kind.made.__name__
        raise ValueError(
            f"{what} is a {type(factory).__name__}: expected a function without arguments that returns a {name}. "
            f"Write def make(): return {name}(...)."
        )
    return partial(_make, what, factory, kind)


def _module(what: str, name: str, kind: Kind[Any]) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise  # the module is there, and imports one that is not
        raise ValueError(
            f"{what}: no module '{name}' in {os.getcwd()} or on the path. A {kind.noun} is a function in a Python "
            f"file that returns banel_pyro.{kind.write}; name it as file:function."
        ) from error


def _make(what: str, factory: Callable[..., Any], kind: Kind[Made]) -> Made:
    try:
        inspect.signature(factory).bind()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} cannot be called without arguments ({error}). Give them defaults.") from error
    made = factory()
    if not isinstance(made, kind.made):
        found = type(made).__name__
        remedy = _COMMANDS.get(found, f"Write return {kind.write}.")
        raise ValueError(f"{what} returned a {found}: expected a banel_pyro.{kind.write.partition('(')[0]}. {remedy}")
    return made
