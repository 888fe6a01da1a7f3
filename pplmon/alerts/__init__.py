"""Judge reports: rules are callables ``Report -> Alert | None`` that decide what deserves a person's attention.

Your own rule is a function of three lines, or a subclass of ``MetricRule``. Built-in rules have a little state, judge
``stage="train"`` unless given another, and read a report's numbers only, which are the same on every rank: so all ranks
decide alike. A new file in this folder is found automatically.
"""

from typing import TYPE_CHECKING, Any

from pplmon.alerts.alert import Alert, MetricRule, Rule, at_fault, check_severity, options, rule_classes
from pplmon.alerts.rules.defaults import default_alerts, watched
from pplmon.alerts.rules.invalid_targets import TargetCheck
from pplmon.alerts.rules.state import checked, remembered, remind
from pplmon.report.discover import classes_in

ALL = classes_in("pplmon.alerts.rules", MetricRule)  # by name; pplmon has them under the same names
globals().update(ALL)

if TYPE_CHECKING:
    from pplmon.alerts.rules.spike import Spike as Spike
    from pplmon.alerts.rules.thresholds import Above as Above
    from pplmon.alerts.rules.thresholds import Below as Below
    from pplmon.alerts.rules.thresholds import NonFinite as NonFinite

    def __getattr__(name: str) -> Any:
        """Tell a type checker that a rule without a line above is ``Any``."""


__all__ = [
    "ALL",
    "Alert",
    "MetricRule",
    "Rule",
    "TargetCheck",
    "at_fault",
    "check_severity",
    "checked",
    "default_alerts",
    "options",
    "remembered",
    "remind",
    "rule_classes",
    "watched",
]
__all__ += list(ALL)
