"""The interface that every source of logits has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from pplmon.trainers.capture.batch import Targets, first_tensor, targets_of


class Found(NamedTuple):
    """Logits, and the targets that they predict."""

    logits: Tensor
    targets: Tensor
    shift: bool | None  # logits at t predict the target at t+1; None takes the tally's setting


class Source:
    """One source of logits: a hooked module, or the output of a step. It gives ``None`` where it finds no logits."""

    def module_in(self, module: nn.Module) -> nn.Module | None:
        """Return the module inside ``module`` that this source hooks."""
        return None

    def of_call(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, batch: Any
    ) -> Found | None:
        """Return logits and targets from a call of the hooked module."""
        return None

    def of_step(self, outputs: Any, batch: Any) -> Found | None:
        """Return logits and targets from a finished step."""
        return None


def targets_beside(outputs: Mapping[str, Any], batch: Any, wanted: Targets | None) -> Tensor | None:
    """Return the targets: from the batch if the user named them, else from beside the logits, else from the batch."""
    beside = first_tensor(outputs) if wanted is None else None
    return targets_of(batch, wanted) if beside is None else beside
