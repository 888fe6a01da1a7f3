"""Contain what fails beside the training: warn of it, leave it out for a while, and try it again.

Each kind of call is counted apart: a logger that cannot take alerts goes on to get reports.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from pplmon.sinks.base import Sink
from pplmon.sinks.journal import Journal

FAILURES = 3  # after so many in a row a kind of call is left out for a while, ...
MOST_SKIPPED = 128  # ... 2, 4, 8, … calls long, at most so many: counted in calls, so that ranks do the same
SLOW_S = 1.0  # a call that takes longer gives a warning, once


class Tries:
    """Says if one kind of call to one sink, handler or rule is made, by how often it failed."""

    def __init__(self) -> None:
        self.failures = 0  # in a row
        self.lost = 0  # since it worked last
        self._skips, self._skips_left = 1, 0

    @property
    def is_out(self) -> bool:
        """Return True if it failed too often in a row."""
        return self.failures >= FAILURES

    def due(self) -> bool:
        """Return True if the call is to be made, and count one that is not."""
        if not self._skips_left:
            return True
        self._skips_left -= 1
        self.lost += 1
        return False

    def failed(self) -> None:
        """Count a failure; after some in a row calls are left out, and more of them each time."""
        self.failures += 1
        self.lost += 1
        if self.is_out:
            self._skips = self._skips_left = min(2 * self._skips, MOST_SKIPPED)

    def worked(self) -> None:
        """Forget the failures."""
        self.failures = self.lost = 0


class Guard:
    """Calls sinks, handlers and rules. A failure costs what that call should have taken, and nothing else."""

    def __init__(self) -> None:
        self._tries: defaultdict[tuple[int, str], Tries] = defaultdict(Tries)
        self._told: set[tuple[int, str]] = set()  # kinds of call, and errors
        self._named_slow: set[int] = set()

    def __call__(self, who: object, what: str, call: Callable[..., object], *args: object) -> Any:
        """Call, and turn slowness or an exception into a warning. Returns the result, ``None`` after a failure."""
        begun = time.monotonic()
        result = self.contained(who, what, call, *args)
        taken = time.monotonic() - begun
        if taken > SLOW_S:
            self._tell_slow(who, what, taken)
        return result

    def contained(self, who: object, what: str, call: Callable[..., object], *args: object) -> Any:
        """Call, however long it takes, and turn an exception into a warning."""
        tries = self._tries[id(who), what]
        if tries.failures and not tries.due():
            return None
        try:
            result = call(*args)
        except Exception as error:  # whatever it is, training goes on
            tries.failed()
            self._tell(who, what, tries, f"{type(error).__name__}: {error}")
            return None
        if tries.failures:
            if tries.is_out:
                _warn(f"{_name(who)} works again at {what!r}; it lacks {tries.lost} calls.")
            tries.worked()
        return result

    def _tell_slow(self, who: object, what: str, taken: float) -> None:
        if id(who) not in self._named_slow:
            self._named_slow.add(id(who))
            _warn(f"{_name(who)} took {taken:.1f} s at {what!r}; the training step waited for it.")

    def _tell(self, who: object, what: str, tries: Tries, error: str) -> None:
        """Warn of the first failure of its kind, and where a kind of call begins to be left out."""
        keys = {(id(who), what), (id(who), error)}
        text = f"{_name(who)} failed at {what!r}: {error}."
        if tries.failures == FAILURES:
            _warn(f"{text} It failed {FAILURES} times in a row and is left out; it is tried again now and then.")
        elif not keys & self._told:
            kept = "" if isinstance(who, Journal) else " (the journal, where there is one, has it)"
            _warn(f"{text} Training goes on; what it should have taken is lost there{kept}.")
        self._told |= keys


def _name(who: object) -> str:
    return who.name if isinstance(who, Sink) else getattr(who, "__name__", None) or type(who).__name__


def _warn(text: str) -> None:
    try:
        warnings.warn(f"pplmon: {text}", RuntimeWarning, stacklevel=2)
    except RuntimeWarning:  # under -W error, too, training goes on
        print(f"pplmon: {text}", file=sys.stderr)
