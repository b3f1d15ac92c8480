"""What is trained: a pair, its loss written by hand without Pyro, its rows, and the batches they come in."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from banel_pyro import Pair, Split
from banel_pyro.batches import Rows, epoch_order
from demos.benchmark import by_hand, pairs
from demos.benchmark.by_hand import ByHand
from models import data, eight_schools, hierarchical_vae, radon, vae

MNIST_ROWS = 60_000
MNIST_PIXELS = 784
LIT = 0.2
"""Share of the random images' pixels that are not black; MNIST's is 0.19."""

LOGISTIC_SIZES = {"10^4": 10_000, "10^5": 100_000, "10^6": 1_000_000}
LOGISTIC_BATCH = 256
MNIST_BATCHES = {32: 0.5, 128: 0.3, 1024: 0.1}
"""Batch sizes, and the share of the steps that is taken with each."""


@dataclass(frozen=True)
class Problem:
    """A pair to train, the same loss by hand, and how to train.

    Args:
        factory: Makes the pair anew, from torch's current random state.
        by_hand: From a pair to its parameters and a function of the batch: -ELBO in nats, for one draw.
        rows: Training data.
        transform: Applied to each batch, or None.
        batch_size: Rows of a batch; None is all rows.
        lr: Learning rate of Adam.
        share: Of the steps of a long run that the options ask for: less where a step takes long.
        elbo: Makes Pyro's ELBO.
        peer: The name of the same model in `numpyro_models`.
        scaled: Whether a batch counts for all rows (the data plate is over all of them).
        per_call: Steps that a captured `fit` makes in one call.
        plain: Model and guide as plain Pyro writes them where batches count for all rows: they take all rows.
    """

    factory: Callable[[], Pair]
    by_hand: Callable[[Pair], ByHand]
    rows: Rows
    transform: Callable[[Rows], Rows] | None
    batch_size: int | None
    lr: float
    share: float = 1.0
    elbo: Callable[[], ELBO] = Trace_ELBO
    peer: str = ""
    scaled: bool = False
    per_call: int = 1
    plain: Callable[[], tuple[Callable[..., Any], Callable[..., Any]]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Batches in a pass through the rows; the last one may be smaller."""
        size = len(self.rows[0])
        return -(-size // (self.batch_size or size))

    def data_of(self, batch: Rows) -> int:
        """How many rows a batch counts for: what its loss is divided by, for nats per datum."""
        return len(self.rows[0]) if self.scaled else len(batch[0])

    def order(self, seed: int, steps: int) -> Iterator[Tensor]:
        """The numbers of the rows in each batch, as in `fit`."""
        chunks: Sequence[Tensor] = ()
        for step in range(steps):
            epoch, position = divmod(step, self.steps_per_epoch)
            if position == 0:
                chunks = epoch_order(len(self.rows[0]), seed, epoch).split(self.batch_size or len(self.rows[0]))
            yield chunks[position]

    def batches(self, seed: int, steps: int) -> Iterator[Rows]:
        """The batches that `fit` trains on, by direct indexing."""
        if self.batch_size is None:
            found: Iterator[Rows] = (self.rows for _ in range(steps))
        else:
            found = (tuple(row.index_select(0, i) for row in self.rows) for i in self.order(seed, steps))
        yield from found if self.transform is None else map(self.transform, found)

    def loaded(self, steps: int) -> Iterator[Rows]:
        """Batches as in the tutorials: a shuffled DataLoader over a TensorDataset, in the main process."""
        loader = DataLoader(TensorDataset(*self.rows), batch_size=self.batch_size, shuffle=True, num_workers=0)
        for _ in range(steps // self.steps_per_epoch):
            for batch in loader:
                yield tuple(batch) if self.transform is None else self.transform(tuple(batch))


# Data.
def mnist_images(rows: int) -> tuple[Tensor, str]:
    """MNIST's training images if they are there, else random ones.

    Args:
        rows: How many, up to 60,000.

    Returns:
        Grey images (rows, 784) in [0, 1], and what they are.
    """
    try:
        images = data.mnist().train[:rows].clone()
        return images, "MNIST"
    except FileNotFoundError:
        generator = torch.Generator().manual_seed(0)
        grey, lit = (torch.rand(rows, MNIST_PIXELS, generator=generator) for _ in range(2))
        return grey * (lit < LIT), "random grey images of MNIST's shape (BANEL_DATA names no folder with MNIST)"


def radon_houses() -> tuple[Rows, str]:
    """Radon's training houses if they are there, else made-up ones of the same shape, and what they are."""
    try:
        return data.radon().train, "radon in Minnesota"
    except FileNotFoundError:
        generator = torch.Generator().manual_seed(0)
        county = torch.randint(radon.NUM_COUNTIES, (radon.NUM_HOUSES,), generator=generator)
        floor = (torch.rand(radon.NUM_HOUSES, generator=generator) < 0.2).float()
        uranium, noise = torch.randn(2, radon.NUM_HOUSES, generator=generator)
        dtype = torch.get_default_dtype()
        columns = (0.4 * uranium, 1.5 - 0.7 * floor + 0.3 * uranium + 0.8 * noise)
        rows = (county, floor.to(dtype), *(column.to(dtype) for column in columns))
        return rows, "made-up houses of radon's shape (BANEL_DATA names no folder with radon)"


def whole_batches(rows: Rows, batch_size: int) -> Rows:
    """As many of the rows as make whole batches: a compiled step has one shape."""
    size = len(rows[0]) // batch_size * batch_size
    return tuple(row[:size].clone() for row in rows)


# The problems.
def noncentered_schools() -> Problem:
    """Eight schools, where a step is all overhead: captured, ten of them are one call."""
    rows, make = data.eight_schools(), eight_schools.noncentered
    return Problem(make, by_hand.schools, rows, None, None, lr=0.01, share=10, peer="schools", per_call=10)


def all_houses() -> Problem:
    """Radon, all training houses in every step."""
    rows, _ = radon_houses()
    make = partial(_with_data, radon.pair, rows, None)
    return Problem(make, by_hand.houses, rows, None, None, lr=0.01, share=5, peer="houses")


def logistic_regression(size: int, batch_size: int = LOGISTIC_BATCH) -> Problem:
    """Logistic regression of this many made-up rows, in minibatches."""
    rows = whole_batches(pairs.logistic_rows(size), batch_size)
    return Problem(
        partial(pairs.logistic_pair, rows), by_hand.logistic, rows, None, batch_size, lr=0.01, peer="logistic",
        scaled=True, plain=partial(pairs.plain_logistic, batch_size),
    )  # fmt: skip


def enumerated_mixture() -> Problem:
    """A mixture whose assignments are enumerated."""
    elbo = partial(TraceEnum_ELBO, max_plate_nesting=1)
    return Problem(
        pairs.mixture_pair, by_hand.mixture, pairs.mixture_rows(), None, None, lr=0.01, elbo=elbo, peer="mixture"
    )


def chain(sites: int) -> Problem:
    """A chain of this many sites."""
    rows = pairs.chain_rows(sites)
    return Problem(partial(pairs.chain_pair, rows), by_hand.chain, rows, None, None, lr=0.01, peer="chain")


def _with_data(make: Callable[[], Pair], rows: Any, transform: Callable[[Rows], Rows] | None) -> Pair:
    split = Split(rows, None, transform)
    return replace(make(), data=lambda: split)


def _images(
    make: Callable[[], Pair], by: Callable[[Pair], ByHand], images: Tensor, batch_size: int, share: float, peer: str
) -> Problem:
    pair = partial(_with_data, make, images, data.binarize)
    return Problem(pair, by, (images,), data.binarize, batch_size, lr=1e-3, share=share, peer=peer)


def digits_vae() -> Problem:
    """The VAE of `make run`."""
    (images,) = whole_batches((data.digits().train,), 128)
    return _images(vae.digits, by_hand.one_level, images, 128, 1.0, "one_level")


def digits_hierarchy() -> Problem:
    """The VAE with two levels of latents, on the digits."""
    (images,) = whole_batches((data.digits().train,), 128)
    return _images(hierarchical_vae.digits, by_hand.two_levels, images, 128, 1.0, "two_levels")


def mnist_vae(images: Tensor, batch_size: int, share: float = 1.0) -> Problem:
    """A VAE of MNIST's size, 784-400-20, on these images."""
    return _images(vae.mnist, by_hand.one_level, images, batch_size, share, "one_level")


def step_makers(images: Tensor) -> Mapping[str, Callable[[], Problem]]:
    """The rows of the table of steps: what makes each, by name."""

    def mnist(batch_size: int, share: float) -> Problem:
        (rows,) = whole_batches((images,), batch_size)
        return mnist_vae(rows, batch_size, share)

    return {
        "eight schools": noncentered_schools,
        "radon": all_houses,
        **{f"logistic, {name} rows": partial(logistic_regression, n) for name, n in LOGISTIC_SIZES.items()},
        "enumerated mixture": enumerated_mixture,
        "digits VAE": digits_vae,
        **{f"MNIST VAE, {size}": partial(mnist, size, share) for size, share in MNIST_BATCHES.items()},
        "hierarchical VAE": digits_hierarchy,
    }
