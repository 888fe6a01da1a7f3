"""Read this rank's part of a DTensor of logits, and its place in the vocabulary. Nothing is sent between ranks.

Shapes: B sequences, T positions, N tokens, V vocabulary.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor

from pplmon.measure.vocab_parallel.shard import Place, VocabShard, check_size


def is_dtensor(value: object) -> bool:
    """Return True for a DTensor, without importing torch.distributed.tensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def local(logits: Any, targets: Any, mask: Any, vocab_shard: VocabShard | None) -> tuple[Any, Any, Any, Place | None]:
    """Return logits, targets and mask as this rank holds them, and the place of its part of V, if V is cut.

    A DTensor of logits may be ``Shard`` on its last dimension over one mesh dimension, ``Shard(0)`` (each rank its own
    rows) or ``Replicate`` over the others. Targets and mask are plain, this rank's own rows, or laid out as the rows are.

    Raises:
        ValueError: any other layout; a ``vocab_shard`` beside a DTensor, or of another width than the logits.
    """
    if vocab_shard is not None and not isinstance(vocab_shard, VocabShard):
        raise TypeError(
            f"vocab_shard must be a pplmon.VocabShard(group, start, stop, size), got {type(vocab_shard).__name__}"
        )
    if not is_dtensor(logits):
        if vocab_shard is not None and isinstance(logits, Tensor) and logits.dim():
            _check_width(logits, vocab_shard.place)
        place = None if vocab_shard is None else vocab_shard.place
        return logits, _whole("targets", targets), _whole("mask", mask), place
    if vocab_shard is not None:
        raise ValueError("vocab_shard is for plain tensors; logits are a DTensor, which knows its own place")
    kinds = [_kind(logits, dim) for dim in range(logits.device_mesh.ndim)]
    targets, mask = (_rows(name, value, logits, kinds) for name, value in (("targets", targets), ("mask", mask)))
    if kinds.count("vocabulary") > 1:
        raise _refused(logits, "the vocabulary is cut over more than one mesh dimension")
    place = _place(logits, kinds.index("vocabulary")) if "vocabulary" in kinds else None
    return logits.to_local(), targets, mask, place


def held_rows(logits: Tensor) -> tuple[int, ...]:
    """Return the shape of the tokens that this rank holds: that of the logits, of a DTensor's own rows, without V."""
    if not is_dtensor(logits):
        return tuple(logits.shape[:-1])
    return tuple(logits.to_local().shape[:-1])  # type: ignore[attr-defined]


def _kind(logits: Any, dim: int) -> str:
    """Say what one mesh dimension cuts: "vocabulary", "rows" or "nothing"."""
    placement = logits.placements[dim]
    if logits.device_mesh.size(dim) == 1 or placement.is_replicate():
        return "nothing"
    if type(placement).__name__ == "Shard":  # not _StridedShard, whose columns lie elsewhere
        cut = placement.dim % logits.ndim
        if cut == logits.ndim - 1:
            return "vocabulary"
        if cut == 0:
            return "rows"
    raise _refused(logits, f"{placement!r} is none of these")


def _refused(logits: Any, why: str) -> ValueError:
    return ValueError(
        f"DTensor logits {tuple(logits.shape)} have placements {tuple(logits.placements)}: {why}. Known are Shard on the "
        "last dimension over one mesh dimension, Shard(0) and Replicate; logits.redistribute(...) brings them there, or "
        "pass plain tensors with this rank's own targets"
    )


def _place(logits: Any, dim: int) -> Place:
    """Return this rank's columns: torch cuts V as ``torch.chunk`` does, so that the last ranks may have fewer, or none."""
    mesh, size = logits.device_mesh, logits.shape[-1]
    check_size(size)
    chunk = -(-size // mesh.size(dim))
    start = min(mesh.get_local_rank(dim) * chunk, size)
    place = Place(mesh.get_group(dim), start, min(start + chunk, size), size)
    width = logits.to_local().shape[-1]
    if width != place.columns:
        raise ValueError(
            f"a DTensor of {size} columns over {mesh.size(dim)} ranks has {place.columns} of them on this one, and its "
            f"local tensor has {width}; DTensor.from_local needs shape= and stride= where ranks hold unlike parts"
        )
    return place


def _check_width(logits: Tensor, place: Place) -> None:
    if logits.shape[-1] != place.stop - place.start:
        raise ValueError(
            f"vocab_shard says that this rank holds the ids {place.start} to {place.stop} "
            f"({place.stop - place.start} columns), and the logits are {tuple(logits.shape)}"
        )


def _rows(name: str, value: Any, logits: Any, kinds: list[str]) -> Any:
    """Return targets or mask for the rows that this rank holds."""
    if isinstance(value, Tensor) and not is_dtensor(value):
        own, everyone = held_rows(logits), tuple(logits.shape[:-1])
        if own != everyone and tuple(value.shape) == everyone:
            raise ValueError(
                f"the logits' rows are cut over ranks: this one holds {own} of {everyone}, and {name} are {everyone}; pass "
                f"this rank's own rows, or {name} as a DTensor with Shard(0) where the logits have it"
            )
        return value
    if not is_dtensor(value) or value.device_mesh != logits.device_mesh:
        return _whole(name, value)
    for dim, kind in enumerate(kinds):
        placement = value.placements[dim]
        alike = (
            type(placement).__name__ == "Shard" and placement.dim == 0 if kind == "rows" else placement.is_replicate()
        )
        if not alike and value.device_mesh.size(dim) > 1:
            wanted = "Shard(0)" if kind == "rows" else "Replicate()"
            raise ValueError(
                f"{name} have placements {tuple(value.placements)}, the logits {tuple(logits.placements)}: on mesh "
                f"dimension {dim} {name} must be {wanted}, like the rows that they belong to"
            )
    return value.to_local()


def _whole(name: str, value: Any) -> Any:
    """Return the local tensor of a DTensor that every rank has whole; anything else as it is."""
    if not is_dtensor(value):
        return value
    for dim, placement in enumerate(value.placements):
        if not placement.is_replicate() and value.device_mesh.size(dim) > 1:
            raise ValueError(
                f"{name} have placements {tuple(value.placements)} on a mesh that is not the logits'; pass "
                f"{name}.to_local() if that is this rank's own rows, or {name}.full_tensor()"
            )
    return value.to_local()
