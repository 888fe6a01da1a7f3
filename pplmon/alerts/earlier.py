"""The rows of an earlier run, to be found by the tokens that were seen, or by the step."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Mapping
from itertools import islice

from pplmon.report.report import Report

SEEN = "tokens_seen"


class Earlier:
    """The judged numbers of an earlier run, in training.

    Where both runs count their tokens, a report's row is the one after as many tokens: so runs of other step numbers fit.
    Else, and until a first count of tokens is found, it is the one of the same step.
    """

    def __init__(self, rows: Iterable[tuple[int, Mapping[str, float | int | None]]]) -> None:
        """Keep rows, (step, numbers); of a repeated step the last."""
        self._by_step: dict[int, Mapping[str, float | int | None]] = dict(rows)
        seen = ((row.get(SEEN), row) for row in self._by_step.values())
        self._by_tokens = {tokens: row for tokens, row in seen if tokens is not None}
        self.by = "steps"

    def __len__(self) -> int:
        return len(self._by_step)

    def at(self, report: Report) -> Mapping[str, float | int | None] | None:
        """Return the numbers that belong to a report's; ``None`` where the earlier run has none."""
        tokens = report.numbers.get(SEEN) if self._by_tokens else None
        row = None if tokens is None else self._by_tokens.get(tokens)
        if row is not None:
            self.by = "tokens"
        return self._by_step.get(report.step) if row is None and self.by == "steps" else row

    def pack(self) -> bytes:
        """Return all rows as bytes, to be sent to other ranks."""
        names = sorted({name for row in self._by_step.values() for name in row})
        cells = array("d")
        for step, row in self._by_step.items():
            cells.append(step)
            cells.extend(math.nan if (value := row.get(name)) is None else value for name in names)
        return json.dumps(names).encode() + b"\n" + cells.tobytes()

    @classmethod
    def unpack(cls, packed: bytes) -> Earlier:
        """Return the rows that ``pack`` gave; a number that a row lacks is NaN there."""
        head, _, body = packed.partition(b"\n")
        names, cells = json.loads(head), array("d")
        cells.frombytes(body)
        values = iter(cells)
        return cls((int(step), dict(zip(names, islice(values, len(names))))) for step in values)
