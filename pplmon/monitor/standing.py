"""A rank's place among the others, and its parting from them."""

from __future__ import annotations

import warnings
from typing import NamedTuple
from weakref import WeakSet

from pplmon.measure.vocab_parallel.shard import running
from pplmon.monitor.patience import Patience
from pplmon.report.totals import Totals
from pplmon.tally import OwnNumbers, ReadOut, TokenTally, Votes
from pplmon.tally.ranks import Group, Home

_standing: WeakSet[Standing] = WeakSet()  # of this process


class Pending(NamedTuple):
    """A read-out that was started and is not yet taken in, whether it closes an optimizer step, and its number."""

    read_out: ReadOut
    closes_step: bool
    number: int


class Standing:
    """The tally of the current step, the read-out of it that is pending, and this rank's place in its group.

    When a collective fails (a rank died), the group is ended, ranks differ, or the run is abandoned, the link to the others is
    severed for good: nothing more is sent, and read-outs are of this rank alone. To join again takes a new group, which all of
    its ranks make together, and a new monitor.
    """

    def __init__(self, pattern: TokenTally, may_write: bool = True, norms: int = 0) -> None:
        self.pattern = pattern.clone()
        self.pattern.reset()  # a pattern only gives its settings; its own counts are dropped
        self.tally = self.pattern.clone()
        self.numbers = OwnNumbers(norms)  # with room for gradient norms of so many steps
        self.pending: Pending | None = None
        self.clearing = False  # what the tally holds is in the pending read-out, too
        self.severed = False
        self.unmerged = Totals()
        self._may_write = may_write  # False where another group of the same run writes (tensor-parallel replicas)
        self._connected = False
        self._home = Home()
        self._used = False  # something was read out
        self._stopped = False
        self.votes = Votes()  # of all ranks, in the last tally that was read
        self.took_over = False  # the place of the rank that wrote, which is lost
        self.patience = Patience()
        _standing.add(self)

    @property
    def home(self) -> Home:
        """This rank's place in its group: what it was when the first read-out began, whatever becomes of the group."""
        return self._home if self._used else self.pattern.group.home

    @property
    def writes(self) -> bool:
        """Return True on the rank that writes: the first of its group, or who took its place."""
        return self._may_write and (self.home.rank == 0 or self.took_over)

    @property
    def acts(self) -> bool:
        """Return True on the ranks that tell handlers of alerts: the first of the group, and any that lost the others."""
        return self.writes or self.severed

    @property
    def takes_part(self) -> bool:
        """Return False on a rank outside the group, which counts and judges nothing."""
        return self.home.rank >= 0

    @property
    def ranks(self) -> int:
        """Return the number of ranks in the group."""
        return self.home.size

    @property
    def missing(self) -> int:
        """Return the number of ranks whose tokens are not in what is read out."""
        return max(self.home.size - 1, 1) if self.severed else 0

    def arrives(self, seconds: float) -> bool:
        """Return True if the pending read-out arrives within ``seconds``, without a collective."""
        return self.pending is None or self.pending.read_out.arrives(seconds)

    def sever(self, why: str | None = None) -> None:
        """Send nothing any more: from here on the tally is this rank's own."""
        if self.severed:
            return
        self._home, self._used, self.severed = self.home, True, True
        self.patience.leave()
        for tally in (self.pattern, self.tally):
            tally.leave_group(self.home.global_rank)
        if why is not None:
            warn(
                f"{why}. Training goes on; from here on rank {self.home.global_rank} counts and judges for itself. Its windows are "
                f"marked with ranks_missing={self.missing} and written to its own journal."
            )

    def stop(self) -> None:
        """Send nothing any more, and read nothing out."""
        self.hang_up()
        self._stopped = True

    def hang_up(self, why: str | None = None) -> None:
        """Sever the link, and leave the communicator: what this rank sends would no longer meet what the others send."""
        ours = (
            Group(self.pattern.process_group) if self._connected and not self.severed and not self._home.ended else None
        )
        self.sever(why)
        if ours is None or ours.size == 1:
            return
        for other in list(_standing):
            if other.pattern.process_group is ours.handle and not other.severed:
                other.sever("another monitor has left the communicator that monitors of the same ranks share")
        if self.arrives(0):
            self.pattern.process_group = self.tally.process_group = None
            ours.forget()
        else:
            ours.keep_open()

    def own(self) -> Totals:
        """Return, and forget, the totals that this rank could not merge: of pending and lost read-outs, and of its tally."""
        pending, self.pending = self.pending, None
        under_way = Totals() if pending is None else pending.read_out.local()
        own = self._own(under_way + self.tally.local_totals().silent())
        self.tally.reset()
        return own

    def _lose(self, error: RuntimeError, number: int | None = None) -> None:
        """Sever the link after a collective that failed, or that this rank no longer waits for."""
        Group(self.pattern.process_group).keep_open()
        self.patience.leave(number)
        self.sever(f"a collective failed ({error})")

    def _own(self, totals: Totals) -> Totals:
        unmerged, self.unmerged = self.unmerged, Totals()
        return unmerged + totals

    def _look_at_group(self) -> None:
        """See whether the group ended, or appeared only after something was counted without it."""
        if not self._used:
            self._home, self._used = self.pattern.group.home, True
        elif self.severed:
            return
        elif self._home.world is None:
            if running():
                self._home = self.pattern.group.home
                self.sever(
                    "torch.distributed was initialised after this monitor had begun to count, so it does not join the group: "
                    "make the monitor after init_process_group"
                )
        elif self._home.ended:
            self.sever("the process group was ended before monitor.close()")


def warn(text: str) -> None:
    """Warn of something that the others do, or do not do."""
    warnings.warn(f"pplmon: {text}", RuntimeWarning, stacklevel=3)
