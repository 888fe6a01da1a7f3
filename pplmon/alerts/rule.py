"""What an alert is, and what a rule is: a callable ``Report -> Alert | None``."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pplmon.evidence import WorstSequence, WorstToken
from pplmon.numbers import check_name
from pplmon.report import Report

SEVERITIES = ("info", "warning", "critical")


@dataclass(frozen=True)
class Alert:
    """Something that deserves a look: which rule, what it saw and where, and the worst tokens of its window."""

    rule: str
    text: str
    metric: str | None = None
    step: int | None = None
    stage: str = "train"
    value: float | None = None  # in the metric's unit
    threshold: float | None = None  # in the metric's unit
    severity: str = "warning"
    worst: tuple[WorstToken, ...] = ()
    worst_sequences: tuple[WorstSequence, ...] = ()
    blame_sequence: float | None = None  # 0–1: the share of the jump that the worst sequence explains
    blame_token: float | None = None

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(f"severity must be one of {', '.join(SEVERITIES)}, got {self.severity!r}")

    def __str__(self) -> str:
        return f"[{self.severity}] {self.text}"


Rule = Callable[[Report], Alert | None]


class MetricRule:
    """A rule that watches one number of one stage. Subclasses say in ``judge`` when a value is an alert."""

    numbers_only = True  # reads no evidence, so ranks need not gather any before judging
    severity = "warning"

    def __init__(self, metric: str, stage: str) -> None:
        check_name(metric)
        self.metric = metric
        self.stage = stage
        self.warns = True  # once, when a report lacks the number

    def __call__(self, report: Report) -> Alert | None:
        """Judge one report; a stage that is not ours, or a number that could not be had, is passed over."""
        if report.stage != self.stage:
            return None
        value = self._value(report)
        return None if value is None else self.judge(value, report)

    def judge(self, value: float, report: Report) -> Alert | None:
        """Return an alert, or ``None``."""
        raise NotImplementedError

    def alert(self, report: Report, value: float, threshold: float, text: str, severity: str | None = None) -> Alert:
        """Build this rule's alert."""
        return Alert(
            rule=type(self).__name__,
            text=f"step {report.step}: {report.stage}/{self.metric} {text}",
            metric=self.metric,
            step=report.step,
            stage=report.stage,
            value=value,
            threshold=threshold,
            severity=severity or self.severity,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what the rule remembers, as plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""

    def _value(self, report: Report) -> float | None:
        value = report.numbers.get(self.metric)
        if value is None and self.warns:
            self.warns = False
            warnings.warn(
                f"pplmon: {self!r} watches {self.metric!r}, which the report of step {report.step} lacks; it has "
                f"{', '.join(report.as_dict())}",
                stacklevel=2,
            )
        return value

    def __repr__(self) -> str:
        """Return the call that makes this rule: the journal keeps it, and ``pplmon replay`` reads it back."""
        parameters = inspect.signature(type(self)).parameters
        parts = [
            _literal(value) if parameters[name].default is inspect.Parameter.empty else f"{name}={_literal(value)}"
            for name, value in options(self).items()
            if value != parameters[name].default
        ]
        return f"{type(self).__name__}({', '.join(parts)})"


def options(rule: MetricRule) -> dict[str, Any]:
    """Return the arguments that a rule was made with, by name: those that it keeps as attributes of the same name."""
    names = inspect.signature(type(rule)).parameters
    return {name: getattr(rule, name) for name in names if hasattr(rule, name)}


def _literal(value: Any) -> str:
    """Return a value as a literal that reads back as itself: a short one where there is one."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return repr(value)
