"""Read a tally out: one SUM and one MAX over the ranks, one copy to the host, and rows only on request.

This file and its neighbours are the only users of torch.distributed (but for vocabulary-parallel kernels).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pplmon.report import layout
from pplmon.report.histogram import Histogram
from pplmon.report.own import values
from pplmon.report.rows import Rows
from pplmon.report.totals import Derives, Totals
from pplmon.report.worst import Row
from pplmon.tally.cells import Cells, places
from pplmon.tally.coming import Waits, comes, wait_for, within
from pplmon.tally.count.worst import Evidence
from pplmon.tally.doing import LEAVES, Doing, Votes, differ
from pplmon.tally.merge import merge_rows
from pplmon.tally.own_numbers import Block
from pplmon.tally.ranks import Group
from pplmon.tally.records import State
from pplmon.tally.same_layout import Layout
from pplmon.tally.sources import with_sequences, with_tokens


class ReadOut:
    """One read-out that has been started at a step and is taken in later.

    Attributes:
        doing: what this rank does and votes; once it has arrived what all do, at the largest of their steps.
        first_step: the smallest of the ranks' steps, once it has arrived.
        wants_slots: some rank has a number of the user's own that has no slot yet, once it has arrived.
    """

    def __init__(
        self,
        cells: Cells,
        group: Group,
        extras: tuple[Derives, ...],
        own_layout: Layout,
        doing: Doing,
        own: Block | None = None,
        evidence: Sequence[Evidence] = (),
    ) -> None:
        """Copy the cells, start their reduction (every rank of the group does) and their copy to the host. No wait.

        ``evidence`` is of tokens whose worst rows are not in the cells.
        """
        # A copy in the order of the step: what is counted from here on changes the states in place.
        self.doing, self.first_step, self.wants_slots = doing, doing.step, False
        self._group, self._layout, self._says = group, own_layout, doing
        self._ranks = group.size
        said = self._tell(cells.flat.device) if self._ranks > 1 else []
        none = cells.flat.new_empty(0)
        squares, own_maxima = (none, none) if own is None else (own.squares, own.maxima)
        summed, maxima, rows = cells.pieces
        # What is summed, then the maxima and what ranks tell each other, then rows: each reduction is over one piece.
        self._own = torch.cat([summed, squares, maxima, own_maxima, *said, rows])
        self._places = places(cells.sizes, squares.numel(), own_maxima.numel(), sum([part.numel() for part in said]))
        self._shapes = cells.shapes
        self._slots = [] if own is None else own.slots
        self._extras, self._evidence = extras, evidence
        self._work: list[Any] = []
        self._host: Tensor | None = None
        self._copied: torch.cuda.Event | None = None
        self._ceiling = min(layout.CEILING, (2**63 - 1) // max(self._ranks, 1))
        if self._own.is_cuda:
            self._start_beside_the_step(group)
        else:
            self._start(group)

    def totals(self, wait: Waits | None = None) -> Totals:
        """Wait, and return the group's numbers with this rank's own rows.

        Raises:
            UnlikeRanks: the ranks differ, on every one of them. ``wait`` may give up to ask them in what.
        """
        if self._copied is not None and self._host is not None:
            self._copied.synchronize()
            return self._merged(self._host, wait)
        self._wait()
        return self._merged(self._all, wait)

    def arrived(self) -> bool:
        """Return True if ``totals`` would not wait, without asking any other rank."""
        if self._copied is not None:
            return bool(self._copied.query())  # type: ignore[no-untyped-call]
        return all(work.is_completed() for work in self._work)

    def arrives(self, seconds: float) -> bool:
        """Wait at most so long for it to arrive, or to fail."""
        if self._copied is not None:
            return within(seconds, self.arrived)
        return all(comes(work, self._own.device, seconds) for work in self._work)

    def local(self) -> Totals:
        """Return this rank's own totals, even if other ranks are gone. No collective."""
        return self._read(self._own)[0]

    def _tell(self, device: torch.device) -> list[Tensor]:
        """Return the layout's mark and what this rank does, of which the ranks take the maximum."""
        mark, word = self._layout.mark(device, self.doing.votes), self.doing.word
        return [mark, mark.new_full((1,), word), mark.new_full((1,), -word if word != LEAVES else word)]

    def _merged(self, packed: Tensor, wait: Waits | None) -> Totals:
        totals, said = self._read(packed)
        if not said:
            return totals
        highest, lowest, *votes, word, least = said
        doing = (self.doing if word == LEAVES else Doing.of(word))._replace(votes=Votes(*votes))
        one_leaves_a_pass = totals["leaving"] > 0 and doing.what not in ("step", "flush", "tally")
        unlike = word != LEAVES and differ(word, -least)
        if highest != -lowest or unlike or one_leaves_a_pass:
            raise self._layout.unlike(self._group, self._own.device, self._says, wait)
        self.doing = doing
        self.first_step = doing.step if word == LEAVES else Doing.of(-least).step
        return totals

    def _read(self, packed: Tensor) -> tuple[Totals, tuple[int, ...]]:
        cells, at = packed.cpu().numpy(), self._places
        own_maxima = _ints(cells, at.own_maxima)
        self.wants_slots = own_maxima[-1:] == (1,)
        keep, columns = self._shapes["token_rows"]
        token_rows = _rows(cells[at.token_rows], columns)
        sequence_rows = _rows(cells[at.sequence_rows], layout.SEQUENCE_COLUMNS)
        totals = Totals(
            sums=_ints(cells, at.sums),
            extra_sums=_ints(cells, at.extra_sums),
            histogram=_trimmed(cells[at.histogram]),
            maxima=_ints(cells, at.maxima),
            extra_maxima=_ints(cells, at.extra_maxima),
            token_rows=with_tokens(token_rows, self._evidence, keep, columns) if self._evidence else token_rows,
            sequence_rows=with_sequences(sequence_rows, self._evidence, keep) if self._evidence else sequence_rows,
            keep=keep,
            extras=self._extras,
            saturated=self._check(int(cells[: at.histogram.start].max())),  # no bucket holds more than all tokens
            own=values(self._slots, own_maxima, _ints(cells, at.squares)),
        )
        return totals, _ints(cells, at.said)

    def _check(self, largest: int) -> bool:
        """Return True, and warn, if a sum may have reached the ceiling on some rank."""
        saturated = largest >= self._ceiling
        if saturated:
            warnings.warn(
                f"pplmon: a sum reached its ceiling of {self._ceiling} and stays there: the numbers of this window are no "
                "longer right. Read out more often.",
                RuntimeWarning,
                stacklevel=5,
            )
        return saturated

    def _start(self, group: Group) -> None:
        self._all = self._own
        if self._ranks > 1:
            self._all = self._own.clone()
            sums, maxima = self._all[self._places.summed], self._all[self._places.maximized]
            # SUM cannot saturate: so that W ranks at the ceiling cannot wrap, each gives at most its part.
            sums.clamp_max_(self._ceiling)
            self._work = [
                dist.all_reduce(sums, dist.ReduceOp.SUM, group=group.handle, async_op=True),
                dist.all_reduce(maxima, dist.ReduceOp.MAX, group=group.handle, async_op=True),
            ]

    def _wait(self) -> None:
        for work in self._work:
            work.wait()
        self._work = []

    def _start_beside_the_step(self, group: Group) -> None:
        """Copy on a separate stream: a copy that is queued on the step's stream would wait for the whole next step."""
        device = self._own.device
        stream = _side_stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            self._start(group)
            self._wait()  # with NCCL, this makes the stream wait, not the host
            self._host = torch.empty(self._all.shape, dtype=torch.int64, device="cpu", pin_memory=True)
            self._host.copy_(self._all, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(stream)
        self._own.record_stream(stream)  # its memory must not be reused before this stream has read it


@lru_cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def state_of(totals: Totals, like: State) -> State:
    """Return host totals as tensors, saturated, in the shape of a tally's state."""

    def tensor(values: Sequence[int], old: Tensor) -> Tensor:
        return torch.tensor([min(value, layout.CEILING) for value in values], dtype=torch.int64).to(old.device)

    def rows(given: tuple[Row, ...] | Rows, old: Tensor) -> Tensor:
        keep, columns = old.shape
        return torch.tensor(_flat(given[:keep], keep, columns), dtype=torch.int64).view(keep, columns).to(old.device)

    return State(
        sums=tensor(totals.sums, like.sums),
        maxima=tensor(totals.maxima, like.maxima),
        histogram=tensor(totals.histogram.buckets(), like.histogram),
        token_rows=rows(totals.token_rows, like.token_rows),
        sequence_rows=rows(totals.sequence_rows, like.sequence_rows),
        extra_sums=tensor(totals.extra_sums, like.extra_sums),
        extra_maxima=tensor(totals.extra_maxima, like.extra_maxima),
    )


def gather_rows(totals: Totals, group: Group, device: torch.device, columns: int, wait: Waits | None = None) -> Totals:
    """Return ``totals`` with the worst rows of all ranks. One collective; every rank of the group calls it.

    ``wait`` may give it up before the group does.
    """
    if group.size <= 1:
        return totals
    keep = totals.keep
    own = torch.tensor(
        _flat(totals.token_rows, keep, columns) + _flat(totals.sequence_rows, keep, layout.SEQUENCE_COLUMNS)
    )
    own = own.to(device)
    parts = [torch.empty_like(own) for _ in range(group.size)]
    work = dist.all_gather(parts, own, group=group.handle, async_op=True)
    wait_for(work, device, wait)
    # Merged on the device: as Python rows those of ten thousand ranks would hold a step up for seconds.
    stacked, of_tokens = torch.stack(parts), keep * columns
    tokens = merge_rows(stacked[:, :of_tokens].reshape(group.size, keep, columns))
    sequences = merge_rows(stacked[:, of_tokens:].reshape(group.size, keep, layout.SEQUENCE_COLUMNS))
    cells, end = torch.cat([tokens.flatten(), sequences.flatten()]).cpu().numpy(), tokens.numel()
    token_rows, sequence_rows = _rows(cells[:end], columns), _rows(cells[end:], layout.SEQUENCE_COLUMNS)
    return replace(totals, token_rows=token_rows, sequence_rows=sequence_rows)


def _ints(cells: Any, place: slice) -> tuple[int, ...]:
    return tuple(cells[place].tolist())


def _rows(cells: Any, columns: int) -> tuple[Row, ...]:
    """Return rows [K, C], which are sorted; those that are empty stand last and are left out."""
    if not len(cells) or cells[0] < 0:
        return ()
    return tuple([tuple(row) for row in cells.reshape(-1, columns).tolist() if row[0] >= 0])


def _trimmed(buckets: Any) -> Histogram:
    filled = buckets.nonzero()[0]
    if not len(filled):
        return Histogram()
    first, last = int(filled[0]), int(filled[-1])
    return Histogram(first, tuple(buckets[first : last + 1].tolist()))


def _flat(rows: Iterable[Row], keep: int, columns: int) -> list[int]:
    filled = [cell for row in rows for cell in row]
    return filled + [-1] * (keep * columns - len(filled))
