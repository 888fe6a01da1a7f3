"""Weights & Biases: history rows, the best values of the run, and alerts with a table of their worst tokens."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

from pplmon.alerts import Alert
from pplmon.alerts.text import alert_markdown, sequence_table, title, token_table
from pplmon.report.declared import find
from pplmon.report.log_keys import split_key
from pplmon.report.report import Report
from pplmon.sinks.base import Sink

STEP = "trainer/global_step"  # Lightning's x axis: wandb's own step drops rows that go backwards, as a resumed run's do
# Seconds for which W&B drops alerts of the same title. 0 would mean a minute, and the rules limit themselves already.
WAIT = 0.001
LEVELS = {"info": "INFO", "warning": "WARN", "critical": "ERROR"}
_BETTER = {"min": operator.lt, "max": operator.gt}


class WandB(Sink):
    """A sink that logs to ``run``, or to one that ``wandb.init(**init)`` makes on first use and ``close`` finishes.

    ``best`` and ``alert`` can be called alone, where something else logs the scalars.
    """

    def __init__(self, run: Any = None, **init: Any) -> None:
        if run is not None and init:
            raise ValueError(f"WandB takes a run or arguments of wandb.init, not both; got also {', '.join(init)}")
        self._run = run
        self._ours = run is None
        self._init = init
        self._best: dict[str, float] = {}

    @property
    def run(self) -> Any:
        """Return the run; pplmon's own is made on first use."""
        if self._run is None:
            import wandb

            if wandb.run is not None and not self._init:  # the user's own, which is theirs to finish
                self._run, self._ours = wandb.run, False
                return self._run
            self._run = wandb.init(**self._init)
            self._run.define_metric(STEP)
            self._run.define_metric("*", step_metric=STEP)
        return self._run

    def report(self, report: Report, scalars: Mapping[str, float]) -> None:
        """Log one window as one history row, and the values that are the best so far."""
        self.run.log({**scalars, STEP: report.step})
        self.best(scalars)

    def best(self, scalars: Mapping[str, float]) -> None:
        """Keep the run's extremes in its summary as plain numbers, ``val/perplexity_min``, written when they improve.

        W&B's own ``summary="min"`` would replace the last value by a mapping, and one NaN would spoil it for good.
        """
        improved: dict[str, float] = {}
        for key, value in scalars.items():
            extreme = _extreme(key)
            if extreme is not None and self._improves(f"{key}_{extreme}", value, extreme):
                improved[f"{key}_{extreme}"] = value
        if improved:
            self._best.update(improved)
            self.run.summary.update(improved)

    def alert(self, alert: Alert) -> None:
        """Send an alert, then mark it."""
        self.run.alert(title=title(alert), text=alert_markdown(alert), level=LEVELS[alert.severity], wait_duration=WAIT)
        self.notice(alert)

    def notice(self, alert: Alert) -> None:
        """Mark an alert in the history: log its evidence as tables (13 ms each: never with ordinary rows)."""
        self._tables("pplmon/worst", alert, alert.step)

    def finished(self, report: Report) -> None:
        """Log the run's worst as tables."""
        self._tables("pplmon/run_worst", report, report.step)

    def close(self) -> None:
        """Finish pplmon's own run; one that was given is left open."""
        if self._ours and self._run is not None:
            self._run.finish()
            self._run = None

    def _tables(self, name: str, evidence: Alert | Report, step: int | None) -> None:
        tables = {
            f"{name}_tokens": token_table(evidence.worst),
            f"{name}_sequences": sequence_table(evidence.worst_sequences),
        }
        filled = {key: table for key, table in tables.items() if table.rows}
        if filled:
            import wandb

            at = {} if step is None else {STEP: step}
            rows = {key: wandb.Table(columns=[*table.columns], data=table.rows) for key, table in filled.items()}
            self.run.log({**rows, **at})

    def _improves(self, name: str, value: float, extreme: str) -> bool:
        if name not in self._best:
            before = self.run.summary.get(name)  # a run that was resumed, or fitted before by another sink, has one
            if isinstance(before, (int, float)) and math.isfinite(before):
                self._best[name] = before
        return name not in self._best or bool(_BETTER[extreme](value, self._best[name]))


def _extreme(key: str) -> str | None:
    """Return the extreme of a log key that is worth keeping: "min", "max" or neither."""
    parts = split_key(key)
    number = None if parts is None else find(parts.name)
    return None if number is None else number.best
