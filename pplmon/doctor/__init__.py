"""Check that the measured number is the right one: findings that name what disagrees, with the evidence."""

from pplmon.doctor.alignment import TokenSet
from pplmon.doctor.batch_rules import alignment
from pplmon.doctor.diagnose import diagnose
from pplmon.doctor.facts import Facts
from pplmon.doctor.finding import KINDS, Finding
from pplmon.doctor.hypotheses import Hypothesis, Observation, decide, fitting
from pplmon.doctor.judge import another_source, judge
from pplmon.doctor.loss import Loss, Run
from pplmon.doctor.measured import Measured, measure
from pplmon.doctor.ranks import repeated_rows, row_digests

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
    "another_source",
    "decide",
    "diagnose",
    "fitting",
    "judge",
    "measure",
    "repeated_rows",
    "row_digests",
]
