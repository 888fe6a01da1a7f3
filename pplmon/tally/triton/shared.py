"""Constants of the programs that count, each made from ``cells``, and a loss as bits.

Triton reads globals only as ``constexpr``, and only those of a program's own module tell two compiled programs apart. So a
program imports each by its name: a constant of ``cells`` under its own, the place of a sum or a maximum under the cell's in
capitals, as NLL_WHOLE.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from pplmon import cells
from pplmon.tally.count import NAN_BITS, OVERCONFIDENT, SCALE

_C = tl.constexpr
PAIRS, SUMS, MAXIMA = (_C(len(names)) for names in (cells.PAIRS, cells.SUMS, cells.MAXIMA))
FIRST_MISSING = _C(cells.place(f"{cells.KNOWABLE[0]}_missing"))  # the others follow in the order of KNOWABLE
FRACTION_MASK = _C(2**cells.FRACTION_BITS - 1)
UNIT, SURE, NAN = _C(SCALE), _C(OVERCONFIDENT), _C(NAN_BITS)
LAST_ROW, LAST_COLUMN = _C(2**cells.SEQUENCE_BITS - 1), _C(2**cells.POSITION_BITS - 1)
RANK_SHIFT = _C(cells.SEQUENCE_BITS + cells.POSITION_BITS)
LEAST_EXAMPLE = _C(-cells.EXAMPLE_OFFSET)
INDEX_MASK, ORDER_MASK = _C(0xFFFFFFFF), _C(2**cells.ORDER_BITS - 1)


def __getattr__(name: str) -> Any:
    """Return the constant of ``cells`` of that name, or the place of the sum or maximum of that name."""
    if name.lower() in (*cells.SUMS, *cells.MAXIMA):
        return _C(cells.place(name.lower()))
    value = getattr(cells, name, None)
    if not isinstance(value, int | float):
        raise AttributeError(f"neither a cell nor a number of pplmon.cells is named {name!r}")
    return _C(value)


@triton.jit
def loss_bits(nll):
    """The bits of a loss, one pattern for every NaN, as int64."""
    bits = nll.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.minimum(bits, NAN).to(tl.int64)
