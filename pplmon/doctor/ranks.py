"""Rows that several ranks train on: told by a number for each row, so that no ids need to be gathered."""

from __future__ import annotations

import torch
from torch import Tensor

from pplmon.doctor import batch_words
from pplmon.doctor.finding import Finding


def row_digests(ids: Tensor) -> Tensor:
    """Return [B] int64 of ids [B, T]: equal for equal rows, and for others only by a chance of 1 in 2^60. No host sync."""
    ids = ids.detach().to(torch.int64)
    place = torch.arange(1, ids.shape[-1] + 1, device=ids.device)
    mixed = (ids + 1) * 6364136223846793005 + place * 1442695040888963407
    mixed = (mixed ^ (mixed >> 29)) * 2862933555777941757
    return (mixed ^ (mixed >> 32)).sum(-1)


def same_rows(ranks: int) -> Finding:
    """Return the finding for ranks whose first batches are of the same rows."""
    return batch_words.repeated_rows(ranks)
