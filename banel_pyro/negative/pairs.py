"""Generators with latent variables: a model and its guide, trained by the entropy-weighted ELBO."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from banel_pyro.checks import check_callable, instance, integer, seed_number
from banel_pyro.diagnostics.latent import data_plate_of
from banel_pyro.diagnostics.weighted import structure_of, weighted_draws
from banel_pyro.evaluate import iwae_per_datum
from banel_pyro.modules import evaluation_mode
from banel_pyro.negative.generator import Generator
from banel_pyro.negative.statements import Constrained, ParamStatements, apart, held_values, module_parts
from banel_pyro.predictive import predict
from banel_pyro.traces import base_distribution

__all__ = ["PairGenerator"]

ROWS = 20_000
"""Rows, candidates times draws, that are in memory at a time."""


class PairGenerator(Generator):
    r"""A model with latent variables z of each candidate, and a guide for them, such as a VAE.

    It is sampled by the prior and the decoder. Its density is an integral, estimated from K draws of the guide:

    .. math::
        \log p_\theta(x) \approx \log \frac1K \sum_k \frac{p_\theta(x, z_k)}{q(z_k \mid x)}, \qquad z_k \sim q(z \mid x)

    whose expectation is too low, by about half its variance (Burda et al. 2016, arXiv 1509.00519); ``log_prob_error``
    says how far it may be off. The draws are made from one seed, with the same numbers for every candidate: a candidate
    has one log-density, whatever it is evaluated with, and so have the regions that are built on it. Where the guide
    draws from distributions with an inverse distribution function (such as normal ones) many candidates go at once, in
    other cases one by one, which takes milliseconds each.

    Training minimises :class:`~banel_pyro.BaNEL_ELBO`, as :func:`~banel_pyro.fit` does for any pair; λ goes into
    ``Training(options={"lam": 0.4})``.

    Args:
        model: the model, ``model(x)``, whose latents are all in a plate over ``len(x)`` rows.
        guide: the guide, ``guide(x)``.
        example: some candidates, shape (m, \*event_shape), m at least 2: their shape and type, not their values.
        site: name of the observed site that x is.
        draws: K, at least 2.
        seed: of the draws of ``log_prob``.
        data_plate: name of the plate, found by its size if left out.

    Raises:
        ValueError: for a pair with latents outside the plate, which all candidates share, or a plate over a fixed
            number of rows; for networks that are not a part of model or guide.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> generator = PairGenerator(model, guide, torch.zeros(2))
        >>> generator.log_prob(torch.tensor([0.0, 1.0])), dist.Normal(0.0, 2**0.5).log_prob(torch.tensor([0.0, 1.0]))
        (tensor([-1.2655, -1.5155]), tensor([-1.2655, -1.5155]))
    """

    _like: Tensor

    def __init__(
        self,
        model: Any,
        guide: Any,
        example: Tensor,
        *,
        site: str = "x",
        draws: int = 100,
        seed: int = 0,
        data_plate: str | None = None,
    ) -> None:
        super().__init__()
        instance("example", example, (Tensor,), "a tensor with a row for each of some candidates")
        if not example.dim() or len(example) < 2:
            raise ValueError(f"example has shape {tuple(example.shape)}: expected at least 2 rows.")
        for name, function in (("model", model), ("guide", guide)):
            check_callable(name, function, (example,))
        self.draws, self.seed, self.site = integer("draws", draws, 2), seed_number(seed), site
        self.parts = nn.ModuleList([*module_parts("model", model), *module_parts("guide", guide)])
        self.values = Constrained()
        self._pair = (model, guide)
        self._one_by_one = False  # until a site without an inverse distribution function is met
        self.register_buffer("_like", example.detach()[:0].clone(), persistent=False)
        self._plate = self._checked(example.detach(), data_plate)

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one candidate."""
        return self._like.shape[1:]

    def _checked(self, example: Tensor, name: str | None) -> Any:
        """The data plate, after a look at what the pair draws."""
        with self._apart(held_values()):
            plate = data_plate_of(self._pair, (example,), None, name)
            if plate.name is None or plate.scaled:
                raise ValueError(
                    "the model has no plate over len(x) rows: expected one, since candidates come in any number. "
                    "Write `with pyro.plate('data', len(x)):` around all that belongs to a candidate."
                )
            self._structure = structure_of(*self._pair, (example,), plate, None)
        if self._structure.kind != "local":
            raise ValueError(
                f"the pair has latents outside plate '{plate.name}', which all candidates share, so that none has a "
                "density of its own. Move them into the plate, or make them parameters."
            )
        return plate

    @contextmanager
    def _apart(self, held: dict[str, Tensor] | None = None) -> Iterator[None]:
        """Run model or guide where nothing outside sees it."""
        with apart(), ParamStatements(self.values, self.parts, held):
            yield

    def model(self, x: Tensor) -> Any:
        """The model, with the generator's parameters."""
        pyro.module("values", self.values)
        with ParamStatements(self.values, self.parts):
            return self._pair[0](x)

    def guide(self, x: Tensor) -> Any:
        """The guide, with the generator's parameters."""
        pyro.module("values", self.values)
        with ParamStatements(self.values, self.parts):
            return self._pair[1](x)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        r"""Draws of the prior and, given it, of x: shape (n, \*event_shape)."""
        like = self._like.new_zeros(integer("n", n, 0), *self.event_shape)
        if not n:
            return like
        with self._apart(), evaluation_mode(*self._pair):
            trace = predict(self._pair[0], (like,), poutine.Trace(), self._plate, torch.arange(n))
        if self.site not in trace.nodes:
            raise ValueError(f"the model has no site '{self.site}'. Name the observed one: site=...")
        value: Tensor = trace.nodes[self.site]["value"]
        return value

    def log_prob(self, x: Tensor) -> Tensor:
        """Estimate of log p(x) in nats, shape (n,), without gradient; too low on average."""
        return torch.as_tensor(iwae_per_datum(self.log_weights(x)), dtype=_floating(x))

    def log_prob_error(self, x: Tensor) -> Tensor:
        r"""Standard error of ``log_prob`` in nats, shape (n,): :math:`\text{sd}(w) / (\bar w \sqrt{K})`."""
        log_w = self.log_weights(x)
        relative = np.exp(log_w - iwae_per_datum(log_w))
        return torch.as_tensor(relative.std(axis=0, ddof=1) / math.sqrt(self.draws), dtype=_floating(x))

    @torch.no_grad()
    def log_weights(self, x: Tensor) -> NDArray[np.floating[Any]]:
        r"""log p(x, z) - log q(z | x) in nats at K draws of the guide, shape (K, n)."""
        if x.dim() < 1 or x.shape[1:] != self.event_shape:
            expected = ", ".join(["n", *map(str, self.event_shape)])
            raise ValueError(f"x has shape {tuple(x.shape)}: expected ({expected}). Write a row for each candidate.")
        if not len(x):
            return np.zeros((self.draws, 0))
        together = 1 if self._one_by_one else max(1, ROWS // self.draws)
        return np.concatenate([self._weights_of(part) for part in x.split(together)], 1)

    def _weights_of(self, x: Tensor) -> NDArray[np.floating[Any]]:
        """The weights of some candidates, each repeated for its draws, at numbers that all of them share."""
        rows = x.repeat_interleave(self.draws, 0)
        guide = self._pair[1] if self._one_by_one else _SharedNumbers(self.seed, self.draws)(self._pair[1])
        with self._apart(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            try:
                draw = next(
                    weighted_draws(
                        self._pair[0], guide, (rows,), self._plate, self._structure, draws=1, local_draws=1,
                        batch_size=None,
                    )
                )  # fmt: skip
            except _NoInverse:
                self._one_by_one = True
                return np.concatenate([self._weights_of(row) for row in x.split(1)], 1)
        return draw.log_rows.reshape(len(x), self.draws).T


class _NoInverse(Exception):
    """A site whose distribution function has no inverse in torch."""


class _SharedNumbers(Messenger):
    """Draws sites by the inverse of their distribution function, at numbers that are the same for all candidates.

    Args:
        seed: of the numbers.
        draws: rows of each candidate, which follow each other.
    """

    def __init__(self, seed: int, draws: int) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)
        self._draws = draws

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["value"] is not None or site_is_subsample(msg):
            return
        fn = msg["fn"]
        if len(fn.batch_shape) != 1:  # rows are not its first axis
            raise _NoInverse
        shape = (self._draws, *fn.shape()[1:])
        u = torch.rand(shape, generator=self._generator, dtype=torch.float64).clamp(min=2.0**-53)
        u = u.repeat(fn.shape()[0] // self._draws, *[1] * (len(shape) - 1))
        try:
            value = base_distribution(fn).icdf(u)
        except NotImplementedError as error:
            raise _NoInverse from error
        msg["value"] = value.to(fn.sample().dtype)


def _floating(x: Tensor) -> torch.dtype:
    return x.dtype if x.is_floating_point() else torch.get_default_dtype()
