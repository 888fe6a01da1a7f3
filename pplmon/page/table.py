"""The numbers of one stage of a run as columns over steps, and the few rows of them that a picture needs."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pplmon.report.numbers import Value

BINS = 1200  # about as many as a wide chart has pixels


@dataclass(frozen=True)
class Table:
    """Columns over steps, in the order of steps. NaN stands where a row lacks a number."""

    steps: list[int]
    columns: dict[str, list[float]]
    rows: int  # how many there were before any were left out
    _known: dict[str, list[tuple[int, float]]] = field(default_factory=dict, repr=False, compare=False)  # see points

    @classmethod
    def of(cls, rows: Mapping[int, Mapping[str, Value]], names: Iterable[str]) -> Table:
        """Return the columns ``names`` of rows by step; a column without any value is left out."""
        steps = sorted(rows)
        ordered = [rows[step] for step in steps]
        columns = {name: [_float(row.get(name)) for row in ordered] for name in names}
        filled = {name: column for name, column in columns.items() if any(v == v for v in column)}  # noqa: PLR0124 - NaN
        return cls(steps, filled, len(steps))

    def points(self, name: str) -> list[tuple[int, float]]:
        """Return (step, value) wherever the number is known."""
        if name not in self._known:
            column = self.columns.get(name, ())
            self._known[name] = [(step, v) for step, v in zip(self.steps, column) if v == v]  # noqa: PLR0124 - NaN
        return self._known[name]

    def thinned(self, keep_steps: Collection[int] = (), bins: int = BINS) -> Table:
        """Return the rows in which some column has its least or largest value of a bin, and those of ``keep_steps``.

        So every line has its extremes at the width of a screen, and every row that is left is a true one.
        """
        count = len(self.steps)
        if count <= 2 * bins:
            return self
        kept = {0, count - 1} | {i for i, step in enumerate(self.steps) if step in keep_steps}
        bounds = [(b * count // bins, (b + 1) * count // bins) for b in range(bins)]
        for column in self.columns.values():
            for low, high in bounds:
                kept.update(_extremes(column, low, high))
        order = sorted(kept)
        columns = {name: [column[i] for i in order] for name, column in self.columns.items()}
        return Table([self.steps[i] for i in order], columns, self.rows)


def tokens_at(train: Table, steps: Sequence[int]) -> list[float]:
    """Return the tokens that the run had trained on by each step; none where the journal does not say."""
    seen = train.points("tokens_seen")
    if not seen:
        return []
    at = [step for step, _ in seen]
    places = [bisect_right(at, step) - 1 for step in steps]
    return [seen[place][1] if place >= 0 else 0.0 for place in places]


def _extremes(column: Sequence[float], low: int, high: int) -> list[int]:
    part = column[low:high]
    known = [value for value in part if value == value]  # noqa: PLR0124 - NaN
    return [low + part.index(min(known)), low + part.index(max(known))] if known else []


def _float(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan
