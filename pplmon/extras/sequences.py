"""Find the sequence that each token stands in, and check what else a batch says of its tokens.

Shapes: R rows, T columns, N = R·T tokens. A row of the stats may be about the target of the next column (``stats.shift``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pplmon.measure.tokens import TokenStats


class Places(NamedTuple):
    """Of the caller's columns [R, T]: each one's number, and the number of the one at which its sequence begins."""

    column: Tensor
    first: Tensor


def places_of(stats: TokenStats, batch_data: Mapping[str, Tensor]) -> Places | None:
    """Return where tokens stand: sequences are rows, or runs of equal document ids. ``None`` of a flat batch without them."""
    documents = given("document_ids", stats, batch_data)
    if documents is None and len(stats.batch_shape) == 1:
        return None
    length = stats.batch_shape[-1]
    column = torch.arange(length, device=stats.nll.device).expand(stats.nll.numel() // max(length, 1), length)
    if documents is None:
        return Places(column, torch.zeros_like(column))
    begins = torch.zeros_like(column)
    begins[:, 1:] = torch.where(documents[:, 1:] != documents[:, :-1], column[:, 1:], 0)
    return Places(column, begins.cummax(-1).values)


def by_row(stats: TokenStats, values: Tensor) -> Tensor:
    """Return what belongs to the caller's targets [R, T] in the order of the stats' rows, [R, T]."""
    return values.roll(-1, -1) if stats.shift else values


def by_column(stats: TokenStats, values: Tensor) -> Tensor:
    """Return what stands in the stats' rows [N] in the order of the caller's targets, [R, T]."""
    table = values.view(-1, stats.batch_shape[-1])
    return table.roll(1, -1) if stats.shift else table


def given(name: str, stats: TokenStats, batch_data: Mapping[str, Tensor], or_by_row: bool = False) -> Tensor | None:
    """Return integers that a batch gives of each of the caller's targets, [R, T] int64 on the device of the stats.

    With ``or_by_row`` they may also be [B], one for each row of a batch [B, T].
    """
    values = batch_data.get(name)
    if values is None:
        return None
    shape, found = stats.batch_shape, tuple(values.shape)
    whole_rows = or_by_row and len(shape) == 2 and found == shape[:1]
    if found != shape and not whole_rows:
        more = " or [B], one for each row" if or_by_row else ""
        raise ValueError(f"{name} must have the shape of targets {shape}{more}, got {found}")
    if values.is_floating_point():
        raise TypeError(f"{name} must be integers, got {values.dtype}")
    values = values.to(stats.nll.device, torch.int64)
    return values[:, None].expand(shape) if whole_rows else values.reshape(-1, shape[-1])
