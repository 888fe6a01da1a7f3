"""``Alert``, and ``MetricRule``, the base of rules that watch one number."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pplmon.report.calls import arguments_of, call_text, literal
from pplmon.report.declared import check_name
from pplmon.report.discover import subclasses_of
from pplmon.report.report import Report
from pplmon.report.worst import WorstSequence, WorstToken

if TYPE_CHECKING:
    from typing_extensions import Self

SEVERITIES = ("info", "warning", "critical")  # a notice, a call for a person, a run that is lost


def check_severity(severity: str, name: str = "severity") -> str:
    """Return ``severity`` if it is one of the three, else raise."""
    if severity not in SEVERITIES:
        raise ValueError(f"{name} must be one of {', '.join(SEVERITIES)}, got {severity!r}")
    return severity


@dataclass(frozen=True)
class Alert:
    """Something that deserves a look: the rule, the value that it saw, the step, and the worst tokens of its window.

    Attributes:
        rule: the name of the rule, usually its class.
        text: what happened, in one line.
        metric: the number that the rule watches; ``None`` for a rule that watches no single one.
        step: the optimizer step, 0-based. A rule may leave it out: the monitor fills it in.
        stage: "train", "val" or "test".
        value: the number's value, in its unit.
        threshold: the value beyond which the rule alerts, in the same unit.
        severity: "info", "warning" or "critical".
        worst: the worst tokens of the window, the worst first; filled in by the monitor.
        worst_sequences: its worst sequences, likewise.
        blame_sequence: the share, 0 to 1, of the rise of the cross-entropy that the worst sequence explains; ``None`` where
            it did not rise, or where too few earlier steps are known.
        blame_token: the same for the worst token.
        blame_group: the group of tokens (see ``Groups``) whose loss rose most, in nats above its own usual loss; likewise.
        blame_group_share: the share, 0 to 1, of the rise of all tokens' loss that this group explains.
        ranks_missing: how many ranks are not in what the rule saw, because they were lost: each of those that are left then
            raises alerts of its own. ``None`` where none is missing.
        cause: beside an earlier run: "data" where it shows the same, "model" where only this run does; else ``None``.
    """

    rule: str
    text: str
    metric: str | None = None
    step: int | None = None
    stage: str = "train"
    value: float | None = None
    threshold: float | None = None
    severity: str = "warning"
    worst: tuple[WorstToken, ...] = ()
    worst_sequences: tuple[WorstSequence, ...] = ()
    blame_sequence: float | None = None
    blame_token: float | None = None
    blame_group: str | None = None
    blame_group_share: float | None = None
    ranks_missing: int | None = None
    cause: str | None = None

    def __post_init__(self) -> None:
        check_severity(self.severity)

    def reaches(self, least: str) -> bool:
        """Return whether the alert is at least as severe as ``least``."""
        return SEVERITIES.index(self.severity) >= SEVERITIES.index(least)

    @property
    def height(self) -> float:
        """Return by what factor the value is beyond its threshold; 0 where one of the two is not known."""
        if self.value is None or not self.threshold:
            return 0.0
        ratio = abs(self.value / self.threshold)
        if math.isnan(ratio):
            return math.inf
        return (1 / ratio if ratio else math.inf) if self.value < self.threshold else ratio

    def __str__(self) -> str:
        return f"[{self.severity}] {self.text}"


Rule = Callable[[Report], Alert | None]


def at_fault(alert: Alert) -> WorstToken | WorstSequence | None:
    """Return what an alert is about: the worst token for a number of tokens, else the worst sequence."""
    token = next(iter(alert.worst), None)
    sequence = next(iter(alert.worst_sequences), None)
    of_tokens = alert.metric is None or "token" in alert.metric or alert.metric == "invalid_targets"
    return (token or sequence) if of_tokens else (sequence or token)


class MetricRule:
    """A base for a rule that watches one number of one stage; ``judge`` says when a value is an alert.

    ::

        class Doubled(pplmon.MetricRule):
            def __init__(self, metric, factor=2.0, stage="train"):
                super().__init__(metric, stage)
                self.factor = factor
                self.best = math.inf

            def judge(self, value, report):
                self.best = min(self.best, value)
                if value > self.factor * self.best:
                    return self.alert(report, value, self.factor * self.best, f"is {value:.4g}, the best was {self.best:.4g}")

            def state_dict(self):  # what a checkpoint keeps
                return {"best": self.best}

            def load_state_dict(self, state):
                self.best = state["best"]

    A journal names such a rule by the call that makes it, ``Doubled('cross_entropy', factor=3)``, so its arguments are
    numbers and texts; ``pplmon replay --rules FILE.py`` finds its class in that file.

    Attributes:
        metric: the number's name.
        stage: "train", "val" or "test": reports of other stages are ignored. Where each of several data sets has a pass, each
            is judged by itself; "val/wiki" judges only the one of that name.
        severity: the severity of its alerts, unless ``alert`` is given another.
        numbers_only: True if it reads no worst tokens, so that ranks need not gather them before judging.
        tuned_by: the argument that ``pplmon replay --wanted-rate`` may choose: above 0, and larger means fewer alerts.
        warns: True if a number that a report lacks gives one warning.
        compares: True if it holds values against earlier ones: beside an earlier run it then judges the difference, too.
    """

    numbers_only = True
    severity = "warning"
    tuned_by: str | None = None
    compares = False
    _made_with: dict[str, Any]
    _parts: dict[str, MetricRule]  # the same rule for each of several data sets, by the stage of its reports

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keep the arguments, by which a journal and a checkpoint know the rule."""
        rule = super().__new__(cls)
        object.__setattr__(rule, "_made_with", arguments_of(cls, args, kwargs))  # also of a frozen dataclass
        object.__setattr__(rule, "_parts", {})
        return rule

    def __init__(self, metric: str, stage: str = "train") -> None:
        check_name(metric)
        if not isinstance(stage, str):
            raise TypeError(
                f'the stage of a rule is a str, "train", "val" or "test", got {type(stage).__name__}: {stage!r}'
            )
        self.metric = metric
        self.stage = stage
        self.warns = True  # once, when a report lacks the number

    def __call__(self, report: Report) -> Alert | None:
        """Judge one report; other stages, and reports that lack the number, are ignored."""
        if report.stage != self.stage:
            return self.of_part(report.stage)(report) if self.judges(report.stage) else None
        value = report.numbers.get(self.metric)
        if value is not None:
            return self.judge(value, report)
        if self.warns:
            self._warn_of_lacking(report)
        return None

    def judges(self, stage: str) -> bool:
        """Return True for a stage whose reports the rule judges: its own, and that of each of its data sets."""
        return stage == self.stage or stage.startswith(f"{self.stage}/")

    def of_part(self, stage: str) -> MetricRule:
        """Return the rule that judges one of several data sets: it remembers that set's values only."""
        if stage not in self._parts:
            self._parts[stage] = part = type(self)(**options(self))
            for name, value in (("stage", stage), ("warns", self.warns)):
                object.__setattr__(part, name, value)
        return self._parts[stage]

    def judge(self, value: float, report: Report) -> Alert | None:
        """Return an alert for this value, or ``None``."""
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

    def for_difference(self) -> MetricRule:
        """Return a fresh rule like this one that judges the difference to an earlier run. For a rule that compares."""
        return type(self)(**options(self))

    def keep_scale_above(self, least: float) -> None:
        """Take smaller changes than ``least``, in the number's unit, for none. For a rule that compares."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the rule remembers, as plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""

    def _warn_of_lacking(self, report: Report) -> None:
        self.warns = False
        warnings.warn(
            f"pplmon: {self!r} watches {self.metric!r}, which the report of step {report.step} lacks; it has "
            f"{', '.join(report.as_dict())}",
            stacklevel=2,
        )

    def __repr__(self) -> str:
        """Return the call that makes this rule: the journal keeps it, and ``pplmon replay`` reads it back."""
        return call_text(type(self), options(self), literal)


def parts_of(rule: MetricRule) -> dict[str, MetricRule]:
    """Return the rules that judge several data sets, by their stages; none where there were no such reports."""
    return dict(rule._parts)


def options(rule: MetricRule) -> dict[str, Any]:
    """Return the arguments that a rule was made with, by name, defaults included."""
    return dict(rule._made_with)


def rule_classes() -> dict[str, type[MetricRule]]:
    """Return every class of rules in this process, by name; of two with one name the later."""
    return {kind.__name__: kind for kind in subclasses_of(MetricRule) if not kind.__name__.startswith("_")}
