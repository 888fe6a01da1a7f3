"""The standard error of a mean over documents, from sums that documents were put into: an interval, and a paired difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

LEVEL = 0.95


class Bucket(NamedTuple):
    """The documents of one bucket: their tokens, and their Σ nll in nats."""

    tokens: int
    nats: float


def mean_of(buckets: Sequence[Bucket]) -> float:
    """Return the mean per token, in nats; NaN of none."""
    tokens = sum(bucket.tokens for bucket in buckets)
    return math.fsum(bucket.nats for bucket in buckets) / tokens if tokens else math.nan


def standard_error(*passes: Sequence[Bucket]) -> float | None:
    """Return the standard error of the mean of one pass, or of the second's less the first's; ``None`` of one bucket alone.

    Each bucket counts by how much it moves the mean (of two passes: the difference of the means). G/(G−1) · Σ (that)² over the
    G buckets with any token is the variance of a ratio of sums over random groups.
    """
    weights = [_influence(buckets) for buckets in passes]
    parts = [weight[-1] - math.fsum(weight[:-1]) for weight, *tokens in zip(zip(*weights), *passes) if _any(tokens)]
    if len(parts) < 2:
        return None
    return math.sqrt(len(parts) / (len(parts) - 1) * math.fsum(part * part for part in parts))


def half_width(buckets: Sequence[Bucket]) -> float | None:
    """Return half the length of the 95 % interval of the mean, in nats; ``None`` of one bucket alone."""
    error, filled = standard_error(buckets), sum(bucket.tokens > 0 for bucket in buckets)
    return None if error is None else error * students_t(filled - 1)


def students_t(freedom: int) -> float:
    """Return the t of which 95 % of Student's distribution lie within ±t, for these degrees of freedom, within 0.2 %."""
    p = (1 + LEVEL) / 2
    if freedom == 1:
        return math.tan(math.pi * (p - 0.5))
    if freedom == 2:
        return (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    z = NormalDist().inv_cdf(p)  # and its expansion in 1/freedom (Abramowitz and Stegun, 26.7.5)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / float(freedom) ** power for power, term in enumerate(terms))


def _influence(buckets: Sequence[Bucket]) -> list[float]:
    tokens, mean = sum(bucket.tokens for bucket in buckets), mean_of(buckets)
    return [(bucket.nats - mean * bucket.tokens) / tokens for bucket in buckets]


def _any(buckets: Sequence[Bucket]) -> bool:
    return any(bucket.tokens for bucket in buckets)
