"""Random numbers for rows that are cut into batches or shared by processes: streams beside torch's own generator."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.overrides import TorchFunctionMode

from banel_pyro.capture.operators import swap_stream

__all__ = ["BLOCK", "OwnNoise", "SiteStreams", "rows_at_a_time", "stream_states"]

BLOCK = 16
"""Torch fills normal numbers on the CPU in blocks of so many: batches of whole blocks get the numbers of one batch."""


def rows_at_a_time(size: int, batch_size: int | None) -> int | None:
    """The batch size that random numbers allow: whole blocks, and none that is left over and smaller than a block.

    Args:
        size: rows in all.
        batch_size: rows that were asked for, or None for all at once.

    Example:
        >>> rows_at_a_time(1000, 100), rows_at_a_time(33, 2), rows_at_a_time(33, None)
        (112, 48, None)
    """
    if batch_size is None:
        return None
    step = -(-batch_size // BLOCK) * BLOCK
    while 0 < size % step < min(BLOCK, size):
        step += BLOCK
    return step


class SiteStreams(Messenger):
    """Lets every sample site draw from a stream of its own, which goes on from batch to batch and draw to draw.

    The stream of a site in many batches is then the one in a single batch, number by number: on the CPU, for batches
    of :func:`rows_at_a_time`, where the data plate is the outermost axis of what the site draws, and for distributions
    that draw row by row (``VonMises`` rejects all rows together, and does not). What draws several times for one value,
    such as ``StudentT``, has a stream for each time. Numbers drawn outside sample sites, or behind ``poutine.block``,
    are those of torch's generator, which is otherwise left alone.

    Args:
        seed: of all streams.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed, self._part = seed, ""
        self._states: dict[tuple[str, str, int], Tensor] = {}
        self._times: dict[tuple[str, str], int] = {}  # how often a site draws for one value
        self._drawing: _Drawing | None = None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Name what runs in the block: guide, prior and predictive have different streams for sites of one name."""
        before, self._part = self._part, name
        try:
            yield
        finally:
            self._part = before

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["value"] is not None or msg["is_observed"] or site_is_subsample(msg):
            return
        site = (self._part, str(msg["name"]))
        self._drawing = _Drawing(self, site, watched=self._times.get(site, 2) > 1)
        self._drawing.start()

    def _pyro_post_sample(self, msg: Any) -> None:
        if self._drawing is not None:
            self._drawing.stop()
            self._times[self._drawing.site] = self._drawing.times
            self._drawing = None

    def __exit__(self, *error: Any) -> None:
        if self._drawing is not None:  # the site failed
            self._drawing.stop()
            self._drawing = None
        super().__exit__(*error)

    def load(self, site: tuple[str, str], time: int) -> None:
        """Let torch's generator go on where the stream of a site stopped."""
        state = self._states.get((*site, time))
        if state is None:
            digest = hashlib.sha256(f"{self._seed}/{'/'.join(site)}/{time}".encode()).digest()
            state = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1).get_state()
            self._states[(*site, time)] = state
        torch.default_generator.set_state(state)

    def save(self, site: tuple[str, str], time: int) -> None:
        """Remember where the stream of a site stopped."""
        self._states[(*site, time)] = torch.default_generator.get_state()


class _Drawing(TorchFunctionMode):
    """One value being drawn. If watched, each function that draws random numbers gets the next stream of the site."""

    def __init__(self, streams: SiteStreams, site: tuple[str, str], *, watched: bool) -> None:
        super().__init__()
        self.streams, self.site, self.watched = streams, site, watched
        self.times = 0 if watched else 1

    def start(self) -> None:
        """Let torch's generator go on where the site's first stream stopped."""
        self.outer = torch.default_generator.get_state()
        self.streams.load(self.site, 0)
        if self.watched:
            self.__enter__()

    def stop(self) -> None:
        """Put torch's generator back."""
        if self.watched:
            self.__exit__(None, None, None)
        else:
            self.streams.save(self.site, 0)
        torch.default_generator.set_state(self.outer)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ == "__get__":
            return func(*args, **(kwargs or {}))
        self.streams.load(self.site, self.times)
        before = torch.default_generator.get_state()
        result = func(*args, **(kwargs or {}))
        if not torch.equal(before, torch.default_generator.get_state()):
            self.streams.save(self.site, self.times)
            self.times += 1
        return result


def stream_states(stream: str, device: torch.device | None = None) -> list[Tensor]:
    """States of torch's generators at the beginning of a stream.

    Args:
        stream: text that the stream is made from.
        device: where numbers are drawn beside the CPU, or None.
    """
    seed = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "little") >> 1
    on = [torch.device("cpu"), *([device] if device is not None and device.type == "cuda" else [])]
    return [torch.Generator(place).manual_seed(seed).get_state() for place in on]


class OwnNoise(Messenger):
    """Lets a process draw the noise of its rows from a stream of its own, and all else from the one that is shared.

    The shared stream is torch's generator as it was found, in the same state on every process. Latents outside the
    data plate go on with it, so that every process draws the same; everything else in the block, dropout too, is
    drawn from a stream that starts anew with the block. Afterwards the shared stream is where they left it. Generators
    are exchanged by an operator, so that a graph of the block can be made.

    Args:
        plate: name of the data plate.
        states: where the stream of this process starts, from :func:`stream_states`; changed in place to where it
            ends: a compiler would leave out an exchange whose result nobody reads.
        device: where numbers are drawn beside the CPU, or None.
    """

    def __init__(self, plate: str | None, states: Sequence[Tensor], device: torch.device | None = None) -> None:
        super().__init__()
        self._plate, self._aside, self._devices = plate, states, (None, device)
        self._sharing = True

    def __enter__(self) -> Any:
        self._share(False)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._share(True)
        super().__exit__(*error)

    def _share(self, sharing: bool) -> None:
        """Go over to the other stream."""
        if sharing != self._sharing:
            for state, device in zip(self._aside, self._devices, strict=False):
                swap_stream(state, device)
            self._sharing = sharing

    def _pyro_sample(self, msg: Any) -> None:
        drawn = not (msg["done"] or msg["is_observed"]) and msg["value"] is None
        self._share(drawn and self._plate not in [frame.name for frame in msg["cond_indep_stack"]])

    def _pyro_post_sample(self, msg: Any) -> None:
        self._share(False)
