"""``Series``: the rows that a replay judges, each (step, stage, numbers), in the order in which rules saw them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import median_low
from typing import Any

from pplmon.report.declared import find
from pplmon.report.numbers import Value
from pplmon.report.report import Report


class ReplayError(ValueError):
    """An error in the user's arguments or files; its text says what was expected, what came, and the likely fix."""


class Given(dict[str, Value]):
    """The numbers of a row: a known name that was not given reads ``None``, as in any report."""

    def __missing__(self, name: str) -> Value:
        if find(name) is None:
            raise KeyError(name)
        return None


class Noted(Given):
    """Numbers that record which known names were read although they are missing."""

    def __init__(self, given: Mapping[str, Value], missed: set[str]) -> None:
        super().__init__(given)
        self._missed = missed

    def __missing__(self, name: str) -> Value:
        value = super().__missing__(name)
        self._missed.add(name)
        return value


class Row(Report):
    """A report without evidence, made from a row of a journal or log in a fraction of a microsecond."""

    def __init__(self, step: int, stage: str, numbers: Given) -> None:
        # Fields of a frozen dataclass cannot be assigned; this also skips its copy of the numbers.
        self.__dict__.update(step=step, stage=stage, numbers=numbers)


@dataclass
class Segment:
    """The rows of one process. A resumed run appends a segment that may repeat steps."""

    rows: list[Row] = field(default_factory=list)
    rules: tuple[str, ...] | None = None  # the live rules' texts, where they are known
    resumed_at: int | None = None  # the step at which it went on; None: it began anew
    memory: Mapping[str, Any] | None = None  # the states that the live rules began with
    cut_at: int | None = None  # the last step of what was taken out of the file before these rows


@dataclass
class Series:
    """The rows of a run, or of several runs one after the other, for a replay."""

    path: Path
    kind: str  # the reader's: "journal", "csv", …
    segments: list[Segment]
    live: list[dict[str, Any]] = field(default_factory=list)  # the journal's alerts, every one
    reported: frozenset[tuple[str, str]] = frozenset()  # (stage, name) in the journal's reports, judged or not
    columns: tuple[str, ...] = ()  # all that the file has, known numbers or not
    notes: list[str] = field(default_factory=list)  # notes for the user

    def rows(self) -> Iterator[Row]:
        """Return every row, in order."""
        for segment in self.segments:
            yield from segment.rows

    @cached_property
    def runs(self) -> list[list[Row]]:
        """Return each run's rows, without those that a resumed process repeated."""
        runs: list[list[Row]] = []
        for segment in self.segments:
            if segment.resumed_at is None or not runs:
                runs.append(list(segment.rows))
            else:
                kept = [row for row in runs[-1] if row.step < segment.resumed_at]
                runs[-1] = kept + segment.rows
        return [rows for rows in runs if rows]

    def spans(self) -> list[tuple[int, int]]:
        """Return the first and last step of each run, both included."""
        return [(min(row.step for row in rows), max(row.step for row in rows)) for rows in self.runs]

    def spacing(self) -> int:
        """Return the median distance of rows of train (else of any stage), in optimizer steps."""
        rows = [row for run in self.runs for row in run]
        steps = [row.step for row in rows if row.stage == "train"] or [row.step for row in rows]
        gaps = [b - a for a, b in pairwise(steps) if b > a]
        return median_low(gaps) if gaps else 1

    def numbers(self) -> set[tuple[str, str]]:
        """Return every (stage, name) that any row has."""
        return names_of(self.rows())


def names_of(rows: Iterable[Row]) -> set[tuple[str, str]]:
    """Return every (stage, name) that any of the rows has."""
    found: dict[str, set[str]] = {}
    for row in rows:
        known = found.setdefault(row.stage, set())
        if not row.numbers.keys() <= known:
            known.update(row.numbers)
    return {(stage, name) for stage, names in found.items() for name in names}
