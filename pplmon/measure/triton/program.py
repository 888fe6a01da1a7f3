"""The Triton program: each instance measures one row of logits [V], and reads each logit once.

C lanes each keep a running state of their own and take in K logits at a time, which one 16-byte load brings into one
thread: the loop has neither barriers nor shuffles, and one exponential per logit. With m the largest logit that a lane
has seen:

    best  the block in which the lane first saw m
    b     Σ exp(x − m) over that chunk of K
    s     Σ exp(x − m) over all its other chunks
    w     Σ (x − m)·exp(x − m), for the entropy

Keeping b apart is what makes small losses exact: the chunk that holds the row's largest logit is read once more and
summed without it, so that no sum ever holds the 1 = exp(0) beside which terms below 2^-24 would be lost.

Which logits share a sum follows from the 16-byte boundaries in the row. Where rows begin at different distances from
one (V is no multiple of K), the last bit of a loss may therefore depend on where in memory its row lies.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-3.4028234663852886e38)  # stands in for a maximum of −inf: −inf − (−inf) would be NaN
VANISHED = tl.constexpr(-100.0)  # exp(−100) is 0 in float32, and the product 0·(−inf) would be NaN
TWO_INFINITIES = tl.constexpr(-8323200)  # 0xFF80FF80: −inf, −inf in bfloat16


@triton.jit
def _exp(x):
    return tl.exp2(x * LOG2E)  # two instructions on every version of Triton


@triton.jit
def _drop(m, top):
    """Return m − top ≤ 0: the fall of a state's exponents when its maximum rises from m to top."""
    return tl.maximum(m, LOWEST) - tl.maximum(top, LOWEST)


@triton.jit
def _load(body, block, lane, chunks, whole: tl.constexpr, C: tl.constexpr, K: tl.constexpr):
    """Load chunks [C, K] of one block as float32, each chunk in some order; −inf beyond the last chunk."""
    chunk = (block * C + lane)[:, None]
    if body.dtype.element_ty == tl.bfloat16:  # by hand: as a cast, each upper half would take two instructions
        at = body.to(tl.pointer_type(tl.int32)) + chunk * (K // 2) + tl.arange(0, K // 2)[None, :]
        if whole:
            pair = tl.load(at)
        else:
            pair = tl.load(at, mask=chunk < chunks, other=TWO_INFINITIES)
        lower = (pair << 16).to(tl.float32, bitcast=True)
        upper = (pair & -65536).to(tl.float32, bitcast=True)
        x = tl.reshape(tl.join(lower, upper), [C, K])
    else:
        at = body + chunk * K + tl.arange(0, K)[None, :]
        if whole:
            x = tl.load(at).to(tl.float32)
        else:
            x = tl.load(at, mask=chunk < chunks, other=float("-inf")).to(tl.float32)
    return x


@triton.jit
def _fold(x, block, m, s, b, w, best, entropy: tl.constexpr):
    """Take x [C, K] into the states [C]."""
    top = tl.maximum(m, tl.max(x, axis=1))
    below = x - tl.maximum(top, LOWEST)[:, None]
    e = _exp(below)
    chunk = tl.sum(e, axis=1)
    drop = _drop(m, top)
    scale = _exp(drop)
    if entropy:
        w = scale * (w + tl.maximum(drop, VANISHED) * (s + b))
        w += tl.sum(e * tl.maximum(below, VANISHED), axis=1)
    better = top > m  # strictly: of equal maxima the first stays
    s = (s + tl.where(better, b, chunk)) * scale  # where m stays, scale is 1
    b = tl.where(better, chunk, b)
    best = tl.where(better, block, best)
    return top, s, b, w, best


@triton.jit
def _log1p(r):
    """Return ln(1 + r) for r ≥ 0, relatively as right as ln itself however small r is."""
    u = 1.0 + r
    return tl.log(u) + (r - (u - 1.0)) / u  # what rounding took from u, given back


@triton.jit
def _first_nan(x, vocab, lane, C: tl.constexpr):
    """Return the first column that is NaN, or vocab."""
    found = vocab
    for start in range(0, vocab, C):
        column = start + lane
        value = tl.load(x + column, mask=column < vocab, other=0.0).to(tl.float32)
        found = tl.minimum(found, tl.min(tl.where(value != value, column, vocab), axis=0))
    return found


# Triton would compile anew for each alignment and each 1 among the first 15 arguments. The only alignment that matters
# is made here, so a new batch size, length or vocabulary compiles nothing.
@triton.jit(do_not_specialize=list(range(15)))
def measure_row(
    logits,  # [B, T, V], the last dimension contiguous
    targets,  # [B·T] ints
    mask,  # [B·T] bool, read where masked
    sequence_stride,
    row_stride,
    length,  # T
    vocab,  # V
    nll,
    top_probability,
    spread,  # written where entropy
    predicted,
    moved,  # the targets, shifted
    correct,
    scored,
    invalid,
    masked: tl.constexpr,
    ignore_index: tl.constexpr,  # an int or None
    shift: tl.constexpr,  # columns: 0 or 1
    entropy: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
):
    """Write every column of the row whose number is the program's."""
    row = tl.program_id(0).to(tl.int64)
    position = row % length
    x = logits + row // length * sequence_stride + position * row_stride

    # A row is a head before the first 16-byte boundary, chunks of K, and a tail. Only whole chunks enter the loops.
    head = tl.minimum(((16 - x.to(tl.int64) % 16) % 16 // (16 // K)).to(tl.int32), vocab)
    chunks = (vocab - head) // K
    body = tl.multiple_of(x + head, 16)
    lane = tl.arange(0, C)
    m = tl.full([C], float("-inf"), tl.float32)
    s, b, w = tl.zeros([C], tl.float32), tl.zeros([C], tl.float32), tl.zeros([C], tl.float32)
    best = tl.zeros([C], tl.int32)
    for block in range(chunks // C):
        part = _load(body, block, lane, chunks, True, C, K)
        m, s, b, w, best = _fold(part, block, m, s, b, w, best, entropy)
    for block in range(chunks // C, tl.cdiv(chunks, C)):
        part = _load(body, block, lane, chunks, False, C, K)
        m, s, b, w, best = _fold(part, block, m, s, b, w, best, entropy)

    # Left to read: the first chunk that holds the lanes' largest logit (again), the head, the tail.
    chunk = best * C + lane
    winner = tl.min(tl.where(m == tl.max(m, axis=0), chunk, chunks), axis=0)
    slot = tl.arange(0, 4 * K)
    piece, at = slot // K, slot % K
    column = tl.where(piece == 0, head + winner * K, tl.where(piece == 1, 0, head + chunks * K)) + at
    there = tl.where(piece == 0, winner < chunks, tl.where(piece == 1, at < head, (piece == 2) & (column < vocab)))
    edge = tl.load(x + column, mask=there, other=float("-inf")).to(tl.float32)
    top = tl.max(edge, axis=0)
    argmax = tl.min(tl.where(there & (edge == top), column, vocab), axis=0)

    below = edge - tl.maximum(top, LOWEST)
    e = tl.where(column == argmax, 0.0, _exp(below))
    drop = _drop(m, top)
    scale = _exp(drop)
    rest = tl.sum(scale * tl.where(chunk == winner, s, s + b), axis=0) + tl.sum(e, axis=0)
    rest += top - top  # NaN where the row has no finite maximum
    log_total = _log1p(rest)
    if rest != rest:  # rare. torch.max takes the first NaN for the maximum
        nan = _first_nan(x, vocab, lane, C)
        argmax = tl.where(nan < vocab, nan, argmax)
    if entropy:
        w = scale * (w + tl.maximum(drop, VANISHED) * (s + b))
        ends = tl.where(piece == 0, 0.0, e * tl.maximum(below, VANISHED))
        tl.store(spread + row, log_total - (tl.sum(w, axis=0) + tl.sum(ends, axis=0)) / (1.0 + rest))

    wanted = position < length - shift
    source = tl.where(wanted, row + shift, row - position)  # what wraps around is not scored
    target = tl.load(targets + source).to(tl.int64)
    inside = (target >= 0) & (target < vocab)
    if ignore_index is not None:
        wanted = wanted & (target != ignore_index)
    if masked:
        wanted = wanted & tl.load(mask + source).to(tl.int1)
    counts = wanted & inside
    gap = top - tl.load(x + target, mask=counts, other=0.0).to(tl.float32)
    tl.store(nll + row, tl.where(counts, gap + log_total, 0.0))
    tl.store(top_probability + row, 1.0 / (1.0 + rest))
    tl.store(predicted + row, argmax.to(tl.int64))
    tl.store(moved + row, target)
    tl.store(correct + row, counts & (argmax == target))
    tl.store(scored + row, counts)
    tl.store(invalid + row, wanted & (inside == 0))
