"""The losses of a window's tokens as a histogram that loggers can draw."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pplmon.report.histogram import LOWEST_DRAWN, eighth_edge
from pplmon.report.report import Report


@dataclass(frozen=True)
class LossHistogram:
    """Tokens in buckets of an eighth of an octave, between 0 and the largest loss."""

    edges: tuple[float, ...]  # nats; one more than counts
    counts: tuple[int, ...]
    total: float  # the sum of the losses

    @classmethod
    def of(cls, report: Report) -> LossHistogram | None:
        """Return the histogram of a report; ``None`` where it has none."""
        first, counts = report.histogram.eighths()
        largest, mean = report.numbers.get("max_token_loss"), report.numbers.get("cross_entropy")
        if not counts or largest is None or mean is None or not math.isfinite(largest):
            return None
        below = max(0, min(len(counts) - 1, LOWEST_DRAWN - first + 1))  # the buckets that are drawn as one
        joined = (sum(counts[: below + 1]), *counts[below + 1 :])
        upper = [eighth_edge(first + below + place + 1) for place in range(len(joined))]
        edges = (0.0, *upper[:-1], max(float(largest), upper[-2] if len(upper) > 1 else 0.0))
        return cls(edges, joined, mean * sum(counts))

    @property
    def tokens(self) -> int:
        """Return the number of tokens."""
        return sum(self.counts)

    @property
    def squares(self) -> float:
        """Return the sum of the squared losses, each taken at the middle of its bucket."""
        middles = [(low + high) / 2 for low, high in zip(self.edges, self.edges[1:])]
        return sum(count * middle * middle for count, middle in zip(self.counts, middles))
