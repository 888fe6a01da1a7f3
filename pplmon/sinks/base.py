"""``Sink``, the base of places that show numbers and alerts: a few methods, none of which has to be overridden."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pplmon.alerts import Alert
from pplmon.report.report import Report


class Sink:
    """A place where numbers and alerts are shown. Its methods are called on one thread, on the writing rank only.

    A sink may raise: the monitor reports the failure once, says what is lost, and training goes on.
    """

    @property
    def name(self) -> str:
        """Return the name that warnings give it."""
        return type(self).__name__

    @property
    def files(self) -> list[str]:
        """Return the files or directories of its own that it writes, to be told at the start."""
        return []

    def start(self, run: Mapping[str, Any]) -> None:
        """Begin a run. ``run`` holds plain values: versions, settings, the rules' texts."""

    def judged(self, report: Report) -> None:
        """Take one read-out, exactly as the rules saw it (every ``judge_every_n_steps``)."""

    def report(self, report: Report, scalars: Mapping[str, float]) -> None:
        """Take one logged window or pass: ``scalars`` are the log keys with finite values, at ``report.step``."""

    def alert(self, alert: Alert) -> None:
        """Take one alert, with its evidence."""

    def notice(self, alert: Alert) -> None:
        """Take an alert that calls nobody, because it is below the monitor's ``min_severity``: mark it, with its evidence."""
        self.alert(alert)

    def agreed(self, text: str) -> None:
        """Take a line, once for each stage: what is counted, and that it equals the loss."""

    def finished(self, report: Report) -> None:
        """Take the worst tokens and sequences of the whole run, without numbers, when it ends (``report.stage`` is "run")."""

    def close(self) -> None:
        """Write everything that is buffered and close files. A backend that was passed in stays open."""
