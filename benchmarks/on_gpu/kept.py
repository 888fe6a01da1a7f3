"""Results of one part, on the disk as soon as they are known: a part that fails or is stopped later has kept them."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Kept:
    """Results, tables and errors of one part."""

    def __init__(self, file: Path, seconds: float) -> None:
        self._file, self._until = file, time.monotonic() + seconds
        self.content: dict[str, Any] = {"found": {}, "tables": {}, "errors": []}
        self._write()

    @property
    def errors(self) -> list[dict[str, str]]:
        """Return the errors so far, step by step."""
        return self.content["errors"]  # type: ignore[no-any-return]

    def left_s(self) -> float:
        """Return the seconds until the part's limit."""
        return self._until - time.monotonic()

    def keep(self, name: str, value: Any) -> None:
        """Keep one result; a later one of the same name replaces it."""
        self.content["found"][name] = value
        self._write()

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Keep a table as Markdown."""
        lines = [columns, ["-"] * len(columns), *rows]
        self.content["tables"][title] = "\n".join(
            "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
        )
        self._write()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Note an exception within, and let the next step go on."""
        try:
            yield
        except Exception as error:
            where = "".join(traceback.format_tb(error.__traceback__)[-3:])
            self.errors.append(
                {"step": name, "error": f"{type(error).__name__}: {error}"[:1000], "where": where[-1500:]}
            )
            self._write()

    def _write(self) -> None:
        beside = self._file.with_suffix(".new")
        beside.write_text(json.dumps(self.content, default=str), encoding="utf-8")
        beside.replace(self._file)  # whoever reads it while this is killed finds the last that was whole
