"""``Entropy``: the mean entropy of the predictions, which does not depend on the targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pplmon.extras.base import Extra
from pplmon.extras.nats import mean, upper_and_lower
from pplmon.measure.tokens import TokenStats
from pplmon.report.numbers import Number


class Entropy(Extra):
    """An extra that gives ``mean_entropy``: Σ H / tokens over valid tokens, in nats per token.

    H = −Σⱼ pⱼ ln pⱼ of one token's prediction p = softmax(logits) (Shannon, 1948), between 0 and ln V. ``mean_entropy``
    is None where any valid token's stats came without an entropy, and NaN where no token is valid.

    Each H is rounded once, to a multiple of 2^-32 nats, and added as an integer: the same sum for any cut and order of
    the tokens.
    """

    declares = (Number("mean_entropy", "nats per token", "mean of −Σ p ln p; needs the extra Entropy"),)
    size = 4  # valid tokens, those of them without an entropy, Σ upper bits, Σ lower bits
    needs_entropy = True  # the tally measures it along with the losses

    def update(self, stats: TokenStats, valid: Tensor, logits: Tensor | None, **batch_data: Tensor) -> Tensor:
        """Return this batch's integers [size]."""
        tokens = valid.sum()
        if stats.entropy is None:
            none = torch.zeros_like(tokens)
            return torch.stack([tokens, tokens, none, none])
        known = valid & torch.isfinite(stats.entropy)
        upper, lower = upper_and_lower(torch.where(known, stats.entropy, 0.0))
        return torch.stack([tokens, (valid & ~known).sum(), upper.sum(), lower.sum()])

    def numbers(self, integers: Sequence[int]) -> Mapping[str, float | None]:
        """Return ``mean_entropy``."""
        tokens, unknown, upper, lower = integers
        return {"mean_entropy": None if unknown else mean(upper, lower, tokens)}
