"""One monitor's link to the other ranks: it starts read-outs, receives them, and survives the loss of the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch

from pplmon.monitor.standing import Pending, Standing, warn
from pplmon.report import layout
from pplmon.report.own import larger
from pplmon.report.totals import Totals
from pplmon.tally import Doing, TokenTally, UnlikeRanks
from pplmon.tally.coming import Comes

GRACE_S = 10.0  # for a read-out under way when its group was ended
ORDER = "order of equal monitors, give each monitor a prefix of its own"
_made: Counter[str] = Counter()  # monitors of this process over several ranks, by their settings


class Link(Standing):
    """The read-outs of one monitor. Every rank of the group calls its methods alike."""

    def agree_on(self, terms: Mapping[str, object]) -> None:
        """Compare these settings of the monitor, too, before anything is merged.

        So is which one it is among monitors of equal settings: ranks that call two of them in unlike orders would mix them.
        """
        self.pattern.agree_on(terms)
        settings = self.pattern.alike
        _made[settings] += self.ranks > 1
        self.pattern.agree_on({ORDER: _made[settings]})
        self.tally = self.pattern.clone()

    def agree_on_passes(self, pattern: TokenTally) -> None:
        """Compare another tally, that passes are counted with, before anything is merged."""
        self.pattern.agree_with(pattern)
        self.tally = self.pattern.clone()

    def connect(self) -> None:
        """Make a separate communicator, and compare settings. Every rank of the group calls it, before the first collective."""
        self._look_at_group()
        if self._connected or self.severed or not self.takes_part:
            return
        self._connected = True
        try:
            self.pattern.process_group = self.tally.process_group = self.pattern.group.private().handle
            self.patience.listen(self.pattern.group.ranks, self.pattern.alike)
            self.pattern.compare(self._wait)
        except RuntimeError as error:
            self._lose(error)
        except UnlikeRanks:
            self.sever()
            raise

    def launch(self, doing: Doing, closes_step: bool = True) -> None:
        """Start to read out the tally, and reset it."""
        self.connect()
        if self._stopped or not self.takes_part:
            return
        number = self.patience.begin()
        own = self.numbers.take(doing.step, self.tally.device)
        try:
            pending = Pending(self.tally.read_out(doing, own), closes_step, number)
        except RuntimeError as error:  # some backends say at once that a rank is gone
            self._lose(error, number)
            pending = Pending(self.tally.read_out(doing, own), closes_step, number)
        self.pending, self.clearing = pending, True  # a signal's handler may save a state at any point
        self.tally.clear()
        self.clearing = False

    def take(self, ask: bool = True) -> tuple[Pending, Totals] | None:
        """Wait for the pending read-out and return it; ``None`` if there is none. Of a lost one, this rank's own totals.

        Without ``ask`` ranks that differ are a loss, too: nobody is asked in what.
        """
        pending = self.pending
        if pending is None:
            return None
        if self._home.ended and not self.severed and not self.arrives(GRACE_S):
            self._look_at_group()
        own_step = pending.read_out.doing.step
        try:
            if self.severed:
                totals = pending.read_out.local()
            else:
                self.patience.wait(pending.number, pending.read_out.arrives)
                totals = pending.read_out.totals(self._wait if ask else _asks_nobody)
        except RuntimeError as error:
            self._lose(error, pending.number)
            totals = pending.read_out.local()
        except UnlikeRanks:
            self.pending = None
            self.unmerged = self.unmerged + pending.read_out.local()
            self.sever()
            raise
        if self.pending is not pending:
            return None  # a signal came while this waited: its handler took the read-out for the state that it saved
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

    def named(self, pending: Pending, totals: Totals) -> Totals:
        """Agree on names of the user's own numbers that some rank logged for the first time, and add their values.

        Every rank calls it with a read-out that it took in. What was merged stays so where others are lost meanwhile.
        """
        if not pending.read_out.wants_slots:
            return totals
        device = self.tally.device
        try:
            found = self.numbers.settle(self.tally.group, device, self._wait)
        except RuntimeError as error:
            self._lose(error)
            found = self.numbers.settle(self.tally.group, device)
        return replace(totals, own=larger(totals.own, found))

    def whole(self, tally: TokenTally, doing: Doing) -> Totals:
        """Return a tally's totals over all ranks, rows included, and wait for them."""
        return self.gather(self.read(tally, doing))

    def read(self, tally: TokenTally, doing: Doing) -> Totals:
        """Return a tally's totals over all ranks, with this rank's own rows, and wait for them."""
        self.connect()
        self.votes = doing.votes
        if self.severed:
            return tally.local_totals()
        number = self.patience.begin()
        try:
            tally.process_group = self.pattern.process_group
            device = tally.device
            tally.compare(self._wait)  # a probe's: the others may be lost
            # A state that is saved holds what was not read out yet; it stays where it is.
            own = self.numbers.look(device) if doing.what == "checkpoint" else self.numbers.empty(device)
            read_out = tally.read_out(doing, own)
            self.patience.wait(number, read_out.arrives, partial(self._say_it_waits, doing))
            totals = read_out.totals(self._wait)
        except RuntimeError as error:
            self._lose(error, number)
            return tally.local_totals()
        except UnlikeRanks:
            self.sever()
            raise
        self.votes = read_out.doing.votes
        return totals

    def gather(self, totals: Totals) -> Totals:
        """Return totals with the worst rows of all ranks; this rank's own once the link is severed."""
        self._look_at_group()
        if self.severed:
            return totals
        try:
            return self.pattern.gather(totals, self._wait)
        except RuntimeError as error:
            self._lose(error)
            return totals

    def from_first(self, payload: bytes) -> bytes:
        """Return the bytes that the first rank of the group has, and wait for them; this rank's own once the link is severed."""
        self.connect()
        if self.severed:
            return payload
        try:
            return self.pattern.group.from_first(payload, self.tally.device, self._wait)
        except RuntimeError as error:
            self._lose(error)
            return payload

    def sum(self, values: list[int], step: int, what: str = "choice") -> list[int]:
        """Return the sums of a few integers over ranks, and wait for them; this rank's own once the link is severed."""
        if not self.takes_part:
            return values
        # As a read-out: where another rank reads a tally out instead, both are told.
        ballot, first = self.pattern.clone(), layout.place("tokens")
        ballot.reset()
        ballot.sums[first : first + len(values)] = torch.tensor(values, device=ballot.sums.device)
        return list(self.read(ballot, Doing(what, step=step)).sums[first : first + len(values)])

    def meet(self, doing: Doing) -> None:
        """Raise on every rank unless all do this. To be called before a tally of another size than training's is read.

        Reductions of unlike sizes would end the processes, where one rank validates while the others train on.
        """
        empty = self.pattern.clone()
        empty.reset()
        self.read(empty, doing)

    def _wait(self, comes: Comes) -> None:
        """Wait for a collective that this rank has just begun."""
        self.patience.wait(self.patience.begin(), comes)

    def _say_it_waits(self, doing: Doing) -> None:
        warn(
            f"rank {self.home.global_rank} {doing}, and waits for the other ranks of its group. Every rank has to do so; a pass of "
            'one rank alone is stage("val", local=True).'
        )


def _asks_nobody(comes: Comes) -> None:
    raise RuntimeError("the ranks differ, and this one leaves the run")
