"""Publish reports: choose the numbers that are logged, give them their log keys, and send them to the sinks.

A trainer may have places of its own for numbers. The code that connects it passes a ``Places`` that knows them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from pplmon.extras import declare_all, declared_by
from pplmon.monitor.delivery import Delivery
from pplmon.monitor.ranks import Link
from pplmon.report.declared import GRAD_NORM, fits, is_drawn, measured_by, select
from pplmon.report.numbers import CATALOGUE, CORE
from pplmon.report.report import Report
from pplmon.tally import TokenTally


class Places:
    """The places that a trainer has for numbers beside the sinks. A plain loop has none, so this does nothing.

    A subclass is passed for a trainer. Alert handlers read ``trainer`` and ``log_dir``; ``may_write`` is False where
    another group of the same run writes.
    """

    trainer: Any = None
    log_dir: str | None = None
    may_write = True

    def show(self, report: Report, head: str, tail: str) -> None:
        """Show a report at once, on every rank. A report that was held is shown a second time before it is sent."""

    def lack(self, report: Report, head: str, tail: str) -> None:
        """Say that a report lacks ranks, on every rank that has one. It is not shown."""

    def holds(self, report: Report) -> bool:
        """Return True to keep a report from the sinks until ``Publisher.send_held``."""
        return False

    def key(self, key: str) -> str:
        """Return the log key to use in place of this one."""
        return key

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return the context in which the trainer runs the model, as in mixed precision; a probe's forwards run in it, too."""
        return nullcontext()


class Publisher:
    """Sends each report to the sinks under the keys that it has (``Report.key``), and shows it in the trainer's own places."""

    def __init__(self, delivery: Delivery, link: Link, names: tuple[str, ...] | None, places: Places) -> None:
        self._delivery, self._link, self._names, self._places = delivery, link, names, places
        self._held: list[tuple[Report, str, str]] = []
        self._shows = True
        self._on_request: tuple[str, ...] = ()

    def only_on_request(self, names: Iterable[str]) -> None:
        """Log these numbers of extras under "all" and by name only, because nobody asked for the extras."""
        self._on_request = tuple(names)

    def publish(self, report: Report, head: str, tail: str = "") -> None:
        """Show a report in the trainer's places at once, and send it to the sinks unless it is held. Every rank calls it."""
        if not self._link.takes_part:
            return
        if report.ranks_missing:
            self._publish_marked(report, head, tail)
            return
        if self._shows:
            self._places.show(report, head, tail)
        self._held.append((report, head, tail))
        if not self._places.holds(report):
            self._send()

    def _publish_marked(self, report: Report, head: str, tail: str) -> None:
        """Never under the usual keys: numbers of some ranks would be taken for those of all."""
        if self._shows:
            self._places.lack(report, head, tail)
        rank = self._link.home.global_rank
        self._delivery.marked(report, self.keys(report, f"rank{rank}/{head}", tail), rank)

    def show(self, report: Report, head: str) -> None:
        """Show a report in the trainer's places only. Every rank calls it."""
        if self._link.takes_part and self._shows:
            (self._places.lack if report.ranks_missing else self._places.show)(report, head, "")

    def send_held(self) -> None:
        """Send the reports that were held back. The trainer's places see them again: their keys may have changed."""
        if self._shows:
            for held in self._held:
                self._places.show(*held)
        self._send()

    def leave_places_alone(self) -> None:
        """Send reports that were held back, and no longer use the trainer's places, which may need a collective."""
        self._shows = False
        self._send()

    def keys(self, report: Report, head: str, tail: str = "") -> dict[str, float | int]:
        """Return the selected, finite numbers of a report under their log keys."""
        return {
            self._places.key(report.key(name, head, tail)): value
            for name, value in report.finite().items()
            if name in report.own or self._logs(name)
        }

    def _logs(self, name: str) -> bool:
        names = self._names
        if names is not None and name in names:
            return True
        if names is not None and names is not CORE:
            return False  # a list names all it wants
        if is_drawn(name):
            return False
        # "core" has the numbers of extras, which somebody asked for
        return names is None or (name not in CATALOGUE and name not in self._on_request)

    def _send(self) -> None:
        held, self._held = self._held, []
        if self._link.writes:
            for report, head, tail in held:
                self._delivery.report(report, self.keys(report, head, tail))


def wanted(numbers: str | Sequence[str], tally: TokenTally) -> tuple[str, ...] | None:
    """Return the names that ``numbers`` selects (``None``: all), each of which the tally measures."""
    have = declare_all(tally.extras)  # here, too, because a tally that came in a pickle brings its extras with it
    names = select(numbers)
    if all(map(declared_by, tally.extras)):  # else there is one that may measure anything
        lacking = [
            n
            for n in names or ()
            if n != GRAD_NORM.name and measured_by(n) and not any(fits(n, number.name) for number in have)
        ]
        if lacking:
            extras = ", ".join(dict.fromkeys(str(measured_by(name)) for name in lacking))
            raise ValueError(
                f"numbers asks for {', '.join(lacking)}, which is measured by tally=pplmon.TokenTally(extras=[{extras}])"
            )
    return names
