"""The rules that are used where none are given."""

from __future__ import annotations

from collections.abc import Sequence

from pplmon.alerts.alert import MetricRule, Rule
from pplmon.alerts.rules.spike import Spike
from pplmon.alerts.rules.thresholds import Above, NonFinite


def default_alerts() -> list[Rule]:
    """Return a fresh set of the rules that are used where ``alerts`` is not given."""
    rules: list[MetricRule] = [
        NonFinite(),
        Spike("cross_entropy"),
        # A bad sequence lasts one step, and one among few tokens lies barely 12 deviations high: chosen by benchmarks/blame.
        Spike("max_sequence_loss", limit=8.0),
        Spike("worst_1pct_loss"),
        Above("max_token_excess", 14.0),  # nats; for a calibrated model less than one window in a million
    ]
    for rule in rules:
        rule.warns = False  # no warning for a missing number: the user did not choose this rule
    return [*rules]


def watched(rules: Sequence[Rule]) -> tuple[str, ...]:
    """Return the names of the numbers that these rules read, as far as they declare them."""
    return tuple(dict.fromkeys(m for rule in rules if isinstance(m := getattr(rule, "metric", None), str)))
