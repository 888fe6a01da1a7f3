"""What the programs that count have in common: the places of cells, as Triton takes constants, and a loss as bits."""

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
def loss_bits(nll):
    """The bits of a loss, one pattern for every NaN, as int64."""
    bits = nll.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.minimum(bits, SICK).to(tl.int64)
