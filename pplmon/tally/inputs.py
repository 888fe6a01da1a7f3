"""What ``TokenTally`` is given, checked: a wrong shape or dtype is told at once, with what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pplmon.saved import sizes_of
from pplmon.tally.group import Group
from pplmon.tokens import TokenStats


def check_extras(extras: Any) -> tuple[Any, ...]:
    """Return extras as a tuple of objects that measure, each once."""
    if not isinstance(extras, Sequence) or isinstance(extras, str):
        raise TypeError(f"extras takes a list, got {extras!r}; write extras=[pplmon.Entropy()]")
    for extra in extras:
        if isinstance(extra, type) or not all(hasattr(extra, name) for name in ("size", "update", "numbers")):
            raise TypeError(
                f"an extra is an object with size, update and numbers, got {extra!r}; write [pplmon.Entropy()]"
            )
    names = sizes_of(extras)
    if len(names) < len(extras):
        raise ValueError(
            f"extras must differ in their repr, by which a checkpoint knows them, got {', '.join(map(repr, extras))}; each "
            "is counted once"
        )
    return tuple(extras)


def check_documents(document_ids: Tensor | None, stats: TokenStats) -> Tensor | None:
    """Return [R, T] int64 on the device of the stats; flat ones are one row."""
    if document_ids is None:
        return None
    if tuple(document_ids.shape) != stats.batch_shape:
        raise ValueError(
            f"document_ids must have the shape of targets {stats.batch_shape}, got {tuple(document_ids.shape)}"
        )
    if document_ids.is_floating_point():
        raise TypeError(f"document_ids must be integers, got {document_ids.dtype}")
    return document_ids.detach().reshape(-1, stats.batch_shape[-1]).to(stats.nll.device, torch.int64)


def check_counted_once(stats: TokenStats, group: Group) -> None:
    """Refuse tokens that several ranks of the group hold, each of which would count them."""
    if len(stats.shared_by) < 2 or group.size < 2:
        return
    sharing = sorted(set(stats.shared_by) & set(group.ranks))
    if len(sharing) > 1:
        raise ValueError(
            f"ranks {sharing} hold parts of one vocabulary, so each has the same tokens, and the tally's process_group would "
            "count them once for every one of these ranks. Pass the data-parallel group that this rank is in: "
            'TokenTally(process_group=mesh["dp"].get_group()), or where all ranks share the vocabulary a group of this rank '
            "alone: TokenTally(process_group=torch.distributed.new_subgroups(1)[0])"
        )


def check_samples(sample_ids: Tensor | None, stats: TokenStats) -> Tensor | None:
    """Return [B] int64 on the device of the stats."""
    if sample_ids is None:
        return None
    if len(stats.batch_shape) != 2 or tuple(sample_ids.shape) != stats.batch_shape[:1]:
        wanted = stats.batch_shape[:1] if len(stats.batch_shape) == 2 else "none, since [N, V] logits have no rows"
        raise ValueError(f"sample_ids must be [B], one id for each row: {wanted}; got shape {tuple(sample_ids.shape)}")
    if sample_ids.is_floating_point():
        raise TypeError(f"sample_ids must be integers, got {sample_ids.dtype}")
    return sample_ids.to(stats.nll.device, torch.int64)


def check_positions(position_ids: Tensor | None, stats: TokenStats) -> Tensor | None:
    """Return [N] int64 on the device of the stats."""
    if position_ids is None:
        return None
    if tuple(position_ids.shape) != stats.batch_shape:
        shape = tuple(position_ids.shape)
        raise ValueError(f"position_ids must have the shape of targets {stats.batch_shape}, got {shape}")
    return position_ids.detach().reshape(-1).to(stats.nll.device, torch.int64)


def byte_table(token_bytes: Sequence[int] | Tensor | None) -> Tensor | None:
    """Return [V] int64."""
    if token_bytes is None:
        return None
    table = torch.as_tensor(token_bytes)
    if table.dim() != 1 or table.is_floating_point() or bool((table < 0).any()):
        raise ValueError("token_bytes must be [V] non-negative integers: the number of bytes that each id stands for")
    return table.to(torch.int64).contiguous()


def natural(name: str, value: int, bits: int) -> int:
    """Return a number that fits so many bits of an address."""
    if not 0 <= value < 2**bits:
        raise ValueError(f"{name} must be from 0 to 2^{bits} − 1, got {value}")
    return value
