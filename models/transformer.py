"""Autoregressive transformers: over tokens.

They are generators for :mod:`banel_pyro.negative`: sampled with cached keys and values, evaluated by teacher forcing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from banel_pyro.negative import Generator

__all__ = ["TokenTransformer"]


class Block(nn.Module):
    """Causal attention and a two-layer network, each after a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor, cache: tuple[Tensor, Tensor] | None = None, at: int = 0) -> Tensor:
        """The states (n, t, width) of t positions from ``at`` on; with a cache, of (n, heads, length, width/heads)."""
        n, t, width = h.shape
        q, k, v = self.qkv(self.norm1(h)).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if cache is not None:
            keys, values = cache
            keys[:, :, at : at + t], values[:, :, at : at + t] = k, v
            k, v = keys[:, :, : at + t], values[:, :, : at + t]
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=t > 1)
        h = h + self.out(mixed.transpose(1, 2).reshape(n, t, width))
        return h + self.down(F.gelu(self.up(self.norm2(h))))


class TokenTransformer(Generator):
    """Sequences of up to ``length`` tokens, ended by ``end``; what follows the end is ``end`` too."""

    def __init__(self, tokens: int, length: int, *, width: int = 64, layers: int = 2, heads: int = 4, end: int | None = None) -> None:
        super().__init__()
        self.tokens, self.length, self.end, self.heads = tokens, length, end, heads
        self.embed = nn.Embedding(tokens + 1, width)  # the last one: where a sequence begins
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens)

    @property
    def event_shape(self) -> torch.Size:
        return torch.Size([self.length])

    def states(self, tokens: Tensor, caches: list | None = None, at: int = 0) -> Tensor:
        h = self.embed(tokens) + self.place[at : at + tokens.shape[1]]
        for number, block in enumerate(self.blocks):
            h = block(h, None if caches is None else caches[number], at)
        return self.head(self.norm(h))

    def log_prob(self, x: Tensor) -> Tensor:
        start = x.new_full((len(x), 1), self.tokens)
        logits = self.states(torch.cat([start, x[:, :-1]], 1))
        log_p = -F.cross_entropy(logits.flatten(0, 1), x.flatten(), reduction="none").view(x.shape)
        if self.end is None:
            return log_p.sum(1)
        ended = (x == self.end).cumsum(1) - (x == self.end).long()  # ends before this position
        return (log_p * (ended == 0)).sum(1)

    @torch.no_grad()
    def sample(self, n: int, *, uniforms: Tensor | None = None, cached: bool = True) -> Tensor:
        width = self.embed.embedding_dim
        u = torch.rand(n, self.length, dtype=self.place.dtype) if uniforms is None else uniforms
        x = torch.full((n, self.length), 0 if self.end is None else self.end)
        caches = [tuple(self.place.new_empty(n, self.heads, self.length, width // self.heads) for _ in "kv") for _ in self.blocks]
        token = torch.full((n, 1), self.tokens)
        whole = token
        open_ = torch.ones(n, dtype=torch.bool)
        for t in range(self.length):
            logits = self.states(token, caches, t)[:, -1] if cached else self.states(whole)[:, -1]
            chosen = (logits.softmax(-1).cumsum(-1) < u[:, t : t + 1]).sum(-1).clamp(max=self.tokens - 1)
            if self.end is not None:
                chosen = torch.where(open_, chosen, self.end)
                open_ &= chosen != self.end
            x[:, t] = chosen
            token = chosen[:, None]
            whole = torch.cat([whole, token], 1)
            if not open_.any():
                break
        return x
