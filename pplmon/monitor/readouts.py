"""Process read-outs: judge them, add them to their window, and save and restore all of this."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from pplmon.monitor.evaluation import Pass
from pplmon.monitor.show import Shows
from pplmon.report import saved
from pplmon.report.report import Report
from pplmon.report.totals import Totals
from pplmon.tally import Doing, UnlikeRanks

EPOCH_S = 30.0  # at the end of an epoch, for ranks that may never come to it


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
        if taken is None:
            return
        pending, totals = taken
        self._windows.add(totals.silent())  # at once: a signal's handler may save a state
        self._start()
        # When all leave, this was no step but the handshake of ``close``.
        self._all_leave = totals["leaving"] == self._link.ranks and not self._alone
        step = pending.read_out.doing.step
        if self._all_leave:  # micro-batches that no step closed are addressed as those of the current step
            step = self._step if self._micro_batch else self.last_step
        self._step = max(self._step, step + 1)
        self.should_stop = self.should_stop or totals["stop_votes"] > 0
        self._merged_to = max(self._merged_to, step)
        self._judge(totals, partial(self._report, step, "train"))
        if pending.closes_step and self.cadence.closes_window(step) and not self._all_leave:
            self._closed = self._log_window(step)

    def flush(self) -> None:
        """Read out everything up to now, and wait for it. Every rank calls it."""
        self.collect()
        self._link.launch(Doing("flush", step=self.last_step), closes_step=False)
        self.collect()

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

    @contextmanager
    def for_a_while(self) -> Iterator[None]:
        """Wait for other ranks for ``EPOCH_S`` only, where an epoch ends.

        With loaders of unlike lengths the others may be in a step that waits for this rank, and never come.
        """
        self._link.patience = EPOCH_S
        try:
            yield
        finally:
            self._link.patience = None

    def end_epoch(self) -> Totals:
        """Flush, and return the totals since the last call. Every rank calls it."""
        with self.for_a_while():
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
        doing = Doing(opened.stage, opened.number, step)
        try:
            parts = [self._link.whole(tally, doing) for tally in opened.tallies]
        except UnlikeRanks:
            self._pass = opened
            self._write_own_pass()
            raise
        finally:
            self._see_loss()
        totals = sum(parts, Totals())
        opened.report = self._report(step, opened.stage, totals)
        self._judge(totals, partial(self._report, step, opened.stage), gathered=True)
        self.publisher.publish(opened.report, f"{self.prefix}{opened.stage}/")
        if len(parts) > 1:
            opened.loader_reports = tuple(
                self._report(step, f"{opened.stage}/dataloader_idx_{index}", part) for index, part in enumerate(parts)
            )
            for index, report in enumerate(opened.loader_reports):
                self.publisher.publish(report, f"{self.prefix}{opened.stage}/", f"/dataloader_idx_{index}")
                self._windows.end_pass(report.stage, parts[index])
        self._windows.end_pass(opened.stage, totals)
        return opened.report

    def _finish_local(self, opened: Pass, step: int) -> Report:
        """Nothing is sent, and no rule judges: it would have to come to the same answer on every rank."""
        opened.report = self._report(step, opened.stage, opened.local_totals())
        if self.writes:
            self._start()
            self.publisher.publish(opened.report, f"{self.prefix}{opened.stage}/")
        else:
            self._delivery.local(opened.report, self.rank)
        return opened.report

    def _see_loss(self) -> None:
        """Once the others are lost, show what was merged with them, so that what follows is this rank's own."""
        if self._alone or not self._link.severed or self._abandoned:
            return
        window, step = self._windows.end_window(), self._merged_to
        if not window.empty and self.cadence.every_n_steps is not None:
            self._last = report = self._report(step, "train", window)
            if self.writes:
                self.publisher.publish(report, f"{self.prefix}train/")
            else:
                self._delivery.local(report, self.rank, "merged")
        self._alone = True
        if not self.writes:
            self._delivery.keep_own_journal_only(self.rank)

    @property
    def ranks_missing(self) -> int:
        """Return how many ranks this one lost; 0 while all of them are there."""
        return self._link.missing

    @property
    def ranks(self) -> int:
        """Ranks that count together; 1 once the link to the others is severed."""
        return 1 if self._link.severed else self._link.ranks

    def sum_over_ranks(self, values: list[int]) -> list[int]:
        """Return the sums of a few integers over ranks. Every rank calls it, and waits: for the first steps only."""
        self.collect()
        return self._link.sum(values, self.last_step)

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
        tally = self._link.pattern if self._link.clearing else self._link.tally
        if without_batch and not self._abandoned:
            tally = self._before_batch.tally
        unread = self._link.whole(tally, Doing("checkpoint", step=self.last_step))
        self._see_loss()
        self._delivery.flush()
        return self._state(self._name(), unread.silent(), self._link.gather(self._windows.window))

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

            def totals_of(part: Mapping[str, Any]) -> Totals:
                return Totals.from_state_dict(part, pattern.extras, reader).fitted(pattern.top_k, pattern.context)

            self._windows.load_state_dict(state, totals_of, first)
            unread = totals_of(state["unread"])
        self._judge.load_state_dict(state["judge"])
        self._step, self._micro_batch = state["step"], state["micro_batch"]
        self._run, self._named = state.get("run"), True  # an old state has no name
        # The journal needs the states of the rules at this point, for replays.
        self._resumed_at, self._started = self._step, False
        if first:
            self._link.tally.add_totals(unread)
