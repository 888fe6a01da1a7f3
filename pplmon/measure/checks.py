"""Check the arguments of ``token_stats`` and ``from_losses``; an error names what was expected, what came, and the fix."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor


def check_logits(logits: Tensor, targets: Tensor, is_shard: bool) -> None:
    """Check logits [B, T, V] or [N, V], or a shard of them, against targets [B, T] or [N]."""
    need_float("logits", logits, "were logits and targets passed in the wrong order?")
    if isinstance(targets, Tensor) and logits.shape == targets.shape:
        raise ValueError(
            f"logits have the shape of targets, {tuple(targets.shape)}, and no vocabulary: are these losses? Then pass "
            "pplmon.TokenStats.from_losses(losses, targets)"
        )
    if logits.dim() not in (2, 3):
        raise ValueError(f"logits must be [B, T, V] or [N, V], got shape {tuple(logits.shape)}")
    if logits.shape[-1] == 0 and not is_shard:  # more ranks than ids leave some with none
        raise ValueError(f"logits have an empty vocabulary: shape {tuple(logits.shape)}; the last dimension is V")
    check_ids(targets)
    if targets.shape != logits.shape[:-1]:
        _refuse(
            targets, logits.shape[:-1], f"logits {tuple(logits.shape)} without V", _line(logits.shape, targets.shape)
        )


def _line(logits: torch.Size, targets: torch.Size) -> str:
    """Return what to write where the two do not fit."""
    if len(logits) == 2 and len(targets) == 2 and logits[0] == targets.numel():
        return "give targets.flatten()"
    if len(logits) == 3 and len(targets) == 1 and logits[0] * logits[1] == targets[0]:
        return "give logits.flatten(0, 1)"
    more = logits[1] - targets[1] if len(logits) == 3 and len(targets) == 2 and logits[0] == targets[0] else 0
    if more == -1:
        return "if the last id has no logits, give targets[:, 1:]"
    if more > 0:
        prefix = f"logits[:, {more}:] if {'a column stands' if more == 1 else f'{more} columns stand'} before the text"
        return f"give {'logits[:, :-1] if the targets are shifted, or ' if more == 1 else ''}{prefix}"
    return "pass logits [B, T, V] with targets [B, T], or [N, V] with [N]"


def check_targets(targets: Tensor, nll: Tensor) -> None:
    """Check ids against the losses that belong to them."""
    check_ids(targets)
    if targets.shape != nll.shape:
        _refuse(targets, nll.shape, "nll", 'give one loss for each token: reduction="none"')


def check_ids(targets: Tensor) -> None:
    """Check that targets are an integer tensor."""
    if not isinstance(targets, Tensor):
        raise TypeError(f"targets must be an integer tensor, got {type(targets).__name__}")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise TypeError(
            f"targets must be integer token ids, got {targets.dtype}; were logits and targets passed in the wrong order?"
        )


def _refuse(targets: Tensor, shape: torch.Size, of: str, fix: str) -> NoReturn:
    raise ValueError(f"targets must have the shape of {of}, {tuple(shape)}, got {tuple(targets.shape)}; {fix}")


_KNOWN = {
    "correct": "whether the argmax is the target",
    "top_probability": "the probability of the argmax",
    "predicted": "the id of the argmax",
    "entropy": "the entropy of each prediction in nats",
}


def check_known(name: str, value: Tensor | None, nll: Tensor) -> None:
    """Check what is known of each token beside its loss."""
    if value is None:
        return
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, {_KNOWN[name]}, got {type(value).__name__}")
    if value.shape != nll.shape:
        raise ValueError(f"{name} must have the shape of nll {tuple(nll.shape)}, got {tuple(value.shape)}")
    if name == "predicted":
        if value.is_floating_point() or value.dtype == torch.bool:
            raise TypeError(
                f"predicted must be integer ids, {_KNOWN[name]}, got {value.dtype}; x.max(-1) gives them second"
            )
    elif name != "correct":
        need_float(name, value, _KNOWN[name])


def need_float(name: str, value: Tensor, hint: str) -> None:
    """Check that a value is a floating-point tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a floating-point tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {value.dtype}; {hint}")


def check_mask(mask: Tensor | None, targets: Tensor) -> Tensor | None:
    """Return the mask, which is None or bool like targets."""
    if mask is None:
        return None
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool (True = scored), got {mask.dtype}; write mask.bool()")
    if mask.shape != targets.shape:
        raise ValueError(f"mask must have the shape of targets {tuple(targets.shape)}, got {tuple(mask.shape)}")
    return mask
