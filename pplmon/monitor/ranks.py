"""One monitor's link to the other ranks: it starts read-outs, receives them, and survives the loss of the others."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import torch

from pplmon.report import layout
from pplmon.report.totals import Totals
from pplmon.tally import Doing, ReadOut, TokenTally, UnlikeRanks
from pplmon.tally.ranks import Group, Home

PASS_S = 10.0  # a pass that waits longer for the other ranks says so
GRACE_S = 10.0  # for a read-out under way when its group was ended


class Pending(NamedTuple):
    """A read-out that was started and is not yet taken in, and whether it closes an optimizer step."""

    read_out: ReadOut
    closes_step: bool


class Link:
    """The tally of the current step, and the read-out of it that is pending.

    When a collective fails (a rank died), the group is ended, ranks differ, or the run is abandoned, the link is severed
    for good: nothing more is sent, and read-outs are of this rank alone. To join again takes a new group, which all of
    its ranks make together, and a new monitor.
    """

    def __init__(self, pattern: TokenTally, may_write: bool = True) -> None:
        self.pattern = pattern.clone()
        self.pattern.reset()  # a pattern only gives its settings; its own counts are dropped
        self.tally = self.pattern.clone()
        self.pending: Pending | None = None
        self.clearing = False  # what the tally holds is in the pending read-out, too
        self.severed = False
        self.unmerged = Totals()
        self._may_write = may_write  # False where another group of the same run writes (tensor-parallel replicas)
        self._connected = False
        self._home = Home()
        self._used = False  # something was read out
        self._stopped = False
        self.patience: float | None = None  # seconds for ranks that may never come; None: as the group does

    def agree_on(self, terms: Mapping[str, object]) -> None:
        """Compare these settings of the monitor, too, before anything is merged."""
        self.pattern.agree_on(terms)
        self.tally = self.pattern.clone()

    @property
    def home(self) -> Home:
        """This rank's place in its group: what it was when the first read-out began, whatever becomes of the group."""
        return self._home if self._used else self.pattern.group.home

    @property
    def writes(self) -> bool:
        """Return True on the rank that writes: the first of its group."""
        return self._may_write and self.home.rank == 0

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

    def connect(self) -> None:
        """Make a separate communicator, and compare settings. Every rank of the group calls it, before the first collective."""
        self._look_at_group()
        if self._connected or self.severed or not self.takes_part:
            return
        self._connected = True
        try:
            self.pattern.process_group = self.tally.process_group = self.pattern.group.private().handle
            self.pattern.compare()
        except RuntimeError as error:
            self.sever(f"a collective failed ({error})")
        except UnlikeRanks:
            self.sever()
            raise

    def launch(self, doing: Doing, closes_step: bool = True) -> None:
        """Start to read out the tally, and reset it."""
        self.connect()
        if self._stopped or not self.takes_part:
            return
        try:
            pending = Pending(self.tally.read_out(doing), closes_step)
        except RuntimeError as error:  # some backends say at once that a rank is gone
            self.sever(f"a collective failed ({error})")
            pending = Pending(self.tally.read_out(doing), closes_step)
        self.pending, self.clearing = pending, True  # a signal's handler may save a state at any point
        self.tally.clear()
        self.clearing = False

    def take(self) -> tuple[Pending, Totals] | None:
        """Wait for the pending read-out and return it; ``None`` if there is none. Of a lost one, this rank's own totals."""
        pending = self.pending
        if pending is None:
            return None
        if self.patience is not None and not self.severed and not self.arrives(self.patience):
            self.hang_up(
                f"rank {self.home.global_rank} waited {self.patience:g} s at the end of an epoch for the other ranks of its group: "
                "are their loaders of unlike lengths?"
            )
            return None
        if self._home.ended and not self.severed and not self.arrives(GRACE_S):
            self._look_at_group()
        own_step = pending.read_out.doing.step
        try:
            totals = pending.read_out.local() if self.severed else pending.read_out.totals()
        except RuntimeError as error:
            self.pending = None
            self.sever(f"a collective failed ({error})")
            return pending, self._own(pending.read_out.local())
        except UnlikeRanks:
            self.pending = None
            self.unmerged = self.unmerged + pending.read_out.local()
            self.sever()
            raise
        if self.pending is not pending:
            return (
                None  # a signal came while this waited, and its handler took the read-out for the state that it saved
            )
        self.pending = None
        if self.severed:
            return pending, self._own(totals)
        first, last = pending.read_out.first_step, pending.read_out.doing.step
        if first != last:  # ranks that are out of step would wait for each other beside the training's own collectives
            self.sever(
                f"a rank skipped an optimizer step: the group's are at {first} to {last} at one time, rank "
                f"{self.home.global_rank} is at {own_step}"
            )
            return pending, self._own(pending.read_out.local())
        return pending, totals

    def whole(self, tally: TokenTally, doing: Doing) -> Totals:
        """Return a tally's totals over all ranks, rows included, and wait for them."""
        return self.gather(self.read(tally, doing))

    def read(self, tally: TokenTally, doing: Doing) -> Totals:
        """Return a tally's totals over all ranks, with this rank's own rows, and wait for them."""
        self.connect()
        if self.severed:
            return tally.local_totals()
        try:
            tally.process_group = self.pattern.process_group
            read_out = tally.read_out(doing)
            if not read_out.arrives(PASS_S):
                _warn(
                    f"rank {self.home.global_rank} {doing}, and has waited {PASS_S:g} s for the other ranks of its group. Every rank "
                    'has to do so; a pass of one rank alone is stage("val", local=True).'
                )
            return read_out.totals()
        except RuntimeError as error:
            self.sever(f"a collective failed ({error})")
            return tally.local_totals()
        except UnlikeRanks:
            self.sever()
            raise

    def gather(self, totals: Totals) -> Totals:
        """Return totals with the worst rows of all ranks; this rank's own once the link is severed."""
        self._look_at_group()
        if self.severed:
            return totals
        try:
            return self.pattern.gather(totals, self.patience)
        except RuntimeError as error:
            self.hang_up(f"a collective failed ({error})")
            return totals

    def sum(self, values: list[int], step: int) -> list[int]:
        """Return the sums of a few integers over ranks, and wait for them; this rank's own once the link is severed."""
        if not self.takes_part:
            return values
        # As a read-out: where another rank reads a tally out instead, both are told.
        ballot, first = self.pattern.clone(), layout.place("tokens")
        ballot.reset()
        ballot.sums[first : first + len(values)] = torch.tensor(values, device=ballot.sums.device)
        return list(self.read(ballot, Doing("choice", step=step)).sums[first : first + len(values)])

    def arrives(self, seconds: float) -> bool:
        """Return True if the pending read-out arrives within ``seconds``, without a collective."""
        return self.pending is None or self.pending.read_out.arrives(seconds)

    def sever(self, why: str | None = None) -> None:
        """Send nothing any more: from here on the tally is this rank's own."""
        if self.severed:
            return
        self._home, self._used, self.severed = self.home, True, True
        for tally in (self.pattern, self.tally):
            tally.leave_group(self.home.global_rank)
        if why is not None:
            _warn(
                f"{why}. Training goes on; from here on rank {self.home.global_rank} counts and judges for itself. Its windows are "
                f"marked with ranks_missing={self.missing} and written to its own journal."
            )

    def stop(self) -> None:
        """Send nothing any more, and read nothing out."""
        self.hang_up()
        self._stopped = True

    def hang_up(self, why: str | None = None) -> None:
        """Sever the link so that the other ranks notice, in place of waiting for this one."""
        ours = (
            Group(self.pattern.process_group) if self._connected and not self.severed and not self._home.ended else None
        )
        # To destroy a communicator whose collective waits for another rank is to wait for that rank.
        waits = self.pending is not None and not self.pending.read_out.arrived()
        self.sever(why)
        if ours is not None and not waits:
            self.unmerged = self.own()
            self.pattern.process_group = self.tally.process_group = None
            ours.hang_up()

    def own(self) -> Totals:
        """Return, and forget, the totals that this rank could not merge: of pending and lost read-outs, and of its tally."""
        pending, self.pending = self.pending, None
        under_way = Totals() if pending is None else pending.read_out.local()
        own = self._own(under_way + self.tally.local_totals().silent())
        self.tally.reset()
        return own

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
            found = self.pattern.group.home
            if found.world is not None:
                self._home = found
                self.sever(
                    "torch.distributed was initialised after this monitor had begun to count, so it does not join the group: "
                    "make the monitor after init_process_group"
                )
        elif self._home.ended:
            self.sever("the process group was ended before monitor.close()")


def _warn(text: str) -> None:
    warnings.warn(f"pplmon: {text}", RuntimeWarning, stacklevel=3)
