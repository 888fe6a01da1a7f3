"""The tokens of a batch as columns, with what their addresses are made of, and how alike batches are joined to be counted as one.

Shapes: R rows, T columns, N = R·T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from pplmon.measure.tokens import TokenStats
from pplmon.report import layout
from pplmon.tally.count.numpy_or_torch import Array, Arrays
from pplmon.tally.records import Given

LEAST = 64


class Alike(NamedTuple):
    """The properties that batches must share to be joined."""

    length: int  # T; flat stats are one row
    flat: bool
    vocab_size: int | None
    shift: bool
    rank: int
    lacks: tuple[bool, ...]  # which columns are None


class Columns(NamedTuple):
    """The tokens of one batch, or of several one after another."""

    alike: Alike
    batches: tuple[tuple[int, int], ...]  # of each its step and micro-batch in one integer, and its rows
    nll: Array  # [N], as are the next six
    correct: Array | None
    top_probability: Array | None
    predicted: Array | None
    scored: Array
    invalid: Array
    targets: Array
    documents: Array | None  # [R, T] int64
    sample_ids: Array | None  # [R] int64
    position_ids: Array | None  # [N] int64, in place of the column

    @property
    def size(self) -> int:
        """Return the tokens, and of a smaller batch those whose columns take as much memory as the objects that hold them."""
        return max(len(self.nll), LEAST)


def columns_of(of: Callable[[Tensor], Array], stats: TokenStats, given: Given) -> Columns:
    """Return the columns of one batch, each tensor as ``of`` gives it."""
    measured = (stats.nll, stats.correct, stats.top_probability, stats.predicted, stats.scored, stats.invalid)
    tensors = (*measured, stats.targets, given.documents, given.sample_ids, given.position_ids)
    arrays = [None if x is None else of(x) for x in tensors]
    flat, length = len(stats.batch_shape) == 1, stats.batch_shape[-1]
    alike = Alike(length, flat, stats.vocab_size, stats.shift, given.rank, tuple([x is None for x in arrays]))
    when = given.step << layout.MICRO_BITS | given.micro_batch
    return Columns(alike, ((when, 1 if flat else stats.batch_shape[0]),), *arrays)


def joined(xp: Arrays, parts: Sequence[Columns]) -> Columns:
    """Return alike batches as one."""
    if len(parts) == 1:
        return parts[0]
    alikes, batches, *columns = zip(*parts)
    arrays = [None if column[0] is None else xp.concatenate(column) for column in columns]
    return Columns(alikes[0], sum(batches, ()), *arrays)
