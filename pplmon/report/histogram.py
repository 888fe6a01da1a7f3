"""A histogram of token losses that can be added to others, and its quantiles and tails."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from operator import add, mul

from pplmon.report import layout

_TO_EIGHTHS = layout.MANTISSA_BITS - 3
LOWEST_DRAWN = (127 - 7) << 3  # the eighth that begins at 2^-7 nats (p > 0.992): pictures count what is below as this


@dataclass(frozen=True)
class Histogram:
    """Token counts in the buckets of ``report.layout``, without the empty buckets at both ends.

    Most buckets are empty, and every judged step adds and reads a histogram.
    """

    first: int = 0  # the bucket that counts[0] is of; 0 where there are none
    counts: tuple[int, ...] = ()

    @classmethod
    def of(cls, buckets: Sequence[int]) -> Histogram:
        """Return a histogram from the counts of all buckets."""
        filled = [index for index, count in enumerate(buckets) if count]
        return cls(filled[0], tuple(buckets[filled[0] : filled[-1] + 1])) if filled else cls()

    def buckets(self) -> tuple[int, ...]:
        """Return the counts of all buckets."""
        return self._spread(0, layout.BUCKETS)

    def eighths(self) -> tuple[int, list[int]]:
        """Return the counts in buckets of an eighth of an octave, which is enough to draw: the first one's number, and all.

        Bucket n holds the losses from ``eighth_edge(n)`` to ``eighth_edge(n + 1)`` nats.
        """
        numbers = [(self.first + index + layout.BUCKET_OFFSET) >> _TO_EIGHTHS for index in range(len(self.counts))]
        counts = [0] * (numbers[-1] - numbers[0] + 1 if numbers else 0)
        for number, count in zip(numbers, self.counts):
            counts[number - numbers[0]] += count
        return (numbers[0] if numbers else 0), counts

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram.sum((self, other))

    @classmethod
    def sum(cls, parts: Iterable[Histogram]) -> Histogram:
        """Return a histogram that counts the tokens of all parts."""
        parts = [part for part in parts if part.counts]
        if len(parts) < 2:
            return parts[0] if parts else cls()
        low = min(part.first for part in parts)
        end = max(part.first + len(part.counts) for part in parts)
        return cls(low, added([part._spread(low, end) for part in parts]))

    def _spread(self, low: int, end: int) -> tuple[int, ...]:
        return (0,) * (self.first - low) + self.counts + (0,) * (end - self.first - len(self.counts))


def added(parts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the sums, place by place, of parts of one length."""
    return tuple(map(add, *parts) if len(parts) == 2 else map(sum, zip(*parts)))  # of two the former takes a third


def eighth_edge(number: int) -> float:
    """Return the least loss, in nats, of the bucket ``number`` of ``Histogram.eighths``."""
    return layout.float_from_bits(number << (layout.BUCKET_SHIFT + _TO_EIGHTHS))


class Losses:
    """The quantiles and tails of a histogram, whose running sums are computed once.

    Each loss reads as the midpoint of its bucket, never beyond the exact ``largest`` (nats).
    """

    def __init__(self, histogram: Histogram, largest: float) -> None:
        self._counts, self._largest = histogram.counts or (0,), largest
        self._values = layout.BUCKET_VALUES[histogram.first : histogram.first + len(self._counts)]
        self._up_to = list(accumulate(self._counts))  # tokens in this bucket and below

    def quantile(self, q: float) -> float:
        """Return the ⌈q·n⌉-th smallest loss: numpy's ``inverted_cdf``."""
        n = self._up_to[-1]
        if not n:
            return math.nan
        share = _as_meant(q)
        rank = max(1, -(-share.numerator * n // share.denominator))
        return self._value(bisect_left(self._up_to, rank))

    def tail(self, count: int) -> float:
        """Return Σ of the ``count`` largest losses."""
        rest = self._up_to[-1] - count
        first = bisect_right(self._up_to, rest) if count else len(self._up_to)
        if first == len(self._up_to):
            return 0.0
        last = bisect_left(self._up_to, self._up_to[-1])  # the bucket of the largest: the only one that it limits
        partial = (self._up_to[first] - rest) * self._value(first)
        if first == last:
            return partial
        between = slice(first + 1, last)
        full = sum(map(mul, self._counts[between], self._values[between]), start=0.0)
        return partial + full + self._counts[last] * self._value(last)

    def head(self, count: int) -> float:
        """Return Σ of the ``count`` smallest losses."""
        return self.tail(self._up_to[-1]) - self.tail(self._up_to[-1] - count)

    def _value(self, bucket: int) -> float:
        return min(self._values[bucket], self._largest)


@lru_cache
def _as_meant(q: float) -> Fraction:
    return Fraction(q).limit_denominator(10**9)  # 0.99 is meant as 99/100, not as the float beside it
