"""Texts as one density, in which each letter is drawn given the two before it, and what is exact about them.

It is a Markov chain on pairs of letters, so that rewards and entropies of whole texts are known for any length.
"""

import math
import re
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from sklearn import datasets
from torch import Size, Tensor, nn
from torch.distributions import constraints

from banel_pyro.entropy import renyi_entropy

LETTERS = " abcdefghijklmnopqrstuvwxyz"


class AutoregressiveTokens(TorchDistribution):
    r"""Token sequences of fixed length, in which each token is drawn given the two before it.

    .. math:: \log q(z) = \sum_{t=1}^{L} \log \text{softmax}(\text{logits}[z_{t-2}, z_{t-1}])_{z_t}, \quad
        z_{-1} = z_0 = 0

    Args:
        logits: unnormalised log probabilities of the next token, (V, V, V): by the last but one, the last, the next.
        length: tokens in a sequence, L.
    """

    arg_constraints = {"logits": constraints.independent(constraints.real, 3)}  # noqa: RUF012

    def __init__(self, logits: Tensor, length: int, validate_args: bool | None = None) -> None:
        self.logits, self.length = logits.log_softmax(-1), length
        super().__init__(Size(), Size((length,)), validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        """Token numbers, 0 to V - 1."""
        return constraints.independent(constraints.integer_interval(0, len(self.logits) - 1), 1)

    def expand(self, batch_shape: Size, _instance: Any = None) -> "AutoregressiveTokens":
        """The same distribution for a batch of independent sequences."""
        new = self._get_checked_instance(AutoregressiveTokens, _instance)
        new.logits, new.length = self.logits, self.length
        super(AutoregressiveTokens, new).__init__(Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @torch.no_grad()
    def sample(self, sample_shape: Size = Size()) -> Tensor:  # noqa: B008  # torch's own default
        """Sequences of token numbers, (*sample_shape, *batch_shape, L)."""
        shape, size = self._extended_shape(sample_shape), len(self.logits)
        uniform = torch.rand(self.length, math.prod(shape[:-1]), 1)
        below = self.logits.exp().cumsum(-1).flatten(0, 1)
        before, tokens = torch.zeros(uniform.shape[1], dtype=torch.long), []
        for u in uniform:
            token = torch.searchsorted(below[before], u).squeeze(-1).clamp(max=size - 1)
            before = before % size * size + token
            tokens.append(token)
        return torch.stack(tokens, -1).reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of whole sequences in nats, (*batch_shape,)."""
        windows = nn.functional.pad(value, (2, 0)).unfold(-1, 3, 1)
        found = self.logits[windows.unbind(-1)].sum(-1)
        return found.expand(torch.broadcast_shapes(found.shape, self.batch_shape))

    def next_tokens(self, value: Tensor) -> Tensor:
        """Log probabilities of the token at each place of sequences, given those before: (*batch_shape, L, V)."""
        before = nn.functional.pad(value, (2, -1)).unfold(-1, 2, 1)
        return self.logits[before.unbind(-1)]


def english() -> Tensor:
    """Letters of the descriptions of six data sets, as numbers: all that is no letter is a space."""
    loaders = ("iris", "wine", "breast_cancer", "diabetes", "digits", "linnerud")
    text = " ".join(getattr(datasets, f"load_{name}")().DESCR for name in loaders)
    return torch.tensor([LETTERS.index(letter) for letter in re.sub("[^a-z]+", " ", text.lower()).strip()])


def trigram_model(text: Tensor, prior: float = 5.0) -> Tensor:
    """Log probabilities of the next letter, (27, 27, 27), smoothed towards bigrams, and those towards single letters.

    ``prior`` is the weight of the shorter context, in letters seen. MacKay and Peto 1995, A hierarchical Dirichlet
    language model.
    """
    size = len(LETTERS)
    counts = torch.bincount((text[:-2] * size + text[1:-1]) * size + text[2:], minlength=size**3).float()
    counts = counts.reshape(size, size, size)
    single = (counts.sum((0, 1)) + 1) / (counts.sum() + size)
    double = (counts.sum(0) + prior * single) / (counts.sum((0, 2)).unsqueeze(-1) + prior)
    return ((counts + prior * double) / (counts.sum(-1, keepdim=True) + prior)).log()


def expected(log_probs: Tensor, length: int, values: Tensor) -> Tensor:
    """Mean over texts of the sum of values over their letters; values by the two letters before and the letter."""
    now = torch.zeros(log_probs.shape[:2])
    now[0, 0] = 1.0
    probs, visits = log_probs.exp(), torch.zeros_like(now)
    for _ in range(length):
        visits, now = visits + now, (now.unsqueeze(-1) * probs).sum(0)
    return (visits.unsqueeze(-1) * probs * values).sum()


def exact_entropy(log_probs: Tensor, length: int, alpha: float, of: str = "text") -> Tensor:
    """Entropy of order alpha of the whole text, or of its letters added up, in nats."""
    if alpha == 1:
        return expected(log_probs, length, -log_probs)
    if of == "letters":
        return expected(log_probs, length, renyi_entropy(dist.Categorical(logits=log_probs), alpha).unsqueeze(-1))
    power = (alpha * log_probs.double()).exp()  # far below 1 for a large alpha, with far smaller sums
    after, scale = torch.ones_like(power[0]), torch.zeros(())
    for _ in range(length):  # the sum of q^alpha over all that can follow two letters, kept near 1
        after = (power * after).sum(-1)
        largest = after.max()
        after, scale = after / largest, scale + largest.log()
    return ((scale + after[0, 0].log()) / (1 - alpha)).to(log_probs.dtype)
