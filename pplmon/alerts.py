"""JUDGE: rules, callables ``Report -> Alert | None``, that decide what deserves a human's attention.

A rule of one's own is a function of three lines. Ours keep a little state, judge ``stage="train"`` unless told
otherwise, and read only a report's numbers, which are the same on every rank: so every rank decides alike.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from pplmon.evidence import WorstSequence, WorstToken
from pplmon.numbers import CATALOGUE, check_name
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

    def alert(self, report: Report, value: float, threshold: float, text: str) -> Alert:
        """Build this rule's alert."""
        return Alert(
            rule=type(self).__name__,
            text=f"step {report.step}: {report.stage}/{self.metric} {text}",
            metric=self.metric,
            step=report.step,
            stage=report.stage,
            value=value,
            threshold=threshold,
            severity=self.severity,
        )

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
        return f"{type(self).__name__}({self.metric!r})"


class _Threshold(MetricRule):
    """Fire on the edge; re-arm at the first judged value back inside the threshold."""

    word = ""

    def __init__(self, metric: str, threshold: float, stage: str = "train") -> None:
        super().__init__(metric, stage)
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)):
            raise TypeError(f"the threshold of {metric} must be a number, got {type(threshold).__name__}")
        if not self._can_fire(float(threshold)):
            number = CATALOGUE.get(metric)
            span = f"{metric} lies between {number.low:g} and {number.high:g}" if number else "no value is beyond it"
            raise ValueError(f"{self.word} {threshold} can never fire: {span}")
        self.threshold = float(threshold)
        self._fired = False

    def judge(self, value: float, report: Report) -> Alert | None:
        """Return an alert on the first judged value beyond the threshold."""
        if math.isnan(value):
            return None
        was, self._fired = self._fired, self._beyond(value)
        if was or not self._fired:
            return None
        return self.alert(report, value, self.threshold, f"is {value:.6g}, {self.word} {self.threshold:g}")

    def _beyond(self, value: float) -> bool:
        raise NotImplementedError

    def _can_fire(self, threshold: float) -> bool:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.metric!r}, {self.threshold:g})"


class Above(_Threshold):
    """Alert when a number rises above ``threshold`` (in its own unit). It fires on the edge and re-arms once back inside."""

    word = "above"

    def _beyond(self, value: float) -> bool:
        return value > self.threshold

    def _can_fire(self, threshold: float) -> bool:
        return threshold < (CATALOGUE[self.metric].high if self.metric in CATALOGUE else math.inf)


class Below(_Threshold):
    """Alert when a number falls below ``threshold`` (in its own unit). It fires on the edge and re-arms once back inside."""

    word = "below"

    def _beyond(self, value: float) -> bool:
        return value < self.threshold

    def _can_fire(self, threshold: float) -> bool:
        return threshold > (CATALOGUE[self.metric].low if self.metric in CATALOGUE else -math.inf)


class NonFinite(MetricRule):
    """Alert when a scored token has a loss of NaN or ±inf. It fires on the edge and re-arms at the first clean window."""

    severity = "critical"

    def __init__(self, stage: str = "train") -> None:
        super().__init__("nonfinite_tokens", stage)
        self._fired = False

    def judge(self, value: float, report: Report) -> Alert | None:
        """Return an alert on the first window with sick tokens."""
        was, self._fired = self._fired, value > 0
        if was or not self._fired:
            return None
        return self.alert(report, value, 0.0, f"is {value:.0f}: scored tokens have a loss of NaN or inf")

    def __repr__(self) -> str:
        return "NonFinite()"


class Spike(MetricRule):
    """Alert on a jump that earlier steps do not explain: one step far above them, or several a little above.

    Each step asks how many robust standard deviations the value lies above the median of ``window`` earlier steps,
    leaving out the newest ``gap``; a bucket gains that number and leaks ``leak`` a step. Past ``limit`` it alerts, is
    emptied, and stays quiet for ``quiet_steps`` steps. A non-finite value alerts at once and never enters the baseline.
    """

    def __init__(
        self,
        metric: str,
        window: int = 128,
        gap: int = 16,
        leak: float = 2.0,
        limit: float = 10.0,
        quiet_steps: int = 200,
        stage: str = "train",
    ) -> None:
        super().__init__(metric, stage)
        for name, value, least in (("window", window, 2), ("gap", gap, 0), ("quiet_steps", quiet_steps, 0)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        if not 0 <= leak < math.inf:
            raise ValueError(f"leak must be a finite number of at least 0, got {leak!r}")
        if not 0 < limit < math.inf:
            raise ValueError(f"limit must be above 0 and finite, or Spike can never fire or never rest; got {limit!r}")
        self.gap, self.leak, self.limit, self.quiet_steps = gap, leak, limit, quiet_steps
        self._armed_after = window // 2 + gap
        self._past: deque[float] = deque(maxlen=window + gap)
        self._bucket = 0.0
        self._quiet_until: int | None = None

    def judge(self, value: float, report: Report) -> Alert | None:
        """Fill the bucket with one value; return an alert when it runs over."""
        quiet = self._quiet_until is not None and report.step < self._quiet_until
        if not math.isfinite(value):
            if report.tokens == 0:
                return None  # no value at all: what made every token sick is for NonFinite to say
            return None if quiet else self._fire(report, value, math.nan, "is not finite")
        if len(self._past) < self._armed_after:
            self._past.append(value)
            return None
        middle, scale = self._baseline()
        self._past.append(value)
        self._bucket = 0.0 if quiet else max(0.0, self._bucket + (value - middle) / scale - self.leak)
        if self._bucket <= self.limit:
            return None
        # The threshold in the metric's unit: the value that would fill an empty bucket in one step.
        edge = middle + (self.leak + self.limit) * scale
        return self._fire(
            report, value, edge, f"jumped to {value:.4g} from a median of {middle:.4g} (scale {scale:.2g})"
        )

    def _baseline(self) -> tuple[float, float]:
        earlier = list(self._past)[: len(self._past) - self.gap]
        middle = median(earlier)
        spread = 1.4826 * median(
            [abs(x - middle) for x in earlier]
        )  # the MAD of a normal distribution is its sd/1.4826
        return middle, max(spread, 1e-3 * abs(middle), 1e-6)

    def _fire(self, report: Report, value: float, threshold: float, text: str) -> Alert:
        self._bucket = 0.0
        self._quiet_until = report.step + self.quiet_steps
        return self.alert(report, value, threshold, text)


def default_alerts() -> list[Rule]:
    """Return a fresh set of the rules that are used where ``alerts`` is not given."""
    rules: list[MetricRule] = [
        NonFinite(),
        Spike("cross_entropy"),
        Spike("max_sequence_loss"),
        Spike("worst_1pct_loss"),
        Above("max_token_excess", 14.0),  # nats; for a calibrated model less than one window in a million
    ]
    for rule in rules:
        rule.warns = False  # who did not choose a rule need not hear that a number of it cannot be had
    return [*rules]


def watched(rules: Sequence[Rule]) -> tuple[str, ...]:
    """Return the names of the numbers that these rules read, as far as they say."""
    return tuple(dict.fromkeys(m for rule in rules if isinstance(m := getattr(rule, "metric", None), str)))
