"""The program that ends a batch on a GPU: it carries sums and keeps the worst rows, as ``merge`` and ``worst`` do.

Shapes: R rows, T columns, N = R·T tokens, S sequences, K rows kept, C columns of a row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pplmon.tally.count.triton.constants import (
    BUCKETS,
    CEILING,
    FIRST_MISSING,
    FRACTION_BITS,
    FRACTION_MASK,
    INDEX_MASK,
    LAST_COLUMN,
    LAST_ROW,
    MAXIMA,
    MICRO_BITS,
    MOST_MAXIMA,
    MOST_SUMS,
    NO_LOSS,
    NONE,
    ORDER_BITS,
    ORDER_MASK,
    PAIRS,
    POSITION_BITS,
    PREDICTED,
    RANK_SHIFT,
    SAMPLE,
    SEQUENCE_DOCUMENT,
    SEQUENCE_LOSS,
    SEQUENCE_SAMPLE,
    SEQUENCE_TOKENS,
    SUMS,
    TARGET,
    TOKEN_COLUMNS,
    TOKEN_LOSS,
    TOP_PROBABILITY,
    VOCAB_COMPLEMENT,
    VOCAB_LIMIT,
    VOCAB_SIZE,
    WHEN,
    WHERE,
    loss_bits,
)


@triton.jit
def _next(candidates, count, below, WIDTH: tl.constexpr):
    """Return the largest key below a bound, −1 where there is none."""
    best = tl.full((), -1, tl.int64)
    for start in range(0, count, WIDTH):
        place = start + tl.arange(0, WIDTH)
        key = tl.load(candidates + place, mask=place < count, other=-1)
        best = tl.maximum(best, tl.max(tl.where(key < below, key, -1), 0))
    return best


@triton.jit
def _merge(rows, found, K: tl.constexpr, C: tl.constexpr, TWICE: tl.constexpr, WIDE: tl.constexpr):
    """Keep the K worst of K stored and K found rows: each is written to the place of its rank."""
    r, c = tl.arange(0, TWICE), tl.arange(0, WIDE)
    old, new = r < K, (r >= K) & (r < 2 * K)
    at, there = r * C, (r - K) * C
    loss = tl.where(
        old,
        tl.load(rows + at + TOKEN_LOSS, mask=old, other=-1),
        tl.load(found + there + TOKEN_LOSS, mask=new, other=-2),
    )
    when = tl.where(old, tl.load(rows + at + WHEN, mask=old, other=0), tl.load(found + there + WHEN, mask=new, other=0))
    place = tl.where(
        old, tl.load(rows + at + WHERE, mask=old, other=0), tl.load(found + there + WHERE, mask=new, other=0)
    )
    mine, other = tl.expand_dims(loss, 1), tl.expand_dims(loss, 0)
    when_mine, when_other = tl.expand_dims(when, 1), tl.expand_dims(when, 0)
    place_mine, place_other = tl.expand_dims(place, 1), tl.expand_dims(place, 0)
    stands_before = tl.expand_dims(r, 0) < tl.expand_dims(r, 1)
    earlier = (place_other < place_mine) | ((place_other == place_mine) & stands_before)
    earlier = (when_other < when_mine) | ((when_other == when_mine) & earlier)
    worse = (other > mine) | ((other == mine) & earlier)
    rank = tl.sum(worse.to(tl.int32), 1)
    columns = tl.expand_dims(c, 0) < C
    is_old, is_new = tl.expand_dims(old, 1) & columns, tl.expand_dims(new, 1) & columns
    cell = tl.where(
        tl.expand_dims(old, 1),
        tl.load(rows + tl.expand_dims(at, 1) + tl.expand_dims(c, 0), mask=is_old, other=0),
        tl.load(found + tl.expand_dims(there, 1) + tl.expand_dims(c, 0), mask=is_new, other=0),
    )
    tl.debug_barrier()  # all have been read before any is written
    kept = tl.expand_dims(rank < K, 1) & (is_old | is_new)
    tl.store(rows + tl.expand_dims(rank, 1) * C + tl.expand_dims(c, 0), cell, mask=kept)


@triton.jit
def _where(row, position, rank):
    row = tl.minimum(tl.maximum(row, 0), LAST_ROW)
    position = tl.minimum(tl.maximum(position, 0), LAST_COLUMN)
    return (row << POSITION_BITS) + position + (rank << RANK_SHIFT)


@triton.jit
def _close_sums(sums, maxima, histogram, vocab, missing):
    """Carry fractions, keep sums at the ceiling, and store what is known without looking at tokens."""
    s = tl.arange(0, MOST_SUMS)
    summed, wholes, fractions = s < SUMS, s < PAIRS, (s >= PAIRS) & (s < 2 * PAIRS)
    value, full = tl.load(sums + s, mask=summed, other=0), tl.load(sums + s + PAIRS, mask=wholes, other=0)
    value = tl.where(wholes, value + (full >> FRACTION_BITS), value)
    value = tl.where(fractions, value & FRACTION_MASK, value)
    tl.debug_barrier()  # a fraction is read for its whole before it is written
    tl.store(sums + s, tl.minimum(value, CEILING), mask=summed)
    for start in range(0, BUCKETS, 1024):
        b = start + tl.arange(0, 1024)
        tl.store(
            histogram + b, tl.minimum(tl.load(histogram + b, mask=b < BUCKETS, other=0), CEILING), mask=b < BUCKETS
        )
    m = tl.arange(0, MOST_MAXIMA)
    flagged = (m >= FIRST_MISSING) & (((missing >> tl.maximum(m - FIRST_MISSING, 0)) & 1) == 1)
    known = tl.where(flagged, 1, -1).to(tl.int64)
    known = tl.where((m == VOCAB_SIZE) & (vocab >= 0), vocab, known)
    known = tl.where((m == VOCAB_COMPLEMENT) & (vocab >= 0), VOCAB_LIMIT - vocab, known)
    tl.store(maxima + m, tl.maximum(tl.load(maxima + m, mask=m < MAXIMA, other=-1), known), mask=m < MAXIMA)


@triton.jit(do_not_specialize=list(range(26)))
def finish(
    nll_,
    scored_,
    crosses_,
    predicted_,
    top_,
    targets_,
    first_,
    documents_,
    samples_,
    positions_,
    sequence_sums,
    sums,
    maxima,
    histogram,
    token_rows,
    sequence_rows,
    found,
    candidates,
    length,
    vocab,
    missing,
    step,
    micro_batch,
    rank,
    of_tokens,
    of_sequences,
    SHIFT: tl.constexpr,
    HAS_SEQUENCES: tl.constexpr,
    PACKED: tl.constexpr,
    CROSSES: tl.constexpr,
    HAS_PREDICTED: tl.constexpr,
    HAS_TOP: tl.constexpr,
    HAS_SAMPLES: tl.constexpr,
    HAS_POSITIONS: tl.constexpr,
    CONTEXT: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    C_SEQUENCE: tl.constexpr,
    TWICE: tl.constexpr,
    WIDE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Close sums and keep the worst tokens in one program, and keep the worst sequences in another."""
    vocab, step, rank = tl.cast(vocab, tl.int64), tl.cast(step, tl.int64), tl.cast(rank, tl.int64)
    when = (step << MICRO_BITS) + micro_batch  # handed over, it would outgrow int32 at step 2048, and compile anew
    c = tl.arange(0, WIDE)
    below = tl.full((), 2**63 - 1, tl.int64)
    if tl.program_id(0) == 0:
        _close_sums(sums, maxima, histogram, vocab, missing)
        for k in range(K):
            below = _next(candidates, of_tokens, below, WIDTH)
            index = tl.where(below >= 0, INDEX_MASK - (below & INDEX_MASK), 0)
            row = index // length
            column = (index - row * length + SHIFT) % length
            beside = column + c - (TOKEN_COLUMNS + CONTEXT)
            inside = (c >= TOKEN_COLUMNS) & (c < C) & (beside >= 0) & (beside < length)
            near = row * length + (beside + length - SHIFT) % length
            if PACKED:
                same = tl.load(first_ + near, mask=inside, other=-1) == tl.load(first_ + index)
                inside = inside & same
            ids = tl.load(targets_ + near, mask=inside, other=-1)
            inside = inside & (ids >= 0) & (ids < tl.where(vocab >= 0, vocab, 1 << 31))
            scored = tl.load(scored_ + near, mask=inside, other=0) != 0
            if CROSSES:
                scored = scored & (tl.load(crosses_ + near, mask=inside, other=1) == 0)
            bits = tl.where(scored, loss_bits(tl.load(nll_ + near, mask=inside, other=0.0)), NO_LOSS)
            cell = tl.where(inside, (ids << 32) + bits, -1)
            position = column
            if HAS_POSITIONS:
                position = tl.load(positions_ + row * length + column)
            cell = tl.where(c == TOKEN_LOSS, below >> 32, cell)
            cell = tl.where(c == WHEN, when, cell)
            cell = tl.where(c == WHERE, _where(row, position, rank), cell)
            cell = tl.where(c == TARGET, tl.load(targets_ + index), cell)
            cell = tl.where(c == PREDICTED, -1, cell)
            cell = tl.where(c == TOP_PROBABILITY, -1, cell)
            cell = tl.where(c == SAMPLE, NONE, cell)
            if HAS_PREDICTED:
                cell = tl.where(c == PREDICTED, tl.load(predicted_ + index), cell)
            if HAS_TOP:
                top = tl.load(top_ + index).to(tl.int32, bitcast=True) & 0x7FFFFFFF
                cell = tl.where(c == TOP_PROBABILITY, top.to(tl.int64), cell)
            if HAS_SAMPLES:
                cell = tl.where(c == SAMPLE, tl.load(samples_ + row), cell)
            tl.store(found + k * C + c, tl.where(below >= 0, cell, -1), mask=c < C)
        tl.debug_barrier()  # what was found is written before it is read
        _merge(token_rows, found, K, C, TWICE, WIDE)
    elif HAS_SEQUENCES:
        found += K * C
        for k in range(K):
            below = _next(candidates + of_tokens, of_sequences, below, WIDTH)
            name = tl.where(below >= 0, ORDER_MASK - (below & ORDER_MASK), 0)
            first = name if PACKED else name * length
            row = first // length
            cell = tl.where(c == SEQUENCE_LOSS, below >> ORDER_BITS, -1)
            cell = tl.where(c == WHEN, when, cell)
            cell = tl.where(c == WHERE, _where(row, first - row * length, rank), cell)
            cell = tl.where(c == SEQUENCE_TOKENS, tl.load(sequence_sums + name), cell)
            cell = tl.where((c == SEQUENCE_DOCUMENT) | (c == SEQUENCE_SAMPLE), NONE, cell)
            if PACKED:
                cell = tl.where(c == SEQUENCE_DOCUMENT, tl.load(documents_ + first), cell)
            if HAS_SAMPLES:
                cell = tl.where(c == SEQUENCE_SAMPLE, tl.load(samples_ + row), cell)
            tl.store(found + k * C_SEQUENCE + c, tl.where(below >= 0, cell, -1), mask=c < C_SEQUENCE)
        tl.debug_barrier()
        _merge(sequence_rows, found, K, C_SEQUENCE, TWICE, WIDE)
