"""Call a model on ids alone, as in evaluation, and find the logits in what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[[nn.Module, Tensor], Any]  # a model and ids [B, T] -> logits [B, T, V], or what holds them


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turn dropout and gradients off for a while; afterwards each module trains or not, as before."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def device_of(model: nn.Module) -> torch.device:
    """Return where the model's weights are."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def logits_of(model: nn.Module, ids: Tensor, forward: Forward | None = None) -> Tensor:
    """Return a model's logits [B, T, V] for ids [B, T].

    Raises:
        TypeError, ValueError: it returns no such tensor, by itself, as ``.logits``, under "logits" or in a tuple.
    """
    output = model(ids) if forward is None else forward(model, ids)
    logits = _logits_in(output, ids.shape)
    if logits is None:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"expected logits [B, T, V] for ids {tuple(ids.shape)} from {type(model).__name__}, got {found}; "
            "give forward=lambda model, ids: … that returns them"
        )
    return logits


def _logits_in(output: Any, shape: torch.Size) -> Tensor | None:
    if isinstance(output, Tensor):
        return output if output.dim() == 3 and output.shape[:2] == shape and output.is_floating_point() else None
    if isinstance(output, Mapping):
        return _logits_in(output.get("logits"), shape)
    if isinstance(output, (tuple, list)) and not hasattr(output, "logits"):
        return next((found for part in output if (found := _logits_in(part, shape)) is not None), None)
    return _logits_in(getattr(output, "logits", None), shape)
