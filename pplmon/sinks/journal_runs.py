"""Tell apart the runs that were written into one journal, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Place = tuple[str, str]  # a monitor's prefix, and the name of its run


class JournalRuns:
    """The runs of a journal, as its rows come: a row of kind "run" begins one, or goes on with one.

    It begins one if nothing was resumed, or if what was resumed has another name than the run before it. A row that does
    not say what it is, as older versions wrote it, goes on. Of two monitors that share a file each has its own runs.
    """

    def __init__(self) -> None:
        self._now: dict[str, str] = {}  # by prefix
        self._count = 0
        self.names: dict[str, None] = {}

    def of(self, row: Mapping[str, Any]) -> Place:
        """Return the run that a row belongs to."""
        prefix = str(row.get("prefix", ""))
        if row.get("kind") == "run":
            name = row.get("run")
            begins = row.get("resumed_at", 0) is None
            if isinstance(name, str):
                self._now[prefix] = name
            elif begins:
                self._count += 1
                self._now[prefix] = f"run {self._count}"
        now = self._now.setdefault(prefix, "")
        self.names.setdefault(now)
        return prefix, now

    def chosen(self, run: str | None) -> set[Place]:
        """Return the last run of each monitor, or the one of this name.

        Raises:
            ValueError: the journal has no run of this name.
        """
        if run is not None and run not in self.names:
            names = ", ".join(map(repr, self.names)) or "none"
            raise ValueError(f"the journal has no run {run!r}; it has {names}, the last one last")
        return {(prefix, name if run is None else run) for prefix, name in self._now.items()}
