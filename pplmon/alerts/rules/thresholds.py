"""Rules with a threshold: ``Above``, ``Below`` and ``NonFinite``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pplmon.alerts.alert import Alert, MetricRule, check_severity
from pplmon.alerts.rules.quiet import Quiet, Repeats
from pplmon.report.checks import at_least, check_number
from pplmon.report.declared import find
from pplmon.report.numbers import Number
from pplmon.report.report import Report


class _Threshold(MetricRule):
    """A rule that fires when a number stays beyond a threshold, and re-arms at the first value back inside."""

    tuned_by: str | None = "threshold"
    word = ""
    sign = 1.0  # +1 where larger is beyond, −1 where smaller is

    def __init__(
        self,
        metric: str,
        threshold: float,
        stage: str = "train",
        for_steps: int = 1,
        after_step: int = 0,
        hysteresis: float = 0.0,
        severity: str = "warning",
        repeats: int | None = None,
        quiet_steps: int = 200,
    ) -> None:
        super().__init__(metric, stage)
        limit = check_number(f"the threshold of {metric}", threshold)
        hysteresis = check_number("hysteresis", hysteresis)
        number = find(metric)
        span = f"{metric} lies between {number.low:g} and {number.high:g}" if number else "no value is beyond it"
        if not self._can_fire(limit):
            raise ValueError(f"{self.word} {threshold} can never fire: {span}")
        if number is not None and self._beyond_all(limit, number):
            raise ValueError(
                f"{self.word} {threshold} would fire at every value: {span}; choose a threshold between the two"
            )
        at_least("for_steps", for_steps, 1)
        at_least("after_step", after_step, 0)
        at_least("repeats", 2 if repeats is None else repeats, 2)
        at_least("quiet_steps", quiet_steps, 0)
        if not 0 <= hysteresis < math.inf:
            raise ValueError(
                f"hysteresis must be a finite distance of at least 0 in the metric's unit, got {hysteresis!r}"
            )
        check_severity(severity)
        if repeats is not None and severity != "info":
            raise ValueError(f'repeats turns notices into a warning, so it wants severity="info"; got {severity!r}')
        self.threshold = limit
        self.for_steps, self.after_step, self.hysteresis = for_steps, after_step, hysteresis
        self.repeats, self.quiet_steps = repeats, quiet_steps
        if severity != self.severity:
            self.severity = severity
        self._beyond = 0  # judged values beyond the threshold, in a row
        self._fired = self._warned = False  # since it was last inside
        self._judged = 0
        self._quiet, self._repeats = Quiet(quiet_steps), Repeats(repeats, quiet_steps)

    def judge(self, value: float, report: Report) -> Alert | None:
        """Return an alert on the ``for_steps``-th judged value in a row beyond the threshold."""
        if math.isnan(value) or report.step < self.after_step:
            return None
        now = self._judged
        self._judged += 1
        self._beyond = self._beyond + 1 if self._distance(value) > 0 else 0
        lasts = self._beyond >= self.for_steps
        if lasts and self._repeats.add(now) and not self._warned and self._quiet.over("warning", now):
            self._fired = self._warned = True
            self._quiet.begin(now, "warning", self.severity)
            again = f", {self.repeats} such values within {self.quiet_steps}"
            return self.alert(report, value, self.threshold, self._text(value) + again, severity="warning")
        if self._fired:
            self._fired = self._distance(value) > -self.hysteresis or self._beyond > 0
            self._warned = self._warned and self._fired
            return None
        self._fired = lasts
        if not lasts or not self._quiet.over(self.severity, now):
            return None
        return self.alert(report, value, self.threshold, self._text(value))

    def state_dict(self) -> dict[str, Any]:
        """Return how long the value has been beyond the threshold, the alerts raised for it, and what repeats."""
        return {
            "fired": self._fired,
            "warned": self._warned,
            "beyond": self._beyond,
            "judged": self._judged,
            "quiet": self._quiet.state_dict(),
            "repeats": self._repeats.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned; a state of version 0.1 has only the first two."""
        self._fired, self._beyond = bool(state["fired"]), int(state["beyond"])
        self._warned, self._judged = bool(state.get("warned")), int(state.get("judged", 0))
        self._quiet.load_state_dict(state.get("quiet", {}))
        self._repeats.restore(state.get("repeats", ()))

    def _text(self, value: float) -> str:
        lasting = f" for {self.for_steps} judged steps" if self.for_steps > 1 else ""
        return f"is {value:.6g}, {self.word} {self.threshold:g}{lasting}"

    def _distance(self, value: float) -> float:
        # inf − inf is no number; a value at an infinite threshold cannot be, because such a threshold is refused.
        return self.sign * (value - self.threshold)

    def _can_fire(self, threshold: float) -> bool:
        raise NotImplementedError

    def _beyond_all(self, threshold: float, number: Number) -> bool:
        """Return True if even the value that is least beyond the threshold is beyond it."""
        return self.sign * ((number.low if self.sign > 0 else number.high) - threshold) > 0


class Above(_Threshold):
    """Warns when a number is above ``threshold`` (in its own unit) for ``for_steps`` judged values in a row.

    It looks from ``after_step`` on, fires once, and re-arms at the first value not above ``threshold − hysteresis``.
    ``severity="info"`` gives notices; with ``repeats`` so many values above it within ``quiet_steps`` judged ones are a
    warning, after which it is quiet for as long.
    """

    word = "above"

    def _can_fire(self, threshold: float) -> bool:
        number = find(self.metric)
        return threshold < (math.inf if number is None else number.high)


class Below(_Threshold):
    """Warns when a number is below ``threshold`` (in its own unit) for ``for_steps`` judged values in a row.

    It looks from ``after_step`` on, fires once, and re-arms at the first value not below ``threshold + hysteresis``.
    ``severity``, ``repeats`` and ``quiet_steps`` are as in ``Above``.
    """

    word = "below"
    sign = -1.0

    def _can_fire(self, threshold: float) -> bool:
        number = find(self.metric)
        return threshold > (-math.inf if number is None else number.low)


class NonFinite(_Threshold):
    """Alerts at the first window with a non-finite token loss, and re-arms at the first without one."""

    word = "above"
    severity = "critical"
    tuned_by = None  # it has one threshold, 0

    def __init__(self, stage: str = "train") -> None:
        super().__init__("nonfinite_tokens", 0.0, stage, severity=self.severity)

    def _can_fire(self, threshold: float) -> bool:
        return True

    def _text(self, value: float) -> str:
        return f"is {value:.0f}: scored tokens have a loss of NaN or inf (or were given one that cannot be)"
