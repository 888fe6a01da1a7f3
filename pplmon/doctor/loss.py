"""The loss that a step had, how exactly it is known, and what the run did to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

BATCHES = 3  # that have to agree before anything but the default is believed
RELATIVE = 1e-5  # an fp32 loss equals a candidate within this
LOW = (torch.bfloat16, torch.float16)
# torch's own cross-entropy of such logits, which adds them up in that dtype, was up to 2.4 units in the last place off.
UNITS = 3


@dataclass(frozen=True)
class Loss:
    """A training loss of one batch."""

    value: float
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, loss: Any) -> Loss:
        """Take a number or a tensor of one. Waits for the device."""
        check_loss(loss)
        if not isinstance(loss, Tensor):
            return cls(float(loss), torch.float64)
        return cls(float(loss.detach()), loss.dtype)

    @property
    def precision(self) -> torch.dtype:
        """Return the dtype that the value was rounded to: a loss of bf16 stays one when it is cast to fp32 afterwards."""
        if self.dtype in LOW or not math.isfinite(self.value) or self.value == 0:
            return self.dtype
        exact = torch.tensor(self.value, dtype=torch.float64)
        rounded_to = [dtype for dtype in LOW if exact.to(dtype).double() == exact]
        return rounded_to[0] if rounded_to else self.dtype

    @property
    def is_low(self) -> bool:
        """Tell whether it is known to a few digits only."""
        return self.precision in LOW

    def tolerance(self, expected: float, rounding: float) -> float:
        """Return how far the loss may be from a value that it equals; ``rounding``: see ``Facts``."""
        if not self.is_low:
            return RELATIVE * abs(expected) + rounding
        kind = torch.finfo(self.precision)
        return UNITS * kind.eps * abs(expected) + kind.tiny + rounding


def check_loss(loss: Any) -> None:
    """Raise unless it is a number or a floating-point tensor of one. Never waits for the device."""
    if isinstance(loss, bool) or not isinstance(loss, (Real, Tensor)):
        raise TypeError(f"loss must be a number or a tensor of one number, got {type(loss).__name__}; give output.loss")
    if not isinstance(loss, Tensor):
        return
    if loss.numel() != 1:
        raise ValueError(
            f"loss must be one number, got shape {tuple(loss.shape)}; give the mean that backward() is called on"
        )
    if not loss.is_floating_point():
        raise TypeError(f"loss must be floating point, got {loss.dtype}; give the mean that backward() is called on")


@dataclass(frozen=True)
class Run:
    """The known effects of a run on its loss, such as accumulation; a callback knows them, a single ``diagnose`` does not."""

    accumulation: int = 1  # micro-batches of an optimizer step
    divided: bool = False  # the step itself is to divide its loss by them; under Lightning the trainer does
    ranks: int = 1
    items: float | None = None  # tokens that the step divides its sum by: num_items_in_batch

    @property
    def share(self) -> float:
        """Return what the cross-entropy is to be multiplied by to give the loss."""
        return 1 / self.accumulation if self.divided else 1.0
