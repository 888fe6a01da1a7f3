"""``Totals``: host integers that can be added, and the reports made from them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Protocol

from pplmon.report import layout, saved
from pplmon.report.formulas import Window
from pplmon.report.histogram import Histogram, added
from pplmon.report.numbers import Value
from pplmon.report.own import larger
from pplmon.report.report import Numbers, Report
from pplmon.report.rows import Rows
from pplmon.report.worst import Row, with_context, worst_sequence, worst_token


class Derives(Protocol):
    """The part of an extra that a report needs: the count of its integers, and the numbers made from them."""

    size: int

    def numbers(self, integers: Sequence[int], /) -> Mapping[str, Value]:
        """Return the extra's numbers from its integers: its sums, followed by its maxima if it has some."""
        ...


@dataclass(frozen=True)
class Totals:
    """Integers that can be added: ``a + b`` are those of both, in any order and grouping. ``Totals()`` is empty."""

    sums: tuple[int, ...] = (0,) * len(layout.SUMS)
    maxima: tuple[int, ...] = (-1,) * len(layout.MAXIMA)
    histogram: Histogram = Histogram()  # noqa: RUF009  # it is frozen
    token_rows: tuple[Row, ...] | Rows = ()
    sequence_rows: tuple[Row, ...] | Rows = ()
    keep: int = 0  # rows of each kind
    extra_sums: tuple[int, ...] = ()
    extra_maxima: tuple[int, ...] = ()
    extras: tuple[Derives, ...] = field(default=(), compare=False)
    saturated: bool = False  # a sum reached its ceiling and may be too low: the numbers are not to be trusted
    own: Mapping[str, float] = field(default_factory=dict)  # numbers that the user logged: the largest of each

    def __add__(self, other: Totals) -> Totals:
        return Totals.sum((self, other))

    @classmethod
    def sum(cls, parts: Sequence[Totals]) -> Totals:
        """Return the totals of all parts; of many at once that takes half the time."""
        parts = [part for part in parts if part.keep or any(part.sums) or part.token_rows or part.own] or parts[-1:]
        if len(parts) < 2:
            return parts[0] if parts else cls()
        keep = max(part.keep for part in parts)
        for part in parts[1:]:
            _check_alike(parts[0], part)
        return cls(
            sums=added([part.sums for part in parts]),
            maxima=tuple(map(max, *(part.maxima for part in parts))),
            histogram=Histogram.sum([part.histogram for part in parts]),
            token_rows=Rows.of(keep, [part.token_rows for part in parts]),
            sequence_rows=Rows.of(keep, [part.sequence_rows for part in parts]),
            keep=keep,
            extra_sums=added([part.extra_sums for part in parts]),
            extra_maxima=tuple(map(max, *(part.extra_maxima for part in parts))),
            extras=next((part.extras for part in parts if part.extras), ()),
            saturated=any(part.saturated for part in parts),
            own=reduce(larger, (part.own for part in parts if part.own), {}),
        )

    def __getitem__(self, cell: str) -> int:
        """Return one sum or maximum by its name in ``report.layout``."""
        place = layout.SUM_PLACES.get(cell)
        return self.maxima[layout.place(cell)] if place is None else self.sums[place]

    def silent(self) -> Totals:
        """Return these totals without the ranks' messages to each other: a request to stop must not outlive its run."""
        if not any(map(self.__getitem__, layout.SIGNALS)):
            return self
        sums = tuple(0 if name in layout.SIGNALS else value for name, value in zip(layout.SUMS, self.sums))
        return replace(self, sums=sums)

    def state_dict(self) -> dict[str, Any]:
        """Return these totals as plain integers by name, for a checkpoint."""
        return {
            "version": saved.VERSION,
            "sums": dict(zip(layout.SUMS, self.sums)),
            "maxima": dict(zip(layout.MAXIMA, self.maxima)),
            "extras": self.integers(),
            "histogram": [*self.histogram.buckets()],
            "token_rows": [*map(list, self.token_rows)],
            "sequence_rows": [*map(list, self.sequence_rows)],
            "keep": self.keep,
            "saturated": self.saturated,
            "own": dict(self.own),
        }

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Any], extras: tuple[Derives, ...] = (), reader: saved.Reader | None = None
    ) -> Totals:
        """Return the totals in a ``state_dict``, with the sums of these extras; empty ones if it cannot be read.

        ``reader`` reads the checkpoint that they are a part of.
        """
        if not saved.is_readable(state.get("version")):
            return cls()
        if reader is None:
            with saved.reading() as own:
                return cls.from_state_dict(state, extras, own)
        extra_sums, extra_maxima = reader.extras(state["extras"], saved.sizes_of(extras))
        return cls(
            sums=reader.ints(state["sums"], layout.SUMS, 0),
            maxima=reader.ints(state["maxima"], layout.MAXIMA, -1),
            histogram=Histogram.of(state["histogram"]),
            token_rows=tuple(map(tuple, state["token_rows"])),
            sequence_rows=tuple(map(tuple, state["sequence_rows"])),
            keep=state["keep"],
            extra_sums=extra_sums,
            extra_maxima=extra_maxima,
            extras=extras,
            saturated=state["saturated"],
            own=dict(state.get("own", {})),  # a checkpoint of version 0.1 has none
        )

    def fitted(self, keep: int, context: int) -> Totals:
        """Return these totals for a tally of other settings: fewer rows, and their context cut or filled up."""
        return replace(
            self,
            token_rows=tuple(with_context(row, context) for row in self.token_rows[:keep]),
            sequence_rows=self.sequence_rows[:keep],
            keep=keep,
        )

    @property
    def empty(self) -> bool:
        """Return True if nothing was scored, so that there is nothing to judge or to show."""
        return not (self["tokens"] or self["nonfinite_tokens"] or self["invalid_targets"])

    def numbers(self, before: Totals | None = None) -> dict[str, Value]:
        """Return every number that the totals give; with those of the pass before also what extras compare."""
        return dict(Numbers(self._of_extras(before), self._window()))

    def _window(self) -> Window:
        return Window(dict(zip(layout.SUMS, self.sums)), dict(zip(layout.MAXIMA, self.maxima)), self.histogram)

    def _of_extras(self, before: Totals | None) -> dict[str, Value]:
        given: dict[str, Value] = {}
        if self.extras:
            earlier = {} if before is None else before.integers()
            for extra, (name, integers) in zip(self.extras, self.integers().items()):
                given.update(_numbers_of(extra, integers, earlier.get(name)))
        return given

    def integers(self) -> dict[str, list[int]]:
        """Return the integers of each extra, its sums and then its maxima, by the extra's name."""
        return saved.by_extra(self.extra_sums, self.extra_maxima, saved.sizes_of(self.extras))

    def report(
        self,
        step: int = 0,
        stage: str = "train",
        tokens_seen: int | None = None,
        evidence: bool = True,
        before: Totals | None = None,
    ) -> Report:
        """Return the report of these totals.

        ``tokens_seen`` is the count of the whole run; ``before`` the totals of the pass before, for extras that
        compare two.
        """
        return Report(
            step=step,
            stage=stage,
            numbers=Numbers({**self._of_extras(before), "tokens_seen": tokens_seen, **self.own}, self._window()),
            own=tuple(self.own),
            worst=tuple(map(worst_token, self.token_rows)) if evidence else (),
            worst_sequences=tuple(map(worst_sequence, self.sequence_rows)) if evidence else (),
            saturated=self.saturated,
            histogram=self.histogram,
        )


def _check_alike(one: Totals, two: Totals) -> None:
    """Raise if two totals hold integers of different extras."""
    if one.extras is not two.extras and saved.sizes_of(one.extras) != saved.sizes_of(two.extras):
        names = [", ".join(saved.sizes_of(totals.extras)) or "none" for totals in (one, two)]
        raise ValueError(
            f"totals of unlike extras do not add: {names[0]} and {names[1]}; give both tallies the same extras"
        )


def _numbers_of(extra: Derives, integers: Sequence[int], before: Sequence[int] | None) -> Mapping[str, Value]:
    """An extra's numbers; none where it fails, for a number that cannot be had must not end a run."""
    try:
        compare = getattr(extra, "compare", None)
        return {**extra.numbers(integers), **({} if before is None or compare is None else compare(integers, before))}
    except Exception as error:
        warnings.warn(
            f"pplmon: {type(extra).__name__}.numbers failed: {type(error).__name__}: {error}; its numbers are left out",
            RuntimeWarning,
            stacklevel=2,
        )
        return {}
