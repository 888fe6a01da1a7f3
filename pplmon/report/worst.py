"""The worst tokens and sequences of a window, each with its address."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

from pplmon.report import layout
from pplmon.report.texts import Texts

PIECE = 200  # characters of one token's own text: context_text has the whole
Row = tuple[int, ...]
_LOSS, _ADDRESS = itemgetter(layout.TOKEN_LOSS), itemgetter(layout.WHEN, layout.WHERE)


@dataclass(frozen=True)
class WorstToken:
    """One token with its loss, its target, the model's prediction, and its address in the run.

    Attributes:
        loss: its loss, in nats, which may be NaN or inf.
        step: the optimizer step, 0-based.
        micro_batch: the micro-batch of the step, 0-based.
        rank: the rank that had it, counted over the whole run.
        sequence: the row of the batch, 0-based.
        position: the column of the target in the targets that were given, 0-based; its ``position_ids`` where those were given.
        target: the id that was expected.
        predicted: the id that the model found most likely; ``None`` where that is not known.
        predicted_probability: the probability, 0 to 1, that the model gave to ``predicted``; ``None`` likewise.
        sample_id: the row of the dataset, where ``sample_ids`` were given.
        context_ids: the ids of the token, in the middle, and of its neighbours; ``None`` beyond the sequence, and for no token.
        context_losses: their losses, in nats; ``None`` beyond the sequence, and where a neighbour is not scored.
        context_text: ``context_ids`` as text, where the monitor has a ``decode``.
        target_text: ``target`` as text, likewise.
        predicted_text: ``predicted`` as text, likewise.
    """

    loss: float
    step: int = 0
    micro_batch: int = 0
    rank: int = 0
    sequence: int = 0
    position: int = 0
    target: int = 0
    predicted: int | None = None
    predicted_probability: float | None = None
    sample_id: int | None = None
    context_ids: tuple[int | None, ...] = ()
    context_losses: tuple[float | None, ...] = ()
    context_text: str | None = None
    target_text: str | None = None
    predicted_text: str | None = None
    context_pieces: tuple[str | None, ...] | None = None  # each context token's own text; None where there is none

    def decoded(self, texts: Texts) -> WorstToken:
        """Return this token with its texts, as far as they are known."""
        pieces = tuple(None if i is None else texts.of(i) for i in self.context_ids)
        return replace(
            self,
            context_text=texts.of_all([i for i in self.context_ids if i is not None]),
            context_pieces=tuple(None if piece is None else piece[:PIECE] for piece in pieces),
            target_text=texts.of(self.target),
            predicted_text=None if self.predicted is None else texts.of(self.predicted),
        )


@dataclass(frozen=True)
class WorstSequence:
    """One sequence (a row of the batch, or a packed document) with its mean loss over valid tokens.

    Attributes:
        loss: the mean loss of its valid tokens, in nats per token.
        tokens: how many valid tokens it has.
        step: the optimizer step, 0-based.
        micro_batch: the micro-batch of the step, 0-based.
        rank: the rank that had it, counted over the whole run.
        sequence: the row of the batch, 0-based.
        position: its first column, 0-based: 0 but for packed documents.
        document_id: its document, where ``document_ids`` were given.
        sample_id: the row of the dataset, where ``sample_ids`` were given.
    """

    loss: float
    tokens: int = 0
    step: int = 0
    micro_batch: int = 0
    rank: int = 0
    sequence: int = 0
    position: int = 0
    document_id: int | None = None
    sample_id: int | None = None


def worst_token(row: Row) -> WorstToken:
    """Read one row of integers (see ``report.layout``)."""
    neighbours = row[layout.TOKEN_COLUMNS :]
    return WorstToken(
        loss=layout.float_from_bits(row[layout.TOKEN_LOSS]),
        **_address(row),
        target=row[layout.TARGET],
        predicted=None if row[layout.PREDICTED] < 0 else row[layout.PREDICTED],
        predicted_probability=_probability(row[layout.TOP_PROBABILITY]),
        sample_id=_optional(row[layout.SAMPLE]),
        context_ids=tuple(None if cell < 0 else cell >> 32 for cell in neighbours),
        context_losses=tuple(_neighbour_loss(cell) for cell in neighbours),
    )


def worst_sequence(row: Row) -> WorstSequence:
    """Read one row of integers (see ``report.layout``)."""
    return WorstSequence(
        loss=layout.nats(row[layout.SEQUENCE_LOSS]),
        tokens=row[layout.SEQUENCE_TOKENS],
        **_address(row),
        document_id=_optional(row[layout.SEQUENCE_DOCUMENT]),
        sample_id=_optional(row[layout.SEQUENCE_SAMPLE]),
    )


def merge_rows(rows: Sequence[Row], keep: int) -> tuple[Row, ...]:
    """Return the ``keep`` worst rows: the largest loss first, then the earliest address. Empty rows are left out."""
    by_address = sorted([row for row in rows if row[0] >= 0], key=_ADDRESS)
    return tuple(sorted(by_address, key=_LOSS, reverse=True)[:keep])  # of equal losses the order stays


def with_context(row: Row, context: int) -> Row:
    """Return a worst-token row with ``context`` neighbours on each side, cut or filled up with none."""
    head, neighbours = row[: layout.TOKEN_COLUMNS], row[layout.TOKEN_COLUMNS :]
    more = context - len(neighbours) // 2
    if more >= 0:
        return (*head, *[-1] * more, *neighbours, *[-1] * more)
    return (*head, *neighbours[-more:more])


def _address(row: Row) -> dict[str, Any]:
    when, where = row[layout.WHEN], row[layout.WHERE]
    return {
        "step": when >> layout.MICRO_BITS,
        "micro_batch": when & (2**layout.MICRO_BITS - 1),
        "rank": where >> (layout.SEQUENCE_BITS + layout.POSITION_BITS),
        "sequence": where >> layout.POSITION_BITS & (2**layout.SEQUENCE_BITS - 1),
        "position": where & (2**layout.POSITION_BITS - 1),
    }


def _optional(value: int) -> int | None:
    return None if value == layout.NONE else value


def _probability(bits: int) -> float | None:
    """Return a probability; ``None`` where it was not given, or is NaN because its logits are non-finite."""
    value = layout.float_from_bits(bits) if bits >= 0 else math.nan
    return None if math.isnan(value) else value


def _neighbour_loss(cell: int) -> float | None:
    bits = cell & layout.NO_LOSS
    return None if cell < 0 or bits == layout.NO_LOSS else layout.float_from_bits(bits)
