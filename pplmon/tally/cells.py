"""The states of a tally as views of one tensor, so that clearing, copying and reading out take one copy each."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import accumulate
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pplmon.tally.records import State

# The order in the tensor, which is that of a read-out: what ranks add, what they take the maximum of, and each rank's own rows.
SUMMED = ("sums", "extra_sums", "histogram")
MAXIMA = ("maxima", "extra_maxima")
ROWS = ("token_rows", "sequence_rows")
ORDER = (*SUMMED, *MAXIMA, *ROWS)


class Cells:
    """All integers of a tally in one tensor.

    Attributes:
        flat: [cells] int64.
        state: the states, each a view of its part.
        shapes: of each state, by name.
        sizes: of each state, in order, its cells and those that it takes in the tensor.
        pieces: the views of all sums, of all maxima, and of all rows.
    """

    def __init__(self, flat: Tensor, empty: Tensor, shapes: Mapping[str, torch.Size]) -> None:
        self.flat, self._empty, self.shapes = flat, empty, shapes
        self.sizes = tuple((shapes[name].numel(), room(shapes[name])) for name in ORDER)
        parts = zip(ORDER, torch.split(flat, [taken for _, taken in self.sizes]))
        views = {name: part[: shapes[name].numel()].view(shapes[name]) for name, part in parts}
        self.state = State(**views)
        self._views = tuple(views.values())
        self.pieces = torch.split(flat, [sum(room(shapes[name]) for name in names) for names in (SUMMED, MAXIMA, ROWS)])

    @classmethod
    def of(cls, state: State, defaults: Mapping[str, Any]) -> Cells:
        """Return new cells that hold what a state holds; ``defaults`` are what it holds while nothing is counted."""
        parts = state._asdict()
        shapes = {name: part.shape for name, part in parts.items()}
        return cls(_joined(parts, state.sums.device), _joined(defaults, state.sums.device), shapes)

    def holds(self, attributes: Mapping[str, Any]) -> bool:
        """Return True if these are the states of a tally's attributes, and none was made anew."""
        return all(map(is_, map(attributes.get, ORDER), self._views))

    def clear(self) -> None:
        """Forget what was counted."""
        self.flat.copy_(self._empty)


def room(shape: torch.Size) -> int:
    """Return the cells that a state takes: an even number, so that each begins at 16 bytes, as GPU programs assume."""
    return shape.numel() + shape.numel() % 2


def _joined(parts: Mapping[str, Any], device: torch.device) -> Tensor:
    flat = [parts[name].flatten().to(device) for name in ORDER]
    return torch.cat([cell for part in flat for cell in (part, part[: part.numel() % 2])])


class Places(NamedTuple):
    """The places of all integers in a read-out, in order."""

    sums: slice
    extra_sums: slice
    histogram: slice
    squares: slice
    maxima: slice
    extra_maxima: slice
    own_maxima: slice
    said: slice
    token_rows: slice
    sequence_rows: slice

    @property
    def summed(self) -> slice:
        """Return the place of all that ranks add."""
        return slice(0, self.maxima.start)

    @property
    def maximized(self) -> slice:
        """Return the place of all that they take the maximum of."""
        return slice(self.maxima.start, self.token_rows.start)


@lru_cache
def places(states: tuple[tuple[int, int], ...], squares: int, own_maxima: int, said: int) -> Places:
    """Return the places in a read-out of states of these sizes (``Cells.sizes``), and of so many other cells."""
    sums, extra_sums, histogram, maxima, extra_maxima, *rows = states
    others = ((size, size) for size in (squares, own_maxima, said))
    sizes = [sums, extra_sums, histogram, next(others), maxima, extra_maxima, *others, *rows]
    begins = accumulate([0, *(taken for _, taken in sizes)])
    return Places(*(slice(begin, begin + size) for begin, (size, _) in zip(begins, sizes)))
