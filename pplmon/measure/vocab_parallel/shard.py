"""``VocabShard``: tell which part of the vocabulary a plain tensor holds. The ranks check it together, once."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.distributed as dist

_AVAILABLE = dist.is_available()  # in this build of PyTorch
WIDEST = 2**31 - 1  # ids travel as int32, and the last one stands for none


class Place(NamedTuple):
    """The columns ``start`` to ``stop`` of a vocabulary of ``size`` that a rank holds; those beyond ``size`` are padding."""

    group: Any  # a ProcessGroup, None for all ranks
    start: int
    stop: int
    size: int

    @property
    def ranks(self) -> tuple[int, ...]:
        """The global ranks that hold a part of this vocabulary."""
        return tuple(dist.get_process_group_ranks(self.group or dist.group.WORLD)) if running() else (0,)

    @property
    def columns(self) -> int:
        """The number of the shard's columns that are not padding."""
        return max(min(self.stop, self.size) - self.start, 0)


class VocabShard:
    """Say which part of the vocabulary a plain tensor of logits holds (Megatron's layout, or any other).

    Make it once, on every rank of ``group``: the ranks compare their parts here, and wait for each other to do so.
    ``token_stats(shard, targets, vocab_shard=...)`` then needs one collective of 20 bytes a token.

    Args:
        group: the ranks that hold the vocabulary together; ``None`` is all of them.
        start: the first id of this rank's part.
        stop: one beyond its last: ``start`` plus the width of the tensor, padding included.
        size: V, the real vocabulary: columns from it on (padding of the last ranks) are left out.

    Raises:
        ValueError: the parts do not lie side by side from 0 to ``size``, or the ranks differ in ``size``. All of them raise.
    """

    def __init__(self, group: Any, start: int, stop: int, size: int) -> None:
        place = Place(group, int(start), int(stop), int(size))
        if running() and dist.get_rank(group) < 0:
            raise ValueError(
                f"rank {dist.get_rank()} is not in the group that VocabShard was given; pass its own group"
            )
        places = [(place.start, place.stop, place.size)]
        if len(place.ranks) > 1:
            places = [place[1:]] * len(place.ranks)
            dist.all_gather_object(places, place[1:], group=group)
        _check(places, place.ranks)
        self.place = place

    def __repr__(self) -> str:
        start, stop, size = self.place[1:]
        return f"VocabShard(start={start}, stop={stop}, size={size}, ranks={list(self.place.ranks)})"


def check_size(size: int) -> None:
    """Raise ValueError for a vocabulary whose ids do not fit the 32 bits that are sent."""
    if not 1 <= size < WIDEST:
        raise ValueError(f"a vocabulary that is cut over ranks has from 1 to 2^31 − 2 ids, got {size}")


def running() -> bool:
    """True inside torch.distributed. Asked some times in each step: ``dist.is_initialized`` asks the same in more calls."""
    return _AVAILABLE and dist.group.WORLD is not None


def _check(places: list[tuple[int, int, int]], ranks: tuple[int, ...]) -> None:
    sizes = [size for _, _, size in places]
    check_size(min(sizes))
    if len(set(sizes)) > 1:
        raise ValueError(f"VocabShard: the ranks {list(ranks)} give the sizes {sizes}; size is the whole vocabulary")
    end = 0
    for start, stop, _ in sorted(places):
        if start != end or stop < start:
            break
        end = stop
    else:
        if end >= sizes[0]:
            return
    held = ", ".join(f"rank {rank} [{start}, {stop})" for rank, (start, stop, _) in zip(ranks, places))
    raise ValueError(
        f"VocabShard: the parts of a vocabulary of {sizes[0]} must lie side by side from 0 to {sizes[0]} or beyond "
        f"(padding), and these do not: {held}; start is the first id of a rank's part, stop = start + its width"
    )
