"""The policy that writes texts, what it is rewarded for, and the objectives that it is trained with."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Size, Tensor, nn

from banel_pyro import BaNEL_TraceGraph_ELBO
from banel_pyro.entropy import renyi_entropy
from banel_pyro.objectives import GraphObjective
from banel_pyro.objectives.bound import Bound
from banel_pyro.terms import Summand
from demos.texts.chain import LETTERS, AutoregressiveTokens, exact_entropy, expected


class Policy(nn.Module):
    """A network with one hidden layer, from the last two letters to the logits of the next: (27, 27, 27)."""

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.last_but_one = nn.Parameter(torch.randn(len(LETTERS), 1, hidden))
        self.last = nn.Parameter(torch.randn(len(LETTERS), hidden))
        self.next = nn.Linear(hidden, len(LETTERS))

    def forward(self) -> Tensor:
        """The logits after every pair of letters."""
        return self.next((self.last_but_one + self.last).relu())


@dataclass(frozen=True)
class Task:
    """What is written, and for what reward: the log-likelihood under ``language``, in nats over ``temperature``."""

    language: Tensor
    length: int
    temperature: float

    def model(self) -> None:
        """Every text is as likely as any other, but for its reward."""
        places = dist.Categorical(logits=torch.zeros(len(self.language))).expand(Size((self.length,)))
        text = pyro.sample("text", places.to_event(1))
        reward = AutoregressiveTokens(self.language, self.length).log_prob(text)
        pyro.factor("reward", reward / self.temperature)

    def guide(self, policy: Callable[[], Tensor]) -> Callable[[], None]:
        """The policy writes a text. The baseline of its score is the decaying average of its cost, as Pyro has it."""

        def write() -> None:
            tokens = AutoregressiveTokens(policy(), self.length)
            pyro.sample("text", tokens, infer={"baseline": {"use_decaying_avg_baseline": True}})

        return write


@dataclass(frozen=True)
class Bonus:
    """``weight`` times the entropy of order ``alpha`` of the whole text, or of each next letter, added up."""

    alpha: float = 1.0
    weight: float = 0.0
    of: str = "text"

    @property
    def name(self) -> str:
        """The bonus in words, but for its weight."""
        if self.weight == 0:
            return "none"
        return "Shannon" if self.alpha == 1 else f"Rényi {self.alpha:g} of {self.of}"

    def lam(self, temperature: float) -> float:
        """The lambda that leaves this bonus: Shannon's entropy is in the ELBO already, once."""
        return (self.alpha == 1) - self.weight / temperature

    def objective(self, temperature: float, **options: Any) -> GraphObjective:
        """The loss with this bonus."""
        kind = LetterwiseRenyi if self.of == "letters" else BaNEL_TraceGraph_ELBO
        return kind(self.lam(temperature), alpha=self.alpha, vectorize_particles=True, max_plate_nesting=0, **options)


class LetterwiseRenyi(GraphObjective):
    """The ELBO, and lam times the mean Rényi entropy of the next letter, summed over the places of a text."""

    def __init__(self, lam: float, alpha: float, **options: Any) -> None:
        super().__init__(lam, **options)
        self.alpha = alpha

    def penalty(self, bound: Bound) -> list[Summand]:
        """The entropies at the places of the drawn text. Letters pay for the entropies after them."""
        site = bound.guide_trace.nodes["text"]
        after = dist.Categorical(logits=site["fn"].next_tokens(site["value"]))
        entropy = renyi_entropy(after, self.alpha).sum(-1)
        return [Summand(entropy, entropy, site["cond_indep_stack"], weight=self.lam)]


def exact_loss(log_probs: Tensor, task: Task, bonus: Bonus) -> Tensor:
    """The loss that the objective of ``bonus`` estimates, in nats."""
    prior = task.length * math.log(len(log_probs))
    elbo = expected(log_probs, task.length, task.language / task.temperature - log_probs) - prior
    entropy = exact_entropy(log_probs, task.length, bonus.alpha, bonus.of)
    return -elbo + bonus.lam(task.temperature) * entropy
