"""Compare the layouts of ranks before they merge: all must hold the same integers in the same order.

Reductions of different sizes would crash or wait for ever, and settings that differ would mix numbers in silence. So a
hash of all names, sizes and settings is compared once before the first read-out. It then travels with the maxima of every
read-out, with no further collective. Only where it differs do ranks tell each other what they have.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor

from pplmon.extras import Measures
from pplmon.report import layout, saved
from pplmon.tally.coming import Waits, wait_for
from pplmon.tally.count.numpy_or_torch import OnTorch
from pplmon.tally.doing import Doing, Votes
from pplmon.tally.ranks import Group
from pplmon.tally.records import State

BYTES = 4096  # that a rank tells the others of itself, where they differ
SHOWN = 100  # characters of a setting
LISTED = 8  # ranks that are named


class UnlikeRanks(ValueError):
    """Raised on every rank of a group whose ranks hold different integers, have different settings or do different things."""


class Layout:
    """The names and sizes of a tally's integers and its settings, and the groups whose ranks were found to have the same."""

    def __init__(self, terms: Mapping[str, str]) -> None:
        self._terms = dict(terms)
        self._hash = int.from_bytes(hashlib.sha256(repr(self._terms).encode()).digest()[:7], "big")
        self._agreed: WeakSet[Any] = WeakSet()

    @classmethod
    def of(cls, state: State, extras: Sequence[Measures]) -> Layout:
        """Return the layout of a tally's states."""
        names = hashlib.sha256(repr((layout.SUMS, layout.MAXIMA)).encode()).hexdigest()[:8]
        return cls(
            {
                "names or their order": f"{len(state.sums)} sums and {len(state.maxima)} maxima, hash {names}",
                "top_k": str(state.token_rows.shape[0]),
                "columns of a row": str(state.token_rows.shape[1]),
                "buckets": str(len(state.histogram)),
                "extras": saved.without_addresses(repr(saved.sizes_of(extras))) if extras else "none",
            }
        )

    def also(self, terms: Mapping[str, object]) -> Layout:
        """Return a layout with more settings that ranks have to agree on."""
        return Layout(self._terms | {name: saved.without_addresses(str(value)) for name, value in terms.items()})

    def with_passes(self, other: Layout) -> Layout:
        """Return a layout of two tallies: in what passes are counted otherwise has to be alike, too."""
        return self.also(
            {f"{name} of passes": text for name, text in other._terms.items() if text != self._terms.get(name)}
        )

    @property
    def name(self) -> str:
        """A short text that differs where layouts do."""
        return f"{self._hash:x}"

    def compare(self, group: Group, device: torch.device, wait: Waits | None = None) -> None:
        """Raise on every rank of ``group`` where layouts differ. One collective, waited for, the first time only."""
        world = group.handle or dist.group.WORLD if group.size > 1 else None
        if world is None or world in self._agreed:
            return
        extremes = torch.tensor([self._hash, -self._hash], device=device)
        work = dist.all_reduce(extremes, dist.ReduceOp.MAX, group=group.handle, async_op=True)
        wait_for(work, device, wait)
        highest, lowest = extremes.tolist()
        if highest != -lowest:
            raise self.unlike(group, device, wait=wait)
        self._agreed.add(world)

    def mark(self, device: torch.device, votes: Votes) -> Tensor:
        """Return [6] int64 whose maximum over ranks shows if all have the same hash, and what any of them votes."""
        return _mark(self._hash, votes, device)

    def unlike(
        self, group: Group, device: torch.device, doing: Doing | None = None, wait: Waits | None = None
    ) -> UnlikeRanks:
        """Return the error, the same on every rank of the group: each tells what it has and does. One collective."""
        says = {"does": str(doing)} | {name: _shown(text) for name, text in self._terms.items()}
        told = tell(group, device, says, wait)
        names = dict.fromkeys(name for facts in told.values() for name in facts if name != "does")
        unlike = {name: {rank: facts.get(name, "none") for rank, facts in told.items()} for name in names}
        differing = [f"{name} ({by_value(has)})" for name, has in unlike.items() if len(set(has.values())) > 1]
        if differing:
            return UnlikeRanks(
                f"ranks of one group differ in {', in '.join(differing)}, so their integers cannot be merged. Give every rank "
                "the same settings and the same version of pplmon."
            )
        return UnlikeRanks(
            f"ranks of one group do unlike things at one time: {by_value({r: f['does'] for r, f in told.items()})}. Every rank "
            'has to step, validate and save alike; a pass of one rank alone is stage("val", local=True).'
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Layout:
        return self  # a copy of a tally has the same layout: its ranks need not compare again

    def __reduce__(self) -> tuple[Any, ...]:
        return Layout, (self._terms,)  # groups stay in this process


def tell(
    group: Group, device: torch.device, facts: Mapping[str, str], wait: Waits | None = None
) -> dict[int, dict[str, str]]:
    """Return what each rank of the group says of itself, by its global rank. One collective of a fixed size."""
    own = json.dumps(dict(facts)).encode()[:BYTES].ljust(BYTES)
    parts = [torch.empty(BYTES, dtype=torch.uint8, device=device) for _ in range(group.size)]
    mine = torch.tensor(list(own), dtype=torch.uint8, device=device)
    wait_for(dist.all_gather(parts, mine, group=group.handle, async_op=True), device, wait)
    return {rank: json.loads(bytes(part.tolist())) for rank, part in zip(group.ranks, parts)}


def by_value(said: Mapping[int, str]) -> str:
    """Return "4 on rank 0; 8 on ranks 1, 2"."""
    ranks: dict[str, list[str]] = {}
    for rank, value in said.items():
        ranks.setdefault(value, []).append(str(rank))
    return "; ".join(f"{value} on rank{'s' * (len(has) > 1)} {_listed(has)}" for value, has in ranks.items())


def _listed(ranks: Sequence[str]) -> str:
    more = len(ranks) - LISTED
    return ", ".join(ranks[:LISTED]) + (f" and {more} more" if more > 0 else "")


def _shown(text: str) -> str:
    """Return a text that is short, and differs where the whole one does."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… (hash {digest})"


@lru_cache
def _mark(hash_: int, votes: Votes, device: torch.device) -> Tensor:
    mark: Tensor = OnTorch(device).vector(
        [hash_, -hash_, *votes]
    )  # made there: a copy to the device would be waited for
    return mark
