"""Read one scalar that was downloaded from TensorBoard's page: CSV with ``Wall time``, ``Step`` and ``Value``."""

from __future__ import annotations

import re
from pathlib import Path

from pplmon.replay.read.csv_file import columns_and_rows, header
from pplmon.replay.read.reader import Cells, LogReader, by_step, step_column
from pplmon.replay.read.text import unpacked_name

COLUMNS = ["Wall time", "Step", "Value"]
_NAMED = re.compile(r"run-.*-tag-(?P<tag>.+)\.csv")  # as the page names the file


class TensorBoardExportReader(LogReader):
    """Reads TensorBoard's CSV download; the tag is in the file's name."""

    kind = "tensorboard export"
    expects = "a CSV download of TensorBoard"
    order = 37

    def matches(self, file: Path) -> bool:
        return unpacked_name(file).endswith(".csv") and header(file) == COLUMNS

    def table(self, path: Path, step: str | None) -> tuple[list[str], Cells]:
        columns, rows = columns_and_rows(path, self.left_out)
        named = _NAMED.fullmatch(unpacked_name(path))
        tag = named["tag"] if named else "Value"
        values = [{tag if name == "Value" else name: cell for name, cell in row.items()} for row in rows]
        return [tag], by_step(values, step_column(columns, step, path), self.left_out)
