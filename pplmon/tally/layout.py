"""How the tensors of a tally are merged: the same functions for micro-batches, ranks, ``forward`` and resume.

Each takes a stack [2, …] of two parts and is associative and commutative to the bit, because all cells are integers.
Two parts at the ceiling of 2**62 − 1 add to less than 2**63, so a sum is clamped before it could wrap.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pplmon import cells

_WHOLE = tuple(i for i, name in enumerate(cells.SUMS) if name.endswith("_whole"))
FRACTION_MASK = 2**cells.FRACTION_BITS - 1


def merge_sums(parts: Tensor) -> Tensor:
    """Add, carry full fractions into whole nats, and stay at the ceiling instead of wrapping."""
    total = parts.sum(0)
    for whole in _WHOLE:  # the fraction's cell follows
        total[whole] += total[whole + 1] >> cells.FRACTION_BITS
        total[whole + 1] &= FRACTION_MASK
    return total.clamp_max(cells.CEILING)


def merge_counts(parts: Tensor) -> Tensor:
    """Add, and stay at the ceiling instead of wrapping."""
    return parts.sum(0).clamp_max(cells.CEILING)


def merge_maxima(parts: Tensor) -> Tensor:
    """Take the larger cell."""
    return parts.amax(0)


def merge_rows(parts: Tensor) -> Tensor:
    """Keep the K worst of [P, K, C] rows: the largest loss first, then the earliest address. Empty rows (−1) are last."""
    rows = parts.flatten(0, 1)
    # Sorted by index, from the least key to the first: moving the rows themselves costs ten times as much for many ranks.
    order = torch.argsort(rows[:, cells.WHERE], stable=True)
    order = order[torch.argsort(rows[order, cells.WHEN], stable=True)]
    order = order[torch.argsort(rows[order, 0], stable=True, descending=True)]
    return rows[order[: parts.shape[1]]]
