"""Sums of nats in integers, exact however the tokens are cut: two of an extra's integers hold one sum.

An amount is rounded once, to a multiple of 2^-32 nats. One integer sums its upper bits and one its lower 16, so neither
reaches its ceiling of 2^62 before 10^10 tokens of the largest amount.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pplmon.report import layout

LOW_BITS = 16


def upper_and_lower(nats: Tensor) -> tuple[Tensor, Tensor]:
    """Return amounts of 0 to 2^10 nats as two tensors of integers, each of which may be summed in any order."""
    units = (nats.clamp(0.0, layout.CAP_NATS) * 2.0**layout.FRACTION_BITS).round().to(torch.int64)
    return units >> LOW_BITS, units & (2**LOW_BITS - 1)


def total(upper: int, lower: int) -> float:
    """Return the sum of amounts, in nats, from what their integers sum up to."""
    return mean(upper, lower, 1)


def mean(upper: int, lower: int, count: int) -> float:
    """Return the mean of ``count`` amounts, in nats, from the sums of their integers; NaN if ``count`` is 0."""
    return ((upper << LOW_BITS) + lower) / (count << layout.FRACTION_BITS) if count else math.nan
