"""Turn one batch of ``TokenStats`` into integers, and add these to a tally's sums, maxima and histogram in place.

Nothing here waits for the device: no item(), no boolean indexing, no tensor made from Python values. Shapes: R rows,
T columns, N = R·T tokens, S sequences.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from pplmon.report import layout
from pplmon.tally.count.columns import Columns
from pplmon.tally.count.numpy_or_torch import Array, Arrays
from pplmon.tally.count.sequences import Sequences
from pplmon.tally.merge import FRACTION_MASK, carry

SCALE = 2.0**layout.FRACTION_BITS
OVERCONFIDENT = 0.9
ROUNDING = 1 + 2.0**-20  # exactly uniform logits give ln V up to a rounding, and are not worse than uniform
NAN_BITS = 0x7F800001  # one pattern for every NaN, so that all non-finite tokens sort alike on all devices


class Batch(NamedTuple):
    """The tokens of one batch, or of several, ready to be counted."""

    columns: Columns
    scored: Array  # [N] bool
    valid: Array  # [N] bool: scored and finite
    invalid: Array  # [N] bool: to be scored, but outside the vocabulary
    loss: Array  # [N] float32 nats; 0 where not valid
    units: Array  # [2, N] int64: the loss, capped, in 2**-32 nats, and p(target) in 2**-32; 0 where not valid
    bits: Array  # [N] int32: float bits of the loss, NaN and inf included; −1 where not scored
    sequences: Sequences | None


class SequenceSums(NamedTuple):
    """Sums of each sequence, [S]: valid tokens, and the mean loss in 2**-32 nats (−1 where too short)."""

    tokens: Array
    mean_units: Array


def prepare(xp: Arrays, columns: Columns, sequences: Sequences | None) -> Batch:
    """Decide which tokens count, and turn their losses into integers."""
    nll, scored, invalid = columns.nll, columns.scored, columns.invalid
    if sequences is not None and sequences.crosses is not None:
        scored, invalid = scored & ~sequences.crosses, invalid & ~sequences.crosses
    valid = scored & (nll < math.inf)  # not NaN either
    bits = nll.view(xp.int32) & 0x7FFFFFFF
    all_valid = xp.known_all(valid)
    loss = nll if all_valid else xp.where(valid, nll, 0.0)
    amounts = xp.stack([xp.at_most(loss, layout.CAP_NATS), xp.exp(-loss)])
    if not all_valid:
        amounts *= valid
        bits = xp.where(scored, xp.at_most(bits, NAN_BITS), -1)
    amounts *= SCALE
    return Batch(columns, scored, valid, invalid, loss, xp.integers(xp.round(amounts)), bits, sequences)


def count_sequences(xp: Arrays, batch: Batch, least: int) -> SequenceSums | None:
    """Sum each sequence's valid tokens, in integers, so that the order cannot matter."""
    sequences = batch.sequences
    if sequences is None:
        return None
    if sequences.first is None:
        shape = (sequences.rows, sequences.length)
        tokens, total = xp.sum(batch.valid.reshape(shape)), xp.sum(batch.units[0].reshape(shape))
    else:
        tokens = xp.sums_by(sequences.first, xp.integers(batch.valid))
        total = xp.sums_by(sequences.first, batch.units[0])
    return SequenceSums(tokens, xp.where(tokens >= max(least, 1), total // xp.at_least(tokens, 1), -1))


def add_sums(
    xp: Arrays, sums: Array, batch: Batch, per_sequence: SequenceSums | None, token_bytes: Array | None
) -> None:
    """Add the batch to the sums of ``layout.SUMS`` [len(SUMS)], in place."""
    columns, valid = batch.columns, batch.valid
    tokens = xp.count(valid)
    whole, fraction = xp.sum(batch.units >> layout.FRACTION_BITS), xp.sum(batch.units & FRACTION_MASK)
    parts = {
        "tokens": tokens,
        "nll_whole": whole[0],
        "nll_fraction": fraction[0],
        "probability_whole": whole[1],
        "probability_fraction": fraction[1],
        "nonfinite_tokens": xp.count(batch.scored) - tokens,
        "capped_tokens": xp.count(batch.loss >= layout.CAP_NATS),
        "invalid_targets": xp.count(batch.invalid),
        "sequences_unknown" if per_sequence is None else "sequences": (
            tokens if per_sequence is None else xp.count(per_sequence.tokens > 0)
        ),
    }
    if columns.correct is None:
        parts["correct_unknown"] = tokens
    else:
        parts["correct"] = xp.count(valid & columns.correct)
    if columns.top_probability is None:
        parts["top_probability_unknown"] = tokens
    elif columns.correct is not None:
        parts["overconfident_errors"] = xp.count((columns.top_probability >= OVERCONFIDENT) & valid & ~columns.correct)
    if columns.alike.vocab_size is None:
        parts["vocab_unknown"] = tokens
    else:
        parts["above_uniform"] = xp.count(batch.loss > math.log(columns.alike.vocab_size) * ROUNDING)
    if token_bytes is None:
        parts["bytes_unknown"] = tokens
    else:
        known = valid & (columns.targets < len(token_bytes))
        parts["bytes"] = xp.where(known, token_bytes[xp.where(known, columns.targets, 0)], 0).sum()
        parts["bytes_unknown"] = tokens - xp.count(known)
    sums += xp.vector([*(dict.fromkeys(layout.SUMS, 0) | parts).values()])
    carry(xp, sums)


def raise_maxima(
    xp: Arrays, maxima: Array, batch: Batch, per_sequence: SequenceSums | None, token_bytes: Array | None
) -> None:
    """Raise to the batch's maxima those of ``layout.MAXIMA`` [len(MAXIMA)], in place."""
    columns, vocab = batch.columns, batch.columns.alike.vocab_size
    parts = {
        "token_loss_bits": xp.integers(xp.largest(xp.where(batch.valid, batch.bits, -1))),
    }
    if not xp.known_none(xp.count(batch.invalid)):
        far = layout.EXAMPLE_OFFSET
        example = xp.at_least(xp.at_most(columns.targets, far), -far) + far
        parts["invalid_target_example"] = xp.largest(xp.where(batch.invalid, example, -1))
    if per_sequence is not None:
        parts["sequence_loss_units"] = xp.largest(per_sequence.mean_units)
    if vocab is not None:
        parts["vocab_size"], parts["vocab_complement"] = vocab, layout.VOCAB_LIMIT - vocab
    known = {
        "sequences": per_sequence,
        "correct": columns.correct,
        "top_probability": columns.top_probability,
        "vocab": vocab,
        "bytes": token_bytes,
    }
    parts |= {f"{what}_missing": 1 for what in layout.KNOWABLE if known[what] is None}
    xp.maximum(maxima, xp.vector([*(dict.fromkeys(layout.MAXIMA, -1) | parts).values()]), out=maxima)


def add_histogram(xp: Arrays, histogram: Array, batch: Batch) -> None:
    """Count losses by the upper bits of their float pattern [layout.BUCKETS], in place."""
    bucket = xp.at_least(xp.at_most((batch.bits >> layout.BUCKET_SHIFT) - layout.BUCKET_OFFSET, layout.BUCKETS - 1), 0)
    xp.add_counts(histogram, bucket, batch.valid)
    xp.limit(histogram, layout.CEILING)
