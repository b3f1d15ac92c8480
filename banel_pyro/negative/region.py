"""Rejection regions: the candidates that are taken for failures without asking the oracle, and unions of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, Literal, overload

import torch
from torch import Tensor

from banel_pyro.checks import instance, number
from banel_pyro.negative.generator import Generator
from banel_pyro.negative.score import Batch, Score, batches, scored
from banel_pyro.negative.threshold import Cut, filter_factor, fraction, quantile_cut
from banel_pyro.terms import Estimate

__all__ = ["Region", "Regions"]

_log = logging.getLogger("banel_pyro")


class Region:
    r"""A rejection region :math:`\tilde R = \{x : s(x) < \log\tau\}`: the candidates most like the failures.

    The inequality is strict: where all scores are equal, as with a failure model that has learnt nothing, a threshold
    at that score rejects nothing.

    Args:
        score: :math:`s`, low for what is like the failures.
        log_tau: the threshold :math:`\log\tau` in nats; −∞ rejects nothing. A fixed one depends on the calibration of
            both densities; :meth:`at_quantile` does not.
        cut: how the threshold was chosen, where it is a quantile.

    Raises:
        TypeError, ValueError: for what is no score or no threshold.

    Example:
        >>> from banel_pyro.negative import RandomScore
        >>> region = Region.at_quantile(RandomScore(0), torch.arange(1000), factor=4)
        >>> region.rejects(torch.arange(1000)).sum()
        tensor(750)
    """

    def __init__(self, score: Score, log_tau: float, *, cut: Cut | None = None) -> None:
        instance("score", score, (Score,), "a Score, such as LikelihoodRatio(base, failures)")
        self.score, self.cut = score, cut
        self.log_tau = log_tau if log_tau == -math.inf else number("log_tau", log_tau)

    @classmethod
    def at_quantile(
        cls,
        score: Score,
        candidates: Tensor,
        factor: float,
        *,
        ties: Literal["accept", "reject"] = "accept",
        batch_size: int = 1024,
    ) -> Region:
        r"""The region that rejects the fraction 1 − 1/f of the lowest scores.

        Candidates whose scores are equal up to rounding are accepted or rejected together, so that the acceptance may
        differ from 1/f. What it is on the candidates stands in ``cut``.

        Args:
            score: the score.
            candidates: fresh draws from the proposal, shape (n, \*event_shape): not those that the failure model was
                trained on, which it knows too well.
            factor: the filter factor f, more than 1: an accepted draw costs about f draws.
            ties: what happens to the candidates that share the score at the quantile. ``"accept"``: at least 1/f is
                accepted, and nothing is rejected where they have the lowest score. ``"reject"``: at most 1/f is
                accepted, as a generator needs that makes one and the same failure in more than 1/f of its draws.
                Nothing is rejected where all scores tie, either way.
            batch_size: candidates in memory at a time.

        Raises:
            TypeError, ValueError: for f of 1 or less, or too few candidates to reject one.
        """
        filter_factor(factor)
        if ties not in ("accept", "reject"):
            raise ValueError(f"ties={ties!r}: expected 'accept' or 'reject'. Write ties='accept', the careful one.")
        found = [scored(score, batch) for batch in batches(candidates, batch_size)]
        values, sizes = (torch.cat(parts) for parts in zip(*found, strict=True))
        cut = quantile_cut(values, sizes, factor, ties)
        if cut.log_tau == -math.inf:
            _log.info(
                "factor=%g rejects nothing: %.3g %% of %d candidates share the lowest score, up to rounding, and ties "
                "are accepted together. Train the failure model longer, take a larger factor, or ties='reject'.",
                *(cut.factor, 100 * cut.ties, cut.candidates),
            )
        return cls(score, cut.log_tau, cut=cut)

    def rejects(self, x: Tensor, *, batch_size: int = 1024) -> Tensor:
        r"""Which candidates lie in the region.

        Args:
            x: candidates, shape (n, \*event_shape).
            batch_size: rows in memory at a time.

        Returns:
            Booleans of shape (n,).
        """
        return torch.cat([self.rejects_batch(batch) for batch in batches(x, batch_size)])

    def rejects_batch(self, batch: Batch) -> Tensor:
        """As :meth:`rejects`, with the log-densities that are known already."""
        if self.log_tau == -math.inf:
            return torch.zeros(len(batch.x), dtype=torch.bool, device=batch.x.device)
        scores = scored(self.score, batch)[0].double()  # a threshold between two floats is none of the two
        return (scores < self.log_tau).to(batch.x.device)

    def acceptance(self, candidates: Tensor, *, batch_size: int = 1024) -> Estimate:
        r"""The probability that a candidate is not rejected, with its binomial standard error.

        Args:
            candidates: draws from the proposal, shape (n, \*event_shape).
            batch_size: rows in memory at a time.

        Raises:
            ValueError: without candidates.
        """
        rejected = self.rejects(candidates, batch_size=batch_size)
        return fraction(int((~rejected).sum()), len(rejected))

    def check(self, candidates: Tensor, *, batch_size: int = 1024) -> Region:
        r"""This region, if it leaves something: a fixed threshold may lie above every score.

        Args:
            candidates: draws from the proposal, shape (n, \*event_shape).
            batch_size: rows in memory at a time.

        Raises:
            ValueError: if it rejects all of them.
        """
        if self.acceptance(candidates, batch_size=batch_size).value == 0:
            raise ValueError(
                f"log_tau={self.log_tau:.6g} rejects all of {len(candidates)} candidates: expected a region that "
                "leaves some. Lower it, or write Region.at_quantile(score, candidates, factor=2)."
            )
        return self

    def __repr__(self) -> str:
        name = self.score.kind or type(self.score).__name__
        return f"Region({name}, log_tau={self.log_tau:.6g})"


class Regions(Sequence[Region]):
    """The union of rejection regions: what any of them rejects is rejected. Of none it is empty.

    Joining a region can only shrink what is accepted. A candidate that one region rejects never comes back.

    Args:
        regions: the regions, in the order in which they are tried.

    Raises:
        TypeError: if one is no region.

    Example:
        >>> from banel_pyro.negative import RandomScore
        >>> union = Regions([Region(RandomScore(0), 0.5)]) | Region(RandomScore(1), 0.5)
        >>> x = torch.arange(8)
        >>> union.rejects(x).equal(union[0].rejects(x) | union[1].rejects(x))
        True
    """

    def __init__(self, regions: Iterable[Region] = ()) -> None:
        self._regions = tuple(regions)
        for place, region in enumerate(self._regions):
            instance(f"regions[{place}]", region, (Region,), "a Region")

    @classmethod
    def of(cls, regions: Regions | Region | Iterable[Region]) -> Regions:
        """Regions from one, from several, or as they are."""
        return regions if isinstance(regions, Regions) else cls([regions] if isinstance(regions, Region) else regions)

    def rejects(self, x: Tensor, *, batch_size: int = 1024) -> Tensor:
        r"""Which candidates lie in any of the regions.

        Args:
            x: candidates, shape (n, \*event_shape).
            batch_size: rows in memory at a time.

        Returns:
            Booleans of shape (n,).
        """
        return self.which(x, batch_size=batch_size) >= 0

    def which(self, x: Tensor, *, batch_size: int = 1024) -> Tensor:
        r"""The number of the first region in which a candidate lies, −1 where it is accepted.

        Args:
            x: candidates, shape (n, \*event_shape).
            batch_size: rows in memory at a time.

        Returns:
            Integers of shape (n,).
        """
        return torch.cat([self.which_batch(batch) for batch in batches(x, batch_size)])

    def which_batch(self, batch: Batch) -> Tensor:
        """As :meth:`which`. A region sees the rows that are still accepted; a shared generator is asked once."""
        found = torch.full((len(batch.x),), -1, device=batch.x.device)
        rows = torch.arange(len(batch.x), device=batch.x.device)
        for place, region in enumerate(self._regions):
            if not len(rows):
                break
            rejected = region.rejects_batch(batch)
            found[rows[rejected]] = place
            rows, batch = rows[~rejected], batch.take(~rejected)
        return found

    def scores(self, x: Tensor, *, batch_size: int = 1024) -> Tensor:
        r"""Every score of every candidate in nats, in float64.

        Args:
            x: candidates, shape (n, \*event_shape).
            batch_size: rows in memory at a time.

        Returns:
            Shape (n, number of regions).
        """
        return torch.cat([self.scores_batch(batch) for batch in batches(x, batch_size)])

    def scores_batch(self, batch: Batch) -> Tensor:
        """As :meth:`scores`, with the log-densities that are known already."""
        columns = [scored(region.score, batch)[0].double() for region in self._regions]
        return torch.stack(columns, -1) if columns else torch.empty((len(batch.x), 0), dtype=torch.float64)

    def acceptance(self, candidates: Tensor, *, batch_size: int = 1024) -> Estimate:
        r"""The probability that a candidate is in none of the regions, with its binomial standard error.

        Args:
            candidates: draws from the proposal, shape (n, \*event_shape).
            batch_size: rows in memory at a time.

        Raises:
            ValueError: without candidates.
        """
        rejected = self.rejects(candidates, batch_size=batch_size)
        return fraction(int((~rejected).sum()), len(rejected))

    def save(self, path: str | PathLike[str]) -> None:
        """Write the regions to one file: numbers and tensors, no code.

        Args:
            path: of the file; one that is there is replaced.

        Raises:
            ValueError: for a score without a ``kind``, which could not be read back.
            OSError: if it cannot be written; an old file is as it was.
        """
        from banel_pyro.negative.region_file import write_regions

        write_regions(self, path)

    @staticmethod
    def load(
        path: str | PathLike[str], generator: Generator | Mapping[str, Generator], *, scores: Iterable[type[Score]] = ()
    ) -> Regions:
        """Read regions that :meth:`save` wrote. Generators that they shared are shared again.

        Args:
            path: of the file.
            generator: one of the architecture and dtype of those that were saved. It is copied for each of them, and
                left as it is. Where failure models have an architecture of their own, a mapping from the name of the
                part to such a generator: ``{"base": ..., "failures": ...}``.
            scores: classes of scores of your own, which take the numbers of their ``config()`` and the generators of
                their ``parts()``.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is damaged, holds code, or does not fit the generator.
        """
        from banel_pyro.negative.region_file import read_regions

        return read_regions(path, generator, scores)

    def __or__(self, other: Regions | Region) -> Regions:
        return Regions((*self, *Regions.of(other)))

    __add__ = __or__

    @overload
    def __getitem__(self, place: int) -> Region: ...
    @overload
    def __getitem__(self, place: slice) -> Regions: ...
    def __getitem__(self, place: Any) -> Region | Regions:
        found: Any = self._regions[place]
        return Regions(found) if isinstance(place, slice) else found

    def __len__(self) -> int:
        return len(self._regions)

    def __iter__(self) -> Iterator[Region]:
        return iter(self._regions)

    def __repr__(self) -> str:
        return f"Regions({list(self._regions)!r})"
