"""The generator outside of all rejection regions: a Pyro distribution, sampled by rejection with a cap on the draws."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from banel_pyro.checks import integer
from banel_pyro.modules import evaluation_mode
from banel_pyro.negative.generator import Generator, GeneratorDistribution, check_generator
from banel_pyro.negative.region import Region, Regions
from banel_pyro.negative.score import Batch, batches
from banel_pyro.negative.threshold import fraction
from banel_pyro.terms import Estimate

if TYPE_CHECKING:
    from banel_pyro.inference_data import ArviZ

__all__ = ["AcceptanceError", "Draws", "ExplorationPosterior", "Tally"]

MOST_DRAWS = 1_000_000
"""Draws of the generator in one call of ``sample``, unless the user says otherwise."""


@dataclass
class Tally:
    """What became of draws of the generator.

    Args:
        drawn: how many were made.
        rejected: by number of region, how many it was the first to reject.
    """

    drawn: int = 0
    rejected: list[int] = field(default_factory=list)

    @property
    def accepted(self) -> int:
        """Draws that no region rejected."""
        return self.drawn - sum(self.rejected)

    def add(self, which: Tensor) -> None:
        """Count draws, given the number of the first region that rejects each, −1 for none."""
        counts = torch.bincount(which + 1, minlength=len(self.rejected) + 1).tolist()
        self.drawn += len(which)
        self.rejected = [old + new for old, new in zip(self.rejected, counts[1:], strict=True)]


class AcceptanceError(RuntimeError):
    """Too few draws are accepted to go on.

    Args:
        tally: of the draws of this call.
        wanted: accepted draws that were asked for.
        max_draws: the cap.
    """

    def __init__(self, tally: Tally, wanted: int, max_draws: int) -> None:
        self.tally, self.wanted, self.max_draws = tally, wanted, max_draws
        self.drawn, self.accepted, self.rejected = tally.drawn, tally.accepted, tuple(tally.rejected)
        by_region = ", ".join(f"region {i}: {n:,}" for i, n in enumerate(tally.rejected)) or "there are no regions"
        super().__init__(
            f"{tally.accepted:,} of {tally.drawn:,} draws were accepted, {wanted:,} were wanted, and max_draws="
            f"{max_draws:,} will not do. First rejected by {by_region}. Leave out regions, choose a smaller factor, "
            "distil the posterior into the generator so that its regions can go, or raise max_draws."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """As an error that comes back from another process is made again."""
        return type(self), (self.tally, self.wanted, self.max_draws)


@dataclass(frozen=True)
class Draws:
    r"""All that was drawn to get some accepted candidates.

    Args:
        x: the accepted candidates that were asked for, shape (n, \*event_shape): the first of ``raw`` with ``which``
            of −1.
        raw: every draw of the generator, shape (m, \*event_shape), m ≥ n.
        which: for each of them the number of the first region that rejects it, −1 where none does; shape (m,).
    """

    x: Tensor
    raw: Tensor
    which: Tensor


class ExplorationPosterior(GeneratorDistribution):
    r"""The generator conditioned on the event that a draw lies in no rejection region.

    .. math::
        q(x) = \frac{p_\theta(x)\, 1[x \notin \tilde R]}{P(\text{accept})}, \qquad
              \tilde R = \bigcup_t \{x : s_t(x) < \log\tau_t\}

    :meth:`log_prob` is UNNORMALISED: :math:`\log p_\theta(x)` outside of the regions and −∞ inside. It differs from
    :math:`\log q` by one constant, :math:`\log P(\text{accept})`, of which :attr:`acceptance` has an estimate. In
    ``pyro.sample`` it is drawn from like any other distribution (traces, ``Predictive``).

    The success rate under it is that of the generator times P(accept | success) / P(accept): at most
    1 / P(accept) times as large.

    Args:
        generator: :math:`p_\theta`; it is not copied.
        regions: the regions, a region, or several.
        max_draws: the most draws of the generator in one call of ``sample``.
        batch_size: draws at a time, and rows whose density is computed at a time.
        batch_shape: of the distribution, by default none.

    Raises:
        TypeError, ValueError: for options that are none of these.

    Example:
        >>> import pyro.distributions as dist
        >>> from banel_pyro.negative import RandomScore
        >>> class Die(Generator):
        ...     event_shape = torch.Size()
        ...     def sample(self, n): return dist.Categorical(torch.ones(6)).sample((n,))
        ...     def log_prob(self, x): return dist.Categorical(torch.ones(6)).log_prob(x)
        >>> posterior = ExplorationPosterior(Die(), Region.at_quantile(RandomScore(0), torch.arange(6), factor=2))
        >>> posterior.log_prob(torch.arange(6)).isfinite().sum()
        tensor(3)
        >>> posterior.sample((5,)).shape
        torch.Size([5])

    Reference: Lee, Amos and Fanti (2025), arXiv 2510.09596.
    """

    def __init__(
        self,
        generator: Generator,
        regions: Regions | Region | Iterable[Region] = (),
        *,
        max_draws: int = MOST_DRAWS,
        batch_size: int = 1024,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008
    ) -> None:
        super().__init__(check_generator(generator, probe=False), batch_shape)
        self.regions = Regions.of(regions)
        self.max_draws, self.batch_size = integer("max_draws", max_draws), integer("batch_size", batch_size)
        self.tally = Tally(rejected=[0] * len(self.regions))
        """What became of all draws so far, of the expanded copies of this distribution too."""

    def expand(self, batch_shape: Any, _instance: Any = None) -> ExplorationPosterior:
        """The same distribution for a larger batch of independent candidates; its draws count here too."""
        sizes = {"max_draws": self.max_draws, "batch_size": self.batch_size}
        twin = type(self)(self.generator, self.regions, **sizes, batch_shape=torch.Size(batch_shape))
        twin.tally = self.tally
        return twin

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Independent accepted draws of shape sample_shape + batch_shape + event_shape.

        Raises:
            AcceptanceError: if they would take more than ``max_draws`` draws of the generator.
        """
        shape = torch.Size(sample_shape) + self.batch_shape
        accepted = [raw[which < 0] for raw, which in self._draw(shape.numel())]
        return torch.cat(accepted)[: shape.numel()].reshape(shape + self.event_shape)

    def sample_with_draws(self, n: int) -> Draws:
        """Accepted draws together with all that were rejected on the way.

        Args:
            n: accepted draws.

        Raises:
            AcceptanceError: if they would take more than ``max_draws`` draws of the generator.
        """
        parts = list(self._draw(integer("n", n)))
        raw, which = torch.cat([part for part, _ in parts]), torch.cat([part for _, part in parts])
        return Draws(raw[which < 0][:n], raw, which)

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Unnormalised log-density in nats: :math:`\log p_\theta(x)`, and −∞ in the regions.

        Args:
            value: candidates, shape sample_shape + batch_shape + event_shape.

        Returns:
            Shape sample_shape + batch_shape; differentiable by the parameters of the generator.
        """
        shape = torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)
        rows = value.expand(shape).reshape(-1, *self.event_shape)
        found = []
        for batch in batches(rows, self.batch_size):
            with evaluation_mode(self.generator):  # as the scores, or it would be another density
                log_p = self.generator.log_prob(batch.x)
            rejected = self.regions.which_batch(batch) >= 0
            found.append(log_p.masked_fill(rejected.to(log_p.device), -math.inf))
        return torch.cat(found).reshape(shape[: len(shape) - len(self.event_shape)])

    @property
    def acceptance(self) -> Estimate:
        """P(accept) from all draws so far, with its binomial standard error.

        Raises:
            ValueError: before the first draw.
        """
        return fraction(self.tally.accepted, self.tally.drawn)

    def to_arviz(self, n: int, *, seed: int | None = None) -> ArviZ:
        r"""Draw into what ArviZ works on: what was accepted, and what was rejected by which region.

        Groups ``posterior`` (``x``, the accepted draws), ``sample_stats`` (their unnormalised ``log_prob``, and
        ``score`` under each region), ``prior`` (``x``, every draw of the generator) and ``sample_stats_prior`` (their
        ``log_prob`` under the generator, ``score``, and ``rejected_by``: the number of the first region that rejects
        the draw, −1 where it was accepted). Densities and scores are in nats. Draws are independent.

        Args:
            n: accepted draws.
            seed: draws inside a forked generator and leaves yours alone; None draws from yours.

        Returns:
            With attributes ``drawn``, ``accepted``, ``acceptance``, ``acceptance_stderr``, ``rejected`` (JSON: by
            region), ``log_tau`` (JSON) and ``scores`` (JSON: what each region orders by).

        Raises:
            AcceptanceError: if they would take more than ``max_draws`` draws of the generator.
        """
        from banel_pyro.negative.drawn import posterior_to_arviz  # ArviZ and xarray are heavy to import

        return posterior_to_arviz(self, n, seed=seed)

    def _draw(self, wanted: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Draws of the generator and what rejects them, in batches, until enough of them were accepted."""
        now = Tally(rejected=[0] * len(self.regions))
        while now.drawn == 0 or now.accepted < wanted:
            size = _next_size(now, wanted, min(self.batch_size, self.max_draws - now.drawn))
            with torch.no_grad():
                with evaluation_mode(self.generator):
                    batch = Batch(self.generator.sample(size))
                which = self.regions.which_batch(batch)
            now.add(which)
            self.tally.add(which)
            yield batch.x, which
            if now.accepted < wanted and _hopeless(now, wanted, self.max_draws):
                raise AcceptanceError(now, wanted, self.max_draws)


def _next_size(now: Tally, wanted: int, most: int) -> int:
    """How many draws will probably do. Only this call counts: a seed gives the same draws whatever came before."""
    missing = max(1, wanted - now.accepted)  # of none, one: its dtype is that of the result
    if now.drawn:
        missing = math.ceil(1.1 * missing * now.drawn / max(now.accepted, 0.5)) + 1
    return min(missing, most)


def _hopeless(now: Tally, wanted: int, max_draws: int) -> bool:
    """Whether the cap is reached, or will be even at the largest acceptance that the draws allow.

    With a accepted of d draws that is (a + 10 + 4.5 √a) / d: a Poisson count would be as small as a with a probability
    of less than 1e-4.
    """
    most = min(1.0, (now.accepted + 10 + 4.5 * math.sqrt(now.accepted)) / now.drawn)
    return now.drawn >= max_draws or now.drawn + (wanted - now.accepted) / most > max_draws
