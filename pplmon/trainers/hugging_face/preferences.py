"""Tell the chosen answers of a batch of preferences from the rejected ones: TRL's ``DPOTrainer`` joins them in this order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def preferences(trainer: Any, inputs: Mapping[str, Any], groups: bool) -> dict[str, Tensor]:
    """Return a mask of the chosen answers; with ``groups`` the ids 0 (chosen) and 1 (rejected) in its place."""
    ids = inputs.get("input_ids")
    if not any(base.__name__ == "DPOTrainer" for base in type(trainer).__mro__) or not isinstance(ids, Tensor):
        return {}
    rejected = torch.arange(2, device=ids.device).repeat_interleave(len(ids) // 2, output_size=len(ids))
    return {"group_ids": rejected} if groups else {"mask": (rejected == 0).unsqueeze(1).expand(ids.shape)}
