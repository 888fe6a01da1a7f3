"""Count one batch by array operations, on any device; the states are changed in place."""

from __future__ import annotations

from torch import Tensor

from pplmon.measure.tokens import TokenStats
from pplmon.tally.count import sums as count
from pplmon.tally.count import worst
from pplmon.tally.count.numpy_or_torch import Arrays, arrays_on
from pplmon.tally.count.sequences import Sequences, packed
from pplmon.tally.records import Given, Settings, State


def add(state: State, stats: TokenStats, given: Given, settings: Settings) -> Tensor:
    """Count one batch, and return which tokens were valid, [N] bool."""
    xp = arrays_on(stats.nll.device)
    sums, maxima, histogram, token_rows, sequence_rows = map(xp.of, state[:5])  # not what extras count
    token_bytes = None if settings.token_bytes is None else xp.of(settings.token_bytes)
    sequences = _sequences(xp, stats, given.documents) if settings.whole_sequences else None
    batch = count.prepare(xp, _columns(xp, stats), sequences)
    per_sequence = count.count_sequences(xp, batch, settings.min_sequence_tokens)
    count.add_sums(xp, sums, batch, per_sequence, token_bytes)
    count.raise_maxima(xp, maxima, batch, per_sequence, token_bytes)
    count.add_histogram(xp, histogram, batch)
    sample_ids, position_ids = (None if x is None else xp.of(x) for x in (given.sample_ids, given.position_ids))
    address = worst.Address(given.step, given.micro_batch, given.rank, sample_ids, position_ids)
    worst.keep_tokens(xp, token_rows, batch, address, settings.context)
    worst.keep_sequences(xp, sequence_rows, batch, per_sequence, address)
    return xp.tensor(batch.valid)


def _sequences(xp: Arrays, stats: TokenStats, documents: Tensor | None) -> Sequences | None:
    if documents is not None:
        return packed(xp, xp.of(documents), stats.shift)
    return Sequences(*stats.batch_shape) if len(stats.batch_shape) == 2 else None  # flat stats have no sequences


def _columns(xp: Arrays, stats: TokenStats) -> count.Columns:
    correct, top_probability, predicted = (
        None if x is None else xp.of(x) for x in (stats.correct, stats.top_probability, stats.predicted)
    )
    rows, length = stats.batch_shape if len(stats.batch_shape) == 2 else (1, *stats.batch_shape)
    return count.Columns(
        xp.of(stats.nll),
        correct,
        top_probability,
        predicted,
        xp.of(stats.targets),
        xp.of(stats.scored),
        xp.of(stats.invalid),
        stats.vocab_size,
        (rows, length),
        stats.shift,
    )
