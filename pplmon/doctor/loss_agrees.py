"""Compare the measured cross-entropy with the training loss, as a guard against a plausible wrong number."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from pplmon.report import layout
from pplmon.tally import TokenTally

TOLERANCE = 0.05
_TOKENS, _WHOLE, _FRACTION = map(layout.place, ("tokens", "nll_whole", "nll_fraction"))


class LossGuard:
    """Compares the first logged window with the loss that the step returned. Sums on the device, and reads once."""

    def __init__(self) -> None:
        self.done = False
        self._before: Tensor | None = None
        self._sums: Tensor | None = None  # [3] float64: Σ loss · tokens, Σ nll, tokens

    def before(self, tally: TokenTally) -> None:
        """Remember the tally's sums before this micro-batch."""
        if not self.done:
            self._before = tally.sums.clone()

    @torch.no_grad()
    def after(self, tally: TokenTally, loss: Tensor | None) -> None:
        """Add a micro-batch and the loss that its step returned (not divided by the accumulation)."""
        if self.done or self._before is None or not isinstance(loss, Tensor) or loss.numel() != 1:
            return
        change = (tally.sums - self._before.to(tally.sums.device)).double()
        tokens, nll = change[_TOKENS], change[_WHOLE] + change[_FRACTION] * 2.0**-layout.FRACTION_BITS
        part = torch.stack([loss.detach().double().reshape(()).to(tokens.device) * tokens, nll, tokens])
        self._sums = part if self._sums is None else self._sums + part

    def check(self, warn: bool = True) -> None:
        """Warn once if the two are more than 5 % apart. Called when the first window is logged, on every rank."""
        if self.done:
            return
        self.done = True
        if self._sums is None or not warn:
            return
        loss, nll, tokens = self._sums.tolist()
        # A loss of NaN is what NonFinite alerts on; the measured number leaves non-finite tokens out.
        if not tokens or not math.isfinite(loss) or abs(loss - nll) <= TOLERANCE * abs(nll):
            return
        warnings.warn(
            f"pplmon: over the first logged window the measured cross-entropy is {nll / tokens:.4f} nats per token, but "
            f"training_step returned a loss of {loss / tokens:.4f}. Usual causes: logits and targets are off by one "
            "(set shift=True, or False), padding or prompts are scored by one of them only (ignore_index, mask), the "
            "loss holds an auxiliary term, label smoothing or another scale, or it wrote over its logits before they were "
            "measured. Both cannot be the model's cross-entropy.",
            stacklevel=2,
        )
