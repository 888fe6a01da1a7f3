"""``Positions``: measure tokens by their place in the sequence, to see whether a long context helps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pplmon.extras.base import Extra
from pplmon.extras.parts import SUMS, parts_of, sums_of_parts
from pplmon.extras.sequences import by_row, given, places_of
from pplmon.measure.tokens import TokenStats
from pplmon.report.numbers import Number

DOUBLINGS = 21
STARTS = (
    0,
    *(2**power for power in range(DOUBLINGS)),
)  # the first position of each part; the last has all from there on


class Positions(Extra):
    """An extra that measures tokens by their place in the sequence, in parts that double: 0, 1, 2–3, 4–7, … from 2^20 on.

    The number of a part bears its first position: ``position/64/cross_entropy`` is over positions 64 to 127. A position is
    what the batch says (``position_ids``), else the target's column, counted from the beginning of its document where there are
    ``document_ids``.

    A part that no valid token of the window is in has None. All are None where a batch has neither sequences nor
    ``position_ids``; accuracies, where ``correct`` is not known. NaN: there is no valid token at all.
    """

    declares = (
        Number("position/{from}/cross_entropy", "nats per token", "mean nll at positions from there to twice that"),
        Number("position/{from}/token_accuracy", "", "hits / tokens at positions from there to twice that", high=1.0),
    )
    size = 2 + len(STARTS) * SUMS  # tokens without a position; without ``correct``; what ``parts`` sums

    def update(self, stats: TokenStats, valid: Tensor, logits: Tensor | None, **batch_data: Tensor) -> Tensor:
        """Return this batch's integers [size]."""
        tokens = valid.sum()[None]
        none = torch.zeros_like(tokens)
        position = _position(stats, batch_data)
        if position is None:
            return torch.cat([tokens, none.expand(self.size - 1)])
        # All but the first start are powers of 2, so that they can be made on the device.
        starts = 1 << torch.arange(DOUBLINGS, device=tokens.device)
        part = torch.bucketize(by_row(stats, position).flatten(), starts, right=True)
        unsure = tokens if stats.correct is None else none
        return torch.cat([none, unsure, sums_of_parts(stats, torch.where(valid, part, -1), len(STARTS))])

    def numbers(self, integers: Sequence[int]) -> Mapping[str, float | None]:
        """Return two numbers of each part."""
        unplaced, unsure, *sums = integers
        parts = parts_of(sums)
        counted = any(part.tokens for part in parts)
        found: dict[str, float | None] = {}
        for start, part in zip(STARTS, parts):
            entropy, accuracy = part.cross_entropy, part.token_accuracy
            empty = counted and math.isnan(entropy)
            found[f"position/{start}/cross_entropy"] = None if unplaced or empty else entropy
            found[f"position/{start}/token_accuracy"] = None if unplaced or unsure or empty else accuracy
        return found


def _position(stats: TokenStats, batch_data: Mapping[str, Tensor]) -> Tensor | None:
    """Return the position of the caller's columns, [R, T]."""
    position = given("position_ids", stats, batch_data)
    if position is not None:
        return position
    places = places_of(stats, batch_data)
    return None if places is None else places.column - places.first
