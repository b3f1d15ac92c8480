"""How the runs of a command are made: a fresh pair for each, with the first weights that its seed gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import pyro
import torch

from banel_pyro.batches import as_rows
from banel_pyro.entropy.renyi import check_order
from banel_pyro.objectives import BaNEL_ELBO, Objective
from banel_pyro.objectives.banel import EntropyWeighted
from banel_pyro.pair import Pair
from banel_pyro.run import FitResult
from banel_pyro.seeding import fork_rng
from banel_pyro.training.control import Controller, TargetEntropy
from banel_pyro.training.interrupt import INTERRUPTED

__all__ = ["BATCH", "SMALL", "Lam", "Recipe", "cpu_threads", "lams_of", "parse_lams"]

BATCH, SMALL = 128, 512
"""Rows per step of data with more than ``SMALL`` rows; smaller data are taken whole."""

Lam: TypeAlias = float | dict[str, float] | Controller
"""What the command line can say of λ: a number, a number for single sites, or a target that it moves to."""


@dataclass(frozen=True)
class Recipe:
    """How each run is made: only λ, the seed and the folder differ between runs.

    Args:
        make: returns a fresh pair.
        batch_size: rows per step, ``"all"``, or None for all of up to :data:`SMALL` rows, else :data:`BATCH`.
        alpha: order of the entropy, None for the pair's own.
        options: of :func:`~banel_pyro.fit`.
    """

    make: Callable[[], Pair]
    batch_size: str | None
    alpha: float | None
    options: Mapping[str, Any]

    def run(self, lam: Lam, seed: int, then: Callable[[FitResult], Any] = lambda _: None, **options: Any) -> None:
        """Train a fresh pair with the first weights that the seed gives, alone with its parameters.

        Args:
            lam: λ, or what moves it.
            seed: of all that is drawn.
            then: looks at the result while its parameters are there; not called for a run that was interrupted.
            options: of ``fit``, in place of those of the recipe.

        Raises:
            KeyboardInterrupt: if the run was interrupted; it is saved.
        """
        with pyro.get_param_store().scope(), fork_rng(seed):
            pair = self.make()
            split = pair.split()
            rows = as_rows(split.train)
            pair = replace(pair, data=lambda: split, objective=_of_order(self.alpha, pair.objective))
            batch_size = _batch_size(self.batch_size, len(rows[0]) if rows else 0)
            result = pair.fit(**{**self.options, "lam": lam, "batch_size": batch_size, "seed": seed, **options})
            if result.stopped == INTERRUPTED:
                raise KeyboardInterrupt
            then(result)

    def rehearse(self, lam: Lam, seed: int = 0, then: Callable[[FitResult], Any] = lambda _: None) -> None:
        """One step, which goes through all checks and leaves nothing behind."""
        self.run(lam, seed, then, steps=1, epochs=None, progress=False, capture=False)


def _of_order(alpha: float | None, objective: Objective | None) -> Objective | None:
    """The pair's own objective with another order of the entropy."""
    if alpha is None:
        return objective
    changed = BaNEL_ELBO() if objective is None else copy(objective)
    if not isinstance(changed, EntropyWeighted):
        raise ValueError(f"--alpha={alpha:g}: the pair's own {type(changed).__name__} has no order. Leave --alpha out.")
    changed.alpha = check_order(alpha)
    return changed


def _batch_size(text: str | None, size: int) -> int | None:
    if text is None:
        return BATCH if size > SMALL else None
    if text == "all":
        return None
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"--batch-size={text!r}: expected a number of rows, or all.") from error


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Run a block with so many threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def parse_lams(text: str) -> dict[str, Lam]:
    """λ of each run by the name of its folder.

    Args:
        text: numbers with commas between, or for single sites ``z=0.4+w=0.1``.

    Raises:
        ValueError: for what cannot be read, or is there twice.

    Example:
        >>> parse_lams("0,z=0.4+w=0.1")
        {'lam=0': 0.0, 'lam=z=0.4+w=0.1': {'z': 0.4, 'w': 0.1}}
    """
    found: dict[str, Lam] = {}
    for item in text.split(","):
        try:
            parts = [part.partition("=") for part in item.split("+")] if "=" in item else []
            value = {site.strip(): float(number) for site, _, number in parts} if parts else float(item)
        except ValueError as error:
            raise ValueError(
                f"--lam={text!r}: cannot read {item!r}. Expected numbers with commas between, such as 0,0.4, or for "
                "single sites z=0.4+w=0.1."
            ) from error
        shown = "+".join(f"{s}={v:g}" for s, v in value.items()) if isinstance(value, dict) else f"{value:g}"
        if f"lam={shown}" in found:
            raise ValueError(f"--lam={text!r}: {shown} is there twice. Give each λ once.")
        found[f"lam={shown}"] = value
    return found


def lams_of(text: str | None, target: float | None, steps: int | None) -> dict[str, Lam]:
    """λ of each run by the name of its folder: numbers, a target that λ moves to, or both.

    A run with a target closes the gap in a tenth of its steps, but in no less than 50.

    Args:
        text: as for :func:`parse_lams`; None is 0, or nothing where there is a target.
        target: an entropy in nats per data point, over all its latents; in all, without a data plate.
        steps: of the run, if it is given in steps.

    Example:
        >>> list(lams_of("0,0.4", -3.0, 5000))
        ['lam=0', 'lam=0.4', 'entropy=-3']
    """
    found = {} if text is None and target is not None else parse_lams("0" if text is None else text)
    if target is not None:
        over = TargetEntropy.over if steps is None else max(50, steps // 10)
        found[f"entropy={target:g}"] = TargetEntropy(target, over=over)
    return found
