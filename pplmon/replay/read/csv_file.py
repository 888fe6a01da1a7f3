"""CSV: Lightning's ``metrics.csv``, or any file with a line of column names and a row for each step.

Columns may be separated by commas, semicolons or tabs, and numbers may have decimal commas.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from pplmon.replay.read.reader import Cells, LogReader, by_step, step_column
from pplmon.replay.read.series import ReplayError
from pplmon.replay.read.text import head, lines, unpacked_name
from pplmon.sinks.left_out import LeftOut

SEPARATORS = ",;\t"


class CsvReader(LogReader):
    """Reads a CSV file: Lightning's in a directory, any other by its own path."""

    kind = "csv"
    pattern = "metrics.csv"
    expects = ".csv, .tsv"
    order = 40

    def matches(self, file: Path) -> bool:
        return unpacked_name(file).endswith((".csv", ".tsv"))

    def table(self, path: Path, step: str | None) -> tuple[list[str], Cells]:
        columns, rows = columns_and_rows(path, self.left_out)
        column = step_column(columns, step, path)
        return [name for name in columns if name not in (column, "epoch")], by_step(rows, column, self.left_out)


def columns_and_rows(path: Path, left_out: LeftOut) -> tuple[list[str], list[dict[str, str]]]:
    """Return the names of the columns of a CSV file, and its rows.

    Each line is read by itself, so that a quote without its end costs one row and not the rest of the file.

    Raises:
        ReplayError: there is no row.
    """
    found = _cells(path, left_out)
    columns = next(found, [])
    rows = [dict(zip(columns, cells)) for cells in found if any(cells)]
    if not any(columns) or not rows:
        raise ReplayError(
            f"{path} is empty: expected a line of column names, one of them 'step', and a line for each step"
        )
    return [name for name in columns if name], rows


def header(path: Path) -> list[str]:
    """Return the names of the columns, by which a reader recognises its format."""
    return next(_split(head(path), LeftOut()), [])


def _cells(path: Path, left_out: LeftOut) -> Iterator[list[str]]:
    return _split(lines(path), left_out)


def _split(text: Iterator[str] | list[str], left_out: LeftOut) -> Iterator[list[str]]:
    separator = ""
    for line in text:
        if not line.strip():
            continue
        separator = separator or max(SEPARATORS, key=line.count)
        try:
            yield [cell.strip() for cell in next(csv.reader([line.rstrip("\r\n")], delimiter=separator))]
        except csv.Error as error:  # a field beyond the limit of Python's reader, or a NUL before Python 3.11
            left_out.add("a line that is no CSV", error)
