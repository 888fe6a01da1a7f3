"""Take logits from a dict that the step returns, with its ``labels`` or ``targets``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pplmon.trainers.capture.batch import Targets, first_tensor
from pplmon.trainers.capture.sources.source import Found, Source, targets_beside


class Returned(Source):
    """A dict that the step returns."""

    def __init__(self, targets: Targets | None, shift: bool | None) -> None:
        self._targets, self._shift = targets, shift

    def of_step(self, outputs: Any, batch: Any) -> Found | None:
        """Return logits with their targets, ``None`` where one is missing: a Hugging Face output has logits only."""
        if not isinstance(outputs, Mapping) or not isinstance(outputs.get("logits"), Tensor):
            return None
        if self._targets is None and first_tensor(outputs) is None:
            return None
        targets = targets_beside(outputs, batch, self._targets)
        if targets is None:
            return None
        return Found(outputs["logits"], targets, self._shift, self._shift is not None, "what the step returned")
