"""Read the losses of a head that makes no logits: the output of TRL's has log-probabilities in their place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.functional import pad

from pplmon.measure.tokens import TokenStats, shifted
from pplmon.tally import TokenTally


class Losses(NamedTuple):
    """The results of a fused head for each target: [B, T − 1] from the second column on, or [B, T]."""

    log_probs: Tensor
    correct: Tensor | None
    entropy: Tensor | None
    vocab_size: int | None

    def stats(self, targets: Tensor, mask: Tensor | None, tally: TokenTally, shift: bool) -> TokenStats:
        """Return the measurements of targets [B, T]; with ``shift`` the first column has none."""
        columns = [self.log_probs, self.correct, self.entropy]
        if shift:
            targets, mask = shifted(targets, mask)
            columns = [None if column is None else pad(column.detach(), (0, 1)) for column in columns]
        log_probs, correct, entropy = columns
        assert log_probs is not None
        given = {"correct": correct, "entropy": entropy, "vocab_size": self.vocab_size}
        ignored = tally.ignore_index
        stats = TokenStats.from_losses(-log_probs, targets, ignore_index=ignored, mask=mask, **given)  # type: ignore[arg-type]
        return replace(stats, shift=shift)


def losses_in(module: nn.Module, output: Any) -> Losses | None:
    """Return what the output of a fused head holds; ``None`` for any other."""
    log_probs = getattr(output, "log_probs", None)
    if not isinstance(log_probs, Tensor) or log_probs.dim() != 2:
        return None
    size = getattr(getattr(module, "config", None), "vocab_size", None)
    return Losses(
        log_probs, _known(output, "is_top1"), _known(output, "entropy"), size if isinstance(size, int) else None
    )


def _known(output: Any, name: str) -> Tensor | None:
    value = getattr(output, name, None)
    return value if isinstance(value, Tensor) else None
