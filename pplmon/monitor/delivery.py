"""Deliver reports and alerts to sinks and handlers. ``guard`` contains their failures: monitoring never hurts the run.

A handler is a callable ``Alert -> None``, called on the writing rank; with ``everywhere = True`` on all ranks. It may
also have these methods, which are called on all ranks:

- ``bind(monitor)``: a run begins;
- ``see(step, micro_batch, batch)``: a micro-batch of training is about to be counted;
- ``settle()``: an optimizer step is closed, and work that an alert asked for can be done;
- ``drain()``: the run is over.

``folder`` is where its files go, if it writes any: the journal names it.
"""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pplmon.alerts import Alert, check_severity
from pplmon.monitor.failures import Guard
from pplmon.report.report import Report
from pplmon.sinks.base import Sink
from pplmon.sinks.journal import Journal

log = logging.getLogger("pplmon")
Handler = Callable[[Alert], object]

HANG_S = 10.0  # a handler that takes longer is no longer waited for


class Delivery:
    """Calls one monitor's sinks and alert handlers."""

    listeners: ClassVar[list[Handler]] = []  # of all monitors in this process (``pplmon.testing.capture_alerts``)

    def __init__(
        self, sinks: Iterable[Sink], on_alert: Handler | Sequence[Handler], min_severity: str = "warning"
    ) -> None:
        # The journal is on disk before anything that may fail, block or be killed hears of an alert.
        self._sinks = sorted(sinks, key=lambda sink: not isinstance(sink, Journal))
        self.handlers = tuple(on_alert) if isinstance(on_alert, Sequence) else (on_alert,)
        for handler in self.handlers:
            if not callable(handler):
                raise TypeError(f"on_alert takes callables Alert -> None, got {type(handler).__name__}")
        self._min_severity = check_severity(min_severity, "min_severity")
        self.watchers = [handler for handler in self.handlers if callable(getattr(handler, "see", None))]
        self.guard = Guard()
        self._aside: list[Sink] = []  # of a rank that does not write

    def folders(self) -> list[str]:
        """Return the directories that handlers write files about alerts to."""
        given = [getattr(handler, "folder", None) for handler in self.handlers]
        return sorted({str(Path(folder).absolute()) for folder in given if isinstance(folder, (str, Path))})

    def files(self) -> list[str]:
        """Return the files and directories that sinks write."""
        return [path for sink in self._sinks for path in sink.files]

    def start(self, run: Mapping[str, Any]) -> None:
        """Begin a run in every sink."""
        for sink in self._sinks:
            self.guard(sink, "start", sink.start, run)

    def judged(self, report: Report) -> None:
        """Pass on one read-out."""
        for sink in self._sinks:
            if type(sink).judged is not Sink.judged:  # most take windows only
                self.guard(sink, "judged", sink.judged, report)

    def remember(self, step: int, memory: Callable[[], Mapping[str, Any]]) -> None:
        """Let journals know what the rules remember, once they have judged a step."""
        for sink in self._sinks:
            if isinstance(sink, Journal) and sink.is_bounded:
                self.guard(sink, "remember", sink.remember, step, memory)

    def report(self, report: Report, scalars: Mapping[str, float]) -> None:
        """Pass on one logged window or pass."""
        for sink in self._sinks:
            self.guard(sink, "report", sink.report, report, scalars)

    def agreed(self, text: str) -> None:
        """Log a line that says that all agrees, and pass it on."""
        log.info("pplmon: %s", text)
        for sink in self._sinks:
            self.guard(sink, "agreed", sink.agreed, text)

    def finished(self, report: Report) -> None:
        """Pass on the worst tokens and sequences of the whole run."""
        for sink in self._sinks:
            self.guard(sink, "finished", sink.finished, report)

    def alert(self, alert: Alert, writes: bool = True) -> None:
        """Pass on one alert: sinks first, then the handlers. On a rank that does not write only handlers are called.

        Below ``min_severity`` it is a notice: sinks mark it, and no handler is called.
        """
        calls = alert.reaches(self._min_severity)
        for sink in self._sinks if writes else ():
            self.guard(sink, "alert", sink.alert if calls else sink.notice, alert)
        for listener in self.listeners:
            listener(alert)
        for handler in self.handlers if calls else ():
            if getattr(handler, "everywhere", False):
                self.guard(handler, "alert", handler, alert)
            elif writes:
                self.guard(handler, "alert", _in_time, handler, alert)

    def see(self, step: int, micro_batch: int, batch: object) -> None:
        """Pass a micro-batch of training to the handlers that have a ``see``."""
        for handler in self.watchers:
            self.guard(handler, "see", handler.see, step, micro_batch, batch)  # type: ignore[attr-defined]

    def settle(self) -> None:
        """Let handlers do work that they put off, such as a checkpoint, however long it takes."""
        for handler in self.handlers:
            settle = getattr(handler, "settle", None)
            if settle is not None:
                self.guard.contained(handler, "settle", settle)

    def local(self, report: Report, rank: int, kind: str = "local") -> None:
        """Write the totals that one rank could not merge, or has alone, to its own journal."""
        for sink in self._sinks:
            if isinstance(sink, Journal):
                self.guard(sink, "local", sink.local, report, rank, kind)

    def marked(self, report: Report, scalars: Mapping[str, float], rank: int) -> None:
        """Pass on a window or pass that lacks ranks: to the rank's own journal, and to all else as a report."""
        self.local(report, rank)
        for sink in self._sinks:
            if not isinstance(sink, Journal):
                self.guard(sink, "report", sink.report, report, scalars)

    @property
    def beside(self) -> Path | None:
        """Return the directory of the journal, ``None`` without one."""
        return next((sink.path.parent for sink in self._sinks if isinstance(sink, Journal)), None)

    @property
    def can_take_over(self) -> bool:
        """Return True while there are sinks that another rank writes."""
        return bool(self._aside)

    def take_over(self, run: Mapping[str, Any], last: Report | None, scalars: Mapping[str, float]) -> None:
        """Use the sinks that another rank wrote, beginning with the last whole window. The journal stays this rank's own."""
        taken, self._aside = self._aside, []
        self._sinks += taken
        for sink in taken:
            self.guard(sink, "start", sink.start, run)
            if last is not None:
                self.guard(sink, "report", sink.report, last, scalars)

    def keep_own_journal_only(self, rank: int) -> None:
        """Leave all sinks alone that another rank writes, but for a journal, which goes on in the rank's own file."""
        self._aside = [sink for sink in self._sinks if not isinstance(sink, Journal)]
        self._sinks = [sink for sink in self._sinks if isinstance(sink, Journal)]
        for sink in self._sinks:
            self.guard(sink, "move_to_own", sink.move_to_own, rank)  # type: ignore[attr-defined]

    def flush(self) -> None:
        """Let the journal reach the disk: what a checkpoint goes on from must not be lost by a kill after it."""
        for sink in self._sinks:
            if isinstance(sink, Journal):
                self.guard(sink, "flush", sink.flush)

    def close(self) -> None:
        """Close every sink, then drain the handlers."""
        for sink in self._sinks:
            self.guard(sink, "close", sink.close)
        for handler in self.handlers:
            drain = getattr(handler, "drain", None)
            if drain is not None:
                self.guard.contained(handler, "drain", drain)


def _in_time(handler: Handler, alert: Alert) -> None:
    """Run a user's handler on a thread, and wait for it a limited time: it may hang on a network."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            handler(alert)
        except BaseException as error:  # handed over to the caller
            failure.append(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True, name="pplmon-on-alert")
    thread.start()
    thread.join(HANG_S)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {HANG_S:g} s; it is left to itself")
    if failure and not isinstance(failure[0], Exception):
        # To exit from here would leave the other ranks waiting. pplmon.Stop() is the handler that ends a run.
        raise RuntimeError(f"it raised {type(failure[0]).__name__}, which stops nothing; use pplmon.Stop()")
    if failure:
        raise failure[0]
