"""CSV: Lightning's ``metrics.csv``, or any file with a line of column names and a row for each step."""

from __future__ import annotations

import csv
from pathlib import Path

from pplmon.replay.read.reader import Cells, LogReader, by_step, step_column
from pplmon.replay.read.series import ReplayError


class CsvReader(LogReader):
    """Reads a CSV file: Lightning's in a directory, any other by its own path."""

    kind = "csv"
    pattern = "metrics.csv"
    expects = ".csv"
    order = 40

    def matches(self, file: Path) -> bool:
        return file.suffix == ".csv"

    def table(self, path: Path, step: str | None) -> tuple[list[str], Cells]:
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if any(row.values())]
        columns = [name for name in reader.fieldnames or () if name]
        if not columns or not rows:
            raise ReplayError(
                f"{path} is empty: expected a line of column names, one of them 'step', and a line for each step"
            )
        column = step_column(columns, step, path)
        return [name for name in columns if name not in (column, "epoch")], by_step(rows, column)
