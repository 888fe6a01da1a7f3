"""The worst tokens and sequences of one batch, as rows of integers (see ``cells``), merged into a tally's in place.

Shapes: R rows, T columns, N = R·T tokens, S sequences, K rows kept, C columns.
"""

from __future__ import annotations

from typing import NamedTuple

from pplmon import cells
from pplmon.tally.arrays import Array, Arrays
from pplmon.tally.count import Batch, SequenceSums

_INDEX_MASK = 0xFFFFFFFF


class Address(NamedTuple):
    """Where a batch stands in the run."""

    step: int
    micro_batch: int
    rank: int
    sample_ids: Array | None  # [R] int64
    position_ids: Array | None  # [N] int64, in place of the column

    @property
    def when(self) -> int:
        """Step and micro-batch in one integer."""
        return self.step << cells.MICRO_BITS | self.micro_batch

    @property
    def rank_bits(self) -> int:
        """The rank, where it stands in WHERE."""
        return self.rank << (cells.SEQUENCE_BITS + cells.POSITION_BITS)

    def where(self, xp: Arrays, row: Array, position: Array) -> Array:
        """Rank, row and column in one integer. A batch beyond these bounds reads as the last that fits."""
        row, position = xp.at_most(row, 2**cells.SEQUENCE_BITS - 1), xp.at_most(position, 2**cells.POSITION_BITS - 1)
        return (row << cells.POSITION_BITS) + position + self.rank_bits

    def position(self, xp: Arrays, row: Array, column: Array, length: int) -> Array:
        """The column, or what the caller says is its place in the whole sequence."""
        return column if self.position_ids is None else xp.at_least(self.position_ids[row * length + column], 0)

    def sample(self, xp: Arrays, row: Array) -> Array:
        """The dataset's row, where it is known."""
        return xp.full_like(row, cells.NONE) if self.sample_ids is None else self.sample_ids[row]


def keep_tokens(xp: Arrays, rows: Array, batch: Batch, address: Address, context: int) -> None:
    """Keep in ``rows`` [K, C] the tokens with the largest loss (NaN, then inf, then finite), ties to the earliest."""
    columns = batch.columns
    length = columns.shape[1]
    count = len(batch.bits)
    # Of what is not scored the key is below 0, and its lower half is the token's place all the same.
    key = (xp.integers(batch.bits) << 32) | (_INDEX_MASK - xp.arange(0, count))
    key, index = xp.top(key, min(len(rows), count))
    row = index // length
    column = (index - row * length + int(columns.shift)) % length
    given = [
        key >> 32,
        xp.full_like(key, address.when),
        address.where(xp, row, address.position(xp, row, column, length)),
        columns.targets[index],
        xp.full_like(key, -1) if columns.predicted is None else columns.predicted[index],
        xp.full_like(key, -1) if columns.top_probability is None else _bits(xp, columns.top_probability[index]),
        address.sample(xp, row),
    ]
    found = xp.concatenate([xp.stack(given).T, _neighbours(xp, batch, row, column, context)], 1)
    _merge(xp, rows, xp.where((key >= 0)[:, None], found, -1))


def keep_sequences(xp: Arrays, rows: Array, batch: Batch, sums: SequenceSums | None, address: Address) -> None:
    """Keep in ``rows`` [K, C] the sequences with the largest mean loss, ties to the earliest."""
    if sums is None or batch.sequences is None:
        return
    sequences, count = batch.sequences, len(sums.tokens)
    # A mean is below 2**42 units, so a number of sequences below 2**20 can share the key with it; beyond that many,
    # ties between equal means fall as topk likes.
    order = xp.at_least(2**20 - 1 - xp.arange(0, count), 0)
    key, name = xp.top((sums.mean_units << 20) + order, min(len(rows), count))
    first = name if sequences.first is not None else name * sequences.length
    row = first // sequences.length
    given = [
        sums.mean_units[name],
        xp.full_like(key, address.when),
        address.where(xp, row, first - row * sequences.length),
        sums.tokens[name],
        xp.full_like(key, cells.NONE) if sequences.documents is None else sequences.documents[first],
        address.sample(xp, row),
    ]
    _merge(xp, rows, xp.where((key >= 0)[:, None], xp.stack(given).T, -1))


def _neighbours(xp: Arrays, batch: Batch, row: Array, column: Array, context: int) -> Array:
    """Return [K, 2·context+1] cells of id << 32 | loss bits around each target, −1 outside its sequence."""
    columns = batch.columns
    length = columns.shape[1]
    beside = column[:, None] + xp.arange(-context, context + 1)
    inside = (beside >= 0) & (beside < length)
    index = row[:, None] * length + (beside - int(columns.shift)) % length
    if batch.sequences is not None and batch.sequences.first is not None:
        inside &= batch.sequences.first[index] == batch.sequences.first[index[:, context : context + 1]]
    ids = columns.targets[index]
    inside &= (ids >= 0) & (ids < (columns.vocab_size or 2**31))  # an ignore_index is no token
    # The bits of what was not scored are −1, whose lower half is cells.NO_LOSS.
    return xp.where(inside, (ids << 32) + (xp.integers(batch.bits[index]) & cells.NO_LOSS), -1)


def _merge(xp: Arrays, rows: Array, found: Array) -> None:
    """Keep the K worst of both in ``rows``: the largest loss first, then the earliest address; empty rows (−1) last."""
    if xp.known_empty(rows):  # what was found is in order
        rows[: len(found)] = found
        return
    both = xp.concatenate([rows, found], 0)
    order = xp.order(both[:, 0], both[:, cells.WHEN], both[:, cells.WHERE])
    rows[...] = both[order[: len(rows)]]


def _bits(xp: Arrays, values: Array) -> Array:
    return xp.integers(values.view(xp.int32) & 0x7FFFFFFF)  # a NaN may have a sign
