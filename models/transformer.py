"""Autoregressive transformers over tokens and over the pixels of small images, as generators.

    p(x) = prod_t p(x_t | x_1, ..., x_{t-1}),

each factor a softmax of a linear function of a causal transformer's state. They are evaluated by teacher forcing, in
one pass, and sampled with the keys and values of earlier positions cached, so that n sequences of length L cost at
most n L positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from banel_pyro.checks import integer
from banel_pyro.negative import Generator
from models.decoder import TokenDecoder, check_tokens, traced

__all__ = ["PixelTransformer", "TokenTransformer"]

CACHED = 4096
"""Positions whose states stay in a processor's cache: larger batches are slower where nothing is differentiated."""


class TokenTransformer(Generator):
    """Sequences of `length` tokens, or of up to so many, ended by `end`.

    What follows the end counts for nothing in `log_prob`, and is `end` in what `sample` draws.

    Args:
        tokens: kinds of tokens: 0 to tokens - 1.
        length: tokens of a sequence, the end included.
        width: numbers in a state.
        layers: blocks.
        heads: of attention.
        end: the token that ends a sequence, or None where all have the same length.
    """

    def __init__(
        self, tokens: int, length: int, *, width: int = 64, layers: int = 2, heads: int = 4, end: int | None = None
    ) -> None:
        super().__init__()
        self.tokens, self.length = integer("tokens", tokens, 2), integer("length", length)
        self.end = None if end is None else integer("end", end, 0, tokens - 1)
        # One token more can be read: the one before a sequence.
        self.net = TokenDecoder(tokens + 1, tokens, length, width=width, layers=layers, heads=heads)

    @property
    def event_shape(self) -> torch.Size:
        """(length,)."""
        return torch.Size([self.length])

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probabilities (n,) in nats of sequences of integers (n, length).

        Raises:
            TypeError, ValueError: naming the first token that is none, or the shape.
        """
        x = check_tokens("x", x, self.event_shape, self.tokens).flatten(1)
        if torch.is_grad_enabled():
            return self._log_prob(x)
        rows = max(1, CACHED // self.length)
        return torch.cat([self._log_prob(part) for part in x.split(rows)])

    def _log_prob(self, x: Tensor) -> Tensor:
        counts = None
        if self.end is not None:
            counts = ended_before(x, self.end).logical_not()
            if not traced():
                counts = counts[:, : max(1, int(counts.any(0).sum()))]  # nothing counts after the longest one
                x = x[:, : counts.shape[1]]
        start = x.new_full((len(x), 1), self.tokens)
        logits = self.net(torch.cat([start, x[:, :-1]], 1))
        found = -F.cross_entropy(logits.flatten(0, 1), x.flatten(), reduction="none").view(x.shape)
        return (found if counts is None else found * counts).sum(1)

    @torch.no_grad()
    def sample(self, n: int, *, uniforms: Tensor | None = None, cached: bool = True) -> Tensor:
        """Sequences (n, length), int64.

        Args:
            n: how many.
            uniforms: numbers (n, length) in [0, 1) that they are a function of; by default from torch's generator.
            cached: False to read everything anew for each token.
        """
        integer("n", n, 0)
        if uniforms is None:
            uniforms = torch.rand(n, self.length, dtype=torch.float64)
        if uniforms.shape != (n, self.length):
            raise ValueError(f"uniforms has shape {tuple(uniforms.shape)}: expected {(n, self.length)}.")
        start = torch.full((n, 1), self.tokens)
        found = self.net.complete(start, self.length, uniforms=uniforms, end=self.end, cached=cached)
        return found.view(n, *self.event_shape)


class PixelTransformer(TokenTransformer):
    """Images of a few grey levels, pixel by pixel in reading order.

    Args:
        levels: grey levels: 0 to levels - 1.
        shape: rows and columns of an image.
        width: numbers in a state.
        layers: blocks.
        heads: of attention.
    """

    def __init__(
        self, levels: int, shape: tuple[int, int], *, width: int = 64, layers: int = 2, heads: int = 4
    ) -> None:
        self.shape = (integer("rows", shape[0]), integer("columns", shape[1]))
        super().__init__(levels, shape[0] * shape[1], width=width, layers=layers, heads=heads)

    @property
    def event_shape(self) -> torch.Size:
        """(rows, columns)."""
        return torch.Size(self.shape)


def ended_before(x: Tensor, end: int) -> Tensor:
    """Whether each token (n, length) comes after the first `end` of its sequence."""
    ends = x == end
    return (ends.cumsum(1) - ends.long()) > 0
