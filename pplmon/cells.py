"""The integers that every number is made of: their names, order and scale.

The accumulator (tensors) and the report (plain Python) meet on these lists. Every state is an int64, because
integer sums and maxima do not depend on the order or the grouping in which they are taken.

Fixed point: an amount in nats is held as ``whole`` and ``fraction`` cells, value = whole + fraction / 2**32.
One token counts at most ``CAP_NATS``, so a cell of whole nats reaches its ``CEILING`` of 2**62 only after 4e15 tokens
of the worst kind; it then stays there.
"""

from __future__ import annotations

import struct

FRACTION_BITS = 32
CAP_NATS = 2.0**10
CEILING = 2**62 - 1
NONE = -(2**63)  # stands for "not given" where any smaller magnitude could be a real id

SUMS: tuple[str, ...] = (
    "tokens",
    "sequences",
    "nll_whole",
    "nll_fraction",
    "probability_whole",
    "probability_fraction",
    "correct",
    "overconfident_errors",
    "above_uniform",
    "bytes",
    "nonfinite_tokens",
    "capped_tokens",
    "invalid_targets",
    "duplicate_sequences",
    # Valid tokens for which something was not known. A number that needs it exists only while this is 0.
    "sequences_unknown",
    "correct_unknown",
    "top_probability_unknown",
    "vocab_unknown",
    "bytes_unknown",
    "duplicates_known",
    # Ranks that wish to stop, and ranks that have no more steps: both travel with the numbers, so all learn of them at
    # the same step.
    "stop_votes",
    "leaving",
)
SIGNALS = ("stop_votes", "leaving")

# Maxima; -1 where there was nothing. ``vocab_complement`` is VOCAB_LIMIT − V, so that its maximum gives the smallest V.
MAXIMA: tuple[str, ...] = (
    "token_loss_bits",
    "sequence_loss_units",
    "vocab_size",
    "vocab_complement",
    "invalid_target_example",
    # 1 where some batch lacked the thing. It decides between None and NaN in a window without any valid token.
    "sequences_missing",
    "correct_missing",
    "top_probability_missing",
    "vocab_missing",
    "bytes_missing",
)
VOCAB_LIMIT = 2**40
EXAMPLE_OFFSET = 2**61  # added to an example target, so that negative ones stay above the empty −1

# Histogram of float32 bit patterns: 64 buckets an octave from 2**-20 to 2**10, one below, one at and above the cap.
MANTISSA_BITS = 6
BUCKET_SHIFT = 23 - MANTISSA_BITS
LOWEST_EXPONENT = -20
BUCKET_OFFSET = ((127 + LOWEST_EXPONENT) << MANTISSA_BITS) - 1
BUCKETS = 30 * 2**MANTISSA_BITS + 2

# Columns of a worst-token row, then 2·context+1 columns of neighbours (id << 32 | loss bits, −1 outside).
TOKEN_LOSS, WHEN, WHERE, TARGET, PREDICTED, TOP_PROBABILITY, SAMPLE = range(7)
TOKEN_COLUMNS = 7
# Columns of a worst-sequence row; WHEN and WHERE stand where they stand above.
SEQUENCE_LOSS, SEQUENCE_TOKENS, SEQUENCE_DOCUMENT, SEQUENCE_SAMPLE = 0, 3, 4, 5
SEQUENCE_COLUMNS = 6

# WHEN = step << 20 | micro-batch;  WHERE = rank << 44 | sequence << 24 | position.
MICRO_BITS, SEQUENCE_BITS, POSITION_BITS = 20, 20, 24
NO_LOSS = 0xFFFFFFFF  # the low half of a neighbour's cell where it has an id but was not scored


def float_from_bits(bits: int) -> float:
    """Return the float32 whose bit pattern is ``bits``."""
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


def _bucket_values() -> tuple[float, ...]:
    """Midpoint of each bucket, in nats: at most 0.8 % from any loss in it."""
    edges = [0.0] + [float_from_bits((j + BUCKET_OFFSET) << BUCKET_SHIFT) for j in range(1, BUCKETS)]
    middles = [(low + high) / 2 for low, high in zip(edges, edges[1:])]
    return (*middles, CAP_NATS)  # a loss beyond the cap counts as the cap


BUCKET_VALUES = _bucket_values()


def nats(units: int) -> float:
    """Return fixed-point ``units`` of 2**-32 in nats."""
    return units / (1 << FRACTION_BITS)
