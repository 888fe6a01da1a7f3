"""The rules that are used where none are given."""

from __future__ import annotations

from collections.abc import Sequence

from pplmon.alerts.alert import MetricRule, Rule
from pplmon.alerts.rules.spike import Spike
from pplmon.alerts.rules.thresholds import Above, NonFinite
from pplmon.report.declared import GRAD_NORM


def default_alerts(grad_norm: bool = False) -> list[Rule]:
    """Return a fresh set of the rules that are used where ``alerts`` is not given; ``grad_norm`` adds one on that number."""
    rules: list[MetricRule] = [
        # Critical: the run computes nothing any more, or soon will not.
        NonFinite(),
        # A hard batch is a notice, because most of them are text that is hard indeed; what rises or stays is a warning, what
        # does not come back is critical.
        Spike("cross_entropy"),
        # One bad sequence is a notice that names it; a second within 200 steps says that there are more of them: a warning.
        # Among few tokens it lies barely 12 scales high: chosen by benchmarks/blame.
        Spike("max_sequence_loss", hard=9.0, repeats=2),
        Spike("worst_1pct_loss"),
        # One token beyond what a calibrated model allows, less than one window in a million: as for a sequence.
        Above("max_token_excess", 14.0, severity="info", repeats=2),
        # It needs no earlier values, so it guards the first ones, of which the others learn what is usual. Fresh models
        # begin at 1.0 to 2.1 of a uniform guess and are below 1.25 within some steps: a warning.
        Above("relative_cross_entropy", 1.25, for_steps=16),
    ]
    if grad_norm:
        # Gradients that leap, or are not finite: as for the mean.
        rules.append(Spike(GRAD_NORM.name))
    for rule in rules:
        rule.warns = False  # no warning for a missing number: the user did not choose this rule
    return [*rules]


def watched(rules: Sequence[Rule]) -> tuple[str, ...]:
    """Return the names of the numbers that these rules read, as far as they declare them."""
    return tuple(dict.fromkeys(m for rule in rules if isinstance(m := getattr(rule, "metric", None), str)))
