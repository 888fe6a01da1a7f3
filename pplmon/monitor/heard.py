"""Keep of a micro-batch and its loss what can tell if they belong together: a loss for each token and shift, no logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pplmon.doctor import Late, Loss, Measured, Observation, Run, measure
from pplmon.measure.tokens import is_dtensor


class Heard:
    """One micro-batch, measured on the device. Its numbers are read once they have been copied."""

    def __init__(self, measured: Measured, loss: Tensor | float) -> None:
        values = measured.values
        self._measured, self._loss = measured, loss
        given = loss.detach().reshape(1).to(values) if isinstance(loss, Tensor) else values.new_full((1,), loss)
        self._late = Late(torch.cat([values, given]))

    @property
    def arrived(self) -> bool:
        """Tell whether ``observation`` would not wait."""
        return self._late.arrived

    def observation(self, ranks: int) -> Observation:
        """Return what was measured, and the loss, as plain numbers."""
        *values, loss = self._late.values()
        known = (
            Loss(loss, self._loss.dtype) if isinstance(self._loss, Tensor) else Loss(float(self._loss), torch.float64)
        )
        return Observation(self._measured.facts(values), known, Run(ranks=ranks), self._measured)


def hear(
    logits: Any,
    targets: Tensor | None,
    loss: Tensor | float | None,
    shift: bool,
    data: Mapping[str, Any],
    ignore_index: int | None,
) -> Heard | None:
    """Measure a micro-batch under every shift; ``None`` where that cannot be done: no loss, or not whole logits."""
    if loss is None or targets is None or not isinstance(logits, Tensor) or is_dtensor(logits) or not targets.numel():
        return None
    if data.get("vocab_shard") is not None or targets.shape != logits.shape[:-1]:
        return None
    mask, ignored = data.get("mask"), -100 if ignore_index is None else ignore_index
    targets = targets.detach().to(logits.device)
    ids, seen = (alike(data.get(name), targets) for name in ("input_ids", "attention_mask"))
    return Heard(measure(logits, targets, shift and logits.dim() == 3, ids, seen, ignored, mask), loss)


def observations(heard: Sequence[Heard], ranks: int) -> list[Observation]:
    """Return those that were heard as plain numbers."""
    return [one.observation(ranks) for one in heard]


def alike(given: Any, targets: Tensor) -> Tensor | None:
    """Return an integer tensor that has the targets' shape; ``None`` for anything else."""
    usable = isinstance(given, Tensor) and given.shape == targets.shape and not given.is_floating_point()
    return given if usable else None
