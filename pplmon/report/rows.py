"""Worst rows that are found when somebody reads them: those of most read-outs are never shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from pplmon.report.worst import Row, merge_rows

MOST_TOKENS = 2**15  # that are kept to find rows among: some 1.5 MB; where there are more, the rows are found
Rank = tuple[int, int]  # the first cell of a row, and its WHEN below 0: a larger one stands before it


class Source(Protocol):
    """Counted tokens, among which the worst rows can be found."""

    @property
    def most(self) -> Rank:
        """Return a rank that none of its rows exceeds."""
        ...

    @property
    def reached(self) -> Rank:
        """Return a rank that one of its rows reaches."""
        ...

    def rows(self) -> Sequence[Row]:
        """Return the worst rows: as many as are kept, if there are so many."""
        ...


class Rows:
    """The worst of rows that were found, and of sources with so many tokens. Whoever reads it finds a tuple of rows."""

    def __init__(self, keep: int, found: tuple[Row, ...], sources: tuple[Source, ...], tokens: int) -> None:
        self._keep, self._found, self._sources, self._tokens = keep, found, sources, tokens
        if tokens > MOST_TOKENS:
            self._all()

    @classmethod
    def of(cls, keep: int, parts: Sequence[tuple[Row, ...] | Rows]) -> tuple[Row, ...] | Rows:
        """Return the worst rows of all parts; none is looked for where there are sources."""
        found = [row for part in parts for row in (part if isinstance(part, tuple) else part._found)]
        lazy = [part for part in parts if isinstance(part, Rows)]
        rows = merge_rows(found, keep) if found else ()
        if not lazy:
            return rows
        sources = tuple([source for part in lazy for source in part._sources])
        return cls(keep, rows, sources, sum([part._tokens for part in lazy]))

    def _all(self) -> tuple[Row, ...]:
        if self._sources:
            # Where as many others have a row before all of a source's, none of these is kept.
            least = sorted(source.reached for source in self._sources)[-self._keep :][0]
            found = [row for source in self._sources if source.most >= least for row in source.rows()]
            self._found, self._sources, self._tokens = merge_rows([*self._found, *found], self._keep), (), 0
        return self._found

    def __getitem__(self, index: slice) -> tuple[Row, ...]:
        return self._all()[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __eq__(self, other: object) -> bool:
        return self._all() == (other._all() if isinstance(other, Rows) else other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self._all())

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (self._all(),)
