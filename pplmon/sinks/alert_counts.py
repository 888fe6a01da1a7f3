"""Counts the alerts of a run, for curves and summaries: one number survives sampling, smoothing and clipped axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pplmon.alerts.alert import SEVERITIES, Alert
from pplmon.alerts.text import title
from pplmon.alerts.words import LABEL, shown


class AlertCounts:
    """The number of alerts that call for a person, of notices, and the step of the gravest one."""

    def __init__(self) -> None:
        self.prefix = ""  # the monitor's, which tells two monitors in one run apart
        self._alerts = self._notices = 0
        self._worst: tuple[int, float] = (-1, 0.0)
        self._worst_step: int | None = None
        self._last: tuple[int, str] | None = None

    def start(self, run: Mapping[str, Any]) -> None:
        """Go on from what the checkpoint of a resumed run had counted."""
        self.prefix = str(run.get("prefix", ""))
        before = run.get("raised") or {}
        self._alerts, self._notices = int(before.get("alerts", 0)), int(before.get("notices", 0))

    def add(self, alert: Alert) -> None:
        """Count one alert."""
        notice = alert.severity == "info"
        self._notices += notice
        self._alerts += not notice
        if alert.step is None:
            return
        self._last = alert.step, shown(f"step {alert.step}: {title(alert)}", LABEL)
        gravity = SEVERITIES.index(alert.severity), alert.height
        if gravity > self._worst:
            self._worst, self._worst_step = gravity, alert.step

    def key(self, name: str) -> str:
        """Return the log key of one of pplmon's own curves and tables."""
        return f"pplmon/{self.prefix}{name}"

    def curves(self) -> dict[str, float | int]:
        """Return the counts so far, by log key."""
        return {self.key("alerts_total"): self._alerts, self.key("notices_total"): self._notices}

    def summary(self) -> dict[str, float | int | str]:
        """Return the counts, the last alert and the step of the gravest one, by log key."""
        more: dict[str, float | int | str] = {}
        if self._last is not None:
            more |= {self.key("last_alert_step"): self._last[0], self.key("last_alert"): self._last[1]}
        if self._worst_step is not None:
            more[self.key("worst_step")] = self._worst_step
        return {**self.curves(), **more}
