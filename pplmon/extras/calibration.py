"""``Calibration``: compare how sure the model is with how often it is right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pplmon.extras.base import Extra
from pplmon.extras.nats import LOW_BITS, mean, upper_and_lower
from pplmon.extras.parts import add_up
from pplmon.measure.tokens import TokenStats
from pplmon.report import layout
from pplmon.report.numbers import Number

BINS = 20
LEAST_TOKENS = 30_000  # with fewer, chance alone gives an error of about √(BINS / tokens)
COLUMNS = 4


class Bin(NamedTuple):
    """The tokens whose argmax has a probability within one bin: a point of the reliability diagram."""

    tokens: int
    accuracy: float
    confidence: float


class Calibration(Extra):
    """An extra that compares how sure the predictions are with how often they are right.

    Tokens are put into 20 bins of equal width by the probability of their argmax. ``calibration_error`` is
    Σ tokens of a bin / tokens · |its accuracy − its mean probability| (expected calibration error), None below 30,000 tokens,
    where chance makes most of it. ``overconfidence`` is ``mean_top_probability`` − accuracy: above 0, the model is surer than
    it is right; it has no such bias.

    ``reliability/{from}/…`` are the bins themselves, each named by its least probability, and are drawn as a diagram; a bin
    without a token has None.

    The numbers are None where ``correct`` or the probability of the argmax is not known. NaN: there is no valid token.
    """

    declares = (
        Number(
            "calibration_error", "", "Σ over 20 bins of share · |accuracy − mean top probability|", high=1.0, best="min"
        ),
        Number("overconfidence", "", "mean_top_probability − accuracy", low=-1.0, high=1.0),
        Number("mean_top_probability", "", "mean probability of the argmax", high=1.0),
        Number("reliability/{from}/tokens", "count", "tokens whose argmax has p from there to 0.05 more", drawn=True),
        Number("reliability/{from}/accuracy", "", "hits / tokens of the bin", high=1.0, drawn=True),
        Number("reliability/{from}/confidence", "", "mean probability of the bin's argmax", high=1.0, drawn=True),
    )
    size = 1 + BINS * COLUMNS  # tokens of which something is not known; of each bin tokens, hits, Σ probability as two

    def update(self, stats: TokenStats, valid: Tensor, logits: Tensor | None, **batch_data: Tensor) -> Tensor:
        """Return this batch's integers [size]."""
        if stats.correct is None or stats.top_probability is None:
            return torch.cat([valid.sum()[None], stats.targets.new_zeros(BINS * COLUMNS)])
        upper, lower = upper_and_lower(torch.where(valid, stats.top_probability, 0.0).clamp_max(1.0))
        part = (((upper << LOW_BITS) + lower) * BINS >> layout.FRACTION_BITS).clamp_max(BINS - 1)
        columns = [valid, valid & stats.correct, upper, lower]
        return torch.cat([part.new_zeros(1), add_up(torch.where(valid, part, -1), BINS, columns)])

    def numbers(self, integers: Sequence[int]) -> Mapping[str, float | None]:
        """Return the error, the overconfidence, the mean, and the points of the diagram."""
        if integers[0]:
            return dict.fromkeys(number.name for number in self.declares if not number.drawn)
        tokens, hits, upper, lower = (sum(integers[1 + column :: COLUMNS]) for column in range(COLUMNS))
        gaps = [b.tokens * abs(b.accuracy - b.confidence) for b in self.bins(integers) if b.tokens]
        error = math.fsum(gaps) / tokens if tokens else math.nan
        confidence = mean(upper, lower, tokens)
        return {
            "calibration_error": error if tokens >= LEAST_TOKENS or not tokens else None,
            "overconfidence": confidence - hits / tokens if tokens else math.nan,
            "mean_top_probability": confidence,
            **self._points(integers),
        }

    def _points(self, integers: Sequence[int]) -> dict[str, float]:
        return {
            f"reliability/{place / BINS:.2f}/{name}": value
            for place, found in enumerate(self.bins(integers))
            for name, value in (found._asdict().items() if found.tokens else ())
        }

    def bins(self, integers: Sequence[int]) -> list[Bin]:
        """Return the points of the reliability diagram, from the least sure to the surest; NaN in empty bins."""
        rows = [integers[start : start + COLUMNS] for start in range(1, self.size, COLUMNS)]
        return [Bin(n, hits / n if n else math.nan, mean(upper, lower, n)) for n, hits, upper, lower in rows]
