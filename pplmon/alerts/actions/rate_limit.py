"""Limit how often a rule may send a message."""

from __future__ import annotations

import time
from collections import OrderedDict

from pplmon.alerts import Alert

KEPT = 1000  # rules and alerts that are remembered
Key = tuple[object, ...]


class Limit:
    """At most one message per rule, number, stage and severity in ``every_s`` seconds, and none twice."""

    def __init__(self, every_s: float) -> None:
        if isinstance(every_s, bool) or not isinstance(every_s, (int, float)) or not every_s >= 0:
            raise ValueError(f"every_s must be a number of seconds of at least 0, got {every_s!r}")
        self.every_s = every_s
        self.suppressed = 0
        self._last: OrderedDict[Key, tuple[float, int]] = (
            OrderedDict()
        )  # when the last was sent, and how many not since
        self._known: OrderedDict[Key, None] = OrderedDict()

    def admit(self, alert: Alert) -> int | None:
        """Return the number of like alerts that were held back before it; ``None`` where it is held back itself."""
        key = (alert.rule, alert.metric, alert.stage, alert.severity)
        # A resumed run repeats steps, and one handler may serve two monitors.
        same = (*key, alert.step, alert.threshold, alert.text)
        now = time.monotonic()
        sent, held_back = self._last.get(key, (-float("inf"), 0))
        if same in self._known or now - sent < self.every_s:
            self.suppressed += 1
            if key in self._last and same not in self._known:
                self._last[key] = (sent, held_back + 1)
            return None
        self._last[key], self._known[same] = (now, 0), None
        for memory in (self._last, self._known):
            while len(memory) > KEPT:
                memory.popitem(last=False)
        return held_back
