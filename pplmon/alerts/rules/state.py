"""Check the answers of a set of rules, and save and restore their states.

The monitor and ``pplmon replay`` both use these functions, so that a replay cannot differ from the live run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pplmon.alerts.alert import Alert, MetricRule, Rule, parts_of


def remembered(rules: Sequence[Rule]) -> list[list[Any]]:
    """Return the states of rules as plain values; a user's rule takes part if it has ``state_dict``."""
    return [[_identity(rule), getattr(rule, "state_dict", dict)(), *_of_parts(rule)] for rule in rules]


def remind(rules: Sequence[Rule], memory: Sequence[Sequence[Any]]) -> None:
    """Restore the state of each rule from ``remembered``; a rule that is not in it begins anew."""
    saved = [tuple(entry) for entry in memory]
    for rule in rules:
        found = next((entry for entry in saved if entry[0] == _identity(rule)), None)
        if found is not None:
            saved.remove(found)
            if found[1]:
                rule.load_state_dict(found[1])  # type: ignore[attr-defined]
            if isinstance(rule, MetricRule) and len(found) > 2:
                for stage, state in found[2].items():
                    rule.of_part(stage).load_state_dict(state)


def _of_parts(rule: Rule) -> list[dict[str, Any]]:
    """Return the states of a rule for several data sets, if it judged any."""
    states = (
        {stage: part.state_dict() for stage, part in parts_of(rule).items()} if isinstance(rule, MetricRule) else {}
    )
    return [states] if states else []


def _identity(rule: Rule) -> str:
    """Return the name of a rule in a checkpoint. Of several with one name, the first saved is the first restored."""
    if isinstance(rule, MetricRule):
        return repr(rule)
    named = rule if hasattr(rule, "__qualname__") else type(rule)
    return f"{getattr(named, '__module__', '')}.{getattr(named, '__qualname__', '')}"


def checked(rule: Rule, answer: Any) -> Alert:
    """Return a rule's answer as an alert: any other object that is not ``None`` becomes an alert with its text."""
    if isinstance(answer, Alert):
        return answer
    name = getattr(rule, "__name__", repr(rule))
    return Alert(name, f"{name} answered {answer!r}; a rule returns a pplmon.Alert or None")
