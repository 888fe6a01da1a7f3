"""Check that the measured number is the right one: findings that name what disagrees, with the evidence."""

from pplmon.doctor.alignment import TokenSet
from pplmon.doctor.batch_rules import alignment
from pplmon.doctor.diagnose import diagnose
from pplmon.doctor.facts import Facts
from pplmon.doctor.finding import KINDS, OFTEN_MEANT, TOLD_ELSEWHERE, Finding
from pplmon.doctor.hypotheses import Hypothesis, Observation, decide, fitting
from pplmon.doctor.judge import judge
from pplmon.doctor.late import Late
from pplmon.doctor.loss import BATCHES, Loss, Run, check_loss
from pplmon.doctor.measured import Measured, measure
from pplmon.doctor.ranks import row_digests, same_rows
from pplmon.doctor.shift import Fit, shift_that_fits, tells

__all__ = [
    "BATCHES",
    "KINDS",
    "OFTEN_MEANT",
    "TOLD_ELSEWHERE",
    "Facts",
    "Finding",
    "Fit",
    "Hypothesis",
    "Late",
    "Loss",
    "Measured",
    "Observation",
    "Run",
    "TokenSet",
    "alignment",
    "check_loss",
    "decide",
    "diagnose",
    "fitting",
    "judge",
    "measure",
    "row_digests",
    "same_rows",
    "shift_that_fits",
    "tells",
]
