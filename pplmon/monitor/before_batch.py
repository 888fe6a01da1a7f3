"""Keep the tally as it was before the micro-batch under way: a state that a signal saves in its middle leaves it out.

The trainer repeats that micro-batch when it resumes, so it would count twice.
"""

from __future__ import annotations

from pplmon.tally import TokenTally


class BeforeBatch:
    """A tally's counts before a micro-batch."""

    def __init__(self, pattern: TokenTally) -> None:
        self._empty = pattern  # nothing is counted in it
        self._copy: TokenTally | None = None
        self._is_empty = True

    def mark(self, tally: TokenTally, empty: bool) -> None:
        """Keep what ``tally`` holds now. Most often it is known to be empty, and nothing has to be copied."""
        self._is_empty = empty
        if not empty:
            if self._copy is None:
                self._copy = self._empty.clone()
            self._copy.copy_counts(tally)

    @property
    def tally(self) -> TokenTally:
        """Return a tally with what was counted before the micro-batch."""
        return self._empty if self._is_empty or self._copy is None else self._copy
