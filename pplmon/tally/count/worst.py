"""Merge the worst tokens and sequences of one batch into a tally's rows of integers (see ``report.layout``), in place.

Shapes: R rows, T columns, N = R·T tokens, S sequences, K rows kept, C columns.
"""

from __future__ import annotations

from typing import NamedTuple

from pplmon.report import layout
from pplmon.tally.count.numpy_or_torch import Array, Arrays
from pplmon.tally.count.sums import Batch, SequenceSums

_INDEX_MASK = 0xFFFFFFFF


class Address(NamedTuple):
    """The address of a batch in the run."""

    step: int
    micro_batch: int
    rank: int
    sample_ids: Array | None  # [R] int64
    position_ids: Array | None  # [N] int64, in place of the column

    @property
    def when(self) -> int:
        """Return step and micro-batch in one integer."""
        return self.step << layout.MICRO_BITS | self.micro_batch

    @property
    def rank_bits(self) -> int:
        """Return the rank in its bits of WHERE."""
        return self.rank << (layout.SEQUENCE_BITS + layout.POSITION_BITS)

    def where(self, xp: Arrays, row: Array, position: Array) -> Array:
        """Return rank, row and column in one integer. A batch beyond these bounds reads as the last that fits."""
        row, position = xp.at_most(row, 2**layout.SEQUENCE_BITS - 1), xp.at_most(position, 2**layout.POSITION_BITS - 1)
        return (row << layout.POSITION_BITS) + position + self.rank_bits

    def position(self, xp: Arrays, index: Array, column: Array) -> Array:
        """Return the column, or the position that the caller gave for it."""
        return column if self.position_ids is None else xp.at_least(self.position_ids[index], 0)


def keep_tokens(xp: Arrays, rows: Array, batch: Batch, address: Address, context: int) -> None:
    """Keep in ``rows`` [K, C] the tokens with the largest loss (NaN, then inf, then finite), ties to the earliest."""
    columns = batch.columns
    length, shift = columns.shape[1], int(columns.shift)
    if xp.known_below(rows, batch.bits, address.when):
        return
    bits = xp.integers(batch.bits)
    count = len(bits)
    # Of what is not scored the key is below 0, and its lower half is the token's place all the same.
    key, index = xp.top((bits << 32) | (_INDEX_MASK - xp.arange(0, count)), min(len(rows), count))
    row = index // length
    start = row * length
    column = (index - start + shift) % length
    found = xp.full((len(key), rows.shape[1]), -1)
    found[:, layout.TOKEN_LOSS] = key >> 32
    xp.fill(found[:, layout.WHEN], address.when)
    found[:, layout.WHERE] = address.where(xp, row, address.position(xp, start + column, column))
    found[:, layout.TARGET] = columns.targets[index]
    if columns.predicted is not None:
        found[:, layout.PREDICTED] = columns.predicted[index]
    if columns.top_probability is not None:
        # A NaN may have a sign.
        found[:, layout.TOP_PROBABILITY] = columns.top_probability[index].view(xp.int32) & 0x7FFFFFFF
    if address.sample_ids is None:
        xp.fill(found[:, layout.SAMPLE], layout.NONE)
    else:
        found[:, layout.SAMPLE] = address.sample_ids[row]

    beside = column[:, None] + xp.arange(-context, context + 1)
    inside = (beside >= 0) & (beside < length)  # a neighbour is of the same sequence
    index = start[:, None] + (beside - shift) % length
    if batch.sequences is not None and batch.sequences.first is not None:
        inside &= batch.sequences.first[index] == batch.sequences.first[index[:, context : context + 1]]
    ids = columns.targets[index]
    inside &= (ids >= 0) & (ids < (columns.vocab_size or 2**31))  # an ignore_index is no token
    # The bits of what was not scored are −1, whose lower half is layout.NO_LOSS.
    found[:, layout.TOKEN_COLUMNS :] = xp.where(inside, (ids << 32) + (bits[index] & layout.NO_LOSS), -1)
    _merge(xp, rows, xp.where((key >= 0)[:, None], found, -1), in_order=address.position_ids is None)


def keep_sequences(xp: Arrays, rows: Array, batch: Batch, sums: SequenceSums | None, address: Address) -> None:
    """Keep in ``rows`` [K, C] the sequences with the largest mean loss, ties to the earliest."""
    if sums is None or batch.sequences is None:
        return
    if xp.known_below(rows, sums.mean_units, address.when):
        return
    sequences, count = batch.sequences, len(sums.tokens)
    # Of more sequences than a key has places for, ties between equal means fall as topk likes.
    order = xp.at_least(2**layout.ORDER_BITS - 1 - xp.arange(0, count), 0)
    key, name = xp.top((sums.mean_units << layout.ORDER_BITS) + order, min(len(rows), count))
    first = name if sequences.first is not None else name * sequences.length
    row = first // sequences.length
    found = xp.full((len(key), rows.shape[1]), layout.NONE)
    found[:, layout.SEQUENCE_LOSS] = sums.mean_units[name]
    xp.fill(found[:, layout.WHEN], address.when)
    found[:, layout.WHERE] = address.where(xp, row, first - row * sequences.length)
    found[:, layout.SEQUENCE_TOKENS] = sums.tokens[name]
    if sequences.documents is not None:
        found[:, layout.SEQUENCE_DOCUMENT] = sequences.documents[first]
    if address.sample_ids is not None:
        found[:, layout.SEQUENCE_SAMPLE] = address.sample_ids[row]
    _merge(xp, rows, xp.where((key >= 0)[:, None], found, -1), in_order=True)


def _merge(xp: Arrays, rows: Array, found: Array, in_order: bool) -> None:
    """Keep the K worst of both in ``rows``: the largest loss first, then the earliest address; empty rows (−1) last.

    ``in_order`` says that the found rows are sorted already, as where addresses rise with the place in the batch.
    """
    if in_order and xp.known_empty(rows):
        rows[: len(found)] = found
        return
    both = xp.concatenate([rows, found], 0)
    order = xp.order(both[:, 0], both[:, layout.WHEN], both[:, layout.WHERE])
    rows[...] = both[order[: len(rows)]]
