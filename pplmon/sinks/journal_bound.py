"""Keep a journal within a size: the oldest judged rows go, and what replay needs to go on from there stays."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MARKS = 8  # in a file as large as the bound: places where it can be cut
KEPT = 0.75  # of the bound, after a cut
LEAST = 1.0  # megabytes: a mark takes tens of kilobytes, for the states of a dozen rules
MARK, CUT = b'{"kind": "mark"', b'{"kind": "cut"'
JUDGED = b'{"kind": "judged"'


def check_bound(megabytes: float | None) -> int | None:
    """Return the bound in bytes.

    Raises:
        ValueError: it is less than a journal needs.
    """
    if megabytes is None:
        return None
    if not megabytes >= LEAST:
        raise ValueError(
            f"max_megabytes has to be at least {LEAST:g}, got {megabytes!r}; None keeps every row (630 bytes a read-out)"
        )
    return int(megabytes * 1e6)


@dataclass
class Bound:
    """Tells when to mark the states of rules in a journal, and when to cut it."""

    bytes: int
    _next_mark: int = 0
    _next_cut: int = 0

    def __post_init__(self) -> None:
        self._next_cut = self.bytes

    def marks(self, size: int) -> bool:
        """Return True if the rules' states are to be written at this size of the file."""
        if size < self._next_mark:
            return False
        self._next_mark = size + self.bytes // MARKS
        return True

    def cuts(self, size: int) -> bool:
        """Return True if a file of this size is to be cut."""
        return size > self._next_cut

    def cut(self, path: Path, prefix: str) -> None:
        """Cut a file, and wait until it has grown again: reports and alerts, which stay, may fill the bound by themselves."""
        cut(path, prefix, int(KEPT * self.bytes))
        size = path.stat().st_size
        self._next_mark = size + self.bytes // MARKS
        self._next_cut = max(self.bytes, size + int((1 - KEPT) * self.bytes))


def cut(path: Path, prefix: str, most: int) -> None:
    """Leave out the judged rows of one monitor before a mark: the first that makes the file small enough, else the last but one.

    The file is replaced at once or not at all: a kill leaves the one or the other.
    """
    with open(path, "rb") as file:
        place = _place(file, prefix, most, path.stat().st_size)
    if place is None:
        return
    whole = path.with_name(f"{path.name}.tmp")
    with open(path, "rb") as file, open(whole, "wb") as kept:
        for number, line in enumerate(file):
            if number == place:
                kept.write(CUT + line[len(MARK) :])
            elif number > place or not _goes(line, prefix):
                kept.write(line)
        kept.flush()
        os.fsync(kept.fileno())
    whole.replace(path)


def _place(lines: Iterable[bytes], prefix: str, most: int, size: int) -> int | None:
    """Return the number of the line to cut before; ``None`` where there is no mark with anything before it.

    It is never the last mark: some judged rows stay, however large the reports are.
    """
    marks, left_out = [], 0
    for number, line in enumerate(lines):
        if line.startswith(MARK) and left_out and _is_of(line, prefix):
            marks.append((number, size - left_out))
        left_out += len(line) if _goes(line, prefix) else 0
    enough = (number for number, left in marks[:-1] if left <= most)
    return next(enough, marks[-2][0] if len(marks) > 1 else None)


def _goes(line: bytes, prefix: str) -> bool:
    """Return True for a row that nothing needs once a later mark is there."""
    return line.startswith((JUDGED, MARK, CUT)) and _is_of(line, prefix)


def _is_of(line: bytes, prefix: str) -> bool:
    """Return True for a line of the monitor with this prefix. It stands last in a row, where there is one."""
    end = line.rstrip()
    return end.endswith(f', "prefix": {json.dumps(prefix)}}}'.encode()) if prefix else end.endswith(b"}}")
