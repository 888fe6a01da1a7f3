"""Check the arguments of ``TokenTally``: a wrong shape or dtype raises at once and says what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pplmon.extras import Measures, declare_all, declared_by
from pplmon.measure.tokens import TokenStats
from pplmon.report.checks import at_least
from pplmon.report.declared import fits
from pplmon.report.saved import Size, size_of, sizes_of
from pplmon.tally.ranks import Group
from pplmon.tally.records import Given


def check_extras(extras: Any, context_parallel: bool) -> tuple[Any, ...]:
    """Return extras as a tuple; raise for one that does not measure and for one that is there twice."""
    if not isinstance(extras, Sequence) or isinstance(extras, str):
        raise TypeError(f"extras takes a list, got {extras!r}; write extras=[pplmon.Entropy()]")
    for extra in extras:
        if isinstance(extra, type) or not all(hasattr(extra, name) for name in ("size", "update", "numbers")):
            raise TypeError(
                f"an extra is an object with size, update and numbers, got {extra!r}; write [pplmon.Entropy()]"
            )
        _check_extra(extra)
        if context_parallel and getattr(extra, "needs_sequences", False):
            raise ValueError(
                f"{extra!r} needs whole sequences, and with context_parallel=True a rank has a part of each: leave it out, or "
                "measure it where the sequences are whole"
            )
    names = sizes_of(extras)
    if len(names) < len(extras):
        raise ValueError(
            f"extras must differ in their repr, by which a checkpoint knows them, got {', '.join(map(repr, extras))}; each "
            "is counted once"
        )
    declare_all(extras)
    return tuple(extras)


def _check_extra(extra: Measures) -> None:
    """Check the sizes of an extra, and that it gives the numbers that it declares."""
    size = size_of(extra)
    at_least(f"{extra!r}: size", size.sums, 0)
    at_least(f"{extra!r}: maxima", size.maxima, 0)
    declared = [number.name for number in declared_by(extra)]
    odd = [name for name in _given(extra, size) if not any(fits(name, known) for known in declared)]
    if declared and odd:
        raise ValueError(
            f"{extra!r}.numbers gives {', '.join(map(repr, odd))}, and declares {', '.join(map(repr, declared))}: a number "
            "that is not declared is known to no rule; name it in declares"
        )


def _given(extra: Measures, size: Size) -> list[str]:
    """Return the names of the numbers that an extra gives when nothing was counted."""
    try:
        return list(extra.numbers((0,) * size.sums + (-1,) * size.maxima))
    except Exception:  # whoever asks for a report is told
        return []


def split(extra: Measures, found: Any) -> tuple[Tensor, Tensor]:
    """Split the integers that an extra returned for a batch into its sums and its maxima."""
    size = size_of(extra)
    if not isinstance(found, Tensor) or found.is_floating_point() or tuple(found.shape) != (sum(size),):
        what = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        parts = f"size ({size.sums}) and maxima ({size.maxima})" if size.maxima else "size"
        raise ValueError(f"{extra!r}.update must return integers of shape ({sum(size)},), its {parts}; got {what}")
    return found[: size.sums], found[size.sums :]


def for_extras(given: Given, stats: TokenStats) -> dict[str, Tensor]:
    """Return the tally's own arguments that extras also get, by name and in the caller's shapes."""
    data = {
        "document_ids": None if given.documents is None else given.documents.view(stats.batch_shape),
        "sample_ids": given.sample_ids,
        "position_ids": None if given.position_ids is None else given.position_ids.view(stats.batch_shape),
    }
    return {name: value for name, value in data.items() if value is not None}


def check_documents(document_ids: Tensor | None, stats: TokenStats) -> Tensor | None:
    """Return document ids as [R, T] int64 on the device of the stats; flat ones are one row."""
    if document_ids is None:
        return None
    if tuple(document_ids.shape) != stats.batch_shape:
        raise ValueError(
            f"document_ids must have the shape of targets {stats.batch_shape}, got {tuple(document_ids.shape)}"
        )
    if document_ids.is_floating_point():
        raise TypeError(f"document_ids must be integers, got {document_ids.dtype}")
    return document_ids.detach().reshape(-1, stats.batch_shape[-1]).to(stats.nll.device, torch.int64)


_TYPES = {
    "nll": torch.float32,
    "correct": torch.bool,
    "top_probability": torch.float32,
    "predicted": torch.int64,
    "targets": torch.int64,
    "scored": torch.bool,
    "invalid": torch.bool,
}


def check_stats(stats: TokenStats) -> None:
    """Raise if a column of stats is not of one value for each token, or of another type than is counted."""
    tokens = math.prod(stats.batch_shape)
    for name, dtype in _TYPES.items():
        column = getattr(stats, name)
        if column is not None and (column.dtype != dtype or column.shape != (tokens,)):
            raise ValueError(
                f"TokenStats.{name} must be {dtype} [{tokens}], as batch_shape {stats.batch_shape} says, got {column.dtype} "
                f"{tuple(column.shape)}; make them with token_stats or TokenStats.from_losses"
            )


def check_counted_once(stats: TokenStats, group: Group) -> None:
    """Raise if several ranks of the group hold the same tokens, because each would count them."""
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
    """Return sample ids as [B] int64 on the device of the stats."""
    if sample_ids is None:
        return None
    if len(stats.batch_shape) != 2 or tuple(sample_ids.shape) != stats.batch_shape[:1]:
        wanted = stats.batch_shape[:1] if len(stats.batch_shape) == 2 else "none, since [N, V] logits have no rows"
        raise ValueError(f"sample_ids must be [B], one id for each row: {wanted}; got shape {tuple(sample_ids.shape)}")
    if sample_ids.is_floating_point():
        raise TypeError(f"sample_ids must be integers, got {sample_ids.dtype}")
    return sample_ids.to(stats.nll.device, torch.int64)


def check_positions(position_ids: Tensor | None, stats: TokenStats) -> Tensor | None:
    """Return position ids as [N] int64 on the device of the stats."""
    if position_ids is None:
        return None
    if tuple(position_ids.shape) != stats.batch_shape:
        shape = tuple(position_ids.shape)
        raise ValueError(f"position_ids must have the shape of targets {stats.batch_shape}, got {shape}")
    return position_ids.detach().reshape(-1).to(stats.nll.device, torch.int64)


def byte_table(token_bytes: Sequence[int] | Tensor | None) -> Tensor | None:
    """Return the bytes of each id as [V] int64."""
    if token_bytes is None:
        return None
    table = torch.as_tensor(token_bytes)
    if table.dim() != 1 or table.is_floating_point() or bool((table < 0).any()):
        raise ValueError("token_bytes must be [V] non-negative integers: the number of bytes that each id stands for")
    return table.to(torch.int64).contiguous()


def natural(name: str, value: int, bits: int) -> int:
    """Return ``value`` if it fits into ``bits`` bits of an address, else raise."""
    if not 0 <= value < 2**bits:
        raise ValueError(f"{name} must be from 0 to 2^{bits} − 1, got {value}")
    return value
