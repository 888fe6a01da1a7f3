"""ACCUMULATE: tokens become integers, which are merged over micro-batches, steps and ranks."""

from pplmon.tally.metric import TokenTally
from pplmon.tally.readout import ReadOut
from pplmon.tally.same_layout import UnlikeLayouts

__all__ = ["ReadOut", "TokenTally", "UnlikeLayouts"]
