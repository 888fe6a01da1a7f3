"""Add tokens up by parts (groups, classes, positions), and read the numbers of each part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pplmon.extras.nats import mean, upper_and_lower
from pplmon.measure.tokens import TokenStats
from pplmon.report import layout

SIGN = 0x7FFFFFFF  # all bits of a float32 but its sign


class Part(NamedTuple):
    """The integers of one part: ``sums_of_parts`` gives the first four, ``maxima_of_parts`` the last."""

    tokens: int
    correct: int
    upper: int
    lower: int
    loss_bits: int = -1

    @property
    def cross_entropy(self) -> float:
        """Σ nll / tokens; NaN of none."""
        return mean(self.upper, self.lower, self.tokens)

    @property
    def token_accuracy(self) -> float:
        """The share of tokens whose argmax is the target; NaN of none."""
        return self.correct / self.tokens if self.tokens else math.nan

    @property
    def max_token_loss(self) -> float:
        """The largest nll; NaN of none."""
        return layout.float_from_bits(self.loss_bits) if self.loss_bits >= 0 else math.nan


SUMS = len(Part._fields) - 1


def check_names(extra: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of parts: texts that can stand in a log key, each once."""
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f'{extra} takes a list of names, got {names!r}; write {extra}(["web", "code"])')
    odd = [name for name in names if not name or "/" in name]
    if odd or not names:
        raise ValueError(f"{extra} takes at least one name, and none that is empty or has a '/', got {list(names)!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"{extra} takes each name once, got {list(names)!r}")
    return tuple(names)


def sums_of_parts(stats: TokenStats, part: Tensor, parts: int) -> Tensor:
    """Return [parts · SUMS] int64.

    Args:
        stats: N tokens.
        part: [N] int64, the part of each token; below 0 where it is not to be counted.
        parts: how many there are.
    """
    counted = part >= 0
    correct = torch.zeros_like(counted) if stats.correct is None else counted & stats.correct
    return add_up(part, parts, [counted, correct, *upper_and_lower(torch.where(counted, stats.nll, 0.0))])


def maxima_of_parts(stats: TokenStats, part: Tensor, parts: int) -> Tensor:
    """Return [parts] int64: the float bits of the largest loss of each part, −1 of an empty one."""
    bits = torch.where(part >= 0, (stats.nll.view(torch.int32) & SIGN).to(torch.int64), -1)
    return torch.full((parts,), -1, dtype=torch.int64, device=part.device).scatter_reduce_(
        0, part.clamp_min(0), bits, "amax"
    )


def add_up(part: Tensor, parts: int, columns: Sequence[Tensor]) -> Tensor:
    """Return [parts · C] int64: the sums over each part of C columns [N], which are 0 where ``part`` is below 0."""
    # scatter_add_ of integers: exact in any order, and neither waits for the device nor is refused in deterministic mode.
    width = len(columns)
    values = torch.stack([column.to(torch.int64) for column in columns], 1)
    index = part.clamp_min(0)[:, None] * width + torch.arange(width, device=part.device)
    sums = torch.zeros(parts * width, dtype=torch.int64, device=part.device)
    return sums.scatter_add_(0, index.flatten(), values.flatten())


def parts_of(integers: Sequence[int], maxima: Sequence[int] = ()) -> list[Part]:
    """Return the parts whose integers these are."""
    rows: list[Any] = [integers[start : start + SUMS] for start in range(0, len(integers), SUMS)]
    return [Part(*row, *maxima[index : index + 1]) for index, row in enumerate(rows)]
