"""Constants of the counting programs, made from ``report.layout``, and the bits of a loss.

Triton reads globals only as ``constexpr``, and only those of a program's own module tell two compiled programs apart. So a
program imports each by its name: a constant of ``report.layout`` under its own name, the index of a sum or a maximum
under its cell's name in capitals, such as NLL_WHOLE.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from pplmon.report import layout
from pplmon.tally.count.sums import NAN_BITS, OVERCONFIDENT, SCALE

_C = tl.constexpr
PAIRS, SUMS, MAXIMA = (_C(len(names)) for names in (layout.PAIRS, layout.SUMS, layout.MAXIMA))
FIRST_MISSING = _C(layout.place(f"{layout.KNOWABLE[0]}_missing"))  # the others follow in the order of KNOWABLE
FRACTION_MASK = _C(2**layout.FRACTION_BITS - 1)
UNIT, SURE, NAN = _C(SCALE), _C(OVERCONFIDENT), _C(NAN_BITS)
LAST_ROW, LAST_COLUMN = _C(2**layout.SEQUENCE_BITS - 1), _C(2**layout.POSITION_BITS - 1)
RANK_SHIFT = _C(layout.SEQUENCE_BITS + layout.POSITION_BITS)
LEAST_EXAMPLE = _C(-layout.EXAMPLE_OFFSET)
INDEX_MASK, ORDER_MASK = _C(0xFFFFFFFF), _C(2**layout.ORDER_BITS - 1)


def __getattr__(name: str) -> Any:
    """Return the constant of ``report.layout`` of that name, or the place of the sum or maximum of that name."""
    if name.lower() in (*layout.SUMS, *layout.MAXIMA):
        return _C(layout.place(name.lower()))
    value = getattr(layout, name, None)
    if not isinstance(value, int | float):
        raise AttributeError(f"neither a cell nor a number of pplmon.report.layout is named {name!r}")
    return _C(value)


@triton.jit
def loss_bits(nll):
    """Return the bits of a loss as int64, with one pattern for every NaN."""
    bits = nll.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.minimum(bits, NAN).to(tl.int64)
