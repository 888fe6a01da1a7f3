"""Weights & Biases: settings, history rows, the best values and the trouble of the run, alerts, and the text around worst tokens."""

from __future__ import annotations

import contextlib
import math
import operator
import re
from collections.abc import Mapping
from typing import Any

from pplmon.alerts import Alert
from pplmon.alerts.message import few_lines
from pplmon.alerts.text import sequence_table, title, token_table
from pplmon.report.declared import find
from pplmon.report.log_keys import split_key
from pplmon.report.report import Report
from pplmon.report.worst import WorstToken
from pplmon.sinks.alert_counts import AlertCounts
from pplmon.sinks.base import Sink
from pplmon.sinks.dashboards import HEATMAP, LOSSES, TABLES, WORST
from pplmon.sinks.heatmap_html import heatmap_html
from pplmon.sinks.loss_histogram import LossHistogram
from pplmon.sinks.reliability_diagram import RELIABILITY, Diagram

STEP = "trainer/global_step"  # Lightning's x axis: wandb's own step drops rows that go backwards, as a resumed run's do
# Seconds for which W&B drops alerts of the same title. 0 would mean a minute, and the rules limit themselves already.
WAIT = 0.001
LEVELS = {"info": "INFO", "warning": "WARN", "critical": "ERROR"}
HEATMAPS = 20  # of a run: each is a file
_BETTER = {"min": operator.lt, "max": operator.gt}


class WandB(Sink):
    """A sink that logs to ``run``, or to one that ``wandb.init(**init)`` makes on first use and ``close`` finishes."""

    def __init__(self, run: Any = None, **init: Any) -> None:
        if run is not None and init:
            raise ValueError(f"WandB takes a run or arguments of wandb.init, not both; got also {', '.join(init)}")
        self._run = run
        self._ours = run is None
        self._init = init
        self._best: dict[str, float] = {}
        self._counts = AlertCounts()
        self._heatmaps = 0
        self._drawn: tuple[WorstToken, ...] = ()  # the evidence of the last heatmap

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

    def start(self, run: Mapping[str, Any]) -> None:
        """Put the settings into the run's config, beside the user's own, and the counts of alerts into its history."""
        self._counts.start(run)
        settings = {name: v for name, v in run.items() if v is not None and name not in ("memory", "raised", "prefix")}
        key = f"pplmon/{self._counts.prefix}" if self._counts.prefix else "pplmon"
        before = self.run.config.get(key)
        theirs = dict(before) if isinstance(before, Mapping) else {}
        self.run.config.update({key: {**theirs, **settings}}, allow_val_change=True)

    def report(self, report: Report, scalars: Mapping[str, float]) -> None:
        """Log one window as one history row, with pictures of its tokens, and keep the values that are the best so far."""
        drawn, diagram = LossHistogram.of(report), Diagram.of_pass(report)
        head = f"{self._counts.prefix}{report.stage}/"
        pictures: dict[str, Any] = {}
        if drawn is not None:
            import numpy as np
            import wandb

            counts, edges = np.array(drawn.counts), np.array(drawn.edges)
            pictures[f"{head}{LOSSES}"] = wandb.Histogram(np_histogram=(counts, edges))
        if diagram is not None:
            import wandb

            pictures[f"{head}{RELIABILITY}"] = wandb.Html(diagram.svg(), inject=False)
        self.row({**scalars, **self._counts.curves(), **pictures}, report.step)
        self._forget(*pictures)
        self.best(scalars, report.stage.partition("/")[2])

    def row(self, values: Mapping[str, Any], step: int | None) -> None:
        """Log one history row; a subclass may hand it to whoever logs the other rows of the run."""
        self.run.log({**values, **({} if step is None else {STEP: step})})

    def best(self, scalars: Mapping[str, float], part: str = "") -> None:
        """Keep the run's extremes in its summary as plain numbers, ``val/perplexity_min``, written when they improve.

        ``part`` is the data set or loader that ends the keys of one of several.
        W&B's own ``summary="min"`` would replace the last value by a mapping, and one NaN would spoil it for good.
        """
        improved: dict[str, float] = {}
        for key, value in scalars.items():
            extreme = _extreme(key.removesuffix(f"/{part}"))
            name = f"{self.key(key, part)}_{extreme}"
            if extreme is not None and self._improves(name, value, extreme):
                improved[name] = value
        if improved:
            self._best.update(improved)
            self.run.summary.update(improved)

    def key(self, key: str, part: str) -> str:
        """Return the run's key of a number; a subclass may know that of whoever logs it."""
        return key

    def alert(self, alert: Alert) -> None:
        """Send an alert, then mark it."""
        self.run.alert(title=title(alert), text=few_lines(alert), level=LEVELS[alert.severity], wait_duration=WAIT)
        self.notice(alert)

    def notice(self, alert: Alert) -> None:
        """Mark an alert in history and summary: the counts, the last and the gravest one, and the text that it is about."""
        self._counts.add(alert)
        row: dict[str, Any] = dict(self._counts.summary())
        new = alert.worst and alert.worst != self._drawn and self._heatmaps < HEATMAPS
        if new:  # rules that fire at one step have one and the same evidence
            import wandb

            self._heatmaps, self._drawn = self._heatmaps + 1, alert.worst
            row[self._counts.key(HEATMAP)] = wandb.Html(heatmap_html(alert.text, alert.worst), inject=False)
        self.row(row, alert.step)
        if new:
            self._forget(self._counts.key(HEATMAP))

    def finished(self, report: Report) -> None:
        """Log the run's worst, once: their text as a picture, and tables as an artifact.

        In the history each count of a table's rows and columns would be drawn as a chart of one dot.
        """
        import wandb

        tables = zip(TABLES, (token_table(report.worst), sequence_table(report.worst_sequences)))
        filled = {name: table for name, table in tables if table.rows}
        if filled:
            made = wandb.Artifact(_artifact_name(self.run.id, self._counts.prefix), type="pplmon")
            for name, table in filled.items():
                made.add(wandb.Table(columns=[*table.columns], data=table.rows), name)
            self.run.log_artifact(made)
        key = self._counts.key(WORST)
        self.row(
            {key: wandb.Html(heatmap_html("The worst tokens of the run", report.worst), inject=False)}, report.step
        )
        self._forget(key)

    def close(self) -> None:
        """Finish pplmon's own run; one that was given is left open."""
        if self._ours and self._run is not None:
            self._run.finish()
            self._run = None

    def _forget(self, *keys: str) -> None:
        """Take pictures out of the summary, which is for numbers: a runs table would list their metadata."""
        for key in keys:
            with contextlib.suppress(KeyError):  # a disabled run keeps none
                del self.run.summary[key]

    def _improves(self, name: str, value: float, extreme: str) -> bool:
        if name not in self._best:
            before = self.run.summary.get(name)  # a run that was resumed, or fitted before by another sink, has one
            if isinstance(before, (int, float)) and math.isfinite(before):
                self._best[name] = before
        return name not in self._best or bool(_BETTER[extreme](value, self._best[name]))


def _artifact_name(run: str, prefix: str) -> str:
    return re.sub(r"[^\w.-]+", "-", "-".join(filter(None, ("pplmon", prefix.strip("/"), "worst", run))))


def _extreme(key: str) -> str | None:
    """Return the extreme of a log key that is worth keeping: "min", "max" or neither."""
    parts = split_key(key)
    number = None if parts is None else find(parts.name)
    return None if number is None else number.best
