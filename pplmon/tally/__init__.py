"""Turn tokens into integers, and merge these over micro-batches, steps and ranks."""

from pplmon.tally.readout import ReadOut
from pplmon.tally.same_layout import UnlikeLayouts
from pplmon.tally.token_tally import TokenTally

__all__ = ["ReadOut", "TokenTally", "UnlikeLayouts"]
