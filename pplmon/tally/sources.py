"""Counted batches among which a read-out finds its worst rows, once somebody reads these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from pplmon.report import layout
from pplmon.report.rows import Rank, Rows
from pplmon.report.worst import Row
from pplmon.tally.count import worst
from pplmon.tally.count.numpy_or_torch import Array, OnNumpy

_XP = OnNumpy()
Keep = Callable[[OnNumpy, Array, worst.Evidence], None]  # keeps the worst in rows [K, C]


class Source:
    """Counted tokens, among which the worst rows can be found (see ``report.rows``)."""

    def __init__(self, evidence: worst.Evidence, losses: Array, shape: tuple[int, int], keep: Keep) -> None:
        self._evidence, self._losses, self._shape, self._keep = evidence, losses, shape, keep

    @property
    def most(self) -> Rank:
        return int(self._losses.max()), -self._evidence.earliest

    @property
    def reached(self) -> Rank:
        return int(self._losses.max()), -self._evidence.latest

    def rows(self) -> list[Row]:
        cells = _XP.full(self._shape, -1)
        self._keep(_XP, cells, self._evidence)
        return [tuple(row) for row in cells.tolist() if row[0] >= 0]


def with_tokens(found: tuple[Row, ...], evidence: Sequence[worst.Evidence], keep: int, columns: int) -> Rows:
    """Return the worst rows of those found and of these tokens."""
    find = partial(worst.keep_tokens, context=(columns - layout.TOKEN_COLUMNS) // 2)
    sources = [Source(e, e.bits, (keep, columns), find) for e in evidence]
    return Rows(keep, found, tuple(sources), _tokens(evidence))


def with_sequences(found: tuple[Row, ...], evidence: Sequence[worst.Evidence], keep: int) -> Rows:
    """Return the worst rows of those found and of the sequences of these tokens."""
    shape = keep, layout.SEQUENCE_COLUMNS
    sums = [(e, e.per_sequence) for e in evidence]
    sources = [Source(e, s.mean_units, shape, worst.keep_sequences) for e, s in sums if s is not None]
    return Rows(keep, found, tuple(sources), _tokens(evidence))


def _tokens(evidence: Sequence[worst.Evidence]) -> int:
    return sum([e.columns.size for e in evidence])
