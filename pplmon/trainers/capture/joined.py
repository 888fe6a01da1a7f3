"""Compare several calls of a batch, taken together, with the loss: pooled, or the mean or the sum of their means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from pplmon.doctor import Loss, Observation, TokenSet
from pplmon.trainers.capture.heard import Heard

TOGETHER = ("pooled", "mean", "sum")


class Joined(NamedTuple):
    """Calls whose losses together are the loss."""

    shift: bool
    is_sure: bool  # no other shift gives it
    summed: bool  # it is the sum of the calls' losses


def joined(calls: Sequence[Sequence[Heard]], losses: Sequence[Loss | None]) -> Joined | None:
    """Return how the calls, each with its batches, make the losses of the batches; ``None`` where they do not."""
    first = calls[0][0]
    batches = list(zip(*calls))
    found: dict[bool, str] = {}
    for shift in (first.shift,) if first.stated else (first.shift, not first.shift):
        for together in TOGETHER:
            if all(_equals(batch, loss, shift, together) for batch, loss in zip(batches, losses)):
                found.setdefault(shift, together)
    if not found or (first.shift not in found and len(found) > 1):
        return None
    shift = first.shift if first.shift in found else next(iter(found))
    return Joined(shift, len(found) == 1, found[shift] == "sum")


def _equals(batch: Sequence[Heard], loss: Loss | None, shift: bool, together: str) -> bool:
    sums = [h.facts.sums.get(TokenSet(int(shift))) for h in batch]
    known = [s for s in sums if s is not None and s.tokens]
    if loss is None or not math.isfinite(loss.value) or len(known) < len(batch):
        return False
    means = [s.mean for s in known]
    pooled = sum(s.nll for s in known) / sum(s.tokens for s in known)
    value = {"pooled": pooled, "mean": sum(means) / len(means), "sum": sum(means)}[together]
    return Observation(batch[0].facts, loss).equals(value)
