"""``Stop``: end the run."""

from __future__ import annotations

from typing import Protocol

from pplmon.alerts import Alert


class Stoppable(Protocol):
    """The one attribute of a monitor that ``Stop`` sets."""

    should_stop: bool


class Stop:
    """Stop the run at a warning or a critical alert: every rank at the same step, after the evidence is written.

    A notice never stops it, even where ``min_severity="info"`` lets handlers hear of notices.

    Under Lightning the trainer stops. In a plain loop look at ``monitor.should_stop`` after ``monitor.step()``.
    """

    everywhere = True  # all ranks raise the same alerts, so each of them stops itself

    def __init__(self) -> None:
        self._monitor: Stoppable | None = None

    def bind(self, monitor: Stoppable) -> None:
        """Remember the monitor to stop; the monitor calls it."""
        self._monitor = monitor

    def __call__(self, alert: Alert) -> None:
        """Stop, unless it is but a notice."""
        if self._monitor is not None and alert.severity != "info":
            self._monitor.should_stop = True

    def __repr__(self) -> str:
        return "Stop()"
