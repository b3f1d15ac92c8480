"""Autoregressive transformers over tokens and over the pixels of small images, as generators.

    p(x) = prod_t p(x_t | x_1, ..., x_{t-1}),

each factor a softmax of a linear function of a causal transformer's state (pre-norm; Radford et al. 2019). They are
generators for `banel_pyro.negative`: evaluated by teacher forcing, in one pass, and sampled with the keys and values of
earlier positions cached, so that n sequences of length L cost n L positions, and those that have ended cost nothing.

`Decoder` knows states only; `TokenDecoder` has the embeddings and the head, and answers prompts too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from banel_pyro.checks import integer
from banel_pyro.negative import Generator

__all__ = ["Cache", "Decoder", "PixelTransformer", "TokenDecoder", "TokenTransformer"]

FEW = 24
"""Positions up to which a new one attends faster by sums of products than by torch's kernel, on a CPU."""


CACHED = 4096
"""Positions whose states stay in a processor's cache: larger batches are slower where nothing is differentiated."""


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
        rows = torch.arange(n, device=prompt.device)
        cache = Cache(self.decoder, n, width + length - 1) if cached else None
        read = prompt
        for t in range(length):
            logits = self.head(self.states(read, cache, extra)[:, -1])
            chosen = logits.argmax(-1) if uniforms is None else drawn(logits, uniforms[:, t])
            if end is not None:
                chosen = torch.where(found[rows, t - 1] == end, end, chosen) if t else chosen
            found[rows, t] = chosen
            read = chosen[:, None] if cached else torch.cat([read, chosen[:, None]], 1)
            if end is None:
                continue
            (going,) = torch.where(chosen != end)
            if not len(going):
                break
            if 4 * len(going) < 3 * len(rows):  # those that have ended cost nothing
                rows, read = rows[going], read[going]
                uniforms = None if uniforms is None else uniforms[going]
                extra = extra if extra is None or len(extra) == 1 else extra[going]
                if cache is not None:
                    cache.keep(going)
        return found


def drawn(logits: Tensor, u: Tensor) -> Tensor:
    """Tokens (n,) whose distribution function passes u (n,) in [0, 1): in float64, since sums of float32 miss 1."""
    below = logits.double().softmax(-1).cumsum(-1)
    return (below <= u[:, None] * below[:, -1:]).sum(-1).clamp(max=logits.shape[-1] - 1)


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
    if x.numel():
        low, high = x.aminmax()
        if low < 0 or high >= tokens:
            at = ((x < 0) | (x >= tokens)).nonzero()[0].tolist()
            place = at[1] if len(at) == 2 else tuple(at[1:])
            raise ValueError(
                f"{name}[{at[0]}] has token {int(x[tuple(at)])} at position {place}: expected 0 to {tokens - 1}."
            )
    return x.long()
