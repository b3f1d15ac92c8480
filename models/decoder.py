"""Causal transformers that write one position at a time, the keys and values of earlier ones cached.

`Decoder` knows states only (pre-norm; Radford et al. 2019). `TokenDecoder` has the embeddings and the head: it draws
what follows a prompt, or answers with what is likeliest. Sequences that have ended, and those that are still alike,
cost nothing; what is drawn does not depend on it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from banel_pyro.checks import integer

__all__ = ["Cache", "Decoder", "TokenDecoder", "check_tokens", "drawn"]

FEW = 24
"""Positions up to which a new one attends faster by sums of products than by torch's kernel, on a CPU."""


class Cache:
    """Keys and values of the positions that a decoder has seen, with room for all that are to come.

    Args:
        decoder: whose they are.
        n: sequences.
        length: positions in all.
    """

    def __init__(self, decoder: Decoder, n: int, length: int) -> None:
        self.seen = 0
        like = decoder.norm.weight
        size = (2, length, n, decoder.heads, decoder.width // decoder.heads)
        self.stores = [torch.empty(size, dtype=like.dtype, device=like.device) for _ in decoder.blocks]

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the sequences.

        Args:
            rows: their numbers.
        """
        for number, store in enumerate(self.stores):
            kept = store.new_empty(*store.shape[:2], len(rows), *store.shape[3:])
            kept[:, : self.seen] = store[:, : self.seen, rows]
            self.stores[number] = kept


class Block(nn.Module):
    """Causal attention and a two-layer network, each after a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor, store: Tensor | None = None, seen: int = 0) -> Tensor:
        """The states (n, t, width) of t positions; t is 1, or nothing has been seen before.

        Args:
            h: the states below, (n, t, width).
            store: keys and values (2, length, n, heads, width / heads), to be read and added to.
            seen: positions that are in it.
        """
        n, t, width = h.shape
        qkv = self.qkv(self.norm1(h)).view(n, t, 3, self.heads, width // self.heads)
        if store is not None:
            store[:, seen : seen + t] = qkv[:, :, 1:].permute(2, 1, 0, 3, 4)
        if seen:
            mixed = _attend(qkv[:, 0, 0], *store[:, : seen + 1])
        else:
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        h = h + self.out(mixed.reshape(n, t, width))
        return h + self.down(F.gelu(self.up(self.norm2(h))))


def _attend(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """What one position (n, heads, d) takes from all that it sees (seen, n, heads, d)."""
    if len(keys) > FEW:
        k, v = keys.permute(1, 2, 0, 3), values.permute(1, 2, 0, 3)
        return F.scaled_dot_product_attention(q[:, :, None], k, v)
    weights = (q * q.shape[-1] ** -0.5 * keys).sum(-1).softmax(0)
    return (weights[..., None] * values).sum(0)


class Decoder(nn.Module):
    """A causal transformer from embedded inputs to states.

    Args:
        width: numbers in a state.
        layers: blocks.
        heads: of attention; they share the width.
    """

    def __init__(self, *, width: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.width, self.heads = integer("width", width), integer("heads", heads)
        if width % heads:
            raise ValueError(f"width={width}, heads={heads}: expected a width that the heads can share, such as 64, 4.")
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(integer("layers", layers)))
        self.norm = nn.LayerNorm(width)

    def forward(self, h: Tensor, cache: Cache | None = None) -> Tensor:
        """States (n, t, width) of the positions with inputs h (n, t, width), which follow those in the cache."""
        seen = 0 if cache is None else cache.seen
        if seen and h.shape[1] != 1:
            raise ValueError(f"{h.shape[1]} positions after {seen} cached ones: expected one at a time.")
        for number, block in enumerate(self.blocks):
            h = block(h, None if cache is None else cache.stores[number], seen)
        if cache is not None:
            cache.seen += h.shape[1]
        return self.norm(h)


class TokenDecoder(nn.Module):
    """Logits of the next token, from embeddings of tokens and of their positions.

    Args:
        inputs: kinds of tokens that can be read.
        outputs: kinds of tokens that can be written: 0 to outputs - 1.
        length: positions at most.
        sizes: of the `Decoder`: width, layers, heads.
    """

    def __init__(self, inputs: int, outputs: int, length: int, **sizes: int) -> None:
        super().__init__()
        self.inputs, self.outputs = integer("inputs", inputs), integer("outputs", outputs)
        self.length = integer("length", length)
        if outputs > inputs:
            raise ValueError(f"outputs={outputs}, inputs={inputs}: expected that what is written can be read.")
        self.decoder = Decoder(**sizes)
        self.embed = nn.Embedding(inputs, self.decoder.width)
        self.place = nn.Parameter(0.02 * torch.randn(length, self.decoder.width))
        self.head = nn.Linear(self.decoder.width, outputs)

    def states(self, tokens: Tensor, cache: Cache | None = None, extra: Tensor | None = None) -> Tensor:
        """States (n, t, width) at tokens (n, t), which follow those in the cache.

        Args:
            tokens: what is read.
            cache: what was read before.
            extra: added to the embeddings, (n or 1, at least all positions so far, width).
        """
        seen = 0 if cache is None else cache.seen
        here = slice(seen, seen + tokens.shape[1])
        h = self.embed(tokens) + self.place[here]
        return self.decoder(h if extra is None else h + extra[:, here], cache)

    def forward(self, tokens: Tensor, cache: Cache | None = None, extra: Tensor | None = None) -> Tensor:
        """Logits (n, t, outputs) of the token after each of these; arguments as for `states`."""
        return self.head(self.states(tokens, cache, extra))

    @torch.no_grad()
    def complete(
        self, prompt: Tensor, length: int, *, uniforms: Tensor | None = None, end: int | None = None,
        extra: Tensor | None = None, cached: bool = True,
    ) -> Tensor:  # fmt: skip
        """What follows prompts of equal width, (n, length): the likeliest token at each step, or a drawn one.

        Args:
            prompt: tokens (n, t), t at least 1.
            length: tokens to write; the decoder needs t + length - 1 positions.
            uniforms: numbers (n, length) in [0, 1): tokens are drawn, as the inverse of their distribution function.
            end: the token that ends a sequence, and fills what is left.
            extra: as for `states`, for all t + length - 1 positions.
            cached: False to read everything anew for each token: what the cache is measured by.
        """
        n, width = prompt.shape
        if width + length - 1 > self.length:
            raise ValueError(f"length={length} after {width} tokens: expected at most {self.length - width + 1}.")
        check_tokens("prompt", prompt, (width,), self.inputs)
        found = prompt.new_full((n, length), -1 if end is None else end, dtype=torch.long)
        batch = _Batch(prompt, self.outputs, share=uniforms is not None and extra is None)
        cache = Cache(self.decoder, len(batch.read), width + length - 1) if cached else None
        for t in range(length):
            logits = self.head(self.states(batch.read, cache, extra)[:, -1])
            chosen = (
                logits.argmax(-1)[batch.of] if uniforms is None else drawn(logits, batch.of, uniforms[batch.rows, t])
            )
            found[batch.rows, t] = chosen
            if end is not None:
                chosen = batch.drop(chosen == end, chosen)
            if t + 1 == length or not len(chosen):
                break
            kept = batch.go_on(chosen, cached=cached)
            if kept is not None and cache is not None:
                cache.keep(kept)
            if kept is not None and extra is not None and len(extra) > 1:
                extra = extra[kept]
        return found


class _Batch:
    """The sequences that are still written, and the rows that the decoder reads for them.

    Sequences that have begun alike share a row, as long as that halves the rows. Rows of those that have ended are
    dropped when a quarter of them is idle.

    Args:
        prompt: tokens (n, t).
        outputs: kinds of tokens that are written.
        share: whether sequences that begin alike may share a row.
    """

    def __init__(self, prompt: Tensor, outputs: int, *, share: bool) -> None:
        self.outputs, self.share = outputs, share and prompt.shape[1] == 1
        self.rows = torch.arange(len(prompt), device=prompt.device)
        """Numbers of the sequences."""
        self.of, self.read = self.rows, prompt
        """The row of each of them; what is read in each row."""
        if self.share:
            first, self.of = prompt[:, 0].unique(return_inverse=True)
            self.read = first[:, None]

    def drop(self, ended: Tensor, chosen: Tensor) -> Tensor:
        """Forget sequences; the tokens of the others."""
        if bool(ended.any()):
            (going,) = torch.where(~ended)
            self.rows, self.of, chosen = self.rows[going], self.of[going], chosen[going]
        return chosen

    def go_on(self, chosen: Tensor, *, cached: bool) -> Tensor | None:
        """Read a token more of each sequence; the rows that are kept, if not all of them.

        Args:
            chosen: the tokens.
            cached: whether what was read before is in a cache.
        """
        kept, last = self._next(chosen)
        before = self.read if kept is None else self.read[kept]
        self.read = last[:, None] if cached else torch.cat([before, last[:, None]], 1)
        return kept

    def _next(self, chosen: Tensor) -> tuple[Tensor | None, Tensor]:
        if self.share:
            different, of = (self.of * self.outputs + chosen).unique(return_inverse=True)
            self.share = 2 * len(different) <= len(chosen)
            if self.share:
                self.of = of
                return different // self.outputs, different % self.outputs
        elif 4 * len(chosen) >= 3 * len(self.read):
            last = chosen.new_zeros(len(self.read))
            last[self.of] = chosen
            return None, last
        kept, self.of = self.of, torch.arange(len(chosen), device=chosen.device)
        return kept, chosen


def drawn(logits: Tensor, of: Tensor, u: Tensor) -> Tensor:
    """Tokens whose distribution function passes u (n,) in [0, 1): in float64, since sums of float32 miss 1.

    Args:
        logits: of all tokens (m, outputs).
        of: which of these each number is for (n,).
        u: the numbers.
    """
    below = logits.double().softmax(-1).cumsum(-1)[of]
    return (below <= u[:, None] * below[:, -1:]).sum(-1).clamp(max=logits.shape[-1] - 1)


def traced() -> bool:
    """Whether a graph of the step is being made, which must not depend on values."""
    return get_proxy_mode() is not None or torch.compiler.is_compiling()


def check_tokens(name: str, x: Tensor, shape: tuple[int, ...], tokens: int) -> Tensor:
    """Tokens as int64, if they are of this shape and in range.

    Args:
        name: of the argument.
        x: what was given.
        shape: of one sequence.
        tokens: kinds of tokens.

    Raises:
        TypeError: if they are no integers.
        ValueError: if the shape is another, or for the first token that is none.
    """
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{name} has dtype {x.dtype}: expected integer tokens. Write {name}.long() if they are.")
    if x.shape[1:] != torch.Size(shape) or x.dim() != 1 + len(shape):
        raise ValueError(f"{name} has shape {tuple(x.shape)}: expected (n, {', '.join(map(str, shape))}).")
    if x.numel() and not traced():
        low, high = x.aminmax()
        if low < 0 or high >= tokens:
            at = ((x < 0) | (x >= tokens)).nonzero()[0].tolist()
            place = at[1] if len(at) == 2 else tuple(at[1:])
            raise ValueError(
                f"{name}[{at[0]}] has token {int(x[tuple(at)])} at position {place}: expected 0 to {tokens - 1}."
            )
    return x.long()
