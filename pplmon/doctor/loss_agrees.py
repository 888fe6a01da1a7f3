"""Compare the measured cross-entropy with the training loss, again and again: a number that stops agreeing is told.

Added up on the device in the windows 1, 2, 4, 8, …, and read when it has been copied: nothing waits.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pplmon.doctor.late import Late
from pplmon.report import layout
from pplmon.tally import TokenTally

FAR = 0.05  # said at once
NEAR = 1e-3  # worth a closer look: an fp32 loss of the same tokens is far nearer
_TOKENS, _WHOLE, _FRACTION = map(layout.place, ("tokens", "nll_whole", "nll_fraction"))


class Gap(NamedTuple):
    """A loss and a cross-entropy of the same micro-batches that do not agree, in nats per token."""

    loss: float
    cross_entropy: float

    @property
    def is_far(self) -> bool:
        """True where they are more than 5 % apart."""
        return abs(self.loss - self.cross_entropy) > FAR * abs(self.cross_entropy)

    def text(self, step: str, gave: str = "returned") -> str:
        """Return both values, and what usually is the cause; ``step`` names what gave the loss."""
        return (
            f"the measured cross-entropy is {self.cross_entropy:.4f} nats per token, but {step} {gave} a loss of "
            f"{self.loss:.4f}. Usual causes: logits and targets are off by one (set shift=True, or False), padding or "
            "prompts are scored by one of them only (ignore_index, mask), the loss holds an auxiliary term, label smoothing "
            "or another scale, or it wrote over its logits before they were measured. Both cannot be the model's "
            "cross-entropy."
        )


class LossGuard:
    """Adds up losses and cross-entropies of a stage, a window or a pass at a time."""

    def __init__(self) -> None:
        self._window = 1  # the one under way
        self._before: Tensor | None = None
        self._losses: Tensor | None = None  # [] float64: Σ loss · denominator
        self._counted: Tensor | None = None  # [cells]: what the tally has counted of the same micro-batches
        self._sent: Late | None = None  # of a window that is over

    @property
    def looks(self) -> bool:
        """True in the windows 1, 2, 4, 8, …"""
        return self._window & (self._window - 1) == 0

    def before(self, tally: TokenTally) -> None:
        """Remember what the tally held before this micro-batch."""
        self._before = tally.sums.clone() if self.looks else None

    @property
    def compares(self) -> bool:
        """True if the micro-batch under way is to be compared with its loss."""
        return self._before is not None

    def after(self, tally: TokenTally, loss: Tensor | float | None, items: Tensor | float | None = None) -> None:
        """Take in a micro-batch and the loss that its step gave: a mean over its tokens, or over ``items``."""
        before, self._before = self._before, None
        if before is not None and loss is not None and not (isinstance(loss, Tensor) and loss.numel() != 1):
            self._add(tally, before, loss, items)

    @torch.no_grad()
    def _add(self, tally: TokenTally, before: Tensor, loss: Tensor | float, items: Tensor | float | None) -> None:
        counted = tally.sums - before.to(tally.sums.device)
        tokens = counted[_TOKENS].double()
        given = loss.detach().reshape(()).to(tokens) if isinstance(loss, Tensor) else tokens.new_full((), loss)
        # A batch that counted nothing here (none of its targets, or not yet) has no part; its loss may be NaN.
        losses = torch.where(tokens > 0, given * (tokens if items is None else items), 0.0)
        self._losses = losses if self._losses is None else self._losses + losses
        self._counted = counted if self._counted is None else self._counted + counted

    def end_window(self) -> None:
        """Send what was added up to the host, and go on with the next window."""
        self._window += 1
        losses, counted = self._losses, self._counted
        self._losses = self._counted = None
        if losses is not None and counted is not None and self._sent is None:
            self._sent = Late(torch.cat([losses.view(1), counted.double()]))

    def gap(self, wait: bool = False) -> Gap | None:
        """Return the disagreement of the last window, if there is one and it has arrived."""
        if self._sent is None or not (wait or self._sent.arrived):
            return None
        (loss, *counted), self._sent = self._sent.values(), None
        tokens, nll = counted[_TOKENS], counted[_WHOLE] + counted[_FRACTION] * 2.0**-layout.FRACTION_BITS
        # A loss of NaN is what NonFinite alerts on; the measured number leaves non-finite tokens out.
        if not tokens or not math.isfinite(loss) or abs(loss - nll) <= NEAR * abs(nll):
            return None
        return Gap(loss / tokens, nll / tokens)
