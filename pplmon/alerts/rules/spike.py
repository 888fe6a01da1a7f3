"""``Spike``: a jump that earlier steps do not explain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

from pplmon.alerts.alert import Alert, MetricRule
from pplmon.alerts.rules.baseline import Baseline
from pplmon.report.checks import at_least
from pplmon.report.report import Report

RECENT = 64  # newest values whose median says whether the level has come back
NOT_BACK = 2.0  # robust standard deviations above the frozen baseline


class Spike(MetricRule):
    """Alerts on a jump that earlier steps do not explain: one step far above them, or several a little above.

    Each step asks how many robust standard deviations the value lies above the median of ``window`` earlier steps,
    leaving out the newest ``gap``; a bucket gains that number and leaks ``leak`` a step. Past ``limit`` it alerts, is
    emptied, and stays quiet for ``quiet_steps`` steps; if ``recovery_steps`` after the alert the level is not back at the
    baseline of before, a second, critical alert says so (``None``: never). A non-finite value alerts at once and never
    enters the baseline.
    """

    tuned_by = "limit"

    def __init__(
        self,
        metric: str,
        window: int = 128,
        gap: int = 16,
        leak: float = 2.0,
        limit: float = 10.0,
        quiet_steps: int = 200,
        stage: str = "train",
        recovery_steps: int | None = 200,
    ) -> None:
        super().__init__(metric, stage)
        for name, value, least in (
            ("window", window, 2),
            ("gap", gap, 0),
            ("quiet_steps", quiet_steps, 0),
            ("recovery_steps", 1 if recovery_steps is None else recovery_steps, 1),
        ):
            at_least(name, value, least)
        if not 0 <= leak < math.inf:
            raise ValueError(f"leak must be a finite number of at least 0, got {leak!r}")
        if not 0 < limit < math.inf:
            raise ValueError(f"limit must be above 0 and finite, or Spike can never fire or never rest; got {limit!r}")
        self.window, self.gap, self.leak, self.limit = window, gap, leak, limit
        self.quiet_steps, self.recovery_steps = quiet_steps, recovery_steps
        self._baseline = Baseline(window, gap)
        self._bucket = 0.0
        self._quiet_until: int | None = None
        self._frozen: tuple[int, float, float] | None = None  # step to look again, median and scale before the spike

    def judge(self, value: float, report: Report) -> Alert | None:
        """Add one value to the bucket; return an alert when it overflows, or when the level did not recover."""
        quiet = self._quiet_until is not None and report.step < self._quiet_until
        if not math.isfinite(value):
            if report.tokens == 0:
                return None  # no value at all: every token is non-finite, and NonFinite alerts on that
            return None if quiet else self._fire(report, value, math.nan, "is not finite")
        if not self._baseline.armed:
            self._baseline.push(value)
            return None
        middle = self._baseline.median()
        scale = self._baseline.scale(middle)
        self._baseline.push(value)
        self._bucket = 0.0 if quiet else max(0.0, self._bucket + (value - middle) / scale - self.leak)
        if self._bucket > self.limit:
            self._freeze(report.step, middle, scale)
            # The threshold in the metric's unit: the value that would fill an empty bucket in one step.
            edge = middle + (self.leak + self.limit) * scale
            text = f"jumped to {value:.4g} from a median of {middle:.4g} (scale {scale:.2g})"
            return self._fire(report, value, edge, text)
        return self._not_recovered(report)

    def state_dict(self) -> dict[str, Any]:
        """Return the baseline, the bucket, the end of the quiet time, and the level to recover to."""
        return {
            "past": self._baseline.values(),
            "bucket": self._bucket,
            "quiet_until": self._quiet_until,
            "frozen": None if self._frozen is None else list(self._frozen),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        self._baseline.restore(state["past"])
        self._bucket, self._quiet_until = float(state["bucket"]), state["quiet_until"]
        frozen = state["frozen"]
        self._frozen = None if frozen is None else (int(frozen[0]), float(frozen[1]), float(frozen[2]))

    def _freeze(self, step: int, middle: float, scale: float) -> None:
        # A second spike while we wait is judged by the baseline of before the first.
        if self.recovery_steps is not None and self._frozen is None:
            self._frozen = (step + self.recovery_steps, middle, scale)

    def _not_recovered(self, report: Report) -> Alert | None:
        if self._frozen is None or report.step < self._frozen[0]:
            return None
        _, middle, scale = self._frozen
        self._frozen = None
        level, limit = median(self._baseline.newest(RECENT)), middle + NOT_BACK * scale
        if level <= limit:
            return None
        text = (
            f"did not recover: its median is {level:.4g} {self.recovery_steps} steps after a spike, {middle:.4g} before"
        )
        return self.alert(report, level, limit, text, severity="critical")

    def _fire(self, report: Report, value: float, threshold: float, text: str) -> Alert:
        self._bucket = 0.0
        self._quiet_until = report.step + self.quiet_steps
        return self.alert(report, value, threshold, text)
