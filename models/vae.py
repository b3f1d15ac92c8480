"""A variational autoencoder of black-and-white images, written as PyroModules.

    z_n ~ Normal(0, I),    x_n ~ Bernoulli(logits = decode(z_n)),    q(z_n | x_n) = Normal(loc, scale)(x_n).

The decoder is the model and the encoder is the guide; every latent is local to an image.
"""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
from pyro.nn import PyroModule
from torch import Tensor, nn

from banel_pyro import Pair, Split
from models import data

MIN_SD = 1e-4
"""Floor of the encoder's standard deviations: keeps log q finite where softplus underflows. It is far
below what the digits need: their smallest is 0.39 at lam = 0 and 0.025 at lam = 0.95."""


class Decoder(PyroModule):
    """The model: latents from a standard normal, pixels from Bernoulli distributions.

    Args:
        pixels: Pixels of an image.
        hidden: Units of the one hidden layer.
        latents: Dimensions of z.
    """

    def __init__(self, *, pixels: int, hidden: int, latents: int) -> None:
        super().__init__()
        self.latents = latents
        self.decode = nn.Sequential(nn.Linear(latents, hidden), nn.Tanh(), nn.Linear(hidden, pixels))

    def forward(self, x: Tensor) -> None:
        """Sample z and observe x.

        Args:
            x: Images (B, pixels), zeros and ones in floating point.
        """
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latents), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decode(z)).to_event(1), obs=x)


class Encoder(PyroModule):
    """The guide: an independent normal distribution for every latent of an image.

    The standard deviation is softplus of the network's output plus `MIN_SD`.

    Args:
        pixels: Pixels of an image.
        hidden: Units of the one hidden layer.
        latents: Dimensions of z.
    """

    def __init__(self, *, pixels: int, hidden: int, latents: int) -> None:
        super().__init__()
        # Not named `decode` as well: the parameter store knows networks by their attribute's name.
        self.encode = nn.Sequential(nn.Linear(pixels, hidden), nn.Tanh(), nn.Linear(hidden, 2 * latents))

    def forward(self, x: Tensor) -> None:
        """Sample z given x.

        Args:
            x: Images (B, pixels), zeros and ones in floating point.
        """
        with pyro.plate("data", len(x)):
            loc, raw = self.encode(x).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, nn.functional.softplus(raw) + MIN_SD).to_event(1))


def digits() -> Pair:
    """8x8 handwritten digits, eight latents, 200 hidden units; weights from torch's current random state."""
    return _pair(data.digits, "digits", pixels=64, hidden=200, latents=8)


def mnist() -> Pair:
    """MNIST's digits of 28x28 pixels, 20 latents, 400 hidden units, bits drawn anew for every batch."""
    return _pair(data.mnist, "mnist", pixels=784, hidden=400, latents=20)


def static_mnist() -> Pair:
    """The same for MNIST binarised once, judged on the validation part: what published figures compare."""
    return _pair(data.static_mnist, "static_mnist", pixels=784, hidden=400, latents=20)


def _pair(images: Callable[[], Split], name: str, **sizes: int) -> Pair:
    """A decoder and an encoder of these sizes."""
    return Pair(Decoder(**sizes), Encoder(**sizes), data=images, data_plate="data", name=name)
