"""Deliver what was seen to sinks and handlers, and contain their failures: monitoring never hurts the run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pplmon.alerts import Alert
from pplmon.report import Report
from pplmon.sinks.base import Sink
from pplmon.sinks.journal import Journal

Handler = Callable[[Alert], object]


class Delivery:
    """Sinks and alert handlers of one monitor. A failure is reported once for each of them, with what is lost."""

    def __init__(self, sinks: Iterable[Sink], on_alert: Handler | Sequence[Handler]) -> None:
        # The journal is on disk before anything that may fail, block or be killed hears of an alert.
        self._sinks = sorted(sinks, key=lambda sink: not isinstance(sink, Journal))
        self._handlers = tuple(on_alert) if isinstance(on_alert, Sequence) else (on_alert,)
        for handler in self._handlers:
            if not callable(handler):
                raise TypeError(f"on_alert takes callables Alert -> None, got {type(handler).__name__}")
        self._reported: set[tuple[int, str]] = set()

    def start(self, run: Mapping[str, Any]) -> None:
        """Tell every sink that a run begins."""
        for sink in self._sinks:
            self.guard(sink, "start", sink.start, run)

    def judged(self, report: Report) -> None:
        """Pass on one read-out."""
        for sink in self._sinks:
            self.guard(sink, "judged", sink.judged, report)

    def report(self, report: Report, scalars: Mapping[str, float]) -> None:
        """Pass on one logged window or pass."""
        for sink in self._sinks:
            self.guard(sink, "report", sink.report, report, scalars)

    def alert(self, alert: Alert) -> None:
        """Pass on one alert: sinks first, then the handlers."""
        for sink in self._sinks:
            self.guard(sink, "alert", sink.alert, alert)
        for handler in self._handlers:
            self.guard(handler, "alert", handler, alert)

    def close(self) -> None:
        """Close every sink."""
        for sink in self._sinks:
            self.guard(sink, "close", sink.close)

    def guard(self, who: object, what: str, call: Callable[..., object], *args: object) -> Any:
        """Call, and turn an exception into one warning. Returns the result, ``None`` after a failure."""
        try:
            return call(*args)
        except Exception as error:  # whatever it is, training goes on
            if (id(who), what) not in self._reported:
                self._reported.add((id(who), what))
                name = getattr(who, "__name__", None) or type(who).__name__
                warnings.warn(
                    f"pplmon: {name} failed at {what!r}: {type(error).__name__}: {error}. Training goes on; what it "
                    f"should have taken is lost there{_kept(who)}. Further failures of this kind are not reported.",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return None


def _kept(who: object) -> str:
    return "" if isinstance(who, Journal) else " (the journal, where there is one, has it)"
