"""Cut a batch into sequences: its rows, or the runs of equal document ids in them.

Shapes: R rows, T columns, N = R·T tokens, all in the frame of the caller's targets (not shifted).
"""

from __future__ import annotations

from typing import NamedTuple

from pplmon.tally.count.numpy_or_torch import Array, Arrays


class Sequences(NamedTuple):
    """A batch cut into sequences. A sequence is named after its first token's index in [0, N)."""

    rows: int
    length: int
    # Of packed batches; None where each row is a sequence. In the order of the stats' rows.
    first: Array | None = None  # [N] int64: the name of the token's sequence
    documents: Array | None = None  # [N] int64, in the caller's frame
    crosses: Array | None = None  # [N] bool: the target's document is not that of its logits


def packed(xp: Arrays, documents: Array, shift: bool) -> Sequences:
    """Cut [R, T] document ids into runs of equal ones, which never span two rows."""
    rows, length = documents.shape
    index = xp.arange(0, rows * length).reshape(rows, length)
    starts = xp.full_like(documents, 0)
    starts[:, 1:] = xp.where(documents[:, 1:] != documents[:, :-1], index[:, 1:], 0)
    starts[:, 0] = index[:, 0]
    first = xp.running_maximum(starts)
    if not shift:
        return Sequences(rows, length, first.reshape(-1), documents.reshape(-1))
    after, first = (xp.concatenate([x[:, 1:], x[:, :1]], -1) for x in (documents, first))
    return Sequences(rows, length, first.reshape(-1), documents.reshape(-1), (after != documents).reshape(-1))
