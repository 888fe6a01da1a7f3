"""Read targets, masks, ids and other data of the tokens from a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

Targets = str | int | Callable[[Any], Tensor | None]
TARGET_NAMES = ("labels", "targets")
DATA_NAMES = ("mask", "document_ids", "sample_ids", "group_ids", "input_ids", "position_ids")


def targets_of(batch: Any, wanted: Targets | None) -> Tensor | None:
    """Return the targets: a key, attribute or index of the batch, a callable of it, or a usual name."""
    if wanted is None:
        return _usual(batch)
    if callable(wanted):
        return wanted(batch)
    try:
        return batch[wanted]  # type: ignore[no-any-return]
    except (KeyError, IndexError, TypeError):
        if isinstance(wanted, str) and hasattr(batch, wanted):
            return getattr(batch, wanted)  # type: ignore[no-any-return]
        kind = f"is a {type(batch).__name__}"
        known = f"has the keys {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else kind
        raise ValueError(f"targets={wanted!r} is no key, attribute or index of the batch, which {known}") from None


def data_of(batch: Any, targets: Tensor) -> Iterator[tuple[str, Tensor, str | None]]:
    """Yield (name, value, complaint) for arguments of ``TokenTally.update``; a complaint says why it is not used."""
    if not isinstance(batch, Mapping):
        return
    for name in DATA_NAMES:
        value = batch.get(name)
        if not isinstance(value, Tensor):
            continue
        if name == "sample_ids" and targets.dim() != 2:
            continue  # flat logits have no rows that could have an id
        wanted = targets.shape[:1] if name == "sample_ids" else targets.shape
        if value.dim() == 2 and targets.dim() == 1 and value.numel() == targets.numel():
            value = value.reshape(-1)  # the module flattened logits and targets
        if value.is_floating_point() and name != "mask":
            yield name, value, f"batch[{name!r}] is {value.dtype}, not integer: it is not used"
        elif value.shape == wanted or (name == "group_ids" and value.shape == targets.shape[:1]):
            yield name, value.bool() if name == "mask" else value, None
        elif name not in ("input_ids", "position_ids"):  # meant for the model only, unless it fits
            yield name, value, f"batch[{name!r}] has shape {tuple(value.shape)}, not {tuple(wanted)}: it is not used"


def part_with(batch: Any, targets: Tensor) -> Any:
    """Return the part of a batch, put together of several loaders' batches, that holds these targets; else the batch."""
    parts = batch if isinstance(batch, (list, tuple)) else batch.values() if isinstance(batch, Mapping) else ()
    for part in parts:  # most are tensors, and asking for a Mapping takes time
        if not isinstance(part, Tensor) and isinstance(part, Mapping) and any(v is targets for v in part.values()):
            return part
    return batch


def first_tensor(values: Mapping[str, Any], names: Sequence[str] = TARGET_NAMES) -> Tensor | None:
    """Return the first of these entries that is a tensor."""
    return next((values[name] for name in names if isinstance(values.get(name), Tensor)), None)


def _usual(batch: Any) -> Tensor | None:
    if isinstance(batch, Mapping):
        return first_tensor(batch, (*TARGET_NAMES, "target"))
    named = first_tensor(vars(batch)) if hasattr(batch, "__dict__") else None
    if named is None and isinstance(batch, (tuple, list)) and len(batch) > 1 and isinstance(batch[1], Tensor):
        return batch[1]
    return named
