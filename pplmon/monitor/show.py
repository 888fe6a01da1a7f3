"""Show the windows and passes of a monitor: make their reports, and hand them to sinks and to the rank's own journal."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any
from uuid import uuid4

import torch

from pplmon.alerts import Rule, default_alerts, watched
from pplmon.alerts.text import brief
from pplmon.alerts.words import plural
from pplmon.doctor.overwritten import Overwritten
from pplmon.extras import declare_all
from pplmon.monitor.before_batch import BeforeBatch
from pplmon.monitor.delivery import Delivery, Handler
from pplmon.monitor.evaluation import Pass
from pplmon.monitor.judge import Judge
from pplmon.monitor.next_writer import NextWriter
from pplmon.monitor.one_thread import OneThread
from pplmon.monitor.publish import Places, Publisher, wanted
from pplmon.monitor.ranks import Link
from pplmon.monitor.reference import earlier_run
from pplmon.monitor.running_totals import Windows
from pplmon.monitor.schedule import Cadence
from pplmon.monitor.shifts import Shifts
from pplmon.report.declared import as_rows
from pplmon.report.report import Report
from pplmon.report.texts import Decode, Texts
from pplmon.report.totals import Totals
from pplmon.report.version import VERSION
from pplmon.sinks.base import Sink
from pplmon.tally import GradNorm, TokenTally


class Shows:
    """The parts of a monitor, and how its windows and passes are shown."""

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
        grad_norm: bool = False,
        reference: str | os.PathLike[str] | None = None,
    ) -> None:
        places = Places() if places is None else places
        self.trainer, self.log_dir = places.trainer, places.log_dir  # handlers ask for these two when they are bound
        self.cadence = Cadence(every_n_steps, judge_every_n_steps)
        self.prefix = prefix
        self._texts = None if decode is None else Texts(decode)
        self.wait_for_window = False  # read a logged window at its own step, where its numbers are needed
        self.should_stop = False  # the same on all ranks, at the same step
        rules = default_alerts(grad_norm) if alerts is None else alerts
        self._norms = GradNorm() if grad_norm else None
        pattern = tally if tally is not None else TokenTally()
        self._link = Link(pattern, places.may_write, self.cadence.most_steps if grad_norm else 0)
        names = wanted(numbers, self._link.pattern)
        self._said = {
            "logged_numbers": numbers if isinstance(numbers, str) else list(numbers),
            "min_severity": min_severity,
        }
        self._delivery = Delivery(sinks, on_alert, min_severity)
        self._places = places
        self.publisher = Publisher(self._delivery, self._link, names, places)
        self._judge = Judge(rules, self._delivery, self._link)
        self._reference = self._unread = reference  # the latter until the file is read
        same: dict[str, object] = {"numbers": numbers, "prefix": prefix, "alerts": list(self._judge.rules)}
        same |= {"grad_norm": grad_norm, "reference": reference is not None}
        self._link.agree_on({**asdict(self.cadence), **same})
        self._pass_pattern = self._link.pattern
        self._shifts = Shifts(self._link, self._delivery.agreed)
        self._windows = Windows()
        self._before_batch = BeforeBatch(self._link.pattern)
        self._overwritten = Overwritten()
        self._one_thread = OneThread()
        self._pass: Pass | None = None
        self._passes = 0  # of all ranks, begun
        self._merged_to = 0  # the step of the last read-out that was taken in
        where = self._delivery.beside if places.may_write else None
        self._place = None if where is None else NextWriter(where, prefix)
        self._merged: Report | None = None  # the window that was open when the others were lost
        self._signed = False  # and waits for the place of the rank that writes
        self._alone = False  # the others are lost, and what was merged with them is shown
        self._step = 0
        self._micro_batch = 0
        self._started = False
        self._all_leave = False
        self._abandoned = False
        self._last: Report | None = None
        self._closed: Report | None = None  # logged, and not yet returned by a step
        self._run: str | None = uuid4().hex[:8]  # tells it from others in one journal
        self._named = False  # the same on all ranks
        self._resumed_at: int | None = None  # the step at which a loaded state goes on
        for handler in self._delivery.handlers:
            if hasattr(handler, "bind"):
                handler.bind(self)

    def also_measure_in_passes(self, pattern: TokenTally) -> None:
        """Count passes with this tally. The numbers that it has beyond the monitor's own are logged where they were asked for."""
        self._pass_pattern = pattern.clone()
        self._pass_pattern.reset()
        self._link.agree_on_passes(self._pass_pattern)
        self.publisher.only_on_request(number.name for number in declare_all(pattern.extras))

    @property
    def tally(self) -> TokenTally:
        """Return the tally of the current step."""
        return self._link.tally

    @property
    def decode(self) -> Decode | None:
        """Return the function ids -> str, as it was given."""
        return None if self._texts is None else self._texts.decode

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

    def __repr__(self) -> str:
        """Return where the run is, at one glance: its step, the last window, and what was raised."""
        shown = "" if self._last is None else f", step {self._last.step}: {_in_brief(self._last)}"
        raised = ", ".join(plural(count, what[:-1]) for what, count in self._judge.raised.items())
        cadence = (
            "never logs a window" if self.cadence.every_n_steps is None else f"logs every {self.cadence.every_n_steps}"
        )
        return f"<{type(self).__name__}: {plural(self._step, 'step')}{shown}; {raised}; {cadence}>"

    def agreed(self, text: str) -> None:
        """Show a line that says that all agrees."""
        self._delivery.agreed(text)

    def _start(self) -> None:
        if not self._started and self.writes:
            if self._place is not None and self._link.ranks > 1:
                self._place.clear()
            self._delivery.start(self._describe())
        self._started = True

    def _look_up_reference(self) -> None:
        """Read the earlier run, once. Every rank of the group calls it, before its first read-out is judged."""
        path, self._unread = self._unread, None
        if path is not None:
            earlier = earlier_run(path, self.prefix, self._link)
            if earlier is not None:
                self._judge.compare_to(earlier)

    def _describe(self) -> dict[str, Any]:
        pattern = self._link.pattern
        declared = as_rows(declare_all(pattern.extras))
        return {
            "pplmon": VERSION,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "ranks": self._link.ranks,
            **asdict(self.cadence),
            **({} if self._run is None else {"run": self._run}),
            **self._said,
            **{name: getattr(pattern, name) for name in ("ignore_index", "shift", "top_k")},
            "resumed_at": self._resumed_at,
            "memory": None if self._resumed_at is None else self._judge.memory(),
            **({} if self._reference is None else {"reference": str(self._reference)}),
            "alerts": [repr(rule) for rule in self._judge.rules],
            "watched": watched(self._judge.rules),
            **({"prefix": self.prefix} if self.prefix else {}),
            **({} if self._resumed_at is None else {"raised": dict(self._judge.raised)}),
            **({"declared": declared} if declared else {}),
            "files": self._delivery.files(),
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
            self._shifts.give_up(self._pass.counted_as, self._pass.tallies[0])
            self._write_local(self._pass.name, self._pass.local_totals())
        self._pass = None

    def _write_local(self, stage: str, totals: Totals) -> None:
        if not totals.empty:
            report = replace(totals.report(self._step, stage), ranks_missing=self._link.missing)
            self._delivery.local(report, self.rank)

    def _report(self, step: int, stage: str, totals: Totals, evidence: bool = True) -> Report:
        """Return the report; worst tokens have their text on the writing rank only, which is the one to show it."""
        seen, before = self._windows.tokens_seen, self._windows.passes.get(stage)
        trained = seen if stage == "train" or seen else None  # a pass of a run that does not train has none
        report = totals.report(step, stage, trained, evidence, before)
        missing = self._missing(stage)
        if missing:
            report = replace(report, ranks_missing=missing)
        if self._texts is None or not evidence or not self.writes:
            return report
        return self._delivery.guard(self._texts.decode, "decode", report.decoded, self._texts) or report

    def _missing(self, stage: str) -> int:
        """Return the ranks that a report lacks: what was merged before they were lost, and a pass of one rank, lack none."""
        local = self._pass is not None and self._pass.local
        return 0 if local or (stage == "train" and not self._alone) else self._link.missing


def _in_brief(report: Report) -> str:
    """Return the numbers of a window that a person asks for first."""
    names = ("cross_entropy", "perplexity", "token_accuracy", "max_sequence_loss")
    return ", ".join(f"{name} {brief(v)}" for name in names if (v := report.numbers.get(name)) is not None)
