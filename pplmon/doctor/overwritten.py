"""Warn if a loss overwrote its logits with gradients or probabilities before they were measured.

Shapes: N = B·T tokens, V vocabulary, R rows that are checked.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from pplmon.measure.tokens import shifted

LOOKS = 4  # micro-batches: which comes first, loss or measurement, is the same in all of a run
ROWS = 16  # of each: their signs are 2.4 MB at V = 152k
LEAST = 8  # rows, before anything is said
SHARE = 0.5  # of the rows; a z-loss turns the sign where the target has nearly all probability
SMALLEST_VOCAB = 16  # below it one row in 2^V is like a gradient by chance

_SIGNS = "only the target's value is below 0", "no value is below 0 and the sum is 1"
_ADVICE = (
    "The loss wrote over its logits (Liger's cross-entropy and others do so in forward) and ran before pplmon measured: "
    "cross-entropy, accuracy and all that follows are wrong. Measure before the loss: call observe above it, or name the "
    "head, PerplexityMonitor(logits=...). Or give what the loss knows of each token: pplmon.TokenStats.from_losses."
)


class Overwritten:
    """Checks a few rows of the first micro-batches, and warns once. Never waits for a CUDA device."""

    def __init__(self) -> None:
        self._looks = 0
        self._counts: Tensor | None = None  # [3] int64 on the device: see ``evidence``
        self._copied: torch.cuda.Event | None = None

    def look(self, logits: Tensor, targets: Tensor, ignore_index: int | None, shift: bool) -> None:
        """Check one micro-batch (arguments of ``token_stats``); warn if its logits, or earlier ones, are overwritten."""
        if self._looks > LOOKS or type(logits) is not Tensor or logits.shape[-1] < SMALLEST_VOCAB:
            return
        if logits.is_cuda and torch.cuda.is_current_stream_capturing():
            return
        if self._looks < LOOKS and targets.numel():
            self._looks += 1
            found = evidence(logits, targets, ignore_index, shift)
            self._counts = found if self._counts is None else self._counts + found
            if self._looks == LOOKS and found.is_cuda:
                self._send(self._counts)
        if self._counts is not None and self._arrived(self._counts):
            self._judge(*self._counts.tolist())

    def _send(self, counts: Tensor) -> None:
        self._counts = torch.empty(counts.shape, dtype=counts.dtype, device="cpu", pin_memory=True)
        self._counts.copy_(counts, non_blocking=True)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copied.record(torch.cuda.current_stream(counts.device))  # the current device may be another

    def _arrived(self, counts: Tensor) -> bool:
        if self._copied is not None:
            return bool(self._copied.query())  # type: ignore[no-untyped-call]
        return counts.device.type == "cpu" or (self._looks == LOOKS and not counts.is_cuda)

    def _judge(self, rows: int, gradients: int, probabilities: int) -> None:
        kinds = (("gradients", gradients, _SIGNS[0]), ("probabilities", probabilities, _SIGNS[1]))
        for kind, count, signs in kinds:
            if rows >= LEAST and count >= SHARE * rows:
                warnings.warn(
                    f"pplmon: what was observed as logits are {kind}: in {count} of {rows} rows {signs}. {_ADVICE}",
                    RuntimeWarning,
                    stacklevel=4,
                )
                self._looks = LOOKS
        if self._looks == LOOKS:
            self._looks, self._counts = LOOKS + 1, None


@torch.no_grad()
def evidence(logits: Tensor, targets: Tensor, ignore_index: int | None, shift: bool) -> Tensor:
    """Count rows, [3] int64: checked, like gradients of a cross-entropy, like probabilities. No host sync.

    softmax − onehot, times any positive factor, is below 0 at the target alone; real logits have both signs everywhere.
    A row of zeros is evidence of neither (an ignored target; a head that starts at zero).
    """
    vocab = logits.shape[-1]
    kept: Tensor | None = None
    if shift and targets.dim() == 2:
        targets, kept = shifted(targets, None)
    flat = targets.detach().reshape(-1).to(logits.device, torch.int64)
    wanted = (flat >= 0) & (flat < vocab) & (flat != (-1 if ignore_index is None else ignore_index))
    if kept is not None:
        wanted = wanted & kept.reshape(-1).to(wanted.device)
    rows = wanted.to(torch.int32).topk(min(ROWS, flat.numel())).indices
    x = logits.detach()[(rows,) if logits.dim() == 2 else (rows // logits.shape[1], rows % logits.shape[1])]
    at_target = x.gather(1, flat[rows].clamp(0, vocab - 1).unsqueeze(1)).squeeze(1)
    below = (x < 0).sum(-1)
    looked_at = wanted[rows] & (x != 0).any(-1)
    gradients = looked_at & (below == 1) & (at_target < 0)
    probabilities = looked_at & (below == 0) & ((x.sum(-1, dtype=torch.float32) - 1).abs() < 0.02)
    return torch.stack([looked_at.sum(), gradients.sum(), probabilities.sum()])
