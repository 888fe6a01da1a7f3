"""Find the reader for a path, and read it as a series."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pplmon.replay.read.columns import Place
from pplmon.replay.read.reader import Reader, readers
from pplmon.replay.read.series import ReplayError, Series
from pplmon.replay.read.text_log import TextLogReader

NAMED = 8  # runs that an error names


def read(
    path: str | Path,
    mapped: Mapping[str, Place] | None = None,
    step: str | None = None,
    pattern: str | None = None,
    run: str | None = None,
) -> Series:
    """Read a run from its file or its directory.

    Args:
        path: a journal, or a log in one of the formats of docs/replay.md.
        mapped: column -> (stage, name), for columns with names that pplmon does not know.
        step: the column that counts optimizer steps; ``None`` finds it.
        pattern: a regular expression for the lines of a text log, with the groups ``step`` and, say, ``loss``.
        run: the name of a run in a journal that holds several; ``None`` takes the last.

    Raises:
        ReplayError: there is nothing to read, or needed columns are missing.
    """
    if pattern is not None:
        reader, found = TextLogReader(pattern), given(path)
        if not found.is_file():
            raise ReplayError(f"--pattern reads one text file; {found} is none")
        return reader.read(found, mapped or {}, step)
    one, place = locate(given(path))
    if run is not None and not mapped and step is None:
        return one.read_run(place, run)
    return one.read(place, mapped or {}, step)


def given(path: str | os.PathLike[str]) -> Path:
    """Return a path as the user gave it.

    Raises:
        ReplayError: it is empty, which would be the working directory, or can be no path.
    """
    text = os.fspath(path)
    if not text or "\0" in text:
        raise ReplayError(f"a run's directory or file is wanted; got {text!r}")
    return Path(path)


def locate(path: Path) -> tuple[Reader, Path]:
    """Return the reader for a path, and the path that it reads: a file, or TensorBoard's directory.

    Raises:
        ReplayError: no reader fits, or several do.
    """
    known = readers()
    files = ", ".join(reader.pattern for reader in known if reader.pattern)
    if not path.exists():
        raise ReplayError(f"{path} does not exist; give a run's directory or file ({files})")
    if not path.is_dir():
        reader = next((reader for reader in known if reader.matches(path)), None)
        if reader is None:
            *others, last = (reader.expects for reader in known)
            raise ReplayError(
                f"{path} is of no known kind: expected {', '.join(others)} or {last}; --pattern reads any text"
            )
        return reader, path
    for within in ("", "**/"):  # what lies in the directory itself, else below it
        for reader in known:
            found = path.glob(within + reader.pattern) if reader.pattern else ()
            places = sorted({reader.place(file) for file in found})
            if len(places) == 1:
                return reader, places[0]
            if places:
                more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
                some = ", ".join(map(str, places[:NAMED]))
                raise ReplayError(f"{path} holds {len(places)} runs ({reader.kind}); give one of them: {some}{more}")
    raise ReplayError(f"{path} holds none of {files}, at any depth; give a run's directory, or another log by its name")
