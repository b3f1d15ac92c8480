"""What proposes candidates: anything that can be sampled, has a density, and can be trained by SVI."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, Self

import pyro
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn

from banel_pyro.checks import integer

__all__ = ["Generator", "GeneratorDistribution", "check_generator"]


class Generator(nn.Module, ABC):
    r"""A distribution :math:`p_\theta(x)` over candidates that can be sampled, evaluated and trained.

    A new generator fills two holes, :meth:`sample` and :meth:`log_prob`; as a torch module it brings its parameters,
    :meth:`copy` and ``state_dict``. One with latent variables replaces :meth:`model` and :meth:`guide` too.

    Example:
        >>> import pyro.distributions as dist
        >>> class Coin(Generator):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.logit = nn.Parameter(torch.tensor(0.0))
        ...     @property
        ...     def event_shape(self):
        ...         return torch.Size()
        ...     def sample(self, n):
        ...         return dist.Bernoulli(logits=self.logit).sample((n,))
        ...     def log_prob(self, x):
        ...         return dist.Bernoulli(logits=self.logit).log_prob(x)
        >>> Coin().distribution().log_prob(torch.ones(3)).exp()
        tensor([0.5000, 0.5000, 0.5000], grad_fn=<ExpBackward0>)
    """

    @property
    @abstractmethod
    def event_shape(self) -> torch.Size:
        """Shape of one candidate."""

    @abstractmethod
    def sample(self, n: int) -> Tensor:
        r"""Independent draws, shape (n, \*event_shape), from torch's global generator, without gradient."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        r""":math:`\log p_\theta(x)` in nats, shape (n,), for candidates of shape (n, \*event_shape); differentiable."""

    def distribution(self) -> GeneratorDistribution:
        """The generator as a Pyro distribution, for ``pyro.sample``."""
        return GeneratorDistribution(self)

    def model(self, x: Tensor) -> Tensor:
        """The Pyro model that SVI trains: every row of ``x`` is an observed draw."""
        pyro.module("generator", self)
        with pyro.plate("data", len(x)):
            return pyro.sample("x", self.distribution(), obs=x)

    def guide(self, x: Tensor) -> None:
        """The guide to :meth:`model`: nothing is latent, so training is maximum likelihood."""

    def copy(self) -> Self:
        """An independent copy, without gradients."""
        twin = copy.deepcopy(self)
        twin.zero_grad(set_to_none=True)
        return twin


class GeneratorDistribution(TorchDistribution):
    """A :class:`Generator` as a distribution of Pyro's: what ``pyro.sample("x", generator.distribution())`` takes.

    Args:
        generator: the generator; it is not copied.
        batch_shape: of the distribution, by default none.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  # torch's own name and type

    def __init__(self, generator: Generator, batch_shape: torch.Size = torch.Size()) -> None:  # noqa: B008
        self.generator = generator
        super().__init__(batch_shape, generator.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """Real numbers in the shape of one candidate: what else it must be only the generator knows."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> GeneratorDistribution:
        """The same distribution for a larger batch of independent candidates."""
        return type(self)(self.generator, torch.Size(batch_shape))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Independent draws of shape sample_shape + batch_shape + event_shape."""
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            return self.generator.sample(shape.numel()).reshape(shape + self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats, of shape sample_shape + batch_shape."""
        shape = torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)
        lead = shape[: len(shape) - len(self.event_shape)]
        return self.generator.log_prob(value.expand(shape).reshape(-1, *self.event_shape)).reshape(lead)


def check_generator(generator: Any, *, probe: bool = True) -> Generator:
    """A generator that has all that is needed of one, tried on two draws.

    Args:
        generator: what was given as one.
        probe: draw two candidates and evaluate them.

    Raises:
        TypeError: naming the method that is missing, or what a method returned.
    """
    missing = [name for name in ("sample", "log_prob", "model", "guide", "copy") if not hasattr(generator, name)]
    if missing:
        raise TypeError(
            f"generator is a {type(generator).__name__} without {', '.join(missing)}: expected a Generator, which has "
            "sample(n), log_prob(x) and what SVI trains. Derive from banel_pyro.negative.Generator, or wrap a Pyro "
            "model in SiteGenerator, a distribution in DistributionGenerator, a model and its guide in PairGenerator."
        )
    if probe:
        with torch.no_grad():
            draws = generator.sample(integer("n", 2))
            density = generator.log_prob(draws)
        for name, value, shape in (
            ("sample(2)", draws, (2, *generator.event_shape)),
            ("log_prob(x) of two draws", density, (2,)),
        ):
            if not isinstance(value, Tensor) or tuple(value.shape) != shape:
                found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"{type(generator).__name__}.{name} gave {found}: expected a tensor of shape {shape}.")
        if bool(torch.isnan(density).any()):
            raise TypeError(f"{type(generator).__name__}.log_prob(x) of its own draws is NaN: expected nats.")
    return generator  # type: ignore[no-any-return]
