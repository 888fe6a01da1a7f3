"""Read from each row of logits what does not depend on its target, some rows at a time.

Shapes: B sequences, T positions, V vocabulary, W cuts. Nothing here waits for the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK_LOGITS, ACCELERATOR_LOGITS = 2**18, 2**24  # how many are looked at together: some copies of so many are made
WIDEST_CUT = 128  # a vocabulary is padded by fewer ids than this


class Rows(NamedTuple):
    """Of each row of logits, and of a vocabulary without its last ids."""

    uniform: Tensor  # [B, T] float32: its loss on a uniform target, −(1/V) Σ_j ln p_j
    lse: Tensor  # [B, T] float32: its log-sum-exp
    size: Tensor  # [B, T] float32: its largest finite |x|
    cuts: (
        Tensor  # [W] float32: Σ over scored rows of ln(1 − p(last w + 1 ids)): added to losses, it leaves these ids out
    )


def rows_of(logits: Tensor, scored: Tensor) -> Rows:
    """Return what the rows of logits [B, T, V] say; ``scored`` [B, T] bool are those that count in the cuts."""
    vocab, device = logits.shape[-1], logits.device
    width = min(WIDEST_CUT, vocab // 8)
    height = max(1, (CHUNK_LOGITS if device.type == "cpu" else ACCELERATOR_LOGITS) // vocab)
    uniform, lses, sizes = torch.empty(3, *logits.shape[:2], dtype=torch.float32, device=device)
    cuts = torch.zeros(width, dtype=torch.float32, device=device)
    for row, sequence in enumerate(logits):
        for start in range(0, sequence.shape[0], height):
            part = slice(start, start + height)
            x = sequence[part].float()
            lse = x.logsumexp(-1)
            lses[row, part] = lse
            uniform[row, part] = lse - x.mean(-1)
            sizes[row, part] = torch.where(x.isfinite(), x.abs(), 0.0).amax(-1)
            tail = (x[:, vocab - width :].flip(-1) - lse.unsqueeze(-1)).exp().cumsum(-1).clamp_max(1.0)
            cuts += torch.where(scored[row, part].unsqueeze(-1), torch.log1p(-tail), 0.0).sum(0)
    return Rows(uniform, lses, sizes, cuts)
