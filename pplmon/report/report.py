"""The waist: ``Totals`` (host integers that add) and ``Report`` (one window's numbers and evidence).

To the left of this page stand tensors, to its right plain numbers.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from operator import add
from typing import TYPE_CHECKING, Any, Protocol

from pplmon.report import layout, saved
from pplmon.report.declared import find
from pplmon.report.histogram import Histogram
from pplmon.report.numbers import CATALOGUE, BuiltInNumbers, Value, derive, numbers_as_attributes
from pplmon.report.worst import (
    Decode,
    Row,
    WorstSequence,
    WorstToken,
    merge_rows,
    with_context,
    worst_sequence,
    worst_token,
)


class Derives(Protocol):
    """What a report needs of an extra measurement: how many integers it has, and the numbers that they give."""

    size: int

    def numbers(self, integers: Sequence[int], /) -> Mapping[str, Value]:
        """Return the extra's numbers from its integers: sums, and behind them maxima where it has some."""
        ...


class Numbers(Mapping[str, Value]):
    """The numbers of a report. A known name that was not given reads ``None``, and is not ``in`` it."""

    def __init__(self, given: Mapping[str, Value]) -> None:
        self._given = dict(given)

    def __getitem__(self, name: str) -> Value:
        if name not in self._given and find(name) is None:
            raise KeyError(name)
        return self._given.get(name)

    def __contains__(self, name: object) -> bool:
        return name in self._given

    def __hash__(self) -> int:
        return hash(frozenset(self._given.items()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)

    def __repr__(self) -> str:
        return repr(self._given)


@dataclass(frozen=True)
class Report(BuiltInNumbers):
    """The numbers of one window (train) or pass (val, test), and its worst tokens.

    Every number of pplmon's own is an attribute. A number that could not be had is ``None``, one of a window without valid
    tokens NaN. What extras measure is there, too; a type checker knows it as ``report.numbers["mean_entropy"]``.

    Attributes:
        step: the optimizer step, 0-based; a window's last.
        stage: "train", "val" or "test"; of one of several loaders "val/dataloader_idx_0".
        numbers: every number by its name.
        worst: the tokens with the largest losses over all ranks, the worst first.
        worst_sequences: the sequences with the largest mean losses, likewise.
        saturated: a sum reached its ceiling of 2^62 − 1, so the numbers are no longer right.
        ranks_missing: how many ranks of the group are not in the numbers, because they were lost.
    """

    step: int
    stage: str = "train"
    numbers: Mapping[str, Value] = field(default_factory=dict)
    worst: tuple[WorstToken, ...] = ()
    worst_sequences: tuple[WorstSequence, ...] = ()
    saturated: bool = False
    ranks_missing: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", Numbers(self.numbers))

    if not TYPE_CHECKING:  # to a type checker a name that is no number is an error

        def __getattr__(self, name: str) -> Value:
            """Return an extra's number."""
            numbers = self.__dict__.get("numbers")  # absent while a copy or a pickle is being rebuilt
            if numbers is not None and not name.startswith("__"):
                try:
                    return numbers[name]
                except KeyError:
                    pass
            names = dict.fromkeys((*CATALOGUE, *(numbers or ())))
            raise AttributeError(f"a Report has no {name!r}; its numbers are {', '.join(names)}")

    def as_dict(self) -> dict[str, float | int]:
        """Return every number that could be had, by name."""
        return {name: value for name, value in self.numbers.items() if value is not None}

    def finite(self) -> dict[str, float | int]:
        """Return what may be sent to a logger: NaN and ±inf poison its summaries for good."""
        return {name: value for name, value in self.as_dict().items() if math.isfinite(value)}

    def decoded(self, decode: Decode) -> Report:
        """Return this report with the text of its worst tokens."""
        return replace(self, worst=tuple(token.decoded(decode) for token in self.worst))


if Report.__doc__:  # python -OO leaves none
    Report.__doc__ += numbers_as_attributes()


@dataclass(frozen=True)
class Totals:
    """Integers that add: ``a + b`` are the totals of both, in any order and grouping. ``Totals()`` is the empty one."""

    sums: tuple[int, ...] = (0,) * len(layout.SUMS)
    maxima: tuple[int, ...] = (-1,) * len(layout.MAXIMA)
    histogram: Histogram = Histogram()  # noqa: RUF009  # it is frozen
    token_rows: tuple[Row, ...] = ()
    sequence_rows: tuple[Row, ...] = ()
    keep: int = 0  # rows of each kind
    extra_sums: tuple[int, ...] = ()
    extra_maxima: tuple[int, ...] = ()
    extras: tuple[Derives, ...] = field(default=(), compare=False)
    saturated: bool = False  # a sum reached its ceiling and may stand for more: the numbers are not to be trusted

    def __add__(self, other: Totals) -> Totals:
        for one, two in ((self, other), (other, self)):
            if not one.keep and not any(one.sums) and not one.token_rows:
                return two
        keep = max(self.keep, other.keep)
        _check_alike(self, other)
        return Totals(
            sums=tuple(map(add, self.sums, other.sums)),
            maxima=tuple(map(max, self.maxima, other.maxima)),
            histogram=self.histogram + other.histogram,
            token_rows=merge_rows(self.token_rows + other.token_rows, keep),
            sequence_rows=merge_rows(self.sequence_rows + other.sequence_rows, keep),
            keep=keep,
            extra_sums=tuple(map(add, self.extra_sums, other.extra_sums)),
            extra_maxima=tuple(map(max, self.extra_maxima, other.extra_maxima)),
            extras=self.extras or other.extras,
            saturated=self.saturated or other.saturated,
        )

    def __getitem__(self, cell: str) -> int:
        """Return one sum or maximum by its name in ``report.layout``."""
        return (self.sums if cell in layout.SUMS else self.maxima)[layout.place(cell)]

    def silent(self) -> Totals:
        """Return these totals without what ranks told each other: a wish to stop must not outlive its run."""
        if not any(self[name] for name in layout.SIGNALS):
            return self
        sums = tuple(0 if name in layout.SIGNALS else value for name, value in zip(layout.SUMS, self.sums))
        return replace(self, sums=sums)

    def state_dict(self) -> dict[str, Any]:
        """Return these totals as plain integers by name, for a checkpoint."""
        return {
            "version": saved.VERSION,
            "sums": dict(zip(layout.SUMS, self.sums)),
            "maxima": dict(zip(layout.MAXIMA, self.maxima)),
            "extras": saved.by_extra(self.extra_sums, self.extra_maxima, saved.sizes_of(self.extras)),
            "histogram": [*self.histogram.buckets()],
            "token_rows": [*map(list, self.token_rows)],
            "sequence_rows": [*map(list, self.sequence_rows)],
            "keep": self.keep,
            "saturated": self.saturated,
        }

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Any], extras: tuple[Derives, ...] = (), reader: saved.Reader | None = None
    ) -> Totals:
        """Return the totals that ``state_dict`` gave, with the sums of these extras; none of another version.

        ``reader`` is that of the checkpoint which they are a part of.
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
        )

    def fitted(self, keep: int, context: int) -> Totals:
        """Return these totals for a tally of other settings: its rows are cut or filled up."""
        return replace(
            self,
            token_rows=tuple(with_context(row, context) for row in self.token_rows[:keep]),
            sequence_rows=self.sequence_rows[:keep],
            keep=keep,
        )

    @property
    def empty(self) -> bool:
        """True where nothing was scored: there is nothing to judge or to show."""
        return not (self["tokens"] or self["nonfinite_tokens"] or self["invalid_targets"])

    def numbers(self) -> dict[str, Value]:
        """Return every number that the totals give."""
        given: dict[str, Value] = dict(
            derive(
                dict(zip(layout.SUMS, self.sums)),
                dict(zip(layout.MAXIMA, self.maxima)),
                self.histogram,
            )
        )
        sums, maxima = iter(self.extra_sums), iter(self.extra_maxima)
        for extra in self.extras:
            size = saved.size_of(extra)
            given.update(_numbers_of(extra, (*islice(sums, size.sums), *islice(maxima, size.maxima))))
        return given

    def report(
        self, step: int = 0, stage: str = "train", tokens_seen: int | None = None, evidence: bool = True
    ) -> Report:
        """Return the report of these totals. ``tokens_seen`` is the run's count, which no window knows."""
        return Report(
            step=step,
            stage=stage,
            numbers={**self.numbers(), "tokens_seen": tokens_seen},
            worst=tuple(map(worst_token, self.token_rows)) if evidence else (),
            worst_sequences=tuple(map(worst_sequence, self.sequence_rows)) if evidence else (),
            saturated=self.saturated,
        )


def _check_alike(one: Totals, two: Totals) -> None:
    """Raise where two totals hold integers of unlike extras."""
    if one.extras is not two.extras and saved.sizes_of(one.extras) != saved.sizes_of(two.extras):
        names = [", ".join(saved.sizes_of(totals.extras)) or "none" for totals in (one, two)]
        raise ValueError(
            f"totals of unlike extras do not add: {names[0]} and {names[1]}; give both tallies the same extras"
        )


def _numbers_of(extra: Derives, integers: Sequence[int]) -> Mapping[str, Value]:
    """An extra's numbers; none where it fails, for a number that cannot be had must not end a run."""
    try:
        return extra.numbers(integers)
    except Exception as error:
        warnings.warn(
            f"pplmon: {type(extra).__name__}.numbers failed: {type(error).__name__}: {error}; its numbers are left out",
            RuntimeWarning,
            stacklevel=2,
        )
        return {}
