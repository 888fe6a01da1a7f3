"""One monitor's link to the other ranks: it starts read-outs, receives them, and survives the loss of the others."""

from __future__ import annotations

import time
import warnings
from typing import NamedTuple

from pplmon.report.totals import Totals
from pplmon.tally import ReadOut, TokenTally, UnlikeLayouts

POLL_S = 0.01


class Pending(NamedTuple):
    """A read-out that was started and is not yet taken in."""

    read_out: ReadOut
    step: int
    closes_window: bool


class Link:
    """The tally of the current step, and the read-out of it that is pending.

    When a collective fails (a rank died), the ranks' layouts differ, or the run is abandoned, the link is severed:
    nothing more is sent, and the totals that this rank could not merge are kept in ``unmerged``.
    """

    def __init__(self, pattern: TokenTally, may_write: bool = True) -> None:
        self.pattern = pattern.clone()
        self.pattern.reset()  # a pattern only gives its settings; its own counts are dropped
        self.tally = self.pattern.clone()
        self.pending: Pending | None = None
        self.severed = False
        self.unmerged = Totals()
        self._may_write = may_write  # False where another group of the same run writes (tensor-parallel replicas)
        self._connected = False

    @property
    def writes(self) -> bool:
        """Return True on the rank that writes: the first of its group."""
        return self._may_write and self.pattern.group.rank == 0

    @property
    def takes_part(self) -> bool:
        """Return False on a rank outside the group, which counts and judges nothing."""
        return self.pattern.group.rank >= 0

    @property
    def ranks(self) -> int:
        """Return the number of ranks in the group."""
        return self.pattern.group.size

    def connect(self) -> None:
        """Make a separate communicator. Every rank of the group calls it, before the first collective."""
        if not self._connected and self.takes_part:
            self._connected = True
            self.pattern.process_group = self.tally.process_group = self.pattern.group.private().handle

    def launch(self, step: int, closes_window: bool) -> None:
        """Start to read out the tally, and reset it."""
        if self.severed or not self.takes_part:
            return
        try:
            self.connect()
            self.pending = Pending(self.tally.read_out(), step, closes_window)
        except RuntimeError as error:  # some backends say at once that a rank is gone
            self.sever(f"a collective failed ({error})")
        except UnlikeLayouts:
            self.sever()
            raise
        else:
            self.tally.clear()

    def take(self) -> tuple[Pending, Totals] | None:
        """Wait for the pending read-out and return it; ``None`` if there is none, or if it was lost."""
        pending, self.pending = self.pending, None
        if pending is None or self.severed:
            return None
        try:
            return pending, pending.read_out.totals()
        except RuntimeError as error:
            self.unmerged = self.unmerged + pending.read_out.local()
            self.sever(f"a collective failed ({error})")
            return None
        except UnlikeLayouts:
            self.unmerged = self.unmerged + pending.read_out.local()
            self.sever()
            raise

    def whole(self, tally: TokenTally) -> Totals:
        """Return a tally's totals over all ranks, rows included, and wait for them."""
        if self.severed:
            return tally.local_totals()
        try:
            self.connect()
            tally.process_group = self.pattern.process_group
            return self.gather(tally.read_out().totals())
        except RuntimeError as error:
            self.sever(f"a collective failed ({error})")
            return tally.local_totals()
        except UnlikeLayouts:
            self.sever()
            raise

    def gather(self, totals: Totals) -> Totals:
        """Return totals with the worst rows of all ranks; this rank's own once the link is severed."""
        if self.severed:
            return totals
        try:
            return self.pattern.gather(totals)
        except RuntimeError as error:
            self.sever(f"a collective failed ({error})")
            return totals

    def sum(self, values: list[int]) -> list[int]:
        """Return the sums of a few integers over ranks, and wait for them; this rank's own once the link is severed."""
        if self.severed or not self.takes_part:
            return values
        try:
            self.connect()
            return self.pattern.group.sum(values, self.tally.sums.device)
        except RuntimeError as error:
            self.sever(f"a collective failed ({error})")
            return values

    def arrives(self, seconds: float) -> bool:
        """Return True if the pending read-out arrives within ``seconds``, without a collective."""
        until = time.monotonic() + seconds
        while self.pending is not None and not self.pending.read_out.arrived():
            if time.monotonic() > until:
                return False
            time.sleep(POLL_S)
        return True

    def sever(self, why: str | None = None) -> None:
        """Send nothing any more. Of a pending read-out that did not arrive, this rank's own totals are kept."""
        self.severed = True
        pending, self.pending = self.pending, None
        if pending is not None:
            self.unmerged = self.unmerged + pending.read_out.local()
        if why is not None:
            warnings.warn(
                f"pplmon: {why}. Training goes on; from here on this rank counts for itself, and what it counts is "
                "written to its own journal when the monitor is closed.",
                RuntimeWarning,
                stacklevel=2,
            )

    def own(self) -> Totals:
        """Return, and forget, the totals that this rank could not merge: of lost read-outs, and of its tally."""
        own, self.unmerged = self.unmerged + self.tally.local_totals(), Totals()
        self.tally.reset()
        return own
