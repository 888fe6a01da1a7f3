"""Take logits that the module passes to ``pplmon.observe(self, logits, targets)`` in its step."""

from __future__ import annotations

from torch import Tensor

from pplmon.measure.tokens import TokenStats
from pplmon.trainers.capture.sources.source import Source


class Said(Source):
    """Logits, or ``TokenStats``, that the module passes itself, so that nothing has to be hooked."""

    explicit = True


def shown_targets(logits: Tensor | TokenStats, targets: Tensor | None) -> Tensor:
    """Return the targets that were passed, in the shape of the batch."""
    if isinstance(logits, TokenStats):
        return logits.targets.view(logits.batch_shape)
    if targets is None:
        raise TypeError("pplmon.observe needs targets beside logits; only TokenStats come without")
    return targets
