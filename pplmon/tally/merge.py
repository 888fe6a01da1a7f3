"""Merge the tensors of a tally: the same functions serve micro-batches, ranks, ``forward`` and resume.

Each takes a stack [2, …] of two parts and is exactly associative and commutative, because all cells are integers.
Two parts at the ceiling of 2**62 − 1 add to less than 2**63, so a sum is clamped before it could wrap.
"""

from __future__ import annotations

from torch import Tensor

from pplmon.report import layout
from pplmon.tally.count.numpy_or_torch import Array, Arrays, OnTorch

FRACTION_MASK = 2**layout.FRACTION_BITS - 1


def carry(xp: Arrays, sums: Array) -> None:
    """Carry full fractions into whole nats, and stay at the ceiling instead of wrapping; in place."""
    sums[layout.WHOLES] += sums[layout.FRACTIONS] >> layout.FRACTION_BITS
    sums[layout.FRACTIONS] &= FRACTION_MASK
    xp.limit(sums, layout.CEILING)


def merge_sums(parts: Tensor) -> Tensor:
    """Add, carry full fractions into whole nats, and stay at the ceiling instead of wrapping."""
    total = parts.sum(0)
    carry(OnTorch(total.device), total)
    return total


def merge_counts(parts: Tensor) -> Tensor:
    """Add, and stay at the ceiling instead of wrapping."""
    return parts.sum(0).clamp_max(layout.CEILING)


def merge_maxima(parts: Tensor) -> Tensor:
    """Take the larger cell."""
    return parts.amax(0)


def merge_rows(parts: Tensor) -> Tensor:
    """Keep the K worst of [P, K, C] rows: the largest loss first, then the earliest address. Empty rows (−1) are last."""
    rows = parts.flatten(0, 1)
    order = OnTorch(rows.device).order(rows[:, 0], rows[:, layout.WHEN], rows[:, layout.WHERE])
    return rows[order[: parts.shape[1]]]
