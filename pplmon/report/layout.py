"""The integers that every number is made of: their names, order and scale.

The tally (tensors) and the report (plain Python) both read these lists. Every state is an int64, because
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

# An amount is two sums: of whole units, and of fractions of 2**-32, which are carried into the first.
PAIRS: tuple[tuple[str, str], ...] = (("nll_whole", "nll_fraction"), ("probability_whole", "probability_fraction"))
# What may not be known of a token. A number that needs it exists only while its sum of unknown tokens is 0.
KNOWABLE = ("sequences", "correct", "top_probability", "vocab", "bytes")
# Ranks that wish to stop, and ranks that have no more steps: both travel with the numbers, so all learn of them at the
# same step.
SIGNALS = ("stop_votes", "leaving")

SUMS: tuple[str, ...] = (
    *(whole for whole, _ in PAIRS),
    *(fraction for _, fraction in PAIRS),
    "tokens",
    "sequences",
    "correct",
    "overconfident_errors",
    "above_uniform",
    "bytes",
    "nonfinite_tokens",
    "capped_tokens",
    "invalid_targets",
    "duplicate_sequences",
    "duplicates_known",
    *(f"{what}_unknown" for what in KNOWABLE),
    *SIGNALS,
)
SUM_PLACES = {name: place for place, name in enumerate(SUMS)}
WHOLES, FRACTIONS = slice(0, len(PAIRS)), slice(len(PAIRS), 2 * len(PAIRS))  # slices, which are views: an index copies

# Maxima; -1 where there was nothing. ``vocab_complement`` is VOCAB_LIMIT − V, so that its maximum gives the smallest V.
MAXIMA: tuple[str, ...] = (
    "token_loss_bits",
    "sequence_loss_units",
    "vocab_size",
    "vocab_complement",
    "invalid_target_example",
    # 1 where some batch lacked the thing. It decides between None and NaN in a window without any valid token.
    *(f"{what}_missing" for what in KNOWABLE),
)
MAXIMUM_PLACES = {name: place for place, name in enumerate(MAXIMA)}

# A program on a GPU holds all sums, and all maxima, in one block of registers of this size.
MOST_SUMS, MOST_MAXIMA = 32, 16
assert len(SUMS) <= MOST_SUMS, f"{len(SUMS)} sums, of which a GPU program takes {MOST_SUMS}: raise MOST_SUMS to 64"
assert len(MAXIMA) <= MOST_MAXIMA, (
    f"{len(MAXIMA)} maxima, of which a GPU program takes {MOST_MAXIMA}: raise MOST_MAXIMA to 32"
)
assert len({*SUMS, *MAXIMA}) == len(SUMS) + len(MAXIMA), "two cells have one name, by which they are saved"

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
assert TOKEN_LOSS == SEQUENCE_LOSS, "rows of tokens and of sequences are merged by the same functions"

# WHEN = step << 20 | micro-batch;  WHERE = rank << 44 | sequence << 24 | position.
MICRO_BITS, SEQUENCE_BITS, POSITION_BITS = 20, 20, 24
ORDER_BITS = 20  # the key by which a batch's sequences are compared: the mean loss, and below it the place in the batch
assert CAP_NATS * 2**FRACTION_BITS < 2 ** (63 - ORDER_BITS), "a mean loss at the cap does not fit a sequence's key"
NO_LOSS = 0xFFFFFFFF  # the low half of a neighbour's cell where it has an id but was not scored


def place(name: str) -> int:
    """Return the index of a sum or a maximum in the list that it stands in."""
    for places in (SUM_PLACES, MAXIMUM_PLACES):
        if name in places:
            return places[name]
    raise ValueError(f"no sum and no maximum is named {name!r}; there are {', '.join((*SUMS, *MAXIMA))}")


def float_from_bits(bits: int) -> float:
    """Return the float32 whose bit pattern is ``bits``."""
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


def _bucket_values() -> tuple[float, ...]:
    """Return the midpoint of each bucket, in nats: at most 0.8 % from any loss in it."""
    edges = [0.0] + [float_from_bits((j + BUCKET_OFFSET) << BUCKET_SHIFT) for j in range(1, BUCKETS)]
    middles = [(low + high) / 2 for low, high in zip(edges, edges[1:])]
    return (*middles, CAP_NATS)  # a loss beyond the cap counts as the cap


BUCKET_VALUES = _bucket_values()


def nats(units: int) -> float:
    """Return fixed-point ``units`` of 2**-32 in nats."""
    return units / (1 << FRACTION_BITS)
