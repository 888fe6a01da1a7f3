"""Tell a step that had nothing to score from one whose logits are nowhere to be found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PATIENCE = 16  # a loop that optimizes by hand never returns anything: it is to hear of it soon


def returned_nothing(outputs: Any) -> bool:
    """Return True for a step that returned nothing: it ran out of memory and caught it, or had nothing to score.

    Lightning makes an empty dict of the ``None`` that a training step returns.
    """
    return outputs is None or (isinstance(outputs, Mapping) and not outputs)


class SilentSteps:
    """The steps of each stage that returned nothing while no source of logits was chosen for it."""

    def __init__(self) -> None:
        self._steps: dict[str, int] = {}

    def excuse(self, stage: str, outputs: Any) -> bool:
        """Return True if it is too early to say that there are no logits: this step returned nothing, as few did before."""
        if not returned_nothing(outputs):
            return False
        self._steps[stage] = self._steps.get(stage, 0) + 1
        return self._steps[stage] < PATIENCE

    def take(self, stage: str) -> int:
        """Return how many steps were excused since the last call."""
        return self._steps.pop(stage, 0)
