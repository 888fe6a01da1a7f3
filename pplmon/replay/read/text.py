"""Open a file as lines of text, as people have them: plain or gzip, UTF-8 or UTF-16, with any line ends."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import IO

from pplmon.replay.read.series import ReplayError

GZIP = b"\x1f\x8b"
HEAD = 50  # lines that tell a format


def lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file; what is no text in its encoding is replaced.

    Raises:
        ReplayError: it is gzip, and damaged.
    """
    try:
        with _opened(path) as file:
            yield from file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ReplayError(f"{path} is damaged: {error}; unpack what is left of it with zcat") from None


def head(path: Path) -> list[str]:
    """Return the first lines of a file, by which a reader recognises its format; none of one that is damaged."""
    try:
        return list(islice(lines(path), HEAD))
    except ReplayError:
        return []


def unpacked_name(path: Path) -> str:
    """Return the name of a file without ``.gz``, in lower case."""
    return path.name.lower().removesuffix(".gz")


def _opened(path: Path) -> IO[str]:
    with open(path, "rb") as file:
        packed = file.read(2) == GZIP
    with gzip.open(path) if packed else open(path, "rb") as first:
        mark = first.read(2)
    encoding = "utf-16" if mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    return TextIOWrapper(gzip.open(path) if packed else open(path, "rb"), encoding, errors="replace")
