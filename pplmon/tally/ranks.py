"""The ranks whose tokens are counted together, and a communicator of our own for them."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from pplmon.measure.private_names import timeout_of
from pplmon.measure.vocab_parallel.shard import running
from pplmon.tally.coming import Waits, wait_for


class Home(NamedTuple):
    """A process's place in its group, as it was when somebody looked."""

    rank: int = 0  # within the group, −1 outside it
    size: int = 1
    global_rank: int = 0
    world: Any = None  # the run's world then; None without torch.distributed

    @property
    def ended(self) -> bool:
        """True once the world of that time is no more."""
        return self.world is not None and not (running() and dist.group.WORLD is self.world)


class Group(NamedTuple):
    """A process group; ``Group()`` is all ranks, or this process alone without torch.distributed."""

    handle: Any = None  # a ProcessGroup, None for all ranks

    @property
    def size(self) -> int:
        """Return the number of ranks; 1 without torch.distributed, −1 outside the group."""
        return dist.get_world_size(self.handle) if running() else 1

    @property
    def rank(self) -> int:
        """Return this process's rank within the group, −1 outside it."""
        return dist.get_rank(self.handle) if running() else 0

    @property
    def global_rank(self) -> int:
        """Return this process's rank in the run, which addresses contain."""
        return dist.get_rank() if running() else 0

    @property
    def ranks(self) -> list[int]:
        """Return the global ranks of the group."""
        return dist.get_process_group_ranks(self.handle or dist.group.WORLD) if running() else [0]

    @property
    def home(self) -> Home:
        """Return this process's place in the group now."""
        return Home(self.rank, self.size, self.global_rank, dist.group.WORLD if running() else None)

    def private(self) -> Group:
        """Return the same ranks on a communicator of our own. Every rank of the group calls it.

        Our collectives then neither wait for those of the training step nor hold them up, and cannot be mistaken for
        them, and wait for a rank as long as the group's own do. One communicator serves all monitors of the same ranks.
        """
        if self.size <= 1:
            return self
        own = _own.setdefault(dist.group.WORLD, {})
        ranks = tuple(self.ranks)
        if ranks not in own:
            backend, timeout = dist.get_backend(self.handle), timeout_of(self.handle or dist.group.WORLD)
            own[ranks] = dist.new_group(list(ranks), timeout, backend, use_local_synchronization=True)
        return Group(own[ranks])

    def from_first(self, payload: bytes, device: torch.device, wait: Waits | None = None) -> bytes:
        """Return what the first rank of the group has, on every rank. Every rank of the group calls it, and waits.

        ``wait`` may give it up before the group does.
        """
        if self.size <= 1:
            return payload
        first, length = self.ranks[0], torch.tensor([len(payload)], device=device)
        wait_for(dist.broadcast(length, first, group=self.handle, async_op=True), device, wait)
        cells = torch.empty(int(length), dtype=torch.uint8)
        if self.rank == 0 and payload:
            cells = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        cells = cells.to(device)
        if len(cells):
            wait_for(dist.broadcast(cells, first, group=self.handle, async_op=True), device, wait)
        return bytes(cells.cpu().numpy())

    def forget(self) -> bool:
        """Have later monitors make another communicator in place of this one; return True if it was one of ours.

        It is not ended before its world is: torch would give its name, and the old addresses under it, to the next one.
        """
        known = [(groups, ranks) for groups in _own.values() for ranks in groups if groups[ranks] is self.handle]
        for groups, ranks in known:
            del groups[ranks]
        return bool(known)

    def keep_open(self) -> None:
        """Never end a communicator of our own whose collective waits for another rank: its process would end no sooner than that."""
        if self.forget():
            # One reference more than anybody gives back: gloo's destructor waits for what is under way.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.handle))


class Alone(Group):
    """A rank by itself, which keeps the number that it had in the run."""

    at = 0

    @classmethod
    def on(cls, global_rank: int) -> Alone:
        """Return the rank of this number."""
        alone = cls()
        alone.at = global_rank
        return alone

    @property
    def size(self) -> int:
        return 1

    @property
    def rank(self) -> int:
        return 0

    @property
    def global_rank(self) -> int:
        return self.at


# By the run's world: a notebook that ends one and starts another must not be given the groups of the first.
_own: WeakKeyDictionary[Any, dict[tuple[int, ...], Any]] = WeakKeyDictionary()
