"""Targets outside the vocabulary: an error at the first read-out, an alert later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pplmon.alerts.alert import Alert


class TargetCheck:
    """Targets outside the vocabulary: an error at the first read-out that there is, later an alert on the edge."""

    RULE, METRIC = "InvalidTargets", "invalid_targets"

    def __init__(self) -> None:
        self.first = True
        self._invalid = False

    def verdict(self, count: int) -> str | None:
        """Say what ``count`` such targets in this read-out call for: "error", "alert" or nothing."""
        was, first = self._invalid, self.first
        # Who goes on after the error is told once more, by an alert.
        self.first, self._invalid = False, count > 0 and not first
        if not count or was:
            return None
        return "error" if first else "alert"

    def alert(self, step: int, stage: str, count: int, text: str) -> Alert:
        """Return the alert."""
        return Alert(self.RULE, f"step {step}: {text}", self.METRIC, step, stage, count, 0.0, "critical")

    def state_dict(self) -> dict[str, bool]:
        """Return what it remembers."""
        return {"first": self.first, "invalid": self._invalid}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""
        self.first, self._invalid = state["first"], state["invalid"]
