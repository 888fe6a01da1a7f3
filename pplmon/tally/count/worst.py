"""Find the worst tokens and sequences among those counted, and keep them in a tally's rows of integers (see ``report.layout``).

Shapes: R rows, T columns, N = R·T tokens, S sequences, K rows kept, C columns.
"""

from __future__ import annotations

from typing import NamedTuple

from pplmon.report import layout
from pplmon.tally.count.columns import Columns
from pplmon.tally.count.numpy_or_torch import Array, Arrays
from pplmon.tally.count.sequences import Sequences
from pplmon.tally.count.sums import Batch, SequenceSums


class Evidence(NamedTuple):
    """The data by which the worst rows of counted batches are found, when they are needed."""

    columns: Columns
    bits: Array  # [N] int32: float bits of the loss; −1 where not scored
    sequences: Sequences | None
    per_sequence: SequenceSums | None

    @property
    def earliest(self) -> int:
        """Return the first step and micro-batch, in one integer."""
        return min(when for when, _ in self.columns.batches)

    @property
    def latest(self) -> int:
        """Return the last step and micro-batch, in one integer."""
        return max(when for when, _ in self.columns.batches)


class Address:
    """The addresses of tokens, by their index in the columns."""

    def __init__(self, xp: Arrays, columns: Columns) -> None:
        self._xp, self._length, self._rank = xp, columns.alike.length, columns.alike.rank
        self._when = xp.concatenate([xp.full((rows,), when) for when, rows in columns.batches])
        self._row = xp.concatenate([xp.arange(0, rows) for _, rows in columns.batches])

    def order(self, index: Array) -> tuple[Array, Array]:
        """Return step and micro-batch, and the place within the batch."""
        line = index // self._length
        return self._when[line], self._row[line] * self._length + index % self._length

    def write(self, found: Array, index: Array, position: Array) -> None:
        """Write WHEN and WHERE of tokens into rows. A batch beyond the bounds of WHERE reads as the last that fits."""
        xp, line = self._xp, index // self._length
        row = xp.at_most(self._row[line], 2**layout.SEQUENCE_BITS - 1)
        column = xp.at_most(position, 2**layout.POSITION_BITS - 1)
        rank = self._rank << (layout.SEQUENCE_BITS + layout.POSITION_BITS)
        found[:, layout.WHEN] = self._when[line]
        found[:, layout.WHERE] = (row << layout.POSITION_BITS) + column + rank


def evidence_of(batch: Batch, per_sequence: SequenceSums | None) -> Evidence:
    """Return the evidence of what was counted."""
    return Evidence(batch.columns, batch.bits, batch.sequences, per_sequence)


def keep_tokens(xp: Arrays, rows: Array, evidence: Evidence, context: int) -> None:
    """Keep in ``rows`` [K, C] the tokens with the largest loss (NaN, then inf, then finite), ties to the earliest."""
    columns, bits = evidence.columns, evidence.bits
    length, shift = columns.alike.length, int(columns.alike.shift)
    if xp.known_below(rows, bits, evidence.earliest):
        return
    address = Address(xp, columns)
    index = xp.worst(bits, len(rows), 32, address.order)
    line = index // length
    start = line * length
    column = (index - start + shift) % length
    found = xp.full((len(index), rows.shape[1]), -1)
    found[:, layout.TOKEN_LOSS] = bits[index]
    position = column if columns.position_ids is None else xp.at_least(columns.position_ids[start + column], 0)
    address.write(found, index, position)
    found[:, layout.TARGET] = columns.targets[index]
    if columns.predicted is not None:
        found[:, layout.PREDICTED] = columns.predicted[index]
    if columns.top_probability is not None:
        # A NaN may have a sign.
        found[:, layout.TOP_PROBABILITY] = columns.top_probability[index].view(xp.int32) & 0x7FFFFFFF
    if columns.sample_ids is None:
        xp.fill(found[:, layout.SAMPLE], layout.NONE)
    else:
        found[:, layout.SAMPLE] = columns.sample_ids[line]

    beside = column[:, None] + xp.arange(-context, context + 1)
    inside = (beside >= 0) & (beside < length)  # a neighbour is of the same sequence
    index = start[:, None] + (beside - shift) % length
    if evidence.sequences is not None and evidence.sequences.first is not None:
        inside &= evidence.sequences.first[index] == evidence.sequences.first[index[:, context : context + 1]]
    ids = columns.targets[index]
    inside &= (ids >= 0) & (ids < (columns.alike.vocab_size or 2**31))  # an ignore_index is no token
    # The bits of what was not scored are −1, whose lower half is layout.NO_LOSS.
    losses = xp.integers(bits[index]) & layout.NO_LOSS
    found[:, layout.TOKEN_COLUMNS :] = xp.where(inside, (ids << 32) + losses, -1)
    _merge(xp, rows, found, in_order=columns.position_ids is None)


def keep_sequences(xp: Arrays, rows: Array, evidence: Evidence) -> None:
    """Keep in ``rows`` [K, C] the sequences with the largest mean loss, ties to the earliest."""
    sums, sequences, columns = evidence.per_sequence, evidence.sequences, evidence.columns
    if sums is None or sequences is None or xp.known_below(rows, sums.mean_units, evidence.earliest):
        return
    # A sequence of a packed batch is named after its first token.
    width = sequences.length if sequences.first is None else 1
    address = Address(xp, columns)
    name = xp.worst(sums.mean_units, len(rows), layout.ORDER_BITS, lambda name: address.order(name * width))
    first = name * width
    found = xp.full((len(name), rows.shape[1]), layout.NONE)
    found[:, layout.SEQUENCE_LOSS] = sums.mean_units[name]
    address.write(found, first, first % sequences.length)
    found[:, layout.SEQUENCE_TOKENS] = sums.tokens[name]
    if sequences.documents is not None:
        found[:, layout.SEQUENCE_DOCUMENT] = sequences.documents[first]
    if columns.sample_ids is not None:
        found[:, layout.SEQUENCE_SAMPLE] = columns.sample_ids[first // sequences.length]
    _merge(xp, rows, found, in_order=True)


def _merge(xp: Arrays, rows: Array, found: Array, in_order: bool) -> None:
    """Keep the K worst of both in ``rows``: the largest loss first, then the earliest address; empty rows (−1) last.

    ``in_order`` says that the found rows are sorted already, as where addresses rise with the place in the batch.
    """
    found = xp.where((found[:, :1] >= 0), found, -1)
    if in_order and xp.known_empty(rows):
        rows[: len(found)] = found
        return
    both = xp.concatenate([rows, found], 0)
    order = xp.order(both[:, 0], both[:, layout.WHEN], both[:, layout.WHERE])
    rows[...] = both[order[: len(rows)]]
