"""JUDGE: rules, callables ``Report -> Alert | None``, that decide what deserves a human's attention.

A rule of one's own is a function of three lines. Ours keep a little state, judge ``stage="train"`` unless told
otherwise, and read only a report's numbers, which are the same on every rank: so every rank decides alike.
"""

from pplmon.alerts.defaults import default_alerts, watched
from pplmon.alerts.memory import TargetCheck, checked, remembered, remind
from pplmon.alerts.rule import Alert, MetricRule, Rule, options
from pplmon.alerts.spike import Spike
from pplmon.alerts.thresholds import Above, Below, NonFinite

__all__ = [
    "Above",
    "Alert",
    "Below",
    "MetricRule",
    "NonFinite",
    "Rule",
    "Spike",
    "TargetCheck",
    "checked",
    "default_alerts",
    "options",
    "remembered",
    "remind",
    "watched",
]
