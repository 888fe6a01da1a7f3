"""ACCUMULATE: tokens become integers, which are merged over micro-batches, steps and ranks."""

from pplmon.tally.metric import TokenTally
from pplmon.tally.readout import ReadOut

__all__ = ["ReadOut", "TokenTally"]
