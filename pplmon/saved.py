"""Integers as they are saved: by name, so that other names, or the same in another order, are read aright.

A version that has a sum more finds it missing in what an earlier one saved; one that has a sum less finds it unknown.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

VERSION = 2  # of every state that is saved


def is_readable(version: Any) -> bool:
    """Return True for a state that this version can read. Of any other, say that monitoring begins anew."""
    if version != VERSION:
        warnings.warn(
            f"pplmon: the checkpoint's state has version {version!r}, not {VERSION}; monitoring begins anew",
            RuntimeWarning,
            stacklevel=3,
        )
    return bool(version == VERSION)


class Size(NamedTuple):
    """How many integers an extra sums, and of how many more it keeps the maximum."""

    sums: int
    maxima: int = 0


def sizes_of(extras: Iterable[Any]) -> dict[str, Size]:
    """Return how many integers each extra has, by the name that it has in every process: its repr without addresses."""
    return {without_addresses(repr(extra)): size_of(extra) for extra in extras}


def without_addresses(text: str) -> str:
    """Return the repr of something without where it lies in memory, which no two processes have alike."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def size_of(extra: Any) -> Size:
    """Return how many integers an extra has; one that says nothing of maxima has none."""
    return Size(extra.size, getattr(extra, "maxima", 0))


def by_extra(sums: Iterable[int], maxima: Iterable[int], sizes: Mapping[str, Size]) -> dict[str, list[int]]:
    """Return the integers of each extra, its sums and then its maxima; in either list those of all stand in a row."""
    sums, maxima = iter(sums), iter(maxima)
    return {name: [*islice(sums, size.sums), *islice(maxima, size.maxima)] for name, size in sizes.items()}


class Reader:
    """Puts saved integers in the order of this version, and keeps the names of those that it leaves out."""

    def __init__(self) -> None:
        self.left_out: dict[str, None] = {}

    def ints(self, saved: Mapping[str, int], names: Sequence[str], missing: int) -> tuple[int, ...]:
        """Return the integers of these names; one that was not saved reads ``missing``."""
        self.left_out |= dict.fromkeys(name for name in saved if name not in names)
        return tuple(saved.get(name, missing) for name in names)

    def extras(
        self, saved: Mapping[str, Sequence[int]], sizes: Mapping[str, Size]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the sums of these extras, and their maxima; an extra that was not saved so begins anew."""
        fitting = {name: part for name, part in saved.items() if name in sizes and len(part) == sum(sizes[name])}
        self.left_out |= dict.fromkeys(name for name in saved if name not in fitting)
        parts = [(fitting.get(name, (0,) * size.sums + (-1,) * size.maxima), size) for name, size in sizes.items()]
        sums = tuple(value for part, size in parts for value in part[: size.sums])
        return sums, tuple(value for part, size in parts for value in part[size.sums :])


@contextmanager
def reading() -> Iterator[Reader]:
    """Read a checkpoint with the ``Reader`` that is given; what it left out is told at the end, in one warning."""
    reader = Reader()
    yield reader
    if reader.left_out:
        warnings.warn(
            f"pplmon: the checkpoint holds what this run does not count: {', '.join(reader.left_out)}. That is left out, and "
            "all else goes on. Was it saved by another version of pplmon, or by a tally with other extras?",
            RuntimeWarning,
            stacklevel=4,
        )
