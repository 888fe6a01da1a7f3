"""Send alerts over a network: the base of ``Webhook`` and ``Notify``, with a worker thread, a rate limit and one warning."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

from pplmon.alerts import Alert
from pplmon.alerts.actions.rate_limit import Limit
from pplmon.alerts.actions.secret_url import Address
from pplmon.alerts.actions.worker import BACK_OFF_S, DRAIN_S, QUEUE, TRIES, Worker
from pplmon.report.checks import at_least


class Message(NamedTuple):
    """An alert, and the number of alerts before it that the receiver did not get."""

    alert: Alert
    held_back: int  # like it, by the limit
    dropped: int  # any, by a full queue


class Remote:
    """A handler that sends an alert over a network, on a thread of its own. Subclasses implement ``_send``."""

    _back_off_s = BACK_OFF_S

    def __init__(self, address: Address, every_s: float, tries: int, queue: int, drain_s: float) -> None:
        who = type(self).__name__
        self._address = address
        self._limit = Limit(every_s)
        self._tries = at_least(f"{who}: tries", tries)
        self._queue = at_least(f"{who}: queue", queue)
        self._drain_s = drain_s
        self._told = False
        self._dropped_before = 0
        self._worker = self._new_worker()

    def __call__(self, alert: Alert) -> None:
        """Hand the alert to the worker, and return at once."""
        held_back = self._limit.admit(alert)
        if held_back is None:
            return
        dropped = self._worker.dropped
        if self._worker.put(Message(alert, held_back, dropped - self._dropped_before)):
            self._dropped_before = dropped
        self.settle()

    def settle(self) -> None:
        """Warn once that the host fails: on the caller's thread, because a warning in the worker might be lost or end it."""
        if not self._told and self._worker.trouble is not None:
            self._warn(f"could not deliver an alert: {self._worker.trouble}")

    def drain(self) -> None:
        """Wait at most ``drain_s`` seconds for alerts that are being sent, and warn if that was not enough."""
        before = self._worker.dropped
        self._worker.drain(self._drain_s)
        self.settle()
        lost = self._worker.dropped - before
        if lost and not self._told:
            self._warn(
                f"had not delivered {lost} {'alert' if lost == 1 else 'alerts'} {self._drain_s:g} s after the end"
            )

    @property
    def counts(self) -> dict[str, int]:
        """Return how many were ``sent``, ``failed``, ``dropped`` (full queue, run ended) and ``held_back`` (limit)."""
        worker = self._worker
        return {
            "sent": worker.sent,
            "failed": worker.failed,
            "dropped": worker.dropped,
            "held_back": self._limit.suppressed,
        }

    def _send(self, message: Message) -> None:
        raise NotImplementedError

    def _new_worker(self) -> Worker[Message]:
        return Worker(self._send, self._queue, self._tries, self._back_off_s)

    def _warn(self, what: str) -> None:
        self._told = True
        warnings.warn(
            f"pplmon: {self!r} {what}. Training goes on; the journal, where there is one, has every alert. Further "
            f"failures there are only counted ({type(self).__name__}.counts).",
            RuntimeWarning,
            stacklevel=3,
        )

    def __getstate__(self) -> dict[str, Any]:
        # A thread stays where it is, and so does the URL (see Address).
        return {name: value for name, value in self.__dict__.items() if name != "_worker"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._worker = self._new_worker()

    def __deepcopy__(self, memo: dict[int, Any]) -> Remote:
        return self  # a copy would have no URL

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._address!r})"


__all__ = ["DRAIN_S", "QUEUE", "TRIES", "Message", "Remote"]
