"""Questions such as `10+23=` as sequences of tokens: drawn, read and written; what `models.addition` is about."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["END", "PLUS", "SYMBOLS", "Parsed", "draw_questions", "every_question", "parse", "sums", "text"]

SYMBOLS = "0123456789+="
PLUS, END = 10, 11
"""Tokens are positions in SYMBOLS. A question ends with its first `=`; what follows it is `=` too."""


@dataclass(frozen=True)
class Parsed:
    """Sequences read as questions; where `valid` is False the other fields mean nothing.

    Args:
        valid: one plus, between two numbers of 1 to `digits` digits, and an equals sign.
        a: the first number.
        b: the second.
        plus: position of the plus.
        end: position of the equals sign.
        zeros: whether a number has leading zeros, which no training question has.
    """

    valid: Tensor
    a: Tensor
    b: Tensor
    plus: Tensor
    end: Tensor
    zeros: Tensor


def draw_questions(n: int, digits: int) -> Tensor:
    """Questions (n, length) whose numbers have 1 to `digits` digits, each length as likely as another."""
    sides = []
    for _ in range(2):
        size = torch.randint(1, digits + 1, (n, 1))
        place = torch.arange(digits)
        number = torch.randint(0, 10, (n, digits))
        first = torch.where(size == 1, torch.randint(0, 10, (n, 1)), torch.randint(1, 10, (n, 1)))  # 0 itself is one
        number[:, :1] = first
        sides.append(torch.where(place < size, number, -1))
    plus, end = torch.full((n, 1), PLUS), torch.full((n, 1), END)
    return _close_gaps(torch.cat([sides[0], plus, sides[1], end], 1))


def _close_gaps(x: Tensor) -> Tensor:
    """Sequences without their entries of -1: what is left moves up, and the end fills the rest."""
    order = (x < 0).long().argsort(dim=1, stable=True)
    moved = x.gather(1, order)
    return torch.where(moved < 0, END, moved)


def parse(x: Tensor, digits: int) -> Parsed:
    """Read sequences (n, length) as questions."""
    place = torch.arange(x.shape[1])
    ends = (x == END).any(1)
    end = torch.where(ends, (x == END).long().argmax(1), x.shape[1])
    inside = place < end[:, None]
    pluses = (x == PLUS) & inside
    plus = pluses.long().argmax(1)
    size_a, size_b = plus, end - plus - 1
    valid = ends & (pluses.sum(1) == 1)
    for size in (size_a, size_b):
        valid &= (size >= 1) & (size <= digits)
    a, b = torch.zeros(len(x), dtype=torch.long), torch.zeros(len(x), dtype=torch.long)
    for at in range(x.shape[1]):
        digit = x[:, at]
        a = torch.where(valid & (at < plus), 10 * a + digit, a)
        b = torch.where(valid & (at > plus) & (at < end), 10 * b + digit, b)
    first_a, first_b = x[:, 0], x.gather(1, (plus + 1).clamp(max=x.shape[1] - 1)[:, None])[:, 0]
    zeros = valid & (((first_a == 0) & (size_a > 1)) | ((first_b == 0) & (size_b > 1)))
    return Parsed(valid, a, b, plus, end, zeros)


def sums(a: Tensor, b: Tensor, digits: int) -> Tensor:
    """The digits of a + b (n, digits + 2), units first, without leading zeros, then END."""
    total = a + b
    power = 10 ** torch.arange(digits + 2)
    written = (total[:, None] // power) % 10
    return torch.where((total[:, None] >= power) | (torch.arange(digits + 2) == 0), written, END)


def text(x: Tensor) -> list[str]:
    """Questions as people write them; what is none shows as it is."""
    written = ("".join(SYMBOLS[token] for token in row).partition("=") for row in x.tolist())
    return [before + end for before, end, _ in written]


def every_question(digits: int) -> Tensor:
    """All valid questions, those with leading zeros too: (n, length) for n = (10 + 100 + ...)², to 2 digits or so."""
    numbers = [f"{n:0{size}d}" for size in range(1, digits + 1) for n in range(10**size)]
    rows = [[SYMBOLS.index(sign) for sign in f"{a}+{b}"] for a in numbers for b in numbers]
    return torch.tensor([row + [END] * (2 * digits + 2 - len(row)) for row in rows])
