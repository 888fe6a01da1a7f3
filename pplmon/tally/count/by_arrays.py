"""Count tokens by array operations, on any device; the states are changed in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pplmon.measure.tokens import TokenStats
from pplmon.tally.count import sums as count
from pplmon.tally.count import worst
from pplmon.tally.count.columns import Columns, columns_of
from pplmon.tally.count.numpy_or_torch import Array, Arrays, OnNumpy, arrays_on
from pplmon.tally.count.sequences import Sequences, packed
from pplmon.tally.records import Given, Settings, State


def add(state: State, stats: TokenStats, given: Given, settings: Settings) -> Tensor:
    """Count one batch, and return which tokens were valid, [N] bool."""
    xp = arrays_on(stats.nll.device)
    evidence, valid = add_numbers(xp, state, columns_of(xp.of, stats, given), settings)
    rank(xp, state, [evidence], settings.context)
    return xp.tensor(valid)


def by_numpy(device: torch.device) -> bool:
    """Return True where numpy counts."""
    return isinstance(arrays_on(device), OnNumpy)


def add_numbers(xp: Arrays, state: State, columns: Columns, settings: Settings) -> tuple[worst.Evidence, Array]:
    """Count tokens, but for their worst rows; return what finds these, and which tokens were valid, [N] bool."""
    token_bytes = None if settings.token_bytes is None else xp.of(settings.token_bytes)
    sequences = _sequences(xp, columns) if settings.whole_sequences else None
    batch = count.prepare(xp, columns, sequences)
    per_sequence = count.count_sequences(xp, batch, settings.min_sequence_tokens)
    count.add_sums(xp, xp.of(state.sums), batch, per_sequence, token_bytes)
    count.raise_maxima(xp, xp.of(state.maxima), batch, per_sequence, token_bytes)
    count.add_histogram(xp, xp.of(state.histogram), batch)
    return worst.evidence_of(batch, per_sequence), batch.valid


def rank(xp: Arrays, state: State, evidence: Sequence[worst.Evidence], context: int) -> None:
    """Keep the worst rows of all of this in a tally's rows."""
    token_rows, sequence_rows = xp.of(state.token_rows), xp.of(state.sequence_rows)
    for found in evidence:
        worst.keep_tokens(xp, token_rows, found, context)
        worst.keep_sequences(xp, sequence_rows, found)


def _sequences(xp: Arrays, columns: Columns) -> Sequences | None:
    if columns.documents is not None:
        return packed(xp, columns.documents, columns.alike.shift)
    if columns.alike.flat:
        return None  # flat stats have no sequences
    return Sequences(sum(rows for _, rows in columns.batches), columns.alike.length)
