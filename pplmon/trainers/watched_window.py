"""Show the open window to callbacks of a trainer that watch its numbers: a checkpoint or a scheduler with a ``monitor=`` key."""

from __future__ import annotations

from collections.abc import Iterable

from pplmon.monitor import Monitor
from pplmon.report.declared import find


class WatchedWindow:
    """The open window of training, where callbacks watch it."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._shown = False  # something

    def wait_for(self, keys: Iterable[str]) -> None:
        """Read each logged window at its own step if one of these keys, which a callback watches, is a window's."""
        head = f"{self._monitor.prefix}train/"
        named = [key.removeprefix("pplmon/") for key in keys]  # so one is renamed that the module logs itself
        ours = [key.removeprefix(head) for key in (*keys, *named) if key.startswith(head)]
        self._monitor.wait_for_window = any(find(name) is not None for name in ours)

    @property
    def watched(self) -> bool:
        """Return True if a callback watches the numbers of a window."""
        return self._monitor.wait_for_window

    def show(self, asked: bool = True) -> None:
        """Show callbacks the open window where they watch one: after the first step, and whenever one asks.

        A callback may ask before a window closes; later it would find the last one. Every rank calls it, and waits.
        """
        if self.watched and (asked or not self._shown):
            report = self._monitor.so_far()
            if report is not None:
                self._monitor.publisher.show(report, f"{self._monitor.prefix}train/")
                self._shown = True
