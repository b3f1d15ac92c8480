"""What the tests of learning from failures run over: a table of probabilities, whose every number is exact."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from banel_pyro.negative import (
    Distillation,
    Generator,
    Learned,
    Oracle,
    RatioFilter,
    Regions,
    Training,
    learn,
)

WINS = torch.tensor([3, 38])
"""The successes."""

VALUES = torch.arange(40)

QUICK = Training(epochs=4, batch_size=32, lr=0.1)


class Table(Generator):
    """A free probability for each of some numbers.

    Args:
        logits: log-probabilities up to a constant; by default a bell over 40 numbers.
    """

    def __init__(self, logits: Tensor | None = None) -> None:
        super().__init__()
        self.logits = nn.Parameter(-0.5 * torch.linspace(-2.5, 2.5, 40) ** 2 if logits is None else logits.clone())

    @property
    def event_shape(self) -> torch.Size:
        return torch.Size()

    def sample(self, n: int) -> Tensor:
        if n == 0:  # multinomial takes none
            return torch.empty(0, dtype=torch.long)
        return torch.multinomial(self.table(), n, replacement=True)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.logits.log_softmax(-1)[x]

    def table(self) -> Tensor:
        """The probabilities."""
        return self.logits.detach().softmax(-1)


class Coarse(Table):
    """A table of eight probabilities, one for each five numbers: a failure model that generalises."""

    def __init__(self) -> None:
        super().__init__(torch.zeros(8))

    def log_prob(self, x: Tensor) -> Tensor:
        return super().log_prob(x // 5) - torch.tensor(5.0).log()


def reward(x: Tensor) -> Tensor:
    return torch.isin(x, WINS)


def accepted(regions: Regions, of: Tensor = VALUES) -> Tensor:
    """Which of the numbers no region rejects."""
    return ~regions.rejects(of)


def run(out: Path, **options: Any) -> Learned:
    """A run of a few rounds, in a second or so."""
    given: dict[str, Any] = {
        "generator": options.pop("generator", None) or Table(),
        "oracle": options.pop("oracle", None) or Oracle(reward, batch_size=64),
        "budget": 120, "rounds": 3, "factor": 2.0, "candidates": 500, "seed": 1, "known": "ask", "progress": False,
        "filter": RatioFilter(QUICK), "distillation": Distillation(draws=400, training=QUICK),
    }  # fmt: skip
    return learn(**given | options, out=out)
