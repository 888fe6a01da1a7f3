"""Process read-outs: judge them, add them to their window, and show windows and passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from pplmon.monitor.evaluation import Pass
from pplmon.monitor.shifts import Taken
from pplmon.monitor.standing import Pending
from pplmon.monitor.survives import Survives
from pplmon.report.report import Report
from pplmon.report.totals import Totals
from pplmon.tally import Doing, UnlikeRanks


class Engine(Survives):
    """Judges read-outs, adds each to its window, and shows windows and passes.

    ``Monitor`` adds the methods for a training loop; every rank of the group calls the methods here alike.
    """

    def collect(self) -> None:
        """Take in the pending read-out, if any: judge it, add it to its window, and log the window if it closed."""
        try:
            taken = self._link.take()
        finally:
            self._see_loss()
        if taken is not None:
            self._look_up_reference()
            self._arrived(*taken)

    def _arrived(self, pending: Pending, totals: Totals) -> None:
        """Note what a read-out says of the run, and take in what can be shown by now."""
        totals = self._link.named(pending, totals)
        # When all leave, this was no step but the handshake of ``close``.
        self._all_leave = self._leave_together(totals)
        step = pending.read_out.doing.step
        if self._all_leave:  # micro-batches that no step closed are addressed as those of the current step
            step = self._step if self._micro_batch else self.last_step
        self._step = max(self._step, step + 1)
        self.should_stop = self.should_stop or totals["stop_votes"] > 0
        taken_in = Taken(step, pending.closes_step, totals, merged=not self._alone)
        for released in self._shifts.released(taken_in, pending.read_out.doing.votes):
            self._take_in(released)

    def _take_in(self, taken: Taken) -> None:
        """Judge a read-out, add it to its window, and log the window if it closed."""
        step, totals = taken.step, taken.totals
        self._merged_to = max(self._merged_to, step)
        self._windows.add(totals.silent())  # first: a signal's handler may save a state
        self._start()
        self._judge(totals, partial(self._report, step, "train"))
        if taken.closes_step and self.cadence.closes_window(step) and not self._leave_together(totals):
            self._closed = self._log_window(step)

    def _leave_together(self, totals: Totals) -> bool:
        leaving = totals["leaving"]
        return leaving > 0 and leaving == self._link.ranks and not self._alone

    def _launch(
        self, what: str, step: int, closes_step: bool = True, final: bool = False, leaves: bool = False
    ) -> None:
        """Start a read-out of training; ``final``: what it counts is chosen by what there is."""
        doing = Doing(what, step=step, leaves=leaves, votes=self._shifts.launching(final))
        self._link.launch(doing, closes_step)

    def flush(self) -> None:
        """Read out everything up to now, and wait for it. Every rank calls it."""
        self.collect()
        self._launch("flush", self.last_step, closes_step=False, final=True)
        self.collect()

    def log_window(self) -> Report | None:
        """Log the open window now, however short, and wait for it; ``None`` where it is empty. Every rank calls it."""
        self.catch_up()
        return None if self._windows.window.empty else self._log_window(self._merged_to)

    def catch_up(self) -> None:
        """Take in every closed step, also between two read-outs. Every rank calls it, and waits."""
        if self.cadence.reads_out(self.last_step):
            self.collect()
        else:
            self.flush()

    def so_far(self) -> Report | None:
        """Return the numbers of the open window, ``None`` while it is empty. Every rank calls it, and waits."""
        self.catch_up()
        window = self._windows.window
        return None if window.empty else self._report(self._merged_to, "train", window, evidence=False)

    def begin_epoch(self, batches: int | None) -> None:
        """Tell the other ranks how many batches this one has in the epoch that begins; ``None`` if it does not know."""
        self._link.patience.begin_epoch(batches)

    @contextmanager
    def at_epoch_end(self, ends: bool = True) -> Iterator[None]:
        """Do not wait for ranks that do not come, where an epoch ``ends``: they may be in a step that waits for this one.

        Ranks that told unlike numbers of batches part here. Where a number is not known they are waited for a while.
        """
        if not ends:
            yield
            return
        with self._link.patience.at_epoch_end():
            if not self._link.severed and self._link.patience.differ():
                self._part()
            yield

    def _part(self) -> None:
        """Take in the last step, in which all ranks took part, and nothing after it: not even the worst of its window."""
        taken = self._link.take()
        if self._link.severed:
            self._see_loss()
        self._link.hang_up(
            "the loaders of the ranks are of unlike lengths: another rank has more batches in this epoch, or fewer"
        )
        if taken is not None:
            self._arrived(*taken)
        self._see_loss()

    def end_epoch(self) -> Totals:
        """Flush, and return the totals since the last call. Every rank calls it."""
        self.flush()
        return self._windows.end_epoch()

    def finish(self, opened: Pass, step: int) -> Report:
        """Read a pass out, judge and log it. Every rank calls it."""
        if opened.local:  # a pass of this rank alone lacks no ranks
            self._pass = opened
            try:
                return self._finish_local(opened, step)
            finally:
                self._pass = None
        self._pass = None
        self.collect()
        self._start()
        doing = Doing(opened.stage, opened.number, step, votes=self._shifts.votes(opened.counted_as, final=True))
        try:
            if self._pass_pattern is not self._link.pattern:
                self._link.meet(doing)
            parts = [self._link.whole(tally, doing) for tally in opened.tallies]
            parts[0] = self._shifts.end_pass(opened.counted_as, parts[0], self._link.votes, step)
            opened.add_numbers(self._link.whole(tally, doing) for tally in opened.probed)
        except UnlikeRanks:
            self._pass = opened
            self._write_own_pass()
            raise
        finally:
            self._link.patience.end_pass()
            self._see_loss()
        totals = sum(parts, Totals())
        report_of = partial(self._report_of_pass, opened, step)
        opened.report = report_of(totals)
        self._judge(totals, report_of, gathered=True)
        self.publisher.publish(opened.report, f"{self.prefix}{opened.stage}/", opened.tail)
        if len(parts) > 1:
            opened.loader_reports = tuple(
                self._report(step, f"{opened.stage}/dataloader_idx_{index}", part) for index, part in enumerate(parts)
            )
            for index, report in enumerate(opened.loader_reports):
                self.publisher.publish(report, f"{self.prefix}{opened.stage}/", f"/dataloader_idx_{index}")
                self._windows.end_pass(report.stage, parts[index])
        self._windows.end_pass(opened.name, totals)
        return opened.report

    def _finish_local(self, opened: Pass, step: int) -> Report:
        """Nothing is sent, and no rule judges: it would have to come to the same answer on every rank."""
        self._shifts.give_up(opened.counted_as, opened.tallies[0])
        opened.add_numbers(tally.local_totals() for tally in opened.probed)
        opened.report = self._report_of_pass(opened, step, opened.local_totals())
        if self.writes:
            self._start()
            self.publisher.publish(opened.report, f"{self.prefix}{opened.stage}/", opened.tail)
        else:
            self._delivery.local(opened.report, self.rank)
        return opened.report

    def _report_of_pass(self, opened: Pass, step: int, totals: Totals, evidence: bool = True) -> Report:
        """Return the report of a pass over all loaders, with the numbers of its probes."""
        report = self._report(step, opened.name, totals, evidence)
        return replace(report, numbers={**report.numbers, **opened.probe_numbers}) if opened.probe_numbers else report

    @property
    def ranks_missing(self) -> int:
        """Return how many ranks this one lost; 0 while all of them are there."""
        return self._link.missing

    @property
    def ranks(self) -> int:
        """Ranks that count together; 1 once the link to the others is severed."""
        return 1 if self._link.severed else self._link.ranks

    def sum_over_ranks(self, values: list[int], what: str = "choice") -> list[int]:
        """Return the sums of a few integers over ranks. Every rank calls it, and waits: not in a step of later ones."""
        self.collect()
        return self._link.sum(values, self.last_step, what)

    def from_first(self, read: Callable[[], bytes]) -> bytes:
        """Return what the first rank of the group reads. Every rank calls it, and waits; only the first one reads."""
        own = read() if self._link.home.rank == 0 else b""
        return self._link.from_first(own) if self._link.takes_part else own

    @property
    def ended(self) -> bool:
        """True once the link to the other ranks is severed."""
        return self._link.severed
