"""pythae's trainer, on the networks of a pair: the same parameters, the same bits, the same optimiser.

Left out is what is no training: the progress bar, messages, and the model's files at the end of a run.
"""

import logging
import os
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
from pythae.data.datasets import BaseDataset, DatasetOutput
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import CallbackHandler, TrainingCallback
from torch import Tensor, nn
from torch.nn import functional

from banel_pyro import Pair
from demos.benchmark.problems import Problem
from demos.benchmark.timing import Watch
from models import vae

logging.getLogger("pythae.trainers.base_trainer.base_trainer").setLevel(logging.WARNING)


class Encoder(BaseEncoder):
    """The encoder of a pair."""

    def __init__(self, encode: nn.Module) -> None:
        super().__init__()
        self.encode = encode

    def forward(self, x: Tensor) -> ModelOutput:
        """Means and log-variances (B, latents) of images (B, pixels)."""
        loc, raw = self.encode(x).chunk(2, dim=-1)
        return ModelOutput(embedding=loc, log_covariance=2 * (functional.softplus(raw) + vae.MIN_SD).log())


class Decoder(BaseDecoder):
    """The decoder of a pair."""

    def __init__(self, decode: nn.Module) -> None:
        super().__init__()
        self.decode = decode

    def forward(self, z: Tensor) -> ModelOutput:
        """Probabilities (B, pixels) from latents (B, latents)."""
        return ModelOutput(reconstruction=self.decode(z).sigmoid())


class BitsVAE(VAE):
    """pythae's VAE on bits that are drawn anew for each batch.

    Args:
        pair: Whose networks it trains.
    """

    def __init__(self, pair: Pair) -> None:
        decode, encode = pair.model.decode, pair.guide.encode
        config = VAEConfig(input_dim=(encode[0].in_features,), latent_dim=pair.model.latents, reconstruction_loss="bce")
        super().__init__(config, Encoder(encode), Decoder(decode))

    def forward(self, inputs: Any, **options: Any) -> ModelOutput:
        """The loss of a batch of grey images."""
        return super().forward(DatasetOutput(data=torch.bernoulli(inputs["data"])), **options)


class QuietTrainer(BaseTrainer):
    """pythae's trainer without progress bar and without files."""

    def _setup_callbacks(self) -> None:
        self.callback_handler = CallbackHandler(callbacks=[TrainingCallback()], model=self.model)

    def save_model(self, model: Any, dir_path: str) -> None:
        """Nothing."""


def train(problem: Problem, pair: Pair, seed: int, watch: Watch) -> list[float]:
    """Train the networks of a VAE with pythae's `BaseTrainer`.

    Args:
        problem: Whose rows are grey images; the bits of a batch are drawn by the model.
        pair: Its pair, trained in place.
        seed: Of the trainer, which seeds everything from it.
        watch: The clock; its steps are whole passes through the rows.

    Returns:
        The loss of every step, in nats per image.
    """
    (images,) = problem.rows
    losses: list[Tensor] = []
    model = BitsVAE(pair)

    def look(module: nn.Module, inputs: Any, output: ModelOutput) -> None:
        watch(len(losses))  # so many steps are done when this one begins
        losses.append(output.loss.detach())

    epochs = watch.lengths.long // problem.steps_per_epoch
    with TemporaryDirectory() as folder, mock.patch.dict(os.environ):
        config = BaseTrainerConfig(
            output_dir=folder, num_epochs=epochs, per_device_train_batch_size=problem.batch_size,
            optimizer_cls="Adam", optimizer_params={"fused": True}, learning_rate=problem.lr, seed=seed, no_cuda=True,
        )  # fmt: skip
        trainer = QuietTrainer(model, BaseDataset(images, torch.zeros(len(images))), training_config=config)
        model.register_forward_hook(look)  # not before: the trainer has tried the model on a batch
        trainer.train()
    watch(len(losses))
    return torch.stack(losses).tolist()
