"""What is trained: a pair, its loss written by hand without Pyro, its rows, and the batches they come in."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from banel_pyro import Pair, Split
from banel_pyro.batches import Rows, epoch_order
from models import data, eight_schools, vae

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
MNIST_ROWS = 60_000
MNIST_PIXELS = 784
LIT = 0.2
"""Share of the random images' pixels that are not black; MNIST's is 0.19."""

Loss = Callable[..., Tensor]


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
        share: Of the steps of a long run that the table's options ask for: less where a step takes long.
    """

    factory: Callable[[], Pair]
    by_hand: Callable[[Pair], tuple[list[Tensor], Loss]]
    rows: Rows
    transform: Callable[[Rows], Rows] | None
    batch_size: int | None
    lr: float
    share: float = 1.0

    @property
    def steps_per_epoch(self) -> int:
        """Batches in a pass through the rows; the last one may be smaller."""
        size = len(self.rows[0])
        return -(-size // (self.batch_size or size))

    def batches(self, seed: int, steps: int) -> Iterator[Rows]:
        """The batches that `fit` trains on, by direct indexing."""
        chunks: Sequence[Tensor] = ()
        for step in range(steps):
            batch = self.rows
            if self.batch_size is not None:
                epoch, position = divmod(step, self.steps_per_epoch)
                if position == 0:
                    chunks = epoch_order(len(self.rows[0]), seed, epoch).split(self.batch_size)
                batch = tuple(row.index_select(0, chunks[position]) for row in self.rows)
            yield batch if self.transform is None else self.transform(batch)

    def loaded(self, steps: int) -> Iterator[Rows]:
        """Batches as in the tutorials: a shuffled DataLoader over a TensorDataset, in the main process."""
        loader = DataLoader(TensorDataset(*self.rows), batch_size=self.batch_size, shuffle=True, num_workers=0)
        for _ in range(steps // self.steps_per_epoch):
            for batch in loader:
                yield tuple(batch) if self.transform is None else self.transform(tuple(batch))


# The losses, written by hand: one draw of the guide, and every constant kept.
def schools_by_hand(pair: Pair) -> tuple[list[Tensor], Loss]:
    """Non-centred eight schools under ten independent normals, from AutoNormal's initial parameters."""
    loc = torch.zeros(10, requires_grad=True)
    raw = torch.full((10,), math.log(math.expm1(0.1)), requires_grad=True)

    def loss(y: Tensor, sigma: Tensor) -> Tensor:
        noise, scale = torch.randn(10), functional.softplus(raw)
        draw = loc + scale * noise
        mu, log_tau, theta_trans = draw[0], draw[1], draw[2:]
        tau = log_tau.exp()
        log_q = -(0.5 * noise**2 + scale.log()).sum() - log_tau
        prior = -0.5 * ((mu / 5) ** 2 + (theta_trans**2).sum()) - torch.log1p((tau / 5) ** 2)
        likelihood = -(0.5 * ((y - mu - tau * theta_trans) / sigma) ** 2 + sigma.log()).sum()
        return log_q - prior - likelihood + 7 * HALF_LOG_2PI + math.log(5) + math.log(2.5 * math.pi)

    return [loc, raw], loss


def vae_by_hand(pair: Pair) -> tuple[list[Tensor], Loss]:
    """The VAE on the networks of the pair."""
    encode, decode = pair.guide.encode, pair.model.decode

    def loss(x: Tensor) -> Tensor:
        loc, raw = encode(x).chunk(2, dim=-1)
        scale = functional.softplus(raw) + vae.MIN_SD
        noise = torch.randn_like(loc)
        z = loc + scale * noise
        kl = (0.5 * (z**2 - noise**2) - scale.log()).sum()
        return kl + functional.binary_cross_entropy_with_logits(decode(z), x, reduction="sum")

    return [*encode.parameters(), *decode.parameters()], loss


# The problems.
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


def noncentered_schools() -> Problem:
    """Eight schools, where a step is all overhead."""
    return Problem(eight_schools.noncentered, schools_by_hand, data.eight_schools(), None, batch_size=None, lr=0.01)


def digits_vae() -> Problem:
    """The VAE of `make run`."""
    return Problem(vae.digits, vae_by_hand, (data.digits().train,), data.binarize, batch_size=128, lr=1e-3)


def mnist_vae(images: Tensor, batch_size: int, share: float = 1.0) -> Problem:
    """A VAE of MNIST's size, 784-400-20, on these images."""
    split = Split(images, None, data.binarize)

    def factory() -> Pair:
        return replace(vae.mnist(), data=lambda: split)

    return Problem(factory, vae_by_hand, (images,), data.binarize, batch_size, lr=1e-3, share=share)
