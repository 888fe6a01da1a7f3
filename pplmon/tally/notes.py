"""Notes that ranks leave each other in the store of their process group, without waiting for each other.

No collective: a note is a counter, and to add to it or to read it takes one message to the process that has the store. Where
that is lost the notes are gone, and ranks wait for each other as long as their group does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from pplmon.measure.private_names import default_store
from pplmon.measure.vocab_parallel.shard import running


class Notes:
    """Counters of the ranks of one group, for one tally; ``Notes()`` takes nothing and has nothing."""

    def __init__(self, ranks: Sequence[int] = (), name: str = "") -> None:
        self._name = f"pplmon/{hashlib.sha256(repr(list(ranks)).encode()).hexdigest()[:16]}/{name}"
        # The store itself is not kept: while somebody holds it, its port is taken, and no second run could begin there.
        self._world: Any = dist.group.WORLD if running() and len(ranks) > 1 else None

    def add(self, what: str) -> None:
        """Count one rank more under ``what``."""
        self._add(what, 1)

    def count(self, what: str) -> int:
        """Return how many ranks have added to ``what``; −1 where it cannot be known."""
        return self._add(what, 0)

    def _add(self, what: str, amount: int) -> int:
        if self._world is None or not running() or dist.group.WORLD is not self._world:
            return -1
        try:
            return int(default_store(dist.distributed_c10d).add(f"{self._name}/{what}", amount))
        except RuntimeError:  # the process that has the store is lost
            self._world = None
            return -1
