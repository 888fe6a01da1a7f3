"""Check that the measured number is the right one: findings that name what disagrees, with the evidence."""

from pplmon.doctor.alignment import TokenSet
from pplmon.doctor.batch_rules import alignment
from pplmon.doctor.diagnose import diagnose
from pplmon.doctor.facts import Facts
from pplmon.doctor.finding import KINDS, Finding
from pplmon.doctor.hypotheses import Hypothesis, Observation, decide, fitting
from pplmon.doctor.judge import judge
from pplmon.doctor.loss import Loss, Run
from pplmon.doctor.measured import Measured, measure
from pplmon.doctor.ranks import row_digests, same_rows

__all__ = [
    "KINDS",
    "Facts",
    "Finding",
    "Hypothesis",
    "Loss",
    "Measured",
    "Observation",
    "Run",
    "TokenSet",
    "alignment",
    "decide",
    "diagnose",
    "fitting",
    "judge",
    "measure",
    "row_digests",
    "same_rows",
]
