"""What a replay judges: rows of (step, stage, numbers), in the order in which the rules saw them."""

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
    """Something that the user gave does not fit: what was expected, what came, and the likely fix."""


class Given(dict[str, Value]):
    """The numbers of a row: a known name that was not given reads ``None``, as in any report."""

    def __missing__(self, name: str) -> Value:
        if find(name) is None:
            raise KeyError(name)
        return None


class Noted(Given):
    """Numbers that put on record which known names were asked for in vain."""

    def __init__(self, given: Mapping[str, Value], missed: set[str]) -> None:
        super().__init__(given)
        self._missed = missed

    def __missing__(self, name: str) -> Value:
        value = super().__missing__(name)
        self._missed.add(name)
        return value


class Row(Report):
    """A report that is made in a fraction of a microsecond: of what a journal or a log kept, without evidence."""

    def __init__(self, step: int, stage: str, numbers: Given) -> None:
        # A frozen dataclass cannot be assigned to; this also leaves out its copy of the numbers.
        self.__dict__.update(step=step, stage=stage, numbers=numbers)


@dataclass
class Segment:
    """One process's rows: a resumed run appends a segment that repeats steps."""

    rows: list[Row] = field(default_factory=list)
    rules: tuple[str, ...] | None = None  # the live rules' texts, where they are known
    resumed_at: int | None = None  # the step at which it went on; None: it began anew
    memory: Mapping[str, Any] | None = None  # what the live rules remembered of what came before


@dataclass
class Series:
    """A run (or several, one after the other) as a replay sees it."""

    path: Path
    kind: str  # "journal", "tensorboard", "wandb" or "csv"
    segments: list[Segment]
    live: list[dict[str, Any]] = field(default_factory=list)  # the journal's alerts, every one
    reported: frozenset[tuple[str, str]] = frozenset()  # (stage, name) in the journal's reports, judged or not
    columns: tuple[str, ...] = ()  # what the file has, ours or not
    notes: list[str] = field(default_factory=list)  # for the user to read

    def rows(self) -> Iterator[Row]:
        """Every row, in order."""
        for segment in self.segments:
            yield from segment.rows

    @cached_property
    def runs(self) -> list[list[Row]]:
        """Each run's rows without those that a resumed process repeated."""
        runs: list[list[Row]] = []
        for segment in self.segments:
            if segment.resumed_at is None or not runs:
                runs.append(list(segment.rows))
            else:
                kept = [row for row in runs[-1] if row.step < segment.resumed_at]
                runs[-1] = kept + segment.rows
        return [rows for rows in runs if rows]

    def spans(self) -> list[tuple[int, int]]:
        """First and last step of each run, both included."""
        return [(min(row.step for row in rows), max(row.step for row in rows)) for rows in self.runs]

    def spacing(self) -> int:
        """The usual distance between two rows of train (of any stage where there is none), in optimizer steps."""
        rows = [row for run in self.runs for row in run]
        steps = [row.step for row in rows if row.stage == "train"] or [row.step for row in rows]
        gaps = [b - a for a, b in pairwise(steps) if b > a]
        return median_low(gaps) if gaps else 1

    def numbers(self) -> set[tuple[str, str]]:
        """Every (stage, name) that any row has."""
        return names_of(self.rows())


def names_of(rows: Iterable[Row]) -> set[tuple[str, str]]:
    """Return every (stage, name) that any of the rows has."""
    found: dict[str, set[str]] = {}
    for row in rows:
        known = found.setdefault(row.stage, set())
        if not row.numbers.keys() <= known:
            known.update(row.numbers)
    return {(stage, name) for stage, names in found.items() for name in names}
