"""The programs that add up a batch on a GPU. They compute what ``sums`` and ``sequences`` compute over arrays.

Shapes: R rows, T columns, N = R·T tokens, S sequences, K rows kept, C columns of a row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pplmon.tally.count.triton.constants import (
    ABOVE_UNIFORM,
    BUCKET_OFFSET,
    BUCKET_SHIFT,
    BUCKETS,
    BYTES,
    BYTES_UNKNOWN,
    CAP_NATS,
    CAPPED_TOKENS,
    CORRECT,
    CORRECT_UNKNOWN,
    EXAMPLE_OFFSET,
    FRACTION_BITS,
    FRACTION_MASK,
    INDEX_MASK,
    INVALID_TARGET_EXAMPLE,
    INVALID_TARGETS,
    LEAST_EXAMPLE,
    NLL_FRACTION,
    NLL_WHOLE,
    NONFINITE_TOKENS,
    ORDER_BITS,
    ORDER_MASK,
    OVERCONFIDENT_ERRORS,
    PROBABILITY_FRACTION,
    PROBABILITY_WHOLE,
    SEQUENCE_LOSS_UNITS,
    SEQUENCES,
    SEQUENCES_UNKNOWN,
    SURE,
    TOKEN_LOSS_BITS,
    TOKENS,
    TOP_PROBABILITY_UNKNOWN,
    UNIT,
    VOCAB_UNKNOWN,
    loss_bits,
)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


# As in ``pplmon.measure.triton.program``: Triton would compile anew for each alignment, each 1 and each multiple of 16 among
# the arguments, in the midst of training, and what it made would not be what was proved.
@triton.jit(do_not_specialize=list(range(4)))
def cut(documents, first, crosses, length, SHIFT: tl.constexpr, WIDTH: tl.constexpr):
    """Name each token's sequence after its first token, in the order of the stats; one program per row."""
    row = tl.program_id(0).to(tl.int64) * length
    begun = row
    for start in range(0, length, WIDTH):
        column = start + tl.arange(0, WIDTH)
        inside = column < length
        document = tl.load(documents + row + column, mask=inside, other=0)
        before = tl.load(documents + row + column - 1, mask=inside & (column > 0), other=0)
        starts = tl.where((column > 0) & (document == before), row, row + column)
        name = tl.maximum(tl.associative_scan(starts, 0, _larger), begun)
        begun = tl.max(tl.where(inside, name, row), 0)
        place = (column + length - 1) % length if SHIFT else column
        tl.store(first + row + place, name, mask=inside)
        if SHIFT:
            after = tl.load(documents + row + (column + 1) % length, mask=inside, other=0)
            tl.store(crosses + row + column, (after != document).to(tl.uint8), mask=inside)


@triton.jit
def _rounded(x):
    """Round float32 >= 0 to the nearest int64, half to even."""
    low = tl.floor(x)
    rest, whole = x - low, low.to(tl.int64)
    return whole + ((rest > 0.5) | ((rest == 0.5) & (whole % 2 == 1))).to(tl.int64)


@triton.jit
def _best(candidates, keys, K: tl.constexpr):
    """Write the K largest of distinct keys in falling order, filled up with −1."""
    below = tl.full((), 2**63 - 1, tl.int64)
    for k in range(K):
        below = tl.max(tl.where(keys < below, keys, -1), 0)
        tl.store(candidates + k, below)


@triton.jit
def _add(cell, counted):
    tl.atomic_add(cell, tl.sum(counted.to(tl.int64), 0), sem="relaxed")


@triton.jit(do_not_specialize=list(range(21)))
def count(
    nll_,
    scored_,
    invalid_,
    crosses_,
    correct_,
    top_,
    targets_,
    first_,
    bytes_,
    sums,
    maxima,
    histogram,
    of_sequences,
    candidates,
    valid_,
    tokens,
    length,
    sequences,
    vocab,
    uniform,
    table,
    HAS_SEQUENCES: tl.constexpr,
    PACKED: tl.constexpr,
    CROSSES: tl.constexpr,
    HAS_CORRECT: tl.constexpr,
    HAS_TOP: tl.constexpr,
    HAS_BYTES: tl.constexpr,
    WANTS_VALID: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Count WIDTH tokens per program: sums, maxima, histogram, sums of sequences, and the program's K worst tokens."""
    start = tl.program_id(0).to(tl.int64) * WIDTH
    index = start + tl.arange(0, WIDTH)
    inside = index < tokens
    nll = tl.load(nll_ + index, mask=inside, other=0.0)
    scored = tl.load(scored_ + index, mask=inside, other=0) != 0
    invalid = tl.load(invalid_ + index, mask=inside, other=0) != 0
    if CROSSES:
        stays = tl.load(crosses_ + index, mask=inside, other=1) == 0
        scored, invalid = scored & stays, invalid & stays
    targets = tl.load(targets_ + index, mask=inside, other=0)
    valid = scored & (nll < float("inf"))
    if WANTS_VALID:
        tl.store(valid_ + index, valid.to(tl.uint8), mask=inside)
    loss = tl.where(valid, nll, 0.0)
    units = _rounded(tl.minimum(loss, CAP_NATS) * UNIT)
    probability = tl.where(valid, _rounded(tl.exp(-loss) * UNIT), 0)

    _add(sums + TOKENS, valid)
    _add(sums + NLL_WHOLE, units >> FRACTION_BITS)
    _add(sums + NLL_FRACTION, units & FRACTION_MASK)
    _add(sums + PROBABILITY_WHOLE, probability >> FRACTION_BITS)
    _add(sums + PROBABILITY_FRACTION, probability & FRACTION_MASK)
    _add(sums + NONFINITE_TOKENS, scored & (valid == 0))
    _add(sums + CAPPED_TOKENS, loss >= CAP_NATS)
    _add(sums + INVALID_TARGETS, invalid)
    if not HAS_SEQUENCES:
        _add(sums + SEQUENCES_UNKNOWN, valid)
    if HAS_CORRECT:
        correct = tl.load(correct_ + index, mask=inside, other=0) != 0
        _add(sums + CORRECT, valid & correct)
    else:
        _add(sums + CORRECT_UNKNOWN, valid)
    if HAS_TOP:
        if HAS_CORRECT:
            sure = tl.load(top_ + index, mask=inside, other=0.0) >= SURE
            _add(sums + OVERCONFIDENT_ERRORS, valid & sure & (correct == 0))
    else:
        _add(sums + TOP_PROBABILITY_UNKNOWN, valid)
    _add(sums + ABOVE_UNIFORM, (loss > uniform) & (vocab >= 0))
    _add(sums + VOCAB_UNKNOWN, valid & (vocab < 0))
    if HAS_BYTES:
        known = valid & (targets < table)
        _add(sums + BYTES, tl.load(bytes_ + targets, mask=known, other=0))
        _add(sums + BYTES_UNKNOWN, valid & (known == 0))
    else:
        _add(sums + BYTES_UNKNOWN, valid)

    bits = tl.where(scored, loss_bits(nll), -1)
    bucket = tl.minimum(tl.maximum((bits >> BUCKET_SHIFT) - BUCKET_OFFSET, 0), BUCKETS - 1)
    tl.atomic_add(histogram + bucket, tl.full((WIDTH,), 1, tl.int64), mask=valid, sem="relaxed")
    tl.atomic_max(maxima + TOKEN_LOSS_BITS, tl.max(tl.where(valid, bits, -1), 0), sem="relaxed")
    example = tl.minimum(tl.maximum(targets, LEAST_EXAMPLE), EXAMPLE_OFFSET) + EXAMPLE_OFFSET
    tl.atomic_max(maxima + INVALID_TARGET_EXAMPLE, tl.max(tl.where(invalid, example, -1), 0), sem="relaxed")
    _best(candidates + tl.program_id(0) * K, tl.where(scored, (bits << 32) | (INDEX_MASK - index), -1), K)

    if HAS_SEQUENCES:
        last = tl.minimum(start + WIDTH, tokens) - 1
        if PACKED:
            name = tl.load(first_ + index, mask=inside, other=0)
            tl.atomic_add(of_sequences + name, valid.to(tl.int64), mask=valid, sem="relaxed")
            tl.atomic_add(of_sequences + sequences + name, units, mask=valid, sem="relaxed")
        elif start // length == last // length:  # one row: one addition, instead of many to the same cell
            _add(of_sequences + start // length, valid)
            _add(of_sequences + sequences + start // length, units)
        else:
            name = index // length
            tl.atomic_add(of_sequences + name, valid.to(tl.int64), mask=valid, sem="relaxed")
            tl.atomic_add(of_sequences + sequences + name, units, mask=valid, sem="relaxed")


@triton.jit(do_not_specialize=list(range(6)))
def close_sequences(
    of_sequences,
    sums,
    maxima,
    candidates,
    sequences,
    least,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Count WIDTH sequences per program: their number, the largest mean loss, and the program's K worst."""
    name = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    inside = name < sequences
    tokens = tl.load(of_sequences + name, mask=inside, other=0)
    total = tl.load(of_sequences + sequences + name, mask=inside, other=0)
    mean = tl.where(tokens >= least, total // tl.maximum(tokens, 1), -1)
    _add(sums + SEQUENCES, tokens > 0)
    tl.atomic_max(maxima + SEQUENCE_LOSS_UNITS, tl.max(mean, 0), sem="relaxed")
    order = ORDER_MASK - name
    _best(candidates + tl.program_id(0) * K, tl.where(mean >= 0, (mean << ORDER_BITS) | order, -1), K)
