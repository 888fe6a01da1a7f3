"""Wait for the other ranks as long as their group does, unless they say that they left, or may never come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pplmon.tally.coming import Comes
from pplmon.tally.notes import Notes

LOOK_S = 1.0  # before it looks for notes of the others; then twice as long each time
LONGEST_LOOK_S = 8.0
LONG_S = 10.0  # until somebody is told that a rank waits
EPOCH_S = 30.0  # at the end of an epoch, for ranks that may never come to it


class Patience:
    """The notes of one rank for the others, and what it reads in theirs.

    A rank that leaves names the first collective in which it takes no part, so that nobody waits for one that is to come
    after all. Ranks count them alike.
    """

    def __init__(self) -> None:
        self._notes, self._ranks = Notes(), 1
        self._begun = 0  # collectives in which this rank took part
        self._limit: float | None = None  # seconds; None: as the group does
        self._batches: int | None = None  # of this epoch; None: not known
        self._epochs = 0
        self._pass = ""

    def listen(self, ranks: Sequence[int], name: str) -> None:
        """Hear of the others from here on."""
        self._notes, self._ranks = Notes(ranks, name), len(ranks)
        self._tell_length()

    def begin(self) -> int:
        """Return the number of the collective that this rank begins."""
        self._begun += 1
        return self._begun

    def wait(self, number: int, comes: Comes, long: Callable[[], None] | None = None) -> None:
        """Wait for the collective of this number, and call ``long`` if it takes long. RuntimeError to give it up."""
        begun, look = time.monotonic(), LOOK_S
        while not comes(look):
            waited = time.monotonic() - begun
            if self._notes.count(self._without(number)) > 0:
                raise RuntimeError("another rank has left the run")
            on_their_way = bool(self._pass) and self._notes.count(self._pass) == self._ranks
            if long is not None and waited >= LONG_S and not on_their_way:
                long()
                long = None
            if self._limit is not None and waited >= self._limit and not on_their_way:
                raise RuntimeError(
                    f"no answer within {self._limit:g} s at the end of an epoch: are the loaders of the ranks of unlike lengths?"
                )
            due = [at - waited for at in (LONG_S, self._limit) if at is not None and at > waited]
            look = min([2 * look, LONGEST_LOOK_S, *due])

    def leave(self, failed: int | None = None) -> None:
        """Say that this rank takes part in nothing more, not even in a collective that failed; hear no more of the others."""
        self._notes.add(self._without(self._begun + 1))
        if failed is not None:
            self._notes.add(self._without(failed))
        self._notes, self._limit = Notes(), None

    def begin_epoch(self, batches: int | None) -> None:
        """Say how many batches this rank has in the epoch that begins, if that is known."""
        self._epochs, self._batches = self._epochs + 1, batches
        self._tell_length()

    def begin_pass(self, number: int) -> None:
        """Say that this rank will come to the end of a pass."""
        self._pass = f"pass {number}"
        self._notes.add(self._pass)

    def end_pass(self) -> None:
        """Forget the pass."""
        self._pass = ""

    def differ(self) -> bool:
        """Return True where another rank has more, or fewer, batches in this epoch."""
        alike, told = self._notes.count(self._length()), self._notes.count(self._epoch())
        return self._batches is not None and told == self._ranks != alike

    @contextmanager
    def at_epoch_end(self) -> Iterator[None]:
        """Wait for ``EPOCH_S`` only, unless all ranks are known to have as many batches as this one."""
        alike = self._batches is not None and self._notes.count(self._length()) == self._ranks
        self._limit = None if alike else EPOCH_S
        try:
            yield
        finally:
            self._limit = None

    def _tell_length(self) -> None:
        if self._batches is not None:
            self._notes.add(self._length())
            self._notes.add(self._epoch())

    def _epoch(self) -> str:
        return f"epoch {self._epochs}"

    def _length(self) -> str:
        return f"epoch {self._epochs} of {self._batches} batches"

    @staticmethod
    def _without(number: int) -> str:
        return f"without {number}"
