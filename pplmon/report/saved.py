"""Save integers by name, so that a version with other names, or in another order, reads them correctly.

A sum that is new since the state was saved is missing in it; a sum that was removed since is unknown.
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
    """Return True for a state that this version can read. For any other, warn that monitoring begins anew."""
    if version != VERSION:
        warnings.warn(
            f"pplmon: the checkpoint's state has version {version!r}, not {VERSION}; monitoring begins anew",
            RuntimeWarning,
            stacklevel=3,
        )
    return bool(version == VERSION)


class Size(NamedTuple):
    """The count of integers that an extra sums, and of those whose maximum it keeps."""

    sums: int
    maxima: int = 0


def sizes_of(extras: Iterable[Any]) -> dict[str, Size]:
    """Return the sizes of each extra by its repr without memory addresses, which is the same in every process."""
    return {without_addresses(repr(extra)): size_of(extra) for extra in extras}


def without_addresses(text: str) -> str:
    """Return the repr of an object without memory addresses, which differ between processes."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def size_of(extra: Any) -> Size:
    """Return the sizes of an extra; one without an attribute ``maxima`` has no maxima."""
    return Size(extra.size, getattr(extra, "maxima", 0))


def by_extra(sums: Iterable[int], maxima: Iterable[int], sizes: Mapping[str, Size]) -> dict[str, list[int]]:
    """Return the integers of each extra, its sums and then its maxima, from the lists of all sums and all maxima."""
    sums, maxima = iter(sums), iter(maxima)
    return {name: [*islice(sums, size.sums), *islice(maxima, size.maxima)] for name, size in sizes.items()}


class Reader:
    """Puts saved integers in the order of this version, and remembers the names that it leaves out."""

    def __init__(self) -> None:
        self.left_out: dict[str, None] = {}

    def ints(self, saved: Mapping[str, int], names: Sequence[str], missing: int) -> tuple[int, ...]:
        """Return the integers of these names; one that was not saved reads ``missing``."""
        self.left_out |= dict.fromkeys(name for name in saved if name not in names)
        return tuple(saved.get(name, missing) for name in names)

    def extras(
        self, saved: Mapping[str, Sequence[int]], sizes: Mapping[str, Size]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the sums and the maxima of these extras; an extra that was not saved alike begins anew."""
        fitting = {name: part for name, part in saved.items() if name in sizes and len(part) == sum(sizes[name])}
        self.left_out |= dict.fromkeys(name for name in saved if name not in fitting)
        parts = [(fitting.get(name, (0,) * size.sums + (-1,) * size.maxima), size) for name, size in sizes.items()]
        sums = tuple(value for part, size in parts for value in part[: size.sums])
        return sums, tuple(value for part, size in parts for value in part[size.sums :])


@contextmanager
def reading() -> Iterator[Reader]:
    """Yield a ``Reader`` for one checkpoint, and warn once at the end of the names that it left out."""
    reader = Reader()
    yield reader
    if reader.left_out:
        warnings.warn(
            f"pplmon: the checkpoint holds what this run does not count: {', '.join(reader.left_out)}. That is left out, and "
            "all else goes on. Was it saved by another version of pplmon, or by a tally with other extras?",
            RuntimeWarning,
            stacklevel=4,
        )
