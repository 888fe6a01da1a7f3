"""Check for targets outside the vocabulary: an error at the first read-out, an alert later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pplmon.alerts.alert import Alert


class TargetCheck:
    """Checks for targets outside the vocabulary: an error at the first read-out, later an alert when they begin."""

    RULE, METRIC = "InvalidTargets", "invalid_targets"

    def __init__(self) -> None:
        self.first = True
        self._invalid = False

    def verdict(self, count: int) -> str | None:
        """Return "error", "alert" or ``None`` for ``count`` such targets in this read-out."""
        was, first = self._invalid, self.first
        # A user who goes on after the error is warned once more, by an alert.
        self.first, self._invalid = False, count > 0 and not first
        if not count or was:
            return None
        return "error" if first else "alert"

    def alert(self, step: int, stage: str, count: int, text: str) -> Alert:
        """Return the alert."""
        return Alert(self.RULE, f"step {step}: {text}", self.METRIC, step, stage, count, 0.0, "critical")

    def state_dict(self) -> dict[str, bool]:
        """Return the state of the check."""
        return {"first": self.first, "invalid": self._invalid}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""
        self.first, self._invalid = state["first"], state["invalid"]
