"""Turn tokens into integers, and merge these over micro-batches, steps and ranks."""

from pplmon.tally.doing import Doing, Votes
from pplmon.tally.grad_norm import GradNorm
from pplmon.tally.own_numbers import OwnNumbers
from pplmon.tally.readout import ReadOut
from pplmon.tally.same_layout import UnlikeRanks
from pplmon.tally.token_tally import TokenTally

__all__ = ["Doing", "GradNorm", "OwnNumbers", "ReadOut", "TokenTally", "UnlikeRanks", "Votes"]
