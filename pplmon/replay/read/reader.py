"""``Reader``, the base of classes that read one format. A new file in this folder is found automatically."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pplmon.replay.read.columns import Place, choose, number, rows_of
from pplmon.replay.read.loss_names import steps_among
from pplmon.replay.read.series import ReplayError, Segment, Series
from pplmon.report.discover import classes_in, subclasses_of
from pplmon.sinks.journal_rows import LARGEST
from pplmon.sinks.left_out import LeftOut

_GROUPED = re.compile(r"\d{1,3}(,\d{3})+")  # "12,000", which as a step is no decimal comma

Cells = Iterable[tuple[int, Mapping[str, Any]]]


class Reader:
    """Reads one format: recognises its files, and turns them into a series.

    Attributes:
        kind: the name of the format in messages.
        pattern: the glob pattern of its files, to find them in a directory; "" for files that have to be named.
        expects: a description of the files that it reads, for messages.
        order: of two readers that take one file, or find something in one directory, the one with the lower order reads it.
    """

    kind = ""
    pattern = ""
    expects = ""
    order = 50

    @cached_property
    def left_out(self) -> LeftOut:
        """Return the count of what was passed over, which notes tell."""
        return LeftOut()

    def matches(self, file: Path) -> bool:
        """Return True for a file of this format, by its name, and where that leaves it open by its first lines."""
        return file.match(self.pattern)

    def place(self, file: Path) -> Path:
        """Return the path to read where ``file`` was found in a directory: the file, unless a run has several."""
        return file

    def read(self, path: Path, mapped: Mapping[str, Place], step: str | None) -> Series:
        """Return the series.

        Args:
            path: a path that ``matches`` accepted or ``place`` returned.
            mapped: column -> (stage, name), from the user.
            step: the column that counts optimizer steps, from the user.

        Raises:
            ReplayError: there is nothing to read, or needed columns are missing.
        """
        raise NotImplementedError

    def read_run(self, path: Path, run: str) -> Series:
        """Return one of several runs in a file, by its name.

        Raises:
            ReplayError: it is not there, or the format has no names of runs.
        """
        raise ReplayError(f"--run names a run in a journal, and {path} is none ({self.kind}); leave it out")


class LogReader(Reader):
    """The base of readers of logs with columns: a subclass gives the table, this one picks the numbers."""

    def table(self, path: Path, step: str | None) -> tuple[list[str], Cells]:
        """Return the names of the columns, and rows as (step, {column: value}).

        Raises:
            ValueError: the file cannot be read.
        """
        raise NotImplementedError

    def chosen(self, columns: Sequence[str], mapped: Mapping[str, Place]) -> Mapping[str, Place]:
        """Return the user's mapping, or a more exact one where the format itself tells what a column is."""
        return mapped

    def notes(self, path: Path) -> list[str]:
        """Return further notes for the user."""
        return []

    def read(self, path: Path, mapped: Mapping[str, Place], step: str | None) -> Series:
        """Choose the columns that hold known numbers, and return their rows."""
        try:
            columns, cells = self.table(path, step)
        except ReplayError:
            raise
        except ValueError as error:
            raise ReplayError(str(error)) from None
        chosen, notes = choose(columns, self.chosen(columns, mapped))
        rows = rows_of(cells, chosen, self.left_out)
        if not rows:
            have = f"its columns are {', '.join(columns)}; say --map COLUMN=cross_entropy" if columns else "it is empty"
            raise ReplayError(". ".join([f"{path} has no number of pplmon's: {have}", *self.left_out.notes()]))
        notes += [*self.notes(path), *self.left_out.notes()]
        return Series(path, self.kind, [Segment(rows)], columns=tuple(columns), notes=notes)


def readers() -> list[Reader]:
    """Return one reader for each known format, the most exact first."""
    classes_in("pplmon.replay.read", Reader)
    return sorted((kind() for kind in subclasses_of(Reader) if kind.kind), key=lambda reader: reader.order)


def step_column(columns: list[str], wanted: str | None, path: Path) -> str:
    """Return the column that counts steps.

    Raises:
        ReplayError: there is none.
    """
    found = (wanted if wanted in columns else None) if wanted else steps_among(columns)
    if found is None:
        raise ReplayError(
            f"{path} has no column {wanted or 'step, global_step, iteration or iter'} that counts steps; name it with "
            f"--step. It has {', '.join(columns) or 'none'}"
        )
    return found


def by_step(rows: Iterable[Mapping[str, Any]], column: str, left_out: LeftOut) -> Cells:
    """Return rows with the step in their column; rows without a step are left out and counted."""
    for row in rows:
        step = _whole(row.get(column))
        if step is None:
            left_out.add(f"a row whose {column} is no whole number of at least 0", row.get(column))
        else:
            yield step, row


def _whole(value: Any) -> int | None:
    if isinstance(value, str) and _GROUPED.fullmatch(value.strip()):
        value = value.replace(",", "")
    found = number(value)
    if found is None or not 0 <= found < LARGEST or found != int(found):
        return None
    return int(found)
