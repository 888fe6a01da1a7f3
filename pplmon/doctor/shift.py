"""Decide by the loss of the first batches which shift pplmon is to count, where the user stated none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from pplmon.doctor.alignment import TokenSet
from pplmon.doctor.hypotheses import AS_IT_SHOULD_BE, Observation, decide, fitting


class Fit(NamedTuple):
    """A shift whose cross-entropy equals the loss, and whether it is the only one that does."""

    shift: bool
    is_sure: bool


def shift_that_fits(batches: Sequence[Observation], told: bool, stated: bool = False) -> Fit | None:
    """Return the shift whose tokens equal the loss in every batch; ``None`` where none does, or several others do.

    ``told`` is the shift that counts where no loss tells; one that was ``stated`` is never changed.
    """
    if not batches or not all(tells(batch) for batch in batches):
        return None
    usual, decided = TokenSet(int(told)), decide({"": batches})
    if any(h.tokens == usual and h.factor == "" and h.reduction in AS_IT_SHOULD_BE for h in fitting(batches)):
        return Fit(told, decided is not None)
    if stated or decided is None or decided[1].shift not in (0, 1) or decided[1].scored != usual.scored:
        return None
    return Fit(bool(decided[1].shift), True)


def tells(batch: Observation) -> bool:
    """Tell whether a batch has a finite loss and targets to compare it by."""
    return batch.loss is not None and math.isfinite(batch.loss.value) and bool(batch.facts.count("told"))
