"""WHEN: cadence, windows, late read-out, and the order report → alerts → sinks. No framework.

Two cadences: the tally is read out and judged every ``judge_every_n_steps``; what was read out is added into the window
that is logged every ``every_n_steps``. A read-out is started at one step and taken in at the next, so no step waits.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pplmon.alerts import Rule, default_alerts
from pplmon.delivery import Delivery, Handler
from pplmon.evidence import Decode
from pplmon.judge import Judge
from pplmon.numbers import CATALOGUE, select
from pplmon.report import Report, Totals
from pplmon.sinks.base import Sink
from pplmon.tally import ReadOut, TokenTally
from pplmon.tokens import TokenStats


class Pending(NamedTuple):
    """A read-out under way."""

    read_out: ReadOut
    step: int
    closes_window: bool


class Pass:
    """One whole pass over validation or test data, of one or several loaders."""

    def __init__(self, stage: str, pattern: TokenTally, loaders: int = 1) -> None:
        self.stage = stage
        self.tallies = [pattern.clone() for _ in range(loaders)]
        self.batches = 0
        self.report: Report | None = None  # over all loaders, when the pass is over
        self.loader_reports: tuple[Report, ...] = ()  # one for each of several


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
        self.every_n_steps = None if every_n_steps is None else check_cadence("every_n_steps", every_n_steps)
        self.judge_every_n_steps = check_cadence("judge_every_n_steps", judge_every_n_steps)
        self.prefix = prefix
        self.decode = decode
        self.wait_for_window = False  # read a logged window at its own step (someone needs its numbers there)
        self._names = select(numbers)
        self._pattern = tally if tally is not None else TokenTally()
        self._delivery = Delivery(sinks, on_alert)
        self._judge = Judge(default_alerts() if alerts is None else alerts, self._delivery, self._pattern)
        self._tally = self._pattern.clone()
        self._pass: Pass | None = None
        self._pending: Pending | None = None
        self._window = Totals()
        self._epoch = Totals()
        self._step = 0
        self._micro_batch = 0
        self._tokens_seen = 0
        self._started = False
        self._last: Report | None = None

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
        if self._pass is None:
            tally, step, micro_batch = self._tally, self._step, self._micro_batch
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
        """Close an optimizer step. Returns, one step late, the report of the window that closed, else ``None``."""
        return self.step_to(self._step)

    def step_to(self, step: int) -> Report | None:
        """Close the optimizer step ``step`` (0-based), for a framework that counts by itself."""
        try:
            report = self.collect()
        finally:  # what it may raise is about an earlier step; this one is counted all the same
            report_late = self._close_step(step)
        return report_late or report

    def _close_step(self, step: int) -> Report | None:
        closes = self.every_n_steps is not None and (step + 1) % self.every_n_steps == 0
        if closes or (step + 1) % self.judge_every_n_steps == 0:
            self._launch(step, closes)
        self._step, self._micro_batch = step + 1, 0
        return self.collect() if closes and self.wait_for_window else None

    @contextmanager
    def stage(self, stage: str) -> Iterator[Pass]:
        """Count a whole pass apart: ``with monitor.stage("val") as val: …``; then ``val.report``."""
        if stage not in ("val", "test"):
            raise ValueError(f'a stage is "val" or "test", got {stage!r}; what is outside is "train"')
        opened = Pass(stage, self._pattern)
        self._pass = opened
        try:
            yield opened
        finally:
            self._pass = None
        self.finish(opened, max(self._step - 1, 0))

    def close(self) -> Report | None:
        """Wait for what is under way, log the last, shorter window, close the sinks; returns the last report."""
        try:
            self.flush()
        finally:
            if self.every_n_steps is not None and not self._window.empty:
                self._log_window(max(self._step - 1, 0))
            self._delivery.close()
        return self._last

    # What a framework's adapter calls besides.

    @property
    def tally(self) -> TokenTally:
        """The tally of the step under way."""
        return self._tally

    @property
    def writes(self) -> bool:
        """True on the rank that shows things: the first of its group."""
        return self._pattern.group.rank == 0

    def collect(self) -> Report | None:
        """Take in the read-out under way, if any: judge it, add it to its window, log the window if it closed."""
        if self._pending is None:
            return None
        pending, self._pending = self._pending, None
        self._start()
        totals = pending.read_out.totals()
        self._window = self._window + totals
        self._epoch = self._epoch + totals
        self._tokens_seen += totals["tokens"]
        self._judge(totals, partial(self._report, pending.step, "train"))
        return self._log_window(pending.step) if pending.closes_window else None

    def flush(self) -> None:
        """Read out everything up to now, and wait for it. Every rank calls it."""
        self.collect()
        self._launch(max(self._step - 1, 0), closes_window=False)
        self.collect()

    def end_epoch(self) -> Totals:
        """Flush, and return the totals since the last call. Every rank calls it."""
        self.flush()
        totals, self._epoch = self._epoch, Totals()
        return totals

    def finish(self, opened: Pass, step: int) -> Report:
        """Read a pass out, judge and log it. Every rank calls it."""
        self.collect()
        self._start()
        parts = [self._pattern.gather(tally.read_out().totals()) for tally in opened.tallies]
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

    def _start(self) -> None:
        if not self._started and self.writes:
            self._delivery.start(self._describe())
        self._started = True

    def _describe(self) -> dict[str, Any]:
        return {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "ranks": self._pattern.group.size,
            "every_n_steps": self.every_n_steps,
            "judge_every_n_steps": self.judge_every_n_steps,
            "alerts": [repr(rule) for rule in self._judge.rules],
        }

    def _launch(self, step: int, closes_window: bool) -> None:
        self._pending = Pending(self._tally.read_out(), step, closes_window)
        self._tally.reset()

    def _log_window(self, step: int) -> Report:
        totals, self._window = self._pattern.gather(self._window), Totals()
        self._last = report = self._report(step, "train", totals)
        self.publish(report, f"{self.prefix}train/")
        return report

    def _report(self, step: int, stage: str, totals: Totals, evidence: bool = True) -> Report:
        """Return the report; evidence has its text on the writing rank, which is the only one to show it."""
        report = totals.report(step, stage, self._tokens_seen if stage == "train" else None, evidence)
        if self.decode is None or not evidence or not self.writes:
            return report
        return self._delivery.guard(self.decode, "decode", report.decoded, self.decode) or report


def check_cadence(name: str, value: int) -> int:
    """Return ``value`` if it is a number of steps, at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer number of optimizer steps, got {value!r}")
    if value <= 0:
        raise ValueError(f"{name} must be at least 1 optimizer step, got {value}")
    return value
