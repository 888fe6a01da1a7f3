"""Process read-outs: judge them, add them to their window, and save and restore all of this."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from pplmon.extras import Measures
from pplmon.monitor.evaluation import Pass
from pplmon.monitor.shifts import Taken
from pplmon.monitor.show import Shows
from pplmon.monitor.standing import Pending
from pplmon.report import saved
from pplmon.report.report import Report
from pplmon.report.totals import Totals
from pplmon.tally import Doing, TokenTally, UnlikeRanks


class Engine(Shows):
    """Judges read-outs, adds each to its window, shows windows and passes, and saves its state.

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
        return totals["leaving"] == self._link.ranks and not self._alone

    def _launch(self, doing: Doing, closes_step: bool = True, final: bool = False) -> None:
        """Start a read-out of training; ``final``: what it counts is chosen by what there is."""
        self._link.launch(doing._replace(votes=self._shifts.launching(final)), closes_step)

    def flush(self) -> None:
        """Read out everything up to now, and wait for it. Every rank calls it."""
        self.collect()
        self._launch(Doing("flush", step=self.last_step), closes_step=False, final=True)
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
            self.publisher.publish(opened.report, f"{self.prefix}{opened.stage}/")
        else:
            self._delivery.local(opened.report, self.rank)
        return opened.report

    def _report_of_pass(self, opened: Pass, step: int, totals: Totals, evidence: bool = True) -> Report:
        """Return the report of a pass over all loaders, with the numbers of its probes."""
        report = self._report(step, opened.name, totals, evidence)
        return replace(report, numbers={**report.numbers, **opened.probe_numbers}) if opened.probe_numbers else report

    def _see_loss(self) -> None:
        """Once the others are lost, show what was merged with them, so that what follows is this rank's own."""
        if self._alone or not self._link.severed or self._abandoned:
            return
        self._add_waiting()
        window, step = self._windows.end_window(), self._merged_to
        if not window.empty and self.cadence.every_n_steps is not None:
            self._last = report = self._report(step, "train", window)
            if self.writes:
                self.publisher.publish(report, f"{self.prefix}train/")
            else:
                self._delivery.local(report, self.rank, "merged")
                self._merged = report
        self._alone = True
        if not self.writes:
            self._delivery.keep_own_journal_only(self.rank)
        if self._place is not None and self._link.ranks > 1 and (self.writes or self._delivery.can_take_over):
            self._place.sign(self.rank)
            self._signed = True

    def _add_waiting(self) -> None:
        """Count what was merged and not shown, because ranks had not chosen their shift, with the open window."""
        for taken in self._shifts.take_merged():
            self._merged_to = max(self._merged_to, taken.step)
            self._windows.add(taken.totals.silent())

    def _take_place(self) -> None:
        """Show numbers in place of the rank that did, if it is lost and this is the lowest of those that are left."""
        if not self._signed or self._place is None:
            return
        mine = self._place.is_mine()
        self._signed = mine is None
        if mine and not self.writes:
            self._link.took_over = True
            head = f"{self.prefix}train/"
            scalars = {} if self._merged is None else self.publisher.keys(self._merged, head)
            self._delivery.take_over(self._describe(), self._merged, scalars)

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

    def mark_batch(self, empty: bool) -> None:
        """Remember what was counted before the micro-batch that begins; ``empty`` if that is known to be nothing."""
        resumes = self._resumed_at == self._step  # the tally holds what a loaded state had not read out
        self._before_batch.mark(self._link.tally, empty and not resumes)

    def state_dict(self, without_batch: bool = False) -> dict[str, Any]:
        """Return everything that a resumed run needs, as plain values. Every rank calls it, and gets the same.

        After ``abandon`` nothing is sent, and the state has merged totals only: the interrupted step will be repeated.
        ``without_batch`` leaves out the micro-batch under way, because the trainer will repeat it.
        """
        self.collect()
        doing = Doing("checkpoint", step=self.last_step)
        votes = self._shifts.votes("train", final=True)
        unread = self._link.whole(self._not_read_out(without_batch), doing._replace(votes=votes))
        released = self._shifts.released_at_checkpoint(self._link.votes)
        if released is not None:
            for taken in released:
                self._take_in(taken)
            unread = self._link.whole(self._not_read_out(without_batch), doing)
        self._see_loss()
        self._delivery.flush()
        return self._state(self._name(), unread.silent(), self._link.gather(self._windows.window))

    def _not_read_out(self, without_batch: bool) -> TokenTally:
        """Return the tally that holds what no read-out has: of closed micro-batches only, where the trainer repeats the last."""
        if without_batch and not self._abandoned:
            return self._before_batch.tally
        return self._link.pattern if self._link.clearing else self._link.tally

    def closed_state(self) -> dict[str, Any]:
        """Return the state of a run that was closed, for one that goes on in this process. Nothing is sent."""
        return self._state(self._run, Totals(), self._windows.window)

    def _state(self, name: str | None, unread: Totals, window: Totals) -> dict[str, Any]:
        return {
            "version": saved.VERSION,
            "run": name,
            "step": self._step,
            "micro_batch": self._micro_batch,
            "unread": unread.state_dict(),
            "judge": self._judge.state_dict(),
            **self._windows.state_dict(window),
        }

    def _name(self) -> str | None:
        """Return the name of the run in the journal, which the writing rank tells the others the first time."""
        if not self._named and self._run is not None and self.ranks > 1:
            (number,) = self._link.sum([int(self._run, 16) if self.writes else 0], self.last_step)
            self._run = f"{number:08x}"
        self._named = True
        return self._run

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state, on any number of ranks: nothing is lost or counted twice. Every rank loads the same."""
        if not saved.is_readable(state.get("version")):
            return
        pattern = self._link.pattern
        first = self._link.home.rank == 0
        with saved.reading() as reader:

            def read(extras: tuple[Measures, ...], part: Mapping[str, Any]) -> Totals:
                return Totals.from_state_dict(part, extras, reader).fitted(pattern.top_k, pattern.context)

            totals_of = partial(read, pattern.extras)
            self._windows.load_state_dict(state, totals_of, partial(read, self._pass_pattern.extras), first)
            unread = totals_of(state["unread"])
        self._judge.load_state_dict(state["judge"])
        self._step, self._micro_batch = state["step"], state["micro_batch"]
        self._run, self._named = state.get("run"), True  # an old state has no name
        # The journal needs the states of the rules at this point, for replays.
        self._resumed_at, self._started = self._step, False
        if first:
            self._link.tally.add_totals(unread)
            self._link.numbers.restore(unread.own, self._step)
