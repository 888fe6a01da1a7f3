"""Which tokens make a sequence: the rows of a batch, or the runs of equal document ids in it.

Shapes: B rows, T columns, N = B·T tokens, all in the frame of the caller's targets (not shifted).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pplmon.tokens import TokenStats


@dataclass(frozen=True, eq=False)
class Sequences:
    """A batch cut into sequences. ``segment`` numbers them from 0; there are never more than ``count``."""

    count: int
    segment: Tensor  # [N] int64, for each row of the stats
    first: Tensor  # [N] int64: the column in which the token's sequence begins
    document: Tensor | None  # [N] int64
    crosses: Tensor | None  # [N] bool: the target's document is not that of its logits


def rows_as_sequences(stats: TokenStats) -> Sequences | None:
    """Cut [B, T] into its rows. Flat stats [N] have no sequences."""
    if len(stats.batch_shape) != 2:
        return None
    rows, length = stats.batch_shape
    segment = torch.arange(rows, device=stats.nll.device).repeat_interleave(length, output_size=rows * length)
    return Sequences(rows, segment, torch.zeros_like(segment), None, None)


def documents_as_sequences(stats: TokenStats, document_ids: Tensor) -> Sequences:
    """Cut a packed batch into runs of equal ids, which never span two rows."""
    rows, length = stats.batch_shape if len(stats.batch_shape) == 2 else (1, *stats.batch_shape)
    ids = document_ids.detach().reshape(rows, length).to(stats.nll.device, torch.int64)
    starts = torch.ones_like(ids, dtype=torch.bool)
    starts[:, 1:] = ids[:, 1:] != ids[:, :-1]
    segment = (starts.reshape(-1).cumsum(0) - 1).view(rows, length)
    column = torch.arange(length, device=ids.device).expand(rows, length)
    first = torch.where(starts, column, 0).cummax(1).values
    crosses = None
    if stats.shift:
        after = ids.roll(-1, dims=1)
        crosses = (after != ids).reshape(-1)
        ids, segment, first = after, segment.roll(-1, dims=1), first.roll(-1, dims=1)
    return Sequences(rows * length, segment.reshape(-1), first.reshape(-1), ids.reshape(-1), crosses)
