"""The kernels that count a batch on a GPU. They say in Triton what ``count``, ``sequences`` and ``worst`` say over arrays.

Shapes: R rows, T columns, N = R·T tokens, S sequences, K rows kept, C columns of a row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pplmon import cells
from pplmon.tally.count import NAN_BITS, OVERCONFIDENT, SCALE

# Triton reads globals only as constexpr.
_C = tl.constexpr
TOKENS, NLL_WHOLE, PROBABILITY_WHOLE = (_C(cells.SUMS.index(n)) for n in ("tokens", "nll_whole", "probability_whole"))
NLL_FRACTION, PROBABILITY_FRACTION = _C(NLL_WHOLE.value + 1), _C(PROBABILITY_WHOLE.value + 1)
NONFINITE, CAPPED, INVALID, SEQUENCES = (
    _C(cells.SUMS.index(n)) for n in ("nonfinite_tokens", "capped_tokens", "invalid_targets", "sequences")
)
CORRECT, OVERCONFIDENT_ERRORS, ABOVE_UNIFORM, BYTES = (
    _C(cells.SUMS.index(n)) for n in ("correct", "overconfident_errors", "above_uniform", "bytes")
)
SEQUENCES_UNKNOWN, CORRECT_UNKNOWN, TOP_PROBABILITY_UNKNOWN, VOCAB_UNKNOWN, BYTES_UNKNOWN = (
    _C(cells.SUMS.index(f"{n}_unknown")) for n in ("sequences", "correct", "top_probability", "vocab", "bytes")
)
LOSS_BITS, SEQUENCE_UNITS, VOCAB_SIZE, VOCAB_COMPLEMENT, EXAMPLE = (
    _C(cells.MAXIMA.index(n))
    for n in ("token_loss_bits", "sequence_loss_units", "vocab_size", "vocab_complement", "invalid_target_example")
)
FIRST_MISSING = _C(cells.MAXIMA.index("sequences_missing"))
SUMS, MAXIMA, BUCKETS = _C(len(cells.SUMS)), _C(len(cells.MAXIMA)), _C(cells.BUCKETS)
FRACTION_BITS, FRACTION_MASK, CEILING = _C(cells.FRACTION_BITS), _C(2**cells.FRACTION_BITS - 1), _C(cells.CEILING)
CAP, UNIT, SURE, SICK = _C(cells.CAP_NATS), _C(SCALE), _C(OVERCONFIDENT), _C(NAN_BITS)
BUCKET_SHIFT, BUCKET_OFFSET = _C(cells.BUCKET_SHIFT), _C(cells.BUCKET_OFFSET)
OFFSET, VOCAB_LIMIT, NO_LOSS, NONE = _C(cells.EXAMPLE_OFFSET), _C(cells.VOCAB_LIMIT), _C(cells.NO_LOSS), _C(cells.NONE)
MICRO_BITS, POSITION_BITS = _C(cells.MICRO_BITS), _C(cells.POSITION_BITS)
HEAD = _C(cells.TOKEN_COLUMNS)
LAST_ROW, LAST_COLUMN = _C(2**cells.SEQUENCE_BITS - 1), _C(2**cells.POSITION_BITS - 1)
RANK_SHIFT = _C(cells.SEQUENCE_BITS + cells.POSITION_BITS)
INDEX_MASK, ORDER_BITS, ORDER_MASK = _C(0xFFFFFFFF), _C(20), _C(2**20 - 1)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


# As in ``pplmon.kernels.triton.program``: Triton would compile anew for each alignment, each 1 and each multiple of 16 among
# the arguments, in the midst of training, and what it made would not be what was proved.
@triton.jit(do_not_specialize=list(range(4)))
def cut(documents, first, crosses, length, SHIFT: tl.constexpr, WIDTH: tl.constexpr):
    """A program per row: name each token's sequence after its first token, in the order of the stats."""
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
    """float32 >= 0 to the nearest int64, half to even."""
    low = tl.floor(x)
    rest, whole = x - low, low.to(tl.int64)
    return whole + ((rest > 0.5) | ((rest == 0.5) & (whole % 2 == 1))).to(tl.int64)


@triton.jit
def _bits(nll):
    bits = nll.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.minimum(bits, SICK).to(tl.int64)


@triton.jit
def _best(candidates, keys, K: tl.constexpr):
    """Write the K largest of unlike keys, from the largest on, filled up with −1."""
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
    """A program per WIDTH tokens: sums, maxima, histogram, sums of sequences, and the program's K worst tokens."""
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
    units = _rounded(tl.minimum(loss, CAP) * UNIT)
    probability = tl.where(valid, _rounded(tl.exp(-loss) * UNIT), 0)

    _add(sums + TOKENS, valid)
    _add(sums + NLL_WHOLE, units >> FRACTION_BITS)
    _add(sums + NLL_FRACTION, units & FRACTION_MASK)
    _add(sums + PROBABILITY_WHOLE, probability >> FRACTION_BITS)
    _add(sums + PROBABILITY_FRACTION, probability & FRACTION_MASK)
    _add(sums + NONFINITE, scored & (valid == 0))
    _add(sums + CAPPED, loss >= CAP)
    _add(sums + INVALID, invalid)
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

    bits = tl.where(scored, _bits(nll), -1)
    bucket = tl.minimum(tl.maximum((bits >> BUCKET_SHIFT) - BUCKET_OFFSET, 0), BUCKETS - 1)
    tl.atomic_add(histogram + bucket, tl.full((WIDTH,), 1, tl.int64), mask=valid, sem="relaxed")
    tl.atomic_max(maxima + LOSS_BITS, tl.max(tl.where(valid, bits, -1), 0), sem="relaxed")
    example = tl.minimum(tl.maximum(targets, -OFFSET), OFFSET) + OFFSET
    tl.atomic_max(maxima + EXAMPLE, tl.max(tl.where(invalid, example, -1), 0), sem="relaxed")
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
    """A program per WIDTH sequences: their number, the largest mean loss, and the program's K worst."""
    name = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    inside = name < sequences
    tokens = tl.load(of_sequences + name, mask=inside, other=0)
    total = tl.load(of_sequences + sequences + name, mask=inside, other=0)
    mean = tl.where(tokens >= least, total // tl.maximum(tokens, 1), -1)
    _add(sums + SEQUENCES, tokens > 0)
    tl.atomic_max(maxima + SEQUENCE_UNITS, tl.max(mean, 0), sem="relaxed")
    order = ORDER_MASK - name
    _best(candidates + tl.program_id(0) * K, tl.where(mean >= 0, (mean << ORDER_BITS) | order, -1), K)


@triton.jit
def _next(candidates, count, below, WIDTH: tl.constexpr):
    """The largest key below a bound; −1 where there is none."""
    best = tl.full((), -1, tl.int64)
    for start in range(0, count, WIDTH):
        place = start + tl.arange(0, WIDTH)
        key = tl.load(candidates + place, mask=place < count, other=-1)
        best = tl.maximum(best, tl.max(tl.where(key < below, key, -1), 0))
    return best


@triton.jit
def _merge(rows, found, K: tl.constexpr, C: tl.constexpr, TWICE: tl.constexpr, WIDE: tl.constexpr):
    """Keep the K worst of the K rows that there are and of the K found: each goes to the place of its rank."""
    r, c = tl.arange(0, TWICE), tl.arange(0, WIDE)
    old, new = r < K, (r >= K) & (r < 2 * K)
    at, there = r * C, (r - K) * C
    loss = tl.where(old, tl.load(rows + at, mask=old, other=-1), tl.load(found + there, mask=new, other=-2))
    when = tl.where(old, tl.load(rows + at + 1, mask=old, other=0), tl.load(found + there + 1, mask=new, other=0))
    place = tl.where(old, tl.load(rows + at + 2, mask=old, other=0), tl.load(found + there + 2, mask=new, other=0))
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
    """Carry, keep sums at the ceiling, and note what is known beforehand."""
    s = tl.arange(0, 32)
    summed = s < SUMS
    value, after = tl.load(sums + s, mask=summed, other=0), tl.load(sums + s + 1, mask=s + 1 < SUMS, other=0)
    value = tl.where((s == NLL_WHOLE) | (s == PROBABILITY_WHOLE), value + (after >> FRACTION_BITS), value)
    value = tl.where((s == NLL_FRACTION) | (s == PROBABILITY_FRACTION), value & FRACTION_MASK, value)
    tl.debug_barrier()  # a cell is read by its neighbour before it is written
    tl.store(sums + s, tl.minimum(value, CEILING), mask=summed)
    for start in range(0, BUCKETS, 1024):
        b = start + tl.arange(0, 1024)
        tl.store(
            histogram + b, tl.minimum(tl.load(histogram + b, mask=b < BUCKETS, other=0), CEILING), mask=b < BUCKETS
        )
    m = tl.arange(0, 16)
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
    """One program closes sums and keeps the worst tokens, another keeps the worst sequences."""
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
            beside = column + c - (HEAD + CONTEXT)
            inside = (c >= HEAD) & (c < C) & (beside >= 0) & (beside < length)
            near = row * length + (beside + length - SHIFT) % length
            if PACKED:
                same = tl.load(first_ + near, mask=inside, other=-1) == tl.load(first_ + index)
                inside = inside & same
            ids = tl.load(targets_ + near, mask=inside, other=-1)
            inside = inside & (ids >= 0) & (ids < tl.where(vocab >= 0, vocab, 1 << 31))
            scored = tl.load(scored_ + near, mask=inside, other=0) != 0
            if CROSSES:
                scored = scored & (tl.load(crosses_ + near, mask=inside, other=1) == 0)
            bits = tl.where(scored, _bits(tl.load(nll_ + near, mask=inside, other=0.0)), NO_LOSS)
            cell = tl.where(inside, (ids << 32) + bits, -1)
            position = column
            if HAS_POSITIONS:
                position = tl.load(positions_ + row * length + column)
            cell = tl.where(c == 0, below >> 32, cell)
            cell = tl.where(c == 1, when, cell)
            cell = tl.where(c == 2, _where(row, position, rank), cell)
            cell = tl.where(c == 3, tl.load(targets_ + index), cell)
            cell = tl.where(c == 4, -1, cell)
            cell = tl.where(c == 5, -1, cell)
            cell = tl.where(c == 6, NONE, cell)
            if HAS_PREDICTED:
                cell = tl.where(c == 4, tl.load(predicted_ + index), cell)
            if HAS_TOP:
                top = tl.load(top_ + index).to(tl.int32, bitcast=True) & 0x7FFFFFFF
                cell = tl.where(c == 5, top.to(tl.int64), cell)
            if HAS_SAMPLES:
                cell = tl.where(c == 6, tl.load(samples_ + row), cell)
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
            cell = tl.where(c == 0, below >> ORDER_BITS, -1)
            cell = tl.where(c == 1, when, cell)
            cell = tl.where(c == 2, _where(row, first - row * length, rank), cell)
            cell = tl.where(c == 3, tl.load(sequence_sums + name), cell)
            cell = tl.where((c == 4) | (c == 5), NONE, cell)
            if PACKED:
                cell = tl.where(c == 4, tl.load(documents_ + first), cell)
            if HAS_SAMPLES:
                cell = tl.where(c == 5, tl.load(samples_ + row), cell)
            tl.store(found + k * C_SEQUENCE + c, tl.where(below >= 0, cell, -1), mask=c < C_SEQUENCE)
        tl.debug_barrier()
        _merge(sequence_rows, found, K, C_SEQUENCE, TWICE, WIDE)
