"""Metrics of one number each: ``TokenTally`` with another ``compute``. Drop-in where torchmetrics has the name.

They measure outside of graphs: what ``forward`` returns has no gradient, and ``torch.jit.script`` refuses them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pplmon.measure.tokens import TokenStats
from pplmon.report import layout
from pplmon.report.checks import invalid_targets
from pplmon.report.histogram import Losses
from pplmon.report.totals import Totals
from pplmon.tally import TokenTally


class View(TokenTally):
    """A metric of one number. All share their states, so a ``MetricCollection`` of them updates once a batch."""

    number = ""
    # As torchmetrics' own, a view is no part of a module's checkpoint: it counts an epoch, and begins anew.
    get_extra_state = nn.Module.get_extra_state
    set_extra_state = nn.Module.set_extra_state

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.persistent(mode=False)

    def update(  # type: ignore[override]  # torchmetrics' names, which a MetricCollection passes keywords by
        self, preds: Tensor | TokenStats, target: Tensor | None = None, **kwargs: Any
    ) -> None:
        """Count one batch: preds [B, T, V] or [N, V] logits, target [B, T] or [N]; see ``TokenTally.update``."""
        super().update(preds, target, **kwargs)

    def compute(self) -> Tensor:
        """Return the number over all ranks as a 0-dim tensor; NaN where it cannot be had.

        Raises:
            ValueError: there were targets outside the vocabulary. ``update`` does not raise: it waits for nothing.
        """
        totals = self.local_totals()
        count, example = totals["invalid_targets"], totals["invalid_target_example"] - layout.EXAMPLE_OFFSET
        if count:
            raise ValueError(invalid_targets(count, totals["vocab_size"], example, self.ignore_index))
        value = self.number_of(totals)
        return self._tensor(float("nan") if value is None else value)

    def number_of(self, totals: Totals) -> float | None:
        """Return the number of what was counted."""
        return totals.numbers()[self.number]


class Perplexity(View):
    """exp(Σ nll / tokens): takes logits, not probabilities; one token far off reads as its loss, never as inf."""

    number = "perplexity"
    higher_is_better = False


class CrossEntropy(View):
    """Σ nll / tokens, in nats per token."""

    number = "cross_entropy"
    higher_is_better = False


class TokenAccuracy(View):
    """Tokens whose argmax is the target / tokens; the lowest index wins a tie."""

    number = "token_accuracy"
    higher_is_better = True


class MaxTokenLoss(View):
    """The largest nll of a token, in nats."""

    number = "max_token_loss"
    higher_is_better = False


class TokenLossQuantile(View):
    """The ⌈q·n⌉-th smallest nll in nats, within 1 % between 2^-20 and 2^10 nats."""

    higher_is_better = False

    def __init__(self, q: float = 0.99, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < q <= 1:
            raise ValueError(f"q must be in (0, 1], got {q!r}; write 0.99 for the 99th percentile")
        self.q = q

    def number_of(self, totals: Totals) -> float:
        """Return the quantile of what was counted; NaN without tokens."""
        bits = totals["token_loss_bits"]
        return Losses(totals.histogram, layout.float_from_bits(max(bits, 0))).quantile(self.q)
