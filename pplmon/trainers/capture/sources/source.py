"""Say what every source of logits has to have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from pplmon.trainers.capture.batch import Targets, first_tensor, targets_of


class Found(NamedTuple):
    """Logits, and the targets that they are to predict."""

    logits: Tensor
    targets: Tensor
    shift: bool | None  # logits at t predict the target at t+1; None: as the tally says


class Source:
    """One source of logits: a module that is hooked, or what a step returns. It gives ``None`` where it sees none."""

    def module_in(self, module: nn.Module) -> nn.Module | None:
        """Return the module inside ``module`` whose calls this source wants to see."""
        return None

    def of_call(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, batch: Any
    ) -> Found | None:
        """Return what a call of the hooked module gave."""
        return None

    def of_step(self, outputs: Any, batch: Any) -> Found | None:
        """Return what a finished step gave."""
        return None


def targets_beside(outputs: Mapping[str, Any], batch: Any, wanted: Targets | None) -> Tensor | None:
    """Return the targets: from the batch where they were named, else from beside the logits, else from the batch."""
    beside = first_tensor(outputs) if wanted is None else None
    return targets_of(batch, wanted) if beside is None else beside
