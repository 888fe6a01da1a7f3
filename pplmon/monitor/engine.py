"""What happens to a read-out, whoever decides when there is one: window, rules, sinks, checkpoint."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from pplmon import saved
from pplmon.alerts import Rule, default_alerts, watched
from pplmon.declared import as_rows, fits, measured_by, select
from pplmon.evidence import Decode
from pplmon.extras import declare_all, declared_by
from pplmon.monitor.cadence import Cadence
from pplmon.monitor.delivery import Delivery, Handler
from pplmon.monitor.judge import Judge
from pplmon.monitor.link import Link
from pplmon.monitor.passes import Pass
from pplmon.monitor.windows import Windows
from pplmon.numbers import CATALOGUE, CORE
from pplmon.overwritten import Overwritten
from pplmon.report import Report, Totals
from pplmon.sinks.base import Sink
from pplmon.tally import TokenTally


def wanted(numbers: str | Sequence[str], tally: TokenTally) -> tuple[str, ...] | None:
    """Return the names that ``numbers`` selects (``None``: all), each of which the tally measures."""
    have = declare_all(tally.extras)  # here, too, because a tally that came in a pickle brings its extras with it
    names = select(numbers)
    if all(map(declared_by, tally.extras)):  # else there is one that may measure anything
        lacking = [n for n in names or () if measured_by(n) and not any(fits(n, number.name) for number in have)]
        if lacking:
            extras = ", ".join(dict.fromkeys(str(measured_by(name)) for name in lacking))
            raise ValueError(
                f"numbers asks for {', '.join(lacking)}, which is measured by tally=pplmon.TokenTally(extras=[{extras}])"
            )
    return names


class Engine:
    """Everything that happens to a read-out: it is taken in, judged, added to its window, shown, and saved.

    ``Monitor`` adds the verbs of a training loop; every rank of the group calls the methods here alike.
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
        self._link = Link(tally if tally is not None else TokenTally())
        self._names = wanted(numbers, self._link.pattern)
        self._delivery = Delivery(sinks, on_alert)
        self._judge = Judge(default_alerts() if alerts is None else alerts, self._delivery, self._link)
        self._windows = Windows()
        self._overwritten = Overwritten()
        self._pass: Pass | None = None
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
        """The tally of the step under way."""
        return self._link.tally

    @property
    def writes(self) -> bool:
        """True on the rank that shows things: the first of its group."""
        return self._link.writes

    @property
    def rank(self) -> int:
        """This process's rank in the run, as addresses give it."""
        return self._link.pattern.group.global_rank

    def collect(self) -> None:
        """Take in the read-out under way, if any: judge it, add it to its window, log the window if it closed."""
        taken = self._link.take()
        if taken is None:
            return
        self._start()
        pending, totals = taken
        # When all leave, this was no step but the handshake of ``close``.
        self._all_leave = totals["leaving"] == self._link.ranks
        step = pending.step
        if self._all_leave:  # micro-batches that no step closed are addressed as those of the step under way
            step = self._step if self._micro_batch else max(self._step - 1, 0)
        self._step = max(self._step, step + 1)
        self.should_stop = self.should_stop or totals["stop_votes"] > 0
        self._windows.add(totals.silent())
        self._judge(totals, partial(self._report, step, "train"))
        if pending.closes_window and not self._all_leave:
            self._closed = self._log_window(step)

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
                self._windows.end_pass(report.stage, parts[index])
        self._windows.end_pass(opened.stage, totals)
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
        self._show_worst_of_run()
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
            "version": saved.VERSION,
            "step": self._step,
            "micro_batch": self._micro_batch,
            "unread": unread.silent().state_dict(),
            "judge": self._judge.state_dict(),
            **self._windows.state_dict(self._link.gather(self._windows.window)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back a state, on any number of ranks: nothing is lost or counted twice. Every rank loads the same."""
        if not saved.is_readable(state.get("version")):
            return
        pattern = self._link.pattern
        first = pattern.group.rank == 0
        with saved.reading() as reader:

            def totals_of(part: Mapping[str, Any]) -> Totals:
                return Totals.from_state_dict(part, pattern.extras, reader).fitted(pattern.top_k, pattern.context)

            self._windows.load_state_dict(state, totals_of, first)
            unread = totals_of(state["unread"])
        self._judge.load_state_dict(state["judge"])
        self._step, self._micro_batch = state["step"], state["micro_batch"]
        # The journal has to tell what the rules remember from here on.
        self._resumed_at, self._started = self._step, False
        if first:
            self._link.tally.add_totals(unread)

    def keys(self, report: Report, head: str, tail: str = "") -> dict[str, float | int]:
        """Return the selected, finite numbers of a report under their log keys ``{head}{name}{tail}``."""
        extras = (
            self._names is CORE
        )  # "core" has the numbers of extras, which somebody asked for; a list names all it wants
        finite = report.finite().items()
        chosen = [
            (n, v) for n, v in finite if self._names is None or n in self._names or (extras and n not in CATALOGUE)
        ]
        return {f"{head}{name}{tail}": value for name, value in chosen}

    def publish(self, report: Report, head: str, tail: str = "") -> None:
        """Show a report under the keys ``{head}{name}{tail}``. A framework's adapter may have more places for them."""
        if self.writes:
            self._delivery.report(report, self.keys(report, head, tail))

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
        }

    def _log_window(self, step: int) -> Report:
        totals = self._link.gather(self._windows.end_window())
        self._windows.remember(totals)
        self._last = report = self._report(step, "train", totals)
        self.publish(report, f"{self.prefix}train/")
        return report

    def _log_rest(self) -> None:
        if self.cadence.every_n_steps is not None and not self._windows.window.empty:
            self._log_window(max(self._step - 1, 0))

    def _show_worst_of_run(self) -> None:
        if self.writes and self._windows.worst.token_rows:
            step = max(self._step - 1, 0)
            whole = self._report(step, "run", self._windows.worst)
            self._delivery.finished(Report(step, "run", {}, whole.worst, whole.worst_sequences))

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
        seen, before = self._windows.tokens_seen if stage == "train" else None, self._windows.passes.get(stage)
        report = totals.report(step, stage, seen, evidence, before)
        if self.decode is None or not evidence or not self.writes:
            return report
        return self._delivery.guard(self.decode, "decode", report.decoded, self.decode) or report
