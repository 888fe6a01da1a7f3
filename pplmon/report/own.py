"""Numbers of the user's own, such as a gradient norm: their names, how parts of them merge, and the integers that travel.

A value travels as an integer of the same order, so that a maximum of integers is the largest value, to the last bit; NaN
is above all. The square of a norm travels as digits of 32 bits, whose sums over ranks are exact in any order.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping, Sequence

from pplmon.report.declared import GRAD_NORM, find, measured_by

MOST_NAMES = 16  # slots of a read-out
LONGEST_NAME = 64
EMPTY, NAN = -(2**63), 2**63 - 1  # a slot without a value; one that is not a number
_MAGNITUDE = 2**63 - 1

# Squares up to those of the largest float32, 2**256, down to 2**-160: digits of 32 bits, the lowest first.
DIGIT_BITS, DIGITS, LOWEST_BIT = 32, 13, -160
INFINITE, UNKNOWN, PRESENT = DIGITS, DIGITS + 1, DIGITS + 2  # counts of ranks behind the digits
CELLS = DIGITS + 3

_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)+", re.ASCII)
_STAGES = ("train/", "val/", "test/")


def check_own_name(name: str) -> str:
    """Return a name that a number of the user's own may have, else raise."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a number is a str, got {type(name).__name__}")
    if not _NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise ValueError(
            f'a number of one\'s own is named like "optim/lr": letters, digits, "_", "-", "." and at least one "/", at most '
            f"{LONGEST_NAME} characters; got {name!r}"
        )
    if name.startswith(_STAGES):
        raise ValueError(
            f"{name!r} would be taken for a number of pplmon's; choose another beginning than train/, val/, test/"
        )
    if name != GRAD_NORM.name and find(name) is not None:
        raise ValueError(f"{name!r} is measured by {measured_by(name) or 'pplmon'} already; choose another name")
    return name


def larger(one: Mapping[str, float], two: Mapping[str, float]) -> dict[str, float]:
    """Return each number's larger value; a NaN is larger than all."""
    merged = dict(one)
    for name, value in two.items():
        old = merged.get(name)
        merged[name] = value if old is None or not (math.isnan(old) or old >= value) else old
    return merged


def ordered(value: float) -> int:
    """Return a float64 as an integer, −2**63 to 2**63 − 1, of the same order; NaN is the largest."""
    if math.isnan(value):
        return NAN
    bits: int = struct.unpack("<q", struct.pack("<d", value))[0]
    return bits if bits >= 0 else bits ^ _MAGNITUDE


def from_ordered(key: int) -> float:
    """Return the float64 that ``ordered`` gave a key for."""
    if key == NAN:
        return math.nan
    return float(struct.unpack("<d", struct.pack("<q", key if key >= 0 else key ^ _MAGNITUDE))[0])


def norm(cells: Sequence[int]) -> float | None:
    """Return the root of a sum of squares from its digits and the counts behind them; ``None`` where nobody gave any."""
    if cells[UNKNOWN]:
        return math.nan
    if cells[INFINITE]:
        return math.inf
    if not cells[PRESENT]:
        return None
    total = sum(digit << (DIGIT_BITS * place) for place, digit in enumerate(cells[:DIGITS]))
    return math.sqrt(total) * 2.0 ** (LOWEST_BIT // 2)


def values(names: Sequence[str], maxima: Sequence[int], squares: Sequence[int]) -> dict[str, float]:
    """Return the numbers of one read-out, from the slots of ``names`` and the squares of each step, [steps · CELLS]."""
    given = {name: from_ordered(key) for name, key in zip(names, maxima) if key != EMPTY}
    for start in range(0, len(squares), CELLS):
        found = norm(squares[start : start + CELLS])
        if found is not None:
            given = larger(given, {GRAD_NORM.name: found})
    return given
