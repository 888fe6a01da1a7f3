"""Agree on who shows numbers once the rank that did is lost: by files beside the journal, since a collective may hang."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
from pathlib import Path

WAIT_S = 10.0  # for the signs of other survivors


class NextWriter:
    """The place of the rank that shows numbers. Each survivor signs; the lowest of them takes the place.

    A rank that signs later than ``WAIT_S`` after the others finds the place taken: one file is made by one rank only.
    """

    def __init__(self, beside: Path, prefix: str) -> None:
        name = f".{hashlib.sha256(prefix.encode()).hexdigest()[:8]}" if prefix else ""
        self._folder = beside / f"pplmon.survivors{name}"
        self._rank, self._signed_at = -1, 0.0

    def clear(self) -> None:
        """Forget the survivors of an earlier run. The rank that writes calls it when a run begins."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def sign(self, rank: int) -> None:
        """Say that this rank is there."""
        self._rank, self._signed_at = rank, time.monotonic()
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / f"rank.{self._rank}").touch()

    def is_mine(self) -> bool | None:
        """Return whether this rank takes the place; ``None`` while others may yet sign. Nothing is waited for."""
        if time.monotonic() - self._signed_at < WAIT_S:
            return None
        try:
            signed = [int(path.suffix[1:]) for path in self._folder.glob("rank.*")]
            if min(signed, default=-1) != self._rank:
                return False
            (self._folder / "taken").touch(exist_ok=False)
        except OSError:  # taken, or the disk is full or gone
            return False
        return True
