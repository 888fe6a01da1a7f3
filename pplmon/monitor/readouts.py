"""Process read-outs: judge them, add them to their window, show the window, and save and restore all of this."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from pplmon.alerts import Rule, default_alerts, watched
from pplmon.doctor.overwritten import Overwritten
from pplmon.extras import declare_all
from pplmon.monitor.delivery import Delivery, Handler
from pplmon.monitor.evaluation import Pass
from pplmon.monitor.judge import Judge
from pplmon.monitor.one_thread import OneThread
from pplmon.monitor.publish import Places, Publisher, wanted
from pplmon.monitor.ranks import Link
from pplmon.monitor.running_totals import Windows
from pplmon.monitor.schedule import Cadence
from pplmon.report import saved
from pplmon.report.declared import as_rows
from pplmon.report.report import Report
from pplmon.report.totals import Totals
from pplmon.report.worst import Decode
from pplmon.sinks.base import Sink
from pplmon.tally import Doing, TokenTally, UnlikeRanks

EPOCH_S = 30.0  # at the end of an epoch, for ranks that may never come to it


class Engine:
    """Judges read-outs, adds each to its window, shows windows and passes, and saves its state.

    ``Monitor`` adds the methods for a training loop; every rank of the group calls the methods here alike.
    """

    def __init__(
        self,
        every_n_steps: int | None = 50,
        judge_every_n_steps: int = 1,
        numbers: str | Sequence[str] = "core",
        prefix: str = "",
        tally: TokenTally | None = None,
        sinks: Iterable[Sink] = (),
        alerts: Sequence[Rule] | None = None,
        on_alert: Handler | Sequence[Handler] = (),
        decode: Decode | None = None,
        places: Places | None = None,
        min_severity: str = "warning",
    ) -> None:
        places = Places() if places is None else places
        self.trainer, self.log_dir = places.trainer, places.log_dir  # handlers ask for these two when they are bound
        self.cadence = Cadence(every_n_steps, judge_every_n_steps)
        self.prefix = prefix
        self.decode = decode
        self.wait_for_window = False  # read a logged window at its own step, where its numbers are needed
        self.should_stop = False  # the same on all ranks, at the same step
        rules = default_alerts() if alerts is None else alerts
        self._link = Link(tally if tally is not None else TokenTally(), places.may_write)
        names = wanted(numbers, self._link.pattern)
        self._delivery = Delivery(sinks, on_alert, min_severity)
        self.publisher = Publisher(self._delivery, self._link, names, places)
        self._judge = Judge(rules, self._delivery, self._link)
        same = {"numbers": numbers, "prefix": prefix, "alerts": list(self._judge.rules)}
        self._link.agree_on({**asdict(self.cadence), **same})
        self._windows = Windows()
        self._overwritten = Overwritten()
        self._one_thread = OneThread()
        self._pass: Pass | None = None
        self._passes = 0  # of all ranks, begun
        self._merged_to = 0  # the step of the last read-out that was taken in
        self._alone = False  # the others are lost, and what was merged with them is shown
        self._step = 0
        self._micro_batch = 0
        self._started = False
        self._all_leave = False
        self._abandoned = False
        self._last: Report | None = None
        self._closed: Report | None = None  # logged, and not yet returned by a step
        self._resumed_at: int | None = None  # the step at which a loaded state goes on
        for handler in self._delivery.handlers:
            if hasattr(handler, "bind"):
                handler.bind(self)

    @property
    def tally(self) -> TokenTally:
        """Return the tally of the current step."""
        return self._link.tally

    @property
    def writes(self) -> bool:
        """Return True on the rank that writes: the first of its group."""
        return self._link.writes

    @property
    def current_step(self) -> int:
        """Return the current optimizer step, 0-based."""
        return self._step

    @property
    def last_step(self) -> int:
        """Return the last optimizer step that was closed, 0 before there is one."""
        return max(self._step - 1, 0)

    @property
    def takes_part(self) -> bool:
        """Return False on a rank outside the group of the tally, which counts and judges nothing."""
        return self._link.takes_part

    @property
    def rank(self) -> int:
        """Return this process's rank in the run, as addresses give it."""
        return self._link.home.global_rank

    def collect(self) -> None:
        """Take in the pending read-out, if any: judge it, add it to its window, and log the window if it closed."""
        try:
            taken = self._link.take()
        finally:
            self._see_loss()
        if taken is None:
            return
        self._start()
        pending, totals = taken
        # When all leave, this was no step but the handshake of ``close``.
        self._all_leave = totals["leaving"] == self._link.ranks and not self._alone
        step = pending.read_out.doing.step
        if self._all_leave:  # micro-batches that no step closed are addressed as those of the current step
            step = self._step if self._micro_batch else self.last_step
        self._step = max(self._step, step + 1)
        self.should_stop = self.should_stop or totals["stop_votes"] > 0
        self._merged_to = max(self._merged_to, step)
        self._windows.add(totals.silent())
        self._judge(totals, partial(self._report, step, "train"))
        if pending.closes_step and self.cadence.closes_window(step) and not self._all_leave:
            self._closed = self._log_window(step)

    def flush(self) -> None:
        """Read out everything up to now, and wait for it. Every rank calls it."""
        self.collect()
        self._link.launch(Doing("flush", step=self.last_step), closes_step=False)
        self.collect()

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

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs, as plain values. Every rank calls it, and gets the same.

        After ``abandon`` nothing is sent, and the state has merged totals only: the interrupted step will be repeated.
        """
        self.collect()
        unread = self._link.whole(self._link.tally, Doing("checkpoint", step=self.last_step))
        self._see_loss()
        self._delivery.flush()
        return {
            "version": saved.VERSION,
            "step": self._step,
            "micro_batch": self._micro_batch,
            "unread": unread.silent().state_dict(),
            "judge": self._judge.state_dict(),
            **self._windows.state_dict(self._link.gather(self._windows.window)),
        }

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
        # The journal needs the states of the rules at this point, for replays.
        self._resumed_at, self._started = self._step, False
        if first:
            self._link.tally.add_totals(unread)

    def _start(self) -> None:
        if not self._started and self.writes:
            self._delivery.start(self._describe())
        self._started = True

    def _describe(self) -> dict[str, Any]:
        declared = as_rows(declare_all(self._link.pattern.extras))
        return {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "ranks": self._link.ranks,
            **asdict(self.cadence),
            "resumed_at": self._resumed_at,
            "memory": None if self._resumed_at is None else self._judge.memory(),
            "alerts": [repr(rule) for rule in self._judge.rules],
            "watched": watched(self._judge.rules),
            **({"declared": declared} if declared else {}),
            "alert_folders": self._delivery.folders(),
        }

    def _log_window(self, step: int) -> Report:
        totals = self._link.gather(self._windows.end_window())
        if not self._alone:
            self._windows.remember(totals)
        self._last = report = self._report(step, "train", totals)
        self.publisher.publish(report, f"{self.prefix}train/")
        return report

    def _log_rest(self) -> None:
        if self.cadence.every_n_steps is not None and not self._windows.window.empty:
            self._log_window(self._merged_to)

    def _show_worst_of_run(self) -> None:
        if self.writes and self._windows.worst.token_rows:
            whole = self._report(self.last_step, "run", self._windows.worst)
            self._delivery.finished(Report(whole.step, "run", {}, whole.worst, whole.worst_sequences))

    def _write_own(self) -> None:
        """Write the totals that this rank could not merge to its own journal, one row for each stage."""
        self._write_local("train", self._link.own())
        self._write_own_pass()

    def _write_own_pass(self) -> None:
        if self._pass is not None:
            self._write_local(self._pass.stage, self._pass.local_totals())
        self._pass = None

    def _write_local(self, stage: str, totals: Totals) -> None:
        if not totals.empty:
            report = replace(totals.report(self._step, stage), ranks_missing=self._link.missing)
            self._delivery.local(report, self.rank)

    def _report(self, step: int, stage: str, totals: Totals, evidence: bool = True) -> Report:
        """Return the report; worst tokens have their text on the writing rank only, which is the one to show it."""
        seen, before = self._windows.tokens_seen if stage == "train" else None, self._windows.passes.get(stage)
        report = totals.report(step, stage, seen, evidence, before)
        missing = self._missing(stage)
        if missing:
            report = replace(report, ranks_missing=missing)
        if self.decode is None or not evidence or not self.writes:
            return report
        return self._delivery.guard(self.decode, "decode", report.decoded, self.decode) or report

    def _missing(self, stage: str) -> int:
        """Return the ranks that a report lacks: what was merged before they were lost, and a pass of one rank, lack none."""
        local = self._pass is not None and self._pass.local
        return 0 if local or (stage == "train" and not self._alone) else self._link.missing
