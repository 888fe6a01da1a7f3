"""Compare the layouts of ranks before they merge: all must hold the same integers in the same order.

Reductions of different sizes would crash or wait for ever, so sizes and a hash of all names are compared once
before the first read-out. The hash then travels with the maxima of every read-out, with no further collective.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor

from pplmon.extras import Measures
from pplmon.report import layout, saved
from pplmon.tally.count.numpy_or_torch import OnTorch
from pplmon.tally.ranks import Group
from pplmon.tally.records import State


class UnlikeLayouts(ValueError):
    """Raised on every rank of a group whose ranks hold different integers."""


class Layout:
    """The names and sizes of a tally's integers, and the groups whose ranks were found to have the same."""

    def __init__(self, facts: Mapping[str, int]) -> None:
        self._facts = dict(facts)
        self._agreed: WeakSet[Any] = WeakSet()

    @classmethod
    def of(cls, state: State, extras: Sequence[Measures]) -> Layout:
        """Return the layout of a tally's states."""
        sizes = {
            "sums": len(state.sums),
            "maxima": len(state.maxima),
            "buckets": len(state.histogram),
            "integers of extras": len(state.extra_sums) + len(state.extra_maxima),
            "worst rows": state.token_rows.shape[0],
            "columns of a row": state.token_rows.shape[1],
        }
        named = repr((layout.SUMS, layout.MAXIMA, saved.sizes_of(extras), sizes))
        return cls({"hash": int.from_bytes(hashlib.sha256(named.encode()).digest()[:7], "big"), **sizes})

    def compare(self, group: Group, device: torch.device) -> None:
        """Raise on every rank of ``group`` where layouts differ. One collective, waited for, the first time only."""
        world = group.handle or dist.group.WORLD if group.size > 1 else None
        if world is None or world in self._agreed:
            return
        own = torch.tensor([*self._facts.values()], device=device)
        extremes = torch.cat([own, -own])
        dist.all_reduce(extremes, dist.ReduceOp.MAX, group=group.handle)
        highest, lowest = extremes.view(2, -1).tolist()
        ranges = {name: (-low, high) for name, low, high in zip(self._facts, lowest, highest) if -low != high}
        if ranges:
            raise _unlike(ranges)
        self._agreed.add(world)

    def mark(self, device: torch.device) -> Tensor:
        """Return the hash as [2] int64 whose maximum over ranks shows if all ranks have the same one."""
        return _mark(self._facts["hash"], device)

    def __deepcopy__(self, memo: dict[int, Any]) -> Layout:
        return self  # a copy of a tally has the same layout: its ranks need not compare again

    def __reduce__(self) -> tuple[Any, ...]:
        return Layout, (self._facts,)  # groups stay in this process


def check(mark: Sequence[int]) -> None:
    """Raise if the maximum of ``Layout.mark`` over ranks shows that layouts differ."""
    highest, lowest = mark
    if highest != -lowest:
        raise _unlike({})


@lru_cache
def _mark(hash_: int, device: torch.device) -> Tensor:
    mark: Tensor = OnTorch(device).vector([hash_, -hash_])  # made there: a copy to the device would be waited for
    return mark


def _unlike(ranges: Mapping[str, tuple[int, int]]) -> UnlikeLayouts:
    """Return the error, the same on every rank."""
    sizes = [f"{low} to {high} {name}" for name, (low, high) in ranges.items() if name != "hash"]
    return UnlikeLayouts(
        f"ranks of one group count into unlike layouts ({', '.join(sizes) or 'unlike names, or another order of them'}), so "
        "their integers cannot be merged. Give every rank the same version of pplmon, and a TokenTally with the same top_k, "
        "context and extras."
    )
