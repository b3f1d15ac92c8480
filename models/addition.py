"""Questions such as `10+23=`, a transformer that answers them, and one that writes them: the attack on an adder.

The answering transformer (the target) reads a question and writes the digits of the sum, units first. The writing one
(the attacker) is a generator, trained on the same questions. A question succeeds if it is valid and answered wrongly;
of those that the attacker writes, a few in ten thousand do.

The task is that of Lee, Amos and Fanti (arXiv 2510.09596, section on adversarial attacks), whose models and numbers of
digits are not known to us; these are small enough for two cores.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from banel_pyro import fit
from banel_pyro.checkpoint import write_whole
from banel_pyro.negative import Distillation, DrawnSuccesses, ListedSuccesses, RatioFilter, Task, Training
from banel_pyro.reading import plain_file
from banel_pyro.seeding import fork_rng
from models.decoder import TokenDecoder
from models.questions import END, SYMBOLS, Parsed, draw_questions, every_question, parse, sums, text
from models.transformer import TokenTransformer

__all__ = ["SMALL", "Adder", "Reward", "Sizes", "attack", "attack_without_zeros", "small_attack"]

PAD = 12
"""What stands before a question that is shorter than the longest, for the adder only."""


@dataclass(frozen=True)
class Sizes:
    """How large an attack is. Everything is a function of these numbers.

    Args:
        digits: of an operand, at most.
        examples: questions that the target is trained on, each once.
        questions: questions that the attacker is trained on, each once.
        batch_size: questions per step of the target; the attacker has half of them.
        target_width: numbers in a state of the target.
        attacker_width: numbers in a state of the attacker.
        seed: of the questions and of both trainings.
    """

    digits: int = 5
    examples: int = 380_000
    questions: int = 600_000
    batch_size: int = 512
    target_width: int = 64
    attacker_width: int = 48
    seed: int = 0

    @property
    def length(self) -> int:
        """Tokens of the longest question."""
        return 2 * self.digits + 2


SMALL = Sizes(digits=2, examples=60_000, questions=20_000, batch_size=64, target_width=32, attacker_width=32)
"""For tests: seconds, and a much worse adder."""


# ---- the target ----------------------------------------------------------------------------------


class Adder(nn.Module):
    """A transformer that reads a question and writes the sum, units first.

    Each digit of a question has the embedding of its place value beside that of its position: without it a network of
    this size needs hours.

    Args:
        digits: of an operand, at most.
        width: numbers in a state.
    """

    def __init__(self, digits: int, width: int) -> None:
        super().__init__()
        self.digits, self.length, self.answer_length = digits, 2 * digits + 2, digits + 2
        self.net = TokenDecoder(PAD + 1, PAD, self.length + self.answer_length - 1, width=width, layers=2, heads=4)
        self.values = nn.Embedding(digits + 1, width)

    def read(self, x: Tensor, parsed: Parsed) -> tuple[Tensor, Tensor]:
        """Questions moved so that all end at the same position, and the place value of each token, 0 for none."""
        place = torch.arange(self.length)
        at = place - (self.length - 1 - parsed.end[:, None])
        tokens = torch.where(at < 0, PAD, x.gather(1, at.clamp(min=0)))
        of_a, of_b = parsed.plus[:, None] - at, parsed.end[:, None] - at
        values = torch.where(at < parsed.plus[:, None], of_a, of_b)
        return tokens, torch.where((at < 0) | (tokens > 9), 0, values)

    def _extra(self, values: Tensor) -> Tensor:
        return self.values(F.pad(values, (0, self.answer_length - 1)))

    def model(self, x: Tensor) -> None:
        """The likelihood of the right answers to valid questions x (n, length), given them."""
        pyro.module("adder", self)
        parsed = parse(x, self.digits)
        right = sums(parsed.a, parsed.b, self.digits)
        tokens, values = self.read(x, parsed)
        logits = self.net(torch.cat([tokens, right[:, :-1]], 1), extra=self._extra(values))[:, self.length - 1 :]
        counts = (right != END) | ((right == END).cumsum(1) == 1)
        with pyro.plate("data", len(x)):
            pyro.sample("answer", dist.Categorical(logits=logits).mask(counts).to_event(1), obs=right)

    def guide(self, x: Tensor) -> None:
        """Nothing is latent."""

    @torch.no_grad()
    def wrong(self, x: Tensor, parsed: Parsed, batch_size: int = 2048) -> Tensor:
        """Which valid questions x (n, length) are answered otherwise than by the digits of the sum."""
        right = sums(parsed.a, parsed.b, self.digits)
        tokens, values = self.read(x, parsed)
        parts = zip(tokens.split(batch_size), values.split(batch_size), strict=True)
        found = [self.net.complete(t, self.answer_length, end=END, extra=self._extra(v)) for t, v in parts]
        return (torch.cat(found) != right).any(1) if found else torch.zeros(0, dtype=torch.bool)


class Reward:
    """1 for a valid question that the target answers wrongly, 0 for all else.

    Args:
        target: the trained adder.
        zeros: whether numbers with leading zeros are valid.
    """

    def __init__(self, target: Adder, *, zeros: bool) -> None:
        self.target, self.zeros = target, zeros

    def __call__(self, x: Tensor) -> Tensor:
        """Rewards (n,), booleans, of sequences (n, length)."""
        parsed = parse(x, self.target.digits)
        asked = parsed.valid if self.zeros else parsed.valid & ~parsed.zeros
        rows = asked.nonzero().squeeze(1)
        found = torch.zeros(len(x), dtype=torch.bool)
        if len(rows):
            found[rows] = self.target.wrong(x[rows], Parsed(*(value[rows] for value in vars(parsed).values())))
        return found


# ---- training, once ------------------------------------------------------------------------------


def _cosine(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    rise = min(200, max(1, steps // 10))

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / rise) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps))) + 1e-3

    return torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


def _train(module: Any, x: Tensor, *, lr: float, batch_size: int, seed: int, name: str) -> None:
    n = len(x)
    steps = math.ceil(n / batch_size)
    with pyro.get_param_store().scope():
        fit(
            module.model, module.guide, x, epochs=1, batch_size=batch_size, seed=seed, collapse=None,
            optim=partial(torch.optim.AdamW, lr=lr, betas=(0.9, 0.98), weight_decay=0.01),
            lr_scheduler=partial(_cosine, steps=steps), name=name, capture=False, posterior_samples=0,
            progress=sys.stderr.isatty(),
        )  # fmt: skip
    module.zero_grad(set_to_none=True)
    module.requires_grad_(False)


def target(sizes: Sizes) -> Adder:
    """The adder, trained or read from the cache."""

    def build() -> Adder:
        made = Adder(sizes.digits, sizes.target_width)
        for table in (made.net.embed, made.values):
            nn.init.normal_(table.weight, std=0.5)
        return made

    return _cached("target", sizes, build, sizes.examples, lr=2e-3, batch_size=sizes.batch_size)


def attacker(sizes: Sizes) -> TokenTransformer:
    """The generator of questions, trained or read from the cache."""

    def build() -> TokenTransformer:
        return TokenTransformer(len(SYMBOLS), sizes.length, width=sizes.attacker_width, layers=2, heads=4, end=END)

    return _cached("attacker", sizes, build, sizes.questions, lr=3e-3, batch_size=sizes.batch_size // 2)


def _cached(name: str, sizes: Sizes, build: Callable[[], Any], n: int, *, lr: float, batch_size: int) -> Any:
    """A trained module: from the file of its sizes if there is one, else trained on n questions and written there."""
    seed = sizes.seed + (name == "attacker")
    with fork_rng(seed):
        made = build()
    key = json.dumps({"name": name, **vars(sizes), "torch": torch.__version__}, sort_keys=True)
    folder = Path(os.environ.get("BANEL_CACHE", "runs/cache"))
    file = folder / f"addition-{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.pt"
    if file.exists():
        made.load_state_dict(torch.load(plain_file(file), weights_only=True))
        return made.requires_grad_(False)
    with fork_rng(seed):
        x = draw_questions(n, sizes.digits)
    _train(made, x, lr=lr, batch_size=batch_size, seed=seed, name=f"training the {name}")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda path: torch.save(made.state_dict(), path))
    return made


# ---- tasks ---------------------------------------------------------------------------------------


def attack(sizes: Sizes = Sizes(), *, zeros: bool = True, draws: int = 20_000) -> Task:
    """The attack, in which numbers may have leading zeros, which no training question has."""
    reward = Reward(target(sizes), zeros=zeros)
    return Task(
        name=f"addition of {sizes.digits} digits{'' if zeros else ', no leading zeros'}",
        generator=attacker(sizes), reward=reward, success_rate=DrawnSuccesses(reward, draws=draws), show=text,
        options={
            "rounds": 10, "factor": 4.0, "filter": RatioFilter(Training(epochs=30, batch_size=64, lr=1e-3)),
            "distillation": Distillation(draws=4000, training=Training(epochs=2, batch_size=128, lr=1e-3)),
        },
    )  # fmt: skip


def attack_without_zeros() -> Task:
    """The harder attack: numbers with leading zeros are not valid."""
    return attack(zeros=False)


def small_attack() -> Task:
    """Two digits and a few seconds, with exact success rates: all 12,100 valid questions are asked beforehand."""
    task = attack(SMALL)
    x = every_question(SMALL.digits)
    return replace(task, success_rate=ListedSuccesses(x[task.reward(x)]))
