"""A variational autoencoder with two levels of latents, written as PyroModules.

    z2_n ~ Normal(0, I),    z1_n ~ Normal(f(z2_n), I),    x_n ~ Bernoulli(logits = g(z1_n)),
    q(z1_n, z2_n | x_n) = q(z1_n | x_n) q(z2_n | z1_n), both normal with independent components.

The guide goes from the bottom up. That order gives nothing away: z1 shields z2 from x, so that the exact
posterior factorises in the same way, p(z1 | x) p(z2 | z1). The entropies are H(q(z1 | x)) and the
*conditional* E H(q(z2 | z1)), in this order; their sum is the entropy of the joint guide.

The standard deviation of z1 given z2 is 1 and not learnt. Were it free, z1 could shrink and g undo it at no
cost to the ELBO, while H(q(z1 | x)) fell without end: no lam but 0 on z1 would have a minimum.
"""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
from pyro.nn import PyroModule
from torch import Tensor, nn

from banel_pyro import Pair, Split
from models import data
from models.vae import MIN_SD


class Decoder(PyroModule):
    """The model: the upper latents, the lower latents around their image under a network, the pixels.

    Args:
        pixels: Pixels of an image.
        hidden: Units of each network's hidden layer.
        lower: Dimensions of z1.
        upper: Dimensions of z2.
    """

    def __init__(self, *, pixels: int, hidden: int, lower: int, upper: int) -> None:
        super().__init__()
        self.upper = upper
        # Names that the guide does not use: the parameter store knows networks by their attribute's name.
        self.decode_z2 = network(upper, hidden, lower)
        self.decode_z1 = network(lower, hidden, pixels)

    def forward(self, x: Tensor) -> None:
        """Sample z2 and z1, and observe x.

        Args:
            x: Images (B, pixels), zeros and ones in floating point.
        """
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(self.upper), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(self.decode_z2(z2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decode_z1(z1)).to_event(1), obs=x)


class Encoder(PyroModule):
    """The guide: z1 from the image, then z2 from z1, each an independent normal for every component.

    Args:
        pixels: Pixels of an image.
        hidden: Units of each network's hidden layer.
        lower: Dimensions of z1.
        upper: Dimensions of z2.
    """

    def __init__(self, *, pixels: int, hidden: int, lower: int, upper: int) -> None:
        super().__init__()
        self.encode_x = network(pixels, hidden, 2 * lower)
        self.encode_z1 = network(lower, hidden, 2 * upper)

    def forward(self, x: Tensor) -> None:
        """Sample z1 given x, and z2 given z1.

        Args:
            x: Images (B, pixels), zeros and ones in floating point.
        """
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", normal(self.encode_x(x)))
            pyro.sample("z2", normal(self.encode_z1(z1)))


def network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """One hidden layer.

    Args:
        inputs: Size of the input.
        hidden: Units of the hidden layer.
        outputs: Size of the output.
    """
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def normal(raw: Tensor) -> dist.Independent:
    """The normal distribution that a network's output stands for, with a floor under its standard deviations.

    Args:
        raw: Means, and what softplus turns into standard deviations, (..., 2 d).

    Returns:
        Distribution over (d,) with batch shape (...).
    """
    loc, scale = raw.chunk(2, dim=-1)
    return dist.Normal(loc, nn.functional.softplus(scale) + MIN_SD).to_event(1)


def digits() -> Pair:
    """8x8 handwritten digits, eight lower and two upper latents; weights from torch's current random state."""
    return _pair(data.digits, "hierarchical_digits", pixels=64, hidden=200, lower=8, upper=2)


def mnist() -> Pair:
    """MNIST's digits of 28x28 pixels, 20 lower and two upper latents, 400 hidden units."""
    return _pair(data.mnist, "hierarchical_mnist", pixels=784, hidden=400, lower=20, upper=2)


def _pair(images: Callable[[], Split], name: str, **sizes: int) -> Pair:
    """A decoder and an encoder of these sizes."""
    return Pair(Decoder(**sizes), Encoder(**sizes), data=images, data_plate="data", name=name)
