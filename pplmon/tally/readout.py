"""Reading a tally out: one SUM and one MAX over the ranks, one copy to the host, and rows only when they are wanted.

This file and its neighbours are the only users of torch.distributed (but for vocabulary-parallel kernels).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from pplmon import cells
from pplmon.evidence import Row, merge_rows
from pplmon.report import Derives, Totals


class Group(NamedTuple):
    """The ranks whose tokens are counted together."""

    handle: Any = None  # a ProcessGroup, None for all ranks

    @property
    def size(self) -> int:
        """Number of ranks; 1 without torch.distributed."""
        return dist.get_world_size(self.handle) if _running() else 1

    @property
    def rank(self) -> int:
        """This process's rank within the group; −1 outside it."""
        return dist.get_rank(self.handle) if _running() else 0

    @property
    def global_rank(self) -> int:
        """This process's rank in the run, which addresses are given in."""
        return dist.get_rank() if _running() else 0


class State(NamedTuple):
    """The tensors of a tally, detached from it."""

    sums: Tensor
    maxima: Tensor
    histogram: Tensor
    token_rows: Tensor
    sequence_rows: Tensor
    extra_sums: Tensor


class ReadOut:
    """One read-out under way: started at a step, taken in later."""

    def __init__(self, state: State, group: Group, extras: tuple[Derives, ...]) -> None:
        """Start the reduction (every rank of the group does) and the copy to the host, and wait for neither."""
        self._state, self._extras = state, extras
        self._work: list[Any] = []
        self._host: Tensor | None = None
        self._copied: torch.cuda.Event | None = None
        if state.sums.is_cuda:
            self._start_beside_the_step(group)
        else:
            self._start(group)

    def totals(self) -> Totals:
        """Wait, and return the group's numbers with this rank's own rows."""
        if self._copied is not None and self._host is not None:
            self._copied.synchronize()
            packed = self._host
        else:
            packed = self._packed()
        state = self._state
        take = _Taker(packed.tolist())
        return Totals(
            sums=take(state.sums.numel()),
            histogram=take(state.histogram.numel()),
            extra_sums=take(state.extra_sums.numel()),
            maxima=take(state.maxima.numel()),
            token_rows=merge_rows(take.rows(state.token_rows), len(state.token_rows)),
            sequence_rows=merge_rows(take.rows(state.sequence_rows), len(state.sequence_rows)),
            keep=len(state.token_rows),
            extras=self._extras,
        )

    def _start(self, group: Group) -> None:
        state = self._state
        self._sum = torch.cat([state.sums, state.histogram, state.extra_sums])
        self._max = state.maxima.clone()
        if group.size > 1:
            # SUM cannot saturate: so that W ranks at the ceiling cannot wrap, each gives at most its part.
            self._sum.clamp_max_((2**63 - 1) // group.size)
            self._work = [
                dist.all_reduce(self._sum, dist.ReduceOp.SUM, group=group.handle, async_op=True),
                dist.all_reduce(self._max, dist.ReduceOp.MAX, group=group.handle, async_op=True),
            ]

    def _packed(self) -> Tensor:
        for work in self._work:
            work.wait()
        self._work = []
        state = self._state
        return torch.cat([self._sum, self._max, state.token_rows.flatten(), state.sequence_rows.flatten()])

    def _start_beside_the_step(self, group: Group) -> None:
        """On a stream of its own: a copy that is queued on the step's stream would wait for the whole next step."""
        device = self._state.sums.device
        stream = _side_stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            self._start(group)
            packed = self._packed()  # with NCCL, wait() makes this stream wait, not the host
            self._host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
            self._host.copy_(packed, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(stream)
        for tensor in self._state:  # their memory must not be reused before this stream has read them
            tensor.record_stream(stream)


@lru_cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def gather_rows(totals: Totals, group: Group, device: torch.device, columns: int) -> Totals:
    """Return ``totals`` with the worst rows of all ranks. One collective; every rank of the group calls it."""
    if group.size <= 1:
        return totals
    keep = totals.keep
    own = torch.tensor(
        _flat(totals.token_rows, keep, columns) + _flat(totals.sequence_rows, keep, cells.SEQUENCE_COLUMNS)
    )
    own = own.to(device)
    parts = [torch.empty_like(own) for _ in range(group.size)]
    dist.all_gather(parts, own, group=group.handle)
    tokens: list[Row] = []
    sequences: list[Row] = []
    for part in torch.stack(parts).tolist():
        take = _Taker(part)
        tokens += take.rows_of(keep, columns)
        sequences += take.rows_of(keep, cells.SEQUENCE_COLUMNS)
    return replace(totals, token_rows=merge_rows(tokens, keep), sequence_rows=merge_rows(sequences, keep))


class _Taker:
    """Takes pieces off a flat list, in order."""

    def __init__(self, values: list[int]) -> None:
        self._values, self._at = values, 0

    def __call__(self, count: int) -> tuple[int, ...]:
        self._at += count
        return tuple(self._values[self._at - count : self._at])

    def rows(self, like: Tensor) -> list[Row]:
        return self.rows_of(*like.shape)

    def rows_of(self, count: int, columns: int) -> list[Row]:
        return [self(columns) for _ in range(count)]


def _flat(rows: Sequence[Row], keep: int, columns: int) -> list[int]:
    filled = [cell for row in rows for cell in row]
    return filled + [-1] * (keep * columns - len(filled))


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()
