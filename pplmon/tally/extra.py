"""What an optional measurement of a tally has to be."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pplmon.report import Derives
from pplmon.tokens import TokenStats


class Extra(Derives, Protocol):
    """An optional measurement: ``size`` integers that are summed, and the numbers that they give.

    An extra with ``needs_entropy = True`` finds ``stats.entropy`` where the tally measures logits.
    """

    def update(self, stats: TokenStats, valid: Tensor, logits: Tensor | None, **batch_data: Tensor) -> Tensor:
        """Return this batch's non-negative integers [size], int64, on the device of the stats, without a host sync.

        ``logits`` are None where stats came without them, and where ranks hold parts of them.
        """
        ...
