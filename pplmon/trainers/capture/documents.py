"""Read from a packed batch to which document each token belongs, as its model is told: nothing here waits for the device.

In the order in which they are believed: ``seq_idx``; ``cu_seq_lens_q`` and its like; ``position_ids`` that begin again at
0 and an ``attention_mask`` that numbers the documents from 1, together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pplmon.measure.waiting import waiting_allowed

BORDERS = ("cu_seq_lens_q", "cu_seqlens_q", "cu_seqlens", "cu_seq_lens_k", "cu_seqlens_k")
NAMES = frozenset(("seq_idx", *BORDERS, "attention_mask", "position_ids"))
LOOKS = 8


class Documents:
    """Reads documents; remembers in which stages attention masks number them, after a look at the first few."""

    def __init__(self) -> None:
        self._looks: dict[str, int] = {}
        self._numbered: set[str] = set()

    def of(self, stage: str, given: Mapping[str, Any], targets: Tensor) -> Tensor | None:
        """Return int64 like targets [B, T] or [N], equal within a document; ``None`` where nothing tells of documents."""
        if NAMES.isdisjoint(given):
            return None
        numbers = _fitting(given.get("seq_idx"), targets)
        if numbers is not None and not numbers.is_floating_point():
            return numbers
        borders = next((given[name] for name in BORDERS if isinstance(given.get(name), Tensor)), None)
        if borders is not None and (targets.dim() == 1 or targets.shape[0] == 1):
            return _between(borders, targets)
        attention = _fitting(given.get("attention_mask"), targets)
        positions = _fitting(given.get("position_ids"), targets)
        numbered = attention is not None and self._numbers_documents(stage, attention)
        if positions is None and not numbered:
            return None
        begins = torch.zeros(targets.shape, dtype=torch.bool, device=targets.device)
        if positions is not None:
            begins |= _restarts(positions, attention)
        if attention is not None and numbered:
            # A row of zeros and ones is padded, not packed.
            begins |= (attention != attention.roll(1, -1)) & (attention.amax(-1, keepdim=True) > 1)
        begins[..., 0] = False
        return begins.cumsum(-1)

    def _numbers_documents(self, stage: str, attention: Tensor) -> bool:
        """Look at the first few masks of a stage, which waits for the device; nearly all are of zeros and ones."""
        if attention.dtype == torch.bool or attention.is_floating_point() or not attention.numel():
            return False
        looks = self._looks.get(stage, 0)
        if stage not in self._numbered and looks < LOOKS:
            self._looks[stage] = looks + 1
            with waiting_allowed(attention.device):
                if bool(attention.amax() > 1):
                    self._numbered.add(stage)
        return stage in self._numbered


def _fitting(value: Any, targets: Tensor) -> Tensor | None:
    """Return a tensor that has one entry for each target, on its device."""
    if not isinstance(value, Tensor):
        return None
    if value.dim() == 2 and targets.dim() == 1 and value.numel() == targets.numel():
        value = value.reshape(-1)  # the module flattened logits and targets
    return value.to(targets.device) if value.shape == targets.shape else None


def _between(borders: Tensor, targets: Tensor) -> Tensor:
    """Return how many of the borders [D + 1], which begin with 0, each token has reached, but for the first."""
    ends = borders.reshape(-1)[1:].to(targets.device, torch.int64).contiguous()
    place = torch.arange(targets.numel(), device=targets.device)
    return torch.searchsorted(ends, place, right=True).view(targets.shape)


def _restarts(positions: Tensor, attention: Tensor | None) -> Tensor:
    """Return True where positions begin again at 0, but for padding before a row, and rows that are 0 throughout."""
    begins = (positions == 0) & (positions.amax(-1, keepdim=True) > 0)
    return begins if attention is None else begins & (attention.roll(1, -1) != 0)
