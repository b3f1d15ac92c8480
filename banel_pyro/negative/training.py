"""Maximum likelihood: how generators and failure models are trained, through the library's own ``fit``."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import pandas as pd
import pyro
import torch
from torch import Tensor

from banel_pyro.checks import integer, number
from banel_pyro.modules import evaluation_mode
from banel_pyro.negative.generator import Generator
from banel_pyro.training.fit import fit

__all__ = ["Training"]


@dataclass(frozen=True)
class Training:
    r"""How a generator is trained on candidates: it maximises :math:`\frac1n \sum_i \log p_\theta(x_i)`.

    Args:
        epochs: passes through the candidates; 0 leaves the generator as it is.
        batch_size: candidates per step.
        lr: learning rate of Adam.
        options: of :func:`banel_pyro.fit`, beyond these, such as ``clip_norm`` or ``capture``. Steps are not captured
            by default, since compiling takes longer than most of these runs.

    Raises:
        TypeError, ValueError: for options out of range.

    Example:
        >>> from banel_pyro.negative import DistributionGenerator
        >>> coin = DistributionGenerator(torch.distributions.Bernoulli, probs=torch.tensor(0.5))
        >>> history = Training(epochs=200, lr=0.05)(coin, torch.tensor([1.0, 1.0, 1.0, 0.0]), seed=0)
        >>> round(coin.log_prob(torch.ones(1)).exp().item(), 2)
        0.75
    """

    epochs: int = 10
    batch_size: int = 64
    lr: float = 1e-3
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        integer("epochs", self.epochs, 0)
        integer("batch_size", self.batch_size)
        if number("lr", self.lr) <= 0:
            raise ValueError(f"lr={self.lr}: expected a learning rate above 0, such as 1e-3.")
        taken = {"epochs", "steps", "batch_size", "lr", "seed"} & self.options.keys()
        if taken:
            raise ValueError(f"options has {sorted(taken)}: these are fields of Training. Write Training(epochs=...).")

    def __call__(
        self, generator: Generator, x: Tensor, *, seed: int, validation: Tensor | None = None, **options: Any
    ) -> pd.DataFrame:
        r"""Train a generator in place.

        Args:
            generator: what is trained.
            x: candidates, shape (n, \*event_shape).
            seed: of the order of the candidates and of all else that is drawn.
            validation: candidates that are held out; the history then has their ``val_elbo``.
            options: of this run, over those of the field ``options``.

        Returns:
            The history of :class:`~banel_pyro.FitResult`, in nats per candidate; empty for 0 epochs.
        """
        if not self.epochs or not len(x):
            return pd.DataFrame()
        trainable = [p for p in generator.parameters() if p.requires_grad]
        if not trainable:
            raise ValueError(
                f"the generator ({type(generator).__name__}) has no parameters to train. Make them torch parameters, "
                "or train for 0 epochs."
            )
        defaults: dict[str, Any] = {"capture": False, "collapse": None, "progress": False, "posterior_samples": 0}
        with pyro.get_param_store().scope():
            result = fit(
                generator.model, generator.guide, x, epochs=self.epochs, batch_size=min(self.batch_size, len(x)),
                lr=self.lr, seed=seed, validation=validation, **defaults | self.options | options,
            )  # fmt: skip
        generator.zero_grad(set_to_none=True)
        return result.history

    def describe(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def log_probs(generator: Generator, x: Tensor, batch_size: int = 1024) -> Tensor:
    """Log-densities without gradient and in evaluation mode, in batches: shape (n,), nats."""
    with torch.no_grad(), evaluation_mode(generator):
        return torch.cat([generator.log_prob(part) for part in x.split(batch_size)]) if len(x) else x.new_zeros(0)
