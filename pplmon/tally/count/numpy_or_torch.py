"""The operations that counting needs, over torch on any device, and over numpy where the tensors are on a CPU.

On a CPU an operation of torch costs 2 to 5 µs before it does anything, one of numpy about 1 µs, and a small batch
takes a hundred of them. Counting is therefore written once for both: functions that both spell alike are called
directly, the others through one of the two classes here.

Nothing here waits for a device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pplmon.report import layout

Array: TypeAlias = Any  # a Tensor, or the numpy array over its memory
Order: TypeAlias = Callable[[Array], tuple[Array, Array]]  # indices -> two keys, the first of which counts more


class OnTorch:
    """Operations of torch on the tensors of one device."""

    where: Any = staticmethod(torch.where)
    concatenate: Any = staticmethod(torch.cat)
    at_least: Any = staticmethod(torch.clamp_min)
    at_most: Any = staticmethod(torch.clamp_max)
    exp: Any = staticmethod(torch.exp)
    round: Any = staticmethod(torch.round)
    maximum: Any = staticmethod(torch.maximum)
    full_like: Any = staticmethod(torch.full_like)
    int32: Any = torch.int32

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def of(self, tensor: Tensor) -> Array:
        return tensor

    def tensor(self, array: Array) -> Tensor:
        return array  # type: ignore[no-any-return]

    def arange(self, start: int, stop: int) -> Array:
        return torch.arange(start, stop, device=self.device)

    def full(self, shape: Sequence[int], value: int) -> Array:
        return torch.full(tuple(shape), value, dtype=torch.int64, device=self.device)

    def stack(self, rows: Sequence[Array]) -> Array:
        return torch.stack(list(rows))

    def fill(self, cells: Array, value: int) -> None:
        cells.fill_(value)

    def vector(self, values: Sequence[Any]) -> Array:
        """Return scalars, of which some may be plain integers, as one int64 vector."""
        known: dict[int, Tensor] = {}  # a constant is made on the device, once: torch.tensor would copy, and wait
        for value in values:
            if isinstance(value, int) and value not in known:
                known[value] = torch.full((), value, dtype=torch.int64, device=self.device)
        return torch.stack([known[value] if isinstance(value, int) else value for value in values])

    def integers(self, values: Array) -> Array:
        return values.to(torch.int64)

    def count(self, mask: Array) -> Array:
        return mask.sum()

    def sum(self, values: Array) -> Array:
        """Return the sums along the last dimension."""
        return values.sum(-1)

    def largest(self, values: Array) -> Array:
        return values.amax()

    def limit(self, values: Array, ceiling: int) -> None:
        """Clamp values to the ceiling, in place."""
        values.clamp_max_(ceiling)

    def running_maximum(self, values: Array) -> Array:
        """Return the running maximum along the last dimension."""
        return values.cummax(-1).values

    def sums_by(self, index: Array, values: Array) -> Array:
        """Return the sum of the values of each index, in as many cells as there are values."""
        return torch.zeros_like(values).scatter_add_(0, index, values)

    def add_counts(self, counts: Array, index: Array, counted: Array) -> None:
        """Add 1 to ``counts[index]`` where ``counted``, in place."""
        # scatter_add_ of integers: exact in any order, and neither waits for the device (bincount) nor is refused in
        # deterministic mode (histc).
        counts.scatter_add_(0, index.to(torch.int64), counted.to(torch.int64))

    def known_empty(self, rows: Array) -> bool:
        """Return True if rows [K, C] are empty and the host can see it without waiting for a device."""
        return False

    def known_below(self, rows: Array, losses: Array, when: int) -> bool:
        """Return True if none of these losses, of a batch at ``when``, can come into the rows [K, C], and the host can see it."""
        return False

    def known_all(self, mask: Array) -> bool:
        """Return True if a mask is true throughout and the host can see it without waiting for a device."""
        return False

    def known_none(self, count: Array) -> bool:
        """Return True if a count is 0 and the host can see it without waiting for a device."""
        return False

    def worst(self, losses: Array, count: int, place_bits: int, order: Order) -> Array:
        """Return the indices of the largest losses that are not below 0, falling, of equal ones the first by ``order``.

        The losses leave so many lower bits of an int64 free. Where the host cannot see them, those below 0 stand last.
        """
        # Of one batch, whose order is that of its places. Beyond 2**place_bits of them ties fall as topk likes.
        places = (2**place_bits - 1 - self.arange(0, len(losses))).clamp_min(0)
        return ((losses.to(torch.int64) << place_bits) + places).topk(min(count, len(losses))).indices

    def order(self, first: Array, second: Array, third: Array) -> Array:
        """Return the order by ``first`` falling, then ``second`` rising, then ``third`` rising; stable."""
        # From the least key to the first: moving whole rows instead costs ten times as much for many ranks.
        order = torch.argsort(third, stable=True)
        order = order[torch.argsort(second[order], stable=True)]
        return order[torch.argsort(first[order], stable=True, descending=True)]


class OnNumpy:
    """Operations of numpy on CPU tensors, through arrays that share their memory."""

    where: Any = staticmethod(np.where)
    concatenate: Any = staticmethod(np.concatenate)
    round: Any = staticmethod(np.rint)
    maximum: Any = staticmethod(np.maximum)
    at_least: Any = staticmethod(np.maximum)  # np.clip takes four times as long to begin
    at_most: Any = staticmethod(np.minimum)
    full_like: Any = staticmethod(np.full_like)
    int32: Any = np.int32

    def of(self, tensor: Tensor) -> Array:
        return tensor.numpy()

    def copy(self, tensor: Tensor) -> Array:
        """Return an array over memory of its own."""
        return tensor.numpy().copy()

    def tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(array)

    def exp(self, values: Array) -> Array:
        return torch.from_numpy(values).exp().numpy()  # numpy's differs in the last bit

    def arange(self, start: int, stop: int) -> Array:
        return np.arange(start, stop)

    def full(self, shape: Sequence[int], value: int) -> Array:
        return np.full(shape, value, np.int64)

    def stack(self, rows: Sequence[Array]) -> Array:
        return np.array(rows)  # a third of the time of np.stack

    def fill(self, cells: Array, value: int) -> None:
        cells[...] = value

    def vector(self, values: Sequence[Any]) -> Array:
        return np.array(values, np.int64)

    def integers(self, values: Array) -> Array:
        return values.astype(np.int64)

    def count(self, mask: Array) -> Array:
        return np.count_nonzero(mask)

    def sum(self, values: Array) -> Array:
        return np.add.reduce(values, -1)  # what values.sum calls by way of Python

    def largest(self, values: Array) -> Array:
        return np.maximum.reduce(values)

    def limit(self, values: Array, ceiling: int) -> None:
        np.minimum(values, ceiling, out=values)

    def running_maximum(self, values: Array) -> Array:
        return np.maximum.accumulate(values, axis=-1)

    def sums_by(self, index: Array, values: Array) -> Array:
        sums = np.zeros_like(values)
        np.add.at(sums, index, values)
        return sums

    def add_counts(self, counts: Array, index: Array, counted: Array) -> None:
        counts += np.bincount(index[counted], minlength=len(counts))

    def known_empty(self, rows: Array) -> bool:
        return bool(rows[0, 0] < 0)

    def known_below(self, rows: Array, losses: Array, when: int) -> bool:
        least = rows[-1, 0]  # rows are sorted, and those that are empty, which stand last, hold −1
        if least < 0:
            return False
        largest = losses.max()
        return bool(largest < least or (largest == least and when > rows[-1, layout.WHEN]))

    def known_all(self, mask: Array) -> bool:
        return bool(np.logical_and.reduce(mask))

    def known_none(self, count: Array) -> bool:
        return not count

    def worst(self, losses: Array, count: int, place_bits: int, order: Order) -> Array:
        least = np.partition(losses, -count)[-count] if len(losses) > count else 0
        index = (losses >= max(least, 0)).nonzero()[0]
        when, place = order(index)
        return index[self.order(losses[index], when, place)[:count]]

    def order(self, first: Array, second: Array, third: Array) -> Array:
        return np.lexsort((third, second, ~first))  # ~x falls where x rises, and does not overflow


Arrays: TypeAlias = "OnTorch | OnNumpy"


@lru_cache
def arrays_on(device: torch.device) -> Arrays:
    """Return the operations for tensors of this device."""
    return OnNumpy() if device.type == "cpu" else OnTorch(device)
