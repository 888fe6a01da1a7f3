"""Run rules over a finished run, to see when each would have fired, and to tune them.

    series = replay.read("runs/a")
    result = replay.run(series, replay.Rules(["live"], series))

``pplmon replay`` is the command. From a journal it reproduces the live alerts exactly: the rules are the same objects,
and judge the same numbers.
"""

from pplmon.replay.judge import Fired, Result, run
from pplmon.replay.read.series import ReplayError, Row, Segment, Series
from pplmon.replay.read.sources import read
from pplmon.replay.rules import Rules, parse_rule
from pplmon.replay.score import Incident, Score, scores
from pplmon.replay.suggest import Suggestion, suggest

__all__ = [
    "Fired",
    "Incident",
    "ReplayError",
    "Result",
    "Row",
    "Rules",
    "Score",
    "Segment",
    "Series",
    "Suggestion",
    "parse_rule",
    "read",
    "run",
    "scores",
    "suggest",
]
