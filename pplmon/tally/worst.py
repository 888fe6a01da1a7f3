"""The worst tokens and sequences of one batch, as rows of integers (see ``cells``).

Shapes: B rows, T columns, N = B·T tokens, K rows kept, C columns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pplmon import cells
from pplmon.tally.count import Batch, SequenceSums

_INDEX_MASK = 0xFFFFFFFF


class Address(NamedTuple):
    """Where a batch stands in the run."""

    step: int
    micro_batch: int
    rank: int
    sample_ids: Tensor | None  # [B] int64
    position_ids: Tensor | None = None  # [N] int64, in place of the column

    @property
    def when(self) -> int:
        """Step and micro-batch in one integer."""
        return self.step << cells.MICRO_BITS | self.micro_batch

    def where(self, sequence: Tensor, position: Tensor) -> Tensor:
        """Rank, row and column in one integer."""
        rank = self.rank << (cells.SEQUENCE_BITS + cells.POSITION_BITS)
        row = sequence.clamp_max(2**cells.SEQUENCE_BITS - 1)  # a batch beyond these bounds reads as the last that fits
        column = position.clamp_max(2**cells.POSITION_BITS - 1)
        return (row << cells.POSITION_BITS) + column + rank

    def position(self, sequence: Tensor, column: Tensor, length: int) -> Tensor:
        """The column, or what the caller says is its place in the whole sequence."""
        if self.position_ids is None:
            return column
        return self.position_ids[sequence * length + column].clamp(0, 2**cells.POSITION_BITS - 1)

    def sample(self, sequence: Tensor) -> Tensor:
        """The dataset's row, where it is known."""
        if self.sample_ids is None:
            return torch.full_like(sequence, cells.NONE)
        return self.sample_ids[sequence]


def token_rows(batch: Batch, address: Address, keep: int, context: int) -> Tensor:
    """Return [K, C]: the tokens with the largest loss (NaN, then inf, then finite), ties to the earliest."""
    stats = batch.stats
    count = batch.bits.numel()
    order = _INDEX_MASK - torch.arange(count, device=batch.bits.device)
    key = torch.where(batch.scored, (batch.bits << 32) + order, -1)
    key = key.topk(min(keep, count)).values
    index = torch.where(key >= 0, _INDEX_MASK - (key & _INDEX_MASK), 0)
    length = stats.batch_shape[-1]
    sequence = index // length
    position = (index % length + int(stats.shift)) % length
    columns = [
        key >> 32,
        torch.full_like(key, address.when),
        address.where(sequence, address.position(sequence, position, length)),
        stats.targets[index],
        _taken(stats.predicted, index),
        _taken(None if stats.top_probability is None else _bits(stats.top_probability), index),
        address.sample(sequence),
    ]
    rows = torch.cat([torch.stack(columns, dim=1), _neighbours(batch, sequence, position, context)], dim=1)
    return _padded(torch.where((key >= 0).unsqueeze(1), rows, -1), keep)


def sequence_rows(batch: Batch, sums: SequenceSums | None, address: Address, keep: int) -> Tensor:
    """Return [K, C]: the sequences with the largest mean loss, ties to the earliest."""
    if sums is None or batch.sequences is None:
        return batch.bits.new_full((keep, cells.SEQUENCE_COLUMNS), -1)
    count = sums.tokens.numel()
    length = batch.stats.batch_shape[-1]
    # A mean is below 2**42 units, so a number of sequences below 2**20 can share the key with it; beyond that many,
    # ties between equal means fall as topk likes.
    order = torch.arange(count, device=batch.bits.device)
    key = torch.where(sums.mean_units >= 0, (sums.mean_units << 20) + (2**20 - 1 - order).clamp_min(0), -1)
    top = key.topk(min(keep, count))
    segment = top.indices
    # Any token of a sequence knows the rest of its address; the last one to write is as good as the first.
    member = torch.zeros_like(order).scatter_reduce(
        0, batch.sequences.segment, torch.arange(batch.bits.numel(), device=batch.bits.device), "amax"
    )[segment]
    sequence = member // length
    document = batch.sequences.document
    columns = [
        sums.mean_units[segment],
        torch.full_like(segment, address.when),
        address.where(sequence, batch.sequences.first[member]),
        sums.tokens[segment],
        torch.full_like(segment, cells.NONE) if document is None else document[member],
        address.sample(sequence),
    ]
    rows = torch.where((top.values >= 0).unsqueeze(1), torch.stack(columns, dim=1), -1)
    return _padded(rows, keep)


def _neighbours(batch: Batch, sequence: Tensor, position: Tensor, context: int) -> Tensor:
    """Return [K, 2·context+1] cells of id << 32 | loss bits around each target, −1 outside its sequence."""
    stats = batch.stats
    length = stats.batch_shape[-1]
    column = position.unsqueeze(1) + torch.arange(-context, context + 1, device=position.device)
    inside = (column >= 0) & (column < length)
    index = sequence.unsqueeze(1) * length + (column - int(stats.shift)) % length
    if batch.sequences is not None and batch.sequences.document is not None:
        inside = inside & (batch.sequences.segment[index] == batch.sequences.segment[index[:, context : context + 1]])
    ids = stats.targets[index]
    inside = inside & (ids >= 0) & (ids < (stats.vocab_size or 2**31))  # an ignore_index is no token
    bits = batch.bits[index]
    return torch.where(inside, (ids << 32) + torch.where(bits >= 0, bits, cells.NO_LOSS), -1)


def _bits(values: Tensor) -> Tensor:
    return values.view(torch.int32).to(torch.int64) & 0x7FFFFFFF  # a NaN may have a sign


def _taken(values: Tensor | None, index: Tensor) -> Tensor:
    return torch.full_like(index, -1) if values is None else values[index]


def _padded(rows: Tensor, keep: int) -> Tensor:
    missing = keep - rows.shape[0]
    return rows if missing <= 0 else torch.cat([rows, rows.new_full((missing, rows.shape[1]), -1)])
