"""Padding at the ends of rows: by the attention mask, or by the one id that rows end in.

Shapes: B sequences, T positions. Nothing here waits for the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Padding(NamedTuple):
    """The columns at either end of the rows that are padding, in what they were read from."""

    columns: Tensor  # [B, T] bool
    elsewhere: Tensor  # [] int64: how often the padding's id stands elsewhere; 0 where a mask says what is padding
    rows: Tensor  # [] int64: rows with three columns of it or more
    by_mask: Tensor  # [] bool: a mask says so


def by_mask(attention_mask: Tensor) -> Padding:
    """Return the padding that an attention mask shows: what is 0 from an end of its row on."""
    out = attention_mask == 0
    columns = run(out) | run(out.flip(1)).flip(1)
    return Padding(columns, torch.zeros_like(out.sum()), (columns.sum(1) >= 3).sum(), columns.new_ones(()))


def by_runs(ids: Tensor) -> Padding:
    """Return the padding that ids show by themselves: one id that two rows or more end in, or begin with, twice or more."""
    (right, pad_right), (left, pad_left) = _runs(ids), _runs(ids.flip(1))
    at_right = right.sum() >= left.sum()
    columns = torch.where(at_right, right, left.flip(1))
    pad = torch.where(at_right, pad_right, pad_left)
    elsewhere = ((ids == pad) & ~columns).sum()
    return Padding(columns, elsewhere, (columns.sum(1) >= 3).sum(), columns.new_zeros(()))


def run(hit: Tensor) -> Tensor:
    """Return [B, T] bool: true from here to the end of the row."""
    return ((~hit).flip(1).cumsum(1) == 0).flip(1)


def edge(x: Tensor, shift: int) -> Tensor:
    """Return ``x[:, t + shift]`` at column t, and the nearest column beyond the row."""
    column = (torch.arange(x.shape[1], device=x.device) + shift).clamp(0, x.shape[1] - 1)
    return x.index_select(1, column)


def _runs(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the runs [B, T] at the end of rows of the id that most rows end in twice, and that id."""
    last = ids[:, -1]
    ends = run(ids == last.unsqueeze(1))
    long = ends.sum(1) >= 2
    votes = ((last.unsqueeze(1) == last) & long).sum(1) * long
    pad = last.index_select(0, votes.argmax().view(1))[0]
    return ends & ((last == pad) & (votes.amax() >= 2)).unsqueeze(1), pad
