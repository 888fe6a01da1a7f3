"""WHEN: cadence, windows, late read-out, and the order report → alerts → sinks. No framework.

Two cadences: the tally is read out and judged every ``judge_every_n_steps``; what was read out is added into the window
that is logged every ``every_n_steps``. A read-out is started at one step and taken in at the next, so no step waits.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pplmon.alerts import Rule, default_alerts, watched
from pplmon.cadence import Cadence
from pplmon.delivery import Delivery, Handler
from pplmon.evidence import Decode
from pplmon.judge import Judge
from pplmon.link import Link
from pplmon.numbers import CATALOGUE, select
from pplmon.passes import Pass
from pplmon.report import Report, Totals
from pplmon.sinks.base import Sink
from pplmon.tally import TokenTally
from pplmon.tokens import TokenStats
from pplmon.windows import Windows


class Monitor:
    """Watches a training loop: ``observe`` every micro-batch, ``step`` every optimizer step, ``close`` at the end.

    Args:
        every_n_steps: optimizer steps in a logged window.
        judge_every_n_steps: optimizer steps between two read-outs, at which the rules judge.
        numbers: "core", "all" or a list of names: what is logged.
        prefix: put before every log key, ``{prefix}{stage}/{name}``.
        tally: the pattern that is cloned for each stage.
        sinks: where to show things (see ``pplmon.sinks``); used on the first rank of the group only.
        alerts: rules ``Report -> Alert | None``; ``None`` takes ``default_alerts()``, ``[]`` is off.
        on_alert: one callable or several, ``Alert -> None``, called on the first rank of the group.
        decode: ids -> str, to show the text around a worst token.

    Raises:
        ValueError: a cadence below 1, or an unknown name. Also at the first read-out that found targets outside the
            vocabulary (on every rank; what was accumulated stays). Later ones are an alert.
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
    ) -> None:
        self.cadence = Cadence(every_n_steps, judge_every_n_steps)
        self.prefix = prefix
        self.decode = decode
        self.wait_for_window = False  # read a logged window at its own step (someone needs its numbers there)
        self.should_stop = False  # the same on all ranks, at the same step
        self._names = select(numbers)
        self._link = Link(tally if tally is not None else TokenTally())
        self._delivery = Delivery(sinks, on_alert)
        self._judge = Judge(default_alerts() if alerts is None else alerts, self._delivery, self._link)
        self._windows = Windows()
        self._pass: Pass | None = None
        self._step = 0
        self._micro_batch = 0
        self._started = False
        self._all_leave = False
        self._abandoned = False
        self._last: Report | None = None
        self._resumed_at: int | None = None  # the step at which a loaded state goes on
        for handler in self._delivery.handlers:
            if hasattr(handler, "bind"):
                handler.bind(self)

    # What the training loop calls.

    def observe(
        self,
        logits: Tensor | TokenStats,
        targets: Tensor | None = None,
        mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        sample_ids: Tensor | None = None,
        **batch_data: Tensor,
    ) -> None:
        """Count one micro-batch (arguments as ``TokenTally.update``). Never waits for the device."""
        if not self._link.takes_part:
            return
        if self._pass is None:
            tally, step, micro_batch = self._link.tally, self._step, self._micro_batch
            self._micro_batch += 1
        else:
            tally, step, micro_batch = self._pass.tallies[0], max(self._step - 1, 0), self._pass.batches
            self._pass.batches += 1
        tally.update(
            logits,
            targets,
            mask=mask,
            document_ids=document_ids,
            sample_ids=sample_ids,
            step=step,
            micro_batch=micro_batch,
            **batch_data,
        )

    def step(self) -> Report | None:
        """Close an optimizer step. Returns, one step late, the report of the window that closed, else ``None``.

        Every rank of the group calls it equally often; one that runs out of data calls ``close``.
        """
        return self.step_to(self._step)

    def step_to(self, step: int) -> Report | None:
        """Close the optimizer step ``step`` (0-based), for a framework that counts by itself."""
        try:
            report = self.collect()
        finally:  # what it may raise is about an earlier step; this one is counted all the same
            report_late = self._close_step(step)
        return report_late or report

    def _close_step(self, step: int) -> Report | None:
        closes = self.cadence.closes_window(step)
        if self.cadence.reads_out(step):
            self._link.launch(step, closes)
        self._step, self._micro_batch = step + 1, 0
        return self.collect() if closes and self.wait_for_window else None

    @contextmanager
    def stage(self, stage: str) -> Iterator[Pass]:
        """Count a whole pass apart: ``with monitor.stage("val") as val: …``; then ``val.report``."""
        if stage not in ("val", "test"):
            raise ValueError(f'a stage is "val" or "test", got {stage!r}; what is outside is "train"')
        opened = Pass(stage, self._link.pattern)
        self._pass = opened
        try:
            yield opened
        finally:
            self._pass = None
        self.finish(opened, max(self._step - 1, 0))

    def request_stop(self) -> None:
        """Wish to stop. It travels with the next read-out; ``should_stop`` then turns true on all ranks at one step."""
        self._link.tally.signal("stop_votes")

    def close(self) -> Report | None:
        """Wait for what is under way, log the last, shorter window, close the sinks; returns the last report.

        A rank that runs out of data before the others takes part in their read-outs until all have closed.
        """
        if self._abandoned:
            return self._last
        try:
            self._leave()
        finally:
            self._all_leave = False
            self._log_rest()
            if self._link.severed:
                self._write_own()
            self._delivery.close()
        return self._last

    # What a framework's adapter calls besides.

    @property
    def tally(self) -> TokenTally:
        """The tally of the step under way."""
        return self._link.tally

    @property
    def writes(self) -> bool:
        """True on the rank that shows things: the first of its group."""
        return self._link.writes

    def collect(self) -> Report | None:
        """Take in the read-out under way, if any: judge it, add it to its window, log the window if it closed."""
        taken = self._link.take()
        if taken is None:
            return None
        self._start()
        pending, totals = taken
        # When all leave, this was no step but the handshake of ``close``.
        self._all_leave = totals["leaving"] == self._link.ranks
        step = max(self._step - 1, 0) if self._all_leave else pending.step
        self._step = max(self._step, step + 1)
        self.should_stop = self.should_stop or totals["stop_votes"] > 0
        self._windows.add(totals.silent())
        self._judge(totals, partial(self._report, step, "train"))
        return self._log_window(step) if pending.closes_window and not self._all_leave else None

    def flush(self) -> None:
        """Read out everything up to now, and wait for it. Every rank calls it."""
        self.collect()
        self._link.launch(max(self._step - 1, 0), closes_window=False)
        self.collect()

    def end_epoch(self) -> Totals:
        """Flush, and return the totals since the last call. Every rank calls it."""
        self.flush()
        return self._windows.end_epoch()

    def finish(self, opened: Pass, step: int) -> Report:
        """Read a pass out, judge and log it. Every rank calls it."""
        self._pass = None
        self.collect()
        self._start()
        parts = [self._link.whole(tally) for tally in opened.tallies]
        totals = sum(parts, Totals())
        opened.report = self._report(step, opened.stage, totals)
        self._judge(totals, partial(self._report, step, opened.stage), gathered=True)
        self.publish(opened.report, f"{self.prefix}{opened.stage}/")
        if len(parts) > 1:
            opened.loader_reports = tuple(
                self._report(step, f"{opened.stage}/dataloader_idx_{index}", part) for index, part in enumerate(parts)
            )
            for index, report in enumerate(opened.loader_reports):
                self.publish(report, f"{self.prefix}{opened.stage}/", f"/dataloader_idx_{index}")
        return opened.report

    def abandon(self, seconds: float = 10.0) -> None:
        """End after an exception, without a collective.

        Waits at most ``seconds`` for the read-out under way, shows the open window, and writes what this rank counted and
        could not merge to its own journal. Nothing more is shown after it.
        """
        if self._abandoned:
            return
        self._abandoned = True
        taken = self._link.take() if self._link.arrives(seconds) else None
        self._link.sever()
        if taken is not None:
            self._start()
            self._windows.add(taken[1].silent())
            self._judge.without_raising(taken[1], partial(self._report, taken[0].step, "train"))
        window = self._windows.window
        self._log_rest()
        self._windows.window = window  # a checkpoint that is saved on the exception goes on with it
        self._write_own()
        self._delivery.close()

    @property
    def ended(self) -> bool:
        """True once the link to the other ranks is severed."""
        return self._link.severed

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs, as plain values. Every rank calls it, and gets the same.

        After ``abandon`` it sends nothing, and holds what was merged: the step that the exception cut is repeated.
        """
        self.collect()
        unread = self._link.whole(self._link.tally)
        return {
            "version": 1,
            "step": self._step,
            "micro_batch": self._micro_batch,
            "unread": unread.silent().state_dict(),
            "judge": self._judge.state_dict(),
            **self._windows.state_dict(self._link.gather(self._windows.window)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back a state, on any number of ranks: nothing is lost or counted twice. Every rank loads the same."""
        extras = self._link.pattern.extras
        first = self._link.pattern.group.rank == 0
        self._windows.load_state_dict(state, extras, first)
        self._judge.load_state_dict(state["judge"])
        self._step, self._micro_batch = state["step"], state["micro_batch"]
        self._resumed_at, self._started = (
            self._step,
            False,
        )  # the journal has to tell what the rules remember from here on
        if first:
            self._link.tally.add_totals(Totals.from_state_dict(state["unread"], extras))

    def keys(self, report: Report, head: str, tail: str = "") -> dict[str, float | int]:
        """Return the selected, finite numbers of a report under their log keys ``{head}{name}{tail}``."""
        chosen = {
            n: v for n, v in report.finite().items() if self._names is None or n in self._names or n not in CATALOGUE
        }
        return {f"{head}{name}{tail}": value for name, value in chosen.items()}

    def publish(self, report: Report, head: str, tail: str = "") -> None:
        """Show a report under the keys ``{head}{name}{tail}``. A framework's adapter may have more places for them."""
        if self.writes:
            self._delivery.report(report, self.keys(report, head, tail))

    # How it is done.

    def _leave(self) -> None:
        try:
            self.collect()
        finally:
            while self._link.takes_part and not self._link.severed and not self._all_leave:
                self._link.tally.signal("leaving")
                due = self.cadence.next_read_out(self._step)
                self._link.launch(due, self.cadence.closes_window(due))
                self.collect()

    def _start(self) -> None:
        if not self._started and self.writes:
            self._delivery.start(self._describe())
        self._started = True

    def _describe(self) -> dict[str, Any]:
        return {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "ranks": self._link.ranks,
            **asdict(self.cadence),
            "resumed_at": self._resumed_at,
            "memory": None if self._resumed_at is None else self._judge.memory(),
            "alerts": [repr(rule) for rule in self._judge.rules],
            "watched": watched(self._judge.rules),
        }

    def _log_window(self, step: int) -> Report:
        totals = self._link.gather(self._windows.end_window())
        self._last = report = self._report(step, "train", totals)
        self.publish(report, f"{self.prefix}train/")
        return report

    def _log_rest(self) -> None:
        if self.cadence.every_n_steps is not None and not self._windows.window.empty:
            self._log_window(max(self._step - 1, 0))

    def _write_own(self) -> None:
        """Write what this rank could not merge, each stage by itself, to its own journal."""
        own = [("train", self._link.own())]
        if self._pass is not None:
            own.append((self._pass.stage, sum((tally.local_totals() for tally in self._pass.tallies), Totals())))
        for stage, totals in own:
            if not totals.empty:
                self._delivery.local(totals.report(self._step, stage), self._link.pattern.group.global_rank)
        self._pass = None

    def _report(self, step: int, stage: str, totals: Totals, evidence: bool = True) -> Report:
        """Return the report; evidence has its text on the writing rank, which is the only one to show it."""
        report = totals.report(step, stage, self._windows.tokens_seen if stage == "train" else None, evidence)
        if self.decode is None or not evidence or not self.writes:
            return report
        return self._delivery.guard(self.decode, "decode", report.decoded, self.decode) or report
