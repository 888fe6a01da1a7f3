"""Read the logits from a module's output, and fit them to their targets."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pplmon.measure import private_names as private
from pplmon.measure.tokens import held_rows


def logits_in(output: Any) -> Tensor | None:
    """Return the logits: a tensor, ``.logits``, ``["logits"]``, or of a tuple the first that is no single number (a loss)."""
    if isinstance(output, (tuple, list)) and not hasattr(output, "logits"):
        output = next((part for part in output if not (isinstance(part, Tensor) and part.dim() == 0)), None)
    elif isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    else:
        output = getattr(output, "logits", output)
    return output if isinstance(output, Tensor) and output.is_floating_point() and output.dim() in (2, 3) else None


def loss_in(output: Any) -> Tensor | None:
    """Return the loss beside the logits: ``.loss``, ``["loss"]``, or of a tuple the first that is a single number."""
    if isinstance(output, (tuple, list)) and not hasattr(output, "loss"):
        found = next((part for part in output if isinstance(part, Tensor) and part.dim() == 0), None)
    else:
        found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    return found.detach() if isinstance(found, Tensor) and found.numel() == 1 else None


def arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return what a call of a module was given, by name."""
    if not args:
        return kwargs
    try:
        bound = inspect.signature(unwrapped(module).forward).bind_partial(*args, **kwargs)
    except TypeError:
        return kwargs
    return {**bound.arguments, **kwargs}


def fitted(logits: Tensor, targets: Tensor) -> Tensor | None:
    """Return logits that fit the targets, flat ones [B·T, V] viewed as [B, T, V]; ``None`` where they do not fit.

    A DTensor fits where the rows that this rank holds do.
    """
    if tuple(targets.shape) in (held_rows(logits), tuple(logits.shape[:-1])):
        return logits
    if logits.dim() == 2 and targets.dim() == 2 and logits.shape[0] == targets.numel():
        return torch.unflatten(logits, 0, tuple(targets.shape))
    return None


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside a torch.compile wrapper."""
    inner = private.compiled_module(module)
    return inner if isinstance(inner, nn.Module) else module
