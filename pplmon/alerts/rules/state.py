"""A set of rules as one thing: what they answer, what they remember, and the check that stands before them.

The monitor and ``pplmon replay`` both judge by these, so that a replay cannot differ from what it replays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pplmon.alerts.alert import Alert, MetricRule, Rule


def remembered(rules: Sequence[Rule]) -> list[list[Any]]:
    """Return what rules remember, as plain values; a rule of the user's takes part if it has ``state_dict``."""
    return [[_identity(rule), getattr(rule, "state_dict", dict)()] for rule in rules]


def remind(rules: Sequence[Rule], memory: Sequence[Sequence[Any]]) -> None:
    """Give each rule back what ``remembered`` gave; a rule that was not there before begins anew."""
    saved = [tuple(entry) for entry in memory]
    for rule in rules:
        found = next((entry for entry in saved if entry[0] == _identity(rule)), None)
        if found is not None:
            saved.remove(found)
            if found[1]:
                rule.load_state_dict(found[1])  # type: ignore[attr-defined]


def _identity(rule: Rule) -> str:
    """What tells a rule from another in a checkpoint. Of several alike, the first saved is the first to be restored."""
    if isinstance(rule, MetricRule):
        return repr(rule)
    named = rule if hasattr(rule, "__qualname__") else type(rule)
    return f"{getattr(named, '__module__', '')}.{getattr(named, '__qualname__', '')}"


def checked(rule: Rule, answer: Any) -> Alert:
    """Return a rule's answer as an alert: what is no alert is one all the same, for somebody meant to be told."""
    if isinstance(answer, Alert):
        return answer
    name = getattr(rule, "__name__", repr(rule))
    return Alert(name, f"{name} answered {answer!r}; a rule returns a pplmon.Alert or None")
