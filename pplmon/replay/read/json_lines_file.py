"""Read a log with a JSON object in each line, ``metrics.jsonl`` say; what is nested is named with a ``/``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pplmon.replay.read.reader import Cells, LogReader, by_step, step_column
from pplmon.replay.read.text import lines, unpacked_name
from pplmon.sinks.json_lines import objects

DEEPEST = 8  # levels that are looked into


class JsonLinesReader(LogReader):
    """Reads lines of JSON, each with a step."""

    kind = "json lines"
    pattern = "metrics.jsonl"
    expects = ".jsonl (a log)"
    order = 43

    def matches(self, file: Path) -> bool:
        return unpacked_name(file).endswith((".jsonl", ".ndjson"))

    def table(self, path: Path, step: str | None) -> tuple[list[str], Cells]:
        rows = [flat(row) for row in objects(lines(path), self.left_out)]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        column = step_column(columns, step, path)
        return [name for name in columns if name not in (column, "epoch")], by_step(rows, column, self.left_out)


def flat(row: Mapping[str, Any], above: str = "", depth: int = 0) -> dict[str, Any]:
    """Return the values of an object and of those in it, ``{"train": {"loss": 2}}`` as ``{"train/loss": 2}``."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping) and depth < DEEPEST:
            found.update(flat(value, f"{above}{name}/", depth + 1))
        else:
            found[f"{above}{name}"] = value
    return found
