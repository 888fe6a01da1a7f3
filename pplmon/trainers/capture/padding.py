"""Padding among the targets that the loss does not score: by the attention mask, or by the id that rows end in.

Shapes: B sequences, T positions. Nothing here waits for the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pplmon.doctor.alignment import moved
from pplmon.doctor.measured import Measured
from pplmon.doctor.padding import by_runs, edge

BY_MASK = -1  # in place of an id
KINDS = ("mask", "id")


def kind_of(without: int | None) -> str:
    """Return the kind of what is left out: "" where nothing is."""
    return "" if without is None else "mask" if without == BY_MASK else "id"


def kept(targets: Tensor, shift: bool, without: int | Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return the targets [B, T] that are no padding; all are kept where a mask is meant and there is none."""
    if isinstance(without, int) and without == BY_MASK:
        if attention_mask is None:
            return torch.ones_like(targets, dtype=torch.bool)
        seen = attention_mask.to(targets.device) != 0
        return seen if shift else edge(seen, 1)  # targets that were moved by the user belong to the next id
    return targets != without


class Unpadded(NamedTuple):
    """One batch's sums without its padding, on the device."""

    id: Tensor  # [] int64: the one that rows end in, −1 where there is none
    sums: dict[tuple[str, bool], Tensor]  # by kind and shift: [2], tokens and Σ nll


def unpadded(measured: Measured, attention_mask: Tensor | None) -> Unpadded:
    """Return what is left of measured targets without their padding, for each kind that there is and each shift."""
    targets = measured.tokens.targets
    pad = torch.where(by_runs(targets).columns, targets, -1).amax()
    sums = {}
    for kind in KINDS if attention_mask is not None else KINDS[1:]:
        for shift in (False, True):
            stats = measured.stats[int(shift)]
            keeps = kept(targets, shift, BY_MASK if kind == "mask" else pad, attention_mask)
            scored = moved(measured.tokens.told & keeps, int(shift), fill=False).reshape(-1) & stats.scored
            sums[kind, shift] = total(scored, stats.nll)
    return Unpadded(pad, sums)


def total(scored: Tensor, nll: Tensor) -> Tensor:
    """Return [2]: the tokens that are scored, and the sum of their losses."""
    wide = torch.float32 if nll.device.type == "mps" else torch.float64  # which MPS does not have
    return torch.stack([scored.sum().to(wide), torch.where(scored, nll, 0.0).to(wide).sum()])
