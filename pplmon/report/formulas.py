"""The arithmetic that formulas share, computed from the integers of one window.

Everything is plain Python on integer totals (see ``report.layout``), so nothing overflows, and only the last operation
rounds. ``None`` means that a number cannot be computed; NaN that there was no valid token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

from pplmon.report import layout
from pplmon.report.histogram import Histogram, Losses

NAN = math.nan
INF = math.inf


class Window:
    """The totals of one window, and the amounts that several formulas need, computed once.

    Attributes:
        sums: every sum of ``layout.SUMS``, by name.
        maxima: every maximum of ``layout.MAXIMA``, by name.
        tokens: valid tokens, n.
        nll: Σ nll, in nats.
        cross_entropy: Σ nll / n, in nats per token.
        max_loss: the largest nll, in nats.
        vocab: V, where it is known for every token and is one and the same.
        worst_count: ⌈n / 100⌉, the tokens that are the worst 1 %.
    """

    def __init__(self, sums: Mapping[str, int], maxima: Mapping[str, int], histogram: Histogram) -> None:
        self.sums, self.maxima = sums, maxima
        self._histogram = histogram
        self.tokens = n = sums["tokens"]
        self.nll = self.nats("nll")
        self.cross_entropy = ratio(self.nll, n)
        loss_bits = maxima["token_loss_bits"]
        self.max_loss = layout.float_from_bits(loss_bits) if loss_bits >= 0 else NAN
        self.worst_count = -(-n // 100)
        self.vocab = _vocab(sums, maxima)

    @cached_property
    def losses(self) -> Losses:
        """The distribution of the token losses, in nats."""
        return Losses(self._histogram, self.max_loss)

    @cached_property
    def worst_sum(self) -> float:
        """Σ nll of the ⌈n / 100⌉ worst tokens, in nats."""
        return self.losses.tail(self.worst_count)

    def nats(self, name: str) -> float:
        """Return a sum in nats from its two cells, whole nats and fraction."""
        return layout.nats((self.sums[f"{name}_whole"] << layout.FRACTION_BITS) + self.sums[f"{name}_fraction"])

    def lacks(self, what: str) -> bool:
        """Return True if it was not known for some token of the window; without tokens, for some batch."""
        return self.sums[f"{what}_unknown"] > 0 or (not self.tokens and self.maxima[f"{what}_missing"] > 0)

    def rate(self, cell: str, *needed: str) -> float | None:
        """Return the share of the valid tokens that a cell counts; ``None`` where it needs something unknown."""
        return None if any(map(self.lacks, needed)) else ratio(self.sums[cell], self.tokens)

    def max_sequence_loss(self) -> float | None:
        """Return the largest mean nll of a sequence that is long enough, in nats per token."""
        units = self.maxima["sequence_loss_units"]
        if self.lacks("sequences"):
            return None
        if units >= 0:
            return layout.nats(units)
        return None if self.tokens else NAN  # tokens, but no sequence long enough

    def max_token_excess(self) -> float | None:
        """Return by how much the largest nll is above ln V + ln n, in nats."""
        if self.vocab is None:
            return None
        return self.max_loss - math.log(self.vocab) - math.log(self.tokens) if self.tokens else NAN

    def worst_share(self) -> float:
        """Return the share of Σ nll that the worst 1 % of the tokens hold."""
        if not self.tokens:
            return NAN
        # When every loss is 0 the worst hold what any equal part holds.
        return min(1.0, self.worst_sum / self.nll) if self.nll else self.worst_count / self.tokens

    def mean_of_the_rest(self) -> float:
        """Return the mean nll of all tokens but the worst 1 %, in nats per token."""
        count = self.tokens - self.worst_count
        # Of two equal formulas the one whose 1 % error is one of the smaller part.
        rest = self.nll - self.worst_sum if self.worst_sum <= self.nll / 2 else self.losses.head(count)
        return ratio(rest, count)


def ratio(part: float, whole: int) -> float:
    """Return part / whole; NaN where there is no whole."""
    return part / whole if whole else NAN


def exp(x: float) -> float:
    """Return e**x, or ``inf`` where it overflows."""
    try:
        return math.exp(x)
    except OverflowError:
        return INF


def share_of_jump(loss: float, tokens: int, mean: float, all_tokens: int, usual: float) -> float | None:
    """Return the share, 0 to 1, of a rise of the mean loss over ``usual`` that ``tokens`` of mean ``loss`` explain.

    All losses in nats per token. ``None`` where the mean did not rise: there is nothing to explain.
    """
    jump = (mean - usual) * all_tokens
    return min(1.0, max(0.0, (loss - usual) * tokens / jump)) if jump > 0 else None


def _vocab(sums: Mapping[str, int], maxima: Mapping[str, int]) -> int | None:
    largest, complement = maxima["vocab_size"], maxima["vocab_complement"]
    if sums["vocab_unknown"] or largest < 0 or layout.VOCAB_LIMIT - complement != largest:
        return None
    return largest
