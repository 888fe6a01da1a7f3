"""Batches on a CPU that wait: counting many together costs little more than one, and most of their worst rows are never shown.

The numbers of all are counted when they are read, their worst rows when those are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

from torch import Tensor

from pplmon.measure.tokens import TokenStats
from pplmon.tally.cells import Cells
from pplmon.tally.count.by_arrays import add_numbers, by_numpy, rank
from pplmon.tally.count.columns import Columns, columns_of, joined
from pplmon.tally.count.numpy_or_torch import OnNumpy
from pplmon.tally.count.worst import Evidence
from pplmon.tally.records import Given, Settings, State

MOST_TOKENS = 4096  # that wait: 140 KB, and beyond them counting together saves nothing more
_XP = OnNumpy()


class Waiting:
    """The batches of one tally that wait."""

    def __init__(self) -> None:
        self._batches: list[Columns] = []  # not counted
        self._unranked: list[Evidence] = []  # counted, but for their worst rows
        self._settings: Settings | None = None
        self._tokens = 0

    def __bool__(self) -> bool:
        return self._settings is not None

    @staticmethod
    def takes(stats: TokenStats, given: Given, settings: Settings) -> bool:
        """Return True for a batch that gains by waiting: a small one, on a CPU, of which nothing is needed at once."""
        small = stats.nll.numel() < MOST_TOKENS and given.position_ids is None and not settings.wants_valid
        return small and by_numpy(stats.nll.device)

    def add(self, cells: Callable[[], Cells], stats: TokenStats, given: Given, settings: Settings) -> None:
        """Let a batch wait; count what waits where it is too much, or unlike this one."""
        # A copy: the caller may change his tensors before they are counted. Those that nobody else has are copied, too: held
        # among the larger ones of a step they would break up the heap, and its buffers would be new memory each time.
        batch = columns_of(_XP.copy, stats, given)
        if self._batches and self._batches[0].alike != batch.alike:
            self.count(cells().state)
        self._batches.append(batch)
        self._settings = settings
        self._tokens += batch.size
        if self._tokens >= MOST_TOKENS:
            self.settle(cells().state)

    def count(self, state: State) -> tuple[Evidence, ...]:
        """Count the numbers of what waits, and return what finds its worst rows, which are in no state yet."""
        if self._batches and self._settings is not None:
            batches, self._batches = self._batches, []
            self._unranked.append(add_numbers(_XP, state, joined(_XP, batches), self._settings)[0])
        return tuple(self._unranked)

    def settle(self, state: State) -> None:
        """Count what waits, its worst rows too."""
        if self._settings is not None:
            rank(_XP, state, self.count(state), self._settings.context)
            self.drop()

    def drop(self) -> None:
        """Forget what waits."""
        self._batches, self._unranked, self._settings, self._tokens = [], [], None, 0


class Counted:
    """A state of a tally. Whoever reads it finds everything counted, and whoever reads rows finds the worst of everything."""

    def __init__(self, rows: bool = False) -> None:
        self._rows = rows

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, tally: None, owner: type) -> Counted: ...
    @overload
    def __get__(self, tally: Any, owner: type) -> Tensor: ...
    def __get__(self, tally: Any, owner: type) -> Counted | Tensor:
        if tally is None:
            return self
        tally.settle(rows=self._rows)
        return tally.__dict__[self._name]  # type: ignore[no-any-return]

    def __set__(self, tally: Any, state: Tensor) -> None:
        tally.settle()
        tally.__dict__[self._name] = state
