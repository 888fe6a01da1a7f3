"""``Monitor``: the calls by which a training loop is watched.

Two cadences: the tally is read out and judged every ``judge_every_n_steps``; the read-outs are added up into the window
that is logged every ``every_n_steps``. A read-out is started at one step and taken in at the next, so no step waits.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from pplmon.monitor.evaluation import Pass, check_part
from pplmon.monitor.observes import Observes
from pplmon.monitor.own_numbers import Logs
from pplmon.monitor.probes.base import Probe, Ranks
from pplmon.monitor.repeated_rows import RepeatedRows
from pplmon.monitor.saves import Saves
from pplmon.report.report import Report
from pplmon.tally import UnlikeRanks


class Monitor(Observes, Logs, Saves):
    """Watches a training loop: ``observe`` every micro-batch, ``step`` every optimizer step, ``close`` at the end.

    Its arguments are described in ``pplmon.Monitor``; ``places`` are a trainer's own places for numbers, passed by the code
    that connects the trainer.
    """

    def step(self) -> Report | None:
        """Close an optimizer step. Returns, one step late, the report of the window that closed, else ``None``.

        Every rank of the group calls it equally often; one that runs out of data calls ``close``.
        """
        return self.step_to(self._step)

    def step_to(self, step: int) -> Report | None:
        """Close the optimizer step ``step`` (0-based), for a framework that counts by itself."""
        with self._one_thread:
            try:
                self.collect()
            finally:  # an exception here is about an earlier step; this one is closed all the same
                self._close_step(step)
            self._delivery.settle()
            # A pass or a checkpoint in between may have closed the window already.
            report, self._closed = self._closed, None
            if report is None:
                self._shifts.look("train")
            else:
                self._shifts.end_window("train")
            return report

    def _close_step(self, step: int) -> None:
        try:
            if self.cadence.reads_out(step):
                self._launch("step", step)
            else:
                self._link.connect()  # ranks of unlike cadences would wait for each other's first read-out
        finally:
            self._step, self._micro_batch = step + 1, 0
            self._see_loss()
        self._take_place()
        if self.waits_at(step):
            self.collect()

    def waits_at(self, step: int) -> bool:
        """Return True at a step whose window is read at once, because its numbers are needed."""
        return self.wait_for_window and self.cadence.closes_window(step)

    @contextmanager
    def stage(self, stage: str, loader: Any = None, local: bool = False, part: str | None = None) -> Iterator[Pass]:
        """Count a whole pass separately: ``with monitor.stage("val") as val: …``; then ``val.report``.

        The rows that ``loader`` repeats to fill its last batch count once, or are shown as ``duplicate_sequences``. A
        loader that accelerate prepared is found automatically.

        Every rank of the group has the same passes. With ``local=True`` a pass is of this rank alone, for when only rank 0
        validates: nothing is sent, and no rule judges it. The first rank shows it; others write it to their own journal.

        ``part`` names the data set, where each of several has a pass: its numbers are ``val/perplexity/wiki``, and a rule on
        ``stage="val"`` judges each data set by itself.
        """
        check_part(part)
        opened = self.begin_pass(stage, local=local, part=part)
        self._repeated = repeated = RepeatedRows((loader,))
        try:
            yield opened
        except BaseException:
            self.give_up_pass()
            raise
        finally:
            self._repeated = None
        repeated.record(opened)
        self.finish(opened, self.last_step)
        self._shifts.end_of_pass(opened.counted_as)

    def begin_pass(self, stage: str, loaders: int = 1, local: bool = False, part: str | None = None) -> Pass:
        """Begin a pass over this many loaders, for a framework that ends it itself by ``finish``.

        ``part`` names the data set, where each of several has a pass: it is reported as ``{stage}/{part}``.
        """
        if stage not in ("val", "test"):
            raise ValueError(f'a stage is "val" or "test", got {stage!r}; what is outside is "train"')
        if not local:
            self._passes += 1
            self._link.patience.begin_pass(self._passes)
        self._pass = opened = Pass(stage, self._pass_pattern, loaders, self._passes, local, part)
        self._shifts.begin_pass(opened.counted_as)
        return opened

    def give_up_pass(self) -> None:
        """End a pass after an exception: what it counted goes to this rank's own journal."""
        self._write_own_pass()

    def probe(self, probe: Probe, model: nn.Module) -> None:
        """Run a probe on a model within a pass: its numbers become the report's. Every rank calls it.

        Call it inside ``with monitor.stage("val")``, at its end. Where the model fails the probe is left out of the pass, with a
        warning on each rank.
        """
        opened = self._pass
        if opened is None:
            raise RuntimeError('monitor.probe runs within a pass: call it inside with monitor.stage("val"): …')
        if not self._link.takes_part or (opened.stage == "val" and not probe.due(opened.number)):
            return
        alone = opened.local or self._link.severed
        sums = list if alone else partial(self.sum_over_ranks, what="probe")
        ranks = Ranks() if alone else Ranks(self._link.home.rank, self._link.ranks, sums)
        try:
            with self._places.forward_context():
                opened.probed.append(probe.run(model, ranks))
        except UnlikeRanks:
            raise
        except Exception as error:
            warnings.warn(f"pplmon: {error}; this pass has no numbers of it", RuntimeWarning, stacklevel=2)

    def request_stop(self) -> None:
        """Ask to stop. With the next read-out ``should_stop`` becomes True on all ranks, at the same step."""
        self._link.tally.signal("stop_votes")

    def close(self) -> Report | None:
        """Wait for the last read-out, log the last, shorter window, and close the sinks. Returns the last report.

        A rank that runs out of data before the others takes part in their read-outs until all have closed.
        """
        self.publisher.send_held()
        if self._abandoned:
            return self._last
        try:
            self._leave()
        finally:
            self._all_leave = False
            self._log_rest()
            self._shifts.look("train", wait=True)
            self._show_worst_of_run()
            if self._link.severed:
                self._write_own()
            else:
                self._delivery.settle()
            self._delivery.close()
        return self._last

    def abandon(self, seconds: float = 10.0) -> None:
        """End after an exception, without a collective.

        Waits at most ``seconds`` for the pending read-out, shows the open window, and writes the totals that this rank
        could not merge to its own journal. Nothing more is shown after it.
        """
        if self._abandoned:
            return
        self.publisher.leave_places_alone()
        taken = self._link.take(ask=False) if self._link.arrives(seconds) else None
        self._see_loss()  # of the others, by this very read-out or long ago
        self._abandoned = True
        self._link.stop()
        self._delivery.guard(self, "counting", self._shifts.give_up, "train", self._link.tally)
        self._add_waiting()
        if taken is not None:
            self._start()
            pending, totals = taken[0], self._link.named(*taken)
            self._merged_to = max(self._merged_to, pending.read_out.doing.step)
            self._windows.add(totals.silent())
            self._judge.without_raising(totals, partial(self._report, self._merged_to, "train"))
        window = self._windows.window
        self._log_rest()
        self._show_worst_of_run()
        self._windows.window = window  # a checkpoint that is saved on the exception goes on with it
        self._write_own()
        self._delivery.close()

    def release(self) -> None:
        """Send reports that were held back, and close files; a later pass opens them again."""
        self.publisher.send_held()
        self._delivery.close()

    def _leave(self) -> None:
        try:
            self.collect()
        finally:
            while self._link.takes_part and not self._link.severed and not self._all_leave:
                self._link.tally.signal("leaving")
                due = self.cadence.next_read_out(self._step)
                # Work that handlers put off may use collectives: all ranks do it at the same point.
                if due != self._step:
                    self._delivery.settle()
                self._launch("step", due, final=True, leaves=True)
                self._delivery.settle()
                self.collect()
            if self._link.severed:
                self.flush()
