"""The file of a journal: whole lines are appended, by one process, and none is lost by a fork or at the end of the process.

A full disk, or a kill, may tear a line; the next one then begins on a line of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO
from weakref import WeakSet

from pplmon.sinks.file_lock import has_another_writer

AT_ONCE = 16  # lines that are made together: to make each in its own training step takes three times as long


class JournalFile:
    """Appends lines to a file, which is made, with its directory, for the first of them.

    Attributes:
        path: of the file.
        is_shared: True where another process was writing it when it was opened.
        is_inherited: True in a process that was forked by the one that writes: it writes nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_shared = False
        self._file: BinaryIO | None = None
        self._waiting: list[Callable[[], bytes]] = []
        self.is_inherited = False

    def later(self, line: Callable[[], bytes]) -> None:
        """Append what this returns: before the next line, or once ``AT_ONCE`` of them wait."""
        if not self._waiting:
            _files.add(self)
        self._waiting.append(line)
        if len(self._waiting) == AT_ONCE:
            self.write()

    def write(self, line: bytes = b"") -> None:
        """Append the lines that wait, and then this one."""
        waiting, self._waiting = self._waiting, []
        lines = b"".join([*(make() for make in waiting), line])
        if not lines or self.is_inherited:
            return
        try:
            if self._file is None:
                self._file = open_to_append(self.path)
                _files.add(self)
                self._look_for_others(self._file)
            self._file.write(lines)
        except OSError:  # a full disk may have torn the line: the next write opens the file anew, and ends it
            with contextlib.suppress(OSError):
                self.close()
            raise

    def flush(self) -> None:
        """Hand everything to the system."""
        self.write()
        if self._file is not None:
            self._file.flush()

    def sync(self) -> None:
        """Write everything through to the disk."""
        self.flush()
        if self._file is not None:
            os.fsync(self._file.fileno())

    def size(self) -> int | None:
        """Return the bytes of the file with all that was appended; ``None`` while it is closed."""
        self.write()
        return None if self._file is None else self._file.tell()

    def close(self) -> None:
        """Close the file. A later line opens it again."""
        self.write()
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def let_go(self) -> None:
        """Write nothing any more that this process inherited from the one that forked it."""
        self.is_inherited, self._file, self._waiting = True, None, []

    def _look_for_others(self, file: BinaryIO) -> None:
        told, self.is_shared = self.is_shared, has_another_writer(file)
        if self.is_shared and not told:
            warnings.warn(
                f"pplmon: another process is writing {self.path} at this moment: the rows of both are in one file, and pages and "
                "replays take those of one for the other's. Give each process a directory of its own.",
                RuntimeWarning,
                stacklevel=2,
            )

    def __del__(self) -> None:
        """Append what waits, where nobody closed the file."""
        with contextlib.suppress(Exception):
            self.close()


def open_to_append(path: Path) -> BinaryIO:
    """Return a file that is open for appending, with its directory, and with the end of a line that was torn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a+b")  # noqa: SIM115 - open for as long as the run
    if file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":  # a kill tore the last line: end it, or ours would be lost with it
            file.write(b"\n")
    return file


def close_all(path: Path) -> None:
    """Close a file for all that write it in this process: it is about to be replaced."""
    for file in list(_files):
        if file.path.absolute() == path.absolute():
            file.close()


def _flush_all() -> None:
    """Leave nothing that a forked child would write a second time, or that the end of the process would take with it."""
    for file in list(_files):
        with contextlib.suppress(OSError):
            file.flush()


def _let_go_of_all() -> None:
    """Leave the files to the process that opened them."""
    for file in list(_files):
        file.let_go()


_files: WeakSet[JournalFile] = WeakSet()
atexit.register(_flush_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_flush_all, after_in_child=_let_go_of_all)
